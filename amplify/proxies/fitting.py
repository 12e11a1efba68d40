"""Fine-tuning of proxies: one loop for encoders and language models, full or with low-rank adapters."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from amplify import progress as bars
from amplify.locks import PROCESS
from amplify.proxies.proxy import Proxy
from amplify.proxies.rows import Row
from amplify.types import Example

if TYPE_CHECKING:
    from torch import Tensor


def fit(proxy: Proxy, train: Sequence[Example], settings: Mapping[str, Any], progress: bool) -> Proxy:
    """Fine-tune: cross-entropy over an example's labels (encoder), -log p(gold label | prompt) (causal)."""
    import torch
    from accelerate import Accelerator
    from transformers import get_linear_schedule_with_warmup

    model = _adapters(proxy) if settings["lora"] else proxy.module.requires_grad_(True)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=settings["learning_rate"])
    size, epochs = settings["batch_size"], settings["epochs"]
    steps = epochs * math.ceil(len(train) / size)
    schedule = get_linear_schedule_with_warmup(optimiser, steps // 10, steps)
    accelerator = Accelerator()
    model, optimiser, schedule = accelerator.prepare(model, optimiser, schedule)
    learner = replace(proxy, module=model)
    rows = [_gold_rows(proxy, example) for example in train]
    model.train()
    with bars.progress(total=steps, desc=f"training {proxy.name}", unit="step", shown=progress, leave=False) as bar:
        for _ in range(epochs):
            order = torch.randperm(len(train)).tolist()
            for start in range(0, len(order), size):
                batch = order[start : start + size]
                loss = _loss(learner, [train[i] for i in batch], [rows[i] for i in batch])
                accelerator.backward(loss)
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimiser.step()
                schedule.step()
                optimiser.zero_grad()
                bar.update()
                bar.set_description(f"training {proxy.name}, loss {loss.item():.3f}")
    model = accelerator.unwrap_model(model)
    if settings["lora"]:
        model = model.merge_and_unload()
    return replace(proxy, module=model.eval().requires_grad_(False), trained=True)


def _adapters(proxy: Proxy) -> Any:
    from peft import LoraConfig, get_peft_model

    task_type = "CAUSAL_LM" if proxy.kind == "causal" else "SEQ_CLS"  # SEQ_CLS trains the head in full
    config = LoraConfig(task_type=task_type, r=8, lora_alpha=16, lora_dropout=0.05, target_modules="all-linear")
    return get_peft_model(proxy.module, config)


def _gold_rows(proxy: Proxy, example: Example) -> list[Row]:
    """What training needs: every label's row for an encoder, the gold label's alone for a language model."""
    rows = proxy.rows(example)
    if proxy.kind == "encoder":
        return rows
    gold = proxy.labels_of(example).index(str(example.label))
    row = next(row for row in rows if gold in row.answers)
    return [replace(row, answers=(gold,), targets=(row.targets[row.answers.index(gold)],))]


def _loss(proxy: Proxy, examples: Sequence[Example], rows: Sequence[Sequence[Row]]) -> Tensor:
    import torch

    flat = [row for group in rows for row in group]
    scores = proxy.scores(flat, *proxy.embed(flat))
    if proxy.kind == "causal":
        return -scores.mean()
    if proxy.labels:
        gold = [proxy.labels.index(str(e.label)) for e in examples]
        return torch.nn.functional.cross_entropy(scores, torch.tensor(gold, device=scores.device))
    losses, at = [], 0
    for example, group in zip(examples, rows, strict=True):
        options = scores[at : at + len(group), 0].log_softmax(0)
        losses.append(-options[example.choices.index(str(example.label))])
        at += len(group)
    return torch.stack(losses).mean()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch for a while and leave the caller's random state as it was; one thread at a time."""
    import torch

    with PROCESS, torch.random.fork_rng():
        torch.manual_seed(seed)
        yield

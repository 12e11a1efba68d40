"""How a proxy is made for a task (fine-tuned, or its body as it is), kept in a folder, and found again.

One training loop serves encoders and language models, full or with low-rank adapters.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from amplify import codec, files, hub, resources
from amplify import progress as bars
from amplify.errors import DataError, InputError, extras
from amplify.locks import PROCESS
from amplify.models import pretrained
from amplify.proxies.proxy import Kind, Proxy, Row, columns_of, versions
from amplify.tasks import Task
from amplify.types import Example

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


_RATES: dict[tuple[Kind, bool], float] = {
    ("encoder", False): 2e-4,
    ("encoder", True): 1e-3,
    ("causal", False): 2e-5,
    ("causal", True): 3e-4,
}


def train_proxy(
    task: Task,
    body: str | Path = "minilm",
    *,
    epochs: int = 4,
    seed: int = 0,
    lora: bool = False,
    out: str | Path | None = None,
    learning_rate: float | None = None,
    batch_size: int = 16,
    device: str | None = None,
    progress: bool = True,
) -> Proxy:
    """A proxy for a task: fine-tuned on `task.train`, or the body as it is with `epochs=0`.

    A proxy that was made before from the same task, body, settings and seed is loaded instead.

    Args:
        task: a labelled task with fixed labels or per-example choices.
        body: alias, hub id or folder of an encoder (gets a classification head) or a causal language model.
        epochs: passes over `task.train`. 0 takes the body as it is: a causal model always works; an encoder needs a
            classification head of its own whose label names are the task's, else the proxy is marked untrained.
        seed: of the head, the order of the data and dropout. The same seed gives the same weights on one machine.
        lora: train low-rank adapters (rank 8, every linear layer) that are merged at the end, not all weights.
        out: folder to keep the proxy in; by default the cache.
        learning_rate: peak of a linear schedule with 10 % warm-up, of AdamW; by default chosen by kind of training.
        batch_size: examples per step.
        device: "cpu", "cuda", "cuda:1" …; None takes a GPU where there is one.
        progress: show a bar (on a terminal only).

    Raises:
        InputError: nothing to train on, a gold label outside the labels, or `out` holds something else.
        DataError: the proxy cannot be written.

    Example:
        >>> proxy = amplify.train_proxy(amplify.load_task("planted_single", limit=4), encoder, epochs=1, progress=False)
        >>> proxy.trained, proxy.labels
        (True, ('left', 'right'))
    """
    if epochs < 0 or batch_size < 1:
        raise InputError(f"a proxy needs epochs >= 0 and batch_size >= 1, got {epochs} and {batch_size}")
    _check(task, epochs)
    place = pretrained.device_of(device)
    source = hub.resolve(body)
    kind = kind_of(source)
    rate = learning_rate or _RATES[kind, lora]
    training = {"epochs": epochs, "seed": seed, "lora": lora, "learning_rate": rate, "batch_size": batch_size}
    recipe: dict[str, Any] = {
        "format": FORMAT,
        "kind": kind,
        "task": task.name,
        "task_fingerprint": task.fingerprint,
        "labels": list(task.labels),
        "instruction": task.instruction,
        "input_name": task.input_name,
        "template": (resources.content("prompts") / "proxy.jinja").read_text(encoding="utf-8").rstrip("\n"),
        "body": hub.identity(source),
        "training": training if epochs else {"epochs": 0} | ({"seed": seed} if kind == "encoder" else {}),
    }
    identity = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()
    slug = "".join(c if c.isalnum() or c in "-_" else "-" for c in f"{task.name}-{Path(str(body)).name}")
    folder = Path(out) if out is not None else resources.home() / "proxies" / f"{slug}-{identity[:16]}"
    if holds(folder, identity):
        try:
            return load_proxy(folder, device=device)
        except DataError:
            if out is not None:
                raise
            shutil.rmtree(folder, ignore_errors=True)  # the cache heals itself
    if out is not None and folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty and holds another proxy or other files: choose another folder")

    started = time.perf_counter()
    with seeded(seed), hub.quiet():
        model, tokenizer, columns = load_body(source, kind, task.labels, place)
        recipe["columns"] = columns or list(range(len(task.labels) or 1))
        proxy = Proxy(source, kind, task.labels, columns is not None, identity, model, tokenizer, recipe)
        if epochs:
            proxy = fit(proxy, task.train, training, progress)
    kept = bool(epochs or out is not None)  # a body taken as it is is measured only where its card is kept
    card = {
        **recipe,
        "identity": identity,
        "trained": proxy.trained,
        "examples": len(task.train) if epochs else 0,
        "seconds": round(time.perf_counter() - started, 1),
        "validation": {
            "examples": len(task.validation),
            "accuracy": proxy.accuracy(task.validation) if task.validation and kept else None,
        },
        "versions": versions(),
    }
    if kept:
        write(proxy, card, folder)
    else:
        folder = source
    return Proxy(folder, kind, task.labels, proxy.trained, identity, proxy.module, tokenizer, card)


def _check(task: Task, epochs: int) -> None:
    if epochs and not task.train:
        raise InputError(f"task {task.name!r} has no training examples to train a proxy on; use epochs=0 or give some")
    for example in (*task.train, *task.validation):
        if not task.labels_of(example):
            raise InputError(
                f"a proxy chooses among labels, and example {example.id!r} of task {task.name!r} has none "
                "(free-text answers): give the task labels=, or its examples choices"
            )


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


FORMAT = 1
CARD = "amplify_proxy.json"


@extras()
def load_proxy(folder: str | Path, *, device: str | None = None) -> Proxy:
    """A proxy that `train_proxy` wrote.

    Args:
        folder: where it lies.
        device: "cpu", "cuda", "cuda:1" …; None takes a GPU where there is one.

    Raises:
        DataError: no proxy there, or a broken one.

    Example:
        >>> load_proxy("nowhere")
        Traceback (most recent call last):
        amplify.errors.DataError: ...
    """
    folder = Path(folder)
    card = read_card(folder)
    labels = tuple(card["labels"])
    place = pretrained.device_of(device)
    try:
        hub.check_folder(folder, "its model")
        if card.get("weights") not in (None, hub.identity(folder)["sha256"]):
            raise DataError(f"its weights are not those that its {CARD} was written for")
        model, tokenizer, _ = load_body(folder, card["kind"], labels, place)
    except DataError as error:
        raise DataError(f"the proxy in {folder} is damaged ({error}): delete the folder and train it again") from error
    return Proxy(folder, card["kind"], labels, card["trained"], card["identity"], model, tokenizer, card)


class _Body(TypedDict, total=False):
    name: str


class _Trained(TypedDict):
    epochs: int


class _Training(_Trained, total=False):
    seed: int
    lora: bool


class _Validation(TypedDict, total=False):
    examples: int
    accuracy: float | None


class _Card(TypedDict):
    """What of a card other code relies on."""

    kind: Kind
    task: str
    task_fingerprint: str
    labels: list[str]
    instruction: str
    input_name: str
    template: str
    body: _Body
    training: _Training
    columns: list[int]
    identity: str
    trained: bool
    validation: _Validation


def read_card(folder: Path) -> dict[str, Any]:
    """What a proxy's folder says of it.

    Raises:
        DataError: there is no card, or not one that this version of amplify wrote; says where.
    """
    where = files.shown(folder)
    if not os.path.exists(folder / CARD):  # no, too, for a name that no file can have
        raise DataError(f"{where} is no proxy folder (it has no {CARD}); make one with amplify.train_proxy")
    try:
        card = files.read_json(folder / CARD, "the card of a proxy")
    except DataError as error:
        raise DataError(f"{error}: delete the folder and train the proxy again") from error
    if card.get("format") != FORMAT:
        raise DataError(f"{where} holds a proxy of another format; train it again with this version of amplify")
    try:
        codec.decode(_Card, card)
        labels, columns = card["labels"], card["columns"]
        if len(set(labels)) < len(labels):
            raise DataError("labels are not different texts")
        if sorted(columns) != list(range(len(labels) or 1)):
            raise DataError(f"columns are {columns!r:.60}")
    except DataError as error:
        raise DataError(
            f"the {CARD} in {where} is broken ({error}): delete the folder and train the proxy again"
        ) from error
    return card


def list_proxies() -> list[dict[str, Any]]:
    """The cards of the proxies in the cache, each with its "folder", by name of the folder.

    One that cannot be read stands there as its "folder" and what is "broken".

    Example:
        >>> all("folder" in card for card in list_proxies())
        True
    """
    root = resources.home() / "proxies"
    cards = []
    for path in sorted(root.glob(f"*/{CARD}")) if root.is_dir() else []:
        try:
            cards.append({**read_card(path.parent), "folder": files.shown(path.parent)})
        except DataError as error:
            if path.is_file():  # else it is being replaced by another process
                cards.append({"folder": files.shown(path.parent), "broken": str(error)})
    return cards


def kind_of(folder: Path) -> Kind:
    """What a model in a folder can be, by its configuration.

    Raises:
        DataError: no configuration there.
    """
    config = files.read_json(folder / "config.json", "the configuration of a model")
    names = config.get("architectures") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{files.shown(folder)} is no model folder: architectures in config.json is no list of names")
    return "causal" if any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in names) else "encoder"


@extras()
def load_body(
    folder: Path, kind: Kind, labels: tuple[str, ...], place: torch.device
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, list[int] | None]:
    """Load model and tokenizer, and say which column of its head is which label (None: the head has no weights)."""
    import torch
    from transformers import AutoModelForSequenceClassification

    name = str(folder)
    config = pretrained.config_of(folder, name)
    pretrained.refuse_encoder_decoder(config, name, "encoders with a classification head and decoder-only models")
    tokenizer = pretrained.tokenizer_of(folder, name)
    if not tokenizer.is_fast:
        raise InputError(f"the tokenizer in {folder} gives no character offsets; a proxy needs a fast tokenizer")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.truncation_side = "right"
    columns: list[int] | None = list(range(len(labels) or 1))
    if kind == "causal":
        model = pretrained.causal_lm(folder, name, dtype=torch.float32)
    else:
        model, info = pretrained.model_of(
            AutoModelForSequenceClassification,
            folder,
            name,
            "a classifier",
            num_labels=len(labels) or 1,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
        if info["missing_keys"] or info["mismatched_keys"]:
            columns = None
        elif labels:
            columns = columns_of(labels, config.id2label)
    return model.to(place).eval().requires_grad_(False), tokenizer, columns


def holds(folder: Path, identity: str) -> bool:
    """Whether a folder holds the whole proxy of this identity."""
    try:
        card = read_card(folder)
    except DataError:
        return False
    return bool(card["identity"] == identity and any(folder.glob("*.safetensors")))


def write(proxy: Proxy, card: Mapping[str, Any], folder: Path) -> None:
    """Write beside the target and rename, so that no one ever sees half a proxy.

    Raises:
        DataError: the disk is full or read-only; nothing half-written is left.
    """
    from safetensors import SafetensorError

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with files.draft(folder, folder=True) as work:
            if proxy.labels and proxy.kind == "encoder":
                proxy.module.config.id2label = dict(enumerate(proxy.labels))
                proxy.module.config.label2id = {label: i for i, label in enumerate(proxy.labels)}
            with hub.quiet():
                proxy.module.save_pretrained(work)
            proxy.tokenizer.save_pretrained(work)
            files.write_json(work / CARD, {**card, "weights": hub.identity(work)["sha256"]})
            if folder.exists() and not holds(folder, card["identity"]):
                shutil.rmtree(folder)  # an empty folder, or the remains of a damaged one
            try:
                work.rename(folder)
            except OSError:
                if not holds(folder, card["identity"]):  # else another process made the same proxy first
                    raise
    except (OSError, SafetensorError) as error:  # weights are written by a library with errors of its own
        raise DataError(f"the proxy cannot be written to {folder}: {error}") from error

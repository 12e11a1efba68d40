"""How a proxy is made for a task: fine-tuned, or its body as it is; what was made before is found again."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from pathlib import Path
from typing import Any

from amplify import hub, pretrained, resources
from amplify.errors import DataError, InputError
from amplify.proxies.fitting import fit, seeded
from amplify.proxies.folders import FORMAT, holds, kind_of, load_body, load_proxy, write
from amplify.proxies.proxy import Kind, Proxy, versions
from amplify.tasks import Task

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

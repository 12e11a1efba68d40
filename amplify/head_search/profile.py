"""The profiler: a task's samples, the heads that obey on them, and how these do on samples that no search has seen."""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from amplify.errors import InputError
from amplify.head_search.margins import Item, Margins, by_layer, heads_of
from amplify.head_search.record import Recorded
from amplify.head_search.search import PLAIN, Combine, Joint, Ranking, combine, exhaustive, halving, joint
from amplify.methods import make
from amplify.methods.program import answer_shots
from amplify.models.base import ScoringModel, need_scoring
from amplify.steering import Steering
from amplify.steering.spec import model_shape
from amplify.tasks import Task
from amplify.types import Demonstration


def items_of(
    task: Task, model: ScoringModel, samples: int, *, seed: int = 0, split: str = "train", shots: int = 0
) -> list[Item]:
    """Samples of a task, with what their wanted answers must beat.

    For a choice the foil is the other object (the plain model's favourite, where there are several others); for free
    text it is what the plain model writes, cut to the gold's length. Where it writes the gold itself there is none.

    Args:
        task: with an emphasis.
        model: the plain model.
        samples: how many; all there are where there are fewer.
        seed: of the draw.
        split: "train", "validation" or "test".
        shots: labelled examples before each sample, drawn anew for each from the others of the training split.

    Raises:
        InputError: the task emphasises nothing, or has no such samples.
    """
    if not task.emphasis:
        raise InputError(f"task {task.name} says not what is to be emphasised: its YAML needs emphasis:")
    pool = list(getattr(task, split))
    if not pool:
        raise InputError(f"task {task.name} has no {split} examples to profile on")
    chosen = [pool[i] for i in np.random.default_rng(seed).permutation(len(pool))[:samples]]
    mode: Literal["score", "generate"] = "score" if task.labels_of(chosen[0]) else "generate"
    form = make("zero_shot", mode=mode).fit(task, model, 0).form  # type: ignore[attr-defined]
    drawn: list[tuple[Demonstration, ...]] = [()] * len(chosen)
    if shots:
        # one draw a sample, never the sample itself
        few = make("few_shot", mode=mode, shots=shots)
        pools = [replace(task, train=tuple(x for x in task.train if x.id != e.id)) for e in chosen]
        drawn = [few.fit(rest, model, seed + i).shots for i, rest in enumerate(pools)]  # type: ignore[attr-defined]
    prompts = [form.prompt(e, s) for e, s in zip(chosen, drawn, strict=True)]
    answers = answer_shots(form, chosen, drawn, model)
    items = []
    for example, prompt, answer in zip(chosen, prompts, answers, strict=True):
        gap = " " if prompt.prefix or prompt.text is not None else ""
        gold = str(example.label if example.label is not None else example.answers[0])
        if task.labels_of(example):
            others = {label: s for label, s in answer.scores.items() if label != gold}
            foil = max(others, key=lambda label: others[label])
            items.append(Item(example.id, prompt, gap + gold, gap + foil, whole=True))
        else:
            written = answer.text.strip()
            items.append(Item(example.id, prompt, gap + gold, gap + written if written not in ("", gold) else ""))
    return items


@dataclass(frozen=True)
class Profile:
    """What a profiling found.

    Attributes:
        steering: the chosen heads with their provenance.
        rankings: of each task.
        chosen: how the joint selection went.
        runs: head sets times samples, all tasks together.
    """

    steering: Steering
    rankings: Mapping[str, Ranking] = field(repr=False)
    chosen: Joint = field(repr=False)
    runs: int


def find_heads(
    tasks: Sequence[Task],
    model: Any,
    *,
    samples: int = 32,
    steering: Steering | None = None,
    how: Combine = "intersection",
    search: Literal["halving", "exhaustive"] = "halving",
    seed: int = 0,
    joint_samples: int = 16,
    block: int = 4,
    most: int = 76,
    target_tokens: int = 24,
    shots: int = 0,
    record: str | Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> Profile:
    """Find the heads that obey emphasis, for one task or for several together.

    Args:
        tasks: one for a task-specific profile; several for a multi-task one. A task-agnostic profile for a task is the
            multi-task profile of others.
        model: a scorer that can steer. `transformers:` is by far the quickest.
        samples: of each task's training split.
        steering: mode, alpha and the like that the heads will be used with; its heads do not matter.
        how: see `combine`.
        search: see `halving` and `exhaustive`.
        seed: of the samples.
        joint_samples: samples a task for the joint selection.
        block, most: see `joint`.
        target_tokens: first tokens of gold and foil that count.
        shots: see `items_of`; for heads that will be steered behind as many examples.
        record: JSONL file of every run; the same call on the same file goes on where it stopped.
        progress: called with the number of runs after each batch.

    Raises:
        InputError: no task, the same one twice, a task without emphasis, or a model that cannot be steered.
        RunError: the file belongs to another search.
    """
    if not tasks or samples < 1:
        raise InputError("profiling needs at least one task and one sample")
    if len({task.name for task in tasks}) < len(tasks):
        raise InputError(f"a task is named twice: {', '.join(task.name for task in tasks)}")
    scorer = need_scoring(model, "profiling")
    config = getattr(getattr(model, "module", None), "config", None)
    if config is None:
        raise InputError("profiling needs to know the model's layers and heads: open it with transformers:")
    shape = model_shape(config)
    layers, heads = shape["layers"], shape["heads"]
    base = steering or Steering(heads={0: (0,)})
    options = {k: v for k, v in base.to_dict().items() if k not in ("heads", "model", "provenance")}
    about = model.describe()
    scores: dict[str, Recorded] = {}
    rankings: dict[str, Ranking] = {}
    sizes = []
    for task in tasks:
        items = items_of(task, scorer, samples, seed=seed, shots=shots)
        measure = Margins(scorer, items, base, target_tokens=target_tokens)
        what = [about.get("model"), about.get("dtype"), options, target_tokens, task.fingerprint, seed]
        what.append([[i.id, i.gold, i.foil] for i in items])
        what += [shots] if shots else []
        key = hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:16]
        scores[task.name] = Recorded(measure, task.name, Path(record) if record else None, key, progress)
        find = exhaustive if search == "exhaustive" else halving
        rankings[task.name] = find(scores[task.name], layers, heads, len(items))
        sizes.append(min(joint_samples, len(items)))
    order = combine(list(rankings.values()), how, most) if len(tasks) > 1 else next(iter(rankings.values())).heads
    chosen = joint(list(scores.values()), order, sizes, block=block, most=most)
    # the plain model's runs are counted once
    runs = sum(r.runs for r in rankings.values()) + chosen.runs - sum(sizes)
    named = about.get("model")
    provenance = {
        "tasks": {
            t.name: {"fingerprint": t.fingerprint, "emphasis": t.emphasis, "split": "train",
                     "samples": len(s.margins.items)} for t, s in zip(tasks, scores.values(), strict=True)
        },
        "search": search,
        **({"combine": how} if len(tasks) > 1 else {}),
        **({"shots": shots} if shots else {}),
        "seed": seed,
        "target_tokens": target_tokens,
        "runs": runs,
        "joint_gain": round(chosen.gain, 4),
        "order": [f"{layer}.{head}" for layer, head in order[:100]],
        "best_heads": {
            name: {f"{layer}.{head}": round(r.gains[layer, head], 4) for layer, head in r.heads[:10]}
            for name, r in rankings.items()
        },
        "date": datetime.date.today().isoformat(),
        "dtype": about.get("dtype"),
        "versions": {k: str(v) for k, v in about.get("versions", {}).items()},
    }  # fmt: skip
    model = {**shape, **(dict(named) if isinstance(named, Mapping) else {})}
    return Profile(
        replace(base, heads=by_layer(chosen.heads), model=model, provenance=provenance), rankings, chosen, runs
    )


def held_out(task: Task, model: Any, steering: Steering, *, samples: int = 32, seed: int = 1) -> tuple[float, float]:
    """Mean margin of the plain model and under a profile, on test items that no profiling has seen.

    Returns:
        (plain, steered).
    """
    items = items_of(task, model, samples, seed=seed, split="test")
    measure = Margins(model, items, steering)
    both = [measure(i, [PLAIN, heads_of(steering.heads or {})]) for i in range(len(items))]
    plain, steered = np.mean(both, axis=0)
    return float(plain), float(steered)

"""What calibrating label scores is worth: every way of `amplify.calibration`, on the same programs and items.

    python eval/bench_calibration.py --model transformers:qwen2.5-coder-0.5b -B dtype=bfloat16

Each program (task x method x seed) scores the test items, the calibration inputs and the content-free inputs once; all
ways are read off these scores. Killed and started again it goes on behind the last program that it finished.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from measuring import command

import amplify
from amplify.calibration import WAYS
from amplify.cli.common import pairs
from amplify.evaluation.configuration import chosen_items, make_methods
from amplify.methods.base import Program
from amplify.methods.calibrated import calibrated
from amplify.models.base import LanguageModel
from amplify.types import Answer, Example

RESULTS = Path(__file__).parent / "results"
TASKS = "support_tickets,amazon_sentiment,imdb_sentiment,commonsenseqa,bbh/hyperbaton,bbh/disambiguation_qa"
METHODS = "zero_shot,few_shot,few_shot_knn,amplify_no_rationale,amplify,amplify_random_words"
ROUNDS = 2000  # of the bootstrap over items


class Remembered(Program):
    """A program that scores an input once, however often it is asked."""

    kind = "remembered"

    def __init__(self, program: Program) -> None:
        self.program, self.answers = program, dict[tuple[Any, ...], Answer]()

    def answer(self, examples: Sequence[Example], model: LanguageModel) -> list[Answer]:
        """Answers, new ones asked in one batch."""
        keys = [(e.id, e.text, e.options) for e in examples]
        new = {key: e for key, e in zip(keys, examples, strict=True) if key not in self.answers}
        self.answers |= zip(new, self.program.answer(list(new.values()), model), strict=True) if new else ()
        return [self.answers[key] for key in keys]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return self.program.to_dict()

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Program:
        """Never saved."""
        raise NotImplementedError(data)


def measured(
    program: Program, task: amplify.tasks.Task, items: Sequence[Example], model: LanguageModel, seed: int
) -> Any:
    """Right or wrong by item, and Brier score, of each way; beside them what the labels were."""
    remembered = Remembered(program)
    found: dict[str, Any] = {}
    for way in WAYS:
        fitted = calibrated(remembered, task, model, way, seed)
        answers = fitted.answer(items, model)
        brier = []
        for answer, item in zip(answers, items, strict=True):
            scores = np.array(list(answer.scores.values()))
            p = np.exp(scores - scores.max())
            gold = np.array([label == item.label for label in answer.scores])
            brier.append(float(((p / p.sum() - gold) ** 2).sum()))
        found[way] = {
            "right": [int(a.value == e.label) for a, e in zip(answers, items, strict=True)],
            "brier": float(np.mean(brier)),
            "favourite": max(np.unique([str(a.value) for a in answers], return_counts=True)[1].tolist()) / len(items),
        }
        if way == "auto":
            found[way]["chosen"] = getattr(getattr(fitted, "calibration", None), "way", "none")
    return found


def interval(gains: np.ndarray[Any, Any]) -> tuple[float, float]:
    """95 % of the mean over items [methods and seeds, items], items drawn anew."""
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, gains.shape[1], (ROUNDS, gains.shape[1]))
    low, high = np.quantile(gains.mean(axis=0)[drawn].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def rows(cells: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The table: accuracy in per cent, a task's mean over methods and seeds last."""
    yield "| task | method | " + " | ".join(WAYS) + " |"
    yield "|---|---|" + "---:|" * len(WAYS)
    for task in dict.fromkeys(cell["task"] for cell in cells):
        of_task = [cell for cell in cells if cell["task"] == task]
        for method in dict.fromkeys(cell["method"] for cell in of_task):
            same = [cell for cell in of_task if cell["method"] == method]
            means = [100 * np.mean([cell["ways"][way]["right"] for cell in same]) for way in WAYS]
            yield f"| {task} | {method} | " + " | ".join(f"{mean:.1f}" for mean in means) + " |"
        texts = []
        for way in WAYS:
            right = np.array([cell["ways"][way]["right"] for cell in of_task], dtype=float)
            plain = np.array([cell["ways"]["none"]["right"] for cell in of_task], dtype=float)
            low, high = interval(100 * (right - plain))
            gain = "" if way == "none" else f" ({low:+.1f} to {high:+.1f})"
            texts.append(f"**{100 * right.mean():.1f}**{gain}")
        yield f"| {task} | all, gain with 95 % interval | " + " | ".join(texts) + " |"


@click.command()
@click.option("--model", "-m", "model_id", required=True)
@click.option("--model-option", "-B", multiple=True, metavar="NAME=VALUE")
@click.option("--tasks", default=TASKS, show_default=True)
@click.option("--methods", default=METHODS, show_default=True)
@click.option("--seeds", default="0", show_default=True)
@click.option("--limit", default=200, show_default=True, help="Test items of each task.")
@click.option("--set", "settings", multiple=True, metavar="METHOD.OPTION=VALUE")
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS / "calibration.json", show_default=True)
def main(model_id: str, model_option: tuple[str, ...], tasks: str, methods: str, seeds: str, limit: int,
         settings: tuple[str, ...], out: Path) -> None:  # fmt: skip
    """Score, calibrate in every way, write the table."""
    header: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}
    cells: list[dict[str, Any]] = header.pop("cells", [])
    done = {(c["task"], c["method"], c["seed"]) for c in cells}
    with amplify.load_model(model_id, **pairs(model_option, "-B")) as model:
        for name in tasks.split(","):
            task = amplify.load_task(name)
            items = chosen_items(task, limit)
            for method in make_methods(methods.split(","), "score", pairs(settings, "--set")):
                for seed in map(int, seeds.split(",")) if method.seeded else (int(seeds.split(",")[0]),):
                    if (name, method.label, seed) in done:
                        continue
                    program = method.fit(task, model, seed)
                    ways = measured(program, task, items, model, seed)
                    cells.append({"task": name, "method": method.label, "seed": seed, "ways": ways})
                    header = {
                        "command": command(),
                        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                        "machine": f"{platform.system()}, {os.cpu_count()} cores",
                        "model": model.describe(),
                        "limit": limit,
                    }
                    out.write_text(json.dumps({**header, "cells": cells}, indent=1) + "\n")
                    means = {way: 100 * float(np.mean(found["right"])) for way, found in ways.items()}
                    click.echo(f"{name} {method.label} {seed}: {', '.join(f'{w} {m:.1f}' for w, m in means.items())}")
    table = "\n".join(rows(cells))
    about = f"{model_id}, {limit} test items a task at most, label scoring; `{command()}`, {header['date'][:10]}"
    out.with_suffix(".md").write_text(f"# Calibration of label scores\n\n{about}\n\n{table}\n")
    click.echo(table)


if __name__ == "__main__":
    main()

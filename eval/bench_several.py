"""What several answers to an input are worth: shuffled shots, listed labels, rewordings, at equal numbers of answers.

    python eval/bench_several.py -m transformers:qwen2.5-coder-0.5b -B dtype=bfloat16

Each program of a variation scores the test items and the held-out items once; every way to aggregate, every number of
answers and every gate is read off these scores. Calibrated by `batch` on the held-out inputs, each program by itself.
Killed and started again it goes on behind the last program that it finished.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from measuring import command

import amplify
from amplify.calibration import log_softmax
from amplify.cli.common import pairs
from amplify.evaluation import statistics
from amplify.evaluation.configuration import chosen_items
from amplify.methods import make
from amplify.methods.calibrated import calibrated
from amplify.methods.deciding import AGGREGATES, Aggregate, aggregated, deferral, entropies
from amplify.models.base import LanguageModel
from amplify.tasks import Task
from amplify.types import Example

RESULTS = Path(__file__).parent / "results"
VARIATIONS = ("shots", "labels", "rewordings")
Table = np.ndarray[Any, Any]


def scored(program: amplify.Program, items: Sequence[Example], labels: Sequence[str], model: LanguageModel) -> Table:
    """Label log-probabilities, [items, labels]."""
    answers = program.answer(items, model)
    return log_softmax(np.array([[answer.scores[label] for label in labels] for answer in answers]))


def measured(
    task: Task,
    items: Sequence[Example],
    model: LanguageModel,
    inner: str,
    vary: str,
    answers: int,
    done: dict[str, Any],
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each program of a variation that is not done: its name and its scores of test and held-out items."""
    method = make("augmented", mode="score", inner=inner, vary=vary, answers=answers, gated=False)
    for number, program in enumerate(method.fit(task, model, 0).programs):  # type: ignore[attr-defined]
        name = "plain" if number == 0 else f"{vary} {number}"
        if name in done:
            continue
        before = model.usage.snapshot()
        fitted = calibrated(program, task, model, "batch", 0)
        test = scored(fitted, items, task.labels, model)
        used = model.usage.since(before)
        yield (
            name,
            {
                "test": test.round(5).tolist(),
                "held_out": scored(fitted, task.validation, task.labels, model).round(5).tolist(),
                "forwarded_tokens": used.forwarded_tokens,
            },
        )


def lines(
    cells: dict[str, Any], vary: str, answers: int, gold: Table, held_out: Table, limit: int
) -> Iterator[list[str]]:
    """One line for each way to aggregate: always, and gated."""
    names = ["plain", *(f"{vary} {i}" for i in range(1, answers))]
    test = np.array([cells[name]["test"][:limit] for name in names])
    fit = np.array([cells[name]["held_out"] for name in names])
    gold = gold[:limit]
    plain = (test[0].argmax(axis=1) == gold).astype(float)
    for how in AGGREGATES:
        whole, fitted = merged(test, how), merged(fit, how)
        right = (whole.argmax(axis=1) == gold).astype(float)
        gate = deferral(
            -entropies(fit[0]),
            (fit[0].argmax(axis=1) == held_out).astype(float),
            (fitted.argmax(axis=1) == held_out).astype(float),
        )
        again = -entropies(test[0]) < gate
        gated = np.where(again, right, plain)
        yield [
            vary,
            how,
            str(answers),
            str(limit),
            *told(right, plain),
            f"{100 * again.mean():.0f} %",
            *told(gated, plain),
        ]


def merged(opinions: Table, how: Aggregate) -> Table:
    """[answers, items, labels] -> [items, labels]."""
    return np.stack([aggregated(opinions[:, i], how) for i in range(opinions.shape[1])])


def told(right: Table, plain: Table) -> list[str]:
    """Accuracy, and its difference to the plain answer with interval and p."""
    difference, interval, test = statistics.compare([right.tolist()], [plain.tolist()])
    return [
        f"{100 * right.mean():.1f}",
        f"{100 * difference:+.1f} ({100 * interval.low:+.1f} to {100 * interval.high:+.1f}, p {test.p:.2f})",
    ]


HEADING = ["varied", "aggregate", "answers", "items", "always", "to plain", "asked again", "gated", "to plain"]


@click.command()
@click.option("--model", "-m", "model_id", required=True)
@click.option("--model-option", "-B", multiple=True, metavar="NAME=VALUE")
@click.option("--task", "name", default="support_tickets", show_default=True)
@click.option("--inner", default="few_shot[shots=4]", show_default=True)
@click.option("--answers", default=5, show_default=True)
@click.option("--rewordings", default=3, show_default=True, help="Answers with rewordings, which are dear.")
@click.option("--limit", default=100, show_default=True, help="Test items.")
@click.option("--held-out", default=32, show_default=True, help="Validation items for calibration and gate.")
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS / "several_answers.json", show_default=True)
def main(model_id: str, model_option: tuple[str, ...], name: str, inner: str, answers: int, rewordings: int,
         limit: int, held_out: int, out: Path) -> None:  # fmt: skip
    """Score every program, then write the table."""
    header: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}
    cells: dict[str, Any] = header.pop("cells", {})
    task = amplify.load_task(name)
    task = replace(task, validation=tuple(chosen_items(replace(task, test=task.validation, validation=()), held_out)))
    items = chosen_items(task, limit)
    counts = {"shots": answers, "labels": answers, "rewordings": rewordings}
    with amplify.load_model(model_id, **pairs(model_option, "-B")) as model:
        for vary in VARIATIONS:
            for cell, found in measured(task, items, model, inner, vary, counts[vary], cells):
                cells[cell] = found
                header = {
                    "command": command(),
                    "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                    "machine": f"{platform.system()}, {os.cpu_count()} cores",
                    "model": model.describe(),
                    "gold": [task.labels.index(str(e.label)) for e in items],
                    "gold_held_out": [task.labels.index(str(e.label)) for e in task.validation],
                }
                out.write_text(json.dumps({**header, "cells": cells}) + "\n")
                click.echo(f"{cell}: {100 * np.mean(np.argmax(found['test'], axis=1) == header['gold']):.1f}")
    gold, held = np.array(header["gold"]), np.array(header["gold_held_out"])
    table = [
        line
        for vary, n in counts.items()
        for k in sorted({rewordings, n})  # at the number that the dear variation has, so that all can be compared
        for line in lines(cells, vary, k, gold, held, limit)
    ]
    rows = ["| " + " | ".join(line) + " |" for line in [HEADING, ["---"] * len(HEADING), *table]]
    about = (
        f"{model_id}, {name}, inner method {inner}, label scoring, every program calibrated by `batch` on {held_out} "
        f"held-out inputs, on which the gate is fitted too; seed 0; `{header['command']}`, {header['date'][:10]}. "
        "Shuffled shots are the control: what the others must beat at equal numbers of answers."
    )
    out.with_suffix(".md").write_text(f"# Several answers to an input\n\n{about}\n\n" + "\n".join(rows) + "\n")
    click.echo("\n".join(rows))


if __name__ == "__main__":
    main()

"""What calibrating label scores is worth: every way of `amplify.calibration`, on the same programs and items.

    python eval/bench_calibration.py --model transformers:qwen2.5-coder-0.5b -B dtype=bfloat16

Each program (task x method x seed) scores the test items, the calibration inputs and the content-free inputs once; all
ways are read off these scores. Killed and started again it goes on behind the last program that it finished.
"""

from __future__ import annotations

import datetime
import itertools
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
from amplify.calibration import WAYS, Way
from amplify.cli.common import pairs
from amplify.evaluation import statistics
from amplify.evaluation.configuration import chosen_items, make_methods
from amplify.evaluation.tables import p_value
from amplify.methods.base import Program
from amplify.methods.calibrated import calibrated
from amplify.methods.lettered import fit_in_form
from amplify.models.base import LanguageModel, sharing
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
    program: Program, task: amplify.tasks.Task, items: Sequence[Example], model: LanguageModel, seed: int,
    ways: Sequence[Way],
) -> Any:  # fmt: skip
    """Right or wrong by item, and Brier score, of each way; beside them what the labels were."""
    remembered = Remembered(program)
    found: dict[str, Any] = {}
    for way in ways:
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


def rows(cells: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The table: accuracy in per cent; of the options' letters a task's mean over methods and seeds last."""
    yield "| task | method | " + " | ".join(WAYS) + " |"
    yield "|---|---|" + "---:|" * len(WAYS)
    for task in dict.fromkeys(cell["task"] for cell in cells):
        of_task = [cell for cell in cells if cell["task"] == task]
        for method in dict.fromkeys(named(cell) for cell in of_task):
            same = [cell["ways"] for cell in of_task if named(cell) == method]
            means = [100 * np.mean([ways[way]["right"] for ways in same]) if way in same[0] else None for way in WAYS]
            yield f"| {task} | {method} | " + " | ".join("" if m is None else f"{m:.1f}" for m in means) + " |"
        yield f"| {task} | all, gain with 95 % interval | " + " | ".join(gains([of_task])) + " |"


def named(cell: dict[str, Any]) -> str:
    """Method and form of the options."""
    form = cell.get("form", "letters")
    return str(cell["method"]) + ("" if form == "letters" else f", {form}")


def gains(tasks: Sequence[Sequence[dict[str, Any]]]) -> list[str]:
    """By way: the mean over programs, tasks weighed by their programs, and its gain over none with an interval."""
    texts = []
    for way in WAYS:
        right, plain = [], []
        for of_task in tasks:
            letters = [cell["ways"] for cell in of_task if cell.get("form", "letters") == "letters"]
            right.append(np.array([ways[way]["right"] for ways in letters], dtype=float))
            plain.append(np.array([ways["none"]["right"] for ways in letters], dtype=float))
        weights = np.array([len(each) for each in right], dtype=float) / sum(map(len, right))
        mean = 100 * float(weights @ [each.mean() for each in right])
        rng = np.random.default_rng(0)
        drawn = np.zeros(ROUNDS)
        for weight, mine, other in zip(weights, right, plain, strict=True):
            by_item = 100 * (mine - other).mean(axis=0)
            drawn += weight * by_item[rng.integers(0, len(by_item), (ROUNDS, len(by_item)))].mean(axis=1)
        low, high = np.quantile(drawn, [0.025, 0.975])
        texts.append(f"**{mean:.1f}**" + ("" if way == "none" else f" ({low:+.1f} to {high:+.1f})"))
    return texts


def comparisons(cells: Sequence[dict[str, Any]], wanted: Sequence[str]) -> Iterator[str]:
    """Paired differences of methods, "ONE:OTHER" each, under every way; p by sign flips over items, not adjusted."""
    yield "| task | difference | " + " | ".join(WAYS) + " |"
    yield "|---|---|" + "---:|" * len(WAYS)
    for task in dict.fromkeys(cell["task"] for cell in cells):
        for pair in wanted:
            found = [[c["ways"] for c in cells if c["task"] == task and named(c) == who] for who in pair.split(":")]
            if not all(found):
                continue
            texts = []
            for way in WAYS:
                mine, other = ([[float(x) for x in ways[way]["right"]] for ways in each] for each in found)
                difference, low_high, test = statistics.compare(mine, other)
                low, high = 100 * low_high.low, 100 * low_high.high
                texts.append(f"{100 * difference:+.1f} ({low:+.1f} to {high:+.1f}), p {p_value(test.p)}")
            yield f"| {task} | {pair.replace(':', ' − ')} | " + " | ".join(texts) + " |"


def summary(cells: Sequence[dict[str, Any]]) -> str:
    """Over all tasks: the mean of every program with letters, and its gain."""
    tasks = [[cell for cell in cells if cell["task"] == task] for task in dict.fromkeys(cell["task"] for cell in cells)]
    count = sum(cell.get("form", "letters") == "letters" for cell in cells)
    values = ", ".join(f"{way} {text}" for way, text in zip(WAYS, gains(tasks), strict=True))
    return f"Mean over the {count} programs (labels or letters), gain over none with 95 % interval: {values}."


@click.command()
@click.option("--model", "-m", "model_id", required=True)
@click.option("--model-option", "-B", multiple=True, metavar="NAME=VALUE")
@click.option("--tasks", default=TASKS, show_default=True)
@click.option("--methods", default=METHODS, show_default=True)
@click.option("--seeds", default="0", show_default=True)
@click.option("--limit", default=200, show_default=True, help="Test items of each task.")
@click.option(
    "--forms", default="letters", show_default=True, help="Of lettered options (`amplify run --option-form`)."
)
@click.option("--compare", default="", metavar="ONE:OTHER,…", help="Methods whose paired differences are shown.")
@click.option("--set", "settings", multiple=True, metavar="METHOD.OPTION=VALUE")
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS / "calibration.json", show_default=True)
def main(model_id: str, model_option: tuple[str, ...], tasks: str, methods: str, seeds: str, limit: int,
         forms: str, compare: str, settings: tuple[str, ...], out: Path) -> None:  # fmt: skip
    """Score, calibrate in every way, write the table."""
    header: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}
    cells: list[dict[str, Any]] = header.pop("cells", [])
    done = {(c["task"], c["method"], c.get("form", "letters"), c["seed"]) for c in cells}
    with amplify.load_model(model_id, **pairs(model_option, "-B")) as model:
        for name in tasks.split(","):
            task = amplify.load_task(name)
            items = chosen_items(task, limit)
            lettered = bool(items[0].options)
            every = make_methods(methods.split(","), "score", pairs(settings, "--set"))
            for form, method in itertools.product(forms.split(",") if lettered else ["letters"], every):
                for seed in map(int, seeds.split(",")) if method.seeded else (int(seeds.split(",")[0]),):
                    if (name, method.label, form, seed) in done:
                        continue
                    with sharing(model):
                        program = fit_in_form(method, task, model, seed, form)  # type: ignore[arg-type]
                        # texts have no common prior that a calibration could take out
                        ways = measured(program, task, items, model, seed, WAYS if form == "letters" else ("none",))
                    cells.append({"task": name, "method": method.label, "form": form, "seed": seed, "ways": ways})
                    commands = list(dict.fromkeys([*header.get("commands", []), command()]))
                    header = {
                        "commands": commands,
                        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                        "machine": f"{platform.system()}, {os.cpu_count()} cores",
                        "model": model.describe(),
                        "limit": limit,
                    }
                    out.write_text(json.dumps({**header, "cells": cells}, indent=1) + "\n")
                    write(out, model_id, header, cells, compare)
                    means = {way: 100 * float(np.mean(found["right"])) for way, found in ways.items()}
                    click.echo(
                        f"{name} {method.label} {form} {seed}: {', '.join(f'{w} {m:.1f}' for w, m in means.items())}"
                    )
    write(out, model_id, header, cells, compare)


def write(out: Path, model_id: str, header: dict[str, Any], cells: Sequence[dict[str, Any]], compare: str) -> None:
    """The table as Markdown, beside the numbers."""
    dtype, commands = header["model"].get("dtype", ""), "; ".join(f"`{one}`" for one in header["commands"])
    about = f"{model_id} in {dtype}, label scoring; {commands}, {header['date'][:10]}"
    text = "\n".join(["# Calibration of label scores", "", about, "", summary(cells), "", *rows(cells), ""])
    if compare:
        text += "\n".join(["", *comparisons(cells, compare.split(",")), ""])
    out.with_suffix(".md").write_text(text)


if __name__ == "__main__":
    main()

"""What `amplify tune` is worth: the program it returns against the best plain prompt, on test items that it never saw.

    python eval/bench_tune.py --model transformers:qwen2.5-coder-0.5b --budget tokens=150K

For each task the search runs under the budget; then its program, the best plain candidate of the search's own
validation (fitted as users run it, on the whole training split) and, run again with `--proxies`, the proxy alone answer
the same test items. Paired tests, Holm over the tasks. Killed and started again it goes on behind the last batch.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from measuring import command

import amplify
from amplify import files
from amplify.cli.common import pairs
from amplify.errors import AmplifyError
from amplify.evaluation import statistics
from amplify.evaluation.configuration import chosen_items, scorer
from amplify.evaluation.run import refuse_leaks
from amplify.evaluation.tables import p_value
from amplify.methods import make
from amplify.methods.base import Program
from amplify.models.base import LanguageModel, ScoringModel, sharing
from amplify.tuning import Candidate
from amplify.tuning.search import MOST_TRAIN

RESULTS = Path(__file__).parent / "results"
TASKS = (
    "support_tickets,bbh/hyperbaton,bbh/disambiguation_qa,counterfact_known/efficacy,json_formatting,pronouns,"
    "commonsenseqa,amazon_sentiment,imdb_sentiment,nq_open"
)
BATCH = 32
LENT = 80  # items that a task of test items alone lends the search
WON = 0.01


def answered(
    program: Program, task: amplify.tasks.Task, limit: int, model: LanguageModel, path: Path, of: dict[str, Any]
) -> list[float]:
    """Scores of the program's answers to the test items, kept batch by batch."""
    items, scores = chosen_items(task, limit), scorer(task)[1]
    journal = files.Journal(path, of, what="of this measurement", locked=False)
    done = [score for row in journal.rows for score in row["scores"]]
    for start in range(len(done), len(items), BATCH):
        batch = items[start : start + BATCH]
        found = [next(iter(scores(a, e).values())) for a, e in zip(program.answer(batch, model), batch, strict=True)]
        journal.append([{"scores": found}])
        done += found
    return done


def searchable(task: amplify.tasks.Task, limit: int) -> amplify.tasks.Task:
    """A task that has test items alone lends the search others than those that are tested; any other is as it is."""
    if task.train or task.validation:
        return task
    tested = chosen_items(task, limit)
    ids = {e.id for e in tested}
    return replace(task, test=tuple(tested), validation=tuple(e for e in task.test if e.id not in ids)[:LENT])


def measured(name: str, model: LanguageModel, budget: str, seed: int, limit: int, work: Path) -> dict[str, Any]:
    """One task: search, then the test items."""
    task = searchable(amplify.load_task(name), limit)
    folder = work / f"{name.replace('/', '-')}-{seed}"
    tuned = amplify.tune(task, model, amplify.Budget.parse(budget), seed=seed, out=folder / "search")
    mode = "score" if task.labels_of(task.test[0]) and isinstance(model, ScoringModel) else "generate"
    plain = Candidate.parse(tuned.baseline, mode)  # type: ignore[arg-type]
    programs = {"tuned": tuned.program, "plain": plain.fit(task, model, seed)}
    return {
        "task": name, "seed": seed, "budget": budget, "limit": limit,
        "label": tuned.label, "chosen": tuned.chosen, "plain": tuned.baseline,
        "confirmation": asdict(tuned.confirmation) if tuned.confirmation else None,
        "ingredients": [asdict(one) for one in tuned.ingredients],
        "spent": asdict(tuned.spent), "one_by_one": tuned.one_by_one, "race": dict(tuned.race),
        "candidates": [[line.label, line.n, line.score, line.out] for line in tuned.table],
        "scores": {who: tested(who, program, task, limit, model, folder) for who, program in programs.items()},
    }  # fmt: skip


def tested(
    who: str, program: Program, task: amplify.tasks.Task, limit: int, model: LanguageModel, folder: Path
) -> list[float]:
    """Scores of a program on the test items; none of them is among what it shows."""
    refuse_leaks(task, [(who, program)])
    of = {"task": task.fingerprint, "limit": limit, "program": files.digest(program.to_dict())}
    with sharing(model):
        return answered(program, task, limit, model, folder / f"{who}.jsonl", of)


def proxy_alone(cell: dict[str, Any], model: LanguageModel, work: Path) -> list[float] | None:
    """Scores of the proxy alone, trained on at most as many rows as a search takes; None where there are no labels."""
    task = searchable(amplify.load_task(cell["task"]), cell["limit"])
    if not (task.train and task.labels_of(task.test[0])):
        return None
    fewer = replace(task, train=task.train[:MOST_TRAIN])
    folder = work / f"{cell['task'].replace('/', '-')}-{cell['seed']}"
    program = make("proxy_alone", mode="score").fit(fewer, model, cell["seed"])
    return tested("proxy", program, task, cell["limit"], model, folder)


def paired(mine: Sequence[float], other: Sequence[float]) -> dict[str, float]:
    """The paired comparison of two programs on the same items."""
    difference, interval, test = statistics.compare([list(mine)], [list(other)])
    return {"other": float(np.mean(other)), "difference": difference, "low": interval.low, "high": interval.high,
            "p": test.p}  # fmt: skip


def table(cells: Sequence[dict[str, Any]]) -> str:
    """Tuned against plain, and against the better of plain and proxy alone; Holm over all tasks, for each of both."""
    against: dict[str, list[dict[str, float]]] = {"plain": [], "best": []}
    for cell in cells:
        scores = cell["scores"]
        others = [scores["plain"], *([scores["proxy"]] if scores.get("proxy") else [])]
        against["plain"].append(paired(scores["tuned"], scores["plain"]))
        against["best"].append(paired(scores["tuned"], max(others, key=lambda s: float(np.mean(s)))))
    for found in against.values():
        for each, p in zip(found, statistics.holm([each["p"] for each in found]), strict=True):
            each["holm"] = p
    lines = [
        "| task | items | tuned is | tuned | best plain | tuned − plain (95 %) | p (Holm) | proxy alone "
        "| − better of both (95 %) | p (Holm) | minutes | reuse |",
        "|---|---:|---|---:|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for cell, plain, best in zip(cells, against["plain"], against["best"], strict=True):
        scores, spent = cell["scores"], cell["spent"]
        row = [
            cell["task"],
            str(len(scores["tuned"])),
            cell["label"],
            f"**{100 * np.mean(scores['tuned']):.1f}**",
            f"{100 * plain['other']:.1f} ({cell['plain']})",
            _difference(plain),
            p_value(plain["holm"]),
            f"{100 * np.mean(scores['proxy']):.1f}" if scores.get("proxy") else "–",
            _difference(best),
            p_value(best["holm"]),
            f"{spent['seconds'] / 60:.1f}",
            f"{cell['one_by_one'] / spent['forwarded']:.1f}" if spent["forwarded"] else "–",
        ]
        lines.append(f"| {' | '.join(row)} |")
    won = [sum(e["holm"] < WON and e["difference"] > 0 for e in found) for found in against.values()]
    lost = [sum(e["holm"] < WON and e["difference"] < 0 for e in found) for found in against.values()]
    lines += [
        "",
        f"Of {len(cells)} tasks tuned is above the best plain program on {won[0]} (p < {WON} after Holm) and below on "
        f"{lost[0]}; above the better of plain and proxy alone on {won[1]} and below on {lost[1]}.",
    ]
    return "\n".join(lines)


def _difference(found: dict[str, float]) -> str:
    return f"{100 * found['difference']:+.1f} ({100 * found['low']:+.1f} to {100 * found['high']:+.1f})"


@click.command()
@click.option("--model", "-m", "model_id", required=True)
@click.option("--model-option", "-B", multiple=True, metavar="NAME=VALUE")
@click.option("--tasks", default=TASKS, show_default=True)
@click.option("--budget", default="tokens=150K", show_default=True, help="Of each search, as `amplify tune` takes it.")
@click.option("--seed", default=0, show_default=True)
@click.option("--limit", default=200, show_default=True, help="Test items of each task.")
@click.option("--proxies", is_flag=True, help="Search nothing: train and ask the proxies that cells lack.")
@click.option("--work", type=click.Path(path_type=Path), default=Path("runs/bench_tune"), show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS / "tune.json", show_default=True)
def main(model_id: str, model_option: tuple[str, ...], tasks: str, budget: str, seed: int, limit: int,
         proxies: bool, work: Path, out: Path) -> None:  # fmt: skip
    """Search and measure, task by task; write the table."""
    held: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {"cells": []}
    cells = held["cells"]
    with amplify.load_model(model_id, **pairs(model_option, "-B")) as model:
        for name in tasks.split(","):
            there = next((cell for cell in cells if cell["task"] == name and cell["seed"] == seed), None)
            if (there is None) == proxies or (there and "proxy" in there["scores"]):
                continue
            begun = time.process_time()
            try:
                if there:
                    there["scores"]["proxy"] = proxy_alone(there, model, work)
                else:
                    cells.append(measured(name, model, budget, seed, limit, work) | {"command": command()})
            except AmplifyError as error:
                click.echo(f"{name}: {error}", err=True)
                continue
            click.echo(f"{name}: {time.process_time() - begun:.0f} s of processor time", err=True)
            header = {
                "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "machine": f"{platform.system()}, {os.cpu_count()} cores",
                "model": model.describe(),
            }
            out.write_text(json.dumps({**header, "cells": cells}, indent=1) + "\n")
            commands = "; ".join(f"`{one}`" for one in dict.fromkeys(cell["command"] for cell in cells))
            about = f"{model_id}, {model.describe().get('dtype', '')}, seed {seed}; {commands}"
            out.with_suffix(".md").write_text(f"# What amplify tune is worth\n\n{about}\n\n{table(cells)}\n")
            click.echo(table(cells))


if __name__ == "__main__":
    main()

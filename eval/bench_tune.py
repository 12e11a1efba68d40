"""What `amplify tune` is worth: the program it returns against the best plain prompt, on test items that it never saw.

    python eval/bench_tune.py --model transformers:qwen2.5-coder-0.5b --budget tokens=150K

For each task the search runs under the budget; then its program, the best plain candidate of the search's own
validation (fitted as users run it, on the whole training split) and the proxy alone answer the same test items. Paired
tests, Holm over the tasks. Killed and started again it goes on behind the last batch.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
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
from amplify.evaluation.tables import p_value
from amplify.methods import make
from amplify.methods.base import Program
from amplify.models.base import LanguageModel, ScoringModel
from amplify.tuning import Candidate

RESULTS = Path(__file__).parent / "results"
TASKS = (
    "support_tickets,bbh/hyperbaton,bbh/disambiguation_qa,counterfact_known/efficacy,json_formatting,pronouns,"
    "commonsenseqa,amazon_sentiment,imdb_sentiment,nq_open"
)
BATCH = 32


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


def measured(name: str, model: LanguageModel, budget: str, seed: int, limit: int, work: Path) -> dict[str, Any]:
    """One task: search, then the test items."""
    task = amplify.load_task(name)
    folder = work / f"{name.replace('/', '-')}-{seed}"
    tuned = amplify.tune(task, model, amplify.Budget.parse(budget), seed=seed, out=folder / "search")
    mode = "score" if task.labels_of(task.test[0]) and isinstance(model, ScoringModel) else "generate"
    plain = Candidate.parse(tuned.baseline, mode)  # type: ignore[arg-type]
    programs = {"tuned": tuned.program, "plain": plain.fit(task, model, seed)}
    try:
        if task.labels_of(task.test[0]):
            programs["proxy"] = make("proxy_alone", mode=mode).fit(task, model, seed)  # type: ignore[arg-type]
    except AmplifyError as error:
        click.echo(f"{name}: no proxy alone ({error})", err=True)
    of = {"task": task.fingerprint, "limit": limit}
    scores = {
        who: answered(
            program, task, limit, model, folder / f"{who}.jsonl", {**of, "program": files.digest(program.to_dict())}
        )
        for who, program in programs.items()
    }
    return {
        "task": name, "seed": seed, "label": tuned.label, "chosen": tuned.chosen, "plain": tuned.baseline,
        "confirmation": asdict(tuned.confirmation) if tuned.confirmation else None,
        "ingredients": [asdict(one) for one in tuned.ingredients],
        "spent": asdict(tuned.spent), "one_by_one": tuned.one_by_one, "race": dict(tuned.race),
        "candidates": [[line.label, line.n, line.score, line.out] for line in tuned.table],
        "scores": scores,
    }  # fmt: skip


def table(cells: Sequence[dict[str, Any]]) -> str:
    """Tuned against plain and proxy on the test items, Holm over all tasks."""
    rows = []
    for cell in cells:
        mine = cell["scores"]["tuned"]
        row = {"cell": cell, "n": len(mine), "mine": float(np.mean(mine))}
        for who in ("plain", "proxy"):
            if other := cell["scores"].get(who):
                difference, interval, test = statistics.compare([mine], [other])
                row[who] = (float(np.mean(other)), difference, interval.low, interval.high, test.p)
        rows.append(row)
    adjusted = statistics.holm([row["plain"][4] for row in rows])
    lines = [
        "| task | items | tuned is | tuned | best plain | difference (95 %) | p (Holm) | proxy alone | minutes "
        "| reuse |",
        "|---|---:|---|---:|---|---:|---:|---:|---:|---:|",
    ]
    for row, p in zip(rows, adjusted, strict=True):
        cell, (plain, difference, low, high, _) = row["cell"], row["plain"]
        proxy = f"{100 * row['proxy'][0]:.1f}" if "proxy" in row else "–"
        forwarded = cell["spent"]["forwarded"]
        reuse = cell["one_by_one"] / forwarded if forwarded else 0
        cells_ = [
            cell["task"],
            str(row["n"]),
            cell["label"],
            f"**{100 * row['mine']:.1f}**",
            f"{100 * plain:.1f} ({cell['plain']})",
            f"{100 * difference:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})",
            p_value(p),
            proxy,
            f"{cell['spent']['seconds'] / 60:.1f}",
            f"{reuse:.1f}",
        ]
        lines.append(f"| {' | '.join(cells_)} |")
    return "\n".join(lines)


@click.command()
@click.option("--model", "-m", "model_id", required=True)
@click.option("--model-option", "-B", multiple=True, metavar="NAME=VALUE")
@click.option("--tasks", default=TASKS, show_default=True)
@click.option("--budget", default="tokens=150K", show_default=True, help="Of each search, as `amplify tune` takes it.")
@click.option("--seed", default=0, show_default=True)
@click.option("--limit", default=200, show_default=True, help="Test items of each task.")
@click.option("--work", type=click.Path(path_type=Path), default=Path("runs/bench_tune"), show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS / "tune.json", show_default=True)
def main(model_id: str, model_option: tuple[str, ...], tasks: str, budget: str, seed: int, limit: int,
         work: Path, out: Path) -> None:  # fmt: skip
    """Search and measure, task by task; write the table."""
    held: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {"cells": []}
    cells = held["cells"]
    with amplify.load_model(model_id, **pairs(model_option, "-B")) as model:
        for name in tasks.split(","):
            if any(cell["task"] == name and cell["seed"] == seed for cell in cells):
                continue
            try:
                cells.append(measured(name, model, budget, seed, limit, work))
            except AmplifyError as error:
                click.echo(f"{name}: {error}", err=True)
                continue
            header = {
                "command": command(),
                "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "machine": f"{platform.system()}, {os.cpu_count()} cores",
                "model": model.describe(),
                "budget": budget,
                "limit": limit,
            }
            out.write_text(json.dumps({**header, "cells": cells}, indent=1) + "\n")
            about = f"{model_id}, {budget} a search, {limit} test items at most; `{command()}`"
            out.with_suffix(".md").write_text(f"# What amplify tune is worth\n\n{about}\n\n{table(cells)}\n")
            click.echo(table(cells))


if __name__ == "__main__":
    main()

"""What `amplify tune` is worth: the program it returns against the best plain prompt, on test items that it never saw.

    python eval/bench_tune.py --model transformers:qwen2.5-coder-0.5b --budget tokens=150K
    python eval/bench_tune.py --model transformers:qwen2.5-coder-0.5b --proxies
    python -m vllm.entrypoints.openai.api_server --model FOLDER_OF_THAT_MODEL --served-model-name model --dtype bfloat16
    python eval/bench_tune.py --model transformers:qwen2.5-coder-0.5b --tasks support_tickets --rivals PYTHON_WITH_DSPY

For each task the search runs under the budget; then its program, the best plain candidate of the search's own
validation and, run again with `--proxies`, the proxy alone, all fitted on the same labelled items, answer the same
test items. Paired tests, Holm over the tasks. Killed and started again it goes on behind the last batch.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from measuring import command

import amplify
from amplify import files
from amplify.cli.common import pairs
from amplify.errors import AmplifyError, InputError
from amplify.evaluation import statistics
from amplify.evaluation.configuration import chosen_items, scorer
from amplify.evaluation.run import refuse_leaks
from amplify.evaluation.tables import p_value
from amplify.methods import make
from amplify.methods.base import Program
from amplify.models.base import LanguageModel, ScoringModel, sharing
from amplify.tuning import Candidate
from amplify.tuning.search import Folds, folds_of
from amplify.types import Answer, Example

RESULTS = Path(__file__).parent / "results"
TASKS = (
    "support_tickets,bbh/hyperbaton,bbh/disambiguation_qa,counterfact_known/efficacy,json_formatting,pronouns,"
    "commonsenseqa,amazon_sentiment,imdb_sentiment,nq_open"
)
OPTIMISERS = ("bootstrap", "mipro", "gepa")  # of dspy_rivals.py
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


@dataclass(frozen=True)
class Rivalry:
    """How rivals are run.

    Attributes:
        python: an interpreter that has DSPy; see `dspy_rivals.py`.
        url, served: of a server of the same model, and its name there.
        calls: prompts that each rival may have answered; 0 for as many as the search had.
    """

    python: str
    url: str
    served: str
    calls: int


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
    whole = folds_of(task, seed).whole
    programs = {"tuned": tuned.program, "plain": plain.fit(whole, model, seed) if tuned.better else tuned.program}
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
    """Scores of the proxy alone, trained on every labelled item of the search; None where there are no labels."""
    task = searchable(amplify.load_task(cell["task"]), cell["limit"])
    if not (task.train and task.labels_of(task.test[0])):
        return None
    folder = work / f"{cell['task'].replace('/', '-')}-{cell['seed']}"
    program = make("proxy_alone", mode="score").fit(folds_of(task, cell["seed"]).whole, model, cell["seed"])
    return tested("proxy", program, task, cell["limit"], model, folder)


def rivals(cell: dict[str, Any], model: LanguageModel, how: Rivalry, work: Path) -> Iterator[None]:
    """Fill `cell["rivals"]`: what the best of n plain prompts and DSPy's optimisers make of the same labelled items.

    Yields:
        after each rival.

    Raises:
        InputError: a task without fixed labels.
    """
    task, seed = amplify.load_task(cell["task"]), cell["seed"]
    if not task.labels:
        raise InputError(f"{task.name} has no fixed labels, which the rivals are compared on")
    folds = folds_of(task, seed)
    prompts = round(cell["spent"]["calls"] / len(task.labels))  # a call of tune is a prompt with one of its labels
    calls = how.calls or prompts
    held = (*folds.race, *folds.confirm)[: max(16, calls // 12)]
    items, scores = chosen_items(task, cell["limit"]), scorer(task)[1]
    folder = work / f"{cell['task'].replace('/', '-')}-{seed}"
    cell["prompts"] = prompts
    found = cell.setdefault("rivals", {})
    if "best_of_n" not in found:
        found["best_of_n"] = best_of_n(task, folds, held, calls, model, folder, cell)
        yield
    asked = folder / "rivals.json"
    labelled = {"train": folds.task.train, "validation": held}
    rows = {split: [{"text": e.text, "label": e.label} for e in given] for split, given in labelled.items()}
    words = {"instruction": task.instruction, "input_name": task.input_name, "labels": task.labels}
    asked.write_text(json.dumps({**words, **rows, "test": [{"text": e.text} for e in items]}))
    for name in [name for name in OPTIMISERS if name not in found]:
        answers = folder / f"{name}-{calls}.json"
        if not answers.exists():
            script = Path(__file__).parent / "dspy_rivals.py"
            order = [how.python, script, name, asked, answers, "--url", how.url, "--model", how.served]
            whole = [*map(str, order), "--calls", str(calls), "--seed", str(seed)]
            ran = subprocess.run(whole, stderr=subprocess.PIPE, text=True, check=False)
            if ran.returncode:  # an optimiser that its model's answers stop is a result
                found[name] = {"failed": ran.stderr.strip().splitlines()[-1:], "served": how.served}
                yield
                continue
        said = json.loads(answers.read_text())
        pairs_ = zip(said["answers"], items, strict=True)
        values = [next(iter(scores(Answer(value=a, text=a or ""), e).values())) for a, e in pairs_]
        found[name] = {"calls": said["calls"], "scores": values, "dspy": said["dspy"], "served": how.served}
        yield


def best_of_n(
    task: amplify.tasks.Task, folds: Folds, held: Sequence[Example], calls: int, model: LanguageModel, folder: Path,
    cell: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """Plain few-shot prompts with other random shots each, the best on the held-out items."""
    scores = scorer(task)[1]
    tried: list[tuple[float, int]] = []
    with sharing(model):
        for number in range(max(1, calls // len(held))):
            program = make("few_shot", mode="score").fit(folds.task, model, number)
            answers = program.answer(held, model)
            right = [next(iter(scores(a, e).values())) for a, e in zip(answers, held, strict=True)]
            tried.append((float(np.mean(right)), -number))
    best = make("few_shot", mode="score").fit(folds.task, model, -max(tried)[1])
    return {"calls": len(tried) * len(held), "scores": tested("best_of_n", best, task, cell["limit"], model, folder)}


def rival_table(cells: Sequence[dict[str, Any]]) -> str:
    """Tuned less each rival on the same test items; Holm over all pairs."""
    ran = [(cell, name, found) for cell in cells for name, found in cell.get("rivals", {}).items()]
    pairs_ = [each for each in ran if "failed" not in each[2]]
    if not pairs_:
        return ""
    differences = [paired(cell["scores"]["tuned"], found["scores"]) for cell, _, found in pairs_]
    adjusted = statistics.holm([each["p"] for each in differences])
    lines = [
        "\n## Rivals on the same model\n",
        "| task | rival | prompts | rival | tuned | prompts of tune | tuned − rival (95 %) | p (Holm) |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for (cell, name, found), each, p in zip(pairs_, differences, adjusted, strict=True):
        row = [cell["task"], name, f"{found['calls']:,}", f"{100 * each['other']:.1f}",
               f"{100 * np.mean(cell['scores']['tuned']):.1f}", f"{cell['prompts']:,}", _difference(each),
               p_value(p)]  # fmt: skip
        lines.append(f"| {' | '.join(row)} |")
    served = ", ".join(sorted({found["served"] for _, _, found in pairs_ if "served" in found}))
    asked = f" DSPy's programs asked the model as served under the name {served}." if served else ""
    failed = "".join(f" {name} ended without a program on {cell['task']}." for cell, name, f in ran if "failed" in f)
    said = f"\nPrompts answered while searching: labels scored, or for DSPy an answer generated.{asked}{failed}"
    return "\n".join([*lines, said])


def paired(mine: Sequence[float], other: Sequence[float]) -> dict[str, float]:
    """The paired comparison of two programs on the same items."""
    difference, interval, test = statistics.compare([list(mine)], [list(other)])
    return {"other": float(np.mean(other)), "difference": difference, "low": interval.low, "high": interval.high,
            "p": test.p}  # fmt: skip


def table(cells: Sequence[dict[str, Any]]) -> str:
    """Tuned against plain, and against the better of plain and proxy alone; Holm over all tasks, for each of both."""
    against: dict[str, list[dict[str, float]]] = {"plain": [], "best": []}
    known = ["proxy" in cell["scores"] for cell in cells]  # None where a task has no labels to train one on
    for cell in cells:
        scores = cell["scores"]
        others = [scores["plain"], *([scores["proxy"]] if scores.get("proxy") else [])]
        against["plain"].append(paired(scores["tuned"], scores["plain"]))
        if "proxy" in scores:
            against["best"].append(paired(scores["tuned"], max(others, key=lambda s: float(np.mean(s)))))
    for found in against.values():
        for each, p in zip(found, statistics.holm([each["p"] for each in found]), strict=True):
            each["holm"] = p
    lines = [
        "| task | items | tuned is | tuned | best plain | tuned − plain (95 %) | p (Holm) | proxy alone "
        "| − better of both (95 %) | p (Holm) | minutes | reuse |",
        "|---|---:|---|---:|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    bests = iter(against["best"])
    for cell, plain, there in zip(cells, against["plain"], known, strict=True):
        scores, spent = cell["scores"], cell["spent"]
        best = next(bests) if there else None
        row = [
            cell["task"],
            str(len(scores["tuned"])),
            cell["label"],
            f"**{100 * np.mean(scores['tuned']):.1f}**",
            f"{100 * plain['other']:.1f} ({cell['plain']})",
            _difference(plain),
            p_value(plain["holm"]),
            f"{100 * np.mean(scores['proxy']):.1f}" if scores.get("proxy") else "–" if best else "not run",
            _difference(best) if best else "",
            p_value(best["holm"]) if best else "",
            f"{spent['seconds'] / 60:.1f}",
            f"{cell['one_by_one'] / spent['forwarded']:.1f}" if spent["forwarded"] else "–",
        ]
        lines.append(f"| {' | '.join(row)} |")
    won = [sum(e["holm"] < WON and e["difference"] > 0 for e in found) for found in against.values()]
    lost = [sum(e["holm"] < WON and e["difference"] < 0 for e in found) for found in against.values()]
    lines += [
        "",
        f"Of {len(cells)} tasks tuned is above the best plain program on {won[0]} (p < {WON} after Holm) and below on "
        f"{lost[0]}; of {sum(known)} where the proxy alone was run too, above the better of plain and proxy alone on "
        f"{won[1]} and below on {lost[1]}.",
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
@click.option("--rivals", "python", metavar="PYTHON", help="Search nothing: run the rivals, DSPy's with this Python.")
@click.option("--url", default="http://127.0.0.1:8000/v1", show_default=True, help="Of a server of the same model.")
@click.option("--served", default="model", show_default=True, help="The model's name there.")
@click.option("--calls", default=0, show_default=True, help="Prompts of each rival; 0: as many as the search asked.")
@click.option("--work", type=click.Path(path_type=Path), default=Path("runs/bench_tune"), show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS / "tune.json", show_default=True)
def main(model_id: str, model_option: tuple[str, ...], tasks: str, budget: str, seed: int, limit: int,
         proxies: bool, python: str | None, url: str, served: str, calls: int, work: Path,
         out: Path) -> None:  # fmt: skip
    """Search and measure, task by task; write the table."""
    held: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {"cells": []}
    cells = held["cells"]
    with amplify.load_model(model_id, **pairs(model_option, "-B")) as model:
        for name in tasks.split(","):
            there = next((cell for cell in cells if cell["task"] == name and cell["seed"] == seed), None)
            wanted = (
                (there and len(there.get("rivals", {})) <= len(OPTIMISERS))
                if python
                else (there and "proxy" not in there["scores"])
                if proxies
                else not there
            )
            if not wanted:
                continue
            begun = time.process_time()
            try:
                if there and python:
                    for _ in rivals(there, model, Rivalry(python, url, served, calls), work):
                        write(out, model_id, model, cells)
                elif there:
                    there["scores"]["proxy"] = proxy_alone(there, model, work)
                else:
                    cells.append(measured(name, model, budget, seed, limit, work) | {"command": command()})
            except AmplifyError as error:
                click.echo(f"{name}: {error}", err=True)
                continue
            click.echo(f"{name}: {time.process_time() - begun:.0f} s of processor time", err=True)
            write(out, model_id, model, cells)
            click.echo(table(cells))


def write(out: Path, model_id: str, model: LanguageModel, cells: Sequence[dict[str, Any]]) -> None:
    """The numbers as JSON, the tables as Markdown."""
    header = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.system()}, {os.cpu_count()} cores",
        "model": model.describe(),
    }
    out.write_text(json.dumps({**header, "cells": cells}, indent=1) + "\n")
    commands = "; ".join(f"`{one}`" for one in dict.fromkeys(cell["command"] for cell in cells))
    about = (
        f"{model_id}, {model.describe().get('dtype', '')}, seed {', '.join(sorted({str(c['seed']) for c in cells}))}"
    )
    text = f"# What amplify tune is worth\n\n{about}; {commands}\n\n{table(cells)}\n{rival_table(cells)}"
    out.with_suffix(".md").write_text(text.rstrip() + "\n")


if __name__ == "__main__":
    main()

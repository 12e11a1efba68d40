"""Explainers by faithfulness metrics, on a small classifier and on a language model: who beats random scores?

    python eval/compare_explainers.py                       # Amazon and IMDb sentiment, MiniLM and SmolLM2
    python eval/compare_explainers.py --tasks support_tickets --items 100 --lm-items 0

Explained is the label that each model gives to test inputs, against the other label that it finds likeliest: for the
classifier a proxy's logits, for the language model the log-probabilities of the labels behind its zero-shot prompt. All
explainers score the same words with the same budget. Measured are all metrics that passed the check on planted words
(`check_faithfulness.py`), beside random scores and direct occlusion. Killed and started again, it goes on with the next
input.
"""

from __future__ import annotations

import json
import os
import platform
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import numpy as np
from measuring import open_exact
from tqdm import tqdm

import amplify
from amplify.attribution.auto import POOL, merits
from amplify.attribution.explainers import METHODS
from amplify.attribution.explanations import explain_many
from amplify.attribution.faithfulness import KEPT, OCCLUSION, RANDOM, Faithfulness, Mean, faithfulness, pooled
from amplify.attribution.inputs import Given
from amplify.attribution.words import Spans, word_spans
from amplify.errors import AmplifyError, InputError
from amplify.methods import make
from amplify.methods.program import continuation
from amplify.methods.self_attribution import placed
from amplify.models.base import ScoringModel
from amplify.proxies import Proxy, versions
from amplify.tasks import Task
from amplify.text import input_text
from amplify.types import Attribution, Example

LEAST, MOST = 6, 40  # words of an input: of fewer there is little to rank, of more perturbation takes long


@dataclass(frozen=True)
class Input:
    """One output to explain; `given` is what the model reads, `right` whether the output is the gold label."""

    id: str
    given: Given
    target: str
    foil: str
    words: Spans
    right: bool


def drawn(task: Task, items: int, seed: int) -> list[Example]:
    """Test inputs that are neither short nor long, in seeded order."""
    usable = [e for e in task.test if len({w.casefold() for w in words_of(e)}) >= LEAST and len(words_of(e)) <= MOST]
    order = np.random.default_rng(seed).permutation(len(usable))
    return [usable[i] for i in order[:items]]


def words_of(example: Example) -> list[str]:
    """The words of an input."""
    text = input_text(example)
    return [text[a:b] for a, b in word_spans(text)]


def of_proxy(proxy: Proxy, examples: Sequence[Example]) -> Iterator[Input]:
    """Examples with the label that a proxy gives and the next likely one."""
    for example, p in zip(examples, proxy.probabilities(examples), strict=True):
        first, second = (proxy.labels_of(example)[i] for i in np.argsort(-p)[:2])
        yield Input(example.id, example, first, second, word_spans(input_text(example)), first == example.label)


def of_model(model: ScoringModel, task: Task, examples: Sequence[Example]) -> Iterator[Input]:
    """Zero-shot prompts with the label that a language model gives and the next likely one."""
    form = make("zero_shot").form(task)  # type: ignore[attr-defined]
    for example in examples:
        prompt, _, words = placed(form, example, word_spans(input_text(example)))
        labels = form.labels_of(example)
        ends = [continuation(label, (labels, example.options), form, prompt) for label in labels]
        totals = [found.total for found in model.score([prompt] * len(ends), ends)]
        first, second = np.argsort(totals)[::-1][:2]
        yield Input(example.id, prompt, ends[first], ends[second], words, labels[first] == example.label)


def measured(
    model: Proxy | ScoringModel,
    inputs: Iterator[Input],
    total: int,
    methods: Sequence[str],
    budget: int,
    seed: int,
    kept: Path,
) -> list[dict[str, Any]]:
    """One record an input, those in the file read from it and the others added to it.

    Raises:
        InputError: the file holds records of another configuration.
    """
    name = model.identity if isinstance(model, Proxy) else model.id
    header = {"model": name, "methods": list(methods), "metrics": list(KEPT), "budget": budget, "seed": seed}
    kept.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    if lines and lines[0] != header:
        raise InputError(f"{kept} was made with {lines[0]}, not with {header}: delete it or give another --out")
    records = {line["item"]: line for line in lines[1:]}
    with kept.open("a") as file:
        if not lines:
            file.write(json.dumps(header) + "\n")
        for number, one in enumerate(tqdm(inputs, total=total, desc=kept.stem)):
            if one.id not in records:
                records[one.id] = record(model, one, methods, budget, seed, seed + 1 + number)
                file.write(json.dumps(records[one.id]) + "\n")
                file.flush()
    return list(records.values())


def record(
    model: Proxy | ScoringModel, one: Input, methods: Sequence[str], budget: int, seed: int, measure_seed: int
) -> dict[str, Any]:
    """The metrics of all explainers on one input, and what each cost."""
    found: dict[str, list[Attribution]] = {}
    seconds: dict[str, float] = {}
    enough = max(budget, 2 * len(one.words) + 4)
    for name in methods:
        start = time.process_time()
        found |= explain_many(
            [one.given],
            [one.target],
            foils=[one.foil],
            segments=[one.words],
            model=model,
            methods=[name],
            budget=enough,
            seed=seed,
        )
        seconds[name] = time.process_time() - start
    table = faithfulness(
        found, model, KEPT, examples=None if isinstance(one.given, str) else [one.given], seed=measure_seed
    )
    values: dict[str, dict[str, float]] = {}
    for (name, metric), value in table.values.items():
        values.setdefault(name, {})[metric] = float(value[0])
    return {
        "item": one.id,
        "right": one.right,
        "words": len(one.words),
        "evaluations": table.evaluations,
        "calls": {name: made[0].budget for name, made in found.items()},
        "seconds": seconds,
        "values": values,
    }


def summed(records: Sequence[dict[str, Any]], settings: dict[str, Any]) -> tuple[Faithfulness, dict[str, Any]]:
    """The table over all inputs, and as JSON values."""
    table = pooled(
        [
            Faithfulness(
                (),
                {(name, metric): np.array([v]) for name, per in r["values"].items() for metric, v in per.items()},
                settings,
                r["evaluations"],
            )
            for r in records
        ]
    )
    beats = {n: [row.metric for row in table.rows if row.method == n and row.beats_random] for n in table.methods}
    about = {
        "accuracy": float(np.mean([r["right"] for r in records])),
        "words": float(np.mean([r["words"] for r in records])),
        "evaluations_per_input": {n: float(np.mean([r["calls"][n] for r in records])) for n in table.methods},
        "seconds_per_input": {n: float(np.mean([r["seconds"][n] for r in records])) for n in table.methods},
        "merits": merits(table),
        "beats_random": beats,
        "pool_beats_random_everywhere": all(len(beats[n]) == len(KEPT) for n in POOL if n in beats),
    }
    return table, {**about, **table.to_dict()}


def markdown(table: Faithfulness, about: dict[str, Any]) -> str:
    """Explainers in rows, metrics in columns; bold where an interval lies wholly beyond that of random scores."""

    def shown(value: Mean) -> str:
        return f"{value.mean:.2f} ({value.low:.2f}, {value.high:.2f})"

    first = table.methods[0]
    arrows = {"higher": "↑", "lower": "↓"}
    head = [f"{metric} {arrows[table.row(first, metric).better]}" for metric in KEPT]
    lines = ["| | " + " | ".join(head) + " | merit | evaluations |", "|---" * (len(KEPT) + 3) + "|"]
    for label, part in ((RANDOM, "random"), (OCCLUSION, "occlusion")):
        cells = [shown(getattr(table.row(first, metric), part)) for metric in KEPT]
        lines.append(f"| *{label}* | " + " | ".join(cells) + " | | |")
    worth = about["merits"]
    for name in sorted(worth, key=lambda n: -worth[n]):
        rows = [table.row(name, metric) for metric in KEPT]
        cells = [f"**{shown(r.value)}**" if r.beats_random else shown(r.value) for r in rows]
        lines.append(
            f"| `{name}` | "
            + " | ".join(cells)
            + f" | {worth[name]:+.2f} | {about['evaluations_per_input'][name]:.0f} |"
        )
    return "\n".join(lines)


@click.command()
@click.option("--tasks", default="amazon_sentiment,imdb_sentiment", show_default=True)
@click.option("--proxy", default="minilm", show_default=True, help="Classifier, trained on each task.")
@click.option("--model", default="transformers:smollm2-135m", show_default=True)
@click.option("--items", type=int, default=40, show_default=True, help="Test inputs a task for the classifier.")
@click.option("--lm-items", type=int, default=12, show_default=True, help="Of them for the language model.")
@click.option("--budget", type=int, default=128, show_default=True, help="Evaluations an input on the classifier.")
@click.option("--lm-budget", type=int, default=32, show_default=True, help="On the language model.")
@click.option("--methods", default=",".join(METHODS), help="Explainers on the classifier.  [default: all]")
@click.option(
    "--lm-methods",
    default=",".join(name for name in METHODS if name not in ("c_lime", "smooth_grad")),
    help="On the language model.  [default: all but c_lime and smooth_grad, which take longest and are like others]",
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/compare_explainers"), show_default=True)
@click.option("--results", type=click.Path(path_type=Path), default=Path("eval/results"), show_default=True)
def main(
    tasks: str,
    proxy: str,
    model: str,
    items: int,
    lm_items: int,
    budget: int,
    lm_budget: int,
    methods: str,
    lm_methods: str,
    seed: int,
    out: Path,
    results: Path,
) -> None:
    """Explain, measure, and write one table a model and task."""
    data: dict[str, Any] = {
        "what": "explainers by faithfulness metrics, on the label that each model gives",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "versions": versions(),
        "options": {"budget": budget, "lm_budget": lm_budget, "seed": seed, "words": [LEAST, MOST]},
        "models": {},
    }
    bodies = []
    for name in tasks.split(","):
        task = amplify.load_task(name)
        models = [(proxy, items, budget, methods.split(",")), (model, lm_items, lm_budget, lm_methods.split(","))]
        for what, count, spend, names in models:
            examples = drawn(task, count, seed)
            if not examples:
                continue
            kept = out / f"{name}-{what.replace(':', '-').replace('/', '-')}.jsonl"
            if what == proxy:
                trained = amplify.train_proxy(task, proxy, seed=seed)
                records = measured(trained, of_proxy(trained, examples), len(examples), names, spend, seed, kept)
            else:
                with open_exact(model) as opened:
                    if not isinstance(opened, ScoringModel):
                        raise InputError(f"{model} gives no log-probabilities: take a transformers: or vllm: model")
                    asked = of_model(opened, task, examples)
                    records = measured(opened, asked, len(examples), names, spend, seed, kept)
            table, about = summed(records, {"seed": seed, "budget": spend})
            data["models"][f"{what}, {name}"] = about
            head = f"{len(records)} inputs of {about['words']:.0f} words on average; accuracy {about['accuracy']:.0%}"
            bodies.append(f"## {what}, {name}\n\n{head}\n\n{markdown(table, about)}\n")
            click.echo(f"{what}, {name}\n{table}")
            write(results / "compare_explainers", data, bodies)


def write(stem: Path, data: dict[str, Any], bodies: Sequence[str]) -> None:
    """What there is so far, as JSON and Markdown."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    text = re.sub(r"\[[^\[\]{}]*\]", lambda found: " ".join(found[0].split()), json.dumps(data, indent=1))
    stem.with_suffix(".json").write_text(text + "\n")
    head = (
        f"# Explainers by faithfulness\n\n{data['date']}, {data['machine']}. Mean over inputs with its 95 % interval; "
        "bold where it lies wholly beyond that of random scores. Merit: the gain over random scores in units of its "
        "spread, averaged over metrics.\n\n"
    )
    stem.with_suffix(".md").write_text(head + "\n".join(bodies))
    click.echo(f"written: {stem}.json, {stem}.md")


if __name__ == "__main__":
    try:
        main()
    except AmplifyError as error:
        raise SystemExit(f"compare_explainers: {error}") from None

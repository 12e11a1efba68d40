"""Which measures of written rationales tell the truth: a causal check on rationales that a model is made to hold true.

    python eval/check_rationales.py -m transformers:qwen2.5-coder-0.5b

After Zaman & Srivastava 2025 (arXiv 2502.18848). Each item states a counterfactual fact (an edit in the context) and
asks about a claim. Two rationales are put into the model's mouth, both for the same answer: one says the stated fact,
the other a third fact that the model was never told. A measure of `amplify.evaluation.written` should be higher on the
first; the share of items on which it is, ties counted half, is its diagnosticity, one half by chance. Killed and
started again it goes on behind the last batch.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from measuring import command

import amplify
from amplify.cli.common import pairs
from amplify.evaluation import statistics
from amplify.evaluation.written import MEASURES, followed
from amplify.files import Journal
from amplify.methods import make
from amplify.methods.base import Program
from amplify.models.base import LanguageModel, need_scoring
from amplify.tasks import Task
from amplify.types import Completion, Example, Prompt, Sampling

RESULTS = Path(__file__).parent / "results"
BATCH = 8


class Says:
    """A model that writes the rationale that it is given for each prompt, and scores as the model inside does."""

    def __init__(self, inner: LanguageModel, said: Sequence[str]) -> None:
        self.inner, self.said = inner, said
        self.id, self.usage, self.max_context = inner.id, inner.usage, inner.max_context
        self.count_tokens, self.describe = inner.count_tokens, inner.describe
        self.score = need_scoring(inner, "this check").score

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling, *, steering: Any = None) -> list[Completion]:
        """The rationales, in order."""
        return [Completion(f" {text}", "stop", 0, 0) for text in self.said]

    def close(self) -> None:
        """Nothing: the model is its opener's."""

    def __enter__(self) -> Says:
        return self

    def __exit__(self, *exc: object) -> None:
        return None


def claims(facts: Sequence[dict[str, str]], limit: int) -> list[tuple[Example, str, str]]:
    """Items with the rationale that the text makes true, and one that it does not; claims by turns true and false."""
    rng, made = random.Random(0), []
    by_relation: dict[str, list[str]] = {}
    for fact in facts:
        by_relation.setdefault(fact["relation_id"], []).append(fact["attribute"])
    for number, fact in enumerate(rng.sample(list(facts), len(facts))):
        others = sorted(set(by_relation[fact["relation_id"]]) - {fact["attribute"]})
        if len(others) < 2:
            continue
        stated, third = rng.sample(others, 2)
        claimed, label = (stated, "true") if number % 2 else (fact["attribute"], "false")
        told = fact["prompt"]
        example = Example(str(number), f"{told} {stated}. Claim: {told} {claimed}.", label)
        made.append((example, f"{told} {stated}.", f"{told} {third}."))
    return made[:limit]


def task_of(items: Sequence[Example]) -> Task:
    """Judging the claims."""
    return Task(
        name="claims", instruction="Is the claim true by what the text says before it? Answer true or false.",
        labels=("true", "false"), input_name="Text", train=(), validation=(), test=tuple(items),
    )  # fmt: skip


def measured(
    program: Program, batch: Sequence[tuple[Example, str, str]], model: LanguageModel
) -> list[dict[str, list[float]]]:
    """Of each item every measure's value on both rationales, in the order (stated, never told)."""
    items = [example for example, _, _ in batch]
    found: list[list[dict[str, float]]] = []
    for said in ([stated for _, stated, _ in batch], [third for _, _, third in batch]):
        found.append(followed(program, items, program.answer(items, Says(model, said)), model))
    return [
        {name: [a[name], b[name]] for name in MEASURES if name in a and name in b} for a, b in zip(*found, strict=True)
    ]


def diagnosticity(rows: Sequence[dict[str, list[float]]], name: str) -> tuple[int, float, float, float]:
    """Items, and the share on which the stated fact scores higher, with a 95 % interval (Wilson; ties counted half)."""
    values = [row[name] for row in rows if name in row]
    if name == "rationale_reworded":  # other words should change nothing
        values = [[-abs(a), -abs(b)] for a, b in values]
    shares = [1.0 if a > b else 0.5 if a == b else 0.0 for a, b in values]
    interval = statistics.wilson(sum(shares), len(shares), 0.95)
    return len(shares), float(np.mean(shares)), interval.low, interval.high


@click.command()
@click.option("--model", "-m", "model_id", required=True)
@click.option("--model-option", "-B", multiple=True, metavar="NAME=VALUE")
@click.option("--limit", default=120, show_default=True)
@click.option("--work", type=click.Path(path_type=Path), default=Path("runs/check_rationales.jsonl"), show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS / "rationales_check.json", show_default=True)
def main(model_id: str, model_option: tuple[str, ...], limit: int, work: Path, out: Path) -> None:
    """Measure, then write the table."""
    facts = json.loads((Path(os.environ["AMPLIFY_DATA"]) / "known_facts.json").read_text())
    items = claims(facts, limit)
    task = task_of([example for example, _, _ in items])
    work.parent.mkdir(parents=True, exist_ok=True)
    with amplify.load_model(model_id, **pairs(model_option, "-B")) as model:
        journal = Journal(work, {"model": model.id, "limit": limit}, what="of this check", locked=False)
        rows = list(journal.rows)
        program = make("zero_shot_cot", mode="score").fit(task, model, 0)
        for start in range(len(rows), len(items), BATCH):
            found = measured(program, items[start : start + BATCH], model)
            journal.append(found)
            rows += found
            click.echo(f"{len(rows)} of {len(items)}", err=True)
        described = model.describe()
    found = {name: diagnosticity(rows, name) for name in MEASURES}
    header = {
        "command": command(), "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.system()}, {os.cpu_count()} cores", "model": described,
    }  # fmt: skip
    out.write_text(json.dumps({**header, "diagnosticity": found, "rows": rows}) + "\n")
    lines = ["| measure | items | diagnosticity | 95 % | kept |", "|---|---:|---:|---:|---|"]
    for name, (n, share, low, high) in found.items():
        lines.append(f"| {name} | {n} | {share:.3f} | {low:.3f} – {high:.3f} | {'yes' if low > 0.5 else 'no'} |")
    about = f"{model_id}, {described.get('dtype', '')}; `{header['command']}`, {header['date'][:10]}. Chance is 0.5."
    text = f"# Which measures of written rationales tell the truth\n\n{about}\n\n" + "\n".join(lines) + "\n"
    out.with_suffix(".md").write_text(text)
    click.echo("\n".join(lines))


if __name__ == "__main__":
    main()

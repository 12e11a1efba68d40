"""Language models as post hoc explainers (arXiv 2310.05797): how faithful are the words they name? One command.

    python eval/reproduce_llm_explainers.py                                             # reduced size: the small models
    python eval/reproduce_llm_explainers.py --items 0 --tasks amazon_sentiment,imdb_sentiment,yelp_sentiment \\
        --proxy bert-base-uncased --explainer openai:gpt-4o-mini@https://api.openai.com/v1    # full size

A proxy is trained on each task, and the label that it gives each test input is explained: by the four strategies of
prompting and by asking for top-k words without any evidence, beside LIME and KernelSHAP on as many evaluations,
occlusion and gradient x input. All score the same words; what a language model fails to say is scored at random.
The paper scores the change in the prediction without the top words (PGI): that is `comprehensiveness`. Killed and
started again, it goes on with the next inputs.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from measuring import loaded, model_options, open_exact
from tqdm import tqdm

import amplify
from amplify.attribution.explainers import explain_words
from amplify.attribution.explanations import explain_many
from amplify.attribution.faithfulness import faithfulness
from amplify.attribution.prompted import NEIGHBOURS, STRATEGIES, Case, cases_of, explain_prompted
from amplify.attribution.words import content_words, word_spans
from amplify.errors import AmplifyError, InputError
from amplify.models.base import LanguageModel
from amplify.proxies import Proxy
from amplify.tasks import Task
from amplify.types import Attribution, Example

SOLVED = 4
CHUNK = 6  # inputs asked about in one batch, which is what is lost where a run is stopped
EXACT = ("occlusion", "grad_x_input")


def citable(example: Example) -> tuple[tuple[int, int], ...]:
    """The words of an input that may be named: all but stop words."""
    spans = word_spans(example.text)
    return tuple(span for span, may in zip(spans, content_words(example.text), strict=True) if may)


def said(
    cases: list[Case],
    explainer: LanguageModel,
    strategies: tuple[str, ...],
    how: dict[str, Any],
    header: dict[str, Any],
    kept: Path,
) -> list[dict[str, Any]]:
    """One record a strategy and chunk of inputs: those in the file read from it, the others asked for and added.

    Raises:
        InputError: the file holds records of another configuration.
    """
    kept.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    if lines and lines[0] != header:
        raise InputError(f"{kept} was made with {lines[0]}, not with {header}: delete it or give another --out")
    records = {(line["strategy"], line["start"]): line for line in lines[1:]}
    plan = [(strategy, start) for start in range(0, len(cases), CHUNK) for strategy in strategies]
    with kept.open("a") as file:
        if not lines:
            file.write(json.dumps(header) + "\n")
        for strategy, start in tqdm(plan, desc=kept.stem):
            if (strategy, start) in records:
                continue
            before, began = explainer.usage.snapshot(), time.perf_counter()
            found = explain_prompted(cases[start : start + CHUNK], explainer, strategy, **how)
            records[strategy, start] = {
                "strategy": strategy,
                "start": start,
                "scores": [None if one is None else list(one.scores) for one in found.attributions],
                "calls": found.calls,
                "failed": found.failed,
                "invented": found.invented,
                "usage": asdict(explainer.usage.since(before)),
                "seconds": round(time.perf_counter() - began, 1),
            }
            file.write(json.dumps(records[strategy, start]) + "\n")
            file.flush()
    return [records[key] for key in plan]


def by_strategy(cases: list[Case], records: list[dict[str, Any]], strategy: str, seed: int) -> list[Attribution]:
    """A strategy's attributions, random scores in place of those that could not be read."""
    rng = np.random.default_rng(seed)
    scores = [one for record in records if record["strategy"] == strategy for one in record["scores"]]
    made = []
    for case, own in zip(cases, scores, strict=True):
        words = tuple(case.text[a:b] for a, b in case.words)
        blind = rng.random(len(words)).tolist()
        made.append(Attribution(case.text, words, case.words, tuple(own or blind), case.target, case.foil))
    return made


def replies(records: list[dict[str, Any]], strategy: str) -> dict[str, float]:
    """What was asked and could not be read, all inputs together."""
    own = [record for record in records if record["strategy"] == strategy]
    tokens = {name: sum(r["usage"][name] for r in own) for name in ("prompt_tokens", "completion_tokens")}
    counts = {name: sum(r[name] for r in own) for name in ("calls", "failed", "invented", "seconds")}
    return {"inputs": sum(len(r["scores"]) for r in own), **counts, **tokens}


def measured(
    task: Task, proxy: Proxy, explainer: LanguageModel, items: int, k: int, neighbours: int, seed: int, out: Path
) -> dict[str, Any]:
    """The table of one task, as JSON values and as text."""
    usable = [e for e in task.test if len(citable(e)) > k and max(r.unread for r in proxy.rows(e)) == 0]
    order = np.random.default_rng(seed).permutation(len(usable))[: items or None]
    examples = [usable[i] for i in order]
    ranked = [np.argsort(-p) for p in proxy.probabilities(examples)]
    targets, foils = ([task.labels[r[place]] for r in ranked] for place in (0, 1))
    players = [citable(example) for example in examples]
    texts = [example.text for example in examples]

    shown = [e for e in task.validation if len(citable(e)) > k][:SOLVED]
    gold = [str(e.label) for e in shown]
    solved = explain_words(proxy, shown, gold, None, "occlusion", mask=lambda e: content_words(e.text))
    cases = cases_of(texts, targets, proxy, foils=foils, segments=players)
    asking = {"k": k, "neighbours": neighbours, "seed": seed}
    header = {"explainer": explainer.id, "proxy": proxy.identity, "items": [e.id for e in examples], **asking}
    records = said(cases, explainer, STRATEGIES, {**asking, "solved": solved}, header, out / f"{task.name}.jsonl")
    explanations = {f"prompted_{strategy}": by_strategy(cases, records, strategy, seed) for strategy in STRATEGIES}
    counts = {strategy: replies(records, strategy) for strategy in STRATEGIES}
    most = 2 * max(len(spans) for spans in players)
    how = {"foils": foils, "segments": players, "seed": seed, "model": proxy}
    # LIME and KernelSHAP on as many evaluations as a language model is shown, where they can work with so few
    explanations |= explain_many(texts, targets, methods=["lime"], budget=neighbours + 1, **how)  # type: ignore[arg-type]
    explanations |= explain_many(texts, targets, methods=["kernel_shap", *EXACT], budget=most, **how)  # type: ignore[arg-type]
    table = faithfulness(explanations, proxy, examples=[replace(e, label=None) for e in examples], k=k, seed=seed)
    click.echo(f"{task.name}\n{table}\n{json.dumps(counts)}")
    return {**table.to_dict(), "text": str(table), "replies": counts, "items": len(examples)}


@click.command()
@click.option("--tasks", default="support_tickets", show_default=True)
@click.option(
    "--explainer", "--model", default="transformers:smollm2-135m", show_default=True, help="Model that explains."
)
@click.option("--model-option", "-B", "options", multiple=True, metavar="KEY=VALUE", help="Of it. Repeatable.")
@click.option("--dry-run", is_flag=True, help="Say what it takes, and ask nothing.")
@click.option("--proxy", default="minilm", show_default=True, help="Model that is trained and explained.")
@click.option("--items", type=int, default=12, show_default=True, help="Inputs explained a task; 0 for all of them.")
@click.option("--neighbours", type=int, default=NEIGHBOURS, show_default=True)
@click.option("--k", type=int, default=5, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/llm_explainers"), show_default=True)
@click.option("--results", type=click.Path(path_type=Path), default=Path("eval/results"), show_default=True)
@click.option("--name", default="llm_explainers", show_default=True, help="Name of the result files.")
def main(
    tasks: str,
    explainer: str,
    options: tuple[str, ...],
    dry_run: bool,
    proxy: str,
    items: int,
    neighbours: int,
    k: int,
    seed: int,
    out: Path,
    results: Path,
    name: str,
) -> None:
    """Explain a proxy's labels by prompting, and measure how faithful that is."""
    found = {}
    if dry_run:
        for one, task in loaded(tasks.split(","), dry_run).items():
            inputs = min(items or len(task.test), len(task.test))
            asked = f"{inputs * len(STRATEGIES):,} prompts to {explainer} or more, where replies cannot be read"
            click.echo(f"{one}: a proxy trained on {len(task.train)} items; {inputs} inputs explained, {asked}")
        return
    with open_exact(explainer, **model_options(options)) as opened:
        for one, task in loaded(tasks.split(","), dry_run).items():
            trained = amplify.train_proxy(task, proxy, seed=seed)
            found[one] = measured(task, trained, opened, items, k, neighbours, seed, out)
            found[one]["proxy"] = {"name": trained.name, "identity": trained.identity}
        data = {
            "explainer": {"id": explainer, **opened.describe()},
            "date": datetime.date.today().isoformat(),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
            "amplify": amplify.__version__,
            "neighbours": neighbours,
            "k": k,
            "seed": seed,
            "tasks": found,
        }
    results.mkdir(parents=True, exist_ok=True)
    stem = results / name
    stem.with_suffix(".json").write_text(json.dumps(data, indent=1, default=str) + "\n")
    head = f"# Language models as explainers\n\n{data['date']}, {data['machine']}, `{explainer}`, proxy `{proxy}`\n"
    body = "".join(
        f"\n## {task}\n\n```\n{one['text']}\n```\n\nReplies: {json.dumps(one['replies'])}\n"
        for task, one in found.items()
    )
    stem.with_suffix(".md").write_text(head + body)
    click.echo(f"written: {stem}.json, {stem}.md")


if __name__ == "__main__":
    try:
        main()
    except AmplifyError as error:
        raise SystemExit(f"reproduce_llm_explainers: {error}") from None

"""Language models as post hoc explainers (arXiv 2310.05797): how faithful are the words they name? One command.

    python eval/reproduce_llm_explainers.py                                             # reduced size: the small models
    python eval/reproduce_llm_explainers.py --items 0 --tasks amazon_sentiment,imdb_sentiment,yelp_sentiment \\
        --proxy bert-base-uncased --explainer openai:gpt-4o-mini@https://api.openai.com/v1    # full size

A proxy is trained on each task, and the label that it gives each test input is explained: by the four strategies of
prompting and by asking for top-k words without any evidence, beside LIME and KernelSHAP on as many evaluations,
occlusion and gradient x input. All score the same words; what a language model fails to say is scored at random.
The paper scores the change in the prediction without the top words (PGI): that is `comprehensiveness`.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
import numpy as np

import amplify
from amplify.attribution.explaining import explain_many
from amplify.attribution.faithfulness import faithfulness
from amplify.attribution.gate import explain_words
from amplify.attribution.prompted import NEIGHBOURS, STRATEGIES, Case, Prompted, cases_of, explain_prompted
from amplify.attribution.words import content_words, word_spans
from amplify.backends.base import Generator
from amplify.errors import AmplifyError
from amplify.proxies import Proxy
from amplify.tasks import Task
from amplify.values import Attribution, Example

SOLVED = 4
EXACT = ("occlusion", "grad_x_input")


def citable(example: Example) -> tuple[tuple[int, int], ...]:
    """The words of an input that may be named: all but stop words."""
    spans = word_spans(example.text)
    return tuple(span for span, may in zip(spans, content_words(example.text), strict=True) if may)


def by_strategy(
    cases: list[Case], explainer: Generator, strategy: str, solved: list[Attribution], k: int, n: int, seed: int
) -> tuple[list[Attribution], Prompted]:
    """A strategy's attributions, random scores in place of those that could not be read."""
    found = explain_prompted(cases, explainer, strategy, k=k, neighbours=n, solved=solved, seed=seed)
    rng = np.random.default_rng(seed)
    made = []
    for case, one in zip(cases, found.attributions, strict=True):
        words = tuple(case.text[a:b] for a, b in case.words)
        blind = Attribution(case.text, words, case.words, tuple(rng.random(len(words))), case.target, case.foil)
        made.append(one or blind)
    return made, found


def measured(
    task: Task, proxy: Proxy, explainer: Generator, items: int, k: int, neighbours: int, seed: int
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
    cases = cases_of(texts, targets, proxy, foils=foils, players=players)
    explanations: dict[str, list[Attribution]] = {}
    counts = {}
    for strategy in STRATEGIES:
        made, found = by_strategy(cases, explainer, strategy, solved, k, neighbours, seed)
        explanations[f"prompted_{strategy}"] = made
        counts[strategy] = {"calls": found.calls, "failed": found.failed, "invented": found.invented}
    most = max(len(spans) for spans in players) + 2
    how = {"foils": foils, "players": players, "seed": seed, "model": proxy}
    # LIME and KernelSHAP on as many evaluations as a language model is shown, where they can work with so few
    explanations |= explain_many(texts, targets, methods=["lime"], budget=neighbours + 1, **how)  # type: ignore[arg-type]
    explanations |= explain_many(texts, targets, methods=["kernel_shap", *EXACT], budget=most, **how)  # type: ignore[arg-type]
    table = faithfulness(explanations, proxy, examples=[replace(e, label=None) for e in examples], k=k, seed=seed)
    click.echo(f"{task.name}\n{table}\n{json.dumps(counts)}")
    return {**table.to_dict(), "text": str(table), "replies": counts, "items": len(examples)}


@click.command()
@click.option("--tasks", default="support_tickets", show_default=True)
@click.option("--explainer", default="transformers:smollm2-135m", show_default=True, help="Backend that explains.")
@click.option("--proxy", default="minilm", show_default=True, help="Model that is trained and explained.")
@click.option("--items", type=int, default=30, show_default=True, help="Inputs explained a task; 0 for all of them.")
@click.option("--neighbours", type=int, default=NEIGHBOURS, show_default=True)
@click.option("--k", type=int, default=5, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--results", type=click.Path(path_type=Path), default=Path("eval/results"), show_default=True)
def main(tasks: str, explainer: str, proxy: str, items: int, neighbours: int, k: int, seed: int, results: Path) -> None:
    """Explain a proxy's labels by prompting, and measure how faithful that is."""
    found = {}
    with amplify.open_backend(explainer) as opened:
        for name in tasks.split(","):
            task = amplify.load_task(name)
            trained = amplify.train_proxy(task, proxy, seed=seed)
            found[name] = measured(task, trained, opened, items, k, neighbours, seed)
            found[name]["proxy"] = {"name": trained.name, "identity": trained.identity}
        data = {
            "explainer": {"spec": explainer, **opened.describe(), "usage": asdict(opened.usage)},
            "date": datetime.date.today().isoformat(),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
            "amplify": amplify.__version__,
            "neighbours": neighbours,
            "k": k,
            "seed": seed,
            "tasks": found,
        }
    results.mkdir(parents=True, exist_ok=True)
    stem = results / "llm_explainers"
    stem.with_suffix(".json").write_text(json.dumps(data, indent=1, default=str) + "\n")
    head = f"# Language models as explainers\n\n{data['date']}, {data['machine']}, `{explainer}`, proxy `{proxy}`\n"
    body = "".join(
        f"\n## {name}\n\n```\n{one['text']}\n```\n\nReplies: {json.dumps(one['replies'])}\n"
        for name, one in found.items()
    )
    stem.with_suffix(".md").write_text(head + body)
    click.echo(f"written: {stem}.json, {stem}.md")


if __name__ == "__main__":
    try:
        main()
    except AmplifyError as error:
        raise SystemExit(f"reproduce_llm_explainers: {error}") from None

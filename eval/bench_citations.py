"""Citations of written answers: which document each sentence of an answer rests on, against gold citations.

    python eval/bench_citations.py --model transformers:qwen2.5-coder-0.5b
    python eval/bench_citations.py --model transformers:qwen2.5-coder-0.5b --suite hotpotqa

`claims`: 45 questions about made-up things, each with five short documents and an answer of two or three sentences,
every one of which one document carries. amplify's rule for citations was settled with the first thirty in view
(`suites/citations.jsonl`); the other fifteen were written after it, before any of them was judged
(`suites/citations_unseen.jsonl`), and are reported apart. `hotpotqa`: the dataset's answer (no "yes", no "no")
and five of its paragraphs, the two that hold the supporting facts and the three nearest to the question by BM25; those
two cut to the facts, the others to their first sentence. Gold citations are the two.

All three cite the same answers: amplify (32 prompts, exact), context-cite (32 ablations of the same prompts, with its
package's masks, log-odds and LASSO) and the cosine of MiniLM's embeddings. amplify cites by its own rule; the
other two, which have none, by the threshold that serves them best in hindsight. Killed and started again it goes on.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import random
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from measuring import command

import amplify
from amplify import files
from amplify.evaluation import statistics
from amplify.models.base import LocalModel
from amplify.models.cached import caching
from amplify.retrieval import open_embedder, open_retriever
from amplify.sources.asked import asked_of
from amplify.sources.claims import SHARE
from amplify.sources.context import in_place, special_tokens
from amplify.sources.games import LogProbGame
from amplify.sources.options import options
from amplify.types import Prompt

HERE = Path(__file__).parent
ABLATIONS = 32
SEEN, UNSEEN = "answers that the rule was settled on", "answers that the rule has not seen"
Item = Mapping[str, Any]


def claims(count: int) -> list[Item]:
    """Our own, those that the rule for citations was settled on first."""
    found: list[Item] = []
    for name, group in (("citations", SEEN), ("citations_unseen", UNSEEN)):
        lines = (HERE / "suites" / f"{name}.jsonl").read_text().splitlines()
        found += [{**json.loads(line), "group": group} for line in lines]
    return found[:count]


def hotpotqa(count: int) -> list[Item]:
    """Items of HotpotQA, bridges and comparisons as they come, the paragraphs in an order that is always the same."""
    rows = json.loads((Path(os.environ["AMPLIFY_DATA"]) / "hotpotqa" / "dev_distractor_50.json").read_text())
    found: list[Item] = []
    for number, row in enumerate(rows):
        facts: dict[str, list[int]] = {}
        for title, sentence in zip(row["supporting_facts"]["title"], row["supporting_facts"]["sent_id"], strict=True):
            facts.setdefault(title, []).append(sentence)
        paragraphs = dict(zip(row["context"]["title"], row["context"]["sentences"], strict=True))
        if row["answer"] in ("yes", "no") or len(facts) != 2:
            continue
        others = [title for title in paragraphs if title not in facts]
        near = open_retriever("bm25", [f"{t}: {''.join(paragraphs[t])}" for t in others]).search(row["question"], 3)
        shown = [*facts, *(others[hit.document] for hit in near)]
        random.Random(f"paragraphs of item {number}").shuffle(shown)
        documents = [
            {"id": t, "text": f"{t}: {''.join(paragraphs[t][k] for k in facts.get(t, [0])).strip()}"} for t in shown
        ]
        claim = {"text": row["answer"], "cites": list(facts)}
        found.append({
            "id": f"hotpotqa-{number}", "question": row["question"], "documents": documents, "claims": [claim],
            "group": UNSEEN,
        })  # fmt: skip
    return found[:count]


SUITES = {"claims": claims, "hotpotqa": hotpotqa}


def answer_of(item: Item) -> str:
    """The answer as one text."""
    return " ".join(claim["text"] for claim in item["claims"])


def by_amplify(item: Item, model: LocalModel, kept: Path) -> dict[str, Any]:
    """Share of each document for each claim, and the documents that are cited."""
    found = amplify.attribute_sources(
        item["question"], item["documents"], model, answer_of(item), budget=2 ** len(item["documents"]),
        granularity="documents", cache=kept,
    )  # fmt: skip
    assert found.estimator == "exact"
    assert len(found.claims) == len(item["claims"]), item["id"]
    cited = [[c.source for c in found.citations if c.claim == k] for k in range(len(found.claims))]
    return {"scores": [list(claim.shares) for claim in found.claims], "cited": cited}


def by_context_cite(item: Item, model: LocalModel, kept: Path) -> dict[str, Any]:
    """Weights of context-cite's surrogate for each claim: its package's masks, log-odds and LASSO, on the same prompts.

    `kept` holds what amplify asked, all coalitions, so nothing is asked again.
    """
    from context_cite.solver import LassoRegression
    from context_cite.utils import _create_mask, aggregate_logit_probs

    chosen = options({"budget": 2 ** len(item["documents"]), "granularity": "documents"})
    masks = np.stack([_create_mask(len(item["documents"]), 0.5, seed) for seed in range(ABLATIONS)])
    with caching(model, kept) as known:
        context = asked_of(
            item["question"], item["documents"], None, "messages", "default", chosen, special_tokens(known)
        ).context
        game = LogProbGame(context, known, context.continued(answer_of(item)))
        before = model.usage.snapshot()
        values = game(in_place(masks))
        assert not model.usage.since(before).forwarded_tokens, "a coalition that amplify did not ask"
    columns = values[:, 1:] if len(game.columns) > 1 else values
    found = []
    for claim, log_probs in zip(item["claims"], columns.T, strict=True):
        [length] = model.count_tokens([Prompt(text=f" {claim['text']}")])
        log_odds = -np.log(np.expm1(np.maximum(-log_probs, 1e-6)))  # of the claim as one token
        weights, _ = LassoRegression().fit(masks, aggregate_logit_probs(log_odds[:, None]), length)
        found.append(weights.tolist())
    return {"scores": found}


def by_similarity(item: Item, embed: Callable[[Sequence[str]], Any]) -> dict[str, Any]:
    """Cosine of each claim's embedding with each document's."""
    claims = embed([claim["text"] for claim in item["claims"]])
    documents = embed([d["text"] for d in item["documents"]])
    return {"scores": (claims @ documents.T).tolist()}


def cited_above(rows: Sequence[Sequence[float]], bound: float) -> list[list[int]]:
    """Documents that score at least so much, for each claim."""
    return [[k for k, score in enumerate(row) if score >= bound] for row in rows]


def counts(cited: Sequence[Sequence[int]], gold: Sequence[set[int]]) -> tuple[int, int, int]:
    """Right citations, citations, gold citations."""
    right = sum(len(set(c) & g) for c, g in zip(cited, gold, strict=True))
    return right, sum(map(len, cited)), sum(map(len, gold))


def rates(parts: Sequence[tuple[int, int, int]]) -> tuple[float, float]:
    """Precision and recall over all claims."""
    right, given, gold = (sum(p[k] for p in parts) for k in range(3))
    return right / max(given, 1), right / gold


def interval(parts: Sequence[tuple[int, int, int]], which: int) -> tuple[float, float]:
    """95 % bootstrap interval over items, of precision (0) or recall (1)."""
    drawn, found = np.random.default_rng(0), []
    for _ in range(2000):
        picked = [parts[i] for i in drawn.integers(len(parts), size=len(parts))]
        found.append(rates(picked)[which])
    return float(np.quantile(found, 0.025)), float(np.quantile(found, 0.975))


def summary(items: Sequence[Item], rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Precision and recall by each way's rule, and how often the best document is the right one."""
    gold = {
        item["id"]: [
            {[d["id"] for d in item["documents"]].index(c) for c in claim["cites"]} for claim in item["claims"]
        ]
        for item in items
    }
    found: dict[str, Any] = {}
    tops: dict[str, list[float]] = {}
    for way in ("amplify", "context-cite", "similarity"):
        scores = {i: row[way]["scores"] for i, row in rows.items()}
        flat = sorted({s for table in scores.values() for claim in table for s in claim})

        def parts(bound: float, scores: Any = scores) -> list[tuple[int, int, int]]:
            return [counts(cited_above(scores[i], bound), gold[i]) for i in scores]

        def f1(bound: float, parts: Any = parts) -> float:
            precision, recall = rates(parts(bound))
            return 2 * precision * recall / max(precision + recall, 1e-12)

        own = [counts(rows[i][way]["cited"], gold[i]) for i in rows] if way == "amplify" else None
        bound = SHARE if own else max(flat, key=f1)
        chosen = own or parts(bound)
        precision, recall = rates(chosen)
        tops[way] = [
            float(int(np.argmax(claim)) in right) for i in rows for claim, right in zip(scores[i], gold[i], strict=True)
        ]
        found[way] = {
            "precision": precision, "precision_95": interval(chosen, 0), "recall": recall,
            "recall_95": interval(chosen, 1), "best_is_right": float(np.mean(tops[way])), "threshold": bound,
            "best_f1_in_hindsight": f1(max(flat, key=f1)),
        }  # fmt: skip
    for way in ("context-cite", "similarity"):
        difference, between, test = statistics.compare([tops["amplify"]], [tops[way]])
        found[way]["amplify_better_by"] = [difference, between.low, between.high, test.p]
    return found


@click.command()
@click.option("--model", required=True)
@click.option("--dtype", default="auto", show_default=True)
@click.option("--suite", type=click.Choice(list(SUITES)), default="claims", show_default=True)
@click.option("--items", default=45, show_default=True)
@click.option("--skip", default=0, show_default=True, help="Items left out at the beginning.")
@click.option("--seconds", default=1e9, help="No item is begun after so many; what there is is written.")
@click.option("--work", type=click.Path(path_type=Path), default=Path("runs/bench_citations"), show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=None, help="Stem of the result files.")
def main(
    model: str, dtype: str, suite: str, items: int, skip: int, seconds: float, work: Path, out: Path | None
) -> None:
    """Cite all answers in three ways; write precision and recall."""
    ends = time.monotonic() + seconds
    loaded = SUITES[suite](items)[skip:]
    with amplify.load_model(model, dtype=dtype) as who:
        assert isinstance(who, LocalModel)
        about = who.describe()
        journal = files.Journal(work / f"{suite}.jsonl", {"model": about, "items": files.digest(loaded)})
        rows = {row[0]: row[1] for row in journal.rows}
        with open_embedder("minilm") as embedder:
            for item in loaded:
                if item["id"] in rows or time.monotonic() > ends:
                    continue
                rows[item["id"]] = {
                    "amplify": by_amplify(item, who, work / "replies"),
                    "context-cite": by_context_cite(item, who, work / "replies"),
                    "similarity": by_similarity(item, embedder.embed),
                }  # fmt: skip
                journal.append([[item["id"], rows[item["id"]]]])
                click.echo(f"{len(rows)} of {len(loaded)} items", err=True)
    write(suite, about, [item for item in loaded if item["id"] in rows], rows, out)


def write(suite: str, about: Item, done: Sequence[Item], rows: Mapping[str, Any], out: Path | None) -> None:
    """Results as JSON and Markdown, each group of answers apart."""
    stem = out or HERE / "results" / ("citations" if suite == "claims" else f"citations_{suite}")
    groups: dict[str, list[Item]] = {}
    for item in done:
        groups.setdefault(item["group"], []).append(item)
    found = {name: summary(own, {item["id"]: rows[item["id"]] for item in own}) for name, own in groups.items()}
    head = {
        "command": command(), "date": datetime.date.today().isoformat(), "amplify": amplify.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}", "model": about,
        "items": len(done), "claims": sum(len(item["claims"]) for item in done),
    }  # fmt: skip
    kept = {item["id"]: rows[item["id"]] for item in done}
    stem.with_suffix(".json").write_text(json.dumps({**head, "groups": found, "rows": kept}, indent=1) + "\n")
    lines = [
        "# Citations of written answers" if suite == "claims" else "# Citations of HotpotQA's supporting facts", "",
        f"{head['date']}, {about['id']} ({about.get('dtype', '')}), {head['items']} answers, {head['claims']} claims, "
        f"`{head['command']}`",
    ]  # fmt: skip
    for name, ways in found.items():
        count = sum(len(item["claims"]) for item in groups[name])
        lines += [
            "", f"## {len(groups[name])} {name}, {count} claims", "",
            "| | precision (95 %) | recall (95 %) | best document is right | F1, best threshold in hindsight |",
            "|---|---:|---:|---:|---:|",
        ]  # fmt: skip
        for way, row in ways.items():
            cells = [
                f"{row[key]:.2f} ({row[f'{key}_95'][0]:.2f} to {row[f'{key}_95'][1]:.2f})"
                for key in ("precision", "recall")
            ]
            lines.append(
                f"| {way} | {cells[0]} | {cells[1]} | {row['best_is_right']:.2f} | {row['best_f1_in_hindsight']:.2f} |"
            )
    lines += [
        "",
        "amplify cites by its own rule: a tenth of what the context gives a claim, and half of what its best source "
        "does. The others cite by the threshold that gives them the best F1 on these very claims. context-cite: 32 "
        "ablations of amplify's prompts, its package's masks, log-odds and LASSO. Intervals: bootstrap over answers.",
]  # fmt: skip
    stem.with_suffix(".md").write_text("\n".join(lines) + "\n")
    click.echo("\n".join(lines))


if __name__ == "__main__":
    main()

"""Citations of written answers: which document each sentence of an answer rests on, against gold citations.

    python eval/bench_citations.py --model transformers:qwen2.5-coder-0.5b

Thirty questions about made-up things, each with five short documents and an answer of two or three sentences, every one
of which one document carries (`suites/citations.jsonl`). All three cite the same answers: amplify (32 prompts, exact),
context-cite as its package runs (32 ablations, its own prompt), and the cosine of MiniLM's embeddings. amplify cites by
its own rule; the other two, which have none, by the threshold that serves them best in hindsight. Killed and started
again it goes on.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
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
from amplify.sources.claims import SHARE

HERE = Path(__file__).parent
Item = Mapping[str, Any]


def answer_of(item: Item) -> str:
    """The answer as one text."""
    return " ".join(claim["text"] for claim in item["claims"])


def by_amplify(item: Item, model: LocalModel) -> dict[str, Any]:
    """Share of each document for each claim, and the documents that are cited."""
    found = amplify.attribute_sources(
        item["question"], item["documents"], model, answer_of(item), budget=32, granularity="documents"
    )
    assert len(found.claims) == len(item["claims"]), item["id"]
    cited = [[c.source for c in found.citations if c.claim == k] for k in range(len(found.claims))]
    return {"scores": [list(claim.shares) for claim in found.claims], "cited": cited}


def by_context_cite(item: Item, model: LocalModel) -> dict[str, Any]:
    """Weights of context-cite's surrogate for each claim, of the same answer behind its own prompt."""
    from context_cite import ContextCiter
    from context_cite.context_partitioner import BaseContextPartitioner

    texts = [d["text"] for d in item["documents"]]

    class Documents(BaseContextPartitioner):
        def __init__(self) -> None:
            super().__init__("\n\n".join(texts))
            self.parts, self.separators = texts, ["", *["\n\n"] * (len(texts) - 1)]

        @property
        def num_sources(self) -> int:
            return len(texts)

        def split_context(self) -> None:
            """They are split already."""

        def get_source(self, index: int) -> str:
            return texts[index]

        def get_context(self, mask: Any = None) -> str:
            return "\n\n".join(t for k, t in enumerate(texts) if mask is None or mask[k])

    partitioner = Documents()
    citer = ContextCiter(
        model.module, model.tokenizer, partitioner.context, item["question"], num_ablations=32, partitioner=partitioner
    )
    _, prompt = citer._get_prompt_ids(return_prompt=True)
    citer._cache["output"] = prompt + answer_of(item)  # the answer that is explained, instead of one that it generates
    found, at = [], 0
    for claim in item["claims"]:
        found.append(citer.get_attributions(at, at + len(claim["text"]), verbose=False).tolist())
        at += len(claim["text"]) + 1
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
@click.option("--dtype", default="bfloat16", show_default=True)
@click.option("--items", default=30, show_default=True)
@click.option("--seconds", default=1e9, help="No item is begun after so many; what there is is written.")
@click.option("--work", type=click.Path(path_type=Path), default=Path("runs/bench_citations"), show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=HERE / "results" / "citations", show_default=True)
def main(model: str, dtype: str, items: int, seconds: float, work: Path, out: Path) -> None:
    """Cite all answers in three ways; write precision and recall."""
    from amplify.retrieval import open_embedder

    ends = time.monotonic() + seconds
    loaded = [json.loads(line) for line in (HERE / "suites" / "citations.jsonl").read_text().splitlines()][:items]
    with amplify.load_model(model, dtype=dtype) as who:
        assert isinstance(who, LocalModel)
        about = who.describe()
        journal = files.Journal(work / "citations.jsonl", {"model": about, "items": files.digest(loaded)})
        rows = {row[0]: row[1] for row in journal.rows}
        with open_embedder("minilm") as embedder:
            for item in loaded:
                if item["id"] in rows or time.monotonic() > ends:
                    continue
                rows[item["id"]] = {
                    "amplify": by_amplify(item, who), "context-cite": by_context_cite(item, who),
                    "similarity": by_similarity(item, embedder.embed),
                }  # fmt: skip
                journal.append([[item["id"], rows[item["id"]]]])
                click.echo(f"{len(rows)} of {len(loaded)} items", err=True)
    found = summary([item for item in loaded if item["id"] in rows], rows)
    head = {
        "command": command(), "date": datetime.date.today().isoformat(), "amplify": amplify.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}", "model": about,
        "items": len(rows), "claims": sum(len(item["claims"]) for item in loaded if item["id"] in rows),
    }  # fmt: skip
    out.with_suffix(".json").write_text(json.dumps({**head, "ways": found, "rows": rows}, indent=1) + "\n")
    lines = [
        "# Citations of written answers", "",
        f"{head['date']}, {about['id']} ({dtype}), {head['items']} answers, {head['claims']} claims, "
        f"`{head['command']}`",
        "", "| | precision (95 %) | recall (95 %) | best document is right | F1, best threshold in hindsight |",
        "|---|---:|---:|---:|---:|",
    ]  # fmt: skip
    for way, row in found.items():
        cells = [
            f"{row[name]:.2f} ({row[f'{name}_95'][0]:.2f} to {row[f'{name}_95'][1]:.2f})"
            for name in ("precision", "recall")
        ]
        lines.append(
            f"| {way} | {cells[0]} | {cells[1]} | {row['best_is_right']:.2f} | {row['best_f1_in_hindsight']:.2f} |"
        )
    lines += [
        "", "amplify cites by its own rule (a tenth of what the context gives a claim, surely above 0); the others by "
        "the threshold that gives them the best F1 on these very claims. Intervals: bootstrap over answers.",
    ]  # fmt: skip
    out.with_suffix(".md").write_text("\n".join(lines) + "\n")
    click.echo("\n".join(lines))


if __name__ == "__main__":
    main()

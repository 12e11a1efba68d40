"""Questions with retrieved documents, from the published layouts of HotpotQA, NQ-open, Lost in the Middle and MIRACL.

Every example carries in its fields:
    documents: list of {"title", "text", "sentences"}; sentences where the data has them, else ().
    evidence: numbers of the gold documents.
    supporting: [document, sentence] pairs of the gold sentences; empty where the data has none.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from amplify.errors import InputError
from amplify.metrics import normalize
from amplify.tasks.rows import column, laid_out
from amplify.tasks.spec import TaskSpec, check_keys
from amplify.types import Example

FORMATS = ("hotpotqa", "nq", "miracl")
OPTIONS = ("total", "gold_at", "distractors")
Row = Mapping[str, Any]


def retrieval_examples(spec: TaskSpec, rows: Sequence[Row], path: Path) -> list[Example]:
    """The examples of a file in one of `FORMATS`.

    `spec.documents` may ask for `total` documents an example, with made distractors: `distractors: random` takes gold
    passages of other questions, `bm25` those that BM25 ranks highest for the question (harder). A passage that holds
    an accepted answer is never a distractor. `gold_at` is the place of the first gold document, or "random". Choices
    depend on `spec.seed` and the question, not on the rows' order.

    Raises:
        InputError: a row is not in its layout, or an option has no such value.
    """
    check_keys(f"task {spec.name}, documents", spec.documents, OPTIONS)
    read = {"hotpotqa": _hotpotqa, "nq": _nq, "miracl": _miracl}[spec.format]
    examples = []
    number = 0
    with laid_out(lambda: f"{path}, row {number}"):
        for number, row in enumerate(rows, start=1):
            examples.append(read(row, f"{path}, row {number}"))
    return _completed(spec, examples) if spec.documents else examples


def _document(title: Any, text: str, sentences: Sequence[str] = ()) -> dict[str, Any]:
    return {"title": str(title or "").strip(), "text": text.strip(), "sentences": list(sentences)}


def _example(
    question: Any,
    answers: Sequence[str],
    documents: list[dict[str, Any]],
    gold: Sequence[int],
    where: str,
    supporting: Sequence[Sequence[int]] = (),
    own_id: str = "",
    **more: Any,
) -> Example:
    text = str(question).strip()
    if not text:
        raise InputError(f"{where}: the question is empty")
    if any(not 0 <= g < len(documents) for g in gold):
        raise InputError(f"{where}: a gold document is not among the {len(documents)} documents")
    return Example(
        id=own_id or hashlib.sha256(text.encode()).hexdigest()[:12],
        text=text,
        answers=tuple(a for a in map(str, answers) if a.strip()),
        fields={
            "documents": documents,
            "evidence": sorted(set(gold)),
            "supporting": [list(pair) for pair in supporting],
            **more,
        },
    )


def _hotpotqa(row: Row, where: str) -> Example:
    """Distractor setting: the hub's layout (lists by column) and the original JSON's (pairs)."""
    context, facts = column(row, "context", where), column(row, "supporting_facts", where)
    if isinstance(context, Mapping):
        paragraphs = list(zip(context["title"], context["sentences"], strict=True))
        told = list(zip(facts["title"], facts["sent_id"], strict=True))
    else:
        paragraphs, told = [(p[0], p[1]) for p in context], [(f[0], f[1]) for f in facts]
    number = {title: i for i, (title, _) in reversed(list(enumerate(paragraphs)))}
    if missing := [title for title, _ in told if title not in number]:
        raise InputError(f"{where}: the supporting fact {missing[0]!r} has no paragraph")
    # a few published facts name a sentence that their paragraph does not have
    pairs = [(number[t], int(s)) for t, s in told]
    supporting = [(d, s) for d, s in pairs if s < len(paragraphs[d][1])]
    documents = [_document(title, "".join(sentences), sentences) for title, sentences in paragraphs]
    own = row.get("id") or row.get("_id") or ""
    return _example(
        column(row, "question", where), [column(row, "answer", where)], documents, [d for d, _ in pairs], where,
        supporting, str(own), type=row.get("type", ""),
    )  # fmt: skip


def _nq(row: Row, where: str) -> Example:
    """NQ-open as Lost in the Middle publishes it: oracle files hold the gold passage alone, the others all passages."""
    passages = column(row, "ctxs", where)
    documents = [_document(p.get("title"), str(column(p, "text", where))) for p in passages]
    gold = [i for i, p in enumerate(passages) if p.get("isgold")]
    return _example(column(row, "question", where), column(row, "answers", where), documents, gold, where)


def _miracl(row: Row, where: str) -> Example:
    """MIRACL: judged passages of a query, relevant and not; there are no answers, only evidence.

    The published order puts every relevant passage first, so documents are ordered by their identifiers' hashes.
    """
    relevant = {str(p["docid"]) for p in column(row, "positive_passages", where)}
    passages = [*row["positive_passages"], *column(row, "negative_passages", where)]
    if not relevant:
        raise InputError(f"{where}: the query has no relevant passage; leave it out")
    passages.sort(key=lambda p: hashlib.sha256(str(p["docid"]).encode()).hexdigest())
    documents = [_document(p.get("title"), str(p["text"])) for p in passages]
    gold = [i for i, p in enumerate(passages) if str(p["docid"]) in relevant]
    return _example(column(row, "query", where), (), documents, gold, where, own_id=str(column(row, "query_id", where)))


def _completed(spec: TaskSpec, examples: Sequence[Example]) -> list[Example]:
    """Each example with `total` documents: its own gold ones, then distractors."""
    options = spec.documents
    total, gold_at = options.get("total", 10), options.get("gold_at", "random")
    kind = options.get("distractors", "random")
    where = f"task {spec.name}, documents"
    if not isinstance(total, int) or total < 2:
        raise InputError(f"{where}: total is a number of documents, 2 or more, not {total!r}")
    if kind not in ("random", "bm25"):
        raise InputError(f"{where}: distractors is random or bm25, not {kind!r}")
    if gold_at != "random" and (not isinstance(gold_at, int) or not 0 <= gold_at < total):
        raise InputError(f"{where}: gold_at is random or a place from 0 to {total - 1}, not {gold_at!r}")
    pool: dict[str, dict[str, Any]] = {}
    for example in examples:
        for g in example.fields["evidence"]:
            document = example.fields["documents"][g]
            pool.setdefault(normalize(document["text"]), document)
    passages = [pool[key] for key in sorted(pool)]
    near = _nearest(examples, passages, 4 * total) if kind == "bm25" else None
    said = [f" {normalize(p['title'])} {normalize(p['text'])} " for p in passages]
    return [
        _fill(spec, example, passages, said, total, gold_at, near[i] if near else None)
        for i, example in enumerate(examples)
    ]


def _nearest(examples: Sequence[Example], passages: Sequence[dict[str, Any]], k: int) -> list[list[int]]:
    from amplify.retrieval import BM25Retriever

    retriever = BM25Retriever([f"{p['title']}\n{p['text']}" for p in passages])
    return [[hit.document for hit in retriever.search(e.text, min(k, len(passages)))] for e in examples]


def _fill(
    spec: TaskSpec,
    example: Example,
    passages: Sequence[dict[str, Any]],
    said: Sequence[str],
    total: int,
    gold_at: int | str,
    near: Sequence[int] | None,
) -> Example:
    draw = random.Random(f"{spec.seed}:{example.text}")
    gold = [example.fields["documents"][g] for g in example.fields["evidence"]]
    own = {normalize(d["text"]) for d in gold}
    answers = [f" {answer} " for a in example.answers if (answer := normalize(a))]
    chosen: list[dict[str, Any]] = []
    candidates = list(near) if near is not None else draw.sample(range(len(passages)), min(len(passages), 8 * total))
    for number in candidates:
        passage = passages[number]
        if len(gold) + len(chosen) == total:
            break
        if normalize(passage["text"]) in own or any(answer in said[number] for answer in answers):
            continue
        chosen.append(passage)
    if len(gold) + len(chosen) < total:
        raise InputError(
            f"task {spec.name}: only {len(gold) + len(chosen)} documents can be had for {example.text[:60]!r}; "
            f"lower documents.total={total} or give a larger file"
        )
    draw.shuffle(chosen)
    places = (
        sorted(draw.sample(range(total), len(gold)))
        if gold_at == "random"
        else list(range(min(int(gold_at), total - len(gold)), total))[: len(gold)]
    )
    documents: list[dict[str, Any]] = list(chosen)
    for place, document in zip(places, gold, strict=True):
        documents.insert(place, document)
    fields = {**example.fields, "documents": documents, "evidence": places}
    return Example(id=example.id, text=example.text, answers=example.answers, fields=fields)

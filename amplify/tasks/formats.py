"""The formats of a task's files by name: from the rows of a file to examples.

Rows by column, Big-Bench Hard, counterfactual facts ("Previously {old}. Currently {new}. {question}": PASTA, arXiv
2311.02262, on CounterFact), and questions with retrieved documents in the published layouts of HotpotQA, NQ-open, Lost
in the Middle and MIRACL. An example with documents carries in its fields:
    documents: list of {"title", "text", "sentences"}; sentences where the data has them, else ().
    evidence: numbers of the gold documents.
    supporting: [document, sentence] pairs of the gold sentences; empty where the data has none.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from amplify.errors import InputError
from amplify.metrics import normalize
from amplify.registry import Table, register
from amplify.tasks.rows import bbh_example, column, example, laid_out
from amplify.tasks.spec import TaskSpec, check_keys
from amplify.types import Example

VALIDATION_NAMES = ("validation", "valid", "val", "dev")
SPLIT_NAMES = {"train": "train", "test": "test"} | dict.fromkeys(VALIDATION_NAMES, "validation")
QUESTIONS = ("requested_rewrite.prompt", "paraphrase_prompts")
OPTIONS = ("total", "gold_at", "distractors")
_SHARES = (("train", 0.4), ("validation", 0.1), ("test", 0.5))

Row = Mapping[str, Any]
Format = Callable[[TaskSpec, list[dict[str, Any]], Path], Iterable[Example | tuple[Example, str]]]
"""(the task as its YAML says, a file's rows, the file) -> examples, with their splits where the format knows them."""


def _adopt(name: str, value: Any) -> Format:
    if not callable(value):
        raise InputError(f"the task format {name!r} is a function of a specification, rows and a path, not {value!r}")
    return value


FORMATS: Table[Format] = Table("task_format", _adopt)
"""Every format by name."""


def examples(spec: TaskSpec, rows: list[dict[str, Any]], path: Path, split: str) -> Iterable[tuple[Example, str]]:
    """The examples of a file's rows by the task's format, each with its split: the file's, unless the format knows.

    Raises:
        InputError: the format gives something else, or a value is not of the kind that it has there.
    """
    with laid_out(lambda: str(path)):
        for made in FORMATS.find(spec.format)(spec, rows, path):
            item, own = made if isinstance(made, tuple) else (made, "")
            if not isinstance(item, Example) or own not in ("", "train", "validation", "test"):
                raise InputError(f"the task format {spec.format!r} gives {made!r:.200}, no example (with its split)")
            yield item, own or split


def _with_options(row: Row, fields: Mapping[str, Any], where: str) -> Example:
    question = str(column(row, fields.get("text", "input"), where))
    return bbh_example(question, str(column(row, fields.get("label", "target"), where)), where)


READS: dict[str, Callable[[Row, Mapping[str, Any], str], Example]] = {"bbh": _with_options}
"""Formats of one example a row that is not read by its columns alone: (row, fields, where it stands) -> example."""


def labelled(spec: TaskSpec, row: Row, where: str, fields: Mapping[str, Any]) -> Example:
    """The labelled example of a row; `fields` as in `TaskSpec.fields`, but for the split."""
    item = READS.get(spec.format, example)(row, fields, where)
    if spec.label_map and item.label is not None and not item.choices:
        if item.label not in spec.label_map and item.label not in spec.labels:
            raise InputError(f"{where}: the label {item.label!r} is none of {', '.join(spec.label_map)}")
        item = replace(item, label=spec.label_map.get(item.label, item.label))
    if item.label is None and not item.answers:
        raise InputError(f"{where}: the label is empty; label the row or leave it out")
    return item


def split_of(fields: Mapping[str, Any], row: Mapping[str, Any], where: str) -> str:
    """The split that a row names where a column is there for it, else ""."""
    if "split" not in fields:
        return ""
    name = str(column(row, fields["split"], where)).strip().lower()
    if name not in SPLIT_NAMES:
        raise InputError(f"{where}: the split {name!r} is none of train, validation, test")
    return SPLIT_NAMES[name]


@register("task_format", "rows")
@register("task_format", "bbh")
def _rows(spec: TaskSpec, rows: list[dict[str, Any]], path: Path) -> Iterable[tuple[Example, str]]:
    """One example a row, by the columns that `fields` names; in "bbh" the options stand in the text."""
    number, name, fields = 0, str(path), {k: v for k, v in spec.fields.items() if k != "split"}
    with laid_out(lambda: f"{name}, row {number}"):
        for number, row in enumerate(rows, start=1):
            where = f"{name}, row {number}"
            yield labelled(spec, row, where, fields), split_of(spec.fields, row, where)


@register("task_format", "turns")
def _turns(spec: TaskSpec, rows: list[dict[str, Any]], path: Path) -> Iterable[tuple[Example, str]]:
    """Chats of several turns, as MS-XSB has them: the last message of the user is asked about behind the others.

    The column that `fields.text` names holds the messages: each a text (of the user) or {"role", "content"}.
    """
    name, number = str(spec.fields.get("text", "turns")), 0
    with laid_out(lambda: f"{path}, row {number}"):
        for number, row in enumerate(rows, start=1):
            where = f"{path}, row {number}"
            given = column(row, name, where)
            if not isinstance(given, list) or not given:
                raise InputError(f"{where}: {name!r} is a list of messages, at least one")
            turns = [{"role": "user", "content": one} if isinstance(one, str) else one for one in given]
            for turn in turns:
                if not isinstance(turn, dict) or not isinstance(turn.get("content"), str):
                    raise InputError(f"{where}: a message is a text or {{'role', 'content'}}, not {turn!r:.80}")
                if turn.get("role") not in ("user", "assistant"):
                    raise InputError(f"{where}: a message is of the user or the assistant, not {turn.get('role')!r}")
            if turns[-1]["role"] != "user":
                raise InputError(f"{where}: the last message is the user's, who is answered")
            fields = {k: v for k, v in spec.fields.items() if k != "split"} | {"text": name}
            item = labelled(spec, {**row, name: turns[-1]["content"]}, where, fields)
            earlier = [{"role": turn["role"], "content": turn["content"]} for turn in turns[:-1]]
            yield replace(item, fields={**item.fields, "turns": earlier}), split_of(spec.fields, row, where)


@register("task_format", "known_facts")
def _known_facts(spec: TaskSpec, rows: list[dict[str, Any]], path: Path) -> list[tuple[Example, str]]:
    """Facts of known_facts.json, each made a counterfact with another object of its relation."""
    return fact_examples(spec, counterfacts(rows, spec.seed, str(path)), path)


@register("task_format", "counterfact")
def fact_examples(spec: TaskSpec, rows: Sequence[Mapping[str, Any]], path: Path) -> list[tuple[Example, str]]:
    """Examples and their splits, from CounterFact's published layout.

    An example's text is the question, a sentence to continue; its choices are the new and the old object, and the
    label is the new one. `fields.text` of the task says which questions are asked: "requested_rewrite.prompt" (the
    efficacy score) or "paraphrase_prompts" (the paraphrase score, one example each). Splits go by subject and
    relation, so that no fact stands in two of them, whichever questions are asked.

    Raises:
        InputError: a row of another layout.
    """
    asked = str(spec.fields.get("text", QUESTIONS[0]))
    if asked not in QUESTIONS:
        raise InputError(f"task {spec.name}: fields.text is one of {', '.join(QUESTIONS)}, not {asked!r}")
    made: dict[str, tuple[Example, str]] = {}
    for number, case in enumerate(rows, start=1):
        where = f"{path}, row {number}"
        subject, prompt, new, old = (
            str(column(case, f"requested_rewrite.{name}", where))
            for name in ("subject", "prompt", "target_new.str", "target_true.str")
        )
        if "{}" not in prompt:
            raise InputError(f"{where}: requested_rewrite.prompt has no {{}} for its subject")
        statement = prompt.replace("{}", subject)
        questions = [statement] if asked == QUESTIONS[0] else list(column(case, asked, where))
        for k, question in enumerate(questions):
            item = Example(
                id=f"{column(case, 'case_id', where)}" + (f"-p{k}" if asked != QUESTIONS[0] else ""),
                text=str(question).strip(),
                label=new,
                choices=tuple(sorted((new, old))),  # their order must not tell which is the new one
                fields={
                    "subject": subject,
                    "old_fact": f"{statement} {old}",
                    "new_fact": f"{statement} {new}",
                    "old": old,
                },
            )
            if item.text and new != old:
                made.setdefault(item.text.casefold(), (item, _split(subject, spec.seed)))
    return list(made.values())


def counterfacts(rows: Sequence[Mapping[str, Any]], seed: int, where: str) -> list[dict[str, Any]]:
    """Known facts as counterfacts in CounterFact's layout: the new object is another one of the same relation.

    Paraphrases are the relation's other templates, of those that several facts have, and none where there is no other.

    Args:
        rows: subject, attribute, prompt, relation_id and known_id of each fact.
        seed: of the choice of new objects and paraphrases.
        where: for errors.
    """
    objects: dict[str, dict[str, None]] = defaultdict(dict)
    templates: dict[str, Counter[str]] = defaultdict(Counter)
    facts = []
    for number, row in enumerate(rows, start=1):
        at = f"{where}, row {number}"
        subject, old, prompt, relation = (
            str(column(row, name, at)).strip() for name in ("subject", "attribute", "prompt", "relation_id")
        )
        if subject not in prompt:
            raise InputError(f"{at}: the prompt does not name its subject {subject!r}")
        template = prompt.replace(subject, "{}", 1)
        objects[relation][old] = None
        templates[relation][template] += 1
        facts.append((column(row, "known_id", at), subject, old, template, relation))
    cases = []
    for name, subject, old, template, relation in facts:
        rng = random.Random(f"{seed}:{name}")
        others = [o for o in objects[relation] if o.casefold() != old.casefold()]
        if not others:
            continue
        common = [t for t, n in templates[relation].most_common() if n > 1 and t != template]
        cases.append(
            {
                "case_id": f"known-{name}",
                "requested_rewrite": {
                    "prompt": template,
                    "subject": subject,
                    "relation_id": relation,
                    "target_true": {"str": old},
                    "target_new": {"str": rng.choice(others)},
                },
                "paraphrase_prompts": [t.replace("{}", subject) for t in rng.sample(common, min(2, len(common)))],
            }
        )
    return cases


def _split(subject: str, seed: int) -> str:
    place = int(hashlib.sha256(f"{seed}:{subject.casefold()}".encode()).hexdigest()[:8], 16) / 16**8
    for name, share in _SHARES:
        if place < share:
            return name
        place -= share
    return "test"


@register("task_format", "hotpotqa")
@register("task_format", "nq")
@register("task_format", "miracl")
def retrieval_examples(spec: TaskSpec, rows: Sequence[Row], path: Path) -> list[Example]:
    """Questions with their documents, in the layout of HotpotQA, Natural Questions or MIRACL.

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
    for made in examples:
        for g in made.fields["evidence"]:
            document = made.fields["documents"][g]
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

"""What explanations do to answers from documents: pruning the context, and passages that contradict what a model knows.

    python eval/bench_rag.py pruning   --model transformers:qwen2.5-coder-1.5b --passages 6 --keep 2 --items 36
    python eval/bench_rag.py conflicts --model transformers:qwen2.5-coder-0.5b --passages 2 --sentences 3 --items 40

Questions of Natural Questions, each with its gold passage among passages of other questions, whole or cut to a few
sentences (the gold one around the first that holds the answer). Every method answers the same items; a killed run goes
on behind the last batch. Paired tests over items, adjusted by Holm's method.

`conflicts` asks every question twice: with its passages as they are (passage and world agree), and with the answer in
them replaced by another of its kind (`replaced`). An answer follows the passage where it holds what stands there now.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import regex
from measuring import command

import amplify
from amplify import files
from amplify.errors import AmplifyError
from amplify.evaluation import statistics
from amplify.evaluation.tables import p_value
from amplify.methods import make
from amplify.methods.base import Method
from amplify.methods.rag import texts
from amplify.metrics.answers import contains, token_f1
from amplify.models.base import LanguageModel
from amplify.models.cached import caching
from amplify.tasks import Task
from amplify.text import sentences
from amplify.types import Answer, Example, Message, Prompt, Sampling

RESULTS = Path(__file__).parent / "results"
AS_IT_WAS = " as it was"  # behind the id of an item whose passages are not changed
Scores = Callable[[Answer, Example], dict[str, float]]


def cut(document: Mapping[str, Any], count: int, answers: Sequence[str] = ()) -> dict[str, Any]:
    """A passage of so many sentences: its first ones, or those around the first that holds an answer."""
    text = document["text"]
    parts = sentences(text)
    holding = [k for k, (a, b) in enumerate(parts) if any(answer.lower() in text[a:b].lower() for answer in answers)]
    first = max(0, min((holding or [0])[0] - count // 2, len(parts) - count))
    last = parts[min(first + count, len(parts)) - 1][1]
    return {**document, "text": text[parts[first][0] : last].strip()}


def shorter(example: Example, passages: int, length: int = 0) -> Example:
    """The example with its gold passage and so many in all, in their order, cut to `length` sentences (0: whole)."""
    documents, gold = list(example.fields["documents"]), set(example.fields["evidence"])
    if length:
        answers = [example.answers if i in gold else () for i in range(len(documents))]
        documents = [cut(d, length, a) for d, a in zip(documents, answers, strict=True)]
    others = [i for i in range(len(documents)) if i not in gold][: passages - len(gold)]
    kept = sorted(gold | set(others))
    return replace(
        example,
        fields={
            **example.fields, "documents": [documents[i] for i in kept], "evidence": [kept.index(i) for i in gold],
        },
    )  # fmt: skip


def shuffled(task: Task) -> list[Example]:
    """The task's items in an order that is always the same."""
    items = list(task.test)
    random.Random("items of bench_rag").shuffle(items)
    return items


# answers of one kind


def kind(example: Example) -> str:
    """Of which kind the first accepted answer is: "year", "number", "person", "place", or "" for any other."""
    answer, question = example.answers[0], example.text.lower().split()
    if regex.fullmatch(r"(1\d|20)\d\d", answer):
        return "year"
    if regex.fullmatch(r"\d[\d,.]*", answer):
        return "number"
    names = regex.fullmatch(r"\p{Lu}[\p{L}'.-]+( \p{Lu}[\p{L}'.-]*){0,2}", answer)
    if names and "who" in question:
        return "person" if " " in answer else ""
    return "place" if names and "where" in question else ""


def _whole(word: str) -> Any:
    return regex.compile(rf"(?<![\p{{L}}\p{{N}}]){regex.escape(word)}(?![\p{{L}}\p{{N}}])", regex.IGNORECASE)


def replaced(example: Example, pool: Sequence[Example]) -> Example | None:
    """The example with another answer of its kind in all of its passages; None where there is none to replace.

    The other answer is one of another question's, chosen by the question alone, that neither the question nor a passage
    names. A person's last name alone becomes the other one's last name.

    Args:
        example: of a kind (`kind`) that has others, with one accepted answer.
        pool: where other answers come from.
    """
    own = kind(example)
    if not own or len(example.answers) > 1 or any(_whole(a).search(example.text) for a in example.answers):
        return None
    passages = "\n".join(texts(example))
    known = {a.casefold() for a in example.answers}
    others = sorted({
        other.answers[0]
        for other in pool
        if kind(other) == own
        and not _whole(other.answers[0]).search(f"{passages}\n{example.text}")
        and other.answers[0].casefold() not in known
        and (own != "person" or not _whole(other.answers[0].split()[-1]).search(passages))
    })  # fmt: skip
    if not others:
        return None
    new = random.Random(f"another answer: {example.text}").choice(others)
    swaps = [(example.answers[0], new)]
    if own == "person":
        swaps += [(example.answers[0].split()[-1], new.split()[-1])]

    def swapped(text: str) -> str:
        for old, fresh in swaps:
            text = _whole(old).sub(fresh, text)
        return text

    documents = [{**d, "title": swapped(d["title"]), "text": swapped(d["text"])} for d in example.fields["documents"]]
    changed = replace(example, fields={**example.fields, "documents": documents}, answers=(new,))
    gold = [texts(changed)[i] for i in example.fields["evidence"]]
    left = "\n".join(texts(changed))
    if not any(_whole(new).search(text) for text in gold) or any(_whole(a).search(left) for a in example.answers):
        return None
    return replace(changed, fields={**changed.fields, "before": list(example.answers), "kind": own})


def says(text: str | None, answers: Sequence[str], person: bool = False) -> float:
    """1.0 where an answer holds one of these (of a person the last name is enough)."""
    wanted = [*answers, *([a.split()[-1] for a in answers] if person else [])]
    return max((contains(text or "", a) for a in wanted), default=0.0)


# asking


@dataclass(frozen=True)
class Bench:
    """Methods over items, kept batch by batch.

    Attributes:
        name: of the files that it keeps.
        task: items and what is around them.
        methods: label -> method.
        scores: what is measured of an answer.
        asks: whether a method answers an item.
    """

    name: str
    task: Task
    methods: Mapping[str, Method]
    scores: Scores
    asks: Callable[[str, Example], bool] = lambda label, item: True

    def run(self, model: LanguageModel, work: Path, batch: int, minutes: float) -> list[dict[str, Any]]:
        """One row an item and method: id, method, its scores, tokens of its context, what was sent and forwarded.

        No batch is begun after so many minutes.
        """
        ends = time.monotonic() + 60 * minutes
        programs = {label: method.fit(self.task, model, 0) for label, method in self.methods.items()}
        of = {
            "task": self.task.fingerprint, "model": model.describe(), "batch": batch,
            "programs": {label: files.digest(program.to_dict()) for label, program in programs.items()},
        }  # fmt: skip
        journal = files.Journal(work / f"{self.name}.jsonl", of, what="of this measurement")
        rows = [row for rows in journal.rows for row in rows]
        done = {row["id"] for row in rows}
        for start in range(0, len(self.task.test), batch):
            items = [e for e in self.task.test[start : start + batch] if e.id not in done]
            if time.monotonic() > ends:
                break
            fresh = []
            for label, program in programs.items():
                own = [item for item in items if self.asks(label, item)]
                before, begun = model.usage.snapshot(), time.perf_counter()
                answers = program.answer(own, model)
                spent, seconds = model.usage.since(before), time.perf_counter() - begun
                for answer, item in zip(answers, own, strict=True):
                    assert answer.sources is not None
                    fresh.append({
                        "id": item.id, "method": label, "text": answer.text, **self.scores(answer, item),
                        "context": context_tokens(model, item, answer), "prompt_tokens": answer.prompt_tokens,
                        "shown": len(answer.sources.shown), "calls": answer.calls,
                        "forwarded": spent.forwarded_tokens / len(own), "seconds": seconds / len(own),
                    })  # fmt: skip
            if fresh:
                journal.append([fresh])
                rows += fresh
                click.echo(f"{self.name}: {len({r['id'] for r in rows})} of {len(self.task.test)} items", err=True)
        return rows


def context_tokens(model: LanguageModel, item: Example, answer: Answer) -> int:
    """Tokens of the documents that the last prompt showed."""
    assert answer.sources is not None
    every = texts(item)
    return sum(model.count_tokens([Prompt(text=every[i]) for i in answer.sources.shown]))


def column(
    rows: Sequence[Mapping[str, Any]], method: str, score: str, only: Sequence[str] | None = None
) -> list[float]:
    """A method's scores, by item."""
    own = {row["id"]: row[score] for row in rows if row["method"] == method}
    return [own[item] for item in sorted(own) if only is None or item in only]


def comparisons(
    rows: Sequence[Mapping[str, Any]], pairs: Sequence[tuple[str, str, str]], only: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """Paired comparisons (method, against, score), Holm over all of them."""
    found = []
    for method, against, score in pairs:
        mine, theirs = (column(rows, m, score, only) for m in (method, against))
        difference, interval, test = statistics.compare([mine], [theirs])
        found.append({
            "method": method, "against": against, "score": score, "items": len(mine), "difference": difference,
            "low": interval.low, "high": interval.high, "p": test.p, "test": test.kind,
        })  # fmt: skip
    for row, p in zip(found, statistics.holm([row["p"] for row in found]), strict=True):
        row["holm"] = p
    return found


def means(rows: Sequence[Mapping[str, Any]], scores: Sequence[str], counts: Sequence[str]) -> list[str]:
    """A table of means, one line a method: scores with their intervals in percent, counts as they are."""
    lines = [
        f"| method | items | {' | '.join([*scores, *counts])} |",
        f"|---|---:|{'---:|' * (len(scores) + len(counts))}",
    ]
    for method in dict.fromkeys(row["method"] for row in rows):
        cells = []
        for score in scores:
            values = column(rows, method, score)
            interval = statistics.interval_of([values])
            cells.append(f"{100 * np.mean(values):.1f} ({100 * interval.low:.0f} to {100 * interval.high:.0f})")
        cells += [f"{np.mean(column(rows, method, count)):,.0f}" for count in counts]
        lines.append(f"| {method} | {len(values)} | {' | '.join(cells)} |")
    return lines


def listed(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Comparisons as a table."""
    lines = [
        "| method | against | score | items | difference (95 %) | p | p (Holm) |",
        "|---|---|---|---:|---:|---:|---:|",
    ]
    for row in found:
        difference, low, high = (f"{100 * row[key]:+.1f}" for key in ("difference", "low", "high"))
        lines.append(
            f"| {row['method']} | {row['against']} | {row['score']} | {row['items']} | {difference} ({low} to {high}) "
            f"| {p_value(row['p'])} | {p_value(row['holm'])} |"
        )
    return lines


def write(stem: Path, title: str, about: Mapping[str, Any], data: Mapping[str, Any], body: Sequence[str]) -> None:
    """Results as JSON and Markdown."""
    head = {
        "command": command(), "date": datetime.date.today().isoformat(), "amplify": amplify.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}", "model": about,
    }  # fmt: skip
    stem.parent.mkdir(parents=True, exist_ok=True)
    stem.with_suffix(".json").write_text(json.dumps({**head, **data}, indent=1, default=str) + "\n")
    said = f"# {title}\n\n{head['date']}, {head['machine']}, {about['id']} ({about.get('dtype', '')}), amplify "
    stem.with_suffix(".md").write_text("\n".join([f"{said}{head['amplify']}, `{head['command']}`", "", *body]) + "\n")
    click.echo(f"written: {stem}.json, {stem}.md")


@click.group()
def main() -> None:
    """Measure what explanations do to answers from documents."""


def shared(function: Any) -> Any:
    """Options of every command."""
    for option in (
        click.option("--model", required=True),
        click.option("--dtype", default="auto", show_default=True),
        click.option("--passages", default=6, show_default=True, help="Of each question, the gold one among them."),
        click.option("--sentences", "length", default=0, show_default=True, help="Of each passage; 0 for all."),
        click.option("--items", default=40, show_default=True),
        click.option("--skip", default=0, show_default=True, help="Items left out at the beginning."),
        click.option("--budget", default=16, show_default=True, help="Distinct prompts of an attribution."),
        click.option("--minutes", default=1e6, help="No batch is begun after so many; what there is is written."),
        click.option("--batch", default=4, show_default=True, help="Items between two writes."),
        click.option("--work", type=click.Path(path_type=Path), default=Path("runs/bench_rag"), show_default=True),
        click.option("--out", type=click.Path(path_type=Path), default=None, help="Stem of the result files."),
    ):
        function = option(function)
    return function


def answer_scores(answer: Answer, item: Example) -> dict[str, float]:
    """F1 and whether an accepted answer stands in what was said."""
    said = answer.value or ""
    return {"F1": max(token_f1(said, a) for a in item.answers), "contains": says(said, item.answers)}


@main.command()
@shared
@click.option("--keep", default=2, show_default=True, help="Passages that stay.")
def pruning(
    model: str, dtype: str, passages: int, length: int, items: int, skip: int, budget: int, batch: int, minutes: float,
    work: Path, out: Path | None, keep: int,
) -> None:  # fmt: skip
    """Fewer passages: by Shapley values of the first answer, by chance, by BM25, by MiniLM."""
    loaded = amplify.load_task("nq_open")
    test = tuple(shorter(e, passages, length) for e in shuffled(loaded)[skip : skip + items])
    task = replace(loaded, name=f"nq_open, {passages} passages", test=test)
    methods = {
        "plain": make("rag"),
        "random": make("rag_rerank_random", k=keep),
        "bm25": make("rag", search="bm25", documents=keep),
        "minilm": make("rag", search="minilm", documents=keep),
        "shapley": make("rag_distil_shapley", k=keep, budget=budget),
        "suffice": make("rag_suffice_shapley", budget=budget),
    }
    settings = {"dtype": dtype} if model.startswith("transformers:") else {}
    with amplify.load_model(model, **settings) as opened, caching(opened, work / "replies") as who:
        rows = Bench("pruning", task, methods, answer_scores).run(who, work, batch, minutes)
        rows += as_many(task, rows, who, work, passages)
        about = who.describe()
    pairs = [("shapley", other, "F1") for other in ("plain", "random", "bm25", "minilm")]
    pairs += [("suffice", other, "F1") for other in ("plain", "random, as many", "bm25", "minilm")]
    found = comparisons(rows, pairs)
    every = list(dict.fromkeys(row["method"] for row in rows))
    saved = {m: 1 - sum(column(rows, m, "context")) / sum(column(rows, "plain", "context")) for m in every}
    cut_to = f" of {length} sentences" if length else ""
    body = [
        f"{passages} passages{cut_to} a question, {keep} stay; budget {budget}; `suffice`: the fewest of highest "
        "Shapley value with which the answer to all of them stays, half of them at most, else all, and `random, as "
        "many` keeps as many by chance. F1 and \"contains\" (an accepted answer stands in the answer) in percent with "
        "95 % intervals.", "",
        *means(rows, ("F1", "contains"), ("context", "shown")), "",
        "Context tokens saved: " + ", ".join(f"{m} {s:.0%}" for m, s in saved.items()) + ".", "",
        *listed(found), "",
        "`context`: tokens of the passages that the last prompt shows. Intervals of differences: bootstrap over items; "
        "tests: sign flips.",
    ]  # fmt: skip
    data = {
        "passages": passages, "sentences": length, "keep": keep, "budget": budget, "skipped": skip, "saved": saved,
        "comparisons": found, "rows": rows,
    }  # fmt: skip
    write(out or RESULTS / "rag_pruning", "Pruned contexts", about, data, body)


def as_many(
    task: Task, rows: Sequence[Mapping[str, Any]], model: LanguageModel, work: Path, passages: int
) -> list[dict[str, Any]]:
    """Rows of a control that shows each item as many passages, by chance, as "suffice" did."""
    shown = {row["id"]: row["shown"] for row in rows if row["method"] == "suffice"}
    found: list[dict[str, Any]] = []
    for count in sorted(set(shown.values())):
        own = replace(task, test=tuple(e for e in task.test if shown.get(e.id) == count))
        methods = {"random, as many": make("rag_rerank_random", k=count) if count < passages else make("rag")}
        found += Bench(f"random-{count}-of-{len(shown)}", own, methods, answer_scores).run(model, work, 4, 1e6)
    return found


def follows(answer: Answer, item: Example) -> dict[str, float]:
    """Whether the answer is what the passages say, and whether it is what they said before it was replaced."""
    person = item.fields["kind"] == "person"
    return {
        "follows": says(answer.value, item.answers, person),
        "before": says(answer.value, item.fields.get("before", ()), person),
    }


def from_memory(model: LanguageModel, items: Sequence[Example]) -> dict[str, str]:
    """What the model answers to each question without any passage."""
    asked = [f"Question: {item.text}\nAnswer with a short phrase.\n\nAnswer:" for item in items]
    prompts = [Prompt(messages=(Message("user", text),)) for text in asked]
    said = model.generate(prompts, Sampling(max_tokens=24, stop=("\n",)))
    return {item.id: completion.text for item, completion in zip(items, said, strict=True)}


@main.command()
@shared
@click.option("--bonus", default=2.0, show_default=True, help="Of InstaBoost.")
@click.option("--marked", default=2, show_default=True, help="Sentences that are emphasised.")
def conflicts(
    model: str, dtype: str, passages: int, length: int, items: int, skip: int, budget: int, batch: int, minutes: float,
    work: Path, out: Path | None, bonus: float, marked: int,
) -> None:  # fmt: skip
    """Passages whose answer was replaced: plain, the loop, and its control; and the same passages as they were."""
    loaded = amplify.load_task("nq_open")
    pairs: list[Example] = []
    for example in shuffled(loaded):
        short = shorter(example, passages, length)
        if changed := replaced(short, loaded.test):
            if skip > 0:
                skip -= 1
                continue
            same = {**short.fields, "kind": changed.fields["kind"]}
            pairs += [changed, replace(example, id=f"{example.id}{AS_IT_WAS}", text=f"{example.text} ", fields=same)]
        if len(pairs) == 2 * items:
            break
    task = replace(loaded, name=f"nq_open, answers replaced, {passages} passages", test=tuple(pairs))
    steering: dict[str, Any] = {"bonus": bonus, "sentences": marked}
    methods = {
        "plain": make("rag"),
        "loop": make("rag_loop", budget=budget, **steering),
        "random spans": make("rag_loop_random", **steering),
    }
    settings = {"dtype": dtype} if model.startswith("transformers:") else {}
    with amplify.load_model(model, **settings) as opened, caching(opened, work / "replies") as who:
        bench = Bench("conflicts", task, methods, follows, asked_of_changed)
        rows = bench.run(who, work, 2 * batch, minutes)
        about = who.describe()
        asked = {row["id"] for row in rows}
        own = from_memory(who, [item for item in pairs[1::2] if item.id in asked])
    known = [i.id for i in pairs[1::2] if i.id in own and says(own[i.id], i.answers, i.fields["kind"] == "person")]
    found, body = conflict_tables(rows, known, len(own))
    said = [
        f"{passages} passages{f' of {length} sentences' if length else ''} a question, budget {budget}, {marked} "
        f"sentences emphasised (InstaBoost, bonus {bonus:g}, all heads). `follows`: the answer holds what the passages "
        "say, `before`: what they said before it was replaced; percent with 95 % intervals. `forwarded`: tokens that "
        "went through the model for an answer; what an earlier method of the table has asked is not asked again.", "",
    ]  # fmt: skip
    data = {"passages": passages, "budget": budget, "bonus": bonus, "comparisons": found, "by_heart": own, "rows": rows}
    write(out or RESULTS / "rag_conflicts", "Passages that contradict what a model knows", about, data, [*said, *body])


def asked_of_changed(label: str, item: Example) -> bool:
    """The control answers replaced passages alone."""
    return label != "random spans" or not item.id.endswith(AS_IT_WAS)


def conflict_tables(
    rows: Sequence[Mapping[str, Any]], known: Sequence[str], asked: int
) -> tuple[dict[str, Any], list[str]]:
    """Comparisons, and the tables of both kinds of passages.

    Args:
        rows: of `Bench.run`.
        known: items that the model answers rightly without passages, of so many `asked`.
    """
    changed, same = ([r for r in rows if r["id"].endswith(AS_IT_WAS) is kept] for kept in (False, True))
    against = [("loop", other, "follows") for other in ("plain", "random spans")]
    found = {"replaced": comparisons(changed, against), "as they were": comparisons(same, against[:1])}
    if len(known) > 1:
        found["as they were, known by heart"] = comparisons(same, against[:1], known)
    body = ["## Answers replaced", "", *means(changed, ("follows", "before"), ("forwarded",)), ""]
    body += [*listed(found["replaced"]), "", "## Passages as they were", ""]
    body += [*means(same, ("follows",), ("forwarded",)), "", *listed(found["as they were"]), ""]
    body += [f"Without passages the model answers {len(known)} of {asked} questions rightly (known by heart).", ""]
    return found, body + listed(found.get("as they were, known by heart", []))


if __name__ == "__main__":
    try:
        main()
    except AmplifyError as error:
        raise SystemExit(f"bench_rag: {error}") from None

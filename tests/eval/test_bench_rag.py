"""The bench of pruned contexts and replaced answers: its rule, and its tables."""

from __future__ import annotations

import random
from typing import Any

import pytest

from amplify.types import Example


@pytest.fixture(scope="module")
def bench(script: Any) -> Any:
    return script("bench_rag")


def item(question: str, answer: str, *texts: str) -> Example:
    documents = [{"title": "", "text": text} for text in texts]
    return Example(question, question, answers=(answer,), fields={"documents": documents, "evidence": [0]})


def test_an_answer_is_replaced_by_another_of_its_kind_everywhere(bench) -> None:  # type: ignore[no-untyped-def]
    own = item("who sang it", "Bob Dylan", "Bob Dylan sang it. Dylan was 23.", "Trees are green.")
    pool = [own, item("who won", "Ann Lee", "Ann Lee won."), item("when was it", "1981", "It was 1981.")]
    found = bench.replaced(own, pool)
    assert found.answers == ("Ann Lee",)
    assert found.fields["documents"][0]["text"] == "Ann Lee sang it. Lee was 23."
    assert found.fields["before"] == ["Bob Dylan"]
    assert own.fields["documents"][0]["text"].startswith("Bob")
    assert bench.replaced(pool[2], pool) is None  # no other year
    assert (
        bench.replaced(item("who was Bob Dylan", "Bob Dylan", "Bob Dylan sang."), pool) is None
    )  # the question says it
    assert bench.replaced(item("who sang", "Al Bo", "Nobody."), pool) is None  # it stands in no passage
    kinds = {"1981": "year", "14": "number", "Ann Lee": "person", "a thing": ""}
    assert {a: bench.kind(item("who was it", a, a)) for a in kinds} == kinds
    assert bench.kind(item("where was it", "New York", "x")) == "place"


def test_an_answer_follows_what_it_holds(bench) -> None:  # type: ignore[no-untyped-def]
    assert bench.says("It was Ann Lee.", ["Ann Lee"]) == 1.0
    assert bench.says("Lee", ["Ann Lee"]) == 0.0
    assert bench.says("Lee", ["Ann Lee"], person=True) == 1.0
    assert bench.says(None, ["Ann Lee"]) == bench.says("x", []) == 0.0


def test_the_gold_passage_stays_in_its_order(bench) -> None:  # type: ignore[no-untyped-def]
    own = item("q", "a", "0", "1", "2", "3")
    own.fields["evidence"][:] = [2]  # type: ignore[index]
    found = bench.shorter(own, 2)
    assert [d["text"] for d in found.fields["documents"]] == ["0", "2"]
    assert found.fields["evidence"] == [1]


def test_passages_are_cut_around_the_answer(bench) -> None:  # type: ignore[no-untyped-def]
    text = "One is here. Two is there. Three is nowhere. Four is gone. Five is left."
    own = item("q", "nowhere", text, text)
    assert [d["text"] for d in bench.shorter(own, 2, 3).fields["documents"]] == [
        "Two is there. Three is nowhere. Four is gone.",
        "One is here. Two is there. Three is nowhere.",
    ]
    assert bench.cut({"text": text}, 2, ["left"])["text"] == "Four is gone. Five is left."
    assert bench.cut({"text": text}, 9)["text"] == text


def test_tables_say_what_the_rows_say(bench) -> None:  # type: ignore[no-untyped-def]
    chance, rows = random.Random(0), []
    for k in range(12):
        for ending in ("", " as it was"):
            for method in ("plain", "loop", "random spans"):
                follows = float(method == "loop" or bool(ending) or k < 3)
                rows.append({
                    "id": f"{k}{ending}", "method": method, "follows": follows, "before": 0.0,
                    "forwarded": chance.randint(100, 200),
                })  # fmt: skip
    found, body = bench.conflict_tables(rows, ["1 as it was", "2 as it was"], 12)
    replaced = found["replaced"][0]
    assert (replaced["against"], replaced["items"], replaced["difference"]) == ("plain", 12, 0.75)
    assert replaced["p"] == pytest.approx(2 / 2**9)  # exact McNemar: nine better, none worse
    assert replaced["holm"] == pytest.approx(2 * replaced["p"])
    assert found["as they were"][0]["difference"] == 0.0
    assert found["as they were, known by heart"][0]["items"] == 2
    assert any("| loop | 12 | 100.0" in line for line in body)
    assert any("2 of 12 questions" in line for line in body)

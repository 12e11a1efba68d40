"""The bench of citations: its answers are what it says they are, and each group of them is reported apart."""

import json
from pathlib import Path
from typing import Any

import pytest

from amplify.text import sentences


@pytest.fixture(scope="module")
def bench(script: Any) -> Any:
    return script("bench_citations")


def test_every_claim_is_one_sentence_and_cites_a_document_of_its_question(bench: Any) -> None:
    items = bench.claims(1000)
    assert len({item["id"] for item in items}) == len(items)
    assert [sum(item["group"] == g for item in items) for g in (bench.SEEN, bench.UNSEEN)] == [
        30,
        15,
    ]
    for item in items:
        assert len(sentences(bench.answer_of(item))) == len(item["claims"])
        ids = [d["id"] for d in item["documents"]]
        assert len(set(ids)) == 5
        assert all(set(claim["cites"]) <= set(ids) and claim["cites"] for claim in item["claims"])


def test_the_questions_that_the_rule_has_not_seen_are_others(bench: Any) -> None:
    items = bench.claims(1000)
    questions = {item["question"] for item in items}
    texts = [d["text"] for item in items for d in item["documents"]]
    assert len(questions) == len(items)
    assert len(set(texts)) == len(texts)


def rows_for(items: list[dict[str, Any]], right: bool) -> dict[str, Any]:
    """Rows in which every way finds the gold document of each claim, or the one behind it."""
    found = {}
    for item in items:
        places = [[d["id"] for d in item["documents"]].index(claim["cites"][0]) for claim in item["claims"]]
        cited = [[p if right else (p + 1) % 5] for p in places]
        scores = [[float(k in own) for k in range(5)] for own in cited]
        found[item["id"]] = {
            "amplify": {"scores": scores, "cited": cited},
            "context-cite": {"scores": scores},
            "similarity": {"scores": scores},
        }
    return found


def test_groups_are_reported_apart(bench: Any, tmp_path: Path) -> None:
    items = bench.claims(1000)
    seen, unseen = ([i for i in items if i["group"] == g] for g in (bench.SEEN, bench.UNSEEN))
    rows = rows_for(seen, right=False) | rows_for(unseen, right=True)
    bench.write("claims", {"id": "m"}, items, rows, tmp_path / "found")
    data = json.loads((tmp_path / "found.json").read_text())
    precisions = [data["groups"][g]["amplify"]["precision"] for g in (bench.SEEN, bench.UNSEEN)]
    assert precisions == [0.0, 1.0]
    text = (tmp_path / "found.md").read_text()
    assert f"## 30 {bench.SEEN}" in text
    assert f"## 15 {bench.UNSEEN}" in text

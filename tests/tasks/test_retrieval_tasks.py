"""Loaders of the published layouts, on small files in those layouts."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from amplify.errors import DataError, InputError
from amplify.metrics import contains
from amplify.tasks import load_task

FACTS = [("Ada", "Ada is a singer.", "Lyon"), ("Bo", "Bo is a boxer.", "Oslo"), ("Cy", "Cy is a cook.", "Rome")]


def hotpot(columns: bool) -> dict[str, Any]:
    paragraphs = [["Lyon", ["Lyon is old. ", "It lies in France."]], ["Ada", ["Ada sings. ", "Ada lives in Lyon."]]]
    facts = [["Ada", 1], ["Lyon", 1], ["Lyon", 7]]  # the last names a sentence that is not there
    row: dict[str, Any] = {"question": "In which country does Ada live?", "answer": "France", "type": "bridge"}
    if columns:
        row["context"] = {"title": [t for t, _ in paragraphs], "sentences": [s for _, s in paragraphs]}
        row["supporting_facts"] = {"title": [t for t, _ in facts], "sent_id": [s for _, s in facts]}
        return row
    return {**row, "_id": "5a8b", "context": paragraphs, "supporting_facts": facts}


@pytest.mark.parametrize("columns", [True, False])
def test_both_layouts_of_hotpotqa(tmp_path: Path, columns: bool) -> None:
    (tmp_path / "hotpotqa").mkdir()
    (tmp_path / "hotpotqa" / "dev_distractor_50.json").write_text(json.dumps([hotpot(columns)]))
    [example] = load_task("hotpotqa", data=tmp_path).test
    assert example.text == "In which country does Ada live?"
    assert example.answers == ("France",)
    assert example.fields["documents"][1] == {
        "title": "Ada",
        "text": "Ada sings. Ada lives in Lyon.",
        "sentences": ["Ada sings. ", "Ada lives in Lyon."],
    }
    assert example.fields["evidence"] == [0, 1]
    assert example.fields["supporting"] == [[1, 1], [0, 1]]
    if not columns:
        assert example.id == "5a8b"


def test_a_supporting_fact_needs_its_paragraph(tmp_path: Path) -> None:
    row = hotpot(True)
    row["supporting_facts"]["title"][0] = "Eve"
    (tmp_path / "dev_distractor_50.json").write_text(json.dumps([row]))
    with pytest.raises(InputError, match="row 1: the supporting fact 'Eve' has no paragraph"):
        load_task("hotpotqa", data=tmp_path)


def oracle_row(i: int) -> dict[str, Any]:
    answer = f"place{i}"
    text = f"Person{i} was born in {answer}" + (" and knows place0" if i == 1 else "") + f", says book{i}."
    ctx = {"title": f"Person{i}", "text": text, "hasanswer": True, "isgold": True}
    return {"question": f"where was person{i} born", "answers": [answer], "ctxs": [ctx], "nq_annotated_gold": {}}


def oracle(folder: Path, rows: list[dict[str, Any]]) -> Path:
    (folder / "nq_open").mkdir(parents=True, exist_ok=True)
    with gzip.open(folder / "nq_open" / "nq-open-oracle.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return folder


@pytest.mark.parametrize("name", ["nq_open", "nq_open_hard"])
def test_distractors_are_made_and_never_hold_the_answer(tmp_path: Path, name: str) -> None:
    rows = [oracle_row(i) for i in range(30)]
    first = load_task(name, data=oracle(tmp_path, rows)).test
    assert len(first) == 30
    places = []
    for example in first:
        documents = example.fields["documents"]
        [gold] = example.fields["evidence"]
        places.append(gold)
        assert len({d["text"] for d in documents}) == 10
        assert [contains(d["text"], example.answers[0]) for d in documents] == [float(i == gold) for i in range(10)]
    assert len(set(places)) > 3
    # what an item holds does not depend on the order of the rows
    again = load_task(name, data=oracle(tmp_path, rows[::-1])).test
    assert {e.id: e for e in first} == {e.id: e for e in again}


def test_gold_at_a_place_and_too_few_passages(tmp_path: Path) -> None:
    oracle(tmp_path, [oracle_row(i) for i in range(12)])
    task = tmp_path / "mine.yaml"
    head = "format: nq\nmetric: qa\nfiles: {test: nq_open/nq-open-oracle.jsonl.gz}\ndocuments: "
    task.write_text(head + "{total: 5, gold_at: 2}")
    assert [e.fields["evidence"] for e in load_task(task).test] == [[2]] * 12
    task.write_text(head + "{total: 50}")
    with pytest.raises(InputError, match=r"only 1[12] documents can be had for .* lower documents.total=50"):
        load_task(task)
    task.write_text(head + "{total: 5, gold_at: 5}")
    with pytest.raises(InputError, match="gold_at is random or a place from 0 to 4"):
        load_task(task)
    task.write_text(head + "{totl: 5}")
    with pytest.raises(InputError, match=r"unknown key 'totl'\. Did you mean 'total'"):
        load_task(task)


def test_lost_in_the_middle_files_are_taken_as_they_are(tmp_path: Path) -> None:
    ctxs = [{"id": str(i), "title": f"T{i}", "text": f"text {i}", "isgold": i == 4, "score": "1"} for i in range(10)]
    row = {"question": "who", "answers": ["text 4"], "ctxs": ctxs}
    with gzip.open(tmp_path / "nq-open-10_total_documents_gold_at_4.jsonl.gz", "wt") as file:
        file.write(json.dumps(row) + "\n")
    [example] = load_task("lost_in_the_middle/10_middle", data=tmp_path).test
    assert [d["title"] for d in example.fields["documents"]] == [f"T{i}" for i in range(10)]
    assert example.fields["evidence"] == [4]


def test_miracl_has_evidence_and_no_answers(tmp_path: Path) -> None:
    passages = [{"docid": f"{i}#0", "title": f"T{i}", "text": f"Text {i}"} for i in range(6)]
    row = {"query_id": "q1", "query": "Wer?", "positive_passages": passages[:2], "negative_passages": passages[2:]}
    (tmp_path / "de.dev.jsonl").write_text(json.dumps(row) + "\n")
    task = load_task("miracl/de", data=tmp_path)
    [example] = task.test
    titles = [example.fields["documents"][i]["title"] for i in example.fields["evidence"]]
    assert sorted(titles) == ["T0", "T1"]
    assert example.fields["evidence"] != [0, 1]  # not in the published order, which gives the answer away
    assert (example.answers, example.label, task.metric) == ((), None, "evidence")
    row["positive_passages"] = []
    (tmp_path / "de.dev.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(InputError, match="no relevant passage"):
        load_task("miracl/de", data=tmp_path)


def test_a_cut_off_archive_is_one_clear_error(tmp_path: Path) -> None:
    oracle(tmp_path, [oracle_row(i) for i in range(12)])
    path = tmp_path / "nq_open" / "nq-open-oracle.jsonl.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="cannot read"):
        load_task("nq_open", data=tmp_path)


def test_the_real_files(data: Path) -> None:
    task = load_task("hotpotqa", data=data)
    assert len(task.test) == 50
    # published: 10 paragraphs an item, in a few items fewer
    assert [len(e.fields["documents"]) for e in task.test].count(10) >= 45
    for example in task.test:
        assert len(example.fields["evidence"]) == 2
        assert all(example.fields["documents"][d]["sentences"][s].strip() for d, s in example.fields["supporting"])
    questions = load_task("nq_open", data=data, limit=200).test
    assert all(len(e.fields["documents"]) == 10 for e in questions)

"""Tasks of published data: their layouts, and the files themselves where they are at hand."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from task_files import BBH, write_jsonl

from amplify.errors import DataError, InputError
from amplify.tasks import Task, list_tasks, load_task
from amplify.tasks.rows import CANARY, bbh_example
from amplify.tasks.splits import content_hash
from amplify.types import Demonstration


def test_arc_layout(tmp_path: Path, no_data: None) -> None:
    def row(i: int, names: str = "ABCD") -> dict[str, Any]:
        options = [{"text": f"option {k} of {i}", "label": k} for k in names]
        return {
            "id": f"Q{i}",
            "question": {"stem": f"Why {i}?", "choices": options},
            "answerKey": names[i % len(names)],
        }

    folder = tmp_path / "ARC-V1-Feb2018-2" / "ARC-Challenge"
    write_jsonl(folder / "ARC-Challenge-Train.jsonl", [row(i) for i in range(6)])
    write_jsonl(folder / "ARC-Challenge-Dev.jsonl", [row(i) for i in range(10, 14)])
    write_jsonl(folder / "ARC-Challenge-Test.jsonl", [row(i, "1234") for i in range(20, 25)])
    task = load_task("arc_challenge", data=tmp_path)
    example = next(e for e in task.test if e.id == "Q22")
    assert example.choices == ("A", "B", "C", "D")  # some rows are published with 1 to 4
    assert example.label == "C"
    assert example.options[2] == "option 3 of 22"
    assert load_task("arc_challenge", data=folder).fingerprint == task.fingerprint
    assert not next(i for i in list_tasks() if i.name == "arc_challenge").available
    assert next(i for i in list_tasks(tmp_path) if i.name == "arc_challenge").available


def test_social_iqa_layout(tmp_path: Path, no_data: None) -> None:
    folder = tmp_path / "socialiqa-train-dev"
    for name, n in (("train", 2000), ("dev", 5)):
        body = [
            {"context": f"{name} {i}.", "question": "Why?", "answerA": "a", "answerB": "b", "answerC": "c"}
            for i in range(n)
        ]
        write_jsonl(folder / f"{name}.jsonl", body)
        (folder / f"{name}-labels.lst").write_text("".join(f"{1 + i % 3}\n" for i in range(n)))
    task = load_task("social_iqa", data=tmp_path)
    assert len(task.validation) == 1954
    example = next(e for e in task.test if e.text == "dev 1. Why?")
    assert (example.label, example.options) == ("B", ("a", "b", "c"))
    (folder / "dev-labels.lst").write_text("1\n2\n")
    with pytest.raises(InputError, match=r"5 rows but .* has 2 labels"):
        load_task("social_iqa", data=tmp_path)


def test_sst2_layout_drops_the_overlap_outside_test(tmp_path: Path, no_data: None) -> None:
    (tmp_path / "SST-2").mkdir()
    train = "".join(f"a fine film {i}\t{i % 2}\n" for i in range(1100))
    (tmp_path / "SST-2" / "train.tsv").write_text("sentence\tlabel\n" + train)
    dev = "".join(f"dev {i}\t{i % 2}\n" for i in range(30))
    (tmp_path / "SST-2" / "dev.tsv").write_text("sentence\tlabel\n" + dev + "a fine film 7\t1\n")
    task = load_task("sst2", data=tmp_path)
    assert [len(s) for s in (task.train, task.validation, task.test)] == [99, 1000, 31]
    assert task.fields["dropped"] == {"copy of a text in a later split": 1}
    assert task.revision.startswith("sha256:")


def test_yelp_in_the_published_archive(tmp_path: Path, no_data: None) -> None:
    folder = tmp_path / "sentiment labelled sentences"
    folder.mkdir()
    body = "".join(f'"Quoted" start {i}  \t{i % 2}\n' for i in range(100))
    (folder / "yelp_labelled.txt").write_text(body)
    task = load_task("yelp_sentiment", data=tmp_path)
    assert task.test[0].text.startswith('"Quoted" start')
    assert set(task.labels) == {"negative", "positive"}


def test_own_multiple_choice(tmp_path: Path) -> None:
    body = [{"q": f"question {i}?", "o": ["red", "green", f"blue {i}"], "gold": "green"} for i in range(50)]
    write_jsonl(tmp_path / "own.jsonl", body)
    spec = "files: {all: own.jsonl}\nfields: {text: q, choices: o, label: gold}\nsplits: {validation: 10, test: 20}\n"
    (tmp_path / "own.yaml").write_text(spec)
    task = load_task(tmp_path / "own.yaml")
    assert [len(s) for s in (task.train, task.validation, task.test)] == [20, 10, 20]
    assert {e.label for e in task.test} == {"B"}  # given by its text
    write_jsonl(tmp_path / "own.jsonl", [{**row, "gold": 2} for row in body])
    assert {e.label for e in load_task(tmp_path / "own.yaml").test} == {"C"}  # given by its number, from 0
    write_jsonl(tmp_path / "own.jsonl", [{**row, "o": ["1", "0"], "gold": "1"} for row in body])
    with pytest.raises(InputError, match="fits more than one option: A, B"):
        load_task(tmp_path / "own.yaml")
    write_jsonl(tmp_path / "own.jsonl", [{**row, "gold": "violet"} for row in body])
    with pytest.raises(InputError, match="the label 'violet' is none of A, B, C"):
        load_task(tmp_path / "own.yaml")


def test_bbh_inputs_are_taken_apart() -> None:
    example = bbh_example("Which?\nOptions:\n(A) first one\n(B) second: (C) \n", "(B)", "x")
    assert (example.text, example.label, example.choices) == ("Which?", "B", ("A", "B"))
    assert example.options == ("first one", "second: (C)")
    fixed = bbh_example("Is it?\nOptions:\n- valid \n- invalid", "invalid", "x")
    assert (fixed.text, fixed.label, fixed.choices) == ("Is it?", "invalid", ())
    assert bbh_example("not True is", "False", "x").text == "not True is"
    with pytest.raises(InputError, match="canary"):
        bbh_example(f"a {CANARY} b", "x", "row 3")


def bbh_folder(root: Path, n: int = 178) -> Path:
    body = [
        {"input": f"Which statement is sarcastic?\nOptions:\n(A) x{i}\n(B) y{i}", "target": f"({'AB'[i % 2]})"}
        for i in range(n)
    ]
    (root / "bbh").mkdir()
    (root / "bbh" / "snarks.json").write_text(json.dumps({"canary": CANARY, "examples": body}))
    return root


def test_exemplars_never_stand_in_the_test_split(tmp_path: Path, no_data: None) -> None:
    plain = load_task("bbh/snarks", data=bbh_folder(tmp_path) / "bbh")
    assert len(plain.test) == 36
    assert plain.cot == ()
    inside = plain.test[:3]  # worst case: exemplars that would be test items
    shots = "".join(
        f"\n\nQ: {e.text}\nOptions:\n(A) {e.options[0]}\n(B) {e.options[1]}\nA: Let's think step by step.\n"
        f"Because.\nTherefore. So the answer is ({e.label})."
        for e in inside
    )
    (tmp_path / "bbh_cot_prompts").mkdir()
    (tmp_path / "bbh_cot_prompts" / "snarks.txt").write_text(f"{CANARY}\n-----\nDescription.{shots}\n")
    task = load_task("bbh/snarks", data=tmp_path / "bbh")
    assert len(task.test) == 36
    assert [shot.example for shot in task.cot] == list(inside)
    assert task.cot[0].rationale is not None
    assert task.cot[0].rationale.text == "Because.\nTherefore."
    assert not {content_hash(e) for e in inside} & {content_hash(e) for e in task.test}
    with pytest.raises(InputError, match=r"exemplar .* is in the test split"):
        Task("t", "", (), (), plain.test, cot=(Demonstration(inside[0]),))


def test_another_version_of_the_data_is_noticed(tmp_path: Path, no_data: None) -> None:
    source = bbh_folder(tmp_path) / "bbh" / "snarks.json"
    shutil.copy(source, source.with_name("movie_recommendation.json"))
    with pytest.raises(DataError, match="0 rows have a gold answer that is no choice, 1 are known"):
        load_task("bbh/movie_recommendation", data=tmp_path)
    content = json.loads(source.read_text())
    content["examples"][5]["target"] = "(C)"
    source.write_text(json.dumps(content))
    with pytest.raises(InputError, match="the label 'C' is none of A, B"):
        load_task("bbh/snarks", data=tmp_path)


@pytest.mark.parametrize("name", BBH)
def test_bbh_from_the_published_files(data: Path, name: str) -> None:
    task = load_task(f"bbh/{name}")
    total = len(task.train) + len(task.validation) + len(task.test)
    published = json.loads((data / "bbh" / f"{name}.json").read_text())["examples"]
    assert total == len(published) - sum(task.fields["dropped"].values())
    assert len(task.test) == {"snarks": 36, "causal_judgement": 38}.get(name, round(0.2 * total))
    assert len(task.cot) == 3
    for example in (*task.train, *task.validation, *task.test, *(shot.example for shot in task.cot)):
        assert "Options:" not in example.text
        assert CANARY not in example.text
        assert example.label in task.labels_of(example) or example.answers == (example.label,)
    assert load_task(f"bbh/{name}", data=data / "bbh").fingerprint == task.fingerprint
    for shot in task.cot:
        assert shot.rationale is not None
        assert "answer is" not in shot.rationale.text[-40:]


def test_commonsenseqa_and_sentiment_from_the_published_files(data: Path) -> None:
    task = load_task("commonsenseqa")
    assert [len(s) for s in (task.train, task.validation, task.test)] == [8520, 1221, 1221]
    assert all(e.choices == ("A", "B", "C", "D", "E") for e in task.test)
    for name in ("amazon_sentiment", "imdb_sentiment"):
        task = load_task(name, data=data / "sentiment")
        shares = Counter(e.label for e in task.test)
        assert abs(shares["positive"] - shares["negative"]) < 10

"""Tasks: a file of the user's own, names, YAML."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from task_files import BBH, write_csv, write_jsonl

from amplify import resources
from amplify.errors import DataError, InputError, UnknownNameError
from amplify.tasks import Task, iter_rows, list_tasks, load_task, read_rows
from amplify.tasks.rows import CANARY, rows
from amplify.tasks.spec import shipped_specs
from amplify.types import Example


def reviews(tmp_path: Path, n: int = 100) -> Path:
    body = [[f"review number {i}, {'fine' if i % 2 else 'poor'}", str(1 + i % 5), f"shop {i % 3}"] for i in range(n)]
    return write_csv(tmp_path / "my_reviews.csv", ["review", "stars", "shop"], body)


def ids(task: Task) -> list[list[str]]:
    return [[e.id for e in split] for split in (task.train, task.validation, task.test)]


def test_a_csv_becomes_a_task(tmp_path: Path) -> None:
    task = load_task(reviews(tmp_path), text="review", label="stars")
    assert task.name == "my_reviews"
    assert task.labels == ("1", "2", "3", "4", "5")
    assert task.input_name == "Review"
    assert task.instruction == "Classify the review as 1, 2, 3, 4 or 5."
    assert [len(s) for s in (task.train, task.validation, task.test)] == [40, 20, 40]
    assert Counter(e.label for e in task.test) == dict.fromkeys("12345", 8)  # every label gives its share
    assert task.test[0].fields["shop"].startswith("shop")
    assert task.labels_of(task.test[0]) == task.labels
    assert task.test[0].answers == ()


def test_splits_follow_content_not_order(tmp_path: Path) -> None:
    path = reviews(tmp_path)
    first = load_task(path, text="review", label="stars")
    body = list(rows(path))
    random.Random(3).shuffle(body)
    write_csv(path, list(body[0]), [list(row.values()) for row in body])
    again = load_task(path, text="review", label="stars")
    assert ids(again) == ids(first)
    assert again.fingerprint == first.fingerprint
    other = load_task(path, text="review", label="stars", seed=1)
    assert ids(other) != ids(first)
    assert other.fingerprint != first.fingerprint


@pytest.mark.parametrize("ending", ["jsonl", "json", "tsv"])
def test_other_file_types_give_the_same_task(tmp_path: Path, ending: str) -> None:
    path = reviews(tmp_path)
    body = list(rows(path))
    other = tmp_path / f"my_reviews.{ending}"
    if ending == "jsonl":
        write_jsonl(other, body)
    elif ending == "json":
        other.write_text(json.dumps(body))
    else:
        other.write_text("\n".join("\t".join(r) for r in [list(body[0]), *(list(b.values()) for b in body)]) + "\n")
    want = load_task(path, text="review", label="stars")
    assert load_task(other, text="review", label="stars").fingerprint == want.fingerprint


def test_a_split_column_is_kept(tmp_path: Path) -> None:
    body = [[f"text {i}", "ab"[i % 2], ["train", "dev", "test"][i % 3]] for i in range(60)]
    path = write_csv(tmp_path / "own.csv", ["text", "label", "split"], body)
    task = load_task(path, text="text", label="label")
    assert {e.text for e in task.validation} == {row[0] for row in body if row[2] == "dev"}
    body[4][0], body[4][1] = body[0][0], body[0][1]
    write_csv(path, ["text", "label", "split"], body)
    with pytest.raises(InputError, match="a text belongs to one split only"):
        load_task(path, text="text", label="label")


def test_a_split_column_counts_in_every_file(tmp_path: Path) -> None:
    names = ["train", "dev", "test"]
    for part in range(2):
        body = [[f"text {part} {i}", "ab"[i % 2], names[i % 3]] for i in range(30)]
        write_csv(tmp_path / f"part{part}.csv", ["text", "label", "split"], body)
    (tmp_path / "own.yaml").write_text(
        "files: {all: part0.csv, train: part1.csv}\nlabels: [a, b]\nfields: {text: text, label: label, split: split}\n"
    )
    task = load_task(tmp_path / "own.yaml")
    for name, pool in zip(names, (task.train, task.validation, task.test), strict=True):
        wanted = {f"text {part} {i}" for part in range(2) for i in range(30) if names[i % 3] == name}
        assert {e.text for e in pool} == wanted


@pytest.mark.parametrize("hub_split", ["train", "everything"])
def test_a_split_column_of_a_datasets_id_is_kept(monkeypatch: pytest.MonkeyPatch, hub_split: str) -> None:
    import datasets

    names = ["train", "dev", "test"]
    body = [{"review": f"text {i}", "stars": "ab"[i % 2], "fold": names[i % 3]} for i in range(60)]
    there = datasets.DatasetDict(
        {hub_split: datasets.Dataset.from_list(body[:40]), "more": datasets.Dataset.from_list(body[40:])}
    )
    monkeypatch.setattr(datasets, "load_dataset", lambda *given, **options: there)
    task = load_task("org/reviews", text="review", label="stars", split="fold")
    for name, pool in zip(names, (task.train, task.validation, task.test), strict=True):
        assert {e.text for e in pool} == {row["review"] for row in body if row["fold"] == name}
    with pytest.raises(InputError, match="no column 'fald'"):
        load_task("org/reviews", text="review", label="stars", split="fald")


def test_copies_are_kept_once_and_contradictions_left_out(tmp_path: Path) -> None:
    body = [[f"text {i}", "ab"[i % 2]] for i in range(60)]
    body += [["Text  1", "b"], ["text 2", "b"]]  # a copy of row 1; row 2 is labelled a
    task = load_task(write_csv(tmp_path / "own.csv", ["t", "l"], body), text="t", label="l")
    assert task.fields["dropped"] == {"copy of the same text": 1, "same text with different labels": 2}
    assert len(task.train) + len(task.validation) + len(task.test) == 59


@pytest.mark.parametrize(
    ("header", "body", "options", "message"),
    [
        (["review", "stars"], [["a", "1"]], {"text": "reviw"}, "no column 'reviw'; there are: review, stars"),
        (["review", "stars"], [], {}, "has no rows"),
        (["review", "stars"], [[f"r{i}", str(i % 2)] for i in range(9)], {}, "9 usable rows are too few"),
        (["review", "stars"], [[f"r{i}", "1"] for i in range(50)], {}, "one value only"),
        (["review", "stars"], [[f"r{i}", f"free text {i}"] for i in range(99)], {}, "99 different values"),
        (["review", "stars"], [[f"r{i}", str(i % 2)] for i in range(50)], {"labels": ["0", "2"]}, "is none of 0, 2"),
        (["review", "stars"], [[f"r{i}", "12"[i > 48]] for i in range(50)], {}, r"2 \(1\) has too few rows"),
        (
            ["review", "stars"],
            [[f"r{i}", f"r{i}"] for i in range(20)],
            {},
            "r12 .1. and 15 more labels has too few rows",
        ),
        (["review;stars"], [[f"r{i};{i % 2}"] for i in range(20)], {}, "separated by ';': save it with commas"),
        (["review", "stars"], [["", "1"]], {}, "row 1: the text is empty"),
        (["review", "stars"], [["r", ""]], {}, "row 1: the label is empty"),
        (["review", "stars"], [["r", "1", "x"]], {}, "line 2: the row has another number of cells"),
        (["review", "stars", "n"], [[f"r{i}", str(i % 2), "7"] for i in range(50)], {"id": "n"}, "id is used twice"),
        (["review", "stars", "s"], [["r", "1", "exam"]], {"split": "s"}, "'exam' is none of train"),
        (["review", "stars"], [[f"see {CANARY} 26b5", "1"]], {}, "canary"),
    ],
)
def test_a_bad_file_is_one_clear_error(
    tmp_path: Path, header: list[str], body: list[list[str]], options: dict[str, Any], message: str
) -> None:
    path = write_csv(tmp_path / "own.csv", header, body)
    with pytest.raises(InputError, match=message):
        load_task(path, **{"text": "review", "label": "stars", **options})


def test_other_bad_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file"):
        load_task(tmp_path / "absent.csv", text="a", label="b")
    path = reviews(tmp_path)
    with pytest.raises(InputError, match="say which column is the label; there are: review, stars, shop"):
        load_task(path, text="review")
    path.write_bytes("text,label\ncafé,1\n".encode("latin-1"))
    with pytest.raises(DataError, match="UTF-8"):
        load_task(path, text="text", label="label")
    path.write_text('text,label\n"never closed,1\nnext,0\n')
    with pytest.raises(InputError, match="check its quotes"):
        load_task(path, text="text", label="label")
    path.write_text("text,text,label\na,b,1\n")
    with pytest.raises(InputError, match="the header has text twice"):
        load_task(path, text="text", label="label")
    (tmp_path / "bad.jsonl").write_text('{"text": "a", "label": "b"}\nnonsense\n')
    with pytest.raises(InputError, match="line 2 is not JSON"):
        load_task(tmp_path / "bad.jsonl", text="text", label="label")


def test_unlabelled_rows_stream(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "new.csv", ["message", "who"], [["hello", "x"], ["hello", "y"]])
    assert read_rows(path, text="message") == [
        Example("row-1", "hello", fields={"who": "x"}),
        Example("row-2", "hello", fields={"who": "y"}),
    ]
    path.write_text(path.read_text() + ",z\n")
    stream = iter_rows(path, text="message")
    assert [next(stream).id, next(stream).id] == ["row-1", "row-2"]
    with pytest.raises(InputError, match="row 3: the text is empty"):
        next(stream)
    with pytest.raises(InputError, match="no column 'mesage'"):
        read_rows(path, text="mesage")
    with pytest.raises(InputError, match="'x' is used twice"):
        read_rows(write_csv(path, ["t", "i"], [["a", "x"], ["b", "x"]]), text="t", id="i")


# names and YAML


def test_every_task_is_listed(no_data: None) -> None:
    listed = {info.name: info for info in list_tasks()}
    names = {f"bbh/{name}" for name in BBH} | {
        *("commonsenseqa", "coin_flip", "coin_flip_ood", "last_letters", "last_letters_ood", "amazon_sentiment"),
        *("imdb_sentiment", "yelp_sentiment", "sst2", "arc_challenge", "social_iqa", "support_tickets"),
        *("json_formatting", "pronouns", "over_refusal", "bias_bios"),
        *(f"{name}/{kind}" for name in ("counterfact", "counterfact_known") for kind in ("efficacy", "paraphrase")),
    }
    assert names <= set(listed)
    assert all(info.description for info in listed.values())
    assert {name for name in names if listed[name].available} == {
        *("coin_flip", "coin_flip_ood", "last_letters", "last_letters_ood", "support_tickets"),
        *("json_formatting", "pronouns", "over_refusal"),
    }
    for spec in shipped_specs().values():
        assert spec.instruction, spec.name
        assert spec.licence, spec.name
        assert spec.citation, spec.name
        own = ("support_tickets", "json_formatting", "pronouns", "over_refusal")
        assert spec.generate or spec.name in own or (spec.files and spec.get), spec.name


def test_unknown_names_suggest(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'bbh/snarks'"):
        load_task("bbh/snark")
    with pytest.raises(InputError, match="has its own field map"):
        load_task("coin_flip", text="question")
    with pytest.raises(InputError, match="limit is"):
        load_task("coin_flip", limit=0)
    (tmp_path / "own.yaml").write_text("instruction: x\nlables: [a]\n")
    with pytest.raises(InputError, match=r"unknown key 'lables'\. Did you mean 'labels'"):
        load_task(tmp_path / "own.yaml")
    (tmp_path / "own.yaml").write_text("labels: [Yes, No]\nfiles: {all: a.csv}\n")
    with pytest.raises(InputError, match="put quotes around"):
        load_task(tmp_path / "own.yaml")
    (tmp_path / "own.yaml").write_text("files: {all: a.csv}\nfields: {txt: a}\n")
    with pytest.raises(InputError, match=r"unknown key 'txt'\. Did you mean 'text'"):
        load_task(tmp_path / "own.yaml")
    (tmp_path / "own.yaml").write_text("labels: [a, b]\n")
    with pytest.raises(InputError, match="files, hub or generate"):
        load_task(tmp_path / "own.yaml")
    (tmp_path / "own.yaml").write_text("a: [1\n")
    with pytest.raises(InputError, match="not readable YAML"):
        load_task(tmp_path / "own.yaml")


def test_the_readme_example_works(tmp_path: Path) -> None:
    readme = (resources.content("tasks") / "README.md").read_text(encoding="utf-8")
    example = readme.split("```yaml\n")[1].split("```")[0]
    assert len(example.splitlines()) <= 15
    (tmp_path / "reviews.yaml").write_text(example)
    (tmp_path / "data").mkdir()
    write_csv(tmp_path / "data" / "reviews.csv", ["review", "stars"], [[f"r {i}", "15"[i % 2]] for i in range(50)])
    task = load_task(tmp_path / "reviews.yaml")
    assert task.labels == ("bad", "good")
    assert len(task.test) == 20
    assert load_task(tmp_path / "reviews.yaml", limit=7).test == task.test[:7]


def test_no_data_says_where_to_get_it(no_data: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import datasets

    def unreachable(*args: Any, **options: Any) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(
        DataError, match=r"needs SST-2/train.tsv and SST-2/dev.tsv.*AMPLIFY_DATA.*stanfordnlp/sst2.*Unpack"
    ):
        load_task("sst2")
    with pytest.raises(DataError, match="there is no data folder"):
        load_task("sst2", data=tmp_path / "absent")


def test_a_datasets_id_with_a_field_map(tmp_path: Path) -> None:
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"sentence": Value("string"), "y": ClassLabel(names=["negative", "positive"])})
    for split, n in (("train", 60), ("test", 30)):
        content = {"sentence": [f"{split} {i}" for i in range(n)], "y": [i % 2 for i in range(n)]}
        Dataset.from_dict(content, features=features).to_parquet(tmp_path / f"{split}.parquet")
    task = load_task(str(tmp_path), text="sentence", label="y")
    assert task.labels == ("negative", "positive")
    assert [len(s) for s in (task.train, task.validation, task.test)] == [60, 0, 30]
    assert next(e for e in task.test if e.text == "test 3").label == "positive"

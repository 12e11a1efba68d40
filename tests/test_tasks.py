from __future__ import annotations

import csv
import json
import random
import shutil
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from amplify import resources
from amplify.errors import DataError, InputError, UnknownNameError
from amplify.generated_tasks import FIRST_NAMES, coin_flip, last_letters
from amplify.task_rows import CANARY, bbh_example, rows
from amplify.task_spec import read_specs, shipped_specs
from amplify.task_splits import content_hash
from amplify.tasks import Task, iter_rows, list_tasks, load_task, read_rows
from amplify.values import Demonstration, Example

BBH_NAMES = """boolean_expressions causal_judgement date_understanding disambiguation_qa dyck_languages formal_fallacies
geometric_shapes hyperbaton logical_deduction_five_objects logical_deduction_seven_objects
logical_deduction_three_objects movie_recommendation multistep_arithmetic_two navigate object_counting
penguins_in_a_table reasoning_about_colored_objects ruin_names salient_translation_error_detection snarks
sports_understanding temporal_sequences tracking_shuffled_objects_five_objects
tracking_shuffled_objects_seven_objects tracking_shuffled_objects_three_objects web_of_lies word_sorting"""

BBH = BBH_NAMES.split()


@pytest.fixture
def no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AMPLIFY_DATA", raising=False)


def write_csv(path: Path, header: list[str], body: list[list[str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *body])
    return path


def write_jsonl(path: Path, body: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in body), encoding="utf-8")
    return path


def reviews(tmp_path: Path, n: int = 100) -> Path:
    body = [[f"review number {i}, {'fine' if i % 2 else 'poor'}", str(1 + i % 5), f"shop {i % 3}"] for i in range(n)]
    return write_csv(tmp_path / "my_reviews.csv", ["review", "stars", "shop"], body)


def ids(task: Task) -> list[list[str]]:
    return [[e.id for e in split] for split in (task.train, task.validation, task.test)]


# a user's own file


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


# the published layouts


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
    with pytest.raises(InputError, match="number of one option and the text of another"):
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


# generated by rule


def test_coin_flip_follows_its_rule() -> None:
    for name, steps in (("coin_flip", 2), ("coin_flip_ood", 4)):
        task = load_task(name)
        assert Counter(e.label for e in task.test) == {"yes": 100, "no": 100}
        for example in task.test:
            acts = example.text.split("heads up. ")[1].split(" Is the coin")[0].split(".")[:-1]
            flips = sum("flips" in act for act in acts)
            assert len(acts) == steps
            assert example.label == ("yes" if flips % 2 == 0 else "no")
    assert {e.fields["steps"] for e in load_task("coin_flip_ood").train} == {2}
    assert load_task("coin_flip").fingerprint == load_task("coin_flip").fingerprint
    assert load_task("coin_flip", seed=5).fingerprint != load_task("coin_flip").fingerprint


def test_last_letters_follow_their_rule() -> None:
    task = load_task("last_letters_ood")
    for example, steps in [(e, 4) for e in task.test] + [(e, 2) for e in task.train]:
        words = example.text.split('"')[1].split()
        assert len(words) == steps
        assert example.answers == ("".join(word[-1] for word in words),)


def test_generators_refuse_what_they_cannot_make(tmp_path: Path) -> None:
    path = tmp_path / "g.yaml"
    path.write_text("generate: {rule: last_letters, steps: {train: 1, validation: 2, test: 2}}\n")
    with pytest.raises(InputError, match="steps names train"):
        load_task(path)
    path.write_text("generate: {rule: last_leters, steps: {train: 2, validation: 2, test: 2}}\n")
    with pytest.raises(UnknownNameError, match="Did you mean 'last_letters'"):
        load_task(path)
    assert len(set(FIRST_NAMES)) == len(FIRST_NAMES)
    assert coin_flip(3, random.Random(1)) == coin_flip(3, random.Random(1))
    assert len(last_letters(5, random.Random(1))[1]) == 5


# our own data


@pytest.fixture(scope="module")
def tickets() -> list[dict[str, str]]:
    return list(rows(resources.content("tasks") / "support_tickets" / "messages.jsonl"))


def test_support_tickets_are_whole(tickets: list[dict[str, str]]) -> None:
    task = load_task("support_tickets")
    assert [len(s) for s in (task.train, task.validation, task.test)] == [170, 130, 150]
    for split in (task.train, task.validation, task.test):
        assert len(set(Counter(e.label for e in split).values())) == 1  # balanced
    lengths = sorted(len(row["text"].split()) for row in tickets)
    assert lengths[0] <= 6
    assert lengths[-1] >= 80
    hard = sum(row["difficulty"] == "hard" for row in tickets) / len(tickets)
    assert 0.2 < hard < 0.3
    assert task.test[0].fields["difficulty"] in ("normal", "hard")


def test_support_tickets_are_no_copies_of_each_other(tickets: list[dict[str, str]]) -> None:
    shingles = [{row["text"].lower()[i : i + 5] for i in range(len(row["text"]) - 4)} for row in tickets]
    assert max(len(a & b) / len(a | b) for a, b in combinations(shingles, 2)) < 0.25


def test_bags_of_words_neither_solve_nor_miss_the_support_tickets(tickets: list[dict[str, str]]) -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    task = load_task("support_tickets")
    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=10, max_iter=2000)
    )
    model.fit([e.text for e in task.train], [e.label for e in task.train])
    accuracy = model.score([e.text for e in task.test], [e.label for e in task.test])
    assert 0.4 < accuracy < 0.93  # chance is 0.2
    readme = (resources.content("tasks") / "support_tickets" / "README.md").read_text(encoding="utf-8")
    assert f"{accuracy:.0%}".replace("%", " %") in readme


def test_specs_are_read_from_their_own_folder() -> None:
    folder = resources.content("tasks")
    found = {name for path in folder.glob("*.yaml") for name in read_specs(path)}
    assert found == set(shipped_specs())

"""Task files, suites and data files that are broken, hostile or odd: one error that says where, or the right rows."""

from __future__ import annotations

import contextlib
import csv
import json
import random
from pathlib import Path

import pytest

from amplify.cli import cli
from amplify.errors import AmplifyError, DataError, InputError
from amplify.tasks import load_task, read_rows
from amplify.tasks.rows import rows
from amplify.tasks.spec import read_specs

TASK = """description: Reviews
instruction: Classify the review.
labels: [good, bad]
files: {all: rows.csv}
fields: {text: review, label: mood}
splits: {validation: 0.2, test: 0.4}
metric: accuracy
max_tokens: 4
"""
SUITE = """common:
  description: "Reviews of {task}"
  labels: [good, bad]
  files: {all: ["{task}.csv"]}
tasks:
  phones: {splits: {test: 0.5}}
  lamps: {where: {kind: lamp}, seed: 3}
"""


def table(folder: Path, n: int = 40) -> Path:
    path = folder / "rows.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["review", "mood"], *([f"Phone {i}", ("good", "bad")[i % 2]] for i in range(n))])
    return path


def laughs(key: str) -> str:
    levels = "".join(f"  - &l{i} [{', '.join([f'*l{i - 1}'] * 10)}]\n" for i in range(1, 20))
    return f"splits:\n  - &l0 [a, b]\n{levels}{key}: *l19\n"


@pytest.mark.parametrize(
    "key", ["labels", "layout", "instruction", "metric", "max_tokens", "template", "seed", "common"]
)
def test_aliases_are_bounded(tmp_path: Path, key: str) -> None:
    path = tmp_path / "t.yaml"
    path.write_text(laughs(key))
    with pytest.raises(InputError, match=r"t\.yaml: its aliases"):
        read_specs(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("common: &a\n  instruction: *a\ntasks: {}", "line 2 stands for what it is part of|line 1 stands"),
        ("a: " + "[" * 3000 + "]" * 3000, "too deeply"),
        ("instruction: 2001-99-99", "not readable YAML"),
        ("instruction: !!int x", "not readable YAML"),
        ("? [a]\n: b", "not readable YAML"),
        ('instruction: "\\ud83d"', "half a character"),
        ("labels: 3\nfiles: {all: a.csv}", "labels is a list of strings"),
        ("emphasis: [text]\nfiles: {all: a.csv}", "emphasis is a text"),
        ("instruction: {a: b}\nfiles: {all: a.csv}", "instruction is a text"),
        ("seed: yes\nfiles: {all: a.csv}", "seed is a whole number"),
        ("max_tokens: -1\nfiles: {all: a.csv}", "max_tokens is a whole number"),
        ("fields: {label: [a]}\nfiles: {all: a.csv}", "label is the name of a column"),
        ("fields: [a]\nfiles: {all: a.csv}", "fields is a mapping"),
        ("files: {all: 3}", "files.all is the name of a file"),
        ("files: {all: ''}", "files.all is the name of a file"),
        ("files: {all: /etc/passwd}", "below its own folder"),
        ("files: {all: ../secret.csv}", "below its own folder"),
        ("files: {all: a.csv}\nlabel_files: {all: ../secret}", "below its own folder"),
        ("files: {all: a.csv}\ncot: /etc/passwd", "below its own folder"),
        ("files: {all: a.csv}\nsplits: {test: .nan}", "split's size"),
        ("hub: {path: 3}", "hub.path is a text"),
        ("hub: {splits: {test: test}}", "hub.path names"),
        ("tasks: [a]", "common and tasks are mappings"),
        ("tasks: {a: [b]}", "'a' is a mapping"),
        ("generate: {rule: coin_flip, steps: [2]}", "steps and sizes are mappings"),
        (
            "generate: {rule: coin_flip, steps: {train: 2, validation: 2, test: 2}, sizes: {test: 1000000000}}",
            "100,000",
        ),
    ],
)
def test_what_a_task_file_cannot_say(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "t.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=said):
        load_task(path)


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AMPLIFY_DATA", raising=False)
    (tmp_path / "own").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "own" / "t.yaml").write_text(TASK)
    (tmp_path / "own" / "rows.csv").symlink_to(table(tmp_path / "data"))
    with pytest.raises(InputError, match="is a link to"):
        load_task(tmp_path / "own" / "t.yaml")
    assert load_task(tmp_path / "own" / "t.yaml", data=tmp_path / "data").test


def test_long_cells_are_read_and_the_limit_of_others_stays(tmp_path: Path) -> None:
    path = tmp_path / "long.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["text", "label"], ["a" * 300_000, "x"], ["b,\n" * 100_000, "y"]])
    before = csv.field_size_limit()
    assert [len(e.text) for e in read_rows(path, "text")] == [300_000, 299_999]
    assert csv.field_size_limit() == before


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b'{"text": "ok"}\n{"text": "half \\ud83d"}\n', r"a\.jsonl, line 2 holds half a character"),
        ("a.jsonl", b"[" * 100_000, r"line 1: its values hold one another too deeply"),
        ("a.json", b'{"data": ' + b"[" * 100_000, r"a\.json: its values"),
        ("a.jsonl", b'{"text": ' + b"9" * 5000 + b"}", "line 1 is not JSON"),
        ("a.csv", "text,label\nä,b\n".encode("utf-16"), "not UTF-8"),
        ("a.csv", b"text,label\nab\xff,c\n", "not UTF-8"),
        ("a.csv", b'text,label\n"open,c\n', "line 2"),
        ("a.csv.gz", b"\x1f\x8b\x08broken", "cannot read"),
    ],
)
def test_broken_rows_are_named(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises((InputError, DataError), match=said):
        list(rows(path))


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbftext\nhello\n")
    (tmp_path / "t.yaml").write_bytes(b"\xef\xbb\xbf" + TASK.encode())
    table(tmp_path)
    assert read_rows(tmp_path / "a.csv", "text")[0].text == "hello"
    assert load_task(tmp_path / "t.yaml").test


@pytest.mark.parametrize(
    "suite", ["&a [*a]", "methods: 3", "task: [a]", "seeds: [a]", "options: [a]", "limit: 0", laughs("task")]
)
def test_broken_suites(tmp_path: Path, suite: str) -> None:
    path = tmp_path / "suite.yaml"
    path.write_text(suite)
    with pytest.raises(InputError):
        cli.main(["run", "--config", str(path), "-m", "scripted:last_answer"], standalone_mode=False)


def mutated(text: str, draw: random.Random) -> bytes:
    """A few bytes changed, doubled, moved or left out."""
    data = bytearray(text.encode())
    for _ in range(draw.randint(1, 6)):
        at = draw.randrange(len(data) + 1)
        end = min(len(data), at + draw.randint(0, 12))
        piece = draw.choice([b"", b"[", b"{", b"&a ", b"*a", b": ", b"\n", b'"', b"\x00", b"\xff", b"-1", b"null", b",",
                             b"\\ud83d", b"9" * 30, b"!!int ", b"\r", b"<<: ", b"- ", data[at:end] * 2])  # fmt: skip
        data[at : end if draw.random() < 0.5 else at] = piece
    return bytes(data)


def test_mutated_task_files_end_in_a_task_or_one_error(tmp_path: Path) -> None:
    draw, path = random.Random(0), tmp_path / "t.yaml"
    table(tmp_path)
    loaded = 0
    for _ in range(1200):
        path.write_bytes(mutated(draw.choice([TASK, SUITE]), draw))
        try:
            specs = read_specs(path)
            loaded += len(specs)
            if len(specs) == 1:
                load_task(path)
        except AmplifyError:
            pass
    assert loaded  # mutations that do no harm


def test_mutated_data_files_end_in_rows_or_one_error(tmp_path: Path) -> None:
    draw = random.Random(1)
    items = [{"text": f"Phone {i} is é", "label": ("good", "bad")[i % 2], "n": [i, None, {"a": i}]} for i in range(6)]
    contents = {
        ".csv": "text,label\n" + "".join(f'"Phone, {i}",good\n' for i in range(6)),
        ".tsv": "text\tlabel\n" + "".join(f"Phone {i}\tgood\n" for i in range(6)),
        ".jsonl": "".join(json.dumps(item) + "\n" for item in items),
        ".json": json.dumps({"data": items}),
    }
    read = 0
    for _ in range(3000):
        ending = draw.choice(list(contents))
        path = tmp_path / f"a{ending}"
        path.write_bytes(mutated(contents[ending], draw))
        with contextlib.suppress(AmplifyError):
            read += len(read_rows(path, "text", label=draw.choice(["label", None])))
    assert read

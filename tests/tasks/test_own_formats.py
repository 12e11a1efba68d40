"""Formats of one's own: rows of a file become examples, with their splits where the format knows them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from task_files import write_jsonl

import amplify
from amplify.errors import InputError, UnknownNameError
from amplify.registry import table
from amplify.types import Example


@pytest.fixture
def own() -> Iterator[Callable[[str], None]]:
    names: list[str] = []
    yield names.append
    for name in names:
        table("task_format").remove(name)


def task(folder: Path, format: str) -> Path:
    write_jsonl(folder / "rows.jsonl", [{"q": f"what is {i}?", "a": [str(i)], "fold": i % 3} for i in range(30)])
    (folder / "own.yaml").write_text(f"files: {{all: rows.jsonl}}\nformat: {format}\nmetric: f1\n")
    return folder / "own.yaml"


def test_a_function_of_rows_is_a_format(own: Callable[[str], None], tmp_path: Path) -> None:
    own("quiz")

    @amplify.register("task_format", "quiz")
    def quiz(spec: Any, rows: list[dict[str, Any]], path: Path) -> Any:
        """Questions in folds."""
        for i, row in enumerate(rows):
            split = ("train", "validation", "test")[row["fold"]]
            yield Example(f"{path.stem}-{i}", row["q"], answers=tuple(row["a"])), split

    loaded = amplify.load_task(task(tmp_path, "quiz"))
    assert [len(pool) for pool in (loaded.train, loaded.validation, loaded.test)] == [10, 10, 10]
    assert loaded.test[0].answers == ("2",)
    assert loaded.test[0].id == "rows-2"


def test_a_format_that_knows_no_splits_leaves_them_to_the_task(own: Callable[[str], None], tmp_path: Path) -> None:
    own("quiz")
    made = lambda spec, rows, path: [Example(row["q"], row["q"], answers=tuple(row["a"])) for row in rows]  # noqa: E731
    amplify.register("task_format", "quiz", made)
    path = task(tmp_path, "quiz")
    path.write_text(path.read_text() + "splits: {train: 10, validation: 5, test: 15}\n")
    loaded = amplify.load_task(path)
    assert [len(pool) for pool in (loaded.train, loaded.validation, loaded.test)] == [10, 5, 15]


@pytest.mark.parametrize("made", ["text", (Example("1", "x"), "tset"), None])
def test_what_is_no_example_is_refused(own: Callable[[str], None], tmp_path: Path, made: Any) -> None:
    own("odd")
    amplify.register("task_format", "odd", lambda spec, rows, path: [made])
    with pytest.raises(InputError, match=r"the task format 'odd' gives .*, no example"):
        amplify.load_task(task(tmp_path, "odd"))


def test_an_unknown_format_is_told_with_the_nearest_and_where(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"unknown task format 'hotpotq'. Did you mean 'hotpotqa'.*own\.yaml"):
        amplify.load_task(task(tmp_path, "hotpotq"))
    with pytest.raises(InputError, match="a function of a specification"):
        amplify.register("task_format", "odd", 3)

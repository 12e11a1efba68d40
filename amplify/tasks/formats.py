"""The formats of a task's files by name: from the rows of a file to examples."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amplify.errors import InputError
from amplify.registry import Table, register
from amplify.tasks.rows import laid_out
from amplify.types import Example

if TYPE_CHECKING:
    from amplify.tasks.spec import TaskSpec

Row = dict[str, Any]
Format = Callable[["TaskSpec", list[Row], Path], Iterable[Example | tuple[Example, str]]]
"""(the task as its YAML says, a file's rows, the file) -> examples, with their splits where the format knows them."""


def _adopt(name: str, value: Any) -> Format:
    if not callable(value):
        raise InputError(f"the task format {name!r} is a function of a specification, rows and a path, not {value!r}")
    return value


FORMATS: Table[Format] = Table("task_format", _adopt)
"""Every format by name."""


@register("task_format", "rows")
@register("task_format", "bbh")
def _rows(spec: TaskSpec, rows: list[Row], path: Path) -> Iterable[tuple[Example, str]]:
    """One example a row, by the columns that `fields` names; in "bbh" the options stand in the text."""
    from amplify.tasks.sources import labelled, split_of

    number, fields = 0, {k: v for k, v in spec.fields.items() if k != "split"}
    with laid_out(lambda: f"{path}, row {number}"):
        for number, row in enumerate(rows, start=1):
            where = f"{path}, row {number}"
            yield labelled(spec, row, where, fields), split_of(spec.fields, row, where)


@register("task_format", "counterfact")
@register("task_format", "known_facts")
def _facts(spec: TaskSpec, rows: list[Row], path: Path) -> Iterable[tuple[Example, str]]:
    """Counterfactual facts, in CounterFact's layout or made of known facts."""
    from amplify.tasks.facts import fact_examples

    return fact_examples(spec, rows, path)


@register("task_format", "hotpotqa")
@register("task_format", "nq")
@register("task_format", "miracl")
def _retrieval(spec: TaskSpec, rows: list[Row], path: Path) -> Iterable[Example]:
    """Questions with their documents, in the layout of HotpotQA, Natural Questions or MIRACL."""
    from amplify.tasks.retrieval import retrieval_examples

    return retrieval_examples(spec, rows, path)


def examples(spec: TaskSpec, rows: list[Row], path: Path, split: str) -> Iterable[tuple[Example, str]]:
    """The examples of a file's rows by the task's format, each with its split: the file's, unless the format knows.

    Raises:
        InputError: the format gives something else, or a value is not of the kind that it has there.
    """
    with laid_out(lambda: str(path)):
        for made in FORMATS.find(spec.format)(spec, rows, path):
            example, own = made if isinstance(made, tuple) else (made, "")
            if not isinstance(example, Example) or own not in ("", "train", "validation", "test"):
                raise InputError(f"the task format {spec.format!r} gives {made!r:.200}, no example (with its split)")
            yield example, own or split

"""Every saved program is found again by its kind, so a kind is one class's alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from amplify.errors import InputError
from amplify.methods.base import PROGRAMS, Program
from amplify.methods.program import ShotProgram
from amplify.models.base import LanguageModel
from amplify.types import Answer, Example


@pytest.fixture(autouse=True)
def no_kind_stays() -> Iterator[None]:
    before = dict(PROGRAMS)
    yield
    PROGRAMS.clear()
    PROGRAMS.update(before)


def made(kind: str | None, base: type[Program] = Program, name: str = "Mine") -> type[Program]:
    def answer(self: Any, examples: Sequence[Example], model: LanguageModel) -> list[Answer]:
        return []

    held = {"answer": answer, "__module__": __name__, "__qualname__": name} | ({"kind": kind} if kind else {})
    return dataclass(type(name, (base,), held))


@pytest.mark.parametrize("base", [Program, ShotProgram])
def test_a_kind_that_is_taken_is_refused_and_what_has_it_stays(base: type[Program]) -> None:
    with pytest.raises(InputError, match=r"kind 'shots' are amplify\.methods\.program\.ShotProgram: .*another kind"):
        made("shots", base)
    assert PROGRAMS["shots"] is ShotProgram


def test_a_class_that_is_defined_again_takes_its_own_place() -> None:
    first, second = made("mine"), made("mine")
    assert PROGRAMS["mine"] is second is not first
    with pytest.raises(InputError, match="kind 'mine'"):
        made("mine", name="Another")


def test_a_class_without_a_kind_of_its_own_is_not_taken_for_its_parent(tmp_path: Any) -> None:
    parent = made("mine")
    child = made(None, parent, "Child")
    assert PROGRAMS["mine"] is parent
    child().answer([], None)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="Child cannot be saved without a kind of its own"):
        child().save(tmp_path / "program.json")
    assert not list(tmp_path.iterdir())
    parent().save(tmp_path / "program.json")
    assert type(Program.load(tmp_path / "program.json")) is parent

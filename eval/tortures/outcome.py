"""What a part of the bench found: cases that were right, and what the others did."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SHOWN = 20
"""Failures of a group that are told one by one."""


@dataclass
class Group:
    """Cases of one kind.

    Attributes:
        name: for the table.
        cases, right: how many there were, and how many went right.
        wrong: what the first others did, each with what is needed to see it again.
        figures: what else was measured.
    """

    name: str
    cases: int = 0
    right: int = 0
    wrong: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    def note(self, problem: str | None) -> None:
        """Count one case; `problem` says what went wrong, None that nothing did."""
        self.cases += 1
        if problem is None:
            self.right += 1
        elif len(self.wrong) < SHOWN:
            self.wrong.append(problem)

    def most(self, name: str, value: float) -> None:
        """Keep the largest value of a figure."""
        self.figures[name] = max(value, self.figures.get(name, value))

    def as_json(self) -> Mapping[str, Any]:
        """Plain values."""
        more = {"figures": self.figures} if self.figures else {}
        return {"group": self.name, "cases": self.cases, "right": self.right, "wrong": self.wrong, **more}


@dataclass(frozen=True)
class Setting:
    """What a part is given.

    Attributes:
        work: an empty folder.
        models: the folder that small models lie in.
        seed: of everything that is drawn.
        quick: a small part of the cases, for a gate.
        done: names of groups that are measured already and left out.
        only: groups are measured whose names hold this text.
    """

    work: Path
    models: Path
    seed: int = 0
    quick: bool = False
    done: frozenset[str] = frozenset()
    only: str = ""

    def skips(self, group: str) -> bool:
        """Whether a group is left out."""
        return group in self.done or self.only not in group

    def amount(self, full: int, quick: int) -> int:
        """How many cases of something."""
        return quick if self.quick else full


Groups = Iterator[Group]

"""What a search has measured, kept line by line in a file, so that a stopped search goes on where it was."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np

from amplify import codec
from amplify.errors import DataError, RunError
from amplify.files import Journal, shown
from amplify.head_search.margins import HeadSet, Margins
from amplify.head_search.search import Floats

FORMAT = 1


class _Run(TypedDict):
    task: str
    key: str
    item: str
    heads: str
    margin: float


class Recorded:
    """A score that remembers: every run stands in a JSONL file, and none is made twice.

    Args:
        margins: measures one item under several head sets.
        task: its name in the file.
        path: the file, or None to remember in memory alone.
        key: what the measurements depend on besides item and heads; a file with another key is refused.
        progress: called with the number of runs after each write.

    Raises:
        RunError: the file belongs to another search.
    """

    def __init__(
        self,
        margins: Margins,
        task: str,
        path: Path | None = None,
        key: str = "",
        progress: Callable[[int], None] | None = None,
    ) -> None:
        self.margins, self.task, self.key, self.progress = margins, task, key, progress
        self.known: dict[tuple[str, str], float] = {}
        self.made = 0
        self._journal: Journal | None = None
        if path is not None:
            self._journal = Journal(path, {"format": FORMAT, "holds": "runs of a head search"}, what="runs of heads")
            self._read(self._journal)

    def _read(self, journal: Journal) -> None:
        for number, row in enumerate(journal.rows, start=2):
            try:
                codec.decode(_Run, row)
            except DataError as error:
                raise RunError(f"line {number} of {shown(journal.path)} was changed: {error}; delete it") from error
            if row["task"] != self.task:
                continue
            if row["key"] != self.key:
                raise RunError(
                    f"{shown(journal.path)} holds runs of {self.task} with other settings, samples or model; give "
                    "another --out, or delete it"
                )
            self.known[row["item"], row["heads"]] = row["margin"]

    def __call__(self, sets: Sequence[HeadSet], samples: Sequence[int]) -> Floats:
        """Margins, [head sets, samples]."""
        names = [_name(heads) for heads in sets]
        out = np.zeros((len(sets), len(samples)))
        for column, number in enumerate(samples):
            item = self.margins.items[number].id
            todo = [i for i, name in enumerate(names) if (item, name) not in self.known]
            if todo:
                found = self.margins(number, [sets[i] for i in todo])
                rows = []
                for i, exact in zip(todo, found, strict=True):
                    margin = round(float(exact), 6)  # as the file has it, so that a resumed search is the same one
                    self.known[item, names[i]] = margin
                    rows.append(
                        {
                            "task": self.task,
                            "key": self.key,
                            "item": item,
                            "heads": names[i],
                            "margin": margin,
                        }
                    )
                self.made += len(rows)
                if self._journal is not None:
                    self._journal.append(rows)
                if self.progress:
                    self.progress(len(rows))
            out[:, column] = [self.known[item, name] for name in names]
        return out


def _name(heads: HeadSet) -> str:
    """A head set as a short string: "3.0 3.5 7.1"; a whole layer is not abbreviated."""
    return " ".join(f"{layer}.{head}" for layer, head in sorted(heads))

"""What a search has measured, kept line by line in a file, so that a stopped search goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from amplify.errors import RunError
from amplify.profiling.margins import HeadSet, Margins
from amplify.profiling.search import Floats


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
        self.margins, self.task, self.path, self.key, self.progress = margins, task, path, key, progress
        self.known: dict[tuple[str, str], float] = {}
        self.made = 0
        if path is not None and path.exists():
            self._read(path)

    def _read(self, path: Path) -> None:
        whole = path.read_text(encoding="utf-8")
        lines = whole.split("\n")[:-1]  # a last line that a kill cut off is measured again
        if whole and not whole.endswith("\n"):
            path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        for line in lines:
            row = json.loads(line)
            if row["task"] != self.task:
                continue
            if row["key"] != self.key:
                raise RunError(
                    f"{path} holds runs of {self.task} with other settings, samples or model; give another --out, or "
                    "delete it"
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
                for i, margin in zip(todo, found, strict=True):
                    self.known[item, names[i]] = margin
                    rows.append(
                        {
                            "task": self.task,
                            "key": self.key,
                            "item": item,
                            "heads": names[i],
                            "margin": round(margin, 6),
                        }
                    )
                self.made += len(rows)
                if self.path is not None:
                    self.path.parent.mkdir(parents=True, exist_ok=True)
                    with self.path.open("a", encoding="utf-8") as file:
                        file.write("".join(json.dumps(row) + "\n" for row in rows))
                if self.progress:
                    self.progress(len(rows))
            out[:, column] = [self.known[item, name] for name in names]
        return out


def _name(heads: HeadSet) -> str:
    """A head set as a short string: "3.0 3.5 7.1"; a whole layer is not abbreviated."""
    return " ".join(f"{layer}.{head}" for layer, head in sorted(heads))

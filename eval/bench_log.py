"""A long log of conversations through `amplify attribute --input`: memory while it grows, and seconds.

    python eval/bench_log.py [--lines 100000] [--out eval/results/bench_log.json]

The model is a scripted one, so that what is measured is the reading, keeping and writing; each conversation has two
documents and a written answer. Resident memory is looked at after each twentieth of the log. What is held for each line
is a number and a place in the file; the results and their pages are on disk.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from measuring import command, resident, timed

import amplify
from amplify.sources import log


def write_log(path: Path, lines: int) -> None:
    """Short conversations, no two alike."""
    with path.open("w") as file:
        for i in range(lines):
            documents = [f"Paper {i} speaks of rain.", f"The warranty of number {i} is {i % 7} years."]
            row = {"id": i, "question": f"How long for {i}?", "documents": documents, "answer": f"{i % 7} years."}
            file.write(json.dumps(row) + "\n")


@contextmanager
def watched(every: int, seen: list[list[int]]) -> Iterator[None]:
    """Note [lines done, bytes resident] while `explain_log` runs; pages are not kept, they would fill the disk."""
    plain, count = log.files.write, 0

    def write(path: Any, content: Any) -> None:
        nonlocal count
        if Path(path).parent.name != log.PAGES:
            plain(path, content)
            return
        count += 1
        if count % every == 0:
            seen.append([count, resident()])

    log.files.write = write
    try:
        yield
    finally:
        log.files.write = plain


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=100_000)
    parser.add_argument("--out", type=Path, default=Path("eval/results/bench_log.json"))
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    try:
        write_log(folder / "log.jsonl", args.lines)
        seen: list[list[int]] = []
        options = {"budget": 4, "granularity": "documents"}
        model = amplify.load_model("scripted:echo")
        model.calls = _Nothing()  # type: ignore[attr-defined]  # it would keep all that it was asked
        with watched(max(1, args.lines // 20), seen):
            found, seconds = timed(lambda: log.explain_log(folder / "log.jsonl", folder / "why", model, options))
        result = {
            "command": command(), "lines": len(found), "explained": found.explained, "seconds": seconds,
            "bytes_of_log": (folder / "log.jsonl").stat().st_size,
            "bytes_of_results": (folder / "why" / log.RESULTS).stat().st_size,
            "resident_bytes_after_lines": seen, "index_pages": len(list((folder / "why").glob("index*.html"))),
        }  # fmt: skip
    finally:
        shutil.rmtree(folder)
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    first, last = seen[0], seen[-1]
    print(
        f"{result['lines']} lines in {seconds:.0f} s; resident {first[1] / 2**20:.0f} MiB after {first[0]} lines, "
        f"{last[1] / 2**20:.0f} MiB after {last[0]}; results {result['bytes_of_results'] / 2**20:.0f} MiB"
    )


class _Nothing(list[Any]):
    """A list that holds nothing."""

    def append(self, item: Any) -> None:
        """Forget it."""


if __name__ == "__main__":
    main()

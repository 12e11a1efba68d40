"""Answering new, unlabelled rows with a fitted program: the way from an evaluation to production."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amplify.errors import BackendError, InputError, RunError
from amplify.tasks import read_rows
from amplify.untrusted import cell
from amplify.values import Answer, Example

if TYPE_CHECKING:
    from amplify.backends import Generator
    from amplify.methods.base import Program

COLUMNS = ("answer", "rationale", "score")


@dataclass(frozen=True)
class Applied:
    """What `apply_program` did: rows written, and how many of them have no answer."""

    rows: int
    unparsed: int


def apply_program(
    program: Program,
    source: Path,
    text: str,
    backend: Generator,
    out: Path,
    *,
    batch_size: int = 32,
    as_they_are: bool = False,
) -> Applied:
    """Answer every row of a CSV or JSONL file and write a CSV: input, other columns, answer, rationale, score.

    Finished batches are kept in `OUT.partial.jsonl` as they come, so the same command resumes after a stop; the CSV
    appears when all rows are answered.

    Args:
        program: a fitted program.
        source: CSV or JSONL file of rows without labels.
        text: the column that holds the input.
        backend: answers.
        out: CSV to write.
        batch_size: rows answered between two writes.
        as_they_are: write cells that a spreadsheet would run as formulas (`=…`) without an apostrophe in front.

    Raises:
        InputError: the column is missing, the file is empty, or a column of the input is called like one we add.
        RunError: the partial file belongs to another input or program, or cannot be written.
    """
    from tqdm import tqdm

    examples = read_rows(source, text=text)
    taken = sorted(set(COLUMNS).intersection(_columns(text, examples)))
    if taken:
        raise InputError(f"{source} already has the column(s) {', '.join(taken)}; rename them, the answers go there")
    partial = out.with_name(out.name + ".partial.jsonl")
    header = {"program": _fingerprint(program.to_dict()), "input": _fingerprint([[e.id, e.text] for e in examples])}
    done = _resume(partial, header, batch_size)
    try:
        with (
            partial.open("a", encoding="utf-8") as log,
            tqdm(total=len(examples), initial=len(done), unit="row", disable=None) as bar,
        ):
            if not done and log.tell() == 0:
                _append(log, [header])
            for batch in _batches(examples[len(done) :], batch_size):
                rows = [_row(answer) for answer in program.answer(batch, backend)]
                _append(log, rows)
                done += rows
                bar.update(len(rows))
        _write_csv(out, text, examples, done, (lambda value: value) if as_they_are else cell)
    except OSError as error:
        raise RunError(f"cannot write beside {out}: {error}. What was answered is in {partial}; it resumes") from error
    except BackendError as error:
        raise BackendError(f"{error} {len(done)} of {len(examples)} rows are kept: the same command resumes") from error
    partial.unlink()
    return Applied(rows=len(done), unparsed=sum(not row["answer"] for row in done))


def _row(answer: Answer) -> dict[str, Any]:
    return {"answer": answer.value or "", "rationale": answer.rationale, "score": confidence(answer)}


def confidence(answer: Answer) -> float | None:
    """The answer's probability among the labels; None where none were scored."""
    return None if answer.value is None else answer.probabilities().get(answer.value)


def _fingerprint(value: Any) -> str:
    import hashlib

    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _batches(examples: list[Example], size: int) -> Iterator[list[Example]]:
    for start in range(0, len(examples), size):
        yield examples[start : start + size]


def _append(log: Any, rows: list[dict[str, Any]]) -> None:
    log.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    log.flush()
    os.fsync(log.fileno())


def _resume(partial: Path, header: Mapping[str, str], batch_size: int) -> list[dict[str, Any]]:
    """The whole batches that an earlier, stopped call left; a torn end is cut off the file."""
    if not partial.exists():
        return []
    lines = partial.read_text(encoding="utf-8").split("\n")[:-1]  # what follows the last newline was torn
    if not lines:
        partial.unlink()
        return []
    if json.loads(lines[0]) != header:
        raise RunError(f"{partial} is from another program or input; delete it or choose another --out")
    whole = (len(lines) - 1) // batch_size * batch_size
    kept = lines[: 1 + whole]
    partial.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
    return [json.loads(line) for line in kept[1:]]


def _columns(text: str, examples: list[Example]) -> list[str]:
    """The input's column, then the others in the order in which they turn up: rows of a JSONL file may differ."""
    return list(dict.fromkeys([text, *(name for example in examples for name in example.fields)]))


def _write_csv(
    out: Path, text: str, examples: list[Example], rows: list[dict[str, Any]], cell: Callable[[Any], Any]
) -> None:
    """Write the CSV beside its place and move it there, so that it is whole or absent."""
    columns = _columns(text, examples)
    draft = out.with_name(out.name + ".tmp")
    with draft.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([cell(name) for name in (*columns, *COLUMNS)])
        for example, row in zip(examples, rows, strict=True):
            held = {text: example.text, **example.fields, **row}
            writer.writerow([cell(held.get(name, "")) for name in (*columns, *COLUMNS)])
    draft.replace(out)

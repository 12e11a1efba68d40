"""Answering new, unlabelled rows with a fitted program: the way from an evaluation to production."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import amplify
from amplify import codec, files
from amplify.errors import DataError, InputError, ModelError, RunError, WriteError
from amplify.evaluation.folder import plain
from amplify.files import Journal
from amplify.models.base import sharing
from amplify.models.cached import begun, forget, keeping
from amplify.progress import progress
from amplify.tasks import read_rows
from amplify.types import Answer, Example
from amplify.untrusted import cell, special_tokens

if TYPE_CHECKING:
    from amplify.methods.base import Program
    from amplify.models import LanguageModel

COLUMNS = ("answer", "rationale", "score")
FORMAT = 1


@dataclass(frozen=True)
class Applied:
    """What `apply_program` did: rows written, and how many of them have no answer."""

    rows: int
    unparsed: int


def apply_program(
    program: Program,
    source: Path,
    text: str,
    model: LanguageModel,
    out: Path,
    *,
    batch_size: int = 32,
    as_they_are: bool = False,
) -> Applied:
    """Answer every row of a CSV or JSONL file and write a CSV: input, other columns, answer, rationale, score.

    Finished batches are kept in `OUT.answers.jsonl` as they come, with what they depend on, so that the same call goes
    on after a stop, and asks nothing where all rows are answered. The CSV appears when they are.

    Args:
        program: a fitted program.
        source: CSV or JSONL file of rows without labels.
        text: the column that holds the input.
        model: answers.
        out: CSV to write.
        batch_size: rows answered between two writes.
        as_they_are: write cells that a spreadsheet would run as formulas (`=…`) without an apostrophe in front.

    Raises:
        InputError: the column is missing, the file is empty, or a column of the input is called like one we add.
        RunError: the answers there are of another input, program or model (what differs is listed), or another process
            is writing them.
        WriteError: the disk is full or read-only; finished batches are kept.
        ModelError: the model failed; what it answered is kept.
    """
    if batch_size < 1:
        raise InputError(f"batch_size is at least 1, got {batch_size}")
    examples = read_rows(source, text=text)
    taken = sorted(set(COLUMNS).intersection(_columns(text, examples)))
    if taken:
        raise InputError(f"{source} already has the column(s) {', '.join(taken)}; rename them, the answers go there")
    path, unfinished = (out.with_name(f"{out.name}.{end}") for end in ("answers.jsonl", "unfinished.sqlite"))
    busy = f"another process is writing {files.shown(out)}; wait for it, or choose another --out"
    with files.lock(out, busy):
        header = _depends_on(program, examples, model, batch_size)
        kept = Journal(
            path,
            header,
            what="of this input, program and model",
            again=f"choose another --out, or delete {files.shown(path)} to start anew",
            locked=False,
        )
        try:
            with keeping(model, unfinished, files.digest(header)) as keeps:
                done = _answer(program, examples, keeps, kept, batch_size)
            _write_csv(out, text, examples, done, as_they_are)
        except WriteError as error:
            raise WriteError(f"{error}. What was answered is in {files.shown(path)}; the same call goes on") from error
    return Applied(rows=len(done), unparsed=sum(not row["answer"] for row in done))


class _Kept(TypedDict):
    row: int
    answer: str
    rationale: str
    score: float | None


def _depends_on(program: Program, examples: list[Example], model: LanguageModel, batch_size: int) -> dict[str, Any]:
    """What the answers depend on, each part by its content."""
    from amplify.evaluation.configuration import versions

    rows = [[e.text, {name: str(value) for name, value in e.fields.items()}] for e in examples]
    header = {
        "format": FORMAT,
        "program": files.digest(program.to_dict()),
        "input": {"rows": len(examples), "sha256": files.digest(rows)},
        "model": {"id": model.id, **model.describe()},
        "batch_size": batch_size,
        "amplify": amplify.__version__,
        "versions": versions(),
        "special_tokens": special_tokens(),
    }
    return dict(plain(header))


def _answer(
    program: Program, examples: list[Example], model: LanguageModel, kept: Journal, batch_size: int
) -> list[dict[str, Any]]:
    """The rows that were kept and those that are answered now, in the order of the input."""
    done = _rows(kept, len(examples))
    if len(done) < len(examples):  # a batch that a kill cut in two is answered again, whole
        done = done[: len(done) // batch_size * batch_size]
        kept.cut(len(done))
    with progress(total=len(examples), unit="row") as bar, sharing(model):
        bar.update(len(done))
        for start in range(len(done), len(examples), batch_size):
            asked = examples[start : start + batch_size]
            try:
                answers = program.answer(asked, model)
            except ModelError as error:
                more = f" and {count} replies of the unfinished batch" if (count := begun(model)) else ""
                raise ModelError(
                    f"{error} {len(done)} of {len(examples)} rows{more} are kept: the same command resumes"
                ) from error
            if len(answers) != len(asked):
                raise RunError(f"the program gave {len(answers)} answers to {len(asked)} rows")
            rows = [{"row": start + i, **_row(answer)} for i, answer in enumerate(answers)]
            kept.append(rows)
            forget(model)
            done += rows
            bar.update(len(rows))
    return done


def _rows(kept: Journal, count: int) -> list[dict[str, Any]]:
    done: list[dict[str, Any]] = []
    for place, row in enumerate(kept.rows):
        try:
            held = codec.decode(_Kept, row)
            if not held["row"] == place < count:
                raise DataError(f"row is {held['row']}, wanted {place} of {count}")
        except DataError as error:
            where = f"line {place + 2} of {files.shown(kept.path)}"
            raise RunError(f"{where} was changed: {error}; {kept.again}") from error
        done.append(dict(held))
    return done


def _row(answer: Answer) -> dict[str, Any]:
    return dict(plain({"answer": answer.value or "", "rationale": answer.rationale, "score": confidence(answer)}))


def confidence(answer: Answer) -> float | None:
    """The answer's probability among the labels; None where none were scored."""
    return None if answer.value is None else answer.probabilities().get(answer.value)


def _columns(text: str, examples: list[Example]) -> list[str]:
    """The input's column, then the others in the order in which they turn up: rows of a JSONL file may differ."""
    return list(dict.fromkeys([text, *(name for example in examples for name in example.fields)]))


def _write_csv(out: Path, text: str, examples: list[Example], rows: list[dict[str, Any]], as_they_are: bool) -> None:
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    columns = [*_columns(text, examples), *COLUMNS]
    shown: Callable[[Any], Any] = (lambda value: value) if as_they_are else cell
    writer.writerow([shown(name) for name in columns])
    for example, row in zip(examples, rows, strict=True):
        held = {text: example.text, **example.fields, **{name: row[name] for name in COLUMNS}}
        writer.writerow([shown(held.get(name, "")) for name in columns])
    files.write(out, file.getvalue())

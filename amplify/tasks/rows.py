"""From a file to rows, and from a row to an Example."""

from __future__ import annotations

import csv
import gzip
import hashlib
import re
import sys
import threading
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from json.encoder import encode_basestring
from pathlib import Path
from typing import Any, Literal, TextIO

from amplify.errors import AmplifyError, DataError, InputError
from amplify.files import from_json
from amplify.types import Example

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
CANARY = "canary GUID"


def rows(path: Path, columns: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """The rows of a CSV, TSV, TXT (tabs), JSON or JSONL file, as mappings; with .gz behind its ending it is unpacked.

    Args:
        path: the file; its ending says what it is.
        columns: names of the columns where the file has no header.

    Raises:
        DataError: not readable. InputError: a row that does not fit its header, or is no object.
    """
    packed = path.suffix.lower() == ".gz"
    ending = (path.with_suffix("") if packed else path).suffix.lower()
    try:
        with (
            gzip.open(path, "rt", encoding="utf-8-sig", newline="")
            if packed
            else path.open(encoding="utf-8-sig", newline="")
        ) as file:
            if ending == ".json":
                yield from _json_rows(path, file.read())
            elif ending == ".jsonl":
                for number, line in enumerate(file, start=1):
                    if line.strip():
                        yield _object(path, number, line)
            else:
                yield from _table(path, file, "," if ending == ".csv" else "\t", columns)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error}; save it as UTF-8") from error
    except (OSError, EOFError) as error:  # EOFError: a packed file that was cut off
        raise DataError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error


def _table(path: Path, file: TextIO, delimiter: str, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    quoting: Literal[0, 3] = csv.QUOTE_NONE if columns else csv.QUOTE_MINIMAL
    reader = csv.reader(file, delimiter=delimiter, quoting=quoting, strict=True)
    try:
        lines = _whole(reader)
        header = list(columns) or next(lines, (0, []))[1]
        twice = [name for name, n in Counter(header).items() if n > 1]
        if twice:
            raise InputError(f"{path}: the header has {', '.join(twice)} twice")
        if len(header) == 1 and (other := set(header[0]) & (set(";\t|,") - {delimiter})):
            raise InputError(
                f"{path}: one column called {header[0]!r}? It seems to be separated by {min(other)!r}: save it with "
                "commas as .csv, or with tabs as .tsv"
            )
        for number, cells in lines:
            if len(cells) != len(header):
                raise InputError(
                    f"{path}, line {number}: the row has another number of cells than the header "
                    f"({len(header)}); put quotes around cells that hold {delimiter!r}"
                )
            yield dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num} is no valid table row: {error}; check its quotes") from error


_LIMIT = threading.Lock()
AT_ONCE = 256  # rows of a table read under the lock


def _whole(reader: Any) -> Iterator[tuple[int, list[str]]]:
    """(number of its last line, cells) of each row that is not blank, with cells of any length.

    The csv module's limit is the whole process's, so it is lifted for a few rows only. An error comes in its place
    behind the rows before it.
    """
    failed: Exception | None = None
    ended = False
    while not ended:
        found = []
        with _LIMIT:
            limit = csv.field_size_limit(sys.maxsize)
            try:
                for cells in islice(reader, AT_ONCE):
                    found.append((reader.line_num, cells))
                ended = len(found) < AT_ONCE
            except Exception as error:
                failed, ended = error, True
            finally:
                csv.field_size_limit(limit)
        yield from (row for row in found if row[1])
    if failed:
        raise failed


def _object(path: Path, number: int, line: str) -> dict[str, Any]:
    row = from_json(line, f"{path}, line {number}")
    if not isinstance(row, dict):
        raise InputError(f"{path}, line {number} is no JSON object")
    return row


def _json_rows(path: Path, content: str) -> list[dict[str, Any]]:
    if not content.strip():
        return []
    loaded = from_json(content, str(path))
    found = loaded.get("examples", loaded.get("data")) if isinstance(loaded, dict) else loaded
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise InputError(f"{path}: a JSON file is a list of objects, or has one under 'examples' or 'data'")
    return found


@contextmanager
def laid_out(where: Callable[[], str]) -> Iterator[None]:
    """Around what reads rows: values of another kind than their layout has are one error.

    Args:
        where: names the place, when it is needed.

    Raises:
        InputError: instead of what Python says of them.
    """
    try:
        yield
    except AmplifyError:
        raise
    except (TypeError, AttributeError, LookupError, ValueError) as error:
        raise InputError(f"{where()}: a value is not of the kind that the task's format has there ({error})") from error


def column_names(path: Path) -> list[str]:
    """The columns of a file, from its first row."""
    return [str(name) for name in next(rows(path), {})]


def example(row: Mapping[str, Any], fields: Mapping[str, Any], where: str, fallback_id: str = "") -> Example:
    """The example that a row holds.

    Args:
        row: column -> value.
        fields: as in `TaskSpec.fields`; text falls back to the column "text", label to "label".
        where: file and row, for errors.
        fallback_id: id of a row without an id column; "" for the beginning of the content's hash.

    Raises:
        InputError: a column is missing or a text is empty.
    """
    source = fields.get("text", "text")
    if isinstance(source, str):
        part = column(row, source, where)
        text = "" if part is None else str(part).strip()
    else:
        parts = [column(row, name, where) for name in source]
        text = " ".join([str(part).strip() for part in parts if part is not None]).strip()
    if not text:
        raise InputError(f"{where}: the text is empty")
    if CANARY in text:
        raise InputError(f"{where}: the text holds a benchmark's canary string, which must not reach a prompt")
    label = column(row, fields["label"], where) if "label" in fields else None
    answers = column(row, fields["answers"], where) if "answers" in fields else None
    choices: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    if "choices" in fields:
        names, texts = _choices(row, fields["choices"], where)
        if not len(names) == len(texts) <= len(LETTERS):
            raise InputError(
                f"{where}: {len(texts)} choices with {len(names)} names; at most {len(LETTERS)} can be told"
            )
        # a blank option is none, and the others keep their letters
        held = [(name, text, letter) for name, text, letter in zip(names, texts, LETTERS, strict=False) if text.strip()]
        choices, options = tuple(letter for _, _, letter in held), tuple(text for _, text, _ in held)
        by_name, by_text = {name: letter for name, _, letter in held}, {text: letter for _, text, letter in held}
        label = _letter(label, by_name, by_text, where)
    own = str(column(row, fields["id"], where)) if "id" in fields else fallback_id
    keep = fields.get("keep", ())
    if keep == "*":
        keep = [name for name in row if name not in fields.values()]
    return Example(
        id=own or own_id(text, choices, options),
        text=text,
        label=None if label is None or str(label) == "" else str(label).strip(),
        choices=choices,
        options=options,
        answers=() if answers is None else tuple(map(str, answers if isinstance(answers, list | tuple) else [answers])),
        fields={name: column(row, name, where) for name in ([keep] if isinstance(keep, str) else keep)} if keep else {},
    )


def own_id(text: str, choices: Sequence[str], options: Sequence[str]) -> str:
    """An id that follows from an example's content."""
    behind = f"{listed(choices)}, {listed(options)}" if choices or options else "[], []"
    return hashlib.sha256(f"[{plain_json(text)}, {behind}]".encode()).hexdigest()[:12]


plain_json = encode_basestring
"""A text as JSON, characters beyond ASCII as they are: `json.dumps(text, ensure_ascii=False)`, without its detours."""


def listed(texts: Sequence[str]) -> str:
    """Texts as a JSON list, as `plain_json`."""
    return f"[{', '.join(map(plain_json, texts))}]" if texts else "[]"


def iter_rows(path: str | Path, text: str, *, id: str | None = None, label: str | None = None) -> Iterator[Example]:
    """Rows of a CSV, TSV, JSON or JSONL file as examples, one after the other, without splits.

    Args:
        path: the file; CSV, TSV and JSONL are streamed.
        text: its column with the input.
        id: a column with unique ids; default: "row-1", "row-2", ….
        label: a column with gold labels, where there are some.

    Raises:
        DataError: the file cannot be read. InputError: a missing column, an empty text, an id used twice, no rows.

    Example:
        >>> _ = open("new.csv", "w").write("review\\ngood\\nbad\\n")
        >>> [example.text for example in iter_rows("new.csv", "review")]
        ['good', 'bad']
    """
    fields = {name: value for name, value in (("text", text), ("id", id), ("label", label)) if value}
    seen: set[str] = set()
    for number, row in enumerate(rows(Path(path)), start=1):
        found = example(row, {**fields, "keep": "*"}, f"{path}, row {number}", fallback_id=f"row-{number}")
        if found.id in seen:
            raise InputError(f"{path}, row {number}: the id {found.id!r} is used twice; ids must be unique")
        seen.add(found.id)
        yield found
    if not seen:
        raise InputError(f"{path} has no rows")


def read_rows(path: str | Path, text: str, *, id: str | None = None, label: str | None = None) -> list[Example]:
    """`iter_rows` as a list: new rows to answer, unlabelled unless `label` names a column.

    Example:
        >>> _ = open("new.csv", "w").write("review\\ngood\\nbad\\n")
        >>> read_rows("new.csv", "review")[1].id
        'row-2'
    """
    return list(iter_rows(path, text, id=id, label=label))


def column(row: Mapping[str, Any], name: str, where: str) -> Any:
    """The cell of a column; dots reach into objects where no column has the whole name.

    Raises:
        InputError: there is none; the message lists those there are.
    """
    if name in row:
        return row[name]
    value: Any = row
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise InputError(f"{where}: there is no column {name!r}; there are: {', '.join(map(str, row))}")
        value = value[part]
    return value


def _cell(value: Any) -> str:
    return "" if value is None else str(value)


def _letter(label: Any, by_name: Mapping[str, str], by_text: Mapping[str, str], where: str) -> Any:
    """The letter of a gold answer that the data gives by the option's name, number, text or letter: "b", "(B)"."""
    found = {table[str(label)] for table in (by_name, by_text) if str(label) in table}
    if not found and label is not None:
        key = _folded(label)
        found = {letter for text, letter in by_text.items() if _folded(text) == key}
        found = found or {letter for letter in by_text.values() if _folded(letter) == key.strip("()[].: ")}
    if len(found) > 1:
        raise InputError(f"{where}: the gold answer {label!r} fits more than one option: {', '.join(sorted(found))}")
    return found.pop() if found else label


def _folded(value: Any) -> str:
    return " ".join(unicodedata.normalize("NFC", str(value)).casefold().split())


def _choices(row: Mapping[str, Any], source: Any, where: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names and texts of the options, from any of the three published layouts."""
    if isinstance(source, list):  # one column an option, the gold answer counted from 1
        return tuple(str(i + 1) for i in range(len(source))), tuple(_cell(column(row, c, where)) for c in source)
    value = column(row, source, where)
    if isinstance(value, Mapping):  # {"label": [...], "text": [...]}
        return tuple(map(str, value["label"])), tuple(map(_cell, value["text"]))
    if isinstance(value, list) and all(isinstance(v, Mapping) for v in value):  # [{"label": …, "text": …}, …]
        return tuple(str(v["label"]) for v in value), tuple(_cell(v["text"]) for v in value)
    if isinstance(value, list):  # ["…", "…"], the gold answer counted from 0
        return tuple(str(i) for i in range(len(value))), tuple(map(_cell, value))
    raise InputError(f"{where}: {source!r} holds no list of choices")


_OPTION = re.compile(r"\(([A-Z])\)(.*)")


def bbh_example(text: str, target: str | None, where: str) -> Example:
    """A Big-Bench-Hard input: the options block is cut off the text and becomes choices and options.

    "(A) …" lines become choices A, B, … with their texts as options and the gold letter as label; "- Yes" lines
    are the task's fixed labels and only leave the text.
    """
    question, _, block = text.partition("\nOptions:\n")
    lines = [line for line in block.splitlines() if line.strip()]
    lettered = [match for line in lines if (match := _OPTION.match(line))]
    if lettered and len(lettered) != len(lines):
        raise InputError(f"{where}: an option does not begin with its letter")
    gold = target.strip() if target is not None else None
    if lettered and gold is not None and re.fullmatch(r"\([A-Z]\)", gold):
        gold = gold[1]
    choices = tuple(match[1] for match in lettered)
    options = tuple(match[2].strip() for match in lettered)
    if CANARY in text:
        raise InputError(f"{where}: the text holds a benchmark's canary string, which must not reach a prompt")
    return Example(own_id(question.strip(), choices, options), question.strip(), gold, choices, options)


def folded(text: str) -> str:
    """The text with letter case and runs of blanks aside."""
    return " ".join(text.casefold().split())


def content(example: Example) -> tuple[str, ...]:
    """What the model reads (text, options, choices), letter case and runs of blanks aside: copies have the same."""
    if not example.options and not example.choices:  # most often, where there are many
        return (folded(example.text),)
    return (folded(example.text), *map(folded, example.options), "\n", *example.choices)


def content_hash(example: Example) -> str:
    """SHA-256 of what the model reads, as in `content`."""
    if not example.options and not example.choices:
        return hashlib.sha256(f"[[{plain_json(folded(example.text))}], []]".encode()).hexdigest()
    read = listed([folded(text) for text in (example.text, *example.options)])
    return hashlib.sha256(f"[{read}, {listed(example.choices)}]".encode()).hexdigest()

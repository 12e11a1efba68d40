"""A log of conversations explained: one model, one line of results for each, what was done is not done again."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, overload

import amplify
from amplify import codec, files
from amplify.errors import DataError, InputError
from amplify.models.base import LanguageModel, each
from amplify.progress import progress
from amplify.render import page_template
from amplify.sources.attribute import attribute_sources
from amplify.sources.result import SourceAttribution

RESULTS, PAGES, INDEX = "attributions.jsonl", "pages", "index.html"
ON_A_PAGE = 1000
Json = dict[str, Any]
_KEYS = ("question", "documents", "messages", "sources", "answer")


@dataclass(frozen=True)
class Explained:
    """A line of the log and what came of it.

    Attributes:
        line: its number, from 1.
        id: its own, else its number.
        result: the attribution; None where the line was skipped.
        problem: why it was.
    """

    line: int
    id: str
    result: SourceAttribution | None = None
    problem: str = ""


class ExplainedLog(Sequence[Explained]):
    """What came of a log, in the order of its lines; each result is read from the file when it is asked for.

    Attributes:
        explained: how many lines.
        skipped: the numbers of the others.

    Example:
        >>> from amplify.models.scripted import ScriptedModel
        >>> model = ScriptedModel(logprob=lambda text, said: -0.1 if "in Rome" in text else -5.0)
        >>> line = '{"question": "Where is it?", "documents": ["It is in Rome.", "Bees fly."], "answer": "Rome"}'
        >>> _ = Path("log.jsonl").write_text(line + "\\nno json\\n")
        >>> found = explain_log("log.jsonl", "why", model, {"granularity": "documents"}, shown=False)
        >>> found.explained, found.skipped, found[0].id
        (1, [2], '1')
    """

    def __init__(self, path: Path, places: Mapping[int, int], skipped: Collection[int]) -> None:
        self._path, self._places, self._lines = path, places, sorted(places)
        self.skipped = sorted(skipped)
        self.explained = len(places) - len(skipped)

    def __len__(self) -> int:
        return len(self._lines)

    @overload
    def __getitem__(self, index: int) -> Explained: ...

    @overload
    def __getitem__(self, index: slice) -> list[Explained]: ...

    def __getitem__(self, index: int | slice) -> Explained | list[Explained]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self.line(self._lines[index])

    def line(self, number: int) -> Explained:
        """What came of a line of the log, by its number from 1."""
        with self._path.open("rb") as file:
            file.seek(self._places[number])
            return _read(codec.parse(file.readline()))


def explain_log(
    source: str | Path, out: str | Path, model: LanguageModel, options: Mapping[str, Any], shown: bool = True
) -> ExplainedLog:
    """Explain every conversation of a log, and write a page about all of them.

    A line is an object with `question`, `documents` and perhaps `answer`, or with `messages`, perhaps `sources` (spans)
    or `documents` (which stand in them) and `answer`; without it the last message is the answer where it is the
    assistant's. A line that is no conversation is skipped and named. Neither the log nor its results are held in
    memory, so it may be of any length; a model with workers (`ray:`) explains as many conversations at a time.

    Args:
        source: JSON lines.
        out: folder for `attributions.jsonl` (a line as soon as it is known), `pages/` and `index.html`, for every
            further thousand conversations `index-2.html` and so on. The same call goes on where it was stopped.
        model: who is asked.
        options: of `attribute_sources`, for every line.
        shown: say how many lines are done.

    Raises:
        RunError: the folder holds results of another log, model or options.
        ModelError: the model failed; what was done is kept.

    Example:
        >>> from amplify.models.scripted import ScriptedModel
        >>> model = ScriptedModel(logprob=lambda text, said: -0.1 if "in Rome" in text else -5.0)
        >>> line = '{"question": "Where is it?", "documents": ["It is in Rome.", "Bees fly."], "answer": "Rome"}'
        >>> _ = Path("log.jsonl").write_text(line + "\\nno json\\n")
        >>> found = explain_log("log.jsonl", "why", model, {"granularity": "documents"}, shown=False)
        >>> [line.result.answer if line.result else line.problem for line in found]
        ['Rome', '...']
    """
    folder, path = Path(out), Path(source)
    total, digest = _measured(path)
    header = {
        "log": digest, "model": model.describe(), "options": codec.encode(dict(options)),
        "amplify": amplify.__version__,
    }  # fmt: skip
    places: dict[int, int] = {}  # line -> where its result begins in the file
    skipped: set[int] = set()

    def note(row: Mapping[str, Any], begins: int) -> None:
        places[row["line"]] = begins
        if row["attribution"] is None:
            skipped.add(row["line"])

    results = folder / RESULTS
    journal = files.Journal(results, header, what="the results of this log", again="name another --out", keep=note)
    (folder / PAGES).mkdir(exist_ok=True)
    before = set(places)
    waiting = ((number, line) for number, line in _lines(path) if number not in before)
    with progress(total=total, unit="line", initial=len(before), shown=shown) as bar:
        for row, page in each(model, partial(_explained, options=options), waiting):
            note(row, journal.append([row]))
            if page:
                files.write(folder / PAGES / f"{row['line']}.html", page)
            bar.update(1)
    found = ExplainedLog(results, places, skipped)
    _write_index(folder, found, path.name)
    return found


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, with their numbers."""
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, line


def _measured(path: Path) -> tuple[int, str]:
    """How many lines a log has, and its hash.

    Raises:
        InputError: it cannot be read, or is empty.
    """
    try:
        total = sum(1 for _ in _lines(path))
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if not total:
        raise InputError(f"{path} is empty")
    return total, digest


def rows_of(source: str | Path) -> list[Json]:
    """The objects of a file of JSON lines.

    Raises:
        InputError: it cannot be read, is empty, or a line is no object; says which.
    """
    path, rows = Path(source), []
    _measured(path)
    for number, line in _lines(path):
        try:
            row = codec.parse(line)
        except DataError as error:
            raise InputError(f"line {number} of {source} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise InputError(f"line {number} of {source} is no object")
        rows.append(row)
    return rows


def _explained(model: LanguageModel, asked: tuple[int, str], options: Mapping[str, Any]) -> tuple[Json, str]:
    """What stands in the results about a line, and its page."""
    number, line = asked
    row: Json = {"line": number, "id": str(number), "problem": "", "attribution": None}
    try:
        given = codec.parse(line)
        if not isinstance(given, dict):
            raise InputError("it is no object")
        row["id"] = str(given.get("id", number))
        result = attribute_sources(model=model, **conversation(given), **options)
    except (InputError, DataError) as error:
        return {**row, "problem": str(error)}, ""
    return {**row, "attribution": result.to_dict()}, result.to_html()


def conversation(given: Mapping[str, Any]) -> dict[str, Any]:
    """What a line of a log asks, as arguments of `attribute_sources`.

    Raises:
        InputError: it is no conversation.
    """
    asked = {key: given[key] for key in _KEYS if given.get(key) is not None}
    messages = asked.get("messages")
    if messages is None and not {"question", "documents"} <= asked.keys():
        raise InputError("it is no conversation: it has neither 'messages' nor a 'question' with 'documents'")
    if isinstance(messages, list) and messages and isinstance(messages[-1], dict):
        asked.pop("question", None)
        if messages[-1].get("role") == "assistant" and not messages[-1].get("tool_calls"):
            asked["messages"] = messages[:-1]
            asked.setdefault("answer", messages[-1].get("content"))
    return asked


def _read(row: Any) -> Explained:
    held = row["attribution"]
    result = None if held is None else SourceAttribution.from_dict(held)
    return Explained(row["line"], row["id"], result, row["problem"])


def _write_index(folder: Path, found: ExplainedLog, name: str) -> None:
    template = page_template("amplify.sources", "log.html.jinja")
    count = -(-len(found) // ON_A_PAGE)
    names = [INDEX, *(f"index-{k}.html" for k in range(2, count + 1))]
    for k, own in enumerate(names):
        on_page = range(k * ON_A_PAGE, min((k + 1) * ON_A_PAGE, len(found)))
        text = template.render(
            name=name, rows=[_summary(found[i]) for i in on_page], explained=found.explained,
            skipped=len(found.skipped), names=names if count > 1 else [], own=own,
        )  # fmt: skip
        files.write(folder / own, text)


def _summary(found: Explained) -> dict[str, Any]:
    r = found.result
    if r is None:
        return {"line": found.line, "id": found.id, "problem": found.problem}
    claims = list(r.claims)
    cited = dict.fromkeys(citation.source for citation in r.citations)
    return {
        "line": found.line,
        "id": found.id,
        "problem": "",
        "question": r.question,
        "answer": r.answer,
        "verdicts": [(c.verdict, f"{c.support:.0%}", c.text) for c in claims],
        "support": sum(c.support for c in claims) / len(claims),
        "cited": [r.name(k) for k in cited],
        "page": f"{PAGES}/{found.line}.html",
        "notes": r.notes,
    }

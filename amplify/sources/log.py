"""A log of conversations explained: one model, one line of results for each, what was done is not done again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import amplify
from amplify import codec, files
from amplify.errors import DataError, InputError
from amplify.models.base import LanguageModel
from amplify.progress import progress
from amplify.render import page_template
from amplify.sources.attribute import attribute_sources
from amplify.sources.result import SourceAttribution

RESULTS, PAGES, INDEX = "attributions.jsonl", "pages", "index.html"
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


def explain_log(
    source: str | Path, out: str | Path, model: LanguageModel, options: Mapping[str, Any], shown: bool = True
) -> list[Explained]:
    """Explain every conversation of a log, and write a page about all of them.

    A line is an object with `question`, `documents` and perhaps `answer`, or with `messages`, perhaps `sources` (spans)
    or `documents` (which stand in them) and `answer`; without it the last message is the answer where it is the
    assistant's. A line that is no conversation is skipped and named.

    Args:
        source: JSON lines.
        out: folder for `attributions.jsonl` (a line as soon as it is known), `pages/` and `index.html`. The same call
            goes on where it was stopped.
        model: who is asked.
        options: of `attribute_sources`, for every line.
        shown: say how many lines are done.

    Raises:
        RunError: the folder holds results of another log, model or options.
        ModelError: the model failed; what was done is kept.
    """
    folder, path = Path(out), Path(source)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    lines = [(k, line) for k, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise InputError(f"{path} is empty")
    header = {
        "log": files.digest(text), "model": model.describe(), "options": codec.encode(dict(options)),
        "amplify": amplify.__version__,
    }  # fmt: skip
    journal = files.Journal(folder / RESULTS, header, what="the results of this log", again="name another --out")
    done = {found.line: found for found in map(_read, journal.rows)}
    (folder / PAGES).mkdir(exist_ok=True)
    with progress(total=len(lines), unit="line", initial=len(done), shown=shown) as bar:
        for number, line in lines:
            if number in done:
                continue
            done[number] = _explained(number, line, model, options)
            journal.append([_row(done[number])])
            _page(folder, done[number])
            bar.update(1)
    found = [done[number] for number, _ in lines]
    files.write(folder / INDEX, _index(found, path.name))
    return found


def _explained(number: int, line: str, model: LanguageModel, options: Mapping[str, Any]) -> Explained:
    name = str(number)
    try:
        given = codec.parse(line)
        if not isinstance(given, dict):
            raise InputError("it is no object")
        name = str(given.get("id", number))
        return Explained(number, name, attribute_sources(model=model, **conversation(given), **options))
    except (InputError, DataError) as error:
        return Explained(number, name, problem=str(error))


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


def _row(found: Explained) -> dict[str, Any]:
    held = None if found.result is None else found.result.to_dict()
    return {"line": found.line, "id": found.id, "problem": found.problem, "attribution": held}


def _read(row: Any) -> Explained:
    held = row["attribution"]
    result = None if held is None else SourceAttribution.from_dict(held)
    return Explained(row["line"], row["id"], result, row["problem"])


def _page(folder: Path, found: Explained) -> None:
    if found.result is not None:
        found.result.to_html(folder / PAGES / f"{found.line}.html")


def _index(found: list[Explained], name: str) -> str:
    rows = [_summary(each) for each in found]
    return page_template("amplify.sources", "log.html.jinja").render(
        name=name,
        rows=rows,
        explained=sum(each.result is not None for each in found),
        skipped=[each for each in found if each.result is None],
    )


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

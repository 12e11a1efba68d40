"""A source attribution to look at: one self-contained HTML page, and the same nested view for a terminal.

No request leaves the page, and nothing in it is run or read as markup that came from a document, a question or a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from amplify.render import escape, page_template, visible

if TYPE_CHECKING:
    from amplify.sources.result import Level, SourceAttribution

Part = tuple[int, int, int]  # characters [start, end) of a document, and the number of the part in its level
CLASSES = {"documents": "d", "sentences": "s", "words": "w"}
INDICES = {
    "shapley": "Shapley",
    "banzhaf": "Banzhaf",
    "shapley_shubik": "Shapley–Shubik",
    "penrose_banzhaf": "Penrose–Banzhaf",
}
_TITLE = 120  # a first line up to this long, with text below it, is shown as a title
_DIGITS = 8  # significant ones of the numbers in the page, which rounds them to three decimals itself


def as_html(result: SourceAttribution) -> str:
    """The attribution as one HTML page: the answer, and its documents as a nested heat map."""
    from markupsafe import Markup

    spans = parts_by_document(result)
    return page_template("amplify.sources", "page.html.jinja").render(
        question=result.question,
        answer=result.answer,
        citations=[(c.sentence, c.documents) for c in result.cite()],
        header=header(result),
        documents=[
            {
                "number": i,
                "titled": titled(text),
                "body": Markup(nested(text, 0, len(text), spans[i])),
            }
            for i, text in enumerate(result.originals)
        ],
        columns=_columns(result),
        column=result.column,
        votes=result.value == "votes",
        data={
            "column": result.column,
            "exact": result.estimator == "exact",  # all coalitions are known; a sample may have width 0 too
            "levels": {CLASSES[name]: _numbers(level) for name, level in result.levels().items()},
            "values": [[_plain(v) for v in row] for row in result.values.T],
        },
    )


def header(result: SourceAttribution) -> list[tuple[str, str]]:
    """How the scores were made: (name, value) pairs."""
    described = result.meta.get("model") or {}
    of = "votes" if result.value == "votes" else "the log-probability (nats)"
    cost = result.cost
    limit = result.meta.get("limit")
    budget = str(result.budget) if limit is None else f"{limit:,} tokens"
    return [
        ("scores", f"{INDICES.get(result.index, result.index)} values of {of}"),
        ("model", str(described.get("id", "unknown"))),
        ("estimator", f"{result.estimator}, budget {budget}, seed {result.seed}"),
        ("documents", f"{len(result.documents)} in {result.order} order, engine {result.engine}"),
        ("cost", f"{cost.calls:,} prompts, {cost.tokens:,} tokens forwarded, {cost.seconds:.1f} s"),
        ("versions", f"amplify {result.meta.get('amplify', 'unknown')}"),
    ]


def _columns(result: SourceAttribution) -> list[dict[str, Any]]:
    """What can be switched to: candidate answers, or the whole answer and its sentences."""
    whole = result.value == "logprob"
    return [
        {"name": "the whole answer" if whole and c == 0 else name, "without": low, "with": high}
        for c, (name, (low, high)) in enumerate(zip(result.columns, result.values.T.tolist(), strict=True))
    ]


def titled(text: str) -> bool:
    """Whether a document's first line is a title."""
    first, newline, rest = text.partition("\n")
    return bool(newline and rest.strip() and len(first) <= _TITLE)


def parts_by_document(result: SourceAttribution) -> list[list[tuple[str, list[Part]]]]:
    """For each document the levels inside it that were scored, coarse to fine, with their parts in order."""
    inside: list[list[tuple[str, list[Part]]]] = [[] for _ in result.originals]
    for name, level in result.levels().items():
        if name == "documents":
            continue
        own: dict[int, list[Part]] = {}
        for k, source in enumerate(level.sources):
            text = result.originals[source.document][source.start : source.end]
            if bare := text.strip():
                start = source.start + text.index(bare)
                own.setdefault(source.document, []).append((start, start + len(bare), k))
        for document, parts in own.items():
            inside[document].append((CLASSES[name], sorted(parts)))
    return inside


def nested(text: str, start: int, end: int, layers: Sequence[tuple[str, Sequence[Part]]]) -> str:
    """Characters [start, end) of a document, escaped, every part in an element that holds the finer ones."""
    if not layers:
        return escape(text[start:end])
    (name, parts), *finer = layers
    pieces, at = [], start
    for a, b, k in parts:
        if a < at or b > end:
            continue
        pieces.append(nested(text, at, a, finer))
        pieces.append(f'<span class="{name}" data-k="{k}">{nested(text, a, b, finer)}</span>')
        at = b
    pieces.append(nested(text, at, end, finer))
    return "".join(pieces)


def _numbers(level: Level) -> list[list[list[float | None]]]:
    """[columns][parts] of score, low, high; None for an end that is infinite."""
    table = np.stack([level.table, level.low_table, level.high_table], axis=-1)
    return [[[_plain(x) for x in part] for part in column] for column in table.transpose(1, 0, 2)]


def _plain(value: float) -> float | None:
    return float(f"{value:.{_DIGITS}g}") if np.isfinite(value) else None


def number(value: float | None) -> str:
    """A score with its sign; ∞ for one that is not known."""
    if value is None or not np.isfinite(value):
        return "∞"
    if abs(value) < 0.0005:
        return "0"
    return f"{value:+.3f}" if abs(value) < 100 else f"{value:+.1f}"


def as_terminal(result: SourceAttribution, *, colour: bool = True, width: int = 100) -> str:
    """The attribution for a terminal: documents by score, with their sentences and words in the colours of the page.

    Args:
        result: what to show.
        colour: False writes plain text.
        width: columns.
    """
    import io

    from rich.console import Console
    from rich.text import Text

    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=colour, no_color=not colour, highlight=False)
    console.print(Text(visible(result.question), "bold"))
    console.print(Text(visible(result.columns[result.column] if result.value == "votes" else result.answer), "green"))
    console.print(Text("; ".join(f"{name} {value}" for name, value in header(result)), "dim"))
    inside = parts_by_document(result)
    tops = {CLASSES[name]: float(np.abs(level.scores).max(initial=0.0)) for name, level in result.levels().items()}
    by_class = {CLASSES[name]: level for name, level in result.levels().items()}
    for i in result.ranking():
        d = result.documents
        head = f"{number(d.scores[i]):>9} [{number(d.low[i])}, {number(d.high[i])}]  document {i}"
        console.print(Text(f"\n{head}", _style(d, i, tops["d"])))
        text = result.originals[i]
        if not inside[i]:
            console.print(Text("  " + _cut(visible(" ".join(text.split())), width - 4), "dim"))
            continue
        shown = Text()
        for name, parts in inside[i]:
            if name == "s":
                shown = _painted(text, parts, inside[i][1:], by_class, tops)
        console.print(shown)
    return out.getvalue()


def _painted(
    text: str,
    sentences: Sequence[Part],
    finer: Sequence[tuple[str, Sequence[Part]]],
    levels: dict[str, Level],
    tops: dict[str, float],
) -> Any:
    """One line per sentence: its score, and its text in its colour or in those of its words."""
    from rich.text import Text

    lines = Text()
    for a, b, k in sentences:
        style = _style(levels["s"], k, tops["s"])
        lines.append(f"  {number(levels['s'].scores[k]):>9}  ", style)
        words = [p for _, parts in finer for p in parts if a <= p[0] and p[1] <= b]
        at = a
        for start, end, word in words:
            lines.append(visible(text[at:start]).replace("\n", " "))
            lines.append(visible(text[start:end]), _style(levels["w"], word, tops["w"]))
            at = end
        lines.append(visible(text[at:b]).replace("\n", " ") + "\n", "" if words else style)
    lines.rstrip()
    return lines


def _style(level: Level, k: int, top: float) -> str:
    """Blue speaks for, orange against; bold when strong, dim when weak, underlined when the interval excludes 0."""
    score = float(level.scores[k])
    strength = abs(score) / top if top else 0.0
    tone = ("rgb(59,130,246)" if score > 0 else "rgb(234,118,32)") if strength >= 0.1 else "dim"
    sure = " underline" if level.low[k] > 0 or level.high[k] < 0 else ""
    return f"{'bold ' if strength >= 0.5 else ''}{tone}{sure}"


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"

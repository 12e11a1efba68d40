"""A source attribution to look at: one self-contained HTML page, and the same nested view for a terminal.

No request leaves the page, and nothing in it is run or read as markup that came from a document, a question or a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from amplify.render import escape, framed, page_template, visible

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
VERDICTS = {"supported": "carried by the sources", "from memory": "from memory", "contradicted": "against the sources"}
STRONGEST = 0.55  # opacity of the strongest part's colour
LONG = 1200  # characters of a text that is folded
_TITLE = 120  # a first line up to this long, with text below it, is shown as a title
_DIGITS = 8  # significant ones of the numbers in the page, which rounds them to three decimals itself


def as_html(result: SourceAttribution) -> str:
    """The attribution as one HTML page: the answer with its claims, and its sources as a nested heat map."""
    from markupsafe import Markup

    spans = parts_by_source(result)
    order = result.ranking()
    paint = _Paint(result)
    cited = _cited(result)
    return page_template("amplify.sources", "page.html.jinja").render(
        question=result.question,
        answer=_answer(result, cited),
        claims=[_claim(result, k) for k in range(len(result.claims))],
        notes=result.notes,
        header=header(result),
        documents=[
            {
                "number": k,
                "name": result.name(k),
                "said": paint.said("d", k),
                "share": _share(result, k),
                "style": paint.style("d", k),
                "titled": titled(result.documents.texts[k]),
                "long": len(result.documents.texts[k]) > LONG,
                "body": Markup(nested(_whole(result, k), *_ends(result, k), spans[k], paint)),
            }
            for k in order
        ],
        columns=_columns(result),
        column=result.column,
        votes=result.value == "votes",
        data={
            "column": result.column,
            "exact": result.estimator == "exact",  # all coalitions are known; a sample may have width 0 too
            "levels": {CLASSES[name]: _numbers(level) for name, level in result.levels().items()},
            "values": [[_plain(v) for v in row] for row in result.values.T],
            "names": [result.name(k) for k in range(len(result.documents))],
        },
    )


def as_frame(result: SourceAttribution, height: int = 640) -> str:
    """The page as a fragment to embed: a sandboxed frame that holds it whole, e.g. for a notebook."""
    return framed(as_html(result), "why this answer", height)


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
        ("sources", f"{len(result.documents)} in {result.order} order, engine {result.engine}"),
        ("cost", f"{cost.calls:,} prompts, {cost.tokens:,} tokens forwarded, {cost.seconds:.1f} s"),
        ("versions", f"amplify {result.meta.get('amplify', 'unknown')}"),
    ]


def _whole(result: SourceAttribution, k: int) -> str:
    return result.originals[result.documents.sources[k].document].text


def _ends(result: SourceAttribution, k: int) -> tuple[int, int]:
    source = result.documents.sources[k]
    return source.start, source.end


def _share(result: SourceAttribution, k: int) -> str:
    """What a source gives of what all of them do, in words that need no scale."""
    without, with_all = result.values[:, result.column]
    gain = abs(float(with_all - without))
    score = float(result.documents.scores[k])
    if gain < 1e-9 or not np.isfinite(score):
        return ""
    share = score / gain
    if abs(share) < 0.005:
        return "does nothing"
    return f"carries {share:.0%}" if share > 0 else f"takes {-share:.0%}"


def _cited(result: SourceAttribution) -> list[list[int]]:
    """For each claim the sources cited, strongest first."""
    found: list[list[int]] = [[] for _ in result.claims]
    for citation in result.citations:
        found[citation.claim].append(citation.source)
    return found


def _column_of(result: SourceAttribution, claim: int) -> int:
    return claim + 1 if result.spans else result.column


def _answer(result: SourceAttribution, cited: list[list[int]]) -> list[dict[str, Any]]:
    """The answer as it was written, in pieces: text between claims, and claims with what they cite."""
    pieces: list[dict[str, Any]] = []
    at = 0
    answer = result.columns[result.column] if result.value == "votes" else result.answer
    for k, claim in enumerate(result.claims):
        start, end = (claim.start, claim.end) if result.spans else (0, len(answer))
        pieces.append({"text": answer[at:start], "claim": None})
        names = [{"number": i, "name": result.name(i)} for i in cited[k]]
        pieces.append(
            {
                "text": answer[start:end], "claim": k, "column": _column_of(result, k), "cites": names,
                "verdict": claim.verdict,
            }
        )  # fmt: skip
        at = end
    return [*pieces, {"text": answer[at:], "claim": None}]


def _claim(result: SourceAttribution, k: int) -> dict[str, Any]:
    claim = result.claims[k]
    best = max(range(len(claim.scores)), key=lambda i: claim.scores[i])
    carries = f"{result.name(best)} carries {claim.shares[best]:.0%} of it" if claim.verdict == "supported" else ""
    return {
        "text": claim.text,
        "column": _column_of(result, k),
        "verdict": claim.verdict,
        "word": VERDICTS[claim.verdict],
        "support": f"{max(claim.support, -1):.0%}",
        "width": f"{100 * min(max(claim.support, 0.0), 1.0):.0f}%",
        "best": carries,
    }


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


def parts_by_source(result: SourceAttribution) -> list[list[tuple[str, list[Part]]]]:
    """For each source the levels inside it that were scored, coarse to fine, with their parts in order."""
    inside: list[list[tuple[str, list[Part]]]] = [[] for _ in result.documents.sources]
    for name, level in result.levels().items():
        if name == "documents":
            continue
        own: dict[int, list[Part]] = {}
        for i, source in enumerate(level.sources):
            text = result.originals[source.document].text[source.start : source.end]
            k = next((k for k, whole in enumerate(result.documents.sources) if source.within(whole)), None)
            if k is not None and (bare := text.strip()):
                start = source.start + text.index(bare)
                own.setdefault(k, []).append((start, start + len(bare), i))
        for k, parts in own.items():
            inside[k].append((CLASSES[name], sorted(parts)))
    return inside


class _Paint:
    """Colours and scores of the parts in the column shown, written into the page so that it needs no script."""

    def __init__(self, result: SourceAttribution) -> None:
        self.levels = {CLASSES[name]: level for name, level in result.levels().items()}
        self.tops = {
            name: max(1e-12, float(np.nanmax(np.abs(level.table), initial=0.0))) for name, level in self.levels.items()
        }
        self.exact = result.estimator == "exact"

    def said(self, name: str, k: int) -> str:
        """Score and interval."""
        level = self.levels[name]
        low, high = level.low[k], level.high[k]
        if self.exact and low == high:
            return f"{number(level.scores[k])} exact"
        return f"{number(level.scores[k])} [{number(low, '−∞')}, {number(high, '+∞')}]"

    def style(self, name: str, k: int, held: bool = False) -> str:
        """CSS of a part; one whose own parts have colours gets a line instead."""
        score = float(self.levels[name].scores[k])
        strength = abs(score) / self.tops[name]
        tone = f"rgba(var(--{'for' if score > 0 else 'against'}),"
        if name == "d":
            return "" if strength < 0.05 else f"border-inline-start-color:{tone}{strength:.3f})"
        if held:
            return f"box-shadow:0 2.5px 0 {tone}{strength:.3f})"
        return f"background:{tone}{strength * STRONGEST:.3f})"

    def sure(self, name: str, k: int) -> bool:
        """Whether a part's interval excludes 0."""
        return bool(self.levels[name].low[k] > 0 or self.levels[name].high[k] < 0)


def nested(
    text: str, start: int, end: int, layers: Sequence[tuple[str, Sequence[Part]]], paint: _Paint | None = None
) -> str:
    """Characters [start, end) of a document, escaped, every part in an element that holds the finer ones."""
    if not layers:
        return escape(text[start:end])
    (name, parts), *finer = layers
    pieces, at = [], start
    for a, b, k in parts:
        if a < at or b > end:
            continue
        pieces.append(nested(text, at, a, finer, paint))
        inner = nested(text, a, b, finer, paint)
        more = ""
        if paint is not None:
            held = name == "s" and '<span class="w' in inner
            sure = " sure" if paint.sure(name, k) and not held else ""
            focus = ' tabindex="0"' if name == "s" else ""
            more = f'{focus} title="{escape(paint.said(name, k))}" style="{paint.style(name, k, held)}"'
            name_and = f"{name}{sure}"
        else:
            name_and = name
        pieces.append(f'<span class="{name_and}" data-k="{k}"{more}>{inner}</span>')
        at = b
    pieces.append(nested(text, at, end, finer, paint))
    return "".join(pieces)


def _numbers(level: Level) -> list[list[list[float | None]]]:
    """[columns][parts] of score, low, high; None for an end that is infinite."""
    table = np.stack([level.table, level.low_table, level.high_table], axis=-1)
    return [[[_plain(x) for x in part] for part in column] for column in table.transpose(1, 0, 2)]


def _plain(value: float) -> float | None:
    return float(f"{value:.{_DIGITS}g}") if np.isfinite(value) else None


def number(value: float | None, unknown: str = "∞") -> str:
    """A score with its sign; ∞ for one that is not known."""
    if value is None or not np.isfinite(value):
        return unknown
    if abs(value) < 0.0005:
        return "0"
    return f"{value:+.3f}" if abs(value) < 100 else f"{value:+.1f}"


def as_terminal(result: SourceAttribution, *, colour: bool = True, width: int = 100) -> str:
    """The attribution for a terminal: claims, and sources by score with their sentences and words in colours.

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
    for note in result.notes:
        console.print(Text(visible(note), "yellow"))
    if result.value == "logprob":
        for claim, sources in zip(result.claims, _cited(result), strict=True):
            names = ", ".join(result.name(k) for k in sources)
            line = f"{claim.support:>5.0%} {claim.verdict}: {_cut(' '.join(claim.text.split()), width // 2)}"
            console.print(Text(visible(f"{line}{f' ← {names}' if names else ''}"), "bold"))
    inside = parts_by_source(result)
    tops = {CLASSES[name]: float(np.abs(level.scores).max(initial=0.0)) for name, level in result.levels().items()}
    by_class = {CLASSES[name]: level for name, level in result.levels().items()}
    for k in result.ranking():
        d = result.documents
        head = f"{number(d.scores[k]):>9} [{number(d.low[k])}, {number(d.high[k])}]  {visible(result.name(k))}"
        console.print(Text(f"\n{head}", _style(d, k, tops["d"])))
        text = _whole(result, k)
        if not inside[k]:
            start, end = _ends(result, k)
            console.print(Text("  " + _cut(visible(" ".join(text[start:end].split())), width - 4), "dim"))
            continue
        shown = Text()
        for name, parts in inside[k]:
            if name == "s":
                shown = _painted(text, parts, inside[k][1:], by_class, tops)
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
        style, level = _style(levels["s"], k, tops["s"]), levels["s"]
        lines.append(f"  {number(level.scores[k]):>9} [{number(level.low[k])}, {number(level.high[k])}]  ", style)
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

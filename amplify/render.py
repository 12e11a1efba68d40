"""Values as text for a terminal and as HTML for a notebook or a report. Everything from outside is escaped."""

from __future__ import annotations

import functools
import html
import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from jinja2 import Template

    from amplify.types import Attribution

# blue speaks for, orange against: told apart by colour-blind readers, readable on light and dark ground
_FOR, _AGAINST, _NEITHER = "59, 130, 246", "234, 118, 32", "128, 128, 128"
_STRONGEST = 0.55  # opacity at the highest score; the text above stays readable
_BAR = 12
_SHOWN = 25


class Mark(NamedTuple):
    """What to point out in a text.

    Attributes:
        start, end: characters [start, end).
        strength: in [−1, 1]; the sign says for or against.
        title: shown on hover.
        cited: underlined, whatever its strength.
        signed: False: the strength speaks for no side.
    """

    start: int
    end: int
    strength: float
    title: str
    cited: bool = False
    signed: bool = True


def attribution_text(attribution: Attribution, *, limit: int = _SHOWN) -> str:
    """The words with their scores, strongest for the target first, as plain text.

    Args:
        attribution: what to show.
        limit: show at most this many words: those with the highest absolute scores.
    """
    strengths = _strengths(attribution.scores)
    order = sorted(range(len(attribution.words)), key=lambda i: (-abs(attribution.scores[i]), i))
    shown = sorted(order[:limit], key=lambda i: (-attribution.scores[i], i))
    lines = [_headline(attribution) + ("" if attribution.signed else ", unsigned: how much, not for which side")]
    for i in shown:
        score = attribution.scores[i]
        sign = "#" if not attribution.signed else "+" if score > 0 else "-"
        bar = sign * round(_BAR * abs(strengths[i]))
        word = visible(attribution.words[i]) + _interval(attribution, i)
        lines.append(f"  {_score(attribution, score):>9}  {bar:<{_BAR}}  {word}")
    if hidden := len(order) - len(shown):
        lines.append(f"  … and {hidden} more words, weaker than these")
    if joined := attribution.meta.get("joined"):
        lines.append(
            f"  the target goes on with the word before it, {joined!r}: {f' {attribution.target}'!r} begins a new one"
        )
    return "\n".join(lines)


def attribution_html(attribution: Attribution) -> str:
    """The text with each word on a ground as strong as its score, the number on hover. Needs no style sheet."""
    sides = {"for": _FOR, "against": _AGAINST} if attribution.signed else {"unsigned: how much": _NEITHER}
    legend = " ".join(
        f'<small><span style="background:rgba({colour},{_STRONGEST})">&nbsp;{side}&nbsp;</span></small>'
        for side, colour in sides.items()
    )
    body = marked_html(attribution.text, attribution_marks(attribution))
    return (
        f'<div class="attribution"><div><small>{escape(_headline(attribution))}</small> {legend}</div>'
        f'<div style="white-space:pre-wrap;line-height:1.7">{body}</div></div>'
    )


def attribution_marks(attribution: Attribution) -> list[Mark]:
    """One mark per word, strengths relative to the highest absolute score."""
    strengths = _strengths(attribution.scores)
    return [
        Mark(
            start,
            end,
            strengths[i],
            f"{_score(attribution, score)}{_interval(attribution, i)}",
            signed=attribution.signed,
        )
        for i, ((start, end), score) in enumerate(zip(attribution.spans, attribution.scores, strict=True))
    ]


def _strengths(scores: Sequence[float]) -> list[float]:
    """Scores relative to the highest finite one, in [-1, 1]: an infinite one is as strong, and NaN says nothing."""
    top = max((abs(score) for score in scores if math.isfinite(score)), default=0.0) or 1.0
    return [0.0 if math.isnan(score) else max(-1.0, min(1.0, score / top)) for score in scores]


def word_marks(text: str, words: Iterable[str]) -> list[Mark]:
    """Marks of full strength where the words stand in the text as whole words, case ignored."""
    wanted = sorted({word for word in words if word.strip()}, key=len, reverse=True)
    if not wanted:
        return []
    pattern = "|".join(re.escape(word) for word in wanted)
    # look-arounds and not \b: a key word may begin or end with a sign ("'tis", "C++")
    found = re.finditer(rf"(?<!\w)(?:{pattern})(?!\w)", text, flags=re.IGNORECASE)
    return [Mark(m.start(), m.end(), 1.0, "key word") for m in found]


def marked_html(text: str, marks: Sequence[Mark]) -> str:
    """The escaped text with its marks as coloured `<mark>` elements; marks that overlap an earlier one are left out."""
    parts, at = [], 0
    for start, end, strength, title, cited, signed in sorted(marks):
        if start < at or end > len(text) or not (strength or cited):
            continue
        colour = _NEITHER if not signed else _FOR if strength > 0 else _AGAINST
        line = ";text-decoration:underline" if cited else ""
        parts.append(escape(text[at:start]))
        parts.append(
            f'<mark style="background:rgba({colour},{min(1.0, abs(strength)) * _STRONGEST:.2f});color:inherit{line}" '
            f'title="{escape(title)}">{escape(text[start:end])}</mark>'
        )
        at = end
    parts.append(escape(text[at:]))
    return "".join(parts)


def escape(text: str) -> str:
    """The text safe inside HTML elements and attributes, control characters made visible."""
    return html.escape(visible(text))


def framed(page: str, title: str, height: int = 640) -> str:
    """A whole page as a fragment to embed, e.g. in a notebook: a sandboxed frame that holds it."""
    return (
        f'<iframe srcdoc="{escape(page)}" sandbox="allow-scripts" title="{escape(title)}" '
        f'style="width:100%;height:{height}px;border:0"></iframe>'
    )


def visible(text: str) -> str:
    """Control characters as their picture (␀ ␛ …), lone surrogates as �; tabs and line ends stay."""
    return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x80-\x9f\ud800-\udfff]", _picture, text)


def _picture(match: re.Match[str]) -> str:
    code = ord(match[0])
    return chr(0x2400 + code) if code < 0x20 else "␡" if code == 0x7F else "�"


def _headline(attribution: Attribution) -> str:
    against = f" against {attribution.foil!r}" if attribution.foil is not None else ""
    how = " · ".join(part for part in (attribution.method, attribution.model) if part)
    cost = f" · {attribution.budget:,} evaluation{'s' * (attribution.budget != 1)}" if attribution.budget else ""
    return f"why {attribution.target!r}{against}" + (f" ({how}{cost}{_gap(attribution)})" if how else "")


def _gap(attribution: Attribution) -> str:
    """What scores miss that should add up to a difference of two values, where that is more than a hundredth."""
    gap = attribution.meta.get("completeness_gap")
    if not isinstance(gap, float) or abs(gap) <= 0.01 * sum(map(abs, attribution.scores)):
        return ""
    return f" · their sum misses {_number(gap)}"


def _score(attribution: Attribution, score: float) -> str:
    """A score, with its sign where that says something."""
    return _number(score) if attribution.signed else _number(score).removeprefix("+")


def _number(score: float) -> str:
    return f"{score:+.3f}" if score == 0 or 0.001 <= abs(score) < 1000 else f"{score:+.1e}"


def _interval(attribution: Attribution, i: int) -> str:
    low, high = attribution.low[i], attribution.high[i]
    return "" if low == high else f"  [{_score(attribution, low)}, {_score(attribution, high)}]"


@functools.lru_cache(8)
def page_template(package: str, name: str, **filters: Callable[[Any], str]) -> Template:
    """The template of a self-contained page: all text is escaped and made visible, a missing variable is an error.

    Args:
        package: that the template ships in; it may include `style.css.jinja`, which all pages share.
        name: of its file.
        **filters: of the template, by name.
    """
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(one, ".") for one in (package, "amplify")]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
    )
    environment.filters.update(filters)
    return environment.get_template(name)

"""A report as one self-contained HTML page: no request leaves it, and nothing in it is run that came from data."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from amplify import codec
from amplify.errors import DataError
from amplify.evaluation import tables
from amplify.evaluation.results import Results
from amplify.evaluation.tables import shortened
from amplify.render import attribution_marks, marked_html, page_template, visible, word_marks
from amplify.types import Demonstration

if TYPE_CHECKING:
    from markupsafe import Markup

_LABELS = 230  # width of the plot's left column, in the drawing's own units
_WIDTH = 900
_LINE = 30
_SHOT_LIMIT = 40  # a pool of hundreds of shots would bury the page


def as_html(report: Results) -> str:
    """The report as one HTML page."""
    from markupsafe import Markup

    template = page_template(
        "amplify.evaluation",
        "report.html.jinja",
        percent=tables.percent,
        points=tables.points,
        p_value=tables.p_value,
        count=tables.count,
        short_hashes=tables.short_hashes,
        breakable=_breakable,
    )
    report = shortened(report)
    programs = _programs(report, Markup)
    return template.render(
        task=report.config["task"],
        header=tables.header(report),
        unfinished=tables.progress(report),
        verdict=tables.verdict(report),
        meaning=tables.MEANING,
        metric=tables.metric_name(report),
        rows=report.rows,
        further=tables.metrics_table(report),
        relied=tables.reliability_table(report),
        doubted=tables.uncertainty_table(report),
        curves=_curves(report),
        label=tables.name,
        notes=tables.notes,
        comparisons=report.comparisons,
        reading=tables.reading_table(report),
        scores_plot=_scores_plot(report),
        differences_plot=_differences_plot(report),
        programs=programs,
        opened=_opened(programs),
        data=_browsing(report),
        outcomes=("right", "partly", "wrong", "unparsed"),
    )


def _breakable(name: str) -> Markup:
    """A method's name that breaks behind an underscore or a comma where a column is too narrow for it."""
    from markupsafe import Markup, escape

    return Markup(escape(visible(name)).replace("_", Markup("_<wbr>")).replace(",", Markup(",<wbr>")))


@dataclass(frozen=True)
class Line:
    """One line of an interval plot: all places in the drawing's units."""

    label: str
    y: float
    at: float | None
    low: float
    high: float
    dots: tuple[float, ...]
    title: str
    strong: bool


@dataclass(frozen=True)
class Plot:
    """An interval plot, ready to draw."""

    title: str
    height: int
    ticks: tuple[tuple[float, str], ...]
    guides: tuple[tuple[float, str], ...]
    lines: tuple[Line, ...]
    left: int = _LABELS
    width: int = _WIDTH


@dataclass(frozen=True)
class Curve:
    """One method's risk-coverage curve as the points of a polyline."""

    label: str
    points: str
    place: int


def _curves(report: Results) -> list[Curve]:
    """Risk against coverage in a square of 300 units with its origin at the lower left."""
    found = []
    for place, row in enumerate(row for row in report.rows if row.reliability):
        assert row.reliability is not None
        pairs = zip(row.reliability.coverage, row.reliability.risk, strict=True)
        found.append(Curve(tables.name(row), " ".join(f"{300 * c:.1f},{300 * (1 - r):.1f}" for c, r in pairs), place))
    return found


def _scale(values: Sequence[float], step: float) -> tuple[float, float]:
    """The range of an axis: whole steps around the values."""
    return math.floor(min(values) / step + 1e-9) * step, math.ceil(max(values) / step - 1e-9) * step


def _ticks(low: float, high: float) -> list[float]:
    step = next(s for s in (0.05, 0.1, 0.2, 0.25, 0.5) if (high - low) / s <= 10.001)
    first = math.ceil(low / step - 1e-9)
    return [step * i + 0.0 for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _short(label: str) -> str:
    return label if len(label) <= 34 else label[:33] + "…"


def _scores_plot(report: Results) -> Plot | None:
    rows = [row for row in report.rows if row.score is not None]
    if not rows:
        return None
    task = report.config["task"]
    marks = {name: task[key] for name, key in (("chance", "chance"), ("most frequent label", "majority"))}
    guides = {name: value for name, value in marks.items() if value is not None}
    ends = [end for row in rows for end in (row.low, row.high) if end is not None]
    low, high = _scale([*ends, *(s for row in rows for s in row.seed_scores), *guides.values()], 0.1)
    low, high = max(0.0, low), min(1.0, max(high, low + 0.1))

    def x(value: float) -> float:
        return round(_LABELS + (_WIDTH - _LABELS - 20) * (value - low) / (high - low), 1)

    lines = tuple(
        Line(
            label=_short(tables.name(row)),
            y=_LINE * i + 40,
            at=x(row.score or 0.0),
            low=x(row.low or 0.0),
            high=x(row.high or 0.0),
            dots=tuple(map(x, row.seed_scores)) if len(row.seed_scores) > 1 else (),
            title=f"{row.method}: {tables.percent(row.score)} "
            f"[{tables.percent(row.low)}, {tables.percent(row.high)}], {row.interval}",
            strong=False,
        )
        for i, row in enumerate(rows)
    )
    return Plot(
        title=f"{tables.metric_name(report)} with 95 % intervals; small dots are single seeds",
        height=_LINE * len(rows) + 66,
        ticks=tuple((x(tick), f"{100 * tick:.0f} %") for tick in _ticks(low, high)),
        guides=_joined([(x(value), name) for name, value in guides.items()]),
        lines=lines,
    )


def _joined(guides: list[tuple[float, str]]) -> tuple[tuple[float, str], ...]:
    """Guides at (almost) the same place share a line and a label."""
    if len(guides) == 2 and abs(guides[0][0] - guides[1][0]) < 150:
        (a, first), (b, second) = sorted(guides)
        return ((a, f"{first} · {second}"),) if b - a < 3 else ((a, f"{first} · {second}"), (b, ""))
    return tuple(guides)


def _differences_plot(report: Results) -> Plot | None:
    known = [c for c in report.comparisons if c.difference is not None]
    if not known:
        return None
    low, high = _scale([0.0, *(end for c in known for end in (c.low or 0.0, c.high or 0.0))], 0.05)
    low, high = max(-1.0, low), min(1.0, max(high, low + 0.05))
    left = 340

    def x(value: float) -> float:
        return round(left + (_WIDTH - left - 20) * (value - low) / (high - low), 1)

    lines = tuple(
        Line(
            label=_short(c.method) + " − " + _short(c.baseline)
            if len(c.method) + len(c.baseline) < 50
            else f"{c.method[:22]}… − {c.baseline[:22]}…",
            y=_LINE * i + 40,
            at=x(c.difference or 0.0),
            low=x(c.low or 0.0),
            high=x(c.high or 0.0),
            dots=(),
            title=f"{c.method} − {c.baseline}: {tables.points(c.difference)} points "
            f"[{tables.points(c.low)}, {tables.points(c.high)}], p (Holm) {tables.p_value(c.p_holm)}",
            strong=c.claimed,
        )
        for i, c in enumerate(known)
    )
    return Plot(
        title="difference in percentage points with 95 % intervals; strong: significant after Holm",
        height=_LINE * len(known) + 66,
        ticks=tuple(
            (x(tick), tables.points(tick).removesuffix(".0") if abs(tick) > 1e-9 else "0") for tick in _ticks(low, high)
        ),
        guides=((x(0.0), "no difference"),),
        lines=lines,
        left=left,
    )


def _programs(report: Results, markup: Any) -> list[dict[str, Any]]:
    """Each program's shots with their words marked, and the first prompt it sent."""
    prompts = {(r["method"], r["seed"]): r["prompt"] for r in report.records if r.get("prompt")}
    shown = []
    for cell, data in report.programs.items():
        shots = list(_demonstrations(data))
        cards = [_card(shot, markup) for shot in shots[:_SHOT_LIMIT]]
        prompt = prompts.get((cell.method, cell.seed))
        shown.append(
            {
                "method": report.rows[cell.index].method,
                "seed": cell.seed,
                "file": cell.file,
                "cards": cards,
                "more": len(shots) - len(cards),
                "notes": [str(note) for note in data.get("notes", ())],
                "prompt": _turns(prompt) if prompt else [],
            }
        )
    return shown


def _opened(programs: Sequence[Mapping[str, Any]]) -> str | None:
    """The program to show at once: the first whose shots have reasons, else the first that has shots."""
    reasons = [p["file"] for p in programs if any(card["rationale"] for card in p["cards"])]
    return next(iter(reasons), next((p["file"] for p in programs if p["cards"]), None))


def _turns(prompt: Mapping[str, Any]) -> list[tuple[str, str]]:
    turns = [(m["role"], m["content"]) for m in prompt["messages"]] or [("text", prompt["text"] or "")]
    return [*turns, ("assistant begins", prompt["prefix"])] if prompt["prefix"] else turns


def _demonstrations(data: Any) -> Iterator[Demonstration]:
    """Every demonstration in a program's JSON, however deep."""
    if isinstance(data, Mapping):
        if isinstance(data.get("example"), Mapping) and "text" in data["example"]:
            try:
                yield codec.decode(Demonstration, data)
            except DataError:
                return  # another shape of another method: the program's file still has it
            return
        for value in data.values():
            yield from _demonstrations(value)
    elif isinstance(data, list):
        for value in data:
            yield from _demonstrations(value)


def _card(shot: Demonstration, markup: Any) -> dict[str, Any]:
    text, reason = shot.example.text, shot.rationale
    words = reason.words if reason else ()
    made = reason.attribution if reason else None
    if made is not None and made.text == text:
        cited = {word.casefold() for word in words}
        marks = [
            mark._replace(cited=word.casefold() in cited)
            for word, mark in zip(made.words, attribution_marks(made), strict=True)
        ]
    else:
        marks = word_marks(text, words)
    options = list(zip(shot.example.choices, shot.example.options, strict=False))
    said = reason.text if reason else ""
    return {
        "id": shot.example.id,
        "text": markup(marked_html(text, marks)),
        "options": options,
        "label": shot.example.label if shot.example.label is not None else ", ".join(shot.example.answers),
        "rationale": markup(marked_html(said, word_marks(said, words))) if said else "",
        "foil": shot.foil,
        "score": shot.score,
        "how": " · ".join(part for part in (made.method, made.model) if part) if made else "",
    }


def _browsing(report: Results) -> dict[str, Any]:
    """What the page's item browser shows, as JSON values."""
    methods = [row.method for row in report.rows]
    number = {method["label"]: i for i, method in enumerate(report.config["methods"])}
    place = {item["id"]: i for i, item in enumerate(report.config["items"])}
    items = [
        {
            "id": item["id"],
            "text": visible(item["text"]),
            "gold": visible(", ".join(item["answers"]) or str(item["label"] or "")),
            "options": [visible(f"({c}) {o}") for c, o in zip(item["choices"], item["options"], strict=False)],
        }
        for item in report.config["items"]
    ]
    answers: list[list[list[Any]]] = [[] for _ in items]
    for r in report.records:
        outcome = 3 if not r["parsed"] else 0 if r["score"] >= 1 else 1 if r["score"] > 0 else 2
        answers[place[r["id"]]].append(
            [number[r["method"]], r["seed"], visible(r["answer"] or ""), outcome, visible(_said(r))]
        )
    return {"methods": methods, "items": items, "answers": answers}


def _said(record: Mapping[str, Any]) -> str:
    """What the model wrote, and how likely it found each label where labels were scored."""
    scores = sorted(record["label_scores"].items(), key=lambda pair: -(pair[1] if pair[1] is not None else math.inf))
    listed = [f"{'–' if score is None else f'{score:.3f}'}  {label}" for label, score in scores]
    return "\n".join([*([record["text"]] if record["text"] else []), *listed])

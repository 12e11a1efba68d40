"""What `explain_prompt` found, as values, text, JSON and one page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from amplify import codec, files
from amplify.evaluation.tables import aligned, count, p_value, percent
from amplify.methods.base import Program
from amplify.prompting.parts import Part

Table = list[list[str]]
SHOWN = 48  # characters of a part in the table of a terminal
MEANING = (
    "A part's value is its Shapley value in the game whose coalitions are worth the mean log-odds of the gold label, "
    "in nats; all values together are the whole prompt less the empty one. The interval covers the items and the sets "
    "of parts that were asked. “Content” is the value where neutral words of the same length stand in the place of "
    "what is left out; value less content is what the part gives by its mere length. “Alone missing” is what is lost "
    "where nothing else is left out. Token noise is the share of length in length and content, in absolute values."
)


@dataclass(frozen=True)
class PartValue:
    """A part's value, in nats of log-odds.

    Attributes:
        part: which.
        tokens: its own.
        value, low, high: its Shapley value where absent parts are left out, with a 95 % interval.
        content, content_low, content_high: the same where neutral words stand in their place.
        length_error: half width of the 95 % interval of value - content, over items alone.
        left_out: what is lost where this part alone is missing.
        filler: the neutral words.

    Example:
        >>> from amplify.prompting.parts import Part
        >>> part = Part("shot 1", "shot", "Message: hello")
        >>> PartValue(part, 4, 0.3, 0.1, 0.5, 0.2, 0.0, 0.4, 0.1, 0.3, "word word").name
        'shot 1'
    """

    part: Part
    tokens: int
    value: float
    low: float
    high: float
    content: float
    content_low: float
    content_high: float
    length_error: float
    left_out: float
    filler: str

    @property
    def name(self) -> str:
        """Of the part."""
        return self.part.name

    @property
    def length(self) -> float:
        """What it gives by its mere length: value - content."""
        return self.value - self.content


@dataclass(frozen=True)
class Check:
    """A program on items that nothing was decided on, against the one as it is.

    Attributes:
        name: what was changed.
        control: whether it was changed by lot; figures are then means over several draws.
        items: how many.
        log_odds: mean of the gold label, in nats.
        difference, low, high: to the program as it is, with a 95 % interval.
        p: two-sided, of a paired test.
        accuracy: share of items whose gold label is the likeliest.
        tokens: of a prompt.

    Example:
        >>> Check("dropped", False, 40, 1.2, 0.1, -0.1, 0.3, 0.2, 0.7, 120.0).items
        40
    """

    name: str
    control: bool
    items: int
    log_odds: float
    difference: float
    low: float
    high: float
    p: float
    accuracy: float
    tokens: float


@dataclass(frozen=True)
class PromptExplanation:
    """What the parts of a prompt are worth, and what to do about it.

    Attributes:
        parts: in the order of the prompt.
        empty, whole: mean log-odds without any part, and with all.
        drop: names of the parts of a value below 0.
        order: the shots' places in an order that did better, () for the given one.
        checks: on items that nothing was decided on; empty where there are too few of them.
        advice: what did best on the items of the game: "as it is", "dropped", "reordered", "dropped and reordered".
        helps: whether that is surely better on the other items (one-sided p at most 5 %).
        program: the program of the advice, to be used where it helps.
        meta: task, model, items, budget, estimator, seed, tokens.

    Example:
        >>> task = amplify.load_task("support_tickets")
        >>> found = amplify.explain_prompt("zero_shot", task, "scripted:first_option", items=8, show_progress=False)
        >>> [(part.name, round(part.value, 2)) for part in found.parts]
        [('instruction 1', -1.47), ('label list', 0.58)]
        >>> found.helps, found.verdict()[:50]
        (False, 'It does not surely help to leave out instruction 1')
    """

    parts: tuple[PartValue, ...]
    empty: float
    whole: float
    drop: tuple[str, ...]
    order: tuple[int, ...]
    checks: tuple[Check, ...]
    advice: str
    helps: bool
    program: Program
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def token_noise(self) -> float:
        """Share of the parts' mere length in all that they do: sum |length| / sum (|length| + |content|)."""
        length = sum(abs(part.length) for part in self.parts)
        content = sum(abs(part.content) for part in self.parts)
        return length / (length + content) if length + content else 0.0

    def verdict(self) -> str:
        """What to do, in a sentence or two."""
        shorter = f"leave out {', '.join(self.drop)}"
        order = f"show the shots in the order {' '.join(str(i + 1) for i in self.order)}"
        told = {"dropped": shorter, "reordered": order, "dropped and reordered": f"{shorter}, and {order}"}
        if (what := told.get(self.advice)) is None:
            return "Leave the prompt as it is: nothing that was tried did better."
        mine = next((check for check in self.checks if check.name == self.advice), None)
        if mine is None:
            return f"Perhaps {what}: too few items were left to check it on."
        plain = self.checks[0]
        seen = (
            f"on {mine.items} other items {mine.difference:+.2f} nats of log-odds "
            f"({mine.low:+.2f} to {mine.high:+.2f}), accuracy {percent(plain.accuracy)} before and "
            f"{percent(mine.accuracy)} after, "
            f"{count(plain.tokens)} and {count(mine.tokens)} tokens a prompt"
        )
        by_lot = "; ".join(f"{check.name}: {check.difference:+.2f}" for check in self.checks if check.control)
        controlled = f" Beside it, {by_lot} nats." if by_lot else ""
        if self.helps:
            return f"{what[0].upper()}{what[1:]}: {seen}.{controlled}"
        return f"It does not surely help to {what}: {seen}.{controlled} Leave the prompt as it is."

    def table(self) -> Table:
        """The parts with heading."""
        rows = [["part", "value", "95 % interval", "content", "length", "alone missing", "tokens", ""]]
        for one in self.parts:
            text = " ".join(one.part.text.split())
            shown = text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"
            rows.append([
                one.name, f"{one.value:+.3f}", f"{one.low:+.3f} to {one.high:+.3f}", f"{one.content:+.3f}",
                f"{one.length:+.3f}", f"{one.left_out:+.3f}", str(one.tokens), shown,
            ])  # fmt: skip
        return rows

    def check_table(self) -> Table:
        """The checks with heading."""
        rows = [["on other items", "items", "log-odds", "to as it is", "95 % interval", "p", "accuracy", "tokens"]]
        for one in self.checks:
            first = one.name == "as it is"
            rows.append([
                f"{one.name}{' (control)' if one.control else ''}", str(one.items), f"{one.log_odds:+.3f}",
                "" if first else f"{one.difference:+.3f}", "" if first else f"{one.low:+.3f} to {one.high:+.3f}",
                "" if first else p_value(one.p), percent(one.accuracy), count(one.tokens),
            ])  # fmt: skip
        return rows

    def header(self) -> list[tuple[str, str]]:
        """(name, value) pairs: what was asked, and what it cost."""
        meta = self.meta
        reuse = meta["asked_tokens"] / meta["forwarded_tokens"] if meta["forwarded_tokens"] else 1.0
        pairs = [
            ("task", str(meta["task"])),
            ("model", str(meta["model"])),
            ("program", f"{meta['program']}{', calibrated' if meta['calibrated'] else ''}"),
            ("game", f"{meta['items']} items, {meta['sets_in_all']} sets of parts, {meta['estimator']}"),
            ("log-odds", f"{self.empty:+.3f} without any part, {self.whole:+.3f} with all"),
            ("token noise", f"{percent(self.token_noise, 0)} of what parts do is their mere length"),
            ("tokens", f"{count(meta['asked_tokens'])} asked, {reuse:.1f} times as many as were forwarded"),
            ("seed", str(meta["seed"])),
        ]  # fmt: skip
        if meta["answers_at_once"]:
            pairs.append(("note", "the label is asked for at once: rationales that the model would write are left out"))
        return pairs

    def __str__(self) -> str:
        parts = ["\n".join(f"{key:12} {value}" for key, value in self.header()), aligned(self.table())]
        if self.checks:
            parts.append(aligned(self.check_table()))
        return "\n\n".join([*parts, self.verdict()])

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        values = codec.fields_of(self) | {"program": self.program.tagged()}
        return {**values, "token_noise": self.token_noise, "verdict": self.verdict()}

    def save(self, path: str | Path) -> None:
        """Write it as JSON.

        Raises:
            WriteError: it cannot be written.
        """
        files.write_json(path, self.to_dict())

    def to_html(self, path: str | Path | None = None) -> str:
        """One self-contained page; written where a path is given.

        Raises:
            WriteError: it cannot be written.
        """
        from amplify.render import page_template

        page = page_template("amplify.prompting", "page.html.jinja").render(
            it=self, header=self.header(), checks=self.check_table(), verdict=self.verdict(), meaning=MEANING,
            bars=self._bars(),
        )  # fmt: skip
        if path is not None:
            files.write(path, page)
        return page

    def _bars(self) -> list[dict[str, Any]]:
        """Each part's value, interval and content, 0 in the middle of 600 units."""
        most = max((max(abs(p.low), abs(p.high), abs(p.content)) for p in self.parts), default=0.0) or 1.0

        def at(value: float) -> float:
            return round(300 + 280 * value / most, 1)

        return [
            {
                "one": p, "y": 22 + 30 * i, "at": at(p.value), "low": at(p.low), "high": at(p.high),
                "content": at(p.content), "sure": p.low > 0 or p.high < 0, "text": f"{p.value:+.2f}",
            }
            for i, p in enumerate(self.parts)
        ]  # fmt: skip

"""What a search found, as text, Markdown and one page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from amplify.evaluation.tables import aligned, count, md, md_table, p_value, percent, points

if TYPE_CHECKING:
    from amplify.tuning.search import Tuned

Table = list[list[str]]
OUT = 60  # characters of why a candidate left; result.json has them all
MEANING = (
    "Scores are means over race items, which grow from round to round; nothing of the test split was looked at. The "
    "choice is the simplest candidate within one standard error of the best. It is deployed only where it is better "
    "than the best plain candidate on items that the search has not seen (paired tests after 32, 64 and all items, "
    "together at 5 %, one-sided). What is deployed is then fitted again on all labelled items, unless its prompt shows "
    "shots that were drawn or an instruction that was written; the scores are from before that. An ingredient's value "
    "is its Shapley value in the game whose coalitions are worth the best candidate made of them alone, on the items "
    "of the first round."
)


def verdict(tuned: Tuned) -> str:
    """What to deploy and why, in a sentence or two."""
    seen, plain = tuned.confirmation, "the best plain candidate"
    if seen is None:
        if tuned.chosen != tuned.baseline:
            return f"Deploy {tuned.label}, {plain}: the budget left nothing to confirm {tuned.chosen} with."
        return f"Deploy {tuned.label}, {plain}: nothing in the search was more than one standard error better."
    unseen = f"on {seen.n} items that the search has not seen"
    if tuned.better:
        return (
            f"Deploy {tuned.label}: {percent(seen.chosen)} against {percent(seen.plain)} for {tuned.baseline}, "
            f"{plain}, {unseen} ({points(seen.difference)} points, {points(seen.low)} to {points(seen.high)}, "
            f"one-sided p {p_value(seen.p)})."
        )
    return (
        f"Deploy {tuned.label}, {plain}: {tuned.chosen} won the race, but {unseen} it is not surely better "
        f"({percent(seen.chosen)} against {percent(seen.plain)}, {points(seen.difference)} points, "
        f"one-sided p {p_value(seen.p)})."
    )


def header(tuned: Tuned) -> list[tuple[str, str]]:
    """(name, value) pairs: what was searched, and what it cost."""
    config, spent = tuned.config, tuned.spent
    rounds = ", ".join(map(str, tuned.race["rounds"]))
    minutes = spent.seconds / 60
    cost = f"{minutes:.1f} minutes, {count(spent.tokens)} tokens asked, {count(spent.calls)} calls"
    saved = tuned.one_by_one / spent.forwarded if spent.forwarded else 0.0
    pairs = [
        ("task", f"{config['task']['name']}, metric {config['task']['metric']}"),
        ("model", str(config["model"]["id"])),
        ("budget", ", ".join(f"{value:g} {name}" for name, value in config["budget"].items())),
        ("spent", cost),
        ("race", f"{len(tuned.table)} candidates, items after each round: {rounds} (ended: {tuned.race['ended']})"),
    ]
    if saved > 1:
        told = f"{count(spent.forwarded)} tokens forwarded; asked one by one it would be {count(tuned.one_by_one)}"
        pairs.append(("reuse", f"{told}: {saved:.1f} times as many"))
    if tuned.cross_fitted is not None:
        mine, plain = tuned.cross_fitted
        pairs.append(("cross-fitted", f"{percent(mine)} by choosing so, {percent(plain)} for the best plain candidate"))
    return [*pairs, ("seed", str(config["seed"])), ("versions", f"amplify {config['amplify']}")]


def leaderboard(tuned: Tuned) -> Table:
    """Candidates, best first, with heading."""
    table = [["candidate", "items", "score", "95 % interval", "to plain", "tokens", "left the race"]]
    for line in tuned.table:
        interval = "–" if line.low is None or line.high is None else f"{100 * line.low:.1f} – {100 * line.high:.1f}"
        marks = [
            word for word, label in (("chosen", tuned.chosen), ("best plain", tuned.baseline)) if line.label == label
        ]
        mark = f" ({', '.join(marks)})" if marks else ""
        table.append([
            f"{line.label}{mark}", str(line.n), percent(line.score), interval, points(line.against),
            count(line.tokens), (line.out or "finalist")[:OUT],
        ])  # fmt: skip
    return table


def ingredient_table(tuned: Tuned) -> Table:
    """Ingredients, most valuable first, with heading; only the heading where there are none."""
    table = [["ingredient", "points", "95 % interval", "candidates"]]
    for one in tuned.ingredients:
        table.append([one.name, points(one.value), f"{points(one.low)} to {points(one.high)}", str(one.candidates)])
    return table


def command(tuned: Tuned, folder: str) -> str:
    """The command that deploys the program."""
    model = tuned.config["model"]["id"]
    return f"amplify apply {folder}/program.json --input new.csv --text TEXT --model {model} --out answers.csv"


def as_text(tuned: Tuned) -> str:
    """The report for a terminal."""
    parts = [
        "\n".join(f"{key:12} {value}" for key, value in header(tuned)),
        aligned(leaderboard(tuned)),
        *([aligned(ingredient_table(tuned))] if tuned.ingredients else []),
        *(["\n".join(tuned.notes)] if tuned.notes else []),
        verdict(tuned),
    ]
    return "\n\n".join(parts)


def as_markdown(tuned: Tuned, folder: str) -> str:
    """The report as Markdown."""
    parts = [
        f"# {md(str(tuned.config['task']['name']))}, tuned",
        f"**{md(verdict(tuned))}**",
        "\n".join(f"- **{key}**: {md(value)}" for key, value in header(tuned)),
        "## Leaderboard",
        md_table(leaderboard(tuned)),
    ]
    if tuned.ingredients:
        parts += ["## What each ingredient is worth", md_table(ingredient_table(tuned))]
    if tuned.notes:
        parts += ["## Notes", "\n".join(f"- {md(note)}" for note in tuned.notes)]
    parts += ["## Deploy", f"```console\n$ {command(tuned, folder)}\n```", f"_{MEANING}_"]
    return "\n\n".join(parts) + "\n"


@dataclass(frozen=True)
class Bar:
    """A horizontal interval with a point, in the drawing's units."""

    label: str
    y: float
    at: float
    low: float
    high: float
    strong: bool
    text: str


def as_html(tuned: Tuned, folder: str) -> str:
    """The report as one self-contained page."""
    from amplify.render import page_template

    template = page_template("amplify.evaluation", "tune.html.jinja", percent=percent, points=points, count=count)
    return template.render(
        tuned=tuned,
        task=tuned.config["task"]["name"],
        verdict=verdict(tuned),
        header=header(tuned),
        leaderboard=leaderboard(tuned),
        race=_race(tuned),
        rounds=tuned.race["rounds"],
        worth=_worth(tuned),
        trade=_trade(tuned),
        command=command(tuned, folder),
        meaning=MEANING,
    )


def _race(tuned: Tuned) -> list[tuple[str, str, int, bool]]:
    """Each candidate's mean after each round as the points of a polyline in 560 x 300 units, and its place."""
    rounds: Sequence[int] = tuned.race["rounds"]
    lines = []
    for place, line in enumerate(line for line in tuned.table if line.n):
        reached = [n for n in rounds if n <= line.n]
        dots = []
        for n in reached:
            x = 560 * (rounds.index(n) + 1) / len(rounds)
            dots.append(f"{x:.1f},{300 * (1 - sum(line.scores[:n]) / n):.1f}")
        lines.append((line.label, " ".join(dots), place, line.label in (tuned.chosen, tuned.baseline)))
    return lines


def _worth(tuned: Tuned) -> list[Bar]:
    """The ingredients' values, 0 in the middle of 600 units."""
    most = max((max(abs(one.low), abs(one.high)) for one in tuned.ingredients), default=0.0) or 1.0

    def at(value: float) -> float:
        return 300 + 280 * value / most

    return [
        Bar(one.name, 20 + 28 * i, at(one.value), at(one.low), at(one.high), one.low > 0, f"{points(one.value)} points")
        for i, one in enumerate(tuned.ingredients)
    ]


def _trade(tuned: Tuned) -> list[tuple[str, float, float, bool]]:
    """Score against tokens of an answer (square root scale) in 560 x 300 units, for those that raced to the end."""
    shown = [line for line in tuned.table if line.n and line.score is not None]
    most = max((line.tokens for line in shown), default=0.0) or 1.0
    return [
        (line.label, 560 * (line.tokens / most) ** 0.5, 300 * (1 - (line.score or 0.0)), not line.out) for line in shown
    ]

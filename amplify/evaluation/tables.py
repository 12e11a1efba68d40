"""A report as plain text for a terminal, and as Markdown."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from amplify.evaluation.reliability import BINS, COVERAGES, RIGHT_FROM
from amplify.evaluation.results import Comparison, Results, Row
from amplify.methods.base import as_typed
from amplify.render import visible

Table = list[list[str]]


def shared_options(config: Mapping[str, Any]) -> dict[str, str]:
    """Options set to one value in all methods of a run that have them, two or more, as `--set` takes them.

    Args:
        config: what run.json holds.
    """
    methods = config["methods"]
    shared = {}
    for option in dict.fromkeys(option for method in methods for option in _changed(method)):
        values = [as_typed(method["options"][option]) for method in methods if option in method["options"]]
        if len(values) > 1 and len(set(values)) == 1:
            shared[option] = values[0]
    return shared


def shortened(report: Results) -> Results:
    """The report with rows and comparisons under shorter names; records, programs and the configuration keep theirs."""
    shared = shared_options(report.config)
    names = {}
    for method in report.config["methods"]:
        own = [f"{option}={value}" for option, value in _changed(method).items() if option not in shared]
        listed = f"{method['name']}[{','.join(own)}]" if own else method["name"]
        names[method["label"]] = listed if _changed(method) else method["label"]
    return replace(
        report,
        rows=tuple(replace(row, method=names[row.method]) for row in report.rows),
        comparisons=tuple(replace(c, method=names[c.method], baseline=names[c.baseline]) for c in report.comparisons),
    )


def _changed(method: Mapping[str, Any]) -> dict[str, str]:
    """The options that a method's label names; none where it cannot be taken apart (a proxy is named otherwise)."""
    written = method["label"].removeprefix(method["name"]).removeprefix("[").removesuffix("]")
    values = {option: as_typed(value) for option, value in method["options"].items()}
    found = {option: value for option, value in values.items() if f"{option}={value}" in written.split(",")}
    return found if written == ",".join(f"{option}={value}" for option, value in found.items()) else {}


def percent(value: float | None, digits: int = 1) -> str:
    """A share as a percentage, – for none."""
    return "–" if value is None else f"{100 * value:.{digits}f} %"


def points(value: float | None) -> str:
    """A signed difference in percentage points, with a true minus sign."""
    return "–" if value is None else f"{100 * value:+z.1f}".replace("-", "−")


def p_value(value: float | None) -> str:
    """A p-value with three digits."""
    if value is None:
        return "–"
    return f"{value:.3f}" if value >= 0.001 else "<0.001"


def count(value: float) -> str:
    """A count with thousands separators; one digit where it is small."""
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.1f}"


def metric_name(report: Results) -> str:
    """The name of the score in headings."""
    return str(report.config["score"]).replace("_", " ")


def header(report: Results) -> list[tuple[str, str]]:
    """What was run on what: (name, value) pairs."""
    config, task = report.config, report.config["task"]
    seeds = ", ".join(map(str, config["seeds"]))
    splits = task["splits"]
    n = len(config["items"])
    model = config["model"]
    shared = ", ".join(f"{option}={value}" for option, value in shared_options(config).items())
    details = ", ".join(_details({k: v for k, v in model.items() if k not in ("id", "versions")}))
    return [
        ("task", f"{task['name']}, {n} of {splits['test']} test items, metric {metric_name(report)}"),
        ("model", model["id"] + (f" ({details})" if details else "")),
        ("answers", _how_answered(config)),
        ("seeds", f"{seeds} (methods marked * do not depend on the seed and run once)"),
        *([("options", f"{shared} in every method that has them")] if shared else []),
        *([("labels", spelt)] if (spelt := spellings(task["labels"])) else []),
        ("by guessing", f"chance {percent(task['chance'])}, most frequent label {percent(task['majority'])}"),
        ("versions", ", ".join([f"amplify {config['amplify']}", *(f"{k} {v}" for k, v in config["versions"].items())])),
    ]


def spellings(labels: Sequence[str]) -> str:
    """What to say of labels that differ in letter case alone, "" where none do."""
    folded: dict[str, list[str]] = {}
    for label in labels:
        folded.setdefault(unicodedata.normalize("NFC", label).casefold(), []).append(label)
    same = [" and ".join(map(repr, group)) for group in folded.values() if len(group) > 1]
    return f"{', '.join(same)} differ in letter case alone and count as different labels" if same else ""


def _how_answered(config: Mapping[str, Any]) -> str:
    if config["mode"] == "generate":
        return "parsed from what the model writes"
    way, form = config.get("calibrate", "none"), config.get("option_form", "letters")
    scored = "labels scored" if form == "letters" else f"options {form} scored"
    return scored if way == "none" else f"{scored}, calibrated ({way})"


def _details(described: Mapping[str, Any]) -> list[str]:
    """What a model says of itself, hashes cut short, nested values in line."""
    parts = []
    for key, value in described.items():
        if isinstance(value, Mapping):
            parts += _details(value)
        elif value not in (None, "", [], {}):
            parts.append(f"{key} {short_hashes(str(value))}")
    return parts


def short_hashes(text: str) -> str:
    """The text with the hashes in it cut to twelve digits; run.json has them whole."""
    return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{28,}\b", r"\1", text)


def progress(report: Results) -> str:
    """How much of an unfinished run is there, "" for a finished one."""
    if report.finished:
        return ""
    done, planned = sum(row.answered for row in report.rows), sum(row.planned for row in report.rows)
    return f"UNFINISHED: {done:,} of {planned:,} answers; the command that began this run goes on with it"


def rows_table(report: Results) -> Table:
    """The main table, its heading first."""
    table = [[
        "method", "items", metric_name(report), "95 % interval", "seeds ±", "unparsed",
        "calls", "prompt tok", "new tok", "seconds",
    ]]  # fmt: skip
    for row in report.rows:
        interval = "–" if row.low is None or row.high is None else f"{100 * row.low:.1f} – {100 * row.high:.1f}"
        cost = row.cost
        table.append([
            name(row), str(row.n), percent(row.score), interval,
            "–" if row.spread is None else f"{100 * row.spread:.1f}", percent(row.unparsed),
            count(cost.calls), count(cost.prompt_tokens), count(cost.completion_tokens), f"{cost.seconds:,.1f}",
        ])  # fmt: skip
    return table


def _further(name: str, value: float | None) -> str:
    """A further metric as it is read: fluency in bits, everything else as a share."""
    return percent(value) if name != "fluency" or value is None else f"{value:.2f} bits"


def metrics_table(report: Results) -> Table:
    """Further scores, heading first, a line for each score; only the heading where there are none."""
    names = dict.fromkeys(name for row in report.rows for name in row.metrics)
    return [
        ["", *(name(row) for row in report.rows)],
        *([n.replace("_", " "), *(_further(n, row.metrics.get(n)) for row in report.rows)] for n in names),
    ]


def name(row: Row) -> str:
    """A method's label, with * where it ran once because seeds make no difference."""
    return row.method + ("*" if row.seeds == (None,) else "")


def comparisons_table(report: Results) -> Table:
    """The declared comparisons, heading first."""
    table = [["method", "against", "items", "difference", "95 % interval", "better/worse", "p", "p (Holm)", "test"]]
    for c in report.comparisons:
        interval = "–" if c.low is None else f"{points(c.low)} to {points(c.high)}"
        table.append([
            c.method, c.baseline, str(c.n), points(c.difference), interval, f"{c.better}/{c.worse}",
            p_value(c.p), p_value(c.p_holm), c.test,
        ])  # fmt: skip
    return table


def reading_table(report: Results) -> Table:
    """Comparisons whose sides differ in how many answers could be read, over the items that both read; with heading."""
    table = [
        ["method", "against", "unparsed", "the other's", "items both read", "difference there", "95 % interval", "p"]
    ]
    for c in report.comparisons:
        if c.uneven:
            both = c.both_read
            interval = "–" if both.low is None else f"{points(both.low)} to {points(both.high)}"
            there = [f"{both.n} of {c.n}", points(both.difference), interval, p_value(both.p)]
            table.append([c.method, c.baseline, *map(percent, c.unparsed), *there])
    return table


def reliability_table(report: Results) -> Table:
    """What label probabilities are worth, heading first; only the heading where none were scored."""
    most = [f"surest {percent(c, 0)} right" for c in COVERAGES]
    table = [["method", "mass on labels", "resolved", "Brier", f"ECE ({BINS} bins)", "area under risk", *most]]
    for row in report.rows:
        if found := row.reliability:
            values = [found.brier, found.ece, found.aurc]
            table.append([
                name(row), percent(found.mass), percent(found.resolved),
                *(f"{e.value:.3f} ({e.low:.3f} – {e.high:.3f})" for e in values),
                *(f"{percent(e.value)} ({100 * e.low:.1f} – {100 * e.high:.1f})" for e in found.selective),
            ])  # fmt: skip
    return table


def uncertainty_table(report: Results) -> Table:
    """How well uncertainty tells wrong written answers from right ones, heading first; a line for each measure."""
    table = [["method", "uncertainty by", *(f"AUROC, right from {percent(least, 0)}" for least in RIGHT_FROM)]]
    for row in report.rows:
        for measure, found in row.uncertainty.items():
            values = [
                f"{e.value:.3f} ({e.low:.3f} – {e.high:.3f})" if (e := found.get(least)) else "–"
                for least in RIGHT_FROM
            ]
            table.append([name(row), measure.replace("_", " "), *values])
    return table


def unread_texts(row: Row) -> str:
    """Some of the answers that could not be read, as they were written; "" where all were."""
    if not row.unparsed:
        return ""
    shown = [_cut(" ⏎ ".join(visible(text).strip().splitlines())) for text in row.unread]
    return f"{percent(row.unparsed)} unparsed, such as " + ", ".join(
        f"“{text}”" if text else "nothing" for text in shown
    )


def _cut(text: str, most: int = 100) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def fit_table(report: Results) -> Table:
    """What finding the programs cost, heading first; only methods that cost something."""
    table = [["method", "calls", "prompt tok", "new tok", "seconds"]]
    for row in report.rows:
        if row.fit.calls or row.fit.seconds >= 0.05:
            fit = row.fit
            table.append([
                row.method, count(fit.calls), count(fit.prompt_tokens), count(fit.completion_tokens),
                f"{fit.seconds:,.1f}",
            ])  # fmt: skip
    return table


def verdict(report: Results) -> str:
    """The declared comparisons in one or two sentences."""
    known = [c for c in report.comparisons if c.p is not None]
    if not report.comparisons:
        return "No comparison was declared."
    if not known:
        return "No declared comparison can be made yet."
    family = f"{len(report.comparisons)} declared comparison{'s' if len(report.comparisons) > 1 else ''}"
    sure = [c for c in known if c.claimed]
    unsure = [c for c in known if c.significant and not c.claimed]
    if not sure and not unsure:
        return (
            f"Of {family}, none is significant at 5 % after Holm's adjustment: "
            "this run does not show that any method helps or harms."
        )
    if not sure:
        return " ".join([f"Of {family}, none shows by itself that a method helps or harms.", *map(_doubted, unsure)])
    first = f"Of {family}, {len(sure)} {'is' if len(sure) == 1 else 'are'} significant at 5 % after Holm's adjustment: "
    return " ".join([f"{first}{'; '.join(map(_said, sure))}.", *map(_doubted, unsure)])


def _doubted(c: Comparison) -> str:
    """A significant difference between sides of which unequally many answers could be read."""
    both = c.both_read
    unread = f"{percent(c.unparsed[0])} of its answers and {percent(c.unparsed[1])} of the other's could not be read"
    there = (
        "there is no item that both read, so this says nothing of who is right more often"
        if both.difference is None
        else f"over the {both.n} items that both read the difference is {points(both.difference)} points "
        f"({points(both.low)} to {points(both.high)}, p {p_value(both.p)})"
    )
    return f"{_apart(c)}, but {unread}: {there}."


def _said(c: Comparison) -> str:
    both = f" ({points(c.both_read.difference)} over the {c.both_read.n} items that both read)" if c.uneven else ""
    return f"{_apart(c)}{both}"


def _apart(c: Comparison) -> str:
    word = "above" if (c.difference or 0) > 0 else "below"
    return f"{c.method} is {abs(100 * (c.difference or 0)):.1f} points {word} {c.baseline}"


MEANING = (
    "The test item is the unit: scores are averaged over seeds per item first. Intervals: Wilson for one run, else a "
    "BCa bootstrap over items; they hold for new items, at these shots and this model. "
    "Paired tests, two-sided: exact McNemar for one run each, else an item-level sign flip. "
    "An answer that cannot be parsed is wrong. Calls, tokens and seconds are per 1,000 answers, fitting left out; "
    "every prompt counts in full, also where a shared beginning was computed once. Label probabilities: their mass "
    "before they are made to sum to one; the share of answers that no redistribution of the missing mass could change; "
    "Brier score and expected calibration error (less is better); the error rate averaged over all coverages, and how "
    "many are right among the answers of which the method is surest. Rationales: by how much the probability of the "
    "answer falls with dots in place of the rationale (filler), with its first third (early) and with other words for "
    "it (reworded), and by how much another item's answer rises with that item's rationale (other). Uncertainty: the "
    "probability that a wrong answer is less sure than a right one (AUROC; 0.5 by chance)."
)


def as_text(report: Results) -> str:
    """The report for a terminal."""
    report = shortened(report)
    parts = []
    if note := progress(report):
        parts.append(note)
    pairs = header(report)
    parts.append("\n".join(f"{key:12} {visible(value)}" for key, value in pairs))
    parts.append(aligned(rows_table(report)) + "\n(calls, tokens and seconds per 1,000 answers)")
    if len(further := metrics_table(report)) > 1:
        parts.append(aligned(further))
    if len(relied := reliability_table(report)) > 1:
        parts.append(aligned(relied))
    if len(doubted := uncertainty_table(report)) > 1:
        parts.append(aligned(doubted))
    if report.comparisons:
        parts.append(aligned(comparisons_table(report)))
    if len(read := reading_table(report)) > 1:
        parts.append(aligned(read))
    parts.append(verdict(report))
    if said := _notes(report):
        parts.append("\n".join(said))
    return "\n\n".join(parts)


def _notes(report: Results) -> list[str]:
    return [f"{row.method}: {visible(note)}" for row in report.rows for note in notes(row)]


def notes(row: Row) -> list[str]:
    """What a reader of a row must know."""
    unread = unread_texts(row)
    ties = f"{row.near_ties} of {row.answered} answers are near-ties (two labels within 0.001 in log-probability)"
    return [*row.notes, *([ties] if row.near_ties else []), *([unread] if unread else [])]


def aligned(table: Table) -> str:
    """A table in columns, numbers to the right."""
    table = [[visible(cell).replace("\n", " ") for cell in row] for row in table]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    words = {0} | {
        i for i, title in enumerate(table[0]) if title in ("against", "test", "left the race", "uncertainty by")
    }
    lines = [
        "  ".join(
            cell.ljust(w) if i in words else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in table
    ]
    rule = "  ".join("─" * w for w in widths)
    return "\n".join(line.rstrip() for line in [lines[0], rule, *lines[1:]])


def as_markdown(report: Results) -> str:
    """The report as Markdown."""
    report = shortened(report)
    parts = [f"# {md(str(report.config['task']['name']))}"]
    if note := progress(report):
        parts.append(f"**{note}**")
    parts.append("\n".join(f"- **{key}**: {md(value)}" for key, value in header(report)))
    parts.append(md_table(rows_table(report)))
    if len(further := metrics_table(report)) > 1:
        parts.append("## Further scores")
        parts.append(md_table(further))
    if len(relied := reliability_table(report)) > 1:
        parts.append("## Label probabilities")
        parts.append(md_table(relied))
    if len(doubted := uncertainty_table(report)) > 1:
        parts.append("## Uncertainty of written answers")
        parts.append(md_table(doubted))
    if report.comparisons:
        parts.append("## Declared comparisons")
        parts.append(md_table(comparisons_table(report)))
    if len(read := reading_table(report)) > 1:
        parts.append("Where the sides differ in how many answers could be read:")
        parts.append(md_table(read))
    parts.append(md(verdict(report)))
    if len(costs := fit_table(report)) > 1:
        parts.append("## Cost of fitting, all seeds together")
        parts.append(md_table(costs))
    if said := _notes(report):
        parts.append("## Notes")
        parts.append("\n".join(f"- {md(note)}" for note in said))
    parts.append(f"_{MEANING}_")
    return "\n\n".join(parts) + "\n"


def md(text: str) -> str:
    """A text as Markdown shows it."""
    text = visible(text).replace("\n", " ").replace("\\", "\\\\")
    for sign in "|*_`<>[]#":
        text = text.replace(sign, "\\" + sign)
    return text


def md_table(table: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, its heading first; numbers to the right."""
    lines = ["| " + " | ".join(map(md, row)) + " |" for row in table]
    rule = "|" + "|".join([" --- ", *([" ---: "] * (len(table[0]) - 1))]) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])

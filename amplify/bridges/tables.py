"""Every table as pandas data frames, and as parquet files.

tables(report)["rows"]
write_parquet(report, "tables/")            # tables/rows.parquet, tables/comparisons.parquet …
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import singledispatch
from pathlib import Path
from typing import Any

import pandas as pd

from amplify import files
from amplify.attribution.faithfulness import Faithfulness
from amplify.errors import InputError
from amplify.evaluation import load_report
from amplify.evaluation.folder import plain
from amplify.evaluation.report import Report
from amplify.files import Json
from amplify.sources.result import SourceAttribution
from amplify.tuning import Tuned
from amplify.types import Attribution

__all__ = ["figures", "tables", "write_parquet"]

_FREE = (
    "label_scores",
    "label_logprobs",
    "raw_label_scores",
    "prompt",
    "sources",
    "reliability",
    "uncertainty",
    "unread",
)
"""Columns of which every row has a shape of its own: kept as JSON."""


def tables(result: Any) -> dict[str, pd.DataFrame]:
    """The tables of a result, by name.

    A column is a plain value: what stands inside another is DOT.separated (`cost.calls`, `metrics.f1`), intervals are
    `low` and `high`, and what has another shape in every row is JSON text.

    Args:
        result: a Report or a run folder (rows, comparisons, records), a Tuned (candidates, ingredients), a
            SourceAttribution (documents, sentences, words, claims, citations: those there are), an Attribution (words),
            a Faithfulness (rows).

    Raises:
        InputError: something else.

    Example:
        >>> import amplify
        >>> from amplify.bridges.tables import tables
        >>> task = amplify.load_task("coin_flip", limit=5)
        >>> report = amplify.evaluate(task, "scripted:say=yes", ["zero_shot"], progress=False)
        >>> frame = tables(report)["rows"]
        >>> frame[["method", "n"]].values.tolist()
        [['zero_shot', 5]]
    """
    return {name: pd.json_normalize([_row(row) for row in rows]) for name, rows in _listed(result)}


def write_parquet(result: Any, folder: str | Path) -> list[Path]:
    """Write each of the `tables` as FOLDER/NAME.parquet, and say where.

    Raises:
        InputError: see `tables`.
        WriteError: a file cannot be written; an earlier one is whole.

    Example:
        >>> import amplify
        >>> from amplify.bridges.tables import write_parquet
        >>> task = amplify.load_task("coin_flip", limit=5)
        >>> report = amplify.evaluate(task, "scripted:say=yes", ["zero_shot"], progress=False)
        >>> [path.name for path in write_parquet(report, "tables")]
        ['rows.parquet', 'comparisons.parquet', 'records.parquet']
    """
    place = files.make_folder(folder)
    written = []
    for name, frame in tables(result).items():
        written.append(place / f"{name}.parquet")
        files.write(written[-1], frame.to_parquet(index=False))
    return written


def figures(report: Report) -> tuple[dict[str, str | int | float], dict[str, float]]:
    """What a tracker of experiments keeps of a run.

    Returns:
        Its settings by name, and its numbers as METHOD/NAME: score, low, high, n, unparsed, further metrics, cost per
        1,000 answers, and METHOD/over BASELINE/difference, low, high, p_holm.

    Example:
        >>> import amplify
        >>> from amplify.bridges.tables import figures
        >>> task = amplify.load_task("coin_flip", limit=5)
        >>> report = amplify.evaluate(task, "scripted:say=yes", ["zero_shot"], progress=False)
        >>> settings, numbers = figures(report)
        >>> settings["task"], numbers["zero_shot/n"]
        ('coin_flip', 5.0)
    """
    config = report.config
    settings: dict[str, str | int | float] = {
        "task": config["task"]["name"],
        "model": config["model"]["id"],
        "metric": config["score"],
        "mode": config["mode"],
        "seeds": ",".join(map(str, config["seeds"])),
        "items": len(config["items"]),
        "amplify": config["amplify"],
        **{f"version {name}": version for name, version in config["versions"].items()},
    }
    found: dict[str, float | None] = {}
    for row in report.rows:
        own = {"score": row.score, "low": row.low, "high": row.high, "n": row.n, "unparsed": row.unparsed}
        cost = {f"cost {name}": value for name, value in vars(row.cost).items()}
        found |= {f"{row.method}/{name}": value for name, value in {**own, **row.metrics, **cost}.items()}
    for c in report.comparisons:
        own = {"difference": c.difference, "low": c.low, "high": c.high, "p_holm": c.p_holm}
        found |= {f"{c.method}/over {c.baseline}/{name}": value for name, value in own.items()}
    return settings, {name: float(value) for name, value in found.items() if value is not None}


def report_of(run: Report | str | Path) -> Report:
    """The report, or that of a run folder."""
    return run if isinstance(run, Report) else load_report(run)


Listed = Iterator[tuple[str, Sequence[Any]]]


@singledispatch
def _listed(result: Any) -> Listed:
    raise InputError(
        "tables are made of a Report, a run folder, a Tuned, a SourceAttribution, an Attribution or a Faithfulness, "
        f"not of {type(result).__name__}"
    )


@_listed.register
def _(result: Report) -> Listed:
    yield "rows", result.rows
    yield "comparisons", result.comparisons
    yield "records", result.records


@_listed.register(str)
@_listed.register(Path)
def _(result: str | Path) -> Listed:
    yield from _listed(load_report(result))


@_listed.register
def _(result: Tuned) -> Listed:
    yield "candidates", result.table
    yield "ingredients", result.ingredients


@_listed.register
def _(result: SourceAttribution) -> Listed:
    for name, level in result.levels().items():
        rows: list[Json] = []
        bounds = list(zip(level.scores.tolist(), level.low.tolist(), level.high.tolist(), strict=True))
        for i, part in enumerate(level.sources):
            place = {"document": part.document, "start": part.start, "end": part.end, "text": level.texts[i]}
            rows.append({**place, **dict(zip(("score", "low", "high"), bounds[i], strict=True))})
        if name == "documents":
            rows = [{"id": s.id, "title": s.title, **row} for s, row in zip(result.sources, rows, strict=True)]
        yield name, rows
    yield "claims", result.claims
    yield "citations", result.citations


@_listed.register
def _(result: Attribution) -> Listed:
    spans, bounds = zip(*result.spans, strict=True) if result.spans else ((), ()), (result.low, result.high)
    columns = (result.words, *spans, result.scores, *bounds)
    names = ("word", "start", "end", "score", "low", "high")
    yield "words", [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


@_listed.register
def _(result: Faithfulness) -> Listed:
    intervals = ("value", "random", "occlusion", "gain")
    yield (
        "rows",
        [
            {**row, **{k: dict(zip(("mean", "low", "high"), row[k], strict=True)) for k in intervals}}
            for row in result.to_dict()["rows"]
        ],
    )


def _row(row: Any) -> Json:
    """A line as JSON values; of free shape as JSON text."""
    held: Mapping[str, Any] = plain(row)
    return {name: files.dump(value).decode().strip() if name in _FREE else value for name, value in held.items()}

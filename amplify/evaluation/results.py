"""What came out of a run, as numbers: rows, declared comparisons and cost, computed from the run folder alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from amplify.evaluation import folder as store
from amplify.evaluation import statistics
from amplify.evaluation.folder import Cell
from amplify.evaluation.reliability import Estimate, Reliability, reliability, told_apart
from amplify.files import Json

LEVEL = 0.95
ALPHA = 1 - LEVEL
UNEVEN = 0.02
_NEAR = 1e-3  # nats; float32 engines that batch differently agree to well within this


@dataclass(frozen=True)
class Cost:
    """What answers or fits took.

    Attributes:
        calls: prompts generated from and continuations scored.
        prompt_tokens, completion_tokens: tokens, each prompt counted in full however it was served.
        seconds: wall time.
    """

    calls: float = 0.0
    prompt_tokens: float = 0.0
    completion_tokens: float = 0.0
    seconds: float = 0.0

    def times(self, factor: float) -> Cost:
        """Every count multiplied."""
        return Cost(*(factor * n for n in (self.calls, self.prompt_tokens, self.completion_tokens, self.seconds)))


@dataclass(frozen=True)
class Row:
    """One method of the table.

    Attributes:
        method: its label.
        seeds: those in `score`; (None,) where seeds make no difference.
        n: test items in `score`.
        score: mean of the task's metric over items, each averaged over seeds; None before the first answer.
        low, high: its 95 % interval.
        interval: how the interval was made.
        seed_scores: the mean under each of those seeds.
        spread: standard deviation of `seed_scores`, None for one.
        unparsed: share of the answers from which nothing could be parsed (they count as wrong).
        unread: what the model wrote there, the most frequent texts first, at most three.
        metrics: means of the task's further metrics.
        cost: per 1,000 answers.
        fit: cost of finding the programs, all seeds together.
        answered, planned: answers there are, and answers that the run asks for.
        near_ties: answers whose two likeliest labels differ by less than 0.001 in log-probability: those that another
            order of summation could turn over.
        notes: what the programs say a reader must know.
        reliability: what label probabilities are worth; None where no labels were scored.
        uncertainty: how well each measure of uncertainty tells wrong written answers from right ones: measure ->
            threshold of the score from which an answer counts as right -> AUROC; empty where none was measured.

    Example:
        >>> task = amplify.load_task("coin_flip", limit=5)
        >>> [row] = amplify.evaluate(task, "scripted:say=yes", ["zero_shot"], seeds=[0]).rows
        >>> row.method, row.n
        ('zero_shot', 5)
    """

    method: str
    seeds: tuple[int | None, ...]
    n: int
    score: float | None
    low: float | None
    high: float | None
    interval: str
    seed_scores: tuple[float, ...]
    spread: float | None
    unparsed: float | None
    metrics: Mapping[str, float]
    cost: Cost
    fit: Cost
    answered: int
    planned: int
    near_ties: int = 0
    notes: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    reliability: Reliability | None = None
    uncertainty: Mapping[str, Mapping[float, Estimate]] = field(default_factory=dict)


@dataclass(frozen=True)
class BothRead:
    """A comparison over those of its items alone of which every answer of both sides could be read.

    Attributes:
        n: those items.
        difference, low, high: as in `Comparison`; None where there is no such item.
        p: two-sided p-value of the paired test, not adjusted.
    """

    n: int
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None


@dataclass(frozen=True)
class Comparison:
    """One declared comparison: method minus baseline over the same items.

    Attributes:
        method, baseline: labels.
        n: items that both answered.
        better, worse: items on which the method scores higher, and lower.
        difference: mean difference, None where there are no common items yet.
        low, high: its 95 % interval (not adjusted for the family).
        p: two-sided p-value of the paired test.
        p_holm: adjusted by Holm over the whole declared family.
        test, interval: how they were made.
        unparsed: share of the method's and of the baseline's answers to these items that could not be parsed.
        both_read: the comparison without them.

    Example:
        >>> task = amplify.load_task("coin_flip", limit=5)
        >>> report = amplify.evaluate(task, "scripted:say=yes", ["zero_shot", "zero_shot_cot"], seeds=[0])
        >>> [(pair.method, pair.baseline, pair.difference) for pair in report.comparisons]
        [('zero_shot_cot', 'zero_shot', 0.0)]
    """

    method: str
    baseline: str
    n: int
    better: int
    worse: int
    difference: float | None
    low: float | None
    high: float | None
    p: float | None
    p_holm: float | None
    test: str
    interval: str
    unparsed: tuple[float, float] = (0.0, 0.0)
    both_read: BothRead = BothRead(0)

    @property
    def significant(self) -> bool:
        """Whether Holm's adjusted p-value is at most 0.05."""
        return self.p_holm is not None and self.p_holm <= ALPHA

    @property
    def uneven(self) -> bool:
        """Whether the two sides differ by 2 points or more in how many answers could be read: such a difference may be
        one of format."""
        return abs(self.unparsed[0] - self.unparsed[1]) >= UNEVEN

    @property
    def claimed(self) -> bool:
        """Whether the difference is significant and, where the sides are uneven, stands over the items that both read:
        there with the same sign and p <= 0.05."""
        if not self.significant or not self.uneven:
            return self.significant
        both = self.both_read
        same = (both.difference or 0.0) * (self.difference or 0.0) > 0
        return same and both.p is not None and both.p <= ALPHA


@dataclass(frozen=True)
class Results:
    """The results of a run, as numbers.

    Attributes:
        config: what run.json holds.
        rows: one per method, in the order of the run.
        comparisons: the declared family, in its order.
        records: every answer, as in records.jsonl.
        programs: the fitted programs' JSON by cell.
        finished: whether every planned answer is there.
    """

    config: Json = field(repr=False)
    rows: tuple[Row, ...]
    comparisons: tuple[Comparison, ...]
    records: tuple[Json, ...] = field(repr=False)
    programs: Mapping[Cell, Json] = field(repr=False)
    finished: bool


def results_of(folder: str | Path) -> Results:
    """Compute the results in a run folder, finished or not.

    Raises:
        RunError: it is no run folder, or its files were changed.
    """
    path = Path(folder)
    config = store.read_config(path)
    rows, timing = store.read_records(path), store.read_timing(path)
    programs = {
        cell: store.read_program(file)
        for cell in store.cells_of(config)
        if (file := path / "programs" / cell.file).exists()
    }
    plan = store.batches_of(config)
    done = store.whole_batches(config, rows)
    records = rows[: sum(len(places) for _, _, places in plan[:done])]
    table = {label: _matrix(config, records, label) for label in (m["label"] for m in config["methods"])}
    return Results(
        config=config,
        rows=tuple(_row(config, label, matrix, records, timing, programs) for label, matrix in table.items()),
        comparisons=_comparisons(config, table, _unread_shares(records)),
        records=tuple(records),
        programs=programs,
        finished=done == len(plan),
    )


Matrix = dict[int | None, dict[str, float]]  # seed -> item -> score


def _matrix(config: Json, records: Sequence[Json], label: str) -> Matrix:
    """Scores under the seeds that answered every item; in an unfinished run, else under the one that has begun."""
    scores: Matrix = {}
    for record in records:
        if record["method"] == label:
            scores.setdefault(record["seed"], {})[record["id"]] = record["score"]
    whole = {seed: items for seed, items in scores.items() if len(items) == len(config["items"])}
    return whole or scores


def _unread_shares(records: Sequence[Json]) -> dict[tuple[str, str], float]:
    """(method, item) -> share of its answers that could not be parsed."""
    parsed: dict[tuple[str, str], list[bool]] = {}
    for record in records:
        parsed.setdefault((record["method"], record["id"]), []).append(record["parsed"])
    return {key: 1 - sum(found) / len(found) for key, found in parsed.items()}


def _values(matrix: Matrix, ids: Sequence[str]) -> list[list[float]]:
    return [[items[i] for i in ids] for items in matrix.values()]


def _row(
    config: Json,
    label: str,
    matrix: Matrix,
    records: Sequence[Json],
    timing: Sequence[Json],
    programs: Mapping[Cell, Json],
) -> Row:
    cells = [cell for cell in store.cells_of(config) if cell.method == label]
    own = [record for record in records if record["method"] == label]
    counted = [record for record in own if record["seed"] in matrix]
    ids = list(next(iter(matrix.values()), {}))
    notes = [note for cell in cells for note in programs.get(cell, {}).get("notes", ())]
    common: dict[str, Any] = {
        "method": label,
        "fit": _fit_cost(timing, label),
        "answered": len(own),
        "planned": len(cells) * len(config["items"]),
        "near_ties": sum(_near_tie(r["label_scores"], r.get("label_logprobs") or r["label_scores"]) for r in own),
        "notes": tuple(dict.fromkeys(map(str, notes))),
    }
    if not ids:
        return Row(
            seeds=(), n=0, score=None, low=None, high=None, interval="", seed_scores=(), spread=None, unparsed=None,
            metrics={}, cost=Cost(), **common,
        )  # fmt: skip
    values = _values(matrix, ids)
    interval = statistics.interval_of(values, LEVEL)
    seed_scores = [float(np.mean(row)) for row in values]
    return Row(
        seeds=tuple(matrix),
        n=len(ids),
        score=float(statistics.item_means(values).mean()),
        low=interval.low,
        high=interval.high,
        interval=interval.kind,
        seed_scores=tuple(seed_scores),
        spread=statistics.spread(seed_scores),
        unparsed=sum(not record["parsed"] for record in counted) / len(counted),
        unread=tuple(text for text, _ in Counter(r["text"] for r in counted if not r["parsed"]).most_common(3)),
        metrics=_further_metrics(config, counted),
        cost=_answer_cost(own, timing, label).times(1000 / len(own)),
        reliability=reliability(counted),
        uncertainty=told_apart(counted),
        **common,
    )


def _near_tie(scores: Mapping[str, float | None], logprobs: Mapping[str, float | None]) -> bool:
    """Whether a change of `_NEAR` in one of the two best labels' log-probabilities could turn the choice round."""
    best = sorted(((score, label) for label, score in scores.items() if score is not None), reverse=True)[:2]
    if len(best) < 2:
        return False
    # scores are log-probabilities over a length, so a change counts that much less
    shares = [score / logprob if (logprob := logprobs[label]) else 1.0 for score, label in best]
    return best[0][0] - best[1][0] < _NEAR * max(shares)


def _further_metrics(config: Json, records: Sequence[Json]) -> dict[str, float]:
    """Means of the other scores of items; and a metric that only all answers together have, averaged over seeds."""
    names = list(dict.fromkeys(name for record in records for name in record["metrics"]))
    means = {name: float(np.mean([r["metrics"][name] for r in records if name in r["metrics"]])) for name in names}
    whole = config["task"]["metric"]
    if whole == config["score"]:
        return means
    from amplify.metrics import find

    score = find(whole).whole
    if score is None:
        return means
    gold = {item["id"]: item["label"] for item in config["items"]}
    per_seed = []
    for seed in dict.fromkeys(record["seed"] for record in records):
        own = [record for record in records if record["seed"] == seed]
        per_seed.append(score([r["answer"] for r in own], [gold[r["id"]] for r in own]))
    return {whole: float(np.mean(per_seed)), **means}


def _answer_cost(own: Sequence[Json], timing: Sequence[Json], label: str) -> Cost:
    counts = {key: float(sum(r[key] for r in own)) for key in ("calls", "prompt_tokens", "completion_tokens")}
    answered = {(r["seed"], r["id"]) for r in own}
    # a batch that was redone has two lines: the later one belongs to the records
    seconds = {
        (line["seed"], line["batch"]): (line["seconds"], line["items"])
        for line in timing
        if line["method"] == label and "batch" in line
    }
    timed = sum(items for _, items in seconds.values())
    total = sum(taken for taken, _ in seconds.values())
    # a batch that was being answered when the run stopped is timed but not recorded
    return Cost(**counts, seconds=total * len(answered) / timed if timed else 0.0)


def _fit_cost(timing: Sequence[Json], label: str) -> Cost:
    last = {line["seed"]: line for line in timing if line["method"] == label and line.get("fit")}
    keys = ("calls", "prompt_tokens", "completion_tokens", "seconds")
    return Cost(**{key: float(sum(line[key] for line in last.values())) for key in keys})


def _comparisons(
    config: Json, table: Mapping[str, Matrix], unread: Mapping[tuple[str, str], float]
) -> tuple[Comparison, ...]:
    made: list[Comparison] = []
    for method, base in config["family"]:
        first, second = table[method], table[base]
        ids = [i for i in next(iter(first.values()), {}) if i in next(iter(second.values()), {})]
        if not ids:
            made.append(Comparison(method, base, 0, 0, 0, None, None, None, None, None, "", ""))
            continue
        a, b = _values(first, ids), _values(second, ids)
        difference, interval, test = statistics.compare(a, b, LEVEL)
        d = statistics.item_means(a) - statistics.item_means(b)
        better, worse = int((d > 1e-12).sum()), int((d < -1e-12).sum())
        shares = [[unread[side, i] for i in ids] for side in (method, base)]
        made.append(
            Comparison(
                method=method,
                baseline=base,
                n=len(ids),
                better=better,
                worse=worse,
                difference=difference,
                low=interval.low,
                high=interval.high,
                p=test.p,
                p_holm=None,
                test=test.kind,
                interval=interval.kind,
                unparsed=(float(np.mean(shares[0])), float(np.mean(shares[1]))),
                both_read=_both_read(
                    first, second, [i for i, *share in zip(ids, *shares, strict=True) if not any(share)]
                ),
            )
        )
    # a comparison without items yet counts as p = 1, so that the family keeps its declared size
    adjusted = statistics.holm([1.0 if c.p is None else c.p for c in made])
    return tuple(
        c if c.p is None else Comparison(**{**c.__dict__, "p_holm": p}) for c, p in zip(made, adjusted, strict=True)
    )


def _both_read(first: Matrix, second: Matrix, ids: Sequence[str]) -> BothRead:
    if not ids:
        return BothRead(0)
    difference, interval, test = statistics.compare(_values(first, ids), _values(second, ids), LEVEL)
    return BothRead(len(ids), difference, interval.low, interval.high, test.p)

"""What label probabilities are worth beside the choice they make: mass, Brier score, calibration error, risk-coverage.

Everything is computed from a run's records. A method's answers under several seeds are pooled; intervals are percentile
bootstraps over items, all answers to an item drawn together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from amplify.evaluation.uncertainty import auroc
from amplify.files import Json

BINS = 10  # of the calibration error, with equally many answers in each
ROUNDS = 500
COVERAGES = (0.5, 0.8)
RIGHT_FROM = (0.3, 0.5, 1.0)  # scores from which a written answer counts as right; which one is chosen moves AUROC
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Reliability:
    """How far a method's label probabilities can be relied on.

    Attributes:
        mass: mean probability that the model gives to the labels together, before they are made to sum to one; None
            where scores are no log-probabilities of a language model.
        resolved: share of answers that no redistribution of the missing mass could change: 1 - mass is below the
            distance of the two likeliest labels; None where mass is.
        brier: mean over answers of the sum over labels of (probability - right)^2, 0 to 2, less is better.
        ece: expected calibration error of the chosen label's probability, in `BINS` bins of equal size.
        aurc: area under the risk-coverage curve, the mean error over all coverages; less is better.
        selective: accuracy of the share of answers in which the method is surest, for each of `COVERAGES`.
        coverage, risk: the curve: answering the surest share, what share of those answers is wrong.
    """

    mass: float | None
    resolved: float | None
    brier: Estimate
    ece: Estimate
    aurc: Estimate
    selective: tuple[Estimate, ...]
    coverage: tuple[float, ...]
    risk: tuple[float, ...]


def reliability(records: Sequence[Json]) -> Reliability | None:
    """The reliability of one method from its records; None where no labels were scored.

    Args:
        records: lines of records.jsonl with a gold label.
    """
    scored = [r for r in records if r["label_scores"] and r["gold"] in r["label_scores"]]
    if not scored or any(s is None for r in scored for s in r["label_logprobs"].values()):
        return None
    answers = [_judged(r) for r in scored]
    confidence, right, brier = (np.array(column) for column in zip(*answers, strict=True))
    draws = _draws(scored)

    def estimate(of: Callable[[npt.NDArray[np.intp]], float]) -> Estimate:
        value = of(np.arange(len(scored)))
        low, high = np.quantile([of(draw) for draw in draws], [0.025, 0.975]) if draws else (value, value)
        return Estimate(value, float(low), float(high))

    coverage, risk = risk_coverage(confidence, right)
    mass = _mass(scored)
    return Reliability(
        mass=None if mass is None else float(np.mean(mass)),
        resolved=None if mass is None else float(np.mean(_resolved(scored, mass))),
        brier=estimate(lambda i: float(brier[i].mean())),
        ece=estimate(lambda i: calibration_error(confidence[i], right[i])),
        aurc=estimate(lambda i: float(risk_coverage(confidence[i], right[i])[1].mean())),
        selective=tuple(estimate(lambda i, c=c: _selective(confidence[i], right[i], c)) for c in COVERAGES),  # type: ignore[misc]
        coverage=tuple(coverage.tolist()),
        risk=tuple(risk.tolist()),
    )


def _draws(records: Sequence[Json]) -> list[npt.NDArray[np.intp]]:
    """Places of the records in each round of the bootstrap; none where there is one item."""
    items: dict[str, list[int]] = {}
    for i, record in enumerate(records):
        items.setdefault(record["id"], []).append(i)
    groups = [np.array(places) for places in items.values()]
    rng = np.random.default_rng(0)
    return [
        np.concatenate([groups[i] for i in rng.integers(0, len(groups), len(groups))])
        for _ in range(ROUNDS if len(groups) > 1 else 0)
    ]


def told_apart(records: Sequence[Json]) -> dict[str, dict[float, Estimate]]:
    """AUROC of each measure of uncertainty for answers being wrong, for several scores from which one is right.

    Args:
        records: of one method, those with "uncertainty".
    """
    known = [r for r in records if r.get("uncertainty")]
    draws = _draws(known)
    found: dict[str, dict[float, Estimate]] = {}
    for name in known[0]["uncertainty"] if known else ():
        values = np.array([r["uncertainty"][name] for r in known])
        for least in RIGHT_FROM:
            wrong = np.array([r["score"] < least for r in known])
            value = auroc(values, wrong)
            if value is not None:
                drawn = [one for i in draws if (one := auroc(values[i], wrong[i])) is not None]
                low, high = np.quantile(drawn, [0.025, 0.975]) if drawn else (value, value)
                found.setdefault(name, {})[least] = Estimate(value, float(low), float(high))
    return found


def calibration_error(confidence: Floats, right: Floats, bins: int = BINS) -> float:
    """Expected calibration error with bins of equal size (Nixon et al. 2019, "adaptive" ECE).

    Args:
        confidence: probability of the chosen label, shape (answers,).
        right: 1 where the answer is right, shape (answers,).
        bins: how many; fewer where there are fewer answers.
    """
    order = np.argsort(confidence, kind="stable")
    parts = np.array_split(order, min(bins, len(order)))
    return float(sum(len(p) * abs(confidence[p].mean() - right[p].mean()) for p in parts) / len(order))


def risk_coverage(confidence: Floats, right: Floats) -> tuple[Floats, Floats]:
    """The risk-coverage curve (El-Yaniv & Wiener 2010): answers of equal confidence share their errors evenly.

    Returns:
        Coverage k/n and the error rate among the k surest answers, for k = 1 … n; each of shape (answers,).
    """
    order = np.argsort(-confidence, kind="stable")
    wrong = 1.0 - right[order]
    levels, place, size = np.unique(-confidence[order], return_inverse=True, return_counts=True)
    wrong = (np.bincount(place, wrong, len(levels)) / size)[place]
    k = np.arange(1, len(order) + 1)
    return k / len(order), np.cumsum(wrong) / k


def _selective(confidence: Floats, right: Floats, coverage: float) -> float:
    answered = max(1, round(coverage * len(right)))
    return float(1.0 - risk_coverage(confidence, right)[1][answered - 1])


def _judged(record: Json) -> tuple[float, float, float]:
    """Probability of the chosen label, whether it is right, and the Brier score of an answer."""
    p = _shares(record["label_logprobs"])
    brier = sum((share - (label == record["gold"])) ** 2 for label, share in p.items())
    return p.get(record["answer"], 0.0), float(record["answer"] == record["gold"]), brier


def _shares(logprobs: Mapping[str, float]) -> dict[str, float]:
    top = max(logprobs.values())
    weight = {label: float(np.exp(value - top)) for label, value in logprobs.items()}
    total = sum(weight.values())
    return {label: w / total for label, w in weight.items()}


def _before(record: Json) -> Mapping[str, float]:
    """A record's label log-probabilities as the model gave them."""
    found: Mapping[str, float] = record.get("raw_label_scores") or record["label_logprobs"]
    return found


def _mass(records: Sequence[Json]) -> Floats | None:
    """The labels' probability together, by answer; None where a language model's log-probabilities are not known."""
    mass = np.array([float(np.exp(list(_before(r).values())).sum()) for r in records])
    # above one: scores are means per token or the like; exactly one: a classifier, or shares
    return None if (mass > 1 + 1e-3).any() or np.allclose(mass, 1.0, atol=1e-6) else np.minimum(mass, 1.0)


def _resolved(records: Sequence[Json], mass: Floats) -> list[bool]:
    found = []
    for record, m in zip(records, mass, strict=True):
        best = sorted(np.exp(list(_before(record).values())).tolist(), reverse=True)
        found.append(len(best) < 2 or 1 - m < best[0] - best[1])
    return found

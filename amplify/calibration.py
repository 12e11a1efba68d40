"""Calibration of label scores: what a prompt says before it has read anything is taken out of what it says afterwards.

A language model that scores labels favours some of them whatever the input (Zhao et al. 2021, "Calibrate Before Use").
Every way here is an affine map of the labels' log-probabilities s(y), fitted without a test item:

| way          | map              | from                                                                             |
|--------------|------------------|----------------------------------------------------------------------------------|
| `none`       | s(y)             |                                                                                  |
| `contextual` | s(y) - log p0(y) | the same program's answers to content-free inputs, averaged (Zhao et al. 2021)   |
| `pmi`        | s(y) - log p0(y) | zero-shot answers without any input (PMI_DC; Holtzman et al. 2021)               |
| `batch`      | s(y) - log p0(y) | the same program's answers to unlabelled inputs, averaged (Zhou et al. 2024)     |
| `affine`     | a s(y) - b(y)    | labelled validation inputs, by penalised maximum likelihood                      |
| `auto`       | one of these     | labelled validation inputs: the simplest that does as well as the best on others |

Nothing here sees text or a model: `amplify.methods.calibrated` asks the program.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from amplify.errors import InputError
from amplify.streams import stream

Way = Literal["none", "contextual", "pmi", "batch", "affine", "auto"]
SIMPLEST_FIRST: tuple[Way, ...] = ("none", "contextual", "pmi", "batch", "affine")
WAYS: tuple[Way, ...] = (*SIMPLEST_FIRST, "auto")
FOLDS = 5
PENALTY = 1.0  # of `affine`: as if this many items pulled the scale to 1 and every offset to 0
Scores = Mapping[str, float]  # label -> log-probability (any constant added to all of an item's changes nothing)
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Calibration:
    """An affine map of label scores.

    Attributes:
        way: how it was found, never "auto".
        offsets: by label, nats; what is not named has 0.
        scale: of the scores.
    """

    way: Way = "none"
    offsets: Mapping[str, float] = field(default_factory=dict)
    scale: float = 1.0

    def __call__(self, scores: Scores) -> dict[str, float]:
        """Calibrated log-probabilities of an item's labels; they sum to one.

        >>> round(Calibration("batch", {"yes": 1.0})({"yes": -1.0, "no": -1.0})["no"], 3)
        -0.313
        """
        if not scores:
            return {}
        mapped = np.array([self.scale * s - self.offsets.get(label, 0.0) for label, s in scores.items()])
        return dict(zip(scores, log_softmax(mapped).tolist(), strict=True))

    def best(self, scores: Scores) -> str:
        """The likeliest label; the first of equals."""
        calibrated = self(scores)
        return max(calibrated, key=calibrated.__getitem__)


def log_softmax(values: Floats) -> Floats:
    """Log-probabilities over the last axis."""
    shifted = values - values.max(axis=-1, keepdims=True)
    normalised: Floats = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return normalised


def from_answers(way: Way, scores: Sequence[Scores]) -> Calibration:
    """Divide by the mean probability of each label over answers to inputs that favour none.

    Where items have choices of their own (A, B, C …) a label's probability counts in units of what is even among the
    choices of its item, and over the items that offer it.

    Args:
        way: what the calibration is called.
        scores: of each input, its labels' log-probabilities.

    Raises:
        InputError: no input.
    """
    if not scores:
        raise InputError(f"calibration {way!r} needs at least one input to be fitted on")
    seen: dict[str, list[float]] = {}
    for item in scores:
        shares = np.exp(log_softmax(np.array(list(item.values())))) * len(item)
        for label, share in zip(item, shares.tolist(), strict=True):
            seen.setdefault(label, []).append(share)
    # a label that no input gave any weight to keeps a finite offset
    return Calibration(way, {label: float(np.log(max(float(np.mean(each)), 1e-12))) for label, each in seen.items()})


def affine(scores: Sequence[Scores], gold: Sequence[str]) -> Calibration:
    """One scale and an offset for each label, by penalised maximum likelihood on labelled items.

    Args:
        scores: of each item, its labels' log-probabilities.
        gold: its right label, one of those.

    Raises:
        InputError: no item, or one whose right label is not scored.
    """
    from scipy.optimize import minimize

    if not scores:
        raise InputError("calibration 'affine' needs labelled validation items")
    if wrong := [i for i, (item, label) in enumerate(zip(scores, gold, strict=True)) if label not in item]:
        raise InputError(f"item {wrong[0]}: its label {gold[wrong[0]]!r} is not among those scored")
    labels = sorted({label for item in scores for label in item})
    column = {label: i for i, label in enumerate(labels)}
    table = np.full((len(scores), len(labels)), -np.inf)
    for row, item in zip(table, scores, strict=True):
        row[[column[label] for label in item]] = log_softmax(np.array(list(item.values())))
    offered, table = np.isfinite(table), np.where(np.isfinite(table), table, 0.0)
    right = np.eye(len(labels))[[column[label] for label in gold]]

    def loss(parameters: Floats) -> tuple[float, Floats]:
        log_scale, offsets = parameters[0], parameters[1:]
        mapped = np.where(offered, np.exp(log_scale) * table - offsets, -np.inf)
        log_p = log_softmax(mapped)
        wrong = np.where(offered, np.exp(log_p), 0.0) - right  # d loss / d mapped
        slope = float((wrong * table).sum() * np.exp(log_scale))
        gradient = np.concatenate([[slope + PENALTY * log_scale], -wrong.sum(axis=0) + PENALTY * offsets])
        value = -float(log_p[right.astype(bool)].sum()) + PENALTY * float((parameters**2).sum()) / 2
        return value, gradient

    found = minimize(loss, np.zeros(len(labels) + 1), jac=True, method="L-BFGS-B")
    return Calibration("affine", dict(zip(labels, found.x[1:].tolist(), strict=True)), float(np.exp(found.x[0])))


def simplest(
    fits: Mapping[Way, Callable[[Sequence[int]], Calibration]], scores: Sequence[Scores], gold: Sequence[str], seed: int
) -> tuple[Way, dict[str, float]]:
    """The simplest way whose cross-fitted accuracy is within one standard error of the best way's.

    Args:
        fits: way -> its calibration fitted on the labelled items of these numbers (a way that needs none ignores them).
        scores, gold: the labelled items.
        seed: of the folds.

    Returns:
        The way, and the cross-fitted accuracy of each.
    """
    folds = np.arange(len(gold)) % min(FOLDS, len(gold))
    folds = stream(seed, "calibration folds").permutation(folds)
    right: dict[Way, Floats] = {}
    for way, fit in fits.items():
        hits = np.zeros(len(gold))
        for fold in np.unique(folds):
            calibration = fit(np.flatnonzero(folds != fold).tolist())
            for i in np.flatnonzero(folds == fold).tolist():
                hits[i] = calibration.best(scores[i]) == gold[i]
        right[way] = hits
    accuracy = {str(way): float(hits.mean()) for way, hits in right.items()}
    best = max(right.values(), key=lambda hits: float(hits.mean()))
    for way in SIMPLEST_FIRST:
        if way in right:
            behind = best - right[way]
            if behind.mean() <= behind.std(ddof=1) / np.sqrt(len(behind)):
                return way, accuracy
    raise InputError("no way of calibration was given")

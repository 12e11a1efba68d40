"""How many evaluations an estimator needs before it says anything, and how many fit in memory."""

from __future__ import annotations

from collections.abc import Callable

from amplify.errors import InputError

CELLS = 2**24
"""Entries of the largest table of coalitions x sources that is made: 128 MiB as float64, of which a fit holds a few."""

GRAM = 4096
"""Values that a Gaussian process is conditioned on at most: its matrices hold their square, its time is their cube."""

LEAST: dict[str, Callable[[int], int]] = {
    "exact": lambda n: 2**n,
    "permutation": lambda n: n + 1,
    "shapley_sampling": lambda n: n + 1,
    "occlusion": lambda n: n + 1,
    # a coalition and its complement give one equation, and n - 1 are needed beside the two ends
    "kernel_shap": lambda n: 2 * n,
    "leverage_shap": lambda n: 2 * n,
    "regression_msr": lambda n: min(2 * n, 12),
    "lime": lambda n: 3,
    "c_lime": lambda n: n + 2,
}


PAIRED = ("kernel_shap", "leverage_shap", "regression_msr")


def least(estimator: str, n: int, index: str = "shapley") -> int:
    """Evaluations without which an estimator leaves scores of `n` sources undetermined.

    Example:
        >>> from amplify.shapley.budget import least
        >>> least("kernel_shap", 100)
        200
    """
    needed = LEAST.get(estimator, lambda n: 2)(n)
    # the two ends hardly weigh in a Banzhaf value, so that one more pair is needed
    more = 2 if index == "banzhaf" and estimator in PAIRED else 0
    return min(needed + more, 2**n) if n < 63 else needed + more


def most(estimator: str, n: int) -> int:
    """The largest budget whose tables fit in memory (about 1 GB in all)."""
    if estimator in ("gaussian_process", "auto"):
        return min(GRAM, CELLS // 4 // n)
    if estimator == "regression_msr":  # which fits products of two sources
        return min(GRAM, 2 * CELLS // n**2)
    return CELLS // n


def check_budget(estimator: str, n: int, budget: int, players: str = "sources", index: str = "shapley") -> None:
    """Refuse a budget that determines nothing, or that no memory holds, before anything is asked or made.

    Args:
        estimator: its name.
        n: players.
        budget: evaluations.
        players: what they are called.
        index: "shapley" or "banzhaf".

    Raises:
        InputError: says how many are needed, or how many fit.
    """
    needed, room = least(estimator, n, index), most(estimator, n)
    if needed > room:
        raise InputError(
            f"{n:,} {players} are too many for {estimator}: it needs {needed:,} evaluations, and the tables of "
            f"{room:,} fit in memory; score fewer {players}, e.g. in groups"
        )
    if budget < needed:
        raise InputError(
            f"a budget of {budget} evaluations is too small for {estimator}: scores of {n} {players} need {needed} or "
            "more"
        )
    if budget > room:
        other = " (leverage_shap takes more)" if room < CELLS // n else ""
        raise InputError(
            f"a budget of {budget:,} evaluations of {n:,} {players} does not fit in memory with {estimator}: at most "
            f"{room:,} do{other}"
        )

"""Samples of coalitions: pairs, sizes, nesting, and what they stand for."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amplify.shapley import estimate
from amplify.shapley.sampling import (
    leverage,
    paired,
    pairs_of_size,
    prefixes,
    shapley_kernel,
    stands_for,
    with_complements,
)


@given(n=st.integers(2, 14), count=st.integers(1, 120), seed=st.integers(0, 99))
def test_pairs_are_different_balanced_and_nested(n: int, count: int, seed: int) -> None:
    first = paired(n, count, leverage(n), seed)
    assert len(first) == min(count, 2 ** (n - 1) - 1)
    everything = with_complements(first)
    assert len({row.tobytes() for row in everything}) == len(everything)
    assert everything.sum(axis=1).min() > 0
    assert everything.sum(axis=1).max() < n
    np.testing.assert_array_equal(paired(n, max(count // 2, 1), leverage(n), seed), first[: max(count // 2, 1)])


@pytest.mark.parametrize("shares", [leverage, shapley_kernel])
def test_sizes_follow_the_shares(shares) -> None:
    n = 12
    first = paired(n, 50, shares(n), 0)
    found = np.bincount(first.sum(axis=1), minlength=n // 2 + 1)[1 : n // 2 + 1]
    room = np.array([pairs_of_size(n, s) for s in range(1, n // 2 + 1)])
    assert (found <= room).all()
    expected = 50 * shares(n)
    free = expected < room
    # what full strata cannot take goes to the others, so these get at least their share, to within one draw
    assert (found[free] > expected[free] - 1).all()


def test_a_complete_sample_stands_for_itself() -> None:
    n = 7
    total = 2 ** (n - 1) - 1
    first = paired(n, total, leverage(n), 1)
    np.testing.assert_allclose(stands_for(first, leverage(n)), 1.0)
    few = paired(n, 20, leverage(n), 1)
    # the weights of a stratum add up to its size where its expected number was drawn
    assert stands_for(few, leverage(n)).sum() == pytest.approx(total, rel=0.2)


def test_large_strata_are_drawn_without_listing_them() -> None:
    first = paired(60, 200, leverage(60), 0)
    assert comb(60, 30) > 10**17
    assert len({row.tobytes() for row in with_complements(first)}) == 400


def test_prefixes_walk_from_empty_to_full() -> None:
    path = prefixes(np.array([2, 0, 1]))
    np.testing.assert_array_equal(path, [[0, 0, 0], [0, 0, 1], [1, 0, 1], [1, 1, 1]])


def test_a_budget_for_everything_is_no_lottery() -> None:
    """Random orders would meet the last of 2^n coalitions after many thousands."""
    asked = []

    def value(s: np.ndarray) -> np.ndarray:
        asked.append(len(s))
        return s @ np.arange(1.0, 13.0) + s[:, 0] * s[:, 5]

    found = estimate(value, 12, estimator="permutation", budget=10**9)
    assert (found.estimator, sum(asked)) == ("exact", 2**12)
    assert len(asked) < 10
    np.testing.assert_allclose(found.scores, np.arange(1.0, 13.0) + 0.5 * np.isin(np.arange(12), (0, 5)), atol=1e-9)

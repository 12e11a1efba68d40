"""Owen values in nested blocks: closed forms of the process against sums over all coalitions, and budgets."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from amplify.shapley import gp
from amplify.shapley.exact import Owen, all_coalitions, coalition_weights, exact_scores
from amplify.shapley.owen import owen_scores


@pytest.mark.parametrize("index", ["shapley", "banzhaf"])
@pytest.mark.parametrize("blocks", [(2, 1, 3), (4, 2), (1, 4), (5,)])
def test_closed_forms_are_sums_over_all_coalitions(index, blocks) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(0)
    owen, n = Owen(blocks, index), sum(blocks)
    held = all_coalitions(n)
    weights = coalition_weights(held, owen)
    kernel = gp.Kernel(rng.random(n), 0.7, rng.random(n), 0.2)
    gram = kernel.gram(held, held)
    np.testing.assert_allclose(kernel.cross(held, owen), weights.T @ gram, atol=1e-12)
    np.testing.assert_allclose(kernel.scores_variance(owen), np.diag(weights.T @ gram @ weights), atol=1e-12)


def test_weights_are_those_of_orders_in_which_a_block_stays_together() -> None:
    """Owen (1977): documents in any order, and each one's parts in any order where it stands."""
    rng = np.random.default_rng(1)
    values = rng.normal(size=2**5)  # two others, then a document of three parts
    total, count = np.zeros(3), 0
    for order in itertools.permutations(range(3)):  # 2 is the document
        before = sum(1 << d for d in order[: order.index(2)])
        for inner in itertools.permutations(range(3)):
            count, here = count + 1, before
            for j in inner:
                total[j] += values[here | 1 << (2 + j)] - values[here]
                here |= 1 << (2 + j)
    weights = coalition_weights(all_coalitions(5), Owen((2, 3)))
    np.testing.assert_allclose(weights.T @ values, total / count, atol=1e-12)
    assert count == math.factorial(3) ** 2
    np.testing.assert_allclose(coalition_weights(all_coalitions(5), "shapley").T @ values, exact_scores(values))


def test_all_that_is_left_is_asked_where_it_fits() -> None:
    rng = np.random.default_rng(2)
    table = rng.normal(size=(2**5, 2))
    asked = []

    def value(rows: np.ndarray) -> np.ndarray:
        asked.extend(rows.tolist())
        return table[rows @ (1 << np.arange(5))]

    owen, held = Owen((2, 3)), all_coalitions(5)
    known = held[[0, 1, 2, 3, 28, 29, 30, 31]]
    found = owen_scores(value, owen, known, table[known @ (1 << np.arange(5))], 24, rng)
    np.testing.assert_allclose(found.scores, coalition_weights(held, owen).T @ table, atol=1e-12)
    assert (found.half == 0).all()
    assert len(asked) == len({tuple(row) for row in asked}) == 24
    asked.clear()
    some = owen_scores(value, owen, known, table[known @ (1 << np.arange(5))], 10, rng)
    assert len(asked) == len(some.asked) == 10
    assert (some.half > 0).all()

"""Coalitions as rows."""

import numpy as np
import pytest

from amplify.shapley.game import distinct


@pytest.mark.parametrize("n", [1, 7, 8, 9, 40])
def test_distinct_rows_are_those_of_numpy(n):
    rng = np.random.default_rng(n)
    rows = rng.random((60, n)) < rng.random((60, 1))
    rows = np.concatenate([rows, rows[::3]])
    for found, expected in zip(
        distinct(rows), np.unique(rows, axis=0, return_index=True, return_inverse=True), strict=True
    ):
        assert np.array_equal(found, expected.reshape(found.shape))

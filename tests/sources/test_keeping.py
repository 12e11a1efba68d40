from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amplify.errors import InputError, UnknownNameError
from amplify.sources.keeping import ROUNDING, keep

SCORES = st.lists(st.floats(-10, 10), min_size=1, max_size=12)


def test_rerank_is_stable() -> None:
    assert keep("rerank", [0.0, 2.0, 0.0, 2.0]) == [1, 3, 0, 2]
    assert keep("rerank", [0.0, 2.0, 0.0, 2.0], k=3) == [1, 3, 0]


def test_prune_asks_the_upper_end() -> None:
    scores, high = [1.0, -1.0, -1.0], [1.5, -0.5, 0.5]
    assert keep("prune", scores, high) == [0, 2]
    assert keep("prune", scores) == [0]
    assert keep("prune", scores, high, threshold=-2.0) == [0, 1, 2]
    assert keep("prune", [-3.0, -1.0]) == [1]  # never an empty context


def test_what_does_nothing_is_not_pruned() -> None:
    """Sums of marginals that cancel are no effect, whatever their last digit."""
    assert keep("prune", [1.0, -1e-17, -0.5], [1.0, -1e-17, -0.5]) == [0, 1]
    assert keep("prune", [1.0, -1e-3, -0.5], [1.0, -1e-3, -0.5]) == [0]


@given(SCORES, st.integers(1, 12))
def test_distil_keeps_the_best_in_their_order(scores: list[float], k: int) -> None:
    kept = keep("distil", scores, k=k)
    assert kept == sorted(kept)
    assert len(kept) == min(k, len(scores))
    left = [s for i, s in enumerate(scores) if i not in kept]
    tie = len(scores) * ROUNDING * max(map(abs, scores))
    assert not left or max(left) <= min(scores[i] for i in kept) + tie
    assert set(kept) == set(keep("rerank", scores, k=k))


def test_rounding_breaks_no_tie() -> None:
    assert keep("rerank", [-0.1, 4.0, -2.0, -0.1 + 1e-9]) == [1, 0, 3, 2]
    assert keep("distil", [1.0, 1.0 + 1e-9, 3.0], k=2) == [0, 2]
    assert keep("rerank", [0.0, 0.0]) == [0, 1]


def test_bad_values() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'prune'"):
        keep("prun", [1.0])  # type: ignore[arg-type]
    for operation, k in (("distil", 0), ("rerank", -1)):
        with pytest.raises(InputError, match="1 or more"):
            keep(operation, [1.0], k=k)  # type: ignore[arg-type]

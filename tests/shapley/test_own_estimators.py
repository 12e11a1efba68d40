"""Estimators of one's own: asked within the budget, checked, with intervals or without."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

import amplify
from amplify.errors import InputError, UnknownNameError
from amplify.registry import table
from amplify.shapley import ESTIMATORS, estimate
from amplify.shapley.estimators import RawEstimate

WORTH = np.array([3.0, -1.0, 0.5, 2.0, 0.0])


@pytest.fixture
def own() -> Iterator[Callable[[str], None]]:
    names: list[str] = []
    yield names.append
    for name in names:
        table("estimator").remove(name)


def game(kept: np.ndarray) -> np.ndarray:
    return np.asarray(kept @ WORTH)


def last(game, index, budget, seed):  # type: ignore[no-untyped-def]
    """What is lost without each source."""
    whole = np.ones((1, game.n), dtype=bool)
    values = game(np.concatenate([whole, ~np.eye(game.n, dtype=bool)]))
    return values[0] - values[1:]


def test_a_function_is_an_estimator(own: Callable[[str], None]) -> None:
    own("last")
    amplify.register("estimator", "last")(last)
    assert ESTIMATORS["last"].description == "What is lost without each source."
    found = estimate(game, 5, estimator="last", budget=8)
    assert found.scores == pytest.approx(WORTH)
    assert found.estimator == "last"
    assert np.isinf(found.high).all()  # it says nothing of its error
    with pytest.raises(InputError, match="of the budget 3 are left"):
        estimate(game, 5, estimator="last", budget=3)
    with pytest.raises(UnknownNameError, match="Did you mean 'last'"):
        estimate(game, 5, estimator="lost", budget=8)


def test_half_widths_come_in_a_raw_and_shapes_are_checked(own: Callable[[str], None]) -> None:
    own("sure")
    amplify.register("estimator", "sure", lambda *given: RawEstimate(last(*given), np.full((5, 1), 0.25)))
    found = estimate(game, 5, estimator="sure", budget=8)
    assert found.high - found.low == pytest.approx(0.5)
    own("short")
    amplify.register("estimator", "short", lambda *given: last(*given)[:3])
    with pytest.raises(InputError, match=r"'short' gives scores of shape \(3, 1\).*\(5, 1\)"):
        estimate(game, 5, estimator="short", budget=8)
    with pytest.raises(InputError, match="a function of a game"):
        amplify.register("estimator", "odd", 3)

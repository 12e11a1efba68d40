"""What ingredients are worth, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from amplify.tuning.ingredients import ingredients


def scores(*shares: float) -> list[np.ndarray]:
    return [np.array([1.0] * round(10 * s) + [0.0] * (10 - round(10 * s))) for s in shares]


def test_two_ingredients_by_hand() -> None:
    """v() = .2, v(a) = .5, v(b) = .3, v(ab) = .9: a gets (.3 + .6) / 2, b gets (.1 + .4) / 2."""
    found = ingredients(scores(0.2, 0.5, 0.3, 0.9), [(), ("a",), ("b",), ("a", "b")])
    assert {one.name: one.value for one in found} == pytest.approx({"a": 0.45, "b": 0.25})
    assert [one.name for one in found] == ["a", "b"]
    assert sum(one.value for one in found) == pytest.approx(0.9 - 0.2)  # efficiency
    assert all(one.low <= one.value <= one.high for one in found)


def test_what_helps_nothing_is_worth_nothing() -> None:
    found = ingredients(scores(0.4, 0.4, 0.8, 0.8), [(), ("idle",), ("good",), ("idle", "good")])
    assert {one.name: one.value for one in found} == pytest.approx({"idle": 0.0, "good": 0.4})


def test_a_coalition_is_worth_its_best_candidate() -> None:
    """Two candidates of the same ingredient: the better one counts, and a worse one takes nothing away."""
    found = ingredients(scores(0.5, 0.3, 0.6), [(), ("a",), ("a",)])
    assert found[0].value == pytest.approx(0.1)
    assert found[0].candidates == 2


def test_without_a_candidate_of_none_there_is_no_game() -> None:
    assert ingredients(scores(0.5), [("a",)]) == ()


def test_a_candidate_of_an_ingredient_too_many_is_not_counted_as_made_of_the_rest() -> None:
    """Twelve ingredients are a game; what is best only with a thirteenth is not what the twelve give."""
    names = [f"i{k:02}" for k in range(13)]
    made_of = [(), *[(name,) for name in names[:12] for _ in range(2)], (names[0], names[12])]
    found = ingredients(scores(*[0.2] * (len(made_of) - 1), 1.0), made_of)
    assert [one.name for one in found] == names[:12]
    assert {one.name: one.value for one in found} == pytest.approx(dict.fromkeys(names[:12], 0.0))
    assert {one.candidates for one in found} == {2}

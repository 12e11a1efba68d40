"""Steering modes by name, built in and of one's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

import amplify
from amplify.errors import InputError, UnknownNameError
from amplify.registry import table
from amplify.steering import Steering
from amplify.steering.formula import dynamic_weights
from amplify.steering.spec import MODES, SteeringMode
from amplify.types import Prompt, Sampling, Span


@pytest.fixture
def own() -> Iterator[Callable[[str], None]]:
    names: list[str] = []
    yield names.append
    for name in names:
        table("steering_mode").remove(name)


def test_a_weight_of_ones_own_steers_like_that_weight_on_the_span(own: Callable[[str], None], tiny_lm) -> None:  # type: ignore[no-untyped-def]
    own("thrice")

    @amplify.register("steering_mode", "thrice")
    def thrice(steering: Steering) -> float:
        """Three times the bonus."""
        return 3 * steering.bonus

    assert MODES["thrice"].description == "Three times the bonus."
    mine = Steering(mode="thrice", bonus=4.0)
    assert (mine.default_weight, mine.dynamic) == (12.0, False)
    assert Steering.from_json(mine.to_json()) == mine
    text = "Great phone, terrible battery."
    with amplify.load_model(f"transformers:{tiny_lm}", dtype="float32") as model:
        marked = Prompt(text=text, emphasis=(Span(0, 5),))
        weighed = Prompt(text=text, emphasis=(Span(0, 5, weight=12.0),))
        [found] = model.score([marked], [" good"], steering=mine)
        [wanted] = model.score([weighed], [" good"], steering=Steering(mode="instaboost"))
        [plain] = model.score([marked], [" good"])
    assert found.logprobs == wanted.logprobs
    assert found.logprobs != plain.logprobs


def test_factors_of_ones_own_are_found_row_by_row(own: Callable[[str], None], tiny_lm) -> None:  # type: ignore[no-untyped-def]
    own("double")
    amplify.register("steering_mode", "double", SteeringMode("twice the odds", factors=lambda psi, out, s: 2 + 0 * psi))
    steering = Steering(mode="double")
    w, u = dynamic_weights(np.array([0.2, 0.0]), np.zeros(2), np.array([0.8, 1.0]), steering)
    assert w.tolist() == [2.0, 1.0]
    assert u.tolist() == [1.0, 1.0]
    prompt = Prompt(text="Great phone, terrible battery.", emphasis=(Span(0, 5),))
    with amplify.load_model(f"transformers:{tiny_lm}", dtype="float32") as model:
        [found] = model.score([prompt], [" good"], steering=steering)
        [wanted] = model.score(
            [Prompt(text=prompt.text, emphasis=(Span(0, 5, weight=2.0),))], [" good"],
            steering=Steering(mode="instaboost"),
        )  # fmt: skip
        assert found.logprobs == pytest.approx(wanted.logprobs, abs=1e-5)
        assert model.generate([prompt], Sampling(max_tokens=2), steering=steering)


def test_bad_modes(own: Callable[[str], None]) -> None:
    with pytest.raises(UnknownNameError, match="unknown steering mode 'spotligt'"):
        Steering(mode="spotligt")
    with pytest.raises(InputError, match="either a weight or factors"):
        amplify.register("steering_mode", "odd", SteeringMode("nothing"))
    with pytest.raises(InputError, match="a function of a Steering"):
        amplify.register("steering_mode", "odd", 3)
    own("odd")
    amplify.register("steering_mode", "odd", lambda steering: -1.0)
    with pytest.raises(InputError, match=r"mode 'odd' gives the factor -1\.0"):
        Steering(mode="odd")

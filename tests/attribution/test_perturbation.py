"""Perturbation methods against closed forms, brute force and captum's order of the same words."""

from __future__ import annotations

from itertools import combinations
from math import comb

import numpy as np
import pytest

from amplify.attribution.games import proxy_value
from amplify.attribution.perturbation import NEIGHBOURHOODS, attribute
from amplify.attribution.words import word_spans
from amplify.errors import InputError, UnknownNameError
from amplify.proxies import train_proxy
from amplify.tasks import Task
from amplify.values import Example


def game(n: int, seed: int = 0):
    """A random game with interactions, as a table of its 2^n values."""
    table = np.random.default_rng(seed).normal(size=2**n)
    return lambda masks: table[masks @ (1 << np.arange(n))]


def shapley(value, n: int) -> np.ndarray:
    """By the definition."""
    phi = np.zeros(n)
    for i in range(n):
        others = [j for j in range(n) if j != i]
        for size in range(n):
            for subset in combinations(others, size):
                mask = np.zeros((2, n), dtype=bool)
                mask[:, list(subset)] = True
                mask[0, i] = True
                with_i, without = value(mask)
                phi[i] += (with_i - without) / (n * comb(n - 1, size))
    return phi


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_kernel_shap_is_exact_where_the_budget_covers_the_game(n):
    scores, calls = attribute(game(n), n, "kernel_shap", budget=2**n)
    np.testing.assert_allclose(scores, shapley(game(n), n), atol=1e-9)
    assert calls == 2**n


@pytest.mark.parametrize("budget", [24, 40, 100])
def test_sampled_kernel_shap_is_efficient_and_within_budget(budget):
    n, v = 12, game(12)
    scores, calls = attribute(v, n, "kernel_shap", budget=budget)
    ends = v(np.array([[True] * n, [False] * n]))
    assert scores.sum() == pytest.approx(ends[0] - ends[1])
    assert calls <= budget


@pytest.mark.parametrize("method", ["occlusion", "kernel_shap"])
def test_a_linear_model_is_found_exactly(method):
    w = np.random.default_rng(1).normal(size=10)
    scores, _ = attribute(lambda m: 3 + m @ w, 10, method, budget=60)
    np.testing.assert_allclose(scores, w, atol=1e-9)


def test_lime_finds_a_linear_model_up_to_its_ridge():
    from sklearn.linear_model import Ridge

    w = np.random.default_rng(1).normal(size=10)
    scores, calls = attribute(lambda m: 3 + m @ w, 10, "lime", budget=200)
    near = NEIGHBOURHOODS["lime"](10, 200, 0)
    want = Ridge(alpha=1.0).fit(near.masks, 3 + near.masks @ w, sample_weight=near.weights).coef_
    np.testing.assert_allclose(scores, want, atol=1e-9)
    assert calls == 200


def test_errors():
    with pytest.raises(UnknownNameError, match="kernel_shap"):
        attribute(game(3), 3, "kernelshap", budget=8)
    with pytest.raises(InputError, match="too small"):
        attribute(game(10), 10, "occlusion", budget=10)
    with pytest.raises(InputError, match="no word"):
        attribute(game(1), 0, "occlusion", budget=10)
    with pytest.raises(InputError, match="not finite"):
        attribute(lambda m: np.full(len(m), np.nan), 3, "occlusion", budget=10)


def test_words_of_a_proxy_are_a_game(tiny_lm):
    example = Example(id="x", text="Great phone, terrible battery.", label="positive")
    task = Task(
        name="t", instruction="Which?", train=(), validation=(), test=(example,), labels=("positive", "negative")
    )
    proxy = train_proxy(task, tiny_lm, epochs=0)
    spans = word_spans(example.text)
    value = proxy_value(proxy, example, spans, "positive", "negative")
    scores, _ = attribute(value, len(spans), "occlusion", budget=10)
    whole, cut = proxy.label_scores([example, Example(id="y", text="Great phone, battery.", label="positive")])
    assert scores[2] == pytest.approx((whole[0] - whole[1]) - (cut[0] - cut[1]), abs=1e-5)

"""Perturbation methods against closed forms, brute force and captum's order of the same words."""

from __future__ import annotations

from itertools import combinations
from math import comb

import numpy as np
import pytest

from amplify.attribution.games import owner_words, proxy_value, without_spans
from amplify.attribution.perturbation import NEIGHBOURHOODS, attribute, estimate
from amplify.attribution.words import word_spans
from amplify.errors import InputError, UnknownNameError
from amplify.proxies import train_proxy
from amplify.tasks import Task
from amplify.types import Example, Message, Prompt


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


def bent(n: int, seed: int):
    """A game of main effects, pairs and a wave, which no linear fit reaches."""
    rng = np.random.default_rng(seed)
    w, pairs = rng.normal(size=n), 0.3 * rng.normal(size=(n, n))
    return lambda z: z @ w + np.einsum("ci,ij,cj->c", z, pairs, z) + 0.3 * np.sin(7 * z @ w)


@pytest.mark.parametrize(("method", "budget"), [("kernel_shap", 60), ("kernel_shap", 30), ("shapley_sampling", 100)])
def test_intervals_cover_the_exact_shapley_values(method, budget):
    n, covered = 8, []
    for seed in range(40):
        value = bent(n, seed)
        exact = estimate(value, n, "kernel_shap", budget=2**n).scores
        found = estimate(value, n, method, budget=budget, seed=seed)
        assert found.calls <= budget
        covered.append((found.low <= exact) & (exact <= found.high))
    # 320 intervals at 95 %, which are not independent: 8 of a game share its draws
    assert 0.87 <= np.mean(covered) < 1


def test_exact_methods_have_no_interval():
    for method, budget in (("occlusion", 10), ("kernel_shap", 64), ("shapley_sampling", 64)):
        found = estimate(lambda m: m @ np.arange(6.0), 6, method, budget=budget)
        np.testing.assert_allclose(found.scores, np.arange(6.0), atol=1e-9)
        np.testing.assert_allclose(found.high - found.low, 0, atol=1e-8)


def test_too_few_samples_give_no_finite_interval():
    found = estimate(bent(12, 0), 12, "kernel_shap", budget=24)
    assert np.isinf(found.high).all()


@pytest.mark.parametrize("n", [3, 4, 5, 6, 9, 30, 100])
@pytest.mark.parametrize("seed", range(5))
def test_kernel_shap_is_determined_or_refused(n, seed):
    """A coalition and its complement give one equation: 2 n evaluations, not n + 2, find an additive game."""
    w = np.random.default_rng(seed).normal(size=n)
    with pytest.raises(InputError, match=f"scores of {n} words need {2 * n} or more"):
        estimate(lambda m: m @ w, n, "kernel_shap", budget=2 * n - 1)
    found = estimate(lambda m: m @ w, n, "kernel_shap", budget=2 * n, seed=seed)
    np.testing.assert_allclose(found.scores, w, atol=1e-9)
    assert found.calls <= 2 * n


def test_a_budget_that_no_memory_holds_is_refused_before_it_is_asked_for():
    def never(masks):
        raise AssertionError("a table was made")

    for method in ("lime", "kernel_shap", "shapley_sampling"):
        with pytest.raises(InputError, match="at most 559,240 do"):
            estimate(never, 30, method, budget=10**9)
    with pytest.raises(InputError, match="10,000 words are too many for kernel_shap: it needs 20,000"):
        estimate(never, 10_000, "kernel_shap", budget=10**9)


def test_a_value_that_is_not_finite_is_not_kept():
    from amplify.attribution.games import remembered

    broken = [True]
    value = remembered(lambda m: np.where(m.all(1) & broken[0], np.nan, m.sum(1)))
    with pytest.raises(InputError, match=r"not finite with words \[0, 1, 2\] of 3 kept"):
        estimate(value, 3, "occlusion", budget=10)
    broken[0] = False
    np.testing.assert_allclose(estimate(value, 3, "occlusion", budget=10).scores, 1)


def test_shapley_sampling_averages_orders_both_ways():
    n, value = 5, game(5)
    found = estimate(value, n, "shapley_sampling", budget=2000, seed=1)
    rng = np.random.default_rng(1)
    orders = [rng.permutation(n) for _ in range(((2000 - 2) // 4) // 2)]
    want = np.zeros(n)
    for order in (one for o in orders for one in (o, o[::-1])):
        for k, word in enumerate(order):
            masks = np.zeros((2, n), dtype=bool)
            masks[0, order[: k + 1]] = masks[1, order[:k]] = True
            after, before = value(masks)
            want[word] += (after - before) / (2 * len(orders))
    np.testing.assert_allclose(found.scores, want, atol=1e-9)
    assert found.calls == 2**n
    assert np.abs(found.scores - shapley(value, n)).max() < 0.3


def test_captum_finds_the_same_on_the_same_masks():
    import torch
    from captum._utils.models.linear_model import SkLearnLinearRegression, SkLearnRidge
    from captum.attr import FeatureAblation
    from captum.attr._core.lime import LimeBase

    n, value = 7, bent(7, 3)

    def forward(z):
        return torch.tensor(value(z.numpy().astype(np.float64)))

    for method, model in (("lime", SkLearnRidge(alpha=1.0)), ("kernel_shap", SkLearnLinearRegression())):
        near = NEIGHBOURHOODS[method](n, 50, 0)
        masks, weights = near.masks, near.weights
        if method == "kernel_shap":  # captum's way to an exact sum
            masks = np.concatenate([masks, np.ones((1, n)), np.zeros((1, n))])
            weights = np.concatenate([weights, [1e6, 1e6]])
        rows, given = iter(torch.tensor(masks, dtype=torch.float32)), iter(weights.tolist())
        captum = LimeBase(
            forward,
            model,
            lambda *_, given=given, **__: next(given),
            lambda *_, rows=rows, **__: next(rows)[None],
            True,
            lambda z, x, **_: z,
            None,
        )
        theirs = captum.attribute(torch.ones(1, n), n_samples=len(masks)).reshape(-1).numpy()
        # captum solves in float32, and a weight of a million is not infinity
        np.testing.assert_allclose(attribute(value, n, method, budget=50)[0], theirs, atol=2e-3)
    theirs = FeatureAblation(forward).attribute(torch.ones(1, n), baselines=0)[0].numpy()
    np.testing.assert_allclose(attribute(value, n, "occlusion", budget=50)[0], theirs, atol=1e-5)


def test_a_word_is_deleted_with_one_blank():
    prompt = Prompt(text="One two  three.\nFour? Five:\n")

    def cut(*gone):
        return without_spans(prompt, None, gone).text

    assert cut() == prompt.text
    assert cut((0, 3)) == "two  three.\nFour? Five:\n"
    assert cut((4, 7)) == "One three.\nFour? Five:\n"
    assert cut((16, 20), (22, 26)) == "One two  three.\n? :\n"
    chat = Prompt(messages=(Message("user", "a b"), Message("assistant", "a b")), prefix="x")
    assert [m.content for m in without_spans(chat, 0, [(0, 1)]).messages] == ["b", "a b"]


def test_a_token_belongs_to_the_word_that_it_has_most_of():
    spans = ((0, 3), (4, 9))
    assert owner_words([(0, 0), (0, 2), (2, 5), (2, 9), (9, 10), (3, 4)], spans).tolist() == [-1, 0, 0, 1, -1, -1]

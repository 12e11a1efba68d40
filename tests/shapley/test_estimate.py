"""Estimators against closed forms, brute force and shapiq, on games no estimator was made for."""

from __future__ import annotations

import tracemalloc
from itertools import permutations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from amplify.errors import InputError, UnknownNameError
from amplify.shapley import ESTIMATORS, all_coalitions, estimate, exact_scores
from amplify.shapley.budget import least, most

SAMPLED = [name for name, one in ESTIMATORS.items() if one.sampled]
EFFICIENT = [name for name, one in ESTIMATORS.items() if one.efficient]


def table_game(table: np.ndarray):
    """The value function of a table of 2^n values in the order of `all_coalitions`."""
    bits = 1 << np.arange(int(np.log2(len(table))))
    return lambda s: table[s @ bits]


def majority(weights: np.ndarray):
    """1 where the coalition holds more than half of the votes."""
    return lambda s: (s @ weights > weights.sum() / 2).astype(float)


def glove(left: int):
    """Sources below `left` own a left glove, the others a right one; the value is the number of pairs."""
    return lambda s: np.minimum(s[:, :left].sum(axis=1), s[:, left:].sum(axis=1)).astype(float)


def brute_force(value, n: int) -> np.ndarray:
    """Shapley values by their definition: the mean marginal over all orders."""
    total = np.zeros(n)
    orders = list(permutations(range(n)))
    for order in orders:
        held = np.zeros((1, n), bool)
        before = value(held)[0]
        for i in order:
            held[0, i] = True
            after = value(held)[0]
            total[i] += after - before
            before = after
    return total / len(orders)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_exact_equals_all_permutations(n: int) -> None:
    value = table_game(np.random.default_rng(n).normal(size=2**n))
    found = estimate(value, n)
    assert found.estimator == "exact"
    assert found.calls == 2**n
    np.testing.assert_allclose(found.scores, brute_force(value, n), atol=1e-12)
    np.testing.assert_array_equal(found.low, found.high)


def test_exact_closed_forms() -> None:
    slopes = np.array([3.0, -1.0, 0.5, 0.0])
    np.testing.assert_allclose(estimate(lambda s: s @ slopes + 7, 4).scores, slopes, atol=1e-12)
    np.testing.assert_allclose(
        estimate(lambda s: s[:, :3].all(axis=1) * 1.0, 5).scores, [1 / 3] * 3 + [0, 0], atol=1e-12
    )
    # one left and two right gloves: 2/3, 1/6, 1/6 (Shapley & Shubik 1969)
    np.testing.assert_allclose(estimate(glove(1), 3).scores, [2 / 3, 1 / 6, 1 / 6], atol=1e-12)
    # [51; 50, 49, 1]: the two small parties have equal power
    np.testing.assert_allclose(estimate(majority(np.array([50.0, 49, 1])), 3).scores, [2 / 3, 1 / 6, 1 / 6], atol=1e-12)


def test_exact_banzhaf_is_the_mean_marginal() -> None:
    n = 5
    table = np.random.default_rng(3).normal(size=2**n)
    held = all_coalitions(n)
    means = [table[held[:, i]].mean() - table[~held[:, i]].mean() for i in range(n)]
    np.testing.assert_allclose(estimate(table_game(table), n, index="banzhaf").scores, means, atol=1e-12)


def test_answers_are_scored_side_by_side() -> None:
    tables = np.random.default_rng(5).normal(size=(2**4, 3))
    both = estimate(table_game(tables), 4)
    assert both.scores.shape == (4, 3)
    for k in range(3):
        np.testing.assert_allclose(both.scores[:, k], estimate(table_game(tables[:, k]), 4).scores, atol=1e-12)


@pytest.mark.parametrize("name", SAMPLED)
def test_answers_are_scored_side_by_side_when_sampled(name: str) -> None:
    tables = np.random.default_rng(5).normal(size=(2**8, 2))
    both = estimate(table_game(tables), 8, estimator=name, budget=40)
    assert both.scores.shape == both.low.shape == (8, 2)
    if name not in ("gaussian_process",):  # whose design follows all answers together
        alone = estimate(table_game(tables[:, 1]), 8, estimator=name, budget=40)
        np.testing.assert_allclose(both.scores[:, 1], alone.scores, atol=1e-9)


@pytest.mark.parametrize("name", EFFICIENT)
def test_additive_games_are_recovered(name: str) -> None:
    slopes = np.random.default_rng(0).normal(size=9)
    found = estimate(lambda s: s @ slopes, 9, estimator=name, budget=512 if name == "exact" else 40)
    # the Gaussian process and the ridge shrink by their prior; the rest is a linear solve
    tolerance = {"gaussian_process": 0.02, "regression_msr": 0.05}.get(name, 1e-9)
    np.testing.assert_allclose(found.scores, slopes, atol=tolerance)


@pytest.mark.parametrize("index", ["shapley", "banzhaf"])
@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.parametrize("name", [*EFFICIENT, "auto"])
def test_every_estimator_is_exact_once_everything_is_known(name: str, n: int, index) -> None:  # type: ignore[no-untyped-def]
    if name == "permutation" and index == "banzhaf":
        return
    tables = np.random.default_rng(n).normal(size=(2**n, 2))
    found = estimate(table_game(tables), n, index, name, 2**n)
    assert (found.calls, found.estimator) == (2**n, "exact")
    np.testing.assert_array_equal(found.low, found.high)
    held = all_coalitions(n)
    for k, table in enumerate(tables.T):
        truth = brute_force(table_game(table), n)
        if index == "banzhaf":
            truth = np.array([table[held[:, i]].mean() - table[~held[:, i]].mean() for i in range(n)])
        np.testing.assert_allclose(found.scores[:, k], truth, atol=1e-12)


def test_no_more_is_asked_than_there_is() -> None:
    asked = []

    def value(coalitions):  # type: ignore[no-untyped-def]
        asked.append(len(coalitions))
        return coalitions.sum(axis=1).astype(float)

    found = estimate(value, 12, estimator="kernel_shap", budget=10**9)
    assert (found.estimator, found.calls, sum(asked)) == ("exact", 2**12, 2**12)
    asked.clear()
    for how in ("auto", "kernel_shap", "permutation", "lime", "lasso", "leverage_shap"):
        for n in (16, 19, 27):  # nobody asked for 65,536 evaluations
            with pytest.raises(
                InputError, match=rf"all {2**n:,} sets of {n} sources, more .* {'name' if n < 20 else ''}"
            ):
                estimate(value, n, estimator=how, budget=10**9)
    with pytest.raises(InputError, match=r"at most 4,096 do \(exact asks all of them\)"):
        estimate(value, 15, estimator="gaussian_process", budget=10**9, width=0.1)
    assert not asked
    assert estimate(value, 17, estimator="kernel_shap", budget=5000).calls <= 5000
    assert estimate(value, 1000, estimator="leave_one_out", budget=10**9).calls == 1001  # it asks no more
    assert estimate(value, 17, estimator="exact", budget=2**17).calls == 2**17


@pytest.mark.parametrize("name", SAMPLED)
def test_a_sample_without_differences_is_not_exact(name: str) -> None:
    found = estimate(lambda s: np.full((len(s), 2), [0.3, 1.0]), 12, estimator=name)  # 0.3 has a mean that rounds
    assert found.calls < 2**12
    assert found.estimator == name
    assert np.abs(found.scores).max() < 1e-9
    assert (found.high - found.low >= 6 / found.calls - 1e-12).all()


@given(
    n=st.integers(1, 12),
    budget=st.integers(2, 80),
    seed=st.integers(0, 2**16),
    name=st.sampled_from([*SAMPLED, "auto"]),
)
@example(n=4, budget=8, seed=2, name="regression_msr")  # too few pairs: a plain regression chooses others
@settings(max_examples=60, deadline=None)
def test_budget_and_efficiency(n: int, budget: int, seed: int, name: str) -> None:
    table = np.random.default_rng(seed).normal(size=2**n)
    bits = 1 << np.arange(n)
    asked: set[int] = set()

    def value(s: np.ndarray) -> np.ndarray:
        rows = (s @ bits).tolist()
        assert not asked & set(rows), "a coalition was asked twice"
        asked.update(rows)
        assert len(set(rows)) == len(rows)
        return table[rows]

    if budget < least(name, n):
        with pytest.raises(InputError, match=f"scores of {n} sources need {least(name, n)} or more"):
            estimate(value, n, estimator=name, budget=budget, seed=seed)
        assert not asked
        return
    found = estimate(value, n, estimator=name, budget=budget, seed=seed)
    assert found.calls == len(asked) <= budget
    assert (found.low <= found.scores).all()
    assert (found.scores <= found.high).all()
    assert np.isfinite(found.scores).all()
    if name == "auto" or ESTIMATORS[name].efficient:
        assert abs(found.scores.sum() - (table[-1] - table[0])) < 1e-6 * max(1, abs(table).max())


@pytest.mark.parametrize("name", ["kernel_shap", "leverage_shap"])
@pytest.mark.parametrize("n", [3, 4, 5, 6, 9, 30, 100])
def test_a_regression_is_determined_or_refused(name: str, n: int) -> None:
    """A coalition and its complement give one equation, so additive games need 2 n evaluations."""
    for seed in range(5):
        slopes = np.random.default_rng(seed).normal(size=n)
        for index, needed in (("shapley", 2 * n), ("banzhaf", 2 * n + 2)):
            with pytest.raises(InputError, match=f"need {needed} or more"):
                estimate(lambda s, w=slopes: s @ w, n, index, name, needed - 1)  # type: ignore[arg-type]
            found = estimate(lambda s, w=slopes: s @ w, n, index, name, needed, seed)  # type: ignore[arg-type]
            np.testing.assert_allclose(found.scores, slopes, atol=1e-8)


@pytest.mark.parametrize("name", [*SAMPLED, "auto"])
def test_a_budget_that_no_memory_holds_is_refused_before_it_is_asked_for(name: str) -> None:
    def never(s: np.ndarray) -> np.ndarray:
        raise AssertionError("a table was made")

    with pytest.raises(InputError, match=f"at most {most(name, 30):,} do"):
        estimate(never, 30, estimator=name, budget=10**9)
    assert estimate(lambda s: s.sum(axis=1), 5, estimator=name, budget=10**9).calls == 32


@pytest.mark.parametrize("n", [1000, 3000, 10_000])
def test_many_sources_take_little_memory(n: int) -> None:
    slopes = np.zeros(n)
    slopes[: n // 100] = 1.0
    tracemalloc.start()
    found = estimate(lambda s: s @ slopes, n, budget=40)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1e9
    assert found.scores.sum() == pytest.approx(n // 100)


def test_same_seed_same_answer() -> None:
    value = table_game(np.random.default_rng(2).normal(size=2**10))
    for name in SAMPLED:
        a, b = (estimate(value, 10, estimator=name, budget=40, seed=4) for _ in range(2))
        np.testing.assert_array_equal(a.scores, b.scores)
        np.testing.assert_array_equal(a.low, b.low)


def test_width_stops_early() -> None:
    slopes = np.linspace(-1, 1, 10)
    value = lambda s: s @ slopes  # noqa: E731
    found = estimate(value, 10, estimator="kernel_shap", budget=200, width=1e-3)
    assert found.calls < 200
    assert (found.high - found.low <= 1e-3).all()
    rough = table_game(np.random.default_rng(0).normal(size=2**10))
    assert estimate(rough, 10, estimator="kernel_shap", budget=100, width=1e-3).calls == 100


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 0}, "at least one source"),
        ({"budget": 1}, "at least 2"),
        ({"estimator": "exact", "n": 10}, r"2\^10 = 1024 evaluations; the budget is 64"),
        ({"estimator": "exact", "n": 40, "budget": 2**50}, "more than 20 sources"),
        ({"estimator": "permutation", "index": "banzhaf"}, "Shapley values"),
        ({"n": 2.5}, "n is a whole number, got 2.5"),
        ({"budget": 8.5}, "budget is a whole number, got 8.5"),
        ({"seed": 0.5}, "seed is a whole number"),
        ({"seed": -1}, "seed is at least 0, got -1"),
        ({"width": -0.1}, "width is a number of at least 0, got -0.1"),
        ({"width": float("nan")}, "width is a number of at least 0, got nan"),
    ],
)
def test_bad_input(change: dict, message: str) -> None:
    def never(s: np.ndarray) -> np.ndarray:
        raise AssertionError("work was done before the input was checked")

    with pytest.raises(InputError, match=message):
        estimate(never, **{"n": 8, **change})


def test_numpy_integers_do_not_overflow() -> None:
    found = estimate(lambda s: s[:, 0] * 1.0, np.int64(64), budget=np.int64(70))  # type: ignore[arg-type]
    assert found.estimator == "gaussian_process"


def test_unknown_names_suggest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'kernel_shap'"):
        estimate(lambda s: s.sum(axis=1), 3, estimator="kernelshap")
    with pytest.raises(UnknownNameError, match="banzhaf"):
        estimate(lambda s: s.sum(axis=1), 3, index="owen")  # type: ignore[arg-type]


def test_values_that_are_no_numbers_name_their_coalition() -> None:
    def value(s: np.ndarray) -> np.ndarray:
        return np.where(s[:, 1] & ~s[:, 0] & ~s[:, 2], np.nan, 1.0)

    with pytest.raises(InputError, match=r"sources \[1\] is not a finite number"):
        estimate(value, 3)
    with pytest.raises(InputError, match="shape"):
        estimate(lambda s: np.zeros(3), 3)


def test_exact_scores_of_a_table() -> None:
    table = np.random.default_rng(1).normal(size=16)
    np.testing.assert_allclose(exact_scores(table), brute_force(table_game(table), 4), atol=1e-12)

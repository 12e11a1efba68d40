"""Statistics against statsmodels, scipy, closed forms and simulation."""

from __future__ import annotations

import itertools
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as sm_mcnemar
from statsmodels.stats.proportion import proportion_confint

from amplify.errors import InputError
from amplify.evaluation import statistics as s


@pytest.mark.parametrize(("right", "n"), [(0, 7), (1, 1), (29, 36), (100, 100), (523, 1000)])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_wilson_equals_statsmodels(right, n, level):
    got = s.wilson(right, n, level)
    assert (got.low, got.high) == pytest.approx(proportion_confint(right, n, 1 - level, "wilson"), abs=1e-12)


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_mcnemar_equals_statsmodels(pairs):
    a, b = np.array(pairs, dtype=int).T
    table = [[int(((a == i) & (b == j)).sum()) for j in (1, 0)] for i in (1, 0)]
    expected = 1.0 if (a == b).all() else sm_mcnemar(table, exact=True).pvalue
    assert s.mcnemar(a, b).p == pytest.approx(expected, abs=1e-12)


def test_mcnemar_closed_form():
    # 1 win against 8 losses: twice the lower tail of Binomial(9, 1/2)
    a, b = [1] + [0] * 8 + [1] * 5, [0] + [1] * 8 + [1] * 5
    assert s.mcnemar(a, b).p == pytest.approx(2 * (comb(9, 0) + comb(9, 1)) / 2**9, abs=1e-15)


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=80))
def test_sign_flip_of_zeros_and_ones_is_mcnemar(pairs):
    a, b = np.array(pairs, dtype=float).T
    assert s.sign_flip(a - b).p == pytest.approx(s.mcnemar(a, b).p, abs=1e-10)


def brute_force(d):
    flipped = [abs(np.dot(signs, d)) for signs in itertools.product((1, -1), repeat=len(d))]
    return np.mean(np.array(flipped) >= abs(sum(d)) - 1e-9)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=9))
def test_sign_flip_on_a_grid_equals_enumeration(thirds):
    test = s.sign_flip(np.array(thirds) / 3)
    assert test.kind == "exact sign flip"
    assert test.p == pytest.approx(brute_force(np.array(thirds) / 3), abs=1e-12)


def test_sign_flip_of_floats_equals_scipy():
    d = np.random.default_rng(3).normal(0.4, 1, 11)
    expected = stats.permutation_test(
        (d,), np.mean, permutation_type="samples", n_resamples=np.inf, alternative="two-sided"
    ).pvalue
    assert s.sign_flip(d).p == pytest.approx(expected, abs=1e-12)
    many = np.random.default_rng(4).normal(0.2, 1, 60)
    sampled = s.sign_flip(many)
    assert sampled.kind == "sampled sign flip"
    # 100,000 flips: the standard error of p is at most 0.0016; the t-test is close at n = 60
    assert sampled.p == pytest.approx(stats.ttest_1samp(many, 0).pvalue, abs=0.01)


def test_sign_flip_of_no_difference_is_one():
    assert s.sign_flip(np.zeros(5)).p == 1.0
    assert s.sign_flip([1 / 3, -1 / 3]).p == 1.0


@pytest.mark.parametrize(("bca", "method"), [(True, "BCa"), (False, "percentile")])
def test_bootstrap_equals_scipy(bca, method):
    x = np.random.default_rng(1).integers(0, 4, 80) / 3
    expected = stats.bootstrap(
        (x,), np.mean, n_resamples=20_000, method=method, rng=np.random.default_rng(5)
    ).confidence_interval
    got = s.bootstrap(x, bca=bca, resamples=20_000)
    # two sets of 20,000 resamples: an end point has a standard error of about 0.0006 here
    assert (got.low, got.high) == pytest.approx((expected.low, expected.high), abs=0.006)
    assert got == s.bootstrap(x, bca=bca, resamples=20_000)


def test_bonett_price_closed_form():
    # Bonett & Price 2012, eq. 2: p12 = (f12 + 1)/(n + 2), p21 = (f21 + 1)/(n + 2)
    d = [1] * 12 + [-1] * 4 + [0] * 34
    p12, p21, n = 13 / 52, 5 / 52, 52
    half = stats.norm.ppf(0.975) * np.sqrt((p12 + p21 - (p12 - p21) ** 2) / n)
    got = s.bonett_price(d)
    assert (got.low, got.high) == pytest.approx((p12 - p21 - half, p12 - p21 + half), abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), max_size=6))
def test_holm_is_closed_testing_with_bonferroni(p_values):
    """Holm's procedure is the closure of Bonferroni's: the largest Bonferroni p over all subsets that hold the test."""
    n = len(p_values)
    subsets = [c for size in range(1, n + 1) for c in itertools.combinations(range(n), size)]
    bonferroni = {c: min(1.0, len(c) * min(p_values[j] for j in c)) for c in subsets}
    expected = [max(bonferroni[c] for c in subsets if i in c) for i in range(n)]
    assert s.holm(p_values) == pytest.approx(expected, abs=1e-12)


def test_spread_and_item_means():
    assert s.spread([0.5]) is None
    assert s.spread([0.4, 0.6]) == pytest.approx(np.sqrt(0.02), abs=1e-12)
    assert s.item_means([[1, 0], [0, 0], [1, 0]]) == pytest.approx([2 / 3, 0])


def test_seeds_are_averaged_before_anything_is_resampled():
    """Repeating a run under three seeds with equal answers must not narrow the interval or sharpen the test."""
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 2, (2, 60)).astype(float)
    one, three = s.interval_of([a]), s.interval_of([a] * 3)
    assert one.kind == "wilson"
    assert three.kind == "BCa bootstrap"
    assert three.high - three.low == pytest.approx(one.high - one.low, rel=0.1)
    assert s.compare([a] * 3, [b] * 3)[2].p == pytest.approx(s.compare([a], [b])[2].p, abs=1e-10)


def test_equal_items_keep_a_width():
    every = s.interval_of([[1.0] * 20] * 3)
    assert (every.low, every.high) == (s.wilson(20, 20).low, 1.0)
    difference, interval, test = s.compare([[1.0] * 20] * 3, [[1.0] * 20] * 3)
    assert (difference, test.p) == (0.0, 1.0)
    assert interval.low < 0 < interval.high


@pytest.mark.parametrize("call", [lambda: s.wilson(3, 2), lambda: s.bootstrap([]), lambda: s.mcnemar([0.5], [1])])
def test_bad_input(call):
    with pytest.raises(InputError):
        call()


def beta_items(rng, items, seeds, mean):
    """Accuracy per item: items differ in difficulty, seeds repeat each item."""
    chance = rng.beta(4 * mean, 4 * (1 - mean), items)
    return rng.binomial(1, chance, (seeds, items)).astype(float)


def test_intervals_cover_and_the_test_keeps_its_level():
    """Simulated: 95 % intervals hold the truth in about 95 %, tests at 5 % reject in at most about 5 %.

    1,000 repetitions: the standard error of a rate of 0.05 is 0.007, so the bounds are some four of them wide.
    """
    rng = np.random.default_rng(7)
    repetitions, items, mean = 1000, 60, 0.7
    covered = {"wilson": 0, "bootstrap": 0, "difference": 0}
    rejected = {"mcnemar": 0, "sign flip": 0}
    for i in range(repetitions):
        a, b = beta_items(rng, items, 3, mean), beta_items(rng, items, 3, mean)
        one = s.interval_of([a[0]])
        covered["wilson"] += one.low <= mean <= one.high
        three = s.bootstrap(s.item_means(a), resamples=1000, seed=i)
        covered["bootstrap"] += three.low <= mean <= three.high
        paired = s.bonett_price(a[0] - b[0])
        covered["difference"] += paired.low <= 0 <= paired.high
        rejected["mcnemar"] += s.mcnemar(a[0], b[0]).p <= 0.05
        rejected["sign flip"] += s.sign_flip(s.item_means(a) - s.item_means(b)).p <= 0.05
    for name, count in covered.items():
        assert 0.92 <= count / repetitions <= 0.985, (name, count)
    assert 0.02 <= rejected["sign flip"] / repetitions <= 0.075, rejected
    assert rejected["mcnemar"] / repetitions <= 0.07, rejected  # exact and discrete: conservative

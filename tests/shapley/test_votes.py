"""Whether the intervals of votes hold the exact values of every candidate answer, over closed-form voting games."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from amplify.errors import InputError
from amplify.shapley import all_coalitions, estimate, exact_scores
from amplify.shapley.given import given_scores
from amplify.shapley.sampling import prefixes
from amplify.shapley.votes import exact_credit, sampled_orders, shubik_weights, walked_shubik

N = 10
HELD = all_coalitions(N)
BITS = 1 << np.arange(N)


def support(rng: np.random.Generator) -> np.ndarray:
    """Each source speaks for some of four answers; the loudest wins."""
    loud = rng.integers(0, 6, (N, 4)) * (rng.random((N, 4)) < 0.4)
    return (HELD @ loud + rng.random(4) / 2).argmax(axis=1)


def priority(rng: np.random.Generator) -> np.ndarray:
    """The first present of a few strong sources decides; without them, a fifth answer."""
    says, said = rng.integers(0, 4, N), np.full(2**N, 4)
    for i in rng.permutation(N)[: rng.integers(2, 6)]:
        said[HELD[:, i]] = says[i]
    return said


def plurality(rng: np.random.Generator) -> np.ndarray:
    """One source, one vote."""
    return (HELD @ np.eye(4)[rng.integers(0, 4, N)] + np.arange(4)[::-1] / 10).argmax(axis=1)


def answers(kind: int, run: int, stray: float) -> np.ndarray:
    """What is said to each coalition, [2^N]; a share of `stray` answers fell from the sky."""
    rng = np.random.default_rng([run, kind, 7])
    said = (support, priority, plurality)[kind](rng).astype(str).astype(object)
    lost = rng.random(2**N) < stray
    said[lost] = [f"stray {k}" for k in rng.integers(0, 6, lost.sum())]
    return said


def others(seen: np.ndarray, wanted: str) -> list[str]:
    """The eight other answers that were given most often."""
    return [c for c, _ in Counter(seen.tolist()).most_common(9) if c != wanted][:8]


@pytest.mark.parametrize("stray", [0.0, 0.05])
@pytest.mark.parametrize("budget", [32, 64])
def test_intervals_of_other_answers_cover(budget: int, stray: float) -> None:
    hits = []
    for kind in range(3):
        for run in range(3):
            said, asked = answers(kind, run, stray), []

            def value(s: np.ndarray, said=said, asked=asked) -> np.ndarray:  # type: ignore[no-untyped-def]
                asked.append(s)
                return (said[s @ BITS] == said[-1]).astype(float)

            estimate(value, N, budget=budget, seed=run)
            known = np.concatenate(asked)
            candidates = np.array(others(said[known @ BITS], said[-1]), object)
            if not len(candidates):
                continue
            scores, half = given_scores(known, (said[known @ BITS][:, None] == candidates) * 1.0, "shapley")
            truth = exact_scores((said[:, None] == candidates) * 1.0)
            assert (half > 0).all()
            hits.append(np.mean(np.abs(scores - truth) <= half))
    assert 0.90 <= np.mean(hits) <= 0.99


def test_an_answer_that_the_sample_never_gave_has_an_interval() -> None:
    rng = np.random.default_rng(0)
    known = HELD[np.r_[0, 1023, rng.choice(1022, 46, replace=False) + 1]]
    scores, half = given_scores(known, np.zeros((48, 1)), "shapley")
    assert (scores == 0).all()
    hits = []
    for _ in range(40):  # as many as would be missed by 48 of 1,024 about one time in three
        table = np.zeros(1024)
        table[rng.choice(np.setdiff1d(np.arange(1024), known @ BITS), 24, replace=False)] = 1.0
        hits.append(np.mean(np.abs(exact_scores(table)) <= half[:, 0]))
    assert np.mean(hits) >= 0.95
    assert half.max() < 0.5
    np.testing.assert_array_equal(given_scores(HELD, np.zeros((1024, 1)), "shapley")[1], 0)


@pytest.mark.parametrize("stray", [0.0, 0.05])
@pytest.mark.parametrize("budget", [32, 64])
def test_intervals_of_credit_cover(budget: int, stray: float) -> None:
    hits: dict[str, list[np.ndarray]] = {"asked": [], "others": []}
    for kind in range(3):
        for run in range(20):
            said = answers(kind, run, stray)

            def rows(orders: np.ndarray) -> np.ndarray:
                return np.concatenate([prefixes(o) for o in orders]) @ BITS

            orders = sampled_orders(N, budget, lambda o: rows(o[None]).tolist(), np.random.default_rng([run, 2]))
            path = rows(orders)
            candidates = [said[-1], *others(said[np.unique(path)], said[-1])]
            scores, half = walked_shubik(orders, said[path].reshape(len(orders), N + 1), candidates)
            truth = exact_credit(said.tolist(), N, candidates, shubik_weights(N))
            assert (half > 0).all()
            inside = np.abs(scores - truth) <= half
            hits["asked"].append(inside[:, 0][truth[:, 0] > 0])  # the sources that never turn an answer are easy
            hits["others"].append(inside[:, 1:][truth[:, 1:] > 0])
    for name in hits:
        assert 0.90 <= np.concatenate(hits[name]).mean() <= 0.995, name


def test_an_order_and_its_reverse_are_one_draw() -> None:
    """Any one of two sources gives the answer, so each pair of orders splits the credit evenly."""
    orders = np.array([[0, 1], [1, 0]] * 3)
    said = np.array([["", "a", "a"]] * 6, object)
    scores, half = walked_shubik(orders, said, ["a"])
    assert scores[:, 0].tolist() == [0.5, 0.5]
    alone, wide = walked_shubik(orders[[0, 0, 1, 1, 0, 1]], said, ["a"])
    assert alone[:, 0].tolist() == [0.5, 0.5]
    assert half.max() < 0.6 * wide.min()
    assert walked_shubik(orders[:2], said[:2], ["a"])[1].max() == 1.0  # one draw tells nothing of the spread


def test_orders_are_drawn_without_asking_about_earlier_ones_again() -> None:
    """Of three sources all coalitions are known after a few orders; each order is looked at once all the same."""
    looked = []

    def asked(order: np.ndarray) -> list[bytes]:
        looked.append(order)
        return [row.tobytes() for row in prefixes(order)]

    orders = sampled_orders(3, 400, asked, np.random.default_rng(0))
    assert orders.shape == (400, 3)
    assert len(looked) <= 402
    assert len(sampled_orders(3, 10**9, asked, np.random.default_rng(0))) < 20_000
    known = {key for order in sampled_orders(6, 20, asked, np.random.default_rng(1)) for key in asked(order)}
    assert 7 <= len(known) <= 20
    with pytest.raises(InputError, match="one order of 3 documents asks 4 coalitions; the budget is 3"):
        sampled_orders(3, 3, asked, np.random.default_rng(0))

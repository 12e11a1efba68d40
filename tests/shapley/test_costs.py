"""What coalitions cost behind shared beginnings, and designs that mind it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from amplify.errors import InputError
from amplify.shapley import Guide, PrefixCost, all_coalitions, estimate, exact_scores, gp
from amplify.shapley.budget import CostTracker
from amplify.shapley.sampling import ends

LENGTHS = (50.0, 40.0, 30.0, 20.0, 10.0, 5.0)


def by_tokens(held: np.ndarray, head: int, each: int) -> float:
    """The nodes of the trie, written out."""
    nodes = {(): float(head)}
    for row in held:
        path: tuple[int, ...] = ()
        for j in np.flatnonzero(row):
            path = (*path, int(j))
            nodes[path] = LENGTHS[j]
    return sum(nodes.values()) + each * len({row.tobytes() for row in held})


def test_cost_is_that_of_the_trie() -> None:
    rng = np.random.default_rng(0)
    cost = PrefixCost(LENGTHS, 7, 10_000, 3)
    for count in (1, 2, 10, 64):
        held = all_coalitions(6)[rng.choice(64, count)]
        assert cost.of(held) == by_tokens(held, 3, 7)


def test_a_bill_adds_up_whatever_the_order() -> None:
    cost, pool = PrefixCost(LENGTHS, 7, 10_000, 3), all_coalitions(6)
    asked = [0, 63]
    bill = CostTracker(cost, pool, pool[asked])
    for candidate in np.random.default_rng(1).permutation(np.arange(1, 63))[:20]:
        before = bill.spent
        price = bill.costs[candidate]
        bill.pay(int(candidate))
        asked.append(int(candidate))
        assert bill.spent == before + price == by_tokens(pool[asked], 3, 7)


def test_a_design_takes_the_cheaper_of_equals_and_stays_within_its_limit() -> None:
    kernel, pool = gp.prior(6), all_coalitions(6)
    plain, dear = gp.AcquisitionDesign(kernel, ends(6), pool, "shapley"), PrefixCost(LENGTHS, 1.0, 1e9)
    minding = gp.AcquisitionDesign(kernel, ends(6), pool, "shapley", dear)
    a, b = plain.pick(12), minding.pick(12)
    assert dear.of(np.concatenate([ends(6), b])) < dear.of(np.concatenate([ends(6), a]))
    some = gp.AcquisitionDesign(kernel, ends(6), pool, "shapley", dear).pick(64, upto=300.0)
    assert 0 < len(some) < 62
    assert dear.of(np.concatenate([ends(6), some])) <= 300.0


def test_estimates_keep_to_the_limit_and_tell_what_they_spent() -> None:
    held, rng = all_coalitions(6), np.random.default_rng(2)
    table = held @ rng.normal(size=6) + 2.0 * held[:, 0] * held[:, 3] + 0.05 * rng.normal(size=64)

    def value(asked: np.ndarray) -> np.ndarray:
        return table[asked @ (1 << np.arange(6))]

    errors = []
    for limit in (250.0, 500.0, 900.0, 1e6):
        found = estimate(value, 6, budget=64, guide=Guide(cost=PrefixCost(LENGTHS, 7, limit, 3)))
        assert found.meta["spent"] <= limit
        errors.append(((found.scores - exact_scores(table)) ** 2).sum())
    assert found.estimator == "exact"
    assert found.calls == 64
    assert errors[0] > errors[2] > errors[3]
    assert errors[3] < 1e-20


def test_a_soft_limit_changes_what_is_asked_and_not_how_many() -> None:
    rng = np.random.default_rng(3)
    slopes = rng.normal(size=12)

    def value(asked: np.ndarray) -> np.ndarray:
        return asked @ slopes + 0.5 * asked[:, 0] * asked[:, 7]

    free = PrefixCost((30.0,) * 12, 7, 1e9, 3)
    seen: dict[float, float] = {}
    for limit in (1e9, 2000.0, 1200.0):
        cost = replace(free, limit=limit, soft=True)
        found = estimate(value, 12, budget=30, guide=Guide(cost=cost))
        assert found.calls == 30
        seen[limit] = found.meta["spent"]
    plain = estimate(value, 12, budget=30)
    unlimited = estimate(value, 12, budget=30, guide=Guide(cost=replace(free, soft=True)))
    assert np.array_equal(plain.scores, unlimited.scores)  # where there is enough the price does not matter
    assert seen[1200.0] <= 1200.0 < seen[2000.0] <= 2000.0 < seen[1e9]


def test_impossible_costs_are_refused() -> None:
    with pytest.raises(InputError, match="alone cost 172"):
        PrefixCost(LENGTHS, 7, 171, 3)
    with pytest.raises(InputError, match="0 or more"):
        PrefixCost((-1.0, 2.0), 7, 100)
    cost = PrefixCost(LENGTHS, 7, 200, 3)
    with pytest.raises(InputError, match="6 sources"):
        estimate(lambda s: s.sum(1), 5, guide=Guide(cost=PrefixCost(LENGTHS, 7, 200, 3)))
    with pytest.raises(InputError, match="takes no guide"):
        estimate(lambda s: s.sum(1), 6, estimator="kernel_shap", guide=Guide(cost=cost))
    with pytest.raises(InputError, match="more than the limit"):
        estimate(lambda s: s.sum(1), 6, estimator="exact", guide=Guide(cost=cost))

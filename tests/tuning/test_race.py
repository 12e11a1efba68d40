"""The race on entrants whose worth is known, and the promise never to be worse."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from amplify.tuning import race as racing
from amplify.tuning.budget import BudgetSpentError
from amplify.tuning.race import CannotRunError, Runner
from amplify.tuning.search import Confirmation, compared, looked


def table(worth: Sequence[float], items: int, seed: int) -> np.ndarray:
    """Independent right and wrong answers: [entrants, items]."""
    return (np.random.default_rng(seed).random((len(worth), items)) < np.array(worth)[:, None]).astype(float)


def run(scores: np.ndarray, plain: int = 1, first: int = 16) -> racing.Race:
    runners = [Runner(i, i < plain, i) for i in range(len(scores))]
    return racing.run(runners, lambda i, places: scores[i, list(places)].tolist(), scores.shape[1], first)


def test_rounds_double_and_the_hopeless_leave() -> None:
    race = run(table([0.3, 0.9, 0.2, 0.2, 0.2, 0.2], 128, 0))
    assert race.rounds == (16, 32, 64, 128)
    assert [r.index for r in race.finalists] == [0, 1]  # the best, and the plain one, which is never dropped
    asked = sum(len(r.scores) for r in race.runners)
    assert asked <= 2 * 128 + 4 * 16 + 2 * 16  # the others had one round, or two


def test_the_best_wins_nearly_always() -> None:
    wins = 0
    for seed in range(60):
        race = run(table([0.5, 0.55, 0.8, 0.5, 0.6], 160, seed))
        wins += racing.choose(race.finalists, range(race.n)).index == 2
    assert wins >= 55


def test_of_nearly_equal_ones_the_simplest_is_taken() -> None:
    """One standard error of the paired difference, by hand: 2 of 100 items differ, all one way."""
    a, b = np.ones(100), np.ones(100)
    a[:2] = 0
    runners = [Runner(0, True, 0, a.tolist()), Runner(1, False, 5, b.tolist())]
    error = (b - a).std(ddof=1) / 10
    assert (b - a).mean() > error  # .02 against .0141
    assert racing.choose(runners, range(100)).index == 1
    a[1] = 1
    runners = [Runner(0, True, 0, a.tolist()), Runner(1, False, 5, b.tolist())]
    assert (b - a).mean() == pytest.approx((b - a).std(ddof=1) / 10)  # one item: both are .01
    assert racing.choose(runners, range(100)).index == 0


def test_what_cannot_run_leaves_and_says_why() -> None:
    def score(index: int, places: Sequence[int]) -> list[float]:
        if index == 1:
            raise CannotRunError("cannot be used: no labels")
        return [1.0 if index else 0.0] * len(places)

    runners = [Runner(i, i == 0, i) for i in range(3)]
    race = racing.run(runners, score, 40, 16)
    assert runners[1].out == "cannot be used: no labels"
    assert racing.choose(race.finalists, range(race.n)).index == 2


def test_the_budget_ends_a_race_on_common_items() -> None:
    asked = 0

    def score(index: int, places: Sequence[int]) -> list[float]:
        nonlocal asked
        asked += len(places)
        if asked > 60:
            raise BudgetSpentError("calls")
        return [0.5 + 0.1 * index] * len(places)

    runners = [Runner(i, i == 0, i) for i in range(3)]
    race = racing.run(runners, score, 160, 16)
    assert race.n == 16
    assert {len(r.scores) for r in race.finalists} == {16}
    assert race.ended.startswith("the budget")


def test_whoever_had_no_first_round_was_not_tried() -> None:
    def score(index: int, places: Sequence[int]) -> list[float]:
        if index == 2:
            raise BudgetSpentError("tokens")
        return [0.5] * len(places)

    runners = [Runner(i, i == 0, i) for i in range(4)]
    race = racing.run(runners, score, 32, 16)
    assert [r.out for r in runners] == ["", "", "not tried: the budget", "not tried: the budget"]
    assert [r.index for r in race.finalists] == [0, 1]


def test_a_choice_is_not_judged_by_the_items_that_made_it() -> None:
    """Forty coins: the best looks good, and cross-fitting sees that it is a coin."""
    looks, crossed = [], []
    for seed in range(40):
        scores = table([0.5] * 40, 40, seed)
        runners = [Runner(i, i == 0, 0, scores[i].tolist()) for i in range(40)]
        looks.append(max(r.mean(40) for r in runners))
        crossed.append(racing.cross_fitted(runners, 40)[0])
    assert np.mean(looks) > 0.62
    assert abs(np.mean(crossed) - 0.5) < 3 * 0.5 / math.sqrt(40 * 40)


def confirmed(chosen: Sequence[float], plain: Sequence[float]) -> Confirmation:
    """As a search confirms: in batches of 16, with a look at each."""
    for n in range(16, len(chosen), 16):
        if found := looked(chosen[:n], plain[:n]):
            return found
    found = looked(chosen, plain, last=True)
    assert found is not None
    return found


@pytest.mark.parametrize("worth", [0.6, 0.55])
def test_never_worse_where_no_candidate_is_better(worth: float) -> None:
    """Over 300 searches with nothing to find, something else than the plain one is deployed in at most 5 % of them."""
    deployed = 0
    for seed in range(300):
        truth = [0.6, *[worth] * 7]
        race = run(table(truth, 64, seed))
        chosen = racing.choose(race.finalists, range(race.n))
        if not chosen.plain:
            unseen = table(truth, 128, 10_000 + seed)
            deployed += confirmed(unseen[chosen.index].tolist(), unseen[0].tolist()).confirmed
    assert deployed / 300 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 300)
    if worth < 0.6:
        assert deployed / 300 <= 0.02  # what is worse is deployed more rarely still


def test_a_true_gain_is_confirmed_and_a_large_one_early() -> None:
    runs = [[confirmed(*table([best, 0.4], 86, seed).tolist()) for seed in range(50)] for best in (0.65, 0.8)]
    assert sum(one.confirmed for one in runs[0]) >= 40
    assert sum(one.confirmed for one in runs[1]) == 50
    assert np.mean([one.n for one in runs[1]]) < 60
    behind = [confirmed(*table([0.3, 0.6], 86, seed).tolist()) for seed in range(50)]
    assert not any(one.confirmed for one in behind)
    assert np.mean([one.n for one in behind]) < 40


def test_a_confirmation_by_hand() -> None:
    """Five items for, none against: McNemar's exact one-sided p is 1/32."""
    seen = compared([1.0] * 10, [0.0] * 5 + [1.0] * 5)
    assert seen.p == pytest.approx(1 / 32)
    assert seen.confirmed
    assert not compared([1.0] * 10, [0.0] * 4 + [1.0] * 6).confirmed  # 1/16
    assert not compared([0.0] * 10, [1.0] * 10).confirmed

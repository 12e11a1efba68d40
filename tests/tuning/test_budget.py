"""Budgets as they are written, and the ledger that keeps to them."""

from __future__ import annotations

import pytest

from amplify.errors import InputError
from amplify.tuning import Budget
from amplify.tuning.budget import BudgetSpentError, Ledger, Spent


def test_budgets_as_they_are_written() -> None:
    assert Budget.parse("20m") == Budget(minutes=20)
    assert Budget.parse("90s").minutes == pytest.approx(1.5)
    assert Budget.parse("1h, tokens=2M").tokens == 2e6
    assert Budget.parse("calls=5000") == Budget(calls=5000)
    assert str(Budget(minutes=20, calls=5000)) == "20 minutes, 5,000 calls"


@pytest.mark.parametrize("text", ["", "20", "tokens=", "calls=-1", "minutes=0", "20x", "tokens=2.2.2"])
def test_what_is_no_budget(text: str) -> None:
    with pytest.raises(InputError, match="budget"):
        Budget.parse(text)


def test_what_could_cost_too_much_does_not_begin() -> None:
    ledger = Ledger(Budget(tokens=100, calls=10))
    ledger.charge(Spent(tokens=60, calls=2))
    ledger.afford(Spent(tokens=40, calls=8))
    with pytest.raises(BudgetSpentError, match="tokens: 41 needed, 40 left"):
        ledger.afford(Spent(tokens=41))
    ledger.open = 0.7
    assert ledger.left() == pytest.approx({"tokens": 10, "calls": 5})


def test_time_besides_model_calls_counts_once() -> None:
    now = [0.0]
    ledger = Ledger(Budget(minutes=1), clock=lambda: now[0])
    kept: list[float] = []
    with ledger.stage(None, kept.append):
        now[0] += 5  # training
        now[0] += 3  # a model call, which charges itself
        ledger.charge(Spent(seconds=3))
    assert kept == [5.0]
    assert ledger.spent.seconds == 8.0
    with ledger.stage(5.0, kept.append):  # known from an earlier process: at what it took then
        now[0] += 1
    assert ledger.spent.seconds == 13.0

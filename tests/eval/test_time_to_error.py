"""What `eval/bench_time_to_error.py` makes of curves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from amplify.shapley import all_coalitions


@pytest.fixture(scope="module")
def bench(script: Any) -> Any:
    return script("bench_time_to_error")


def test_an_error_is_reached_where_it_stays_below(bench: Any) -> None:
    curve = {"nmse": [0.5, 0.04, 0.06, 0.05, 0.001]}
    assert [bench.reached(curve, f) for f in (0.6, 0.05, 0.01, 0.0001)] == [0, 3, 4, None]
    assert bench.reached({"nmse": [0.01, float("nan")]}, 0.05) is None


def test_plain_tokens_are_whole_prompts_and_a_trie_has_fewer(bench: Any) -> None:
    game = bench.Game(np.zeros(8), np.zeros(8), {"head": 5, "documents": [10, 20, 30], "tail": 2, "answer": 4})
    game.value(all_coalitions(3))
    game.value(all_coalitions(3)[:2])
    # each document stands in four of eight prompts; the answer's last token predicts nothing
    assert bench.plain_tokens(game) == 8 * (5 + 2 + 3) + 4 * (10 + 20 + 30)
    game.asked.pop()
    assert game.forwarded() == 5 + 8 * (2 + 3) + 10 * 1 + 20 * 2 + 30 * 4
    game.value(all_coalitions(3))  # what was read before is not read again
    assert game.forwarded() == 5 + 8 * (2 + 3) + 10 * 1 + 20 * 2 + 30 * 4


def test_times_are_those_of_the_best_that_gets_there(bench: Any) -> None:
    def found(*errors: float) -> dict[str, list[float]]:
        return {"nmse": list(errors), "evaluations": [16, 32, 64], "tokens": [100.0, 200.0, 400.0]}

    curves = {
        "a": {"amplify": {"auto": found(0.04, 0.02, 0)}, "x": {"p": found(1, 1, 0), "q": found(1, 0.05, 0.02)}},
        "b": {"amplify": {"auto": found(1, 0.02, 0)}, "x": {"p": found(1, 1, 1), "q": found(1, 1, 0.2)}},
    }
    rows = bench.summary(curves, [0.05, 0.01])
    assert [row["times"]["auto"]["x"] for row in rows] == [2.0, None, 1.0, None]
    assert rows[0]["evaluations"] == {"amplify auto": 16, "x p": 64, "x q": 32}
    assert bench.median([2.0, None, 4.0]) == 4.0
    assert bench.median([2.0, None]) is None

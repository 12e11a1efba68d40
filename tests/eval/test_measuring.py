"""What `eval/measuring.py` makes of rounds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest


@pytest.fixture(scope="module")
def measuring(script: Any) -> Any:
    return script("measuring")


def test_few_rounds_are_bounded_by_their_extremes(measuring: Any) -> None:
    assert measuring.middle([3.0, 1.0, 2.0]) == {"median": 2.0, "interval": [1.0, 3.0], "coverage": 0.75}
    assert measuring.middle([5.0]) == {"median": 5.0, "interval": [5.0, 5.0], "coverage": 0.0}


@pytest.mark.parametrize("n", [7, 12, 25])
def test_the_interval_holds_the_true_median_as_often_as_it_says(measuring: Any, n: int) -> None:
    rng = np.random.default_rng(n)
    found = [measuring.middle(list(rng.exponential(size=n))) for _ in range(4000)]
    coverage = found[0]["coverage"]
    held = np.mean([f["interval"][0] <= np.log(2) <= f["interval"][1] for f in found])
    assert coverage >= 0.95
    assert held == pytest.approx(coverage, abs=4 * np.sqrt(coverage * (1 - coverage) / 4000))


def test_the_command_of_a_result_names_no_folder_of_this_machine(
    measuring: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AMPLIFY_DATA", "/here/data")
    given = [
        "/here/eval/x.py",
        "main",
        "--out",
        "/here/runs",
        "--data",
        "/here/data/a b",
        "--results=/here",
        "--limit",
        "3",
    ]
    monkeypatch.setattr("sys.argv", given)
    assert measuring.command() == "python eval/x.py main --data '$AMPLIFY_DATA/a b' --limit 3"

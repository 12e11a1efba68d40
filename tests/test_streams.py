"""Random numbers by name: the same in every process, and unrelated to those of any other name."""

from __future__ import annotations

import doctest
import subprocess
import sys
from itertools import combinations

import numpy as np
import pytest

from amplify import streams
from amplify.streams import stream

NAMES: list[tuple[str | int, ...]] = [("lime",), ("lds",), ("lime", 1), ("lime", "1"), ("lime", 1, 2), ("lime", 12)]


def test_the_example_of_the_docstring_runs() -> None:
    assert doctest.testmod(streams) == (0, 3)


def test_the_same_name_gives_the_same_numbers_in_another_process() -> None:
    here = stream(3, "lime", 7, "text \ud800").random(4).tolist()
    code = r"from amplify.streams import stream; print(stream(3, 'lime', 7, 'text \ud800').random(4).tolist())"
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert there.strip() == str(here)


@pytest.mark.parametrize(("one", "other"), list(combinations(NAMES, 2)))
def test_other_names_give_unrelated_numbers(one: tuple[str, int], other: tuple[str, int]) -> None:
    assert not set(stream(0, *one).random(100)) & set(stream(0, *other).random(100))


def test_other_seeds_give_unrelated_numbers() -> None:
    drawn = [stream(seed, "lime").random(100) for seed in (-1, 0, 1, 2**70)]
    assert len(np.unique(drawn)) == 400


def test_a_seed_may_be_of_numpy() -> None:
    assert stream(np.int64(5), "lime", np.int32(2)).random() == stream(5, "lime", 2).random()  # type: ignore[arg-type]

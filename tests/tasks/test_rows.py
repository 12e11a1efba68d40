"""From a row to an example: options and gold answers as people write them."""

from __future__ import annotations

from typing import Any

import pytest

from amplify.errors import InputError
from amplify.tasks.rows import example

OPTIONS = ["Paris", "the  Seine", "Rome", "U.S."]
FIELDS = {"text": "q", "choices": "o", "label": "gold"}


@pytest.mark.parametrize(
    ("gold", "letter"),
    [
        ("B", "B"),
        ("b", "B"),
        ("(B)", "B"),
        ("(b)", "B"),
        ("B.", "B"),
        (" B ", "B"),
        (1, "B"),
        ("1", "B"),
        ("the  Seine", "B"),
        ("The Seine ", "B"),
        ("ROME", "C"),
        ("U.S.", "D"),
    ],
)
def test_a_gold_answer_is_a_letter_a_number_or_a_text(gold: Any, letter: str) -> None:
    found = example({"q": "Where?", "o": OPTIONS, "gold": gold}, FIELDS, "row 1")
    assert found.label == letter
    assert found.choices == tuple("ABCD")


def test_a_gold_answer_that_fits_two_options_is_refused() -> None:
    row = {"q": "Which?", "o": ["may", "May", "June"], "gold": "MAY"}
    with pytest.raises(InputError, match="fits more than one option: A, B"):
        example(row, FIELDS, "row 1")
    assert example({**row, "gold": "May"}, FIELDS, "row 1").label == "B"
    with pytest.raises(InputError, match="fits more than one option"):
        example({"q": "Which?", "o": ["1", "2"], "gold": "1"}, FIELDS, "row 1")


@pytest.mark.parametrize("blank", ["", "  ", None])
def test_a_blank_option_is_none(blank: str | None) -> None:
    row = {"q": "Which?", "a": "x", "b": blank, "c": "y", "d": blank, "gold": "3"}
    found = example(row, {"text": "q", "choices": ["a", "b", "c", "d"], "label": "gold"}, "row 1")
    assert (found.choices, found.options, found.label) == (("A", "C"), ("x", "y"), "C")

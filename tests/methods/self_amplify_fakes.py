"""A model made of two word lists that is wrong on half of the validation split and gives reasons when asked."""

import re

import numpy as np
from method_fakes import BAD, GOOD, by_word

from amplify.methods.program import ShotProgram

SMALL = {"shots": 4, "pool": 20}
WRONG = {f"validation-{i}" for i in range(20) if i % 4 >= 2}


def asked(text: str) -> str:
    return text.rpartition("Review: ")[2]


def mistaken(text: str) -> bool:
    """Wrong on half of the validation split."""
    number = re.search(r"number (\d+) of validation", asked(text))
    return bool(number) and int(number[1]) % 4 >= 2


def reply(text: str) -> str:
    if 'as such by its words "' in text:
        word = next(w for w in (*GOOD, *BAD) if w in asked(text))
        return f'{word}", "banana"'
    if text.endswith("3-step explanation:"):
        return " The word speaks for itself. It is strong. Nothing else counts. The answer is broken\n\nMore."
    if text.endswith("3-step rationale:"):
        return f" It says so.{by_word(text).replace(' I looked at it.', '')}"
    if text.endswith("The key words:"):
        return ' "phone" point to it. ' + by_word(text)
    right = by_word(text)
    if mistaken(text):
        right = right.replace("positive", "NEG").replace("negative", "positive").replace("NEG", "negative")
    return right


def logprob(text: str, continuation: str) -> float:
    """How strongly each word speaks for the label: later words of the lists are weaker."""
    text = asked(text)
    worth = sum(3 - i / 2 for i, w in enumerate(GOOD) if w in text) - sum(
        3 - i / 2 for i, w in enumerate(BAD) if w in text
    )
    if mistaken(f"Review: {text}"):
        worth = -worth
    return float(np.log(1 / (1 + np.exp(-worth if "positive" in continuation else worth))))


def ids(program: ShotProgram) -> set[str]:
    return {shot.example.id for shot in program.shots}

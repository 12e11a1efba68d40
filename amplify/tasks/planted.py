"""Texts whose deciding words are known because they were planted: a causal check of explainers and of metrics.

Each text is neutral filler words in random order (half as many as the task's steps to all of them, so that a text with
some words deleted is nothing that a model has not seen), and among them planted words that alone decide the label:

- `planted_single`: one planted word decides.
- `planted_redundant`: two planted words of the same label, either of which would do. (As many texts hold one of them
  only, so that a model cannot get by with the other.)
- `planted_conjunctive`: "left" where both words of a pair stand in the text, "right" where one or none does.

In the first two, a text in four holds no planted word and its label is a coin's: a model learns that without them
nothing is decided. No model can be right about more than 7 in 8 of these texts but by chance.

`fields["planted"]` of an example holds the words that decide it, empty where nothing does (a conjunction's "right") or
where they are fewer than the rule's name says.
"""

# ruff: noqa: SIM905 (words read better as a paragraph)

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from amplify.types import Example

Planted = tuple[str, str, dict[str, Any]]

FILLER = (
    "apple arrow basket bench bottle bread bridge brush button candle carpet castle chair circle cloud corner cotton "
    "cup curtain desk door drawer feather fence field finger floor flower forest fork garden glass glove grain hammer "
    "harbour hill honey island jacket kettle kitchen ladder lamp leaf letter lemon meadow melon mirror mountain needle "
    "onion paper pebble pencil piano pillow plate pocket pond potato ribbon river roof salad sand saucer shelf shoe "
    "spoon stairs stone straw summer table tent thread tower tree tunnel village wagon wall wheel window winter wood"
).split()
WORDS: Mapping[str, tuple[str, str]] = {"left": ("amber", "velvet"), "right": ("cobalt", "granite")}
"""Label -> the words that may be planted for it; a conjunction takes those of "left"."""

UNDECIDED = 0.25


def single(steps: int, rng: random.Random) -> Planted:
    """One deciding word among the filler."""
    label = rng.choice(tuple(WORDS))
    if rng.random() < UNDECIDED:
        return _text([], steps, rng), label, {"planted": []}
    word = rng.choice(WORDS[label])
    return _text([word], steps, rng), label, {"planted": [word]}


def redundant(steps: int, rng: random.Random) -> Planted:
    """Two words of one label, or one of them."""
    label = rng.choice(tuple(WORDS))
    words = list(WORDS[label])
    if rng.random() < UNDECIDED:
        return _text([], steps, rng), label, {"planted": []}
    if rng.random() < 0.5:
        return _text(words, steps, rng), label, {"planted": words}
    return _text([rng.choice(words)], steps, rng), label, {"planted": []}


def conjunctive(steps: int, rng: random.Random) -> Planted:
    """Both words of a pair, or at most one."""
    words = list(WORDS["left"])
    if rng.random() < 0.5:
        return _text(words, steps, rng), "left", {"planted": words}
    some = rng.choice([[words[0]], [words[1]], []])
    return _text(some, steps, rng), "right", {"planted": []}


RULES: Mapping[str, Callable[[int, random.Random], Planted]] = {
    "planted_single": single,
    "planted_redundant": redundant,
    "planted_conjunctive": conjunctive,
}


def deciding(example: Example) -> tuple[str, ...]:
    """The words planted to decide this example's label; empty where none are."""
    return tuple(example.fields.get("planted", ()))


def log_odds(rule: str, text: str, size: float = 4.0) -> float:
    """The rule itself as a classifier: log p(left) - log p(right), `size` where left is decided, -`size` where right.

    A text without any deciding word is undecided, 0, but "right" to a conjunction.
    """
    words = set(text.lower().split())
    if rule == "planted_conjunctive":
        return size if set(WORDS["left"]) <= words else -size
    left, right = (any(word in words for word in WORDS[label]) for label in ("left", "right"))
    return size * (left - right)


def _text(planted: Sequence[str], steps: int, rng: random.Random) -> str:
    words = [*planted, *rng.sample(FILLER, rng.randint(steps // 2, steps))]
    return " ".join(rng.sample(words, len(words)))

"""The words that controls put in the place of what an attribution found."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from math import log
from typing import TypeVar

from amplify.attribution.words import words_in
from amplify.errors import InputError
from amplify.rationales.wording import Words
from amplify.types import Attribution

T = TypeVar("T")


def random_words(attribution: Attribution, n: int, seed: int) -> Words:
    """n different words of the same example, drawn among those that could have been cited.

    Each example draws by itself: the result depends on the seed and its text alone.
    """
    different = list({word.lower(): word for word in reversed(attribution.words)}.values())[::-1]
    return tuple(random.Random(f"{seed}\0{attribution.text}").sample(different, min(n, len(different))))


def tfidf_words(attributions: Sequence[Attribution], n: Sequence[int], corpus: Sequence[str]) -> list[Words]:
    """The words of each example with the highest TF-IDF, among those that could have been cited.

    Term frequency in the example's text, smoothed inverse document frequency in the corpus
    (log((1 + N) / (1 + df)) + 1, as scikit-learn has it); ties go to the earlier word.

    Args:
        attributions: one an example.
        n: how many words of each.
        corpus: the texts that document frequencies are counted in, e.g. the training inputs.
    """
    frequency = Counter(word for text in corpus for word in words_in([text]))
    result = []
    for attribution, count in zip(attributions, n, strict=True):
        terms = Counter(word.casefold() for word in attribution.words)
        first = {word.casefold(): word for word in reversed(attribution.words)}
        weight = {
            term: terms[term] * (log((1 + len(corpus)) / (1 + frequency[term])) + 1)
            for term in dict.fromkeys(word.casefold() for word in attribution.words)
        }
        best = sorted(weight, key=lambda term: -weight[term])
        result.append(tuple(first[term] for term in best[:count]))
    return result


def others(words: Sequence[T], seed: int) -> list[T]:
    """Each item's words replaced by another item's: a random cyclic order in which nobody keeps their own.

    Raises:
        InputError: fewer than two items.
    """
    if len(words) < 2:
        raise InputError("another item's rationale needs at least two items")
    order = random.Random(seed).sample(range(len(words)), len(words))
    donor = dict(zip(order, [*order[1:], order[0]], strict=True))
    return [words[donor[i]] for i in range(len(words))]

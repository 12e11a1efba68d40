"""From scores to sentences: what an attribution found, as a rationale; and the words that controls put in its place."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from math import log
from typing import TypeVar

from amplify.attribution.words import words_in
from amplify.backends.base import Generator
from amplify.errors import InputError
from amplify.narration import narrate
from amplify.templates import Template
from amplify.values import Attribution, Rationale
from amplify.wording import Words, cite

T = TypeVar("T")


def rationalise(
    attribution: Attribution,
    template: str | Template = "key_words",
    k: int = 5,
    *,
    label: str | None = None,
    positive: bool = False,
    model: Generator | None = None,
) -> Rationale:
    """The sentence that cites what an attribution found as the reason for its target.

    Args:
        attribution: scores over the words that may be cited (see `amplify.attribution.words.key_word_mask`).
        template: of `prompts/rationale_*.jinja`, or a path of your own. "key_words", "paper" (the wording of
            arXiv 2305.11426, section 3) and "words_only" cite the k highest words; "phrases" joins those that are
            neighbours; "convolution", "span" and "total_order" search for what covers most of the weight
            (`amplify.salient_spans`). "narrated": a language model writes it (`amplify.narration`), and where it
            cites what is not in the input and the attribution, "key_words" is used instead: see `kind` of the result.
        k: at most how many words or phrases. Where there are fewer different ones, those there are:
            `len(rationale.words)` tells.
        label: how prompts write the target, e.g. "(A)"; default: the target itself.
        positive: cite only words that speak for the target (a score above 0); the searches never cite others.
        model: who narrates.

    Raises:
        InputError: k below 1, no word to cite, or no model to narrate.
    """
    if template == "narrated":
        if model is None:
            raise InputError('template="narrated" needs model=: a backend, e.g. amplify.open_backend("vllm:MODEL")')
        return narrate([attribution], model, labels=None if label is None else [label], k=k).rationales[0]
    return cite(attribution, template, k, label=label, positive=positive)


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

"""From scores to sentences: an attribution's best words, verbalised; and the words that controls put in their place."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from math import log

from amplify import templates
from amplify.errors import InputError
from amplify.templates import Template
from amplify.values import Attribution, Rationale

Words = tuple[str, ...]


def rationalise(
    attribution: Attribution,
    template: str | Template = "key_words",
    k: int = 5,
    *,
    label: str | None = None,
    positive: bool = False,
) -> Rationale:
    """The sentence that cites an attribution's k highest words as the reason for its target.

    Args:
        attribution: scores over the words that may be cited (see `amplify.attribution.words.key_word_mask`).
        template: of `prompts/rationale_*.jinja`, or a path of your own; the paper's wording is "paper"
            (arXiv 2305.11426, section 3).
        k: how many words. Where there are fewer different ones, those there are: `len(rationale.words)` tells.
        label: how prompts write the target, e.g. "(A)"; default: the target itself.
        positive: cite only words that speak for the target (a score above 0).

    Raises:
        InputError: k below 1, or no word to cite.
    """
    if k < 1:
        raise InputError(f"a rationale cites at least one word, got k={k}")
    words = attribution.top(len(attribution.words))
    if positive:
        best = {word.lower(): score for word, score in sorted(_scored(attribution), key=lambda pair: pair[1])}
        words = [word for word in words if best[word.lower()] > 0]
    return verbalise(tuple(words[:k]), attribution, template, label=label)


def verbalise(
    words: Words, attribution: Attribution, template: str | Template = "key_words", *, label: str | None = None
) -> Rationale:
    """The sentence that cites the given words as the reason for an attribution's target.

    Raises:
        InputError: no words.
    """
    if not words:
        raise InputError(f"there is no word to cite in {attribution.text[:80]!r}: a rationale needs at least one")
    form = template if isinstance(template, Template) else templates.load("rationale", template)
    text = form.render(
        {
            "words": list(words),
            "label": label or attribution.target,
            "foil": attribution.foil or "",
            "text": attribution.text,
        }
    )
    return Rationale(text, words, form.name.removeprefix("rationale_"), attribution)


def opening(template: Template) -> str:
    """What a rationale begins with, whatever its words and its label: "The key words:"."""
    given = {"words": ["word"], "label": "label", "foil": "", "text": ""}
    before_words = template.before("words", given)
    before_label = template.before("label", given)
    return min(before_words, before_label, key=len).rstrip(" \"'“‘«([*`")


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
    from amplify.attribution.words import words_in

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


def others(words: Sequence[Words], seed: int) -> list[Words]:
    """Each item's words replaced by another item's: a random cyclic order in which nobody keeps their own.

    Raises:
        InputError: fewer than two items.
    """
    if len(words) < 2:
        raise InputError("another item's rationale needs at least two items")
    order = random.Random(seed).sample(range(len(words)), len(words))
    donor = dict(zip(order, [*order[1:], order[0]], strict=True))
    return [words[donor[i]] for i in range(len(words))]


def _scored(attribution: Attribution) -> list[tuple[str, float]]:
    return list(zip(attribution.words, attribution.scores, strict=True))

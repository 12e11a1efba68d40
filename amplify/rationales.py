"""From scores to sentences: an attribution's best words, verbalised; and the words that controls put in their place."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from math import log
from typing import TYPE_CHECKING, Any, TypeVar

from amplify import templates
from amplify.errors import InputError
from amplify.salient_spans import SEARCHES
from amplify.salient_spans import shares as salient_shares
from amplify.templates import Template
from amplify.values import Attribution, Rationale

if TYPE_CHECKING:
    from amplify.backends.base import Generator

Words = tuple[str, ...]
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
    if k < 1:
        raise InputError(f"a rationale cites at least one word, got k={k}")
    if template == "narrated":
        from amplify.narration import narrate

        if model is None:
            raise InputError('template="narrated" needs model=: a backend, e.g. amplify.open_backend("vllm:MODEL")')
        return narrate([attribution], model, labels=None if label is None else [label], k=k).rationales[0]
    form = template if isinstance(template, Template) else templates.load("rationale", template)
    if search := SEARCHES.get(kind_of(form)):
        found = search(attribution, k)
        if positive:
            found = [phrase for phrase in found if phrase.coverage > 0]
        words = tuple(phrase.text for phrase in found)
        return verbalise(words, attribution, form, label=label, shares=[phrase.coverage for phrase in found])
    best = attribution.top(len(attribution.words))
    if positive:
        score = {word.lower(): score for word, score in sorted(_scored(attribution), key=lambda pair: pair[1])}
        best = [word for word in best if score[word.lower()] > 0]
    return verbalise(tuple(best[:k]), attribution, form, label=label)


def verbalise(
    words: Words,
    attribution: Attribution,
    template: str | Template = "key_words",
    *,
    label: str | None = None,
    shares: Sequence[float] | None = None,
) -> Rationale:
    """The sentence that cites the given words as the reason for an attribution's target.

    Args:
        words: what is cited.
        attribution: where the target comes from.
        template: of `prompts/rationale_*.jinja`, or a path of your own.
        label: how prompts write the target; default: the target itself.
        shares: of the weight that speaks for the target, what each word holds; default: what all its occurrences have
            in the attribution.

    Raises:
        InputError: no words.
    """
    if not words:
        raise InputError(f"there is no word to cite in {attribution.text[:80]!r}: a rationale needs at least one")
    form = template if isinstance(template, Template) else templates.load("rationale", template)
    held = tuple(_held(attribution, words) if shares is None else shares)
    text = form.render(variables(words, held, label or attribution.target, attribution.foil, attribution.text))
    return Rationale(text, words, kind_of(form), attribution, held)


def variables(words: Words, shares: Sequence[float], label: str, foil: str | None, text: str) -> dict[str, Any]:
    """What a rationale template may use."""
    given = {"words": list(words), "shares": list(shares), "coverage": float(sum(shares))}
    return {**given, "label": label, "foil": foil or "", "text": text}


def kind_of(template: Template) -> str:
    """A rationale template's short name, by which the search for what it cites is chosen."""
    return template.name.removeprefix("rationale_")


def opening(template: Template) -> str:
    """What a rationale begins with, whatever its words and its label: "The key words:"."""
    given = variables(("word",), (1.0,), "label", None, "")
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


def _held(attribution: Attribution, words: Words) -> list[float]:
    total: dict[str, float] = {}
    for word, share in zip(attribution.words, salient_shares(attribution).tolist(), strict=True):
        total[word.casefold()] = total.get(word.casefold(), 0.0) + share
    return [total.get(word.casefold(), 0.0) for word in words]


def _scored(attribution: Attribution) -> list[tuple[str, float]]:
    return list(zip(attribution.words, attribution.scores, strict=True))

"""Templates that put an attribution's words into a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from amplify import templates
from amplify.errors import InputError
from amplify.rationales.salience import SEARCHES
from amplify.rationales.salience import shares as salient_shares
from amplify.templates import Template
from amplify.types import Attribution, Rationale

Words = tuple[str, ...]


def cite(
    attribution: Attribution,
    template: str | Template = "key_words",
    k: int = 5,
    *,
    label: str | None = None,
    positive: bool = True,
) -> Rationale:
    """The sentence that cites an attribution's best words, chosen as its template asks (`amplify.rationales`).

    Args:
        attribution: scores over the words that may be cited.
        template: of `prompts/rationale_*.jinja`, or a path of your own.
        k: at most how many words or phrases.
        label: how prompts write the target; default: the target itself.
        positive: cite only words that speak for the target.

    Raises:
        InputError: k below 1, no word to cite, or none that speaks for the target.
    """
    if k < 1:
        raise InputError(f"a rationale cites at least one word, got k={k}")
    form = template if isinstance(template, Template) else templates.load("rationale", template)
    shares: list[float] | None = None
    if search := SEARCHES.get(kind_of(form)):
        found = search(attribution, k)
        if positive:
            found = [phrase for phrase in found if phrase.coverage > 0]
        best, shares = [phrase.text for phrase in found], [phrase.coverage for phrase in found]
    else:
        best = attribution.top(len(attribution.words))
        if positive:
            score = {word.lower(): score for word, score in sorted(_scored(attribution), key=lambda pair: pair[1])}
            best = [word for word in best if score[word.lower()] > 0]
        best = best[:k]
    if attribution.words and not best:
        raise InputError(
            f"no word of {attribution.text[:80]!r} speaks for {attribution.target!r}: there is none to cite, but with "
            "positive=False"
        )
    return verbalise(tuple(best), attribution, form, label=label, shares=shares)


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


def _held(attribution: Attribution, words: Words) -> list[float]:
    total: dict[str, float] = {}
    for word, share in zip(attribution.words, salient_shares(attribution).tolist(), strict=True):
        total[word.casefold()] = total.get(word.casefold(), 0.0) + share
    return [total.get(word.casefold(), 0.0) for word in words]


def _scored(attribution: Attribution) -> list[tuple[str, float]]:
    return list(zip(attribution.words, attribution.scores, strict=True))

"""Rationales that a language model words, each checked against what it was told; what fails is worded by a template.

A free narration reads best and is the least faithful of all verbalisations, above all in its numbers (Feldhus et al.
2023, arXiv 2210.07222). So nothing of it is believed: what it quotes must be the words it was given, which are those of
the input with the highest scores, and its numbers must be theirs or the input's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from amplify import templates
from amplify.attribution.words import stop_words, word_spans
from amplify.errors import InputError
from amplify.models.base import LanguageModel
from amplify.rationales.wording import cite, variables
from amplify.templates import Template
from amplify.types import Attribution, Completion, Message, Prompt, Rationale, Sampling

_QUOTED = re.compile(r"[\"“„«]([^\"“”„«»]*)[\"”“»]|(?<!\w)['‘]([^'‘’]+)['’](?!\w)|`([^`]+)`|\*\*([^*]+)\*\*")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
# "one" is left out: it is a pronoun more often than a number
_SPELLED = re.compile(
    r"(?<!\w)(?:zero|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|(?:twen|thir|for|fif|six|seven|eigh|nine)ty"
    r"|hundred|thousand|million|half|third|quarter|twice)(?!\w)"
)


@dataclass(frozen=True)
class Narration:
    """What came of asking a model to narrate.

    Attributes:
        rationales: one an attribution; of kind "narrated", or of the template that stood in.
        fallbacks: number of the attribution -> why its last narration was not used.
        calls: how often the model was asked.
    """

    rationales: tuple[Rationale, ...]
    fallbacks: Mapping[int, str]
    calls: int


def narrate(
    attributions: Sequence[Attribution],
    model: LanguageModel,
    *,
    labels: Sequence[str] | None = None,
    k: int = 5,
    template: str = "default",
    fallback: str = "key_words",
    retries: int = 1,
    seed: int = 0,
    max_tokens: int = 96,
) -> Narration:
    """Have a language model say why, and keep what holds against the attribution.

    Args:
        attributions: what is to be said.
        model: any model.
        labels: how the targets are written; default: the targets themselves.
        k: the model is told this many words, those that speak most for the target.
        template: of `prompts/narrate_*.jinja`, or a path of your own.
        fallback: rationale template for what fails the check.
        retries: how often a narration that fails is asked for again, sampled with a seed instead of greedily.
        seed: of those samples.
        max_tokens: of a narration; one that is cut off fails.

    Raises:
        InputError: an attribution without a word that speaks for its target.
    """
    shown = list(labels) if labels is not None else [a.target for a in attributions]
    if len(shown) != len(attributions):
        raise InputError(f"{len(attributions)} attributions and {len(shown)} labels: one each is needed")
    told = [cite(a, fallback, k, label=s, positive=True) for a, s in zip(attributions, shown, strict=True)]
    form = templates.load("narrate", template)
    prompts = [_prompt(form, a, r, label) for a, r, label in zip(attributions, told, shown, strict=True)]
    made: dict[int, Rationale] = {}
    why: dict[int, str] = {}
    calls = 0
    for attempt in range(retries + 1):
        open_ = [i for i in range(len(prompts)) if i not in made]
        if not open_:
            break
        sampling = Sampling(max_tokens=max_tokens, temperature=0.7 if attempt else 0.0, seed=seed + attempt)
        for i, written in zip(open_, model.generate([prompts[i] for i in open_], sampling), strict=True):
            calls += 1
            if fault := _fault(written, attributions[i], told[i], shown[i]):
                why[i] = fault
                continue
            made[i] = _narrated(written.text, told[i])
            why.pop(i, None)
    return Narration(tuple(made.get(i, told[i]) for i in range(len(told))), why, calls)


def check_narration(text: str, attribution: Attribution, told: Rationale, label: str) -> str | None:
    """What is wrong with a narration, or None.

    It must name the label and quote at least one word; everything quoted (in quotes, backticks or bold) must stand in
    the input and consist of words it was told, stop words between them aside, or be the label; every number must be
    one of the shares it was told, or stand in the input or the label.

    Args:
        text: the narration.
        attribution: what it is about.
        told: the rationale that it was to put into words: the words allowed and their shares.
        label: how the target is written.
    """
    if not re.search(rf"(?<!\w){re.escape(label.casefold())}(?!\w)", text.casefold()):
        return f"it does not name {label!r}"
    allowed = {word for cited in told.words for word in _words(cited)}
    quoted = [next(group for group in match.groups() if group is not None) for match in _QUOTED.finditer(text)]
    cited = [q for q in quoted if _bare(q) not in ("", _bare(label), _bare(attribution.foil or ""))]
    if not cited:
        return "it cites no word"
    source = " ".join(_words(attribution.text))
    for quote in cited:
        words = _words(quote)
        if not words or f" {' '.join(words)} " not in f" {source} ":
            return f"it cites {quote!r}, which is not in the input"
        if strangers := [w for w in words if w not in allowed and (w not in stop_words() or len(words) == 1)]:
            return f"it cites {strangers[0]!r}, which is not among the words it was given"
    known = set(_NUMBER.findall(attribution.text)) | set(_NUMBER.findall(label))
    known |= {str(round(100 * share)) for share in (*told.shares, told.coverage)}
    for number in _NUMBER.findall(text):
        if number not in known:
            return f"it cites the number {number}, which is nowhere in the input or the attribution"
    given = set(_words(attribution.text)) | set(_words(label))
    for number in _SPELLED.findall(text.casefold()):
        if number not in given:
            return f"it cites the number {number!r}, which is nowhere in the input or the attribution"
    return None


def cited_words(text: str, told: Rationale) -> tuple[str, ...]:
    """Of the words it was told, those that a narration quotes, most important first."""
    quoted = {w for match in _QUOTED.finditer(text) for group in match.groups() if group for w in _words(group)}
    return tuple(word for word in told.words if set(_words(word)) <= quoted)


def _prompt(form: Template, attribution: Attribution, told: Rationale, label: str) -> Prompt:
    given = variables(told.words, told.shares, label, attribution.foil, attribution.text)
    return Prompt(messages=(Message("user", form.render(given)),))


def _fault(written: Completion, attribution: Attribution, told: Rationale, label: str) -> str | None:
    if written.finish_reason == "length":
        return "it was cut off"
    return check_narration(written.text, attribution, told, label)


def _narrated(text: str, told: Rationale) -> Rationale:
    words = cited_words(text, told)
    share = dict(zip(told.words, told.shares, strict=True))
    return Rationale(" ".join(text.split()), words, "narrated", told.attribution, tuple(share[w] for w in words))


def _words(text: str) -> list[str]:
    return [text[a:b].casefold() for a, b in word_spans(text)]


def _bare(text: str) -> str:
    return " ".join(_words(text))

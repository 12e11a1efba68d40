"""From scores to sentences: what an attribution found, as a rationale; and the words that controls put in its place.

A template cites the best words, or a language model words them. A free narration reads best and is the least faithful
of all verbalisations, above all in its numbers (Feldhus et al. 2023, arXiv 2210.07222). So nothing of it is believed:
what it quotes must be the words it was given, which are those of the input with the highest scores, and its numbers
must be theirs or the input's; what fails is worded by a template.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from amplify import templates
from amplify.attribution.words import document_frequency, stop_words, tfidf_scores, word_spans
from amplify.errors import InputError
from amplify.models import opened
from amplify.models.base import LanguageModel
from amplify.rationales.salience import SEARCHES
from amplify.rationales.salience import shares as salient_shares
from amplify.templates import Template
from amplify.types import Attribution, Completion, Message, Prompt, Rationale, Sampling

Words = tuple[str, ...]
LONGEST = 96  # tokens of a narration; one that is cut off fails
T = TypeVar("T")
_QUOTED = re.compile(r"[\"“„«]([^\"“”„«»]*)[\"”“»]|(?<!\w)['‘]([^'‘’]+)['’](?!\w)|`([^`]+)`|\*\*([^*]+)\*\*")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
# "one" is left out: it is a pronoun more often than a number
_SPELLED = re.compile(
    r"(?<!\w)(?:zero|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|(?:twen|thir|for|fif|six|seven|eigh|nine)ty"
    r"|hundred|thousand|million|half|third|quarter|twice)(?!\w)"
)


def rationalize(
    attribution: Attribution,
    template: str | Template = "key_words",
    k: int = 5,
    *,
    label: str | None = None,
    positive: bool = True,
    model: LanguageModel | str | None = None,
) -> Rationale:
    """The sentence that cites what an attribution found as the reason for its target.

    Args:
        attribution: scores over the words that may be cited (see `amplify.attribution.words.key_word_mask`).
        template: of `prompts/rationale_*.jinja`, or a path of your own. "key_words", "paper" (the wording of
            arXiv 2305.11426, section 3) and "words_only" cite the k highest words; "phrases" joins those that are
            neighbours; "convolution", "span" and "total_order" search for what covers most of the weight
            (`amplify.rationales.salience`). "narrated": a language model writes it (`narrate`),
            and where it cites what is not in the input and the attribution, "key_words" is used instead: see `kind`
            of the result.
        k: at most how many words or phrases. Where there are fewer different ones, those there are:
            `len(rationale.words)` tells.
        label: how prompts write the target, e.g. "(A)"; default: the target itself.
        positive: cite only words that speak for the target (a score above 0), since the sentence says that they do.
            False cites the k highest whatever their sign, as the paper does; the searches never cite others.
        model: who narrates, open or as the id that opens it for this call.

    Raises:
        InputError: k below 1, no word to cite (or none that speaks for the target), or no model to narrate.

    Example:
        >>> words, spans = ("lovely", "music", "loud"), ((0, 6), (7, 12), (18, 22))
        >>> found = Attribution("lovely music, too loud", words, spans, (2.0, 1.0, -1.0), "positive")
        >>> amplify.rationalize(found, k=2).text
        'The key words: "lovely", "music" point to positive.'
    """
    if template == "narrated":
        if model is None:
            raise InputError('template="narrated" needs model=: a model, or the id that opens one, e.g. "vllm:MODEL"')
        with opened(model) as who:
            return narrate([attribution], who, labels=None if label is None else [label], k=k).rationales[0]
    return cite(attribution, template, k, label=label, positive=positive)


def cite(
    attribution: Attribution,
    template: str | Template = "key_words",
    k: int = 5,
    *,
    label: str | None = None,
    positive: bool = True,
) -> Rationale:
    """The sentence that cites an attribution's best words, chosen as its template asks (`SEARCHES`).

    Args:
        attribution: scores over the words that may be cited.
        template: of `prompts/rationale_*.jinja`, or a path of your own.
        k: at most how many words or phrases.
        label: how prompts write the target; default: the target itself.
        positive: cite only words that speak for the target.

    Raises:
        InputError: k below 1, no word to cite, or none that speaks for the target.

    Example:
        >>> words, spans = ("lovely", "music", "loud"), ((0, 6), (7, 12), (18, 22))
        >>> found = Attribution("lovely music, too loud", words, spans, (2.0, 1.0, -1.0), "positive")
        >>> cite(found, "phrases", k=2).words
        ('lovely music',)
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

    Example:
        >>> words, spans = ("lovely", "music", "loud"), ((0, 6), (7, 12), (18, 22))
        >>> found = Attribution("lovely music, too loud", words, spans, (2.0, 1.0, -1.0), "positive")
        >>> verbalise(("music",), found, "words_only").words
        ('music',)
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

    Raises:
        InputError: an attribution without a word that speaks for its target.

    Example:
        >>> words, spans = ("lovely", "music", "loud"), ((0, 6), (7, 12), (18, 22))
        >>> found = Attribution("lovely music, too loud", words, spans, (2.0, 1.0, -1.0), "positive")
        >>> from amplify.models.scripted import ScriptedModel
        >>> writer = ScriptedModel(reply=lambda text: 'It is positive, for it says "lovely".')
        >>> said = narrate([found], writer, k=1)
        >>> said.rationales[0].text, said.fallbacks
        ('It is positive, for it says "lovely".', {})
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
        sampling = Sampling(max_tokens=LONGEST, temperature=0.7 if attempt else 0.0, seed=seed + attempt)
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

    Example:
        >>> words, spans = ("lovely", "music", "loud"), ((0, 6), (7, 12), (18, 22))
        >>> found = Attribution("lovely music, too loud", words, spans, (2.0, 1.0, -1.0), "positive")
        >>> told = cite(found, k=1)
        >>> check_narration('It is positive, for it says "noisy".', found, told, "positive")
        "it cites 'noisy', which is not in the input"
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


def random_words(attribution: Attribution, n: int, seed: int) -> Words:
    """n different words of the same example, drawn among those that could have been cited.

    Each example draws by itself: the result depends on the seed and its text alone.

    Example:
        >>> words, spans = ("lovely", "music", "loud"), ((0, 6), (7, 12), (18, 22))
        >>> found = Attribution("lovely music, too loud", words, spans, (2.0, 1.0, -1.0), "positive")
        >>> len(random_words(found, 2, seed=0))
        2
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

    Example:
        >>> words, spans = ("lovely", "music", "loud"), ((0, 6), (7, 12), (18, 22))
        >>> found = Attribution("lovely music, too loud", words, spans, (2.0, 1.0, -1.0), "positive")
        >>> tfidf_words([found], [1], corpus=["loud music", "loud"])
        [('lovely',)]
    """
    frequency = document_frequency(corpus)
    result = []
    for attribution, count in zip(attributions, n, strict=True):
        weight = tfidf_scores(attribution.words, frequency, len(corpus))
        first: dict[str, str] = {}
        for i in np.argsort(-weight, kind="stable").tolist():
            first.setdefault(attribution.words[i].casefold(), attribution.words[i])
        result.append(tuple(first.values())[:count])
    return result


def others(words: Sequence[T], seed: int) -> list[T]:
    """Each item's words replaced by another item's: a random cyclic order in which nobody keeps their own.

    Raises:
        InputError: fewer than two items.

    Example:
        >>> others(["mine", "yours"], seed=0)
        ['yours', 'mine']
    """
    if len(words) < 2:
        raise InputError("another item's rationale needs at least two items")
    order = random.Random(seed).sample(range(len(words)), len(words))
    donor = dict(zip(order, [*order[1:], order[0]], strict=True))
    return [words[donor[i]] for i in range(len(words))]

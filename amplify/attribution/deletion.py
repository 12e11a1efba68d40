"""The words of an explanation put to the test: what the model says with some of them deleted, wherever they stand.

`deletion` makes the game behind an attribution. `judge` asks of one rationale whether the model needs its
words more than as many random words of the same input: gradients explain one model well and another not at all, and on
texts often no better than chance ("Which Explanation Should I Choose?", Han et al. 2022; "Post Hoc Explanations",
Krishna et al. 2023), so no rationale is taken on trust.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np
import numpy.typing as npt

from amplify.attribution.inputs import prompt_subject
from amplify.attribution.masking import without_spans
from amplify.attribution.words import without_words, word_spans
from amplify.errors import InputError
from amplify.models.base import LanguageModel, need_scoring
from amplify.proxies import Proxy
from amplify.shapley.game import CachedValue, Coalitions, Floats
from amplify.text import input_text
from amplify.types import Attribution, Example, Prompt

SETS = 40
SHARE = 0.9
"""A rationale passes when it beats this share of random ones: of random rationales one in ten gets through."""

Gone = list[list[tuple[int, int]]]
"""Of each coalition, the characters [start, end) that are deleted."""


@dataclass(frozen=True)
class Deletion:
    """The different words of one input (case ignored); a word is deleted wherever it stands.

    Attributes:
        words: case-folded, in order of first appearance.
        log_probs: coalitions of words that stay, bool (coalitions, words) -> (coalitions, 1 or 2): log-probability of
            the target and, where there is one, of the foil. What was evaluated once is not evaluated again.
    """

    words: tuple[str, ...]
    log_probs: Callable[[Coalitions], Floats]

    def margin(self, coalitions: Coalitions) -> Floats:
        """What the explanation is about, one number a coalition: log p(target), less log p(foil) where there is one."""
        return margin(self.log_probs(coalitions))

    def scores(self, attribution: Attribution) -> Floats:
        """The scores of an attribution over the same words, added up over the occurrences of each."""
        totals = dict.fromkeys(self.words, 0.0)
        for word, score in zip(attribution.words, attribution.scores, strict=True):
            totals[word.casefold()] += score
        return np.array(list(totals.values()))

    def order(self, attribution: Attribution) -> npt.NDArray[np.int_]:
        """Indices of the words as `Attribution.top` ranks them, most important first."""
        ranked = list(dict.fromkeys(word.casefold() for word in attribution.top(len(attribution.words))))
        return np.array([self.words.index(word) for word in ranked], dtype=np.int_)

    def without(self, chosen: Sequence[int] | npt.NDArray[np.int_]) -> Coalitions:
        """The coalition in which some words are deleted, shape (1, words)."""
        mask = np.ones((1, len(self.words)), dtype=bool)
        mask[0, list(chosen)] = False
        return mask


def margin(log_probs: Floats) -> Floats:
    """Target less foil of `Deletion.log_probs`."""
    return log_probs[:, 0] - (log_probs[:, 1] if log_probs.shape[1] > 1 else 0.0)


def deletion(attribution: Attribution, model: Proxy | LanguageModel, given: Example | Prompt | None = None) -> Deletion:
    """The game behind an attribution: the words that it scores may be deleted, all others stay.

    Args:
        attribution: over `amplify.text.input_text(example)` for a proxy; over a raw prompt or the user's last message
            for a language model.
        model: a proxy, whose labels target and foil are; or a model that scores them as continuations.
        given: what was explained; needed where examples bring their own choices, and for chats.

    Raises:
        InputError: no word is scored, the text is another one, or target or foil are none of the labels.
        CapabilityError: a model that gives no log-probabilities.

    Example:
        >>> from amplify.models.scripted import ScriptedModel
        >>> model = ScriptedModel(logprob=lambda text, answer: -1.0 if "capital" in text else -3.0)
        >>> found = amplify.explain("Name the capital", " Paris", model=model, method="occlusion")
        >>> game = deletion(found, model)
        >>> game.words, game.margin(game.without([2])).tolist()
        (('name', 'the', 'capital'), [-3.0])
    """
    if not attribution.words:
        raise InputError(f"the attribution of {attribution.text[:60]!r} scores no word: there is nothing to delete")
    groups: dict[str, list[tuple[int, int]]] = {}
    for word, span in zip(attribution.words, attribution.spans, strict=True):
        groups.setdefault(word.casefold(), []).append(span)
    score = _of_proxy(model, attribution, given) if isinstance(model, Proxy) else _of_model(model, attribution, given)
    cut = list(groups.values())

    def log_probs(coalitions: Coalitions) -> Floats:
        return score(
            [[s for group, stays in zip(cut, row, strict=True) if not stays for s in group] for row in coalitions]
        )

    return Deletion(tuple(groups), CachedValue(log_probs, len(groups)))


def _wanted(attribution: Attribution) -> list[str]:
    return [attribution.target, *([] if attribution.foil is None else [attribution.foil])]


def _of_proxy(proxy: Proxy, attribution: Attribution, given: Example | Prompt | None) -> Callable[[Gone], Floats]:
    if isinstance(given, Prompt):
        raise InputError("a proxy reads a text or an Example, not a Prompt")
    proxy.require_head("faithfulness")
    example = given or Example("", attribution.text)
    if input_text(example) != attribution.text:
        raise InputError(f"the attribution is of another text than example {example.id!r}: {attribution.text[:60]!r}")
    labels = proxy.labels_of(example)
    for label in _wanted(attribution):
        if label not in labels:
            more = "" if labels else "; give examples= where each brings its own choices"
            raise InputError(f"{label!r} is not among the labels {labels} of the text explained{more}")
    at = [labels.index(label) for label in _wanted(attribution)]

    def score(gone: Gone) -> Floats:
        scores = np.array(proxy.label_scores([without_words(example, cut) for cut in gone]))
        top = scores.max(1, keepdims=True)
        found: Floats = (scores - top - np.log(np.exp(scores - top).sum(1, keepdims=True)))[:, at]
        return found

    return score


def _of_model(
    model: LanguageModel, attribution: Attribution, given: Example | Prompt | None
) -> Callable[[Gone], Floats]:
    if isinstance(given, Example):
        raise InputError("a language model reads a text or a Prompt: render the example first, or use a proxy")
    scorer = need_scoring(model, "faithfulness")
    ends = _wanted(attribution)
    case = prompt_subject(model, given or attribution.text, attribution.target, None, segments=attribution.spans)
    if case.text != attribution.text:
        raise InputError(f"the attribution is of another text than the prompt: {attribution.text[:60]!r}")

    def score(gone: Gone) -> Floats:
        prompts = [p for cut in gone for p in [without_spans(case.prompt, case.message, cut)] * len(ends)]
        totals = [found.total for found in scorer.score(prompts, ends * len(gone))]
        return np.array(totals).reshape(len(gone), len(ends))

    return score


@dataclass(frozen=True)
class Verdict:
    """Whether the model needs the words of a rationale.

    Attributes:
        passed: they beat random words, or, where the input has no other words, deleting them costs the target.
        drop: what the target's log-odds (its log-probability, without a foil) lose without the words.
        random: the same for as many random words, on average; 0 where there are no others.
        beaten: the share of random word sets that lose less, ties half.
    """

    passed: bool
    drop: float
    random: float
    beaten: float


def judge(words: Iterable[str], game: Deletion, *, sets: int = SETS, share: float = SHARE, seed: int = 0) -> Verdict:
    """Does a rationale beat random words on its own example?

    Args:
        words: what it cites: words or phrases of the input.
        game: the input and its model (`amplify.attribution.deletion`); random words are drawn from its words.
        sets: random word sets, all there are where they are no more.
        share: of them that must be beaten.
        seed: of the draw.

    Returns:
        The verdict; words that the game does not have (stop words of a phrase) are passed over, and a rationale that
        cites none of its words fails.

    Example:
        >>> from amplify.models.scripted import ScriptedModel
        >>> model = ScriptedModel(logprob=lambda text, answer: -1.0 if "capital" in text else -3.0)
        >>> found = amplify.explain("Name the capital of France", " Paris", model=model, method="occlusion")
        >>> judge(["capital"], deletion(found, model))
        Verdict(passed=True, drop=2.0, random=0.0, beaten=1.0)
    """
    cited = {word[a:b].casefold() for word in words for a, b in word_spans(word)}
    chosen = [i for i, word in enumerate(game.words) if word in cited]
    if not chosen:
        return Verdict(False, 0.0, 0.0, 0.0)
    n, size = len(game.words), len(chosen)
    others = _others(chosen, n, sets, np.random.default_rng(seed))
    masks = np.ones((2 + len(others), n), dtype=bool)
    for mask, gone in zip(masks[1:], [chosen, *others], strict=True):
        mask[list(gone)] = False
    values = game.margin(masks)
    drop, chance = float(values[0] - values[1]), values[0] - values[2:]
    if size == n or not len(chance):
        return Verdict(drop > 0, drop, 0.0, 1.0 if drop > 0 else 0.0)
    close = np.abs(drop - chance) <= 1e-9
    beaten = float(np.mean(np.where(close, 0.5, drop > chance)))
    return Verdict(beaten >= share and drop > 0, drop, float(chance.mean()), beaten)


def _others(chosen: Sequence[int], n: int, sets: int, rng: np.random.Generator) -> list[tuple[int, ...]]:
    """Different sets of as many words, not the chosen one."""
    own, size = tuple(sorted(chosen)), len(chosen)
    if comb(n, size) - 1 <= sets:
        return [some for some in combinations(range(n), size) if some != own]
    found: dict[tuple[int, ...], None] = {}
    while len(found) < sets:
        drawn = tuple(sorted(rng.choice(n, size, replace=False).tolist()))
        if drawn != own:
            found[drawn] = None
    return list(found)

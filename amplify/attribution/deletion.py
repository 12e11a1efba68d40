"""One explained input as a game over its different words: what the model says with some of them deleted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from amplify.attribution.perturbation import Coalitions, Floats
from amplify.attribution.words import Spans, without_words
from amplify.errors import CapabilityError, InputError
from amplify.layout import input_text
from amplify.proxies import Proxy
from amplify.values import Attribution, Example, Prompt

if TYPE_CHECKING:
    from amplify.backends.base import Scorer


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


def deletion(attribution: Attribution, model: Proxy | Scorer, example: Example | None = None) -> Deletion:
    """The game behind an attribution: the words that it scores may be deleted, all others stay.

    Args:
        attribution: over `amplify.layout.input_text(example)`, or over a raw prompt.
        model: a proxy, whose labels target and foil are; or a backend that scores continuations of a raw prompt.
        example: what was explained; needed where examples bring their own choices.

    Raises:
        InputError: no word is scored, the example has another text, or target or foil are none of its labels.
        CapabilityError: a model that gives no log-probabilities.
    """
    if not attribution.words:
        raise InputError(f"the attribution of {attribution.text[:60]!r} scores no word: there is nothing to delete")
    groups: dict[str, list[tuple[int, int]]] = {}
    for word, span in zip(attribution.words, attribution.spans, strict=True):
        groups.setdefault(word.casefold(), []).append(span)
    example = example or Example("", attribution.text)
    if input_text(example) != attribution.text:
        raise InputError(f"the attribution is of another text than example {example.id!r}: {attribution.text[:60]!r}")
    spans = [tuple(group) for group in groups.values()]
    wanted = [attribution.target, *([] if attribution.foil is None else [attribution.foil])]
    ask = _of_proxy(model, example, wanted) if isinstance(model, Proxy) else _of_backend(model, example, wanted)
    return Deletion(tuple(groups), _remembered(ask, spans, example))


def _remembered(
    ask: Callable[[list[Example]], Floats], spans: Sequence[Spans], example: Example
) -> Callable[[Coalitions], Floats]:
    seen: dict[bytes, Floats] = {}

    def log_probs(coalitions: Coalitions) -> Floats:
        keys = [row.tobytes() for row in coalitions]
        new = {key: row for key, row in zip(keys, coalitions, strict=True) if key not in seen}
        if new:
            gone = [
                [s for group, stays in zip(spans, row, strict=True) if not stays for s in group] for row in new.values()
            ]
            found = ask([without_words(example, cut) for cut in gone])
            if not np.isfinite(found).all():
                bad = gone[int(np.flatnonzero(~np.isfinite(found).all(1))[0])]
                raise InputError(f"the log-probability is not finite without characters {bad} of {example.text[:60]!r}")
            seen.update(zip(new, found, strict=True))
        return np.array([seen[key] for key in keys])

    return log_probs


def _of_proxy(proxy: Proxy, example: Example, wanted: list[str]) -> Callable[[list[Example]], Floats]:
    proxy.require_head("faithfulness")
    labels = proxy.labels_of(example)
    for label in wanted:
        if label not in labels:
            more = "" if labels else "; give examples= where each brings its own choices"
            raise InputError(f"{label!r} is not among the labels {labels} of the text explained{more}")
    at = [labels.index(label) for label in wanted]

    def ask(cut: list[Example]) -> Floats:
        scores = np.array(proxy.label_scores(cut))
        top = scores.max(1, keepdims=True)
        found: Floats = (scores - top - np.log(np.exp(scores - top).sum(1, keepdims=True)))[:, at]
        return found

    return ask


def _of_backend(backend: Scorer, example: Example, wanted: list[str]) -> Callable[[list[Example]], Floats]:
    from amplify.backends.base import Scorer

    if not isinstance(backend, Scorer):
        raise CapabilityError(
            f"faithfulness needs log-probabilities, which {type(backend).__name__} does not give: "
            "use a proxy, or a transformers, vllm or scripted backend"
        )

    def ask(cut: list[Example]) -> Floats:
        prompts = [Prompt(text=input_text(one)) for one in cut for _ in wanted]
        totals = [found.total for found in backend.score(prompts, wanted * len(cut))]
        return np.array(totals).reshape(len(cut), len(wanted))

    return ask

"""The loop: attribution chooses spans, the spans steer a second answer, and Shapley values judge between the two.

What an answer rests on is a game of two players, the chosen spans and everything else in the sources: four prompts give
its Shapley values exactly (Shapley 1953), without steering, so that steering cannot speak for itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Unpack

import numpy as np

from amplify.errors import InputError
from amplify.metrics import normalize
from amplify.models import opened
from amplify.models.base import LanguageModel, need_scoring, sharing
from amplify.sources.asked import asked_of
from amplify.sources.attribute import explained, sampling_of
from amplify.sources.claims import MEMORY
from amplify.sources.context import Context, Part, Selection, select, special_tokens
from amplify.sources.document import Source
from amplify.sources.frames import Makes
from amplify.sources.games import LogProbGame
from amplify.sources.options import Named, options
from amplify.sources.result import SourceAttribution
from amplify.steering import Steering
from amplify.templates import Template
from amplify.types import Completion, Sampling

BONUS = 2.0  # of InstaBoost, where no steering is given


@dataclass(frozen=True)
class Rests:
    """What an answer rests on: the game of two players, the chosen spans and the rest of the sources.

    Attributes:
        without, with_all: log-probability of the answer without any source and with all of them (natural log).
        spans, others: Shapley values of the two players: spans + others = with_all − without.

    Example:
        >>> Rests(without=-10.0, with_all=-2.0, spans=6.0, others=2.0).share
        0.6
    """

    without: float
    with_all: float
    spans: float
    others: float

    @property
    def share(self) -> float:
        """Of the surprise that the answer is without any source, what the spans take away; 0 where there is none."""
        return self.spans / -self.without if self.without < 0 else 0.0


@dataclass(frozen=True)
class Loop:
    """Two answers, and which of them is returned.

    Attributes:
        answer: the one that is returned.
        kept: "first" or "steered".
        why: in a sentence.
        first, steered: the model's own answer, and the one with its attention steered to the spans ("" for none).
        marked: the spans.
        rests: what the first and the steered answer rest on; None where there was nothing to compare.
        attribution: of the first answer; None where the spans came from elsewhere.

    Example:
        >>> documents = ["Ada is in Bern. She moved.", "Bees fly."]
        >>> model = amplify.TransformersModel(module, tokenizer)  # of transformers, as you have loaded it
        >>> found = amplify.answer_in_loop("Where is Ada?", documents, model, budget=8, max_tokens=4)
        >>> found.kept, len(found.marked)
        ('steered', 2)
        >>> found.why
        "the spans take away ...% of the steered answer's surprise, ...% of the first's"
    """

    answer: str
    kept: Literal["first", "steered"]
    why: str
    first: str
    steered: str
    marked: tuple[Part, ...]
    rests: tuple[Rests, Rests] | None = None
    attribution: SourceAttribution | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, the attribution left out."""
        judged = None if self.rests is None else [{**vars(r), "share": r.share} for r in self.rests]
        return {
            "kept": self.kept, "why": self.why, "first": self.first, "steered": self.steered, "rests": judged,
            "marked": [[part.document, part.start, part.end] for part in self.marked],
        }  # fmt: skip


def answer_in_loop(
    question: str | None = None,
    documents: Iterable[Any] | None = None,
    model: LanguageModel | str | None = None,
    *,
    messages: Sequence[Any] | None = None,
    sources: Sequence[Source | Mapping[str, Any]] | str = "messages",
    prompt: str | Template | Makes = "default",
    steering: Steering | None = None,
    spans: int = 2,
    least: float = MEMORY,
    budget: int = 32,
    **more: Unpack[Named],
) -> Loop:
    """Answer; steer attention to what that answer depends on, answer again; return the second answer if it rests there.

    The spans are the sentences of largest Shapley value for the first answer, whichever their sign: where a model
    answers from memory, the sentence that says otherwise makes its answer less likely. The steered answer is returned
    where the spans take away at least `least` of its surprise, and no less than of the first answer's.

    Args:
        question, documents, model, messages, sources, prompt: see `attribute_sources`. The model gives
            log-probabilities and can be steered.
        steering: heads and strength; all heads by InstaBoost with a bonus of 2 unless given.
        spans: how many sentences.
        least: a share of surprise, in [0, 1].
        budget: distinct prompts that the attribution may ask; the judgement takes six more.
        **more: see `attribute_sources`; value="logprob".

    Raises:
        InputError: values that make no sense. CapabilityError: a model that cannot score or be steered.
        EmptyAnswerError: the model says nothing.
        ContextLengthError, ModelError: see `attribute_sources`.

    Example:
        >>> from amplify.models.scripted import ScriptedModel
        >>> class Steerable(ScriptedModel):
        ...     def generate(self, prompts, sampling, *, steering=None):
        ...         said = "One year." if steering is None else "Two years."
        ...         return ScriptedModel(reply=lambda text: said).generate(prompts, sampling)
        >>> model = Steerable(logprob=lambda text, said: -9.0 + 8.0 * ("two years" in text and "Two" in said))
        >>> documents = ["The warranty is two years.", "Shipping is free."]
        >>> found = answer_in_loop("How long is the warranty?", documents, model, spans=1)
        >>> found.first, found.answer, found.kept
        ('One year.', 'Two years.', 'steered')
    """
    chosen = options({"granularity": "sentences", "opens": "either", **more, "budget": budget})
    check(spans, least)
    if chosen.value != "logprob" or chosen.order != "fixed":
        raise InputError("the loop judges by log-probabilities of documents in their order: value='logprob'")
    if model is None:
        raise InputError("model= is missing: an open model, or the id that opens one")
    given = (
        tuple(documents) if isinstance(documents, Iterable) and not isinstance(documents, str | Mapping) else documents
    )
    if isinstance(model, str):
        asked_of(question, given, messages, sources, prompt, chosen)
    with opened(model) as who, sharing(who):
        asked = asked_of(question, given, messages, sources, prompt, chosen, special_tokens(who))
        need_scoring(who, "the loop")
        sampling = sampling_of(asked.context, who, chosen, None)
        result = explained(asked, who, None, chosen)
        marked = telling(result, spans)
        second = steered(asked.context, who, marked, sampling, steering)
        return replace(judged(asked.context, who, result.answer, second.text, marked, least), attribution=result)


def check(spans: int, least: float) -> None:
    """Raise InputError for a number of spans, or a least share, that makes no sense."""
    if not isinstance(spans, int) or isinstance(spans, bool) or spans < 1:
        raise InputError(f"spans is how many sentences are emphasised, 1 or more, not {spans!r}")
    if isinstance(least, bool) or not isinstance(least, int | float) or not 0 <= least <= 1:
        raise InputError(f"least is a share from 0 to 1, not {least!r}")


def telling(result: SourceAttribution, count: int, without: Iterable[Part] = ()) -> tuple[Part, ...]:
    """The sentences on which an answer depends most, for or against it; whole sources where no sentence was scored.

    Args:
        result: an attribution of the answer.
        count: how many.
        without: parts that are never chosen where others are left, e.g. titles.
    """
    level = result.sentences if result.sentences is not None and len(result.sentences) else result.documents
    order = sorted(range(len(level)), key=lambda i: (-abs(level.scores[i]), i))
    barred = set(without)
    best = [level.sources[i] for i in order]
    return tuple(sorted(([part for part in best if part not in barred] or best)[:count]))


def steered(
    context: Context, model: LanguageModel, marked: Sequence[Part], sampling: Sampling, steering: Steering | None = None
) -> Completion:
    """The answer to all sources with attention steered to some parts of them."""
    strength = steering or Steering(mode="instaboost", bonus=BONUS)
    return model.generate([context.marked(marked)], sampling, steering=strength)[0]


def judged(
    context: Context, model: LanguageModel, first: str, second: str, marked: Sequence[Part], least: float = MEMORY
) -> Loop:
    """Which of two answers to return; see `answer_in_loop`.

    Args:
        context: the sources.
        model: a `ScoringModel`; asked without steering.
        first, second: the model's own answer, and the steered one.
        marked: where attention was steered to.
        least: see `answer_in_loop`.
    """
    texts, spans = (first.strip(), second.strip()), tuple(sorted(marked))

    def kept(which: Literal["first", "steered"], why: str, rests: tuple[Rests, Rests] | None = None) -> Loop:
        return Loop(texts[which == "steered"], which, why, *texts, spans, rests)

    if not texts[1] or normalize(texts[0]) == normalize(texts[1]):
        return kept("first", "the steered answer is the same" if texts[1] else "the steered answer is empty")
    if not texts[0]:
        return kept("steered", "the first answer is empty")
    before, after = (rests_on(context, model, text, spans) for text in texts)
    said = f"the spans take away {after.share:.0%} of the steered answer's surprise, {before.share:.0%} of the first's"
    if after.share < least or after.share < before.share:
        return kept("first", f"{said}: it does not rest on them", (before, after))
    return kept("steered", said, (before, after))


def rests_on(context: Context, model: LanguageModel, answer: str, parts: Sequence[Part]) -> Rests:
    """Shapley values of some parts of the sources as one player, and of all else in them as the other.

    Four prompts at most: φ(spans) = ½ (v(spans) − v(∅)) + ½ (v(all) − v(others)).
    """
    own, other = selections(context, parts)
    game = LogProbGame(context, model, context.continued(answer))
    nothing, spans, others, everything = game.of([(), own, other, context.everything()])[:, 0].tolist()
    return Rests(
        nothing,
        everything,
        (spans - nothing + everything - others) / 2,
        (others - nothing + everything - spans) / 2,
    )


def selections(context: Context, parts: Sequence[Part]) -> tuple[Selection, Selection]:
    """What stands in the prompt with these parts alone, and with everything but them."""
    own: list[Part] = []
    rest: list[Part] = []
    for source in context.sources:
        at = source.start
        for part in sorted(p for p in parts if p.within(source)):
            rest.append(Part(source.document, at, part.start))
            own.append(part)
            at = part.end
        rest.append(Part(source.document, at, source.end))
    rest = [part for part in rest if context.documents[part.document][part.start : part.end].strip()]
    return select(np.arange(len(own)).tolist(), own), select(np.arange(len(rest)).tolist(), rest)

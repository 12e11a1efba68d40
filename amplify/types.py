"""The values that pass between the rooms of the house: frozen, JSON-able, and free of any framework."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from amplify.errors import InputError

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat.

    Attributes:
        role: who speaks.
        content: the text.
        extra: what else chat templates and servers read of a message, e.g. `tool_calls`, `tool_call_id` or `name`.

    Example:
        >>> amplify.Message("user", "Hello").to_dict()
        {'role': 'user', 'content': 'Hello'}
    """

    role: Role
    content: str
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if self.role not in ("system", "user", "assistant", "tool"):
            raise InputError(f"a message's role is system, user, assistant or tool, not {self.role!r}")

    def to_dict(self) -> dict[str, Any]:
        """As chat templates and servers read it."""
        return {**self.extra, "role": self.role, "content": self.content}


STRONGEST = 1e30
"""Factors on attention lie between its inverse and itself: float32 holds their products."""


@dataclass(frozen=True, slots=True)
class Span:
    """Characters [start, end) of a prompt's text, or of the content of message number `message`.

    Attributes:
        start: first character.
        end: one past the last character.
        weight: emphasis factor w on the span's attention, None for the steering's default (1/alpha).
            Above 1 emphasises, between 0 and 1 de-emphasises.
        message: index into `Prompt.messages`; None for raw text.

    Example:
        >>> text = "Answer in one word."
        >>> span = amplify.Span(10, 18, weight=5.0)
        >>> text[span.start : span.end]
        'one word'
    """

    start: int
    end: int
    weight: float | None = None
    message: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end:
            raise InputError(f"a span needs 0 <= start < end, got [{self.start}, {self.end})")
        if self.weight is not None and not 1 / STRONGEST <= self.weight <= STRONGEST:
            raise InputError(f"a span's weight is a factor from {1 / STRONGEST:g} to {STRONGEST:g}, got {self.weight}")


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is sent to a model: raw text, or messages that the model's chat template renders.

    It is sent as it is, special tokens included: what comes from data is neutralised before, by the templates of
    `prompts/` that write it.

    Attributes:
        text: raw text, sent as it is. Exactly one of `text` and `messages` is given.
        messages: a chat; the template's generation prompt is added after the last message.
            Dictionaries with `role` and `content` are accepted.
        prefix: the beginning of the answer, which the model continues. It is not part of the completion.
        emphasis: spans that steering emphasises; never visible in what is sent.

    Example:
        >>> prompt = amplify.Prompt(messages=[{"role": "user", "content": "Answer in one word."}], prefix="Well,")
        >>> prompt.messages[0].content
        'Answer in one word.'
        >>> amplify.Prompt(text="Once upon a time", emphasis=[amplify.Span(5, 9)]).emphasis[0].end
        9
    """

    text: str | None = None
    messages: tuple[Message, ...] = ()
    prefix: str = ""
    emphasis: tuple[Span, ...] = ()

    def __post_init__(self) -> None:
        turns = tuple(m if isinstance(m, Message) else Message(**m) for m in self.messages)
        object.__setattr__(self, "messages", turns)
        object.__setattr__(self, "emphasis", tuple(self.emphasis))
        if (self.text is None) == (not turns):
            raise InputError("a Prompt has either text= or messages=, and one of them must be given")
        for span in self.emphasis:
            if (span.message is None) != (self.text is not None):
                raise InputError("a span of a chat prompt names its message=, a span of raw text does not")
            if span.message is not None and not 0 <= span.message < len(turns):
                raise InputError(f"span {span} names message {span.message}; there are {len(turns)}")
            source = self.text if span.message is None else turns[span.message].content
            if source is not None and span.end > len(source):
                raise InputError(f"span [{span.start}, {span.end}) ends outside its text of {len(source)} characters")


def strings(given: str | Sequence[str]) -> tuple[str, ...]:
    """Strings that end an answer, as a tuple.

    Raises:
        InputError: something else is among them.
    """
    found = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, Iterable) else (given,)
    if wrong := [each for each in found if not isinstance(each, str)]:
        raise InputError(f"stop is a list of strings; {wrong[0]!r} is none")
    return found


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to decode.

    Attributes:
        max_tokens: at most this many new tokens.
        temperature: 0 is greedy.
        top_p: nucleus mass, used above temperature 0.
        stop: strings that end the completion; they are cut off.
        seed: makes sampling repeatable where the model can; ignored by greedy decoding.
        n: answers to each prompt. `generate` then returns n completions for the first prompt, n for the second …
        logprobs: whether completions come with their tokens' log-probabilities.
        offset: number of the first prompt, where these are part of a longer batch: a seed gives each number random
            numbers of its own.

    Example:
        >>> amplify.Sampling(max_tokens=8, stop="END").stop
        ('END',)
    """

    max_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    n: int = 1
    logprobs: bool = False
    offset: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop", strings(self.stop))
        if self.max_tokens < 1 or self.temperature < 0 or not 0 < self.top_p <= 1 or self.n < 1:
            raise InputError(f"sampling needs max_tokens >= 1, temperature >= 0, 0 < top_p <= 1 and n >= 1: {self}")


@dataclass(frozen=True, slots=True)
class Completion:
    """What a model wrote.

    Attributes:
        text: the new text only, without the prompt, its prefix, special tokens or the stop string. Where the chat
            template opened a reasoning block, with that block's tag in front.
        finish_reason: "stop" (end token or stop string) or "length".
        prompt_tokens: tokens of the rendered prompt, its prefix included.
        completion_tokens: tokens generated.
        logprobs: of the tokens generated, an end token and those of a stop string included, by the model's own
            distribution (temperature 1); None unless `Sampling.logprobs` asks for them.

    Example:
        >>> model = amplify.load_model("scripted:say=Paris")
        >>> model.generate([amplify.Prompt(text="The capital of France is")], amplify.Sampling())
        [Completion(text='Paris', finish_reason='stop', prompt_tokens=5, completion_tokens=1, logprobs=None)]
    """

    text: str
    finish_reason: Literal["stop", "length"]
    prompt_tokens: int
    completion_tokens: int
    logprobs: TokenLogProbs | None = None


@dataclass(frozen=True, slots=True)
class TokenLogProbs:
    """Log-probabilities of a given continuation's tokens, natural log, float32 or better.

    The target is cut from one tokenisation of prompt + continuation: every token that holds at least one
    character of the continuation.

    Attributes:
        tokens: the text of each.
        token_ids: empty where a server does not tell them.
        logprobs: one a token.

    Example:
        >>> found = amplify.TokenLogProbs((" New", " York"), (1, 2), (-1.5, -0.5))
        >>> found.total, found.mean
        (-2.0, -1.0)
    """

    tokens: tuple[str, ...]
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]

    @property
    def total(self) -> float:
        """Log-probability of the whole continuation."""
        return float(sum(self.logprobs))

    @property
    def mean(self) -> float:
        """Per-token average, for continuations of different lengths."""
        return self.total / len(self.logprobs)


@dataclass(frozen=True, slots=True)
class Example:
    """One item of a task.

    Attributes:
        id: unique over all splits of the task.
        text: the input as the model is to read it (for multiple choice: the question, options not included).
        label: gold answer, None for unlabelled rows. Of a fixed label set or of `choices`: one of those strings.
        choices: this example's own answer labels, e.g. ("A", "B", "C"); empty where the task has a fixed set.
        options: the texts behind `choices`, in the same order; empty where the choice is its own text.
        answers: every accepted gold string, for free-text answers.
        fields: further columns, for templates.

    Example:
        >>> item = amplify.Example("q1", "Where do fish live?", "A", choices=("A", "B"), options=("water", "trees"))
        >>> dict(zip(item.choices, item.options))[item.label]
        'water'
    """

    id: str
    text: str
    label: str | None = None
    choices: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Attribution:
    """Scores over the words of one input: how much each word spoke for the target (against the foil).

    Attributes:
        text: the input explained.
        words: the words scored, in order of appearance.
        spans: character offsets [start, end) of each word in `text`.
        scores: one per word; the sign says for or against where they are signed.
        low, high: 95 % interval of each score; equal to `scores` for exact and gradient methods.
        target: what was explained, e.g. the gold label.
        foil: what it was contrasted with, or None.
        method, model, budget, seed: how, on what, at what cost (model evaluations).
        meta: versions and anything else that a reader of the result must know.
        signed: False where scores say how much a word mattered, and not for which side.

    Example:
        >>> a = amplify.Attribution("dull film", ("dull", "film"), ((0, 4), (5, 9)), (1.5, -0.25), "negative")
        >>> a.top(1), a.scores
        (['dull'], (1.5, -0.25))
    """

    text: str
    words: tuple[str, ...]
    spans: tuple[tuple[int, int], ...]
    scores: tuple[float, ...]
    target: str
    foil: str | None = None
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    method: str = ""
    model: str = ""
    budget: int = 0
    seed: int | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    signed: bool = True

    def __post_init__(self) -> None:
        if not len(self.words) == len(self.spans) == len(self.scores):
            raise InputError("an Attribution has one span and one score per word")
        object.__setattr__(self, "low", tuple(self.low) or self.scores)
        object.__setattr__(self, "high", tuple(self.high) or self.scores)
        if not len(self.low) == len(self.high) == len(self.scores):
            raise InputError("an Attribution has one interval per word")
        if any(not 0 <= start <= end <= len(self.text) for start, end in self.spans):
            raise InputError("a span of an Attribution lies outside its text")

    def top(self, k: int) -> list[str]:
        """The k different words (case ignored) that speak most for the target, highest score first."""
        best: dict[str, str] = {}
        for i in sorted(range(len(self.words)), key=lambda i: (-self.scores[i], i)):
            best.setdefault(self.words[i].lower(), self.words[i])
        return list(best.values())[:k]

    def __str__(self) -> str:
        from amplify.render import attribution_text

        return attribution_text(self)

    def _repr_html_(self) -> str:
        from amplify.render import attribution_html

        return attribution_html(self)


@dataclass(frozen=True)
class Rationale:
    """A sentence (or several) that says why, as it stands in a prompt.

    Attributes:
        text: the sentence.
        words: the words it cites, most important first.
        kind: the template or strategy that made it.
        attribution: where the words came from, if from one.
        shares: of the weight that speaks for the target in the attribution, what each cited word or phrase holds.

    Example:
        >>> why = amplify.Rationale("The key words: dull, slow.", ("dull", "slow"), "key_words", shares=(0.5, 0.25))
        >>> why.coverage
        0.75
    """

    text: str
    words: tuple[str, ...] = ()
    kind: str = ""
    attribution: Attribution | None = None
    shares: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "words", tuple(self.words))
        object.__setattr__(self, "shares", tuple(self.shares))

    @property
    def coverage(self) -> float:
        """Of the weight that speaks for the target, the share of all that is cited."""
        return float(sum(self.shares))


@dataclass(frozen=True)
class Demonstration:
    """A solved example for a few-shot prompt.

    Attributes:
        example: the labelled example.
        rationale: why its label is right, or None.
        foil: the wrong label that the model gave to it, if that is known.
        score: what it was selected by (e.g. the misclassification confidence score), if anything.

    Example:
        >>> example = amplify.Example("1", "A dull film.", "negative")
        >>> shot = amplify.Demonstration(example, amplify.Rationale("It says dull."))
        >>> shot.example.label, shot.rationale.text
        ('negative', 'It says dull.')
    """

    example: Example
    rationale: Rationale | None = None
    foil: str | None = None
    score: float | None = None


@dataclass(frozen=True, slots=True)
class Sources:
    """What a program did with the documents of an example (`fields["documents"]`); documents are told by number.

    Attributes:
        ranking: documents, best first.
        shown: documents in the prompt of the answer, in order.
        scores: one per document, None for one without; empty where documents were not scored.
        cited: for each sentence of the answer the documents that it rests on; None where citations were not asked for.
    """

    ranking: tuple[int, ...]
    shown: tuple[int, ...]
    scores: tuple[float | None, ...] = ()
    cited: tuple[tuple[int, ...], ...] | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What a program answered to one example.

    Attributes:
        value: the parsed answer (a label, or free text); None where nothing could be parsed.
        text: everything the model wrote, unparsed.
        rationale: the part before the answer, a thinking model's reasoning included; "" for none.
        scores: what the labels are compared by in score mode: the log-probability of each, or what the option
            `normalize` makes of it, e.g. the mean per token; empty in generate mode.
        logprobs: the log-probabilities behind those scores, before any division by a length; empty: the scores are
            log-probabilities themselves.
        raw_scores: the scores before calibration; empty where there was none.
        first_tokens: log-probability of each label's first token alone.
        prompt_tokens, completion_tokens, calls: cost of this answer.
        prompt: the last prompt sent, for the report (None where it is no text).
        sources: what became of the example's documents, for programs that read some.

    Example:
        >>> answer = amplify.Answer("yes", "The answer is yes.", scores={"yes": -0.5, "no": -2.0})
        >>> answer.value, round(answer.probabilities()["yes"], 2)
        ('yes', 0.82)
    """

    value: str | None
    text: str = ""
    rationale: str = ""
    scores: Mapping[str, float] = field(default_factory=dict)
    logprobs: Mapping[str, float] = field(default_factory=dict)
    raw_scores: Mapping[str, float] = field(default_factory=dict)
    first_tokens: Mapping[str, float] = field(default_factory=dict)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    calls: int = 1
    prompt: Prompt | None = None
    sources: Sources | None = None

    def probabilities(self) -> dict[str, float]:
        """How the model's probability is shared among the labels scored: the softmax of their log-probabilities."""
        logprobs = self.logprobs or self.scores
        top = max(logprobs.values(), default=0.0)
        weight = {label: math.exp(value - top) for label, value in logprobs.items()}
        return {label: w / sum(weight.values()) for label, w in weight.items()}

"""Several answers to one input, made one: sampled reasoning, shuffled shots or labels, reworded inputs.

The first program answers; where it is unsure the others are asked too, and `deciding.aggregated` makes one answer of
all. Which threshold pays is found on held-out items.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import permutations
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np

from amplify import templates
from amplify.calibration import Way, log_softmax
from amplify.errors import InputError, UnknownNameError
from amplify.methods.base import Method, Preset, Program, Rehearsal, inner_method
from amplify.methods.calibrated import calibrated, unseen_inputs
from amplify.methods.deciding import AGGREGATES, Aggregate, aggregated, deferral, entropies
from amplify.methods.program import ShotProgram
from amplify.models.base import LanguageModel, Usage, need_scoring
from amplify.registry import register
from amplify.streams import stream
from amplify.templates import Template
from amplify.text import split_reasoning
from amplify.types import Answer, Completion, Example, Message, Prompt, Sampling, TokenLogProbs

if TYPE_CHECKING:
    from amplify.steering import Steering
    from amplify.tasks import Task

Vary = Literal["samples", "shots", "labels", "rewordings"]
LONGEST = 5  # times an input's length that its rewording may have
REWORDED_TOKENS = 256  # at most


@dataclass(frozen=True)
class Several(Method):
    """Several answers to each input, made one.

    Attributes:
        inner: who answers, a method by its label.
        answers: how many at most, the plain one included.
        vary: what the others differ in: "samples" (drawn at `temperature`, where something is written), "shots" (their
            order), "labels" (the order in which they are listed), or "rewordings" (the model words the input anew).
        aggregate: see `deciding.aggregated`; None: "mean_logprob" where labels are scored, else "vote", which
            is all that written answers can have.
        gated: ask the others only where the entropy of the plain answer is above a threshold: the one with which most
            held-out items come out right, "never" and "always" among the candidates. None: where labels are scored.
        calibrate: of each answer's label scores, before anything is aggregated.
        temperature: of what is sampled.

    Example:
        >>> amplify.methods.Several(answers=3).label
        'augmented[answers=3]'
    """

    inner: str = "few_shot"
    answers: int = 5
    vary: Vary = "rewordings"
    aggregate: Aggregate | None = None
    gated: bool | None = None
    calibrate: Way = "none"
    temperature: float = 0.7

    def __post_init__(self) -> None:
        super().__post_init__()
        inner_method(self.inner, self.mode)
        if self.answers < 2 or not self.temperature > 0:
            raise InputError(f"{self.name}: answers is at least 2 and temperature above 0")
        if self.aggregate not in (None, *AGGREGATES):
            raise UnknownNameError("aggregate", str(self.aggregate), AGGREGATES)
        if self.mode == "generate" and (self.aggregate not in (None, "vote") or self.gated or self.calibrate != "none"):
            raise InputError(
                f"{self.name}: answers that are written can only be voted on: set aggregate=vote, gated=false and "
                "calibrate=none, or use score mode"
            )

    def fit(self, task: Task, model: LanguageModel, seed: int) -> SeveralProgram:
        """Fit the inner method, vary it, calibrate each variant, find the threshold.

        Raises:
            InputError: a variation that the inner method cannot have, or nothing held out to fit on.
        """
        varied = self._varied(inner_method(self.inner, self.mode).fit(task, model, seed), task, seed)
        programs = tuple(calibrated(each, task, model, self.calibrate, seed) for each in varied)
        whole = SeveralProgram(programs, self._how)
        if not self._gates:
            return whole
        items = unseen_inputs(programs[0], task, seed)
        each = [program.answer(items, model) for program in programs]
        if not all(answer.scores for answer in each[0]):
            raise InputError(f"{self.name}: without label scores there is no entropy to gate by: set gated=false")
        together = [combined(given, self._how) for given in zip(*each, strict=True)]
        doubt = np.array([entropy(answer) for answer in each[0]])
        right = [np.array([float(a.value == e.label) for a, e in zip(given, items, strict=True)])
                 for given in (each[0], together)]  # fmt: skip
        order = np.argsort(-doubt, kind="stable")
        gained = np.concatenate([[0.0], np.cumsum((right[1] - right[0])[order])])
        meta = {
            "held_out": len(items),
            "right": [float(r.mean()) for r in right],
            # accuracy with the k most doubtful items asked again, k = 0 … all
            "by_items_asked_again": ((right[0].sum() + gained) / len(items)).tolist(),
        }
        return replace(whole, threshold=-deferral(-doubt, *right), meta=meta)

    def rehearse(self, task: Task, model: LanguageModel, seed: int) -> Rehearsal:
        """As the inner method, every input asked all times."""
        told = inner_method(self.inner, self.mode).rehearse(task, model, seed)
        if told.program is None:
            return told
        program = SeveralProgram(self._varied(told.program, task, seed), self._how)
        passes = self._gates + (self.calibrate != "none")
        for _ in range(passes):
            program.answer(unseen_inputs(program, task, seed), model)
        notes = [told.note] if told.note else []
        return Rehearsal(program, "; ".join([*notes, *(["at most: the gate saves some calls"] if self._gates else [])]))

    @property
    def _how(self) -> Aggregate:
        return self.aggregate or ("mean_logprob" if self.mode == "score" else "vote")

    @property
    def _gates(self) -> bool:
        return self.mode == "score" if self.gated is None else self.gated

    def _varied(self, program: Program, task: Task, seed: int) -> tuple[Program, ...]:
        rest = self.answers - 1
        if self.vary == "samples":
            if isinstance(program, ShotProgram) and self.mode == "score" and not program.form.reasons:
                raise InputError(
                    f"{self.name}: {self.inner} writes nothing that could be sampled in score mode: take an inner "
                    "method that reasons, e.g. zero_shot_cot"
                )
            return tuple(SampledProgram(program, self.temperature, 1000 * seed + i + 1) for i in range(self.answers))
        if self.vary == "rewordings":
            template = templates.load("reword", "default")
            return (program, *(
                RewordedProgram(program, template, task.input_name, task.labels, self.temperature, 1000 * seed + i + 1)
                for i in range(rest)
            ))  # fmt: skip
        if not isinstance(program, ShotProgram):
            raise InputError(f"{self.name}: {self.inner} has no fixed prompt whose {self.vary} could be reordered")
        items: tuple[Any, ...] = program.shots if self.vary == "shots" else program.form.labels
        if len(items) < 2:
            other = "; lettered options: --option-form permuted" if self.vary == "labels" else ""
            raise InputError(f"{self.name}: {self.inner} has fewer than two {self.vary} to reorder{other}")
        orders = shuffles(len(items), rest, seed)
        if self.vary == "shots":
            return (program, *(replace(program, shots=tuple(items[i] for i in order)) for order in orders))
        forms = [replace(program.form, labels=tuple(items[i] for i in order)) for order in orders]
        return (program, *(replace(program, form=form) for form in forms))


register(
    "method", "self_consistency",
    Preset(
        Several, "Reasoning sampled several times, the answers voted on (Wang et al. 2023, arXiv 2203.11171).",
        fixed={"vary": "samples"},
        defaults={"inner": "zero_shot_cot", "aggregate": "vote", "gated": False},
    ),
)  # fmt: skip
register(
    "method", "augmented",
    Preset(
        Several,
        "The input in several wordings, asked about where the plain answer is unsure "
        "(test-time augmentation; O'Brien et al. 2024, arXiv 2402.08225).",
    ),
)  # fmt: skip
register(
    "method", "shuffled_shots",
    Preset(
        Several, "As many prompts whose shots stand in other orders: what several answers of any kind must beat.",
        role="control", fixed={"vary": "shots"}, without=("temperature",),
    ),
)  # fmt: skip


@dataclass(frozen=True)
class SeveralProgram(Program):
    """Several programs' answers made one, the others asked where the first is unsure.

    Attributes:
        programs: the first answers every input.
        aggregate: see `deciding.aggregated`.
        threshold: entropy of the first answer, in nats, above which the others are asked; -inf for always, inf for
            never.
        meta: what fitting found.
    """

    kind: ClassVar[str] = "several"

    programs: tuple[Program, ...]
    aggregate: Aggregate = "mean_logprob"
    threshold: float = -math.inf
    meta: Mapping[str, Any] = field(default_factory=dict)

    def answer(self, examples: Sequence[Example], model: LanguageModel) -> list[Answer]:
        """Answer a batch, at the cost of all that was asked."""
        answers = self.programs[0].answer(examples, model)
        unsure = [i for i, answer in enumerate(answers) if entropy(answer) > self.threshold]
        again = [program.answer([examples[i] for i in unsure], model) for program in self.programs[1:]]
        for place, i in enumerate(unsure):
            answers[i] = combined([answers[i], *(given[place] for given in again)], self.aggregate)
        return answers


def entropy(answer: Answer) -> float:
    """Of an answer's label probabilities, in nats; as unsure as can be (inf) where none were scored."""
    if not answer.scores:
        return math.inf
    return float(entropies(np.log(np.maximum(list(answer.probabilities().values()), 1e-300))))


def combined(given: Sequence[Answer], how: Aggregate) -> Answer:
    """One answer of several to the same input, at the cost of all.

    Args:
        given: with label scores all, or none.
        how: see `deciding.aggregated`. Without scores they are voted on: white space and capitals are one
            vote, of equally many the one that was said first; what could not be parsed has no vote.
    """
    if all(answer.scores for answer in given):
        labels = list(given[0].scores)
        opinions = np.array([[answer.scores[label] for label in labels] for answer in given])
        pooled = aggregated(log_softmax(opinions), how)
        value: str | None = labels[int(pooled.argmax())]
        scores = dict(zip(labels, pooled.tolist(), strict=True))
    else:
        said = [answer.value for answer in given if answer.value is not None]
        votes = Counter(" ".join(value.split()).casefold() for value in said)
        value = max(said, key=lambda one: votes[" ".join(one.split()).casefold()], default=None)
        scores = {}
    spoken = next((answer for answer in given if answer.value == value), given[0])
    return replace(
        spoken,
        value=value,
        scores=scores,
        logprobs={},
        raw_scores={},
        first_tokens={},
        prompt_tokens=sum(answer.prompt_tokens for answer in given),
        completion_tokens=sum(answer.completion_tokens for answer in given),
        calls=sum(answer.calls for answer in given),
    )


def shuffles(n: int, wanted: int, seed: int) -> list[tuple[int, ...]]:
    """Orders of n things besides the given one, all different; where there are fewer, all there are."""
    rng, given = stream(seed, "shuffled orders", n), tuple(range(n))
    if n <= 5:
        every = [order for order in permutations(range(n)) if order != given]
        return [every[i] for i in rng.permutation(len(every))[:wanted]]
    found: dict[tuple[int, ...], None] = {}
    while len(found) < wanted:
        order = tuple(int(i) for i in rng.permutation(n))
        if order != given:
            found[order] = None
    return list(found)


@dataclass(frozen=True)
class SampledProgram(Program):
    """Another program whose texts are drawn instead of decoded greedily.

    Attributes:
        program: who answers.
        temperature, seed: of the draws.
    """

    kind: ClassVar[str] = "sampled"

    program: Program
    temperature: float
    seed: int

    def answer(self, examples: Sequence[Example], model: LanguageModel) -> list[Answer]:
        """Answer a batch; an input's draw depends on its place in the batch."""
        return self.program.answer(examples, _Drawing(model, self.temperature, self.seed))


class _Drawing:
    """A model whose completions are drawn at a temperature, whatever sampling it is asked for."""

    def __init__(self, inner: LanguageModel, temperature: float, seed: int) -> None:
        self.inner, self.temperature, self.seed = inner, temperature, seed
        self.id: str = inner.id
        self.usage: Usage = inner.usage
        self.max_context: int | None = inner.max_context

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, *, steering: Steering | None = None
    ) -> list[Completion]:
        """See `LanguageModel`."""
        drawn = replace(sampling, temperature=self.temperature, seed=self.seed)
        return self.inner.generate(prompts, drawn, steering=steering)

    def score(
        self, prompts: Sequence[Prompt], continuations: Sequence[str], *, steering: Steering | None = None
    ) -> list[TokenLogProbs]:
        """See `ScoringModel`."""
        return need_scoring(self.inner, "score mode").score(prompts, continuations, steering=steering)

    def count_tokens(self, prompts: Sequence[Prompt]) -> list[int]:
        """See `LanguageModel`."""
        return self.inner.count_tokens(prompts)

    def describe(self) -> dict[str, Any]:
        """See `LanguageModel`."""
        return self.inner.describe()

    def close(self) -> None:
        """Nothing: the model is its opener's to close."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        return None


@dataclass(frozen=True)
class RewordedProgram(Program):
    """Another program, asked about the input as the model words it anew.

    A rewording that is empty, more than five times as long, or names a label that the input does not name is not used:
    the input stays as it is.

    Attributes:
        program: who answers.
        template: asks for the rewording.
        input_name, labels: of the task.
        temperature, seed: of the rewording.
    """

    kind: ClassVar[str] = "reworded"

    program: Program
    template: Template
    input_name: str
    labels: tuple[str, ...]
    temperature: float
    seed: int

    def answer(self, examples: Sequence[Example], model: LanguageModel) -> list[Answer]:
        """Reword a batch and answer it; an answer costs what both took."""
        if not examples:
            return []
        asked = [
            Prompt(messages=(Message("user", self.template.render({"input_name": self.input_name, "text": e.text})),))
            for e in examples
        ]
        longest = max(model.count_tokens([Prompt(text=e.text) for e in examples]))
        room = min(REWORDED_TOKENS, 16 + 2 * longest)
        written = model.generate(asked, Sampling(max_tokens=room, temperature=self.temperature, seed=self.seed))
        changed = [self._reworded(e, one.text) for e, one in zip(examples, written, strict=True)]
        return [
            replace(
                answer,
                prompt_tokens=answer.prompt_tokens + one.prompt_tokens,
                completion_tokens=answer.completion_tokens + one.completion_tokens,
                calls=answer.calls + 1,
            )
            for answer, one in zip(self.program.answer(changed, model), written, strict=True)
        ]

    def _reworded(self, example: Example, reply: str) -> Example:
        text = split_reasoning(reply)[1].strip().removeprefix(f"{self.input_name}:").strip()
        before, after = example.text.casefold(), text.casefold()
        named = any(label.casefold() in after and label.casefold() not in before for label in self.labels)
        if not text or len(text) > LONGEST * len(example.text) or named:
            return example
        return replace(example, text=text)

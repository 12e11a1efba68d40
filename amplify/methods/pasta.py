"""PASTA and its relatives (arXiv 2311.02262): the prompt stays as it is, and chosen heads attend to the emphasis."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from amplify import templates
from amplify.errors import InputError
from amplify.methods.base import Program
from amplify.methods.prompt import Form, PromptMethod, marked
from amplify.methods.steered import (
    SteeredProgram,
    answer_steered,
    find_profile,
    first_heads,
    known_name,
    need_emphasis,
    only_heads,
)
from amplify.models.base import LanguageModel, need_scoring
from amplify.registry import register
from amplify.steering import Steering
from amplify.templates import Template
from amplify.text import sentences
from amplify.types import Answer, Example, Message, Prompt, Sampling

if TYPE_CHECKING:
    from amplify.tasks import Task

Source = Literal["model", "attribution", "random"]  # "random" is the control, auto_pasta_random
_NAMED_TOKENS = 64  # room for a sentence that the model copies


@register("method", "pasta")
@dataclass(frozen=True)
class Pasta(PromptMethod):
    """Steer a profile's heads to what the task emphasises (Zhang et al. 2024, arXiv 2311.02262).

    Attributes:
        profile: head profile by name or file; "" for the one measured for this model and task, else this model.
        alpha: scale of the attention outside the span; 0 for the profile's own.
        heads: use only so many of the profile's ranked heads; 0 for its own set.
        exempt_generated, keep_attention_sink: see `Steering`.
    """

    seeded: ClassVar[bool] = False
    steers: ClassVar[bool] = True

    profile: str = ""
    alpha: float = 0.0
    heads: int = 0
    exempt_generated: bool = False
    keep_attention_sink: bool = False

    def fit(self, task: Task, model: LanguageModel, seed: int) -> Program:
        """Take the profile, and try it on the task's first prompt.

        Raises:
            InputError: the task emphasises nothing, or the profile is of another model.
            CapabilityError: the model cannot steer.
        """
        need_emphasis(task)
        notes = self.notes_on(task, model)
        return _tried(SteeredProgram(self.form(task), self.steering(task, model, seed), notes), task, model)

    def steering(self, task: Task, model: LanguageModel, seed: int) -> Steering:
        """Heads and strength."""
        found = self.chosen_profile(task, model)
        if self.heads < 0 or not 0 <= self.alpha <= 1:
            raise InputError(f"{self.name}: heads is 0 or more and alpha in [0, 1], got {self.heads} and {self.alpha}")
        chosen = first_heads(found, self.heads) if self.heads else found
        return replace(
            chosen,
            alpha=self.alpha or found.alpha,
            mode="pasta",
            exempt_generated=self.exempt_generated or found.exempt_generated,
            keep_attention_sink=self.keep_attention_sink or found.keep_attention_sink,
        )

    def chosen_profile(self, task: Task, model: LanguageModel) -> Steering:
        """The profile that the option names, or the one for this model and task."""
        return find_profile(self.profile, model, task.name)


@register("method", "spotlight")
@dataclass(frozen=True)
class Spotlight(PromptMethod):
    """Raise the attention on the span to a target where it is below, in all heads (SpotLight, arXiv 2505.12025).

    Attributes:
        target: attention mass on the span.
        exact: hit the target exactly instead of moving towards it (mode target_mass).
        profile: steer this profile's heads only.
    """

    seeded: ClassVar[bool] = False
    steers: ClassVar[bool] = True

    target: float = 0.3
    exact: bool = False
    profile: str = ""

    def fit(self, task: Task, model: LanguageModel, seed: int) -> SteeredProgram:
        """Nothing to find; tried on the task's first prompt (see `Pasta.fit`)."""
        need_emphasis(task)
        mode = "target_mass" if self.exact else "spotlight"
        steering = replace(only_heads(self.profile), mode=mode, target=self.target)
        return _tried(SteeredProgram(self.form(task), steering, self.notes_on(task, model)), task, model)


@register("method", "instaboost")
@dataclass(frozen=True)
class InstaBoost(PromptMethod):
    """A constant bonus on the attention logits of the span, in all heads (InstABoost).

    Attributes:
        bonus: what is added; attention on the span is multiplied by its exponential before the row is renormalised.
        profile: steer this profile's heads only.
    """

    seeded: ClassVar[bool] = False
    steers: ClassVar[bool] = True

    bonus: float = 2.0
    profile: str = ""

    def fit(self, task: Task, model: LanguageModel, seed: int) -> SteeredProgram:
        """Nothing to find; tried on the task's first prompt (see `Pasta.fit`)."""
        need_emphasis(task)
        steering = replace(only_heads(self.profile), bonus=self.bonus)
        return _tried(SteeredProgram(self.form(task), steering, self.notes_on(task, model)), task, model)


def _tried(program: SteeredProgram, task: Task, model: LanguageModel) -> SteeredProgram:
    """The program, after one token with it: what cannot steer is refused before anything is answered."""
    model.generate([program.prompt(task.test[0])], Sampling(max_tokens=1), steering=program.steering)
    return program


@register("method", "auto_pasta")
@dataclass(frozen=True)
class AutoPasta(Pasta):
    """AutoPASTA: the key sentence of each input is found first, then emphasised.

    Attributes:
        source: "model" (it is asked to copy the sentence), or "attribution" (the sentence without which the model's own
            first answer loses most probability).
        key_sentence: what the model is asked, template `prompts/key_sentence_NAME.jinja`.
    """

    source: Source = "model"
    key_sentence: str = "default"

    def fit(self, task: Task, model: LanguageModel, seed: int) -> AutoPastaProgram:
        """Take the profile (see `Pasta.fit`); sentences are found when an example is answered."""
        known_name("source", self.source, ("model", "attribution"))
        if self.source == "attribution":
            need_scoring(model, "auto_pasta with source=attribution")
        form = replace(self.form(task), emphasis="")
        steering = self.steering(task, model, seed)
        _tried(SteeredProgram(replace(form, emphasis="text"), steering), task, model)
        asked = templates.load("key_sentence", self.key_sentence)
        return AutoPastaProgram(form, steering, self.source, asked, self.notes_on(task, model))


@dataclass(frozen=True)
class AutoPastaProgram(Program):
    """Finds the key sentence of each example's text, emphasises it and answers.

    Attributes:
        form, steering: as in `SteeredProgram`.
        source: who names the sentence.
        asked: the question to the model.
        notes: what a reader must know.
        seed: of the draw, where it is drawn.
    """

    kind: ClassVar[str] = "auto_pasta"

    form: Form
    steering: Steering
    source: Source
    asked: Template
    notes: tuple[str, ...] = ()
    seed: int = 0

    def answer(self, examples: Sequence[Example], model: LanguageModel) -> list[Answer]:
        """Two rounds: key sentences, then steered answers. Costs of both are counted."""
        cut = [_stripped(e.text) for e in examples]
        find = {"model": self._named, "attribution": self._attributed, "random": self._drawn}[self.source]
        keys, costs = find(examples, cut, model)
        prompts = [
            self.form.prompt(replace(e, text=marked(e.text, *spans[key])))
            for e, spans, key in zip(examples, cut, keys, strict=True)
        ]
        answers = answer_steered(self.form, examples, prompts, model, self.steering)
        return [
            replace(
                a,
                rationale=e.text[slice(*spans[key])],
                calls=a.calls + calls,
                prompt_tokens=a.prompt_tokens + prompt,
                completion_tokens=a.completion_tokens + new,
            )
            for a, e, spans, key, (calls, prompt, new) in zip(answers, examples, cut, keys, costs, strict=True)
        ]

    def _named(
        self, examples: Sequence[Example], sentences: Sequence[Sequence[tuple[int, int]]], model: LanguageModel
    ) -> tuple[list[int], list[tuple[int, int, int]]]:
        """The sentence most like what the model copies; the first where its answer is like none."""
        given = [{"text": e.text, "instruction": self.form.instruction} for e in examples]
        prompts = [Prompt(messages=(Message("user", self.asked.render(g)),)) for g in given]
        written = model.generate(prompts, Sampling(max_tokens=_NAMED_TOKENS, stop=("\n\n",)))
        keys = []
        for example, spans, answer in zip(examples, sentences, written, strict=True):
            likeness = [_overlap(answer.text, example.text[a:b]) for a, b in spans]
            keys.append(max(range(len(spans)), key=lambda i: (likeness[i], -i)))
        return keys, [(1, w.prompt_tokens, w.completion_tokens) for w in written]

    def _attributed(
        self, examples: Sequence[Example], sentences: Sequence[Sequence[tuple[int, int]]], model: LanguageModel
    ) -> tuple[list[int], list[tuple[int, int, int]]]:
        """The sentence whose absence costs the model's plain answer most log-probability."""
        scorer = need_scoring(model, "auto_pasta with source=attribution")
        plain = [self.form.prompt(e) for e in examples]
        first = answer_steered(self.form, examples, plain, model, None)
        keys, costs = [], []
        for example, spans, answer in zip(examples, sentences, first, strict=True):
            target = answer.text or answer.value or ""
            key, calls, prompt, new = 0, answer.calls, answer.prompt_tokens, answer.completion_tokens
            if len(spans) > 1 and target.strip():
                without = [
                    self.form.prompt(replace(example, text=f"{example.text[:a]}{example.text[b:]}".strip()))
                    for a, b in spans
                ]
                gap = " " if without[0].text is not None and not target.startswith(" ") else ""
                found = scorer.score(without, [gap + target] * len(spans))
                key = min(range(len(spans)), key=lambda i: found[i].total)
                calls += len(spans)
                prompt += sum(model.count_tokens(without))
                new += sum(len(f.logprobs) for f in found)
            keys.append(key)
            costs.append((calls, prompt, new))
        return keys, costs

    def _drawn(
        self, examples: Sequence[Example], sentences: Sequence[Sequence[tuple[int, int]]], model: LanguageModel
    ) -> tuple[list[int], list[tuple[int, int, int]]]:
        """Any sentence, the same one whatever else is in the batch."""
        keys = [
            random.Random(f"{self.seed} {example.id}").randrange(len(spans))
            for example, spans in zip(examples, sentences, strict=True)
        ]
        return keys, [(0, 0, 0)] * len(keys)


def _stripped(text: str) -> list[tuple[int, int]]:
    """Characters [start, end) of each sentence, without the space around it; at least one."""
    spans = [(a, a + len(text[a:b].rstrip())) for a, b in sentences(text)]
    return [(b - len(text[a:b].lstrip()), b) for a, b in spans]


def _overlap(a: str, b: str) -> float:
    """Dice coefficient of the two texts' word sets."""
    first, second = (set(re.findall(r"\w+", t.lower())) for t in (a, b))
    return 2 * len(first & second) / (len(first) + len(second)) if first or second else 0.0

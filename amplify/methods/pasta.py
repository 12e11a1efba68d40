"""PASTA and its relatives (arXiv 2311.02262): the prompt stays as it is, and chosen heads attend to the emphasis."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

import numpy as np

from amplify import templates
from amplify.errors import InputError, UnknownNameError
from amplify.methods.base import Preset, Program
from amplify.methods.few_shot import draw
from amplify.methods.program import ShotProgram, answer_made
from amplify.methods.prompt import Form, PromptMethod, check_options, marked, need_emphasis
from amplify.models.base import LanguageModel, ScoringModel, need_scoring
from amplify.registry import register
from amplify.shapley.game import Coalitions, Floats, leave_one_out
from amplify.steering import Steering, profiles
from amplify.templates import Template
from amplify.text import sentences
from amplify.types import Answer, Example, Message, Prompt, Sampling, TokenLogProbs

if TYPE_CHECKING:
    from amplify.tasks import Task

Source = Literal["model", "attribution", "random"]
FEW_SHOT = "few_shot"  # how profiles that were searched behind shots are named: MODEL-TASK-few_shot
_NAMED_TOKENS = 64  # room for a sentence that the model copies


@dataclass(frozen=True)
class Pasta(PromptMethod):
    """Steer a profile's heads to what the task emphasises (Zhang et al. 2024, arXiv 2311.02262).

    Attributes:
        profile: head profile by name or file; "" for the one measured for this model and task (behind shots sooner one
            that was searched behind shots), else this model.
        alpha: scale of the attention outside the span; 0 for the profile's own.
        heads: use only so many of the profile's ranked heads; 0 for its own set.
        exempt_generated, keep_attention_sink: see `Steering`.
        random_heads: as many heads as the profile has, drawn at random with the seed.
        shots: how many examples stand before the question, the same ones as for few_shot; none for a question alone.
        emphasis: what is emphasised in the last question: "text" (the input), "instruction", "first_sentence",
            "fields.NAME"; "" for the task's own.
        span: what the "task" says is emphasised; or a sentence of each input, the key one "found" first, or "drawn" at
            random.
        source: who finds it: "model" (it is asked to copy the sentence), or "attribution" (the sentence without which
            the model's own first answer loses most probability).
        key_sentence: what the model is asked, template `prompts/key_sentence_NAME.jinja`.

    Example:
        >>> amplify.methods.Pasta(profile="qwen2.5-coder-0.5b-counterfact").label
        'pasta[profile=qwen2.5-coder-0.5b-counterfact]'
    """

    seeded: ClassVar[bool] = False
    steers: ClassVar[bool] = True

    profile: str = ""
    alpha: float = 0.0
    heads: int = 0
    exempt_generated: bool = False
    keep_attention_sink: bool = False
    random_heads: bool = False
    shots: int | None = None
    emphasis: str = ""
    span: Literal["task", "found", "drawn"] = "task"
    source: Literal["model", "attribution"] = "model"
    key_sentence: str = "default"

    def fit(self, task: Task, model: LanguageModel, seed: int) -> Program:
        """Take the profile, and try it on the task's first prompt; key sentences are found when an example is answered.

        Raises:
            InputError: the task emphasises nothing, or the profile is of another model.
            CapabilityError: the model cannot steer.
        """
        check_options(self)
        if self.span != "task":
            return self._finding(task, model, seed)
        shots = draw(task, self.shots, "random", seed) if self.shots is not None else ()
        task = replace(task, emphasis=self.emphasis) if self.emphasis else task
        need_emphasis(task)
        notes = self.notes_on(task, model)
        program = ShotProgram(self.form(task), (), notes, steering=self.steering(task, model, seed))
        return replace(_tried(program, task, model), shots=shots)

    def _finding(self, task: Task, model: LanguageModel, seed: int) -> AutoPastaProgram:
        source: Source = self.source if self.span == "found" else "random"
        if source not in get_args(Source):
            raise UnknownNameError("source", source, get_args(Source))
        if source == "attribution":
            need_scoring(model, "auto_pasta with source=attribution")
        form = replace(self.form(task), emphasis="")
        steering = self.steering(task, model, seed)
        _tried(ShotProgram(replace(form, emphasis="text"), steering=steering), task, model)
        asked = templates.load("key_sentence", self.key_sentence)
        drawn = seed if source == "random" else 0
        return AutoPastaProgram(form, steering, source, asked, self.notes_on(task, model), drawn)

    def steering(self, task: Task, model: LanguageModel, seed: int) -> Steering:
        """Heads and strength."""
        found = find_profile(self.profile, model, task.name, "" if self.shots is None else f"-{FEW_SHOT}")
        if self.heads < 0 or not 0 <= self.alpha <= 1:
            raise InputError(f"{self.name}: heads is 0 or more and alpha in [0, 1], got {self.heads} and {self.alpha}")
        chosen = first_heads(found, self.heads) if self.heads else found
        steering = replace(
            chosen,
            alpha=self.alpha or found.alpha,
            mode="pasta",
            exempt_generated=self.exempt_generated or found.exempt_generated,
            keep_attention_sink=self.keep_attention_sink or found.keep_attention_sink,
        )
        return random_heads(steering, seed) if self.random_heads else steering


_BEHIND_SHOTS = {"shots": 8, "emphasis": "text"}
_FINDING = ("source", "key_sentence")  # options of auto_pasta alone
register(
    "method", "pasta",
    Preset(
        Pasta, fixed={"span": "task", "random_heads": False, "shots": None}, without=("emphasis", *_FINDING)
    ),
)  # fmt: skip
register(
    "method", "pasta_random_heads",
    Preset(
        Pasta, "PASTA's control: as many heads as the profile has, drawn at random with the seed.", "control", True,
        fixed={"span": "task", "random_heads": True, "shots": None}, without=("emphasis", *_FINDING),
    ),
)  # fmt: skip
register(
    "method", "few_shot_pasta",
    Preset(
        Pasta, "PASTA behind examples: the prompt of few_shot, its last question emphasised in part.", seeded=True,
        fixed={"span": "task", "random_heads": False}, defaults=_BEHIND_SHOTS, without=_FINDING,
    ),
)  # fmt: skip
register(
    "method", "few_shot_pasta_random_heads",
    Preset(
        Pasta, "The control of few_shot_pasta: the same shots, as many heads, drawn at random with the seed.",
        "control", True,
        fixed={"span": "task", "random_heads": True}, defaults=_BEHIND_SHOTS, without=_FINDING,
    ),
)  # fmt: skip
register(
    "method", "auto_pasta",
    Preset(
        Pasta, "AutoPASTA: the key sentence of each input is found first, then emphasised.",
        fixed={"span": "found", "random_heads": False, "shots": None}, without=("emphasis",),
    ),
)  # fmt: skip
register(
    "method", "auto_pasta_random",
    Preset(
        Pasta, "AutoPASTA's control: the sentence that is emphasised is drawn with the seed.", "control", True,
        fixed={"span": "drawn", "random_heads": False, "shots": None}, without=("emphasis", *_FINDING),
    ),
)  # fmt: skip


@register("method", "spotlight")
@dataclass(frozen=True)
class Spotlight(PromptMethod):
    """Raise the attention on the span to a target where it is below, in all heads (SpotLight, arXiv 2505.12025).

    Attributes:
        target: attention mass on the span.
        exact: hit the target exactly instead of moving towards it (mode target_mass).
        profile: steer this profile's heads only.

    Example:
        >>> amplify.methods.Spotlight(target=0.2).label
        'spotlight[target=0.2]'
    """

    seeded: ClassVar[bool] = False
    steers: ClassVar[bool] = True

    target: float = 0.3
    exact: bool = False
    profile: str = ""

    def fit(self, task: Task, model: LanguageModel, seed: int) -> ShotProgram:
        """Nothing to find; tried on the task's first prompt (see `Pasta.fit`)."""
        need_emphasis(task)
        mode = "target_mass" if self.exact else "spotlight"
        steering = replace(only_heads(self.profile), mode=mode, target=self.target)
        return _tried(ShotProgram(self.form(task), (), self.notes_on(task, model), steering=steering), task, model)


@register("method", "instaboost")
@dataclass(frozen=True)
class InstaBoost(PromptMethod):
    """A constant bonus on the attention logits of the span, in all heads (InstABoost).

    Attributes:
        bonus: what is added; attention on the span is multiplied by its exponential before the row is renormalised.
        profile: steer this profile's heads only.

    Example:
        >>> amplify.methods.InstaBoost(bonus=3.0).label
        'instaboost[bonus=3.0]'
    """

    seeded: ClassVar[bool] = False
    steers: ClassVar[bool] = True

    bonus: float = 2.0
    profile: str = ""

    def fit(self, task: Task, model: LanguageModel, seed: int) -> ShotProgram:
        """Nothing to find; tried on the task's first prompt (see `Pasta.fit`)."""
        need_emphasis(task)
        steering = replace(only_heads(self.profile), bonus=self.bonus)
        return _tried(ShotProgram(self.form(task), (), self.notes_on(task, model), steering=steering), task, model)


@dataclass(frozen=True)
class Seka(PromptMethod):
    """Edit the keys of what the task emphasises (SEKA, arXiv 2603.01281); attention stays as it is.

    Attributes:
        profile: by name or file, as `amplify projections` writes it; "" for MODEL-seka.
        positive_gain, negative_gain: how strongly, see `amplify.steering.keys`; None for the profile's own.
        random: projections of equal rank on random directions, drawn with the seed.
    """

    seeded: ClassVar[bool] = False
    steers: ClassVar[bool] = True

    profile: str = ""
    positive_gain: float | None = None
    negative_gain: float | None = None
    random: bool = False

    def fit(self, task: Task, model: LanguageModel, seed: int) -> ShotProgram:
        """Take the profile, and try it on the task's first prompt (see `Pasta.fit`)."""
        check_options(self)
        need_emphasis(task)
        name = self.profile or f"{model_name(model)}-seka"
        if not self.profile and name not in profiles():
            raise InputError(
                f"no projections are named {name!r}: find them with `amplify projections --model {model.id} --out "
                "mine.yaml` and give them as profile=mine.yaml"
            )
        found = Steering.load(name)
        if not found.edits_keys:
            raise InputError(f"the profile {name!r} is of mode {found.mode!r} and holds no projections")
        gains = {"positive_gain": self.positive_gain, "negative_gain": self.negative_gain}
        given = {option: gain for option, gain in gains.items() if gain is not None}
        steering = replace(found, **given, rotation=seed if self.random else found.rotation)  # type: ignore[arg-type]
        return _tried(ShotProgram(self.form(task), (), self.notes_on(task, model), steering=steering), task, model)


register("method", "seka", Preset(Seka, fixed={"random": False}))
register(
    "method", "seka_random",
    Preset(
        Seka, "SEKA's control: projections of equal rank on random directions, drawn with the seed.", "control", True,
        fixed={"random": True},
    ),
)  # fmt: skip


def _tried(program: ShotProgram, task: Task, model: LanguageModel) -> ShotProgram:
    """The program, after one token with it: what cannot steer is refused before anything is answered."""
    model.generate([program.prompt(task.test[0])], Sampling(max_tokens=1), steering=program.steering)
    return program


@dataclass(frozen=True)
class AutoPastaProgram(Program):
    """Finds the key sentence of each example's text, emphasises it and answers.

    Attributes:
        form, steering: as in `ShotProgram`.
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
        answers = answer_made(self.form, examples, prompts, model, self.steering)
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
        first = answer_made(self.form, examples, plain, model)
        keys, costs = [], []
        for example, spans, answer in zip(examples, sentences, first, strict=True):
            target = answer.text or answer.value or ""
            key, cost = 0, (answer.calls, answer.prompt_tokens, answer.completion_tokens)
            if len(spans) > 1 and target.strip():
                key, more = self._missed(example, spans, target, scorer)
                cost = (cost[0] + more[0], cost[1] + more[1], cost[2] + more[2])
            keys.append(key)
            costs.append(cost)
        return keys, costs

    def _missed(
        self, example: Example, spans: Sequence[tuple[int, int]], target: str, model: ScoringModel
    ) -> tuple[int, tuple[int, int, int]]:
        """The sentence without which a target loses most; calls, prompt tokens and scored tokens."""
        prompts: list[Prompt] = []
        found: list[TokenLogProbs] = []

        def value(kept: Coalitions) -> Floats:
            prompts[:] = [self.form.prompt(replace(example, text=_without(example.text, spans, row))) for row in kept]
            gap = " " if prompts[0].text is not None and not target.startswith(" ") else ""
            found[:] = model.score(prompts, [gap + target] * len(prompts))
            return np.array([one.total for one in found])

        key = int(leave_one_out(value, len(spans)).argmax())
        return key, (len(prompts), sum(model.count_tokens(prompts)), sum(len(one.logprobs) for one in found))

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


def _without(text: str, spans: Sequence[tuple[int, int]], kept: Sequence[bool]) -> str:
    """The text without the sentences that are not kept."""
    for (start, end), held in zip(reversed(spans), reversed(kept), strict=True):
        text = text if held else text[:start] + text[end:]
    return text.strip()


def _overlap(a: str, b: str) -> float:
    """Dice coefficient of the two texts' word sets."""
    first, second = (set(re.findall(r"\w+", t.lower())) for t in (a, b))
    return 2 * len(first & second) / (len(first) + len(second)) if first or second else 0.0


def model_name(model: LanguageModel) -> str:
    """What a model's spec calls its model: the part that profiles are named after."""
    return model.id.partition(":")[2].partition("@")[0].rstrip("/").rpartition("/")[2]


def find_profile(name: str, model: LanguageModel, task: str, variant: str = "") -> Steering:
    """The head profile of a name; of no name, the one that was measured for this model and task, else this model.

    Args:
        name: of a profile, or its file.
        model: whose model it must be.
        task: name of the task.
        variant: an ending of the profile's name that is tried first.

    Raises:
        UnknownNameError: no such profile.
        InputError: none was measured for this model.
    """
    if name:
        return Steering.load(name)
    called, known = model_name(model), profiles()
    own = f"{called}-{task.replace('/', '-')}"
    for guess in (own + variant, own, called):
        if guess in known:
            return Steering.load(guess)
    raise InputError(
        f"no head profile is named after {called!r}: measure one with `amplify heads {task} --model {model.id} "
        "--out mine.yaml` and give it as profile=mine.yaml" + (f" (there are: {', '.join(known)})" if known else "")
    )


def only_heads(profile: str) -> Steering:
    """The heads of a profile and the model that they belong to, without strength or options; of no name, all heads."""
    if not profile:
        return Steering(mode="instaboost")  # the mode that carries no rule about heads
    found = Steering.load(profile)
    return Steering(heads=found.heads, mode="instaboost", model=found.model)


def first_heads(steering: Steering, count: int) -> Steering:
    """The profile's best heads, in the order in which its search ranked them.

    Raises:
        InputError: the profile holds no order, or fewer heads.
    """
    order = [tuple(map(int, name.split("."))) for name in steering.provenance.get("order", ())]
    if count > len(order):
        raise InputError(f"heads={count}, and the profile ranks {len(order)} heads")
    chosen: dict[int, list[int]] = {}
    for layer, head in order[:count]:
        chosen.setdefault(layer, []).append(head)
    return replace(steering, heads={layer: tuple(h) for layer, h in chosen.items()})


def random_heads(steering: Steering, seed: int) -> Steering:
    """As many heads as the profile has, drawn from all heads of its model.

    Raises:
        InputError: the profile does not say how many layers and heads its model has.
    """
    layers, heads = steering.model.get("layers"), steering.model.get("heads")
    if not isinstance(layers, int) or not isinstance(heads, int) or steering.heads is None:
        raise InputError("random heads need a profile with `model: {layers: …, heads: …}` and chosen heads")
    everyone = [(layer, head) for layer in range(layers) for head in range(heads)]
    drawn: dict[int, list[int]] = {}
    for layer, head in random.Random(seed).sample(everyone, sum(map(len, steering.heads.values()))):
        drawn.setdefault(layer, []).append(head)
    return replace(steering, heads={layer: tuple(h) for layer, h in drawn.items()}, provenance={})

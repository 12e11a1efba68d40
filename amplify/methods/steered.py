"""Programs that steer attention: where the emphasis stands, which heads, how strongly. Plain JSON, as always."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from amplify.errors import InputError, UnknownNameError
from amplify.methods.base import PromptProgram
from amplify.methods.program import answer_prompts, as_example, check_window
from amplify.methods.prompt import Form
from amplify.models.base import LanguageModel
from amplify.steering import Steering, profiles
from amplify.types import Answer, Demonstration, Example, Prompt


@dataclass(frozen=True)
class SteeredProgram(PromptProgram):
    """A prompt, answered with steered attention.

    Attributes:
        form: how prompts look, and what they emphasise in the last question.
        steering: heads and strength.
        notes, meta: see `ShotProgram`.
        shots: demonstrations, first to last; none of their words is emphasised.
    """

    kind: ClassVar[str] = "steered"

    form: Form
    steering: Steering
    notes: tuple[str, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)
    shots: tuple[Demonstration, ...] = ()

    def prompt(self, example: Example | str) -> Prompt:
        """The prompt for an example or a plain text, its emphasis included."""
        return self.form.prompt(as_example(example), self.shots)

    def answer(self, examples: Sequence[Example], model: LanguageModel) -> list[Answer]:
        """Answer a batch.

        Raises:
            CapabilityError: a model that cannot steer.
            InputError: heads measured on another model.
        """
        prompts = [self.prompt(e) for e in examples]
        return answer_steered(self.form, examples, prompts, model, self.steering, self.shots)


def answer_steered(
    form: Form,
    examples: Sequence[Example],
    prompts: Sequence[Prompt],
    model: LanguageModel,
    steering: Steering | None,
    shots: Sequence[Demonstration] = (),
) -> list[Answer]:
    """Answer prompts that are made already, with these shots; what emphasises nothing is answered plainly."""

    def with_shots(i: int, n: int) -> Prompt:
        return form.prompt(examples[i], shots[:n]) if shots else prompts[i]

    check_window(model, prompts, form, [len(shots)] * len(prompts), with_shots)
    return answer_prompts(prompts, [(form.labels_of(e), e.options) for e in examples], form, model, steering)


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


def need_emphasis(task: Any) -> None:
    """Refuse a task that does not say what is to be emphasised.

    Raises:
        InputError: naming the key.
    """
    if not task.emphasis:
        raise InputError(
            f"task {task.name!r} does not say what steering should emphasise: give its YAML `emphasis: instruction` "
            "(or text, first_sentence, fields.NAME), or take auto_pasta, which finds the span itself"
        )


def known_name(kind: str, name: str, known: Sequence[str]) -> None:
    """Refuse an option's value that is none of the known ones."""
    if name not in known:
        raise UnknownNameError(kind, name, known)

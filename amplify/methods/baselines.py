"""What explanations must beat: zero-shot, few-shot and chain-of-thought prompts."""

from __future__ import annotations

import random
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, ClassVar

from amplify import templates
from amplify.errors import InputError
from amplify.methods.base import Role
from amplify.methods.program import ShotProgram
from amplify.methods.prompt import PromptMethod, check_options
from amplify.models.base import LanguageModel
from amplify.registry import register
from amplify.types import Demonstration, Example

if TYPE_CHECKING:
    from amplify.tasks import Task


@register("method", "zero_shot")
@dataclass(frozen=True)
class ZeroShot(PromptMethod):
    """The instruction and the question alone."""

    role: ClassVar[Role] = "baseline"
    seeded: ClassVar[bool] = False

    def fit(self, task: Task, model: LanguageModel, seed: int) -> ShotProgram:
        """Nothing to fit."""
        return ShotProgram(self.form(task), notes=self.notes_on(task, model))


@register("method", "zero_shot_cot")
@dataclass(frozen=True)
class ZeroShotCoT(PromptMethod):
    """A call to think in steps, then the answer (Kojima et al. 2022, arXiv 2205.11916).

    Attributes:
        thought: template of the words that begin the answer.
    """

    role: ClassVar[Role] = "baseline"
    seeded: ClassVar[bool] = False

    thought: str = "cot"

    def fit(self, task: Task, model: LanguageModel, seed: int) -> ShotProgram:
        """Nothing to fit."""
        prefill = templates.load("prefill", self.thought).render({})
        form = self.form(task, reasons=True, prefill=prefill, budget=256, line=False)
        return ShotProgram(form, notes=self.notes_on(task, model))


@register("method", "few_shot")
@dataclass(frozen=True)
class FewShot(PromptMethod):
    """Labelled examples of the training split before the question (Brown et al. 2020, arXiv 2005.14165).

    Attributes:
        shots: how many.
        selection: "random", "balanced" (as many of each label as possible), or one that is registered; the shots
            chosen are then shown in random order.
    """

    role: ClassVar[Role] = "baseline"

    shots: int = 8
    selection: str = "random"

    def __post_init__(self) -> None:
        """Refuse an unknown selection before a model is loaded."""
        super().__post_init__()
        strategy(self.selection)

    def fit(self, task: Task, model: LanguageModel, seed: int) -> ShotProgram:
        """Draw the shots with the seed."""
        check_options(self)
        shots = draw(task, self.shots, self.selection, seed)
        return ShotProgram(self.form(task), shots, self.notes_on(task, model))


@register("method", "few_shot_balanced")
@dataclass(frozen=True)
class FewShotBalanced(PromptMethod):
    """Few-shot with as many shots of each label as possible.

    Attributes:
        shots: how many.
    """

    role: ClassVar[Role] = "baseline"

    shots: int = 8

    def fit(self, task: Task, model: LanguageModel, seed: int) -> ShotProgram:
        """Draw the shots with the seed."""
        check_options(self)
        shots = draw(task, self.shots, "balanced", seed)
        return ShotProgram(self.form(task), shots, self.notes_on(task, model))


@register("method", "human_cot")
@dataclass(frozen=True)
class HumanCoT(PromptMethod):
    """Chain-of-thought demonstrations that people wrote (Wei et al. 2022, arXiv 2201.11903).

    Attributes:
        shots: how many of the task's own; 0 for all of them.
    """

    role: ClassVar[Role] = "baseline"
    seeded: ClassVar[bool] = False

    shots: int = 0

    def fit(self, task: Task, model: LanguageModel, seed: int) -> ShotProgram:
        """Take the task's demonstrations.

        Raises:
            InputError: the task has none.
        """
        if not task.cot:
            raise InputError(
                f"human_cot needs demonstrations with rationales written by people, and {task.name!r} has none. "
                "The bbh/* tasks have them; a task file of your own gives them under `cot:`"
            )
        form = self.form(task, reasons=True, budget=256, line=False)  # the demonstrations show how to begin
        return ShotProgram(form, task.cot[: self.shots or None], self.notes_on(task, model))


def shot_pool(task: Task) -> tuple[Example, ...]:
    """Where random shots come from: the training split, without one the validation split.

    Raises:
        InputError: the task has neither.
    """
    if pool := task.train or task.validation:
        return pool
    raise InputError(f"task {task.name!r} has no training or validation split to take demonstrations from")


def strategy(selection: str) -> None:
    """Refuse a way of choosing shots that there is not, or that few-shot prompting cannot use.

    Raises:
        InputError: it is not registered, or asks a proxy.
    """
    from amplify.selection import SELECTIONS

    if SELECTIONS.find(selection).proxy:
        raise InputError(f"the selection {selection!r} asks a proxy, which few-shot prompting has none of; try amplify")


def draw(task: Task, shots: int, selection: str, seed: int) -> tuple[Demonstration, ...]:
    """Draw shots, in random order.

    Raises:
        InputError: an unknown selection, or fewer examples than shots.
    """
    from amplify.selection import select

    strategy(selection)
    chosen = select(selection, task, shots, seed=seed, pool=shot_pool(task)).shots
    return tuple(random.Random(seed).sample(chosen, len(chosen)))


def random_shots(method: PromptMethod, task: Task, model: LanguageModel, seed: int) -> ShotProgram:
    """Random shots under a method's own options, as many as it shows: for plans."""
    shared = {f.name: getattr(method, f.name) for f in fields(PromptMethod)}
    return FewShot(shots=getattr(method, "shots", 8), **shared).fit(task, model, seed)


def ask_validation(method: PromptMethod, task: Task, model: LanguageModel, seed: int, n: int) -> None:
    """Ask n times for the label of a validation example, from the first one on and over again: for plans."""
    if n and task.validation:
        asked = [task.validation[i % len(task.validation)] for i in range(n)]
        ZeroShot(mode=method.mode).fit(task, model, seed).answer(asked, model)

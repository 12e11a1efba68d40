"""What explanations must beat: zero-shot, few-shot and chain-of-thought prompts."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from amplify import templates
from amplify.backends.base import Generator
from amplify.errors import InputError
from amplify.methods.base import Role
from amplify.methods.prompting import PromptMethod, check_options
from amplify.methods.shots import ShotProgram
from amplify.values import Demonstration, Example

if TYPE_CHECKING:
    from amplify.tasks import Task

Selection = Literal["random", "balanced"]


@dataclass(frozen=True)
class ZeroShot(PromptMethod):
    """The instruction and the question alone."""

    name: ClassVar[str] = "zero_shot"
    role: ClassVar[Role] = "baseline"
    seeded: ClassVar[bool] = False

    def fit(self, task: Task, backend: Generator, seed: int) -> ShotProgram:
        """Nothing to fit."""
        return ShotProgram(self.form(task), notes=self.notes_on(task, backend))


@dataclass(frozen=True)
class ZeroShotCoT(PromptMethod):
    """A call to think in steps, then the answer (Kojima et al. 2022, arXiv 2205.11916).

    Attributes:
        thought: template of the words that begin the answer.
    """

    name: ClassVar[str] = "zero_shot_cot"
    role: ClassVar[Role] = "baseline"
    seeded: ClassVar[bool] = False

    thought: str = "cot"

    def fit(self, task: Task, backend: Generator, seed: int) -> ShotProgram:
        """Nothing to fit."""
        lead = templates.load("lead", self.thought).render({})
        form = self.form(task, reasons=True, lead=lead, budget=256, line=False)
        return ShotProgram(form, notes=self.notes_on(task, backend))


@dataclass(frozen=True)
class FewShot(PromptMethod):
    """Labelled examples of the training split before the question (Brown et al. 2020, arXiv 2005.14165).

    Attributes:
        shots: how many.
        selection: "random", or "balanced" (as many of each label as possible).
    """

    name: ClassVar[str] = "few_shot"
    role: ClassVar[Role] = "baseline"

    shots: int = 8
    selection: Selection = "random"

    def fit(self, task: Task, backend: Generator, seed: int) -> ShotProgram:
        """Draw the shots with the seed."""
        check_options(self)
        shots = draw(task, self.shots, self.selection, seed)
        return ShotProgram(self.form(task), shots, self.notes_on(task, backend))


@dataclass(frozen=True)
class FewShotBalanced(PromptMethod):
    """Few-shot with as many shots of each label as possible.

    Attributes:
        shots: how many.
    """

    name: ClassVar[str] = "few_shot_balanced"
    role: ClassVar[Role] = "baseline"

    shots: int = 8

    def fit(self, task: Task, backend: Generator, seed: int) -> ShotProgram:
        """Draw the shots with the seed."""
        check_options(self)
        shots = draw(task, self.shots, "balanced", seed)
        return ShotProgram(self.form(task), shots, self.notes_on(task, backend))


@dataclass(frozen=True)
class HumanCoT(PromptMethod):
    """Chain-of-thought demonstrations that people wrote (Wei et al. 2022, arXiv 2201.11903).

    Attributes:
        shots: how many of the task's own; 0 for all of them.
    """

    name: ClassVar[str] = "human_cot"
    role: ClassVar[Role] = "baseline"
    seeded: ClassVar[bool] = False

    shots: int = 0

    def fit(self, task: Task, backend: Generator, seed: int) -> ShotProgram:
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
        return ShotProgram(form, task.cot[: self.shots or None], self.notes_on(task, backend))


def shot_pool(task: Task) -> tuple[Example, ...]:
    """Where random shots come from: the training split, without one the validation split.

    Raises:
        InputError: the task has neither.
    """
    if pool := task.train or task.validation:
        return pool
    raise InputError(f"task {task.name!r} has no training or validation split to take demonstrations from")


def draw(task: Task, shots: int, selection: Selection, seed: int) -> tuple[Demonstration, ...]:
    """Draw shots, in random order.

    Raises:
        InputError: an unknown selection, or fewer examples than shots.
    """
    from amplify.demonstrations import select

    if selection not in ("random", "balanced"):
        raise InputError(f"selection is random or balanced, not {selection!r}")
    chosen = select(selection, task, shots, seed=seed, pool=shot_pool(task)).shots
    return tuple(random.Random(seed).sample(chosen, len(chosen)))

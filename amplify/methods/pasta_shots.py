"""PASTA behind examples: the shots say what an answer looks like, steering makes the model read the input at hand."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from amplify.methods.base import Program
from amplify.methods.baselines import draw
from amplify.methods.pasta import Pasta
from amplify.methods.prompt import check_options
from amplify.methods.steered import SteeredProgram, find_profile
from amplify.models.base import LanguageModel
from amplify.registry import register
from amplify.steering import Steering

if TYPE_CHECKING:
    from amplify.tasks import Task

FEW_SHOT = "few_shot"  # how profiles that were searched behind shots are named: MODEL-TASK-few_shot


@register("method", "few_shot_pasta")
@dataclass(frozen=True)
class FewShotPasta(Pasta):
    """The prompt of few_shot, its last question emphasised in part.

    Attributes:
        shots: how many; the same seed draws the same ones as for few_shot.
        emphasis: what is emphasised in the last question: "text" (the input), "instruction", "first_sentence",
            "fields.NAME"; "" for the task's own.
        profile: as for `Pasta`; "" for one that was searched behind shots, where there is one.
    """

    seeded: ClassVar[bool] = True

    shots: int = 8
    emphasis: str = "text"

    def fit(self, task: Task, model: LanguageModel, seed: int) -> Program:
        """Draw the shots with the seed, and try the profile (see `Pasta.fit`)."""
        check_options(self)
        shots = draw(task, self.shots, "random", seed)
        program = super().fit(replace(task, emphasis=self.emphasis or task.emphasis), model, seed)
        assert isinstance(program, SteeredProgram)
        return replace(program, shots=shots)

    def chosen_profile(self, task: Task, model: LanguageModel) -> Steering:
        """The profile, sooner one that was searched behind shots."""
        return find_profile(self.profile, model, task.name, f"-{FEW_SHOT}")

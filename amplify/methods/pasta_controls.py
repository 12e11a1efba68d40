"""What PASTA must beat: as many heads or a sentence at random, and emphasis that is only written into the prompt."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from amplify.methods.base import Role
from amplify.methods.baselines import FewShot, ZeroShot
from amplify.methods.pasta import AutoPasta, AutoPastaProgram, Pasta
from amplify.methods.pasta_shots import FewShotPasta
from amplify.methods.program import ShotProgram
from amplify.methods.steered import need_emphasis, random_heads
from amplify.models.base import LanguageModel
from amplify.registry import register
from amplify.steering import Steering

if TYPE_CHECKING:
    from amplify.tasks import Task


@register("method", "pasta_random_heads")
@dataclass(frozen=True)
class PastaRandomHeads(Pasta):
    """PASTA's control: as many heads as the profile has, drawn at random with the seed."""

    role: ClassVar[Role] = "control"
    seeded: ClassVar[bool] = True

    def steering(self, task: Task, model: LanguageModel, seed: int) -> Steering:
        """The profile's strength on other heads."""
        return random_heads(super().steering(task, model, seed), seed)


@register("method", "auto_pasta_random")
@dataclass(frozen=True)
class AutoPastaRandom(AutoPasta):
    """AutoPASTA's control: the sentence that is emphasised is drawn with the seed; `source` does not matter."""

    role: ClassVar[Role] = "control"
    seeded: ClassVar[bool] = True

    def fit(self, task: Task, model: LanguageModel, seed: int) -> AutoPastaProgram:
        """Take the profile (see `Pasta.fit`)."""
        return replace(super().fit(task, model, seed), source="random", seed=seed)


@register("method", "few_shot_pasta_random_heads")
@dataclass(frozen=True)
class FewShotPastaRandomHeads(FewShotPasta):
    """The control of few_shot_pasta: the same shots, as many heads, drawn at random with the seed."""

    role: ClassVar[Role] = "control"

    def steering(self, task: Task, model: LanguageModel, seed: int) -> Steering:
        """The profile's strength on other heads."""
        return random_heads(super().steering(task, model, seed), seed)


@register("method", "marked_prompt")
@dataclass(frozen=True)
class MarkedPrompt(ZeroShot):
    """Emphasis in the prompt alone: marks around what PASTA would steer to (PASTA's baseline).

    Attributes:
        mark: written before and after it.
    """

    role: ClassVar[Role] = "baseline"

    mark: str = "*"

    def fit(self, task: Task, model: LanguageModel, seed: int) -> ShotProgram:
        """Nothing to fit.

        Raises:
            InputError: the task emphasises nothing.
        """
        need_emphasis(task)
        program = super().fit(task, model, seed)
        return replace(program, form=replace(program.form, marks=self.mark))


@register("method", "few_shot_marked")
@dataclass(frozen=True)
class FewShotMarked(FewShot):
    """Few-shot with marks around what few_shot_pasta would steer to.

    Attributes:
        emphasis: see `FewShotPasta`.
        mark: written before and after it.
    """

    role: ClassVar[Role] = "baseline"

    emphasis: str = "text"
    mark: str = "*"

    def fit(self, task: Task, model: LanguageModel, seed: int) -> ShotProgram:
        """Draw the shots with the seed."""
        asked = replace(task, emphasis=self.emphasis or task.emphasis)
        need_emphasis(asked)
        program = super().fit(asked, model, seed)
        return replace(program, form=replace(program.form, marks=self.mark))

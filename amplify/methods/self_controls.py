"""What must be ruled out before one may say that a model's own reasons helped it: the same shots, other reasons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from amplify.methods.base import Role
from amplify.methods.program import ShotProgram
from amplify.methods.prompt import shown_gold
from amplify.methods.self_amplify import SelfWords
from amplify.methods.self_attribution import citable
from amplify.methods.self_selection import SelfMethod
from amplify.models.base import LanguageModel
from amplify.rationales import random_words
from amplify.rationales.wording import verbalise
from amplify.registry import register
from amplify.text import input_text
from amplify.types import Attribution, Demonstration, Rationale

if TYPE_CHECKING:
    from amplify.tasks import Task


@register("method", "self_amplify_no_rationale")
@dataclass(frozen=True)
class SelfNoRationale(SelfMethod):
    """Self-AMPLIFY's shots, answers only: is it the selection that helps?"""

    role: ClassVar[Role] = "control"

    def fit(self, task: Task, model: LanguageModel, seed: int) -> ShotProgram:
        """The shared selection, nothing else."""
        notes = self.notes_on(task, model)
        chosen = self.chosen(task, model, seed)
        return ShotProgram(self.form(task), chosen.shots, (*notes, *chosen.notes), chosen.meta)


@register("method", "self_amplify_random_words")
@dataclass(frozen=True)
class SelfRandomWords(SelfWords):
    """Self-AMPLIFY with k random content words of the same input."""

    role: ClassVar[Role] = "control"

    @property
    def prompts_per_shot(self) -> int:
        """Nobody is asked."""
        return 0

    def rationales(
        self, task: Task, model: LanguageModel, shots: Sequence[Demonstration], seed: int
    ) -> tuple[list[Rationale | None], list[str]]:
        """Words drawn with the seed."""
        made: list[Rationale | None] = []
        for shot in shots:
            spans, text = citable(task, shot.example), input_text(shot.example)
            words = tuple(text[a:b] for a, b in spans)
            # every word counts alike
            even = Attribution(text, words, spans, (1.0,) * len(words), str(shot.example.label), method="random")
            drawn = random_words(even, self.k, seed)
            made.append(verbalise(drawn, even, self.template, label=shown_gold(shot.example)))
        return made, []

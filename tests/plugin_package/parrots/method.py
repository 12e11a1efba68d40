"""A method: the shortest examples as shots."""

from dataclasses import dataclass

import amplify
from amplify.methods import PromptMethod, ShotProgram
from amplify.types import Demonstration


@amplify.register("method", "short_shots")
@dataclass(frozen=True)
class ShortShots(PromptMethod):
    """The shortest labelled examples before the question.

    Attributes:
        shots: how many.
    """

    shots: int = 2

    def fit(self, task, model, seed):
        shortest = sorted(task.train, key=lambda example: (len(example.text), example.id))[: self.shots]
        return ShotProgram(self.form(task), tuple(map(Demonstration, shortest)), self.notes_on(task, model))

"""Few-shot with the training examples nearest to each input (Liu et al. 2022, arXiv 2101.06804)."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

from amplify.errors import InputError
from amplify.methods.base import PromptProgram, Rehearsal, Role
from amplify.methods.baselines import random_shots, shot_pool
from amplify.methods.program import answer_shots, as_example
from amplify.methods.prompt import Form, PromptMethod, check_options
from amplify.models.base import LanguageModel
from amplify.registry import register
from amplify.text import input_text
from amplify.types import Answer, Demonstration, Example, Prompt

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from amplify.tasks import Task


@register("method", "few_shot_knn")
@dataclass(frozen=True)
class FewShotNearest(PromptMethod):
    """For each input its nearest training examples by sentence embedding, the nearest last.

    Attributes:
        shots: how many.
        pool: how many training examples to choose among, drawn with the seed; 0 for all.
        embedder: model of the embeddings.
    """

    role: ClassVar[Role] = "baseline"

    shots: int = 8
    pool: int = 500
    embedder: str = "minilm"

    def fit(self, task: Task, model: LanguageModel, seed: int) -> NearestProgram:
        """Draw the pool.

        Raises:
            InputError: fewer examples than shots.
        """
        check_options(self)
        every = shot_pool(task)
        chosen = random.Random(seed).sample(every, min(self.pool or len(every), len(every)))
        if len(chosen) < self.shots:
            raise InputError(
                f"{self.shots} shots were asked for, but there are only {len(chosen)} examples to choose from"
            )
        pool = tuple(Demonstration(example) for example in chosen)
        return NearestProgram(self.form(task), pool, self.shots, self.embedder, self.notes_on(task, model))

    def rehearse(self, task: Task, model: LanguageModel, seed: int) -> Rehearsal:
        """With random shots: nothing is embedded."""
        return Rehearsal(random_shots(self, task, model, seed), "estimated: prompts with random shots")


@dataclass(frozen=True)
class NearestProgram(PromptProgram):
    """Other shots for every input. Needs the embedding model, and nothing else.

    Attributes:
        form: how prompts look.
        pool: what shots are chosen from.
        shots: how many.
        embedder: model of the embeddings.
        notes, meta: see `ShotProgram`.
    """

    kind: ClassVar[str] = "nearest"

    form: Form
    pool: tuple[Demonstration, ...]
    shots: int
    embedder: str
    notes: tuple[str, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)

    def prompt(self, example: Example | str) -> Prompt:
        """The prompt for an example or a plain text."""
        example = as_example(example)
        return self.form.prompt(example, self.nearest([example])[0])

    def answer(self, examples: Sequence[Example], model: LanguageModel) -> list[Answer]:
        """Find each input's shots, then ask; see `ShotProgram.answer`."""
        return answer_shots(self.form, examples, self.nearest(examples), model) if examples else []

    def nearest(self, examples: Sequence[Example]) -> list[list[Demonstration]]:
        """Each input's shots, the nearest last."""
        from amplify.retrieval import nearest, open_embedder

        keys = _embedded(self.embedder, tuple(input_text(shot.example) for shot in self.pool))
        queries = open_embedder(self.embedder).embed([input_text(example) for example in examples])
        return [[self.pool[i] for i in reversed(row)] for row in nearest(queries, keys, self.shots)]


@lru_cache(maxsize=4)
def _embedded(model: str, texts: tuple[str, ...]) -> npt.NDArray[np.float32]:
    from amplify.retrieval import open_embedder

    return open_embedder(model).embed(list(texts))

"""What Shapley values of documents must beat: the documents as they come, chance, and leaving each one out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from amplify.methods.base import Role
from amplify.methods.documents import Place, RagMethod, RagProgram
from amplify.models.base import LanguageModel, need_scoring
from amplify.registry import register

if TYPE_CHECKING:
    from amplify.tasks import Task


@register("method", "rag")
@dataclass(frozen=True)
class Rag(RagMethod):
    """Answer from the documents as they come, or as a retriever ranks them."""

    role: ClassVar[Role] = "baseline"
    seeded: ClassVar[bool] = False

    def fit(self, task: Task, model: LanguageModel, seed: int) -> RagProgram:
        """Nothing to fit."""
        return self.program(task, seed)


@register("method", "rag_rerank_random")
@dataclass(frozen=True)
class RagRerankRandom(RagMethod):
    """Answer from the documents in random order, the control of every re-ranking.

    Attributes:
        k: keep this many, 0 for all of them.
    """

    role: ClassVar[Role] = "control"

    k: int = 0

    def fit(self, task: Task, model: LanguageModel, seed: int) -> RagProgram:
        """Nothing to fit: the seed draws the order of each question's documents."""
        return self.program(task, seed, by="random", operation="rerank", k=self.k)


@register("method", "rag_loo")
@dataclass(frozen=True)
class RagLeaveOneOut(RagMethod):
    """Re-rank by what the answer's log-probability loses without each document, then answer again.

    Attributes:
        k: keep this many, 0 for all of them.
        best: whether the best document stands first or last.
    """

    role: ClassVar[Role] = "baseline"
    seeded: ClassVar[bool] = False

    k: int = 0
    best: Place = "first"

    def fit(self, task: Task, model: LanguageModel, seed: int) -> RagProgram:
        """Nothing to fit.

        Raises:
            CapabilityError: the model gives no log-probabilities.
        """
        need_scoring(model, self.name)
        return self.program(task, seed, by="loo", operation="rerank", k=self.k, best=self.best)

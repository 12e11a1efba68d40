"""TextGenSHAP in use (arXiv 2312.01279): explain the model's own answer, change the context, answer again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from amplify.errors import InputError
from amplify.methods.documents import Place, RagMethod, RagProgram
from amplify.models.base import LanguageModel, need_scoring
from amplify.registry import register

if TYPE_CHECKING:
    from amplify.tasks import Task


@dataclass(frozen=True)
class ShapleyMethod(RagMethod):
    """The options of the attribution.

    Attributes:
        budget: distinct prompts asked for each item.
        value: "logprob" of the model's own answer, or "votes" for it.
        index: "shapley" or "banzhaf".
    """

    budget: int = field(default=32, kw_only=True)
    value: Literal["logprob", "votes"] = field(default="logprob", kw_only=True)
    index: Literal["shapley", "banzhaf"] = field(default="shapley", kw_only=True)

    def explaining(self, task: Task, model: LanguageModel, seed: int, **more: Any) -> RagProgram:
        """The program, after a check that the model can play the game.

        Raises:
            CapabilityError: a log-probability game on a model that gives none.
            InputError: a budget below 2.
        """
        if self.value == "logprob":
            need_scoring(model, f"{self.name} with value='logprob'")
        if self.budget < 2:
            raise InputError(f"{self.name}: the budget is at least 2, got {self.budget}")
        notes = (*more.pop("notes", ()), "attributions that methods of a run share are made once: seconds count there")
        return self.program(
            task, seed, notes=notes, by="shapley", budget=self.budget, value=self.value, index=self.index, **more
        )


@register("method", "rag_rerank_shapley")
@dataclass(frozen=True)
class RagRerankShapley(ShapleyMethod):
    """Put the documents in the order of their Shapley values for the model's first answer, then answer again.

    Attributes:
        k: keep this many, 0 for all of them.
        best: whether the best document stands first or last.
    """

    k: int = 0
    best: Place = "first"

    def fit(self, task: Task, model: LanguageModel, seed: int) -> RagProgram:
        """Nothing to fit."""
        return self.explaining(task, model, seed, operation="rerank", k=self.k, best=self.best)


@register("method", "rag_prune_shapley")
@dataclass(frozen=True)
class RagPruneShapley(ShapleyMethod):
    """Take out documents that surely speak against the model's first answer, then answer again.

    Attributes:
        threshold: a document goes when the upper end of its 95 % interval is under this.
    """

    threshold: float = 0.0

    def fit(self, task: Task, model: LanguageModel, seed: int) -> RagProgram:
        """Nothing to fit."""
        return self.explaining(task, model, seed, operation="prune", threshold=self.threshold)


@register("method", "rag_distil_shapley")
@dataclass(frozen=True)
class RagDistilShapley(ShapleyMethod):
    """Keep the k documents of highest Shapley value, in their own order, then answer again.

    Attributes:
        k: how many stay.
    """

    k: int = 3

    def fit(self, task: Task, model: LanguageModel, seed: int) -> RagProgram:
        """Nothing to fit.

        Raises:
            InputError: k below 1.
        """
        if self.k < 1:
            raise InputError(f"{self.name}: k is the number of documents to keep, 1 or more, got {self.k}")
        return self.explaining(task, model, seed, operation="distil", k=self.k)


@register("method", "rag_highlight_pasta")
@dataclass(frozen=True)
class RagHighlightPasta(ShapleyMethod):
    """Steer attention to the sentences of highest Shapley value for the first answer, then answer again.

    Attributes:
        profile: PASTA's heads, by name or file; "" for the profile measured for this model. Where there is none, all
            heads are steered (InstABoost), and a note says so.
        sentences: how many are emphasised.
        bonus: what InstABoost adds to the attention logits of the emphasised words.
    """

    steers: ClassVar[bool] = True

    profile: str = ""
    sentences: int = 2
    bonus: float = 1.0

    def fit(self, task: Task, model: LanguageModel, seed: int) -> RagProgram:
        """Nothing to fit; one token is generated to find out that the model can steer as asked.

        Raises:
            CapabilityError: the model cannot steer.
            UnknownNameError: no such profile. InputError: it was measured on another model.
        """
        from amplify.methods.steered import find_profile
        from amplify.steering import Steering
        from amplify.types import Message, Prompt, Sampling, Span

        if self.sentences < 1:
            raise InputError(f"{self.name}: sentences is 1 or more, got {self.sentences}")
        notes: tuple[str, ...] = ()
        try:
            steering = find_profile(self.profile, model, task.name)
        except InputError:
            if self.profile:
                raise
            steering = Steering(mode="instaboost", bonus=self.bonus)
            notes = (f"no head profile was measured for this model: all heads are steered (bonus {self.bonus:g})",)
        probe = Prompt(messages=(Message("user", "Hello there"),), emphasis=(Span(0, 5, message=0),))
        model.generate([probe], Sampling(max_tokens=1), steering=steering)
        return self.explaining(
            task, model, seed, operation="highlight", sentences=self.sentences, steering=steering.to_dict(), notes=notes
        )

"""What the adapters share: score retrieved texts for the answer that a model gives to them, and keep some of them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from amplify import templates
from amplify.documents import Operation, keep
from amplify.errors import InputError, UnknownNameError
from amplify.methods.documents import RagProgram
from amplify.models.base import LanguageModel, need_scoring
from amplify.types import Example


@dataclass(frozen=True, slots=True)
class Kept:
    """A text that stays.

    Attributes:
        number: its place among those given.
        score: Shapley value for the model's own answer; None where it could not be scored.
        low, high: 95 % interval of the score.
    """

    number: int
    score: float | None = None
    low: float | None = None
    high: float | None = None


class Compression:
    """Re-ranks, prunes or distils texts. Threads may share it: models see to it themselves."""

    def __init__(
        self,
        model: LanguageModel | str,
        operation: Operation = "rerank",
        k: int = 0,
        threshold: float = 0.0,
        *,
        budget: int = 64,
        value: str = "logprob",
        index: str = "shapley",
        template: str = "default",
        layout: Literal["chat", "text"] = "chat",
        max_tokens: int = 24,
        seed: int = 0,
    ) -> None:
        """Choose what happens to the texts.

        Args:
            model: an open model, or the string that opens one (`amplify.load_model`) when it is first needed.
            operation, k, threshold: see `amplify.documents.keep`.
            budget, value, index, template, layout, max_tokens, seed: see `amplify.attribute_sources`.

        Raises:
            InputError: values that make no sense, before anything is asked.
        """
        keep(operation, [0.0], k=k)
        for kind, name, known in (
            ("value", value, ("logprob", "votes")),
            ("index", index, ("shapley", "banzhaf")),
            ("layout", layout, ("chat", "text")),
        ):
            if name not in known:
                raise UnknownNameError(kind, name, known)
        if budget < 2 or max_tokens < 1:
            raise InputError(f"budget is at least 2 and max_tokens at least 1, got {budget} and {max_tokens}")
        if not isinstance(model, str) and value == "logprob":
            need_scoring(model, "value='logprob'")
        self.spec = model if isinstance(model, str) else model.id
        self._model = None if isinstance(model, str) else model
        self._opening = threading.Lock()
        self._program = RagProgram(
            method="compression", template=templates.load("sources", template), layout=layout, by="shapley",
            operation=operation, k=k, threshold=threshold, budget=budget, value=value, index=index,
            max_tokens=max_tokens, seed=seed,
        )  # fmt: skip

    def open(self) -> LanguageModel:
        """The model, opened now if it was not."""
        with self._opening:
            if self._model is None:
                from amplify.models import load_model

                self._model = load_model(self.spec)
            return self._model

    def __call__(self, question: str, texts: Sequence[str], k: int | None = None) -> list[Kept]:
        """The texts that stay, in their new order.

        With fewer than two different texts there is nothing to compare, and where the model says nothing there is
        nothing to explain: then all stay as they are, without scores. Copies and empty texts have no score either: they
        come last in a new order, and are left out by "prune" and "distil".

        Args:
            question: what was searched for.
            texts: what was found.
            k: instead of the one given at first.

        Raises:
            ContextLengthError: the texts do not fit the model's window; retrieve fewer.
        """
        if not question.strip():
            raise InputError("the question is empty, so there is no answer to explain")
        unscored = [Kept(i) for i in range(len(texts))]
        if len({" ".join(text.split()) for text in texts} - {""}) < 2:
            return unscored
        example = Example("", question, fields={"documents": list(texts)})
        read = self._program.reading(example, self.open())
        if read.values is None or read.result is None:
            return unscored
        operation, most = self._program.operation, self._program.k if k is None else k
        chosen = keep(operation, read.values, read.high, k=most, threshold=self._program.threshold)  # type: ignore[arg-type]
        found = read.result.documents
        kept = [
            Kept(read.numbers[i], float(found.scores[i]), float(found.low[i]), float(found.high[i])) for i in chosen
        ]
        if operation == "rerank" and not most:
            kept += [Kept(i) for i in range(len(texts)) if i not in read.numbers]
        return kept

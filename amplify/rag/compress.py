"""What the adapters share: one model for all that name it, texts re-ranked or pruned, answers with citations."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from amplify.errors import EmptyAnswerError, InputError
from amplify.models import load_model, need_scoring
from amplify.models.base import LanguageModel
from amplify.sources.attribute import attribute_sources
from amplify.sources.importance import SourceImportance
from amplify.sources.keeping import Operation, keep
from amplify.sources.options import Options, options
from amplify.sources.result import SourceAttribution

STOP, LONGEST = ("\n",), 64  # what a re-ranker explains is one line of the model's own


class Handle:
    """A model that an adapter holds: one that is open, or an id. Those who name one id share the model it opens.

    Copies hold the same model. Saved (pickled) it is the id alone. `close` lets go of a model that an id opened, which
    is closed when nobody holds it any more; one that was given open stays open.

    Attributes:
        id: the string that opens it.
    """

    _guard: ClassVar[Any] = threading.RLock()
    _open: ClassVar[dict[str, tuple[LanguageModel, set[int]]]] = {}

    def __init__(self, model: LanguageModel | str | Handle) -> None:
        given = model.given if isinstance(model, Handle) else model
        if isinstance(given, str):
            kind, colon, rest = given.partition(":")
            if not colon or not rest:
                raise InputError(f"a model is written KIND:MODEL, e.g. transformers:smollm2-135m, got {given!r}")
            from amplify.models import MODELS

            MODELS.find(kind)
        elif not isinstance(given, LanguageModel):
            raise InputError(f"model is an open model, or the id that opens one, not {given!r}")
        self.given: LanguageModel | str = given
        self.id = given if isinstance(given, str) else given.id

    def open(self) -> LanguageModel:
        """The model, opened now if it was not."""
        if not isinstance(self.given, str):
            return self.given
        with self._guard:
            if self.id not in self._open:
                self._open[self.id] = (load_model(self.id), set())
            model, holders = self._open[self.id]
            holders.add(id(self))
            return model

    def close(self) -> None:
        """Let go of the model; twice is fine."""
        with self._guard:
            model, holders = self._open.get(self.id, (None, set()))
            if isinstance(self.given, str) and id(self) in holders:
                holders.discard(id(self))
                if not holders and model is not None:
                    del self._open[self.id]
                    model.close()

    def __del__(self) -> None:
        if isinstance(getattr(self, "given", None), str):
            self.close()

    def __copy__(self) -> Handle:
        return Handle(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Handle:
        return Handle(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return Handle, (self.id,)


@dataclass(frozen=True, slots=True)
class ScoredDocument:
    """A text that stays.

    Attributes:
        number: its place among those given.
        score: Shapley value for the model's own answer; None where it could not be scored.
        low, high: 95 % interval of the score.
        share: of what all texts together do to the answer.

    Example:
        >>> ScoredDocument(2, 4.0, 3.5, 4.5, 0.8).number
        2
    """

    number: int
    score: float | None = None
    low: float | None = None
    high: float | None = None
    share: float | None = None


class DocumentCompressor:
    """Re-ranks, prunes or distils texts. Threads may share it: models see to it themselves.

    Args:
        model: an open model, the string that opens one (`amplify.load_model`) when it is first needed, or a `Handle`.
        operation, k, threshold: see `sources.keeping.keep`; whatever the operation, no more than `k` texts come back
            unless it is 0.
        **more: options of `amplify.attribute_sources`: budget, value, index, seed, prompt, max_tokens and so on.
            Unless given, answers end with their line, after 64 tokens at most, and whole texts are scored. And
            `importance`: an `amplify.SourceImportance`, or its file; what it says harms is not read at all.

    Raises:
        InputError, UnknownNameError: values that make no sense, before anything is asked.
        CapabilityError: an open model without the log-probabilities that are asked for.

    Example:
        >>> from amplify.models.scripted import ScriptedModel
        >>> says = lambda text, said: -0.1 if "in Rome" in text else -5.0
        >>> compress = DocumentCompressor(ScriptedModel("say=Rome", logprob=says), "distil", k=1)
        >>> [kept.number for kept in compress("Where is it?", ["Bees fly far.", "It is in Rome."])]
        [1]
    """

    def __init__(
        self,
        model: LanguageModel | str | Handle,
        operation: Operation = "rerank",
        k: int = 0,
        threshold: float = 0.0,
        **more: Any,
    ) -> None:
        if operation == "distil" and k < 1:
            raise InputError(f"operation='distil' needs how many texts to keep (top_n, top_k), 1 or more, got {k}")
        keep(operation, [0.0], k=k)
        self.model = model if isinstance(model, Handle) else Handle(model)
        self.operation, self.k, self.threshold = operation, k, threshold
        self.prompt = more.pop("prompt", "default")
        given = more.pop("importance", None)
        self.importance = SourceImportance.load(given) if isinstance(given, str | Path) else given
        if not isinstance(self.importance, SourceImportance | None):
            raise InputError(f"importance is an amplify.SourceImportance, or its file, not {given!r}")
        self.options = checked({"stop": STOP, "max_tokens": LONGEST, "granularity": "documents", **more})
        if not isinstance(self.model.given, str) and self.options.get("value", "logprob") == "logprob":
            need_scoring(self.model.given, "value='logprob'")

    def __call__(
        self, question: str, texts: Sequence[str], k: int | None = None, documents: Sequence[Any] | None = None
    ) -> list[ScoredDocument]:
        """The texts that stay, in their new order.

        With fewer than two different texts there is nothing to compare, and where the model says nothing there is
        nothing to explain: then the first `k` stay as they are, without scores. Copies and empty texts have no score
        either: they come last in a new order, and are left out by "prune" and "distil".

        Args:
            question: what was searched for.
            texts: what was found.
            k: instead of the one given at first.
            documents: what the texts are of, in the host's own form: by these `importance` knows them.

        Raises:
            ContextLengthError: the texts do not fit the model's window; retrieve fewer.
        """
        if self.importance is not None and documents is not None:
            read = [i for i, document in enumerate(documents) if self.importance.keeps(document)]
            read = read or [0]  # where all harm: the one that was retrieved first
            kept = self._kept(question, [texts[i] for i in read], k) if texts else []
            return [replace(each, number=read[each.number]) for each in kept]
        return self._kept(question, texts, k)

    def _kept(self, question: str, texts: Sequence[str], k: int | None) -> list[ScoredDocument]:
        if not question.strip():
            raise InputError("the question is empty, so there is no answer to explain")
        most = self.k if k is None else k
        if self.operation == "distil" and most < 1:
            raise InputError(f"operation='distil' needs how many texts to keep (top_n, top_k), 1 or more, got {most}")
        unscored = [ScoredDocument(i) for i in range(len(texts))]
        found = self._scored(question, texts)
        if found is None:
            return unscored[: most or None]
        level = found.documents
        high = [float(x) for x in level.high]
        chosen = keep(self.operation, level.scores.tolist(), high, k=most, threshold=self.threshold)
        if self.operation == "prune" and most:
            best = sorted(chosen, key=lambda i: -level.scores[i])[:most]
            chosen = [i for i in chosen if i in best]
        gain = abs(float(found.values[1, found.column] - found.values[0, found.column])) or 1.0
        kept = [
            ScoredDocument(
                level.sources[i].document,
                float(level.scores[i]),
                float(level.low[i]),
                high[i],
                float(level.scores[i]) / gain,
            )
            for i in chosen
        ]
        if self.operation == "rerank":
            scored = {source.document for source in level.sources}
            kept += [each for each in unscored if each.number not in scored]
        return kept[: most or None]

    def _scored(self, question: str, texts: Sequence[str]) -> SourceAttribution | None:
        if len({" ".join(text.split()) for text in texts} - {""}) < 2:
            return None
        model = self.model.open()
        try:
            found = attribute_sources(question, texts, model, prompt=self.prompt, **self.options)
        except EmptyAnswerError:
            return None
        whole = {s.document for s in found.documents.sources}
        return found if len(whole) > 1 else None


class Citer:
    """Explains answers that a pipeline has given, from the pipeline's own messages or documents.

    Args:
        model: who is asked how likely the answer is: the pipeline's own model, or one that reads as it does.
        **more: options of `amplify.attribute_sources`.

    Raises:
        InputError, UnknownNameError: values that make no sense, before anything is asked.

    Example:
        >>> from amplify.models.scripted import ScriptedModel
        >>> cite = Citer(ScriptedModel(logprob=lambda text, said: -0.1 if "in Rome" in text else -5.0))
        >>> found = cite("Rome.", ["Bees fly far.", "It is in Rome."], question="Where is it?")
        >>> [(c.source, c.text) for c in found.citations]
        [(1, 'It is in Rome.')]
    """

    def __init__(self, model: LanguageModel | str | Handle, **more: Any) -> None:
        self.model = model if isinstance(model, Handle) else Handle(model)
        self.prompt = more.pop("prompt", "default")
        self.options = checked({"granularity": "sentences", **more})

    def __call__(
        self,
        answer: str,
        documents: Sequence[Any],
        *,
        question: str | None = None,
        messages: Sequence[Any] | None = None,
        prompt: Any = None,
    ) -> SourceAttribution:
        """The attribution of an answer.

        Args:
            answer: what the pipeline said.
            documents: what it had retrieved, in the host's own form.
            question: what was asked; with `documents` alone a prompt is made of both (`prompt`).
            messages: what the pipeline's model read; the documents are found in them.
            prompt: see `amplify.attribute_sources`; instead of the one given at first.
        """
        model = self.model.open()
        if messages is not None:
            return attribute_sources(None, documents, model, answer, messages=messages, **self.options)
        chosen = self.prompt if prompt is None else prompt
        return attribute_sources(question, documents, model, answer, prompt=chosen, **self.options)


def checked(given: Mapping[str, Any]) -> dict[str, Any]:
    """Options by name, as they were given, after a check that they make sense.

    Raises:
        UnknownNameError: no such option. InputError: values that make no sense.
    """
    made: Options = options(given)
    return {name: getattr(made, name) for name in given}

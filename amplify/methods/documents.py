"""Answering from retrieved documents, before and after they were scored: the program behind every `rag` method."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from amplify import templates
from amplify.documents import Operation, keep
from amplify.errors import InputError
from amplify.methods.base import Method, Program
from amplify.methods.parse import parse_text
from amplify.methods.reading import Reading, attribution, is_title, leave_one_out, texts
from amplify.models.base import LanguageModel, need_scoring
from amplify.retrieval import RETRIEVERS, open_retriever
from amplify.templates import Template
from amplify.types import Answer, Completion, Example, Prompt, Sampling, Sources

if TYPE_CHECKING:
    from amplify.sources.context import Part
    from amplify.tasks import Task

Layout = Literal["auto", "chat", "text"]
By = Literal["given", "shapley", "loo", "random"]
Place = Literal["first", "last"]
STOP = ("\n",)  # an answer is one line


@dataclass(frozen=True)
class RagMethod(Method):
    """The options that every method with documents has. An example brings them in `fields["documents"]`.

    Attributes:
        search: order the documents by a retriever first ("minilm", "bm25", or one that is registered), or take them as
            they come ("none").
        documents: how many of them are read, 0 for all.
        template: NAME of `prompts/sources_NAME.jinja`, or a path to a .jinja file.
        layout: "chat", "text" (for base models), or "auto": what the task asks for, else chat.
        max_tokens: of an answer.
    """

    search: str = field(default="none", kw_only=True)
    documents: int = field(default=0, kw_only=True)
    template: str = field(default="default", kw_only=True)
    layout: Layout = field(default="auto", kw_only=True)
    max_tokens: int = field(default=24, kw_only=True)

    def program(self, task: Task, seed: int, **more: Any) -> RagProgram:
        """The program of this method on a task.

        Raises:
            InputError: the task's items bring no documents, or a number of documents or tokens that makes no sense.
        """
        if not task.test[0].fields.get("documents"):
            raise InputError(
                f"{self.name} answers from documents, and the items of {task.name!r} bring none. Tasks that do: "
                "hotpotqa, nq_open, nq_open_hard, lost_in_the_middle/…, miracl/…"
            )
        if self.search != "none":
            RETRIEVERS.find(self.search, "Or 'none', to take the documents as they come.")
        if self.documents < 0 or self.max_tokens < 1:
            raise InputError(f"{self.name}: documents is 0 or more and max_tokens 1 or more")
        layout = ("text" if task.layout == "text" else "chat") if self.layout == "auto" else self.layout
        notes: tuple[str, ...] = more.pop("notes", ())
        if self.mode == "score":
            notes += ("answers from documents are generated, never scored",)
        return RagProgram(
            method=self.label,
            template=templates.load("sources", self.template),
            layout=layout,
            search=self.search,
            documents=self.documents,
            max_tokens=self.max_tokens,
            seed=seed,
            notes=notes,
            **more,
        )


@dataclass(frozen=True)
class RagProgram(Program):
    """Read the documents, answer; where it says so, explain that answer, change the documents, and answer again.

    What is explained is always the answer that the model itself gave to all documents, never the gold answer.

    Attributes:
        method: name in records and errors.
        template: of a question with its documents, by value.
        layout, search, documents, max_tokens: see `RagMethod`.
        seed: of samples and random orders.
        by: what scores the documents: nothing ("given"), Shapley values, leaving each one out, or chance.
        use: what becomes of them: "all" stay as they are; see `keep` for the others; "highlight" emphasises the
            `sentences` highest sentences for attention steering.
        k, threshold: see `keep`.
        best: whether a re-ranked context has its best document first or last.
        budget, value, index: of the attribution, see `attribute_sources`.
        sentences: how many sentences "highlight" emphasises.
        steering: of "highlight", as JSON values.
        notes: what a reader of the results must know.
    """

    kind: ClassVar[str] = "rag"

    method: str
    template: Template
    layout: Literal["chat", "text"] = "chat"
    search: str = "none"
    documents: int = 0
    max_tokens: int = 24
    seed: int = 0
    by: By = "given"
    operation: Operation | Literal["all", "highlight"] = "all"
    k: int = 0
    threshold: float = 0.0
    best: Place = "first"
    budget: int = 32
    value: str = "logprob"
    index: str = "shapley"
    sentences: int = 2
    steering: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def answer(self, examples: Sequence[Example], model: LanguageModel) -> list[Answer]:
        """Answer a batch. Answers are generated together, attributions made one after the other.

        Raises:
            ContextLengthError: a question's documents do not fit the window; raised before any work.
            CapabilityError: the model cannot score or steer as the method needs.
        """
        if not examples:
            return []
        if self.by == "loo" or (self.by == "shapley" and self.value == "logprob"):
            need_scoring(model, self.method)
        read = [self._read(example, model) for example in examples]
        sampling = Sampling(max_tokens=self.max_tokens, stop=STOP)
        if self.by not in ("shapley", "loo"):
            read = [self._reordered(r) for r in read]
            prompts = [r.context.prompt(r.context.everything()) for r in read]
            done = model.generate(prompts, sampling)
            return [self._answer(r, p, (), c) for r, p, c in zip(read, prompts, done, strict=True)]
        first = [r.context.prompt(r.context.everything()) for r in read]
        said = model.generate(first, sampling)
        scored = [self._scored(r, completion, model) for r, completion in zip(read, said, strict=True)]
        second = [self._second(r) for r in scored]
        changed = [i for i, prompt in enumerate(second) if prompt != first[i]]
        steering = None
        if self.steering:
            from amplify.steering import Steering

            steering = Steering.from_dict(self.steering)
        again = model.generate([second[i] for i in changed], sampling, steering=steering) if changed else []
        final = dict(zip(changed, again, strict=True))
        return [
            self._answer(r, second[i], (said[i],) if i in final else (), final.get(i, said[i]))
            for i, r in enumerate(scored)
        ]

    def reading(self, example: Example, model: LanguageModel) -> Reading:
        """The example with its documents scored for the model's own answer, before the second answer is asked for.

        Raises:
            ContextLengthError: the documents do not fit the window.
        """
        read = self._read(example, model)
        sampling = Sampling(max_tokens=self.max_tokens, stop=STOP)
        [said] = model.generate([read.context.prompt(read.context.everything())], sampling)
        return self._scored(read, said, model)

    def _read(self, example: Example, model: LanguageModel) -> Reading:
        """The example's documents as the prompt will have them, checked against the window."""
        from amplify.sources.context import check_window, harmless, special_tokens
        from amplify.sources.frames import asking

        every = texts(example)
        seen: set[str] = set()
        usable = []
        for i, text in enumerate(every):  # an empty document or a copy has no score of its own
            if (bare := " ".join(text.split())) and bare not in seen:
                usable.append(i)
                seen.add(bare)
        if not usable:
            raise InputError(f"example {example.id!r} has no document with any text")
        scores: tuple[float | None, ...] = ()
        if self.search != "none":
            hits = open_retriever(self.search, [every[i] for i in usable]).search(example.text, len(usable))
            found = {usable[hit.document]: hit.score for hit in hits}
            usable, scores = list(found), tuple(found.get(i) for i in range(len(every)))
        numbers = tuple(usable[: self.documents or None])
        structure = special_tokens(model)
        shown = [harmless(every[i], structure) for i in numbers]
        context = asking(harmless(example.text, structure), shown, self.template, self.layout)
        check_window(context, model, self.max_tokens, "an answer")
        return Reading(example, tuple(every), numbers, context, Sources(tuple(usable), numbers, scores))

    def _reordered(self, read: Reading) -> Reading:
        """In random order where chance decides; the same for a question whatever else is in the batch."""
        if self.by != "random":
            return read
        numbers = list(read.numbers)
        random.Random(f"random order:{self.seed}:{read.example.text}").shuffle(numbers)
        rest = [i for i in read.sources.ranking if i not in numbers]
        shown = tuple(numbers[: self.k or None])
        return replace(
            read,
            context=read.only([read.numbers.index(i) for i in shown]),
            sources=Sources((*numbers, *rest), shown),
        )

    def _scored(self, read: Reading, said: Completion, model: LanguageModel) -> Reading:
        """With scores of the documents for what the model said."""
        if not said.text.strip() or len(read.numbers) < 2:
            return read
        if self.by == "loo":
            return leave_one_out(read, said.text, model)
        granularity = "sentences" if self.operation == "highlight" else "documents"
        result, spent = attribution(
            model, read, said.text,
            {
                "value": self.value, "index": self.index, "budget": self.budget, "granularity": granularity,
                "seed": self.seed, "layout": self.layout, "max_tokens": self.max_tokens, "stop": STOP,
            },
        )  # fmt: skip
        own = [[c.source for c in result.citations if c.claim == k] for k in range(len(result.claims))]
        cited = tuple(tuple(read.numbers[i] for i in sources) for sources in own)
        return replace(
            read, result=result, spent=spent, values=result.documents.scores.tolist(),
            high=result.documents.high.tolist(), sources=read.ranked(result.documents.scores.tolist(), cited),
        )  # fmt: skip

    def _second(self, read: Reading) -> Prompt:
        """The prompt after the documents were scored; as it was where they could not be. Notes what is shown."""
        if read.values is None:
            return read.context.prompt(read.context.everything())
        if self.operation == "highlight":
            return read.context.marked(self._best_sentences(read))
        context = read.only(self._kept(read))
        return context.prompt(context.everything())

    def _kept(self, read: Reading) -> list[int]:
        """Which scored documents the second prompt shows, in its order."""
        assert read.values is not None
        kept = keep(self.operation, read.values, read.high, k=self.k, threshold=self.threshold)  # type: ignore[arg-type]
        return kept[::-1] if self.operation == "rerank" and self.best == "last" else kept

    def _best_sentences(self, read: Reading) -> list[Part]:
        """What "highlight" emphasises; the best document where the budget scored no sentence inside one."""
        assert read.result is not None
        level = read.result.sentences
        numbers = sorted(range(len(level)), key=lambda i: -level.scores[i]) if level is not None else []
        best = [level.sources[i] for i in numbers] if level is not None else []
        own = [s for s in best if not is_title(read.example, read.numbers[s.document], s.start)]
        return (own or best)[: self.sentences] or [read.context.sources[read.result.ranking()[0]]]

    def _answer(self, read: Reading, prompt: Prompt, before: Sequence[Completion], last: Completion) -> Answer:
        sources = read.sources
        if read.values is not None and self.operation in ("rerank", "prune", "distil"):
            sources = replace(sources, shown=tuple(read.numbers[i] for i in self._kept(read)))
        written = [*before, last]
        return Answer(
            value=parse_text(last.text),
            text=last.text,
            prompt_tokens=sum(c.prompt_tokens for c in written) + read.spent.prompt_tokens,
            completion_tokens=sum(c.completion_tokens for c in written) + read.spent.completion_tokens,
            calls=len(written) + read.spent.calls,
            prompt=prompt,
            sources=sources,
        )

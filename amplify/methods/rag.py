"""Answering from retrieved documents; TextGenSHAP in use (arXiv 2312.01279): explain the answer, change the context.

One program behind every `rag` method: read the documents, answer; where it says so, explain that answer, change the
documents, and answer again.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal
from weakref import WeakKeyDictionary

import numpy as np

from amplify import templates
from amplify.errors import InputError
from amplify.methods.base import Method, Preset, Program, Rehearsal
from amplify.methods.parse import parse_text
from amplify.methods.pasta import find_profile
from amplify.metrics import normalize
from amplify.models.base import LanguageModel, Usage, need_scoring, sharing
from amplify.registry import register
from amplify.retrieval import RETRIEVERS, open_retriever
from amplify.sources.claims import MEMORY
from amplify.sources.keeping import Operation, keep
from amplify.steering import Steering
from amplify.templates import Template
from amplify.types import Answer, Completion, Example, Message, Prompt, Sampling, Sources, Span

if TYPE_CHECKING:
    from amplify.sources.context import Context, Part
    from amplify.sources.result import SourceAttribution
    from amplify.tasks import Task

Layout = Literal["auto", "chat", "text"]
By = Literal["given", "shapley", "loo", "random"]
Change = Operation | Literal["all", "highlight", "loop", "suffice"]
Place = Literal["first", "last"]
STOP = ("\n",)  # an answer is one line


@dataclass(frozen=True)
class Rag(Method):
    """Answer from documents, which an example brings in `fields["documents"]`.

    Attributes:
        search: order the documents by a retriever first ("minilm", "bm25", or one that is registered), or take them as
            they come ("none").
        documents: how many of them are read, 0 for all.
        template: NAME of `prompts/sources_NAME.jinja`, or a path to a .jinja file.
        layout: "chat", "text" (for base models), or "auto": what the task asks for, else chat.
        max_tokens: of an answer.
        budget: distinct prompts that an attribution may ask for each item.
        value: "logprob" of the model's own answer, or "votes" for it.
        index: "shapley" or "banzhaf".
        k: keep this many documents; 0 for all of them.
        best: whether the best document of a re-ranked context stands first or last.
        threshold: a document is pruned when the upper end of its 95 % interval is under this.
        profile: PASTA's heads, by name or file; "" for the profile measured for this model. Where there is none, all
            heads are steered (InstABoost), and a note says so.
        sentences: how many are emphasised.
        bonus: what InstABoost adds to the attention logits of the emphasised words.
        by: what scores the documents: nothing ("given"), Shapley values, leaving each one out ("loo"), or chance.
        operation: what becomes of them: "all" stay; for "rerank", "prune" and "distil" see `sources.keeping.keep`;
            "highlight" steers attention to the sentences of highest score; "loop" to those of largest effect, for or
            against, and returns the first answer where the second one does not rest on them; "suffice" keeps the fewest
            of highest score with which the model says the same, `k` at most (0: half of them), else all.

    Example:
        >>> amplify.methods.Rag(documents=5).label
        'rag[documents=5]'
    """

    reads_documents: ClassVar[bool] = True

    search: str = field(default="none", kw_only=True)
    documents: int = field(default=0, kw_only=True)
    template: str = field(default="default", kw_only=True)
    layout: Layout = field(default="auto", kw_only=True)
    max_tokens: int = field(default=24, kw_only=True)
    budget: int = field(default=32, kw_only=True)
    value: Literal["logprob", "votes"] = field(default="logprob", kw_only=True)
    index: Literal["shapley", "banzhaf"] = field(default="shapley", kw_only=True)
    k: int = 0
    best: Place = "first"
    threshold: float = 0.0
    profile: str = ""
    sentences: int = 2
    bonus: float = 1.0
    least: float = MEMORY
    by: By = field(default="given", kw_only=True)
    operation: Change = field(default="all", kw_only=True)

    def fit(self, task: Task, model: LanguageModel, seed: int) -> RagProgram:
        """Nothing to fit; to highlight, one token is generated to find out that the model can steer as asked.

        Raises:
            InputError: the task's items bring no documents, or a number that makes no sense.
            CapabilityError: a model that gives no log-probabilities where they are needed, or that cannot steer.
            UnknownNameError: no such profile or retriever.
        """
        if self.by == "loo":
            need_scoring(model, self.name)
        if self.operation == "distil" and self.k < 1:
            raise InputError(f"{self.name}: k is the number of documents to keep, 1 or more, got {self.k}")
        steers = self.operation in ("highlight", "loop")
        if self.operation == "loop":
            from amplify.sources.loop import check

            check(self.sentences, self.least)
            need_scoring(model, self.name)
        steering, notes = self._steering(task, model) if steers else (None, ())
        if self.by == "shapley":
            if self.value == "logprob":
                need_scoring(model, f"{self.name} with value='logprob'")
            if self.budget < 2:
                raise InputError(f"{self.name}: the budget is at least 2, got {self.budget}")
            notes += ("attributions that methods of a run share are made once: seconds count there",)
        if not task.test[0].fields.get("documents"):
            raise InputError(
                f"{self.name} answers from documents, and the items of {task.name!r} bring none. Tasks that do: "
                "hotpotqa, nq_open, nq_open_hard, lost_in_the_middle/…, miracl/…"
            )
        if self.search != "none":
            RETRIEVERS.find(self.search, "Or 'none', to take the documents as they come.")
        if self.documents < 0 or self.max_tokens < 1:
            raise InputError(f"{self.name}: documents is 0 or more and max_tokens 1 or more")
        if self.mode == "score":
            notes += ("answers from documents are generated, never scored",)
        return RagProgram(
            method=self.label,
            template=templates.load("sources", self.template),
            layout=("text" if task.layout == "text" else "chat") if self.layout == "auto" else self.layout,
            search=self.search,
            documents=self.documents,
            max_tokens=self.max_tokens,
            seed=seed,
            by=self.by,
            operation=self.operation,
            k=self.k,
            threshold=self.threshold,
            best=self.best,
            budget=self.budget,
            value=self.value,
            index=self.index,
            sentences=self.sentences,
            least=self.least,
            steering=steering.to_dict() if steering else {},
            notes=notes,
        )

    def rehearse(self, task: Task, model: LanguageModel, seed: int) -> Rehearsal:
        """With documents as they come, and half of them in every prompt of an attribution: nothing is attributed."""
        program = self.fit(task, model, seed)
        told = [
            *(["documents as they come, not as a retriever ranks them"] if self.search != "none" else []),
            *(["half of the documents in each prompt of an attribution"] if self.by == "shapley" else []),
            *(["the first trial suffices"] if self.operation == "suffice" else []),
        ]
        note = f"estimated: {'; '.join(told)}" if told else ""
        return Rehearsal(RehearsedRag(**{**vars(program), "search": "none"}), note)

    def _steering(self, task: Task, model: LanguageModel) -> tuple[Steering, tuple[str, ...]]:
        """Heads and strength of "highlight", tried; and a note where they are all heads."""
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
        return steering, notes


def _variant(name: str, about: str, by: By, operation: Change, *options: str, **more: Any) -> None:
    """Register a variant that has these options beside those of documents and prompts."""
    every = ("budget", "value", "index", "k", "best", "threshold", "profile", "sentences", "bonus", "least")
    fixed, without = {"by": by, "operation": operation}, tuple(o for o in every if o not in options)
    register("method", name, Preset(Rag, about, fixed=fixed, without=without, **more))


_GAME = ("budget", "value", "index")
_variant(
    "rag", "Answer from the documents as they come, or as a retriever ranks them.",
    "given", "all", role="baseline", seeded=False,
)  # fmt: skip
_variant(
    "rag_rerank_random", "Answer from the documents in random order, the control of every re-ranking.",
    "random", "rerank", "k", role="control",
)  # fmt: skip
_variant(
    "rag_loo", "Re-rank by what the answer's log-probability loses without each document, then answer again.",
    "loo", "rerank", "k", "best", role="baseline", seeded=False,
)  # fmt: skip
_variant(
    "rag_rerank_shapley",
    "Put the documents in the order of their Shapley values for the model's first answer, then answer again.",
    "shapley", "rerank", *_GAME, "k", "best",
)  # fmt: skip
_variant(
    "rag_prune_shapley",
    "Take out documents that surely speak against the model's first answer, then answer again.",
    "shapley", "prune", *_GAME, "threshold",
)  # fmt: skip
_variant(
    "rag_distil_shapley",
    "Keep the k documents of highest Shapley value, in their own order, then answer again.",
    "shapley", "distil", *_GAME, "k", defaults={"k": 3},
)  # fmt: skip
_variant(
    "rag_suffice_shapley",
    "Keep the fewest documents of highest Shapley value with which the model still gives its answer, k at most (0: "
    "half of them); all of them where so few do not suffice.",
    "shapley", "suffice", *_GAME, "k",
)  # fmt: skip
_variant(
    "rag_highlight_pasta",
    "Steer attention to the sentences of highest Shapley value for the first answer, then answer again.",
    "shapley", "highlight", *_GAME, "profile", "sentences", "bonus", steers=True,
)  # fmt: skip
_variant(
    "rag_loop",
    "Steer attention to the sentences that the first answer depends on, answer again, and return that answer where "
    "Shapley values say that it rests on them, else the first.",
    "shapley", "loop", "budget", "index", "profile", "sentences", "bonus", "least", steers=True,
    defaults={"bonus": 2.0},
)  # fmt: skip
_variant(
    "rag_loop_random",
    "The loop with sentences drawn by chance, the control of what chooses them.",
    "random", "loop", "profile", "sentences", "bonus", "least", steers=True, role="control",
    defaults={"bonus": 2.0},
)  # fmt: skip


@dataclass(frozen=True)
class RagProgram(Program):
    """Read the documents, answer; where it says so, explain that answer, change the documents, and answer again.

    What is explained is always the answer that the model itself gave to all documents, never the gold answer.

    Attributes:
        method: name in records and errors.
        template: of a question with its documents, by value.
        layout, search, documents, max_tokens: see `Rag`.
        seed: of samples and random orders.
        by: what scores the documents: nothing ("given"), Shapley values, leaving each one out, or chance.
        operation: what becomes of them, see `Rag`.
        k, threshold: see `keep`.
        best: whether a re-ranked context has its best document first or last.
        budget, value, index: of the attribution, see `attribute_sources`.
        sentences: how many sentences "highlight" and "loop" emphasise.
        least: see `Rag`.
        steering: of "highlight" and "loop", as JSON values.
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
    operation: Change = "all"
    k: int = 0
    threshold: float = 0.0
    best: Place = "first"
    budget: int = 32
    value: str = "logprob"
    index: str = "shapley"
    sentences: int = 2
    least: float = MEMORY
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
        if self.operation == "loop":
            with sharing(model):
                return self._looped(read, model, sampling)
        if self.by not in ("shapley", "loo"):
            read = [self._reordered(r) for r in read]
            prompts = [r.context.prompt(r.context.everything()) for r in read]
            done = model.generate(prompts, sampling)
            return [self._answer(r, p, (), c) for r, p, c in zip(read, prompts, done, strict=True)]
        first = [r.context.prompt(r.context.everything()) for r in read]
        said = model.generate(first, sampling)
        scored = [self._scored(r, completion, model) for r, completion in zip(read, said, strict=True)]
        if self.operation == "suffice":
            return self._sufficing(scored, said, model, sampling)
        second = [self._second(r) for r in scored]
        changed = [i for i, prompt in enumerate(second) if prompt != first[i]]
        steering = None
        if self.steering:
            steering = Steering.from_dict(self.steering)
        again = model.generate([second[i] for i in changed], sampling, steering=steering) if changed else []
        final = dict(zip(changed, again, strict=True))
        return [
            self._answer(r, second[i], (said[i],) if i in final else (), final.get(i, said[i]))
            for i, r in enumerate(scored)
        ]

    def _sufficing(
        self, read: Sequence[Reading], said: Sequence[Completion], model: LanguageModel, sampling: Sampling
    ) -> list[Answer]:
        """The fewest documents with which each example's answer stays, asked with one more until it does."""
        whole = [r.context.prompt(r.context.everything()) for r in read]
        answers = [self._answer(r, p, (), c) for r, p, c in zip(read, whole, said, strict=True)]
        most = [(self.k or len(r.numbers) // 2) if r.values else 0 for r in read]
        tried: list[list[Completion]] = [[] for _ in read]
        left = list(range(len(read)))
        for k in range(1, max(most) + 1):
            left = [i for i in left if k <= most[i] and k < len(read[i].numbers)]
            kept = {i: keep("distil", read[i].values or (), k=k) for i in left}
            prompts = {i: (c := read[i].only(kept[i])).prompt(c.everything()) for i in left}
            for i, done in zip(left, model.generate(list(prompts.values()), sampling) if left else (), strict=True):
                same = normalize(done.text) == normalize(said[i].text)
                shown = kept[i] if same else range(len(read[i].numbers))
                sources = replace(read[i].sources, shown=tuple(read[i].numbers[d] for d in shown))
                before, last = ([said[i], *tried[i]], done) if same else ([*tried[i], done], said[i])
                answers[i] = self._answer(
                    replace(read[i], sources=sources), prompts[i] if same else whole[i], before, last
                )
                tried[i].append(done)
            left = [i for i in left if normalize(tried[i][-1].text) != normalize(said[i].text)]
        return answers

    def _looped(self, read: Sequence[Reading], model: LanguageModel, sampling: Sampling) -> list[Answer]:
        """The first answers, the steered ones, and which of the two each example gets."""
        from amplify.sources.loop import judged

        whole = [r.context.prompt(r.context.everything()) for r in read]
        said = model.generate(whole, sampling)
        if self.by == "shapley":
            read = [self._scored(r, completion, model) for r, completion in zip(read, said, strict=True)]
        marked = [self._telling(r) if c.text.strip() else () for r, c in zip(read, said, strict=True)]
        turned = [i for i, parts in enumerate(marked) if parts]
        prompts = [read[i].context.marked(marked[i]) for i in turned]
        steered = model.generate(prompts, sampling, steering=Steering.from_dict(self.steering)) if turned else []
        answers = [self._answer(r, p, (), c) for r, p, c in zip(read, whole, said, strict=True)]
        for i, prompt, second in zip(turned, prompts, steered, strict=True):
            before = model.usage.mine
            loop = judged(read[i].context, model, said[i].text, second.text, marked[i], self.least)
            spent = read[i].spent + model.usage.mine.since(before)
            first, last = (said[i], second) if loop.kept == "steered" else (second, said[i])
            shown = prompt if loop.kept == "steered" else whole[i]
            answers[i] = self._answer(replace(read[i], spent=spent), shown, (first,), last)
        return answers

    def _telling(self, read: Reading) -> Sequence[Part]:
        """The sentences to which "loop" steers; titles are none."""
        from amplify.sources.context import Part
        from amplify.sources.loop import telling
        from amplify.text import sentences

        parts = [Part(d, a, b) for d, text in enumerate(read.context.documents) for a, b in sentences(text)]
        titles = [p for p in parts if is_title(read.example, read.numbers[p.document], p.start)]
        if read.result is not None:
            return telling(read.result, self.sentences, titles)
        own = [p for p in parts if p not in titles] or parts
        chance = random.Random(f"random sentences:{self.seed}:{read.example.text}")
        return sorted(chance.sample(own, min(self.sentences, len(own))))

    def _read(self, example: Example, model: LanguageModel) -> Reading:
        """The example's documents as the prompt will have them, checked against the window."""
        from amplify.sources.context import check_documents_fit, harmless, special_tokens
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
        check_documents_fit(context, model, self.max_tokens, "an answer")
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
        granularity = "sentences" if self.operation in ("highlight", "loop") else "documents"
        result, spent = attribution(
            model, read, said.text,
            {
                "value": self.value, "index": self.index, "budget": self.budget, "granularity": granularity,
                "opens": "either" if self.operation == "loop" else "for", "seed": self.seed, "layout": self.layout,
                "max_tokens": self.max_tokens, "stop": STOP,
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


@dataclass(frozen=True)
class RehearsedRag(RagProgram):
    """Asks as many prompts as its attributions would, of half of the documents, and prunes none: for plans."""

    def _scored(self, read: Reading, said: Completion, model: LanguageModel) -> Reading:
        n = len(read.numbers)
        if n < 2 or not said.text.strip():
            return read
        before = model.usage.mine
        if self.by == "loo":
            leave_one_out(read, said.text, model)
        else:
            self._attribute(read, said, model)
        rising = [1.0 + i for i in range(n)]  # any re-ranking is another prompt
        spent = model.usage.mine.since(before)
        return replace(read, spent=spent, values=rising, high=rising, sources=read.ranked(rising, ()))

    def _attribute(self, read: Reading, said: Completion, model: LanguageModel) -> None:
        n = len(read.numbers)
        asked = self.budget if self.operation in ("highlight", "loop") else min(self.budget, 2**n)
        half = read.only(range(0, n, 2))
        prompts = [half.prompt(half.everything())] * asked
        if self.value == "logprob":
            need_scoring(model, self.method).score(prompts, [said.text] * asked)
        else:
            model.generate(prompts, Sampling(max_tokens=self.max_tokens, stop=STOP))

    def _best_sentences(self, read: Reading) -> list[Part]:
        return list(self._telling(read))


@dataclass(frozen=True)
class Reading:
    """An example on its way to its answer.

    Attributes:
        example: what is asked.
        every: its documents as texts.
        numbers: the documents in the context, by their place in the example.
        context: question and documents as the prompt has them.
        sources: what is known of all of the example's documents.
        values, high: score of each document in the context and the upper end of its 95 % interval; None before they
            are scored, and where there was nothing to score (one document, or a model that said nothing).
        result: the whole attribution, for Shapley values.
        spent: what scoring took.
    """

    example: Example
    every: tuple[str, ...]
    numbers: tuple[int, ...]
    context: Context
    sources: Sources
    values: list[float] | None = None
    high: list[float] | None = None
    result: SourceAttribution | None = None
    spent: Usage = field(default_factory=Usage)

    def only(self, kept: Sequence[int]) -> Context:
        """The context with these of its documents, in this order."""
        return self.context.only(kept)

    def ranked(self, scores: Sequence[float], cited: tuple[tuple[int, ...], ...]) -> Sources:
        """What is known of the example's documents when those in the context have scores."""
        order = [self.numbers[i] for i in keep("rerank", scores)]
        rest = [i for i in self.sources.ranking if i not in self.numbers]
        own = dict(zip(self.numbers, scores, strict=True))
        return Sources((*order, *rest), self.numbers, tuple(own.get(i) for i in range(len(self.every))), cited)


def texts(example: Example) -> list[str]:
    """Each document as one text, its title on a line of its own.

    Raises:
        InputError: the example has none, or they are neither texts nor objects with a text.
    """
    documents = example.fields.get("documents")
    if not isinstance(documents, list | tuple) or not documents:
        raise InputError(f"example {example.id!r} brings no list of documents in its field 'documents'")
    found = []
    for i, document in enumerate(documents):
        if isinstance(document, Mapping) and isinstance(document.get("text"), str):
            title = str(document.get("title") or "").strip()
            found.append(f"{title}\n{document['text']}" if title else document["text"])
        elif isinstance(document, str):
            found.append(document)
        else:
            raise InputError(f"example {example.id!r}: document {i} is neither a text nor an object with a text")
    return found


def is_title(example: Example, document: int, start: int) -> bool:
    """Whether a sentence is the document's title, which is no evidence to point at."""
    given = example.fields["documents"][document]
    return start == 0 and not isinstance(given, str) and bool(given.get("title"))


# attributions of this process, so that methods that use the same one pay for it once
_known: WeakKeyDictionary[Any, dict[Any, tuple[SourceAttribution, Usage]]] = WeakKeyDictionary()
_MOST = 2048


def attribution(
    model: LanguageModel, read: Reading, answer: str, options: Mapping[str, Any]
) -> tuple[SourceAttribution, Usage]:
    """The attribution of an answer, and what it took (when it was made)."""
    from amplify.sources.asked import Asked
    from amplify.sources.attribute import explained
    from amplify.sources.document import Document, Told
    from amplify.sources.options import options as as_options

    documents = tuple(Document(read.every[i], str(i)) for i in read.numbers)
    told = Told(dict.fromkeys(range(len(documents)), 0), {}, ())
    asked = Asked(read.context, documents, told, read.example.text)
    key = (read.context, answer, *options.values())
    made = _known.setdefault(model, {})
    found = made.get(key)
    if found is None:
        before = model.usage.mine
        result = explained(asked, model, answer, as_options(options))
        if len(made) >= _MOST:
            made.clear()
        made[key] = found = (result, model.usage.mine.since(before))
    return found


def leave_one_out(read: Reading, answer: str, model: LanguageModel) -> Reading:
    """Score each document by what the answer's log-probability loses without it."""
    from amplify.shapley import leave_one_out as leave_one_out_of
    from amplify.sources.context import in_place
    from amplify.sources.games import LogProbGame

    before = model.usage.snapshot()
    n = len(read.numbers)
    game = LogProbGame(read.context, model, read.context.continued(answer))
    losses = leave_one_out_of(lambda kept: game(in_place(kept)), n)
    parts = [losses[:, c] for c in (range(1, losses.shape[1]) if losses.shape[1] > 1 else [0])]
    cited = tuple(tuple(read.numbers[i] for i in np.argsort(-p, kind="stable") if p[i] > 0) for p in parts)
    scores = losses[:, 0].tolist()
    return replace(
        read, values=scores, high=scores, spent=model.usage.since(before), sources=read.ranked(scores, cited)
    )

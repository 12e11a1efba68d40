"""What came out: scores with intervals for documents, sentences and words, and what to do with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import numpy as np

from amplify import codec, files
from amplify.documents import ROUNDING
from amplify.errors import AmplifyError, DataError, InputError
from amplify.metrics import normalize
from amplify.render import visible
from amplify.shapley.game import Floats
from amplify.sources.context import Context, Source
from amplify.templates import Template
from amplify.types import Prompt

LevelName = Literal["documents", "sentences", "words"]
FORMAT = 1  # of the JSON file
_LEVELS = ("documents", "sentences", "words")


@dataclass(frozen=True)
class Level:
    """Scores of the parts of one size.

    Attributes:
        sources: the parts scored: document number and characters [start, end) of it.
        texts: what they say.
        table, low_table, high_table: scores and 95 % intervals, [parts, columns] (the columns of the result).
        column: which of them `scores`, `low` and `high` show.
    """

    sources: tuple[Source, ...]
    texts: tuple[str, ...]
    table: Floats
    low_table: Floats
    high_table: Floats
    column: int = 0

    @property
    def scores(self) -> Floats:
        """Score of each part, [parts]."""
        return self.table[:, self.column]

    @property
    def low(self) -> Floats:
        """Lower ends of the 95 % intervals, [parts]."""
        return self.low_table[:, self.column]

    @property
    def high(self) -> Floats:
        """Upper ends of the 95 % intervals, [parts]."""
        return self.high_table[:, self.column]

    def __len__(self) -> int:
        return len(self.sources)

    def above(self, bound: float = 0.0, column: int | None = None) -> list[int]:
        """The parts whose interval lies above `bound`, highest score first."""
        k = self.column if column is None else column
        order = np.argsort(-self.table[:, k], kind="stable")
        return [int(i) for i in order if self.low_table[i, k] > bound + self._rounding(k)]

    def not_below(self, bound: float = 0.0) -> list[int]:
        """The parts whose interval does not lie below `bound`, in their order."""
        return np.flatnonzero(self.high >= bound - self._rounding(self.column)).tolist()

    def _rounding(self, column: int) -> float:
        return ROUNDING * float(np.abs(self.table[:, column]).max(initial=0.0))


@dataclass(frozen=True)
class Citation:
    """A sentence of the answer, and the documents that made it likelier, strongest first."""

    sentence: str
    documents: tuple[int, ...]


@dataclass(frozen=True)
class Cost:
    """What an attribution took.

    Attributes:
        calls: distinct prompts asked, those of all levels together.
        tokens: tokens forwarded through the model, the answer's own generation included.
        seconds: wall-clock time.
    """

    calls: int
    tokens: int
    seconds: float


@dataclass(frozen=True)
class SourceAttribution:
    """Which sources made an answer (`amplify.attribute_sources`).

    Attributes:
        question: the question.
        answer: the text explained.
        documents: scores of the documents.
        sentences, words: scores of the parts of those documents (sentences) that were refined; None where that level
            was not asked for.
        values: value of the empty and of the full context, [2, columns].
        columns: what the scores explain: the answer and its single sentences, or (votes) each answer seen.
        cost: what it took.
        value, index, engine, estimator, order, budget, seed: how it was asked.
        template, layout: how the prompts were made.
        meta: model, versions, and what else a reader must know.
    """

    question: str
    answer: str
    documents: Level
    sentences: Level | None
    words: Level | None
    values: Floats
    columns: tuple[str, ...]
    cost: Cost
    value: str
    index: str
    engine: str
    estimator: str
    order: str
    budget: int
    seed: int
    template: Template
    layout: Literal["chat", "text"]
    originals: tuple[str, ...]
    column: int = 0
    meta: Mapping[str, Any] = field(default_factory=dict)

    def levels(self) -> dict[LevelName, Level]:
        """The levels there are, coarse to fine."""
        found: dict[LevelName, Level | None] = {
            "documents": self.documents, "sentences": self.sentences, "words": self.words,
        }  # fmt: skip
        return {name: level for name, level in found.items() if level is not None}

    def for_answer(self, answer: str) -> SourceAttribution:
        """The same with the scores of one candidate answer (votes), or of one sentence of the answer.

        Raises:
            InputError: no such answer was given by any coalition asked.
        """
        wanted = [normalize(c) for c in self.columns]
        if normalize(answer) not in wanted:
            raise InputError(f"{answer!r} is not among what was scored: {', '.join(map(repr, self.columns))}")
        return self._at(wanted.index(normalize(answer)))

    def _at(self, column: int) -> SourceAttribution:
        def turn(level: Level | None) -> Level | None:
            return None if level is None else replace(level, column=column)

        documents = replace(self.documents, column=column)
        return replace(self, documents=documents, sentences=turn(self.sentences), words=turn(self.words), column=column)

    def ranking(self) -> list[int]:
        """Numbers of the documents, highest score first; equal scores keep their order."""
        return np.argsort(-self.documents.scores, kind="stable").tolist()

    def rerank(self) -> list[str]:
        """The documents as they were given, highest score first."""
        return [self.originals[i] for i in self.ranking()]

    def kept(self, below: float = 0.0) -> list[int]:
        """Numbers of the documents whose interval's upper end is not under `below`, in their order."""
        return self.documents.not_below(below)

    def prune(self, below: float = 0.0) -> list[str]:
        """The documents, in their order, without those that are surely worth less than `below`.

        Args:
            below: a document goes when the upper end of its 95 % interval is under this, in units of the value.
        """
        return [self.originals[i] for i in self.kept(below)]

    def cite(self) -> list[Citation]:
        """The answer's sentences, each with the documents whose interval lies above 0 for it, strongest first."""
        several = self.value == "logprob" and len(self.columns) > 1
        columns = range(1, len(self.columns)) if several else [self.column]
        return [
            Citation(self.columns[c] if several else self.answer, tuple(self.documents.above(column=c)))
            for c in columns
        ]

    def highlight(self, level: LevelName | None = None) -> Prompt:
        """The prompt with all documents, its helpful parts marked for steering (`Prompt.emphasis`).

        Args:
            level: which parts; the finest there is unless given. Marked are those whose interval lies above 0, and the
                one of highest score where there is none such.
        """
        levels = self.levels()
        name = level or list(levels)[-1]
        if name not in levels:
            raise InputError(f"there are no scores of {name}: ask with granularity={name!r}")
        chosen = levels[name]
        marked = chosen.above() or [int(np.argmax(chosen.scores))]
        return self.context.marked([chosen.sources[i] for i in marked])

    @property
    def context(self) -> Context:
        """Question, documents and template as the game used them."""
        from amplify.sources.context import harmless

        question, *documents = (harmless(t, self.meta.get("structure", ())) for t in (self.question, *self.originals))
        return Context(question, tuple(documents), self.template, self.layout)

    def save(self, path: str | Path) -> None:
        """Write everything as JSON."""
        held = {f.name: codec.encode(getattr(self, f.name)) for f in fields(self) if f.name not in _LEVELS}
        for name in _LEVELS:
            found: Level | None = getattr(self, name)
            held[name] = None if found is None else {
                "sources": [[s.document, s.start, s.end] for s in found.sources],
                "scores": _plain(found.table),
                "low": _plain(found.low_table),
                "high": _plain(found.high_table),
            }  # fmt: skip
        files.write_json(path, {"format": FORMAT, **held})

    @classmethod
    def load(cls, path: str | Path) -> SourceAttribution:
        """Read what `save` wrote.

        Raises:
            DataError: the file is none of these, or was changed; says where.
        """
        data = files.read_json(path, "a saved source attribution")
        try:
            if data.pop("format", None) != FORMAT:
                raise DataError("it was written by another version")
            held = codec.from_fields(_Saved, data)
            columns = len(held.columns)
            if not 0 <= held.column < columns or [len(row) for row in held.values] != [columns] * 2:
                raise DataError("values are not two rows of one number for each column")
            levels = {name: _level(getattr(held, name), held, name) for name in _LEVELS}
            own = {f.name: getattr(held, f.name) for f in fields(held)}
            return cls(**{**own, **levels, "values": np.array(held.values, dtype=np.float64)})
        except AmplifyError as error:
            raise DataError(f"{files.shown(path)} is no saved source attribution: {error}") from error

    def to_html(self, path: str | Path) -> None:
        """Write one self-contained page: the answer, and the documents as a nested heat map."""
        page = import_module("amplify.sources.page")
        files.write(path, page.as_html(self))

    def __str__(self) -> str:
        lines = [
            f"{self.index} values of {len(self.documents)} documents for {visible(self.columns[self.column])!r}"
            if self.value == "votes"
            else f"{self.index} values of {len(self.documents)} documents for the answer {visible(self.answer)!r}",
            f"{self.cost.calls} prompts, {self.cost.tokens} tokens forwarded, {self.cost.seconds:.1f} s"
            f" ({self.engine}, {self.estimator}, order {self.order})",
        ]
        for i in self.ranking():
            score, low, high = (x[i] for x in (self.documents.scores, self.documents.low, self.documents.high))
            lines.append(f"  {score:+9.3f} [{low:+.3f}, {high:+.3f}]  {i}: {_short(self.documents.texts[i])}")
            lines += self._inside(i)
        return "\n".join(lines)

    def _inside(self, document: int) -> list[str]:
        if self.sentences is None:
            return []
        own = [k for k, s in enumerate(self.sentences.sources) if s.document == document]
        return [f"      {self.sentences.scores[k]:+9.3f}  {_short(self.sentences.texts[k])}" for k in own]


def level(sources: list[Source], documents: tuple[str, ...], table: Floats, low: Floats, high: Floats) -> Level:
    """A `Level`, its texts cut from the documents."""
    return Level(tuple(sources), tuple(documents[s.document][s.start : s.end] for s in sources), table, low, high)


def _plain(table: Floats) -> list[list[float | None]]:
    """Nested lists; None stands for an end that is infinite (JSON has no infinity)."""
    return [[None if not np.isfinite(x) else float(x) for x in row] for row in table]


@dataclass(frozen=True)
class _Part:
    """A level as it is saved."""

    sources: tuple[tuple[int, int, int], ...]
    scores: tuple[tuple[float | None, ...], ...]
    low: tuple[tuple[float | None, ...], ...]
    high: tuple[tuple[float | None, ...], ...]


@dataclass(frozen=True)
class _Saved:
    """What the file holds."""

    question: str
    answer: str
    documents: _Part
    sentences: _Part | None
    words: _Part | None
    values: tuple[tuple[float, ...], ...]
    columns: tuple[str, ...]
    cost: Cost
    value: str
    index: str
    engine: str
    estimator: str
    order: str
    budget: int
    seed: int
    template: Template
    layout: Literal["chat", "text"]
    originals: tuple[str, ...]
    column: int = 0
    meta: Mapping[str, Any] = field(default_factory=dict)


def _level(data: _Part | None, held: _Saved, name: str) -> Level | None:
    if data is None:
        return None
    if not data.sources:
        raise DataError(f"{name} has no sources")
    shape = [len(held.columns)] * len(data.sources)
    ends = []
    for key, missing in (("scores", np.nan), ("low", -np.inf), ("high", np.inf)):
        table = getattr(data, key)
        if [len(row) for row in table] != shape:
            raise DataError(f"{name}.{key} is not one row of {len(held.columns)} numbers for each of its sources")
        ends.append(np.array([[missing if x is None else x for x in row] for row in table], dtype=np.float64))
    for document, start, end in data.sources:
        if not (0 <= document < len(held.originals) and 0 <= start <= end <= len(held.originals[document])):
            raise DataError(f"{name}.sources has {[document, start, end]}, which is outside the documents")
    if name == "documents" and [document for document, _, _ in data.sources] != list(range(len(held.originals))):
        raise DataError("documents.sources are not the documents, one after the other")
    return replace(level([Source(*s) for s in data.sources], held.originals, *ends), column=held.column)


def _short(text: str, width: int = 70) -> str:
    flat = visible(" ".join(text.split()))
    return flat if len(flat) <= width else flat[: width - 1] + "…"

"""What came out: scores with intervals for documents, sentences and words, and what to do with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from amplify import codec, files
from amplify.errors import AmplifyError, DataError, InputError
from amplify.metrics import normalize
from amplify.render import visible
from amplify.shapley.game import Floats
from amplify.sources.claims import OF_BEST, SHARE, Citation, Claim, citations, claims
from amplify.sources.context import Part, Place, emphasised
from amplify.sources.document import Document
from amplify.sources.keeping import ROUNDING, ranked
from amplify.types import Prompt

LevelName = Literal["documents", "sentences", "words"]
FORMAT = 2  # of the JSON file
_LEVELS = ("documents", "sentences", "words")


@dataclass(frozen=True, eq=False)
class Level:
    """Scores of the parts of one size.

    Attributes:
        sources: the parts scored: document number and characters [start, end) of it.
        texts: what they say.
        table, low_table, high_table: scores and 95 % intervals, [parts, columns] (the columns of the result).
        column: which of them `scores`, `low` and `high` show.

    Example:
        >>> from amplify.models.scripted import ScriptedModel
        >>> model = ScriptedModel(logprob=lambda text, said: -0.1 if "in Rome" in text else -5.0)
        >>> why = amplify.attribute_sources("Where is it?", ["It is in Rome.", "Bees fly far."], model, "Rome")
        >>> why.documents.scores.round(1).tolist(), why.documents.above(0.1)
        ([4.9, 0.0], [0])
    """

    sources: tuple[Part, ...]
    texts: tuple[str, ...]
    table: Floats
    low_table: Floats
    high_table: Floats
    column: int = 0

    def __eq__(self, other: object) -> bool:
        """Whether parts, scores and intervals are equal."""
        if not isinstance(other, Level) or (self.sources, self.texts, self.column) != (
            other.sources, other.texts, other.column,
        ):  # fmt: skip
            return False
        tables = ("table", "low_table", "high_table")
        return all(np.array_equal(getattr(self, name), getattr(other, name)) for name in tables)

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
class Cost:
    """What an attribution took.

    Attributes:
        calls: distinct prompts asked, those of all levels together.
        tokens: tokens forwarded through the model, the answer's own generation included.
        seconds: wall-clock time.

    Example:
        >>> from amplify.models.scripted import ScriptedModel
        >>> model = ScriptedModel(logprob=lambda text, said: -0.1 if "in Rome" in text else -5.0)
        >>> why = amplify.attribute_sources("Where is it?", ["It is in Rome.", "Bees fly far."], model, "Rome")
        >>> why.cost.calls
        32
    """

    calls: int
    tokens: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class _Told:
    """What an attribution and its file hold alike; see `SourceAttribution`."""

    question: str
    answer: str
    columns: tuple[str, ...]
    cost: Cost
    value: str
    index: str
    engine: str
    estimator: str
    order: str
    budget: int
    seed: int
    prompt: Prompt
    originals: tuple[Document, ...]
    spans: tuple[tuple[int, int], ...] = ()
    notes: tuple[str, ...] = ()
    column: int = 0
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)
class SourceAttribution(_Told):
    """Which sources made an answer (`amplify.attribute_sources`).

    Attributes:
        question: the question; "" where the prompt is the user's own.
        answer: the text explained.
        documents: scores of the sources: documents, passages of one, spans of messages.
        sentences, words: scores of the parts of those documents (sentences) that were refined; None where that level
            was not asked for.
        values: value of the empty and of the full context, [2, columns].
        columns: what the scores explain: the answer and its single sentences, or (votes) each answer seen.
        spans: characters [start, end) of the answer that each sentence is; () for votes and for a single one.
        cost: what it took.
        value, index, engine, estimator, order, budget, seed: how it was asked.
        prompt: what the model read, all sources in it.
        places: number of a document in it -> its message (None: raw text), and where its character 0 stands there.
        originals: all documents as they were given.
        left_out: number of a document that was not judged -> the one it is a copy or part of; None for an empty one.
        notes: what else a reader must know, in sentences: documents merged, an answer that was cut.
        column: which of the columns the levels show.
        meta: model, versions, and more of how.

    Example:
        >>> from amplify.models.scripted import ScriptedModel
        >>> model = ScriptedModel(logprob=lambda text, said: -0.1 if "in Rome" in text else -5.0)
        >>> why = amplify.attribute_sources("Where is it?", ["Bees fly far.", "It is in Rome."], model, "Rome")
        >>> print(why)
        shapley values of 2 documents for the answer 'Rome'
        32 prompts, 624 tokens forwarded, ... s (trie, exact, order fixed)
          supported (98%): Rome
             +4.900 [+4.900, +4.900]  document 1: It is in Rome.
                 +4.900 [+4.900, +4.900]  It is in Rome.
             +0.000 [+0.000, +0.000]  document 0: Bees fly far.
        >>> why.rerank()[0].text
        'It is in Rome.'
        >>> why.save("why.json")
    """

    documents: Level
    sentences: Level | None
    words: Level | None
    values: Floats
    places: Mapping[int, Place]
    left_out: Mapping[int, int | None] = field(default_factory=dict)

    def __eq__(self, other: object) -> bool:
        """Whether all that is saved of them is equal."""
        return isinstance(other, SourceAttribution) and self.to_dict() == other.to_dict()

    @cached_property
    def sources(self) -> tuple[Document, ...]:
        """What each row of `documents` is: a document as it was given, or a passage of one."""
        own = [s.document for s in self.documents.sources]
        passages, first = Counter(own), {document: k for k, document in reversed(list(enumerate(own)))}
        found = []
        for k, part in enumerate(self.documents.sources):
            whole = self.originals[part.document]
            if passages[part.document] == 1:
                found.append(replace(whole, id=whole.id or str(part.document)))
                continue
            number = k - first[part.document] + 1
            title = f"{whole.title}, passage {number}" if whole.title else f"passage {number}"
            text = whole.text[part.start : part.end]
            found.append(replace(whole, text=text, id=f"{whole.id or part.document}#{number}", title=title))
        return tuple(found)

    def name(self, k: int) -> str:
        """What row k of `documents` is called: its title, its id, else "document 3"."""
        source = self.sources[k]
        if source.title:
            return source.title
        return source.id if self.originals[self.documents.sources[k].document].id else f"document {source.id}"

    @cached_property
    def claims(self) -> tuple[Claim, ...]:
        """The sentences of the answer, each with its scores, support and verdict; votes: the answer in question."""
        return claims(self)

    @property
    def citations(self) -> tuple[Citation, ...]:
        """The sources that carry each claim; see `cite`."""
        return self.cite()

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
        """Rows of the sources, highest score first; equal scores keep their order."""
        return ranked(self.documents.scores.tolist())

    def rerank(self) -> list[Document]:
        """The sources, highest score first."""
        return [self.sources[i] for i in self.ranking()]

    def kept(self, below: float = 0.0) -> list[int]:
        """Rows of the sources whose interval's upper end is not under `below`, in their order."""
        return self.documents.not_below(below)

    def prune(self, below: float = 0.0) -> list[Document]:
        """The sources, in their order, without those that are surely worth less than `below`.

        Args:
            below: a source goes when the upper end of its 95 % interval is under this, in units of the value.
        """
        return [self.sources[i] for i in self.kept(below)]

    def cite(self, share: float = SHARE, top: int | None = None, of_best: float = OF_BEST) -> tuple[Citation, ...]:
        """What carries each claim of the answer, strongest first.

        Args:
            share: a source is cited from this share of what the context gives the claim, where its interval also lies
                above 0.
            top: so many sources a claim at most.
            of_best: and from this share of what the claim's best source gives it.

        Raises:
            InputError: a share below 0, of_best outside 0 to 1, or top below 1.
        """
        return citations(self, share, top, of_best)

    def highlight(self, level: LevelName | None = None) -> Prompt:
        """The prompt with all documents, its helpful parts marked for steering (`Prompt.emphasis`).

        Args:
            level: which parts. Unless given, the finest whose parts that surely help carry at least half of what the
                documents carry that surely do. Marked are those whose interval lies above 0, and the one of highest
                score where there is none such.
        """
        levels = self.levels()
        name = level or self._telling()
        if name not in levels:
            raise InputError(f"there are no scores of {name}: ask with granularity={name!r}")
        chosen = levels[name]
        marked = chosen.above() or [int(np.argmax(chosen.scores))]
        parts = [chosen.sources[i] for i in marked]
        return emphasised(self.prompt, self.places, [d.text for d in self.originals], parts)

    def _telling(self) -> LevelName:
        carried = {
            name: float(level.scores[level.above()].sum()) if level.above() else 0.0
            for name, level in self.levels().items()
        }
        return next(name for name in reversed(carried) if carried[name] >= carried["documents"] / 2)

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values, `claims` and `citations` included; `load` reads it back."""
        held = {f.name: codec.encode(_plainly(getattr(self, f.name))) for f in fields(self) if f.name not in _LEVELS}
        for name in _LEVELS:
            found: Level | None = getattr(self, name)
            held[name] = None if found is None else {
                "sources": [[s.document, s.start, s.end] for s in found.sources],
                "scores": _plain(found.table),
                "low": _plain(found.low_table),
                "high": _plain(found.high_table),
            }  # fmt: skip
        said = {"claims": codec.encode(self.claims), "citations": codec.encode(self.citations)}
        return {"format": FORMAT, **held, **said}

    def save(self, path: str | Path) -> None:
        """Write everything as JSON."""
        files.write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> SourceAttribution:
        """Read what `save` wrote.

        Raises:
            DataError: the file is none of these, or was changed; says where.
        """
        data = files.read_json(path, "a saved source attribution")
        try:
            return cls.from_dict(data)
        except AmplifyError as error:
            raise DataError(f"{files.shown(path)} is no saved source attribution: {error}") from error

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SourceAttribution:
        """The inverse of `to_dict`.

        Raises:
            DataError: it is none of these, or was changed; says where.
        """
        if data.get("format") != FORMAT:
            raise DataError(
                f"it is of format {data.get('format')!r}, and this version of amplify reads {FORMAT}: attribute again, "
                "or read it with the version that wrote it"
            )
        held = codec.from_fields(_Saved, {k: v for k, v in data.items() if k not in ("format", "claims", "citations")})
        held.check()
        columns = len(held.columns)
        if not 0 <= held.column < columns or [len(row) for row in held.values] != [columns] * 2:
            raise DataError("values are not two rows of one number for each column")
        levels = {name: _level(getattr(held, name), held, name) for name in _LEVELS}
        own = {f.name: getattr(held, f.name) for f in fields(held)}
        more = {
            "values": np.array(held.values, dtype=np.float64),
            "places": {int(d): place for d, place in held.places.items()},
            "left_out": {int(d): twin for d, twin in held.left_out.items()},
        }
        return cls(**{**own, **levels, **more})

    def to_html(self, path: str | Path | None = None) -> str:
        """One self-contained page: the answer with its claims, and the sources as a nested heat map.

        Args:
            path: write it there too.
        """
        from amplify.sources.page import as_html

        page = as_html(self)
        if path is not None:
            files.write(path, page)
        return page

    def _repr_html_(self) -> str:
        """The page inside a notebook."""
        from amplify.sources.page import as_frame

        return as_frame(self)

    def __str__(self) -> str:
        lines = [
            f"{self.index} values of {len(self.documents)} documents for {visible(self.columns[self.column])!r}"
            if self.value == "votes"
            else f"{self.index} values of {len(self.documents)} documents for the answer {visible(self.answer)!r}",
            f"{self.cost.calls} prompts, {self.cost.tokens} tokens forwarded, {self.cost.seconds:.1f} s"
            f" ({self.engine}, {self.estimator}, order {self.order})",
        ]
        lines += [f"  note: {visible(note)}" for note in self.notes]
        if self.value == "logprob":
            lines += [f"  {claim.verdict} ({claim.support:.0%}): {_short(claim.text)}" for claim in self.claims]
        for i in self.ranking():
            score, low, high = (x[i] for x in (self.documents.scores, self.documents.low, self.documents.high))
            name, text = visible(self.name(i)), _short(self.documents.texts[i])
            lines.append(f"  {score:+9.3f} [{low:+.3f}, {high:+.3f}]  {name}: {text}")
            lines += self._inside(i)
        return "\n".join(lines)

    def _inside(self, k: int) -> list[str]:
        level = self.sentences
        if level is None:
            return []
        own = [i for i, s in enumerate(level.sources) if s.within(self.documents.sources[k])]
        return [
            f"      {level.scores[i]:+9.3f} [{level.low[i]:+.3f}, {level.high[i]:+.3f}]  {_short(level.texts[i])}"
            for i in own
        ]


def level(sources: list[Part], documents: tuple[Document, ...], table: Floats, low: Floats, high: Floats) -> Level:
    """A `Level`, its texts cut from the documents."""
    return Level(tuple(sources), tuple(documents[s.document].text[s.start : s.end] for s in sources), table, low, high)


def _plainly(value: Any) -> Any:
    """Documents with metadata that JSON can hold: what it cannot is written as text."""
    if not (isinstance(value, tuple) and value and isinstance(value[0], Document)):
        return value

    def held(item: Any) -> Any:
        try:
            return codec.encode(item)
        except TypeError:
            return str(item)

    return tuple(replace(d, metadata={str(k): held(v) for k, v in d.metadata.items()}) for d in value)


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


@dataclass(frozen=True, kw_only=True)
class _Saved(_Told):
    """What the file holds."""

    documents: _Part
    sentences: _Part | None
    words: _Part | None
    values: tuple[tuple[float, ...], ...]
    places: Mapping[str, tuple[int | None, int]]
    left_out: Mapping[str, int | None] = field(default_factory=dict)

    def check(self) -> None:
        """What the types do not say.

        Raises:
            DataError: numbers of documents, or places, that there are not.
        """
        for name, numbers in (("places", self.places), ("left_out", self.left_out)):
            for number in numbers:
                if not number.isdecimal() or int(number) >= len(self.originals):
                    raise DataError(f"{name} names document {number!r}, which there is not")
        for number, (message, start) in self.places.items():
            if (message is None) != (self.prompt.text is not None) or not 0 <= (message or 0) < max(
                1, len(self.prompt.messages)
            ):
                raise DataError(f"places.{number} is in message {message}, which there is not")
            own = self.prompt.text if message is None else self.prompt.messages[message].content
            if own is None or start + len(self.originals[int(number)].text) < 0 or start > len(own):
                raise DataError(f"places.{number} is outside the prompt")
        if not isinstance(self.meta.get("model") or {}, Mapping):
            raise DataError(f"meta.model describes no model: {self.meta['model']!r:.60}")
        several = len(self.columns) - 1 if self.value == "logprob" and len(self.columns) > 1 else 0
        if len(self.spans) != several:
            raise DataError(f"spans has {len(self.spans)} entries for {several} sentences of the answer")
        for start, end in self.spans:
            if not 0 <= start <= end <= len(self.answer):
                raise DataError(f"spans has [{start}, {end}], which is outside the answer")


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
        if not (0 <= document < len(held.originals) and 0 <= start <= end <= len(held.originals[document].text)):
            raise DataError(f"{name}.sources has {[document, start, end]}, which is outside the documents")
    if name == "documents" and list(data.sources) != sorted(data.sources):
        raise DataError("documents.sources are not the documents, one after the other")
    if not {str(document) for document, _, _ in data.sources} <= held.places.keys():
        raise DataError(f"{name}.sources has a document that the prompt has not")
    return replace(level([Part(*s) for s in data.sources], held.originals, *ends), column=held.column)


def _short(text: str, width: int = 70) -> str:
    flat = visible(" ".join(text.split()))
    return flat if len(flat) <= width else flat[: width - 1] + "…"

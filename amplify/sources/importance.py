"""Which documents of a corpus help and which harm, from a log of questions.

Two ways to say so. The *gradient* of the retrieval-weighted utility (Lyu et al. 2023, arXiv 2307.03027): each document
is read alone and is worth what its answer is worth; a kept set is worth the mean of its first `k` retrieved documents;
each document exists with a probability, its weight, and the gradient of the expected worth says which weights to raise.
It is exact. The mean *Shapley* value of a document for the answer wanted, all documents of a question read together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from amplify import codec, files, templates
from amplify.errors import DataError, InputError, UnknownNameError
from amplify.metrics import normalize
from amplify.metrics.answers import contains
from amplify.models import opened
from amplify.models.base import LanguageModel, need_scoring, sharing
from amplify.progress import progress
from amplify.render import page_template
from amplify.shapley.game import Floats
from amplify.sources.attribute import attribute_sources
from amplify.sources.context import harmless, special_tokens
from amplify.sources.document import Document, as_documents
from amplify.sources.frames import TemplateFrame
from amplify.sources.options import options
from amplify.types import Prompt, Sampling

By = Literal["gradient", "shapley"]
Verdict = Literal["helps", "harms", "unclear"]
FORMAT = 1
STOP, LONGEST = ("\n",), 24  # an answer from one document is one line
RATE, EPOCHS = 10.0, 100  # of the ascent, as published
DRAWS = 200  # of the random choices that are compared with


# the retrieval-weighted utility


def utility(worth: Sequence[float], k: int) -> float:
    """What a kept set is worth: the sum of its first k documents' worth, divided by k.

    Args:
        worth: of the documents that are kept, in the order in which they were retrieved.
        k: how many are read.
    """
    return float(sum(worth[:k])) / k


def gradient(worth: Sequence[float], weights: Sequence[float], k: int) -> Floats:
    """How the expected utility of one question changes with each document's weight; exact.

    With document i, its worth is gained where fewer than k of those before it exist, and the k-th of the others, if
    there are so many, is lost. Two tables give both: how likely it is that j of those before i exist, and the expected
    worth of the r-th that exists behind it. At equal weights of 1/2 this is the Banzhaf value of the utility.

    Args:
        worth: of each document's answer, in the order in which they were retrieved. [documents]
        weights: probability that each exists. [documents]
        k: how many of those that exist are read.

    Returns:
        [documents]. Time grows with documents × k.

    Example:
        >>> gradient([1.0, 0.0], [0.5, 0.5], 1).tolist()
        [1.0, 0.0]
        >>> gradient([0.0, 1.0], [0.5, 0.5], 1).tolist()
        [-0.5, 0.5]
    """
    u, p, n = np.asarray(worth, dtype=np.float64), np.asarray(weights, dtype=np.float64), len(worth)
    before = np.zeros((n + 1, k))  # [i, j]: j of the first i exist
    before[0, 0] = 1.0
    for i in range(n):
        before[i + 1] = before[i] * (1 - p[i])
        before[i + 1, 1:] += before[i, :-1] * p[i]
    behind = np.zeros((n + 1, k + 1))  # [i, r]: expected worth of the r-th that exists among i, i + 1, ...; 0 if none
    for i in reversed(range(n)):
        behind[i, 1:] = (1 - p[i]) * behind[i + 1, 1:]
        behind[i, 1] += p[i] * u[i]
        behind[i, 2:] += p[i] * behind[i + 1, 1:-1]
    lost = behind[1:, ::-1][:, :k]  # [i, j]: the (k - j)-th behind i
    found: Floats = (before[:-1] * (u[:, None] - lost)).sum(axis=1) / k
    return found


@dataclass(frozen=True)
class Asked:
    """A question of the log with what its documents are worth.

    Attributes:
        keys: of its documents, in the order in which they were retrieved.
        worth: of each one's answer, read alone. [documents]
        shapley: value of each for the answer wanted, all read together; () where that was not asked. [documents]
    """

    keys: tuple[str, ...]
    worth: tuple[float, ...]
    shapley: tuple[float, ...] = ()


def weights(asked: Sequence[Asked], k: int, rate: float = RATE, epochs: int = EPOCHS) -> dict[str, float]:
    """Weights in [0, 1] of all documents that raise the mean utility: projected gradient ascent from 1/2."""
    found = dict.fromkeys((key for one in asked for key in one.keys), 0.5)
    for _ in range(epochs):
        rise = dict.fromkeys(found, 0.0)
        for one in asked:
            own = gradient(one.worth, [found[key] for key in one.keys], k)
            for key, value in zip(one.keys, own.tolist(), strict=True):
                rise[key] += value / len(asked)
        found = {key: min(1.0, max(0.0, weight + rate * rise[key])) for key, weight in found.items()}
    return found


def worth_of(asked: Sequence[Asked], k: int, dropped: set[str]) -> Floats:
    """Utility of each question without some documents. [questions]"""
    return np.array([
        utility([u for key, u in zip(one.keys, one.worth, strict=True) if key not in dropped], k) for one in asked
    ])  # fmt: skip


# what comes out


@dataclass(frozen=True)
class SourceLine:
    """One document.

    Attributes:
        key: by which it is found again.
        title: what people call it.
        questions: how many had it.
        score, low, high: mean over these of what it does to an answer, and the 95 % interval (Student's t over
            questions; infinite for a single one).
        weight: fitted by the gradient.
    """

    key: str
    title: str
    questions: int
    score: float
    low: float
    high: float
    weight: float

    @property
    def verdict(self) -> Verdict:
        """ "helps" or "harms" where the interval says so."""
        return "helps" if self.low > 0 else "harms" if self.high < 0 else "unclear"


@dataclass(frozen=True)
class Check:
    """What dropping documents does to questions that chose none of them.

    Attributes:
        way: how they were chosen.
        dropped: how many documents.
        utility: mean over the held-out questions.
        gain, low, high: over dropping none, with its 95 % interval over questions.
    """

    way: str
    dropped: int
    utility: float
    gain: float
    low: float
    high: float


@dataclass(frozen=True)
class SourceImportance:
    """Which documents help and which harm (`amplify.source_importance`).

    Attributes:
        lines: one a document, worst first.
        checks: on the questions that were held out.
        by: "gradient" or "shapley": what the scores are.
        k: how many documents a reader reads.
        cut: documents of a weight below this are dropped.
        gold: whether answers were compared with gold answers, else with the model's own.
        questions, held_out: how many chose, and how many checked.
        notes: what a reader must know.
        meta: model, versions and options.

    Example:
        >>> from amplify.models.scripted import ScriptedModel
        >>> model = ScriptedModel(reply=lambda text: "Bern" if "in Bern" in text else "Rome")
        >>> two = ["Ada is in Bern.", "Ada is in Rome."]
        >>> rows = [{"question": f"Where in {year}?", "documents": two, "answers": ["Bern"]} for year in range(8)]
        >>> found = amplify.source_importance(rows, model, k=1)
        >>> [(line.title, line.verdict) for line in found.lines]
        [('Ada is in Rome.', 'unclear'), ('Ada is in Bern.', 'helps')]
    """

    lines: tuple[SourceLine, ...]
    checks: tuple[Check, ...]
    by: By
    k: int
    cut: float
    gold: bool
    questions: int
    held_out: int
    notes: tuple[str, ...] = ()
    meta: Mapping[str, Any] | None = None

    @cached_property
    def dropped(self) -> frozenset[str]:
        """Keys of the documents that `keeps` refuses."""
        if self.by == "shapley":
            return frozenset(line.key for line in self.lines if line.verdict == "harms")
        return frozenset(line.key for line in self.lines if line.weight < self.cut)

    def keeps(self, document: Any) -> bool:
        """Whether a document is worth reading; one that the log did not have is.

        Args:
            document: as for `attribute_sources`.
        """
        return key_of(as_documents([document])[0]) not in self.dropped

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        held = {**asdict(self), "lines": [{**asdict(line), "verdict": line.verdict} for line in self.lines]}
        return {"format": FORMAT, **_finite(held), "dropped": sorted(self.dropped)}

    def save(self, path: str | Path) -> None:
        """Write everything as JSON."""
        files.write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> SourceImportance:
        """Read what `save` wrote.

        Raises:
            DataError: the file is none of these.
        """
        data = files.read_json(path, "a saved source importance")
        if data.pop("format", None) != FORMAT:
            raise DataError(f"{files.shown(path)} is no source importance of format {FORMAT}")
        data.pop("dropped", None)
        for name in ("lines", "checks"):
            for row in data.get(name) or []:
                row.pop("verdict", None)
                for end, missing in (("low", -np.inf), ("high", np.inf)):
                    row[end] = missing if row.get(end) is None else row[end]
        return codec.from_fields(cls, data)

    def to_html(self, path: str | Path | None = None) -> str:
        """One self-contained page; written to `path` too where one is given."""
        page = page_template("amplify.sources", "importance.html.jinja").render(result=self)
        if path is not None:
            files.write(path, page)
        return page

    def __str__(self) -> str:
        count = {v: sum(line.verdict == v for line in self.lines) for v in ("helps", "harms", "unclear")}
        said = ", ".join(f"{n} {v}" for v, n in count.items())
        rows = [f"{len(self.lines)} documents of {self.questions + self.held_out} questions ({self.by}): {said}"]
        rows += [f"  note: {note}" for note in self.notes]
        rows += [
            f"  {c.way:<18} drops {c.dropped:>4}  utility {c.utility:.3f}  {c.gain:+.3f} [{c.low:+.3f}, {c.high:+.3f}]"
            for c in self.checks
        ]
        rows += [
            f"  {line.verdict:<8}{line.score:+8.3f} [{line.low:+.3f}, {line.high:+.3f}]  weight {line.weight:.2f}  "
            f"{line.questions:>3} questions  {line.title}"
            for line in self.lines[:20]
        ]
        return "\n".join(rows)


def key_of(document: Document) -> str:
    """By what a document is found again: its id, else a hash of its text."""
    return document.id or f"text:{hashlib.sha256(' '.join(document.text.split()).encode()).hexdigest()[:16]}"


# asking


@dataclass(frozen=True)
class _Line:
    question: str
    documents: tuple[Document, ...]
    answers: tuple[str, ...]


def source_importance(
    log: Iterable[Mapping[str, Any]],
    model: LanguageModel | str,
    *,
    by: By = "gradient",
    k: int = 5,
    held_out: float = 0.5,
    seed: int = 0,
    cache: str | Path | None = None,
    shown: bool = False,
    **more: Any,
) -> SourceImportance:
    """Say which documents of a corpus help and which harm the answers to questions like those of a log.

    Half of the questions choose what to drop, and the others check it beside leave-one-out and random choices. Each
    document is read alone with each question that retrieved it: one prompt for each pair.

    Args:
        log: rows with "question", "documents" (in the order in which they were retrieved; as for `attribute_sources`)
            and "answers" (a text or a list of accepted ones). Where no row has answers, the model's own answer to all
            documents of a question stands in for them: scores then say what moves answers, not what makes them right.
        model: who answers.
        by: "gradient", or "shapley", which also plays an attribution of the answer for each question.
        k: how many documents the reader reads.
        held_out: share of the questions that check.
        seed: of that split and of the random choices.
        cache: file that keeps every answer; the same call goes on where a stopped one was.
        shown: say how many questions are done.
        **more: of `attribute_sources`, for "shapley": budget, seed and so on; `max_tokens` and `stop` for both.

    Raises:
        InputError: a row that is no such question (says which), fewer than four questions, numbers that make no sense.
        CapabilityError: "shapley" with a model that gives no log-probabilities.
        ModelError: the model failed; answers so far are in `cache`.

    Example:
        >>> from amplify.models.scripted import ScriptedModel
        >>> model = ScriptedModel(reply=lambda text: "Bern" if "Bern" in text else "Rome")
        >>> good, bad = {"id": "good", "text": "Bern."}, {"id": "bad", "text": "Rome."}
        >>> log = [{"question": f"Where {i}?", "documents": [bad, good], "answers": "Bern"} for i in range(8)]
        >>> found = source_importance(log, model, k=1)
        >>> [(line.key, line.verdict) for line in found.lines], sorted(found.dropped)
        ([('bad', 'harms'), ('good', 'helps')], ['bad'])
    """
    if by not in ("gradient", "shapley"):
        raise UnknownNameError("way", str(by), ("gradient", "shapley"))
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise InputError(f"k is how many documents are read, 1 or more, not {k!r}")
    if not isinstance(held_out, int | float) or not 0 < held_out < 1:
        raise InputError(f"held_out is a share between 0 and 1, not {held_out!r}")
    given = {"stop": STOP, "max_tokens": LONGEST, "granularity": "documents", **more}
    options(given)
    lines = [_line(row, number) for number, row in enumerate(log)]
    if len(lines) < 4:
        raise InputError(f"the log has {len(lines)} questions: four are needed to choose and to check")
    gold = any(line.answers for line in lines)
    notes = []
    if gold and (without := [i for i, line in enumerate(lines) if not line.answers]):
        lines = [line for line in lines if line.answers]
        notes.append(f"{len(without)} questions without an answer were left out, the first is number {without[0]}")
        if len(lines) < 4:
            raise InputError(f"only {len(lines)} questions have an answer: four are needed")
    if not gold:
        notes.append("no gold answers: the model's own answers to all documents stand in for them")
    with opened(model) as who, sharing(who):
        if by == "shapley":
            need_scoring(who, "by='shapley'")
        asked = _ask(lines, who, by, given, cache, shown)
        about = who.describe()
    return replace(
        _judged(asked, lines, by, k, held_out, seed), gold=gold, notes=tuple(notes), meta={"model": about, "seed": seed}
    )


def _line(row: Any, number: int) -> _Line:
    if not isinstance(row, Mapping) or not isinstance(row.get("question"), str) or not row["question"].strip():
        raise InputError(f"row {number} of the log has no 'question'")
    if row.get("documents") is None:
        raise InputError(f"row {number} of the log has no 'documents'")
    try:
        documents = as_documents(row["documents"])
    except InputError as error:
        raise InputError(f"row {number} of the log: {error}") from error
    known: dict[str, Document] = {}
    for document in documents:
        if document.text.strip():
            known.setdefault(key_of(document), document)
    if len(known) < 2:
        raise InputError(f"row {number} of the log has fewer than two different documents")
    answers = row.get("answers", row.get("answer")) or ()
    accepted = (answers,) if isinstance(answers, str) else tuple(answers)
    if not all(isinstance(a, str) for a in accepted):
        raise InputError(f"row {number} of the log has an answer that is no text")
    return _Line(row["question"], tuple(known.values()), tuple(a for a in accepted if a.strip()))


def _ask(
    lines: Sequence[_Line], model: LanguageModel, by: By, given: Mapping[str, Any], cache: str | Path | None,
    shown: bool,
) -> list[Asked]:  # fmt: skip
    """What every document of every question is worth."""
    journal = None
    if cache is not None:
        plain = {name: value for name, value in given.items() if name != "progress"}
        rows = [[line.question, [d.text for d in line.documents], line.answers] for line in lines]
        header = {
            "importance": FORMAT, "model": model.describe(), "by": by, "options": codec.encode(plain),
            "log": files.digest(codec.encode(rows)),
        }  # fmt: skip
        journal = files.Journal(cache, header, what="the answers of this log")
    found = [Asked(tuple(row[0]), tuple(row[1]), tuple(row[2])) for row in (journal.rows if journal else [])]
    with progress(total=len(lines), unit="question", initial=len(found), shown=shown) as bar:
        for line in lines[len(found) :]:
            found.append(_asked(line, model, by, given))
            if journal is not None:
                journal.append([[list(found[-1].keys), list(found[-1].worth), list(found[-1].shapley)]])
            bar.update(1)
    return found


def _asked(line: _Line, model: LanguageModel, by: By, given: Mapping[str, Any]) -> Asked:
    structure = special_tokens(model)
    texts = [harmless(d.text, structure) for d in line.documents]
    frame = TemplateFrame(harmless(line.question, structure), templates.load("sources", "default"))
    sampling = Sampling(max_tokens=given["max_tokens"] or LONGEST, stop=tuple(given["stop"]))
    prompts: list[Prompt] = [frame.prompt({i: text}) for i, text in enumerate(texts)]
    if not line.answers:
        prompts.append(frame.prompt(dict(enumerate(texts))))
    said = [done.text for done in model.generate(prompts, sampling)]
    right = line.answers or (said.pop(),)
    values: tuple[float, ...] = ()
    if by == "shapley" and right[0].strip():
        scored = attribute_sources(line.question, line.documents, model, right[0], **given)
        own = {
            part.document: float(s) for part, s in zip(scored.documents.sources, scored.documents.scores, strict=True)
        }
        values = tuple(own.get(i, 0.0) for i in range(len(texts)))
    return Asked(
        tuple(key_of(d) for d in line.documents),
        tuple(max(contains(text, answer) for answer in right) if normalize(text) else 0.0 for text in said),
        values,
    )


def _judged(
    asked: Sequence[Asked], lines: Sequence[_Line], by: By, k: int, held_out: float, seed: int
) -> SourceImportance:
    """Scores from some questions, and what dropping by them does to the others."""
    order = np.random.default_rng(seed).permutation(len(asked))
    held = min(max(1, round(held_out * len(asked))), len(asked) - 2)
    chose, check = [asked[i] for i in order[held:]], [asked[i] for i in order[:held]]
    fitted = weights(chose, k)
    titles = {key_of(d): d.named(0) if d.title or d.id else d.text[:60] for line in lines for d in line.documents}
    scores: dict[str, list[float]] = {key: [] for key in fitted}
    left_out: dict[str, list[float]] = {key: [] for key in fitted}
    for one in chose:
        own = gradient(one.worth, [0.5] * len(one.keys), k) if by == "gradient" else np.array(one.shapley)
        everything = utility(one.worth, k)
        for i, key in enumerate(one.keys):
            if len(own):
                scores[key].append(float(own[i]))
            left_out[key].append(everything - utility([u for j, u in enumerate(one.worth) if j != i], k))
    rows = [_scored(key, titles[key], values, fitted[key]) for key, values in scores.items() if values]
    result = SourceImportance(
        tuple(sorted(rows, key=lambda line: (line.score, line.key))), (), by, k, _cut(chose, fitted, k), True,
        len(chose), len(check),
    )  # fmt: skip
    ways = {by: set(result.dropped), "leave one out": {key for key, v in left_out.items() if np.mean(v) < 0}}
    whole = worth_of(check, k, set())
    checks = [_check(way, dropped, worth_of(check, k, dropped), whole) for way, dropped in ways.items()]
    chance, keys = np.random.default_rng([seed, 1]), sorted(fitted)
    draws = [set(chance.choice(keys, len(result.dropped), replace=False).tolist()) for _ in range(DRAWS)]
    checks.append(_check("random", ways[by], np.mean([worth_of(check, k, d) for d in draws], axis=0), whole))
    return replace(result, checks=(_check("none", set(), whole, whole), *checks))


def _cut(asked: Sequence[Asked], fitted: Mapping[str, float], k: int) -> float:
    """The weight below which documents are dropped: best of the twentieths of all weights; equal ones drop least."""
    values = sorted(fitted.values())
    cuts = sorted({0.0, *(float(np.quantile(values, q / 20)) for q in range(20))})
    gains = [worth_of(asked, k, {key for key, w in fitted.items() if w < cut}).mean() for cut in cuts]
    return cuts[int(np.argmax(np.round(gains, 12)))]


def _scored(key: str, title: str, values: Sequence[float], weight: float) -> SourceLine:
    mean, half = float(np.mean(values)), _half(values)
    return SourceLine(key, title, len(values), mean, mean - half, mean + half, weight)


def _check(way: str, dropped: set[str], found: Floats, whole: Floats) -> Check:
    gain, half = float((found - whole).mean()), _half(found - whole)
    return Check(way, len(dropped), float(found.mean()), gain, gain - half, gain + half)


def _half(values: Sequence[float] | Floats) -> float:
    """Half width of the 95 % interval of a mean (Student's t)."""
    from scipy import stats

    n = len(values)
    if n < 2:
        return float("inf")
    return float(stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n))


def _finite(value: Any) -> Any:
    """The same with None for what is infinite, which JSON has not."""
    if isinstance(value, dict):
        return {key: _finite(held) for key, held in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(held) for held in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value

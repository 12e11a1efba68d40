"""Do explanations name the words that people marked? Token F1 and area under precision-recall (ERASER; DeYoung 2020).

Agreement is plausibility, not faithfulness: a model may be right for reasons of its own. The two are reported apart.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from amplify.attribution.faithfulness import Mean, interval
from amplify.attribution.words import Spans, word_spans
from amplify.errors import DataError, InputError
from amplify.streams import stream
from amplify.types import Attribution, Example

LABELS = ("entailment", "neutral", "contradiction")


@dataclass(frozen=True)
class Highlighted:
    """An example and what people marked in it.

    Attributes:
        example: the premise, a line end, the hypothesis, as one text.
        spans: per annotator the marked words, as characters [start, end) of that text.
    """

    example: Example
    spans: tuple[Spans, ...]

    def marked(self, spans: Spans) -> npt.NDArray[np.bool_]:
        """Which words each annotator marked, shape (annotators, words); a word counts where a mark touches it.

        Args:
            spans: characters of the words.
        """
        return np.array([[any(a < d and c < b for c, d in marks) for a, b in spans] for marks in self.spans])


def load_esnli(path: str | Path) -> list[Highlighted]:
    r"""Read a CSV in the layout of e-SNLI (Camburu et al. 2018): sentences with starred words, one or more annotators.

    The columns are `pairID`, `gold_label`, `Sentence1`, `Sentence2`, and for annotator n `Sentence1_marked_n` and
    `Sentence2_marked_n`, where marked words stand between stars. Rows without a mark or without a gold label ("-") are
    left out.

    Raises:
        DataError: no such file, a column missing, or a marked sentence whose words are not those of the sentence.

    Example:
        >>> head = "pairID,gold_label,Sentence1,Sentence2,Sentence1_marked_1,Sentence2_marked_1"
        >>> row = "7,contradiction,A dog runs,A dog sleeps,A dog *runs*,A dog *sleeps*"
        >>> _ = Path("esnli.csv").write_text(f"{head}\n{row}\n")
        >>> [item] = load_esnli("esnli.csv")
        >>> [item.example.text[a:b] for a, b in item.spans[0]]
        ['runs', 'sleeps']
    """
    try:
        with Path(path).open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            columns, rows = list(reader.fieldnames or ()), list(reader)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    needed = ["pairID", "gold_label", "Sentence1", "Sentence2", "Sentence1_marked_1", "Sentence2_marked_1"]
    if missing := [name for name in needed if name not in columns]:
        raise DataError(f"{path} lacks the columns {', '.join(missing)}: e-SNLI has {', '.join(needed)}")
    annotators = sorted(int(m[1]) for name in columns if (m := re.fullmatch(r"Sentence1_marked_(\d+)", name)))
    found = []
    for number, row in enumerate(rows, start=2):
        premise, hypothesis = row["Sentence1"] or "", row["Sentence2"] or ""
        marks = []
        for n in annotators:
            own = row.get(f"Sentence1_marked_{n}") or "", row.get(f"Sentence2_marked_{n}") or ""
            first = _marks(premise, own[0], f"{path}, line {number}")
            second = _marks(hypothesis, own[1], f"{path}, line {number}")
            if first or second:
                shift = len(premise) + 1
                marks.append((*first, *((a + shift, b + shift) for a, b in second)))
        if marks and row["gold_label"] in LABELS:
            example = Example(row["pairID"], f"{premise}\n{hypothesis}", row["gold_label"])
            found.append(Highlighted(example, tuple(marks)))
    return found


def _marks(sentence: str, starred: str, where: str) -> Spans:
    """Characters of the sentence that stand between stars; word by word, since the two differ in white space."""
    places = word_spans(sentence)
    marks: list[tuple[int, int]] = []
    at, inside = 0, False
    for piece in re.split(r"(\*)", starred):
        if piece == "*":
            inside = not inside
            continue
        for a, b in word_spans(piece):
            # a star may part a word ("*dog*s"): what is between counts for the whole word
            while at < len(places) and piece[a:b] not in sentence[slice(*places[at])]:
                at += 1
            if at == len(places):
                raise DataError(f"{where}: the marked sentence has {piece[a:b]!r}, which is not in {sentence[:60]!r}")
            if inside and (not marks or marks[-1] != places[at]):
                marks.append(places[at])
            if sentence[slice(*places[at])].endswith(piece[a:b]):
                at += 1
    return tuple(marks)


@dataclass(frozen=True)
class Agreement:
    """How well explanations agree with people, as means over items with 95 % intervals.

    Attributes:
        f1: token F1 of the top words, as many as the annotator marked.
        auprc: area under the precision-recall curve of the scores (average precision).
        random_f1, random_auprc: of random scores, the mean of several draws.
        items: inputs averaged over; several annotators of one are averaged first.
    """

    f1: Mean
    auprc: Mean
    random_f1: Mean
    random_auprc: Mean
    items: int

    def __str__(self) -> str:
        lines = [f"agreement with people on {self.items} items, 95 % intervals"]
        for name, own, chance in (("token F1", self.f1, self.random_f1), ("AUPRC", self.auprc, self.random_auprc)):
            lines.append(
                f"  {name:<9} {own.mean:.3f} [{own.low:.3f}, {own.high:.3f}]"
                f"   random {chance.mean:.3f} [{chance.low:.3f}, {chance.high:.3f}]"
            )
        return "\n".join(lines)


def agreement(
    attributions: Sequence[Attribution], highlights: Sequence[Highlighted], *, draws: int = 20, seed: int = 0
) -> Agreement:
    """Compare explanations with people's highlights.

    Args:
        attributions: one per item, over its text. Words that an attribution does not score count as least important.
        highlights: the same items in the same order.
        draws: random score vectors of the reference.
        seed: of them.

    Raises:
        InputError: other texts, scores that are not finite, or nothing to compare.

    Example:
        >>> people = Highlighted(Example("7", "A dog runs"), (((6, 10),),))
        >>> found = Attribution("A dog runs", ("dog", "runs"), ((2, 5), (6, 10)), (0.1, 0.7), "entailment")
        >>> agreement([found], [people]).f1.mean
        1.0
    """
    if not attributions or len(attributions) != len(highlights):
        raise InputError(f"{len(attributions)} attributions and {len(highlights)} highlights: one each is needed")
    rng = stream(seed, "agreement random")
    own, chance = [], []
    for attribution, people in zip(attributions, highlights, strict=True):
        text = people.example.text
        if attribution.text != text:
            raise InputError(f"the attribution is of another text than the highlights: {attribution.text[:60]!r}")
        if not np.isfinite(attribution.scores).all():
            raise InputError(f"scores that are not finite: {text[:60]!r}")
        given = dict(zip(attribution.spans, attribution.scores, strict=True))
        spans = tuple(sorted({*word_spans(text), *given}))
        least = min(attribution.scores, default=0.0) - 1.0
        scores = np.array([given.get(span, least) for span in spans])
        marked = people.marked(spans)
        own.append(np.mean([_compared(scores, m) for m in marked], axis=0))
        drawn = [_compared(rng.random(len(spans)), m) for m in marked for _ in range(draws)]
        chance.append(np.mean(drawn, axis=0))
    mine, random = np.array(own), np.array(chance)
    return Agreement(
        interval(mine[:, 0]), interval(mine[:, 1]), interval(random[:, 0]), interval(random[:, 1]), len(own)
    )


def _compared(scores: npt.NDArray[np.float64], marked: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """F1 of the top words and average precision."""
    from sklearn.metrics import average_precision_score

    k = int(marked.sum())
    top = np.argsort(-scores, kind="stable")[:k]
    # as many words named as marked: precision, recall and F1 are the same
    return float(marked[top].mean()), float(average_precision_score(marked, scores))

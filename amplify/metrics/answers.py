"""Scores of one short answer against a reference, and macro F1 over all of them."""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence

from amplify.text import bare

Prediction = str | None


def normalize(text: str) -> str:
    """Lower case, without punctuation, English articles and extra spaces (SQuAD, Rajpurkar et al. 2016).

    Example:
        >>> normalize("The  U.S. answer!")
        'us answer'
    """
    bare = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def same_label(prediction: str, reference: str) -> float:
    """1.0 where the two are the same label, outer spaces and Unicode's composition aside; May is not may."""
    return float(_label(prediction) == _label(reference))


def _label(text: str) -> str:
    return unicodedata.normalize("NFC", text.strip())


def first_token_choice(first_tokens: Mapping[str, float], label: str) -> float:
    """1.0 where the label's first token is likelier than that of every other one, as CounterFact is published.

    Labels that begin with the same token are never told apart so: neither is chosen.
    """
    return float(all(first_tokens[label] > score for other, score in first_tokens.items() if other != label))


def exact(prediction: str, reference: str) -> float:
    """1.0 where the two agree up to letter case, runs of spaces and what stands around a short answer.

    That is quotes, Markdown, `$…$` and a full stop at the end, of either (see `amplify.text.bare`); punctuation inside
    counts (think of brackets).
    """
    return float(prediction.split() != [] and _exact(prediction) == _exact(reference))


def _exact(text: str) -> str:
    folded = " ".join(unicodedata.normalize("NFC", text).casefold().split())
    return bare(folded).removesuffix(".") or folded


def token_f1(prediction: str, reference: str) -> float:
    """Harmonic mean of precision and recall over the bags of normalised tokens; 0.0 if either bag is empty.

    Example:
        >>> round(token_f1("the red car", "red bus"), 2)
        0.5
    """
    got, want = normalize(prediction).split(), normalize(reference).split()
    common = sum((Counter(got) & Counter(want)).values())
    return 2 * common / (len(got) + len(want)) if common else 0.0


def answer_match(prediction: str, reference: str) -> float:
    """1.0 where the two agree after SQuAD's normalisation, the exact match of question answering."""
    return float(normalize(prediction) == normalize(reference) != "")


def contains(prediction: str, reference: str) -> float:
    """1.0 where the normalised reference stands in the normalised prediction as whole words.

    The accuracy of Lost in the Middle (Liu et al. 2023), made for models that answer in sentences.

    Example:
        >>> contains("It was Ada Lovelace.", "ada lovelace")
        1.0
    """
    want = normalize(reference)
    return float(bool(want) and f" {want} " in f" {normalize(prediction)} ")


def macro_f1(predictions: Sequence[Prediction], references: Sequence[str]) -> float:
    """Unweighted mean of each label's F1 over the labels among the references.

    A prediction that is no such label (unparsed included) counts against recall, and has no row of its own: what a
    model makes up must not change the number of classes.
    """
    gold = [_label(r) for r in references]
    got = ["" if p is None else _label(p) for p in predictions]
    scores = []
    for label in sorted(set(gold)):
        hit = sum(g == p == label for g, p in zip(gold, got, strict=True))
        scores.append(2 * hit / (gold.count(label) + got.count(label)))
    return sum(scores) / len(scores)

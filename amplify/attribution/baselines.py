"""Scores that look at no model: what an explainer has to beat."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import log

import numpy as np

from amplify.attribution.perturbation import Floats
from amplify.attribution.words import words_in


def random_scores(text: str, words: int, seed: int) -> Floats:
    """Standard normal scores that depend on the seed and the text alone."""
    return np.random.default_rng([seed, *text.encode("utf-8", "surrogatepass")]).normal(size=words)


def tfidf_scores(words: Sequence[str], corpus: Sequence[str]) -> Floats:
    """Term frequency among the words times smoothed inverse document frequency in a corpus (as scikit-learn has it)."""
    documents = Counter(word for text in corpus for word in words_in([text]))
    terms = Counter(word.casefold() for word in words)
    weight = {term: n * (log((1 + len(corpus)) / (1 + documents[term])) + 1) for term, n in terms.items()}
    return np.array([weight[word.casefold()] for word in words], dtype=np.float64)

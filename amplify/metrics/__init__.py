"""Metrics: scores of an answer, and over many of them.

A prediction is the parsed answer, or None where nothing could be parsed. None and empty answers never score: not
even against an empty reference.
"""

from amplify.metrics.answers import contains, normalize, token_f1
from amplify.metrics.kinds import KINDS, Kind, answer_scores, find, item_score, scores

__all__ = [
    "KINDS",
    "Kind",
    "answer_scores",
    "contains",
    "find",
    "item_score",
    "normalize",
    "scores",
    "token_f1",
]

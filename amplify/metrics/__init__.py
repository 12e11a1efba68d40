"""Metrics: scores of a single item, and `evaluate.Metric` objects over all of them that need no network.

A prediction is the parsed answer, or None where nothing could be parsed. None and empty answers never score: not
even against an empty reference.
"""

from amplify.metrics.answers import contains, normalize, token_f1
from amplify.metrics.kinds import KINDS, Kind, answer_scores, find, item_score
from amplify.metrics.loading import Metric, load

__all__ = [
    "KINDS",
    "Kind",
    "Metric",
    "answer_scores",
    "contains",
    "find",
    "item_score",
    "load",
    "normalize",
    "token_f1",
]

"""Which sources made the answer: games over coalitions of sources, and their Shapley and Banzhaf values."""

from amplify.textgenshap.costs import PrefixCost
from amplify.textgenshap.estimate import Estimate, estimate
from amplify.textgenshap.estimators import ESTIMATORS
from amplify.textgenshap.exact import all_coalitions, exact_scores
from amplify.textgenshap.value import CachedValue, Coalitions, Value

__all__ = [
    "ESTIMATORS",
    "CachedValue",
    "Coalitions",
    "Estimate",
    "PrefixCost",
    "Value",
    "all_coalitions",
    "estimate",
    "exact_scores",
]

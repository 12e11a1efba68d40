"""Games over coalitions and how to score their players: one library for words, documents and whatever comes next."""

from amplify.shapley.budget import PrefixCost, least
from amplify.shapley.estimate import Estimate, Guide, Scores, estimate
from amplify.shapley.estimators import ESTIMATORS
from amplify.shapley.exact import all_coalitions, exact_scores
from amplify.shapley.game import CachedValue, Coalitions, Floats, Value, leave_one_out

__all__ = [
    "ESTIMATORS",
    "CachedValue",
    "Coalitions",
    "Estimate",
    "Floats",
    "Guide",
    "PrefixCost",
    "Scores",
    "Value",
    "all_coalitions",
    "estimate",
    "exact_scores",
    "least",
    "leave_one_out",
]

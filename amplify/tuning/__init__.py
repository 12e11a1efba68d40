"""Better answers, found: a search over registered methods under a budget, confirmed on items that it has not seen."""

from amplify.tuning.budget import Budget, Spent
from amplify.tuning.candidates import Candidate, candidates_for
from amplify.tuning.ingredients import Ingredient
from amplify.tuning.search import Confirmation, Line, Tuned, tune

__all__ = [
    "Budget",
    "Candidate",
    "Confirmation",
    "Ingredient",
    "Line",
    "Spent",
    "Tuned",
    "candidates_for",
    "tune",
]

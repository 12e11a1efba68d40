"""Why this answer: scores over the words of one input.

`explain` and `explain_many` are the way in; `METHODS` says what there is. Imported on first use: the modules below
this one stand on each other and on models.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from amplify.attribution.explainers import METHODS
    from amplify.attribution.explanations import explain, explain_many

__all__ = ["METHODS", "explain", "explain_many"]

_WHERE = {"METHODS": "explainers", "explain": "explanations", "explain_many": "explanations"}


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(f"amplify.attribution.{_WHERE[name]}"), name)
    raise AttributeError(f"module 'amplify.attribution' has no attribute {name!r}")

"""Why this answer: scores over the words of one input.

`explain` and `explain_many` are the way in; `METHODS` says what there is. Imported on first use: the modules below
this one stand on each other and on models.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from amplify.lazy import lazily

if TYPE_CHECKING:
    from amplify.attribution.explainers import METHODS
    from amplify.attribution.explanations import explain, explain_many

__all__ = ["METHODS", "explain", "explain_many"]

__getattr__ = lazily(__name__, {"METHODS": "explainers", "explain": "explanations", "explain_many": "explanations"})

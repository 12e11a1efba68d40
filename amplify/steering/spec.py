"""Which heads are steered, how, and how strongly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

SteeringMode = Literal["pasta", "instaboost", "spotlight", "target_mass"]


@dataclass(frozen=True)
class Steering:
    """Head set and strength, applied to the spans that a prompt's `emphasis` marks.

    Attributes:
        heads: layer -> query heads.
        alpha: attention outside the spans is scaled by this factor before renormalising; in (0, 1].
        mode: which relative of the one formula.
    """

    heads: Mapping[int, tuple[int, ...]]
    alpha: float = 0.01
    mode: SteeringMode = "pasta"

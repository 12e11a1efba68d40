"""The relatives of the one formula by name: each says by what factor attention on a span is multiplied."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from amplify.errors import InputError
from amplify.registry import Table, register

if TYPE_CHECKING:
    from amplify.steering.spec import Steering


@dataclass(frozen=True)
class SteeringMode:
    """How strongly a span's attention is multiplied: by a fixed weight, or by one that each row finds for itself.

    Attributes:
        description: one line.
        weight: Steering -> the factor w > 0 of spans that name none.
        factors: (psi, outside, Steering) -> w of each row, from its attention mass psi > 0 on the spans and the mass
            outside them; arrays or tensors of one shape, to be used with arithmetic alone. 1 leaves a row as it is.
            Modes with factors need a second look at a row's attention, which not every engine offers.
        chosen_heads: whether the heads must be named, steering all of them being no use.
    """

    description: str
    weight: Callable[[Steering], float] | None = None
    factors: Callable[[Any, Any, Steering], Any] | None = None
    chosen_heads: bool = False


def _adopt(name: str, value: Any) -> SteeringMode:
    if isinstance(value, SteeringMode):
        if (value.weight is None) == (value.factors is None):
            raise InputError(f"the steering mode {name!r} has either a weight or factors")
        return value
    if not callable(value):
        raise InputError(f"the steering mode {name!r} is a function of a Steering, or a SteeringMode, not {value!r}")
    return SteeringMode(next(iter((value.__doc__ or "").strip().splitlines()), ""), weight=value)


MODES: Table[SteeringMode] = Table("steering_mode", _adopt)
"""Every mode by name."""


def _spotlight(psi: Any, outside: Any, steering: Steering) -> Any:
    share = psi / (psi + outside)
    below = (share < steering.target) * 1.0
    return steering.target / share * below + (1.0 - below)


def _target_mass(psi: Any, outside: Any, steering: Steering) -> Any:
    some = (outside > 1e-30) * 1.0  # where there is nothing else, the mass is what it is
    return steering.target * outside / (psi * (1 - steering.target)) * some + (1.0 - some)


register(
    "steering_mode", "pasta",
    SteeringMode("the span's attention times 1/alpha, in chosen heads", lambda s: 1 / s.alpha, chosen_heads=True),
)  # fmt: skip
register(
    "steering_mode", "instaboost", SteeringMode("the span's attention times exp(bonus)", lambda s: math.exp(s.bonus))
)
register(
    "steering_mode", "spotlight",
    SteeringMode("the span's attention raised to the target where it is below it", factors=_spotlight),
)  # fmt: skip
register(
    "steering_mode", "target_mass", SteeringMode("the span's attention mass exactly the target", factors=_target_mass)
)

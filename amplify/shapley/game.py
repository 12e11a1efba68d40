"""The one bridge from text to Shapley numbers: a value function over coalitions, with a memory and a budget."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from amplify.errors import InputError

Coalitions: TypeAlias = npt.NDArray[np.bool_]  # [coalitions, sources], True where the source is present
Floats: TypeAlias = npt.NDArray[np.float64]
Value: TypeAlias = Callable[[Coalitions], npt.NDArray[np.floating]]  # -> [coalitions] or [coalitions, answers]


def distinct(coalitions: Coalitions) -> tuple[Coalitions, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """`np.unique(coalitions, axis=0, return_index=True, return_inverse=True)`, quick for wide rows too.

    Returns:
        The different rows, sorted; where each is first; and for every row which of them it is.
    """
    keys = [row.tobytes() for row in np.packbits(coalitions, axis=1)]  # in the order of the rows themselves
    first: dict[bytes, int] = {}
    for i, key in enumerate(keys):
        first.setdefault(key, i)
    place = {key: i for i, key in enumerate(sorted(first))}
    begins = np.array([first[key] for key in place], dtype=np.int64)
    return coalitions[begins], begins, np.array([place[key] for key in keys], dtype=np.int64)


def leave_one_out(value: Value, n: int) -> Floats:
    """What is lost where one source alone is missing: v(all) - v(all but i) (erasure; Li et al. 2016).

    Args:
        value: asked for all sources and for all but each one, together.
        n: number of sources.

    Returns:
        [n], or [n, answers] where the values have an answer axis.

    Example:
        >>> leave_one_out(lambda kept: kept @ [1.0, 2.0, 4.0], 3)
        array([1., 2., 4.])
    """
    values = np.asarray(value(np.concatenate([np.ones((1, n), bool), ~np.eye(n, dtype=bool)])), dtype=np.float64)
    return values[0] - values[1:]


class CachedValue:
    """A value function that is asked at most once for each coalition, and never for more than `budget` of them.

    Args:
        value: bool[coalitions, n] -> float[coalitions] or float[coalitions, answers].
        n: number of sources.
        budget: distinct coalitions that may be asked, the empty and the full one included; None for no limit.

    Attributes:
        calls: distinct coalitions asked so far.
        answers: number of value columns (1 where the values have no answer axis); None before the first call.
        flat: True where the values have no answer axis; None before the first call.

    Example:
        >>> game = CachedValue(lambda coalitions: coalitions.sum(axis=1), 3)
        >>> game([[True, False, True], [True, False, True]])
        array([[2.],
               [2.]])
        >>> game.calls
        1
    """

    def __init__(self, value: Value, n: int, budget: int | None = None) -> None:
        if n < 1:
            raise InputError(f"a game needs at least one source, got n = {n}")
        self.n = n
        self.budget = budget
        self.answers: int | None = None
        self.flat: bool | None = None
        self._value = value
        self._rows: dict[bytes, int] = {}
        self._coalitions: list[Coalitions] = []
        self._values: list[Floats] = []

    @property
    def calls(self) -> int:
        """Distinct coalitions asked so far."""
        return len(self._rows)

    @property
    def left(self) -> float:
        """Distinct coalitions that may still be asked."""
        return float("inf") if self.budget is None else self.budget - self.calls

    def new_among(self, coalitions: Coalitions) -> int:
        """How many distinct coalitions of these have not been asked yet."""
        return len({row.tobytes() for row in np.asarray(coalitions, dtype=bool)} - self._rows.keys())

    def __call__(self, coalitions: Coalitions) -> Floats:
        """Values of the coalitions, [coalitions, answers]; only those not seen before are computed, in one batch.

        Raises:
            InputError: wrong shape, more new coalitions than the budget allows, or a value that is not a finite number.
        """
        asked = np.atleast_2d(np.asarray(coalitions, dtype=bool))
        if asked.ndim != 2 or asked.shape[1] != self.n:
            raise InputError(f"coalitions are bool[coalitions, {self.n}], got an array of shape {asked.shape}")
        keys = [row.tobytes() for row in asked]
        first = {key: i for i, key in reversed(list(enumerate(keys)))}
        new = sorted(i for key, i in first.items() if key not in self._rows)
        if len(new) > self.left:
            raise InputError(
                f"{len(new)} new coalitions asked, but {self.left:.0f} of the budget {self.budget} are left"
            )
        if new:
            self._store(asked[new], [keys[i] for i in new])
        table = self.values
        return table[[self._rows[key] for key in keys]]

    def _store(self, fresh: Coalitions, keys: list[bytes]) -> None:
        raw = np.asarray(self._value(fresh), dtype=np.float64)
        if raw.ndim not in (1, 2) or len(raw) != len(fresh):
            raise InputError(
                f"the value function got {len(fresh)} coalitions and gave an array of shape {raw.shape}; "
                f"expected ({len(fresh)},) or ({len(fresh)}, answers)"
            )
        flat, columns = raw.ndim == 1, raw.reshape(len(fresh), -1)
        if self.answers is None:
            self.answers, self.flat = columns.shape[1], flat
        elif (columns.shape[1], flat) != (self.answers, self.flat):
            raise InputError(f"the value function changed its number of answers: {self.answers}, then {raw.shape}")
        bad = np.flatnonzero(~np.isfinite(columns).all(axis=1))
        if len(bad):
            members = np.flatnonzero(fresh[bad[0]]).tolist()
            raise InputError(f"the value of the coalition of sources {members} is not a finite number: {raw[bad[0]]}")
        for key in keys:
            self._rows[key] = len(self._rows)
        self._coalitions.append(fresh.copy())
        self._values.append(columns)

    @property
    def coalitions(self) -> Coalitions:
        """All coalitions asked so far, [calls, n], in the order of asking."""
        return np.concatenate(self._coalitions) if self._coalitions else np.zeros((0, self.n), bool)

    @property
    def values(self) -> Floats:
        """Their values, [calls, answers]."""
        return np.concatenate(self._values) if self._values else np.zeros((0, self.answers or 1))

"""Exact Shapley and Banzhaf values of a game whose 2^n values are known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.special import gammaln

from amplify.shapley.game import Coalitions, Floats

Index = Literal["shapley", "banzhaf"]
MAX_SOURCES = 20  # 2^20 values of float64 are 8 MiB an answer
UNASKED = 15  # sources of which all coalitions are asked at most where nobody named "exact": 32,768, seconds of the
# smallest model, minutes of a proxy


@dataclass(frozen=True)
class Owen:
    """Scores of the last of several blocks of players, while those before it come and go as the index has it.

    The value of what a part consists of (the last block), within what stands beside the part at every level above it
    (Owen 1977): sizes of each block are weighed on their own.

    Attributes:
        blocks: how many players each has, in the order of a coalition's columns.
        index: "shapley" or "banzhaf".
    """

    blocks: tuple[int, ...]
    index: Index = "shapley"

    @property
    def scored(self) -> slice:
        """The columns of the players with scores."""
        return slice(sum(self.blocks[:-1]), sum(self.blocks))

    @property
    def outer(self) -> list[slice]:
        """The columns of each block before."""
        ends = np.cumsum(self.blocks)
        return [slice(int(end) - size, int(end)) for end, size in zip(ends[:-1], self.blocks[:-1], strict=True)]


def as_owen(index: Index | Owen, n: int) -> Owen:
    """An index of n players in one block, unless it says which blocks there are."""
    return index if isinstance(index, Owen) else Owen((n,), index)


def all_coalitions(n: int) -> Coalitions:
    """Every coalition of n sources, bool[2^n, n]; row k holds source i where bit i of k is set.

    Example:
        >>> all_coalitions(2).astype(int)
        array([[0, 0],
               [1, 0],
               [0, 1],
               [1, 1]])
    """
    return (np.arange(2**n)[:, None] >> np.arange(n) & 1).astype(bool)


def log_binomial(n: int, k: npt.ArrayLike) -> Floats:
    """log of n choose k."""
    k = np.asarray(k, dtype=np.float64)
    return gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)


def marginal_weights(n: int, index: Index) -> Floats:
    """Weight of one marginal v(S + i) - v(S) by the size of S, [n]: 1 / (n C(n-1, |S|)), or 2^-(n-1) for Banzhaf."""
    return np.exp(log_marginal_weights(n, index))


def log_marginal_weights(n: int, index: Index) -> Floats:
    """Logarithms of `marginal_weights`, [n]."""
    if index == "banzhaf":
        return np.full(n, (1 - n) * np.log(2.0))
    return -np.log(n) - log_binomial(n - 1, np.arange(n))


def exact_scores(values: Floats, index: Index = "shapley") -> Floats:
    """Shapley or Banzhaf values of a complete game.

    Args:
        values: [2^n] or [2^n, answers] in the order of `all_coalitions`.
        index: "shapley" (Shapley 1953) or "banzhaf" (Banzhaf 1965).

    Returns:
        [n] or [n, answers].

    Example:
        >>> exact_scores(np.array([0.0, 1.0, 2.0, 5.0]))  # of the coalitions {}, {0}, {1} and {0, 1}
        array([2., 3.])
    """
    n = int(np.log2(len(values)))
    table = np.asarray(values, dtype=np.float64).reshape(len(values), -1)
    by_size = marginal_weights(n, index)
    rest = by_size[all_coalitions(n - 1).sum(axis=1)]
    scores = np.empty((n, table.shape[1]))
    for i in range(n):
        # axis 1 of the view is bit i; the other bits keep their order and number the coalitions without i
        pairs = table.reshape(2 ** (n - 1 - i), 2, 2**i, -1)
        scores[i] = rest @ (pairs[:, 1] - pairs[:, 0]).reshape(2 ** (n - 1), -1)
    return scores[:, 0] if np.ndim(values) == 1 else scores


def coalition_weights(coalitions: Coalitions, index: Index | Owen) -> Floats:
    """Weight w_i(S) with which v(S) enters score i: phi_i = sum over all S of w_i(S) v(S). [coalitions, scored].

    Positive where i is in S, negative where it is not.
    """
    owen = as_owen(index, coalitions.shape[1])
    inner = coalitions[:, owen.scored]
    n, sizes = inner.shape[1], inner.sum(axis=1)
    by_size = marginal_weights(n, owen.index)
    present = by_size[np.maximum(sizes - 1, 0)]
    absent = by_size[np.minimum(sizes, n - 1)]
    weights = np.where(inner, present[:, None], -absent[:, None])
    for block in owen.outer:
        weights = weights * chances(coalitions[:, block], owen.index)[:, None]
    return weights


def chances(coalitions: Coalitions, index: Index) -> Floats:
    """How likely each coalition of a block is while another player is judged: alike within a size, and so are sizes.

    Banzhaf: every coalition alike. [coalitions].
    """
    n = coalitions.shape[1]
    if index == "banzhaf":
        return np.full(len(coalitions), 0.5**n)
    return np.exp(-log_binomial(n, coalitions.sum(axis=1))) / (n + 1)

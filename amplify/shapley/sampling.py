"""Which coalitions to ask: complement pairs, balanced over sizes, without replacement; antithetic permutations."""

from __future__ import annotations

from itertools import combinations
from math import comb

import numpy as np

from amplify.shapley.exact import Index, log_binomial
from amplify.shapley.game import Coalitions, Floats

ENUMERATE = 20_000  # strata up to this many coalitions are listed and shuffled, larger ones are drawn and deduplicated


def ends(n: int) -> Coalitions:
    """The empty and the full coalition, bool[2, n]."""
    return np.stack([np.zeros(n, bool), np.ones(n, bool)])


def pair_sizes(n: int) -> list[int]:
    """Sizes of the smaller half of a complement pair, the pair (empty, full) left out: 1 .. n // 2."""
    return list(range(1, n // 2 + 1))


def pairs_of_size(n: int, size: int) -> int:
    """How many complement pairs {S, N - S} there are with |S| = size <= n / 2."""
    return comb(n, size) // (2 if 2 * size == n else 1)


def capacities(n: int) -> Floats:
    """How many pairs there are of each pair size, as floats (1e300 for more). [n // 2]."""
    if n <= 1000:
        return np.array([float(pairs_of_size(n, s)) for s in pair_sizes(n)])
    return np.exp(np.minimum(log_binomial(n, pair_sizes(n)), np.log(1e300)))


def uniform(n: int) -> Floats:
    """Share of each pair size where all pairs are equally likely. [n // 2]."""
    share = capacities(n) / max(capacities(n), default=1.0)
    return share / share.sum()


def shapley_kernel(n: int) -> Floats:
    """Share of each pair size under the Shapley kernel's size distribution, p(s) ~ 1 / (s (n - s)). [n // 2]."""
    sizes = np.array(pair_sizes(n), dtype=np.float64)
    share = np.where(2 * sizes == n, 1.0, 2.0) / (sizes * (n - sizes))
    return share / share.sum()


def leverage(n: int) -> Floats:
    """Share of each pair size under leverage scores, which are equal for all sizes (Musco & Witter 2025). [n // 2]."""
    sizes = np.array(pair_sizes(n))
    share = np.where(2 * sizes == n, 1.0, 2.0)
    return share / share.sum()


def expected_counts(shares: Floats, capacity: Floats, count: int) -> Floats:
    """`count` draws split over strata in proportion to `shares`, full strata passing on what they cannot take."""
    given = np.zeros(len(shares))
    left = min(float(count), float(capacity.sum()))
    while left > 1e-9:
        step = np.where(given < capacity, shares, 0.0)
        more = np.minimum(left * step / step.sum(), capacity - given)
        given += more
        left -= float(more.sum())
    return given


def size_sequence(shares: Floats, capacity: Floats, count: int, rng: np.random.Generator) -> list[int]:
    """Strata in the order in which to draw from them, so that every beginning is balanced. Ties by lot.

    Sainte-Lague's divisor method: unlike rounding, a longer sequence never takes a draw away from a stratum.
    """
    given = np.zeros(len(shares))
    lot = 1 + 1e-6 * rng.random(len(shares))
    order: list[int] = []
    for _ in range(int(min(count, capacity.sum()))):
        claim = np.where(given < capacity, shares * lot / (2 * given + 1), -1.0)
        order.append(int(claim.argmax()))
        given[order[-1]] += 1
    return order


def draw_of_size(n: int, size: int, count: int, rng: np.random.Generator) -> Coalitions:
    """`count` different complement pairs with |S| = size, as their first halves, bool[count, n].

    A larger count with the same random numbers begins with the same pairs.
    """
    half = 2 * size == n
    total = pairs_of_size(n, size)
    rows = np.zeros((count, n), bool)
    if total <= ENUMERATE:
        # with 2 |S| = n the pair is named by its half that holds source 0
        members = [c for c in combinations(range(n), size) if not half or c[0] == 0]
        for row, k in zip(rows, rng.permutation(total)[:count], strict=True):
            row[list(members[k])] = True
        return rows
    seen: set[bytes] = set()
    while len(seen) < count:
        row = np.zeros(n, bool)
        row[rng.choice(n, size, replace=False)] = True
        if half and not row[0]:
            row = ~row
        if row.tobytes() not in seen:
            rows[len(seen)] = row
            seen.add(row.tobytes())
    return rows


def paired(n: int, count: int, shares: Floats, seed: int) -> Coalitions:
    """Complement pairs without replacement, balanced over sizes: as their first halves in the order to ask them.

    Args:
        n: sources.
        count: pairs wanted; fewer come back where there are no more.
        shares: how to split them over `pair_sizes(n)`.
        seed: makes the sample repeatable; a larger count begins with the same pairs.

    Returns:
        bool[pairs, n]; every beginning of it is a balanced sample too.
    """
    sizes = pair_sizes(n)
    capacity = capacities(n)
    order = size_sequence(shares, capacity, count, np.random.default_rng(seed))
    drawn = {k: iter(draw_of_size(n, sizes[k], order.count(k), np.random.default_rng([seed, k]))) for k in set(order)}
    rows = [next(drawn[k]) for k in order]
    return np.stack(rows) if rows else np.zeros((0, n), bool)


def spanning(first: Coalitions, index: Index) -> Coalitions:
    """The same pairs; where they are few and leave a source's score open, some make way for pairs of a single source.

    A linear fit is determined by n independent pairs, and one less where it goes through the empty and the full
    coalition (Shapley). As many drawn at random often are not independent (of four: {1}, {2} and {1, 2}). The last ones
    that say nothing new are exchanged; a sample that determines the fit stays as it is.

    Args:
        first: first halves of complement pairs, bool[pairs, n], as many as are needed.
        index: "shapley" or "banzhaf".
    """
    pairs, n = first.shape
    if n > 512 or pairs > max(3 * n, 64):  # of so many enough are independent
        return first
    needed = n - (index == "shapley")
    # Gram-Schmidt in the order of asking
    basis, found = np.zeros((needed, n)), 0
    idle, better = [], []
    for k, row in enumerate([*first, *np.eye(n, dtype=bool)]):
        if found == needed:
            break
        sign = row - (row.mean() if index == "shapley" else 0.5)
        rest = sign - basis[:found].T @ (basis[:found] @ sign)
        if (length := float(np.linalg.norm(rest))) > 1e-6:
            basis[found] = rest / length
            found += 1
            if k >= pairs:
                better.append(row)
        elif k < pairs:
            idle.append(k)
    result = first.copy()
    for k, row in zip(reversed(idle), better, strict=False):
        result[k] = row
    return result


def stands_for(first: Coalitions, shares: Floats) -> Floats:
    """Inverse inclusion probability of each pair of `paired`: how many pairs of its size it stands for. [pairs]."""
    n = first.shape[1]
    capacity = capacities(n)
    expected = expected_counts(shares, capacity, len(first))
    size = first.sum(axis=1)
    stratum = np.minimum(size, n - size) - 1
    return capacity[stratum] / expected[stratum]


def luck(first: Coalitions, shares: Floats) -> Floats:
    """How many pairs of each one's size are in a sample of `paired`, over how many there are on average. [pairs].

    Only sizes of equal shares are dealt out by lot; a size all of whose pairs are there has just these.
    """
    n = first.shape[1]
    stratum = np.minimum(first.sum(axis=1), n - first.sum(axis=1)) - 1
    there = np.bincount(stratum, minlength=len(shares)).astype(float)
    average = there.copy()
    by_lot = there < capacities(n)
    for share in np.unique(shares[by_lot]):
        alike = by_lot & (shares == share)
        average[alike] = there[alike].mean()
    return (there / np.maximum(average, 1e-300))[stratum]


def with_complements(first: Coalitions) -> Coalitions:
    """Each coalition followed by its complement, bool[2 pairs, n].

    Example:
        >>> with_complements(np.array([[True, False, False]])).astype(int)
        array([[1, 0, 0],
               [0, 1, 1]])
    """
    return np.stack([first, ~first], axis=1).reshape(-1, first.shape[1])


def prefixes(order: np.ndarray) -> Coalitions:
    """The n + 1 coalitions that one permutation walks through, from empty to full. bool[n + 1, n]."""
    n = len(order)
    place = np.empty(n, int)
    place[order] = np.arange(n)
    return place[None, :] < np.arange(n + 1)[:, None]

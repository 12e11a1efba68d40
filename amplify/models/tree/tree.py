"""Trees of token segments: what shares a prefix stands in the tree once, and branches do not see each other.

Here is the bookkeeping alone (NumPy, no model): which tokens have to go through a model, in which order, what each of
them sees, and where each wanted log-probability is read. `packed.py` runs it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from amplify.errors import InputError

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TokenTree:
    """Token segments, each behind its parent. A token sees its node's ancestors and what precedes it in its own node.

    Attributes:
        segments: token ids of each node; a segment may be empty.
        parents: index of each node's parent, smaller than its own; -1 for a root. Several roots are a forest.
        hidden: node -> ancestors that its tokens do not see. Not inherited: each node says for itself.
        positions: node -> position of its first token. Others continue behind their parent, roots start at 0.

    Raises:
        InputError: a parent that does not come before its child, or something hidden that is no ancestor.
    """

    segments: tuple[tuple[int, ...], ...]
    parents: tuple[int, ...]
    hidden: Mapping[int, frozenset[int]] = field(default_factory=dict)
    positions: Mapping[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "segments", tuple(tuple(s) for s in self.segments))
        object.__setattr__(self, "parents", tuple(self.parents))
        object.__setattr__(self, "hidden", {n: frozenset(a) for n, a in self.hidden.items() if a})
        if len(self.segments) != len(self.parents):
            raise InputError(f"a tree has one parent per segment: {len(self.segments)} and {len(self.parents)}")
        for node, parent in enumerate(self.parents):
            if not -1 <= parent < node:
                raise InputError(f"node {node} has parent {parent}: a parent comes before its children (-1: none)")
        for node, start in self.positions.items():
            if not 0 <= node < len(self.segments) or start < 0:
                raise InputError(f"position {start} of node {node}: a node of the tree, and 0 or more, are needed")
        for node, ancestors in self.hidden.items():
            if not 0 <= node < len(self.segments):
                raise InputError(f"hidden names node {node}, which the tree of {len(self.segments)} nodes has not")
            if strangers := ancestors - set(self.path(node)[:-1]):
                raise InputError(f"node {node} cannot hide {sorted(strangers)}: only its ancestors are seen anyway")

    def path(self, node: int) -> list[int]:
        """The nodes from the root to `node`, both included."""
        path = [node]
        while (node := self.parents[node]) >= 0:
            path.append(node)
        return path[::-1]


def trie(sequences: Sequence[Sequence[Any]], cuts: Sequence[int] | None = None) -> tuple[TokenTree, list[list[int]]]:
    """Merge sequences into one tree in which every common beginning stands once.

    Args:
        sequences: token ids, none empty. (Or any sortable items: with emphasis, pairs of id and weight.)
        cuts: for each sequence, a place where a node has to end, e.g. where its target starts.

    Returns:
        The tree, and each sequence's path of nodes from the root. Children come in sorted order, so that the result
        depends on the set of sequences alone.
    """
    order = sorted(range(len(sequences)), key=lambda i: tuple(sequences[i]))
    cuts = cuts or [0] * len(sequences)
    segments: list[tuple[Any, ...]] = []
    parents: list[int] = []
    paths: list[list[int]] = [[] for _ in sequences]
    todo = [(order[a:b], 0, -1) for a, b in reversed(_runs(order, sequences, 0))]
    while todo:
        members, depth, parent = todo.pop()
        end = _common(sequences[members[0]], sequences[members[-1]], depth)  # sorted: the ends agree where all do
        end = min([end, *(cuts[m] for m in members if cuts[m] > depth)])
        node = len(segments)
        segments.append(tuple(sequences[members[0]][depth:end]))
        parents.append(parent)
        for m in members:
            paths[m].append(node)
        rest = [m for m in members if len(sequences[m]) > end]
        todo += [(rest[a:b], end, node) for a, b in reversed(_runs(rest, sequences, end))]
    return TokenTree(tuple(segments), tuple(parents)), paths


def _common(a: Sequence[Any], b: Sequence[Any], start: int) -> int:
    """Length of the common beginning of a and b, known to be at least `start`; found by doubling, then halving."""
    stop = min(len(a), len(b))
    step, low = 16, start
    while low < stop:
        high = min(low + step, stop)
        if a[low:high] == b[low:high]:
            low, step = high, step * 2
        elif high - low == 1:
            return low
        else:
            step = (high - low) // 2
    return stop


def common_prefix(a: Sequence[Any], b: Sequence[Any]) -> int:
    """Length of the common beginning of two sequences of one type."""
    return _common(a, b, 0)


def _runs(members: Sequence[int], sequences: Sequence[Sequence[Any]], depth: int) -> list[tuple[int, int]]:
    """Stretches of members (sorted) whose sequences have the same item at `depth`."""
    starts = [
        i for i in range(len(members)) if i == 0 or sequences[members[i]][depth] != sequences[members[i - 1]][depth]
    ]
    return list(pairwise([*starts, len(members)]))


@dataclass(frozen=True)
class TreePlan:
    """The tokens of a tree that have to be forwarded, as one stream in depth-first order.

    In this order, whatever a later token still needs from before a cut lies on one path from the root: a model needs
    to keep no more than that path. `n` tokens, `m` wanted log-probabilities.

    Attributes:
        ids: (n,) token ids.
        positions: (n,) their positions.
        node: (n,) rank of each token's node in depth-first order.
        last: (n,) greatest rank in the subtree of that node: a token k is an ancestor's (or its own node's) for token
            q iff k comes first in the stream and last[k] >= node[q].
        hidden: rank of a node -> ranks of the ancestors that it does not see.
        read_at: (m,) index in the stream of the token whose output predicts each wanted token.
        targets: (m,) ids of the wanted tokens.
        lengths: wanted tokens of each wanted node, in the order asked.
    """

    ids: Ints
    positions: Ints
    node: Ints
    last: Ints
    hidden: Mapping[int, Ints]
    read_at: Ints
    targets: Ints
    lengths: tuple[int, ...]

    def path(self, upto: int) -> Ints:
        """Stream indices below `upto` that tokens from `upto` on may still see."""
        if upto >= len(self.ids):
            return np.zeros(0, np.int64)
        return np.flatnonzero(self.last[:upto] >= self.node[upto])

    def seen(self, keys: Ints, queries: Ints) -> npt.NDArray[np.bool_]:
        """Which of the stream tokens `keys` any of `queries` (ascending) sees, what is hidden left aside."""
        after = np.searchsorted(queries, keys, side="right")  # the first that stands behind; what sees a key is a run
        return self.last[keys] >= np.append(self.node[queries], self.last.max(initial=0) + 1)[after]

    def only(self, kept: Ints) -> TreePlan:
        """The plan of some of its tokens (ascending stream indices), among which all that are read from are."""
        return replace(
            self,
            ids=self.ids[kept],
            positions=self.positions[kept],
            node=self.node[kept],
            last=self.last[kept],
            read_at=np.searchsorted(kept, self.read_at),
        )

    def path_lengths(self) -> Ints:
        """(n + 1,) lengths of `path(0)`, `path(1)` and so on."""
        passed = np.searchsorted(np.sort(self.last), self.node)  # tokens whose subtree ends before this node
        return np.append(np.arange(len(self.ids)) - passed, 0)


def plan_tree(tree: TokenTree, wanted: Sequence[int]) -> TreePlan:
    """What to forward so that the wanted nodes' tokens can be scored.

    The last token of a leaf predicts nothing, so it is not forwarded; neither is any node that no wanted one needs.

    Raises:
        InputError: a wanted node that does not exist, holds no token, or has no token before it to be predicted from.
    """
    count = len(tree.segments)
    for node in wanted:
        if not 0 <= node < count:
            raise InputError(f"node {node} is wanted, and the tree has {count}")
        if not tree.segments[node]:
            raise InputError(f"node {node} is wanted, and holds no token")
    # how many tokens of each node are needed: all where something stands behind them, else all but the last
    needed = [0] * count
    reader: dict[int, int] = {}  # wanted node -> node whose last token predicts its first
    passed: set[int] = set()  # nodes below which something is needed, and so above all of them too
    for node in dict.fromkeys(wanted):
        needed[node] = max(needed[node], len(tree.segments[node]) - 1)
        unseen = tree.hidden.get(node, frozenset())
        before = tree.parents[node]
        while before >= 0 and not (node in reader and before in passed):
            passed.add(before)
            needed[before] = len(tree.segments[before])
            if node not in reader and tree.segments[before] and before not in unseen:
                reader[node] = before
            before = tree.parents[before]
        if node not in reader:
            raise InputError(f"node {node} has no token before it that could predict its first (add a BOS token)")
    start = [0] * count
    children: list[list[int]] = [[] for _ in range(count)]
    for node, parent in enumerate(tree.parents):
        follows = start[parent] + len(tree.segments[parent]) if parent >= 0 else 0
        start[node] = tree.positions.get(node, follows)
        if parent >= 0:
            children[parent].append(node)
    order: list[int] = []
    todo = [n for n in range(count - 1, -1, -1) if tree.parents[n] < 0]
    while todo:
        node = todo.pop()
        order.append(node)
        todo += reversed(children[node])
    rank = [0] * count
    for r, node in enumerate(order):
        rank[node] = r
    last = list(rank)
    for node in range(count - 1, -1, -1):
        if (parent := tree.parents[node]) >= 0:
            last[parent] = max(last[parent], last[node])
    lengths = np.array([needed[n] for n in order], np.int64)
    first = np.concatenate([[0], np.cumsum(lengths)])  # by rank: where a node starts in the stream
    inner = np.arange(first[-1]) - np.repeat(first[:-1], lengths)
    read_at: list[int] = []
    targets: list[int] = []
    for node in wanted:
        begin = int(first[rank[node]])
        ahead = reader[node]
        read_at.append(int(first[rank[ahead]]) + len(tree.segments[ahead]) - 1)
        read_at += range(begin, begin + len(tree.segments[node]) - 1)
        targets += tree.segments[node]
    return TreePlan(
        ids=np.array([t for n in order for t in tree.segments[n][: needed[n]]], np.int64),
        positions=np.repeat(np.array([start[n] for n in order], np.int64), lengths) + inner,
        node=np.repeat(np.arange(count), lengths),
        last=np.repeat(np.array([last[n] for n in order], np.int64), lengths),
        hidden={rank[n]: np.array(sorted(rank[a] for a in unseen)) for n, unseen in tree.hidden.items()},
        read_at=np.array(read_at, np.int64),
        targets=np.array(targets, np.int64),
        lengths=tuple(len(tree.segments[n]) for n in wanted),
    )

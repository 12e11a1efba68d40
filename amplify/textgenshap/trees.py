"""Exact Shapley and Banzhaf values of tree ensembles over 0/1 features, for any number of sources."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import betaln

from amplify.textgenshap.exact import Index
from amplify.textgenshap.value import Floats


def leaf_credit(present: int, absent: int, index: Index) -> tuple[float, float]:
    """Scores of the game 1[P in S and no A in S] for a member of P and for a member of A, |P| and |A| given.

    The Shapley value of i in P is the chance that i comes last of P and before all of A: (p-1)! a! / (p+a)!.
    """
    if index == "banzhaf":
        each = 0.5 ** (present + absent - 1)
        return each, -each
    # (p-1)! a! / (p+a)! is the Beta function B(p, a+1), and p! (a-1)! / (p+a)! is B(p+1, a)
    gain = float(np.exp(betaln(present, absent + 1))) if present else 0.0
    loss = float(np.exp(betaln(present + 1, absent))) if absent else 0.0
    return gain, -loss


def tree_scores(trees: list[Any], n: int, scale: float, index: Index) -> Floats:
    """Scores of the game S -> scale * sum of the trees' outputs on the 0/1 vector of S.

    Every leaf is reached by the coalitions that hold all of a set P and none of a set A, so the values of the
    ensemble are sums of closed forms over leaves (interventional TreeSHAP with the baseline 0 and the input 1).

    Args:
        trees: fitted scikit-learn regression trees (their `tree_`).
        n: number of sources.
        scale: factor on every leaf, e.g. the learning rate.
        index: which value.

    Returns:
        [n].
    """
    scores = np.zeros(n)

    def walk(tree: Any, node: int, present: tuple[int, ...], absent: tuple[int, ...]) -> None:
        feature = int(tree.feature[node])
        if feature < 0:  # a leaf
            if not present and not absent:
                return
            gain, loss = leaf_credit(len(present), len(absent), index)
            worth = scale * float(tree.value[node].ravel()[0])
            scores[list(present)] += worth * gain
            scores[list(absent)] += worth * loss
            return
        walk(tree, int(tree.children_left[node]), present, (*absent, feature))
        walk(tree, int(tree.children_right[node]), (*present, feature), absent)

    for tree in trees:
        walk(tree, 0, (), ())
    return scores

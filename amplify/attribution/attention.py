"""What a model attends to: raw attention, attention rollout and attention flow (Abnar & Zuidema 2020).

With A_l the attention of layer l averaged over its heads, and half of each token's residual stream its own
(A_l' = (A_l + I) / 2): rollout multiplies the A_l' of all layers; flow takes them as capacities and asks how much can
pass from a token of the input to the output that is read. Attention says where a model looks, not what it answers:
no score speaks for or against, and a foil changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from amplify.attribution.inputs import Part
from amplify.attribution.words import aggregate
from amplify.shapley.game import Floats

Layers = npt.NDArray[np.float64]  # (layers, tokens, tokens), each row sums to 1
_SCALE = 10**7  # flows are computed in whole numbers


def attention_scores(part: Part, method: str) -> Floats:
    """Scores of the words, not negative.

    Args:
        part: of the target: its read positions are averaged over (the first token of an encoder, the tokens before
            those of a language model's target).
        method: "raw_attention", "attention_rollout" or "attention_flow".
    """
    weights, read = part.attend()
    layers = weights.cpu().double().mean(1).numpy()  # not every device has float64
    tokens = {"raw_attention": raw, "attention_rollout": rollout, "attention_flow": flow}[method](layers, read)
    return aggregate(tokens, part.offsets, part.spans)


def raw(layers: Layers, read: Sequence[int]) -> Floats:
    """The last layer's attention from the positions read."""
    return np.asarray(layers[-1][list(read)].mean(0))


def rollout(layers: Layers, read: Sequence[int]) -> Floats:
    """The product of all layers, residual streams included.

    Example:
        >>> layers = np.array([[[1.0, 0.0], [0.5, 0.5]]])
        >>> rollout(layers, read=[1])
        array([0.25, 0.75])
    """
    whole = np.eye(layers.shape[1])
    for layer in with_residual(layers):
        whole = layer @ whole
    return np.asarray(whole[list(read)].mean(0))


def flow(layers: Layers, read: Sequence[int]) -> Floats:
    """The maximum flow from each token to the positions read, each by itself, as a share of what may arrive (1).

    Example:
        >>> layers = np.array([[[1.0, 0.0], [0.5, 0.5]]])
        >>> flow(layers, read=[1])
        array([0.25, 0.75])
    """
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import maximum_flow

    depth, n, _ = layers.shape
    if not np.isfinite(layers).all():
        return np.full(n, np.nan)
    capacity = np.floor(with_residual(layers) * _SCALE).astype(np.int32)
    level, above, below = np.nonzero(capacity)
    graph = csr_array(
        (capacity[level, above, below], ((level + 1) * n + above, level * n + below)), shape=((depth + 1) * n,) * 2
    )
    found = np.zeros(n)
    for top in read:
        for token in range(n):
            found[token] += maximum_flow(graph, depth * n + top, token).flow_value / _SCALE
    return found / len(read)


def with_residual(layers: Layers) -> Layers:
    """Half attention, half identity; rows still sum to 1."""
    return np.asarray((layers + np.eye(layers.shape[1])) / 2)

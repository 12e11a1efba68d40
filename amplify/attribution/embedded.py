"""Explainers that look at a model through its word embeddings: gradients, by captum, reduced to words."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from amplify.attribution.perturbation import Floats
from amplify.attribution.subjects import Part
from amplify.attribution.words import aggregate


def embedded(parts: Sequence[Part], method: str) -> tuple[Floats, int]:
    """Scores of the words by a gradient method, and model evaluations made."""
    from captum.attr import InputXGradient, Saliency

    vectors = []
    for part in parts:
        inputs = part.inputs.detach().requires_grad_()
        if method == "grad_x_input":
            found = InputXGradient(part.score).attribute(inputs)
        else:
            found = Saliency(part.score).attribute(inputs, abs=False)
        vectors.append(found[0].detach().float().cpu().numpy())
    return reduce(parts, vectors, "l1" if method == "grad_norm" else "sum"), len(parts)


def reduce(parts: Sequence[Part], vectors: Sequence[npt.NDArray[np.float32]], how: str) -> Floats:
    """Word scores from one vector per token of each part.

    Parts share the tokens of the text, found in each by their characters (several on the same ones by their order):
    their vectors are added before a norm is taken.
    """
    total: dict[tuple[int, int, int], npt.NDArray[np.float64]] = {}
    for part, rows in zip(parts, vectors, strict=True):
        seen: dict[tuple[int, int], int] = defaultdict(int)
        for (a, b), row in zip(part.offsets, rows, strict=True):
            if b > a:
                key = (a, b, seen[a, b])
                seen[a, b] += 1
                total[key] = total[key] + row if key in total else row.astype(np.float64)
    keys = sorted(total)
    found = np.array([total[key] for key in keys]).reshape(len(keys), -1)
    tokens = np.abs(found).sum(1) if how == "l1" else found.sum(1)
    return aggregate(tokens, [(a, b) for a, b, _ in keys], parts[0].spans)

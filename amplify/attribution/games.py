"""The words of one input as a game: which of them stay -> the model's score of a label."""

from __future__ import annotations

import numpy as np

from amplify.attribution.perturbation import Coalitions, Floats, Value
from amplify.attribution.words import Spans, without_words
from amplify.errors import InputError
from amplify.proxies import Proxy
from amplify.values import Example


def proxy_value(proxy: Proxy, example: Example, spans: Spans, target: str, foil: str | None = None) -> Value:
    """The target's score (less the foil's) with some words deleted; what was evaluated once is not evaluated again.

    Args:
        proxy: an encoder with a trained head, or any causal proxy.
        example: the input.
        spans: the words that may be left out, of `amplify.layout.input_text(example)`; the others always stay.
        target: label whose logit (encoder) or log-probability (causal) is the value.
        foil: label whose score is subtracted.

    Raises:
        InputError: an untrained head, or a label that the example does not have.
    """
    proxy.require_head("attribution by perturbation")
    labels = proxy.labels_of(example)
    for label in (target, *([] if foil is None else [foil])):
        if label not in labels:
            raise InputError(f"{label!r} is not among the labels {labels} of example {example.id!r}")
    seen: dict[bytes, float] = {}

    def value(coalitions: Coalitions) -> Floats:
        keys = [row.tobytes() for row in coalitions]
        new = {key: row for key, row in zip(keys, coalitions, strict=True) if key not in seen}
        texts = [
            without_words(example, [s for s, stays in zip(spans, row, strict=True) if not stays])
            for row in new.values()
        ]
        for key, scores in zip(new, proxy.label_scores(texts), strict=True):
            seen[key] = scores[labels.index(target)] - (0.0 if foil is None else scores[labels.index(foil)])
        return np.array([seen[key] for key in keys], dtype=np.float64)

    return value

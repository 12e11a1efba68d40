"""Does an explanation name what the model goes by? Delete its top words and look (ERASER; DeYoung et al. 2020)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from amplify.attribution.words import without_words
from amplify.errors import InputError
from amplify.proxies import Proxy
from amplify.values import Attribution, Example


def comprehensiveness(
    proxy: Proxy, examples: Sequence[Example], attributions: Sequence[Attribution], k: int = 5
) -> npt.NDArray[np.float64]:
    """How far the target's probability falls when every occurrence of the top k words is deleted.

    Args:
        proxy: the model explained.
        examples: what was explained.
        attributions: one per example, over `amplify.layout.input_text(example)`.
        k: different words deleted (fewer where an attribution has fewer).

    Returns:
        p(target | x) - p(target | x without its top words), one per example, in [-1, 1]; above 0 the words mattered.
    """
    if len(examples) != len(attributions):
        raise InputError(f"{len(examples)} examples and {len(attributions)} attributions: one each is needed")
    cut = []
    for example, attribution in zip(examples, attributions, strict=True):
        top = {word.lower() for word in attribution.top(k)}
        spans = [s for w, s in zip(attribution.words, attribution.spans, strict=True) if w.lower() in top]
        cut.append(without_words(example, spans))
    drop = []
    for example, a, whole, rest in zip(
        examples, attributions, proxy.probabilities(examples), proxy.probabilities(cut), strict=True
    ):
        target = proxy.labels_of(example).index(a.target)
        drop.append(whole[target] - rest[target])
    return np.array(drop, dtype=np.float64)

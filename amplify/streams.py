"""Streams of random numbers that are told apart by name, so that no two uses of one seed draw the same numbers."""

from __future__ import annotations

import hashlib
import json

import numpy as np


def stream(seed: int, name: str, *more: str | int) -> np.random.Generator:
    """The random numbers of one purpose.

    Two purposes that share a seed must not share their numbers: masks that judge an explanation and masks that it was
    fitted on would be the same masks. The name of the purpose, and whatever else tells its draws apart (a size, an
    item's text), are hashed together with the seed.

    Args:
        seed: of the run, any integer.
        name: what the numbers are for, e.g. "lime" or "lds".
        *more: strings and integers that tell several streams of that name apart; 1 and "1" are different.

    Returns:
        A generator; the same arguments give the same numbers on every machine and in every process.

    Example:
        >>> from amplify.streams import stream
        >>> bool(stream(0, "lime").random() == stream(0, "lime").random())
        True
        >>> bool(stream(0, "lime").random() == stream(0, "lds").random())
        False
    """
    told = json.dumps([int(seed), name, *(m if isinstance(m, str) else int(m) for m in more)])
    return np.random.default_rng(int.from_bytes(hashlib.sha256(told.encode()).digest(), "big"))

"""Models that are open in this process, each once: who opens the same model with the same options shares it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

from amplify.locks import lock_of


class Loaded:
    """A module and its tokenizer, for all who hold them.

    Attributes:
        module, tokenizer: None when the last holder has let go.
        folder: where they came from; None for a model that was in hand.
        packed: its packed forward pass, once it was asked for.
        holders: how many there are.
    """

    def __init__(self, module: Any, tokenizer: Any, folder: Path | None = None) -> None:
        self.module, self.tokenizer, self.folder = module, tokenizer, folder
        self.packed: Any = None
        self.key: Hashable = None
        self.holders = 0

    def release(self) -> None:
        """One holder less; the last one frees the model."""
        with _guard:
            self.holders -= 1
            if self.holders > 0 or self.module is None:
                return
            _shared.pop(self.key, None)
        with lock_of(self.module):  # whoever is in the middle of a call finishes it
            self.module = self.packed = None


_shared: dict[Hashable, Loaded] = {}
_loading = threading.RLock()  # who comes second waits for the first's
_guard = threading.RLock()  # for counts alone: the garbage collector may let go of a model at any time


def shared(key: Hashable, load: Callable[[], Loaded]) -> Loaded:
    """The model that is open under a key, else a new one; counted for one holder more."""
    with _loading:
        with _guard:
            if found := _shared.get(key):
                found.holders += 1
                return found
        new = load()
        with _guard:
            new.key, new.holders = key, 1
            _shared[key] = new
        return new

"""One call at a time for each model of this process.

A pass through a model changes it for a moment: steering renames its attention, packing and explainers hang on its
layers. So whatever runs or changes a module holds the lock of that module, and calls from several threads give what the
same calls give one after the other. Locks are reentrant; the order is module first, then tokenizer.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Concatenate, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")
Lock = AbstractContextManager[Any]

PROCESS: Lock = threading.RLock()
"""For what changes the whole process while it lasts: loading a model (torch's default dtype), seeding, warnings."""

_guard = threading.RLock()  # what the garbage collector frees meanwhile may ask for a lock, too
_locks: dict[int, Lock] = {}  # id of what is locked -> its lock, as long as that lives


def lock_of(thing: Any) -> Lock:
    """The lock of a module, tokenizer or engine, the same for all who hold it.

    A module is told by its configuration, which its parts and wrappers (a PEFT model, a classifier's body) share.
    """
    owner = getattr(thing, "config", thing)
    with _guard:
        if id(owner) not in _locks:
            _locks[id(owner)] = threading.RLock()
            weakref.finalize(owner, _locks.pop, id(owner), None).atexit = False
        return _locks[id(owner)]


def one_at_a_time(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """A method of something that has a `module`, or is one: the call holds that model's lock."""

    @functools.wraps(method)
    def call(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with lock_of(getattr(self, "module", self)):
            return method(self, *args, **kwargs)

    return call

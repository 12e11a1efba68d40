"""An engine's process ends with the process that started it, also where that one was killed and could not say so.

vLLM's engine waits on a socket for requests, and after a `kill -9` of its user it would wait there, holding the model's
memory, until somebody looks.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

OWNER = "AMPLIFY_ENGINE_OWNER"
"""Environment variable: the process whose engines end with it."""
_LOOKS = 1.0  # seconds between two looks
_PATIENCE = 5.0  # seconds for an orderly end


@contextmanager
def owning(**variables: str) -> Iterator[None]:
    """Engines that this process starts inside the block end with it.

    Args:
        **variables: of the environment, for these engines alone; those that are set stay as they are.
    """
    given = {OWNER: str(os.getpid()), **{name: os.environ.get(name, value) for name, value in variables.items()}}
    before = {name: os.environ.get(name) for name in given}
    os.environ.update(given)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def watch() -> None:
    """In a process that an owner of engines started: end when the owner does. In any other process, nothing."""
    parent = multiprocessing.parent_process()
    if parent is not None and os.environ.get(OWNER) == str(parent.pid):
        threading.Thread(target=_end_after, args=(parent.pid,), daemon=True, name="amplify-engine-watch").start()


def _end_after(parent: int | None) -> None:
    while os.getppid() == parent:  # an orphan gets another parent
        time.sleep(_LOOKS)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_PATIENCE)
    os.kill(os.getpid(), signal.SIGKILL)

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

OWNER = "AMPLIFY_ENGINE_OWNER"
"""Environment variable: the process whose engines end with it."""
_LOOKS = 1.0  # seconds between two looks
_PATIENCE = 5.0  # seconds for an orderly end


def own_engines() -> None:
    """Engines that this process starts from now on are to end with it."""
    os.environ[OWNER] = str(os.getpid())


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

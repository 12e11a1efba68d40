"""`amplify serve` as a user starts it: a process of its own that says where it listens."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence


@contextlib.contextmanager
def served(options: Sequence[str], **environment: str) -> Iterator[str]:
    """Run `amplify serve OPTIONS` until the block ends.

    Args:
        options: of the command; `--port 0` takes a free one.
        environment: variables besides those of this process.

    Yields:
        The address that it tells, where connections are taken from then on.
    """
    command = [sys.executable, "-m", "amplify.cli", "serve", *options]
    process = subprocess.Popen(command, env={**os.environ, **environment}, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    told: list[str] = []
    try:
        for line in process.stderr:
            told.append(line)
            if line.startswith("http://"):
                break
        else:
            raise AssertionError(f"{command} ended:\n{''.join(told)}")
        yield told[-1].split()[0]
    finally:
        process.send_signal(signal.SIGINT)
        rest = process.communicate()[1]
    assert process.returncode == 0, "".join(told) + rest

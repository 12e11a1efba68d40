"""What several benches measure with."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def timed(work: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> tuple[Any, float]:
    """What it gives, and its seconds; `time.process_time` where other jobs share the processor."""
    begun = clock()
    result = work()
    return result, clock() - begun


def peak(run: Callable[[], object]) -> int:
    """Bytes of resident memory that the process takes at most while `run` goes on (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")
    run()
    return _status("VmHWM")


def resident() -> int:
    """Bytes of resident memory that the process takes now (Linux)."""
    return _status("VmRSS")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024

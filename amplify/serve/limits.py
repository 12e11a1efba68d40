"""What keeps a service standing: who may ask, how much, how many at once, for how long; and what it counts."""

from __future__ import annotations

import asyncio
import hmac
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Limits:
    """Bounds of a service.

    Attributes:
        body: bytes of a request.
        running: attributions made at once.
        waiting: requests that may wait for one of those places; more are refused at once.
        seconds: that a request may wait and run.
        budget: prompts of an attribution.
        tokens: that an attribution may forward which is bounded by them instead of by prompts.
        jobs: finished background jobs that are kept.
        key: what clients send as "Authorization: Bearer KEY"; "" for none.

    Example:
        >>> limits = Limits(seconds=60.0, key="secret")
        >>> limits.admits("Bearer secret"), limits.admits(None)
        (True, False)
    """

    body: int = 2_000_000
    running: int = 2
    waiting: int = 16
    seconds: float = 300.0
    budget: int = 512
    tokens: int = 1_000_000
    jobs: int = 256
    key: str = field(default="", repr=False)

    def admits(self, authorization: str | None) -> bool:
        """Whether a request's Authorization header is that of a client."""
        return not self.key or hmac.compare_digest((authorization or "").encode(), f"Bearer {self.key}".encode())


class BusyError(Exception):
    """More requests wait than may."""


class Places:
    """So many at once, and so many more that wait."""

    def __init__(self, running: int, waiting: int) -> None:
        self._free, self._most = asyncio.Semaphore(running), running + waiting
        self.held = 0

    @asynccontextmanager
    async def one(self) -> AsyncIterator[None]:
        """A place, as soon as one is free.

        Raises:
            BusyError: too many wait.
        """
        if self.held >= self._most:
            raise BusyError
        self.held += 1
        try:
            async with self._free:
                yield
        finally:
            self.held -= 1


class Counts:
    """What a service has done, as Prometheus reads it. Names and numbers alone: no text of any request."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], float] = {}
        self._lock = threading.Lock()

    def add(self, name: str, label: str = "", amount: float = 1) -> None:
        """Count something, e.g. ("requests", 'path="/health",status="200"')."""
        with self._lock:
            self._counts[name, label] = self._counts.get((name, label), 0.0) + amount

    def text(self, **now: float) -> str:
        """All counts in the text format; `now` are gauges."""
        with self._lock:
            counts = sorted(self._counts.items())
        lines: list[str] = []
        for name in dict.fromkeys(name for (name, _), _ in counts):
            lines.append(f"# TYPE amplify_{name}_total counter")
            for (own, label), value in counts:
                if own == name:
                    lines.append(
                        f"amplify_{name}_total{{{label}}} {value:g}" if label else f"amplify_{name}_total {value:g}"
                    )
        for name, value in now.items():
            lines += [f"# TYPE amplify_{name} gauge", f"amplify_{name} {value:g}"]
        return "\n".join(lines) + "\n"

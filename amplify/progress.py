"""How far a long work is: a bar on a terminal, a line every few seconds where there is none."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self, TypeVar

T = TypeVar("T")
EVERY = 5.0  # seconds between two lines
SELDOM = 30.0  # between two lines of long work


def progress(
    *,
    total: float | None = None,
    unit: str = "item",
    initial: float = 0,
    desc: str = "",
    shown: bool = True,
    leave: bool = True,
) -> Any:
    """A bar of tqdm where standard error is a terminal; else an object that takes the same calls and writes lines.

    Args:
        total: how much there is, if that is known.
        unit: what is counted.
        initial: how much was done before.
        desc: what is going on.
        shown: False for silence.
        leave: whether the bar stays on the terminal when the work is done.
    """
    if shown and sys.stderr.isatty():
        from tqdm import tqdm  # type: ignore[import-untyped,unused-ignore]

        return tqdm(total=total, unit=unit, initial=initial, desc=desc or None, leave=leave)
    return Lines(total, unit, initial, desc, sys.stderr.write if shown else _nothing)


def _nothing(line: str) -> None:
    """Say nothing."""


def tracked(items: Sequence[T], *, unit: str = "item", desc: str = "", shown: bool = True) -> Iterator[T]:
    """The items one after the other, with progress; see `progress`."""
    with progress(total=len(items), unit=unit, desc=desc, shown=shown, leave=False) as bar:
        for item in items:
            yield item
            bar.update(1)


class Lines:
    """Progress for logs: `zero_shot: 320/1000 answers, 12 s, about 26 s left`, a line every few seconds.

    Lines come further apart as the work grows long, up to half a minute. Short work says nothing; of works inside each
    other the innermost speaks.

    Args:
        total, unit, initial, desc: see `progress`.
        say: takes each line.
        clock: seconds.
    """

    def __init__(
        self,
        total: float | None,
        unit: str,
        initial: float,
        desc: str,
        say: Callable[[str], Any],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total, self.unit, self.n, self.desc = total, unit, initial, desc
        self._say, self._clock, self._initial = say, clock, initial
        self._begun = self._last = clock()
        self._spoke = False
        self._over = threading.Event()

    def update(self, n: float = 1) -> None:
        """So much more is done."""
        self.n += n
        self.tick()

    def set_description(self, desc: str) -> None:
        """What is going on now."""
        self.desc = desc

    def tick(self) -> None:
        """Say a line if it is time for one."""
        now = self._clock()
        if _open[-1:] in ([], [self]) and now - self._last >= min(SELDOM, max(EVERY, (now - self._begun) / 20)):
            self._line()

    def close(self) -> None:
        """The last line, where there was one before."""
        self._over.set()
        if self in _open:
            _open.remove(self)
        if self._spoke:
            self._line()
            self._spoke = False

    def _line(self) -> None:
        now = self._clock()
        taken = now - self._begun
        of = "" if self.total is None else f"/{self.total:g}"
        parts = [f"{self.n:g}{of} {self.unit}s", f"{taken:.0f} s"]
        if self.total and self._initial < self.n < self.total:
            parts.append(f"about {taken * (self.total - self.n) / (self.n - self._initial):.0f} s left")
        self._say(f"{self.desc}{': ' if self.desc else ''}{', '.join(parts)}\n")
        self._last, self._spoke = now, True

    def _tick_on(self) -> None:
        while not self._over.wait(EVERY):
            self.tick()

    def __enter__(self) -> Self:
        if self._say is not _nothing:
            _open.append(self)
            threading.Thread(target=self._tick_on, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


_open: list[Lines] = []  # works inside each other

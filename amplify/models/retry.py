"""Many calls to a server at once: a cap on concurrency and on tries, waits that grow, and nothing answered is lost.

Calls run on one event loop in a thread of its own. The caller only waits for what comes back, so that Ctrl-C reaches it
at once, however many requests hang, and any number of threads may call.
"""

from __future__ import annotations

import asyncio
import functools
import os
import random
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from typing import Any, TypeVar

from amplify.errors import ModelError

T = TypeVar("T")

FIRST_WAIT = 0.5
LONGEST_WAIT = 60.0


class TryAgainError(Exception):
    """A call failed in a way that may pass.

    Attributes:
        after: seconds that the server asked to wait, or None.
    """

    def __init__(self, message: str, after: float | None = None) -> None:
        super().__init__(message)
        self.after = after


class GiveUpError(Exception):
    """A call failed in a way that trying again does not mend.

    Attributes:
        status: the HTTP status that said so, or None.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class _DroppedError(Exception):
    """Another call failed for good, so this one is not tried again."""


def backoff(attempt: int, after: float | None, draw: Callable[[], float] = random.random) -> float:
    """Seconds to wait before the next try.

    Args:
        attempt: failed tries so far, from 1.
        after: what the server asked for; kept to, up to a minute.
        draw: uniform number in [0, 1), so that many callers do not return in step.

    Returns:
        The server's wait plus up to half a second, else half to all of FIRST_WAIT * 2^(attempt - 1).
    """
    if after is not None:
        return min(after, LONGEST_WAIT) + 0.5 * draw()
    return min(FIRST_WAIT * 2 ** (attempt - 1), LONGEST_WAIT) * (0.5 + 0.5 * draw())


def run_all(
    calls: Sequence[Callable[[], Awaitable[T]]],
    *,
    who: str,
    concurrency: int,
    retries: int,
    answered: Callable[[int, T], None] = lambda i, result: None,
) -> list[T]:
    """Make all calls, at most `concurrency` at a time, and return their results in order.

    Args:
        calls: each raises `TryAgainError` or `GiveUpError` where it fails.
        who: the server's name in messages.
        concurrency: calls in flight at once.
        retries: further tries of one call after the first.
        answered: told each index and result as it comes in, one after the other.

    Raises:
        ModelError: one call failed for good; calls not yet started are dropped, those in flight are awaited, and
            `completed` maps index to result.
    """
    return wait(_run_all(calls, who, concurrency, retries, answered))


def wait(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that runs on the loop of all servers; an interrupted wait cancels it."""
    future = asyncio.run_coroutine_threadsafe(work, _loop())
    try:
        return future.result()
    finally:
        future.cancel()  # nothing where it is done


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="amplify-servers", daemon=True).start()
    return loop


os.register_at_fork(after_in_child=_loop.cache_clear)  # threads do not survive a fork


async def _run_all(
    calls: Sequence[Callable[[], Awaitable[T]]],
    who: str,
    concurrency: int,
    retries: int,
    answered: Callable[[int, T], None],
) -> list[T]:
    stop = asyncio.Event()
    done: dict[int, T] = {}
    failures: list[GiveUpError] = []

    async def work(waiting: Iterator[int]) -> None:
        for i in waiting:
            if stop.is_set():
                return
            try:
                done[i] = await _persist(calls[i], retries, stop)
            except _DroppedError:
                return
            except GiveUpError as error:
                failures.append(error)
                stop.set()
                return
            answered(i, done[i])

    waiting = iter(range(len(calls)))
    workers = [asyncio.create_task(work(waiting)) for _ in range(min(concurrency, len(calls)))]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
    if failures:
        of = f". {len(done)} of {len(calls)} were answered" if len(calls) > 1 else ""
        raise ModelError(f"{who}: {failures[0]}{of}", dict(sorted(done.items()))) from failures[0]
    return [done[i] for i in range(len(calls))]


async def _persist(call: Callable[[], Awaitable[T]], retries: int, stop: asyncio.Event) -> T:
    """One call, tried again while that may help and no other call has failed for good."""
    attempt = 1
    while True:
        try:
            return await call()
        except TryAgainError as error:
            if attempt > retries:
                raise GiveUpError(f"{error} (tried {attempt} times)" if retries else str(error)) from error
            try:
                await asyncio.wait_for(stop.wait(), backoff(attempt, error.after))
            except TimeoutError:
                attempt += 1
            else:
                raise _DroppedError from error

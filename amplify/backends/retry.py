"""Many calls to a server at once: a cap on concurrency and on tries, waits that grow, and nothing answered is lost."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, as_completed
from typing import TypeVar

from amplify.errors import BackendError

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
    """A call failed in a way that trying again does not mend."""


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
    calls: Sequence[Callable[[], T]],
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
        answered: told each index and result as it comes in, in the caller's thread.

    Raises:
        BackendError: one call failed for good; calls not yet started are dropped, those in flight are awaited, and
            `completed` maps index to result.
    """
    stop = threading.Event()

    def persist(call: Callable[[], T]) -> T:
        for attempt in range(1, retries + 2):
            # not Future.cancel: a future cancelled while it waits in the queue never wakes as_completed
            if stop.is_set():
                raise CancelledError
            try:
                return call()
            except TryAgainError as error:
                if attempt > retries:
                    raise GiveUpError(f"{error} (tried {attempt} times)" if retries else str(error)) from error
                if stop.wait(backoff(attempt, error.after)):
                    raise CancelledError from error
        raise AssertionError("unreachable")

    done: dict[int, T] = {}
    failed: GiveUpError | None = None
    with ThreadPoolExecutor(max_workers=min(concurrency, max(1, len(calls)))) as pool:
        index: dict[Future[T], int] = {pool.submit(persist, call): i for i, call in enumerate(calls)}
        try:
            for future in as_completed(index):
                i = index[future]
                try:
                    done[i] = future.result()
                except CancelledError:
                    continue
                except GiveUpError as error:
                    failed = failed or error
                    stop.set()
                else:
                    answered(i, done[i])
        finally:
            stop.set()
    if failed:
        raise BackendError(f"{who}: {failed}. {len(done)} of {len(calls)} were answered and are kept", done) from failed
    return [done[i] for i in range(len(calls))]

"""A conversation with an OpenAI-compatible server: one request sorted into what may pass and what will not, and many.

Calls run on one event loop in a thread of its own. The caller only waits for what comes back, so that Ctrl-C reaches it
at once, however many requests hang, and any number of threads may call. Nothing that was answered is lost."""

from __future__ import annotations

import asyncio
import email.utils
import functools
import json
import math
import os
import random
import re
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from amplify.errors import InputError, ModelError
from amplify.models.replies import GiveUpError, Json, TryAgainError, parse
from amplify.redaction import keep_secret, one_line, redact

if TYPE_CHECKING:
    import ssl

    import httpx


T = TypeVar("T")

FIRST_WAIT = 0.5
LONGEST_WAIT = 60.0


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
            if attempt > min(retries, error.most):
                raise GiveUpError(f"{error} (tried {attempt} times)" if attempt > 1 else str(error)) from error
            try:
                await asyncio.wait_for(stop.wait(), backoff(attempt, error.after))
            except TimeoutError:
                attempt += 1
            else:
                raise _DroppedError from error


KEY_VARIABLE = "OPENAI_API_KEY"
ROOM = 4 * 2**20
"""Bytes of an answer besides what its tokens take."""
ROOM_A_TOKEN = 4 * 2**10
MOST_PAGE = 30_000  # characters of an error page in which a reason is looked for


def read_key() -> str:
    """The key of the environment, "" for none, without the blanks and line breaks around it that files leave.

    Raises:
        InputError: it holds what no header can carry; the message does not show it.
    """
    key = os.environ.get(KEY_VARIABLE, "").strip()
    for i, character in enumerate(key):
        if not "!" <= character <= "~":
            raise InputError(
                f"{KEY_VARIABLE} cannot be a key: character {i + 1} of {len(key)} is a blank, a line break or not "
                "ASCII. Set it to the key alone"
            )
    return key


class Server:
    """JSON in, JSON out. Safe to share between threads; requests run on the loop of `retry`."""

    def __init__(self, url: str, timeout: float) -> None:
        """Make the client; nothing is sent.

        Args:
            url: base of the API, e.g. "http://127.0.0.1:8000/v1".
            timeout: seconds within which a request must be answered in full: connecting, waiting, and every byte.

        Raises:
            InputError: the key or the URL cannot be used.
        """
        import httpx

        key = read_key()
        keep_secret(key)
        self._timeout = timeout
        try:
            self._client = httpx.AsyncClient(
                base_url=url,
                headers={"accept-encoding": "identity"} | ({"authorization": f"Bearer {key}"} if key else {}),
                timeout=None,  # one deadline for the whole request instead
                follow_redirects=False,
                verify=_certificates(),
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
            )
        except (httpx.InvalidURL, ValueError) as error:
            raise InputError(f"{url} cannot be a server's URL, or a proxy of the environment cannot: {error}") from None

    async def get(self, path: str) -> Json:
        """The object at `path`. Raises what `post` does."""
        return await self._ask("GET", path, None, 1024)

    async def post(self, path: str, body: Json, tokens: int) -> Json:
        """The server's answer to `body`.

        Args:
            path: behind the base URL.
            body: the fields.
            tokens: that the answer may speak of; one that is out of all proportion is not read.

        Raises:
            TryAgainError: 408, 409, 429, 5xx, no whole answer in time, no connection, or an answer that is no JSON
                object.
            GiveUpError: any other status, a redirect, a quota that is used up, or an answer without end.
        """
        return await self._ask("POST", path, body, tokens)

    def close(self) -> None:
        """Close the connections. Calling it twice is fine."""
        wait(self._client.aclose())

    async def _ask(self, method: str, path: str, body: Json | None, tokens: int) -> Json:
        import httpx

        if self._client.is_closed:
            raise GiveUpError("it was closed here: open it again")
        # ASCII, so that any text can be sent; httpx would refuse half a surrogate pair
        content = None if body is None else json.dumps(body).encode()
        headers = {"content-type": "application/json"} if content else {}
        try:
            async with (
                asyncio.timeout(self._timeout),
                self._client.stream(method, path, content=content, headers=headers) as response,
            ):
                if response.is_success:
                    return parse(await _read(response, ROOM + ROOM_A_TOKEN * tokens))
                words = redact((await _read(response, ROOM)).decode("utf-8", "replace"))
        except TimeoutError:
            raise TryAgainError(f"no whole answer within {self._timeout:g} s") from None
        except httpx.TransportError as error:
            why = one_line(error) or type(error).__name__
            raise TryAgainError(f"no connection ({why}); is it running?") from None
        except httpx.InvalidURL as error:
            raise GiveUpError(f"the URL cannot be asked: {one_line(error)}") from None
        if 300 <= response.status_code < 400:
            raise GiveUpError(
                f"HTTP {response.status_code}: it redirects to {_place(response)}, where nothing was sent. "
                "If that is right, give that URL",
                response.status_code,
            )
        message = f"HTTP {response.status_code}: {one_line(_reason(words))}"
        may_pass = response.status_code in (408, 409, 429) or response.status_code >= 500
        if may_pass and "insufficient_quota" not in words:
            raise TryAgainError(message, _retry_after(response.headers))
        raise GiveUpError(message, response.status_code)


@functools.cache
def _certificates() -> ssl.SSLContext:
    """Read once: this takes longer than many requests."""
    import httpx

    return httpx.create_ssl_context()


async def _read(response: httpx.Response, room: int) -> bytes:
    """The body; of an error its beginning."""
    if (packed := response.headers.get("content-encoding", "identity")) != "identity":
        raise TryAgainError(f"its answer is packed ({one_line(packed)}), which was not asked for")
    content = bytearray()
    async for part in response.aiter_raw():
        content += part
        if len(content) > room:
            if response.is_success:
                raise GiveUpError(f"its answer is longer than {room // 2**20} MiB, so it was not read")
            break
    return bytes(content)


def _place(response: httpx.Response) -> str:
    """Where a redirect leads, without what may be secret in it."""
    import httpx

    try:
        return one_line(response.url.join(response.headers.get("location", "")))
    except httpx.InvalidURL:
        return "no readable URL"


def _reason(body: str) -> str:
    """The server's own words in an error body."""
    try:
        data: Any = json.loads(body)
    except (ValueError, RecursionError):
        return re.sub(r"<[^<>]*>", " ", body[:MOST_PAGE])
    error = data.get("error", data) if isinstance(data, dict) else data
    return str(error.get("message", error) if isinstance(error, dict) else error)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds asked for in a Retry-After header: a number or a date."""
    value = headers.get("retry-after")
    if not value:
        return None
    try:
        seconds = float(value)
        return max(0.0, seconds) if math.isfinite(seconds) else None
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None

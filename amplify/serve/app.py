"""The service as a FastAPI application; uvicorn runs it (`amplify serve`).

- `POST /v1/attributions`: what `attribute_sources` takes as JSON; what `SourceAttribution.to_dict` gives. With
  `"background": true` a job, whose state is at `GET /v1/attributions/ID`.
- `POST /v1/chat/completions`: as OpenAI-compatible servers have it. Behind a server (an `openai:` model) requests and
  answers pass through byte for byte, streams included; a field `"citations": true` (or options of an attribution) makes
  the answer's citations its last event, or a field of the answer; a field `"loop": true` answers twice and returns
  what rests on the sources (`amplify.sources.loop`).
- `GET /health`, `GET /metrics` (Prometheus).

No text of a request or an answer is logged, or written into a span (`amplify.serve.tracing`).
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping, MutableMapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from amplify.errors import AmplifyError, InputError, ModelError, extras
from amplify.models.base import LanguageModel
from amplify.models.openai import OpenAIModel
from amplify.models.server import read_key
from amplify.serve import tracing
from amplify.serve.limits import BusyError, Counts, Limits, Places
from amplify.sources.asked import asked_of
from amplify.sources.attribute import attribute_sources
from amplify.sources.log import conversation
from amplify.sources.loop import BONUS, Loop, answer_in_loop
from amplify.sources.loop import check as check_loop
from amplify.sources.options import options as checked
from amplify.steering import Steering
from amplify.types import Completion, Prompt, Sampling

with extras():
    import httpx
    from fastapi import FastAPI, Request, Response
    from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
    from starlette.exceptions import HTTPException

_ASKED = ("id", "question", "documents", "messages", "sources", "answer", "background")
_HIDDEN = ("cache", "progress")  # options that reach into the server
_BEYOND = ("control_variate",)  # options that ask more prompts than the budget says
_STOPS = 16  # strings that may end an answer; each is looked for at every token
_OURS = ("citations", "documents", "loop", "sources")  # fields of a chat request that the server behind never sees

MOST_ANSWER = 2**26  # bytes of an answer of the server behind, where it is held here
_TRIES = 2  # of a request that a connection lost before anything was answered
T = TypeVar("T")


class Refused(Exception):
    """A request that is answered with an error.

    Attributes:
        status: HTTP status.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Service:
    """One model, its limits, its jobs."""

    def __init__(self, model: LanguageModel, limits: Limits) -> None:
        self.model, self.limits, self.counts = model, limits, Counts()
        self.places = Places(limits.running, limits.waiting)
        self.jobs: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self.tasks: dict[asyncio.Task[Any], threading.Event] = {}
        self.client: httpx.AsyncClient | None = None

    async def body(self, request: Request) -> dict[str, Any]:
        """The object that a request brings.

        Raises:
            Refused: no key, too large, too slow, or no object.
        """
        if not self.limits.admits(request.headers.get("authorization")):
            raise Refused(401, "this service asks for a key: Authorization: Bearer KEY")
        held = bytearray()
        try:
            async with asyncio.timeout(self.limits.seconds):
                async for chunk in request.stream():
                    held += chunk
                    if len(held) > self.limits.body:
                        raise Refused(413, f"a request has {self.limits.body:,} bytes at most")
        except TimeoutError:
            raise Refused(408, f"the request did not arrive within {self.limits.seconds:g} seconds") from None
        try:
            data = json.loads(held, parse_constant=_no_number)
            json.dumps(data, ensure_ascii=False).encode()  # half of a character cannot be sent on, nor back
        except (ValueError, RecursionError):
            raise Refused(400, "the request is not JSON") from None
        if not isinstance(data, dict):
            raise Refused(400, "the request is not a JSON object")
        return data

    def asked(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of `attribute_sources` from a request, checked before anything is asked.

        Raises:
            Refused: they make no sense; says why.
        """
        more = {name: value for name, value in data.items() if name not in _ASKED}
        if hidden := [name for name in (*_HIDDEN, *_BEYOND, "prompt", "template") if name in more]:
            raise Refused(400, f"{hidden[0]!r} is not an option of the service")
        if isinstance(more.get("thresholds"), list):
            more["thresholds"] = tuple(more["thresholds"])
        try:
            given = conversation(data)
            made = checked(more)
        except (AmplifyError, TypeError) as error:
            raise Refused(400, str(error)) from error
        if made.budget > self.limits.budget:
            raise Refused(400, f"the budget is at most {self.limits.budget}, got {made.budget}")
        if (made.tokens or 0) > self.limits.tokens:
            raise Refused(400, f"tokens are at most {self.limits.tokens:,}, got {made.tokens:,}")
        _check_stops(made.stop)
        return {**given, **more}

    async def placed(self, work: Callable[[threading.Event], T]) -> T:
        """What a thread makes of it, when there is a place, which it keeps until it has ended.

        Args:
            work: gets an event that is set when nobody waits for its result any more.

        Raises:
            Refused: too many wait (429), it takes too long (503), or it cannot be done (400, 502).
        """
        stop, running = threading.Event(), threading.Event()

        async def run() -> T:
            async with self.places.one():
                running.set()
                return await asyncio.to_thread(work, stop)

        task = self.kept(asyncio.create_task(run()), stop)
        try:
            await asyncio.wait({task}, timeout=self.limits.seconds)
        finally:
            if not task.done():
                stop.set()
                if not running.is_set():
                    task.cancel()
        if not task.done():
            raise Refused(503, f"it takes longer than {self.limits.seconds:g} seconds: lower the budget")
        try:
            return task.result()
        except BusyError:
            raise Refused(429, "too many requests wait: try again later") from None
        except ModelError as error:
            raise Refused(502, str(error)) from error
        except AmplifyError as error:
            raise Refused(400, str(error)) from error

    def kept(self, task: asyncio.Task[T], stop: threading.Event | None = None) -> asyncio.Task[T]:
        """Remember a task until it has ended."""

        def ended(done: asyncio.Task[T]) -> None:
            self.tasks.pop(done, None)
            if not done.cancelled():
                done.exception()  # it is seen, also where nobody waits any more

        self.tasks[task] = stop or threading.Event()
        task.add_done_callback(ended)
        return task

    async def attribute(self, given: Mapping[str, Any], told: Callable[[int], None] | None = None) -> dict[str, Any]:
        """The attribution, when there is a place for it.

        Args:
            given: arguments of `attribute_sources`.
            told: is given the number of prompts asked so far, in another thread.

        Raises:
            Refused: see `placed`.
        """
        begun = time.perf_counter()

        def work(stop: threading.Event) -> dict[str, Any]:
            return attribute_sources(model=self.model, progress=_while_wanted(stop, told), **given).to_dict()

        with tracing.span("amplify.attribution") as span:
            found = await self.placed(work)
            span.note(
                amplify_prompts=found["cost"]["calls"],
                amplify_tokens=found["cost"]["tokens"],
                amplify_sources=len(found["documents"]["sources"]),
                amplify_claims=len(found["claims"]),
            )
        self.counts.add("attributions")
        self.counts.add("attribution_seconds", amount=time.perf_counter() - begun)
        self.counts.add("prompts", amount=found["cost"]["calls"])
        return found

    def begin(self, given: Mapping[str, Any]) -> str:
        """Make an attribution in the background: its number.

        Raises:
            Refused: too many wait.
        """
        if self.places.held >= self.limits.running + self.limits.waiting:
            raise Refused(429, "too many requests wait: try again later")
        number = secrets.token_urlsafe(12)
        job = self.jobs[number] = {
            "id": number, "status": "running", "prompts": 0, "budget": checked(_options(given)).budget,
        }  # fmt: skip

        async def work() -> None:
            try:
                found = await self.attribute(given, lambda prompts: job.update(prompts=prompts))
                self.jobs[number] = {**job, "status": "done", "attribution": found}
            except Refused as error:
                self.jobs[number] = {**job, "status": "failed", "error": str(error), "code": error.status}

        self.kept(asyncio.create_task(work()))
        done = [each for each, job in self.jobs.items() if job["status"] != "running"]
        for old in done[: max(0, len(done) - self.limits.jobs)]:
            del self.jobs[old]
        return number

    def check_citations(self, data: Mapping[str, Any]) -> None:
        """Check what a chat request says of its citations before anything is generated.

        Raises:
            Refused: options, or sources and documents of its own, that make no sense with its messages; says why.
        """
        own = {key: data[key] for key in ("messages", "documents", "sources") if data.get(key) is not None}
        more = dict(data["citations"]) if isinstance(data["citations"], Mapping) else {}
        given = self.asked({**more, **own, "answer": "x"})
        if len(own) == 1:  # messages alone may be too short to be explained, which is no fault of the request
            return
        try:
            asked_of(
                None, given.get("documents"), given["messages"], given.get("sources", "messages"), "default",
                checked(_options(given)),
            )  # fmt: skip
        except AmplifyError as error:
            raise Refused(400, str(error)) from error

    async def citations(self, data: Mapping[str, Any], answer: str) -> dict[str, Any]:
        """What an answer of the chat API rests on."""
        wanted = data["citations"]
        more = dict(wanted) if isinstance(wanted, Mapping) else {}
        given = {key: data[key] for key in ("messages", "documents", "sources") if data.get(key) is not None}
        try:
            found = await self.attribute(self.asked({"granularity": "sentences", **more, **given, "answer": answer}))
        except Refused as error:
            return {"error": str(error)}
        return {"citations": found["citations"], "claims": found["claims"], "notes": found["notes"]}


def create_app(model: LanguageModel, limits: Limits | None = None, transport: Any = None) -> FastAPI:
    """The application.

    Args:
        model: who answers and is asked; it stays open when the application ends.
        limits: see `Limits`.
        transport: how the server behind is reached (httpx); None: over the network.

    Example:
        >>> from starlette.testclient import TestClient
        >>> with TestClient(create_app(amplify.load_model("scripted:say=yes"))) as client:
        ...     client.get("/health").status_code
        200
    """
    service = Service(model, limits or Limits())

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        timeout = httpx.Timeout(service.limits.seconds, connect=10.0)
        # who asks too much is held back by the server behind, not here
        pool = httpx.Limits(max_connections=None, max_keepalive_connections=256)
        async with httpx.AsyncClient(timeout=timeout, limits=pool, transport=transport) as client:
            service.client = client
            yield
            for task, stop in list(service.tasks.items()):
                stop.set()
                task.cancel()

    app = FastAPI(title="amplify", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.service = service  # for tests and metrics of others

    app.add_middleware(_Counted, service=service)

    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> Response:
        return _error(error.status, str(error))

    @app.exception_handler(HTTPException)
    async def unknown(_: Request, error: HTTPException) -> Response:
        return _error(error.status_code, str(error.detail))

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok", "model": model.id}

    @app.get("/metrics")
    async def metrics() -> Response:
        return PlainTextResponse(service.counts.text(held=service.places.held, jobs=len(service.jobs)))

    @app.post("/v1/attributions")
    async def attributions(request: Request) -> Response:
        data = await service.body(request)
        given = service.asked(data)
        if data.get("background"):
            return JSONResponse({"id": service.begin(given), "status": "running"}, 202)
        return JSONResponse(await service.attribute(given))

    @app.get("/v1/attributions/{number}")
    async def job(number: str, request: Request) -> Response:
        if not service.limits.admits(request.headers.get("authorization")):
            raise Refused(401, "this service asks for a key: Authorization: Bearer KEY")
        if number not in service.jobs:
            raise Refused(404, "there is no such job, or it was forgotten")
        return JSONResponse(service.jobs[number])

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        data = await service.body(request)
        if not isinstance(data.get("messages"), list) or not data["messages"]:
            raise Refused(400, "a chat request has messages")
        if data.get("citations"):
            service.check_citations(data)
        if data.get("loop"):
            return await _looped(service, data)
        if isinstance(model, OpenAIModel):
            return await _behind(service, model, data)
        return await _here(service, data)

    return app


def _check_stops(stop: Sequence[str]) -> None:
    """Refuse more strings that end an answer than anybody needs."""
    if len(stop) > _STOPS:
        raise Refused(400, f"at most {_STOPS} strings can end an answer, got {len(stop)}")


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _error(status: int, message: str, kind: str = "invalid_request_error") -> Response:
    """An error in the form of the chat API."""
    body = {"error": {"message": message, "type": kind, "code": status}}
    return JSONResponse(body, status, {"Retry-After": "5"} if status == 429 else None)


class _Counted:
    """Counts requests by path and status, and puts a span around each; streams pass through untouched."""

    def __init__(self, app: Any, service: Service) -> None:
        self.app, self.service = app, service

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status, begun = 500, False

        async def sent(message: MutableMapping[str, Any]) -> None:
            nonlocal status, begun
            if message["type"] == "http.response.start":
                status, begun = message["status"], True
            await send(message)

        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        with tracing.span("request", headers) as span:
            try:
                await self.app(scope, receive, sent)
            except Exception as error:  # its message may hold a request's text, so it goes no further
                said = f"a fault of this service ({type(error).__name__})"
                logging.getLogger(__name__).error(said)
                if begun:
                    raise RuntimeError(said) from None
                await _error(500, said, "server_error")(scope, receive, sent)
            finally:
                path = getattr(scope.get("route"), "path", "other")
                span.named(f"{scope['method']} {path}", status)
                self.service.counts.add("requests", f'path="{path}",status="{status}"')


async def _behind(service: Service, model: OpenAIModel, data: dict[str, Any]) -> Response:
    """Pass a chat request on to the server behind."""
    assert service.client is not None
    body = {key: value for key, value in data.items() if key not in _OURS} | {"model": model.model}
    key = read_key()
    headers = {
        "content-type": "application/json",
        "accept-encoding": "identity",
        **({"authorization": f"Bearer {key}"} if key else {}),
        **tracing.passed_on(),
    }
    for tried in range(_TRIES):
        request = service.client.build_request("POST", f"{model.url}/chat/completions", json=body, headers=headers)
        try:
            answer = await service.client.send(request, stream=True)
            break
        except httpx.HTTPError as error:
            # a server that was restarted has closed the connections that were kept: the next one is new
            lost = isinstance(error, httpx.RemoteProtocolError | httpx.ReadError | httpx.WriteError)
            if not lost or tried == _TRIES - 1:
                raise Refused(502, f"the server behind cannot be reached ({type(error).__name__})") from error
    kind = answer.headers.get("content-type", "application/json")
    if answer.status_code >= 400 or not data.get("stream"):
        try:
            async with asyncio.timeout(service.limits.seconds):
                held = b"".join([chunk async for chunk in _bounded(answer)])
        except (httpx.HTTPError, TimeoutError) as error:
            raise Refused(502, f"the server behind broke off its answer ({type(error).__name__})") from error
        finally:
            await answer.aclose()
        if answer.status_code < 400 and data.get("citations") and (text := _said(held)) is not None:
            found = json.loads(held)
            found["amplify"] = await service.citations(data, text) if text.strip() else {"citations": []}
            return Response(_json(found), media_type="application/json")
        return Response(held, answer.status_code, media_type=kind)

    async def events() -> AsyncIterator[bytes]:
        said: list[str] = []
        try:
            if not data.get("citations"):
                async for chunk in answer.aiter_bytes():
                    yield chunk
                return
            async for line in _lines(answer):
                if _data(line).strip() == b"[DONE]":
                    break
                said += _deltas(line)
                yield line
        except httpx.HTTPError as error:  # what was said so far has been sent: a client must not take it for the whole
            message = f"the server behind broke off its answer ({type(error).__name__})"
            yield _line({"error": {"message": message, "type": "server_error", "code": 502}})
            return
        except Refused as error:
            yield _line({"error": {"message": str(error), "type": "server_error", "code": error.status}})
            return
        finally:
            await answer.aclose()
        yield await _event(service, data, "".join(said)) + b"data: [DONE]\n\n"

    return StreamingResponse(events(), answer.status_code, media_type=kind)


async def _here(service: Service, data: dict[str, Any]) -> Response:
    """Answer a chat request with a model of this process."""
    try:
        prompt = Prompt(messages=tuple(_messages(data)))
        stop = data.get("stop") or ()
        sampling = Sampling(
            max_tokens=int(data.get("max_tokens") or data.get("max_completion_tokens") or 256),
            temperature=float(data.get("temperature") or 0.0),
            top_p=float(data.get("top_p") or 1.0),
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
            seed=data.get("seed"),
        )
    except AmplifyError as error:
        raise Refused(400, str(error)) from error
    except (TypeError, ValueError, OverflowError) as error:
        raise Refused(400, f"max_tokens, temperature, top_p and seed are numbers, and stop is text: {error}") from error
    _check_stops(sampling.stop)
    [done] = await service.placed(lambda _: service.model.generate([prompt], sampling))
    return await _reply(service, data, done.text, done.finish_reason, {"usage": _usage(done)})


async def _looped(service: Service, data: dict[str, Any]) -> Response:
    """Answer a chat request by the loop; greedy."""
    given = _loop(service, data)

    def work(stop: threading.Event) -> Loop:
        return answer_in_loop(None, data.get("documents"), service.model, progress=_while_wanted(stop), **given)

    with tracing.span("amplify.loop") as span:
        found = await service.placed(work)
        span.note(amplify_kept=found.kept)
    service.counts.add("loops", f'kept="{found.kept}"')
    return await _reply(service, data, found.answer, "stop", {}, {"loop": found.to_dict()})


def _loop(service: Service, data: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `answer_in_loop` from a chat request, checked.

    Raises:
        Refused: they make no sense; says why.
    """
    own = dict(data["loop"]) if isinstance(data["loop"], Mapping) else {}
    loop = {name: own.pop(name) for name in ("spans", "least") if name in own}
    try:
        check_loop(loop.get("spans", 1), loop.get("least", 0.0))
        steering = Steering(mode="instaboost", bonus=own.pop("bonus", BONUS))
    except AmplifyError as error:
        raise Refused(400, str(error)) from error
    for name in ("max_tokens", "stop"):
        if data.get(name) is not None:
            own.setdefault(name, data[name])
    kept = {key: data[key] for key in ("messages", "documents", "sources") if data.get(key) is not None}
    asked = service.asked({"budget": 32, **own, **kept})
    asked.pop("documents", None)
    return {**asked, **loop, "steering": steering}


async def _reply(
    service: Service, data: dict[str, Any], text: str, reason: str, more: dict[str, Any],
    ours: dict[str, Any] | None = None,
) -> Response:  # fmt: skip
    """An answer in the form of the chat API, whole or as a stream, with its citations where they are asked for."""
    head = {"id": f"chatcmpl-{secrets.token_hex(8)}", "created": int(time.time()), "model": service.model.id}

    async def added() -> dict[str, Any]:
        cited = {}
        if data.get("citations"):
            cited = await service.citations(data, text) if text.strip() else {"citations": []}
        return {**(ours or {}), **cited}

    if not data.get("stream"):
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": reason}
        found = {**head, "object": "chat.completion", "choices": [choice], **more}
        own = await added()
        return JSONResponse({**found, "amplify": own} if own else found)

    async def events() -> AsyncIterator[bytes]:
        for each, ended in (({"role": "assistant", "content": text}, None), ({}, reason)):
            choice = {"index": 0, "delta": each, "finish_reason": ended}
            yield _line({**head, "object": "chat.completion.chunk", "choices": [choice]})
        if own := await added():
            yield _line({"object": "amplify.citations", "choices": [], "amplify": own})
        yield b"data: [DONE]\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")


def _while_wanted(stop: threading.Event, told: Callable[[int], None] | None = None) -> Callable[[int], None]:
    """Passes on how many prompts were answered, and ends the work when nobody waits for it any more."""

    def progress(prompts: int) -> None:
        if stop.is_set():
            raise InputError("nobody waits for this attribution any more")
        if told is not None:
            told(prompts)

    return progress


def _messages(data: Mapping[str, Any]) -> list[Any]:
    from amplify.sources.document import as_messages

    return list(as_messages(data["messages"]))


def _said(body: bytes) -> str | None:
    """The text of a whole answer of a server; None where it is none."""
    try:
        content = json.loads(body)["choices"][0]["message"].get("content")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    return content if isinstance(content, str) else ""


def _options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of arguments of `attribute_sources` that are options."""
    return {name: value for name, value in given.items() if name not in _ASKED}


def _usage(done: Completion) -> dict[str, int]:
    total = done.prompt_tokens + done.completion_tokens
    return {"prompt_tokens": done.prompt_tokens, "completion_tokens": done.completion_tokens, "total_tokens": total}


async def _bounded(answer: httpx.Response) -> AsyncIterator[bytes]:
    """The parts of an answer of the server behind.

    Raises:
        Refused: together they are larger than anything that is held here.
    """
    count = 0
    async for chunk in answer.aiter_bytes():
        count += len(chunk)
        if count > MOST_ANSWER:
            raise Refused(502, f"the server behind says more than {MOST_ANSWER:,} bytes")
        yield chunk


async def _lines(answer: httpx.Response) -> AsyncIterator[bytes]:
    """The lines of a stream, each with its end. httpx would break them at U+2028 as well, which a text may hold."""
    begun: list[bytes] = []
    async for chunk in _bounded(answer):
        *whole, rest = chunk.split(b"\n")
        for line in whole:
            yield b"".join((*begun, line, b"\n"))
            begun.clear()
        begun.append(rest)
    if last := b"".join(begun):
        yield last


def _data(line: bytes) -> bytes:
    """What a line of a stream brings; nothing where it is a comment or a blank."""
    return line[5:] if line.startswith(b"data:") else b""


def _deltas(line: bytes) -> list[str]:
    """What an event of a stream adds to the answer."""
    try:
        found = [c["delta"].get("content") for c in json.loads(_data(line))["choices"] if c.get("index") == 0]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return []
    return [content for content in found if isinstance(content, str)]


async def _event(service: Service, data: Mapping[str, Any], answer: str) -> bytes:
    found = await service.citations(data, answer) if answer.strip() else {"citations": []}
    return _line({"object": "amplify.citations", "choices": [], "amplify": found})


def _line(value: Mapping[str, Any]) -> bytes:
    return b"data: " + _json(value) + b"\n\n"


def _json(value: Mapping[str, Any]) -> bytes:
    """JSON; half of a character, which servers send of one that comes in two tokens, is written as its escape."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace")


def checked_limits(**given: Any) -> Limits:
    """Limits that make sense.

    Raises:
        InputError: one that is below 1 (waiting: below 0).
    """
    for name, value in given.items():
        if name != "key" and value < (0 if name == "waiting" else 1):
            raise InputError(f"{name} is {value}: it is a number from {0 if name == 'waiting' else 1} up")
    return Limits(**given)

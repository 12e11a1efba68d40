"""The service as a FastAPI application; uvicorn runs it (`amplify serve`).

- `POST /v1/attributions`: what `attribute_sources` takes as JSON; what `SourceAttribution.to_dict` gives. With
  `"background": true` a job, whose state is at `GET /v1/attributions/ID`.
- `POST /v1/chat/completions`: as OpenAI-compatible servers have it. Behind a server (an `openai:` model) requests and
  answers pass through byte for byte, streams included; a field `"citations": true` (or options of an attribution) makes
  the answer's citations its last event, or a field of the answer.
- `GET /health`, `GET /metrics` (Prometheus).

No text of a request or an answer is logged.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from amplify.errors import AmplifyError, InputError, ModelError, extras
from amplify.models.base import LanguageModel
from amplify.models.openai import OpenAIModel
from amplify.models.server import read_key
from amplify.serve.limits import BusyError, Counts, Limits, Places
from amplify.sources.attribute import attribute_sources
from amplify.sources.log import conversation
from amplify.sources.options import options as checked
from amplify.types import Completion, Prompt, Sampling

with extras():
    import httpx
    from fastapi import FastAPI, Request, Response
    from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse

_ASKED = ("id", "question", "documents", "messages", "sources", "answer", "background")
_HIDDEN = ("cache", "progress")  # options that reach into the server
_OURS = ("citations", "documents", "sources")  # fields of a chat request that the server behind never sees


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
        self.tasks: set[asyncio.Task[None]] = set()
        self.client: httpx.AsyncClient | None = None

    async def body(self, request: Request) -> dict[str, Any]:
        """The object that a request brings.

        Raises:
            Refused: no key, too large, or no object.
        """
        if not self.limits.admits(request.headers.get("authorization")):
            raise Refused(401, "this service asks for a key: Authorization: Bearer KEY")
        held = bytearray()
        async for chunk in request.stream():
            held += chunk
            if len(held) > self.limits.body:
                raise Refused(413, f"a request has {self.limits.body:,} bytes at most")
        try:
            data = json.loads(held)
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
        if hidden := [name for name in (*_HIDDEN, "prompt", "template") if name in more]:
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
        return {**given, **more}

    async def attribute(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The attribution, when there is a place for it.

        Raises:
            Refused: too many wait (429), it takes too long (503), or it cannot be made (400, 502).
        """
        begun = time.perf_counter()

        async def placed() -> dict[str, Any]:
            async with self.places.one():
                return await asyncio.to_thread(lambda: attribute_sources(model=self.model, **given).to_dict())

        try:
            found = await asyncio.wait_for(placed(), self.limits.seconds)
        except BusyError:
            raise Refused(429, "too many requests wait: try again later") from None
        except TimeoutError:
            raise Refused(503, f"it takes longer than {self.limits.seconds:g} seconds: lower the budget") from None
        except ModelError as error:
            raise Refused(502, str(error)) from error
        except AmplifyError as error:
            raise Refused(400, str(error)) from error
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
        self.jobs[number] = {"id": number, "status": "running"}

        async def work() -> None:
            try:
                self.jobs[number] = {"id": number, "status": "done", "attribution": await self.attribute(given)}
            except Refused as error:
                self.jobs[number] = {"id": number, "status": "failed", "error": str(error)}

        task = asyncio.create_task(work())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        done = [each for each, job in self.jobs.items() if job["status"] != "running"]
        for old in done[: max(0, len(done) - self.limits.jobs)]:
            del self.jobs[old]
        return number

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
    """
    service = Service(model, limits or Limits())

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        timeout = httpx.Timeout(service.limits.seconds, connect=10.0)
        async with httpx.AsyncClient(timeout=timeout, transport=transport) as client:
            service.client = client
            yield
            for task in service.tasks:
                task.cancel()

    app = FastAPI(title="amplify", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.service = service  # for tests and metrics of others

    @app.middleware("http")
    async def counted(request: Request, call: Callable[..., Any]) -> Response:
        response: Response = await call(request)
        path = request.scope.get("route")
        label = getattr(path, "path", "other")
        service.counts.add("requests", f'path="{label}",status="{response.status_code}"')
        return response

    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> Response:
        body = {"error": {"message": str(error), "type": "invalid_request_error", "code": error.status}}
        return JSONResponse(body, error.status, {"Retry-After": "5"} if error.status == 429 else None)

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
            service.asked({
                **(data["citations"] if isinstance(data["citations"], dict) else {}),
                "messages": data["messages"], "answer": "x",
            })  # fmt: skip
        if isinstance(model, OpenAIModel):
            return await _behind(service, model, data)
        return await _here(service, data)

    return app


async def _behind(service: Service, model: OpenAIModel, data: dict[str, Any]) -> Response:
    """Pass a chat request on to the server behind."""
    assert service.client is not None
    body = {key: value for key, value in data.items() if key not in _OURS} | {"model": model.model}
    key = read_key()
    headers = {
        "content-type": "application/json",
        "accept-encoding": "identity",
        **({"authorization": f"Bearer {key}"} if key else {}),
    }
    request = service.client.build_request("POST", f"{model.url}/chat/completions", json=body, headers=headers)
    try:
        answer = await service.client.send(request, stream=True)
    except httpx.HTTPError as error:
        raise Refused(502, f"the server behind cannot be reached ({type(error).__name__})") from error
    kind = answer.headers.get("content-type", "application/json")
    if answer.status_code >= 400 or not data.get("stream"):
        held = await answer.aread()
        await answer.aclose()
        if answer.status_code < 400 and data.get("citations"):
            found = json.loads(held)
            text = found["choices"][0]["message"].get("content") or ""
            found["amplify"] = await service.citations(data, text) if text.strip() else {"citations": []}
            return JSONResponse(found)
        return Response(held, answer.status_code, media_type=kind)

    async def events() -> AsyncIterator[bytes]:
        said: list[str] = []
        try:
            if not data.get("citations"):
                async for chunk in answer.aiter_bytes():
                    yield chunk
                return
            async for line in answer.aiter_lines():
                if line.strip() == "data: [DONE]":
                    break
                said += _deltas(line)
                yield f"{line}\n".encode()
        except httpx.HTTPError:  # what was said so far has been sent; the end is missing, as it is behind
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
    except (AmplifyError, TypeError, ValueError) as error:
        raise Refused(400, str(error)) from error
    try:
        async with service.places.one():
            [done] = await asyncio.to_thread(service.model.generate, [prompt], sampling)
    except BusyError:
        raise Refused(429, "too many requests wait: try again later") from None
    except ModelError as error:
        raise Refused(502, str(error)) from error
    except AmplifyError as error:
        raise Refused(400, str(error)) from error
    head = {"id": f"chatcmpl-{secrets.token_hex(8)}", "created": int(time.time()), "model": service.model.id}
    if not data.get("stream"):
        choice = {
            "index": 0, "message": {"role": "assistant", "content": done.text}, "finish_reason": done.finish_reason,
        }  # fmt: skip
        found = {**head, "object": "chat.completion", "choices": [choice], "usage": _usage(done)}
        if data.get("citations"):
            found["amplify"] = await service.citations(data, done.text) if done.text.strip() else {"citations": []}
        return JSONResponse(found)

    async def events() -> AsyncIterator[bytes]:
        delta = {"role": "assistant", "content": done.text}
        for each, reason in ((delta, None), ({}, done.finish_reason)):
            choice = {"index": 0, "delta": each, "finish_reason": reason}
            yield _line({**head, "object": "chat.completion.chunk", "choices": [choice]})
        if data.get("citations"):
            yield await _event(service, data, done.text)
        yield b"data: [DONE]\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")


def _messages(data: Mapping[str, Any]) -> list[Any]:
    from amplify.sources.document import as_messages

    return list(as_messages(data["messages"]))


def _usage(done: Completion) -> dict[str, int]:
    total = done.prompt_tokens + done.completion_tokens
    return {"prompt_tokens": done.prompt_tokens, "completion_tokens": done.completion_tokens, "total_tokens": total}


def _deltas(line: str) -> list[str]:
    """What an event of a stream adds to the answer."""
    if not line.startswith("data: {"):
        return []
    try:
        return [c["delta"].get("content") or "" for c in json.loads(line[6:]).get("choices", []) if c.get("index") == 0]
    except (ValueError, KeyError, AttributeError):
        return []


async def _event(service: Service, data: Mapping[str, Any], answer: str) -> bytes:
    found = await service.citations(data, answer) if answer.strip() else {"citations": []}
    return _line({"object": "amplify.citations", "choices": [], "amplify": found})


def _line(value: Mapping[str, Any]) -> bytes:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n".encode()


def checked_limits(**given: Any) -> Limits:
    """Limits that make sense.

    Raises:
        InputError: one that is below 1 (waiting: below 0).
    """
    for name, value in given.items():
        if name != "key" and value < (0 if name == "waiting" else 1):
            raise InputError(f"{name} is {value}: it is a number from {0 if name == 'waiting' else 1} up")
    return Limits(**given)

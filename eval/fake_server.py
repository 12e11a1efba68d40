"""An OpenAI-compatible server that behaves, or misbehaves in one named way. Standard library only.

    with FakeServer(fault="usage_list", every=3) as server:
        amplify.load_model(f"openai:m@{server.url}")

It knows `/v1/models`, `/v1/chat/completions` and `/v1/completions`, log-probabilities of prompt tokens in both ways
that servers give them (vLLM's `prompt_logprobs`, and `echo`), and keeps what it was asked. `FAULTS` names every fault.
"""

from __future__ import annotations

import functools
import gzip
import json
import re
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

Json = dict[str, Any]
PATIENCE = 600.0  # seconds after which even a server that hangs lets go

GENERATION = ("model", "messages", "prompt", "max_tokens", "max_completion_tokens", "temperature", "top_p", "stop")
PLAIN_FIELDS = frozenset(
    (*GENERATION, "seed", "n", "logprobs", "top_logprobs", "frequency_penalty", "presence_penalty")
)
"""What a server knows that knows the API as published and nothing else."""


@dataclass(frozen=True)
class Asked:
    """One request as it came in: path, body, headers (names in lower case), and when (seconds, monotonic)."""

    path: str
    body: Json
    headers: Mapping[str, str]
    at: float


@dataclass(frozen=True)
class Fault:
    """One way to misbehave.

    Attributes:
        about: what is wrong: the connection, the status, the body as JSON, the reply, its usage, or log-probabilities.
        act: takes the exchange and the reply that would be right, and answers.
        bearable: an answer can be had all the same; a client may take it or refuse it, but not crash.
        passes: the fault is one that may pass, so that a client should try again.
        endless: the answer is not whole for minutes; a client needs a deadline.
    """

    about: Literal["connection", "status", "body", "reply", "usage", "logprobs"]
    act: Callable[[Exchange, Json], None]
    bearable: bool = False
    passes: bool = True
    endless: bool = False


class Exchange(BaseHTTPRequestHandler):
    """One connection; `server.owner` is the `FakeServer`."""

    protocol_version = "HTTP/1.1"

    def handle_any(self) -> None:
        """Read the request, and answer it rightly or wrongly."""
        owner: FakeServer = self.server.owner  # type: ignore[attr-defined]
        length = int(self.headers.get("content-length") or 0)
        body = json.loads(self.rfile.read(length)) if length else {}
        headers = {name.lower(): value for name, value in self.headers.items()}
        number = owner.note(Asked(self.path, body, headers, time.monotonic()))
        try:
            with suppress(OSError):  # the client has hung up
                owner.answer(self, body, number)
        finally:
            owner.left()

    do_GET = do_POST = handle_any

    def send(self, status: int, body: object, headers: Mapping[str, str] | None = None) -> None:
        """Answer by a status and a body: an object becomes JSON, text and bytes stay."""
        content = body if isinstance(body, bytes) else str(body).encode() if isinstance(body, str) else dump(body)
        self.send_response(status)
        given = {"content-type": "application/json", "content-length": str(len(content)), **(headers or {})}
        for name, value in given.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def raw(self, content: bytes, pause: float = 0.0) -> None:
        """Write bytes as they are (one at a time with a pause between them), then hang up."""
        self.close_connection = True
        if not pause:
            self.wfile.write(content)
            return
        for byte in content:
            self.wfile.write(bytes([byte]))
            if self.owner_stops(pause):
                return

    def owner_stops(self, seconds: float) -> bool:
        """Wait; True where the server was stopped meanwhile."""
        return bool(self.server.owner.stopping.wait(seconds))  # type: ignore[attr-defined]

    def hang_up(self, *, reset: bool = False) -> None:
        """Close the connection without a word."""
        self.close_connection = True
        if reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        else:
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """A connection that was reset on purpose is no news."""


@dataclass
class FakeServer:
    """Serves on a free local port from `start` (or `with`) to `stop`.

    Attributes:
        fault: a name of `FAULTS`, or None.
        every: each so many-th request that could show the fault does (1: all).
        after: requests that are answered rightly before the first fault.
        model: its name.
        say: what it writes to a prompt: a text, or a function of the last message or the raw prompt.
        window: what it states as the model's window; None for a server that does not list its models.
        scores: whether it gives log-probabilities of prompt tokens, and how.
        fields: what a request may hold; anything else is refused with status 400. None takes everything.
        refuses: field -> message of a 400, e.g. for a server that wants `max_completion_tokens`.
        completions: whether it has the completions API beside chats.
        delay: seconds before each answer.
        seen: what it was asked, in order (the list of models not counted).
    """

    fault: str | None = None
    every: int = 1
    after: int = 0
    model: str = "m"
    say: str | Callable[[str], str] = "The answer is blue."
    window: int | None = 4096
    scores: Literal["prompt_logprobs", "echo"] | None = "prompt_logprobs"
    fields: frozenset[str] | None = None
    refuses: Mapping[str, str] = field(default_factory=dict)
    completions: bool = True
    delay: float = 0.0
    seen: list[Asked] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.fault is not None and self.fault not in FAULTS:
            raise ValueError(f"unknown fault {self.fault!r}: one of {', '.join(FAULTS)}")
        self.now = self.most = 0  # requests in flight: now, and at most
        self.stopping = threading.Event()
        self._lock = threading.Lock()
        self._asked = 0  # requests that could have shown the fault

    @property
    def url(self) -> str:
        """Base of its API."""
        return f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    def start(self) -> FakeServer:
        """Begin to serve."""
        self._http = _Http(("127.0.0.1", 0), Exchange)
        self._http.owner = self  # type: ignore[attr-defined]
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def stop(self) -> None:
        """Let go of every connection."""
        self.stopping.set()
        self._http.shutdown()
        self._http.server_close()

    def __enter__(self) -> FakeServer:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def note(self, asked: Asked) -> int:
        """Remember a request; returns its number, from 1."""
        with self._lock:
            if not asked.path.endswith("/models"):
                self.seen.append(asked)
            self.now += 1
            self.most = max(self.most, self.now)
            return len(self.seen)

    def left(self) -> None:
        """A request is done with."""
        with self._lock:
            self.now -= 1

    def answer(self, exchange: Exchange, body: Json, number: int) -> None:
        """Answer one request."""
        if self.delay:
            self.stopping.wait(self.delay)
        path = exchange.path.removeprefix("/v1")
        if path == "/models":
            listing = {"data": [{"id": self.model, "max_model_len": self.window}]}
            exchange.send(*((200, listing) if self.window else (404, error("no such page"))))
        elif path not in ("/chat/completions", "/completions") or (path == "/completions" and not self.completions):
            exchange.send(404, error("no such page"))
        elif self.fields is not None and (unknown := set(body) - self.fields):
            exchange.send(400, error(f"Unrecognized request argument supplied: {', '.join(sorted(unknown))}"))
        elif wrong := [message for name, message in self.refuses.items() if name in body]:
            exchange.send(400, error(wrong[0]))
        else:
            right = self.reply(path, body)
            fault = FAULTS[self.fault] if self.fault and self._due(body) else None
            if fault:
                fault.act(exchange, right)
            else:
                exchange.send(200, right)

    def reply(self, path: str, body: Json) -> Json:
        """The right answer."""
        prompt = body["messages"][-1]["content"] if path == "/chat/completions" else body["prompt"]
        said = self.say(prompt if isinstance(prompt, str) else "") if callable(self.say) else self.say
        for stop in body.get("stop") or []:
            said = said.split(stop)[0]
        ids = prompt if isinstance(prompt, list) else []
        choice: Json = {"index": 0, "finish_reason": "stop"}
        if path == "/chat/completions":
            choice["message"] = {"role": "assistant", "content": said}
        else:
            choice["text"] = said
            numbers = [None, *(log_prob(i, token) for i, token in enumerate(ids) if i)][: len(ids)]
            if self.scores == "prompt_logprobs" and body.get("prompt_logprobs") is not None:
                entries = zip(ids, numbers, strict=True)
                choice["prompt_logprobs"] = [
                    n if n is None else {str(t): {"logprob": n, "rank": 1}} for t, n in entries
                ]
            if self.scores == "echo" and body.get("echo"):
                choice["logprobs"] = {"tokens": [str(t) for t in ids], "token_logprobs": [*numbers, -0.5]}
        count = len(ids) if ids else len(str(prompt).split())
        usage = {"prompt_tokens": count, "completion_tokens": 1 + len(said.split())}
        choices = [{**choice, "index": i} for i in range(body.get("n") or 1)]
        return {"id": "fake", "object": "completion", "model": self.model, "choices": choices, "usage": usage}

    def _due(self, body: Json) -> bool:
        """Whether this request shows the fault: those of log-probabilities only where these are asked for."""
        if FAULTS[str(self.fault)].about == "logprobs" and not ("prompt_logprobs" in body or body.get("echo")):
            return False
        with self._lock:
            self._asked += 1
            late = self._asked - self.after
        return late > 0 and late % self.every == 0


def log_prob(place: int, token: int) -> float:
    """The log-probability that the server gives to a token at a place of a prompt."""
    return -(1 + (7 * token + place) % 13) / 10


def error(message: str) -> Json:
    """An error as the API words it."""
    return {"error": {"message": message, "type": "invalid_request_error", "code": None}}


def dump(value: object) -> bytes:
    """JSON, with NaN and lone surrogates as escapes, as Python's own writer gives them."""
    return json.dumps(value).encode()


# faults


def _status(code: int, body: object = None, **headers: str) -> Callable[[Exchange, Json], None]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda exchange, right: exchange.send(code, error(f"status {code}") if body is None else body, named)


def _body(content: bytes | str, **headers: str) -> Callable[[Exchange, Json], None]:
    return _status(200, content, **headers)


def _made(change: Callable[[bytes], bytes]) -> Callable[[Exchange, Json], None]:
    """The right body, changed."""
    return lambda exchange, right: exchange.send(200, change(dump(right)))


def _raw(content: bytes, pause: float = 0.0) -> Callable[[Exchange, Json], None]:
    return lambda exchange, right: exchange.raw(content, pause)


def _with(**fields: object) -> Callable[[Exchange, Json], None]:
    """The right reply with other fields."""
    return lambda exchange, right: exchange.send(200, {**right, **fields})


def _without(name: str) -> Callable[[Exchange, Json], None]:
    return lambda exchange, right: exchange.send(200, {k: v for k, v in right.items() if k != name})


def _choice(**fields: object) -> Callable[[Exchange, Json], None]:
    """The right reply with other fields in its first choice."""
    return lambda exchange, right: exchange.send(200, {**right, "choices": [{**right["choices"][0], **fields}]})


def _text(value: object) -> Callable[[Exchange, Json], None]:
    """The right reply with another text, whichever API was asked."""

    def act(exchange: Exchange, right: Json) -> None:
        choice = dict(right["choices"][0])
        if "message" in choice:
            choice["message"] = {**choice["message"], "content": value}
        else:
            choice["text"] = value
        exchange.send(200, {**right, "choices": [choice]})

    return act


def _numbers(change: Callable[[list[Any]], Any]) -> Callable[[Exchange, Json], None]:
    """The right log-probabilities of the prompt's tokens, changed, in whichever way they were asked for."""

    def act(exchange: Exchange, right: Json) -> None:
        choice = dict(right["choices"][0])
        if "prompt_logprobs" in choice:
            entries = choice["prompt_logprobs"]
            changed = change([None if e is None else next(iter(e.values()))["logprob"] for e in entries])
            if isinstance(changed, list):
                tokens = [next(iter(e)) if isinstance(e, dict) else "0" for e in entries]
                tokens += ["0"] * (len(changed) - len(tokens))
                changed = [n if n is None else {t: {"logprob": n}} for t, n in zip(tokens, changed, strict=False)]
            choice["prompt_logprobs"] = changed
        elif isinstance(choice.get("logprobs"), dict):
            choice["logprobs"] = {**choice["logprobs"], "token_logprobs": change(choice["logprobs"]["token_logprobs"])}
        exchange.send(200, {**right, "choices": [choice]})

    return act


def _all(value: object) -> Callable[[Exchange, Json], None]:
    """Every log-probability but the first replaced."""
    return _numbers(lambda numbers: [None if n is None else value for n in numbers])


def _last(value: object) -> Callable[[Exchange, Json], None]:
    """The log-probability of the prompt's last token replaced (an echo adds one for the generated token)."""
    return _numbers(lambda numbers: [n if i < len(numbers) - 2 else value for i, n in enumerate(numbers)])


def _field(value: object) -> Callable[[Exchange, Json], None]:
    """The field that holds the log-probabilities replaced as a whole."""

    def act(exchange: Exchange, right: Json) -> None:
        name = "prompt_logprobs" if "prompt_logprobs" in right["choices"][0] else "logprobs"
        _choice(**{name: value})(exchange, right)

    return act


def _entries(value: object) -> Callable[[Exchange, Json], None]:
    """Every entry of the list of log-probabilities replaced, in the form of vLLM's way."""

    def act(exchange: Exchange, right: Json) -> None:
        choice = right["choices"][0]
        if "prompt_logprobs" in choice:
            _choice(prompt_logprobs=[value] * len(choice["prompt_logprobs"]))(exchange, right)
        else:
            _all(value)(exchange, right)

    return act


def _hang(exchange: Exchange, right: Json) -> None:
    exchange.owner_stops(PATIENCE)
    exchange.hang_up()


def _half(exchange: Exchange, right: Json) -> None:
    content = dump(right)
    exchange.raw(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(content) + content[: len(content) // 2])


def _drip(exchange: Exchange, right: Json) -> None:
    content = dump(right)
    exchange.raw(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(content))
    exchange.raw(content, pause=0.25)


def _blanks(exchange: Exchange, right: Json) -> None:
    exchange.raw(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n")
    exchange.raw(b" " * int(PATIENCE / 0.1), pause=0.1)


def _huge(exchange: Exchange, right: Json) -> None:
    exchange.close_connection = True
    exchange.wfile.write(b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n{"choices": [{"text": "')
    for _ in range(1024):
        exchange.wfile.write(b"x" * 2**20)


@functools.cache
def _packed() -> bytes:
    return gzip.compress(b" " * 2**27)


def _gzip_bomb(exchange: Exchange, right: Json) -> None:
    exchange.send(200, _packed(), {"content-encoding": "gzip"})


def _redirect(code: int, location: str) -> Callable[[Exchange, Json], None]:
    return lambda exchange, right: exchange.send(code, b"", {"location": location})


def _echo_key(exchange: Exchange, right: Json) -> None:
    """As real servers do: the key in the message of a 401, as it is and escaped."""
    key = str(exchange.headers.get("authorization")).removeprefix("Bearer ")
    escaped = "".join(f"\\u{ord(c):04x}" for c in key)
    quoted = "".join(f"%{ord(c):02X}" for c in key)
    message = f'{{"error": {{"message": "Incorrect API key: {key} ({escaped}, {quoted}, \\\\x{key.encode().hex()})"}}}}'
    exchange.send(401, re.sub(r"\\\\x([0-9a-f]+)", lambda m: _hexed(m[1]), message))


def _hexed(digits: str) -> str:
    return "".join(f"\\\\x{digits[i : i + 2]}" for i in range(0, len(digits), 2))


def _say_key(exchange: Exchange, right: Json) -> None:
    _text(f"Your key is {exchange.headers.get('authorization')}.")(exchange, right)


def _deep(opening: str, closing: str) -> bytes:
    return (opening * 200_000 + "1" + closing * 200_000).encode()


FAR = "http://127.0.0.1:9/v1/chat/completions?api_key=sk-in-a-query"
_CONNECTION: dict[str, Fault] = {
    "hang": Fault("connection", _hang, endless=True),
    "drip": Fault("connection", _drip, endless=True),
    "drip_headers": Fault("connection", _raw(b"HTTP/1.1 200 OK\r\nx-slow: " + b"a" * 4000, pause=0.25), endless=True),
    "blanks": Fault("connection", _blanks, endless=True),
    "drop": Fault("connection", lambda exchange, right: exchange.hang_up()),
    "reset": Fault("connection", lambda exchange, right: exchange.hang_up(reset=True)),
    "half": Fault("connection", _half),
    "no_http": Fault("connection", _raw(b"SSH-2.0-OpenSSH_9.6\r\n")),
    "bad_chunks": Fault("connection", _raw(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nhello\r\n")),
    "bad_gzip": Fault("connection", _body(b"this is no gzip", content_encoding="gzip")),
    "gzip_bomb": Fault("connection", _gzip_bomb),
    "huge": Fault("connection", _huge, passes=False),
}
_STATUS: dict[str, Fault] = {
    **{f"status_{code}": Fault("status", _status(code), passes=False) for code in (400, 401, 403, 404, 405, 413, 422)},
    **{f"status_{code}": Fault("status", _status(code)) for code in (408, 409, 429, 500, 502, 503, 504, 529)},
    "status_500_html": Fault("status", _status(500, "<html><h1>Internal</h1> error</html>")),
    "status_500_deep": Fault("status", _status(500, _deep("[", "]"))),
    "status_400_surrogate": Fault("status", _status(400, error("odd \ud83d text")), passes=False),
    "status_400_escapes": Fault("status", _status(400, error("\x1b[31mred\x1b]0;title\x07 text")), passes=False),
    "status_204": Fault("status", lambda exchange, right: exchange.send(204, b"", {"content-length": "0"})),
    "quota": Fault("status", _status(429, {"error": {"message": "pay", "code": "insufficient_quota"}}), passes=False),
    "retry_soon": Fault("status", _status(429, retry_after="0.05")),
    "retry_date": Fault("status", lambda e, r: e.send(429, error("slow"), {"retry-after": formatdate(usegmt=True)})),
    "retry_nan": Fault("status", _status(429, retry_after="nan")),
    "retry_garbage": Fault("status", _status(429, retry_after="soon, I promise")),
    "retry_negative": Fault("status", _status(503, retry_after="-5")),
    "redirect_301": Fault("status", _redirect(301, FAR), passes=False),
    "redirect_302": Fault("status", _redirect(302, FAR), passes=False),
    "redirect_307": Fault("status", _redirect(307, FAR), passes=False),
    "redirect_308": Fault("status", _redirect(308, FAR), passes=False),
    "redirect_loop": Fault("status", _redirect(307, "/v1/chat/completions"), passes=False),
    "redirect_nowhere": Fault("status", lambda exchange, right: exchange.send(307, b""), passes=False),
    "key_in_401": Fault("status", _echo_key, passes=False),
}
_BODY: dict[str, Fault] = {
    "empty": Fault("body", _body(b"")),
    "html": Fault("body", _body("<html>it works!</html>", content_type="text/html")),
    "cut": Fault("body", _made(lambda content: content[:-5])),
    "twice": Fault("body", _made(lambda content: content + content)),
    "stream": Fault("body", _made(lambda content: b"data: " + content + b"\n\ndata: [DONE]\n\n")),
    "latin": Fault("body", _made(lambda content: content.replace(b"fake", b"f\xe9ke"))),
    "bom": Fault("body", _made(lambda content: b"\xef\xbb\xbf" + content), bearable=True),
    "blank_first": Fault("body", _made(lambda content: b" " * 1000 + content), bearable=True),
    "null": Fault("body", _body("null")),
    "list": Fault("body", _body('["a list"]')),
    "string": Fault("body", _body('"a string"')),
    "number": Fault("body", _body("3.5")),
    "long_number": Fault("body", _body('{"choices": [], "n": ' + "9" * 10_000 + "}")),
    "deep_list": Fault("body", _body(_deep("[", "]"))),
    "deep_object": Fault("body", _body(_deep('{"choices": ', "}"))),
    "deep_field": Fault("body", _made(lambda content: content[:-1] + b', "x": ' + _deep("[", "]") + b"}")),
}
_REPLY: dict[str, Fault] = {
    "error_in_200": Fault("reply", _body(dump(error("no capacity")))),
    "no_choices": Fault("reply", _without("choices")),
    "choices_null": Fault("reply", _with(choices=None)),
    "choices_empty": Fault("reply", _with(choices=[])),
    "choices_text": Fault("reply", _with(choices="one")),
    "choices_object": Fault("reply", _with(choices={"0": {"text": "one"}})),
    "choices_of_null": Fault("reply", _with(choices=[None])),
    "choices_of_text": Fault("reply", _with(choices=["one"])),
    "choices_two": Fault("reply", lambda e, right: e.send(200, {**right, "choices": right["choices"] * 2})),
    "no_text": Fault("reply", _with(choices=[{"index": 0, "finish_reason": "stop"}])),
    "message_text": Fault("reply", _with(choices=[{"message": "hello"}])),
    "message_list": Fault("reply", _with(choices=[{"message": ["hello"]}])),
    "text_null": Fault("reply", _text(None)),
    "text_number": Fault("reply", _text(3)),
    "text_true": Fault("reply", _text(True)),
    "text_object": Fault("reply", _text({"text": "hello"})),
    "text_of_numbers": Fault("reply", _text([1, 2])),
    "text_surrogate": Fault("reply", _text("half an emoji \ud83d")),
    "finish_number": Fault("reply", _choice(finish_reason=5)),
    "finish_list": Fault("reply", _choice(finish_reason=["stop"])),
    "finish_null": Fault("reply", _choice(finish_reason=None), bearable=True),
    "more_fields": Fault("reply", _with(further={"a": [1, None, "é"]}), bearable=True),
    "key_in_text": Fault("reply", _say_key, bearable=True),
}
_ODD: dict[str, object] = {
    "text": "many",
    "list": [1, 2],
    "number": 7,
    "true": True,
    "of_text": {"prompt_tokens": "x", "completion_tokens": "2"},
    "of_lists": {"prompt_tokens": [3], "completion_tokens": [1]},
    "of_objects": {"prompt_tokens": {}, "completion_tokens": {"n": 1}},
    "of_truth": {"prompt_tokens": True, "completion_tokens": False},
    "negative": {"prompt_tokens": -3, "completion_tokens": -1},
    "fraction": {"prompt_tokens": 2.5, "completion_tokens": 0.5},
    "nan": {"prompt_tokens": float("nan"), "completion_tokens": float("inf")},
    "beyond": {"prompt_tokens": 10**30, "completion_tokens": 10**30},
}
_USAGE: dict[str, Fault] = {
    **{f"usage_{name}": Fault("usage", _with(usage=value)) for name, value in _ODD.items()},
    "usage_null": Fault("usage", _with(usage=None), bearable=True),
    "usage_missing": Fault("usage", _without("usage"), bearable=True),
    "usage_of_nulls": Fault("usage", _with(usage={"prompt_tokens": None, "completion_tokens": None}), bearable=True),
}
_LOGPROBS: dict[str, Fault] = {
    "logprobs_nan": Fault("logprobs", _all(float("nan"))),
    "logprobs_last_nan": Fault("logprobs", _last(float("nan"))),
    "logprobs_inf": Fault("logprobs", _all(float("inf"))),
    "logprobs_minus_inf": Fault("logprobs", _all(float("-inf"))),
    "logprobs_positive": Fault("logprobs", _all(0.5)),
    "logprobs_last_positive": Fault("logprobs", _last(2)),
    "logprobs_text": Fault("logprobs", _all("-1.5")),
    "logprobs_true": Fault("logprobs", _all(True)),
    "logprobs_of_lists": Fault("logprobs", _all([-1.0])),
    "logprobs_beyond": Fault("logprobs", _all(-(10**400))),
    "logprobs_null": Fault("logprobs", _all(None)),
    "logprobs_short": Fault("logprobs", _numbers(lambda numbers: numbers[: len(numbers) // 2])),
    "logprobs_long": Fault("logprobs", _numbers(lambda numbers: numbers + numbers)),
    "logprobs_empty": Fault("logprobs", _numbers(lambda numbers: [])),
    "logprobs_field_null": Fault("logprobs", _field(None)),
    "logprobs_field_none": Fault("logprobs", _field("none")),
    "logprobs_field_number": Fault("logprobs", _field(5)),
    "logprobs_field_object": Fault("logprobs", _field({"a": 1})),
    "logprobs_field_numbers": Fault("logprobs", _field([5, 5, 5])),
    "logprobs_entries_number": Fault("logprobs", _entries(5)),
    "logprobs_entries_text": Fault("logprobs", _entries("-1")),
    "logprobs_entries_list": Fault("logprobs", _entries([[1, -1.0]])),
    "logprobs_entries_empty": Fault("logprobs", _entries({})),
    "logprobs_other_tokens": Fault("logprobs", _entries({"-7": {"logprob": -1.0}})),
}
FAULTS: dict[str, Fault] = {**_CONNECTION, **_STATUS, **_BODY, **_REPLY, **_USAGE, **_LOGPROBS}
"""Name -> what goes wrong."""


if __name__ == "__main__":
    with FakeServer(fault=sys.argv[1] if len(sys.argv) > 1 else None) as served:
        print(served.url, flush=True)
        threading.Event().wait()

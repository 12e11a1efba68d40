"""The service under load, and what its pass-through adds.

    python eval/bench_serve.py load                             # 64 clients, 2,000 requests, an upstream that echoes
    python eval/bench_serve.py latency                          # interleaved pairs: directly, and through the service
    python eval/bench_serve.py engine --model ~/.cache/amplify/models/smollm2-135m      # both with a vLLM server behind

`load`: every request has a text of its own, and its right answer is an echo of it. A fifth of the clients hang up in
mid-stream, some read slowly, and the upstream is killed and started again on the way; a client that gets an error, or a
stream without its end, asks again. An answer that never comes is lost; one that is not its request's echo is mixed up.

`engine`: the same with greedy answers of a real engine, which is not restarted; the right answer is what the engine
gave to the request alone. Then interleaved pairs of requests for one token, directly and through the service. On a
processor vLLM wants at least two cores: with one its threads wait for each other and the server hardly answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import os
import platform
import random
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import httpx
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from measuring import command, middle

import amplify

RESULTS = Path(__file__).parent / "results"
WORDS = ("amber", "basin", "cedar", "delta", "ember", "fjord", "grove", "haven", "inlet", "jetty", "ledge", "marsh")
Json = dict[str, Any]


# the upstream: a chat server that echoes


def echo(text: str) -> list[str]:
    """The right answer, piece by piece."""
    return [f"{word} " for word in f"echo of {text}".split()]


def echoing(pause: float) -> Any:
    """A chat server that answers each request by an echo, with a pause before each piece."""
    app = FastAPI()
    active = {"now": 0, "cut": 0}

    @app.get("/active")
    async def now() -> Any:
        return JSONResponse(active)

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Any:
        body = await request.json()
        pieces = echo(body["messages"][-1]["content"])
        if not body.get("stream"):
            await asyncio.sleep(pause * len(pieces))
            message = {"role": "assistant", "content": "".join(pieces)}
            return JSONResponse({"id": "e", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})

        async def events() -> AsyncIterator[bytes]:
            active["now"] += 1
            try:
                for piece in pieces:
                    await asyncio.sleep(pause)
                    yield f"data: {json.dumps({'choices': [{'index': 0, 'delta': {'content': piece}}]})}\n\n".encode()
                yield b"data: [DONE]\n\n"
            except (asyncio.CancelledError, GeneratorExit):
                active["cut"] += 1
                raise
            finally:
                active["now"] -= 1

        return StreamingResponse(events(), media_type="text/event-stream")

    return app


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


@contextlib.contextmanager
def process(
    args: list[str], url: str, patience: float = 300.0, log: Path = Path(os.devnull), **env: str
) -> Iterator[subprocess.Popen[bytes]]:
    """A server as a process of its own, from when it answers at `url`; killed at the end with all that it began."""
    with log.open("wb") as out:
        found = subprocess.Popen(args, env={**os.environ, **env}, stdout=out, stderr=out, start_new_session=True)
    try:
        ends = time.monotonic() + patience
        while time.monotonic() < ends and found.poll() is None:
            with contextlib.suppress(httpx.HTTPError):
                httpx.get(url, timeout=2)
                break
            time.sleep(0.1)
        else:
            raise click.ClickException(f"{args[:4]} does not answer at {url} within {patience:g} seconds; see {log}")
        yield found
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(found.pid, signal.SIGKILL)
        found.wait()


def upstream(port: int, pause: float) -> Any:
    """The echoing server as a process."""
    args = [sys.executable, __file__, "upstream", "--port", str(port), "--pause", str(pause)]
    return process(args, f"http://127.0.0.1:{port}/active")


def service(model: str, port: int) -> Any:
    """`amplify serve` as a process."""
    args = [str(Path(sys.executable).with_name("amplify")), "serve", "-m", model, "--port", str(port)]
    return process(args, f"http://127.0.0.1:{port}/health")


# the clients


@dataclass
class Seen:
    """What happened to the requests.

    Attributes:
        whole, cut: answered in full; cut off on purpose.
        lost, mixed: numbers of requests never answered, or answered by something else.
        again: why requests were asked again -> how often.
    """

    whole: int = 0
    cut: int = 0
    lost: list[int] = field(default_factory=list)
    mixed: list[int] = field(default_factory=list)
    again: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Asking:
    """One request.

    Attributes:
        number: of it.
        text: what is asked.
        right: its answer.
        stream: whether it is streamed.
        cut: pieces after which the client hangs up; 0 for none.
        slow: seconds between two reads.
    """

    number: int
    text: str
    right: str
    stream: bool
    cut: int = 0
    slow: float = 0.0


def requests(count: int, right: Callable[[str], str], text: Callable[[int, random.Random], str]) -> list[Asking]:
    """Requests of every kind: a fifth is cut off in mid-stream, a seventh read slowly, half of the rest streamed."""
    found = []
    for k in range(count):
        chance = random.Random(k)
        asked = text(k, chance)
        cut = chance.randint(1, 6) if k % 5 == 0 else 0
        slow = chance.uniform(0.002, 0.02) if k % 7 == 3 else 0.0
        found.append(Asking(k, asked, right(asked), bool(cut) or k % 2 == 0, cut, slow))
    return found


async def ask(client: httpx.AsyncClient, url: str, one: Asking, more: Json) -> tuple[str, bool]:
    """What was answered, and whether it is whole; an error that passes is raised."""
    body = {"model": "m", "messages": [{"role": "user", "content": one.text}], "stream": one.stream, **more}
    if not one.stream:
        done = await client.post(url, json=body)
        if done.status_code != 200:
            raise httpx.TransportError(f"status {done.status_code}: {done.text[:200]}")
        return done.json()["choices"][0]["message"]["content"], True
    said: list[str] = []
    async with client.stream("POST", url, json=body) as stream:
        if stream.status_code != 200:
            raise httpx.TransportError(f"status {stream.status_code}: {(await stream.aread()).decode()[:200]}")
        async for line in stream.aiter_lines():
            if line == "data: [DONE]":
                return "".join(said), True
            if line.startswith("data: {"):
                event = json.loads(line[6:])
                if "error" in event:
                    raise httpx.TransportError("broken off, and said so")
                said += [c["delta"].get("content") or "" for c in event["choices"]]
            if one.slow:
                await asyncio.sleep(one.slow)
            if one.cut and len([piece for piece in said if piece]) >= one.cut:
                return "".join(said), False
    raise httpx.TransportError("a stream without its end")


async def client_loop(
    work: Iterator[Asking], url: str, seen: Seen, more: Json, done: Callable[[], None], tries: int = 200
) -> None:
    """A client: takes requests until there are none left."""
    async with httpx.AsyncClient(timeout=120) as client:
        for one in work:
            for _ in range(tries):
                try:
                    said, whole = await ask(client, url, one, more)
                except (httpx.TransportError, httpx.StreamError) as error:
                    seen.again[str(error) or type(error).__name__] += 1
                    await asyncio.sleep(0.2)
                    continue
                if not whole and one.right.startswith(said):
                    seen.cut += 1
                elif whole and said == one.right:
                    seen.whole += 1
                else:
                    seen.mixed.append(one.number)
                break
            else:
                seen.lost.append(one.number)
            done()


async def loaded(
    url: str, asked: list[Asking], clients: int, more: Json, at: Callable[[int], None]
) -> tuple[Seen, float]:
    """All requests by so many clients at once; `at` is told how many are done. What was seen, and seconds."""
    seen, work, begun, finished = Seen(), iter(asked), time.perf_counter(), 0

    def done() -> None:
        nonlocal finished
        finished += 1
        at(finished)

    await asyncio.gather(*(client_loop(work, url, seen, more, done) for _ in range(clients)))
    return seen, time.perf_counter() - begun


def written(name: str, out: Path, data: Json) -> None:
    """Add what was measured to the file of results."""
    held = json.loads(out.read_text()) if out.exists() else {}
    held[name] = {
        "command": command(), "date": datetime.date.today().isoformat(), "amplify": amplify.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores", "load": round(os.getloadavg()[0], 1), **data,
    }  # fmt: skip
    out.write_text(json.dumps(held, indent=1) + "\n")
    click.echo(json.dumps(held[name], indent=1))


@click.group()
def main() -> None:
    """Measure the service."""


@main.command("upstream")
@click.option("--port", type=int, required=True)
@click.option("--pause", type=float, default=0.002)
def serve_upstream(port: int, pause: float) -> None:
    """The echoing server itself."""
    import uvicorn

    uvicorn.run(echoing(pause), host="127.0.0.1", port=port, log_level="error", access_log=False)


@main.command()
@click.option("--clients", default=64, show_default=True)
@click.option("--count", default=2000, show_default=True)
@click.option("--pause", default=0.002, show_default=True, help="Seconds before each piece of an answer.")
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS / "serve.json", show_default=True)
def load(clients: int, count: int, pause: float, out: Path) -> None:
    """Many clients, cut-offs, slow readers and a restart: nothing lost, nothing mixed up."""
    behind, port = free_port(), free_port()

    def text(k: int, chance: random.Random) -> str:
        return f"request {k} " + " ".join(chance.choices(WORDS, k=chance.randint(5, 60)))

    asked = requests(count, lambda t: "".join(echo(t)), text)
    with contextlib.ExitStack() as first, service(f"openai:m@http://127.0.0.1:{behind}/v1", port):
        running = [first.enter_context(upstream(behind, pause))]
        restarted: list[float] = []

        async def again() -> None:
            running[0].send_signal(signal.SIGKILL)
            running[0].wait()
            begun = time.perf_counter()
            await asyncio.sleep(0.5)
            running[0] = await asyncio.to_thread(first.enter_context, upstream(behind, pause))
            restarted.append(time.perf_counter() - begun)

        async def everything() -> tuple[Seen, float]:
            tasks: list[asyncio.Task[None]] = []

            def at(finished: int) -> None:
                if finished == count // 2:
                    tasks.append(asyncio.create_task(again()))

            found = await loaded(f"http://127.0.0.1:{port}/v1/chat/completions", asked, clients, {}, at)
            await asyncio.gather(*tasks)
            return found

        seen, seconds = asyncio.run(everything())
        time.sleep(1.0)
        active = httpx.get(f"http://127.0.0.1:{behind}/active").json()
        metrics = httpx.get(f"http://127.0.0.1:{port}/metrics").text
    counted = [line for line in metrics.splitlines() if line.startswith("amplify_requests_total")]
    written("load", out, {
        "clients": clients, "requests": count, "whole": seen.whole, "cut_off": seen.cut, "lost": len(seen.lost),
        "mixed": len(seen.mixed), "asked_again": dict(seen.again), "restart_seconds": round(restarted[0], 2),
        "seconds": round(seconds, 1), "left_open_behind": active["now"], "cut_off_behind": active["cut"],
        "counted": counted,
    })  # fmt: skip


@main.command()
@click.option("--pairs", default=300, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS / "serve.json", show_default=True)
def latency(pairs: int, out: Path) -> None:
    """What the pass-through adds to a request, and to the first piece of a stream: interleaved pairs."""
    behind, port = free_port(), free_port()
    with upstream(behind, 0.0), service(f"openai:m@http://127.0.0.1:{behind}/v1", port):
        found = added(behind, port, pairs, {})
    written("latency", out, found)


def added(behind: int, port: int, pairs: int, more: Json) -> Json:
    """Milliseconds that a service adds to a request to the server behind it, by interleaved pairs."""
    urls = [f"http://127.0.0.1:{p}/v1/chat/completions" for p in (behind, port)]

    def seconds(client: httpx.Client, url: str, stream: bool) -> float:
        body = {"model": "m", "messages": [{"role": "user", "content": "how long"}], "stream": stream, **more}
        begun = time.perf_counter()
        if not stream:
            client.post(url, json=body)
            return time.perf_counter() - begun
        with client.stream("POST", url, json=body) as answer:
            pieces = answer.iter_raw()
            next(pieces)
            taken = time.perf_counter() - begun
            for _ in pieces:
                pass
            return taken

    found: Json = {"pairs": pairs}
    with httpx.Client(timeout=60) as client:
        for name, stream in (("whole", False), ("first_piece", True)):
            for url in urls * min(20, pairs):
                seconds(client, url, stream)
            more_by, direct = [], []
            for k in range(pairs):
                order = urls if k % 2 else urls[::-1]
                taken = {url: seconds(client, url, stream) for url in order}
                more_by.append(1000 * (taken[urls[1]] - taken[urls[0]]))
                direct.append(1000 * taken[urls[0]])
            found[name] = {
                **middle(more_by), "p90": statistics.quantiles(more_by, n=10)[-1], "unit": "ms added",
                "direct_median": statistics.median(direct),
            }  # fmt: skip
    return found


@main.command()
@click.option("--model", required=True, help="A model folder.")
@click.option("--clients", default=64, show_default=True)
@click.option("--count", default=256, show_default=True)
@click.option("--new", default=8, show_default=True, help="Tokens of an answer.")
@click.option("--pairs", default=100, show_default=True, help="Of requests for one token, directly and passed through.")
@click.option("--patience", default=240.0, show_default=True, help="Seconds until the engine must answer.")
@click.option("--log", type=click.Path(path_type=Path), default=Path("runs/bench_serve_engine.log"), show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS / "serve.json", show_default=True)
def engine(
    model: str, clients: int, count: int, new: int, pairs: int, patience: float, log: Path, out: Path
) -> None:  # fmt: skip
    """A vLLM server behind, greedy in float32: each answer equals that of the same request alone."""
    behind, port, begun = free_port(), free_port(), time.perf_counter()
    log.parent.mkdir(parents=True, exist_ok=True)
    args = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(Path(model).expanduser()),
        "--served-model-name", "m", "--host", "127.0.0.1", "--port", str(behind), "--enforce-eager", "--dtype",
        "float32", "--max-model-len", "1024", "--generation-config", "vllm", "--max-num-seqs", str(clients),
    ]  # fmt: skip
    more = {"max_tokens": new, "temperature": 0}

    def tell(what: str) -> None:
        click.echo(f"{time.perf_counter() - begun:6.1f} s  {what}", err=True)

    def text(k: int, chance: random.Random) -> str:
        return f"Continue this list of words: {k}, {', '.join(chance.sample(WORDS, 6))}"

    with process(args, f"http://127.0.0.1:{behind}/health", patience, log, VLLM_CPU_KVCACHE_SPACE="1"):
        tell("the engine answers")
        alone: dict[str, str] = {}
        with httpx.Client(timeout=120) as client:

            def right(asked: str) -> str:
                body = {"model": "m", "messages": [{"role": "user", "content": asked}], **more}
                done = client.post(f"http://127.0.0.1:{behind}/v1/chat/completions", json=body)
                alone[asked] = done.raise_for_status().json()["choices"][0]["message"]["content"]
                return alone[asked]

            asked = requests(count, right, text)
        tell(f"{count} requests were answered one by one")
        with service(f"openai:m@http://127.0.0.1:{behind}/v1", port):
            url = f"http://127.0.0.1:{port}/v1/chat/completions"
            seen, seconds = asyncio.run(loaded(url, asked, clients, more, lambda finished: None))
            tell(f"{clients} clients are through after {seconds:.0f} s")
            latency = added(behind, port, pairs, {"max_tokens": 1, "temperature": 0})
            tell("pairs are through")
    written("engine", out, {
        "model": Path(model).name, "clients": clients, "requests": count, "tokens": new,
        "different_answers": len(set(alone.values())),
        "whole": seen.whole, "cut_off": seen.cut, "lost": len(seen.lost), "mixed": len(seen.mixed),
        "asked_again": dict(seen.again), "seconds": round(seconds, 1), "latency": latency,
    })  # fmt: skip


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no server outlives a bench that is stopped
    main()

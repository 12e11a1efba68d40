"""`amplify serve`: attributions and a citing chat API over HTTP."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from typing import Any

import click

from amplify.cli.common import opened_model, required, say, takes_model
from amplify.errors import InputError

KEY = "AMPLIFY_API_KEY"


@click.command()
@takes_model
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(min=0, max=65535),
    default=8100,
    show_default=True,
    help="Port; 0: a free one.",
)
@click.option("--running", type=int, default=2, show_default=True, help="Attributions made at once.")
@click.option("--waiting", type=int, default=16, show_default=True, help="Requests that may wait; more get status 429.")
@click.option("--seconds", type=float, default=300.0, show_default=True, help="That a request may wait and run.")
@click.option("--budget", type=int, default=512, show_default=True, help="Prompts of an attribution at most.")
@click.option("--body", type=int, default=2_000_000, show_default=True, help="Bytes of a request at most.")
def serve(model: str | None, model_option: tuple[str, ...], host: str, port: int, **limits: Any) -> None:
    """Serve attributions, and a chat API that passes through to --model and cites. The key: $AMPLIFY_API_KEY."""
    from amplify.errors import extras

    with extras():
        import uvicorn

    from amplify.serve.app import checked_limits, create_app

    bounds = checked_limits(key=os.environ.get(KEY, "").strip(), **limits)
    with opened_model(required(model, "--model"), model_option) as opened, _listening(host, port) as place:
        server = uvicorn.Server(uvicorn.Config(create_app(opened, bounds), log_level="warning", access_log=False))
        there = f"{f'[{host}]' if ':' in host else host}:{place.getsockname()[1]}"
        if not bounds.key and host not in ("127.0.0.1", "localhost", "::1"):
            say(f"anyone who reaches {there} may ask: set {KEY}", err=True)
        say(f"http://{there}  POST /v1/attributions, /v1/chat/completions; GET /health, /metrics", err=True)
        with suppress(KeyboardInterrupt):
            server.run(sockets=[place])


def _listening(host: str, port: int) -> socket.socket:
    """A socket that takes connections, from before its address is told: one error instead of the server's own words."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        told = error.strerror or str(error)
        raise InputError(f"cannot listen on {host}:{port}: {told}; choose another --host or --port") from error

"""The bench of the service: its upstream echoes what it is asked, and every kind of request is among those sent."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytest.importorskip("fastapi")

from fastapi.testclient import TestClient


@pytest.fixture(scope="module")
def bench(script: Any) -> Any:
    return script("bench_serve")


def test_the_upstream_echoes(bench) -> None:  # type: ignore[no-untyped-def]
    asked = {"messages": [{"role": "user", "content": "one two"}]}
    with TestClient(bench.echoing(0.0)) as client:
        whole = client.post("/v1/chat/completions", json=asked)
        assert whole.json()["choices"][0]["message"]["content"] == "echo of one two "
        lines = client.post("/v1/chat/completions", json={**asked, "stream": True}).text.split("\n\n")
        assert lines[-2] == "data: [DONE]"
        said = [json.loads(line[6:])["choices"][0]["delta"]["content"] for line in lines[:-2]]
        assert said == bench.echo("one two") == ["echo ", "of ", "one ", "two "]
        assert client.get("/active").json() == {"now": 0, "cut": 0}


def test_a_fifth_of_the_requests_is_cut_off(bench) -> None:  # type: ignore[no-untyped-def]
    asked = bench.requests(100, lambda text: f"echo of {text}", lambda k, chance: f"request {k}")
    assert sum(bool(one.cut) for one in asked) == 20
    assert all(one.stream for one in asked if one.cut)
    assert {one.stream for one in asked} == {True, False}
    assert any(one.slow for one in asked)
    assert len({one.right for one in asked}) == 100

"""The service: attributions, jobs, the chat API before and behind, limits, and nothing of a request in the logs."""

from __future__ import annotations

import json
import logging
import threading
import time

import pytest

from amplify.errors import InputError
from amplify.models.openai import OpenAIModel
from amplify.models.scripted import ScriptedModel

pytest.importorskip("fastapi")

import httpx
from fastapi.testclient import TestClient

from amplify.serve.app import checked_limits, create_app
from amplify.serve.limits import Limits
from amplify.sources.result import SourceAttribution

DOCUMENTS = [{"text": "The warranty is two years.", "id": "faq"}, {"text": "Shipping is free.", "id": "ship"}]
CHAT = "The warranty is two years.\n\nShipping is free.\n\nHow long is it?"
SECRET = "a-very-private-sentence"


def likely(text: str, answer: str) -> float:
    return -9.0 + 8.0 * ("two years" in text)


def model(**options) -> ScriptedModel:  # type: ignore[no-untyped-def]
    return ScriptedModel(reply=lambda text: "Two years.", logprob=likely, **options)


@pytest.fixture
def client():  # type: ignore[no-untyped-def]
    with TestClient(create_app(model())) as found:
        yield found


def test_an_attribution_is_the_results_own_form(client, tmp_path) -> None:  # type: ignore[no-untyped-def]
    asked = {"question": "How long?", "documents": DOCUMENTS, "answer": "Two years.", "granularity": "documents"}
    done = client.post("/v1/attributions", json=asked)
    assert done.status_code == 200
    found = SourceAttribution.from_dict(done.json())
    assert found.documents.scores == pytest.approx([8.0, 0.0])
    assert [c["id"] for c in done.json()["citations"]] == ["faq"]
    assert done.json()["claims"][0]["verdict"] == "supported"
    messages = [{"role": "user", "content": CHAT}, {"role": "assistant", "content": "Two years."}]
    other = client.post("/v1/attributions", json={"messages": messages, "documents": DOCUMENTS, "budget": 16})
    assert other.json()["answer"] == "Two years."
    text = client.get("/metrics").text
    assert "amplify_attributions_total 2" in text
    assert 'amplify_requests_total{path="/v1/attributions",status="200"} 2' in text
    assert client.get("/health").json() == {"status": "ok", "model": "scripted:custom"}


def test_a_job_runs_in_the_background(client) -> None:  # type: ignore[no-untyped-def]
    asked = {"question": "How long?", "documents": DOCUMENTS, "answer": "Two years.", "background": True}
    begun = client.post("/v1/attributions", json=asked)
    assert begun.status_code == 202
    for _ in range(200):
        job = client.get(f"/v1/attributions/{begun.json()['id']}").json()
        if job["status"] != "running":
            break
        time.sleep(0.02)
    assert job["status"] == "done"
    assert job["attribution"]["answer"] == "Two years."
    assert client.get("/v1/attributions/other").status_code == 404


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ("no json", 400, "not JSON"),
        ("[1]", 400, "not a JSON object"),
        ("{}", 400, "no conversation"),
        ({"question": "Q", "documents": "one"}, 400, "documents is a list"),
        ({"question": "Q", "documents": DOCUMENTS, "budget": 100000}, 400, "at most 512"),
        ({"question": "Q", "documents": DOCUMENTS, "budgt": 3}, 400, "Did you mean 'budget'"),
        ({"question": "Q", "documents": DOCUMENTS, "cache": "/etc/passwd"}, 400, "not an option of the service"),
        ({"question": "Q", "documents": DOCUMENTS, "prompt": "/etc/x.jinja"}, 400, "not an option of the service"),
        ({"question": "Q", "documents": DOCUMENTS, "engine": 3}, 400, "engine"),
        ({"question": "Q" * 5000, "documents": DOCUMENTS}, 413, "bytes at most"),
    ],
)
def test_what_is_malformed_is_refused_with_the_reason(body, status, says) -> None:  # type: ignore[no-untyped-def]
    who = model()
    with TestClient(create_app(who, Limits(body=4000))) as client:
        content = body if isinstance(body, str) else json.dumps(body)
        done = client.post("/v1/attributions", content=content)
        assert done.status_code == status
        assert says in done.json()["error"]["message"]
    assert not who.calls


def test_only_those_with_the_key_are_heard() -> None:
    who = model()
    with TestClient(create_app(who, Limits(key="k3y"))) as client:
        asked = {"question": "How long?", "documents": DOCUMENTS, "answer": "Two years."}
        for headers in ({}, {"authorization": "Bearer other"}, {"authorization": "k3y"}):
            assert client.post("/v1/attributions", json=asked, headers=headers).status_code == 401
            assert client.get("/v1/attributions/x", headers=headers).status_code == 401
        assert not who.calls
        assert client.post("/v1/attributions", json=asked, headers={"authorization": "Bearer k3y"}).status_code == 200
        assert client.get("/health").status_code == 200
    assert "k3y" not in repr(Limits(key="k3y"))


def test_more_than_may_wait_are_refused_at_once() -> None:
    inside, go = threading.Event(), threading.Event()

    def slow(text: str, answer: str) -> float:
        inside.set()
        go.wait(20)
        return -1.0

    who = ScriptedModel(logprob=slow)
    asked = {"question": "How long?", "documents": DOCUMENTS, "answer": "Two years.", "budget": 4}
    with TestClient(create_app(who, Limits(running=1, waiting=0))) as client:
        first: list[int] = []
        thread = threading.Thread(target=lambda: first.append(client.post("/v1/attributions", json=asked).status_code))
        thread.start()
        assert inside.wait(20)
        busy = client.post("/v1/attributions", json=asked)
        assert busy.status_code == 429
        assert busy.headers["retry-after"] == "5"
        assert client.get("/health").status_code == 200  # the event loop is free
        go.set()
        thread.join()
        assert first == [200]
        assert client.post("/v1/attributions", json=asked).status_code == 200
    for wrong in ({"running": 0}, {"waiting": -1}, {"seconds": 0}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            checked_limits(**wrong)


def test_the_chat_api_of_a_model_in_this_process(client) -> None:  # type: ignore[no-untyped-def]
    asked = {"model": "x", "messages": [{"role": "user", "content": CHAT}], "documents": DOCUMENTS}
    plain = client.post("/v1/chat/completions", json=asked).json()
    assert plain["choices"][0]["message"]["content"] == "Two years."
    assert "amplify" not in plain
    cited = client.post("/v1/chat/completions", json={**asked, "citations": {"budget": 8}}).json()
    assert [c["id"] for c in cited["amplify"]["citations"]] == ["faq"]
    stream = client.post("/v1/chat/completions", json={**asked, "citations": True, "stream": True}).text
    events = [line[6:] for line in stream.splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    assert json.loads(events[-2])["amplify"]["claims"][0]["text"] == "Two years."
    assert client.post("/v1/chat/completions", json={"messages": []}).status_code == 400
    wrong = client.post("/v1/chat/completions", json={**asked, "citations": {"budgt": 8}})
    assert wrong.status_code == 400


STREAM = (
    b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":"Two "}}]}\r\n\r\n'
    b'data: {"choices":[{"index":0,"delta":{"content":"years."}}]}\n\n: a comment\n\ndata: [DONE]\n\n'
)


def behind(request: httpx.Request) -> httpx.Response:
    """The server behind: it never sees what is ours."""
    body = json.loads(request.content)
    assert not {"citations", "documents", "sources"} & body.keys()
    assert body["model"] == "small"
    assert body["top_k"] == 3
    if body["messages"][0]["content"] == "fail":
        return httpx.Response(429, json={"error": "slow down"})
    if body.get("stream"):
        return httpx.Response(200, content=STREAM, headers={"content-type": "text/event-stream"})
    message = {"role": "assistant", "content": "Two years."}
    return httpx.Response(200, json={"id": "1", "choices": [{"index": 0, "message": message}]})


class Behind(OpenAIModel):
    """A server that also scores, by the rule of the tests."""

    def score(self, prompts, continuations, *, steering=None):  # type: ignore[no-untyped-def]
        return model().score(prompts, continuations)

    def describe(self):  # type: ignore[no-untyped-def]
        return {"id": self.id}

    def count_tokens(self, prompts):  # type: ignore[no-untyped-def]
        return model().count_tokens(prompts)


def test_chat_requests_pass_through_to_the_server_behind() -> None:
    who = Behind("small@http://127.0.0.1:9/v1")
    asked = {"model": "any", "top_k": 3, "messages": [{"role": "user", "content": CHAT}]}
    with TestClient(create_app(who, transport=httpx.MockTransport(behind))) as client:
        plain = client.post("/v1/chat/completions", json=asked)
        assert plain.json()["id"] == "1"
        stream = client.post("/v1/chat/completions", json={**asked, "stream": True})
        assert stream.content == STREAM  # byte for byte
        assert stream.headers["content-type"].startswith("text/event-stream")
        failed = client.post("/v1/chat/completions", json={**asked, "messages": [{"role": "user", "content": "fail"}]})
        assert failed.status_code == 429
        assert failed.json() == {"error": "slow down"}
        ours = {"documents": DOCUMENTS, "citations": {"budget": 8}}
        cited = client.post("/v1/chat/completions", json={**asked, **ours}).json()
        assert "error" not in cited["amplify"], cited
        assert [c["id"] for c in cited["amplify"]["citations"]] == ["faq"]
        assert cited["choices"][0]["message"]["content"] == "Two years."
        events = client.post("/v1/chat/completions", json={**asked, **ours, "stream": True}).text.split("data: ")
        assert events[-1].strip() == "[DONE]"
        assert [c["id"] for c in json.loads(events[-2])["amplify"]["citations"]] == ["faq"]
        assert "Two " in events[1]
    who.close()


def test_no_text_of_a_request_is_logged(caplog, capsys) -> None:  # type: ignore[no-untyped-def]
    with caplog.at_level(logging.DEBUG), TestClient(create_app(model())) as client:
        for answer in (SECRET, ""):
            documents = [{"text": f"{SECRET} {i}"} for i in range(2)]
            client.post("/v1/attributions", json={"question": SECRET, "documents": documents, "answer": answer})
        client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": SECRET}]})
        assert SECRET not in client.get("/metrics").text
    assert SECRET not in caplog.text
    assert SECRET not in "".join(capsys.readouterr())


def test_command_line_refuses_wrong_limits() -> None:
    from click.testing import CliRunner

    from amplify.cli import cli

    done = CliRunner().invoke(cli, ["serve", "-m", "scripted:echo", "--running", "0"])
    assert isinstance(done.exception, InputError)
    missing = CliRunner().invoke(cli, ["serve"])
    assert "--model is missing" in str(missing.exception)

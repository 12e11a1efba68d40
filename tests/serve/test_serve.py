"""The service: attributions, jobs, the chat API before and behind, limits, and nothing of a request in the logs."""

from __future__ import annotations

import asyncio
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
PATIENCE = 500.0  # seconds after which something hangs; nothing here is expected to take any length of time


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
    where = f"/v1/attributions/{begun.json()['id']}"
    until(lambda: client.get(where).json()["status"] != "running")
    job = client.get(where).json()
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


ODD = (None, True, -1, 1.5, 1e400, "", "x", "\ud800", [], [None], [[]], ["x"], {}, {"a": 1}, 10**30)
WHOLE = (
    ("/v1/attributions", {
        "question": "How long?", "documents": [{"text": "two years", "id": "a", "metadata": {}}, {"text": "b"}],
        "answer": "x", "budget": 4, "granularity": "documents", "thresholds": [0.1, 0.1], "stop": ["y"], "seed": 0,
        "tokens": None, "engine": "trie", "value": "logprob",
    }),
    ("/v1/attributions", {
        "messages": [{"role": "user", "content": "two years. b."}], "answer": "x", "budget": 4,
        "sources": [
            {"message": 0, "start": 0, "end": 10, "id": "a", "metadata": {}}, {"message": 0, "start": 11, "end": 13},
        ],
    }),
    ("/v1/chat/completions", {
        "messages": [{"role": "system", "content": "two years. b."}, {"role": "user", "content": "How long?"}],
        "citations": {"budget": 4}, "max_tokens": 3, "temperature": 0, "top_p": 1, "stop": ["x"], "seed": 1,
    }),
    ("/v1/chat/completions", {
        "messages": [{"role": "system", "content": "two years. b."}, {"role": "user", "content": "How long?"}],
        "loop": {"spans": 1, "least": 0.2, "bonus": 1.0, "budget": 4}, "stream": False,
    }),
)  # fmt: skip


def places(value, at=()):  # type: ignore[no-untyped-def]
    """Every place of a request where something else could stand."""
    yield at
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inside:
        yield from places(each, (*at, key))


@pytest.mark.parametrize(("url", "whole"), WHOLE)
def test_whatever_stands_in_a_request_is_no_fault_of_the_service(url, whole) -> None:  # type: ignore[no-untyped-def]
    with TestClient(create_app(model())) as found:
        for at in places(whole):
            for odd in ODD:
                body = json.loads(json.dumps(whole))
                inner = body
                for key in at[:-1]:
                    inner = inner[key]
                if at:
                    inner[at[-1]] = odd
                done = found.post(url, content=json.dumps(body if at else odd))
                assert done.status_code < 500 or done.status_code == 502, (at, odd, done.text)
                assert done.status_code == 200 or done.json()["error"]["message"], (at, odd)


def test_a_fault_tells_neither_the_client_nor_the_log_what_was_asked(caplog) -> None:  # type: ignore[no-untyped-def]
    def broken(text: str, answer: str) -> float:
        raise RuntimeError(f"cannot read {text}")

    caplog.set_level(logging.DEBUG)
    asked = {"question": SECRET, "documents": DOCUMENTS, "answer": "Two years.", "granularity": "documents"}
    with TestClient(create_app(ScriptedModel(logprob=broken))) as found:
        done = found.post("/v1/attributions", json=asked)
        assert done.status_code == 500
        assert done.json()["error"]["type"] == "server_error"
        assert found.get("/health").status_code == 200
    assert SECRET not in done.text + caplog.text
    assert "RuntimeError" in caplog.text


def test_what_there_is_not_is_an_error_of_the_same_form(client) -> None:  # type: ignore[no-untyped-def]
    for method, path, status in (("GET", "/v1/nothing", 404), ("PUT", "/v1/attributions", 405)):
        done = client.request(method, path)
        assert (done.status_code, done.json()["error"]["code"]) == (status, status)


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
        go.wait(PATIENCE)
        return -1.0

    who = ScriptedModel(logprob=slow)
    asked = {"question": "How long?", "documents": DOCUMENTS, "answer": "Two years.", "budget": 4}
    with TestClient(create_app(who, Limits(running=1, waiting=0))) as client:
        first: list[int] = []
        thread = threading.Thread(target=lambda: first.append(client.post("/v1/attributions", json=asked).status_code))
        thread.start()
        assert inside.wait(PATIENCE)
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


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"sources": [{"message": 5, "start": 0, "end": 1}]}, "is in message 5"),
        ({"sources": [{"message": 0, "start": 0, "end": 9}, {"message": 0, "start": 5, "end": 19}]}, "overlap"),
        ({"documents": ["Nowhere."]}, "does not stand in the messages"),
        ({"max_tokens": "many"}, "max_tokens, temperature"),
    ],
)
def test_a_chat_request_whose_sources_make_no_sense_starts_nothing(more, says) -> None:  # type: ignore[no-untyped-def]
    who = model()
    asked = {"messages": [{"role": "user", "content": CHAT}], "citations": True, **more}
    with TestClient(create_app(who)) as client:
        done = client.post("/v1/chat/completions", json=asked)
        assert done.status_code == 400
        assert says in done.json()["error"]["message"]
        assert not who.calls
        short = client.post(
            "/v1/chat/completions", json={"messages": [{"role": "user", "content": "Hi"}], "citations": 1}
        )
    assert short.status_code == 200  # one that is only too short to be explained is answered
    assert "nothing to compare" in short.json()["amplify"]["error"]


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


def test_the_key_of_a_file_is_the_key_without_its_line_break(monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner

    from amplify.cli import cli

    apps = []
    monkeypatch.setattr("uvicorn.Server.run", lambda server, sockets: apps.append(server.config.app))
    monkeypatch.setenv("AMPLIFY_API_KEY", "secret\n")
    done = CliRunner().invoke(cli, ["serve", "-m", "scripted:say=yes", "--port", "0"], catch_exceptions=False)
    assert (done.exit_code, [app.state.service.limits.admits("Bearer secret") for app in apps]) == (0, [True])


def test_command_line_refuses_wrong_limits() -> None:
    from click.testing import CliRunner

    from amplify.cli import cli

    done = CliRunner().invoke(cli, ["serve", "-m", "scripted:echo", "--running", "0"])
    assert isinstance(done.exception, InputError)
    missing = CliRunner().invoke(cli, ["serve"])
    assert "--model is missing" in str(missing.exception)


def test_the_command_serves_until_it_is_interrupted() -> None:
    from served import served

    options = ["--model", "scripted:say=Two years.", "--port", "0"]
    with served(options, AMPLIFY_API_KEY="k") as address, httpx.Client(base_url=address, trust_env=False) as client:
        assert client.get("/health").json() == {"status": "ok", "model": "scripted:say=Two years."}
        asked = {"messages": [{"role": "user", "content": "How long?"}]}
        assert client.post("/v1/chat/completions", json=asked).status_code == 401
        done = client.post("/v1/chat/completions", json=asked, headers={"authorization": "Bearer k"})
        assert done.json()["choices"][0]["message"]["content"] == "Two years."


def slowly(inside: threading.Event, go: threading.Event) -> ScriptedModel:
    def scored(text: str, answer: str) -> float:
        inside.set()
        go.wait(PATIENCE)
        return -1.0

    return ScriptedModel(logprob=scored)


def until(true) -> None:  # type: ignore[no-untyped-def]
    ends = time.monotonic() + PATIENCE
    while not true() and time.monotonic() < ends:
        time.sleep(0.01)
    assert true()


ASKED = {"question": "How long?", "documents": DOCUMENTS, "answer": "Two years.", "budget": 4}


def test_what_takes_too_long_is_stopped_and_keeps_its_place_until_then() -> None:
    inside, go = threading.Event(), threading.Event()
    who = slowly(inside, go)
    with TestClient(create_app(who, Limits(running=1, waiting=0, seconds=0.3))) as client:
        late = client.post("/v1/attributions", json=ASKED)
        assert late.status_code == 503
        assert "longer than 0.3 seconds" in late.json()["error"]["message"]
        assert client.post("/v1/attributions", json=ASKED).status_code == 429  # the thread is still at work
        asked = len(who.calls)
        go.set()
        until(lambda: "amplify_held 0" in client.get("/metrics").text)
        assert len(who.calls) <= asked + 4  # what is in the batch is finished, no more is asked
        assert client.post("/v1/attributions", json=ASKED).status_code != 429  # the place is free again


def test_who_waits_too_long_gives_up_the_place_in_the_queue() -> None:
    inside, go = threading.Event(), threading.Event()
    app = create_app(slowly(inside, go), Limits(running=1, waiting=1))
    with TestClient(app) as client:
        first = threading.Thread(target=lambda: client.post("/v1/attributions", json=ASKED))
        first.start()
        assert inside.wait(PATIENCE)
        app.state.service.limits = Limits(running=1, waiting=1, seconds=0.3)
        assert client.post("/v1/attributions", json=ASKED).status_code == 503
        until(lambda: "amplify_held 1" in client.get("/metrics").text)
        go.set()
        first.join()


def test_a_job_says_how_far_it_is() -> None:
    inside, go = threading.Event(), threading.Event()
    seen: list[int] = []

    def scored(text: str, answer: str) -> float:
        return -1.0

    class Slow(ScriptedModel):
        def score(self, prompts, continuations, *, steering=None):  # type: ignore[no-untyped-def]
            if seen:
                inside.set()
                go.wait(PATIENCE)
            seen.append(len(prompts))
            return super().score(prompts, continuations)

    asked = {**ASKED, "budget": 32, "background": True, "engine": "naive"}
    with TestClient(create_app(Slow(logprob=scored))) as client:
        where = f"/v1/attributions/{client.post('/v1/attributions', json=asked).json()['id']}"
        assert inside.wait(PATIENCE)
        job = client.get(where).json()
        assert (job["status"], job["prompts"], job["budget"]) == ("running", 1, 32)
        go.set()
        until(lambda: client.get(where).json()["status"] == "done")
        done = client.get(where).json()
        assert done["prompts"] == done["attribution"]["cost"]["calls"] > 1


class Broken(httpx.AsyncByteStream):
    """Half of an answer, and then nothing."""

    async def __aiter__(self):  # type: ignore[no-untyped-def]
        yield STREAM[:80]
        raise httpx.ReadError("gone")


@pytest.mark.parametrize("ours", [{}, {"citations": True}])
def test_a_server_behind_that_breaks_off_is_no_whole_answer(ours) -> None:  # type: ignore[no-untyped-def]
    who = Behind("small@http://127.0.0.1:9/v1")
    kind = {"content-type": "text/event-stream"}
    transport = httpx.MockTransport(lambda request: httpx.Response(200, stream=Broken(), headers=kind))
    asked = {"messages": [{"role": "user", "content": CHAT}], **ours}
    with TestClient(create_app(who, transport=transport)) as client:
        text = client.post("/v1/chat/completions", json={**asked, "stream": True}).text
        assert "[DONE]" not in text
        assert json.loads(text.strip().rpartition("data: ")[2])["error"]["code"] == 502
        assert client.post("/v1/chat/completions", json=asked).status_code == 502
    who.close()


def test_a_kept_connection_that_a_restart_closed_is_made_anew() -> None:
    who = Behind("small@http://127.0.0.1:9/v1")
    tries: list[str] = []

    def restarted(request: httpx.Request) -> httpx.Response:
        tries.append(request.url.path)
        if len(tries) == 1:
            raise httpx.RemoteProtocolError("Server disconnected without sending a response.")
        if len(tries) > 2:
            raise httpx.ConnectError("refused")
        return httpx.Response(200, json={"choices": [{"message": {"content": "yes"}}]})

    with TestClient(create_app(who, transport=httpx.MockTransport(restarted))) as client:
        asked = {"messages": [{"role": "user", "content": "x"}]}
        assert client.post("/v1/chat/completions", json=asked).status_code == 200
        away = client.post("/v1/chat/completions", json=asked)
        assert (away.status_code, len(tries)) == (502, 3)
        assert "cannot be reached" in away.json()["error"]["message"]
    who.close()


@pytest.mark.parametrize(
    "body", [b"{}", b"not json", b'{"choices": []}', b'{"choices": [{"message": null}]}', b"[1]", b"[" * 99_999]
)
def test_an_odd_answer_of_the_server_behind_is_passed_on_uncited(body: bytes) -> None:
    who = Behind("small@http://127.0.0.1:9/v1")
    with TestClient(create_app(who, transport=httpx.MockTransport(lambda r: httpx.Response(200, content=body)))) as c:
        done = c.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "x"}], "citations": True})
        assert (done.status_code, done.content) == (200, body)
    who.close()


def through(content: bytes, **ours: object) -> httpx.Response:
    """What a client gets of an answer of the server behind."""
    who = Behind("small@http://127.0.0.1:9/v1")
    transport = httpx.MockTransport(lambda request: httpx.Response(200, content=content))
    asked = {"messages": [{"role": "user", "content": CHAT}], "documents": DOCUMENTS, "citations": {"budget": 8}}
    with TestClient(create_app(who, transport=transport)) as client:
        found = client.post("/v1/chat/completions", json={**asked, **ours})
    who.close()
    return found


@pytest.mark.parametrize("said", ["Two\u2028years.", "Two\x85years.", "Two\u2029years.", "Two\x1cyears."])
def test_a_cited_stream_is_broken_where_its_lines_end_and_nowhere_else(said: str) -> None:
    event = {"choices": [{"index": 0, "delta": {"content": said}}]}
    line = json.dumps(event, ensure_ascii=False).replace("\\u001c", "\x1c").encode()
    sent = b"data: " + line + b"\n\n"
    assert through(sent + b"data: [DONE]\n\n", stream=True).content.startswith(sent)


@pytest.mark.parametrize(
    "odd",
    [
        b'data: {"choices": null, "usage": {}}\n\n', b'data: {"choices": [5]}\n\n', b"data: {" + b'"a": [' * 99_999,
        b'data: {"choices": [{"index": 0, "delta": {"content": [1]}}]}\n\n', b"data: []\n\n",
        b'data: {"choices": [{"index": 0, "delta": null}]}\n\n',
    ],
)  # fmt: skip
def test_an_odd_event_of_the_server_behind_is_passed_on_and_read_over(odd: bytes) -> None:
    sent = odd if odd.endswith(b"\n") else odd + b"\n\n"
    found = through(sent + STREAM, stream=True)
    assert found.content.startswith(sent)
    assert [c["id"] for c in json.loads(found.text.split("data: ")[-2])["amplify"]["citations"]] == ["faq"]
    assert found.text.endswith("data: [DONE]\n\n")


def test_events_without_a_blank_behind_their_colon_are_events() -> None:
    found = through(STREAM.replace(b"data: ", b"data:"), stream=True)
    assert [c["id"] for c in json.loads(found.text.split("data: ")[-2])["amplify"]["citations"]] == ["faq"]
    assert found.content.count(b"[DONE]") == 1


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_of_the_server_behind_without_end_is_not_kept(stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amplify.serve.app.MOST_ANSWER", 2**16)
    found = through(b"x" * 2**17, stream=stream)
    assert found.status_code == (200 if stream else 502)
    error = json.loads(found.text.removeprefix("data: "))["error"]
    assert (error["code"], error["message"]) == (502, "the server behind says more than 65,536 bytes")


def test_an_answer_of_the_server_behind_that_drips_ends() -> None:
    class Drips(httpx.AsyncByteStream):
        async def __aiter__(self):  # type: ignore[no-untyped-def]
            while True:
                yield b" "
                await asyncio.sleep(0.01)

    who = Behind("small@http://127.0.0.1:9/v1")
    transport = httpx.MockTransport(lambda request: httpx.Response(200, stream=Drips()))
    with TestClient(create_app(who, Limits(seconds=0.3), transport=transport)) as client:
        done = client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "x"}]})
    assert (done.status_code, "TimeoutError" in done.json()["error"]["message"]) == (502, True)
    who.close()


@pytest.mark.parametrize("content", [r"Two \ud83d years.", "Two years."])
def test_half_of_a_character_and_no_number_are_passed_on_as_they_came(content: str) -> None:
    body = '{"choices": [{"message": {"content": "' + content + '"}, "logprobs": NaN}]}'
    found = through(body.encode())
    assert found.status_code == 200
    assert json.loads(found.content)["choices"][0]["message"] == json.loads(body)["choices"][0]["message"]
    assert [c["id"] for c in json.loads(found.content)["amplify"]["citations"]] == ["faq"]


@pytest.mark.parametrize("half", [False, True])
def test_half_of_a_character_ends_no_stream(half: bool) -> None:
    sent = STREAM.replace(b"years", b"years \\ud83d") if half else STREAM
    found = through(sent, stream=True)
    assert [c["id"] for c in json.loads(found.text.split("data: ")[-2])["amplify"]["citations"]] == ["faq"]


def test_a_request_that_never_arrives_ends() -> None:
    """From outside: half a request to a real server."""
    import socket

    import uvicorn

    app = create_app(model(), Limits(seconds=1.0))
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        with socket.create_connection(("127.0.0.1", port), PATIENCE) as half:
            half.sendall(b"POST /v1/attributions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
            assert half.recv(100).startswith(b"HTTP/1.1 408")
    finally:
        server.should_exit = True
        thread.join()


class Turned(ScriptedModel):
    """Says what it knows by heart, and something else when it is steered."""

    def generate(self, prompts, sampling, *, steering=None):  # type: ignore[no-untyped-def]
        said = "One year." if steering is None else "Two years."
        self.seen = [p.emphasis for p in prompts]
        return ScriptedModel(reply=lambda text: said).generate(prompts, sampling)


def by_heart(text: str, answer: str) -> float:
    return -2.0 - 3.0 * ("two years" in text) if "One" in answer else -9.0 + 8.0 * ("two years" in text)


def test_the_loop_answers_from_the_sources() -> None:
    who = Turned(logprob=by_heart)
    asked = {"messages": [{"role": "user", "content": CHAT}], "documents": DOCUMENTS}
    with TestClient(create_app(who)) as client:
        done = client.post("/v1/chat/completions", json={**asked, "loop": {"spans": 1, "budget": 8}}).json()
        assert done["choices"][0]["message"]["content"] == "Two years."
        assert done["amplify"]["loop"]["kept"] == "steered"
        assert done["amplify"]["loop"]["first"] == "One year."
        strict = client.post("/v1/chat/completions", json={**asked, "loop": {"least": 0.99}, "citations": True}).json()
        assert strict["choices"][0]["message"]["content"] == "One year."
        assert strict["amplify"]["claims"][0]["verdict"] == "contradicted"
        stream = client.post("/v1/chat/completions", json={**asked, "loop": True, "stream": True}).text
        events = [line[6:] for line in stream.splitlines() if line.startswith("data: ")]
        assert events[-1] == "[DONE]"
        assert json.loads(events[-2])["amplify"]["loop"]["kept"] == "steered"
        assert 'amplify_loops_total{kept="steered"} 2' in client.get("/metrics").text
        for wrong in ({"spans": 0}, {"least": 3}, {"bonus": 1e9}, {"budgt": 3}, {"budget": 10_000}):
            assert client.post("/v1/chat/completions", json={**asked, "loop": wrong}).status_code == 400
    with TestClient(create_app(model())) as client:  # a model that cannot be steered
        refused = client.post("/v1/chat/completions", json={**asked, "loop": True})
        assert refused.status_code == 400
        assert "steer" in refused.json()["error"]["message"]


def test_spans_tell_numbers_and_no_text() -> None:
    trace = pytest.importorskip("opentelemetry.sdk.trace")
    export = pytest.importorskip("opentelemetry.sdk.trace.export")
    memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter").InMemorySpanExporter()
    from amplify.serve import tracing

    provider = trace.TracerProvider()
    provider.add_span_processor(export.SimpleSpanProcessor(memory))
    asked = {"question": SECRET, "documents": [f"{SECRET} a", f"{SECRET} b"], "answer": SECRET}
    above = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracing.trace, "get_tracer", provider.get_tracer)
        with TestClient(create_app(model())) as client:
            client.post("/v1/attributions", json=asked, headers={"traceparent": above})
            client.post("/v1/attributions", json={"question": SECRET})
        inner, outer, refused = memory.get_finished_spans()
        assert (inner.name, outer.name) == ("amplify.attribution", "POST /v1/attributions")
        assert inner.parent.span_id == outer.context.span_id
        assert f"{outer.context.trace_id:032x}" == above.split("-")[1]
        assert inner.attributes["amplify.sources"] == 2
        assert inner.attributes["amplify.prompts"] > 1
        assert (outer.attributes["http.response.status_code"], refused.attributes["http.response.status_code"]) == (
            200,
            400,
        )
        assert SECRET not in "".join(each.to_json() for each in memory.get_finished_spans())
        patch.setattr(tracing, "trace", None)  # without the package
        with TestClient(create_app(model())) as client:
            assert client.post("/v1/attributions", json=asked).status_code == 200
        assert len(memory.get_finished_spans()) == 3


@pytest.mark.parametrize(
    ("path", "more", "says"),
    [
        ("/v1/attributions", {"control_variate": True}, "not an option of the service"),
        ("/v1/attributions", {"tokens": 1_000_001, "granularity": "documents"}, "tokens are at most 1,000,000"),
        ("/v1/attributions", {"stop": ["a"] * 17}, "at most 16 strings can end an answer"),
        ("/v1/chat/completions", {"stop": ["a"] * 17}, "at most 16 strings can end an answer"),
        ("/v1/chat/completions", {"stop": ["a"] * 17, "loop": True}, "at most 16 strings can end an answer"),
    ],
)
def test_what_would_ask_more_than_the_limits_say_is_refused(path: str, more, says: str) -> None:  # type: ignore[no-untyped-def]
    who = model()
    asked = {**ASKED, **more}
    if path == "/v1/chat/completions":
        asked |= {"messages": [{"role": "user", "content": "How long?"}]}
        del asked["answer"], asked["question"]
    with TestClient(create_app(who)) as client:
        done = client.post(path, json=asked)
    assert done.status_code == 400
    assert says in done.json()["error"]["message"]
    assert not who.calls

"""Every way in which the fake server of `eval/` misbehaves, on chats, votes and log-probabilities: one error each."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import traceback

import pytest
from fake_server import FAULTS, PLAIN_FIELDS, FakeServer

import amplify
from amplify import Prompt, Sampling
from amplify.errors import AmplifyError, DataError, InputError, ModelError
from amplify.models import Cache, ScoringModel, load_model, server
from amplify.redaction import keep_secret, redact, redact_fields

ASK = [Prompt(messages=({"role": "user", "content": f"question {i}"},)) for i in range(6)]
DOCUMENTS = ["The sky is blue.", "Grass is green."]
LASTING = {name: fault for name, fault in FAULTS.items() if not fault.bearable}
CHATS = {name: fault for name, fault in FAULTS.items() if fault.about != "logprobs"}
ENDLESS = [name for name, fault in FAULTS.items() if fault.endless]
NEVER = 100_000.0  # seconds; what waits for them is ended by something else, or by the test's own limit


@pytest.fixture(autouse=True)
def no_waits(monkeypatch):
    monkeypatch.setattr(server, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(server, "LONGEST_WAIT", 0.05)


def connect(server, **options):
    options = {"retries": 0, "timeout": 0.5 if server.fault in ENDLESS else NEVER, **options}
    return load_model(f"openai:m@{server.url}", **options)


def one_error(server, work):
    """The one error that the work ends in; it names the server and is one printable line."""
    with pytest.raises(ModelError) as caught:
        work()
    message = str(caught.value)
    assert server.url in message
    assert message.replace("\n", "").isprintable()
    assert len(message) < 1000
    return caught.value


# the kinds


@pytest.mark.parametrize("name", CHATS)
def test_a_faulty_answer_is_one_error_and_never_an_answer(name):
    with FakeServer(fault=name) as server, connect(server) as model:
        if FAULTS[name].bearable:
            assert [c.text for c in model.generate(ASK, Sampling())] == ["The answer is blue."] * 6 or "key" in name
            return
        assert one_error(server, lambda: model.generate(ASK, Sampling())).completed == {}
        assert model.usage.calls == 0


@pytest.mark.parametrize("name", [name for name in CHATS if FAULTS[name].passes])
def test_a_fault_that_passes_is_overcome(name):
    with FakeServer(fault=name, every=2) as server, connect(server, retries=500, concurrency=1) as model:
        assert [c.text for c in model.generate(ASK[:3], Sampling())] == ["The answer is blue."] * 3 or "key" in name


@pytest.mark.parametrize("name", CHATS)
def test_votes_rest_on_no_faulty_answer(name, tmp_path):
    cache = tmp_path / "kept"
    with FakeServer(fault=name) as server, connect(server) as model:

        def explain():
            return amplify.attribute_sources(
                "What colour?", DOCUMENTS, model, value="votes", budget=8, max_tokens=8, cache=cache
            )

        if FAULTS[name].bearable:
            assert explain().answer or "key" in name
            return
        one_error(server, explain)
        with Cache(cache) as held:
            assert not len(held)


@pytest.mark.parametrize("scores", ["prompt_logprobs", "echo"])
@pytest.mark.parametrize("name", [name for name in LASTING if FAULTS[name].about == "logprobs"])
def test_a_faulty_log_probability_is_one_error_and_is_never_kept(name, scores, tiny_lm, tmp_path):
    cache = tmp_path / "kept"
    with (
        FakeServer(fault=name, after=1 + (scores == "echo"), scores=scores) as server,
        connect(server, tokenizer=str(tiny_lm), max_context=1024) as model,
    ):
        assert isinstance(model, ScoringModel)  # what it was asked when it was opened, it answered rightly
        assert one_error(server, lambda: model.score(ASK, [" blue"] * 6)).completed == {}

        def explain():
            return amplify.attribute_sources(
                "What colour?", DOCUMENTS, model, answer="blue", budget=8, max_tokens=8, cache=cache
            )

        assert str(cache) in str(one_error(server, explain))
        with Cache(cache) as held:
            assert not len(held)
        server.fault = None  # mended: the same call goes on
        assert len(explain().documents.scores) == 2


@pytest.mark.parametrize("scores", ["prompt_logprobs", "echo"])
@pytest.mark.parametrize("name", [name for name, f in FAULTS.items() if f.passes and f.about in ("reply", "logprobs")])
def test_log_probabilities_that_fail_once_are_asked_for_again(name, scores, tiny_lm):
    with FakeServer(scores=scores) as server, connect(server, tokenizer=str(tiny_lm), max_context=1024) as model:
        right = model.score(ASK[:2], [" blue"] * 2)
    opening = 1 + 2 * (scores == "echo")
    with (
        FakeServer(fault=name, every=2, after=opening, scores=scores) as server,
        connect(server, tokenizer=str(tiny_lm), max_context=1024, retries=2, concurrency=1) as model,
    ):
        assert model.score(ASK[:2], [" blue"] * 2) == right


@pytest.mark.parametrize("name", ["logprobs_field_null", "logprobs_short", "no_text"])
def test_a_server_that_fails_once_while_it_is_opened_scores_all_the_same(name, tiny_lm):
    with FakeServer(fault=name, every=2) as server, connect(server, tokenizer=str(tiny_lm), retries=2) as model:
        assert isinstance(model, ScoringModel)


def test_a_server_that_gives_no_log_probabilities_is_asked_for_them_twice(tiny_lm):
    with (
        FakeServer(fault="logprobs_field_null", after=1) as server,
        connect(server, tokenizer=str(tiny_lm), max_context=1024, retries=5) as model,
    ):
        before = len(server.seen)
        error = one_error(server, lambda: model.score(ASK[:1], [" blue"]))
        assert "no log-probabilities of the prompt's tokens (tried 2 times)" in str(error)
        assert len(server.seen) - before == 2


def test_a_label_is_never_chosen_by_a_number_that_is_none(tiny_lm, tmp_path):
    from amplify.evaluation import evaluate
    from amplify.tasks import load_task

    rows = tmp_path / "rows.csv"
    rows.write_text("text,label\n" + "".join(f"number {i},{'red' if i % 2 else 'blue'}\n" for i in range(20)))
    for name in ("logprobs_nan", "logprobs_minus_inf", "logprobs_positive"):
        with (
            FakeServer(fault=name, after=1) as server,
            connect(server, tokenizer=str(tiny_lm), max_context=1024) as model,
        ):
            one_error(
                server,
                lambda at=tmp_path / name, model=model: evaluate(
                    load_task(rows, text="text", label="label"), model, ["zero_shot"], mode="score", seeds=[0], out=at
                ),
            )
            assert not [f for f in (tmp_path / name).rglob("records.jsonl") if f.read_text().strip()]


# what was answered


def test_what_a_failed_batch_was_answered_is_handed_on():
    with FakeServer(fault="status_403", after=3, every=1) as server, connect(server, concurrency=1) as model:
        error = one_error(server, lambda: model.generate(ASK, Sampling()))
        assert {i: c.text for i, c in error.completed.items()} == dict.fromkeys(range(3), "The answer is blue.")
        assert "3 of 6 were answered" in str(error)
        assert "kept" not in str(error)  # whoever calls decides that
        assert model.usage.calls == 3


# time


@pytest.mark.parametrize("name", ENDLESS)
def test_the_deadline_holds_for_the_whole_answer(name):
    with FakeServer(fault=name) as server, connect(server, timeout=1.0) as model:
        # without it the answer would be whole after minutes, or the connection lost
        assert "no whole answer within 1 s" in str(one_error(server, lambda: model.generate(ASK, Sampling())))


HANGING = """
import os
import click
from amplify import Prompt, Sampling, cli
from amplify.models import load_model

@click.command()
def hang():
    with load_model("openai:m@" + os.environ["ASKED"], timeout=100_000.0) as model:
        model.generate([Prompt(text=str(i)) for i in range(40)], Sampling())

cli.cli.add_command(hang)
cli.main()
"""


@pytest.mark.parametrize("presses", [1, 3])
@pytest.mark.parametrize("name", ["hang", "drip_headers"])
def test_ctrl_c_ends_what_waits_without_a_traceback(name, presses):
    with FakeServer(fault=name) as server:
        command = [sys.executable, "-c", HANGING, "hang"]
        run = subprocess.Popen(command, env={**os.environ, "ASKED": server.url}, stderr=subprocess.PIPE, text=True)
        while len(server.seen) < 16:
            assert run.poll() is None
            time.sleep(0.01)
        for _ in range(presses):
            run.send_signal(signal.SIGINT)
            time.sleep(0.05)
        try:
            _, said = run.communicate(timeout=500)  # a request would wait for more than a day
        finally:
            run.kill()
        assert "Traceback" not in said
        assert "Exception" not in said
        assert run.returncode in (130, -signal.SIGINT)


def test_many_threads_and_a_running_event_loop_may_ask_at_once():
    async def several():
        return await asyncio.gather(*(asyncio.to_thread(model.generate, ASK, Sampling()) for _ in range(4)))

    async def inside():
        return model.generate(ASK, Sampling())

    with FakeServer(say=lambda prompt: prompt.upper()) as server, connect(server) as model:
        wanted = [f"QUESTION {i}" for i in range(6)]
        assert [[c.text for c in done] for done in asyncio.run(several())] == [wanted] * 4
        assert [c.text for c in asyncio.run(inside())] == wanted
        assert model.usage.calls == 30


# secrets

KEY = "sk-proj-Very/Secret+0123456789&x"


@pytest.mark.parametrize("ending", ["\n", "\r\n", " ", "\t"])
def test_blanks_around_a_key_are_no_part_of_it(ending, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}{ending}")
    with FakeServer() as server, connect(server) as model:
        model.generate(ASK[:1], Sampling())
        assert server.seen[0].headers["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("odd", ["\nsk-", "é", " ", "\x1f", "\x7f"])
def test_what_cannot_be_a_key_is_refused_and_not_shown(odd, monkeypatch):
    monkeypatch.setattr(os, "environ", {**os.environ, "OPENAI_API_KEY": f"sk-hush{odd}hush"})
    with pytest.raises(InputError, match="OPENAI_API_KEY cannot be a key: character 8 of") as caught:
        load_model("openai:m@http://127.0.0.1:1/v1")
    assert "hush" not in "".join(traceback.format_exception(caught.value)).replace("sk-hush{odd}hush", "")


@pytest.mark.parametrize("name", [name for name in FAULTS if name != "key_in_text"])
def test_no_fault_shows_the_key(name, monkeypatch, caplog, capfd):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    caplog.set_level("DEBUG")
    with FakeServer(fault=name) as server, connect(server) as model:
        try:
            model.generate(ASK[:2], Sampling())
            shown = ""
        except AmplifyError as error:
            shown = with_locals(error)
        shown += f"{held(model)} {model.id} {caplog.text} {capfd.readouterr()}"
        for form in forms(KEY):
            at = shown.lower().find(form.lower())
            assert at < 0, shown[shown[:at].rindex("File") : at][:300]


def held(model):
    """What a model and the objects that it has hold."""
    return [vars(model), *(vars(part) for part in vars(model).values() if hasattr(part, "__dict__"))]


def with_locals(error):
    """A traceback as it is logged where local variables are shown; the test's own left out."""
    told = traceback.TracebackException.from_exception(error, capture_locals=True)
    part = told
    while part:
        part.stack[:] = [frame for frame in part.stack if "/tests/" not in frame.filename]
        part = part.__cause__
    return "".join(told.format())


def forms(key):
    """A key as it is and escaped, and its beginning and end."""
    escaped = "".join(f"\\u{ord(c):04x}" for c in key), "".join(f"%{ord(c):02x}" for c in key)
    return [key, *escaped, repr(key)[1:-1], json.dumps(key)[1:-1], key[:20], key[-20:]]


def test_a_key_that_a_server_puts_into_its_answer_is_hidden(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with FakeServer(fault="key_in_text") as server, connect(server) as model:
        assert model.generate(ASK[:1], Sampling())[0].text == "Your key is Bearer ***."


@pytest.mark.parametrize("write", [str, repr, ascii, json.dumps, lambda k: k.replace("/", "%2F").replace("+", "%2B")])
def test_every_form_of_a_key_is_found(write):
    from html import escape
    from urllib.parse import quote

    keep_secret(KEY)
    for form in (
        write(KEY),
        quote(KEY, safe=""),
        escape(KEY),
        "".join(f"\\x{ord(c):02x}" for c in KEY),
        *forms(KEY)[:5],
    ):
        assert redact(f"a {form} b").replace("'", "").replace('"', "") == "a *** b"
    keep_secret("EMPTY")
    assert redact("the answer is EMPTY") == "the answer is EMPTY"


def test_users_passwords_and_queries_of_urls_are_hidden_in_every_error():
    shown = str(ModelError("cannot reach https://me:pass@host:1/v1?api_key=abc#x, see http://host/a?"))
    assert shown == "cannot reach https://***@host:1/v1?***#x, see http://host/a?"
    assert redact_fields({"api_key": "abc", "top_k": 1, "max_tokens": 3, "a": {"token": "abc", "b": "c"}}) == {
        "api_key": "***", "top_k": 1, "max_tokens": 3, "a": {"token": "***", "b": "c"},
    }  # fmt: skip


@pytest.mark.parametrize("name", [name for name in FAULTS if name.startswith("redirect")])
def test_a_redirect_is_refused_and_its_place_is_named_without_its_query(name):
    with FakeServer() as other, FakeServer(fault=name) as server, connect(server, retries=3) as model:
        shown = str(one_error(server, lambda: model.generate(ASK[:1], Sampling())))
        assert "redirects to" in shown
        assert "sk-in-a-query" not in shown
        assert len(server.seen) == 1
        assert other.seen == []


# what servers take


def test_a_request_says_all_of_its_sampling():
    with FakeServer() as server, connect(server) as model:
        model.generate(ASK[:1], Sampling())
        body = server.seen[-1].body
    assert body["temperature"] == 0
    assert (body["repetition_penalty"], body["top_k"], body["min_p"]) == (1, -1, 0)
    assert (body["presence_penalty"], body["frequency_penalty"]) == (0, 0)


def test_a_server_that_knows_the_published_api_alone_is_asked_in_it():
    with FakeServer(fields=PLAIN_FIELDS) as server, connect(server) as model:
        assert [c.text for c in model.generate(ASK, Sampling())] == ["The answer is blue."] * 6
        asked = len(server.seen)
        model.generate(ASK, Sampling())
        assert len(server.seen) == asked + 6  # it is not offered again what it refused
        assert model.describe()["not_taken"] == ["min_p", "repetition_penalty", "top_k"]


def test_the_header_says_what_a_server_does_not_take_before_the_first_prompt():
    refuses = {
        "max_tokens": "Unsupported parameter: 'max_tokens' is not supported. Use 'max_completion_tokens' instead.",
        "temperature": "Unsupported value: 'temperature' does not support 0.0 with this model.",
        "stop": "Unsupported parameter: 'stop' is not supported with this model.",
    }
    with FakeServer(refuses=refuses, say="blue\nor red") as server, connect(server) as model:
        assert model.describe()["not_taken"] == ["stop", "temperature"]
        before = len(server.seen)
        assert model.generate(ASK[:1], Sampling(stop=("\n",)))[0].text == "blue"  # cut off here
        assert len(server.seen) == before + 1
        assert server.seen[-1].body["max_completion_tokens"] == 64


def test_a_refusal_of_something_else_is_told_as_it_was():
    refuses = {"messages": "This model's maximum context length is 10 tokens (see max_tokens)."}
    with FakeServer(refuses=refuses) as server, connect(server) as model:
        assert "maximum context length" in str(one_error(server, lambda: model.generate(ASK[:1], Sampling())))
        server.refuses = {}
        model.generate(ASK[:1], Sampling())
        assert "repetition_penalty" in server.seen[-1].body  # it was not about that


def test_a_tokenizer_needs_no_weights(tiny_lm, tmp_path):
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(tiny_lm).save_pretrained(tmp_path)
    with FakeServer() as server, connect(server, tokenizer=str(tmp_path)) as model:
        assert isinstance(model, ScoringModel)
        assert model.score(ASK[:1], [" blue"])[0].total < 0
        with pytest.raises(DataError, match=r"config\.json"):
            model.generate(ASK[:1], Sampling(), steering=amplify.Steering(heads={0: [0]}))

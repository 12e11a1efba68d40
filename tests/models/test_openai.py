"""The openai model against a small local server that behaves, and one that misbehaves in every way servers do."""

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from amplify import Prompt, Sampling
from amplify.errors import CapabilityError, ContextLengthError, InputError, ModelError
from amplify.models import ScoringModel, load_model, server
from amplify.models.openai import OpenAIModel

ASK = [Prompt(messages=({"role": "user", "content": f"question {i}"},)) for i in range(6)]


def chat(body, text=None):
    text = body["messages"][-1]["content"] if text is None else text
    choice = {"message": {"content": text}, "finish_reason": "stop"}
    return {"choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 2}}


class Fake:
    """`reply(server, path, body, number)` gives a dict, (status, headers, text), or None to drop the connection."""

    def __init__(self, reply):
        self.reply, self.seen, self.lock = reply, [], threading.Lock()
        self.at, self.now, self.most, self.keys = [], 0, 0, set()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one(self):
                length = int(self.headers.get("content-length") or 0)
                body = json.loads(self.rfile.read(length)) if length else None
                with fake.lock:
                    fake.seen.append((self.path, body))
                    fake.at.append(time.monotonic())
                    fake.keys.add(self.headers.get("authorization"))
                    fake.now += 1
                    fake.most = max(fake.most, fake.now)
                    number = len(fake.seen)
                answer = fake.reply(fake, self.path, body, number)
                with fake.lock:
                    fake.now -= 1
                if answer is None:
                    self.connection.shutdown(socket.SHUT_RDWR)
                    self.close_connection = True
                    return
                status, headers, text = (200, {}, json.dumps(answer)) if isinstance(answer, dict) else answer
                self.send_response(status)
                for name, value in {"content-type": "application/json", **headers}.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(text.encode())))
                self.end_headers()
                with suppress(BrokenPipeError):  # a client that timed out has hung up
                    self.wfile.write(text.encode())

            do_GET = do_POST = handle_one

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def stop(self):
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def serve(monkeypatch):
    monkeypatch.setattr(server, "FIRST_WAIT", 0.01)
    running = []

    def start(reply=lambda server, path, body, number: chat(body)):
        running.append(Fake(reply))
        return running[-1]

    yield start
    for fake in running:
        fake.stop()


def connect(fake, **options):
    return load_model(f"openai:m@{fake.url}", **options)


# the request


def test_chat_answers_come_back_in_order_and_usage_is_the_servers(serve):
    fake = serve(lambda s, path, body, n: (time.sleep(0.02 * (7 - n)), chat(body))[1])
    with connect(fake, concurrency=6) as model:
        done = model.generate(ASK, Sampling(max_tokens=5, stop=("\n",)))
        assert [c.text for c in done] == [f"question {i}" for i in range(6)]
        assert (done[0].prompt_tokens, done[0].completion_tokens, done[0].finish_reason) == (7, 2, "stop")
        assert (model.usage.calls, model.usage.prompt_tokens, model.usage.completion_tokens) == (6, 42, 12)
    path, body = fake.seen[0]
    assert path == "/v1/chat/completions"
    assert body | {"messages": []} == {
        "model": "m", "temperature": 0.0, "max_tokens": 5, "stop": ["\n"], "messages": [],
        "repetition_penalty": 1.0, "top_k": -1, "min_p": 0.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
    }  # fmt: skip


def test_requests_run_at_once_up_to_the_cap(serve):
    three = threading.Barrier(3, timeout=500)
    fake = serve(lambda s, path, body, n: (three.wait(), chat(body))[1])  # nothing is answered until three are here
    connect(fake, concurrency=3).generate(ASK * 2, Sampling())
    assert fake.most == 3


def test_seed_and_top_p_are_sent_with_sampling_only(serve):
    fake = serve()
    model = connect(fake, extra_body={"top_k": 5})
    model.generate([ASK[0]] * 2, Sampling(temperature=0.5, top_p=0.9, seed=3))
    model.generate(ASK[:1], Sampling(seed=3))
    (_, sampled), (_, other), (_, greedy) = fake.seen
    assert (sampled["top_p"], sampled["top_k"], sampled["max_tokens"]) == (0.9, 5, 64)
    assert sampled["seed"] != other["seed"]  # equal prompts draw different samples
    assert not {"seed", "top_p"} & set(greedy)


def test_raw_text_goes_to_the_completions_api_and_missing_usage_is_estimated(serve):
    fake = serve(lambda s, path, body, n: {"choices": [{"text": " Paris", "finish_reason": "length"}]})
    model = connect(fake)
    prompt = Prompt(text="The capital of France", prefix=" is")
    done = model.generate([prompt], Sampling())[0]
    assert fake.seen[0][0] == "/v1/completions"
    assert fake.seen[0][1]["prompt"] == "The capital of France is"
    assert (done.text, done.finish_reason, done.prompt_tokens) == (
        " Paris",
        "length",
        model.count_tokens([prompt])[0],
    )
    assert model.describe()["token_counts"].startswith("estimated")


PREFIXED = Prompt(messages=ASK[0].messages, prefix="The answer is")


def test_a_server_that_continues_a_begun_answer_is_given_it(serve):
    fake = serve()
    connect(fake, continue_final_message=True).generate([PREFIXED], Sampling())
    body = fake.seen[0][1]
    assert body["messages"][-1] == {"role": "assistant", "content": "The answer is"}
    assert (body["continue_final_message"], body["add_generation_prompt"]) == (True, False)


@pytest.mark.parametrize("owner", ["vllm", "sglang", "somebody"])
def test_a_server_says_what_it_is(serve, owner):
    models = {"data": [{"id": "m", "owned_by": owner}]}
    fake = serve(lambda s, path, body, n: models if path == "/v1/models" else chat(body, "The answer is blue."))
    model = connect(fake)
    done = model.generate([PREFIXED], Sampling())[0]
    begun = fake.seen[-1][1]["messages"][-1] == {"role": "assistant", "content": "The answer is"}
    assert begun == (owner != "somebody")
    assert model.describe()["prefill"] == ("continued" if begun else "asked for in words")
    assert begun or done.text == " blue."


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ("The answer is blue.", " blue."),
        ("\nThe answer is blue.", " blue."),
        ("blue", " blue"),
        ("It is blue.\nOr red.", " It is blue."),
    ],
)
def test_elsewhere_the_beginning_is_asked_for_in_words_and_is_no_part_of_the_completion(serve, said, text):
    fake = serve(lambda s, path, body, n: chat(body, said))
    model = connect(fake, continue_final_message=False)
    assert model.generate([PREFIXED], Sampling(max_tokens=5, stop=("\n",)))[0].text.rstrip() == text
    body = fake.seen[0][1]
    assert [m["role"] for m in body["messages"]] == ["user"]
    assert body["messages"][0]["content"].startswith("question 0\n\n")
    assert body["messages"][0]["content"].endswith("\nThe answer is")
    assert body["max_tokens"] > 5  # room for the words that it was asked to write


def test_a_stop_string_that_stands_in_the_beginning_ends_only_what_follows_it(serve):
    fake = serve(lambda s, path, body, n: chat(body, "First this.\nThe answer is blue.\nmore"))
    prompt = Prompt(messages=ASK[0].messages, prefix="First this.\nThe answer is")
    done = connect(fake, continue_final_message=False).generate([prompt], Sampling(stop=("\n",)))[0]
    assert done.text == " blue."
    assert "stop" not in fake.seen[0][1]


def test_reasoning_that_a_server_keeps_apart_stands_in_a_block_before_the_answer(serve):
    from amplify.text import split_reasoning

    replies = iter(
        [
            ({"content": "blue\nx", "reasoning_content": "Sky?\nYes."}, "stop", ("Sky?\nYes.", "blue")),
            ({"content": "blue", "reasoning": "Sky."}, "stop", ("Sky.", "blue")),
            ({"content": None, "reasoning_content": "Sky and"}, "length", ("Sky and", "")),
        ]
    )
    fake = serve(lambda s, path, body, n: {"choices": [{"message": now[0], "finish_reason": now[1]}]})
    for now in replies:
        done = connect(fake).generate(ASK[:1], Sampling(stop=("\n",)))[0]
        assert split_reasoning(done.text) == now[2]


def test_switches_of_the_template_are_sent_or_used_here(serve, tiny_lm):
    fake = serve()
    connect(fake, chat_template_kwargs={"enable_thinking": False}).generate(ASK[:1], Sampling())
    assert fake.seen[0][1]["chat_template_kwargs"] == {"enable_thinking": False}
    from transformers import AutoTokenizer

    from amplify.models.chat import render
    from amplify.models.chat_template import switched

    tokenizer = AutoTokenizer.from_pretrained(tiny_lm)
    tokenizer.chat_template = "{{ messages[0].content }}{{ '' if enable_thinking is false else '<think>' }}"
    assert render(ASK[0], tokenizer).text == "question 0<think>"
    assert render(ASK[0], switched(tokenizer, {"enable_thinking": False})).text == "question 0"


@pytest.mark.parametrize(
    ("message", "finish", "text"),
    [
        ({"content": None, "refusal": "I will not."}, "stop", "I will not."),
        ({"content": None}, "content_filter", ""),
        ({"content": None, "tool_calls": [{"id": "1"}]}, "tool_calls", ""),
    ],
)
def test_a_message_without_content_is_an_answer_where_something_explains_it(serve, message, finish, text):
    fake = serve(lambda s, path, body, n: {"choices": [{"message": message, "finish_reason": finish}]})
    assert connect(fake).generate(ASK[:1], Sampling())[0].text == text


# trouble


def test_429_is_tried_again_after_the_time_that_the_server_asks_for(serve):
    fake = serve(lambda s, path, body, n: (429, {"retry-after": "0.4"}, "{}") if n == 1 else chat(body))
    assert connect(fake).generate(ASK[:1], Sampling())[0].text == "question 0"
    assert 0.4 <= fake.at[1] - fake.at[0] < 2


def test_waits_grow_stay_capped_and_are_spread():
    assert [server.backoff(n, None, lambda: 1.0) for n in (1, 2, 3, 20)] == [0.5, 1.0, 2.0, server.LONGEST_WAIT]
    assert server.backoff(3, None, lambda: 0.0) == 1.0
    assert server.backoff(1, 5.0, lambda: 0.0) == 5.0
    assert server.backoff(1, 9e9, lambda: 0.0) == server.LONGEST_WAIT


@pytest.mark.parametrize(
    ("headers", "after"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": formatdate(1_000_000_030, usegmt=True)}, 29.5),
        ({"retry-after": formatdate(999_999_999, usegmt=True)}, 0.0),
        ({"retry-after": "soon"}, None),
        ({}, None),
    ],
)
def test_retry_after_may_be_a_date(serve, monkeypatch, headers, after):
    asked = []
    monkeypatch.setattr(server, "backoff", lambda attempt, after: asked.append(after) or 0.0)
    monkeypatch.setattr(time, "time", lambda: 1_000_000_000.5)
    fake = serve(lambda s, path, body, n: (429, headers, "{}") if n == 1 else chat(body))
    assert connect(fake).generate(ASK[:1], Sampling())[0].text == "question 0"
    assert asked == [after]


GARBAGE = [
    ((200, {}, "<html>it works!</html>"), "not JSON"),
    ((200, {"content-type": "text/html"}, "hello"), "not JSON"),
    ((200, {}, '["a list"]'), "not a JSON object"),
    ((200, {}, '{"object": "nothing"}'), "no choices"),
    ((200, {}, '{"choices": [{"message": {"content": 3}}]}'), "its text is the number 3"),
    ((500, {}, "<h1>Internal</h1> error"), "HTTP 500: Internal error"),
    ((429, {}, '{"error": {"message": "slow down"}}'), "HTTP 429: slow down"),
    (None, "no connection"),
]


@pytest.mark.parametrize(("answer", "message"), GARBAGE)
def test_passing_trouble_is_overcome_and_lasting_trouble_is_one_error(serve, answer, message):
    fake = serve(lambda s, path, body, n: answer if n <= 2 else chat(body))
    assert connect(fake, retries=2).generate(ASK[:1], Sampling())[0].text == "question 0"
    fake = serve(lambda s, path, body, n: answer)
    with pytest.raises(ModelError, match=message) as caught:
        connect(fake, retries=2).generate(ASK[:1], Sampling())
    assert len(fake.seen) == 3
    assert "tried 3 times" in str(caught.value)
    assert f"openai:m@{fake.url}" in str(caught.value)


@pytest.mark.parametrize("status", [400, 401, 404, 422])
def test_what_trying_again_does_not_mend_is_not_tried_again(serve, status):
    fake = serve(lambda s, path, body, n: (status, {}, '{"error": {"message": "no such model"}}'))
    with pytest.raises(ModelError, match=f"HTTP {status}: no such model"):
        connect(fake).generate(ASK[:1], Sampling())
    assert len(fake.seen) == (2 if status in (400, 422) else 1)  # once more without fields that not every server takes


def test_a_used_up_quota_is_not_tried_again(serve):
    fake = serve(lambda s, path, body, n: (429, {}, '{"error": {"message": "pay", "code": "insufficient_quota"}}'))
    with pytest.raises(ModelError, match="pay"):
        connect(fake).generate(ASK[:1], Sampling())
    assert len(fake.seen) == 1


def test_timeout(serve):
    over = threading.Event()
    fake = serve(lambda s, path, body, n: (over.wait(500), chat(body))[1])  # silent for as long as the client waits
    with pytest.raises(ModelError, match=r"no whole answer within 0\.1 s \(tried 2 times\)"):
        connect(fake, timeout=0.1, retries=1).generate(ASK[:1], Sampling())
    over.set()


def test_refused_connection(serve):
    fake = serve()
    fake.stop()
    with pytest.raises(ModelError, match="no connection") as caught:
        connect(fake, retries=1).generate(ASK, Sampling())
    assert caught.value.completed == {}


def test_a_server_that_dies_in_mid_run_leaves_what_it_answered(serve):
    fake = serve(lambda s, path, body, n: chat(body) if n <= 4 else None)
    model = connect(fake, concurrency=2, retries=1)
    with pytest.raises(ModelError, match="4 of 6 were answered") as caught:
        model.generate(ASK, Sampling())
    assert len(caught.value.completed) == 4
    for i, completion in caught.value.completed.items():
        assert completion.text == f"question {i}"
    assert model.usage.calls == 4


def test_one_lasting_failure_ends_the_batch_without_asking_the_rest(serve):
    many = [Prompt(messages=({"role": "user", "content": f"question {i}"},)) for i in range(200)]
    told = threading.Event()  # what comes after the failure is answered when the client has had time to see it
    fake = serve(lambda s, path, body, n: (400, {}, "{}") if n == 3 else (n > 3 and told.wait(1), chat(body))[1])
    with pytest.raises(ModelError):
        connect(fake, concurrency=2).generate(many, Sampling())
    assert len(fake.seen) < 20


def test_two_threads_may_share_a_model(serve):
    model = connect(serve(), concurrency=4)
    with ThreadPoolExecutor(2) as pool:
        for done in pool.map(lambda _: model.generate(ASK, Sampling()), range(2)):
            assert [c.text for c in done] == [f"question {i}" for i in range(6)]


# secrets and malformed names


def test_the_key_is_sent_and_shown_nowhere(serve, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    fake = serve(lambda s, path, body, n: (401, {}, '{"error": {"message": "wrong key sk-very-secret"}}'))
    model = connect(fake)
    with pytest.raises(ModelError) as caught:
        model.generate(ASK[:1], Sampling())
    assert fake.keys == {"Bearer sk-very-secret"}
    assert "sk-very-secret" not in f"{caught.value} {model.id} {model.describe()}"
    assert "***" in str(caught.value)


@pytest.mark.parametrize("bad", ["m", "m@localhost:8000", "@http://x/v1", "m@http://u:p@x/v1", "m@http://x/v1?key=1"])
def test_malformed_specs(bad):
    with pytest.raises(InputError, match="MODEL@URL"):
        load_model(f"openai:{bad}")


def test_a_model_name_may_hold_an_at_sign():
    assert OpenAIModel("org/m@v1@http://127.0.0.1:1/v1").model == "org/m@v1"


def test_options_are_checked():
    with pytest.raises(InputError, match="concurrency"):
        load_model("openai:m@http://127.0.0.1:1/v1", concurrency=0)


# with a tokenizer


def completions(way, window=64):
    """A server that scores token number i with -i/10 - id/1000."""

    def reply(server, path, body, number):
        if path == "/v1/models":
            return {"data": [{"id": "m", "max_model_len": window}]} if window else (404, {}, "{}")
        ids = body["prompt"]
        scores = [None, *(-i / 10 - ids[i] / 1000 for i in range(1, len(ids)))]
        choice = {"text": " ok", "finish_reason": "stop"}
        if way == "prompt_logprobs" and "prompt_logprobs" in body:
            entries = [s if s is None else {str(t): {"logprob": s}} for t, s in zip(ids, scores, strict=True)]
            choice["prompt_logprobs"] = entries
        if way == "echo" and body.get("echo"):
            choice["logprobs"] = {"token_logprobs": [*scores, -0.5]}
        return {"choices": [choice], "usage": {"prompt_tokens": len(ids), "completion_tokens": 1}}

    return reply


@pytest.mark.parametrize("way", ["prompt_logprobs", "echo"])
def test_a_server_with_logprobs_becomes_a_scorer_and_the_target_is_cut_from_one_tokenisation(serve, tiny_lm, way):
    from transformers import AutoTokenizer

    model = connect(serve(completions(way)), tokenizer=str(tiny_lm))
    assert isinstance(model, ScoringModel)
    assert model.max_context == 64
    tok = AutoTokenizer.from_pretrained(tiny_lm)
    prompt = Prompt(messages=({"role": "user", "content": "Great phone"},), prefix="The answer is")
    context = tok.apply_chat_template(
        [{"role": "user", "content": "Great phone"}], tokenize=False, add_generation_prompt=True
    )
    head = tok(context + "The answer is", add_special_tokens=False).input_ids
    ids = tok(context + "The answer is positive", add_special_tokens=False).input_ids
    assert ids[: len(head)] == head
    got = model.score([prompt], [" positive"])[0]
    assert list(got.token_ids) == ids[len(head) :]
    assert "".join(got.tokens) == " positive"
    assert got.logprobs == pytest.approx([-i / 10 - ids[i] / 1000 for i in range(len(head), len(ids))], abs=1e-12)
    assert model.usage.prompt_tokens == len(head) == model.count_tokens([prompt])[0]
    assert model.describe()["token_counts"] == "exact"


def test_templates_are_rendered_here_and_sent_as_ids(serve, tiny_lm):
    fake = serve(completions("echo"))
    model = connect(fake, tokenizer=str(tiny_lm))
    prompt = Prompt(messages=({"role": "user", "content": "hi"},), prefix="A")
    assert model.generate([prompt], Sampling(max_tokens=4))[0].text == " ok"
    path, body = fake.seen[-1]
    assert path == "/v1/completions"
    assert len(body["prompt"]) == model.count_tokens([prompt])[0]
    before = len(fake.seen)
    with pytest.raises(ContextLengthError, match="window of 64"):
        model.generate([prompt], Sampling(max_tokens=64))
    with pytest.raises(ContextLengthError, match="window of 64"):
        model.score([prompt], [" one two three" * 30])
    with pytest.raises(InputError, match="empty"):
        model.score([prompt], [""])
    with pytest.raises(InputError, match="no token before"):
        model.score([Prompt(text="")], ["x"])
    assert len(fake.seen) == before


def test_a_server_without_logprobs_is_a_generator_and_keeps_its_options(serve, tiny_lm):
    model = connect(serve(completions("none", window=None)), tokenizer=str(tiny_lm), max_context=50)
    assert type(model) is OpenAIModel
    assert not isinstance(model, ScoringModel)
    assert model.max_context == 50
    assert model.generate([Prompt(text="hello")], Sampling(max_tokens=4))[0].text == " ok"


def test_a_server_that_cannot_be_asked_is_an_error_at_once(serve, tiny_lm):
    fake = serve()
    fake.stop()
    with pytest.raises(ModelError, match="no connection"):
        connect(fake, tokenizer=str(tiny_lm), retries=0)


def test_another_tokenizer_is_noticed(serve, tiny_lm):
    wrong = {"choices": [{"text": "x", "logprobs": {"token_logprobs": [None, -1.0]}}]}
    state = {"probing": True}

    def reply(server, path, body, number):
        return completions("echo")(server, path, body, number) if state["probing"] else wrong

    model = connect(serve(reply), tokenizer=str(tiny_lm))
    state["probing"] = False
    with pytest.raises(ModelError, match="another tokenizer"):
        model.score([Prompt(text="hello there")], [" you"])


# several answers, and their log-probabilities


def test_several_answers_to_a_prompt_are_drawn_alone_and_greedy_ones_are_the_same(serve):
    fake = serve(lambda s, path, body, n: chat(body, f"answer {body.get('seed')}"))
    model = connect(fake, concurrency=1)
    drawn = model.generate(ASK[:2], Sampling(temperature=0.7, seed=1, n=3))
    assert len(drawn) == 6
    assert len({c.text for c in drawn}) == 6
    assert [body["messages"][0]["content"] for _, body in fake.seen] == ["question 0"] * 3 + ["question 1"] * 3
    greedy = model.generate(ASK[:2], Sampling(n=3))
    assert len(greedy) == 6
    assert len(fake.seen) == 6 + 2  # each asked once


def test_what_was_answered_of_several_is_counted_by_answer(serve):
    fake = serve(lambda s, path, body, n: chat(body) if n == 1 else (400, {}, "no"))
    with pytest.raises(ModelError) as caught:
        connect(fake, concurrency=1).generate(ASK[:2], Sampling(n=2))
    assert sorted(caught.value.completed) == [0, 1]


def likely(body, words=("The answer is", " blue", "."), **more):
    """A reply with log-probabilities in the form of the API that was asked."""
    if body is None:  # the list of models
        return 404, {}, "no"
    values = [-0.5 - i for i in range(len(words))]
    if "messages" in body:
        content = [{"token": w, "logprob": v, "bytes": None} for w, v in zip(words, values, strict=True)]
        choice = {"message": {"content": "".join(words)}, "logprobs": {"content": content}}
    else:
        choice = {"text": "".join(words), "logprobs": {"tokens": list(words), "token_logprobs": values}}
    return {"choices": [{**choice, "finish_reason": "stop", **more}]}


@pytest.mark.parametrize("prompt", [ASK[0], Prompt(text="The sky is")])
def test_log_probabilities_of_an_answer_come_from_either_api(serve, prompt):
    fake = serve(lambda s, path, body, n: likely(body))
    found = connect(fake).generate([prompt], Sampling(logprobs=True))[0].logprobs
    assert (found.tokens, found.logprobs, found.token_ids) == (("The answer is", " blue", "."), (-0.5, -1.5, -2.5), ())
    asked = next(body for _, body in fake.seen if body)
    assert asked["logprobs"] is True if prompt.messages else asked["logprobs"] == 1
    assert "return_token_ids" not in asked
    assert connect(fake).generate([prompt], Sampling())[0].logprobs is None


def test_a_server_that_says_it_is_vllm_tells_the_token_ids(serve):
    models = {"data": [{"id": "m", "owned_by": "vllm"}]}
    fake = serve(lambda s, path, body, n: models if path == "/v1/models" else likely(body, token_ids=[5, 6, 7]))
    assert connect(fake).generate(ASK[:1], Sampling(logprobs=True))[0].logprobs.token_ids == (5, 6, 7)
    assert fake.seen[-1][1]["return_token_ids"] is True


def test_words_that_were_asked_for_as_a_beginning_have_no_log_probabilities(serve):
    fake = serve(lambda s, path, body, n: likely(body))
    model = connect(fake, continue_final_message=False)
    done = model.generate([PREFIXED], Sampling(logprobs=True))[0]
    assert (done.text, done.logprobs.tokens) == (" blue.", (" blue", "."))


@pytest.mark.parametrize(
    "reply",
    [
        lambda s, path, body, n: chat(body) if body else (404, {}, "no"),  # ignores the field
        lambda s, path, body, n: (400, {}, '{"error": {"message": "logprobs are not supported with this model"}}'),
        lambda s, path, body, n: likely(body, ()),
    ],
)
def test_a_server_without_log_probabilities_of_answers_is_one_clear_error(serve, reply):
    with pytest.raises(CapabilityError, match="answers without logprobs=True alone"):
        connect(serve(reply), retries=0).generate(ASK[:2], Sampling(logprobs=True))


@pytest.mark.parametrize("logprobs", [[1], {"content": ["a"]}, {"content": [{"token": "a", "logprob": 2.0}]},
                                      {"tokens": ["a"], "token_logprobs": []}])  # fmt: skip
def test_log_probabilities_that_are_none_are_refused(serve, logprobs):
    fake = serve(lambda s, path, body, n: likely(body, logprobs=logprobs))
    with pytest.raises(ModelError, match=r"logprob|log-probability"):
        connect(fake, retries=0).generate(ASK[:1], Sampling(logprobs=True))

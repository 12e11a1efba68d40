"""What travels to an engine, what it does with it between passes, and how a client finds out whether it can."""

from __future__ import annotations

import json
import math
import random
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from amplify import Prompt, Sampling, Span, Steering, load_model
from amplify.errors import CapabilityError, InputError
from amplify.steering.formula import TokenSpan, key_log_weights
from amplify.steering.payload import KEY, PROBE, Payload, check_edit, layers_of, parse, payload
from amplify.steering.vllm_plugin.keys import KeyGains
from amplify.steering.vllm_plugin.layers import SteeringBuffers

SPANS = (TokenSpan(2, 4, 100.0), TokenSpan(6, 7, 0.25))
PASTA = Steering(heads={1: [0, 3]})


@pytest.mark.parametrize(
    "steering",
    [PASTA, replace(PASTA, exempt_generated=True, phase="decode"), replace(PASTA, keep_attention_sink=True),
     Steering(mode="instaboost")],
)  # fmt: skip
def test_round_trip_keeps_the_weights_of_every_key(steering):
    sent = payload(steering, SPANS, 9)
    got = parse(sent)
    assert got.to_json() == sent
    expected = key_log_weights(SPANS, 9, 14, steering)
    assert got.key_log_weights(0, 14) == pytest.approx(expected)
    for a, b in ((0, 3), (3, 8), (8, 11), (12, 14), (5, 5)):
        assert got.key_log_weights(a, b) == pytest.approx(expected[a:b])
    gate = {"both": [1] * 14, "decode": [0] * 9 + [1] * 5}[steering.phase]
    assert got.gate(0, 14).tolist() == [bool(g) for g in gate]


def test_what_it_refuses():
    with pytest.raises(CapabilityError, match="second"):
        payload(Steering(mode="spotlight"), SPANS, 9)
    assert payload(PASTA, (), 9) is None
    good = json.loads(payload(PASTA, SPANS, 9))
    for change, says in (
        ({"spans": []}, "at least one"),
        ({"spans": [[4, 2, 2.0]]}, "ascending"),
        ({"spans": [[2, 4, 2.0], [3, 5, 2.0]]}, "disjoint"),
        ({"spans": [[2, 4, 0]]}, "above 0"),
        ({"spans": [[2, 4, math.inf]]}, "above 0"),
        ({"spans": [[2, 4, 10**400]]}, "above 0"),
        ({"spans": [[2.5, 4, 2]]}, "first token"),
        ({"heads": {}}, "heads"),
        ({"heads": {"x": [0]}}, "layer"),
        ({"prompt": 0}, "prompt"),
        ({"phase": "never"}, "phase"),
        ({"keep_attention_sink": 1}, "keep_attention_sink"),
        ({"surprise": 1}, "object with"),
    ):
        with pytest.raises(InputError, match=says):
            parse(json.dumps({**good, **change}))
    for text in (PROBE, "[" * 200_000):
        with pytest.raises(InputError, match="not JSON"):
            parse(text)
    asked = parse(json.dumps(good))
    for shape, says in (((1, 4, 20), "layer 1"), ((2, 3, 20), "head 3"), ((2, 4, 8), "9 tokens")):
        with pytest.raises(InputError, match=says):
            asked.check(*shape)
    with pytest.raises(InputError, match="outside"):
        replace(asked, prompt=3).check(2, 4, 5)


def test_the_cache_key_starts_where_attention_changes_and_tells_what_matters():
    def of(steering, spans=SPANS, prompt=9):
        return Payload.of(steering, spans, prompt)

    assert of(PASTA).first == 2
    assert of(replace(PASTA, keep_attention_sink=True)).first == 0
    for steering in (PASTA, replace(PASTA, exempt_generated=True), replace(PASTA, keep_attention_sink=True)):
        for prompt in (1, 3, 9):  # also where spans reach behind what counts as prompt
            asks = of(steering, prompt=prompt)
            assert not np.any(asks.key_log_weights(0, asks.first))
    assert of(PASTA).digest == of(PASTA, prompt=8).digest  # what follows the prompt counts as outside all the same
    assert of(PASTA).digest == of(replace(PASTA, alpha=0.5)).digest  # the factors are in the spans
    different = {
        of(PASTA).digest,
        of(PASTA, SPANS[:1]).digest,
        of(PASTA, (TokenSpan(2, 4, 99.0), SPANS[1])).digest,
        of(replace(PASTA, heads={1: [0]})).digest,
        of(replace(PASTA, keep_attention_sink=True)).digest,
        of(replace(PASTA, exempt_generated=True)).digest,
        of(replace(PASTA, exempt_generated=True), prompt=8).digest,
        of(replace(PASTA, phase="prefill")).digest,
        of(replace(PASTA, phase="prefill"), prompt=8).digest,
    }
    assert len(different) == 9


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_buffers_lay_out_what_each_request_asked_for(dtype, rank):
    """Random orders: requests come, are chunked, preempted, finished; more than there are slots in total."""
    draw = random.Random(rank)
    layers, heads, scale, tokens, at_once = 3, 2, 8**-0.5, 40, 3
    buffers = SteeringBuffers(layers, heads, rank, tokens, at_once, dtype)
    buffer = buffers.bias(scale)
    buffers.bias(0.5)
    alive: dict[str, list] = {}
    for step in range(300):
        while len(alive) < 4:
            prompt = draw.randint(8, 30)
            steering = Steering(
                heads={draw.randrange(layers): draw.sample(range(4), 2)},
                phase=draw.choice(["both", "prefill", "decode"]),
                exempt_generated=draw.random() < 0.5,
                keep_attention_sink=draw.random() < 0.3,
            )
            asks = Payload.of(steering, SPANS, prompt) if draw.random() < 0.6 else None
            alive[f"r{step}-{len(alive)}"] = [asks, 0]
        chosen = draw.sample(list(alive), draw.randint(1, at_once))
        counts = np.array([draw.randint(1, 13) for _ in chosen])
        computed = np.array([alive[name][1] for name in chosen], np.int32)
        buffers.begin([(name, alive[name][0]) for name in chosen], counts, computed)
        at = 0
        for name, count, past in zip(chosen, counts, computed, strict=True):
            asks = alive[name][0]
            for position in range(past, past + count):
                expected, weight = torch.zeros(layers, heads), 0.0
                if asks is not None:
                    on = asks.gate(position, position + 1)[0]
                    for layer, numbers in asks.heads.items():
                        for h in numbers:
                            if h // heads == rank and on:
                                expected[layer, h % heads] = 1
                    weight = key_log_weights(SPANS, asks.prompt, position + 8, asks)[position]
                assert torch.equal(buffers.gates[:, at].float(), expected)
                # two roundings to bfloat16 leave 16 bits
                assert buffer[at].double().sum() * scale == pytest.approx(weight, rel=2**-15, abs=1e-7)
                at += 1
            alive[name][1] += int(count)
            if draw.random() < 0.15:
                alive[name][1] = 0  # preempted
            if alive[name][1] > 45:
                del alive[name]
        assert not buffers.gates[:, at:].any()
        assert not buffer[at:].any()


@pytest.fixture
def seka(tmp_path):
    (tmp_path / "p.safetensors").write_bytes(b"any")  # what it holds is the engine's business
    return Steering(mode="seka", projections=str(tmp_path / "p.safetensors"), positive_gain=3.0, negative_gain=-1.0)


def test_edits_of_keys_travel_as_a_digest_and_two_gains(seka, tmp_path):
    spans = (TokenSpan(2, 4, 1.0), TokenSpan(6, 7, 1.0))
    sent = payload(seka, spans, 9)
    got = parse(sent)
    assert got == Payload.of(seka, spans, 9)
    assert got.to_json() == sent
    assert "p.safetensors" not in sent  # paths mean nothing elsewhere
    assert got.first == 2
    for a, b in ((0, 9), (3, 8), (7, 20), (5, 5)):
        assert got.gains(a, b).tolist() == [[1.5, -0.5] if i in (2, 3, 6) else [0, 0] for i in range(a, b)]
    assert got.digest == Payload.of(seka, spans, 8).digest
    other = tmp_path / "q.safetensors"
    other.write_bytes(b"others")
    changed = [replace(seka, positive_gain=2.0), replace(seka, rotation=1), replace(seka, projections=str(other))]
    assert len({Payload.of(s, spans, 9).digest for s in (seka, *changed)}) == 4
    for change, says in (
        ({"edit": {"projections": "x"}}, "positive_gain"),
        ({"edit": {"projections": 3, "positive_gain": 1, "negative_gain": 1}}, "digest"),
        ({"edit": {"projections": "x", "positive_gain": math.inf, "negative_gain": 1}}, "positive_gain is a number"),
        ({"heads": {"1": [0]}}, "heads is null"),
        ({"phase": "decode"}, "left out"),
    ):
        with pytest.raises(InputError, match=says):
            parse(json.dumps({**json.loads(sent), **change}))


def test_an_engine_edits_keys_by_the_projections_it_was_started_with(seka):
    def engine(**options):
        text = SimpleNamespace(num_hidden_layers=4)
        return SimpleNamespace(additional_config={KEY: options}, model_config=SimpleNamespace(hf_text_config=text))

    edit = Payload.of(seka, SPANS, 9).edit
    check_edit(edit, engine(projections=seka.projections))
    turned = Payload.of(replace(seka, rotation=5), SPANS, 9).edit
    check_edit(turned, engine(projections=seka.projections, rotation=5))
    for options, says in (
        ({}, "not started to edit keys"),
        ({"projections": seka.projections, "rotation": 6}, "other projections"),
        ({"projections": 3}, "projections is a file"),
        ({"projections": "p", "rotation": True}, "rotation a seed"),
    ):
        with pytest.raises(InputError, match=says):
            check_edit(turned, engine(**options))
    assert layers_of(engine(projections=seka.projections)) == set()  # nothing is wider
    assert layers_of(engine(projections=seka.projections, layers=[2])) == {2}
    assert layers_of(engine()) == {0, 1, 2, 3}
    with pytest.raises(InputError, match="takes"):
        layers_of(engine(projection="p"))


def test_the_gains_lay_out_what_each_request_asked_for(seka):
    draw = random.Random(0)
    laid = KeyGains(40, "cpu")
    requests = [("a", Payload.of(seka, SPANS, 9)), ("b", None), ("c", Payload.of(PASTA, SPANS, 9)),
                ("d", Payload.of(replace(seka, positive_gain=-4.0), (TokenSpan(0, 12, 1.0),), 15))]  # fmt: skip
    for _ in range(200):
        chosen = draw.sample(requests, draw.randint(1, 4))
        counts = np.array([draw.randint(1, 9) for _ in chosen])
        computed = np.array([draw.randint(0, 14) for _ in chosen], np.int32)
        laid.begin(chosen, counts, computed)
        expected = [
            [0, 0] if asks is None or asks.edit is None else asks.gains(at, at + 1)[0].tolist()
            for (_, asks), count, past in zip(chosen, counts, computed, strict=True)
            for at in range(past, past + count)
        ]
        assert laid.gains.tolist() == expected + [[0, 0]] * (40 - len(expected))


@pytest.fixture
def server():
    """A completions API; `server.steers` says what it does with what it does not understand."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            seen.append(body)
            asked = body.get("vllm_xargs", {}).get(KEY)
            status, answer = 200, {"choices": [{"text": "x", "finish_reason": "stop", "prompt_logprobs": None}]}
            if "prompt_logprobs" in body:
                rows = [None] + [{str(t): {"logprob": -1.0}} for t in body["prompt"][1:]]
                answer["choices"][0]["prompt_logprobs"] = rows
            if asked is not None and http.steers != "ignores":
                try:
                    if http.steers == "off":
                        raise InputError("this engine was started without steering")
                    parse(asked)
                except InputError as error:
                    status, answer = 400, {"error": {"message": f"{KEY}: {error}"}}
            sent = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)

        def log_message(self, *args):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads, http.seen, http.steers = True, seen, "yes"
    threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
    yield http
    http.shutdown()
    http.server_close()


def test_over_http_spans_travel_as_tokens(server, tiny_lm):
    url = f"openai:m@http://127.0.0.1:{server.server_address[1]}/v1"
    steering = Steering(heads={1: [0]}, alpha=0.1)
    marked = Prompt(messages=({"role": "user", "content": "Great phone"},), emphasis=(Span(6, 11, message=0),))
    with load_model(url, tokenizer=str(tiny_lm), max_context=200) as model:
        server.seen.clear()
        model.generate([marked, Prompt(text="plain")], Sampling(max_tokens=2), steering=steering)
        probe, *sent = server.seen
        assert probe["vllm_xargs"] == {KEY: PROBE}
        by_prompt = {len(body["prompt"]): body for body in sent}
        (with_span,) = [b for b in by_prompt.values() if "vllm_xargs" in b]
        asked = parse(with_span["vllm_xargs"][KEY])
        assert asked.prompt == len(with_span["prompt"])
        (span,) = asked.spans
        tokenizer = AutoTokenizer.from_pretrained(tiny_lm)
        assert tokenizer.decode(with_span["prompt"][span.start : span.end]).strip() == "phone"
        assert span.weight == pytest.approx(10)
        server.seen.clear()
        model.score([marked], [" terrible"], steering=steering)
        (body,) = server.seen  # what the server can do is asked once
        with pytest.raises(InputError, match="another model"):
            model.generate([marked], Sampling(max_tokens=2), steering=replace(steering, model={"heads": 12}))
        with pytest.raises(InputError, match="layer 9"):
            model.generate([marked], Sampling(max_tokens=2), steering=Steering(heads={9: [0]}))
        assert parse(body["vllm_xargs"][KEY]).prompt < len(body["prompt"])


@pytest.mark.parametrize("steers", ["ignores", "off"])
def test_a_server_that_cannot_steer_is_found_out(server, tiny_lm, steers):
    server.steers = steers
    url = f"openai:m@http://127.0.0.1:{server.server_address[1]}/v1"
    marked = Prompt(text="Great phone", emphasis=(Span(6, 11),))
    with load_model(url, tokenizer=str(tiny_lm), max_context=200) as model:
        with pytest.raises(CapabilityError, match="--additional-config"):
            model.generate([marked], Sampling(max_tokens=2), steering=PASTA)
        assert model.generate([marked], Sampling(max_tokens=2))[0].text == "x"
    with (
        load_model(url) as chat,
        pytest.raises(CapabilityError, match="tokenizer=FOLDER"),
    ):
        chat.generate([marked], Sampling(max_tokens=2), steering=PASTA)

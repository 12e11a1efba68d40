"""Steering inside a real vLLM engine (float32, SmolLM2) against the papers' formulation on eager transformers.

One engine for all tests, made tight: prefill in chunks of 64 tokens, and a cache too small for a full batch.
"""

from __future__ import annotations

import contextlib
import json
import time
import urllib.request

import pytest
import torch
from steering_reference import reference_logprobs

from amplify import Prompt, Sampling, Span, Steering, load_model, parse_emphasis
from amplify.errors import CapabilityError, InputError, ModelError
from amplify.steering.formula import TokenSpan
from amplify.steering.payload import KEY, PROBE, payload

pytestmark = [pytest.mark.real, pytest.mark.vllm, pytest.mark.timeout(600)]

TOLERANCE = 1e-4  # the promise; 30 layers of float32 sums in another order leave about 5e-5
BLOCK = 32
NEW = 32
PASTA = Steering(heads={3: [0, 5], 10: [1, 2, 3], 20: [8]}, alpha=0.01)
TEXT = (
    "Mary is a nurse who lives in Antarctica with her two dogs. Previously the capital of France was Paris. "
    "Currently the capital of France is Rome. "
) * 6 + "Question: where is the city of Rome? Answer:"


@pytest.fixture(scope="module")
def model(smollm2):
    with load_model(
        f"vllm:{smollm2}",
        steering=True,
        dtype="float32",
        enforce_eager=True,
        max_model_len=512,
        max_num_batched_tokens=64,
        max_num_seqs=8,
        block_size=BLOCK,
        num_gpu_blocks_override=26,  # of 32 tokens: less than four of the longest requests below
        disable_log_stats=False,
        seed=0,
    ) as b:
        yield b


@pytest.fixture(scope="module")
def reference_model(smollm2):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(smollm2, attn_implementation="eager", dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def jobs(model):
    """(prompt ids, spans, steering)"""
    ids = model.tokenizer(TEXT)["input_ids"]
    early = Steering(heads={i: range(9) for i in range(5)}, alpha=0.1, exempt_generated=True)
    decode = Steering(heads={3: [0, 5], 25: [4]}, alpha=0.01, phase="decode", keep_attention_sink=True)
    return [
        (ids, [(150, 155, None)], PASTA),
        (ids, [], None),
        (ids, [(100, 103, None), (120, 130, 5.0), (160, 170, 0.2)], PASTA),
        (ids[:90], [(70, 80, None)], early),
        (ids[:70], [(10, 20, None)], decode),
        (ids[:75], [], None),
        (ids, [(150, 155, None)], Steering(mode="instaboost", bonus=0.5)),
        (ids[:120], [(33, 40, None)], Steering(heads={8: [2, 3]}, phase="prefill")),
    ]


def request(job, *, steered=True, prompt_logprobs=None):
    from vllm import SamplingParams

    ids, marks, steering = job
    extra = None
    if steered and marks:
        spans = [TokenSpan(a, b, w or steering.default_weight) for a, b, w in marks]
        extra = {KEY: payload(steering, spans, len(ids))}
    params = SamplingParams(
        temperature=0, max_tokens=NEW, logprobs=3, prompt_logprobs=prompt_logprobs, ignore_eos=True, extra_args=extra
    )
    return {"prompt_token_ids": ids}, params


def run(model, jobs, **options):
    prompts, params = zip(*(request(job, **options) for job in jobs), strict=True)
    return model.llm.generate(list(prompts), list(params), use_tqdm=False)


def numbers(output):
    """All log-probabilities of one answer, bit for bit."""
    return [
        sorted((token, entry.logprob) for token, entry in row.items())
        for rows in (output.prompt_logprobs or [], output.outputs[0].logprobs)
        for row in rows
        if row
    ]


def check(outputs, jobs, reference_model):
    for (ids, marks, steering), output in zip(jobs, outputs, strict=True):
        new = list(output.outputs[0].token_ids)
        assert len(new) == NEW
        expected = reference_logprobs(reference_model, ids + new, steering or PASTA, marks, len(ids))
        rows = list(enumerate(output.outputs[0].logprobs, start=len(ids) - 1))
        rows += [(k - 1, row) for k, row in enumerate(output.prompt_logprobs or []) if row]
        for k, row in rows:
            for token, entry in row.items():
                assert entry.logprob == pytest.approx(expected[k, token].item(), abs=TOLERANCE)


def preemptions(model):
    return sum(m.value for m in model.llm.get_metrics() if m.name == "vllm:num_preemptions")


def test_a_mixed_batch_is_exact_in_prompt_and_decoded_tokens(model, jobs, reference_model):
    before = preemptions(model)
    outputs = run(model, jobs, prompt_logprobs=1)
    assert preemptions(model) > before, "the cache was meant to be too small"
    check(outputs, jobs, reference_model)
    plain = run(model, jobs, prompt_logprobs=1, steered=False)
    for i in (1, 5):  # the unmarked ones, beside steered neighbours and beside plain ones
        assert numbers(plain[i]) == numbers(outputs[i])
    assert numbers(plain[0]) != numbers(outputs[0])


def test_plain_requests_are_the_stock_engines(model, jobs, smollm2):
    plain = [(ids, [], None) for ids, _, _ in jobs]
    widened = run(model, plain, prompt_logprobs=1)
    with load_model(
        f"vllm:{smollm2}",
        dtype="float32",
        enforce_eager=True,
        max_model_len=512,
        max_num_batched_tokens=64,
        max_num_seqs=8,
        num_gpu_blocks_override=64,
        seed=0,
    ) as stock:
        for mine, theirs in zip(widened, run(stock, plain, prompt_logprobs=1), strict=True):
            assert mine.outputs[0].token_ids == theirs.outputs[0].token_ids
            got, wanted = (torch.tensor([p for row in numbers(o) for _, p in row]) for o in (mine, theirs))
            # the kernel sums 80 channels instead of 64, the added ones zeros: float32 round-off, no more
            assert (got - wanted).abs().max() <= 5e-5


def test_a_compiled_engine_is_exact(jobs, smollm2, reference_model):
    with load_model(
        f"vllm:{smollm2}", steering=True, dtype="float32", max_model_len=512, max_num_seqs=8, seed=0
    ) as compiled:
        check(run(compiled, jobs[:5], prompt_logprobs=1), jobs[:5], reference_model)


def test_the_prefix_cache_never_crosses(model, jobs, reference_model):
    steered, plain, three = jobs[:3]
    model.llm.reset_prefix_cache()
    run(model, [plain])
    first = run(model, [steered])[0]  # its blocks before token 150 are the plain request's
    assert first.num_cached_tokens == 150 // BLOCK * BLOCK
    again = run(model, [steered])[0]  # and now all full blocks of the prompt are its own
    assert again.num_cached_tokens == (len(steered[0]) - 1) // BLOCK * BLOCK
    other = run(model, [three])[0]
    assert other.num_cached_tokens == 100 // BLOCK * BLOCK
    back = run(model, [plain])[0]
    assert back.num_cached_tokens == (len(plain[0]) - 1) // BLOCK * BLOCK
    check([first, again, other, back], [steered, steered, three, plain], reference_model)


def test_requests_that_arrive_while_others_run(model, jobs, reference_model):
    engine = model.llm.llm_engine
    waiting = {f"late-{i}": request(job) for i, job in enumerate(jobs)}
    done = {}
    step = 0
    while waiting or engine.has_unfinished_requests():
        if waiting and step % 3 == 0:
            name = next(iter(waiting))
            engine.add_request(name, *waiting.pop(name))
        for output in engine.step():
            if output.finished:
                done[output.request_id] = output
        step += 1
    ordered = [next(o for n, o in done.items() if n.startswith(f"late-{i}")) for i in range(len(jobs))]
    check(ordered, jobs, reference_model)


@pytest.mark.parametrize(
    "bad",
    ["{}", "not json", PROBE, 7, {"spans": []}, {"spans": [[5, 3, 2.0]]}, {"spans": [[0, 999, 2.0]]},
     {"heads": {"99": [0]}}, {"heads": {"3": [9]}}, {"prompt": 999}, {"spans": [[0, 2, -1.0]]}, {"phase": "never"}],
)  # fmt: skip
def test_a_bad_request_is_refused_and_the_engine_lives_on(model, jobs, bad):
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError  # over HTTP: status 400

    good = {"spans": [[0, 2, 2.0]], "prompt": 10, "heads": {"3": [0]}}
    sent = json.dumps({**good, **bad}) if isinstance(bad, dict) else bad
    prompt = {"prompt_token_ids": jobs[0][0][:10]}
    with pytest.raises(VLLMValidationError, match=KEY):
        model.llm.generate([prompt], [SamplingParams(max_tokens=2, extra_args={KEY: sent})], use_tqdm=False)
    fine = model.llm.generate([prompt], [SamplingParams(max_tokens=2)], use_tqdm=False)
    assert len(fine[0].outputs[0].token_ids) == 2


def test_the_model_scores_and_writes_as_transformers_does(model, smollm2):
    shared = "Previously Africa was colder. "
    prompts = [
        parse_emphasis(shared * 8 + "The penguins live in **Antarctica**. They live in", raw=True),
        parse_emphasis(shared * 8 + "The **penguins** live in <em weight=4>Africa</em>. They live in", raw=True),
        Prompt(text=shared * 8 + "The penguins live in Africa. They live in"),
        parse_emphasis("What is the capital of France? **Answer in JSON only.**"),
    ]
    targets = [" Antarctica", " the cold of Antarctica", " Antarctica", '{"capital": "Paris"}']
    sampling = Sampling(max_tokens=24)
    options = [PASTA, Steering(heads={3: [0, 5], 12: [1]}, alpha=0.05, exempt_generated=True, keep_attention_sink=True)]
    with load_model(f"transformers:{smollm2}", dtype="float32") as other:
        for steering in options:
            for _ in range(2):  # cold, then from the prefix cache
                got = model.score(prompts, targets, steering=steering)
                for mine, theirs in zip(got, other.score(prompts, targets, steering=steering), strict=True):
                    assert mine.token_ids == theirs.token_ids
                    assert mine.logprobs == pytest.approx(theirs.logprobs, abs=TOLERANCE)
            texts = [c.text for c in model.generate(prompts, sampling, steering=steering)]
            assert texts == [c.text for c in other.generate(prompts, sampling, steering=steering)]
        assert texts != [c.text for c in model.generate(prompts, sampling)]


def test_what_is_refused_before_any_work(model):
    prompt = Prompt(text="Great phone", emphasis=(Span(0, 5),))
    with pytest.raises(InputError, match="layer 30"):
        model.score([prompt], [" works"], steering=Steering(heads={30: [0]}))
    with pytest.raises(CapabilityError, match="second attention pass"):
        model.score([prompt], [" works"], steering=Steering(mode="spotlight"))
    with pytest.raises(InputError, match="layers 3 against 30"):
        model.generate([prompt], Sampling(), steering=Steering(heads={1: [0]}, model={"layers": 3}))
    model.steers = False
    try:
        with pytest.raises(CapabilityError, match="steering=True"):
            model.score([prompt], [" works"], steering=PASTA)
    finally:
        model.steers = True
    assert not isinstance(model.score([prompt], [" works"]), ModelError)


@pytest.fixture(scope="module")
def served(vllm_server):
    """URL of a vLLM server that was started for steering, as its users start one."""
    wide = json.dumps({KEY: {"layers": [3, 10, 20]}})
    with vllm_server("--max-model-len", "512", "--additional-config", wide) as (process, url, log):
        for _ in range(300):
            assert process.poll() is None, log.read_text()[-3000:]
            with contextlib.suppress(OSError), urllib.request.urlopen(url.replace("/v1", "/health"), timeout=2):
                break
            time.sleep(1)
        yield url


def test_over_http_only_some_layers_widened(served, smollm2):
    prompt = parse_emphasis("Previously Africa was colder. The penguins live in **Antarctica**. They live in", raw=True)
    chat = parse_emphasis("What is the capital of France? **Answer in JSON only.**")
    closed = Steering(heads={4: [0]})
    with (
        load_model(f"openai:smollm2@{served}", tokenizer=str(smollm2)) as server,
        load_model(f"transformers:{smollm2}", dtype="float32") as other,
    ):
        pairs = ([prompt, chat, Prompt(text=prompt.text)], [" the cold of Antarctica", '{"a": 1}', " Antarctica"])
        for mine, theirs in zip(server.score(*pairs, steering=PASTA), other.score(*pairs, steering=PASTA), strict=True):
            assert mine.logprobs == pytest.approx(theirs.logprobs, abs=TOLERANCE)
        sampling = Sampling(max_tokens=16)
        texts = [c.text for c in server.generate([prompt, chat], sampling, steering=PASTA)]
        assert texts == [c.text for c in other.generate([prompt, chat], sampling, steering=PASTA)]
        with pytest.raises(ModelError, match="not started to steer layer 4"):
            server.generate([prompt], sampling, steering=closed)
        with (
            load_model(f"openai:smollm2@{served}") as without,
            pytest.raises(CapabilityError, match="tokenizer=FOLDER"),
        ):
            without.generate([chat], sampling, steering=PASTA)
        assert server.generate([prompt], sampling)[0].text == other.generate([prompt], sampling)[0].text


def test_heads_are_widened_to_the_next_width_of_the_kernel():
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    from amplify.steering.vllm_plugin.layers import wide_size

    def kernel(*sizes):
        return type("Kernel", (), {"get_name": lambda: "GPU", "get_supported_head_sizes": lambda: list(sizes)})

    def width(size, backend):
        return wide_size(size, torch.float32, {"attn_backend": backend})

    assert [width(s, CPUAttentionBackend) for s in (64, 80, 96, 128)] == [80, 96, 112, 160]
    assert [width(s, kernel(64, 80, 96)) for s in (64, 80)] == [80, 96]
    assert width(64, kernel()) == 72  # any multiple of 8
    with pytest.raises(ValueError, match="no size above 96"):
        width(96, kernel(64, 80, 96))


def test_the_second_model_runner_lays_requests_out():
    """V2 needs Triton, so it does not run on a CPU: its model state alone, driven as its runner drives it."""
    from types import SimpleNamespace

    import numpy as np
    from vllm.v1.worker.gpu import model_states

    from amplify.steering.vllm_plugin import extend
    from amplify.steering.vllm_plugin.layers import SteeringBuffers

    extend()
    buffers = SteeringBuffers(layers=2, heads=3, rank=0, tokens=16, requests=2, dtype=torch.float32)
    biases = buffers.bias(0.5)

    class Plain:
        def add_request(self, req_index, new_req_data):
            pass

        def remove_request(self, req_id):
            pass

        def prepare_inputs(self, input_batch, req_states):
            return {"positions": "as before"}

    layers = {"model.layers.0.attn": SimpleNamespace(amplify_buffers=buffers)}
    config = SimpleNamespace(additional_config={}, compilation_config=SimpleNamespace(static_forward_context=layers))
    model = SimpleNamespace(get_model_state_cls=lambda: Plain)
    state = model_states.resolve_model_state_cls(config, model)()
    stock = SimpleNamespace(
        additional_config={},
        compilation_config=SimpleNamespace(static_forward_context={"model.layers.0.attn": object()}),
    )
    assert model_states.resolve_model_state_cls(stock, model) is Plain
    asked = {KEY: payload(Steering(heads={1: [2]}, alpha=0.1), [TokenSpan(2, 4, 10.0)], 6)}
    for name, extra in (("a", None), ("b", asked)):
        params = SimpleNamespace(extra_args=extra)
        state.add_request(0, SimpleNamespace(req_id=name, sampling_params=params))

    def forward(names, counts, computed):
        starts = np.concatenate([[0], np.cumsum(counts), [99]])  # its buffers are longer than the batch
        batch = SimpleNamespace(
            req_ids=names,
            num_reqs=len(names),
            query_start_loc_np=starts,
            num_computed_tokens_np=np.array(computed, np.int32),
        )
        assert state.prepare_inputs(batch, None) == {"positions": "as before"}
        return (biases.sum(1) * 0.5).exp(), buffers.gates[1, :, 2]

    factors, gates = forward(["b", "a"], [3, 2], [1, 0])
    assert factors[:5].tolist() == pytest.approx([1, 10, 10, 1, 1])
    assert gates.tolist() == [1, 1, 1] + [0] * 13
    state.remove_request("b")
    factors, gates = forward(["a"], [1], [2])
    assert factors.tolist() == [1] * 16
    assert not gates.any()
    # preempted: removed, and added again from its first token on; a request that ended leaves its line to another
    for name in ("b", "c"):
        state.remove_request(name)
        state.add_request(1, SimpleNamespace(req_id=name, sampling_params=SimpleNamespace(extra_args=asked)))
    for names in (["b", "c"], ["c", "d"], ["d", "b"]):
        state.remove_request("d")
        state.add_request(1, SimpleNamespace(req_id="d", sampling_params=SimpleNamespace(extra_args=asked)))
        factors, gates = forward(names, [3, 4], [0, 0])
        assert factors[:7].tolist() == pytest.approx([1, 1, 10, 1, 1, 10, 10])
        assert gates.tolist() == [1] * 7 + [0] * 9

"""The three real models on one model: transformers and vLLM in process, and a vLLM server over HTTP.

Float32 everywhere. The three compute the same sums in another order (fused kernels, paged attention, batches of other
shapes), so log-probabilities agree to accumulated round-off: 30 layers of float32 leave a few 1e-5 per token, and TOL
gives that a margin of ten. Greedy text may differ only where two tokens are closer than that, which these prompts are
not.
"""

import json
import os
import subprocess
import time
import urllib.request

import pytest

from amplify import Prompt, Sampling
from amplify.errors import ContextLengthError, InputError, ModelError, UnknownNameError
from amplify.models import ScoringModel, load_model

pytestmark = [pytest.mark.real, pytest.mark.vllm, pytest.mark.timeout(900)]

TOL = 5e-4
WINDOW = 2048
SHOTS = "".join(f"Review: {w} phone, works {v}.\nSentiment: {s}\n\n" for w, v, s in [
    ("Great", "perfectly", "positive"), ("Awful", "badly", "negative"), ("Lovely", "well", "positive"),
] * 8)  # fmt: skip
ITEMS = ["The battery died after a day.", "I love this case, fits well!", "Not worth it. Broke twice."]
FEW_SHOT = [Prompt(text=f"{SHOTS}Review: {item}\nSentiment:") for item in ITEMS]
CHAT = [
    Prompt(messages=({"role": "user", "content": "What is the capital of France?"},)),
    Prompt(
        messages=(
            {"role": "system", "content": "You answer with one word."},
            {"role": "user", "content": "What colour is the sky on a clear day?"},
        ),
        prefix="The sky is",
    ),
    Prompt(text="One, two, three, four, five,"),
]


@pytest.fixture(scope="module")
def hf(smollm2):
    with load_model(f"transformers:{smollm2}", dtype="float32") as model:
        yield model


@pytest.fixture(scope="module")
def engine(smollm2, starting):  # the server starts meanwhile
    with load_model(
        f"vllm:{smollm2}", dtype="float32", max_model_len=WINDOW, enforce_eager=True, kv_cache_memory_bytes=2**30
    ) as model:
        yield model


HABITS = {"do_sample": True, "temperature": 0.9, "top_k": 3, "top_p": 0.6, "min_p": 0.2, "repetition_penalty": 1.9}
"""What the served model's generation_config.json adds to requests that do not say otherwise."""


@pytest.fixture(scope="module")
def starting(vllm_server, smollm2, tmp_path_factory):
    """A vLLM server of a model that has sampling habits, not waited for: (process, URL, log)."""
    folder = tmp_path_factory.mktemp("habits") / "smollm2"
    folder.mkdir()
    for file in smollm2.iterdir():
        (folder / file.name).symlink_to(file)
    (folder / "generation_config.json").unlink(missing_ok=True)
    own = json.loads((smollm2 / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(own | HABITS))
    with vllm_server("--max-model-len", str(WINDOW), "--model", str(folder), "--generation-config", "auto") as started:
        yield started


@pytest.fixture(scope="module")
def server(starting):
    """URL of the server, once it answers."""
    process, url, log = starting
    deadline = time.monotonic() + 500
    while True:
        assert process.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        try:
            with load_model(f"openai:smollm2@{url}", retries=0, timeout=5) as model:
                assert model.window() == WINDOW
            return url
        except ModelError:
            time.sleep(0.5)


@pytest.fixture(scope="module")
def remote(server, smollm2):
    with load_model(f"openai:smollm2@{server}", tokenizer=str(smollm2)) as model:
        yield model


@pytest.fixture(scope="module")
def pairs():
    """Prompts and continuations: one-token labels, longer ones, and the same pair twice."""
    labels = [" positive", " negative", " very positive indeed"]
    prompts = [p for p in FEW_SHOT for _ in labels] + [CHAT[0], CHAT[1], CHAT[0], FEW_SHOT[0]]
    return prompts, [*(labels * len(FEW_SHOT)), "Paris.", " blue", "Paris.", labels[2]]


@pytest.fixture(scope="module")
def reference(hf, pairs):
    return hf.score(*pairs)


def close(found, expected):
    assert [f.token_ids for f in found] == [e.token_ids for e in expected]
    assert [f.tokens for f in found] == [e.tokens for e in expected]
    for f, e in zip(found, expected, strict=True):
        assert f.logprobs == pytest.approx(e.logprobs, abs=TOL)


def test_vllm_writes_what_transformers_writes(hf, engine):
    sampling = Sampling(max_tokens=12)
    expected = hf.generate(CHAT + FEW_SHOT, sampling)
    found = engine.generate(CHAT + FEW_SHOT, sampling)
    assert found == expected  # text, why it ended, and both token counts
    assert "Paris" in found[0].text
    assert engine.count_tokens(CHAT) == hf.count_tokens(CHAT)


def test_vllm_scores_what_transformers_scores(engine, pairs, reference):
    close(engine.score(*pairs), reference)


def test_vllm_scores_are_right_when_everything_is_in_the_prefix_cache(engine, pairs, reference):
    """Cached positions have no prompt log-probabilities: the second and third time, all targets are cached."""
    for _ in range(2):
        close(engine.score(*pairs), reference)


def test_a_target_that_fills_cached_blocks_is_scored_again_without_the_cache(hf, engine):
    """The target spans several whole cache blocks, so that reading the cache must hide part of it."""
    prompt, target = Prompt(text="Once upon a time"), " there was a small house in the wood" * 60
    expected = hf.score([prompt], [target])
    before = engine.usage.snapshot()
    for _ in range(2):
        close(engine.score([prompt], [target]), expected)
    tokens = len(expected[0].token_ids)
    assert tokens > 3 * engine.llm.llm_engine.vllm_config.cache_config.block_size
    assert engine.usage.since(before).completion_tokens == 2 * tokens


def test_a_target_that_begins_with_the_first_token_behind_the_cache(hf, engine):
    """The off-by-one of the trap: the whole prompt is cached, and the target's first token comes out of its last."""
    one, block = " and", engine.llm.llm_engine.vllm_config.cache_config.block_size
    text = "First"
    while engine.count_tokens([Prompt(text=text)])[0] < block:
        text += one
    prompts = [Prompt(text=text)] * 2
    assert engine.count_tokens(prompts) == [block] * 2
    targets = [" the rest of it", " something else entirely"]
    before = engine.usage.snapshot()
    close(engine.score(prompts[:1], targets[:1]), hf.score(prompts[:1], targets[:1]))
    close(engine.score(prompts[1:], targets[1:]), hf.score(prompts[1:], targets[1:]))
    spent = engine.usage.since(before)
    assert spent.forwarded_tokens > 2 * block  # the second was scored with a cached prompt, and then without


def test_vllm_shares_prefixes_between_pairs(engine, pairs):
    prompts = [Prompt(text=f"Shared. {SHOTS}Review: {item}\nSentiment:") for item in ITEMS for _ in range(2)]
    before = engine.usage.snapshot()
    engine.score(prompts, [" rather positive", " rather negative"] * 3)
    spent = engine.usage.since(before)
    assert spent.calls == 6
    assert spent.forwarded_tokens < 0.6 * (spent.prompt_tokens + spent.completion_tokens)


def test_one_token_labels_equal_the_long_way(engine, monkeypatch):
    """A one-token label from the next-token distribution, and the same from prompt log-probabilities."""
    prompts, labels = [FEW_SHOT[1]] * 3, [" positive", " negative", " blue"]
    short = engine.score(prompts, labels)
    monkeypatch.setattr(type(engine), "_score_labels", lambda self, pairs, found: None)
    close(engine.score(prompts, labels), short)


def test_stop_strings_seeds_and_window(hf, engine):
    stopped = Sampling(max_tokens=30, stop=(" seven",))
    assert engine.generate([CHAT[2]], stopped) == hf.generate([CHAT[2]], stopped)
    drawn = Sampling(max_tokens=12, temperature=1.0, seed=7)
    first, second = (engine.generate([CHAT[2]] * 2, drawn) for _ in range(2))
    assert first == second
    assert first[0].text != first[1].text
    assert engine.max_context == WINDOW
    with pytest.raises(ContextLengthError, match=str(WINDOW)):
        engine.generate([CHAT[2]], Sampling(max_tokens=WINDOW))
    with pytest.raises(InputError, match="empty"):
        engine.score([CHAT[2]], [""])
    assert engine.generate([], drawn) == []
    assert engine.score([], []) == []


def test_requests_mean_the_same_whatever_the_server_adds(hf, remote, server):
    """The server has HABITS: a request that says nothing else gets them, and amplify's say all of it."""
    prompt, sampling = CHAT[2], Sampling(max_tokens=24)
    plain = hf.generate([prompt], sampling)[0].text
    bare = {"model": "smollm2", "prompt": prompt.text, "max_tokens": 24, "seed": 0}
    told = []
    for more in ({}, {"temperature": 0.0}):
        request = urllib.request.Request(
            f"{server}/completions", json.dumps(bare | more).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=500) as reply:
            told.append(json.load(reply)["choices"][0]["text"])
    assert plain not in told  # the penalty counts in greedy answers too
    assert [c.text for c in remote.generate([prompt] * 2, sampling)] == [plain] * 2
    drawn = Sampling(max_tokens=1, temperature=1.0, seed=1, n=64)
    assert len({c.text for c in remote.generate([CHAT[0]], drawn)}) > HABITS["top_k"]


def likely(found, expected):
    for f, e in zip(found, expected, strict=True):
        assert f.logprobs.token_ids in ((), e.logprobs.token_ids)
        assert f.logprobs.logprobs == pytest.approx(e.logprobs.logprobs, abs=TOL)


def test_answers_carry_the_same_log_probabilities_everywhere(hf, engine, remote, server):
    """An end token and a stop string are among them; drawn answers are read by the model's own distribution."""
    sampling = Sampling(max_tokens=12, stop=("\n",), logprobs=True)
    expected = hf.generate(CHAT, sampling)
    assert all(len(e.logprobs.logprobs) == e.completion_tokens for e in expected)
    likely(engine.generate(CHAT, sampling), expected)
    likely(remote.generate(CHAT, sampling), expected)
    with load_model(f"openai:smollm2@{server}", continue_final_message=True) as model:
        likely(model.generate(CHAT, sampling), expected)
    drawn = Sampling(max_tokens=6, temperature=1.5, seed=3, n=3, logprobs=True)
    for one in (engine, remote):
        found = one.generate(CHAT[2:], drawn)
        assert len({c.text for c in found}) > 1
        for c in found:
            if c.finish_reason == "length":  # written text that is tokenised as it was written
                again = hf.score(CHAT[2:], [c.text])[0]
                if again.token_ids == c.logprobs.token_ids:
                    assert again.logprobs == pytest.approx(c.logprobs.logprobs, abs=TOL)
    assert engine.generate(CHAT[:1], Sampling(max_tokens=6, n=2)) == 2 * engine.generate(
        CHAT[:1], Sampling(max_tokens=6)
    )


def test_unknown_engine_options_are_refused_before_the_engine_starts(smollm2):
    with pytest.raises(UnknownNameError, match="max_model_len"):
        load_model(f"vllm:{smollm2}", max_model_length=100)


def test_the_server_scores_and_writes_the_same(hf, remote, pairs, reference):
    assert isinstance(remote, ScoringModel)
    assert remote.way == "prompt_logprobs"
    assert remote.max_context == WINDOW
    before = remote.usage.snapshot()
    for _ in range(2):
        close(remote.score(*pairs), reference)
    sampling = Sampling(max_tokens=12)
    assert remote.generate(CHAT + FEW_SHOT, sampling) == hf.generate(CHAT + FEW_SHOT, sampling)
    assert remote.usage.since(before).calls == 2 * len(pairs[0]) + len(CHAT + FEW_SHOT)


def test_the_server_as_published_scores_by_echo(server, smollm2, pairs, reference):
    with load_model(f"openai:smollm2@{server}", tokenizer=str(smollm2)) as model:
        model.way = "echo"
        close(model.score(*pairs), reference)


def test_the_server_renders_the_same_chat(hf, server):
    """Without a tokenizer the server renders the template; vLLM's extras carry the answer's beginning."""
    sampling = Sampling(max_tokens=12, stop=("\n",))
    with load_model(f"openai:smollm2@{server}", continue_final_message=True) as model:
        assert not isinstance(model, ScoringModel)
        assert model.generate(CHAT, sampling) == hf.generate(CHAT, sampling)


def test_the_server_names_what_is_wrong(server):
    with load_model(f"openai:nobody@{server}") as model, pytest.raises(ModelError, match="nobody"):
        model.generate(CHAT[:1], Sampling())
    long = Prompt(text="word " * 3 * WINDOW)
    with load_model(f"openai:smollm2@{server}") as model, pytest.raises(ModelError, match="HTTP 400") as caught:
        model.generate([CHAT[2], long], Sampling(max_tokens=4))
    assert str(WINDOW) in str(caught.value)


def test_closing_ends_the_engine_process(engine):
    """Last in this file: the engine is gone afterwards."""
    children = subprocess.run(
        ["ps", "--ppid", str(os.getpid()), "-o", "pid=,args="], capture_output=True, text=True, check=True
    ).stdout
    cores = [int(line.split()[0]) for line in children.splitlines() if "EngineCore" in line]
    assert cores
    engine.close()
    engine.close()
    deadline = time.monotonic() + 500
    while any(_alive(pid) for pid in cores) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(_alive(pid) for pid in cores)
    with pytest.raises(ModelError, match="closed"):
        engine.generate(CHAT[:1], Sampling())


def _alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False

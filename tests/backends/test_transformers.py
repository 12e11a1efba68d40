"""The transformers backend against plain forward passes and against `model.generate`, one prompt at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from amplify.backends import Scorer, WhiteBox, open_backend, text
from amplify.backends.tree import TokenTree
from amplify.errors import BackendError, ContextLengthError, DataError, InputError, UnknownNameError
from amplify.values import Completion, Prompt, Sampling, TokenLogProbs

SHOTS = "Great phone, terrible battery. The answer is positive.\nWhich is bad? The answer is negative.\n" * 3
PROMPTS = [
    Prompt(text=SHOTS + "Paris is the capital of France. The answer is"),
    Prompt(text=SHOTS + "The key words are good, and great is an important clue. The answer is"),
    Prompt(text=SHOTS + "Bad."),
    Prompt(text="Which statement is right?"),
    Prompt(text=SHOTS),  # itself the beginning of others
    Prompt(text=SHOTS + "Bad."),  # twice
    Prompt(messages=[{"role": "user", "content": "Which?"}], prefix="The answer"),
]
LABELS = [" positive", " negative", " good and great"]


@pytest.fixture(scope="module")
def backend(tiny_lm: Path) -> Any:
    with open_backend(f"transformers:{tiny_lm}", dtype="float32", max_batch_tokens=50, device="cpu") as backend:
        yield backend


def plain_score(backend: Any, prompt: Prompt, continuation: str) -> list[float]:
    """One full forward pass for one pair."""
    import torch

    rendered = text.render(prompt, backend.tokenizer)
    ids, start = text.encode_with_target(backend.tokenizer, rendered, continuation)
    with torch.inference_mode():
        logits = backend.model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
    return [float(logits[i - 1, ids[i]]) for i in range(start, len(ids))]


def plain_generate(backend: Any, prompt: Prompt, max_tokens: int) -> str:
    """transformers' own greedy generation, alone, without padding; a character cut in half is left out."""
    import torch

    ids = text.encode(backend.tokenizer, text.render(prompt, backend.tokenizer))
    out = backend.model.generate(
        torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), max_new_tokens=max_tokens, do_sample=False
    )
    return str(backend.tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True)).rstrip(
        "\ufffd"
    )  # a character cut in half is left out


def close(a: TokenLogProbs, b: list[float], tolerance: float = 1e-4) -> None:
    """float32: the same sums in another order."""
    np.testing.assert_allclose(a.logprobs, b, rtol=0, atol=tolerance)


def test_it_is_a_white_box(backend: Any) -> None:
    assert isinstance(backend, WhiteBox)
    assert isinstance(backend, Scorer)


def test_score_equals_one_forward_per_pair(backend: Any) -> None:
    pairs = [(p, label) for p in PROMPTS for label in LABELS]
    before = backend.usage.snapshot()
    result = backend.score([p for p, _ in pairs], [c for _, c in pairs])
    used = backend.usage.since(before)
    total = 0
    for (prompt, label), scored in zip(pairs, result, strict=True):
        close(scored, plain_score(backend, prompt, label))
        assert "".join(scored.tokens).endswith(label)
        assert [backend.tokenizer.decode([i]) for i in scored.token_ids] == list(scored.tokens)
        total += len(text.encode_with_target(backend.tokenizer, text.render(prompt, backend.tokenizer), label)[0])
    assert used.calls == len(pairs)
    assert used.prompt_tokens + used.completion_tokens == total
    assert used.forwarded_tokens < total / 4


def test_score_takes_a_target_whose_first_token_begins_in_the_prompt(backend: Any) -> None:
    (scored,) = backend.score([Prompt(text="The ans")], ["wer is"])
    assert scored.tokens[0] == " answer"
    close(scored, plain_score(backend, Prompt(text="The ans"), "wer is"))


def test_greedy_text_equals_single_prompt_generation(backend: Any) -> None:
    results = backend.generate(PROMPTS, Sampling(max_tokens=12))
    for prompt, result in zip(PROMPTS, results, strict=True):
        assert result.text == plain_generate(backend, prompt, 12)


@pytest.mark.parametrize("cache", [1, 130, 300, 5000])
def test_the_batch_plan_does_not_change_the_text(tiny_lm: Path, backend: Any, cache: int) -> None:
    with open_backend(f"transformers:{tiny_lm}", dtype="float32", max_cache_tokens=cache, max_batch_tokens=13) as other:
        for sampling in (Sampling(max_tokens=9), Sampling(max_tokens=9, temperature=1.0, top_p=0.8, seed=3)):
            assert other.generate(PROMPTS, sampling) == backend.generate(PROMPTS, sampling)


def test_shared_prefix_is_forwarded_once_when_generating(backend: Any) -> None:
    prompts = PROMPTS[:2] * 5
    for cache in (200, 5000):
        backend.max_cache_tokens = cache
        before = backend.usage.snapshot()
        backend.generate(prompts, Sampling(max_tokens=1))
        used = backend.usage.since(before)
        distinct = {ids[: i + 1] for p in PROMPTS[:2] for ids in [_ids(backend, p)] for i in range(len(ids))}
        # duplicates that fall into another batch read one token again
        assert len(distinct) <= used.forwarded_tokens <= len(distinct) + len(prompts)
    assert used.prompt_tokens == sum(backend.count_tokens(prompts))


def test_stop_strings_are_cut_off_and_end_the_work(backend: Any) -> None:
    free = backend.generate(PROMPTS[:3], Sampling(max_tokens=30))
    middle = free[0].text[len(free[0].text) // 2 :][:3]
    before = backend.usage.snapshot()
    stopped = backend.generate(PROMPTS[:1], Sampling(max_tokens=30, stop=(middle, "no such text")))[0]
    assert stopped.text == free[0].text[: free[0].text.index(middle)]
    assert stopped.finish_reason == "stop"
    assert backend.usage.since(before).completion_tokens == stopped.completion_tokens < 30


def test_the_end_token_ends_and_is_not_in_the_text(backend: Any) -> None:
    # every token that greedy decoding writes first becomes an end token
    ends = {
        int(backend.tokenizer(backend.generate([p], Sampling(max_tokens=1))[0].text).input_ids[0]) for p in PROMPTS[:1]
    }
    saved = backend.model.generation_config.eos_token_id
    backend.model.generation_config.eos_token_id = sorted(ends)
    try:
        result = backend.generate(PROMPTS[:1], Sampling(max_tokens=5))[0]
    finally:
        backend.model.generation_config.eos_token_id = saved
    assert result == Completion("", "stop", result.prompt_tokens, 1)


def test_sampling_follows_the_seed_and_each_prompt_has_its_own(backend: Any) -> None:
    same = [PROMPTS[0]] * 6
    sampling = Sampling(max_tokens=8, temperature=1.5, seed=5)
    first = [c.text for c in backend.generate(same, sampling)]
    assert first == [c.text for c in backend.generate(same, sampling)]
    assert len(set(first)) > 1
    assert first != [c.text for c in backend.generate(same, Sampling(max_tokens=8, temperature=1.5, seed=6))]


def test_sampling_draws_from_the_models_distribution() -> None:
    import torch

    from amplify.backends.decoding import choose

    logits = torch.tensor([[2.0, 0.5, -1.0, 1.0, -20.0]])
    count = 20000
    uniform = torch.from_numpy(np.random.default_rng(0).random(count))
    sampling = Sampling(temperature=0.7, top_p=1.0)
    drawn = torch.bincount(choose(logits.expand(count, -1), sampling, uniform), minlength=5) / count
    expected = (logits[0] / 0.7).softmax(0)
    # four standard errors of a share
    assert bool((drawn - expected).abs().le(4 * (expected * (1 - expected) / count).sqrt() + 1e-9).all())
    nucleus = choose(logits.expand(count, -1), Sampling(temperature=0.7, top_p=0.9), uniform).unique().tolist()
    ordered = expected.sort(descending=True)
    size = int((ordered.values.cumsum(0) < 0.9).sum()) + 1
    assert nucleus == sorted(ordered.indices[:size].tolist())


def test_score_tree_equals_score(backend: Any) -> None:
    ids = _ids(backend, Prompt(text="Great phone. The answer is"))
    good, bad = ((_ids(backend, Prompt(text=label))) for label in LABELS[:2])
    tree = TokenTree((ids, good, bad), (-1, 0, 0))
    before = backend.usage.snapshot()
    result = backend.score_tree(tree, [2, 1])
    used = backend.usage.since(before)
    expected = backend.score([Prompt(text="Great phone. The answer is")] * 2, [LABELS[1], LABELS[0]])
    for a, b in zip(result, expected, strict=True):
        assert a.token_ids == b.token_ids
        close(a, list(b.logprobs))
    assert (used.calls, used.prompt_tokens, used.completion_tokens) == (2, 2 * len(ids), len(good) + len(bad))


def test_errors_come_before_any_work(backend: Any) -> None:
    before = backend.usage.snapshot()
    long = Prompt(text="The answer is " * 600)
    with pytest.raises(ContextLengthError, match="prompt 1 "):
        backend.generate([PROMPTS[0], long], Sampling(max_tokens=4))
    with pytest.raises(ContextLengthError, match="prompt 0 "):
        backend.generate([PROMPTS[0]], Sampling(max_tokens=1024))
    with pytest.raises(ContextLengthError):
        backend.score([long], [" positive"])
    with pytest.raises(ContextLengthError):
        backend.score_tree(TokenTree(((5,) * 1024, (6, 7)), (-1, 0)), [1])
    with pytest.raises(InputError, match="empty"):
        backend.score([PROMPTS[0]], [""])
    with pytest.raises(InputError, match="1 prompts and 2 continuations"):
        backend.score([PROMPTS[0]], ["a", "b"])
    with pytest.raises(InputError, match="no token before its continuation"):
        backend.score([Prompt(text="")], ["a"])
    with pytest.raises(InputError, match="holds no token"):
        backend.generate([Prompt(text="")], Sampling())
    assert backend.usage == before


def test_empty_batches(backend: Any) -> None:
    assert backend.generate([], Sampling()) == []
    assert backend.score([], []) == []
    assert backend.score_tree(TokenTree((), ()), []) == []


def test_options_and_names_are_checked(tiny_lm: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="dtype"):
        open_backend(f"transformers:{tiny_lm}", dtype="int3")
    with pytest.raises(InputError, match="max_batch_tokens"):
        open_backend(f"transformers:{tiny_lm}", max_batch_tokens=0)
    with pytest.raises(InputError, match="device"):
        open_backend(f"transformers:{tiny_lm}", device="gpu")
    with pytest.raises(UnknownNameError, match="smollm2-135m"):
        open_backend("transformers:smollm2")
    with pytest.raises(DataError, match=r"config\.json"):
        open_backend(f"transformers:{tmp_path}")


def test_out_of_memory_keeps_what_was_answered(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    backend.max_cache_tokens = 1  # one prompt a batch
    body, calls = backend.packed.body, 0

    def failing(**arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 8:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return body(**arguments)

    monkeypatch.setattr(backend.packed, "body", failing)
    with pytest.raises(BackendError, match="lower max_batch_tokens") as caught:
        backend.generate(PROMPTS, Sampling(max_tokens=2))
    monkeypatch.undo()
    backend.max_cache_tokens = 5000
    expected = backend.generate(PROMPTS, Sampling(max_tokens=2))
    assert 0 < len(caught.value.completed) < len(PROMPTS)
    assert all(expected[i] == c for i, c in caught.value.completed.items())


def test_opening_a_model_draws_no_bar(tiny_lm: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with open_backend(f"transformers:{tiny_lm}", dtype="float32"):
        assert capfd.readouterr() == ("", "")


def test_describe_and_close(tiny_lm: Path) -> None:
    backend: Any = open_backend(f"transformers:{tiny_lm}", dtype="bfloat16")
    described = backend.describe()
    assert described["dtype"] == "bfloat16"
    assert len(described["model"]["sha256"]) == 64
    # half precision: 8 bits of mantissa, so log-probabilities agree to a few hundredths
    scored = backend.score(PROMPTS[:1], LABELS[:1])[0]
    close(scored, plain_score(backend, PROMPTS[0], LABELS[0]), tolerance=0.25)
    backend.close()
    backend.close()
    with pytest.raises(BackendError, match="closed"):
        backend.generate(PROMPTS[:1], Sampling())


def _ids(backend: Any, prompt: Prompt) -> tuple[int, ...]:
    return tuple(text.encode(backend.tokenizer, text.render(prompt, backend.tokenizer)))


@pytest.mark.real
def test_real_model(smollm2: Path) -> None:
    shots = "Review: I love it.\nLabel: positive\n\nReview: It broke at once.\nLabel: negative\n\n"
    items = ["Works well.", "The worst purchase of my life!", "It is fine, I suppose, though rather slow at times."]
    prompts = [Prompt(text=f"{shots}Review: {item}\nLabel:") for item in items]
    questions = ["What is the capital of France?", "Name three colours.", "What is 2 + 2?"]
    chats = [Prompt(messages=[{"role": "user", "content": q}]) for q in questions]
    with open_backend(f"transformers:{smollm2}", dtype="float32") as opened:
        backend: Any = opened
        pairs = [(p, label) for p in prompts for label in (" positive", " negative")]
        for (p, label), scored in zip(pairs, backend.score(*zip(*pairs, strict=True)), strict=True):
            close(scored, plain_score(backend, p, label))
        results = backend.generate(chats, Sampling(max_tokens=20))
        assert [r.text for r in results] == [plain_generate(backend, p, 20) for p in chats]
        assert "Paris" in results[0].text

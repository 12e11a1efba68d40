"""The transformers model against plain forward passes and against `model.generate`, one prompt at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from amplify.errors import ContextLengthError, DataError, InputError, ModelError, UnknownNameError
from amplify.models import LocalModel, ScoringModel, chat, load_model
from amplify.models.tree.tree import TokenTree
from amplify.types import Completion, Prompt, Sampling, TokenLogProbs

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
def model(tiny_lm: Path) -> Any:
    with load_model(f"transformers:{tiny_lm}", dtype="float32", max_batch_tokens=50, device="cpu") as model:
        yield model


def plain_score(model: Any, prompt: Prompt, continuation: str) -> list[float]:
    """One full forward pass for one pair."""
    import torch

    rendered = chat.render(prompt, model.tokenizer)
    ids, start = chat.encode_with_target(model.tokenizer, rendered, continuation)
    with torch.inference_mode():
        logits = model.module(torch.tensor([ids])).logits[0].float().log_softmax(-1)
    return [float(logits[i - 1, ids[i]]) for i in range(start, len(ids))]


def plain_generate(model: Any, prompt: Prompt, max_tokens: int) -> str:
    """transformers' own greedy generation, alone, without padding; a character cut in half is left out."""
    import torch

    ids = chat.encode(model.tokenizer, chat.render(prompt, model.tokenizer))
    out = model.module.generate(
        torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), max_new_tokens=max_tokens, do_sample=False
    )
    return str(model.tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True)).rstrip(
        "\ufffd"
    )  # a character cut in half is left out


def close(a: TokenLogProbs, b: list[float], tolerance: float = 1e-4) -> None:
    """float32: the same sums in another order."""
    np.testing.assert_allclose(a.logprobs, b, rtol=0, atol=tolerance)


def test_it_is_a_white_box(model: Any) -> None:
    assert isinstance(model, LocalModel)
    assert isinstance(model, ScoringModel)


def test_score_equals_one_forward_per_pair(model: Any) -> None:
    pairs = [(p, label) for p in PROMPTS for label in LABELS]
    before = model.usage.snapshot()
    result = model.score([p for p, _ in pairs], [c for _, c in pairs])
    used = model.usage.since(before)
    total = 0
    for (prompt, label), scored in zip(pairs, result, strict=True):
        close(scored, plain_score(model, prompt, label))
        assert "".join(scored.tokens).endswith(label)
        assert [model.tokenizer.decode([i]) for i in scored.token_ids] == list(scored.tokens)
        total += len(chat.encode_with_target(model.tokenizer, chat.render(prompt, model.tokenizer), label)[0])
    assert used.calls == len(pairs)
    assert used.prompt_tokens + used.completion_tokens == total
    assert used.forwarded_tokens < total / 4


def test_score_takes_a_target_whose_first_token_begins_in_the_prompt(model: Any) -> None:
    (scored,) = model.score([Prompt(text="The ans")], ["wer is"])
    assert scored.tokens[0] == " answer"
    close(scored, plain_score(model, Prompt(text="The ans"), "wer is"))


def test_greedy_text_equals_single_prompt_generation(model: Any) -> None:
    results = model.generate(PROMPTS, Sampling(max_tokens=12))
    for prompt, result in zip(PROMPTS, results, strict=True):
        assert result.text == plain_generate(model, prompt, 12)


@pytest.mark.parametrize("cache", [1, 130, 300, 5000])
def test_the_batch_plan_does_not_change_the_text(tiny_lm: Path, model: Any, cache: int) -> None:
    with load_model(f"transformers:{tiny_lm}", dtype="float32", max_cache_tokens=cache, max_batch_tokens=13) as other:
        for sampling in (Sampling(max_tokens=9), Sampling(max_tokens=9, temperature=1.0, top_p=0.8, seed=3)):
            assert other.generate(PROMPTS, sampling) == model.generate(PROMPTS, sampling)


def test_shared_prefix_is_forwarded_once_when_generating(model: Any) -> None:
    prompts = PROMPTS[:2] * 5
    for cache in (200, 5000):
        model.max_cache_tokens = cache
        before = model.usage.snapshot()
        model.generate(prompts, Sampling(max_tokens=1))
        used = model.usage.since(before)
        distinct = {ids[: i + 1] for p in PROMPTS[:2] for ids in [_ids(model, p)] for i in range(len(ids))}
        # duplicates that fall into another batch read one token again
        assert len(distinct) <= used.forwarded_tokens <= len(distinct) + len(prompts)
    assert used.prompt_tokens == sum(model.count_tokens(prompts))


def test_stop_strings_are_cut_off_and_end_the_work(model: Any) -> None:
    free = model.generate(PROMPTS[:3], Sampling(max_tokens=30))
    middle = free[0].text[len(free[0].text) // 2 :][:3]
    before = model.usage.snapshot()
    stopped = model.generate(PROMPTS[:1], Sampling(max_tokens=30, stop=(middle, "no such text")))[0]
    assert stopped.text == free[0].text[: free[0].text.index(middle)]
    assert stopped.finish_reason == "stop"
    assert model.usage.since(before).completion_tokens == stopped.completion_tokens < 30


def test_the_end_token_ends_and_is_not_in_the_text(model: Any) -> None:
    # every token that greedy decoding writes first becomes an end token
    ends = {int(model.tokenizer(model.generate([p], Sampling(max_tokens=1))[0].text).input_ids[0]) for p in PROMPTS[:1]}
    saved = model.module.generation_config.eos_token_id
    model.module.generation_config.eos_token_id = sorted(ends)
    try:
        result = model.generate(PROMPTS[:1], Sampling(max_tokens=5))[0]
    finally:
        model.module.generation_config.eos_token_id = saved
    assert result == Completion("", "stop", result.prompt_tokens, 1)


def test_sampling_follows_the_seed_and_each_prompt_has_its_own(model: Any) -> None:
    same = [PROMPTS[0]] * 6
    sampling = Sampling(max_tokens=8, temperature=1.5, seed=5)
    first = [c.text for c in model.generate(same, sampling)]
    assert first == [c.text for c in model.generate(same, sampling)]
    assert len(set(first)) > 1
    assert first != [c.text for c in model.generate(same, Sampling(max_tokens=8, temperature=1.5, seed=6))]


def test_sampling_draws_from_the_models_distribution() -> None:
    import torch

    from amplify.models.tree.decode import choose

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


def test_score_tree_equals_score(model: Any) -> None:
    ids = _ids(model, Prompt(text="Great phone. The answer is"))
    good, bad = ((_ids(model, Prompt(text=label))) for label in LABELS[:2])
    tree = TokenTree((ids, good, bad), (-1, 0, 0))
    before = model.usage.snapshot()
    result = model.score_tree(tree, [2, 1])
    used = model.usage.since(before)
    expected = model.score([Prompt(text="Great phone. The answer is")] * 2, [LABELS[1], LABELS[0]])
    for a, b in zip(result, expected, strict=True):
        assert a.token_ids == b.token_ids
        close(a, list(b.logprobs))
    assert (used.calls, used.prompt_tokens, used.completion_tokens) == (2, 2 * len(ids), len(good) + len(bad))


def test_errors_come_before_any_work(model: Any) -> None:
    before = model.usage.snapshot()
    long = Prompt(text="The answer is " * 600)
    with pytest.raises(ContextLengthError, match="prompt 1 "):
        model.generate([PROMPTS[0], long], Sampling(max_tokens=4))
    with pytest.raises(ContextLengthError, match="prompt 0 "):
        model.generate([PROMPTS[0]], Sampling(max_tokens=1024))
    with pytest.raises(ContextLengthError):
        model.score([long], [" positive"])
    with pytest.raises(ContextLengthError):
        model.score_tree(TokenTree(((5,) * 1024, (6, 7)), (-1, 0)), [1])
    with pytest.raises(InputError, match="empty"):
        model.score([PROMPTS[0]], [""])
    with pytest.raises(InputError, match="1 prompts and 2 continuations"):
        model.score([PROMPTS[0]], ["a", "b"])
    with pytest.raises(InputError, match="no token before its continuation"):
        model.score([Prompt(text="")], ["a"])
    with pytest.raises(InputError, match="holds no token"):
        model.generate([Prompt(text="")], Sampling())
    assert model.usage == before


def test_empty_batches(model: Any) -> None:
    assert model.generate([], Sampling()) == []
    assert model.score([], []) == []
    assert model.score_tree(TokenTree((), ()), []) == []


def test_options_and_names_are_checked(tiny_lm: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="dtype"):
        load_model(f"transformers:{tiny_lm}", dtype="int3")
    with pytest.raises(InputError, match="max_batch_tokens"):
        load_model(f"transformers:{tiny_lm}", max_batch_tokens=0)
    with pytest.raises(InputError, match="device"):
        load_model(f"transformers:{tiny_lm}", device="gpu")
    with pytest.raises(UnknownNameError, match="smollm2-135m"):
        load_model("transformers:smollm2")
    with pytest.raises(DataError, match=r"config\.json"):
        load_model(f"transformers:{tmp_path}")


def test_out_of_memory_keeps_what_was_answered(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    model.max_cache_tokens = 1  # one prompt a batch
    body, calls = model.packed.body, 0

    def failing(**arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 8:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return body(**arguments)

    monkeypatch.setattr(model.packed, "body", failing)
    with pytest.raises(ModelError, match="lower max_batch_tokens") as caught:
        model.generate(PROMPTS, Sampling(max_tokens=2))
    monkeypatch.undo()
    model.max_cache_tokens = 5000
    expected = model.generate(PROMPTS, Sampling(max_tokens=2))
    assert 0 < len(caught.value.completed) < len(PROMPTS)
    assert all(expected[i] == c for i, c in caught.value.completed.items())


def test_opening_a_model_draws_no_bar(tiny_lm: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with load_model(f"transformers:{tiny_lm}", dtype="float32"):
        assert capfd.readouterr() == ("", "")


def test_describe_and_close(tiny_lm: Path) -> None:
    model: Any = load_model(f"transformers:{tiny_lm}", dtype="bfloat16")
    described = model.describe()
    assert described["dtype"] == "bfloat16"
    assert len(described["model"]["sha256"]) == 64
    # half precision: 8 bits of mantissa, so log-probabilities agree to a few hundredths
    scored = model.score(PROMPTS[:1], LABELS[:1])[0]
    close(scored, plain_score(model, PROMPTS[0], LABELS[0]), tolerance=0.25)
    model.close()
    model.close()
    with pytest.raises(ModelError, match="closed"):
        model.generate(PROMPTS[:1], Sampling())


def _ids(model: Any, prompt: Prompt) -> tuple[int, ...]:
    return tuple(chat.encode(model.tokenizer, chat.render(prompt, model.tokenizer)))


@pytest.mark.real
def test_real_model(smollm2: Path) -> None:
    shots = "Review: I love it.\nLabel: positive\n\nReview: It broke at once.\nLabel: negative\n\n"
    items = ["Works well.", "The worst purchase of my life!", "It is fine, I suppose, though rather slow at times."]
    prompts = [Prompt(text=f"{shots}Review: {item}\nLabel:") for item in items]
    questions = ["What is the capital of France?", "Name three colours.", "What is 2 + 2?"]
    chats = [Prompt(messages=[{"role": "user", "content": q}]) for q in questions]
    with load_model(f"transformers:{smollm2}", dtype="float32") as opened:
        model: Any = opened
        pairs = [(p, label) for p in prompts for label in (" positive", " negative")]
        for (p, label), scored in zip(pairs, model.score(*zip(*pairs, strict=True)), strict=True):
            close(scored, plain_score(model, p, label))
        results = model.generate(chats, Sampling(max_tokens=20))
        assert [r.text for r in results] == [plain_generate(model, p, 20) for p in chats]
        assert "Paris" in results[0].text

"""Steering through the transformers model: packed scoring and decoding against one plain sequence at a time."""

from __future__ import annotations

import peft
import pytest
import torch
from steering_reference import reference_logprobs
from transformers import AutoModelForCausalLM

from amplify import Prompt, Sampling, Span, Steering, TransformersModel, load_model, parse_emphasis
from amplify.errors import CapabilityError, InputError
from amplify.models import chat

TOLERANCE = 1e-4
STEERINGS = [
    Steering(heads={0: [1], 1: [0, 3], 2: [2]}, alpha=0.01),
    Steering(heads={0: [1, 2], 2: [0]}, alpha=0.1, exempt_generated=True, keep_attention_sink=True),
    Steering(heads={0: [1, 2], 2: [0]}, phase="decode"),
    Steering(heads={0: [1, 2], 2: [0]}, phase="prefill", exempt_generated=True),
    Steering(mode="instaboost", bonus=1.0),
    Steering(heads={1: [0, 1]}, mode="spotlight", target=0.7, keep_attention_sink=True),
    Steering(heads={1: [0, 1]}, mode="target_mass", target=0.5),
]
PROMPTS = [
    parse_emphasis("Great phone, **terrible battery**. The answer is"),
    parse_emphasis("Great phone, terrible **battery**. The answer is"),
    parse_emphasis("Great phone, terrible battery. The answer is"),
    parse_emphasis("<em weight=7>Great</em> phone, terrible <em weight=0.1>battery</em>. The answer is", prefix="A"),
    parse_emphasis("Paris is the capital of **France**. The answer is", raw=True),
]


@pytest.fixture(scope="module")
def model(tiny_lm):
    with load_model(f"transformers:{tiny_lm}", dtype="float32", max_batch_tokens=16) as b:
        yield b


@pytest.fixture(scope="module")
def independent(tiny_lm):
    return AutoModelForCausalLM.from_pretrained(tiny_lm, attn_implementation="eager", dtype=torch.float32).eval()


def marks(tokenizer, prompt, continuation=""):
    """Token ids, and emphasised tokens found one by one."""
    rendered = chat.render(prompt, tokenizer)
    whole = chat.Rendered(rendered.text + continuation, rendered.chat)
    encoded = chat.tokenise(tokenizer, [whole])[0]
    spans = []
    for span in rendered.emphasis:
        inside = [i for i, (a, b) in enumerate(encoded.offsets) if set(range(a, b)) & set(range(span.start, span.end))]
        spans.append((inside[0], inside[-1] + 1, span.weight))
    start = next((i for i, (_, b) in enumerate(encoded.offsets) if b > len(rendered.text)), len(encoded.ids))
    return list(encoded.ids), spans, start


def fits(steering):
    return [p for p in PROMPTS if not (steering.dynamic and any(s.weight for s in p.emphasis))]


@pytest.mark.parametrize("steering", STEERINGS, ids=lambda s: f"{s.mode}-{s.phase}-{s.exempt_generated}")
def test_scores_match_the_reference(model, independent, steering):
    prompts = [p for p in fits(steering) for _ in range(2)]
    continuations = [" positive", " negative. Paris"] * (len(prompts) // 2)
    for prompt, target, got in zip(
        prompts, continuations, model.score(prompts, continuations, steering=steering), strict=True
    ):
        ids, spans, start = marks(model.tokenizer, prompt, target)
        expected = reference_logprobs(independent, ids, steering, spans, start)
        for k, value in enumerate(got.logprobs, start=start):
            assert value == pytest.approx(expected[k - 1, ids[k]].item(), abs=TOLERANCE)


@pytest.mark.parametrize("steering", STEERINGS, ids=lambda s: f"{s.mode}-{s.phase}-{s.exempt_generated}")
def test_greedy_text_matches_the_reference(model, independent, steering):
    prompts = fits(steering)
    done = model.generate(prompts, Sampling(max_tokens=8), steering=steering)
    for prompt, completion in zip(prompts, done, strict=True):
        ids, spans, start = marks(model.tokenizer, prompt)
        grown = list(ids)
        while len(grown) < len(ids) + completion.completion_tokens:
            row = reference_logprobs(independent, grown, steering, spans, start)[-1]
            assert row.topk(2).values.diff().abs() > TOLERANCE, "a tie would make this test uncertain"
            grown.append(int(row.argmax()))
        written = grown[len(ids) :]
        if written[-1] == model.tokenizer.eos_token_id:
            written.pop()
        assert completion.text == model.tokenizer.decode(written, skip_special_tokens=True).rstrip("\ufffd")


class Stored(torch.nn.Module):
    """A layer as quantising packages keep it: few bits and a scale a row, multiplied in each pass."""

    def __init__(self, linear, kind, most):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        scale = (linear.weight.abs().amax(1, keepdim=True) / most).detach()
        held = (linear.weight / scale).detach()
        self.register_buffer("scale", scale)
        self.register_buffer("weight", (held if kind.is_floating_point else held.round()).to(kind))

    def forward(self, x):
        return torch.nn.functional.linear(x, self.weight.to(x.dtype) * self.scale)


WEIGHTS = {"8 bits": (torch.int8, 127), "4 bits": (torch.int8, 7), "fp8": (torch.float8_e4m3fn, 448), "adapter": None}


def changed(module, weights):
    """A model with every linear layer stored so, or with an adapter, the same each time."""
    if WEIGHTS[weights] is None:
        torch.manual_seed(1)
        config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear", init_lora_weights=False)
        return peft.get_peft_model(module, config).eval()
    for layer in module.model.layers:
        for part in (layer.self_attn, layer.mlp):
            for name, child in list(part.named_children()):
                if isinstance(child, torch.nn.Linear):
                    setattr(part, name, Stored(child, *WEIGHTS[weights]))
    return module


@pytest.mark.parametrize("weights", WEIGHTS)
def test_steering_is_exact_whatever_the_weights_are(tiny_lm, model, weights):
    eager, other = (
        AutoModelForCausalLM.from_pretrained(tiny_lm, attn_implementation=how, dtype=torch.float32).eval()
        for how in ("eager", "sdpa")
    )
    independent = changed(eager, weights)
    independent = independent.get_base_model() if weights == "adapter" else independent
    mine = TransformersModel(changed(other, weights), model.tokenizer)
    prompts, target = PROMPTS[:2], " positive"
    found = mine.score(prompts, [target] * 2, steering=STEERINGS[0])
    assert found != model.score(prompts, [target] * 2, steering=STEERINGS[0])
    for prompt, got in zip(prompts, found, strict=True):
        ids, spans, start = marks(model.tokenizer, prompt, target)
        expected = reference_logprobs(independent, ids, STEERINGS[0], spans, start)
        for k, value in enumerate(got.logprobs, start=start):
            assert value == pytest.approx(expected[k - 1, ids[k]].item(), abs=TOLERANCE)


def test_unmarked_prompts_are_untouched(model):
    plain = Prompt(text="Great phone")
    steering = STEERINGS[0]
    assert model.score([plain], [" terrible"], steering=steering) == model.score([plain], [" terrible"])
    marked = Prompt(text="Great phone", emphasis=(Span(0, 5),))
    assert model.score([marked], [" terrible"], steering=steering) != model.score([plain], [" terrible"])
    both = model.score([plain, marked], [" terrible"] * 2, steering=steering)
    assert both[0].total == pytest.approx(model.score([plain], [" terrible"])[0].total, abs=1e-5)


def test_bad_steering_is_refused_and_the_model_goes_on(model):
    prompt = parse_emphasis("Great **phone**", raw=True)
    for steering, says in (
        (Steering(heads={7: [0]}), "layer 7"),
        (Steering(heads={0: [9]}), "head 9"),
        (Steering(heads={0: [0]}, model={"layers": 30}), "layers 30 against 3"),
    ):
        with pytest.raises(InputError, match=says):
            model.score([prompt], [" terrible"], steering=steering)
    torn = Prompt(text="Great phone", emphasis=(Span(0, 5), Span(2, 8, 3.0)))
    with pytest.raises(InputError, match="overlapping spans must agree"):
        model.generate([torn], Sampling(max_tokens=2), steering=STEERINGS[0])
    from amplify.models.tree.tree import TokenTree

    with pytest.raises(CapabilityError, match="holds no emphasis"):
        model.score_tree(TokenTree(((1, 2), (3,)), (-1, 0)), [1], steering=STEERINGS[0])
    assert model.score([prompt], [" terrible"])[0].total < 0


def test_a_shared_beginning_is_still_forwarded_once(model):
    shots = "The answer is positive. Great phone, terrible battery. " * 5
    prompts = [Prompt(text=shots + f"Paris is {w}", emphasis=(Span(len(shots), len(shots) + 5),)) for w in "ABCD"]
    before = model.usage.snapshot()
    model.score(prompts, [" good"] * 4, steering=STEERINGS[0])
    used = model.usage.since(before)
    assert used.forwarded_tokens < 0.5 * (used.prompt_tokens + used.completion_tokens)


@pytest.mark.real
def test_smollm2_is_exact_over_prompt_and_32_decoded_tokens(smollm2):
    """One and three spans, a plain row beside them, left-padded: through `generate` on one's own model."""
    from transformers import AutoTokenizer

    from amplify.steering.attention import steered_by
    from amplify.steering.formula import TokenSpan
    from amplify.steering.plan import plan_steering

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    model = AutoModelForCausalLM.from_pretrained(smollm2, attn_implementation="sdpa", dtype=torch.float32).eval()
    exact = AutoModelForCausalLM.from_pretrained(smollm2, attn_implementation="eager", dtype=torch.float32).eval()
    steering = Steering(heads={3: [0, 5], 10: [1, 2, 3], 20: [8]}, alpha=0.01)
    long = tokenizer("Mary is a nurse who lives in Antarctica with her two dogs. The capital of France is Rome. " * 5)
    rows = [
        (long["input_ids"], [(80, 84, None)]),
        (long["input_ids"][:61], [(3, 5, None), (20, 24, 5.0), (40, 44, 0.2)]),
        (long["input_ids"][:50], []),
    ]
    width = len(rows[0][0])
    ids, mask = torch.zeros(3, width, dtype=torch.long), torch.zeros(3, width, dtype=torch.long)
    for i, (own, _) in enumerate(rows):
        ids[i, width - len(own) :], mask[i, width - len(own) :] = torch.tensor(own), 1
    spans = [[TokenSpan(a, b, w or steering.default_weight) for a, b, w in marked] for _, marked in rows]
    with torch.no_grad(), steered_by(model, plan_steering(model, steering, spans, mask)):
        out = model.generate(
            ids, attention_mask=mask, max_new_tokens=32, min_new_tokens=32, do_sample=False, repetition_penalty=1.0,
            output_logits=True, return_dict_in_generate=True, pad_token_id=0,
        )  # fmt: skip
        prompt = model(ids, attention_mask=mask).logits.log_softmax(-1)
    decoded = torch.stack(out.logits, 1).log_softmax(-1)
    for i, (own, marked) in enumerate(rows):
        whole = out.sequences[i, width - len(own) : -1].tolist()
        expected = reference_logprobs(exact, whole, steering, marked, len(own))
        assert (decoded[i] - expected[len(own) - 1 :]).abs().max() <= TOLERANCE
        assert (prompt[i, width - len(own) :] - expected[: len(own)]).abs().max() <= TOLERANCE

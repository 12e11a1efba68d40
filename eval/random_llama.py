"""A Llama of random weights in the shape of a large one, decoded in three ways: plain, steered, and as released.

The released PASTA code steers by eager attention with an additive mask for each head.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
import transformers

from amplify import Steering
from amplify.steering.attention import steered_by
from amplify.steering.formula import TokenSpan
from amplify.steering.plan import plan_steering

SHAPES: dict[str, dict[str, Any]] = {
    "llama-8b": {
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
    },
    "tiny": {
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "vocab_size": 256,
        "max_position_embeddings": 256,
        "initializer_range": 0.4,  # large enough that steering changes logits clearly
    },
}


def head_set(layers: int, heads: int, count: int, narrow: bool) -> dict[int, list[int]]:
    """`count` heads spread over all layers, or over as few as hold them."""
    if narrow:
        return {i: list(range(min(heads, count - i * heads))) for i in range(-(-count // heads))}
    bounds = [count * i // layers for i in range(layers + 1)]
    return {i: list(range(b - a)) for i, (a, b) in enumerate(itertools.pairwise(bounds)) if b > a}


def tenth(tokens: int) -> tuple[int, int]:
    """The middle tenth of a prompt."""
    start = int(0.45 * tokens)
    return start, start + max(1, tokens // 10)


def shaped(shape: str, dtype: torch.dtype, device: torch.device) -> Any:
    """A Llama of this shape with random weights; no token ends what it writes."""
    config = transformers.LlamaConfig(**SHAPES[shape], bos_token_id=None, eos_token_id=None, pad_token_id=0)
    torch.manual_seed(0)
    with device:
        return transformers.AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa").eval()


def shaped_sides(model: Any, steering: Steering) -> dict[str, Callable[..., tuple[torch.Tensor, ...]]]:
    """Greedy decoding: plain, steered by amplify, and the released PASTA code's way. All give their logits.

    Args:
        model: from `shaped`.
        steering: "pasta" with `exempt_generated`, as the released code has it.
    """

    def plain(prompts: Sequence[Sequence[int]], new: int) -> tuple[torch.Tensor, ...]:
        ids = torch.tensor(prompts, device=model.device)
        made = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        return made.logits

    def widened(prompts: Sequence[Sequence[int]], new: int) -> tuple[torch.Tensor, ...]:
        spans = [[TokenSpan(*tenth(len(ids)), steering.default_weight)] for ids in prompts]
        with steered_by(
            model, plan_steering(model, steering, spans, torch.ones(np.shape(prompts), device=model.device))
        ):
            return plain(prompts, new)

    def dense(prompts: Sequence[Sequence[int]], new: int) -> tuple[torch.Tensor, ...]:
        length = len(prompts[0])
        a, b = tenth(length)

        def masked(module: Any, given: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            heads = list(chosen[module.layer_idx])
            mask = named["attention_mask"].repeat(1, model.config.num_attention_heads, 1, 1)
            mask[:, heads, :, :a] += math.log(steering.alpha)
            mask[:, heads, :, b:length] += math.log(steering.alpha)
            return given, {**named, "attention_mask": mask}

        chosen = steering.check(model.config)
        with ExitStack() as after:
            after.callback(model.set_attn_implementation, model.config._attn_implementation)
            model.set_attn_implementation("eager")
            for layer in chosen:
                hook = model.model.layers[layer].self_attn.register_forward_pre_hook(masked, with_kwargs=True)
                after.callback(hook.remove)
            return plain(prompts, new)

    return {"plain": plain, "steered": widened, "dense": dense}


def differences(device: torch.device) -> dict[str, float]:
    """How far logits on the tiny shape in float32 are from steered ones, at most, over prompt and written tokens."""
    model = shaped("tiny", torch.float32, device)
    heads = head_set(model.config.num_hidden_layers, model.config.num_attention_heads, 6, False)
    prompts = np.random.default_rng(0).integers(1, model.config.vocab_size, (2, 40)).tolist()
    sides = shaped_sides(model, Steering(heads=heads, exempt_generated=True))
    found = {name: torch.stack(run(prompts, 8)) for name, run in sides.items()}
    return {name: float((found[name] - found["steered"]).abs().max()) for name in ("plain", "dense")}

"""Steering inside transformers: the stock attention kernels over slightly wider heads.

A query head q becomes [q, g], a key [k, b], a value [v, 0], the scale unchanged, so that every logit gains
scale * g * b: with b = log(w)/scale on a span's keys and g = 1 on steered heads that is the formula, in any kernel that
takes queries, keys and values, and without a mask per head. Under grouped-query attention the gate sits on the query
side, so heads that share keys may differ. Two channels, the value rounded to the model's dtype and what rounding left,
keep half precision exact to 16 bits; more channels only align the heads for fused kernels.

`steered` is for a model of one's own; a `Stream` steers packed tokens, in which sequences with a common beginning share
its keys and values. Emphasis changes these from the first emphasised token on, so sequences are merged not by token ids
but by items: a token together with the weight of its key.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface, PreTrainedModel
from transformers.cache_utils import StaticSlidingWindowLayer
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from amplify.errors import InputError
from amplify.locks import lock_of
from amplify.models.chat import render, tokenise
from amplify.models.pretrained import computed_by
from amplify.models.tree.forward import grouped_sdpa
from amplify.steering.formula import TokenSpan, generated_log_weight, key_log_weights, token_spans
from amplify.steering.keys import edited_keys
from amplify.steering.plan import WIDER, SteeringPlan, plan_steering, split
from amplify.steering.spec import Steering
from amplify.types import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_PREFIX = "amplify_"
_FLASH_HEAD = 256  # the widest head that FlashAttention takes


@contextmanager
def steered_by(model: PreTrainedModel, what: SteeringPlan) -> Iterator[None]:
    """Steer every forward pass of `model` inside the block; nothing of it is left afterwards, errors included.

    A pass may be a whole batch, a continuation from the cache, or a generation with several sequences per row (beams).
    Calls of amplify from other threads wait until the block is left; a call of the model itself would be steered.

    Raises:
        InputError: the model computes attention in a way that cannot be steered (the message says why), or it is being
            steered already.
    """
    if not what.heads:  # nothing is marked: the plain path
        yield
        return
    with lock_of(model), _widened(model, what):
        yield


@contextmanager
def _widened(model: PreTrainedModel, what: SteeringPlan) -> Iterator[None]:
    base = check_model(model)
    decoder = model.get_decoder()
    config = decoder.config
    name = _register(base)
    signature = inspect.signature(type(decoder).forward)

    def begin(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = signature.bind_partial(module, *args, **kwargs).arguments
        given = {**given, **given.get("kwargs", {})}
        ids = given.get("input_ids")
        tokens = given["inputs_embeds"] if ids is None else ids
        cache = given.get("past_key_values")
        if cache is None:
            cache = given.get("cache")  # as transformers calls it from 5.24 on
        if any(isinstance(layer, StaticSlidingWindowLayer) for layer in getattr(cache, "layers", ())):
            raise InputError("a static cache of sliding windows does not say which keys it holds; use a dynamic cache")
        what.past = int(cache.get_seq_length()) if cache is not None else 0
        what.queries = tokens.shape[1]
        what.made.clear()

    handle = None
    try:
        handle = decoder.register_forward_pre_hook(begin, with_kwargs=True)
        _ACTIVE[id(config)] = what
        with computed_by(config, name):
            yield
    finally:
        _ACTIVE.pop(id(config), None)
        if handle is not None:
            handle.remove()
        what.made.clear()


def check_model(model: PreTrainedModel) -> str:
    """The attention implementation that steering would widen.

    Raises:
        InputError: with the reason why this model cannot be steered.
    """
    kind = type(model).__name__
    if model.config.is_encoder_decoder:
        raise InputError(f"{kind} is an encoder-decoder; steering is for decoder-only models")
    text = model.get_decoder().config
    base = str(text._attn_implementation)
    if id(text) in _ACTIVE:
        raise InputError("this model is being steered already; leave that block first")
    if not type(model.get_decoder())._can_set_attn_implementation():
        raise InputError(
            f"{kind} computes attention itself instead of through transformers' attention interface, so its heads "
            "cannot be steered; take a model of another architecture (Llama, Qwen, Gemma, Mistral, GPT-2, Phi …)"
        )
    if not (base in ("eager", "sdpa") or base.startswith("flash_attention")):
        raise InputError(f"attention {base!r} cannot be steered; load the model with attn_implementation='sdpa'")
    if getattr(text, "reorder_and_upcast_attn", False) and base == "eager":
        raise InputError(
            "reorder_and_upcast_attn bypasses the attention interface; load with attn_implementation='sdpa'"
        )
    if base.startswith("flash_attention"):
        if getattr(text, "attn_logit_softcapping", None):
            raise InputError(
                f"{kind} soft-caps its logits inside the kernel, and a factor must act behind the cap; load it with "
                "attn_implementation='eager'"
            )
        head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        if head + WIDER > _FLASH_HEAD:
            raise InputError(
                f"flash attention takes heads up to {_FLASH_HEAD} and steering widens {head} by {WIDER}; load the "
                "model with attn_implementation='sdpa'"
            )
    return base


_ACTIVE: dict[int, SteeringPlan] = {}  # id of a decoder's config -> what is steered in it now


def _register(base: str) -> str:
    """The name under which transformers finds the widened form of an attention implementation."""
    name = _PREFIX + base
    if name not in ALL_ATTENTION_FUNCTIONS:

        def attention(module: torch.nn.Module, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
            return _attention(base, module, *args, **kwargs)

        AttentionInterface.register(name, attention)
        AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[base])
    return name


class _Unsteered:
    """An attention module as the stock kernel expects it: its config names the stock implementation."""

    def __init__(self, module: torch.nn.Module, base: str) -> None:
        self._module, self.config = module, _Named(module.config, base)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


class _Named:
    def __init__(self, config: Any, base: str) -> None:
        self._config, self._attn_implementation = config, base

    def __getattr__(self, name: str) -> Any:
        return getattr(self._config, name)


def _stock(base: str, module: torch.nn.Module) -> Callable[..., tuple[Tensor, Tensor | None]]:
    if base == "eager":  # each architecture has its own
        return sys.modules[type(module).__module__].eager_attention_forward
    return grouped_sdpa if base == "sdpa" else ALL_ATTENTION_FUNCTIONS[base]


def _attention(
    base: str,
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """The stock attention function, over wider heads in steered layers.

    Args:
        base: name of the stock implementation.
        module: the attention layer.
        query: [rows, heads, queries, head].
        key: [rows, key heads, keys, head].
        value: [rows, key heads, keys, value head].
        attention_mask: whatever the stock implementation takes.
        scaling: of the logits; None for 1/sqrt(head).
        **kwargs: passed on.

    Returns:
        [rows, queries, heads, value head], and the weights where the stock function gives them.
    """
    stock = _stock(base, module)
    inner = _Unsteered(module, base) if base.startswith("flash") else module
    what = _ACTIVE.get(id(module.config))
    if scaling is None:
        scaling = query.shape[-1] ** -0.5
    gate = what.heads.get(module.layer_idx) if what is not None else None
    if what is None or gate is None:
        return stock(inner, query, key, value, attention_mask, scaling=scaling, **kwargs)
    if base == "eager" and kwargs.get("softcap"):
        call = _Call(query, key, value, attention_mask, {**kwargs, "scaling": scaling})
        return _behind_the_cap(stock, module, what, gate, call)
    fused = (
        base == "sdpa" and not what.dynamic and not any(kwargs.get(k) is not None for k in ("position_bias", "cache"))
    )
    if fused and (attention_mask is not None or query.shape[2] == 1) and _mask_is_smaller(query, key):
        bias = _bias(what, gate, query, key, attention_mask)
        return stock(inner, query, key, value, bias, scaling=scaling, **kwargs)
    keys, on = what.key_side(query, key, scaling), what.gate(gate, query)
    width = value.shape[-1]
    wider = keys.shape[-1]
    wide_key = torch.cat([key, keys.expand(*key.shape[:-1], wider)], -1)
    static = on * what.static_rows(query)
    gates = [static, static]
    if what.dynamic:
        masses = what.masses(query, key)
        plain = functional.pad(query, (0, wider))
        wide_value = torch.cat([value, masses.expand(*value.shape[:-1], wider)], -1)
        seen = stock(inner, plain, wide_key, wide_value, attention_mask, scaling=scaling, **kwargs)[0]
        seen = seen.transpose(1, 2).float()
        w, u = what.dynamic_factors(on, *seen[..., width : width + 3].unbind(-1))
        gates += [part.to(on.dtype) for x in (w, u) for part in split(x.log() / scaling, query.dtype)]
    wide_query = torch.cat([query, functional.pad(torch.stack(gates, -1), (0, wider - len(gates))).to(query.dtype)], -1)
    # values as wide as keys keep the fused kernels
    wide_value = functional.pad(value, (0, wider))
    out, weights = stock(inner, wide_query, wide_key, wide_value, attention_mask, scaling=scaling, **kwargs)
    return out[..., :width].contiguous(), weights


def _mask_is_smaller(query: Tensor, key: Tensor) -> bool:
    """For a few queries (decoding), a mask per head is smaller than the keys that would have to be widened.

    Only in float32: half precision would round log w to 8 bits.
    """
    return query.dtype == torch.float32 and query.shape[1] * query.shape[2] <= key.shape[1] * key.shape[3]


def _bias(what: SteeringPlan, gate: Tensor, query: Tensor, key: Tensor, attention_mask: Tensor | None) -> Tensor:
    """The formula as an additive mask, [rows, heads, queries, keys]."""
    on, weights = what.gate(gate, query), what.columns(query, key)[0]
    bias = (on[..., None] * weights[:, None, None, :]).to(query.dtype)
    if attention_mask is None:
        return bias
    mask = attention_mask[..., : key.shape[2]]
    # not minus infinity: rows of padding see nothing at all
    return bias.masked_fill(~mask, torch.finfo(bias.dtype).min) if mask.dtype == torch.bool else bias + mask


class _Call(NamedTuple):
    """What an attention function is called with."""

    query: Tensor
    key: Tensor
    value: Tensor
    attention_mask: Tensor | None
    more: dict[str, Any]


def _behind_the_cap(
    stock: Callable[..., tuple[Tensor, Tensor | None]],
    module: Any,
    what: SteeringPlan,
    gate: Tensor,
    call: _Call,
) -> tuple[Tensor, Tensor | None]:
    """Soft-capped logits: the factor acts behind the cap, in the additive mask of the eager function, which holds all
    weights in memory anyway."""
    query, key, value, attention_mask, more = call
    on = what.gate(gate, query)
    weights, sink = (x[:, None, None, :] for x in what.columns(query, key))
    mask = 0.0 if attention_mask is None else attention_mask[..., : key.shape[2]]
    bias = on[..., None] * what.static_rows(query)[..., None] * weights
    if what.dynamic:
        probabilities = stock(module, query, key, value, attention_mask, **more)[1]
        assert probabilities is not None  # eager functions return them
        masses = [(probabilities.float() * x).sum(-1) for x in (weights, sink, 1 - weights - sink)]
        w, u = what.dynamic_factors(on, *masses)
        bias = bias + w.log()[..., None] * weights + u.log()[..., None] * sink
    return stock(module, query, key, value, (mask + bias).to(query.dtype), **more)


@dataclass(frozen=True)
class Marked:
    """One sequence of a packed stream.

    Attributes:
        ids: all tokens.
        spans: emphasised tokens.
        prompt: tokens of the prompt; those behind it are scored.
    """

    ids: Sequence[int]
    spans: tuple[TokenSpan, ...]
    prompt: int


class Stream:
    """What one Steering does to a packed stream of sequences.

    Args:
        model: whose heads are steered.
        steering: for all of them.
        sequences: their spans may differ.

    Attributes:
        items: for each sequence, one number per token; equal numbers mean the same token with the same key weight.

    Raises:
        InputError: a layer or head that the model does not have.
    """

    def __init__(self, model: PreTrainedModel, steering: Steering, sequences: Sequence[Marked]) -> None:
        self.model = model
        self.steering = steering
        self.heads = steering.check(model.config)
        self.tails = [generated_log_weight(s.spans, steering) if s.spans else 0.0 for s in sequences]
        described = [self._describe(s) for s in sequences]
        self.kinds = sorted({kind for one in described for kind in one})
        number = {kind: i for i, kind in enumerate(self.kinds)}
        self.items = [[number[kind] for kind in one] for one in described]
        self.plan: SteeringPlan | None = None

    def _describe(self, s: Marked) -> list[tuple[int, float, bool, bool]]:
        """Of each token: its id, its key's log w, whether it is a sink to spare, whether it is scored.

        Only what matters to this steering is told apart, so that sequences share all they can.
        """
        weights = key_log_weights(s.spans, s.prompt, len(s.ids), self.steering)
        spare = self.steering.dynamic and self.steering.keep_attention_sink and bool(s.spans) and s.spans[0].start > 0
        apart = self.steering.phase != "both"
        return [
            (token, weights[i], spare and i == 0, apart and i >= s.prompt) for i, token in enumerate(s.ids)
        ]  # fmt: skip

    def lay(self, plan: Any) -> Any:
        """A plan of items (`TreePlan`) becomes one of token ids, and its weights are laid out."""
        ids, weights, sink, decode = (np.array(column) for column in zip(*self.kinds, strict=True))
        at, new = plan.ids, len(self.tails)  # behind the stream: one column per sequence, for what it generates
        device = self.model.device
        config = self.model.config.get_text_config(decoder=True)
        gates = {}
        for layer, heads in self.heads.items():
            gates[layer] = torch.zeros(1, config.num_attention_heads, device=device)
            gates[layer][0, list(heads)] = 1
        self.plan = SteeringPlan(
            rows=[self.steering],
            heads=gates,
            weights=torch.tensor(np.append(weights[at], self.tails), dtype=torch.float32, device=device)[None],
            tail=torch.zeros(1, device=device),
            sink=torch.tensor(np.append(sink[at], [False] * new), dtype=torch.float32, device=device)[None],
            decode=torch.tensor(np.append(decode[at], [True] * new), dtype=torch.bool, device=device)[None],
        )
        return replace(plan, ids=ids[at].astype(np.int64), targets=ids[plan.targets].astype(np.int64))

    @contextmanager
    def around(self, at: torch.Tensor) -> Iterator[None]:
        """One forward pass over keys that stand at these places of the stream (-1 - i: generated by sequence i)."""
        assert self.plan is not None  # `lay` comes first
        stream = self.plan.weights.shape[1] - len(self.tails)
        self.plan.at = torch.where(at < 0, stream - 1 - at, at)
        with steered_by(self.model, self.plan):
            yield


@contextmanager
def steered(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], steering: Steering
) -> Iterator[dict[str, Tensor]]:
    """Steer every forward pass and `generate` of `model` inside the block; afterwards it is as it was, errors included.

    Works with sdpa, eager and flash attention, with the model's own cache, sampling and beams.

    Args:
        model: a decoder-only model.
        tokenizer: its fast tokenizer.
        prompts: a batch; each row has its own emphasis, and one without any stays plain.
        steering: heads and strength, for all rows.

    Yields:
        `input_ids` and `attention_mask`, [rows, tokens], padded on the left, on the model's device: what the model is
        called with inside the block. Tokens behind them count as generated.

    Raises:
        InputError: no prompt or one without tokens, a span without tokens, heads that the model does not have or that
            were measured on another one, or attention that cannot be steered (the message says why).

    Example:
        >>> prompt = amplify.parse_emphasis("Answer in **one word**.")
        >>> with amplify.steered(module, tokenizer, [prompt], amplify.Steering(heads={0: [1]}, alpha=0.1)) as inputs:
        ...     found = module.generate(**inputs, max_new_tokens=4)
        >>> found.shape[1] - inputs["input_ids"].shape[1] <= 4
        True
    """
    rendered = [render(p, tokenizer) for p in prompts]
    encoded = tokenise(tokenizer, rendered)
    if not encoded or not all(e.ids for e in encoded):
        raise InputError("steered needs at least one prompt, and every prompt a token")
    spans = [token_spans(e.offsets, r.emphasis, steering, r.text) for e, r in zip(encoded, rendered, strict=True)]
    longest = max(len(e.ids) for e in encoded)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0  # hidden by the mask
    ids = torch.tensor([[pad] * (longest - len(e.ids)) + list(e.ids) for e in encoded], device=model.device)
    mask = torch.tensor([[0] * (longest - len(e.ids)) + [1] * len(e.ids) for e in encoded], device=model.device)
    if steering.edits_keys:
        marks = torch.zeros(mask.shape, device=model.device)
        for row, (e, own) in enumerate(zip(encoded, spans, strict=True)):
            for span in own:
                marks[row, longest - len(e.ids) + span.start : longest - len(e.ids) + span.end] = 1
        around = edited_keys(model, steering, marks)
    else:
        around = steered_by(model, plan_steering(model, steering, spans, mask))
    with around:
        yield {"input_ids": ids, "attention_mask": mask}

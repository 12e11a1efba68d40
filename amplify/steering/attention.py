"""Steering inside transformers: the stock attention kernels over slightly wider heads.

A query head q becomes [q, g], a key [k, b], a value [v, 0], the scale unchanged, so that every logit gains
scale * g * b: with b = log(w)/scale on a span's keys and g = 1 on steered heads that is the formula, in any kernel that
takes queries, keys and values, and without a mask per head. Under grouped-query attention the gate sits on the query
side, so heads that share keys may differ. Two channels, the value rounded to the model's dtype and what rounding left,
keep half precision exact to 16 bits.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface, PreTrainedModel
from transformers.cache_utils import StaticSlidingWindowLayer
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from amplify.errors import InputError
from amplify.grouped_attention import grouped_sdpa
from amplify.steering.formula import TokenSpan, dynamic_weights, generated_log_weight, key_log_weights
from amplify.steering.spec import Steering

WIDER = 8  # channels added to a head: six are used, and kernels want multiples of eight
_PREFIX = "amplify_"
_FLASH_HEAD = 256  # the widest head that FlashAttention takes


@dataclass
class Plan:
    """What is steered in a batch, in columns of the padded input.

    Attributes:
        rows: one Steering per row, None for a plain row.
        heads: layer -> gate [rows, heads], 1 on steered heads.
        weights: [rows, columns] log w of each key, in the dynamic modes 1 on the spans.
        tail: [rows] the same for every column behind them.
        sink: [rows, columns] 1 on the first token where a dynamic mode spares it.
        decode: [rows, columns] True on generated and scored tokens; columns behind them are that too.
    """

    rows: Sequence[Steering | None]
    heads: dict[int, Tensor]
    weights: Tensor
    tail: Tensor
    sink: Tensor
    decode: Tensor
    at: Tensor | None = None  # where keys do not stand in columns' order: the column of each key of this pass
    past: int = 0  # columns that the cache holds before this forward pass
    queries: int = 0  # columns of this forward pass
    made: dict[Any, Any] = field(default_factory=dict)  # what the layers of one forward pass share

    @property
    def dynamic(self) -> bool:
        """Whether any row needs its attention mass first."""
        return any(s is not None and s.dynamic for s in self.rows)


def plan(
    model: PreTrainedModel,
    steering: Steering | Sequence[Steering | None] | None,
    spans: Sequence[Sequence[TokenSpan]],
    attention_mask: Tensor,
    prompt_tokens: Sequence[int] | None = None,
) -> Plan:
    """Lay spans and heads out over a padded batch.

    Args:
        model: whose layers and heads are steered.
        steering: one for all rows, or one per row.
        spans: of each row, in tokens of the unpadded row; none leaves the row plain.
        attention_mask: [rows, columns], 0 on padding.
        prompt_tokens: of each row; what follows counts as generated. Default: the whole row.

    Raises:
        InputError: a layer or head the model does not have, a span outside its row, rows that do not match.
    """
    n, columns = attention_mask.shape
    rows = list(steering) if isinstance(steering, Sequence) else [steering] * n
    if not len(rows) == len(spans) == n:
        raise InputError(f"{n} rows, {len(spans)} lists of spans and {len(rows)} steerings do not match")
    device = attention_mask.device
    start = attention_mask.long().argmax(1).tolist()
    length = attention_mask.long().sum(1).tolist()
    weights, sink = torch.zeros(n, columns), torch.zeros(n, columns)
    tail, decode = torch.zeros(n), torch.zeros(n, columns, dtype=torch.bool)
    shape = model.config.get_text_config(decoder=True)
    heads: dict[int, Tensor] = {}
    for i, (one, own) in enumerate(zip(rows, spans, strict=True)):
        if one is None or not own:
            rows[i] = None
            continue
        prompt = length[i] if prompt_tokens is None else prompt_tokens[i]
        if own[-1].end > length[i]:
            raise InputError(f"a span ends at token {own[-1].end}, outside the prompt of {length[i]} tokens")
        a, b = start[i], start[i] + length[i]
        weights[i, a:b] = torch.tensor(key_log_weights(own, prompt, length[i], one))
        tail[i] = generated_log_weight(own, one)
        decode[i, a + prompt :] = True
        if one.dynamic and one.spare_sink and own[0].start > 0:
            sink[i, a] = 1
        for layer, chosen in one.check(model.config).items():
            gate = heads.setdefault(layer, torch.zeros(n, shape.num_attention_heads))
            gate[i, list(chosen)] = 1
    to = {"device": device}
    return Plan(
        rows, {k: v.to(**to) for k, v in heads.items()}, weights.to(**to), tail.to(**to), sink.to(**to), decode.to(**to)
    )


@contextmanager
def steered(model: PreTrainedModel, what: Plan) -> Iterator[None]:
    """Steer every forward pass of `model` inside the block; nothing of it is left afterwards, errors included.

    A pass may be a whole batch, a continuation from the cache, or a generation with several sequences per row (beams).

    Raises:
        InputError: the model computes attention in a way that cannot be steered (the message says why), or it is being
            steered already.
    """
    if not what.heads:  # nothing is marked: the plain path
        yield
        return
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
        if any(isinstance(layer, StaticSlidingWindowLayer) for layer in getattr(cache, "layers", ())):
            raise InputError("a static cache of sliding windows does not say which keys it holds; use a dynamic cache")
        what.past = int(cache.get_seq_length()) if cache is not None else 0
        what.queries = tokens.shape[1]
        what.made.clear()

    handle = None
    try:
        handle = decoder.register_forward_pre_hook(begin, with_kwargs=True)
        _ACTIVE[id(config)] = what
        config._attn_implementation_internal = name
        yield
    finally:
        config._attn_implementation_internal = base
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


_ACTIVE: dict[int, Plan] = {}  # id of a decoder's config -> what is steered in it now


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
        return _behind_the_cap(stock, module, what, gate, query, key, value, attention_mask, scaling, kwargs)
    fused = (
        base == "sdpa" and not what.dynamic and not any(kwargs.get(k) is not None for k in ("position_bias", "cache"))
    )
    if fused and (attention_mask is not None or query.shape[2] == 1) and _mask_is_smaller(query, key):
        bias = _bias(what, gate, query, key, attention_mask)
        return stock(inner, query, key, value, bias, scaling=scaling, **kwargs)
    keys, on = _key_side(what, query, key, scaling), _gate(what, gate, query)
    width = value.shape[-1]
    wide_key = torch.cat([key, keys.expand(*key.shape[:-1], WIDER)], -1)
    static = on * _static_rows(what, query)
    if what.dynamic:
        masses = _masses(what, query, key)
        plain = functional.pad(query, (0, WIDER))
        wide_value = torch.cat([value, masses.expand(*value.shape[:-1], WIDER)], -1)
        seen = stock(inner, plain, wide_key, wide_value, attention_mask, scaling=scaling, **kwargs)[0]
        seen = seen.transpose(1, 2).float()
        w, u = _dynamic_factors(what, on, *seen[..., width : width + 3].unbind(-1))
        extra = [part.to(on.dtype) for x in (w, u) for part in _split(x.log() / scaling, query.dtype)]
    else:
        extra = [torch.zeros_like(static)] * 4
    gates = torch.stack([static, static, *extra, *[torch.zeros_like(static)] * 2], -1)
    wide_query = torch.cat([query, gates.to(query.dtype)], -1)
    # values as wide as keys keep the fused kernels
    wide_value = functional.pad(value, (0, WIDER))
    out, weights = stock(inner, wide_query, wide_key, wide_value, attention_mask, scaling=scaling, **kwargs)
    return out[..., :width].contiguous(), weights


def _mask_is_smaller(query: Tensor, key: Tensor) -> bool:
    """For a few queries (decoding), a mask per head is smaller than the keys that would have to be widened.

    Only in float32: half precision would round log w to 8 bits.
    """
    return query.dtype == torch.float32 and query.shape[1] * query.shape[2] <= key.shape[1] * key.shape[3]


def _bias(what: Plan, gate: Tensor, query: Tensor, key: Tensor, attention_mask: Tensor | None) -> Tensor:
    """The formula as an additive mask, [rows, heads, queries, keys]."""
    on, weights = _gate(what, gate, query), _columns(what, query, key)[0]
    bias = (on[..., None] * weights[:, None, None, :]).to(query.dtype)
    if attention_mask is None:
        return bias
    mask = attention_mask[..., : key.shape[2]]
    # not minus infinity: rows of padding see nothing at all
    return bias.masked_fill(~mask, torch.finfo(bias.dtype).min) if mask.dtype == torch.bool else bias + mask


def _behind_the_cap(
    stock: Callable[..., tuple[Tensor, Tensor | None]],
    module: Any,
    what: Plan,
    gate: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    kwargs: dict[str, Any],
) -> tuple[Tensor, Tensor | None]:
    """Soft-capped logits: the factor acts behind the cap, in the additive mask of the eager function, which holds all
    weights in memory anyway."""
    on = _gate(what, gate, query)
    weights, sink = (x[:, None, None, :] for x in _columns(what, query, key))
    mask = 0.0 if attention_mask is None else attention_mask[..., : key.shape[2]]
    bias = on[..., None] * _static_rows(what, query)[..., None] * weights
    if what.dynamic:
        probabilities = stock(module, query, key, value, attention_mask, scaling=scaling, **kwargs)[1]
        assert probabilities is not None  # eager functions return them
        masses = [(probabilities.float() * x).sum(-1) for x in (weights, sink, 1 - weights - sink)]
        w, u = _dynamic_factors(what, on, *masses)
        bias = bias + w.log()[..., None] * weights + u.log()[..., None] * sink
    return stock(module, query, key, value, (mask + bias).to(query.dtype), scaling=scaling, **kwargs)


def _columns(what: Plan, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """log w and sink marks of the keys at hand, each [rows, keys].

    The cache may hold fewer keys than there were tokens (a sliding window: the last ones) or more (a static one).
    """
    if what.at is not None:
        return what.weights[:, what.at], what.sink[:, what.at]
    keys, seen = key.shape[2], what.past + what.queries
    first = max(seen - keys, 0)
    if (made := what.made.get(("columns", first, keys))) is None:
        columns = what.weights.shape[1]
        weights = what.weights[:, first : first + keys]
        sink = what.sink[:, first : first + keys]
        if first + keys > columns:
            behind = first + keys - max(columns, first)
            weights = torch.cat([weights, what.tail[:, None].expand(-1, behind)], 1)
            sink = functional.pad(sink, (0, behind))
        made = what.made["columns", first, keys] = (_spread(weights, query), _spread(sink, query))
    return made


def _spread(x: Tensor, query: Tensor) -> Tensor:
    """One line per sequence: a row with several beams or samples stands for each of them."""
    each, left = divmod(query.shape[0], x.shape[0])
    if left:
        raise InputError(f"a batch of {query.shape[0]} is steered by a plan of {x.shape[0]} rows")
    return x.repeat_interleave(each, 0) if each > 1 else x


def _key_side(what: Plan, query: Tensor, key: Tensor, scaling: float) -> Tensor:
    """The keys' extra channels, [rows, 1, keys, WIDER]."""
    tag = ("keys", key.shape[2], key.dtype, scaling)
    if (made := what.made.get(tag)) is None:
        weights, sink = _columns(what, query, key)
        fixed = _static_rows(what, query)[:, 0] * weights  # [rows, keys]
        marked = weights - fixed  # 1 on the spans of dynamic rows
        high, low = _split(fixed / scaling, key.dtype)
        none = torch.zeros_like(high)
        made = torch.stack(
            [high, low, *[marked.to(key.dtype)] * 2, *[sink.to(key.dtype)] * 2, none, none], -1
        )[:, None]  # fmt: skip
        what.made[tag] = made
    return made


def _masses(what: Plan, query: Tensor, key: Tensor) -> Tensor:
    """Value channels that return a row's attention mass on spans, sink and rest, [rows, 1, keys, WIDER]."""
    weights, sink = _columns(what, query, key)
    marked = weights - _static_rows(what, query)[:, 0] * weights
    return functional.pad(torch.stack([marked, sink, 1 - marked - sink], -1).to(key.dtype), (0, WIDER - 3))[:, None]


def _static_rows(what: Plan, query: Tensor) -> Tensor:
    """1 for rows whose factors are fixed, 0 for those of a dynamic mode, [rows, 1, 1]."""
    kind = [0.0 if s is not None and s.dynamic else 1.0 for s in what.rows]
    return _spread(torch.tensor(kind, device=query.device), query)[:, None, None]


def _gate(what: Plan, gate: Tensor, query: Tensor) -> Tensor:
    """1 where a head's query row is steered, [rows, heads, queries]."""
    columns = what.decode.shape[1]
    decode = what.decode[:, what.past : what.past + what.queries]
    if what.at is not None:
        decode = what.decode[:, what.at[-what.queries :]]
    elif what.past + what.queries > columns:
        behind = what.past + what.queries - max(columns, what.past)
        decode = functional.pad(decode, (0, behind), value=True)
    on = torch.stack(
        [
            torch.ones_like(row) if s is None or s.schedule == "both" else row if s.schedule == "decode" else ~row
            for s, row in zip(what.rows, decode, strict=True)
        ]
    )
    return _spread(gate, query)[:, :, None] * _spread(on, query)[:, None, :].to(gate.dtype)


def _dynamic_factors(what: Plan, on: Tensor, psi: Tensor, sink: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
    """w and u of every row, 1 where a row is fixed, plain or not steered; each [rows, heads, queries]."""
    w, u = torch.ones_like(psi), torch.ones_like(psi)
    each = psi.shape[0] // len(what.rows)
    for i, one in enumerate(what.rows):
        if one is not None and one.dynamic:
            own = slice(i * each, (i + 1) * each)
            w[own], u[own] = dynamic_weights(psi[own], sink[own], rest[own], one)
    return torch.where(on > 0, w, 1.0), torch.where(on > 0, u, 1.0)


def _split(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x rounded to dtype, and what that left over."""
    high = x.to(dtype)
    return high, (x - high.to(x.dtype)).to(dtype)

"""What is steered in a batch of padded rows, laid out as the tensors that attention layers need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from amplify.errors import InputError
from amplify.steering.formula import TokenSpan, dynamic_weights, generated_log_weight, key_log_weights
from amplify.steering.spec import Steering

WIDER = 8  # channels added to a head at most: six are used, and kernels want multiples of eight


@dataclass
class SteeringPlan:
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

    def wider(self, dtype: torch.dtype) -> int:
        """Channels added to a head: two where factors are fixed, filled up to the 16 bytes that fused kernels want."""
        return WIDER if self.dynamic else max(2, 16 // dtype.itemsize)

    def columns(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """log w and sink marks of the keys at hand, each [rows, keys].

        The cache may hold fewer keys than there were tokens (a sliding window: the last ones) or more (a static one).
        """
        if self.at is not None:
            return self.weights[:, self.at], self.sink[:, self.at]
        keys, seen = key.shape[2], self.past + self.queries
        first = max(seen - keys, 0)
        if (made := self.made.get(("columns", first, keys))) is None:
            columns = self.weights.shape[1]
            weights = self.weights[:, first : first + keys]
            sink = self.sink[:, first : first + keys]
            if first + keys > columns:
                behind = first + keys - max(columns, first)
                weights = torch.cat([weights, self.tail[:, None].expand(-1, behind)], 1)
                sink = functional.pad(sink, (0, behind))
            made = self.made["columns", first, keys] = (self._spread(weights, query), self._spread(sink, query))
        return made

    @staticmethod
    def _spread(x: Tensor, query: Tensor) -> Tensor:
        """One line per sequence: a row with several beams or samples stands for each of them."""
        each, left = divmod(query.shape[0], x.shape[0])
        if left:
            raise InputError(f"a batch of {query.shape[0]} is steered by a plan of {x.shape[0]} rows")
        return x.repeat_interleave(each, 0) if each > 1 else x

    def key_side(self, query: Tensor, key: Tensor, scaling: float) -> Tensor:
        """The keys' extra channels, [rows, 1, keys, wider]."""
        tag = ("keys", key.shape[2], key.dtype, scaling)
        if (made := self.made.get(tag)) is None:
            weights, sink = self.columns(query, key)
            fixed = self.static_rows(query)[:, 0] * weights  # [rows, keys]
            channels = list(split(fixed / scaling, key.dtype))
            if self.dynamic:
                marked = weights - fixed  # 1 on the spans of dynamic rows
                channels += [marked.to(key.dtype)] * 2 + [sink.to(key.dtype)] * 2
            made = functional.pad(torch.stack(channels, -1), (0, self.wider(key.dtype) - len(channels)))[:, None]
            self.made[tag] = made
        return made

    def masses(self, query: Tensor, key: Tensor) -> Tensor:
        """Value channels that return a row's attention mass on spans, sink and rest, [rows, 1, keys, WIDER]."""
        weights, sink = self.columns(query, key)
        marked = weights - self.static_rows(query)[:, 0] * weights
        return functional.pad(torch.stack([marked, sink, 1 - marked - sink], -1).to(key.dtype), (0, WIDER - 3))[:, None]

    def static_rows(self, query: Tensor) -> Tensor:
        """1 for rows whose factors are fixed, 0 for those of a dynamic mode, [rows, 1, 1]."""
        if (made := self.made.get("static")) is None:
            kind = [0.0 if s is not None and s.dynamic else 1.0 for s in self.rows]
            made = self._spread(torch.tensor(kind, device=query.device), query)[:, None, None]
            self.made["static"] = made
        return made

    def gate(self, gate: Tensor, query: Tensor) -> Tensor:
        """1 where a head's query row is steered, [rows, heads, queries]."""
        if (on := self.made.get("on")) is None:
            on = self.made["on"] = self._spread(self._scheduled(), query)[:, None, :].to(gate.dtype)
        return self._spread(gate, query)[:, :, None] * on

    def _scheduled(self) -> Tensor:
        """Whether a row's phase steers a query, [rows, queries]."""
        columns = self.decode.shape[1]
        decode = self.decode[:, self.past : self.past + self.queries]
        if self.at is not None:
            decode = self.decode[:, self.at[-self.queries :]]
        elif self.past + self.queries > columns:
            behind = self.past + self.queries - max(columns, self.past)
            decode = functional.pad(decode, (0, behind), value=True)
        return torch.stack(
            [
                torch.ones_like(row) if s is None or s.phase == "both" else row if s.phase == "decode" else ~row
                for s, row in zip(self.rows, decode, strict=True)
            ]
        )

    def dynamic_factors(self, on: Tensor, psi: Tensor, sink: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
        """w and u of every row, 1 where a row is fixed, plain or not steered; each [rows, heads, queries]."""
        w, u = torch.ones_like(psi), torch.ones_like(psi)
        each = psi.shape[0] // len(self.rows)
        for i, one in enumerate(self.rows):
            if one is not None and one.dynamic:
                own = slice(i * each, (i + 1) * each)
                w[own], u[own] = dynamic_weights(psi[own], sink[own], rest[own], one)
        return torch.where(on > 0, w, 1.0), torch.where(on > 0, u, 1.0)


def plan_steering(
    model: PreTrainedModel,
    steering: Steering | Sequence[Steering | None] | None,
    spans: Sequence[Sequence[TokenSpan]],
    attention_mask: Tensor,
    prompt_tokens: Sequence[int] | None = None,
) -> SteeringPlan:
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
        if one.dynamic and one.keep_attention_sink and own[0].start > 0:
            sink[i, a] = 1
        for layer, chosen in one.check(model.config).items():
            gate = heads.setdefault(layer, torch.zeros(n, shape.num_attention_heads))
            gate[i, list(chosen)] = 1
    to = {"device": device}
    return SteeringPlan(
        rows, {k: v.to(**to) for k, v in heads.items()}, weights.to(**to), tail.to(**to), sink.to(**to), decode.to(**to)
    )


def split(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x rounded to dtype, and what that left over."""
    high = x.to(dtype)
    return high, (x - high.to(x.dtype)).to(dtype)

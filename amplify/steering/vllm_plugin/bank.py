"""What the layers of an engine read in a forward pass, laid out by request and position."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from amplify.steering.payload import Payload

GATES = 2  # channels in use: a value rounded to the cache's dtype, and what rounding left


class Bank:
    """One engine's steering on one worker: what each request asks for, and the buffers that the layers read.

    Args:
        layers: of the model.
        heads: query heads of this rank in each layer.
        rank: which share of the heads this rank holds.
        tokens: in a forward pass, at most.
        requests: in a forward pass, at most.
        dtype: of queries and keys.

    Attributes:
        gates: [layers, tokens, heads], 1 where a query head is steered; each layer reads its own.
    """

    def __init__(self, layers: int, heads: int, rank: int, tokens: int, requests: int, dtype: Any) -> None:
        import torch

        self.heads, self.rank, self.dtype = heads, rank, dtype
        self.lines: dict[str, tuple[int, Payload]] = {}  # request -> its line of head_sets; line 0 is plain
        self.free = list(range(requests, 0, -1))
        self.touched = 0  # tokens whose buffers are not zero
        self.head_sets = torch.zeros(requests + 1, layers, heads, dtype=dtype)
        self.gates = torch.zeros(layers, tokens, heads, dtype=dtype)
        self.biases: dict[tuple[float, int], Any] = {}  # (logit scale, width) -> [tokens, width]

    def bias(self, scale: float, width: int = GATES) -> Any:
        """The buffer of log(w)/scale that layers of this scale read: GATES channels in use, and zeros up to `width`."""
        if (scale, width) not in self.biases:
            self.biases[scale, width] = self.gates.new_zeros(self.gates.shape[1], width)
        return self.biases[scale, width]

    def begin(self, requests: Sequence[tuple[str, Payload | None]], counts: Any, computed: Any) -> None:
        """Lay out one forward pass.

        Args:
            requests: in batch order, what each asks for.
            counts: tokens of each in this pass.
            computed: tokens of each that are in the cache already.
        """
        import torch

        steered = {name: asks for name, asks in requests if asks is not None}
        if not steered and not self.touched:
            return  # plain before and now: the buffers are zero
        self._place(steered)
        ends = np.cumsum(counts)
        total = int(ends[-1])
        lines, on, weights = np.zeros(total, np.int64), np.zeros(total, np.bool_), np.zeros(total, np.float32)
        for (name, asks), end, count, past in zip(requests, ends.tolist(), counts.tolist(), computed, strict=True):
            if asks is not None:
                own, first = slice(end - count, end), int(past)
                lines[own] = self.lines[name][0]
                on[own] = asks.gate(first, first + count)
                weights[own] = asks.key_log_weights(first, first + count)
        lines[~on] = 0
        device = self.gates.device
        at = torch.from_numpy(lines).to(device, non_blocking=True)
        self.gates[:, :total] = self.head_sets[at].transpose(0, 1)
        log_w = torch.from_numpy(weights).to(device, non_blocking=True)
        for (scale, _), buffer in self.biases.items():
            value = log_w / scale
            buffer[:total, 0] = value
            buffer[:total, 1] = value - buffer[:total, 0].float()
        if self.touched > total:
            self.gates[:, total : self.touched] = 0
            for buffer in self.biases.values():
                buffer[total : self.touched] = 0
        self.touched = total if steered else 0

    def _place(self, steered: dict[str, Payload]) -> None:
        """A line for each request of this pass; those of others are freed before any is taken."""
        for name in [n for n, (_, asks) in self.lines.items() if steered.get(n) is not asks]:
            self.free.append(self.lines.pop(name)[0])
        for name, asks in steered.items():
            if name not in self.lines:
                self.lines[name] = (self.free.pop(), asks)
                self._fill(*self.lines[name])

    def _fill(self, line: int, asks: Payload) -> None:
        import torch

        layers, heads = self.head_sets.shape[1:]
        chosen = torch.zeros(layers, heads, dtype=self.dtype, device="cpu")
        first = self.rank * heads
        if asks.steering.heads is None:
            chosen[:] = 1
        for layer, numbers in (asks.steering.heads or {}).items():
            chosen[layer, [h - first for h in numbers if first <= h < first + heads]] = 1
        self.head_sets[line] = chosen.to(self.head_sets.device)


def bank_of(layers: Mapping[str, Any]) -> Bank | None:
    """The bank that an engine's layers have, by name; None where none of them is steered."""
    return next((bank for layer in layers.values() if (bank := getattr(layer, "amplify_bank", None)) is not None), None)

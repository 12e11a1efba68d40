"""Steering of packed token streams, in which sequences with a common beginning share its keys and values.

Emphasis changes keys and values from the first emphasised token on. So sequences are merged not by token ids but by
items: a token together with the weight of its key. What stands before the first difference is shared as before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from amplify.steering.attention import Plan, steered
from amplify.steering.formula import TokenSpan, generated_log_weight, key_log_weights
from amplify.steering.spec import Steering


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
        sequences: their spans may differ. Under `exempt_generated` all must have the same `tail`.

    Attributes:
        items: for each sequence, one number per token; equal numbers mean the same token with the same key weight.

    Raises:
        InputError: a layer or head that the model does not have.
    """

    def __init__(self, model: PreTrainedModel, steering: Steering, sequences: Sequence[Marked]) -> None:
        self.model = model
        self.steering = steering
        self.heads = steering.check(model.config)
        self.tail = tail(sequences[0].spans, steering) if sequences else 0.0
        described = [self._describe(s) for s in sequences]
        self.kinds = sorted({kind for one in described for kind in one})
        number = {kind: i for i, kind in enumerate(self.kinds)}
        self.items = [[number[kind] for kind in one] for one in described]
        self.plan: Plan | None = None

    def _describe(self, s: Marked) -> list[tuple[int, float, bool, bool]]:
        """Of each token: its id, its key's log w, whether it is a sink to spare, whether it is scored.

        Only what matters to this steering is told apart, so that sequences share all they can.
        """
        weights = key_log_weights(s.spans, s.prompt, len(s.ids), self.steering)
        spare = self.steering.dynamic and self.steering.spare_sink and bool(s.spans) and s.spans[0].start > 0
        apart = self.steering.schedule != "both"
        return [
            (token, weights[i], spare and i == 0, apart and i >= s.prompt) for i, token in enumerate(s.ids)
        ]  # fmt: skip

    def lay(self, plan: Any) -> Any:
        """A plan of items (`backends.tree.Plan`) becomes one of token ids, and its weights are laid out."""
        ids, weights, sink, decode = (np.array(column) for column in zip(*self.kinds, strict=True))
        device = self.model.device
        at = plan.ids
        config = self.model.config.get_text_config(decoder=True)
        gates = {}
        for layer, heads in self.heads.items():
            gates[layer] = torch.zeros(1, config.num_attention_heads, device=device)
            gates[layer][0, list(heads)] = 1
        self.plan = Plan(
            rows=[self.steering],
            heads=gates,
            weights=torch.tensor(weights[at], dtype=torch.float32, device=device)[None],
            tail=torch.tensor([self.tail], dtype=torch.float32, device=device),
            sink=torch.tensor(sink[at], dtype=torch.float32, device=device)[None],
            decode=torch.tensor(decode[at], dtype=torch.bool, device=device)[None],
        )
        return replace(plan, ids=ids[at].astype(np.int64), targets=ids[plan.targets].astype(np.int64))

    @contextmanager
    def around(self, at: torch.Tensor) -> Iterator[None]:
        """One forward pass over keys that stand at these places of the stream (-1: generated)."""
        assert self.plan is not None
        self.plan.at = at
        with steered(self.model, self.plan):
            yield


def tail(spans: Sequence[TokenSpan], steering: Steering) -> float:
    """log w of the keys of generated tokens; prompts that differ in it cannot be decoded in one stream."""
    return generated_log_weight(spans, steering) if spans else 0.0

"""Steering for a transformers model that is yours, without a model around it: `amplify.steered`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from amplify.errors import InputError
from amplify.models.text import render, tokenise
from amplify.steering import Steering
from amplify.steering.formula import token_spans
from amplify.types import Prompt

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


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
    """
    import torch

    from amplify.steering.attention import steered as steered_by_plan
    from amplify.steering.plan import plan

    rendered = [render(p, tokenizer) for p in prompts]
    encoded = tokenise(tokenizer, rendered)
    if not encoded or not all(e.ids for e in encoded):
        raise InputError("steered needs at least one prompt, and every prompt a token")
    spans = [token_spans(e.offsets, r.emphasis, steering, r.text) for e, r in zip(encoded, rendered, strict=True)]
    longest = max(len(e.ids) for e in encoded)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0  # hidden by the mask
    ids = torch.tensor([[pad] * (longest - len(e.ids)) + list(e.ids) for e in encoded], device=model.device)
    mask = torch.tensor([[0] * (longest - len(e.ids)) + [1] * len(e.ids) for e in encoded], device=model.device)
    with steered_by_plan(model, plan(model, steering, spans, mask)):
        yield {"input_ids": ids, "attention_mask": mask}

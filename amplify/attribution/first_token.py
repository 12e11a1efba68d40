"""Encoders whose head reads the first token alone: what their last layer makes of the others behind its attention.

Nothing that is read depends on it: the output projection and the feed-forward of one layer, 9/12 of its work, which is
an eighth of all of an encoder of six layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

TYPES = frozenset({"bert", "roberta", "xlm-roberta", "electra"})
"""Model types with a classification head on the first token and an `encoder.layer[-1].attention.output`."""

_KNOWN: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()


@contextmanager
def first_token_alone(model: PreTrainedModel) -> Iterator[None]:
    """Inside, the last layer goes on with the first token alone, where a trial says that the logits stay the same.

    Args:
        model: for sequence classification. Other types run as they are.
    """
    if model not in _KNOWN:
        _KNOWN[model] = model.config.model_type in TYPES and _same(model)
    if not _KNOWN[model]:
        yield
        return
    with _cut(model):
        yield


@contextmanager
def _cut(model: PreTrainedModel) -> Iterator[None]:
    def first(_: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return tuple(states[:, :1] for states in given)

    handle = model.base_model.encoder.layer[-1].attention.output.register_forward_pre_hook(first)
    try:
        yield
    finally:
        handle.remove()


def _same(model: PreTrainedModel) -> bool:
    import torch

    generator = torch.Generator().manual_seed(0)
    width = model.get_input_embeddings().embedding_dim
    points = torch.randn((2, 5, width), generator=generator).to(model.device, model.dtype)
    with torch.inference_mode():
        whole = model(inputs_embeds=points).logits
        with _cut(model):
            alone = model(inputs_embeds=points).logits
    # rounding alone: float32 agrees to 1e-6, half precision to its 8 to 11 bits
    return bool(torch.allclose(whole, alone, rtol=0, atol=1e-4 if model.dtype == torch.float32 else 0.05))

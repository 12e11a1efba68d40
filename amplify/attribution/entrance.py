"""Where explanations by gradients enter an encoder: at the output of its embeddings module.

That is what transformers calls `hidden_states[0]`: the sum of word, position and type embedding of each token,
*normalised*. The word embeddings before it would not do: a layer norm is blind to the length of what it normalises, so
the gradient at that sum, times the sum, is 0 whatever the token. Models without such a module (Llama, GPT-2) are
entered at their word embeddings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from amplify.locks import lock_of
from amplify.proxies import Proxy, Row

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from transformers import PreTrainedModel


class _Reached(Exception):
    """The embeddings are there: the rest of the model is not needed."""


def embeddings_module(model: PreTrainedModel) -> Module | None:
    """The module that makes a model's first hidden states, where it is more than a table of word embeddings."""
    module: Module | None = getattr(model.base_model, "embeddings", None)
    return None if module is model.get_input_embeddings() else module


def inputs_of(proxy: Proxy, rows: Sequence[Row], words: Tensor, mask: Tensor, types: Tensor) -> Tensor:
    """What the layers of a proxy read of some word embeddings, (rows, tokens, width), without gradients.

    Args:
        proxy, rows, mask, types: as in `Proxy.scores`.
        words: (rows, tokens, width of the word embeddings).
    """
    import torch

    module = embeddings_module(proxy.module)
    if module is None:
        return words.detach()
    found: list[Tensor] = []

    def stop(_module: Module, _args: Any, output: Tensor) -> None:
        found.append(output)
        raise _Reached

    with lock_of(proxy.module):
        hook = module.register_forward_hook(stop)
        try:
            with torch.no_grad():
                proxy.scores(rows, words, mask, types)
        except _Reached:
            pass
        finally:
            hook.remove()
    return found[0]


def score(proxy: Proxy, rows: Sequence[Row], inputs: Tensor, words: Tensor, mask: Tensor, types: Tensor) -> Tensor:
    """`Proxy.scores` of rows whose layers read `inputs`, (rows, tokens, width), as `inputs_of` gives them."""
    module = embeddings_module(proxy.module)
    if module is None:
        return proxy.scores(rows, inputs, mask, types)
    with lock_of(proxy.module):
        hook = module.register_forward_hook(lambda *_: inputs)
        try:
            return proxy.scores(rows, words, mask, types)
        finally:
            hook.remove()

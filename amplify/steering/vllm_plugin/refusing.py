"""What a steered engine refuses at its start, with the reason, because steering would not be exact there.

Everything else that vLLM is configured with leaves steering exact: weights of any quantisation and adapters of any
number (only queries, keys and values as they come out count), chunked prefill, prefix caching, tensor parallelism.
`python eval/check_engines.py` runs what this machine can, and says what was not run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from amplify.errors import InputError
from amplify.steering.payload import layers_of, projections_of

Config = Any  # vllm.config.VllmConfig


def _model(test: Callable[[Any], Any]) -> Callable[[Config], bool]:
    return lambda config: bool(test(config.model_config))


REFUSALS: Mapping[str, tuple[Callable[[Config], bool], str]] = {
    "speculative decoding": (
        lambda config: config.speculative_config is not None,
        "drafts come from a model or rule that is not steered: start without speculative_config",
    ),
    "micro-batching": (
        lambda config: bool(config.parallel_config.use_ubatching),
        "a pass is cut in two behind the layout of its requests: start without it",
    ),
    "prefill context parallelism": (
        lambda config: config.parallel_config.prefill_context_parallel_size > 1,
        "a rank holds only some tokens of a prompt: start with prefill_context_parallel_size=1",
    ),
    "a key/value cache of another dtype": (
        lambda config: (
            config.cache_config.cache_dtype not in ("auto", str(config.model_config.dtype).rpartition(".")[2])
        ),
        "the weight of an emphasised key, kept in the cache, would be rounded: start with kv_cache_dtype='auto' (or "
        "the model's own dtype, where the checkpoint itself asks for a quantised cache)",
    ),
    "a key/value store outside the engine": (
        lambda config: config.kv_transfer_config is not None,
        "it tells prompts apart by their tokens alone, so steered keys would be given to plain requests: start without "
        "kv_transfer_config",
    ),
    "latent attention": (
        _model(lambda model: model.use_mla),
        "keys and values are not held by head, so no head can be steered: use a transformers: model",
    ),
    "layers without attention": (
        _model(lambda model: model.is_hybrid or model.is_attention_free),
        "not all layers hold keys and values by head: use a transformers: model",
    ),
    "a model for pooling": (
        _model(lambda model: getattr(model, "runner_type", "generate") not in ("generate", "draft")),
        "it writes nothing that could be steered",
    ),
}
"""What is not possible: (whether a configuration has it, why not and what to do)."""


def check_engine(config: Config) -> None:
    """Refuse a configuration in which steering would not be exact, before anything is loaded.

    Raises:
        InputError: with the reason and the way out; a ValueError for vLLM.
    """
    layers_of(config)
    projections_of(config)
    for what, (has, why) in REFUSALS.items():
        if has(config):
            raise InputError(f"steering and {what} cannot be combined: {why}")

"""What happens to a request before it reaches a worker: it is checked, and its prefix gets cache keys of its own."""

from __future__ import annotations

import difflib
import functools
import sys
from typing import Any

from amplify.errors import InputError
from amplify.steering.payload import KEY
from amplify.steering.vllm_plugin.options import asked, enabled, layers_of


def extend_prefix_cache() -> None:
    """Key the blocks of a steered prompt from the first token on whose attention changes."""
    from vllm.v1.core import kv_cache_utils

    plain = kv_cache_utils.generate_block_hash_extra_keys

    def extra_keys(request: Any, start_token_idx: int, end_token_idx: int, start_mm_idx: int) -> Any:
        keys, mm = plain(request, start_token_idx, end_token_idx, start_mm_idx)
        asks = asked(request.sampling_params)
        if asks is not None and end_token_idx > asks.first:
            keys = (*(keys or ()), (KEY, asks.digest))
        return keys, mm

    # modules imported later find it in kv_cache_utils
    for module in [m for m in sys.modules.values() if getattr(m, "__dict__", {}).get(plain.__name__) is plain]:
        setattr(module, plain.__name__, extra_keys)


def extend_front_end() -> None:
    """Refuse a request that does not fit the engine or its model."""
    from vllm.exceptions import VLLMValidationError
    from vllm.v1.engine.input_processor import InputProcessor

    plain = InputProcessor.process_inputs

    @functools.wraps(plain)
    def process_inputs(self: Any, *args: Any, **kwargs: Any) -> Any:
        request = plain(self, *args, **kwargs)
        try:
            if KEY in (getattr(request.sampling_params, "extra_args", None) or {}) and not enabled(self.vllm_config):
                raise InputError(
                    "this engine was started without steering: start it with "
                    f"--additional-config '{{\"{KEY}\": {{}}}}' (in process: steering=True)"
                )
            _refuse_misspelt(request.sampling_params)
            asks = asked(request.sampling_params)
            if asks is not None:
                if request.prompt_token_ids is None:
                    raise InputError("steering needs a prompt of token ids, not of embeddings")
                model = self.model_config
                if model.use_mla or model.is_hybrid or model.is_attention_free:
                    raise InputError(
                        "this model's layers do not all hold keys and values by head: it cannot be steered"
                    )
                text = model.hf_text_config
                asks.check(text.num_hidden_layers, text.num_attention_heads, len(request.prompt_token_ids))
                named = asks.steering.resolve(text.num_hidden_layers, text.num_attention_heads)
                if closed := named.keys() - layers_of(self.vllm_config):
                    raise InputError(f"this engine was not started to steer layer {min(closed)}: see its option layers")
        except InputError as error:
            raise VLLMValidationError(f"{KEY}: {error}", parameter="vllm_xargs") from error
        return request

    InputProcessor.process_inputs = process_inputs


def _refuse_misspelt(sampling_params: Any) -> None:
    """Refuse an argument that is meant for us and is not: vLLM would ignore it, and the request would go unsteered.

    Raises:
        InputError: a name of ours, or nearly the one that we know.
    """
    for name in getattr(sampling_params, "extra_args", None) or {}:
        ours = name.startswith("amplify") or difflib.get_close_matches(name, [KEY], cutoff=0.8)
        if name != KEY and ours:
            raise InputError(f"there is no argument {name!r}: did you mean {KEY!r}?")

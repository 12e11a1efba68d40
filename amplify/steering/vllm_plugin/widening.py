"""Attention layers with heads a little wider than the model's."""

from __future__ import annotations

import functools
import inspect
from typing import Any

from amplify.steering.payload import KEY
from amplify.steering.vllm_plugin.bank import GATES, Bank, bank_of
from amplify.steering.vllm_plugin.options import enabled, layers_of


def wide_size(head_size: int, dtype: Any, kwargs: dict[str, Any]) -> int:
    """The next width that the attention kernel supports."""
    from vllm.v1.attention.selector import get_attn_backend

    backend = kwargs.get("attn_backend") or get_attn_backend(
        head_size,
        dtype,
        "auto",
        use_mla=False,
        has_sink=kwargs.get("sinks") is not None,
        has_sliding_window=kwargs.get("per_layer_sliding_window") is not None,
    )
    sizes = backend.get_supported_head_sizes()
    fits = [s for s in sizes if s >= head_size + GATES] if sizes else [head_size + 8]
    if not fits:
        raise ValueError(
            f"steering widens heads, and {backend.get_name()} has no size above {head_size}: start without "
            f"{KEY}, or choose another attention backend"
        )
    return int(min(fits))


def _bank(config: Any, heads: int) -> Bank:
    """The engine's bank: the one that its other layers have, or a new one."""
    from vllm.distributed import get_tensor_model_parallel_rank

    if (found := bank_of(config.compilation_config.static_forward_context)) is not None:
        if found.heads != heads:
            raise ValueError("steering needs the same number of query heads in every layer")
        return found
    if config.speculative_config is not None:
        raise ValueError("steering and speculative decoding cannot be combined: the draft model is not steered")
    if config.parallel_config.use_ubatching:
        raise ValueError("steering and micro-batching cannot be combined")
    if config.cache_config.cache_dtype.startswith(("fp8", "nvfp4", "int8", "turboquant")):
        raise ValueError(f"steering needs a KV cache in the model's own dtype, not {config.cache_config.cache_dtype}")
    model, scheduler = config.model_config, config.scheduler_config
    text = model.hf_text_config
    return Bank(
        text.num_hidden_layers,
        heads,
        get_tensor_model_parallel_rank(),
        scheduler.max_num_batched_tokens,
        scheduler.max_num_seqs,
        model.dtype,
    )


def extend_attention(attention: Any) -> None:
    """Widen the heads of the layers that an engine is to steer, and fill what that adds in each forward pass."""
    import torch
    from vllm.config import get_current_vllm_config
    from vllm.model_executor.models.utils import extract_layer_index
    from vllm.v1.attention.backend import AttentionType

    plain_init, plain_forward = attention.__init__, attention.forward
    parameters = inspect.signature(plain_init)

    @functools.wraps(plain_init)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        config = get_current_vllm_config()
        given = parameters.bind(self, *args, **kwargs)
        given.apply_defaults()
        options = given.arguments
        layer = extract_layer_index(options["prefix"]) if enabled(config) else -1
        if layer < 0 or options["attn_type"] != AttentionType.DECODER or layer not in layers_of(config):
            plain_init(self, *args, **kwargs)
            return
        if options["logits_soft_cap"]:
            raise ValueError("steering acts behind a soft cap, which this kernel applies inside: use transformers")
        if options["head_size_v"] not in (None, options["head_size"]):
            raise ValueError("steering needs keys and values of one width")
        size = options["head_size"]
        bank = _bank(config, options["num_heads"])
        options["head_size"] = wide_size(size, bank.dtype, {**options, **options.get("extra_impl_args", {})})
        options["head_size_v"] = None
        plain_init(*given.args, **given.kwargs)
        self.amplify_bank = bank
        self.amplify_size = size
        self.register_buffer("amplify_gates", bank.gates[layer], persistent=False)
        extra = options["head_size"] - size
        self.register_buffer("amplify_bias", bank.bias(float(options["scale"]), extra), persistent=False)

    def forward(self: Any, query: Any, key: Any, value: Any, output_shape: Any = None, output_dtype: Any = None) -> Any:
        if self.amplify_bank is None:
            return plain_forward(self, query, key, value, output_shape, output_dtype)
        size, extra = self.amplify_size, self.head_size - self.amplify_size
        query = query.view(-1, self.num_heads, size)
        tokens = query.shape[0]
        # one copy a tensor. Where the bias is zero, what the query holds does not matter; nor does what the value holds
        # in channels that are cut off again: a copy of the bias costs less than zeros (inductor masks a padding)
        gates = self.amplify_gates[:tokens, :, None].expand(-1, -1, extra)
        bias = self.amplify_bias[:tokens, None].expand(-1, self.num_kv_heads, -1)
        query = torch.cat([query, gates], -1)
        if key is not None:
            key = torch.cat([key.view(-1, self.num_kv_heads, size), bias], -1)
        if value is not None:
            value = torch.cat([value.view(-1, self.num_kv_heads, size), bias], -1)
        out = plain_forward(self, query, key, value, None, output_dtype)
        out = out.view(-1, self.num_heads, self.head_size)[..., :size]
        return out.reshape(-1, self.num_heads * size) if output_shape is None else out.reshape(output_shape)

    attention.__init__, attention.forward = init, forward

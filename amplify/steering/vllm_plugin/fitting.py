"""Whether the vLLM at hand is, inside, the one that steering was written for: looked at before anything is extended.

What is named here is all that the plugin and the `vllm:` model touch. Parameters and fields are read from signatures;
what a constructor sets on its object, from the names in its code, since there is no object yet.
"""

from __future__ import annotations

import dataclasses
import dis
import inspect
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from typing import Any

CALLS: dict[str, tuple[str, ...]] = {
    "model_executor.layers.attention.attention:Attention.__init__": (
        "num_heads", "head_size", "scale", "num_kv_heads", "logits_soft_cap", "prefix", "attn_type", "head_size_v",
        "kv_sharing_target_layer_name",
    ),
    "model_executor.layers.attention.attention:Attention.forward": (
        "query", "key", "value", "output_shape", "output_dtype",
    ),
    "model_executor.models.utils:extract_layer_index": ("layer_name",),
    "v1.attention.selector:get_attn_backend": (
        "head_size", "dtype", "kv_cache_dtype", "use_mla", "has_sink", "has_sliding_window",
    ),
    "v1.attention.backend:AttentionBackend.get_supported_head_sizes": (),
    "v1.worker.gpu_model_runner:GPUModelRunner._model_forward": ("input_ids", "positions"),
    "v1.worker.gpu_model_runner:GPUModelRunner.load_model": (),
    "v1.worker.cpu_model_runner:CPUModelRunner.load_model": (),
    "v1.core.kv_cache_utils:generate_block_hash_extra_keys": (
        "request", "start_token_idx", "end_token_idx", "start_mm_idx",
    ),
    "v1.engine.input_processor:InputProcessor.process_inputs": ("request_id", "prompt", "params"),
    "v1.worker.gpu.model_states:resolve_model_state_cls": ("vllm_config", "model"),
    "v1.worker.gpu.model_states:ModelState.add_request": ("req_index", "new_req_data"),
    "v1.worker.gpu.model_states:ModelState.remove_request": ("req_id",),
    "v1.worker.gpu.model_states:ModelState.prepare_inputs": ("input_batch", "req_states"),
    "distributed:get_tensor_model_parallel_rank": (),
    "config:get_current_vllm_config": (),
}  # fmt: skip
"""Function -> parameters that it must take."""

OBJECTS: dict[str, tuple[str, ...]] = {
    "config:VllmConfig": (
        "additional_config", "compilation_config", "model_config", "scheduler_config", "cache_config",
        "parallel_config", "speculative_config", "kv_transfer_config",
    ),
    "config:CompilationConfig": ("static_forward_context",),
    "config:ParallelConfig": ("use_ubatching", "prefill_context_parallel_size", "pipeline_parallel_size"),
    "config:SchedulerConfig": ("max_num_batched_tokens", "max_num_seqs"),
    "config:CacheConfig": ("cache_dtype",),
    "config:ModelConfig": ("hf_text_config", "hf_config", "dtype", "use_mla", "is_hybrid", "is_attention_free"),
    "model_executor.layers.attention.attention:Attention": (
        "num_heads", "num_kv_heads", "head_size", "kv_cache_dtype", "kv_cache_torch_dtype", "layer_name",
    ),
    "model_executor.layers.linear:QKVParallelLinear": (
        "num_heads", "num_kv_heads", "total_num_kv_heads", "num_kv_head_replicas", "head_size",
    ),
    "v1.attention.backend:AttentionType": ("DECODER",),
    "v1.worker.gpu_model_runner:GPUModelRunner": (
        "compilation_config", "input_batch", "requests", "query_start_loc", "vllm_config",
    ),
    "v1.worker.gpu_input_batch:InputBatch": ("num_reqs", "req_ids", "num_computed_tokens_cpu"),
    "v1.worker.gpu_input_batch:CachedRequestState": ("sampling_params",),
    "v1.utils:CpuGpuBuffer": ("np",),
    "v1.worker.gpu.input_batch:InputBatch": (
        "num_reqs", "req_ids", "query_start_loc_np", "num_computed_tokens_np",
    ),
    "v1.core.sched.output:NewRequestData": ("req_id", "sampling_params"),
    "v1.engine:EngineCoreRequest": ("sampling_params", "prompt_token_ids"),
    "v1.engine.input_processor:InputProcessor": ("vllm_config", "model_config"),
    "v1.engine.llm_engine:LLMEngine": ("engine_core", "model_config", "vllm_config"),
    "v1.engine.core_client:EngineCoreClient": ("shutdown",),
    "v1.request:Request": ("sampling_params",),
    "sampling_params:SamplingParams": (
        "extra_args", "prompt_logprobs", "logprob_token_ids", "skip_reading_prefix_cache", "detokenize",
    ),
    "exceptions:VLLMValidationError": (),
}  # fmt: skip
"""Class -> attributes that its objects must have."""


def differences() -> list[str]:
    """What this vLLM lacks of `CALLS` and `OBJECTS`, in words; empty where it fits."""
    return [*_of(CALLS, _parameters, "takes no"), *_of(OBJECTS, _attributes, "has no")]


def _of(wanted: dict[str, tuple[str, ...]], names: Callable[[Any], set[str]], verb: str) -> Iterator[str]:
    for place, needed in wanted.items():
        module, _, path = place.partition(":")
        try:
            thing: Any = import_module(f"vllm.{module}")
            for part in path.split("."):
                thing = getattr(thing, part)
        except (ImportError, AttributeError):
            yield f"there is no vllm.{module}.{path}"
            continue
        if missing := sorted(set(needed) - names(thing)):
            yield f"{path} {verb} {', '.join(missing)}"


def _parameters(function: Any) -> set[str]:
    try:
        return set(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return set()


def _attributes(cls: Any) -> set[str]:
    """What objects of a class have: fields, properties, and what its constructor and those of its bases set."""
    found = set(dir(cls))
    if dataclasses.is_dataclass(cls):
        found |= {field.name for field in dataclasses.fields(cls)}
    for base in cls.__mro__:
        found |= set(vars(base).get("__annotations__", {}))
        code = getattr(inspect.unwrap(base.__init__), "__code__", None)
        found |= set(_stored(code)) if code else set()
    return found


def _stored(code: Any) -> Iterable[str]:
    """Names of the attributes that a constructor sets."""
    return (str(i.argval) for i in dis.get_instructions(code) if i.opname == "STORE_ATTR")

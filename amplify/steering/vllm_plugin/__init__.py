"""The vLLM plugin: attention heads a little wider, so that stock kernels steer them.

The algebra is that of `steering.attention`. vLLM calls `register` in each of its processes (entry point group
`vllm.general_plugins`). Nothing changes in an engine until `additional_config={"amplify_steering": {}}` switches it on,
or `{"layers": [3, 10]}` for these layers alone; then

- `Attention` allots each head of the KV cache the next width that its kernel supports; queries get the gate of their
  request, layer and head, keys get log(w)/scale, values nothing that counts; the output is cut back;
- before each forward pass the model runner (V1 or V2) lays these numbers out by request and position;
- the prefix cache keys blocks from the first token on whose attention changes;
- the front end refuses a request that does not fit, so that no bad one reaches a worker.

State belongs to an engine: it hangs on the engine's own layers. Buffers keep their addresses, so compiled graphs and
CUDA graphs read them as they are. Under tensor parallelism each rank takes the gates of its own heads.
"""

from __future__ import annotations

import inspect
from typing import Any

from amplify import engine_watch
from amplify.errors import CapabilityError
from amplify.steering.vllm_plugin.requests import extend_front_end, extend_prefix_cache
from amplify.steering.vllm_plugin.runners import extend_runners
from amplify.steering.vllm_plugin.widening import extend_attention

MISFIT = ""  # why this vLLM cannot be extended, if it cannot


def register() -> None:
    """Extend vLLM in this process; a second call does nothing."""
    global MISFIT
    engine_watch.watch()
    from vllm.logger import init_logger
    from vllm.model_executor.layers.attention.attention import Attention

    if hasattr(Attention, "amplify_bank"):
        return
    try:
        _check_signatures()
    except (ImportError, AttributeError, TypeError) as error:
        MISFIT = f"this version of vLLM cannot be extended for steering: {error}"
        init_logger("vllm.amplify").warning("amplify: %s", MISFIT)
        return
    Attention.amplify_bank = None
    extend_attention(Attention)
    extend_runners()
    extend_prefix_cache()
    extend_front_end()


def ready() -> None:
    """Make sure that engines started from this process will have the plugin.

    Raises:
        CapabilityError: this vLLM cannot be extended, or its processes would not load the plugin.
    """
    from importlib.metadata import entry_points

    from vllm import envs

    register()
    if MISFIT:
        raise CapabilityError(MISFIT)
    if not envs.VLLM_ENABLE_V1_MULTIPROCESSING:
        return
    own = [e for e in entry_points(group="vllm.general_plugins") if e.value.startswith(__name__)]
    if not own:
        raise CapabilityError("vLLM finds plugins through installed packages: pip install amplify-llm (or -e .) again")
    if envs.VLLM_PLUGINS is not None and own[0].name not in envs.VLLM_PLUGINS:
        raise CapabilityError(f"VLLM_PLUGINS leaves out {own[0].name!r}; add it")


def _check_signatures() -> None:
    """Everything that is replaced must take what we pass on."""
    from vllm.model_executor.layers.attention.attention import Attention
    from vllm.v1.core import kv_cache_utils
    from vllm.v1.engine.input_processor import InputProcessor
    from vllm.v1.worker.gpu import model_states
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    wanted: list[tuple[Any, tuple[str, ...]]] = [
        (Attention.__init__, ("num_heads", "head_size", "scale", "num_kv_heads", "logits_soft_cap", "prefix")),
        (Attention.forward, ("query", "key", "value", "output_shape", "output_dtype")),
        (GPUModelRunner._model_forward, ("input_ids", "positions")),
        (kv_cache_utils.generate_block_hash_extra_keys, ("request", "start_token_idx", "end_token_idx")),
        (InputProcessor.process_inputs, ("request_id", "prompt", "params")),
        (model_states.resolve_model_state_cls, ("vllm_config", "model")),
        (model_states.ModelState.add_request, ("req_index", "new_req_data")),
        (model_states.ModelState.remove_request, ("req_id",)),
        (model_states.ModelState.prepare_inputs, ("input_batch", "req_states")),
    ]
    for function, names in wanted:
        missing = set(names) - set(inspect.signature(function).parameters)
        if missing:
            raise TypeError(f"{function.__qualname__} takes no {', '.join(sorted(missing))}")

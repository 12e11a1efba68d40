"""The vLLM plugin: attention heads a little wider, so that stock kernels steer them.

The algebra is that of `steering.attention`. vLLM calls `register` in each of its processes (entry point group
`vllm.general_plugins`). It sets a look-out in three constructors that are given the engine's configuration, one for
each kind of process, and nothing else: an engine runs as it would without amplify until
`additional_config={"amplify_steering": {}}` switches steering on, or `{"layers": [3, 10]}` for these layers alone. Then

- `Attention` allots each head of the KV cache the next width that its kernel supports; queries get the gate of their
  request, layer and head, keys get log(w)/scale, values nothing that counts; the output is cut back;
- before each forward pass the model runner (V1 or V2) lays these numbers out by request and position;
- the prefix cache keys blocks from the first token on whose attention changes;
- the front end refuses a request that does not fit, so that no bad one reaches a worker.

A vLLM whose inside is another one is refused there and then, by what differs (`fitting`).

State belongs to an engine: it hangs on the engine's own layers. Buffers keep their addresses, so compiled graphs and
CUDA graphs read them as they are. Under tensor parallelism each rank takes the gates of its own heads.
"""

from __future__ import annotations

import functools
from typing import Any

from amplify import engine_watch
from amplify.errors import CapabilityError
from amplify.steering.vllm_plugin.fitting import differences
from amplify.steering.vllm_plugin.options import enabled
from amplify.steering.vllm_plugin.requests import extend_front_end, extend_prefix_cache
from amplify.steering.vllm_plugin.runners import extend_runners
from amplify.steering.vllm_plugin.widening import extend_attention

_MARK = "amplify_looks"  # on a constructor with a look-out


def register() -> None:
    """Look out for engines that are to steer, in this process; a second call does nothing."""
    engine_watch.watch()
    from vllm.logger import init_logger

    try:
        _look_out()
    except (ImportError, AttributeError) as error:
        init_logger("vllm.amplify").warning("amplify: this version of vLLM cannot be extended for steering: %s", error)


def ready() -> None:
    """Make sure that engines started from this process will have the plugin.

    Raises:
        CapabilityError: this vLLM cannot be extended, or its processes would not load the plugin.
    """
    from importlib.metadata import entry_points

    from vllm import envs

    register()
    extend()
    if not envs.VLLM_ENABLE_V1_MULTIPROCESSING:
        return
    own = [e for e in entry_points(group="vllm.general_plugins") if e.value.startswith(__name__)]
    if not own:
        raise CapabilityError("vLLM finds plugins through installed packages: pip install amplify-llm (or -e .) again")
    if envs.VLLM_PLUGINS is not None and own[0].name not in envs.VLLM_PLUGINS:
        raise CapabilityError(f"VLLM_PLUGINS leaves out {own[0].name!r}; add it")


@functools.cache
def extend() -> None:
    """Extend vLLM in this process.

    Raises:
        CapabilityError: this vLLM is another one inside than steering was written for.
    """
    if differ := differences():
        raise CapabilityError(f"this version of vLLM cannot be extended for steering: {'; '.join(differ)}")
    from vllm.model_executor.layers.attention.attention import Attention

    Attention.amplify_bank = None
    extend_attention(Attention)
    extend_runners()
    extend_prefix_cache()
    extend_front_end()


def _look_out() -> None:
    """Have the front end, the engine and each worker extend vLLM where their configuration asks for it."""
    from vllm.v1.engine.input_processor import InputProcessor
    from vllm.v1.executor.abstract import Executor
    from vllm.v1.worker.worker_base import WorkerBase

    doors: tuple[Any, ...] = (InputProcessor, Executor, WorkerBase)
    for door in doors:
        if not hasattr(door.__init__, _MARK):
            door.__init__ = _looking(door.__init__)


def _looking(plain: Any) -> Any:
    @functools.wraps(plain)
    def init(self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        if enabled(vllm_config):
            extend()
        plain(self, vllm_config, *args, **kwargs)

    setattr(init, _MARK, True)
    return init

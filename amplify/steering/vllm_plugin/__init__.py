"""The vLLM plugin: attention heads a little wider, so that stock kernels steer them.

The algebra is that of `steering.attention`. vLLM calls `register` in each of its processes (entry point group
`vllm.general_plugins`). It sets a look-out in three constructors that are given the engine's configuration, one for
each kind of process, and nothing else: an engine runs as it would without amplify until
`additional_config={"amplify_steering": {}}` switches steering on, or `{"layers": [3, 10]}` for these layers alone. Then

- `Attention` allots each head of the KV cache the next width that its kernel supports; queries get the gate of their
  request, layer and head, keys get log(w)/scale, values nothing that counts; the output is cut back;
- or, with `{"projections": FILE}`, nothing is wider, and marked tokens' keys are edited as they are made (`keys`);
- before each forward pass the model runner (V1 or V2) lays these numbers out by request and position;
- the prefix cache keys blocks from the first token on whose attention changes;
- the front end refuses an engine in which steering would not be exact (`refusing`), and a request that does not fit,
  so that no bad one reaches a worker.

A vLLM whose inside is another one is refused there and then, by what differs (`fitting`).

State belongs to an engine: it hangs on the engine's own layers. Buffers keep their addresses, so compiled graphs and
CUDA graphs read them as they are. Under tensor parallelism each rank takes the gates of its own heads.
"""

from __future__ import annotations

import difflib
import functools
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from amplify.errors import CapabilityError, InputError
from amplify.steering.payload import KEY, check_edit, enabled, layers_of, steering_of
from amplify.steering.spec import resolve
from amplify.steering.vllm_plugin.fitting import differences
from amplify.steering.vllm_plugin.keys import extend_loading
from amplify.steering.vllm_plugin.layers import extend_attention, extend_runners
from amplify.steering.vllm_plugin.refusing import check_engine

_MARK = "amplify_looks"  # on a constructor with a look-out


def register() -> None:
    """Look out for engines that are to steer, in this process; a second call does nothing."""
    watch()
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

    Attention.amplify_buffers = None
    extend_attention(Attention)
    extend_loading()
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
            door.__init__ = looking(door.__init__)


def looking(plain: Any) -> Any:
    """A constructor that extends vLLM, and refuses an engine, where its configuration asks for steering."""

    @functools.wraps(plain)
    def init(self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        if enabled(vllm_config):
            extend()
            check_engine(vllm_config)
        plain(self, vllm_config, *args, **kwargs)

    setattr(init, _MARK, True)
    return init


def extend_prefix_cache() -> None:
    """Key the blocks of a steered prompt from the first token on whose attention changes."""
    from vllm.v1.core import kv_cache_utils

    plain = kv_cache_utils.generate_block_hash_extra_keys

    def extra_keys(request: Any, start_token_idx: int, end_token_idx: int, start_mm_idx: int) -> Any:
        keys, mm = plain(request, start_token_idx, end_token_idx, start_mm_idx)
        wanted = steering_of(request.sampling_params)
        if wanted is not None and end_token_idx > wanted.first:
            keys = (*(keys or ()), (KEY, wanted.digest))
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
            refuse_misspelt(request.sampling_params)
            wanted = steering_of(request.sampling_params)
            if wanted is not None:
                if request.prompt_token_ids is None:
                    raise InputError("steering needs a prompt of token ids, not of embeddings")
                text = self.model_config.hf_text_config
                wanted.check(text.num_hidden_layers, text.num_attention_heads, len(request.prompt_token_ids))
                named = resolve(wanted.heads, text.num_hidden_layers, text.num_attention_heads)
                if wanted.edit is not None:
                    check_edit(wanted.edit, self.vllm_config)
                elif closed := named.keys() - layers_of(self.vllm_config):
                    raise InputError(f"this engine was not started to steer layer {min(closed)}: see its option layers")
        except InputError as error:
            raise VLLMValidationError(f"{KEY}: {error}", parameter="vllm_xargs") from error
        return request

    InputProcessor.process_inputs = process_inputs


def refuse_misspelt(sampling_params: Any) -> None:
    """Refuse an argument that is meant for us and is not: vLLM would ignore it, and the request would go unsteered.

    Raises:
        InputError: a name of ours, or nearly the one that we know.
    """
    for name in getattr(sampling_params, "extra_args", None) or {}:
        ours = name.startswith("amplify") or difflib.get_close_matches(name, [KEY], cutoff=0.8)
        if name != KEY and ours:
            raise InputError(f"there is no argument {name!r}: did you mean {KEY!r}?")


OWNER = "AMPLIFY_ENGINE_OWNER"
"""Environment variable: the process whose engines end with it."""
_LOOKS = 1.0  # seconds between two looks


@contextmanager
def owning(**variables: str) -> Iterator[None]:
    """Engines that this process starts inside the block end with it.

    Args:
        **variables: of the environment, for these engines alone; those that are set stay as they are.
    """
    given = {OWNER: str(os.getpid()), **{name: os.environ.get(name, value) for name, value in variables.items()}}
    before = {name: os.environ.get(name) for name in given}
    os.environ.update(given)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def watch(patience: float = 5.0) -> None:
    """In a process that an owner of engines started: end when the owner does. In any other process, nothing.

    Args:
        patience: seconds for an orderly end.
    """
    parent = multiprocessing.parent_process()
    if parent is not None and os.environ.get(OWNER) == str(parent.pid):
        threading.Thread(
            target=_end_after, args=(parent.pid, patience), daemon=True, name="amplify-engine-watch"
        ).start()


def _end_after(parent: int | None, patience: float) -> None:
    while os.getppid() == parent:  # an orphan gets another parent
        time.sleep(_LOOKS)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(patience)
    os.kill(os.getpid(), signal.SIGKILL)

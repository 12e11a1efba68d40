"""What the plugin does to vLLM: nothing before an engine asks for steering, nor to a vLLM that it does not know."""

import os
import subprocess
import sys
import textwrap
from contextlib import suppress
from types import SimpleNamespace

import pytest

from amplify.errors import CapabilityError, InputError
from amplify.steering import payload, vllm_plugin
from amplify.steering.payload import KEY
from amplify.steering.vllm_plugin import fitting

pytest.importorskip("vllm")

LOOK = textwrap.dedent(
    """
    from types import SimpleNamespace
    from vllm.model_executor.layers.attention.attention import Attention
    from vllm.v1.core import block_pool, kv_cache_utils
    from vllm.v1.engine.input_processor import InputProcessor
    from vllm.v1.executor.abstract import Executor
    from vllm.v1.worker.gpu import model_states
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner
    from vllm.v1.worker.worker_base import WorkerBase
    from amplify.steering.vllm_plugin import register

    def inside():
        return {
            "attention": Attention.__init__, "forward": Attention.forward,
            "buffers": getattr(Attention, "amplify_buffers", 0),
            "runner": GPUModelRunner._model_forward, "states": model_states.resolve_model_state_cls,
            "front": InputProcessor.process_inputs, "keys": kv_cache_utils.generate_block_hash_extra_keys,
            "pool": block_pool.generate_block_hash_extra_keys,
        }

    stock = inside()
    register()
    register()
    doors = {"front": InputProcessor, "engine": Executor, "worker": WorkerBase}
    plain = {name: door.__init__.__wrapped__ for name, door in doors.items()}
    assert not any(hasattr(init, "amplify_looks") for init in plain.values())  # one look-out each
    for switch in ({}, {"other": 1}):
        for door in doors.values():
            try:
                door.__init__(SimpleNamespace(), SimpleNamespace(additional_config=switch))
            except Exception:
                pass  # a configuration that holds nothing else: the plain constructor was reached
    print("untouched" if inside() == stock else "touched", flush=True)
    try:
        DOOR.__init__(SimpleNamespace(), vllm_config=SimpleNamespace(additional_config={"amplify_steering": {}}))
    except (AttributeError, TypeError):
        pass  # it holds nothing else
    now = inside()
    print(sorted(name for name in stock if now[name] is not stock[name]), flush=True)
    """
)


@pytest.mark.parametrize("door", ["InputProcessor", "Executor", "WorkerBase"])
def test_nothing_of_vllm_changes_before_a_process_meets_an_engine_that_steers(door):
    code = LOOK.replace("DOOR", door)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "VLLM_LOGGING_LEVEL": "ERROR"}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    untouched, touched = [line for line in done.stdout.splitlines() if "touched" in line or line.startswith("[")]
    assert untouched == "untouched"
    assert touched == "['attention', 'buffers', 'forward', 'front', 'keys', 'pool', 'runner', 'states']"


def test_the_vllm_at_hand_fits():
    assert fitting.differences() == []
    vllm_plugin.extend()
    assert fitting.differences() == []  # also once it is extended


@pytest.mark.parametrize(
    ("table", "place", "name", "said"),
    [
        ("OBJECTS", "config:ParallelConfig", "use_microbatches", "ParallelConfig has no use_microbatches"),
        ("OBJECTS", "v1.utils:CpuGpuBuffer", "numpy_view", "CpuGpuBuffer has no numpy_view"),
        ("OBJECTS", "v1.worker.gpu_model_runner:GPUModelRunner", "batch", "GPUModelRunner has no batch"),
        ("OBJECTS", "v1.nowhere:Thing", "batch", "there is no vllm.v1.nowhere.Thing"),
        ("CALLS", "v1.attention.selector:get_attn_backend", "block_size", "get_attn_backend takes no block_size"),
    ],
)
def test_another_vllm_is_refused_at_the_start_by_what_differs(table, place, name, said, monkeypatch):
    monkeypatch.setitem(getattr(fitting, table), place, (name,))
    with pytest.raises(CapabilityError, match=f"cannot be extended for steering: {said}"):
        vllm_plugin.extend.__wrapped__()
    init = vllm_plugin.looking(lambda self, vllm_config: None)
    init(None, SimpleNamespace(additional_config={}))  # an engine that does not steer is not concerned
    vllm_plugin.extend.cache_clear()
    with pytest.raises(CapabilityError, match=said):
        init(None, SimpleNamespace(additional_config={KEY: {}}))


@pytest.mark.parametrize(
    "name", ["amplify_stering", "amplify-steering", "amplify", "ampify_steering", "Amplify_steering"]
)
def test_a_misspelt_argument_is_refused(name):
    with pytest.raises(InputError, match=f"did you mean '{KEY}'"):
        vllm_plugin.refuse_misspelt(SimpleNamespace(extra_args={name: "{}"}))
    vllm_plugin.refuse_misspelt(SimpleNamespace(extra_args={"kv_transfer_params": "{}", KEY: "{}"}))
    vllm_plugin.refuse_misspelt(SimpleNamespace(extra_args=None))
    assert payload.enabled(SimpleNamespace(additional_config={KEY: {}}))


def test_variables_of_an_engine_are_set_for_it_alone(monkeypatch):
    monkeypatch.setenv("VLLM_USE_AOT_COMPILE", "1")
    monkeypatch.delenv("VLLM_LOGGING_LEVEL", raising=False)
    before = dict(os.environ)
    with suppress(RuntimeError), vllm_plugin.owning(VLLM_LOGGING_LEVEL="ERROR", VLLM_USE_AOT_COMPILE="0"):
        assert os.environ["VLLM_LOGGING_LEVEL"] == "ERROR"
        assert os.environ["VLLM_USE_AOT_COMPILE"] == "1"  # the user's own
        assert os.environ[vllm_plugin.OWNER] == str(os.getpid())
        raise RuntimeError
    assert dict(os.environ) == before

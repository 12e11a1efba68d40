"""Which engines steer exactly, and which are refused at their start: configurations alone, no engine."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from amplify.errors import InputError
from amplify.steering.payload import KEY
from amplify.steering.vllm_plugin.refusing import REFUSALS, check_engine

pytest.importorskip("vllm")


def config(options=None, **changes):
    """What of a VllmConfig is looked at, as vLLM sets it unless something else is asked for."""
    parts = {
        "": {"speculative_config": None, "kv_transfer_config": None, "lora_config": None, "quant_config": None,
             "additional_config": {KEY: options or {}}},
        "parallel_config": {"use_ubatching": False, "prefill_context_parallel_size": 1, "tensor_parallel_size": 1},
        "cache_config": {"cache_dtype": "auto"},
        "model_config": {"use_mla": False, "is_hybrid": False, "is_attention_free": False, "runner_type": "generate",
                         "dtype": "torch.bfloat16",
                         "hf_text_config": SimpleNamespace(num_hidden_layers=4)},
        "scheduler_config": {"enable_chunked_prefill": True},
    }  # fmt: skip
    for name, value in changes.items():
        part, _, field = name.rpartition("__")
        assert field in parts[part], name
        parts[part][field] = value
    return SimpleNamespace(**parts.pop(""), **{name: SimpleNamespace(**fields) for name, fields in parts.items()})


REFUSED = {
    "speculative decoding": [{"speculative_config": SimpleNamespace(method="ngram")}],
    "micro-batching": [{"parallel_config__use_ubatching": True}],
    "prefill context parallelism": [{"parallel_config__prefill_context_parallel_size": 2}],
    "a key/value cache of another dtype": [
        {"cache_config__cache_dtype": dtype}
        for dtype in (
            "fp8",
            "fp8_e5m2",
            "fp8_per_token_head",
            "nvfp4",
            "int8_per_token_head",
            "ultraquant_4bit",
            "float16",
        )
    ],
    "a key/value store outside the engine": [{"kv_transfer_config": SimpleNamespace(kv_connector="LMCache")}],
    "latent attention": [{"model_config__use_mla": True}],
    "layers without attention": [{"model_config__is_hybrid": True}, {"model_config__is_attention_free": True}],
    "a model for pooling": [{"model_config__runner_type": "pooling"}],
}


def test_every_refusal_has_its_case():
    assert REFUSED.keys() == REFUSALS.keys()


@pytest.mark.parametrize(("what", "change"), [(what, change) for what, some in REFUSED.items() for change in some])
def test_what_is_refused(what, change):
    with pytest.raises(InputError, match=f"steering and {what} cannot be combined: .{{20,}}"):
        check_engine(config(**change))
    check_engine(config())


@pytest.mark.parametrize(
    "change",
    [
        {"lora_config": SimpleNamespace(max_loras=4)},
        *[{"quant_config": SimpleNamespace(get_name=lambda name=name: name)} for name in ("awq", "gptq", "fp8")],
        {"parallel_config__tensor_parallel_size": 4},
        {"scheduler_config__enable_chunked_prefill": False},
        {"cache_config__cache_dtype": "bfloat16"},
    ],
)
def test_what_leaves_steering_exact_is_started(change):
    check_engine(config(**change))


def test_the_layers_asked_for_are_looked_at():
    check_engine(config({"layers": [0, 3]}))
    with pytest.raises(InputError, match="from 0 to 3"):
        check_engine(config({"layers": [4]}))

"""What an engine was started with, and what a request asks for."""

from __future__ import annotations

from typing import Any

from amplify.errors import InputError
from amplify.steering.payload import KEY, Payload, parse


def enabled(vllm_config: Any) -> bool:
    """Whether an engine was started for steering."""
    return isinstance(vllm_config.additional_config, dict) and vllm_config.additional_config.get(KEY) is not None


def layers_of(vllm_config: Any) -> set[int]:
    """The layers that an engine was started to steer.

    Raises:
        InputError: the option is malformed, or names a layer that the model does not have.
    """
    there = range(vllm_config.model_config.hf_text_config.num_hidden_layers)
    options = vllm_config.additional_config[KEY]
    if not isinstance(options, dict) or options.keys() - {"layers"}:
        raise InputError(f'{KEY} takes {{}} or {{"layers": [0, 1, …]}}, got {options!r}')
    layers = options.get("layers", list(there))
    if not isinstance(layers, list) or not layers or not all(type(i) is int and i in there for i in layers):
        raise InputError(f"layers is a list of layers from {there[0]} to {there[-1]}, got {layers!r}")
    return set(layers)


def asked(sampling_params: Any) -> Payload | None:
    """What a request asks for, if it does.

    Raises:
        InputError: it cannot be read.
    """
    given = (getattr(sampling_params, "extra_args", None) or {}).get(KEY)
    if given is None:
        return None
    if not isinstance(given, str):
        raise InputError(f"not a string of JSON but {type(given).__name__}")
    return parse(given)

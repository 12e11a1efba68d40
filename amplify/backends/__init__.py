"""Ways to reach a model: `transformers:`, `vllm:`, `openai:`, `scripted:`, and those that are registered."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import Parameter, getattr_static, signature
from types import NoneType
from typing import Any, get_args, get_type_hints

from amplify.backends.base import Generator, Scorer, Usage, WhiteBox, need_scorer, need_white_box
from amplify.backends.simple import SimpleModel
from amplify.errors import InputError, UnknownNameError, extras
from amplify.registry import Table, register

__all__ = [
    "MODELS",
    "Generator",
    "Scorer",
    "SimpleModel",
    "Usage",
    "WhiteBox",
    "need_scorer",
    "need_white_box",
    "open_backend",
]


Opens = Callable[..., Generator]


def _adopt(name: str, value: Any) -> Opens:
    if not callable(value):
        raise InputError(f"the model {name!r} is a class or function of a model's name and options, not {value!r}")
    return value


MODELS: Table[Opens] = Table("model", _adopt)
"""What stands before the colon of a model's id -> what opens it: (what stands behind, **options) -> model."""


@extras()
def open_backend(spec: str, **options: Any) -> Generator:
    """Open a backend.

    Args:
        spec: "transformers:MODEL", "vllm:MODEL", "openai:MODEL@URL" or "scripted:NAME". MODEL is an alias
            (`amplify list models`), a hub id or a folder.
        **options: engine options by keyword, checked by the backend (e.g. dtype="float32", max_model_len=2048).

    Raises:
        UnknownNameError: no such kind of backend, model or option.
        InputError: a malformed spec, or an option's value of another type.
        MissingExtraError: the package behind it is not installed.
    """
    kind, colon, rest = spec.partition(":")
    if not colon or not rest:
        raise InputError(f"a backend is written KIND:MODEL, e.g. transformers:smollm2-135m, got {spec!r}")
    opens = MODELS.find(kind)
    _check(opens, options)
    model: Any = opens(rest, **options)
    if isinstance(model, SimpleModel):
        model.spec = spec
    if not isinstance(model, Generator):
        lacks = [name for name in _MEMBERS if not hasattr(model, name)]
        raise InputError(f"what opens {kind}: gives {model!r}, which is no language model: it lacks {', '.join(lacks)}")
    return model


_MEMBERS = ("spec", "usage", "max_context", "generate", "count_tokens", "describe", "close", "__enter__", "__exit__")


# each imported when it is asked for, so that one does not load another's framework


@register("model", "transformers")
def _transformers(name: str, **options: Any) -> Generator:
    """A model of this process, by alias, hub id or folder."""
    from amplify.backends.transformers import TransformersModel

    _check(TransformersModel.load, options)
    return TransformersModel.load(name, **options)


@register("model", "vllm")
def _vllm(name: str, **options: Any) -> Generator:
    """A vLLM engine started by this process, by alias, hub id or folder."""
    from amplify.backends.vllm import VLLMBackend

    return VLLMBackend(name, **options)


@register("model", "openai")
def _openai(name: str, **options: Any) -> Generator:
    """A model behind an OpenAI-compatible server: openai:MODEL@URL."""
    from amplify.backends.openai import OpenAIBackend, connect

    _check(OpenAIBackend, options)
    return connect(name, **options)


@register("model", "scripted")
def _scripted(name: str, **options: Any) -> Generator:
    """Answers by a rule, for trying things out."""
    from amplify.backends.scripted import ScriptedBackend

    _check(ScriptedBackend, options)
    return ScriptedBackend(name, **options)


def _check(opens: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Options are keywords of what opens the backend, of its types; one that takes any checks them itself."""
    parameters = signature(opens).parameters.values()
    if any(p.kind is Parameter.VAR_KEYWORD for p in parameters):
        return
    known = {p.name for p in parameters if p.kind is Parameter.KEYWORD_ONLY}
    constructor = getattr_static(opens, "__init__") if isinstance(opens, type) else opens
    hints = get_type_hints(constructor)
    for name, value in options.items():
        if name not in known:
            raise UnknownNameError("backend option", name, known)
        wanted = hints.get(name, object)
        kinds = set(get_args(wanted)) or {wanted}
        given = float if type(value) is int and float in kinds else type(value)
        if kinds <= {bool, int, float, str, NoneType} and given not in kinds:
            said = " or ".join(sorted(kind.__name__ for kind in kinds - {NoneType}))
            raise InputError(f"backend option {name} is of type {said}, not {value!r}")

"""Ways to reach a model: `transformers:`, `vllm:`, `openai:`, `scripted:`, `ray:`, and those that are registered."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from inspect import Parameter, getattr_static, signature
from types import NoneType
from typing import Any, get_args, get_type_hints

from amplify.errors import InputError, UnknownNameError, extras
from amplify.models.base import (
    LanguageModel,
    LocalModel,
    ScoringModel,
    SimpleModel,
    Spread,
    Tokenized,
    Usage,
    need_local,
    need_scoring,
)
from amplify.models.cache import Cache
from amplify.models.cached import cached
from amplify.registry import Table, register

__all__ = [
    "MODELS",
    "Cache",
    "LanguageModel",
    "LocalModel",
    "ScoringModel",
    "SimpleModel",
    "Spread",
    "Tokenized",
    "Usage",
    "cached",
    "load_model",
    "need_local",
    "need_scoring",
    "opened",
]


Opens = Callable[..., LanguageModel]


def _adopt(name: str, value: Any) -> Opens:
    if not callable(value):
        raise InputError(f"the model {name!r} is a class or function of a model's name and options, not {value!r}")
    return value


MODELS: Table[Opens] = Table("model", _adopt)
"""What stands before the colon of a model's id -> what opens it: (what stands behind, **options) -> model."""


@extras()
def load_model(name: str, **options: Any) -> LanguageModel:
    """Open a model.

    Args:
        name: "transformers:MODEL", "vllm:MODEL", "openai:MODEL@URL" or "scripted:NAME", or "ray:N×" before one of
            these for N workers. MODEL is an alias (`amplify list models`), a hub id or a folder.
        **options: engine options by keyword, checked by the model (e.g. dtype="float32", max_model_len=2048).

    Raises:
        UnknownNameError: no such kind of model, model or option.
        InputError: a malformed spec, or an option's value of another type.
        MissingExtraError: the package behind it is not installed.

    Example:
        >>> model = amplify.load_model("scripted:say=Paris")
        >>> model.generate([amplify.Prompt(text="The capital of France:")], amplify.Sampling(max_tokens=4))[0].text
        'Paris'
    """
    kind, colon, rest = name.partition(":")
    if not colon or not rest:
        raise InputError(f"a model is written KIND:MODEL, e.g. transformers:smollm2-135m, got {name!r}")
    opens = MODELS.find(kind)
    _check(options, opens)
    model: Any = opens(rest, **options)
    if isinstance(model, SimpleModel):
        model.id = name
    if not isinstance(model, LanguageModel):
        lacks = [name for name in _MEMBERS if not hasattr(model, name)]
        raise InputError(f"what opens {kind}: gives {model!r}, which is no language model: it lacks {', '.join(lacks)}")
    return model


@contextmanager
def opened(model: LanguageModel | str, **options: Any) -> Iterator[LanguageModel]:
    """A model that is open, or the id that opens one for as long as the block lasts.

    Raises:
        InputError: it is neither. Else see `load_model`.

    Example:
        >>> with opened("scripted:say=yes") as model:
        ...     model.id
        'scripted:say=yes'
    """
    if isinstance(model, str):
        with load_model(model, **options) as fresh:
            yield fresh
        return
    if not isinstance(model, LanguageModel):
        raise InputError(f"model is an open model, or the id that opens one, not {model!r}")
    yield model


_MEMBERS = ("id", "usage", "max_context", "generate", "count_tokens", "describe", "close", "__enter__", "__exit__")


# each imported when it is asked for, so that one does not load another's framework


@register("model", "transformers")
def _transformers(name: str, **options: Any) -> LanguageModel:
    """A model of this process, by alias, hub id or folder."""
    from amplify.models.transformers import LoadOptions, TransformersModel

    _check(options, LoadOptions)
    return TransformersModel.load(name, LoadOptions(**options))


@register("model", "vllm")
def _vllm(name: str, **options: Any) -> LanguageModel:
    """A vLLM engine started by this process, by alias, hub id or folder."""
    from amplify.models.vllm import VLLMModel

    return VLLMModel(name, **options)


@register("model", "openai")
def _openai(name: str, **options: Any) -> LanguageModel:
    """A model behind an OpenAI-compatible server: openai:MODEL@URL."""
    from amplify.models.openai import Connection, OpenAIModel, connect

    _check(options, OpenAIModel, Connection, without="connection")
    return connect(name, **options)


@register("model", "scripted")
def _scripted(name: str, **options: Any) -> LanguageModel:
    """Answers by a rule, for trying things out."""
    from amplify.models.scripted import ScriptedModel

    _check(options, ScriptedModel)
    return ScriptedModel(name, **options)


@register("model", "ray")
def _ray(name: str, **options: Any) -> LanguageModel:
    """A model on N workers of a Ray cluster: ray:N×KIND:MODEL."""
    from amplify.models.ray import Cluster, connect

    own = {field.name: options.pop(field.name) for field in fields(Cluster) if field.name in options}
    _check(own, Cluster)
    return connect(name, Cluster(**own), options)


def _check(options: Mapping[str, Any], *opens: Callable[..., Any], without: str = "") -> None:
    """Options are keywords of what opens the model, of its types; one that takes any checks them itself."""
    hints: dict[str, Any] = {}
    for one in opens:
        parameters = signature(one).parameters.values()
        if any(p.kind is Parameter.VAR_KEYWORD for p in parameters):
            return
        typed = get_type_hints(getattr_static(one, "__init__") if isinstance(one, type) else one)
        named = [p.name for p in parameters if p.kind is Parameter.KEYWORD_ONLY and p.name != without]
        hints |= {name: typed.get(name, object) for name in named}
    for name, value in options.items():
        if name not in hints:
            raise UnknownNameError("model option", name, hints)
        kinds = set(get_args(hints[name])) or {hints[name]}
        given = float if type(value) is int and float in kinds else type(value)
        if kinds <= {bool, int, float, str, NoneType} and given not in kinds:
            said = " or ".join(sorted(kind.__name__ for kind in kinds - {NoneType}))
            raise InputError(f"model option {name} is of type {said}, not {value!r}")

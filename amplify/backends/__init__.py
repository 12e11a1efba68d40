"""Ways to reach a model: `transformers:`, `vllm:`, `openai:` and `scripted:`."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import Parameter, signature
from types import NoneType
from typing import Any, get_args, get_type_hints

from amplify.backends.base import Generator, Scorer, Usage, WhiteBox, need_scorer, need_white_box
from amplify.errors import InputError, UnknownNameError, extras

__all__ = ["Generator", "Scorer", "Usage", "WhiteBox", "need_scorer", "need_white_box", "open_backend"]

KINDS = ("transformers", "vllm", "openai", "scripted")


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
    # imported here so that one backend does not load another's framework
    if kind == "transformers":
        from amplify.backends.transformers import TransformersBackend

        _check(TransformersBackend, options)
        return TransformersBackend(rest, **options)
    if kind == "vllm":
        from amplify.backends.vllm import VLLMBackend

        return VLLMBackend(rest, **options)
    if kind == "openai":
        from amplify.backends.openai import OpenAIBackend, connect

        _check(OpenAIBackend, options)
        return connect(rest, **options)
    if kind == "scripted":
        from amplify.backends.scripted import ScriptedBackend

        _check(ScriptedBackend, options)
        return ScriptedBackend(rest, **options)
    raise UnknownNameError("backend", kind, KINDS)


def _check(backend: type[Generator], options: Mapping[str, Any]) -> None:
    """Options are keywords of the backend, of its types (vLLM checks its own engine arguments)."""
    known = {p.name for p in signature(backend).parameters.values() if p.kind is Parameter.KEYWORD_ONLY}
    hints = get_type_hints(backend.__init__)
    for name, value in options.items():
        if name not in known:
            raise UnknownNameError("backend option", name, known)
        kinds = set(get_args(hints[name])) or {hints[name]}
        given = float if type(value) is int and float in kinds else type(value)
        if kinds <= {bool, int, float, str, NoneType} and given not in kinds:
            wanted = " or ".join(sorted(kind.__name__ for kind in kinds - {NoneType}))
            raise InputError(f"backend option {name} is of type {wanted}, not {value!r}")

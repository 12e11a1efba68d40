"""Ways to reach a model: `transformers:`, `vllm:`, `openai:` and `scripted:`."""

from __future__ import annotations

from typing import Any

from amplify.backends.base import Generator, Scorer, Usage, WhiteBox, need_scorer, need_white_box
from amplify.errors import InputError, UnknownNameError

__all__ = ["Generator", "Scorer", "Usage", "WhiteBox", "need_scorer", "need_white_box", "open_backend"]

KINDS = ("transformers", "vllm", "openai", "scripted")


def open_backend(spec: str, **options: Any) -> Generator:
    """Open a backend.

    Args:
        spec: "transformers:MODEL", "vllm:MODEL", "openai:MODEL@URL" or "scripted:NAME". MODEL is an alias
            (`amplify list models`), a hub id or a folder.
        **options: engine options by keyword, checked by the backend (e.g. dtype="float32", max_model_len=2048).

    Raises:
        UnknownNameError: no such kind of backend or model.
        InputError: a malformed spec.
        MissingExtraError: the package behind it is not installed.
    """
    kind, colon, rest = spec.partition(":")
    if not colon or not rest:
        raise InputError(f"a backend is written KIND:MODEL, e.g. transformers:smollm2-135m, got {spec!r}")
    # imported here so that one backend does not load another's framework
    if kind == "transformers":
        from amplify.backends.transformers import TransformersBackend

        return TransformersBackend(rest, **options)
    if kind == "vllm":
        from amplify.backends.vllm import VLLMBackend

        return VLLMBackend(rest, **options)
    if kind == "openai":
        from amplify.backends.openai import connect

        return connect(rest, **options)
    if kind == "scripted":
        from amplify.backends.scripted import ScriptedBackend

        return ScriptedBackend(rest, **options)
    raise UnknownNameError("backend", kind, KINDS)

"""Methods inside methods: an option that names one, as records name it, e.g. `few_shot[shots=4]`."""

from __future__ import annotations

from amplify.errors import InputError
from amplify.methods.base import Method, Mode


def inner_method(label: str, mode: Mode) -> Method:
    """The method of a label.

    Args:
        label: NAME or NAME[OPTION=VALUE,...].
        mode: "generate" or "score".

    Raises:
        UnknownNameError: no such method or option.
        InputError: a label of another shape, or a value that the option cannot take.
    """
    from amplify.methods import make

    name, bracket, rest = label.partition("[")
    pairs = [part.partition("=") for part in rest.removesuffix("]").split(",") if part]
    if (bracket and not rest.endswith("]")) or not all(equals and value for _, equals, value in pairs):
        raise InputError(f"a method inside another is written NAME or NAME[OPTION=VALUE,...], not {label!r}")
    return make(name.strip(), mode=mode, **{option.strip(): value.strip() for option, _, value in pairs})

"""One way between dataclasses and plain JSON, and one check of JSON that came from a file: `encode`, `decode`, `parse`.

What is saved is what a class's fields say, and what is loaded must be what they say: a value of another kind, a missing
or an unknown key is one `DataError` that names the place, e.g. "shots[3].example.text is a list, wanted text".
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from amplify.errors import AmplifyError, DataError

T = TypeVar("T")
MOST_DEPTH = 64
MOST_VALUES = 10**7
MOST_LINE = 2**26
_WORDS = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}  # numbers that JSON does not have
_KINDS: dict[type, str] = {
    str: "text", bool: "true or false", int: "a whole number", float: "a number", list: "a list", dict: "an object",
    type(None): "null",
}  # fmt: skip
_own: dict[type, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {}


def register(kind: type[T], to_json: Callable[[T], Any], from_json: Callable[[Any], T]) -> None:
    """Give a class a form of its own, where its fields alone are not what is to be saved.

    Args:
        kind: the class.
        to_json: an object of it as JSON values.
        from_json: the inverse; raises an AmplifyError where the values make no sense.
    """
    _own[kind] = to_json, from_json


def parse(text: str | bytes) -> Any:
    """JSON with limits.

    Raises:
        DataError: not UTF-8, not JSON, nested too deeply, or a number that a float or a 64-bit integer does not hold.
    """
    try:
        value = json.loads(text.decode("utf-8") if isinstance(text, bytes) else text, parse_constant=_no_constant)
    except RecursionError:
        raise DataError(f"it is nested more than {MOST_DEPTH} deep") from None
    except UnicodeDecodeError as error:
        raise DataError(f"it is not UTF-8 text (byte {error.start})") from None
    except ValueError as error:
        raise DataError(f"it is not JSON ({error})") from None
    check(value)
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def check(value: Any) -> None:
    """Hold plain values to the limits of `parse`, wherever they were read from.

    Raises:
        DataError: too deep, too many, or a number that is too large.
    """
    level, depth, count = [value], 0, 0
    while level:
        depth, count = depth + 1, count + len(level)
        if count > MOST_VALUES:
            raise DataError(f"it holds more than {MOST_VALUES:,} values")
        if depth > MOST_DEPTH:
            raise DataError(f"it is nested more than {MOST_DEPTH} deep")
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below += item.values()
            elif isinstance(item, list):
                below += item
            elif isinstance(item, float) and not math.isfinite(item):
                raise DataError("it holds a number that is too large")
            elif isinstance(item, int) and abs(item) >= 2**63:
                raise DataError("it holds a whole number of more than 63 bits")
        level = below


def encode(value: Any) -> Any:
    """A value as JSON values: dataclasses and mappings as objects, sequences and sets as lists.

    Raises:
        TypeError: something that is none of these.
    """
    if type(value) in _own:
        return _own[type(value)][0](value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return fields_of(value)
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(map(encode, value))
    if isinstance(value, Sequence):
        return [encode(item) for item in value]
    if hasattr(value, "tolist"):  # numpy
        return encode(value.tolist())
    raise TypeError(f"{value!r} cannot be saved as JSON")


def fields_of(value: Any) -> dict[str, Any]:
    """The fields of a dataclass as JSON values."""
    return {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}


def decode(kind: Any, value: Any, where: str = "") -> Any:
    """The inverse of `encode`: a value of a type from JSON values.

    Args:
        kind: a dataclass, a TypedDict (whose further keys are let through), or a type made of str, int, float, bool,
            None, Literal, tuple, list, Sequence, Mapping, Union and Any.
        value: JSON values, see `parse`.
        where: the value's place, for messages.

    Raises:
        DataError: it is not of that type; says where.
    """
    return _decode(kind, value, where, exact=False)


def _decode(kind: Any, value: Any, where: str, exact: bool) -> Any:
    # exact: what is read is used as it stands in the file, so a number is no word for one
    if kind is Any or kind is object:
        return value
    if kind in _own:
        return _built(lambda: _own[kind][1](value), where)
    if kind in (str, int, bool, float, None, type(None)):
        return _scalar(kind, value, where, exact)
    if dataclasses.is_dataclass(kind):
        assert isinstance(kind, type)
        return from_fields(kind, value, where)
    if typing.is_typeddict(kind):
        hints = _hints(kind)
        found = _object(value, where)
        _missing([key for key in kind.__required_keys__ if key not in found], where)
        known = {k: _decode(hints[k], v, _at(where, k), exact=True) for k, v in found.items() if k in hints}
        return {**found, **known}
    origin, args = get_origin(kind), get_args(kind)
    if origin is Literal:
        for allowed in args:
            if type(allowed) is type(value) and allowed == value:
                return value
        raise _wrong(value, where, f"one of {', '.join(map(repr, args))}")
    if origin in (Union, types.UnionType):
        return _one_of(args, value, where, exact)
    if origin in (tuple, list, Sequence) or kind in (tuple, list):
        return _many(origin or kind, args, value, where, exact)
    if isinstance(origin or kind, type) and issubclass(origin or kind, Mapping):
        _, inner = args or (str, Any)
        return {key: _decode(inner, item, _at(where, key), exact) for key, item in _object(value, where).items()}
    raise TypeError(f"codec: {kind!r} has no JSON form")


def from_fields(kind: Any, value: Any, where: str = "") -> Any:
    """An object of a dataclass from its fields as JSON values; see `decode`."""
    found, hints = _object(value, where), _hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind) if f.init}
    if unknown := sorted(found.keys() - fields):
        raise DataError(f"{_at(where, unknown[0])} is no key of it; known: {', '.join(fields)}")
    needed = [n for n, f in fields.items() if f.default is f.default_factory is dataclasses.MISSING]
    _missing([n for n in needed if n not in found], where)
    made = {name: _decode(hints[name], item, _at(where, name), exact=False) for name, item in found.items()}
    return _built(lambda: kind(**made), where)


def _scalar(kind: Any, value: Any, where: str, exact: bool) -> Any:
    kind = type(None) if kind is None else kind
    if kind is float:
        if isinstance(value, str) and value in _WORDS and not exact:
            return _WORDS[value]
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
    elif type(value) is kind:
        return value
    raise _wrong(value, where, _KINDS[kind])


def _many(origin: Any, args: tuple[Any, ...], value: Any, where: str, exact: bool) -> Any:
    if not isinstance(value, (list, tuple)):
        raise _wrong(value, where, "a list")
    make = list if origin is list else tuple
    if origin is tuple and args and args[-1] is not Ellipsis:
        if len(value) != len(args):
            raise DataError(f"{where or 'it'} has {len(value)} entries, wanted {len(args)}")
        return make(
            _decode(a, item, f"{where}[{i}]", exact) for i, (a, item) in enumerate(zip(args, value, strict=True))
        )
    inner = args[0] if args else Any
    return make(_decode(inner, item, f"{where}[{i}]", exact) for i, item in enumerate(value))


def _one_of(kinds: tuple[Any, ...], value: Any, where: str, exact: bool) -> Any:
    rest = [kind for kind in kinds if kind is not type(None)]
    if value is None and len(rest) < len(kinds):
        return None
    if len(rest) == 1:
        return _decode(rest[0], value, where, exact)
    problems = []
    for kind in rest:
        try:
            return _decode(kind, value, where, exact)
        except DataError as error:
            problems.append(str(error))
    raise DataError(problems[-1])


def _built(make: Callable[[], T], where: str) -> T:
    try:
        return make()
    except AmplifyError as error:
        raise DataError(f"{where}: {error}" if where else str(error)) from error


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _wrong(value, where, "an object")
    return value


def _missing(names: Sequence[str], where: str) -> None:
    if names:
        raise DataError(f"{_at(where, sorted(names)[0])} is missing")


def _wrong(value: Any, where: str, wanted: str) -> DataError:
    return DataError(f"{where or 'it'} is {named(value)}, wanted {wanted}")


def named(value: Any) -> str:
    """A JSON value in a few words."""
    if isinstance(value, (list, dict)) or value is None:
        return _KINDS[type(value)]
    short = json.dumps(value, ensure_ascii=True, default=str)
    return short if len(short) <= 60 else f"{short[:59]}…"


def _at(where: str, key: Any) -> str:
    return f"{where}.{key}" if where else str(key)


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)

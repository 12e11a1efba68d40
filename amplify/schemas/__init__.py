"""JSON Schemas (2020-12) of what amplify writes, for whoever reads it without amplify.

    schema("program")                       # of program.json, and programs/*.json of a run
    python -m amplify.schemas FOLDER        # writes all of them

They are made from the very classes that write and read the files, and committed beside this module as NAME.json. The
`format` in a file says which version of a schema it follows; each reader refuses another one and says so.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from amplify.errors import UnknownNameError

__all__ = ["made", "schema", "write"]

Schema = dict[str, Any]
FOLDER = Path(__file__).parent
_SIMPLE: dict[Any, Schema] = {
    str: {"type": "string"}, bool: {"type": "boolean"}, int: {"type": "integer"}, NoneType: {"type": "null"},
    None: {"type": "null"}, Any: {}, object: {},
}  # fmt: skip
_WORDS = {"anyOf": [{"type": "number"}, {"enum": ["inf", "-inf", "nan"]}]}
_OR_NULL = {"type": ["number", "null"]}


class _Maker:
    """Makes the schema of a type as `codec` writes it; what is named once stands in `defs`.

    Args:
        number: how a float is written: as a number alone, a word where it is not finite, or null there.
        own: types with a form of their own.
    """

    def __init__(self, number: Schema, own: Mapping[Any, Callable[[_Maker], Schema]] | None = None) -> None:
        self.number, self.own = number, dict(own or {})
        self.defs: dict[str, Schema] = {}

    def of(self, kind: Any) -> Schema:
        """The schema of a type."""
        if kind in self.own:
            return self.named(kind.__name__, lambda: self.own[kind](self))
        if kind is float:
            return self.number
        if (isinstance(kind, type | NoneType) and kind in _SIMPLE) or kind is Any:
            return _SIMPLE[kind]
        if dataclasses.is_dataclass(kind) or typing.is_typeddict(kind):
            return self.named(kind.__name__.strip("_"), lambda: self.fields(kind))
        origin, args = get_origin(kind), get_args(kind)
        if origin is Literal:
            return {"enum": list(args)}
        if origin in (Union, UnionType):
            return {"anyOf": [self.of(one) for one in args]}
        if origin is tuple and args and args[-1] is not Ellipsis:
            return {"type": "array", "prefixItems": [self.of(one) for one in args], "items": False,
                    "minItems": len(args)}  # fmt: skip
        if isinstance(origin or kind, type) and issubclass(origin or kind, Mapping):
            return {"type": "object", "additionalProperties": self.of((args or (str, Any))[1])}
        if isinstance(origin or kind, type) and issubclass(origin or kind, Sequence):
            return {"type": "array", "items": self.of(args[0]) if args else {}}
        raise TypeError(f"schemas: {kind!r} has no JSON form")

    def fields(self, kind: Any) -> Schema:
        """An object of a class's fields: of a dataclass these alone, of a TypedDict others besides."""
        hints = typing.get_type_hints(kind)
        if typing.is_typeddict(kind):
            properties = {name: self.of(hint) for name, hint in hints.items()}
            return {"type": "object", "properties": properties, "required": sorted(kind.__required_keys__)}
        own = [f for f in dataclasses.fields(kind) if f.init]
        needed = [f.name for f in own if f.default is f.default_factory is dataclasses.MISSING]
        properties = {f.name: self.of(hints[f.name]) for f in own}
        return {"type": "object", "properties": properties, "required": needed, "additionalProperties": False}

    def named(self, name: str, make: Callable[[], Schema]) -> Schema:
        """A reference to what stands once among the definitions."""
        if name not in self.defs:
            self.defs[name] = {}  # it may hold itself
            self.defs[name] = make()
        return {"$ref": f"#/$defs/{name}"}

    def whole(self, name: str, title: str, version: int, body: Schema) -> Schema:
        """The document: a body with its definitions."""
        head = {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "$id": f"urn:amplify:{name}:{version}",
            "title": title,
        }
        return {**head, **body, "$defs": dict(sorted(self.defs.items()))}


def _with(body: Schema, extra: Mapping[str, Schema]) -> Schema:
    """An object with further required keys."""
    return {
        **body,
        "properties": {**extra, **body["properties"]},
        "required": [*extra, *body["required"]],
    }


def _template(maker: _Maker) -> Schema:
    text = {"type": "string"}
    return {
        "type": "object",
        "properties": {"name": text, "source": text, "sha256": {"type": "string", "pattern": "^[0-9a-f]{64}$"}},
        "required": ["name", "source"],
        "additionalProperties": False,
    }


def _steering(maker: _Maker) -> Schema:
    from amplify.steering import Steering

    held = maker.fields(Steering)
    heads = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1, "uniqueItems": True}
    held["properties"]["heads"] = {
        "type": "object", "patternProperties": {"^[0-9]+$": heads}, "additionalProperties": False, "minProperties": 1,
    }  # fmt: skip
    return held


def _kinds() -> dict[str, type]:
    """amplify's own kinds of programs."""
    import amplify.methods
    from amplify.methods.base import PROGRAMS

    for module in iter_modules(amplify.methods.__path__):
        import_module(f"amplify.methods.{module.name}")
    own = f"{amplify.__name__}."
    return {kind: cls for kind, cls in sorted(PROGRAMS.items()) if cls.__module__.startswith(own)}


def _tagged(maker: _Maker, kind: str, cls: type) -> Schema:
    return _with(maker.fields(cls), {"kind": {"const": kind}})


def _inner(maker: _Maker) -> Schema:
    """A program inside another one: of any kind, which stands with it."""
    return {"oneOf": [maker.named(f"program_{kind}", partial(_tagged, maker, kind, c)) for kind, c in _kinds().items()]}


def _codec() -> _Maker:
    """A maker that knows what has a form of its own."""
    from amplify.methods.base import Program
    from amplify.steering import Steering
    from amplify.templates import Template

    return _Maker(_WORDS, {Template: _template, Steering: _steering, Program: _inner})


def _program() -> Schema:
    from amplify.methods.base import FORMAT

    maker = _codec()
    listed = [_with(_tagged(maker, k, c), {"format": {"const": FORMAT}}) for k, c in _kinds().items()]
    return maker.whole("program", "A fitted program: program.json, programs/*.json", FORMAT, {"oneOf": listed})


def _run() -> Schema:
    from amplify.evaluation.folder import FORMAT, _Config

    maker = _Maker({"type": "number"})
    body = _with(maker.fields(_Config), {"format": {"const": FORMAT}})
    return maker.whole("run", "run.json of a run folder", FORMAT, body)


def _lines(name: str) -> Schema:
    from amplify.evaluation import folder

    maker = _Maker({"type": "number"})
    if name == "record":
        body, title = maker.fields(folder._Asked), "A line of records.jsonl of a run folder"
    else:
        body = {"anyOf": [maker.of(folder._Batch), maker.of(folder._Spent)]}
        title = "A line of timing.jsonl of a run folder"
    return maker.whole(name, title, folder.FORMAT, body)


def _attribution() -> Schema:
    from amplify.types import Attribution

    maker = _codec()
    return maker.whole("attribution", "Scores of the words of one input", 1, maker.fields(Attribution))


def _sources() -> Schema:
    from amplify.sources.claims import Citation, Claim
    from amplify.sources.result import FORMAT, _Saved

    maker = _codec()
    said = {"claims": maker.of(tuple[Claim, ...]), "citations": maker.of(tuple[Citation, ...])}
    body = _with(maker.fields(_Saved), {"format": {"const": FORMAT}, **said})
    return maker.whole("source_attribution", "Which sources made an answer", FORMAT, body)


def _profile() -> Schema:
    from amplify.steering.spec import FORMAT

    maker = _codec()
    body = _with(_steering(maker), {"format": {"const": FORMAT}})
    return maker.whole("profile", "A head profile (YAML or JSON)", FORMAT, body)


def _tuned() -> Schema:
    from amplify.tuning import Tuned
    from amplify.tuning.search import FORMAT

    maker = _Maker(_OR_NULL)
    hints = {f.name: typing.get_type_hints(Tuned)[f.name] for f in dataclasses.fields(Tuned) if f.name != "program"}
    properties = {**{name: maker.of(hint) for name, hint in hints.items()}, "better": {"type": "boolean"}}
    config = {"type": "object", "properties": {"format": {"const": FORMAT}}, "required": ["format"]}
    body = {
        "type": "object", "properties": {**properties, "config": config}, "required": [*properties],
        "additionalProperties": False,
    }  # fmt: skip
    return maker.whole("tuned", "result.json of a search's folder", FORMAT, body)


_MADE: dict[str, Callable[[], Schema]] = {
    "attribution": _attribution,
    "profile": _profile,
    "program": _program,
    "record": lambda: _lines("record"),
    "run": _run,
    "source_attribution": _sources,
    "timing": lambda: _lines("timing"),
    "tuned": _tuned,
}
NAMES = tuple(_MADE)
"""What there are schemas of."""


@cache
def _read(name: str) -> str:
    return (FOLDER / f"{name}.json").read_text(encoding="utf-8")


def schema(name: str) -> Schema:
    """A schema, as it is committed.

    Args:
        name: run, record, timing (of a run folder), program, source_attribution, attribution, profile, tuned.

    Raises:
        UnknownNameError: no such schema.

    Example:
        >>> from amplify.schemas import schema
        >>> schema("run")["$id"]
        'urn:amplify:run:1'
    """
    if name not in _MADE:
        raise UnknownNameError("schema", name, _MADE)
    held: Schema = json.loads(_read(name))
    return held


def made(name: str) -> Schema:
    """A schema from the classes as they are now, which `schema` must equal.

    Raises:
        UnknownNameError: no such schema.

    Example:
        >>> made("timing") == schema("timing")
        True
    """
    if name not in _MADE:
        raise UnknownNameError("schema", name, _MADE)
    return _MADE[name]()


def write(folder: Path = FOLDER) -> None:
    """Write all of them as NAME.json.

    Example:
        >>> write(Path("schemas"))
        >>> Path("schemas/run.json").is_file()
        True
    """
    from amplify import files

    files.make_folder(folder)
    for name in NAMES:
        files.write(folder / f"{name}.json", json.dumps(made(name), indent=1) + "\n")

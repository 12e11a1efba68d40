"""Dataclasses to plain JSON and back; what is not what the fields say is one error that names the place."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

import pytest

from amplify import codec
from amplify.errors import DataError, InputError
from amplify.steering import Steering
from amplify.templates import Template
from amplify.types import Attribution, Demonstration, Example, Rationale


@dataclass(frozen=True)
class Inner:
    name: str
    sizes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.name == "bad":
            raise InputError("bad is no name")


@dataclass(frozen=True)
class Outer:
    inner: Inner
    many: tuple[Inner, ...]
    pair: tuple[str, float]
    kind: Literal["a", "b"] = "a"
    by_name: Mapping[str, Inner] = field(default_factory=dict)
    maybe: int | None = None
    free: Any = None


class Line(TypedDict):
    n: float


def outer() -> Outer:
    return Outer(Inner("x", (1, 2)), (Inner("y"),), ("p", math.inf), "b", {"k": Inner("z")}, 3, {"any": [1]})


def saved() -> dict[str, Any]:
    return dict(json.loads(json.dumps(codec.encode(outer()))))


def test_what_is_saved_comes_back() -> None:
    assert codec.decode(Outer, saved()) == outer()


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (("inner",), 3, r"inner is 3, wanted an object"),
        (("inner", "name"), None, r"inner\.name is null, wanted text"),
        (("inner", "name"), "bad", r"inner: bad is no name"),
        (("inner", "sizes"), [1, True], r"inner\.sizes\[1\] is true, wanted a whole number"),
        (("inner", "sizes"), "12", r'inner\.sizes is "12", wanted a list'),
        (("inner", "other"), 1, r"inner\.other is no key of it; known: name, sizes"),
        (("many",), [{}], r"many\[0\]\.name is missing"),
        (("pair",), ["p"], r"pair has 1 entries, wanted 2"),
        (("pair",), ["p", "q"], r'pair\[1\] is "q", wanted a number'),
        (("kind",), "c", r"kind is \"c\", wanted one of 'a', 'b'"),
        (("by_name", "k"), [], r"by_name\.k is a list, wanted an object"),
        (("maybe",), 1.5, r"maybe is 1\.5, wanted a whole number"),
    ],
)
def test_what_is_wrong_is_named(path: tuple[str, ...], value: Any, says: str) -> None:
    data = saved()
    place: Any = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(DataError, match=says):
        codec.decode(Outer, data)


def test_a_line_may_hold_more_than_is_looked_at() -> None:
    assert codec.decode(Line, {"n": 1, "new": []}) == {"n": 1, "new": []}
    with pytest.raises(DataError, match="n is missing"):
        codec.decode(Line, {"new": []})
    with pytest.raises(DataError, match=r'n is "nan", wanted a number'):
        codec.decode(Line, {"n": "nan"})


def test_values_of_the_library_come_back() -> None:
    made = Attribution("a good day", ("good",), ((2, 6),), (0.5,), "yes", low=(-math.inf,), meta={"n": 1})
    shot = Demonstration(
        Example("1", "a good day", "yes", choices=("yes", "no")), Rationale("so", ("good",), "k", made)
    )
    template, steering = Template("t", "{{ text }}"), Steering(heads={3: (0, 5)}, alpha=0.1)
    for kind, value in ((Demonstration, shot), (Template, template), (Steering, steering)):
        assert codec.decode(kind, json.loads(json.dumps(codec.encode(value)))) == value


def test_a_template_that_was_changed_behind_its_hash_is_refused() -> None:
    data = codec.encode(Template("mine", "{{ text }}"))
    with pytest.raises(DataError, match="'mine' was changed after it was saved"):
        codec.decode(Template, {**data, "source": "{{ evil }}"})


def test_an_attribution_whose_spans_lie_outside_its_text_is_refused() -> None:
    with pytest.raises(InputError, match="outside its text"):
        Attribution("short", ("word",), ((2, 9),), (1.0,), "yes")


def test_many_values_in_few_bytes_are_refused() -> None:
    bomb: Any = ["x"] * 100
    for _ in range(6):
        bomb = [bomb] * 100
    with pytest.raises(DataError, match="values"):
        codec.check(bomb)

"""The sandbox that every template is filled in by: nothing of Python within reach, and bounded work.

Jinja's own sandbox keeps a template from touching files or code, but not from looping for ever or filling the memory.
Here each rendering has a number of units to spend. A step of a loop, a macro's call and every 16 characters written,
joined or compared cost one; whatever could grow a text by a factor (`*`, `replace`, `indent`) pays before it does so.
Units are counted, not timed, so a template that works on one machine works on all, and in any thread.

Chat templates of model folders are filled in by `amplify.models.chat_template`, which lets through what transformers
has beside Jinja's own.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, cast

from jinja2 import Environment, StrictUndefined, Undefined, filters, nodes, pass_context, pass_environment
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

UNITS = 2_000_000  # of one rendering: a few seconds and some tens of megabytes at most
CHARACTERS = 16  # that cost a unit
SOURCE = 200_000  # characters of a template at most
DEPTH = 20  # of blocks within blocks: Python takes no more
BITS = 4096  # of a whole number at most
_left: ContextVar[list[int]] = ContextVar("units left")

FILTERS = (
    "abs", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float", "format", "groupby",
    "indent", "int", "items", "join", "last", "length", "list", "lower", "map", "max", "min", "reject", "rejectattr",
    "replace", "reverse", "round", "select", "selectattr", "sort", "string", "sum", "title", "tojson", "trim",
    "truncate", "unique", "upper", "wordcount",
)  # fmt: skip
"""Jinja's filters that templates may use: those whose work is bounded by what goes in and what comes out."""

_TEXT_METHODS = (
    "capitalize", "casefold", "count", "endswith", "find", "index", "isalnum", "isalpha", "isascii", "isdecimal",
    "isdigit", "islower", "isnumeric", "isspace", "istitle", "isupper", "join", "lower", "lstrip", "partition",
    "removeprefix", "removesuffix", "replace", "rfind", "rindex", "rpartition", "rsplit", "rstrip", "split",
    "splitlines", "startswith", "strip", "swapcase", "title", "upper",
)  # fmt: skip
_FACTOR = ("indent", "tojson")  # filters whose number says how often a text grows
_STEP, _CONCAT, _WEIGHED = "amplify step", "amplify concat", "amplify weighed"  # no template can write these names


class Exhausted(SecurityError):
    """A template that loops or grows beyond what one rendering may cost."""

    def __init__(self) -> None:
        super().__init__("it loops too long, or writes or builds too much")


def spend(units: int) -> None:
    """Take units off the rendering at hand.

    Raises:
        Exhausted: there are not as many left.
    """
    left = _left.get()
    left[0] -= max(units, 0)
    if left[0] < 0:
        raise Exhausted


def weigh(value: Any) -> int:
    """Spend a value's size, all that it holds included, and return it in units. Text counts by its characters."""
    if isinstance(value, str):  # most often
        units = 1 + len(value) // CHARACTERS
        left = _left.get()
        left[0] -= units
        if left[0] < 0:
            raise Exhausted
        return units
    total, stack = 0, [value]
    while stack:
        item = stack.pop()
        units = 1
        if isinstance(item, str):
            units += len(item) // CHARACTERS
        elif isinstance(item, list | tuple | set | frozenset):
            stack.extend(item)
        elif isinstance(item, dict):
            stack.extend(item)
            stack.extend(item.values())
        elif isinstance(item, range):
            units += len(item)
        total += units
        spend(units)
    return total


def _counted(items: Iterator[Any]) -> Iterator[Any]:
    for item in items:
        weigh(item)
        yield item


def _result(value: Any) -> Any:
    if isinstance(value, Iterator):
        return _counted(value)
    weigh(value)
    return value


def _metered(function: Callable[..., Any], factor: bool = False) -> Callable[..., Any]:
    """A filter or test that pays for what it is given and for what it makes."""

    @functools.wraps(function)
    def metered(*args: Any, **kwargs: Any) -> Any:
        size = weigh([args, kwargs])
        numbers = [abs(v) for v in (*args, *kwargs.values()) if isinstance(v, int)]
        spend(max(numbers, default=0) // CHARACTERS * (size if factor else 1))
        return _result(function(*(_counted(a) if isinstance(a, Iterator) else a for a in args), **kwargs))

    return metered


@pass_environment
def _join(environment: Environment, items: Iterable[Any], separator: str = "", attribute: str | None = None) -> str:
    held = list(_counted(iter(items)))
    if attribute is not None:
        held = list(map(filters.make_attrgetter(environment, attribute), held))
        weigh(held)
    spend((len(held) * len(str(separator))) // CHARACTERS)
    return str(separator).join(map(str, held))


def _replace(text: Any, old: str, new: str, count: int = -1) -> str:
    text = str(text)
    weigh(text)
    found = text.count(old) if count < 0 else min(text.count(old), count)
    spend(found * len(new) // CHARACTERS)
    return text.replace(old, new, count)


def _format(text: Any, *args: Any, **kwargs: Any) -> str:
    weigh([text, args, kwargs])
    if re.search(r"%[^a-zA-Z%]*(?:\d{4}|\*)", str(text)):
        raise SecurityError("a number is written in at most 999 places")
    return str(text) % (kwargs or args)


@pass_environment
def _sum(environment: Environment, items: Iterable[Any], attribute: str | int | None = None) -> Any:
    return filters.sync_do_sum(environment, _counted(iter(items)), attribute)


@pass_context  # one that depends on the context is never called while a template is compiled
def _written(context: Any, value: Any) -> Any:
    weigh(value)
    return value


def _step(value: Any, units: int) -> Any:
    spend(units)
    return value


def _weighed(value: Any) -> Any:
    weigh(value)
    return value


class _Instrument(NodeTransformer):
    """Makes loops, macros, joins and comparisons pay."""

    def __init__(self) -> None:
        self.depth = 0

    def _filter(self, of: nodes.Expr, name: str, *args: Any) -> nodes.Filter:
        constants = [nodes.Const(a, lineno=of.lineno) for a in args]
        return nodes.Filter(of, name, constants, [], None, None, lineno=of.lineno)

    def _paid(self, node: Any) -> nodes.Filter:
        parts = [part for child in node.body for part in (child, *child.find_all(nodes.Node))]
        text = sum(len(part.data) for part in parts if isinstance(part, nodes.TemplateData))
        return self._filter(nodes.Const(True, lineno=node.lineno), _STEP, 1 + len(parts) // 4 + text // CHARACTERS)

    def _body(self, node: Any) -> Any:
        step = self._paid(node)
        self.depth += 1
        if self.depth > DEPTH:
            raise RecursionError
        self.generic_visit(node)
        self.depth -= 1
        node.body.insert(0, nodes.ExprStmt(step, lineno=node.lineno))
        return node

    visit_Macro = visit_CallBlock = visit_Block = visit_FilterBlock = _body

    def visit_For(self, node: nodes.For) -> nodes.For:
        self._body(node)
        if node.test is not None:
            step = self._filter(nodes.Const(True, lineno=node.lineno), _STEP, 1)
            node.test = nodes.And(step, node.test, lineno=node.lineno)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:
        self.generic_visit(node)
        return self._filter(nodes.List(node.nodes, lineno=node.lineno), _CONCAT)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Getitem:
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):  # compiled to a plain slice
            node.node = self._filter(node.node, _WEIGHED)
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Compare:
        self.generic_visit(node)
        node.expr = self._filter(node.expr, _WEIGHED)
        for operand in node.ops:
            operand.expr = self._filter(operand.expr, _WEIGHED)
        return node


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment of all templates."""

    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "%", "**"))

    def __init__(
        self,
        undefined: type[Undefined] = StrictUndefined,
        extensions: Sequence[type[Extension]] = (),
        more: Sequence[str] = (),
    ) -> None:
        """As Jinja has them.

        Args:
            undefined: what a variable is that was not given.
            extensions: tags.
            more: names of filters beside `FILTERS`.
        """
        super().__init__(
            undefined=undefined, trim_blocks=True, lstrip_blocks=True, optimized=False, finalize=_written,
            extensions=extensions,
        )  # fmt: skip
        own = {"join": _join, "replace": _replace, "format": _format, "sum": _sum}
        inner = {_STEP: _step, _WEIGHED: _weighed, _CONCAT: functools.partial(_join, self)}
        self.filters = {n: _metered(cast(Any, self.filters[n]), n in _FACTOR) for n in (*FILTERS, *more)} | own | inner
        self.tests = {name: _metered(cast(Any, test)) for name, test in self.tests.items()}
        del self.globals["lipsum"]

    @staticmethod
    def metered(function: Callable[..., Any], *, factor: bool = False) -> Callable[..., Any]:
        """A filter that pays for what it is given and makes; `factor`: a number says how often a text grows."""
        return _metered(function, factor)

    def fill(self, template: Any, variables: Mapping[str, Any]) -> str:
        """Render a compiled template with a new stock of units."""
        with_units = _left.set([UNITS])
        try:
            return str(template.render(variables))
        finally:
            _left.reset(with_units)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        if len(source) > SOURCE:
            raise Exhausted
        tree: nodes.Template = _Instrument().visit(super()._parse(source, name, filename))
        tree.set_environment(self)
        return tree

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Of texts only the methods whose work is linear, of numbers none."""
        if isinstance(obj, str):
            return attr in _TEXT_METHODS
        return not isinstance(obj, int | float | complex | bytes) and super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> None:
        """`str.format` is not among the methods of a text: a field in it can be as wide as memory."""

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call a method, macro or function; what it works on and what it gives is paid for."""
        owner = getattr(obj, "__self__", None)
        weigh([args, kwargs, owner])  # four units at least: a call takes as long as a few steps
        if isinstance(owner, str) and obj.__name__ == "join":
            return _join(self, args[0], owner)
        if isinstance(owner, str) and obj.__name__ == "replace":
            return _replace(owner, *args, **kwargs)
        return _result(super().call(context, obj, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """A calculation; one that would make a text or a number too large pays first."""
        sizes = weigh(left), weigh(right)
        if operator == "%" and isinstance(left, str):
            return _format(left, *right) if isinstance(right, tuple) else _format(left, right)
        if operator == "*":
            for size, item, times in ((sizes[0], left, right), (sizes[1], right, left)):
                if isinstance(times, int) and isinstance(item, str | list | tuple):
                    spend(size * times)
        if isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
            if bits > BITS:
                raise SecurityError("a number in it grows too large")
        return super().call_binop(context, operator, left, right)

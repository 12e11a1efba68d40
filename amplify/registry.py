"""Everything that amplify knows by a name, in one table a kind: what is built in, and what a package of yours adds.

    @amplify.register("method", "my_method")
    class MyMethod(amplify.methods.Method):
        ...

A package tells of what it adds by an entry point, whose value is a module that registers when it is imported:

    [project.entry-points."amplify.plugins"]
    mine = "mine.plugin"

Plugins are imported once, when a name is not found or names are listed, so that what is built in stays light. One that
cannot be imported adds nothing; `broken` says which and why, and so does the error for a name that was not found.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module, metadata
from typing import Any, Generic, TypeVar

from amplify.errors import InputError, UnknownNameError

GROUP = "amplify.plugins"
T = TypeVar("T")
Registered = TypeVar("Registered")

HOMES: Mapping[str, str] = {
    "method": "amplify.methods",
    "metric": "amplify.metrics.kinds",
    "explainer": "amplify.attribution.explainers",
    "model": "amplify.models",
    "task_format": "amplify.tasks.formats",
    "estimator": "amplify.shapley.estimators",
    "retriever": "amplify.retrieval",
    "selection": "amplify.selection",
    "steering_mode": "amplify.steering.spec",
}
"""Kind -> the module whose import registers what is built in."""

_tables: dict[str, Table[Any]] = {}
_lock = threading.RLock()
_broken: dict[str, str] = {}
_state: dict[str, Any] = {"loaded": False, "package": "", "added": []}


class Table(Mapping[str, T], Generic[T]):
    """The names of one kind and what stands behind them, in the order of registration; plugins' names come last.

    Looking up a name that is built in imports no plugin; iterating does.
    """

    def __init__(self, kind: str, adopt: Callable[[str, Any], T] | None = None) -> None:
        """A table of one of the kinds in `HOMES`.

        Args:
            kind: in errors, and what `register` calls it.
            adopt: (name, what was registered) -> what the table holds; raises an InputError that says what is wanted.
        """
        self.kind = kind
        self._adopt = adopt or (lambda name, value: value)
        self._held: dict[str, T] = {}
        self._given: dict[str, Any] = {}
        self._from: dict[str, str] = {}
        _tables[kind] = self

    def find(self, name: str, hint: str = "") -> T:
        """What stands behind a name.

        Args:
            name: what the user wrote.
            hint: one further sentence for the error.

        Raises:
            UnknownNameError: with the nearest name, all names, and the plugins that could not be loaded.
        """
        try:
            return self[name]
        except KeyError:
            said = " ".join([*([hint] if hint else []), *broken()])
            raise UnknownNameError(self.kind.replace("_", " "), name, self, said) from None

    def package(self, name: str) -> str:
        """The package that a name came from, as NAME VERSION; "" for what is built in or was registered by hand."""
        return self._from.get(name, "")

    def add(self, name: str, value: Any) -> None:
        """Register a value; see `register`."""
        import_module(HOMES[self.kind])  # what is built in comes first: a plugin cannot take its name
        with _lock:
            adopted = self._adopt(name, value)
            if name in self._held and not _same(self._given[name], value):
                by = _place(self._given[name])
                raise InputError(f"the {self.kind} {name!r} is registered already, by {by}; choose another name")
            self._held[name], self._given[name] = adopted, value
            if _state["package"]:
                self._from[name] = _state["package"]
                _state["added"].append((self, name))

    def __getitem__(self, name: str) -> T:
        if name not in self._held:
            import_module(HOMES[self.kind])
        if name not in self._held:
            load_plugins()
        return self._held[name]

    def __iter__(self) -> Iterator[str]:
        import_module(HOMES[self.kind])
        load_plugins()
        return iter(list(self._held))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __repr__(self) -> str:
        return f"<{self.kind}: {', '.join(self)}>"

    def remove(self, name: str) -> None:
        """Forget a name."""
        del self._held[name], self._given[name]
        self._from.pop(name, None)


def register(kind: str, name: str, value: Any = None) -> Callable[[Registered], Registered]:
    """Make something known by a name, as a decorator or with the thing itself as the third argument.

    Args:
        kind: one of `HOMES`; docs/extending.md shows what each takes.
        name: what it is asked for by.
        value: what is registered, where this is no decorator.

    Returns:
        A decorator that gives back what it decorates.

    Raises:
        UnknownNameError: no such kind.
        InputError: no name, a name that something else has, or a thing that is none of its kind.

    Example:
        >>> @amplify.register("explainer", "length")
        ... def length(case):
        ...     "How long a word is."
        ...     return [len(word) for word in case.words]
        >>> amplify.explain("a longer word", " yes", model=amplify.load_model("scripted:echo"), method="length").scores
        (1.0, 6.0, 4.0)
        >>> amplify.attribution.METHODS.remove("length")
    """
    if kind not in HOMES:
        raise UnknownNameError("kind of extension", kind, HOMES)
    if not isinstance(name, str) or not name.strip() or any(c in name for c in " ,=:.[]"):
        raise InputError(f"a {kind} has a name without blanks and without any of , = : . [ ], not {name!r}")

    def decorate(thing: Registered) -> Registered:
        table(kind).add(name, thing)
        return thing

    if value is not None:
        decorate(value)
    return decorate


def table(kind: str) -> Table[Any]:
    """All of one kind, by name.

    Raises:
        UnknownNameError: no such kind.
    """
    if kind not in HOMES:
        raise UnknownNameError("kind of extension", kind, HOMES)
    if kind not in _tables:
        import_module(HOMES[kind])
    return _tables[kind]


def load_plugins() -> None:
    """Import every module that installed packages name under `amplify.plugins`, once in a process."""
    with _lock:
        if _state["loaded"]:
            return
        _state["loaded"] = True
        for entry in metadata.entry_points(group=GROUP):
            package = f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.name
            _state["package"], _state["added"] = package, []
            try:
                entry.load()
            except (Exception, SystemExit) as error:
                for held, name in _state["added"]:
                    held.remove(name)
                _broken[package] = (
                    f"The plugin {entry.value} of the package {package} cannot be loaded "
                    f"({type(error).__name__}: {error}); mend it, or uninstall the package."
                )
            finally:
                _state["package"] = ""


def broken() -> list[str]:
    """A sentence for each plugin that could not be loaded."""
    load_plugins()
    return list(_broken.values())


def _same(old: Any, new: Any) -> bool:
    """Whether this is the same thing again, as when a module is reloaded or a notebook's cell runs twice."""
    return bool(old is new or old == new or (hasattr(old, "__qualname__") and _place(old) == _place(new)))


def _place(thing: Any) -> str:
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{named.__module__}.{named.__qualname__}"

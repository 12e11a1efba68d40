"""Names of a package that are imported when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazily(package: str, where: Mapping[str, str]) -> Callable[[str], Any]:
    """What a package has as its `__getattr__`, so that importing it loads none of its modules.

    Args:
        package: its name.
        where: name -> the module of the package that has it.

    Example:
        >>> lazily("amplify.sources", {"keep": "keeping"})("keep").__module__
        'amplify.sources.keeping'
    """

    def get(name: str) -> Any:
        if name not in where:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{where[name]}"), name)

    return get

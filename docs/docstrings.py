"""Docstrings as the reference page needs them: examples as code, and an entry for each of several names in one line."""

from __future__ import annotations

import re
from typing import Any

import griffe

SHARED = re.compile(r"^( +)(\w+(?:, \w+)+): ", re.M)


class Docstrings(griffe.Extension):
    """Rewrites each docstring before it is read."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """`Example:` is a section of code; `low, high: …` are two entries, of which the last has the text."""
        if obj.docstring is not None:
            text = re.sub(r"^( *)Example:$", r"\1Examples:", obj.docstring.value, flags=re.M)
            obj.docstring.value = SHARED.sub(_apart, text)


def _apart(found: re.Match[str]) -> str:
    *others, last = found[2].split(", ")
    return "".join(f"{found[1]}{name}: see `{last}`.\n" for name in others) + f"{found[1]}{last}: "

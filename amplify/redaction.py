"""Secrets stay inside: what leaves the library as text passes `redact`, and every error of amplify does.

A key is found in any form in which servers and libraries give it back: as it is, percent-encoded, with some or all of
its characters escaped for JSON, Python or HTML. User, password and query of a URL are hidden whatever they hold.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"
SHORTEST = 8
"""Characters of a key below which it is a placeholder (EMPTY, none), which any text may hold."""

_KEYS: dict[str, re.Pattern[str]] = {}
_USER = re.compile(r"(\w://)[^\s/@'\"]*@")
_QUERY = re.compile(r"(\w://[^\s?#'\"<>]+\?)[^\s#'\"<>)]+")
_SECRET_NAME = re.compile(r"key|secret|passw|authorization|credential|(^|[_-])token$", re.IGNORECASE)


def keep_secret(key: str) -> None:
    """Hide a key from now on, in everything that passes `redact`.

    Args:
        key: printable ASCII. One below `SHORTEST` characters is not hidden.
    """
    if len(key) >= SHORTEST and key not in _KEYS:
        _KEYS[key] = re.compile("".join(_forms(c) for c in key))


def hide_keys(text: str) -> str:
    """A text with keys replaced by ***."""
    for pattern in _KEYS.values():
        text = pattern.sub(HIDDEN, text)
    return text


def redact(text: object) -> str:
    """A text with keys, and users, passwords and queries of URLs, replaced by ***."""
    result = hide_keys(str(text))
    return _QUERY.sub(rf"\g<1>{HIDDEN}", _USER.sub(rf"\g<1>{HIDDEN}@", result)) if "://" in result else result


def one_line(text: object, most: int = 300) -> str:
    """What somebody else wrote, as part of one line of a message: printable, without secrets, at most so long."""
    clean = redact(text).encode("utf-8", "replace").decode()
    return " ".join("".join(c if c.isprintable() else " " for c in clean).split())[:most].rstrip(".")


def redact_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a request as a header may show them: what stands under a name such as api_key is hidden."""
    return {
        name: HIDDEN
        if _SECRET_NAME.search(name)
        else redact_fields(value)
        if isinstance(value, Mapping)
        else redact(value)
        if isinstance(value, str)
        else value
        for name, value in fields.items()
    }


def _forms(character: str) -> str:
    """A pattern of one character of a key in each of its forms; backslashes before an escape may be doubled."""
    code = ord(character)
    escaped = rf"\\+(?:x{code:02x}|u00{code:02x}|u\{{0*{code:x}\}}|{code:03o})"
    html = rf"&\#(?:0*{code}|x0*{code:x});"
    named = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&apos;"}.get(character)
    # the character itself comes last: "\\x78" is an x and no x followed by 78
    return f"(?:(?i:%{code:02x}|{escaped}|{html}{f'|{named}' if named else ''})|\\\\*{re.escape(character)})"

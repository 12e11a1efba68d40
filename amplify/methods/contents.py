"""What the options of a method name, by content: a template, profile or proxy that was edited is another one."""

from __future__ import annotations

import hashlib
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

from amplify import hub, resources
from amplify.errors import InputError
from amplify.files import shown


def contents(method: Any) -> dict[str, str]:
    """Option -> SHA-256 of what it names, for those that name a file or folder of the user's or a head profile.

    Args:
        method: a dataclass; its text fields are looked at.

    Raises:
        InputError: such a file cannot be read.
    """
    found = {}
    for f in fields(method):
        if f.name in ("mode", "variant"):
            continue
        value = getattr(method, f.name)
        if isinstance(value, str) and value and (digest := _content(f.name, value)):
            found[f.name] = digest
    return found


def _content(option: str, value: str) -> str:
    path = Path(os.path.expanduser(value))
    if option == "profile" and path.suffix not in (".yaml", ".yml", ".json"):
        path = resources.content("steering") / f"{value}.yaml"
    if path.suffix in (".jinja", ".yaml", ".yml", ".json"):
        return _hash(path) if os.path.isfile(path) else ""
    if os.path.isfile(path / "config.json"):
        card, weights = path / "amplify_proxy.json", hub.identity(path).get("sha256", "")
        config = _hash(card if card.is_file() else path / "config.json")
        return hashlib.sha256(f"{config} {weights}".encode()).hexdigest()
    return ""


def _hash(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"{shown(path)} cannot be read: {error.strerror}") from error


def template_hashes() -> dict[str, str]:
    """Every template of `prompts/` by name, with the hash of its content."""
    root = resources.content("prompts")
    return {path.relative_to(root).as_posix(): _hash(path) for path in sorted(root.rglob("*.jinja"))}


def fit_key(method: Any) -> tuple[Any, ...]:
    """What a fit depends on besides options, task and seed, for what is remembered of it in this process."""
    return tuple(contents(method).items()), tuple(template_hashes().items())

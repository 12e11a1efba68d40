"""Where the content folders (prompts, steering, tasks, eval) and the user's cache are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

Folder = Literal["prompts", "steering", "tasks", "eval"]

_PACKAGE = Path(__file__).resolve().parent


def content(folder: Folder) -> Path:
    """The content folder: inside the installed wheel, else beside the package in a checkout."""
    packed = _PACKAGE / "_content" / folder
    return packed if packed.is_dir() else _PACKAGE.parent / folder


def home() -> Path:
    """The cache directory: AMPLIFY_HOME, else XDG_CACHE_HOME/amplify, else ~/.cache/amplify."""
    if own := os.environ.get("AMPLIFY_HOME"):
        return Path(os.path.expanduser(own))
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(os.path.expanduser(base)) if base else Path.home() / ".cache") / "amplify"


def data_root() -> Path | None:
    """The folder of local data sets that AMPLIFY_DATA names, or None."""
    root = os.environ.get("AMPLIFY_DATA")
    return Path(os.path.expanduser(root)) if root else None

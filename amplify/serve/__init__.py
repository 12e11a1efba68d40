"""The HTTP service: attributions, and a chat API that passes through and cites."""

from __future__ import annotations

from typing import TYPE_CHECKING

from amplify.lazy import lazily

if TYPE_CHECKING:
    from amplify.serve.app import create_app
    from amplify.serve.limits import Limits

__all__ = ["Limits", "create_app"]

__getattr__ = lazily(__name__, {"Limits": "limits", "create_app": "app"})

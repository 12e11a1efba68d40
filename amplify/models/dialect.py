"""What one server takes: fields that not every server knows are sent until it refuses them, and then left out.

A vLLM server adds what a checkpoint's `generation_config.json` says (a repetition penalty, top_k, …) to whatever a
request leaves open, so a request names all of it. Other servers refuse such fields, or a temperature, or want another
name for the limit on tokens: each says so by status 400, and is then asked as it wants to be.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from amplify.models.replies import Json

EXTENSIONS: dict[str, Any] = {"repetition_penalty": 1.0, "top_k": -1, "min_p": 0.0}
"""Sampling that only some servers know, switched off."""
NEUTRAL: dict[str, Any] = {"presence_penalty": 0.0, "frequency_penalty": 0.0, **EXTENSIONS}
"""All sampling that a server could add, switched off."""
OPTIONAL = (*NEUTRAL, "temperature", "top_p", "seed", "stop")
"""Fields that a request can do without (a stop string is cut off here)."""


@dataclass(frozen=True)
class Dialect:
    """What is known of one server.

    Attributes:
        without: fields that are left out.
        taken: optional fields that it has taken; a later refusal is not about them.
        limit: the name under which chats take the limit on new tokens.
    """

    without: frozenset[str] = frozenset()
    taken: frozenset[str] = frozenset()
    limit: str = "max_tokens"

    def said(self, path: str, body: Json) -> Json:
        """The fields of a request as this server takes them."""
        kept = {name: value for name, value in body.items() if name not in self.without}
        if path == "/chat/completions" and "max_tokens" in kept and self.limit not in kept:
            kept[self.limit] = kept.pop("max_tokens")
        return kept

    def after(self, refusal: str, sent: Iterable[str]) -> Dialect | None:
        """What to try after a refusal; None where it is about something else.

        Args:
            refusal: the server's words.
            sent: the names of the fields that may be at fault.
        """
        named = set(re.findall(r"\w+", refusal))
        if {"max_tokens", "max_completion_tokens"} <= named and self.limit in sent and self.limit == "max_tokens":
            return replace(self, limit="max_completion_tokens")
        open_ = [name for name in OPTIONAL if name in sent and name not in self.taken]
        refused = [name for name in open_ if name in named] or [name for name in open_ if name in EXTENSIONS]
        return replace(self, without=self.without | set(refused)) if refused else None

    def learned(self, other: Dialect, sent: Iterable[str]) -> Dialect:
        """Both together, after `other` was understood with these fields."""
        limit = self.limit if other.limit == "max_tokens" else other.limit
        return Dialect(self.without | other.without, self.taken | (set(OPTIONAL) & set(sent)), limit)

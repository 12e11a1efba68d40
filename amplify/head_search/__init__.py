"""Which heads obey emphasis: margins of head sets, the search over them, its record, and the profile it ends in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from amplify.lazy import lazily

if TYPE_CHECKING:
    from amplify.head_search.search import HeadSearch, Profile, find_heads, held_out

__all__ = ["HeadSearch", "Profile", "find_heads", "held_out"]

__getattr__ = lazily(__name__, dict.fromkeys(__all__, "search"))

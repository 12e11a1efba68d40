"""Emphasis on spans of a prompt, realised as steered attention heads (PASTA and its relatives)."""

from amplify.steering.emphasis import parse_emphasis
from amplify.steering.spec import Steering, profiles

__all__ = ["Steering", "parse_emphasis", "profiles"]

"""Emphasis on spans of a prompt, realised as steered attention heads (PASTA and its relatives)."""

from amplify.steering.spec import Steering

__all__ = ["Steering"]

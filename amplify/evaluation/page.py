"""A report as one HTML page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from amplify.render import escape

if TYPE_CHECKING:
    from amplify.evaluation.report import Report


def as_html(report: Report) -> str:
    """The report as HTML."""
    return f"<!doctype html><meta charset=utf-8><pre>{escape(str(report))}</pre>"

"""Spans for OpenTelemetry where its API is installed: names, numbers and statuses, never a text of a request.

An application that sets up the SDK (or `opentelemetry-instrument amplify serve …`) gets them; without the package, or
without an SDK, nothing happens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

trace: Any
propagate: Any
try:
    trace, propagate = import_module("opentelemetry.trace"), import_module("opentelemetry.propagate")
except ImportError:  # an optional package
    trace = propagate = None


class Span:
    """What is written down about one piece of work.

    Args:
        span: of OpenTelemetry; None where there is none.
    """

    def __init__(self, span: Any = None) -> None:
        self._span = span

    def note(self, **numbers: float | str) -> None:
        """Attributes: `amplify_prompts=3` becomes `amplify.prompts`."""
        if self._span is not None:
            for name, value in numbers.items():
                self._span.set_attribute(name.replace("_", ".", 1), value)

    def named(self, name: str, status: int) -> None:
        """What the request was for, and how it ended: from 500 on as an error."""
        if self._span is not None:
            self._span.update_name(name)
            self._span.set_attribute("http.response.status_code", status)
            if status >= 500:
                self._span.set_status(trace.Status(trace.StatusCode.ERROR))


@contextmanager
def span(name: str, headers: Mapping[str, str] | None = None) -> Iterator[Span]:
    """A span around some work.

    Args:
        name: of the work.
        headers: of the request that asked for it, for the trace that it belongs to; None inside another span.
    """
    if trace is None:
        yield Span()
        return
    above = None if headers is None else propagate.extract(headers)
    kind = trace.SpanKind.INTERNAL if headers is None else trace.SpanKind.SERVER
    # an exception's message may quote what was asked: it is not recorded
    with trace.get_tracer("amplify").start_as_current_span(
        name, above, kind, record_exception=False, set_status_on_exception=False
    ) as found:
        yield Span(found)


def passed_on() -> dict[str, str]:
    """Headers by which a server behind continues the trace."""
    headers: dict[str, str] = {}
    if trace is not None:
        propagate.inject(headers)
    return headers

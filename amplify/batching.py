"""Which sequences go through a model together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Indices grouped by similar length, at most `batch_tokens` padded tokens a group (one sequence at least)."""
    group: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if group and (len(group) + 1) * lengths[i] > batch_tokens:
            yield group
            group = []
        group.append(i)
    if group:
        yield group

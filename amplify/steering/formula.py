"""The one formula: adding log w to the logits of a span's keys.

For a steered query head with disjoint spans k, factors w_k, attention mass Z_k and partial output N_k of span k,

    o' = (o + sum_k (w_k - 1) N_k) / (1 + sum_k (w_k - 1) Z_k)

is what softmax attention gives once log w_k is added to the logits of span k's keys. PASTA (arXiv 2311.02262, eq. 2)
scales everything *outside* by alpha; softmax cancels the common factor, so w = 1/alpha inside is the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from amplify.errors import InputError
from amplify.steering.spec import MODES, Steering
from amplify.types import Span


@dataclass(frozen=True, slots=True)
class TokenSpan:
    """Tokens [start, end) and the factor w on their attention."""

    start: int
    end: int
    weight: float


class Reach(Protocol):
    """What of a `Steering` (or of what an engine is told of it) says which keys count as outside."""

    @property
    def dynamic(self) -> bool:
        """Whether the factor is found row by row."""
        ...

    @property
    def exempt_generated(self) -> bool:
        """Whether generated tokens are not down-weighted."""
        ...

    @property
    def keep_attention_sink(self) -> bool:
        """Whether the first token is not down-weighted."""
        ...


def token_spans(
    offsets: Sequence[tuple[int, int]], spans: Sequence[Span], steering: Steering, text: str = ""
) -> tuple[TokenSpan, ...]:
    """Map spans of characters to runs of tokens; a token is inside if it shares at least one character.

    Args:
        offsets: characters [start, end) of each token in the rendered text; empty for special tokens.
        spans: in characters of the rendered text.
        steering: gives the factor of spans that name none.
        text: the rendered text, to quote it in errors.

    Returns:
        Disjoint, ascending; neighbours of equal weight are joined.

    Raises:
        InputError: a span without tokens; overlapping spans (or two that share a token) with different factors; a
            factor where the mode sets it itself.
    """
    weights: dict[int, tuple[float, Span]] = {}
    for span in spans:
        if (steering.dynamic or steering.edits_keys) and span.weight is not None:
            why = "has no factors" if steering.edits_keys else "finds the factor from its target"
            raise InputError(f"mode {steering.mode!r} {why}; the span {_quote(span, text)} gives one")
        weight = 1.0 if steering.dynamic else span.weight if span.weight is not None else steering.default_weight
        inside = [i for i, (a, b) in enumerate(offsets) if max(a, span.start) < min(b, span.end)]
        if not inside:
            raise InputError(f"the span {_quote(span, text)} holds no token of the prompt")
        for i in inside:
            before, other = weights.setdefault(i, (weight, span))
            if before != weight:
                raise InputError(
                    f"the spans {_quote(other, text)} and {_quote(span, text)} share a token and give it different "
                    f"weights ({before:g} and {weight:g}); overlapping spans must agree"
                )
    runs: list[TokenSpan] = []
    for i in sorted(weights):
        w = weights[i][0]
        if runs and runs[-1].end == i and runs[-1].weight == w:
            runs[-1] = TokenSpan(runs[-1].start, i + 1, w)
        else:
            runs.append(TokenSpan(i, i + 1, w))
    return tuple(runs)


def key_log_weights(spans: Sequence[TokenSpan], prompt: int, total: int, steering: Reach) -> list[float]:
    """log w of every key of one sequence.

    Args:
        spans: of the prompt's tokens.
        prompt: tokens of the prompt; those behind it were generated, or are scored.
        total: tokens in all.
        steering: says how the sink and generated tokens count.

    Returns:
        `total` numbers. In the dynamic modes: 1 in a span, else 0, the sink being the caller's affair.
    """
    out = [0.0] * total
    if spans and not steering.dynamic:
        if steering.keep_attention_sink:
            out[0] = exempt_log_weight(spans)
        out[prompt:] = [generated_log_weight(spans, steering)] * (total - prompt)
    for span in spans:  # last: a token inside a span is that first of all
        out[span.start : span.end] = [1.0 if steering.dynamic else math.log(span.weight)] * (span.end - span.start)
    return out


def exempt_log_weight(spans: Sequence[TokenSpan]) -> float:
    """What a key outside every span gets that shall not be down-weighted: as much as the strongest span, at least 0."""
    return max([0.0, *(math.log(span.weight) for span in spans)])


def generated_log_weight(spans: Sequence[TokenSpan], steering: Reach) -> float:
    """log w of keys behind the prompt."""
    return exempt_log_weight(spans) if steering.exempt_generated and not steering.dynamic else 0.0


def dynamic_weights(psi: Any, sink: Any, rest: Any, steering: Steering) -> tuple[Any, Any]:
    """Factors of one row from the masses that it has.

    SpotLight (arXiv 2505.12025, eq. 5): w = target / psi where psi < target. Target mass: w = target (1 - psi) /
    (psi (1 - target)). With the sink spared, psi is the share of what the sink leaves, and the sink's own factor
    u = (w psi + rest) / (psi + rest) gives it back exactly the mass that it had.

    Args:
        psi: attention mass on the spans, any array or tensor of floats; 0 in rows that see no span.
        sink: attention mass on the first token where it is spared, same shape, else 0.
        rest: all other mass. Summed by itself, since 1 - psi has lost its digits where psi is near 1.
        steering: a dynamic mode.

    Returns:
        w of the spans' keys and u of the sink's key, both 1 where the row is not steered.
    """
    tiny = 1e-30  # below it a row sees nothing of the spans, and no factor could raise them
    outside = rest if steering.keep_attention_sink else rest + sink
    factors = MODES[steering.mode].factors
    assert factors is not None
    on = (psi > tiny) * 1.0
    w = factors(psi.clip(tiny), outside, steering).clip(tiny) * on + (1.0 - on)
    u = (w * psi + outside) / (psi + outside).clip(tiny) if steering.keep_attention_sink else 1 + 0 * psi
    return w, u * on + (1.0 - on)


def _quote(span: Span, text: str) -> str:
    return f"[{span.start}, {span.end})" + (f" {text[span.start : span.end]!r}" if text else "")

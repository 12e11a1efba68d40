"""How much a model looked at its sources while it said each claim: Lookback ratios (Chuang et al. 2024, 2407.07071).

A check beside citations that asks no more of the model than one pass over the finished answer. High attention is no
proof that a claim rests on the sources, as Shapley values are; a claim that has neither is the one to look at.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from amplify.errors import CapabilityError, InputError
from amplify.locks import lock_of
from amplify.models.base import LocalModel
from amplify.models.chat import encode_with_targets, render
from amplify.shapley.game import Floats
from amplify.sources.context import emphasised
from amplify.sources.result import SourceAttribution
from amplify.types import Span

ROWS = 16  # tokens of the answer whose attention is held at once


@dataclass(frozen=True)
class Lookback:
    """Lookback ratios of an answer.

    Attributes:
        tokens: the ratio of each token of the answer in each head: mean attention on a token of the sources, divided by
            the sum of that and the mean attention on a token behind them (the question, and what was said so far). In
            [0, 1]; 1/2 where both are looked at alike. [tokens, layers, heads]
        owners: number of the claim that each token belongs to. [tokens]

    Example:
        >>> found = Lookback(np.array([[[0.9]], [[0.2]], [[0.4]]]), owners=(0, 1, 1))
        >>> found.ratios.round(2).tolist()
        [0.9, 0.3]
    """

    tokens: Floats
    owners: tuple[int, ...]

    @property
    def features(self) -> Floats:
        """Mean over the tokens of each claim: what a detector is trained on. [claims, layers, heads]"""
        own = np.array(self.owners)
        return np.stack([self.tokens[own == c].mean(axis=0) for c in range(max(own) + 1)])

    @property
    def ratios(self) -> Floats:
        """Mean over heads and layers: the check without a detector. [claims]"""
        means: Floats = self.features.mean(axis=(1, 2))
        return means

    def ungrounded(self, result: SourceAttribution, below: float) -> tuple[int, ...]:
        """Numbers of the claims that neither Shapley values nor attention tie to the sources.

        Args:
            result: what the ratios are of.
            below: a ratio under this is a claim during which the model looked elsewhere; it differs from model to
                model, e.g. a low percentile over claims that are known to be supported.
        """
        pairs = zip(result.claims, self.ratios.tolist(), strict=True)
        return tuple(c for c, (claim, ratio) in enumerate(pairs) if claim.verdict != "supported" and ratio < below)


def lookback(result: SourceAttribution, model: LocalModel, *, sink: bool = False) -> Lookback:
    """Lookback ratios of the answer that was attributed.

    The row that is read for a token is the one that predicts it, as while the answer was written.

    Args:
        result: an attribution of log-probabilities.
        model: the same model, in this process.
        sink: count all that stands before the sources' end as context, the first token included, where idle heads park
            their attention: as published. Otherwise the sources' own tokens alone.

    Raises:
        InputError: votes, which explain no single text.
        CapabilityError: a model that shows no attention over the whole prompt.

    Example:
        >>> model = amplify.TransformersModel(module, tokenizer)  # of transformers, as you have loaded it
        >>> documents = ["Ada is in Bern.", "Bees fly."]
        >>> why = amplify.attribute_sources("Where is Ada?", documents, model, " Bern", granularity="documents")
        >>> lookback(why, model).ratios.shape
        (1,)
    """
    if result.value != "logprob":
        raise InputError("votes explain no single text: attribute with value='logprob'")
    texts = [d.text for d in result.originals]
    marked = emphasised(result.prompt, result.places, texts, result.documents.sources)
    rendered = render(marked, model.tokenizer)
    raw = result.prompt.text
    answer = f" {result.answer}" if raw and not raw[-1].isspace() else result.answer
    encoded, start = encode_with_targets(model.tokenizer, [rendered], [answer])[0]
    own = [held(offsets, rendered.emphasis) for offsets in encoded.offsets[:start]]
    last = max((k for k, inside in enumerate(own) if inside), default=-1)
    if last < 0 or last + 1 >= start:
        raise InputError("the sources are not before the answer's own prompt: there is nothing to look back at")
    context = np.arange(last + 1) if sink else np.flatnonzero(own)
    ratios = _ratios(model, encoded.ids, start, context, last)
    begin = len(rendered.answering.text) + len(answer) - len(result.answer)
    ends = [end - begin for _, end in encoded.offsets[start:]]
    claims = [end for _, end in result.spans] or [len(result.answer)]
    owners = np.clip(np.searchsorted(claims, ends), 0, len(claims) - 1)
    return Lookback(ratios, tuple(owners.tolist()))


def held(offsets: tuple[int, int], spans: tuple[Span, ...]) -> bool:
    """Whether a token holds a character of some spans."""
    return any(offsets[0] < s.end and s.start < offsets[1] for s in spans)


def _ratios(model: LocalModel, ids: tuple[int, ...], start: int, context: Any, last: int) -> Floats:
    """[tokens, layers, heads] of the tokens from `start` on; `last` is the sources' last token."""
    import torch

    module, found = model.module, []
    row = torch.tensor([ids], device=module.device)
    with lock_of(module), torch.inference_mode():
        before = module.config._attn_implementation
        past = module(input_ids=row[:, : start - 1], use_cache=True).past_key_values if start > 1 else None
        module.set_attn_implementation("eager")  # the other kernels do not keep the weights
        try:
            for at in range(start - 1, len(ids) - 1, ROWS):
                end = min(at + ROWS, len(ids) - 1)
                out = module(
                    input_ids=row[:, at:end], past_key_values=past, use_cache=True, output_attentions=True,
                    position_ids=torch.arange(at, end, device=row.device)[None],
                )  # fmt: skip
                past = out.past_key_values
                layers = out.attentions or ()
                if not layers or any(a is None or a.shape[-1] != end for a in layers):
                    raise CapabilityError(f"{module.config.model_type} shows no attention over the whole prompt")
                weights = torch.stack([a[0] for a in layers]).float().cpu().numpy()  # [layers, heads, rows, tokens]
                for k, place in enumerate(range(at, end)):
                    looked = weights[:, :, k, context].mean(axis=-1)
                    elsewhere = weights[:, :, k, last + 1 : place + 1].mean(axis=-1)
                    found.append(looked / np.maximum(looked + elsewhere, 1e-30))
        finally:
            module.set_attn_implementation(before)
    return np.stack(found).astype(np.float64)

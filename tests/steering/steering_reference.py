"""Steering as the papers write it: edit the attention probabilities of an eager float32 model and renormalise.

Nothing here is shared with amplify: no key channels, no cache, no padding, one sequence at a time.
"""

from __future__ import annotations

import math
import sys
from contextlib import contextmanager

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from amplify.steering.keys import load_projections


def edit(probabilities, steering, spans, prompt):
    """Attention rows [heads, queries, keys] of one layer's steered heads, edited in place.

    spans: (first token, one past the last, factor w or None for the steering's own).
    """
    heads, queries, keys = probabilities.shape
    inside = torch.zeros(keys, dtype=torch.bool)
    for a, b, _ in spans:
        inside[a:b] = True
    rows = torch.arange(queries)
    on = {"both": rows >= 0, "prefill": rows < prompt, "decode": rows >= prompt}[steering.phase]
    new = probabilities.double().clone()
    spared = torch.zeros(keys, dtype=torch.bool)
    if steering.keep_attention_sink and not inside[0]:
        spared[0] = True
    if steering.mode in ("pasta", "instaboost"):
        own = 1 / steering.alpha if steering.mode == "pasta" else math.exp(steering.bonus)
        factor = torch.ones(keys, dtype=torch.float64)
        for a, b, w in spans:
            factor[a:b] = own if w is None else w
        top = max(1.0, *(own if w is None else w for _, _, w in spans))
        factor[spared] = top
        if steering.exempt_generated:
            factor[prompt:] = top
        if all(w is None for _, _, w in spans) and steering.mode == "pasta":
            # the paper's own words: outside times alpha, inside as it is
            factor = torch.where(factor > 1, 1.0, steering.alpha).double()
        new = new * factor
        new = new / new.sum(-1, keepdim=True)
    else:
        for h in range(heads):
            for i in range(queries):
                row = new[h, i]
                free = row.clone()
                free[spared] = 0
                total = free.sum()
                psi = free[inside].sum() / total if total > 0 else torch.tensor(0.0)
                if psi <= 0 or (steering.mode == "spotlight" and psi >= steering.target):
                    continue
                if steering.mode == "spotlight":
                    free[inside] *= steering.target / psi
                    free = free / free.sum() * total
                else:
                    free[inside] *= steering.target / psi
                    free[~inside] *= (1 - steering.target) / (1 - psi)
                free[spared] = row[spared]
                new[h, i] = free
    probabilities[:, on] = new[:, on].to(probabilities.dtype)


@contextmanager
def reference(model, steering, spans, prompt):
    """Inside the block an eager `model` steers a single unpadded sequence by the reference."""
    attention_module = next(m for m in model.modules() if hasattr(m, "layer_idx") and "Attention" in type(m).__name__)
    home = sys.modules[type(attention_module).__module__]
    stock = home.eager_attention_forward
    chosen = steering.check(model.config)

    def attention(module, query, key, value, attention_mask, scaling=None, dropout=0.0, softcap=None, **kwargs):
        repeats = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
        logits = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        weights = torch.softmax(logits + attention_mask, -1)
        heads = list(chosen.get(module.layer_idx, ()))
        if heads and spans:
            own = weights[0, heads]
            edit(own, steering, spans, prompt)
            weights[0, heads] = own
        return (weights @ value).transpose(1, 2).contiguous(), weights

    home.eager_attention_forward = attention
    try:
        yield
    finally:
        home.eager_attention_forward = stock


def reference_logprobs(model, ids, steering, spans, prompt):
    """Log-probabilities [tokens, vocabulary] of every next token."""
    with torch.no_grad(), reference(model, steering, spans, prompt):
        return model(torch.tensor([ids]), use_cache=False).logits[0].float().log_softmax(-1)


class Edited(nn.Module):
    """A key layer that edits what it gives for the tokens at these places of one whole sequence."""

    def __init__(self, plain, matrices, places):
        super().__init__()
        self.plain, self.matrices, self.places = plain, matrices, places

    def forward(self, x):
        out = self.plain(x).clone()
        keys = out.view(*out.shape[:2], *self.matrices.shape[:2])
        for place in self.places:
            for head, matrix in enumerate(self.matrices):
                keys[0, place, head] = keys[0, place, head] + matrix @ keys[0, place, head]
        return out


def edited_reference(folder, ids, places, steering):
    """SEKA: log-probabilities of one sequence in one eager pass, the model's key layers replaced, [tokens, words]."""
    plain = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    found = load_projections(steering.projections)
    found = found if steering.rotation is None else found.rotated(steering.rotation)
    for layer in found.positive:
        p, n = found.positive[layer], found.negative[layer]
        matrices = torch.from_numpy((steering.positive_gain * p + steering.negative_gain * n) / 2).float()
        attention = plain.model.layers[layer].self_attn
        name = "k_norm" if hasattr(attention, "k_norm") else "k_proj"
        setattr(attention, name, Edited(getattr(attention, name), matrices, places))
    with torch.inference_mode():
        return plain(torch.tensor([ids])).logits[0].log_softmax(-1)

"""Any tree of tokens through a causal model: packed into one sequence, with a mask that says who sees whom.

Nothing is padded and no key or value is held twice: tokens that share a prefix share its cache entries. Tokens go
through in depth-first order in chunks, and between chunks only the path to the next token is kept, so memory is
bounded by one chunk and one context, whatever the tree's size.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers.cache_utils import Cache, DynamicLayer

from amplify.backends.tree import Ints, Plan, TokenTree, plan
from amplify.errors import CapabilityError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Around = Callable[[torch.Tensor], AbstractContextManager[None]]
"""Entered around each forward pass. Given: for each of its keys, the index in the plan's stream (-1: generated)."""

LOGIT_BYTES = 512 * 2**20  # float32 logits of one forward pass stay below this


class GrowingLayer(DynamicLayer):
    """Keys and values of one layer in a buffer with room to spare: `torch.cat` would copy all of them at each token."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append new entries; returns all keys and all values."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.used = 0
            self.buffers = [x.new_empty((*x.shape[:2], 0, x.shape[3])) for x in (key_states, value_states)]
        total = self.used + key_states.shape[2]
        for i, new in enumerate((key_states, value_states)):
            if total > self.buffers[i].shape[2]:
                size = max(total, 2 * self.buffers[i].shape[2])
                wider = new.new_empty((*new.shape[:2], size, new.shape[3]))
                wider[:, :, : self.used] = self.buffers[i][:, :, : self.used]
                self.buffers[i] = wider
            self.buffers[i][:, :, self.used : total] = new
        self._show(total)
        return self.keys, self.values

    def keep(self, kept: torch.Tensor) -> None:
        """Drop all entries but these (ascending indices)."""
        if self.is_initialized:
            for buffer in self.buffers:
                buffer[:, :, : len(kept)] = buffer.index_select(2, kept)
            self._show(len(kept))

    def _show(self, used: int) -> None:
        self.used = used
        self.keys, self.values = (buffer[:, :, :used] for buffer in self.buffers)


class PackedModel:
    """A causal language model's forward pass over packed tokens.

    Args:
        model: in evaluation mode, with "sdpa" or "eager" attention.

    Raises:
        CapabilityError: the architecture cannot be packed exactly; the message says why.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.device = model.device
        config = model.config.get_text_config(decoder=True)
        self.vocab = int(config.vocab_size)
        self.forwarded = 0  # tokens so far
        kinds = set(getattr(config, "layer_types", None) or ())
        if odd := kinds - {"full_attention", "sliding_attention"}:
            raise CapabilityError(
                f"{config.model_type} has {', '.join(sorted(odd))} layers, whose state cannot branch within one pass: "
                "tree scoring needs full or sliding-window attention"
            )
        if getattr(config, "is_encoder_decoder", False):
            raise CapabilityError(f"{config.model_type} is an encoder-decoder; a decoder-only model is needed")
        attention = getattr(config, "_attn_implementation", None)
        if attention is not None and "flash" in attention:
            raise CapabilityError("flash attention takes no mask of one's own: open the model with sdpa attention")
        window = getattr(config, "sliding_window", None)
        if not getattr(config, "use_sliding_window", True):
            window = None
        self.window: int | None = window
        self.kinds = kinds if "sliding_attention" in kinds else None
        rope = getattr(config, "rope_parameters", None) or {}
        self.rope_limit: int | None = None
        if rope.get("rope_type") in ("dynamic", "longrope"):
            # beyond this length the angles depend on the longest sequence of the pass, so branches would mix
            self.rope_limit = int(
                rope.get("original_max_position_embeddings")
                or getattr(config, "original_max_position_embeddings", None)
                or config.max_position_embeddings
            )
        takes = inspect.signature(model.forward).parameters
        if "position_ids" not in takes:
            raise CapabilityError(
                f"{config.model_type} takes no position_ids, so a token's place in its branch cannot be told"
            )
        self.keeps_logits = "logits_to_keep" in takes
        self._prove()

    def _prove(self) -> None:
        """Refuse a model whose attention does not obey the mask and the positions: try both on a few tokens.

        Catches what no configuration tells: position biases taken from the order in the sequence (ALiBi), masks
        rebuilt inside, positions counted from the mask.
        """
        ids = [(i * 7 + 3) % self.vocab for i in range(7)]
        tree = TokenTree(segments=(tuple(ids[:3]), tuple(ids[3:5]), tuple(ids[5:])), parents=(-1, 0, 0))
        name = self.model.config.model_type
        try:
            packed = self.log_probs(plan(tree, [1, 2]), chunk=len(ids))  # one pass: all rests on the mask
            with torch.inference_mode():
                plain = []
                for branch in (ids[3:5], ids[5:]):
                    whole = torch.tensor([ids[:3] + branch], device=self.device)
                    logits = self.model(input_ids=whole, use_cache=False).logits[0, 2:4].float()
                    plain += logits.log_softmax(-1).gather(1, whole[0, 3:, None])[:, 0].tolist()
        except (RuntimeError, TypeError, ValueError, KeyError, AttributeError) as error:
            raise CapabilityError(
                f"{name} does not take a mask of one's own, so trees are not possible: {error}"
            ) from error
        # rounding alone: float32 agrees to 1e-4, half precision to a few steps of its 8 to 11 bits
        allowed = 1e-3 if self.model.dtype == torch.float32 else 0.25
        if not np.allclose(packed, plain, rtol=0, atol=allowed):
            raise CapabilityError(
                f"{name} does not obey an attention mask with explicit positions exactly (log-probabilities differ by "
                f"{np.abs(packed - plain).max():.3g} on a trial tree), so trees are not possible with it"
            )
        self.forwarded = 0

    def cache(self) -> Cache:
        """An empty cache."""
        return Cache(layer_class_to_replicate=GrowingLayer)

    def forward(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        sees: torch.Tensor,
        key_positions: torch.Tensor,
        cache: Cache,
        rows: torch.Tensor,
    ) -> torch.Tensor:
        """One pass over new tokens, whose keys and values are added to the cache.

        Args:
            ids, positions: (q,) new tokens.
            sees: (q, k) bool; the k keys are what the cache holds, followed by the new tokens.
            key_positions: (k,).
            rows: (r,) which of the new tokens' outputs are wanted; at least one.

        Returns:
            (r, vocabulary) logits in float32.
        """
        masks = self._additive(sees)
        if self.window is not None:
            near = key_positions[None, :] > positions[:, None] - self.window
            sliding = self._additive(sees & near)
            masks = {"full_attention": masks, "sliding_attention": sliding} if self.kinds else sliding
        extra = {"logits_to_keep": rows} if self.keeps_logits else {}
        logits = self.model(
            input_ids=ids[None],
            position_ids=positions[None],
            attention_mask=masks,
            past_key_values=cache,
            use_cache=True,
            **extra,
        ).logits[0]
        self.forwarded += len(ids)
        return (logits if self.keeps_logits else logits[rows]).float()

    def step(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        sees: torch.Tensor,
        key_positions: torch.Tensor,
        cache: Cache,
        held: torch.Tensor,
        around: Around | None,
    ) -> torch.Tensor:
        """`forward` for generated tokens, each of whose outputs is wanted; `held` is what `around` is given."""
        with around(held) if around else nullcontext():
            rows = torch.arange(len(ids), device=ids.device)
            return self.forward(ids, positions, sees, key_positions, cache, rows)

    def _additive(self, sees: torch.Tensor) -> torch.Tensor:
        """(q, k) bool to the (1, 1, q, k) summand that eager and sdpa attention both take."""
        hidden = torch.finfo(self.model.dtype).min
        return torch.zeros(sees.shape, dtype=self.model.dtype, device=sees.device).masked_fill_(~sees, hidden)[
            None, None
        ]

    @torch.inference_mode()
    def log_probs(self, plan: Plan, chunk: int, around: Around | None = None) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Log-probability of each wanted token of a plan.

        Args:
            plan: from `tree.plan`.
            chunk: tokens per forward pass, at most.
            around: see `Around`.

        Returns:
            (m,) natural log.
        """
        stream = OnDevice(plan, self.device)
        out = torch.empty(len(plan.targets), dtype=torch.float32, device=self.device)
        by_row = np.argsort(plan.read_at, kind="stable")
        sorted_rows = plan.read_at[by_row]
        targets = torch.from_numpy(plan.targets[by_row]).to(self.device)
        cache, kept = self.cache(), np.zeros(0, np.int64)
        for begin, end in self.chunks(plan, chunk):
            keys = np.concatenate([kept, np.arange(begin, end)])
            low, high = np.searchsorted(sorted_rows, [begin, end])
            rows, which = np.unique(sorted_rows[low:high] - begin, return_inverse=True)
            logits = stream.forward(self, begin, end, keys, cache, rows, around)
            if high > low:
                row = torch.from_numpy(which).to(self.device)
                out[low:high] = logits[row, targets[low:high]] - logits.logsumexp(-1)[row]
            kept = shrink(cache, keys, plan.path(end), self.device)
        result = np.empty(len(plan.targets), np.float64)
        result[by_row] = out.cpu().numpy()
        return result

    def chunks(self, plan: Plan, chunk: int, begin: int = 0, end: int | None = None) -> Iterator[tuple[int, int]]:
        """Cut the stream [begin, end) so that neither tokens nor wanted logits of one pass go over their bound."""
        end = len(plan.ids) if end is None else end
        most = max(1, LOGIT_BYTES // (4 * self.vocab))
        reads = np.unique(plan.read_at)
        while begin < end:
            stop = min(begin + chunk, end)
            inside = reads[np.searchsorted(reads, begin) :]
            if len(inside) > most:
                stop = min(stop, int(inside[most]))
            yield begin, stop
            begin = stop


class OnDevice:
    """A plan's arrays on the model's device."""

    def __init__(self, plan: Plan, device: torch.device) -> None:
        self.plan = plan
        self.ids, self.positions, self.node, self.last = (
            torch.from_numpy(x).to(device) for x in (plan.ids, plan.positions, plan.node, plan.last)
        )

    def sees(self, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """Which stream tokens `keys` (k,) each of `queries` (q,) sees: (q, k) bool."""
        mask = (keys[None, :] <= queries[:, None]) & (self.last[keys][None, :] >= self.node[queries][:, None])
        if self.plan.hidden:
            # node by node on the host, then spread over the tokens
            asking, q = self.node[queries].unique(return_inverse=True)
            asked, k = self.node[keys].unique(return_inverse=True)
            unseen = np.zeros((len(asking), len(asked)), np.bool_)
            places = asked.cpu().numpy()
            for i, rank in enumerate(asking.tolist()):
                if (ranks := self.plan.hidden.get(rank)) is not None:
                    unseen[i] = np.isin(places, ranks)
            mask &= ~torch.from_numpy(unseen).to(mask.device)[q][:, k]
        return mask

    def forward(
        self, model: PackedModel, begin: int, end: int, keys: Ints, cache: Cache, rows: Ints, around: Around | None
    ) -> torch.Tensor:
        """Forward stream tokens [begin, end) behind the cached `keys[: begin - end]`; logits at `rows` of them."""
        at = torch.from_numpy(keys).to(self.ids.device)
        new = at[len(keys) - (end - begin) :]
        wanted = torch.from_numpy(rows if len(rows) else np.zeros(1, np.int64)).to(at.device)
        with around(at) if around else nullcontext():
            return model.forward(
                self.ids[new], self.positions[new], self.sees(new, at), self.positions[at], cache, wanted
            )


def shrink(cache: Cache, keys: Ints, kept: Ints, device: torch.device) -> Ints:
    """Drop all cache entries but `kept`, a subset of `keys`; both are ascending. Returns `kept`."""
    if len(kept) < len(keys):
        where = torch.from_numpy(np.searchsorted(keys, kept)).to(device)
        for layer in cache.layers:
            layer.keep(where)
    return kept

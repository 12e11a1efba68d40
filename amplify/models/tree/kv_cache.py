"""Keys and values between passes: a cache that grows, one that keeps a path, and beginnings that are remembered."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from transformers.cache_utils import DynamicLayer

from amplify.models.tree.tree import Ints, TokenTree, TreePlan, common_prefix, plan_tree


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


class CacheUpdate:
    """What every layer does in the pass that comes next. Changed before each pass.

    Attributes:
        after: (k,) ascending indices of what is kept, into what a layer holds followed by the pass's new tokens.
        recalled: (r,) slots of a `PrefixCache` whose entries stand before these in the pass.
        rows, slots: (w,) new tokens, by their number, and the slots that they are written to.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.after = self.recalled = self.rows = self.slots = torch.zeros(0, dtype=torch.int64, device=device)

    def on_device(self, indices: Ints) -> torch.Tensor:
        """Indices as a tensor."""
        return torch.from_numpy(indices).to(self.device)

    def keep(self, after: Ints) -> None:
        """Set `after`."""
        self.after = self.on_device(after)


class PrefixStore:
    """Keys and values of one layer by slot, of which there are `most`."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.buffers: list[torch.Tensor] = []

    def read(self, slots: torch.Tensor) -> list[torch.Tensor]:
        """Keys and values of some slots."""
        return [buffer.index_select(2, slots) for buffer in self.buffers]

    def write(self, slots: torch.Tensor, new: tuple[torch.Tensor, torch.Tensor]) -> None:
        """Fill some slots."""
        room, wanted = self.buffers[0].shape[2] if self.buffers else 0, int(slots.max()) + 1
        if wanted > room:
            size = min(max(wanted, 2 * room), self.most)
            wider = [x.new_empty((*x.shape[:2], size, x.shape[3])) for x in new]
            for buffer, grown in zip(self.buffers, wider, strict=False):
                grown[:, :, :room] = buffer
            self.buffers = wider
        for buffer, x in zip(self.buffers, new, strict=True):
            buffer.index_copy_(2, slots, x)


class BranchCacheLayer(DynamicLayer):
    """Keys and values of one layer, of which a pass leaves only those that the next one sees.

    Which those are is known before the pass, so the others go as soon as this layer's attention is through.

    Args:
        change: what to do in each pass.
        store: this layer's part of a `PrefixCache`.
    """

    def __init__(self, change: CacheUpdate, store: PrefixStore | None = None) -> None:
        super().__init__()
        self.change, self.store = change, store

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """All keys and all values of this pass."""
        change = self.change
        keys, values = super().update(key_states, value_states)
        if len(change.after) < keys.shape[2]:
            self.keys, self.values = (x.index_select(2, change.after) for x in (keys, values))
        if self.store is not None:
            if len(change.recalled):
                recalled = self.store.read(change.recalled)
                keys, values = (torch.cat([old, x], 2) for old, x in zip(recalled, (keys, values), strict=True))
            if len(change.slots):
                new = (key_states.index_select(2, change.rows), value_states.index_select(2, change.rows))
                self.store.write(change.slots, new)
        return keys, values


ROOT, NONE, WANTED = -1, -2, -3  # what stands for a slot: nothing comes before; it has none; it is to have one


class PrefixCache:
    """Keys and values of what stood before the wanted tokens of earlier calls, as a trie of tokens.

    Made by `TransformersModel.prefix_cache` and passed to its `score`: whoever holds it decides how long it lives.
    Where there is no more room the least recently used entries go, the deepest of them first, so that what is
    left is always whole beginnings.

    Args:
        most: tokens that it holds at most.

    Attributes:
        recalled: tokens so far that were not forwarded because they were here.
    """

    def __init__(self, most: int) -> None:
        self.most, self.recalled = most, 0
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self.stores: list[PrefixStore] = []
        self._slots: dict[tuple[int, int], int] = {}  # (slot of the token before or ROOT, token id) -> slot
        self._keys: list[tuple[int, int]] = []  # the inverse
        self._free: list[int] = []
        self._used = np.full(self.most, -1)  # by slot: the last call that needed it; -1: empty
        self._depth = np.zeros(self.most, np.int64)  # by slot: the token's position
        self._call = 0
        self._at = np.zeros(0, np.int64)  # by stream token of this call: its slot, or NONE
        self._fresh = np.zeros(0, np.bool_)  # by stream token of this call: whether this call fills that slot

    @property
    def tokens(self) -> int:
        """How many it holds."""
        return len(self._slots)

    def store(self, layer: int) -> PrefixStore:
        """A layer's keys and values."""
        while len(self.stores) <= layer:
            self.stores.append(PrefixStore(self.most))
        return self.stores[layer]

    def find(self, plan: TreePlan) -> Ints:
        """Which stream tokens of a plan are here, so that they need not be forwarded. Makes room for the others.

        Looked for and kept is what stands before the first token of a path that is read from.

        Args:
            plan: of a tree that hides nothing and in which each token's position follows that of the one before it.
        """
        self._call += 1
        read = np.zeros(len(plan.ids), np.bool_)
        read[plan.read_at] = True
        path: list[int] = []  # stream indices
        before: list[int] = []  # of each token: the stream index of the one before it, or ROOT
        at: list[int] = []
        for k, (token, depth, stop) in enumerate(
            zip(plan.ids.tolist(), plan.positions.tolist(), read.tolist(), strict=True)
        ):
            del path[depth:]
            before.append(path[-1] if path else ROOT)
            path.append(k)
            slot = at[before[k]] if before[k] != ROOT else ROOT
            if stop:
                slot = NONE
            elif slot >= 0 or slot == ROOT:
                slot = self._slots.get((slot, token), WANTED)
            at.append(slot)
        self._at = np.array(at, np.int64)
        known = np.flatnonzero(self._at >= 0)
        self._used[self._at[known]] = self._call
        self.recalled += len(known)
        wanted = np.flatnonzero(self._at == WANTED)
        self._make_room(len(wanted))
        for k in wanted.tolist():
            ahead = int(self._at[before[k]]) if before[k] != ROOT else ROOT
            self._at[k] = self._take(ahead, int(plan.ids[k]), int(plan.positions[k]))
        self._fresh = np.zeros(len(plan.ids), np.bool_)
        self._fresh[wanted] = self._at[wanted] >= 0
        return known

    def serve(self, change: CacheUpdate, recalled: Ints, new: Ints) -> None:
        """Say what the next pass reads here and writes here, both as stream tokens of the plan last looked for."""
        change.recalled = change.on_device(self._at[recalled])
        rows = np.flatnonzero(self._fresh[new])
        change.rows, change.slots = change.on_device(rows), change.on_device(self._at[new[rows]])

    def _make_room(self, wanted: int) -> None:
        short = wanted - (self.most - self.tokens)
        if short <= 0:
            return
        # who uses a token uses those before it: none of them is older, and the deeper go first
        order = np.lexsort((-self._depth, self._used))
        old = order[(self._used[order] >= 0) & (self._used[order] < self._call)][:short]
        self._used[old] = -1
        for slot in old.tolist():
            del self._slots[self._keys[slot]]
            self._free.append(slot)

    def _take(self, before: int, token: int, depth: int) -> int:
        """A slot for a token, NONE where none is left or the one before it has none."""
        if before == NONE or self.tokens == self.most:
            return NONE
        if self._free:
            slot = self._free.pop()
        else:
            slot = len(self._keys)
            self._keys.append((0, 0))
        self._keys[slot] = (before, token)
        self._slots[before, token] = slot
        self._used[slot], self._depth[slot] = self._call, depth
        return slot


STEP = 32  # a shared beginning is cut to a multiple of so many tokens, so that the batches of a program share one


class Beginnings:
    """What all prompts of a call begin with, kept for later calls that begin alike; see `TransformersModel.sharing`.

    Unlike those of a `PrefixCache`, the passes behind a beginning are the same ones whether it was here or had to be
    forwarded, so that a call gives the same numbers to the last bit whatever was asked before it.

    Args:
        most: tokens that it holds at most; what was used longest ago goes first.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._held: OrderedDict[tuple[int, ...], PrefixCache] = OrderedDict()

    def __len__(self) -> int:
        """Tokens that it holds."""
        return sum(map(len, self._held))

    def of(
        self, prompts: Sequence[tuple[int, ...]], forward: Callable[[TreePlan, PrefixCache], Any]
    ) -> PrefixCache | None:
        """The memory of what these prompts all begin with; None where that is too short, or nothing is shared.

        Args:
            prompts: tokens of each.
            forward: passes a plan through the model, which fills a memory.
        """
        first, last = min(prompts), max(prompts)  # sorted: the ends agree where all do
        shared = common_prefix(first, last) // STEP * STEP
        if first == last or not STEP <= shared <= self.most:
            return None
        tokens = first[:shared]
        held = self._held.pop(tokens, None)
        if held is None or not held.tokens:  # a pass that failed has emptied it
            held = PrefixCache(shared - 1)  # of the last token, which is read from, nothing is kept
            forward(plan_tree(TokenTree((tokens, tokens[:1]), (-1, 0)), [1]), held)
        self._held[tokens] = held
        while len(self) > self.most:
            self._held.popitem(last=False)
        return held

"""How much more likely steered heads make the wanted answer: log-probability margins, many head sets a pass.

A steered head in layer L changes nothing below L, and nothing before the first emphasised token. So for each item the
plain pass is made once, and every head set starts from its hidden states at the lowest steered layer, behind the cache
of what stands before the emphasis; the wanted answer and its foil are two branches behind one prompt. That leaves about
a quarter of the arithmetic of scoring each set by itself, and the numbers are the same (a test holds them so).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from amplify.errors import InputError
from amplify.locks import lock_of
from amplify.models.base import LocalModel, ScoringModel, Spread
from amplify.steering import Steering
from amplify.types import Prompt

if TYPE_CHECKING:
    import torch

SETS = 48  # head sets that a worker measures at a time
HeadSet = frozenset[tuple[int, int]]  # (layer, query head)


@dataclass(frozen=True)
class Item:
    """One sample of a task.

    Attributes:
        id: of its example.
        prompt: with the emphasis.
        gold: the wanted continuation, as it follows the prompt.
        foil: what it must beat; "" for nothing.
        whole: sum the log-probabilities (a choice between two objects) instead of averaging them over tokens.
    """

    id: str
    prompt: Prompt
    gold: str
    foil: str = ""
    whole: bool = False


def by_layer(heads: HeadSet) -> dict[int, tuple[int, ...]]:
    """Head set as `Steering.heads`."""
    out: dict[int, list[int]] = {}
    for layer, head in sorted(heads):
        out.setdefault(layer, []).append(head)
    return {layer: tuple(chosen) for layer, chosen in out.items()}


class Margins:
    """Margins of one task's items under head sets: log P(gold) − log P(foil).

    Args:
        model: whose heads are steered. `transformers:` takes the fast way, any other model scores set by set.
        items: the samples.
        steering: everything but the heads.
        target_tokens: only so many first tokens of gold and foil count.

    Raises:
        InputError: an item without emphasis, or whose emphasis is not followed by anything.
    """

    def __init__(
        self, model: ScoringModel, items: Sequence[Item], steering: Steering, *, target_tokens: int = 24
    ) -> None:
        for item in items:
            if not item.prompt.emphasis:
                raise InputError(f"item {item.id!r} emphasises nothing, so steering cannot change its answer")
        self.model, self.items, self.steering = model, list(items), steering
        self.target_tokens = target_tokens
        self._ready: dict[int, Any] = {}
        self._skips: bool | None = None

    def __call__(self, number: int, sets: Sequence[HeadSet]) -> list[float]:
        """Margins of item `number` under each head set; the empty set is the plain model."""
        if isinstance(self.model, LocalModel) and not self.steering.dynamic:
            with lock_of(self.model.module):
                return self._packed(number, sets)
        return [self._plainly(self.items[number], heads) for heads in sets]

    def each(
        self, asked: Iterable[tuple[int, Sequence[HeadSet]]]
    ) -> Iterator[tuple[int, Sequence[HeadSet], list[float]]]:
        """(number, head sets, margins) for each item's number and head sets, in any order where there are workers."""
        if not isinstance(self.model, Spread):
            yield from ((number, sets, self(number, sets)) for number, sets in asked)
            return
        parts = (
            (number, sets[start : start + SETS], self.items[number], self.steering, self.target_tokens)
            for number, sets in asked
            for start in range(0, len(sets), SETS)
        )
        yield from self.model.each(_measured, parts)

    def _plainly(self, item: Item, heads: HeadSet) -> float:
        steering = replace(self.steering, heads=by_layer(heads)) if heads else None
        texts = [text for text in (item.gold, item.foil) if text]
        found = self.model.score([item.prompt] * len(texts), texts, steering=steering)
        sums = [self._total(item, list(one.logprobs)) for one in found]
        return sums[0] - (sums[1] if len(sums) > 1 else 0.0)

    def _total(self, item: Item, values: Sequence[float]) -> float:
        kept = values[: self.target_tokens]
        return sum(kept) if item.whole else sum(kept) / len(kept)

    def _packed(self, number: int, sets: Sequence[HeadSet]) -> list[float]:
        import torch

        if number not in self._ready:
            self._ready[number] = _Laid(self.model, self.items[number], self.steering, self.target_tokens)
        laid = self._ready[number]
        if self._skips is None:
            self._skips = laid.can_skip()
        out = [0.0] * len(sets)
        # sets of one lowest layer together: they start from the same hidden states
        first = {i: min((layer for layer, _ in heads), default=-1) for i, heads in enumerate(sets)}
        for layer in sorted(set(first.values())):
            members = [i for i in first if first[i] == layer]
            most = max(1, 4 * getattr(self.model, "max_batch_tokens", 256) // len(laid.ids))
            for k in range(0, len(members), most):
                part = members[k : k + most]
                with torch.inference_mode():
                    rows = laid.log_probs([sets[i] for i in part], layer if self._skips and layer > 0 else 0)
                for i, values in zip(part, rows, strict=True):
                    cut = laid.gold_tokens
                    gold, foil = values[:cut], values[cut:]
                    item = self.items[number]
                    out[i] = self._total(item, gold) - (self._total(item, foil) if foil else 0.0)
        return out


def _measured(model: Any, asked: tuple[int, Sequence[HeadSet], Item, Steering, int]) -> tuple[int, Any, list[float]]:
    number, sets, item, steering, target_tokens = asked
    return number, sets, Margins(model, [item], steering, target_tokens=target_tokens)(0, sets)


class _Laid:
    """An item's tokens from the emphasis on, with the plain model's cache before and hidden states at every layer."""

    def __init__(self, model: Any, item: Item, steering: Steering, target_tokens: int) -> None:
        import torch

        from amplify.models import chat
        from amplify.steering.formula import token_spans

        self.model, self.steering = model.module, replace(steering, heads={0: (0,)})
        rendered = chat.render(item.prompt, model.tokenizer)
        answers = [a for a in (item.gold, item.foil) if a]
        pairs = chat.encode_with_targets(model.tokenizer, [rendered] * len(answers), answers)
        ids = [list(e.ids)[: start + target_tokens] for e, start in pairs]
        starts = [start for _, start in pairs]
        shared = min(starts)
        while any(sequence[:shared] != ids[0][:shared] for sequence in ids):
            shared -= 1
        spans = token_spans(pairs[0][0].offsets, rendered.emphasis, self.steering, rendered.text)
        if spans[-1].end > shared:
            raise InputError(f"item {item.id!r}: the emphasis runs into the answer")
        # a sink that is spared changes the rows before the emphasis too
        before = 0 if self.steering.keep_attention_sink else min(spans[0].start, shared - 1)
        branches = [sequence[shared:-1] for sequence in ids]
        stream = [*ids[0][before:shared], *(token for branch in branches for token in branch)]
        trunk = shared - before
        positions = list(range(before, shared))
        read, targets, at = [], [], trunk
        n = len(stream)
        sees = torch.ones(n, n, dtype=torch.bool).tril()
        for sequence, branch, start in zip(ids, branches, starts, strict=True):
            positions += range(shared, shared + len(branch))
            sees[at : at + len(branch), trunk:at] = False  # no branch sees an earlier one
            for i in range(start, len(sequence)):
                read.append(trunk - 1 if i == shared else at + i - 1 - shared)
                targets.append(sequence[i])
            at += len(branch)
        self.gold_tokens = len(ids[0]) - starts[0]
        self.ids, self.before, self.shared = stream, before, shared
        device = self.model.device
        hidden = torch.finfo(self.model.dtype).min
        mask = torch.cat([torch.ones(n, before, dtype=torch.bool), sees], 1)
        self.mask = torch.zeros(mask.shape, dtype=self.model.dtype).masked_fill_(~mask, hidden)[None, None].to(device)
        self.stream = torch.tensor([stream], device=device)
        self.positions = torch.tensor([positions], device=device)
        self.rows, where = torch.tensor(read, device=device).unique(return_inverse=True)
        self.where = where
        self.targets = torch.tensor(targets, device=device)
        self.spans = spans
        self.prefix: list[tuple[torch.Tensor, torch.Tensor]] = []
        with torch.inference_mode():
            if before:
                cache = self.model(
                    input_ids=torch.tensor([ids[0][:before]], device=device), use_cache=True, logits_to_keep=1
                ).past_key_values
                self.prefix = [(layer.keys, layer.values) for layer in cache.layers]
            made = self.model(
                input_ids=self.stream, output_hidden_states=True, logits_to_keep=self.rows, **self._around(1, 0)
            )
        self.hidden = made.hidden_states
        self.plain = self._read(made.logits)

    def _around(self, n: int, layer: int) -> dict[str, Any]:
        """Cache, mask and positions of a pass of n rows that starts at a layer."""
        from transformers import DynamicCache

        cache = DynamicCache(config=self.model.config) if not self.prefix else DynamicCache()
        for i, (keys, values) in enumerate(self.prefix):
            # layer 0 tells how long the cache is; layers below the first that runs are never asked
            if i == 0 or i >= layer:
                cache.update(keys.expand(n, -1, -1, -1), values.expand(n, -1, -1, -1), i)
            else:
                cache.update(keys[:, :, :0], values[:, :, :0], i)
        return {
            "attention_mask": self.mask.expand(n, -1, -1, -1),
            "position_ids": self.positions.expand(n, -1),
            "past_key_values": cache,
            "use_cache": True,
        }

    def _read(self, logits: torch.Tensor) -> list[list[float]]:
        """Log-probabilities of gold's tokens, then foil's; one row per head set."""
        log_probs = logits.float().log_softmax(-1)
        return [[float(x) for x in row] for row in log_probs[:, self.where, self.targets]]

    def log_probs(self, sets: Sequence[HeadSet], layer: int) -> list[list[float]]:
        """Under each head set, none of which has a head below `layer`."""
        import torch

        from amplify.steering.attention import steered_by
        from amplify.steering.plan import plan_steering

        if not any(sets):
            return self.plain * len(sets)
        n = len(sets)
        total = self.before + len(self.ids)
        laid = plan_steering(
            self.model,
            [replace(self.steering, heads=by_layer(heads)) if heads else None for heads in sets],
            [self.spans if heads else () for heads in sets],
            torch.ones(n, total, dtype=torch.long, device=self.model.device),
            [self.shared] * n,
        )
        given: dict[str, Any] = {"input_ids": self.stream.expand(n, -1)}
        if layer:
            given = {"inputs_embeds": self.hidden[layer].expand(n, -1, -1)}
        with _from_layer(self.model, layer), steered_by(self.model, laid):
            logits = self.model(**given, logits_to_keep=self.rows, **self._around(n, layer)).logits
        return self._read(logits)

    def can_skip(self) -> bool:
        """Whether this architecture may start at a middle layer: tried on the plain model, not believed."""
        import torch

        middle = len(self.hidden) // 2
        try:
            with torch.inference_mode(), _from_layer(self.model, middle):
                logits = self.model(
                    inputs_embeds=self.hidden[middle], logits_to_keep=self.rows, **self._around(1, middle)
                ).logits
        except (AttributeError, TypeError, RuntimeError, IndexError, ValueError):
            return False
        tried = self._read(logits)[0]
        return max(abs(a - b) for a, b in zip(tried, self.plain[0], strict=True)) < 1e-3


@contextmanager
def _from_layer(model: Any, layer: int) -> Iterator[None]:
    """Inside the block the decoder begins at this layer."""
    import torch

    decoder = model.get_decoder()
    layers = decoder.layers if layer else None
    try:
        if layers is not None:
            decoder.layers = torch.nn.ModuleList(list(layers)[layer:])
        yield
    finally:
        if layers is not None:
            decoder.layers = layers


def heads_of(model_heads: Mapping[int, Sequence[int]]) -> HeadSet:
    """`Steering.heads` as a head set."""
    return frozenset((layer, head) for layer, chosen in model_heads.items() for head in chosen)

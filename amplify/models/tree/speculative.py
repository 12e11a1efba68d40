"""Greedy decoding that verifies drafts: a forward pass writes as many tokens as a draft agrees with, and one more.

Prompts are read as in `decode`: what they share is read once and stays from batch to batch. Each pass goes over a small
tree of drafts behind every prompt (speculative decoding with a tree, arXiv 2305.09781); what the model would not have
written itself leaves the cache again. `DraftCache` makes the drafts as TextGenSHAP's growing speculation tree
does (arXiv 2312.01279, section 3.3): answers to similar prompts, and where an answer leaves those, what followed its
last words elsewhere (prompt lookup).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers.cache_utils import Cache

from amplify.errors import InputError
from amplify.locks import lock_of
from amplify.models import chat
from amplify.models.tree.decode import batches, prompt_plan
from amplify.models.tree.forward import LOGIT_BYTES, Limits, OnDevice, PackedModel
from amplify.models.tree.kv_cache import GrowingLayer
from amplify.models.tree.tree import Ints, TokenTree, TreePlan, common_prefix, plan_tree, trie
from amplify.types import Completion, Prompt, Sampling

if TYPE_CHECKING:
    from amplify.models.transformers import TransformersModel


Tokens = tuple[int, ...]


@torch.inference_mode()
def speculate(
    model: PackedModel,
    prompts: Sequence[Tokens],
    *,
    propose: Callable[[int, Tokens], Sequence[Tokens]],
    complete: Callable[[int, Tokens], bool],
    done: Callable[[int, Tokens, int], None],
    room: int,
    first: int,
    limits: Limits,
) -> None:
    """Continue every prompt greedily.

    Args:
        model: the model.
        prompts: token ids, none empty.
        propose: (prompt index, its new tokens) -> drafts of what follows, none empty; none at all is fine.
        complete: (prompt index, its new tokens) -> whether they are all; checked token by token.
        done: (prompt index, its new tokens, forward passes that it took part in: the one that read its end and those
            behind it), called as soon as a prompt is through.
        room: cache entries that new tokens and drafts of one prompt take, at most.
        first: prompts of the first batch, at most; each batch may be twice as large as the one before it.
        limits: how much is held and computed at once.
    """
    whole = prompt_plan(prompts)
    fitting = batches(whole, room, limits.cache, max(1, LOGIT_BYTES // (4 * model.vocab)))
    plans = list(_growing(fitting, first))
    cache, shared = Cache(layer_class_to_replicate=_Layer), 0
    for number, batch in enumerate(plans):
        # in stream order, what a later batch shares with this one it shares with this one's last prompt
        follow = prompts[plans[number + 1][0]] if number + 1 < len(plans) else ()
        spared = min(common_prefix(prompts[batch[-1]], follow), max(len(follow) - 1, 0))
        new: dict[int, Tokens] = dict.fromkeys(batch, ())
        active, passes = batch, 0
        seen = torch.zeros(1, 0, dtype=torch.bool, device=model.device)  # of the cache's entries, by each active prompt
        places = torch.zeros(0, dtype=torch.int64, device=model.device)  # positions of these
        while active:
            passes += 1
            drafts = [list(propose(i, new[i])) or [(0,)] for i in active]
            if passes == 1:
                forest = _Forest([prompts[i] for i in active], drafts, together=True)
                row = np.zeros(len(forest.plan.ids), np.int64)
            else:
                depths = [len(prompts[i]) + len(new[i]) - 1 for i in active]
                forest = _Forest([new[i][-1:] for i in active], drafts, together=False, depths=depths)
                row = forest.owner
            stream = OnDevice(forest.plan, model.device)
            greedy = _greedy(model, stream, seen, row, places, cache, shared if passes == 1 else 0, limits.chunk)
            found = [forest.agreed(k, greedy) for k in range(len(active))]
            at = torch.tensor([f[1] for f in found], device=model.device)
            fresh = stream.sees(at, torch.arange(len(forest.plan.ids), device=model.device))
            held = seen.shape[1]
            seen = torch.cat([seen if passes > 1 else seen.expand(len(active), 0), fresh], 1)
            places = torch.cat([places, stream.positions])
            if passes == 1:
                spare = seen[-1] & (places < spared)
            else:
                spare = torch.cat([spare, spare.new_zeros(len(places) - held)])
            going = []
            for k, (i, (tokens, _)) in enumerate(zip(active, found, strict=True)):
                for token in tokens:
                    new[i] = (*new[i], token)
                    if complete(i, new[i]):
                        done(i, new[i], passes)
                        break
                else:
                    going.append(k)
            active = [active[k] for k in going]
            seen = seen[torch.tensor(going, dtype=torch.int64, device=model.device)]
            useful = seen.any(0) | spare
            # drafts that came to nothing leave at once; to move the rest costs about as much as a few passes with it
            if useful[:held].sum() >= 0.75 * held and active:
                useful[:held] = True
            else:
                held = 0
            kept = useful.nonzero()[:, 0]
            for layer in cache.layers:
                layer.keep_behind(held, kept)
            seen, places, spare = seen[:, kept], places[kept], spare[kept]
        shared = spared


class _Layer(GrowingLayer):
    """Keys and values whose last entries can be dropped without moving those before them."""

    def keep_behind(self, start: int, kept: torch.Tensor) -> None:
        """Drop all entries but these (ascending indices), among which all below `start` are."""
        if self.is_initialized:
            for buffer in self.buffers:
                buffer[:, :, start : len(kept)] = buffer.index_select(2, kept[start:])
            self._show(len(kept))


class _Forest:
    """Drafts behind beginnings, as one plan.

    Args:
        beginnings: of each prompt.
        drafts: of each prompt, at least one; the last token of each is compared and not forwarded.
        together: whether what beginnings share is forwarded once.
        depths: positions at which beginnings that stand apart begin.

    Attributes:
        plan: the tokens to be forwarded.
        owner: (tokens,) which prompt each belongs to, where they stand apart.
    """

    def __init__(
        self,
        beginnings: Sequence[Tokens],
        drafts: Sequence[Sequence[Tokens]],
        *,
        together: bool,
        depths: Sequence[int] = (),
    ) -> None:
        self.drafts = drafts
        every = range(len(beginnings))
        members = [list(every)] if together else [[k] for k in every]
        segments: list[Tokens] = []
        parents: list[int] = []
        positions: dict[int, int] = {}
        nodes: list[list[list[int]]] = [[] for _ in beginnings]  # of each prompt's each draft
        ranks: list[int] = []  # node -> prompt
        for group in members:
            pairs = [(k, draft) for k in group for draft in drafts[k]]
            tree, paths = trie([beginnings[k] + d for k, d in pairs], [len(beginnings[k]) for k, _ in pairs])
            base = len(segments)
            if not together:
                positions[base] = depths[group[0]]
            segments += tree.segments
            parents += [p if p < 0 else base + p for p in tree.parents]
            ranks += [group[0]] * len(tree.segments)
            for (k, draft), path in zip(pairs, paths, strict=True):
                nodes[k].append([base + n for n in _last(tree, path, len(draft))])
        wanted = sorted({n for each in nodes for route in each for n in route})
        self.plan: TreePlan = plan_tree(TokenTree(tuple(segments), tuple(parents), positions=positions), wanted)
        self.owner = np.array(ranks, np.int64)[self.plan.node]  # tries come in depth-first order: rank is node
        ends = np.cumsum([0, *self.plan.lengths])
        read = {n: self.plan.read_at[a:b].tolist() for n, a, b in zip(wanted, ends, ends[1:], strict=False)}
        self.read = [[[r for n in route for r in read[n]] for route in each] for each in nodes]

    def agreed(self, prompt: int, greedy: Ints) -> tuple[Tokens, int]:
        """What one prompt's drafts and the model agree on, and the model's own token where they part.

        Args:
            prompt: which.
            greedy: (tokens,) what the model writes behind each forwarded token.

        Returns:
            The longest such continuation, and the place in the stream where its last token was read.
        """
        best: tuple[Tokens, int] = ((), -1)
        for draft, places in zip(self.drafts[prompt], self.read[prompt], strict=True):
            written = greedy[places].tolist()
            same = next((k for k, (a, b) in enumerate(zip(draft, written, strict=True)) if a != b), len(draft) - 1)
            best = max(best, (tuple(written[: same + 1]), places[same]), key=lambda found: len(found[0]))
        return best


def _last(tree: TokenTree, path: Sequence[int], tokens: int) -> list[int]:
    """The last nodes of a path, which hold so many tokens."""
    found: list[int] = []
    for node in reversed(path):
        if tokens <= 0:
            break
        tokens -= len(tree.segments[node])
        found.append(node)
    return found[::-1]


def _growing(groups: Sequence[list[int]], size: int) -> Iterator[list[int]]:
    """Groups, cut so that they start with `size` members and at most double."""
    for group in groups:
        while group:
            yield group[:size]
            group, size = group[size:], 2 * size


def _greedy(
    model: PackedModel,
    stream: OnDevice,
    seen: torch.Tensor,
    row: Ints,
    places: torch.Tensor,
    cache: Any,
    begin: int,
    chunk: int,
) -> Ints:
    """Forward a plan's tokens from `begin` on (those before it are the cache's last entries).

    Args:
        model: the model.
        stream: the plan.
        seen: (rows, k) bool; which of the cache's first k entries a row of tokens sees.
        row: (tokens,) each token's row.
        places: (k,) positions of these entries.
        cache: it grows by the new tokens.
        begin, chunk: see above, and `PackedModel.chunks`.

    Returns:
        (tokens,) the token that greedy decoding writes behind each, where the plan wants it read; 0 elsewhere.
    """
    greedy = np.zeros(len(row), np.int64)
    rows = torch.from_numpy(row).to(model.device)
    read = np.unique(stream.plan.read_at)
    every = torch.arange(len(row), device=model.device)
    for b, e in model.chunks(stream.plan, chunk, begin):
        wanted = read[(read >= b) & (read < e)]
        sees = torch.cat([seen[rows[b:e]], stream.sees(every[b:e], every[:e])], 1)
        at = torch.from_numpy(wanted - b if len(wanted) else np.zeros(1, np.int64)).to(model.device)
        positions = stream.positions
        keys = torch.cat([places, positions[:e]])
        outputs = model.forward(stream.ids[b:e], positions[b:e], sees, keys, cache, at)
        if len(wanted):
            greedy[wanted] = model.logits(outputs).argmax(-1).cpu().numpy()
    return greedy


MOST = 64  # answered prompts that drafts are taken from: the last ones
ALTERNATIVES = 2  # drafts behind a prompt
LONGEST = 16  # tokens of a draft
CONTEXT = 3  # last tokens that are looked up, at most


@dataclass
class DraftCache:
    """Answers so far, and what knowing them has saved. Belongs to one model and one `Sampling`.

    A step is a forward pass from which tokens of an answer are taken: the one that reads the prompt's end, and each
    one behind it in which the prompt takes part. Plain decoding takes one token from each, so its steps are its tokens.

    Attributes:
        answers: token ids of each prompt -> those of its answer (its end token included), in order of appearance.
        steps: taken, over all prompts.
        plain: those that plain decoding would have taken.
    """

    answers: dict[Tokens, Tokens] = field(default_factory=dict)
    steps: int = 0
    plain: int = 0

    def propose(self, prompt: Tokens, new: Tokens) -> list[Tokens]:
        """Drafts of what follows a prompt and its new tokens, the likeliest first; may be none."""
        known = list(islice(reversed(self.answers.items()), MOST))
        # similar prompts have similar answers; of those that begin alike, the prompt itself is the shortest
        known.sort(key=lambda pair: (-common_prefix(pair[0], prompt), len(pair[0])))
        ranked = dict.fromkeys(answer for _, answer in known)
        going_on = [a[len(new) : len(new) + LONGEST] for a in ranked if len(a) > len(new) and a[: len(new)] == new]
        if going_on or not new:
            return list(dict.fromkeys(going_on))[:ALTERNATIVES]
        return copied((*prompt, *new), list(ranked))


def copied(written: Tokens, answers: Sequence[Tokens]) -> list[Tokens]:
    """What followed the last tokens where they stood before: at most one draft.

    Args:
        written: the prompt and what has been written behind it.
        answers: where to look first, in this order; then `written` itself, from its end.
    """
    gap = -1  # no token
    places = np.array([*written, *(t for a in reversed(answers) for t in (gap, *a)), gap])
    for n in range(min(CONTEXT, len(written)), 0, -1):
        same = places[n:] != gap
        for k, token in enumerate(written[len(written) - n :]):
            same &= places[k : len(places) - n + k] == token
        if same.any():
            begin = int(np.flatnonzero(same)[-1]) + n
            draft = places[begin : begin + LONGEST].tolist()
            return [tuple(draft[: draft.index(gap)] if gap in draft else draft)]
    return []


def generate_speculative(
    model: TransformersModel, prompts: Sequence[Prompt], sampling: Sampling, known: DraftCache
) -> list[Completion]:
    """What `model.generate(prompts, sampling)` gives, with a memory for answers.

    Args:
        model: the model.
        prompts: in any order.
        sampling: greedy (temperature 0).
        known: grows with every answer.

    Raises:
        InputError: sampling that is not greedy, or a prompt without a token.
        ContextLengthError: see `LanguageModel.generate`.
        ModelError: out of memory; `completed` holds what was answered.
    """
    if sampling.temperature or sampling.n > 1 or sampling.logprobs:
        raise InputError("only single greedy answers can be recognised: temperature=0, n=1, logprobs=False")
    if not prompts:
        return []
    encoded = [e.ids for e in chat.tokenise(model.tokenizer, [chat.render(p, model.tokenizer) for p in prompts])]
    for i, ids in enumerate(encoded):
        if not ids:
            raise InputError(f"prompt {i} holds no token: there is nothing to continue")
    model.check_fit(encoded, sampling.max_tokens)
    result: dict[int, Completion] = {}

    def propose(i: int, new: Tokens) -> list[Tokens]:
        return [draft[: sampling.max_tokens - len(new)] for draft in known.propose(encoded[i], new)]

    def done(i: int, new: Tokens, steps: int) -> None:
        known.answers[encoded[i]] = new
        known.steps += steps
        known.plain += len(new)
        result[i] = model.completion(encoded[i], new, sampling)

    endings = [model.ending(ids, sampling) for ids in encoded]
    with lock_of(model.module), model.counted(result):
        speculate(
            model.packed,
            encoded,
            propose=propose,
            complete=lambda i, new: endings[i](new),
            done=done,
            room=sampling.max_tokens + ALTERNATIVES * min(LONGEST, sampling.max_tokens),
            first=MOST if known.answers else 1,
            limits=model.limits,
        )
    return [result[i] for i in range(len(prompts))]

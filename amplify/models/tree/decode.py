"""Decoding on a packed tree: prompts that share a beginning share its cache entries, and nothing is padded."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from typing import TYPE_CHECKING

import numpy as np
import torch

from amplify.errors import DataError
from amplify.models.tree.forward import LOGIT_BYTES, Limits, OnDevice, PackedModel
from amplify.models.tree.tree import TokenTree, TreePlan, plan_tree, trie
from amplify.types import Sampling

if TYPE_CHECKING:
    from amplify.steering.attention import Stream
    from amplify.steering.keys import KeyStream


def prompt_plan(prompts: Sequence[Sequence[int]]) -> TreePlan:
    """One plan for all prompts of a call; `read_at[i]` is where prompt i ends."""
    tree, paths = trie(prompts)
    ends = [path[-1] for path in paths]
    # a stand-in behind each prompt makes the plan forward the prompt's last token and read its output
    nodes = {end: len(tree.segments) + i for i, end in enumerate(dict.fromkeys(ends))}
    extended = TokenTree((*tree.segments, *((0,) for _ in nodes)), (*tree.parents, *nodes))
    return plan_tree(extended, [nodes[end] for end in ends])


def batches(plan: TreePlan, max_tokens: int, budget: int, most: int) -> list[list[int]]:
    """Cut the prompts, in stream order, so that prompts and new tokens of a batch fit the cache's budget.

    A function of the call alone: killed and started again, every prompt meets the same neighbours.
    """
    result: list[list[int]] = []
    held = 0
    for i in np.argsort(plan.read_at, kind="stable").tolist():
        end = int(plan.read_at[i]) + 1
        if result:
            size = held + end + (len(result[-1]) + 1) * max_tokens
            if size <= budget and len(result[-1]) < most:
                result[-1].append(i)
                continue
        begin = min(int(plan.read_at[result[-1][-1]]) + 1, end - 1) if result else 0
        held = len(plan.path(begin)) - begin
        result.append([i])
    return result


@torch.inference_mode()
def decode(
    model: PackedModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    end_ids: Set[int],
    finished: Callable[[int, list[int]], bool],
    done: Callable[[int, list[int], list[float]], None],
    limits: Limits,
    steered: Stream | KeyStream | None = None,
) -> None:
    """Continue every prompt.

    Args:
        model: the model.
        prompts: token ids, none empty.
        sampling: how to choose; its stop strings are the caller's (`finished`).
        end_ids: tokens that end a completion.
        finished: (prompt index, its new tokens) -> whether they complete it.
        done: (prompt index, its new tokens, their log-probabilities where `sampling` asks for them), called once per
            prompt when its batch is through.
        limits: how much is held and computed at once.
        steered: what steers the passes; `prompts` are then its items instead of token ids.
    """
    whole, around = prompt_plan(prompts), None
    if steered is not None:
        whole, around = steered.lay(whole), steered.around
    stream = OnDevice(whole, model.device)
    uniform = _uniform(sampling, len(prompts))
    cache, kept = model.cache(), np.zeros(0, np.int64)
    plans = batches(whole, sampling.max_tokens, limits.cache, max(1, LOGIT_BYTES // (4 * model.vocab)))
    begin = 0
    for number, batch in enumerate(plans):
        ends = whole.read_at[batch]
        keys, parts = kept, []
        for b, e in model.chunks(whole, limits.chunk, begin, int(ends[-1]) + 1):
            keys = np.concatenate([keys, np.arange(b, e)])
            rows = ends[(ends >= b) & (ends < e)] - b
            outputs = stream.forward(model, e - b, keys, cache, rows, around)
            parts += [model.logits(outputs)] if len(rows) else []
        new: list[list[int]] = [[] for _ in batch]
        likely: list[list[float]] = [[] for _ in batch]
        # what the next batch shares with this one stays in the cache; where two batches hold the same prompt, the
        # second reads its last token again, for its logits
        follow = plans[number + 1][0] if number + 1 < len(plans) else None
        begin = len(whole.ids) if follow is None else min(int(ends[-1]) + 1, int(whole.read_at[follow]))
        kept = whole.path(begin)
        held = torch.from_numpy(keys).to(model.device)
        spared = torch.isin(held, torch.from_numpy(kept).to(model.device))
        at = torch.from_numpy(ends).to(model.device)
        sees, key_positions, position = stream.sees(at, held), stream.positions[held], stream.positions[at]
        active, logits = list(range(len(batch))), torch.cat(parts)
        for step in range(sampling.max_tokens):
            drawn = None
            if sampling.temperature:
                _check_numbers(model, logits)
                drawn = uniform[[batch[r] for r in active], step]
            chosen = choose(logits, sampling, drawn)
            if sampling.logprobs:
                values = logits.log_softmax(-1).gather(1, chosen[:, None])[:, 0].tolist()
                for k, value in zip(active, values, strict=True):
                    likely[k].append(value)
            going = []
            for k, token in enumerate(chosen.tolist()):
                mine = new[active[k]]
                mine.append(token)
                if token not in end_ids and not finished(batch[active[k]], mine):
                    going.append(k)
            if not going or step + 1 == sampling.max_tokens:
                break
            if len(going) < len(active):
                on = torch.tensor(going, device=model.device)
                chosen, position, sees = chosen[on], position[on], sees[on]
                active = [active[k] for k in going]
                useful = sees.any(0) | spared
                where = useful.nonzero()[:, 0]
                if len(where) < 0.75 * len(held):  # moving entries costs about as much as a few steps with them
                    for layer in cache.layers:
                        layer.keep(where)
                    held, spared, sees, key_positions = held[where], spared[where], sees[:, where], key_positions[where]
            position = position + 1
            fresh = torch.eye(len(active), dtype=torch.bool, device=model.device)
            sees = torch.cat([sees, fresh], 1)
            held = torch.cat([held, -1 - torch.tensor([batch[k] for k in active], device=model.device)])
            spared = torch.cat([spared, torch.zeros(len(active), dtype=torch.bool, device=model.device)])
            key_positions = torch.cat([key_positions, position])
            logits = model.step(chosen, position, sees, key_positions, cache, held, around)
        _check_numbers(model, logits)  # what is none stays so to the last step
        for row, i in enumerate(batch):
            done(i, new[row], likely[row])
        for layer in cache.layers:
            layer.keep(spared.nonzero()[:, 0])


def _check_numbers(model: PackedModel, logits: torch.Tensor) -> None:
    if logits.isnan().any():
        raise DataError(f"{model.model.config.model_type} gives no number as a log-probability: {model.suspect}")


def choose(logits: torch.Tensor, sampling: Sampling, uniform: torch.Tensor | None) -> torch.Tensor:
    """The next token of each row: the likeliest, or drawn from the nucleus by inverse distribution function.

    Args:
        logits: (rows, vocabulary), float32.
        sampling: temperature and top_p.
        uniform: (rows,) numbers in [0, 1), float64 on the CPU; None when greedy.

    Returns:
        (rows,) token ids, where the logits are.
    """
    if uniform is None:
        return logits.argmax(-1)
    if logits.device.type == "mps":  # it has no float64
        return choose(logits.cpu(), sampling, uniform).to(logits.device)
    uniform = uniform.to(logits.device)
    # float64: a float32 cumulative sum over a large vocabulary loses the tail
    ordered, ids = (logits.double() / sampling.temperature).softmax(-1).sort(dim=-1, descending=True, stable=True)
    upto = ordered.cumsum(-1)
    inside = upto - ordered < sampling.top_p
    count = inside.sum(-1, keepdim=True)
    mass = upto.gather(-1, count - 1)
    place = torch.searchsorted(upto, uniform[:, None] * mass, right=True)
    return ids.gather(-1, torch.minimum(place, count - 1))[:, 0]


def _uniform(sampling: Sampling, count: int) -> torch.Tensor:
    """(prompts, max_tokens) random numbers. Prompt i has its own stream, so its batch does not change its text."""
    if not sampling.temperature:
        return torch.empty(0)
    seeds = [None if sampling.seed is None else [sampling.seed, sampling.offset + i] for i in range(count)]
    return torch.from_numpy(np.stack([np.random.default_rng(s).random(sampling.max_tokens) for s in seeds]))

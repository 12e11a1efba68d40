"""Gradient norm and gradient x input of a proxy's label score, plain and contrastive, from one shared pass.

With x what the model's layers read of a token (`entrance`: of an encoder the output of its embeddings module, of
others the word embedding), z_gold and z_foil the scores of the label explained and of its foil:

- `grad_norm`: the L1 norm of dz/dx (saliency; Simonyan et al. 2014);
- `grad_x_input`: the signed sum of x * dz/dx over the embedding axis (Shrikumar et al. 2016).

With a foil z is z_gold - z_foil (contrastive explanations: Yin & Neubig 2022), without one z_gold. The names with
`_plain` leave the foil aside. Everything follows from the gradients of z_gold and z_foil, which one batched backward
pass over one graph gives. The label explained is always the caller's, never the one that the proxy predicts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from amplify.attribution.entrance import inputs_of, score
from amplify.attribution.registry import METHODS as EXPLAINERS
from amplify.attribution.words import Mask, Spans, aggregate, word_spans
from amplify.errors import InputError, UnknownNameError
from amplify.locks import lock_of
from amplify.models.pretrained import batches
from amplify.proxies import Proxy, Row, softmax, versions
from amplify.text import input_text
from amplify.types import Attribution, Example

if TYPE_CHECKING:
    from torch import Tensor

METHODS = ("grad_norm", "grad_x_input", "grad_norm_plain", "grad_x_input_plain")
Array = npt.NDArray[np.float32]


@dataclass
class Passes:
    """What was really computed.

    Attributes:
        forward: sequences forwarded.
        backward: gradient vectors of sequences: a backward over two scores of one sequence counts two.
        forward_calls, backward_calls: batched calls of the model and of autograd.
        tokens: tokens forwarded, padding included.
    """

    forward: int = 0
    backward: int = 0
    forward_calls: int = 0
    backward_calls: int = 0
    tokens: int = 0


class Explanations(dict[str, list[Attribution]]):
    """Method name -> one attribution per example, with what came out on the way.

    Attributes:
        probabilities: per example, over `proxy.labels_of(example)`.
        passes: the cost of all methods together.
    """

    probabilities: list[npt.NDArray[np.float64]]
    passes: Passes


@dataclass
class _Work:
    """One example while its rows come in."""

    example: Example
    gold: int
    foil: int | None
    scores: npt.NDArray[np.float64]
    waiting: int  # rows with gradients not yet computed
    unread: int
    parts: list[tuple[Row, Array, Mapping[int, Array]]] = field(default_factory=list)  # inputs, gradient by answer


def explain(
    proxy: Proxy,
    examples: Sequence[Example],
    targets: Sequence[str | None],
    foils: Sequence[str | None] | None = None,
    methods: Sequence[str] = ("grad_x_input",),
    *,
    mask: Mask | None = None,
    batch_tokens: int | None = None,
) -> Explanations:
    """Attribute each target's score (against its foil) to the words of `amplify.text.input_text(example)`.

    Args:
        proxy: an encoder with a trained head, or any causal proxy.
        examples: what to explain.
        targets: the label explained, per example: the gold label.
        foils: the label it is contrasted with, per example: the one wrongly given. None: no contrast.
        methods: of `METHODS`; all share one forward and one backward.
        mask: which words of an example may be key words (`amplify.attribution.words.key_word_mask`); the others are
            left out of the attribution. None keeps every word.
        batch_tokens: padded tokens in a batch, which bounds memory; by default 384 on a CPU (what its caches hold;
            measured with MiniLM), 16,384 on a GPU.

    Returns:
        Attributions by method name; its `probabilities` and `passes` are what selection and cost reports need.

    Raises:
        InputError: an untrained head, a target or foil that is no label of the example, a foil equal to its target.
        UnknownNameError: no such method.
    """
    for method in methods:
        if method not in METHODS:
            raise UnknownNameError("gradient method", method, METHODS)
    proxy.require_head("attribution by gradients")
    foils = foils if foils is not None else [None] * len(examples)
    if not len(examples) == len(targets) == len(foils):
        raise InputError(f"{len(examples)} examples, {len(targets)} targets and {len(foils)} foils: one each is needed")

    batch_tokens = batch_tokens or (384 if proxy.module.device.type == "cpu" else 16_384)
    contrastive = any(not method.endswith("_plain") for method in methods)
    plain = any(method.endswith("_plain") for method in methods)
    work, jobs = [], []
    for number, (example, target, foil) in enumerate(zip(examples, targets, foils, strict=True)):
        rows = proxy.rows(example)
        gold, against = _indices(proxy, example, target, foil if contrastive else None)
        scored = {gold} if against is None else {gold, against}
        item = _Work(example, gold, against, np.full(len(proxy.labels_of(example)), -np.inf), 0, rows[0].unread)
        for row in rows:
            wanted = tuple(answer for answer in row.answers if answer in scored)
            item.waiting += bool(wanted)
            jobs.append((number, row, wanted))
        work.append(item)

    results = Explanations({method: [None] * len(examples) for method in methods})  # type: ignore[list-item]
    passes = Passes()
    # rows that only complete the probabilities need no graph
    for graded in (False, True):
        group = [job for job in jobs if bool(job[2]) == graded]
        for batch in batches([len(row.ids) for _, row, _ in group], batch_tokens):
            with lock_of(proxy.module):
                _run(proxy, [group[j] for j in batch], work, plain, passes)
            for number in {group[j][0] for j in batch}:
                item = work[number]
                if graded and item.parts and not item.waiting:
                    for method, values, spans in _word_scores(item, methods, mask):
                        results[method][number] = _attribution(proxy, item, method, values, spans)
                    item.parts.clear()
    results.probabilities = [softmax(item.scores) for item in work]
    results.passes = passes
    return results


def _indices(proxy: Proxy, example: Example, target: str | None, foil: str | None) -> tuple[int, int | None]:
    labels = proxy.labels_of(example)
    for name, label in (("target", target), ("foil", foil)):
        if label not in labels and not (name == "foil" and label is None):
            raise InputError(f"the {name} {label!r} of example {example.id!r} is not among its labels {labels}")
    if foil == target:
        raise InputError(f"target and foil of example {example.id!r} are both {target!r}: nothing to contrast")
    return labels.index(str(target)), None if foil is None else labels.index(foil)


def _run(
    proxy: Proxy, jobs: Sequence[tuple[int, Row, tuple[int, ...]]], work: list[_Work], plain: bool, passes: Passes
) -> None:
    """One batch: scores of every row, and gradients where they are wanted."""
    import torch

    rows = [row for _, row, _ in jobs]
    graded = bool(jobs[0][2])
    with torch.set_grad_enabled(graded):
        words, mask, types = proxy.embed(rows)
        inputs = inputs_of(proxy, rows, words, mask, types).requires_grad_(graded)
        scores = score(proxy, rows, inputs, words, mask, types)
    passes.forward += len(rows)
    passes.forward_calls += 1
    passes.tokens += inputs.shape[0] * inputs.shape[1]
    for (number, row, wanted), values in zip(jobs, scores.detach().cpu().numpy(), strict=True):
        work[number].scores[list(row.answers)] = values[: len(row.answers)]
        work[number].waiting -= bool(wanted)
    if not graded:
        return

    # A column is one scalar whose gradient is taken; rows of a batch are independent, so they share columns.
    columns: list[list[tuple[int, int, float]]] = [[]]
    for i, (number, row, wanted) in enumerate(jobs):
        item = work[number]
        if len(wanted) == 2 and not plain:  # the difference alone is asked for: one column does
            columns[0] += [(i, row.answers.index(item.gold), 1.0), (i, row.answers.index(int(item.foil or 0)), -1.0)]
            passes.backward += 1
            continue
        for column, answer in enumerate(wanted):
            if column == len(columns):
                columns.append([])
            columns[column].append((i, row.answers.index(answer), 1.0))
            passes.backward += 1
    seeds = scores.new_zeros((len(columns), *scores.shape))
    for column, entries in enumerate(columns):
        for i, place, sign in entries:
            seeds[column, i, place] = sign
    gradients, calls = _gradients(scores, inputs, seeds)
    passes.backward_calls += calls

    x, g = inputs.detach().cpu().numpy(), gradients.cpu().numpy()
    for i, (number, row, wanted) in enumerate(jobs):
        item = work[number]
        last = x.shape[1] - len(row.ids) if proxy.left else 0
        inside = [last + t for t, (a, b) in enumerate(row.offsets) if b > a]
        names = (item.gold,) if len(wanted) == 2 and not plain else wanted
        by_answer = {answer: g[column, i, inside] for column, answer in enumerate(names)}
        item.parts.append((row, x[i, inside], by_answer))


def _gradients(scores: Tensor, inputs: Tensor, seeds: Tensor) -> tuple[Tensor, int]:
    """Gradients of each column, shape (columns, rows, tokens, width), and the backward calls made.

    Several columns go back in one batched pass on a CPU; attention kernels of GPUs have no batched backward.
    """
    import torch

    if len(seeds) > 1 and inputs.device.type == "cpu":
        return torch.autograd.grad(scores, inputs, seeds, is_grads_batched=True)[0], 1
    last = len(seeds) - 1
    found = [torch.autograd.grad(scores, inputs, s, retain_graph=i < last)[0] for i, s in enumerate(seeds)]
    return torch.stack(found), len(found)


def _word_scores(
    item: _Work, methods: Sequence[str], mask: Mask | None
) -> Iterator[tuple[str, npt.NDArray[np.float64], Spans]]:
    """Per method, scores of the words that may be chosen, and their spans."""
    text = input_text(item.example)
    spans = word_spans(text)
    keep = list(mask(item.example)) if mask is not None else [True] * len(spans)
    if len(keep) != len(spans):
        raise InputError(f"the mask of example {item.example.id!r} has {len(keep)} values for {len(spans)} words")

    # Rows of one example (pairs with options, labels of several tokens) share the tokens of its input. The same
    # token is found in each by its characters; several tokens on the same characters by their order.
    gold: dict[tuple[int, int, int], Array] = {}
    foil: dict[tuple[int, int, int], Array] = {}
    inputs: dict[tuple[int, int, int], Array] = {}
    for row, x, by_answer in item.parts:
        seen: dict[tuple[int, int], int] = defaultdict(int)
        places = [(a, b) for a, b in row.offsets if b > a]
        for t, (a, b) in enumerate(places):
            key = (a, b, seen[a, b])
            seen[a, b] += 1
            inputs[key] = x[t]
            if item.gold in by_answer:
                gold[key] = by_answer[item.gold][t]
            if item.foil is not None and item.foil in by_answer:
                foil[key] = by_answer[item.foil][t]
    keys = sorted(inputs)
    zero = np.zeros(item.parts[0][1].shape[1], dtype=np.float32)
    x = np.array([inputs[key] for key in keys]).reshape(len(keys), len(zero))
    plain = np.array([gold.get(key, zero) for key in keys]).reshape(x.shape)
    against = np.array([foil.get(key, zero) for key in keys]).reshape(x.shape)
    chosen = np.flatnonzero(keep)
    for method in methods:
        gradient = plain if method.endswith("_plain") else plain - against
        if method.startswith("grad_norm"):
            tokens = np.abs(gradient).sum(1, dtype=np.float64)
        else:
            tokens = (x * gradient).sum(1, dtype=np.float64)
        values = aggregate(tokens, [(a, b) for a, b, _ in keys], spans)
        yield method, values[chosen], tuple(spans[i] for i in chosen)


def _attribution(proxy: Proxy, item: _Work, method: str, values: npt.NDArray[np.float64], spans: Spans) -> Attribution:
    text, labels = input_text(item.example), proxy.labels_of(item.example)
    if not np.isfinite(values).all():
        raise InputError(f"{method} of example {item.example.id!r} is not finite: check the weights of {proxy.name}")
    meta: dict[str, Any] = {"versions": versions()}
    if item.unread:
        meta["unread_characters"] = item.unread
    contrast = item.foil if not method.endswith("_plain") else None
    return Attribution(
        text=text,
        words=tuple(text[a:b] for a, b in spans),
        spans=spans,
        scores=tuple(float(v) for v in values),
        target=labels[item.gold],
        foil=None if contrast is None else labels[contrast],
        method=method,
        model=proxy.name,
        budget=1,
        meta=meta,
        signed=EXPLAINERS[method.removesuffix("_plain")].signed,
    )

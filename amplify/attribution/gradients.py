"""Explanations by what a model's layers read, as one thing: points around the input, and the gradients there.

Local function approximation (Han, Srinivas & Lakkaraju 2022, "Which Explanation Should I Choose?") with a loss that
matches gradients instead of values: the linear g that is nearest to f on a neighbourhood, by the mean squared
difference of their gradients, has the mean gradient as its weights. The methods differ in where they look and what
they multiply by:

| method                 | points                               | the mean gradient times | a word's score is the  |
|------------------------|--------------------------------------|-------------------------|------------------------|
| `vanilla_gradients`    | the input x                          | 1                       | L2 norm over its parts |
| `grad_norm`            | the input x                          | 1                       | L1 norm                |
| `grad_x_input`         | the input x                          | x                       | sum                    |
| `smooth_grad`          | x + N(0, s^2), s = 15 % of its range | 1                       | L2 norm                |
| `integrated_gradients` | b + a (x - b), a uniform on [0, 1]   | x - b                   | sum                    |

x is what the layers read (`inputs`), and b what they read with the padding token for each token of a word
(`inputs.padded`), its positions kept. `c_lime` fits values instead, at x times 1 + N(0, s^2) drawn once a word
(Agarwal et al. 2021); `deep_lift` (Shrikumar et al. 2017, rescale rule) spreads f(x) - f(b) layer by layer. Gradients
and DeepLIFT are captum's. Norms say how much a word matters, not for which side.

For many inputs of a proxy, `explain` has `grad_norm` and `grad_x_input` from one pass: with z_gold and z_foil the
scores of the label explained and of its foil, the gradient is that of z_gold - z_foil (contrastive explanations: Yin &
Neubig 2022), and of z_gold alone for the names with `_plain`. The label explained is always the caller's, never the one
that the proxy predicts.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from amplify.attribution.inputs import Part, inputs_of, score_from
from amplify.attribution.masking import owner_words
from amplify.attribution.words import Mask, Spans, aggregate, word_spans
from amplify.errors import CapabilityError, InputError, UnknownNameError
from amplify.locks import PROCESS, lock_of
from amplify.models.pretrained import batches
from amplify.proxies import Proxy, Row, softmax, versions
from amplify.shapley.budget import CELLS
from amplify.shapley.estimate import Scores
from amplify.shapley.estimators import ridge_fit
from amplify.shapley.game import Floats
from amplify.text import input_text
from amplify.types import Attribution, Example

if TYPE_CHECKING:
    from torch import Tensor

How = Literal["sum", "l1", "l2"]
ScoresOf = Callable[[Sequence[Part], int, int, int], Scores]

SAMPLES = 50  # points at most: the rest of a budget buys little

ROUNDS = 200

NOISE = 0.15
STRETCH = 0.1  # standard deviation of what c_lime stretches words by


@dataclass(frozen=True)
class Cloud:
    """Where gradients are taken, and what becomes of them.

    Attributes:
        points: (points, tokens, width).
        weights: (points,), of sum 1.
        factor: what the mean gradient is multiplied by, (1, tokens, width); None for 1.
        how: from a token's vector to a number.
        drawn: whether the points are random.
    """

    points: Tensor
    weights: Tensor
    factor: Tensor | None
    how: How
    drawn: bool = False


def gradient_scores(
    parts: Sequence[Part], method: str, *, budget: int, seed: int = 0, batch_tokens: int | None = None
) -> tuple[Scores, dict[str, Any]]:
    """Scores of the words by one of the methods above.

    Args:
        parts: of one input (`Subject.parts`).
        method: its name.
        budget: points at most at which the model is evaluated, over all parts.
        seed: of what is drawn.
        batch_tokens: tokens of a pass; default as in `gradients.explain`.

    Returns:
        The scores with intervals where points are drawn, and what else there is to say: for methods whose scores
        should add up to f(x) - f(b), by how much they do not ("completeness_gap").

    Raises:
        InputError: a budget too small for the method, or a gradient that is not finite.
    """
    way, share, words = WAYS[method], budget // len(parts), len(parts[0].spans)
    if share < (needed := way.least(words)):
        raise InputError(
            f"a budget of {budget} evaluations is too small for {method} here: it needs {needed * len(parts)} or more"
        )
    batch_tokens = batch_tokens or (384 if parts[0].inputs.device.type == "cpu" else 16_384)
    scores = way.scores(parts, share, seed, batch_tokens)
    return scores, {"completeness_gap": gap(parts, scores.scores)} if way.complete else {}


def by_cloud(cloud: Callable[[Part, int, int], Cloud]) -> ScoresOf:
    """The scores by mean gradients in a neighbourhood: (part, points at most, seed) -> where they are taken."""

    def scores_of_parts(parts: Sequence[Part], share: int, seed: int, batch_tokens: int) -> Scores:
        offsets, spans = [part.offsets for part in parts], parts[0].spans
        clouds = [cloud(part, min(share, SAMPLES), seed) for part in parts]
        gradients = [gradients_at(part, near.points, batch_tokens) for part, near in zip(parts, clouds, strict=True)]

        def scores_of(weights: Sequence[npt.NDArray[np.float32]]) -> Floats:
            vectors = []
            for near, found, weight in zip(clouds, gradients, weights, strict=True):
                mean = np.tensordot(weight, found, 1)
                vectors.append(mean if near.factor is None else mean * near.factor[0].float().cpu().numpy())
            return reduce(offsets, vectors, spans, clouds[0].how)

        weights = [near.weights.float().cpu().numpy() for near in clouds]
        scores = scores_of(weights)
        calls = sum(len(near.points) for near in clouds)
        if not clouds[0].drawn:
            return Scores.exact(scores, calls)
        n = len(weights[0])
        counts = np.random.default_rng([seed, 1]).multinomial(n, [1 / n] * n, ROUNDS).astype(np.float32) / n
        # basic bootstrap: a norm of means is biased upwards, in the rounds as in the scores
        low, high = np.quantile([scores_of([row] * len(parts)) for row in counts], [0.025, 0.975], axis=0)
        return Scores(scores, np.minimum(2 * scores - high, scores), np.maximum(2 * scores - low, scores), calls)

    return scores_of_parts


def at_input(how: How, *, times_input: bool = False) -> ScoresOf:
    """The gradient at the input itself."""

    def cloud(part: Part, n: int, seed: int) -> Cloud:
        x = part.inputs
        return Cloud(x, x.new_ones(1), x if times_input else None, how)

    return by_cloud(cloud)


def noisy(part: Part, n: int, seed: int) -> Cloud:
    """Points drawn around the input."""
    import torch

    x = part.inputs
    noise = torch.randn((n, *x.shape[1:]), generator=torch.Generator().manual_seed(seed)).to(x)
    return Cloud(x + NOISE * (x.max() - x.min()) * noise, x.new_full((n,), 1 / n), None, "l2", drawn=True)


def along(part: Part, n: int, seed: int) -> Cloud:
    """Points on the way from the baseline to the input, by Gauss and Legendre."""
    nodes, weights = np.polynomial.legendre.leggauss(n)
    steps = part.inputs.new_tensor((nodes + 1) / 2)[:, None, None]
    difference = part.inputs - part.baseline
    return Cloud(part.baseline + steps * difference, part.inputs.new_tensor(weights / 2), difference, "sum")


def gradients_at(part: Part, points: Tensor, batch_tokens: int) -> npt.NDArray[np.float32]:
    """Gradients of the score at some points, (points, tokens, width), a batch at a time."""
    from captum.attr import Saliency

    rows = max(1, batch_tokens // points.shape[1])
    found = []
    for some in points.split(rows):
        with lock_of(part.model):  # one graph at a time
            gradient = Saliency(part.score).attribute(some.detach().clone().requires_grad_(), abs=False)
        found.append(gradient.float().cpu().numpy())
    result = np.concatenate(found)
    if not np.isfinite(result).all():
        token = int(np.flatnonzero(~np.isfinite(result).all((0, 2)))[0])
        raise InputError(f"the gradient by token {token} is not finite: check the weights of the model")
    return result


def c_lime(parts: Sequence[Part], draws: int, seed: int, batch_tokens: int) -> Scores:
    """Linear fit to the scores of the input with each word's embeddings stretched a little (Agarwal et al. 2021).

    As the deviation goes to 0 the scores become gradient x input.
    """
    import torch

    noise = np.random.default_rng(seed).normal(0, STRETCH, (draws, len(parts[0].spans)))
    values = np.zeros(draws)
    for part in parts:
        owner = owner_words(part.offsets, part.spans)
        stretch = np.where(owner >= 0, 1 + noise[:, owner], 1.0)
        for rows in np.array_split(np.arange(draws), max(1, draws * len(owner) // batch_tokens)):
            with torch.inference_mode():
                factors = torch.from_numpy(stretch[rows][..., None]).to(part.inputs.dtype)
                points = part.inputs * factors.to(part.inputs.device)
                values[rows] += part.score(points).cpu().double().numpy()
    if not np.isfinite(values).all():
        raise InputError("c_lime: the model's score is not finite: check its weights")
    scores, half = (x[:, 0] for x in ridge_fit(noise, values[:, None], np.ones(draws), 0.0, seed))
    return Scores(scores, scores - half, scores + half, draws * len(parts))


def deep_lift(parts: Sequence[Part], share: int, seed: int, batch_tokens: int) -> Scores:
    """captum's DeepLIFT against the padded baseline.

    It has the rescale rule for activations that are modules of PyTorch's own; what lies in attention kernels and in
    activations that it does not know goes by the plain gradient, which `completeness_gap` shows.

    Raises:
        CapabilityError: the model uses one activation module in several places.
    """
    vectors = [_lifted(part) for part in parts]
    scores = reduce([part.offsets for part in parts], vectors, parts[0].spans, "sum")
    return Scores.exact(scores, 2 * len(parts))


def _lifted(part: Part) -> npt.NDArray[np.float32]:
    from captum.attr import DeepLift

    try:
        with lock_of(part.model), PROCESS, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that hooks are set, which are removed again
            found = DeepLift(_module(part)).attribute(part.inputs.clone().requires_grad_(), baselines=part.baseline)
    except (AssertionError, RuntimeError) as error:
        raise CapabilityError(
            f"captum's DeepLIFT cannot follow {part.model.config.model_type}: {error}. Use integrated_gradients."
        ) from error
    result: npt.NDArray[np.float32] = found[0].detach().float().cpu().numpy()
    return result


def _module(part: Part) -> Any:
    """The score as a module that holds the model, which captum hooks into."""
    import torch

    class Scored(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = part.model

        def forward(self, points: Tensor) -> Tensor:
            return part.score(points)

    return Scored()


def gap(parts: Sequence[Part], scores: Floats) -> float:
    """f(x) - f(b) less the sum of the scores."""
    import torch

    with torch.inference_mode():
        whole = sum(float(part.score(part.inputs)) - float(part.score(part.baseline)) for part in parts)
    return whole - float(scores.sum())


def reduce(
    offsets: Sequence[Sequence[tuple[int, int]]], vectors: Sequence[npt.NDArray[np.float32]], spans: Spans, how: How
) -> Floats:
    """Word scores from one vector per token of each sequence.

    Sequences share the tokens of the text, found in each by their characters (several on the same ones by their order):
    their vectors are added before a norm is taken. The L2 norm of a word is over the stacked vectors of its tokens.

    Args:
        offsets: characters of each sequence's tokens.
        vectors: (tokens, width) of each sequence.
        spans: characters of the words.
        how: from a token's vector to a number.
    """
    total: dict[tuple[int, int, int], npt.NDArray[np.float64]] = {}
    for places, rows in zip(offsets, vectors, strict=True):
        seen: dict[tuple[int, int], int] = defaultdict(int)
        for (a, b), row in zip(places, rows, strict=True):
            if b > a:
                key = (a, b, seen[a, b])
                seen[a, b] += 1
                total[key] = total[key] + row if key in total else row.astype(np.float64)
    keys = sorted(total)
    found = np.array([total[key] for key in keys]).reshape(len(keys), -1)
    tokens = {"sum": found.sum, "l1": np.abs(found).sum, "l2": np.square(found).sum}[how](1)
    words = aggregate(tokens, [(a, b) for a, b, _ in keys], spans)
    return np.sqrt(words) if how == "l2" else words


@dataclass(frozen=True)
class Way:
    """One of the methods above.

    Attributes:
        scores: (parts of one input, evaluations of each at most, seed, tokens of a pass) -> scores of the words.
        least: words -> evaluations of each sequence without which it says nothing.
        most: words -> how many fit in memory; None where it takes no more than it can use.
        complete: whether its scores should add up to f(x) - f(b).
    """

    scores: ScoresOf
    least: Callable[[int], int] = lambda words: 1
    most: Callable[[int], int] | None = None
    complete: bool = False


WAYS = {
    "vanilla_gradients": Way(at_input("l2")),
    "grad_norm": Way(at_input("l1")),
    "grad_x_input": Way(at_input("sum", times_input=True)),
    "smooth_grad": Way(by_cloud(noisy), least=lambda words: 2),
    "integrated_gradients": Way(by_cloud(along), least=lambda words: 5, complete=True),
    "c_lime": Way(c_lime, least=lambda words: words + 2, most=lambda words: CELLS // words),  # it draws all at once
    "deep_lift": Way(deep_lift, complete=True),
}
"""Every method by its name."""


def check(method: str, words: int, budget: int) -> None:
    """Refuse what no memory holds, before anything is asked.

    Raises:
        InputError: says how many draws fit.
    """
    most = WAYS[method].most
    if most is not None and budget > (room := most(words)):
        raise InputError(
            f"a budget of {budget:,} evaluations of {words:,} words does not fit in memory with {method}: at most "
            f"{room:,} do"
        )


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
    cut = proxy.rows_of(examples)
    for number, (example, rows, target, foil) in enumerate(zip(examples, cut, targets, foils, strict=True)):
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
        scores = score_from(proxy, rows, inputs, words, mask, types)
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
    spans = word_spans(input_text(item.example))
    keep = list(mask(item.example)) if mask is not None else [True] * len(spans)
    if len(keep) != len(spans):
        raise InputError(f"the mask of example {item.example.id!r} has {len(keep)} values for {len(spans)} words")
    chosen = np.flatnonzero(keep)
    offsets = [[(a, b) for a, b in row.offsets if b > a] for row, _, _ in item.parts]
    for method in methods:
        signs = {item.gold: 1.0}
        if item.foil is not None and not method.endswith("_plain"):
            signs[item.foil] = -1.0
        vectors: list[Array] = []
        for _, x, by_answer in item.parts:
            gradient = sum((sign * by_answer[a] for a, sign in signs.items() if a in by_answer), np.zeros_like(x))
            vectors.append(gradient if method.startswith("grad_norm") else x * gradient)
        values = reduce(offsets, vectors, spans, "l1" if method.startswith("grad_norm") else "sum")
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
        signed=method.startswith("grad_x_input"),
    )

"""Explanations by what a model's layers read, as one thing: points around the input, and the gradients there.

The same frame as `perturbation` (Han, Srinivas & Lakkaraju 2022), with a loss that matches gradients instead of values:
the linear g that is nearest to f on a neighbourhood, by the mean squared difference of their gradients, has the mean
gradient as its weights. The methods differ in where they look and what they multiply by:

| method                 | points                               | the mean gradient times | a word's score is the  |
|------------------------|--------------------------------------|-------------------------|------------------------|
| `vanilla_gradients`    | the input x                          | 1                       | L2 norm over its parts |
| `grad_norm`            | the input x                          | 1                       | L1 norm                |
| `grad_x_input`         | the input x                          | x                       | sum                    |
| `smooth_grad`          | x + N(0, s^2), s = 15 % of its range | 1                       | L2 norm                |
| `integrated_gradients` | b + a (x - b), a uniform on [0, 1]   | x - b                   | sum                    |

x are the word embeddings, of an encoder the output of its embeddings module (`entrance`), and b is what they are with
the padding token for each token of a word (`subjects.padded`), its positions kept. `c_lime` fits values instead, at x
times 1 + N(0, s^2) drawn once a word; `deep_lift` (Shrikumar et al. 2017, rescale rule) spreads f(x) - f(b) layer by
layer. Gradients and DeepLIFT are captum's. Norms say how much a word matters, not for which side.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from amplify.attribution.games import owner_words
from amplify.attribution.perturbation import Estimate, Floats, evaluated, exact, fit_with_interval, scaled
from amplify.attribution.subjects import Part
from amplify.attribution.words import aggregate
from amplify.errors import CapabilityError, InputError
from amplify.locks import PROCESS, lock_of

if TYPE_CHECKING:
    from torch import Tensor

How = Literal["sum", "l1", "l2"]
SAMPLES = 50  # points at most: the rest of a budget buys little
ROUNDS = 200
NOISE = 0.15


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


def cloud(part: Part, method: str, budget: int, seed: int) -> Cloud:
    """The neighbourhood of one of the gradient methods."""
    import torch

    x = part.inputs
    one = x.new_ones(1)
    if method == "vanilla_gradients":
        return Cloud(x, one, None, "l2")
    if method == "grad_norm":
        return Cloud(x, one, None, "l1")
    if method == "grad_x_input":
        return Cloud(x, one, x, "sum")
    n = min(budget, SAMPLES)
    if method == "smooth_grad":
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn((n, *x.shape[1:]), generator=generator).to(x)
        return Cloud(x + NOISE * (x.max() - x.min()) * noise, x.new_full((n,), 1 / n), None, "l2", drawn=True)
    nodes, weights = np.polynomial.legendre.leggauss(n)
    along = x.new_tensor((nodes + 1) / 2)[:, None, None]
    difference = x - part.baseline
    return Cloud(part.baseline + along * difference, x.new_tensor(weights / 2), difference, "sum")


LEAST = {"smooth_grad": 2, "integrated_gradients": 5}


def embedded(
    parts: Sequence[Part], method: str, *, budget: int, seed: int = 0, batch_tokens: int | None = None
) -> tuple[Estimate, dict[str, Any]]:
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
    share = budget // len(parts)
    least = LEAST.get(method, 1)
    if share < least:
        raise InputError(
            f"a budget of {budget} evaluations is too small for {method} here: it needs {least * len(parts)} or more"
        )
    batch_tokens = batch_tokens or (384 if parts[0].inputs.device.type == "cpu" else 16_384)
    if method == "c_lime":
        return c_lime(parts, share, seed, batch_tokens), {}
    if method == "deep_lift":
        vectors = [deep_lift(part) for part in parts]
        scores = reduce(parts, vectors, "sum")
        return exact(scores, 2 * len(parts)), {"completeness_gap": gap(parts, scores)}
    clouds = [cloud(part, method, share, seed) for part in parts]
    gradients = [
        gradients_at(part, near.points, batch_tokens, method) for part, near in zip(parts, clouds, strict=True)
    ]

    def scores_of(weights: Sequence[npt.NDArray[np.float32]]) -> Floats:
        vectors = []
        for near, found, weight in zip(clouds, gradients, weights, strict=True):
            mean = np.tensordot(weight, found, 1)
            vectors.append(mean if near.factor is None else mean * near.factor[0].float().cpu().numpy())
        return reduce(parts, vectors, clouds[0].how)

    weights = [near.weights.float().cpu().numpy() for near in clouds]
    scores = scores_of(weights)
    calls = sum(len(near.points) for near in clouds)
    if clouds[0].drawn:
        n = len(weights[0])
        counts = np.random.default_rng([seed, 1]).multinomial(n, [1 / n] * n, ROUNDS).astype(np.float32) / n
        # basic bootstrap: a norm of means is biased upwards, in the rounds as in the scores
        low, high = np.quantile([scores_of([row] * len(parts)) for row in counts], [0.025, 0.975], axis=0)
        return Estimate(scores, np.minimum(2 * scores - high, scores), np.maximum(2 * scores - low, scores), calls), {}
    meta = {"completeness_gap": gap(parts, scores)} if method == "integrated_gradients" else {}
    return exact(scores, calls), meta


def gradients_at(part: Part, points: Tensor, batch_tokens: int, method: str) -> npt.NDArray[np.float32]:
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
        raise InputError(f"{method}: the gradient by token {token} is not finite: check the weights of the model")
    return result


def c_lime(parts: Sequence[Part], draws: int, seed: int, batch_tokens: int) -> Estimate:
    """Linear fit to the scores of the input with each word's embeddings stretched a little."""
    import torch

    near = scaled(len(parts[0].spans), draws, seed)
    values = np.zeros(draws)
    for part in parts:
        owner = owner_words(part.offsets, part.spans)
        stretch = np.where(owner >= 0, 1 + near.masks[:, owner], 1.0)
        for rows in np.array_split(np.arange(draws), max(1, draws * len(owner) // batch_tokens)):
            with torch.inference_mode():
                points = part.inputs * part.inputs.new_tensor(stretch[rows])[..., None]
                values[rows] += part.score(points).double().cpu().numpy()
    scores, half = fit_with_interval(near, evaluated(lambda _: values, np.ones((draws, 1), bool)), {}, seed)
    return Estimate(scores, scores - half, scores + half, draws * len(parts))


def deep_lift(part: Part) -> npt.NDArray[np.float32]:
    """captum's DeepLIFT against the padded baseline.

    It has the rescale rule for activations that are modules of PyTorch's own; what lies in attention kernels and in
    activations that it does not know goes by the plain gradient, which `completeness_gap` shows.

    Raises:
        CapabilityError: the model uses one activation module in several places.
    """
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


def reduce(parts: Sequence[Part], vectors: Sequence[npt.NDArray[np.float32]], how: How) -> Floats:
    """Word scores from one vector per token of each part.

    Parts share the tokens of the text, found in each by their characters (several on the same ones by their order):
    their vectors are added before a norm is taken. The L2 norm of a word is over the stacked vectors of its tokens.
    """
    total: dict[tuple[int, int, int], npt.NDArray[np.float64]] = {}
    for part, rows in zip(parts, vectors, strict=True):
        seen: dict[tuple[int, int], int] = defaultdict(int)
        for (a, b), row in zip(part.offsets, rows, strict=True):
            if b > a:
                key = (a, b, seen[a, b])
                seen[a, b] += 1
                total[key] = total[key] + row if key in total else row.astype(np.float64)
    keys = sorted(total)
    found = np.array([total[key] for key in keys]).reshape(len(keys), -1)
    tokens = {"sum": found.sum, "l1": np.abs(found).sum, "l2": np.square(found).sum}[how](1)
    words = aggregate(tokens, [(a, b) for a, b, _ in keys], parts[0].spans)
    return np.sqrt(words) if how == "l2" else words

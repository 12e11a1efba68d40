"""A Gaussian process over coalitions, whose Shapley and Banzhaf values are known in closed form at any n.

The prior of a game is v(S) = constant + slopes + a smooth part + a rough part, four independent Gaussian processes:

    k(S, T) = c + sum_i a_i x_i y_i + s prod_i (1 if x_i = y_i else r_i) + t h(|S|) [S = T],    x, y in {-1, +1}^n.

The rough part is what one combination of sources does on its own. It is larger where there are few, each of which is a
larger part of what the model reads: h(m) = 1 + 3 / m^2 (and h(0) = h(1)). Parts within sources (Owen values) are asked
about beside whole sources, so their number says no such thing, and h = 1.

The product is the diffusion kernel of the hypercube with one length per source (Kondor & Lafferty 2002): a source of
r_i = 1 does not take part in interactions. Scores are linear in v, so given observed values they are Gaussian too, and
their means, variances and covariance with any v(T) need only the scores of k(., T). For a product of factors these
are one-dimensional integrals of its multilinear extension (Owen 1972), a polynomial that Gauss-Legendre nodes
integrate exactly.

A second game u whose values and scores are known beforehand may be what v follows (a control variate): then
v(S) = b u(S) + the above, b ~ N(0, f). The variance f is a hyperparameter like the others, so a u that tells nothing of
v fades by itself, and what is not known of b is part of the posterior variance.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize

from amplify.shapley.budget import CELLS, CostTracker, PrefixCost
from amplify.shapley.exact import (
    Index,
    Owen,
    as_owen,
    coalition_weights,
    log_binomial,
    log_marginal_weights,
)
from amplify.shapley.game import Coalitions, Floats

CONSTANT = 10.0  # prior variance of the mean, in units of the sample variance: large enough to be uninformative
JITTER = 1e-9
NODES = 128  # at most, of the integrals over inclusion probabilities
TIE = 1e-9  # gains this close, relatively, are equal: sources that nothing is known of are alike
SMALL = 3.0  # how much rougher a game is at one source than at many
THRIFT = (0.0, 0.1, 0.2, 0.3, 0.4, 0.6, 1.0)  # tried in turn where a number of values may cost so much
ENOUGH = 192  # values that hyperparameters are fitted to: more cost cubic time and hardly move them


def rougher(index: Index | Owen) -> float:
    """How much rougher a game of these scores is at one player than at many: not at all for parts within sources."""
    return 0.0 if isinstance(index, Owen) else SMALL


@cache
def _legendre(count: int) -> tuple[Floats, Floats]:
    return np.polynomial.legendre.leggauss(count)


def nodes(n: int, index: Index) -> tuple[Floats, Floats]:
    """Points q and weights of the integral over inclusion probability: Shapley 0..1, Banzhaf the point 1/2.

    Exact up to 2 NODES sources; of more, what the nodes miss of a polynomial of such a degree is below round-off
    unless most sources interact at once.
    """
    if index == "banzhaf":
        return np.array([0.5]), np.array([1.0])
    x, w = _legendre(min(n // 2 + 1, NODES))
    return (x + 1) / 2, w / 2


def agreements(n: int, index: Index) -> tuple[Floats, Floats]:
    """Points g and weights of the integral over the chance that a source is alike in two coalitions, both of `nodes`.

    g = (1 + u v) / 2 with u and v symmetric about 0, so that a quarter of all pairs gives every g.
    """
    q, weight = nodes(n, index)
    right = q > 0.5 + 1e-12
    u, w = 2 * q[right] - 1, 2 * weight[right]  # with the nodes on the other side
    i, j = np.triu_indices(len(u))
    product, chance = u[i] * u[j], np.where(i == j, 1.0, 2.0) * w[i] * w[j]
    middle = 1 - w.sum() ** 2  # of all pairs in which one is the node at 1/2
    g = np.concatenate([(1 + product) / 2, (1 - product) / 2, [0.5]])
    return g, np.concatenate([chance / 2, chance / 2, [middle]])


@dataclass(frozen=True)
class Kernel:
    """Hyperparameters: `slopes` [n] (a), `smooth` (s), `decay` [n] (-log r), `rough` (t), `follows` (f), `small`.

    `gram`, `cross` and the variances are those of the game without the part that follows a control.
    """

    slopes: Floats
    smooth: float
    decay: Floats
    rough: float
    follows: float = 0.0
    small: float = SMALL

    @property
    def n(self) -> int:
        """Number of sources."""
        return len(self.slopes)

    def roughness(self, sizes: npt.NDArray[np.int64]) -> Floats:
        """h(m) of coalitions of these sizes."""
        return np.asarray(1 + self.small / np.maximum(sizes, 1) ** 2)

    def gram(self, left: Coalitions, right: Coalitions) -> Floats:
        """k(S, T) for S in left [a, n] and T in right [b, n]: [a, b]."""
        x, y = 2.0 * left - 1, 2.0 * right - 1
        signs = x @ y.T
        # sum of decay over the sources where the two differ, from the signed agreement
        apart = (self.decay.sum() - (x * self.decay) @ y.T) / 2
        same = (signs > self.n - 0.5) * self.roughness(right.sum(axis=1))
        return CONSTANT + (x * self.slopes) @ y.T + self.smooth * np.exp(-apart) + self.rough * same

    def variance(self, coalitions: Coalitions) -> Floats:
        """k(S, S), [coalitions]."""
        return CONSTANT + float(self.slopes.sum()) + self.smooth + self.rough * self.roughness(coalitions.sum(axis=1))

    def cross(self, right: Coalitions, index: Index | Owen) -> Floats:
        """Covariance of each score with v(T), [scored, b]."""
        owen = as_owen(index, self.n)
        inner = right[:, owen.scored]
        r, y = np.exp(-self.decay[owen.scored]), 2.0 * inner.T - 1
        held, left, product = self._factors(right, owen.scored, owen.index)
        others = np.where(inner, product @ np.exp(-held), product @ np.exp(-left)).T  # of all but one, integrated
        smooth = others * ((1 - r)[:, None] * y)
        for block in owen.outer:
            smooth = smooth * self._factors(right, block, owen.index)[2].sum(axis=1)
        rough = coalition_weights(right, owen).T * self.roughness(right.sum(axis=1))
        return 2 * self.slopes[owen.scored, None] * y + self.smooth * smooth + self.rough * rough

    def _factors(self, right: Coalitions, block: slice, index: Index) -> tuple[Floats, Floats, Floats]:
        """What the smooth part's product is made of while a block's players are there by chance.

        Returns:
            Logarithms of the expected factor of each player where T holds it and where not, [nodes, players] both; and
            the weighted product of all of them, [b, nodes].
        """
        q, weight = nodes(block.stop - block.start, index)
        r, chance = np.exp(-self.decay[block]), q[:, None]
        held = np.log(np.maximum(chance + (1 - chance) * r, 1e-300))
        left = np.log(np.maximum((1 - chance) + chance * r, 1e-300))
        return held, left, weight * np.exp(right[:, block] @ (held - left).T + left.sum(axis=1))

    def scores_variance(self, index: Index | Owen) -> Floats:
        """Prior variance of each score, [scored]."""
        owen = as_owen(index, self.n)
        r = np.exp(-self.decay[owen.scored])
        n = len(r)
        agree, weight = agreements(n, owen.index)
        smooth = np.zeros(n)
        step = max(1, CELLS // 16 // n)
        for k in range(0, len(agree), step):
            g = agree[k : k + step, None]
            logs = np.log(np.maximum(g + (1 - g) * r, 1e-300))
            smooth += weight[k : k + step] @ np.exp(logs.sum(axis=1, keepdims=True) - logs)
        smooth *= 2 * (1 - r)
        counts = log_binomial(n - 1, np.arange(n))
        twice = np.exp(counts + 2 * log_marginal_weights(n, owen.index))  # by the others that are there, squared
        alone = np.convolve(twice, [1.0, 1.0])  # a source is counted with and without itself
        for block in owen.outer:
            size = block.stop - block.start
            g, w = agreements(size, owen.index)
            smooth *= float(w @ np.exp(np.log(g[:, None] + (1 - g[:, None]) * np.exp(-self.decay[block])).sum(axis=1)))
            sizes = log_binomial(size, np.arange(size + 1))
            same = np.exp(-sizes) / (size + 1) ** 2 if owen.index == "shapley" else np.exp(sizes) * 0.25**size
            alone = np.convolve(alone, same)  # of two coalitions of the block: the chance that they are the same
        rough = float(alone @ self.roughness(np.arange(len(alone))))
        return 4 * self.slopes[owen.scored] + self.smooth * smooth + self.rough * rough


@dataclass(frozen=True)
class Control:
    """A game that is known beforehand: `values` [m] at the coalitions asked, standardised, and its `scores` [n]."""

    values: Floats
    scores: Floats

    def first(self, known: int) -> Control:
        """The same where only so many coalitions have been asked."""
        return Control(self.values[:known], self.scores)


def prior(n: int, small: float = SMALL) -> Kernel:
    """The kernel before any value is seen: most variance in the slopes, interactions of every source alike."""
    return Kernel(np.full(n, 0.7 / n), 0.3, np.full(n, 2.0 / n), 0.01, 0.5, small)


def pack(kernel: Kernel) -> Floats:
    """Hyperparameters as one vector of logarithms, [2 n + 3]."""
    return np.log(np.concatenate([kernel.slopes, [kernel.smooth], kernel.decay, [kernel.rough, kernel.follows]]))


def unpack(theta: Floats, small: float = SMALL) -> Kernel:
    """Inverse of `pack`."""
    n = (len(theta) - 3) // 2
    values = np.exp(theta)
    return Kernel(values[:n], float(values[n]), values[n + 1 : 2 * n + 1], float(values[-2]), float(values[-1]), small)


def fit(
    coalitions: Coalitions,
    values: Floats,
    control: Control | None = None,
    iterations: int = 80,
    small: float = SMALL,
) -> Kernel:
    """Hyperparameters of highest marginal likelihood, under a broad log-normal prior around `prior(n)`.

    Args:
        coalitions: bool[m, n], all different.
        values: [m], standardised.
        control: what the game may follow.
        iterations: of L-BFGS.
        small: of the kernel, see `rougher`.
    """
    u = np.zeros(len(values)) if control is None else control.values
    if len(values) > ENOUGH:
        some = np.linspace(0, len(values) - 1, ENOUGH).astype(int)
        coalitions, values, u = coalitions[some], values[some], u[some]
    n, m = coalitions.shape[1], len(values)
    x, center = 2.0 * coalitions - 1, pack(prior(n))
    roughness = unpack(center, small).roughness(coalitions.sum(axis=1))
    spread = np.concatenate([np.full(n, 2.0), [1.5], np.full(n, 1.0), [1.5, 1.5]])
    alike = np.outer(u, u)

    def objective(theta: Floats) -> tuple[float, Floats]:
        kernel = unpack(theta)
        smooth = kernel.smooth * np.exp(((x * kernel.decay) @ x.T - kernel.decay.sum()) / 2)
        gram = CONSTANT + (x * kernel.slopes) @ x.T + smooth + kernel.follows * alike
        gram += np.diag(kernel.rough * roughness + JITTER)
        factor = cho_factor(gram, lower=True)
        inverse = cho_solve(factor, np.eye(m))
        alpha = inverse @ values
        back = (inverse - np.outer(alpha, alpha)) / 2
        pull = (theta - center) / spread
        cost = values @ alpha / 2 + np.log(np.diag(factor[0])).sum() + pull @ pull / 2
        slope = np.empty_like(theta)
        slope[:n] = ((back @ x) * x).sum(axis=0) * kernel.slopes
        faded = back * smooth
        slope[n] = faded.sum()
        # two coalitions differ in a source where the product of its signs is -1
        slope[n + 1 : -2] = (((faded @ x) * x).sum(axis=0) - slope[n]) / 2 * kernel.decay
        slope[-2] = (np.diag(back) @ roughness) * kernel.rough
        slope[-1] = (back * alike).sum() * kernel.follows
        return float(cost), slope + pull / spread

    found = minimize(
        objective, center, jac=True, method="L-BFGS-B",
        bounds=[(-14.0, 4.0)] * len(center), options={"maxiter": iterations},
    )  # fmt: skip
    return unpack(found.x, small)


@dataclass(frozen=True)
class Posterior:
    """Given values: mean and standard deviation of the scores, [n] both, and the `slope` on the control (0 without)."""

    scores: Floats
    deviation: Floats
    slope: float = 0.0


def posterior(
    kernel: Kernel, coalitions: Coalitions, values: Floats, index: Index | Owen, control: Control | None = None
) -> Posterior:
    """Condition the game on its observed values; `values` [m] in the units that `kernel` was fitted in."""
    gram = kernel.gram(coalitions, coalitions) + JITTER * np.eye(len(values))
    cross, variance = kernel.cross(coalitions, index), kernel.scores_variance(index)
    if control is not None:
        gram += kernel.follows * np.outer(control.values, control.values)
        cross = cross + kernel.follows * np.outer(control.scores, control.values)
        variance = variance + kernel.follows * control.scores**2
    factor = cho_factor(gram, lower=True)
    alpha = cho_solve(factor, values)
    variance = variance - np.einsum("ia,ai->i", cross, cho_solve(factor, cross.T))
    slope = 0.0 if control is None else kernel.follows * float(control.values @ alpha)
    return Posterior(cross @ alpha, np.sqrt(np.maximum(variance, 0.0)), slope)


@dataclass(frozen=True)
class Surprise:
    """How much further scores moved than a model thought they would, squared (`ratio`; 1 if the model is right).

    `freedom`: of how many equal and independent squared moves that is the mean, in effect.
    """

    ratio: float
    freedom: float


def surprise(
    kernel: Kernel,
    coalitions: Coalitions,
    values: Floats,
    known: int,
    index: Index | Owen,
    control: Control | None = None,
) -> Surprise:
    """What new values did to the scores, against what the model expected of them.

    The first `known` values predict the scores; the rest moves them. Under the model the moves are Gaussian with mean 0
    and a known covariance M, so their summed squares are trace(M) on average, and near a multiple of a chi-squared
    variable with trace(M)^2 / trace(M M) degrees of freedom (Satterthwaite 1946).
    """
    gram = kernel.gram(coalitions, coalitions) + JITTER * np.eye(len(values))
    cross = kernel.cross(coalitions, index)
    if control is not None:
        gram += kernel.follows * np.outer(control.values, control.values)
        cross = cross + kernel.follows * np.outer(control.scores, control.values)
    move = cho_solve(cho_factor(gram, lower=True), cross.T).T  # of the scores, by all values
    move[:, :known] -= cho_solve(cho_factor(gram[:known, :known], lower=True), cross[:, :known].T).T
    expected = move @ gram @ move.T
    total = max(float(np.trace(expected)), 1e-12)
    freedom = total**2 / max(float((expected**2).sum()), 1e-24)
    return Surprise(float(((move @ values) ** 2).sum()) / total, max(freedom, 1.0))


class AcquisitionDesign:
    """Chooses the coalitions whose values say most about the scores.

    Greedy: each pick is the candidate T of greatest sum_i Cov(score_i, v(T))^2 / Var v(T) given what is known, which is
    how far v(T) lowers the summed posterior variance; where asking has a price, the greatest such gain for its price
    (to the power of `thrift`). The values themselves do not enter, so a whole batch can be chosen before any is asked.

    Args:
        kernel: of the game.
        known: coalitions asked before.
        candidates: those to choose from.
        index: which scores.
        cost: what asking costs; None if every coalition costs the same.
        thrift: how much the price matters, 0 to 1.
    """

    def __init__(
        self,
        kernel: Kernel,
        known: Coalitions,
        candidates: Coalitions,
        index: Index | Owen,
        cost: PrefixCost | None = None,
        thrift: float = 1.0,
    ) -> None:
        self.kernel, self.candidates, self.thrift = kernel, candidates, thrift
        self.bill = None if cost is None else CostTracker(cost, candidates, known)
        self.cross = kernel.cross(candidates, index)
        self.variance = kernel.variance(candidates)
        self.rows = np.zeros((0, len(candidates)))  # of the Cholesky factor: what each coalition known tells of each
        self.open = np.ones(len(candidates), bool)
        if len(known):
            gram = kernel.gram(known, known) + JITTER * np.eye(len(known))
            lower = np.linalg.cholesky(gram)
            self.rows = np.linalg.solve(lower, kernel.gram(known, candidates))
            self.cross = self.cross - np.linalg.solve(lower, kernel.cross(known, index).T).T @ self.rows
            self.variance = self.variance - (self.rows**2).sum(axis=0)
            seen = {row.tobytes() for row in known}
            self.open = np.array([row.tobytes() not in seen for row in candidates])

    def pick(self, count: int, upto: float = np.inf) -> Coalitions:
        """The next `count` coalitions, [count, n]; fewer where candidates run out, or the bill would exceed `upto`."""
        picked: list[int] = []
        count = min(count, int(self.open.sum()))
        known = len(self.rows)
        rows = np.concatenate([self.rows, np.empty((count, len(self.candidates)))])
        for _ in range(count):
            gain = (self.cross**2).sum(axis=0) / np.maximum(self.variance, JITTER)
            within = self.open
            if self.bill is not None:
                costs = self.bill.costs
                gain, within = gain / costs**self.thrift, within & (self.bill.spent + costs <= upto)
            worth = np.where(within, gain, -1.0)
            best = int((worth >= worth.max() * (1 - TIE)).argmax())  # the first of equals, whatever round-off says
            if not within[best]:
                break
            now = known + len(picked)
            shared = self.kernel.gram(self.candidates[[best]], self.candidates)[0] - rows[:now, best] @ rows[:now]
            root = np.sqrt(max(self.variance[best], JITTER))
            row = rows[now] = shared / root
            self.cross = self.cross - np.outer(self.cross[:, best] / root, row)
            self.variance = self.variance - row**2
            self.open[best] = False
            if self.bill is not None:
                self.bill.pay(best)
            picked.append(best)
        self.rows = rows[: known + len(picked)]
        return self.candidates[picked]


def chosen(
    kernel: Kernel,
    known: Coalitions,
    candidates: Coalitions,
    index: Index | Owen,
    count: int,
    cost: PrefixCost | None = None,
    budget: int = 0,
) -> Coalitions:
    """The next coalitions to ask, [count, n] or fewer.

    Args:
        kernel, known, candidates, index, cost: as of `AcquisitionDesign`.
        count: how many, at most.
        budget: of all coalitions. Under a soft limit, so many of them cost their share of it: the price matters as
            little as will do.
    """
    if cost is None or not cost.soft:
        limit = np.inf if cost is None else cost.limit
        return AcquisitionDesign(kernel, known, candidates, index, cost).pick(count, limit)
    for thrift in THRIFT:
        picked = AcquisitionDesign(kernel, known, candidates, index, cost, thrift).pick(count)
        asked = np.concatenate([known, picked])
        if cost.of(asked) <= cost.limit * len(asked) / budget:
            break
    return picked

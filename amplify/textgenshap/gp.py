"""A Gaussian process over coalitions, whose Shapley and Banzhaf values are known in closed form at any n.

The prior of a game is v(S) = constant + slopes + a smooth part + a rough part, four independent Gaussian processes:

    k(S, T) = c + sum_i a_i x_i y_i + s prod_i (1 if x_i = y_i else r_i) + t [S = T],    x, y in {-1, +1}^n.

The product is the diffusion kernel of the hypercube with one length per source (Kondor & Lafferty 2002): a source of
r_i = 1 does not take part in interactions. Scores are linear in v, so given observed values they are Gaussian too, and
their means, variances and covariance with any v(T) need only the scores of k(., T). For a product of factors these
are one-dimensional integrals of its multilinear extension (Owen 1972), a polynomial that Gauss-Legendre nodes
integrate exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize

from amplify.textgenshap.exact import Index, coalition_weights, log_binomial, marginal_weights
from amplify.textgenshap.value import Coalitions, Floats

CONSTANT = 10.0  # prior variance of the mean, in units of the sample variance: large enough to be uninformative
JITTER = 1e-9
ENOUGH = 192  # values that hyperparameters are fitted to: more cost cubic time and hardly move them


def nodes(n: int, index: Index) -> tuple[Floats, Floats]:
    """Points q and weights of the integral over inclusion probability: Shapley 0..1, Banzhaf the point 1/2."""
    if index == "banzhaf":
        return np.array([0.5]), np.array([1.0])
    x, w = np.polynomial.legendre.leggauss(n // 2 + 1)
    return (x + 1) / 2, w / 2


@dataclass(frozen=True)
class Kernel:
    """Hyperparameters: `slopes` [n] (a), `smooth` (s), `decay` [n] (-log r), `rough` (t)."""

    slopes: Floats
    smooth: float
    decay: Floats
    rough: float

    @property
    def n(self) -> int:
        """Number of sources."""
        return len(self.slopes)

    def gram(self, left: Coalitions, right: Coalitions) -> Floats:
        """k(S, T) for S in left [a, n] and T in right [b, n]: [a, b]."""
        x, y = 2.0 * left - 1, 2.0 * right - 1
        signs = x @ y.T
        # sum of decay over the sources where the two differ, from the signed agreement
        apart = (self.decay.sum() - (x * self.decay) @ y.T) / 2
        same = signs > self.n - 0.5
        return CONSTANT + (x * self.slopes) @ y.T + self.smooth * np.exp(-apart) + self.rough * same

    def variance(self) -> float:
        """k(S, S), the same for all S."""
        return CONSTANT + float(self.slopes.sum()) + self.smooth + self.rough

    def cross(self, right: Coalitions, index: Index) -> Floats:
        """Covariance of each score with v(T), [n, b]."""
        y = 2.0 * right - 1
        q, weight = nodes(self.n, index)
        r = np.exp(-self.decay)
        # expectation of a factor when its source is present with probability q: [nodes, b, n]
        present = q[:, None, None]
        factor = np.where(right, present + (1 - present) * r, (1 - present) + present * r)
        logs = np.log(np.maximum(factor, 1e-300))
        others = np.exp(logs.sum(axis=2, keepdims=True) - logs)
        smooth = np.einsum("q,qbi->ib", weight, others) * ((1 - r)[:, None] * y.T)
        rough = coalition_weights(right, index).T
        return 2 * self.slopes[:, None] * y.T + self.smooth * smooth + self.rough * rough

    def scores_variance(self, index: Index) -> Floats:
        """Prior variance of each score, [n]."""
        q, weight = nodes(self.n, index)
        r = np.exp(-self.decay)
        agree = q[:, None] * q[None] + (1 - q)[:, None] * (1 - q)[None]
        factor = agree[..., None] + (1 - agree[..., None]) * r
        logs = np.log(np.maximum(factor, 1e-300))
        others = np.exp(logs.sum(axis=2, keepdims=True) - logs)
        smooth = np.einsum("p,q,pqi->i", weight, weight, others) * 2 * (1 - r)
        sizes = np.arange(self.n)
        rough = 2 * np.sum(np.exp(log_binomial(self.n - 1, sizes)) * marginal_weights(self.n, index) ** 2)
        return 4 * self.slopes + self.smooth * smooth + self.rough * float(rough)


def prior(n: int) -> Kernel:
    """The kernel before any value is seen: most variance in the slopes, interactions of every source alike."""
    return Kernel(np.full(n, 0.7 / n), 0.3, np.full(n, 2.0 / n), 0.01)


def pack(kernel: Kernel) -> Floats:
    """Hyperparameters as one vector of logarithms."""
    return np.log(np.concatenate([kernel.slopes, [kernel.smooth], kernel.decay, [kernel.rough]]))


def unpack(theta: Floats) -> Kernel:
    """Inverse of `pack`."""
    n = (len(theta) - 2) // 2
    values = np.exp(theta)
    return Kernel(values[:n], float(values[n]), values[n + 1 : 2 * n + 1], float(values[-1]))


def fit(coalitions: Coalitions, values: Floats, start: Kernel | None = None, iterations: int = 80) -> Kernel:
    """Hyperparameters of highest marginal likelihood, under a broad log-normal prior around `prior(n)`.

    Args:
        coalitions: bool[m, n], all different.
        values: [m], standardised.
        start: where the search starts.
        iterations: of L-BFGS.
    """
    if len(values) > ENOUGH:
        some = np.linspace(0, len(values) - 1, ENOUGH).astype(int)
        coalitions, values = coalitions[some], values[some]
    n, m = coalitions.shape[1], len(values)
    x = 2.0 * coalitions - 1
    center = pack(prior(n))
    spread = np.concatenate([np.full(n, 2.0), [1.5], np.full(n, 1.0), [1.5]])
    apart = (coalitions[:, None, :] != coalitions[None]).astype(float).reshape(m * m, n)
    signs = (x[:, None, :] * x[None]).reshape(m * m, n)

    def objective(theta: Floats) -> tuple[float, Floats]:
        kernel = unpack(theta)
        smooth = kernel.smooth * np.exp(-apart @ kernel.decay).reshape(m, m)
        gram = CONSTANT + (signs @ kernel.slopes).reshape(m, m) + smooth + (kernel.rough + JITTER) * np.eye(m)
        factor = cho_factor(gram, lower=True)
        inverse = cho_solve(factor, np.eye(m))
        alpha = inverse @ values
        back = (inverse - np.outer(alpha, alpha)) / 2
        pull = (theta - center) / spread
        cost = values @ alpha / 2 + np.log(np.diag(factor[0])).sum() + pull @ pull / 2
        slope = np.empty_like(theta)
        slope[:n] = (back.ravel() @ signs) * kernel.slopes
        slope[n] = (back * smooth).sum()
        slope[n + 1 : -1] = -((back * smooth).ravel() @ apart) * kernel.decay
        slope[-1] = np.trace(back) * kernel.rough
        return float(cost), slope + pull / spread

    found = minimize(
        objective, pack(start or prior(n)), jac=True, method="L-BFGS-B",
        bounds=[(-14.0, 4.0)] * (2 * n + 2), options={"maxiter": iterations},
    )  # fmt: skip
    return unpack(found.x)


@dataclass(frozen=True)
class Posterior:
    """Scores given values: posterior mean and standard deviation, both [n]."""

    scores: Floats
    deviation: Floats


def posterior(kernel: Kernel, coalitions: Coalitions, values: Floats, index: Index) -> Posterior:
    """Condition the game on its observed values; `values` [m] in the units that `kernel` was fitted in."""
    factor = cho_factor(kernel.gram(coalitions, coalitions) + JITTER * np.eye(len(values)), lower=True)
    cross = kernel.cross(coalitions, index)
    variance = kernel.scores_variance(index) - np.einsum("ia,ai->i", cross, cho_solve(factor, cross.T))
    return Posterior(cross @ cho_solve(factor, values), np.sqrt(np.maximum(variance, 0.0)))


def surprise(kernel: Kernel, coalitions: Coalitions, values: Floats, known: int, index: Index) -> float:
    """How much further the scores moved than the model thought they would, squared, when new values came in.

    The first `known` values predict the scores; the rest moves them. Under the model each move is Gaussian with the
    variance that the new values take away, so the mean squared standardised move is 1; above 1 the model is too sure.
    """
    before = posterior(kernel, coalitions[:known], values[:known], index)
    after = posterior(kernel, coalitions, values, index)
    expected = before.deviation**2 - after.deviation**2
    return float(np.mean((after.scores - before.scores) ** 2) / max(float(np.mean(expected)), 1e-12))


class Design:
    """Chooses the coalitions whose values say most about the scores.

    Greedy: each pick is the candidate T of greatest sum_i Cov(score_i, v(T))^2 / Var v(T) given what is known, which is
    how far v(T) lowers the summed posterior variance. The values themselves do not enter, so a whole batch can be
    chosen before any is asked.
    """

    def __init__(self, kernel: Kernel, known: Coalitions, candidates: Coalitions, index: Index) -> None:
        self.kernel, self.candidates = kernel, candidates
        self.cross = kernel.cross(candidates, index)
        self.variance = np.full(len(candidates), kernel.variance())
        self.rows: list[Floats] = []
        self.open = np.ones(len(candidates), bool)
        if len(known):
            gram = kernel.gram(known, known) + JITTER * np.eye(len(known))
            lower = np.linalg.cholesky(gram)
            rows = np.linalg.solve(lower, kernel.gram(known, candidates))
            self.cross = self.cross - np.linalg.solve(lower, kernel.cross(known, index).T).T @ rows
            self.variance = self.variance - (rows**2).sum(axis=0)
            self.rows = list(rows)
            seen = {row.tobytes() for row in known}
            self.open = np.array([row.tobytes() not in seen for row in candidates])

    def pick(self, count: int) -> Coalitions:
        """The next `count` coalitions, [count, n]; fewer where the candidates run out."""
        picked: list[int] = []
        for _ in range(min(count, int(self.open.sum()))):
            gain = (self.cross**2).sum(axis=0) / np.maximum(self.variance, JITTER)
            best = int(np.where(self.open, gain, -1.0).argmax())
            history = np.array(self.rows)
            shared = self.kernel.gram(self.candidates[[best]], self.candidates)[0]
            if len(history):
                shared = shared - history[:, best] @ history
            root = np.sqrt(max(self.variance[best], JITTER))
            row = shared / root
            self.cross = self.cross - np.outer(self.cross[:, best] / root, row)
            self.variance = self.variance - row**2
            self.rows.append(row)
            self.open[best] = False
            picked.append(best)
        return self.candidates[picked]

"""The explainers by name: what each is, what it needs of a model, and how it scores the words of an input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from amplify.errors import InputError
from amplify.registry import Table, register

if TYPE_CHECKING:
    import numpy.typing as npt

    from amplify.attribution.perturbation import Coalitions, Estimate, Floats
    from amplify.attribution.subjects import Part, Subject

Kind = Literal["perturbation", "embedding", "attention", "baseline"]


@dataclass
class Game:
    """An input's words as a game, made when the first value is asked for."""

    subject: Subject
    masking: str = "delete"

    @cached_property
    def value(self) -> Callable[[Coalitions], Floats]:
        """See `Subject.value`."""
        return self.subject.value(self.masking)


@dataclass
class Case:
    """One input to explain, as an explainer sees it.

    Attributes:
        subject: the input, its target and its model.
        game: its words as a game, shared by all explainers of the input: what one asked, another has for nothing.
        budget: model evaluations at most.
        seed: of whatever is drawn.
        corpus: texts that words can be counted in.
        meta: what a reader of the result must know; an explainer adds to it.
        calls: how many values this explainer asked for.
    """

    subject: Subject
    game: Game
    budget: int = 128
    seed: int = 0
    corpus: Sequence[str] = ()
    meta: dict[str, Any] = field(default_factory=dict)
    calls: int = 0

    @property
    def text(self) -> str:
        """What the words are of."""
        return self.subject.text

    @cached_property
    def words(self) -> list[str]:
        """What is scored, in the order of the text."""
        return [self.text[a:b] for a, b in self.subject.spans]

    def value(self, kept: Coalitions) -> Floats:
        """The model's score of the target (less the foil's) with some words left out.

        Args:
            kept: one row a question, True for the words that stay; bool, shape (questions, words).

        Returns:
            Shape (questions,): log-probabilities, or logits of a proxy with a trained head.
        """
        self.calls += len(kept)
        return self.game.value(kept)

    def parts(self) -> list[Part]:
        """The sequences that score the target, with inputs to differentiate by: models of this process only."""
        return self.subject.parts()


@dataclass(frozen=True)
class Explainer:
    """One way to score words.

    Attributes:
        kind: what it looks at: values of perturbed inputs, a model's embeddings and gradients, its attention, or only
            the text.
        description: one line.
        score: gives one number a word, or an `Estimate` with intervals.
        contrastive: whether a foil changes it.
        sampled: whether it draws at random.
        signed: whether a score's sign says for or against the target; else it says how much alone.
        together: whether `gradients.explain` has it for many inputs of a proxy in one pass.
    """

    kind: Kind
    description: str
    score: Callable[[Case], npt.ArrayLike | Estimate]
    contrastive: bool = True
    sampled: bool = False
    signed: bool = True
    together: bool = False

    @property
    def summary(self) -> str:
        """The description, and whether its scores are unsigned."""
        return self.description + ("" if self.signed else "; unsigned")

    @property
    def inside(self) -> bool:
        """Whether it needs a model in this process."""
        return self.kind in ("embedding", "attention")


def _adopt(name: str, value: Any) -> Explainer:
    if isinstance(value, Explainer):
        return value
    if not callable(value):
        raise InputError(f"the explainer {name!r} is a function of a Case, or an Explainer, not {value!r}")
    return Explainer("perturbation", next(iter((value.__doc__ or "").strip().splitlines()), ""), value)


METHODS: Table[Explainer] = Table("explainer", _adopt)
"""Every explainer by name."""
AUTO = "Or 'auto', which takes the most faithful of a pool."


def _perturbed(name: str) -> Callable[[Case], Estimate]:
    def score(case: Case) -> Estimate:
        from amplify.attribution.perturbation import estimate

        return estimate(case.value, len(case.words), name, budget=case.budget, seed=case.seed)

    return score


def _embedded(name: str) -> Callable[[Case], Estimate]:
    def score(case: Case) -> Estimate:
        from amplify.attribution.embedded import embedded

        found, more = embedded(case.parts(), name, budget=case.budget, seed=case.seed)
        case.meta |= more
        return found

    return score


def _attended(name: str) -> Callable[[Case], Estimate]:
    def score(case: Case) -> Estimate:
        from amplify.attribution.attention import attention_scores
        from amplify.attribution.perturbation import exact

        return exact(attention_scores(case.parts()[0], name), 1)

    return score


def _random(case: Case) -> npt.ArrayLike:
    from amplify.attribution.baselines import random_scores

    return random_scores(case.text, len(case.words), case.seed)


def _tfidf(case: Case) -> npt.ArrayLike:
    from amplify.attribution.baselines import tfidf_scores

    return tfidf_scores(case.words, case.corpus)


def _built_in(kind: Kind, name: str, description: str, **more: Any) -> None:
    score = {"perturbation": _perturbed, "embedding": _embedded, "attention": _attended}[kind](name)
    register("explainer", name, Explainer(kind, description, score, **more))


_UNSIGNED = {"contrastive": False, "signed": False}
_built_in("perturbation", "occlusion", "what is lost when one word is left out (Li et al. 2016)")
_built_in("perturbation", "lime", "ridge fit to random coalitions near the input (Ribeiro et al. 2016)", sampled=True)
_built_in(
    "perturbation", "kernel_shap", "Shapley values by weighted regression on paired coalitions (Lundberg & Lee 2017)",
    sampled=True,
)  # fmt: skip
_built_in(
    "perturbation", "shapley_sampling", "mean of what a word adds in random orders (Castro et al. 2009)", sampled=True
)
_built_in(
    "embedding", "c_lime", "linear fit to the model with words stretched at random (Agarwal et al. 2021)", sampled=True
)
_built_in("embedding", "vanilla_gradients", "L2 norm of the gradient by a word's embeddings", signed=False)
_built_in("embedding", "grad_norm", "L1 norm of the gradient (Simonyan et al. 2014)", signed=False, together=True)
_built_in(
    "embedding", "grad_x_input", "gradient times input, summed over the embedding (Shrikumar et al. 2016)",
    together=True,
)  # fmt: skip
_built_in(
    "embedding", "smooth_grad", "L2 norm of the mean gradient under noise (Smilkov et al. 2017)", sampled=True,
    signed=False,
)  # fmt: skip
_built_in(
    "embedding", "integrated_gradients", "gradients along the way from padding to the input (Sundararajan et al. 2017)"
)
_built_in("embedding", "deep_lift", "differences to padding, layer by layer (Shrikumar et al. 2017)")
_built_in("attention", "raw_attention", "the last layer's attention; a baseline", **_UNSIGNED)
_built_in(
    "attention", "attention_rollout", "attention multiplied through the layers (Abnar & Zuidema 2020)", **_UNSIGNED
)
_built_in(
    "attention", "attention_flow", "maximum flow through the layers' attention (Abnar & Zuidema 2020)", **_UNSIGNED
)
register("explainer", "random", Explainer("baseline", "random scores", _random, contrastive=False))
register(
    "explainer", "tfidf",
    Explainer("baseline", "frequent here and rare in the corpus; no model", _tfidf, **_UNSIGNED),
)  # fmt: skip

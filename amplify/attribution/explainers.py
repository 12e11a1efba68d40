"""The explainers by name: what each is, what it needs of a model, and how it scores the words of inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from amplify.attribution import gradients
from amplify.attribution.attention import attention_scores
from amplify.attribution.inputs import Part, ProxySubject, Subject, subject
from amplify.attribution.words import Mask, Spans, document_frequency, tfidf_scores, word_spans
from amplify.errors import CapabilityError, InputError
from amplify.models.base import LanguageModel, LocalModel, ScoringModel
from amplify.progress import tracked
from amplify.proxies import Proxy, versions
from amplify.registry import Table, register
from amplify.shapley.budget import check_budget, least
from amplify.shapley.estimate import Scores, estimate
from amplify.shapley.exact import Index
from amplify.shapley.game import CachedValue, Coalitions, Floats
from amplify.text import input_text
from amplify.types import Attribution, Example

Kind = Literal["perturbation", "embedding", "attention", "baseline"]


@dataclass
class Game:
    """An input's words as a game, made when the first value is asked for."""

    subject: Subject
    masking: str = "delete"

    @cached_property
    def value(self) -> CachedValue:
        """See `Subject.value`; what was asked once is not asked again."""
        return CachedValue(self.subject.value(self.masking), len(self.subject.spans))


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
        return self.game.value(kept)[:, 0]

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
        score: gives one number a word, or `Scores` with intervals.
        contrastive: whether a foil changes it.
        sampled: whether it draws at random.
        signed: whether a score's sign says for or against the target; else it says how much alone.
        together: whether `gradients.explain` has it for many inputs of a proxy in one pass.
        least: words -> evaluations without which it says nothing; by embedding, of each sequence.
        check: (words, budget) -> nothing, or an `InputError` before anything is asked.
    """

    kind: Kind
    description: str
    score: Callable[[Case], npt.ArrayLike | Scores]
    contrastive: bool = True
    sampled: bool = False
    signed: bool = True
    together: bool = False
    least: Callable[[int], int] = lambda words: 1
    check: Callable[[int, int], None] = lambda words, budget: None

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


def random_scores(text: str, words: int, seed: int) -> Floats:
    """Standard normal scores that depend on the seed and the text alone.

    Example:
        >>> random_scores("a text", 3, seed=0).shape
        (3,)
    """
    return np.random.default_rng([seed, *text.encode("utf-8", "surrogatepass")]).normal(size=words)


def _tfidf(case: Case) -> Floats:
    return tfidf_scores(case.words, document_frequency(case.corpus), len(case.corpus))


def _by_attention(name: str, case: Case) -> Scores:
    return Scores.exact(attention_scores(case.parts()[0], name), 1)


def _by_game(estimator: str, index: Index = "shapley") -> Callable[[Case], Scores]:
    def score(case: Case) -> Scores:
        found = estimate(case.value, len(case.words), index, estimator, case.budget, case.seed)
        case.meta["estimator"] = found.estimator
        return found

    return score


def _by_gradients(name: str) -> Callable[[Case], Scores]:
    def score(case: Case) -> Scores:
        found, more = gradients.gradient_scores(case.parts(), name, budget=case.budget, seed=case.seed)
        case.meta |= more
        return found

    return score


def _built_in(
    kind: Kind, name: str, description: str, score: Callable[[Case], npt.ArrayLike | Scores], **how: Any
) -> None:
    register("explainer", name, Explainer(kind, description, score, **how))


for _name, _estimator, _index, _about in (
    ("occlusion", "leave_one_out", "shapley", "what is lost when one word is left out (Li et al. 2016)"),
    ("lime", "lime", "shapley", "ridge fit to random coalitions near the input (Ribeiro et al. 2016)"),
    (
        "kernel_shap",
        "kernel_shap",
        "shapley",
        "Shapley values by regression on pairs by the kernel (Lundberg & Lee 2017)",
    ),
    ("shapley_sampling", "permutation", "shapley", "mean of what a word adds in random orders (Castro et al. 2009)"),
    (
        "leverage_shap",
        "leverage_shap",
        "shapley",
        "Shapley values by regression on pairs by leverage (Musco & Witter 2025)",
    ),
    ("regression_msr", "regression_msr", "shapley", "Shapley values of a surrogate, corrected (Witter et al. 2025)"),
    (
        "gaussian_process",
        "gaussian_process",
        "shapley",
        "Shapley values by a Gaussian process that asks what tells most",
    ),
    ("lasso", "lasso", "shapley", "coefficients of a sparse linear surrogate (ContextCite; Cohen-Wang et al. 2024)"),
    ("banzhaf", "auto", "banzhaf", "what a word adds on average to all sets of others, by a Gaussian process"),
):
    _built_in(
        "perturbation", _name, _about, _by_game(_estimator, _index), sampled=_estimator != "leave_one_out",  # type: ignore[arg-type]
        least=partial(least, _estimator, index=_index),
        check=partial(check_budget, _estimator, index=_index, players="words", name=_name),
    )  # fmt: skip
for _name, _about, _how in (
    ("c_lime", "linear fit to the model with words stretched at random (Agarwal et al. 2021)", {"sampled": True}),
    ("vanilla_gradients", "L2 norm of the gradient by a word's embeddings", {"signed": False}),
    ("grad_norm", "L1 norm of the gradient (Simonyan et al. 2014)", {"signed": False, "together": True}),
    ("grad_x_input", "gradient times input, summed over the embedding (Shrikumar et al. 2016)", {"together": True}),
    (
        "smooth_grad",
        "L2 norm of the mean gradient under noise (Smilkov et al. 2017)",
        {"sampled": True, "signed": False},
    ),
    ("integrated_gradients", "gradients along the way from padding to the input (Sundararajan et al. 2017)", {}),
    ("deep_lift", "differences to padding, layer by layer (Shrikumar et al. 2017)", {}),
):
    _built_in("embedding", _name, _about, _by_gradients(_name), least=gradients.WAYS[_name].least,
              check=partial(gradients.check, _name), **_how)  # fmt: skip
for _name, _about in (
    ("raw_attention", "the last layer's attention; a baseline"),
    ("attention_rollout", "attention multiplied through the layers (Abnar & Zuidema 2020)"),
    ("attention_flow", "maximum flow through the layers' attention (Abnar & Zuidema 2020)"),
):
    _built_in("attention", _name, _about, partial(_by_attention, _name), signed=False, contrastive=False)
_built_in(
    "baseline", "random", "random scores", lambda c: random_scores(c.text, len(c.words), c.seed), contrastive=False
)
_built_in(
    "baseline", "tfidf", "frequent here and rare in the corpus; no model", _tfidf,
    signed=False, contrastive=False,
)  # fmt: skip


def run(
    model: Proxy | LanguageModel,
    subjects: Sequence[Subject],
    methods: Sequence[str],
    *,
    budget: int = 128,
    seed: int = 0,
    masking: str = "delete",
    corpus: Sequence[str] = (),
    progress: bool = False,
) -> dict[str, list[Attribution]]:
    """Explain inputs of an open model by methods of `METHODS`: see `amplify.attribution.explanations.explain_many`.

    Args:
        model: that of the subjects.
        subjects: what `inputs.subject` gave.
        methods: their names, no "auto".
    """
    check_able(model, methods)
    for one in subjects:
        for name in methods:
            METHODS[name].check(len(one.spans), budget)
    corpus = corpus or [s.text for s in subjects]
    results: dict[str, list[Attribution]] = {name: [] for name in methods}
    together = _shared_pass(subjects, [name for name in methods if METHODS[name].together])
    for one in tracked(subjects, unit="text", shown=progress):
        game = Game(one, masking)
        for name in methods:
            if name in together:
                results[name].append(together[name][len(results[name])])
            else:
                results[name].append(_explain(Case(one, game, budget, seed, corpus), name))
    return results


def _shared_pass(subjects: Sequence[Subject], methods: Sequence[str]) -> dict[str, list[Attribution]]:
    """Gradient norm and gradient x input of a proxy's inputs, all by one pass; nothing where that is not possible."""
    cases = [s for s in subjects if isinstance(s, ProxySubject) and set(s.spans) <= set(word_spans(s.text))]
    if not methods or not cases or len(cases) < len(subjects):
        return {}
    kept = {id(s.example): set(s.spans) for s in cases}
    found = gradients.explain(
        cases[0].proxy,
        [s.example for s in cases],
        [s.target for s in cases],
        [s.foil for s in cases],
        methods,
        mask=lambda example: [span in kept[id(example)] for span in word_spans(input_text(example))],
    )
    return {
        name: [replace(a, meta={**a.meta, **s.meta}) for a, s in zip(found[name], cases, strict=True)]
        for name in methods
    }


def _explain(case: Case, name: str) -> Attribution:
    method = METHODS[name]
    case.meta |= {"versions": versions(), **case.subject.meta}
    found = method.score(case)
    if not isinstance(found, Scores):
        scores = np.asarray(found, dtype=np.float64)
        if scores.shape != (len(case.words),):
            raise InputError(
                f"{name} gives scores of shape {scores.shape} for {len(case.words)} words: one each is needed"
            )
        found = Scores.exact(scores, case.calls)
    if method.kind == "perturbation":
        case.meta["masking"] = case.game.masking
    return attribution(case.subject, name, found, seed=case.seed if method.sampled else None, meta=case.meta)


def attribution(case: Subject, method: str, found: Scores, *, seed: int | None, meta: dict[str, Any]) -> Attribution:
    """The scores with all that a reader must know of them.

    Raises:
        InputError: a score is not finite.
    """
    words, scores = tuple(case.text[a:b] for a, b in case.spans), found.scores
    if not np.isfinite(scores).all():
        bad = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise InputError(
            f"{method} gives the word {words[bad]!r} (number {bad + 1} of {len(words)}) the score {scores[bad]}: "
            f"check the weights of {case.model_name}"
        )
    return Attribution(
        text=case.text,
        words=words,
        spans=case.spans,
        scores=tuple(scores.tolist()),
        target=case.target,
        foil=case.foil if METHODS[method].contrastive else None,
        low=tuple(found.low.tolist()),
        high=tuple(found.high.tolist()),
        method=method,
        model=case.model_name,
        budget=found.calls,
        seed=seed,
        meta=meta,
        signed=METHODS[method].signed,
    )


def able(model: Proxy | LanguageModel, explainer: Explainer) -> bool:
    """Whether an explainer works with a model."""
    if isinstance(model, (Proxy, LocalModel)):
        return True
    return not explainer.inside and (isinstance(model, ScoringModel) or explainer.kind == "baseline")


def check_able(model: Proxy | LanguageModel, methods: Sequence[str]) -> None:
    """Refuse methods that do not work with a model.

    Raises:
        UnknownNameError: no such method.
        CapabilityError: names those that do.
    """
    for name in methods:
        explainer = METHODS.find(name)
        if not isinstance(model, Proxy) and not able(model, explainer):
            work = [other for other, one in METHODS.items() if able(model, one)]
            raise CapabilityError(
                f"{name} {'looks inside the model' if explainer.inside else 'needs log-probabilities'}, which "
                f"{model.id!r} does not give. What works with it: {', '.join(work)}. For the others use a "
                "transformers: model or a proxy."
            )


def explain_words(
    proxy: Proxy,
    examples: Sequence[Example],
    targets: Sequence[str | None],
    foils: Sequence[str | None] | None,
    method: str,
    *,
    mask: Mask | None = None,
    budget: int = 128,
    seed: int = 0,
) -> list[Attribution]:
    """Attributions of a proxy's labels by any explainer, over the words that a mask allows.

    Args:
        proxy: what is explained.
        examples, targets, foils: see `amplify.attribution.gradients.explain`.
        method: of `METHODS` or `amplify.attribution.gradients.METHODS`.
        mask: which words of an example are scored; None for all. The others stay in the text.
        budget: evaluations per example of perturbation methods; as many as the method needs where those are more.
        seed: of sampled methods.

    Raises:
        UnknownNameError, InputError: see there; also an example without a word that may be scored.
    """
    if method in gradients.METHODS:
        return gradients.explain(proxy, examples, targets, foils, (method,), mask=mask)[method]
    segments = [allowed(example, mask) for example in examples]
    for example, spans in zip(examples, segments, strict=True):
        if not spans:
            raise InputError(f"no word of example {example.id!r} may be scored: {input_text(example)[:60]!r}")
    subjects = [
        subject(proxy, *case, truncate=True)
        for case in zip(examples, targets, foils or [None] * len(examples), segments, strict=True)
    ]
    enough = max([budget, *(METHODS.find(method).least(len(spans)) for spans in segments)])
    return run(proxy, subjects, [method], budget=enough, seed=seed)[method]


def foil_of(
    labels: Sequence[str], gold: str, probabilities: npt.NDArray[np.float64], given: str | None = None
) -> str | None:
    """What a gold label is contrasted with: the label wrongly given, else the likeliest wrong one, if there is any.

    Args:
        labels: all that may be given.
        gold: the right one.
        probabilities: over the labels.
        given: what a model answered; the right answer, or none of the labels, is no foil.

    Example:
        >>> foil_of(["a", "b", "c"], gold="a", probabilities=np.array([0.6, 0.1, 0.3]))
        'c'
    """
    if given in labels and given != gold:
        return given
    others = [(p, label) for p, label in zip(probabilities, labels, strict=True) if label != gold]
    return max(others)[1] if others else None


def plain(method: str, contrastive: bool) -> str:
    """A gradient explainer's name without the contrast, where there is none; other names as they are."""
    return f"{method}_plain" if not contrastive and f"{method}_plain" in gradients.METHODS else method


def allowed(example: Example, mask: Mask | None) -> Spans:
    """The words of an example's `input_text` that a mask lets be scored."""
    spans = word_spans(input_text(example))
    return spans if mask is None else tuple(s for s, may in zip(spans, mask(example), strict=True) if may)

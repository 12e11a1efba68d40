"""What must be ruled out before one may say that explanations helped. All share AMPLIFY's own fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from amplify import templates
from amplify.errors import DataError, InputError
from amplify.methods.amplify import in_words, top_words
from amplify.methods.base import Method, Program, PromptProgram, Rehearsal, Role
from amplify.methods.explained import Explained, ExplainedMethod, find_proxy
from amplify.methods.program import ShotProgram, answer_shots, as_example
from amplify.methods.prompt import PromptMethod
from amplify.models.base import LanguageModel
from amplify.rationales import others, random_words, rationalize, tfidf_words
from amplify.rationales.wording import Words, variables, verbalise
from amplify.registry import register
from amplify.templates import Template
from amplify.types import Answer, Attribution, Demonstration, Example, Prompt, Rationale

if TYPE_CHECKING:
    from amplify.proxies import Proxy
    from amplify.tasks import Task


@register("method", "amplify_no_rationale")
@dataclass(frozen=True)
class NoRationale(ExplainedMethod):
    """AMPLIFY's shots, answers only: is it the selection that helps?"""

    role: ClassVar[Role] = "control"

    def fit(self, task: Task, model: LanguageModel, seed: int) -> ShotProgram:
        """The shared fit without its reasons."""
        notes = self.notes_on(task, model)
        found = self.explained(task, model, seed)
        return ShotProgram(self.form(task), found.shots, (*found.notes, *notes), found.meta)

    def imitated(self, task: Task, program: ShotProgram) -> ShotProgram:
        """Shots alone."""
        return program


@register("method", "amplify_random_words")
@dataclass(frozen=True)
class RandomWords(ExplainedMethod):
    """AMPLIFY with random content words of the same input, as many as the rationale cited."""

    role: ClassVar[Role] = "control"

    def fit(self, task: Task, model: LanguageModel, seed: int) -> ShotProgram:
        """The shared fit with its words replaced."""
        notes = self.notes_on(task, model)
        found = self.explained(task, model, seed)
        own = top_words(self, found)
        words = [random_words(a, _size(r), seed) for a, r in zip(found.attributions, own, strict=True)]
        return in_words(self, task, found, _replaced(self, found, words, [_shares(r) for r in own]), notes)


@register("method", "amplify_shuffled_rationales")
@dataclass(frozen=True)
class ShuffledRationales(ExplainedMethod):
    """AMPLIFY with the words of another shot, said of this shot's own label."""

    role: ClassVar[Role] = "control"

    def fit(self, task: Task, model: LanguageModel, seed: int) -> ShotProgram:
        """The shared fit with its words permuted.

        Raises:
            InputError: fewer than two shots.
        """
        notes = self.notes_on(task, model)
        if self.shots < 2:
            raise InputError(f"{self.name} needs at least 2 shots, got {self.shots}")
        found = self.explained(task, model, seed)
        own = others(top_words(self, found), seed)
        words = [rationale.words if rationale else () for rationale in own]
        return in_words(self, task, found, _replaced(self, found, words, [_shares(r) for r in own]), notes)


@register("method", "amplify_tfidf_words")
@dataclass(frozen=True)
class TfidfWords(ExplainedMethod):
    """AMPLIFY with the words of highest TF-IDF: do the proxy's gradients tell more than word counts?"""

    role: ClassVar[Role] = "control"

    def fit(self, task: Task, model: LanguageModel, seed: int) -> ShotProgram:
        """The shared fit with its words replaced."""
        from amplify.text import input_text

        notes = self.notes_on(task, model)
        found = self.explained(task, model, seed)
        corpus = [input_text(example) for example in task.train or task.validation]
        own = top_words(self, found)
        words = tfidf_words(found.attributions, [_size(r) for r in own], corpus)
        return in_words(self, task, found, _replaced(self, found, words, [_shares(r) for r in own]), notes)


@register("method", "amplify_test_words")
@dataclass(frozen=True)
class TestWords(ExplainedMethod):
    """AMPLIFY with the proxy's words for the test input, too: the model completes the proxy's rationale.

    What is explained there is the label that the proxy itself predicts (against its second choice): no gold label is
    looked at. The label is not written; the model must name it.
    """

    role: ClassVar[Role] = "control"
    __test__: ClassVar[bool] = False  # not a test class, whatever its name looks like to pytest

    def fit(self, task: Task, model: LanguageModel, seed: int) -> TestWordsProgram:
        """The shared fit, and what the proxy needs at answer time."""
        from amplify.attribution.words import fixed_words

        notes = self.notes_on(task, model)
        found = self.explained(task, model, seed)
        base = in_words(self, task, found, top_words(self, found), notes)
        kept = keep(find_proxy(task, self.proxy, self.epochs, self.lora, seed), task, self.proxy, seed)
        return TestWordsProgram(
            base=base,
            proxy=str(kept.folder),
            identity=kept.identity,
            explainer=found.explainer,
            contrastive=self.contrastive,
            budget=self.budget,
            seed=seed,
            k=self.k,
            positive=self.positive,
            template=templates.load("rationale", self.template),
            masked=tuple(sorted(fixed_words(task))),
        )


@dataclass(frozen=True)
class TestWordsProgram(PromptProgram):
    """Shots with rationales, and for every input the beginning of one by the proxy. Needs the proxy's folder.

    Attributes:
        base: the shots and their form.
        proxy, identity: folder of the proxy, and the hash that it must have.
        explainer, contrastive, k, positive, template, budget, seed: how its words become a rationale.
        masked: words that may not be cited.
    """

    kind: ClassVar[str] = "test_words"
    __test__: ClassVar[bool] = False

    base: ShotProgram
    proxy: str
    identity: str
    explainer: str
    contrastive: bool
    k: int
    positive: bool
    template: Template
    masked: tuple[str, ...]
    budget: int = 128
    seed: int = 0

    def prompt(self, example: Example | str) -> Prompt:
        """The prompt for an example, the rationale begun."""
        example = as_example(example)
        return self.base.form.prompt(example, self.base.shots, self.leads([example])[0])

    def answer(self, examples: Sequence[Example], model: LanguageModel) -> list[Answer]:
        """Explain the proxy's own predictions, then ask the model."""
        shots = [self.base.shots] * len(examples)
        return answer_shots(self.base.form, examples, shots, model, self.leads(examples)) if examples else []

    def leads(self, examples: Sequence[Example]) -> list[str]:
        """Each input's rationale up to its label; the form's own opening where there is no word to cite."""
        from amplify.attribution.explainers import explain_words, plain
        from amplify.attribution.words import mask_without

        proxy = loaded_proxy(self.proxy, self.identity)
        ranked = [np.argsort(-p, kind="stable") for p in proxy.probabilities(examples)]
        labels = [proxy.labels_of(example) for example in examples]
        first = [names[order[0]] for names, order in zip(labels, ranked, strict=True)]
        second = [names[order[1]] for names, order in zip(labels, ranked, strict=True)]
        mask = mask_without(frozenset(self.masked))
        citing = [i for i, example in enumerate(examples) if any(mask(example))]
        made = explain_words(
            proxy,
            [examples[i] for i in citing],
            [first[i] for i in citing],
            [second[i] for i in citing] if self.contrastive else None,
            plain(self.explainer, self.contrastive),
            mask=mask,
            budget=self.budget,
            seed=self.seed,
        )
        begun = dict(zip(citing, map(self._begun, made), strict=True))
        return [begun.get(i, self.base.form.prefill) for i in range(len(examples))]

    def _begun(self, attribution: Attribution) -> str:
        try:
            made = rationalize(attribution, self.template, self.k, positive=self.positive)
        except InputError:
            return self.base.form.prefill
        given = variables(made.words, made.shares, "", attribution.foil, attribution.text)
        return self.template.before("label", given).rstrip()


@register("method", "proxy_alone")
@dataclass(frozen=True)
class ProxyAlone(Method):
    """The proxy's own answers: would the small model do?

    Attributes:
        proxy, epochs, lora: see `ExplainedMethod`.
    """

    role: ClassVar[Role] = "baseline"

    proxy: str = "minilm"
    epochs: int = 4
    lora: bool = False

    def fit(self, task: Task, model: LanguageModel, seed: int) -> ProxyProgram:
        """Train the proxy, or find it in the cache.

        Raises:
            InputError: free-text answers, or an untrained head.
        """
        proxy = find_proxy(task, self.proxy, self.epochs, self.lora, seed)
        proxy.require_head(self.name)
        kept = keep(proxy, task, self.proxy, seed)
        return ProxyProgram(str(kept.folder), kept.identity, {"proxy": {"name": kept.name, "identity": kept.identity}})

    def rehearse(self, task: Task, model: LanguageModel, seed: int) -> Rehearsal:
        """The language model is never asked."""
        return Rehearsal(None, "a small model answers alone")


@dataclass(frozen=True)
class ProxyProgram(Program):
    """A proxy as it is. Needs its folder; the language model is never asked.

    Attributes:
        proxy, identity: folder, and the hash that it must have.
        meta: what made it.
    """

    kind: ClassVar[str] = "proxy"

    proxy: str
    identity: str
    meta: Mapping[str, Any] = field(default_factory=dict)

    def answer(self, examples: Sequence[Example], model: LanguageModel) -> list[Answer]:
        """The proxy's likeliest label of each example, with the log-probabilities of all."""
        proxy = loaded_proxy(self.proxy, self.identity)
        answers = []
        for example, row in zip(examples, proxy.probabilities(examples), strict=True):
            labels = proxy.labels_of(example)
            scores = {
                label: float(np.log(max(p, np.finfo(np.float64).tiny))) for label, p in zip(labels, row, strict=True)
            }
            best = labels[int(row.argmax())]
            answers.append(Answer(value=best, text=best, scores=scores, calls=0))
        return answers


@register("method", "answer_format_only")
@dataclass(frozen=True)
class AnswerFormatOnly(PromptMethod):
    """Demonstrations without content, one a label: how much is knowing the form of an answer worth?"""

    role: ClassVar[Role] = "control"

    def fit(self, task: Task, model: LanguageModel, seed: int) -> ShotProgram:
        """Empty questions and every possible answer, in seeded order."""
        import random

        notes = self.notes_on(task, model)
        like = (task.train or task.validation or task.test)[0]
        labels: tuple[str, ...] = task.labels_of(like) or ("...",)
        options = tuple("..." for _ in like.options)
        order = random.Random(seed).sample(labels, len(labels))
        blank = [
            Example(f"format-{i}", "...", label, like.choices, options, () if task.labels_of(like) else ("...",))
            for i, label in enumerate(order)
        ]
        return ShotProgram(self.form(task), tuple(Demonstration(example) for example in blank), notes)


@lru_cache(maxsize=2)
def loaded_proxy(folder: str, identity: str) -> Proxy:
    """A program's proxy.

    Raises:
        DataError: it is gone, or is not the one that the program was fitted with.
    """
    from amplify.proxies import load_proxy

    proxy = load_proxy(folder)
    if proxy.identity != identity:
        raise DataError(f"the proxy in {folder} is not the one that this program was fitted with: fit it again")
    return proxy


def keep(proxy: Proxy, task: Task, body: str, seed: int) -> Proxy:
    """The proxy in a folder that `load_proxy` can read: a body taken as it is gets one."""
    from amplify import resources
    from amplify.proxies import CARD, train_proxy

    if (proxy.folder / CARD).is_file():
        return proxy
    folder = resources.home() / "proxies" / f"as-it-is-{proxy.identity[:16]}"
    return train_proxy(task, body, epochs=0, seed=seed, out=folder)


def _size(rationale: Rationale | None) -> int:
    return len(rationale.words) if rationale else 0


def _shares(rationale: Rationale | None) -> tuple[float, ...]:
    return rationale.shares if rationale else ()


def _replaced(
    method: ExplainedMethod, found: Explained, words: Sequence[Words], shares: Sequence[Sequence[float]]
) -> list[Rationale | None]:
    """The same sentences, numbers included, with other words; none where there was none."""
    form = templates.load("rationale", method.template)
    made = zip(words, shares, found.attributions, found.labels, strict=True)
    return [verbalise(w, a, form, label=label, shares=s[: len(w)]) if w else None for w, s, a, label in made]

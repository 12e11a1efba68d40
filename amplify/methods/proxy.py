"""A small model beside the language model: the proxy of a program, its answers alone, and its words at answer time."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from amplify import resources
from amplify.errors import DataError, InputError
from amplify.methods.base import Method, Program, PromptProgram, Rehearsal, Role
from amplify.methods.program import ShotProgram, answer_shots, as_example
from amplify.models.base import LanguageModel
from amplify.rationales import rationalize
from amplify.rationales.wording import variables
from amplify.registry import register
from amplify.templates import Template
from amplify.types import Answer, Attribution, Example, Prompt

if TYPE_CHECKING:
    from amplify.proxies import Proxy
    from amplify.tasks import Task


@register("method", "proxy_alone")
@dataclass(frozen=True)
class ProxyAlone(Method):
    """The proxy's own answers: would the small model do?

    Attributes:
        proxy, epochs, lora: see `Amplify`.

    Example:
        >>> amplify.methods.ProxyAlone(epochs=2).label
        'proxy_alone[epochs=2]'
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

    @property
    def makes(self) -> type[Program]:
        """See `Method.makes`."""
        return ProxyProgram

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
        proxy = loaded_proxy(self.proxy, self.identity)
        ranked = [np.argsort(-p, kind="stable") for p in proxy.probabilities(examples)]
        labels = [proxy.labels_of(example) for example in examples]
        first = [names[order[0]] for names, order in zip(labels, ranked, strict=True)]
        second = [names[order[1]] for names, order in zip(labels, ranked, strict=True)]
        foils = second if self.contrastive else None
        made = words_explained(proxy, examples, first, foils, self.explainer, self.masked, self.budget, self.seed)
        return [self._begun(made[i]) if i in made else self.base.form.prefill for i in range(len(examples))]

    def _begun(self, attribution: Attribution) -> str:
        try:
            made = rationalize(attribution, self.template, self.k, positive=self.positive)
        except InputError:
            return self.base.form.prefill
        given = variables(made.words, made.shares, "", attribution.foil, attribution.text)
        return self.template.before("label", given).rstrip()


def words_explained(
    proxy: Proxy,
    examples: Sequence[Example],
    labels: Sequence[str],
    foils: Sequence[str] | None,
    explainer: str,
    masked: Sequence[str],
    budget: int,
    seed: int,
) -> dict[int, Attribution]:
    """Why the proxy gives these labels (rather than the foils), by the places of the examples with a word to cite."""
    from amplify.attribution.explainers import explain_words, plain
    from amplify.attribution.words import mask_without

    mask = mask_without(frozenset(masked))
    citing = [i for i, example in enumerate(examples) if any(mask(example))]
    made = explain_words(
        proxy,
        [examples[i] for i in citing],
        [labels[i] for i in citing],
        None if foils is None else [foils[i] for i in citing],
        plain(explainer, foils is not None),
        mask=mask,
        budget=budget,
        seed=seed,
    )
    return dict(zip(citing, made, strict=True))


def find_proxy(task: Task, proxy: str, epochs: int, lora: bool, seed: int) -> Proxy:
    """A kept proxy by its folder, or one trained for the task (the same one again where it is in the cache).

    Raises:
        InputError: the kept proxy is for other labels.
    """
    from amplify.proxies import CARD, load_proxy, train_proxy

    if not os.path.isfile(Path(os.path.expanduser(proxy)) / CARD):
        return train_proxy(task, proxy, epochs=epochs, lora=lora, seed=seed)
    kept = load_proxy(os.path.expanduser(proxy))
    if kept.labels != task.labels:
        raise InputError(
            f"the proxy in {proxy} was made for the labels {', '.join(kept.labels) or '(choices)'}; "
            f"task {task.name!r} has {', '.join(task.labels) or '(choices)'}. Train one: amplify proxy {task.name}"
        )
    return kept


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
    from amplify.proxies import CARD, train_proxy

    if (proxy.folder / CARD).is_file():
        return proxy
    folder = resources.home() / "proxies" / f"as-it-is-{proxy.identity[:16]}"
    return train_proxy(task, body, epochs=0, seed=seed, out=folder)

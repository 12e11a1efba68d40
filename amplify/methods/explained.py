"""The fit that AMPLIFY and its controls share: what the model gets wrong, which of it to show, and why it is so."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary

from amplify.backends.base import Generator
from amplify.errors import InputError
from amplify.methods.answering import check_window
from amplify.methods.baselines import FewShot, ZeroShot
from amplify.methods.parsing import shown
from amplify.methods.prompting import PromptMethod, check_options
from amplify.values import Attribution, Demonstration, Example

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from amplify.proxies import Proxy
    from amplify.tasks import Task

RATIONALE_TOKENS = 96


@dataclass(frozen=True)
class Explained:
    """What a fit found, before it is put into words.

    Attributes:
        proxy: what explained.
        shots: selected demonstrations in the order they will have, without rationales; the foil is known.
        attributions: why each shot's gold label is right, one a shot.
        notes, meta: see `ShotProgram`.
    """

    proxy: Proxy
    shots: tuple[Demonstration, ...]
    attributions: tuple[Attribution, ...]
    notes: tuple[str, ...]
    meta: dict[str, Any]

    @property
    def labels(self) -> list[str]:
        """Each shot's gold label as prompts write it."""
        return [shown(a.target, bool(s.example.options)) for s, a in zip(self.shots, self.attributions, strict=True)]


@dataclass(frozen=True)
class ExplainedMethod(PromptMethod):
    """The options that AMPLIFY shares with its controls. With the same options and seed all of them have the same fit.

    Attributes:
        proxy: what explains: a body to fine-tune ("minilm", a hub id, a folder; encoder or causal), or the folder of
            a kept proxy.
        epochs: of fine-tuning; 0 takes the body as it is.
        lora: fine-tune low-rank adapters only.
        pool: how many validation examples the model is asked, drawn with the seed; 0 for all.
        probe: how it is asked.
        misclassified: select among those it gets wrong.
        selection: highest or lowest misclassification confidence of the proxy, most faithful explanation, or random.
        explainer: gradient times input, or gradient norm.
        contrastive: explain the gold label against the one wrongly given, not the gold label alone.
        k: words in a rationale.
        positive: cite only words that speak for the label.
        shots: how many.
        template: of the rationale: "key_words", "paper", "words_only", or your own file.
    """

    proxy: str = "minilm"
    epochs: int = 4
    lora: bool = False
    pool: int = 200
    probe: Literal["zero_shot", "few_shot"] = "zero_shot"
    misclassified: bool = True
    selection: Literal["mcs_high", "mcs_low", "most_faithful", "random"] = "mcs_high"
    explainer: Literal["grad_x_input", "grad_norm"] = "grad_x_input"
    contrastive: bool = True
    k: int = 5
    positive: bool = False
    shots: int = 8
    template: str = "key_words"

    def explained(self, task: Task, backend: Generator, seed: int) -> Explained:
        """The shots and why, found once per backend, task, seed and options (those of wording aside).

        Raises:
            InputError: no validation split, no labels to choose from, or an impossible option.
            ContextLengthError: the shots cannot fit, before any work.
        """
        check_options(self)
        wording = {"template", "positive", "max_tokens", "extract", *(() if self.selection == "most_faithful" else "k")}
        chosen = tuple(getattr(self, f.name) for f in fields(ExplainedMethod) if f.name not in wording)
        key = (chosen, task.fingerprint, seed)
        known = _FITS.setdefault(backend, {})
        if key not in known:
            known[key] = _fit(self, task, backend, seed)
        return known[key]


# controls are compared with AMPLIFY on the very same shots, and asking the model for them once is enough
_FITS: WeakKeyDictionary[Generator, dict[Any, Explained]] = WeakKeyDictionary()


def find_proxy(task: Task, proxy: str, epochs: int, lora: bool, seed: int) -> Proxy:
    """A kept proxy by its folder, or one trained for the task (the same one again where it is in the cache).

    Raises:
        InputError: the kept proxy is for other labels.
    """
    from amplify.proxies import CARD, load_proxy, train_proxy

    if not (Path(proxy).expanduser() / CARD).is_file():
        return train_proxy(task, proxy, epochs=epochs, lora=lora, seed=seed)
    kept = load_proxy(Path(proxy).expanduser())
    if kept.labels != task.labels:
        raise InputError(
            f"the proxy in {proxy} was made for the labels {', '.join(kept.labels) or '(choices)'}; "
            f"task {task.name!r} has {', '.join(task.labels) or '(choices)'}. Train one: amplify proxy {task.name}"
        )
    return kept


def _fit(method: ExplainedMethod, task: Task, backend: Generator, seed: int) -> Explained:
    from amplify import demonstrations
    from amplify.attribution.gradients import explain
    from amplify.attribution.words import key_word_mask

    pool, notes = _pool(method, task, seed)
    _check_room(method, task, backend)

    proxy = find_proxy(task, method.proxy, method.epochs, method.lora, seed)
    proxy.require_head(f"{method.name}: attribution")

    before = backend.usage.snapshot()
    shared = {f.name: getattr(method, f.name) for f in fields(PromptMethod) if f.name not in ("max_tokens", "extract")}
    asker = ZeroShot(**shared) if method.probe == "zero_shot" else FewShot(shots=method.shots, **shared)
    given = [answer.value for answer in asker.fit(task, backend, seed).answer(pool, backend)]
    wrong = [i for i, example in enumerate(pool) if given[i] != example.label]

    probabilities = proxy.probabilities(pool)
    gold = [task.labels_of(example).index(str(example.label)) for example in pool]
    foils = [_foil(task.labels_of(e), g, p, y) for e, g, p, y in zip(pool, given, probabilities, gold, strict=True)]
    name = method.explainer if method.contrastive else f"{method.explainer}_plain"
    mask = key_word_mask(task)

    def attributions(chosen: Sequence[int]) -> list[Attribution]:
        items = [pool[i] for i in chosen]
        contrast = [foils[i] for i in chosen] if method.contrastive else None
        return explain(proxy, items, [e.label for e in items], contrast, (name,), mask=mask)[name]

    confidence = [demonstrations.misclassification_confidence(p, y) for p, y in zip(probabilities, gold, strict=True)]
    rng = random.Random(f"{seed} order")
    if method.selection == "random":
        rank = {i: rng.random() for i in range(len(pool))}
    elif method.selection == "most_faithful":
        made = attributions(range(len(pool)))
        faithful = demonstrations.explanation_faithfulness(proxy, pool, made, k=method.k)
        rank = {i: -value for i, value in enumerate(faithful)}
    else:
        rank = {i: -c if method.selection == "mcs_high" else c for i, c in enumerate(confidence)}
    first = set(wrong) if method.misclassified else set(range(len(pool)))
    chosen = sorted(range(len(pool)), key=lambda i: (i not in first, rank[i], i))[: method.shots]
    if filled := sum(i not in first for i in chosen):
        notes.append(f"the model got only {len(wrong)} of {len(pool)} wrong: {filled} shots are ones it got right")
    if len(chosen) < method.shots:
        notes.append(f"{method.shots} shots asked for, {len(chosen)} in the validation split")
    rng.shuffle(chosen)  # not sorted by confidence, which would put the labels in runs

    return Explained(
        proxy=proxy,
        shots=tuple(Demonstration(pool[i], foil=foils[i], score=confidence[i]) for i in chosen),
        attributions=tuple(attributions(chosen)),
        notes=tuple(notes),
        meta={
            "proxy": {"name": proxy.name, "identity": proxy.identity, "validation": proxy.card.get("validation")},
            "asked": len(pool),
            "wrong": len(wrong),
            "unparsed": given.count(None),
            "usage": asdict(backend.usage.since(before)),
        },
    )


def _pool(method: ExplainedMethod, task: Task, seed: int) -> tuple[list[Example], list[str]]:
    """The validation examples that may become shots: a seeded draw of those with words to cite."""
    from amplify.attribution.words import key_word_mask

    if not task.validation:
        raise InputError(f"{method.name} selects its shots from the validation split, and task {task.name!r} has none")
    if any(not task.labels_of(example) for example in task.validation):
        raise InputError(
            f"{method.name} explains why a label is right, and task {task.name!r} has free-text answers: "
            "give it labels or choices, or use few_shot or zero_shot_cot"
        )
    mask = key_word_mask(task)
    usable = [example for example in task.validation if any(mask(example))]
    if not usable:
        raise InputError(f"no validation example of task {task.name!r} has a word that a rationale could cite")
    without = len(task.validation) - len(usable)
    notes = [f"{without} validation examples have no word that a rationale could cite"] if without else []
    return random.Random(seed).sample(usable, min(method.pool or len(usable), len(usable))), notes


def _check_room(method: ExplainedMethod, task: Task, backend: Generator) -> None:
    """Refuse now what could not fit with even the shortest shots: asking and training would be for nothing."""
    form = method.form(task, reasons=True, budget=RATIONALE_TOKENS)
    shortest = sorted(task.validation, key=lambda e: len(form.question(e)))[: method.shots]
    shots = [Demonstration(example) for example in shortest]
    longest = max(task.test, key=lambda e: len(form.question(e)))
    prompt = form.prompt(longest, shots)
    check_window(
        backend, [prompt], form.style, method.label, [len(shots)], lambda _, n: form.prompt(longest, shots[:n])
    )


def _foil(labels: Sequence[str], given: str | None, probabilities: npt.NDArray[np.float64], gold: int) -> str:
    """The label wrongly given by the model; where it gave none or the right one, the proxy's likeliest wrong one."""
    if given in labels and given != labels[gold]:
        return str(given)
    return labels[max((i for i in range(len(labels)) if i != gold), key=lambda i: float(probabilities[i]))]

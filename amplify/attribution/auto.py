"""`method="auto"`: which explainer a model is most faithfully explained by, measured before one is taken.

`choose` measures a pool of explainers on held-out items of a proxy's task, `choose_on` on inputs in hand.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from amplify import codec, files, resources
from amplify.attribution.explainers import METHODS, able, allowed, explain_words, foil_of, plain, run
from amplify.attribution.faithfulness import DEFAULT, Faithfulness, faithfulness
from amplify.attribution.inputs import subject
from amplify.attribution.words import Spans, key_word_mask
from amplify.errors import AmplifyError, CapabilityError, DataError, InputError
from amplify.models.base import LanguageModel
from amplify.proxies import Proxy
from amplify.tasks import Task, load_task
from amplify.text import input_text
from amplify.types import Attribution, Example, Prompt

POOL = ("occlusion", "kernel_shap", "integrated_gradients", "grad_x_input")
"""What `auto` chooses from."""

ITEMS = 24

FEW = 5

FORMAT = 3


@dataclass(frozen=True)
class Trial:
    """How explainers are compared.

    Attributes:
        pool: names of explainers.
        metrics: of `amplify.attribution.faithfulness.METRICS`.
        k: words on top.
        items: inputs measured.
        budget: model evaluations per input and explainer.
        seed: of what is drawn.
    """

    pool: tuple[str, ...] = POOL
    metrics: tuple[str, ...] = DEFAULT
    k: int = 5
    items: int = ITEMS
    budget: int = 128
    seed: int = 0


TRIAL = Trial()


@dataclass(frozen=True)
class Choice:
    """The explainer that explains a model most faithfully.

    Attributes:
        method: its name.
        merits: explainer -> its gain over random scores in units of the spread over items, averaged over metrics.
        beats: explainer -> the metrics on which it beats random scores with intervals that do not touch.
        table: `Faithfulness.to_dict()` of the whole pool.
        items: examples looked at.
    """

    method: str
    merits: dict[str, float]
    beats: dict[str, list[str]]
    table: dict[str, Any]
    items: int

    @property
    def trusted(self) -> bool:
        """Whether the best one beats random on at least half of the metrics."""
        metrics = {row["metric"] for row in self.table["rows"]}
        return 2 * len(self.beats[self.method]) >= len(metrics)

    @property
    def note(self) -> str:
        """One sentence for a report."""
        merits = ", ".join(f"{name} {merit:+.2f}" for name, merit in sorted(self.merits.items(), key=lambda m: -m[1]))
        weak = "" if self.trusted else "; but it beats random scores on less than half of the metrics"
        if self.items < FEW:
            weak = "; too few examples to tell whether it beats random scores"
        return f"explainer by the gate on {self.items} example{'s' * (self.items != 1)}: {self.method} ({merits}){weak}"


def choose(proxy: Proxy, task: Task, trial: Trial = TRIAL, *, contrastive: bool = True) -> Choice:
    """The explainer of the pool that is most faithful to a proxy, on validation examples (it was not trained on them).

    What is explained is the gold label, against the proxy's likeliest other one. The result is kept in the cache and
    depends on the proxy, the examples and the options alone.

    Args:
        proxy: the model explained.
        task: whose validation split is looked at; its test split never is.
        trial: how they are compared; its examples are drawn with its seed.
        contrastive: explain against another label.

    Raises:
        InputError: no pool, or no labelled validation example with words to score.
    """
    proxy.require_head("the choice of an explainer")
    if not trial.pool:
        raise InputError("the pool of explainers is empty: name some")
    mask = key_word_mask(task)
    usable = [e for e in task.validation if e.label in proxy.labels_of(e) and any(mask(e))]
    if not usable:
        raise InputError(f"the gate needs labelled validation examples with words to cite; task {task.name!r} has none")
    order = np.random.default_rng(trial.seed).permutation(len(usable))[: trial.items]
    examples = [usable[i] for i in order]
    recipe = {
        "format": FORMAT,
        "proxy": proxy.identity,
        "examples": [[input_text(e), e.label, allowed(e, mask)] for e in examples],
        "options": [list(trial.pool), list(trial.metrics), contrastive, trial.k, trial.budget, trial.seed],
    }
    key = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()
    cached = resources.home() / "gates" / f"{key[:32]}.json"
    try:
        return codec.from_fields(Choice, files.read_json(cached, "a choice"))
    except DataError:  # none yet, or a damaged one
        pass
    targets = [example.label for example in examples]
    guesses = proxy.probabilities(examples)
    rivals = [foil_of(proxy.labels_of(e), str(e.label), p) for e, p in zip(examples, guesses, strict=True)]
    foils = rivals if contrastive else None
    found = {
        name: explain_words(
            proxy, examples, targets, foils, plain(name, contrastive), mask=mask, budget=trial.budget, seed=trial.seed
        )
        for name in trial.pool
    }
    choice = _best(found, proxy, examples, trial)
    files.make_folder(cached.parent)
    files.write_json(cached, codec.encode(choice))
    return choice


def choose_on(
    model: LanguageModel,
    given: Sequence[str | Prompt],
    targets: Sequence[str | None],
    foils: Sequence[str | None] | None = None,
    segments: Sequence[Spans | None] | None = None,
    trial: Trial = TRIAL,
) -> Choice:
    """The explainer of the pool that is most faithful to a language model on some of its own answers.

    Faithfulness asks the model alone and needs no gold label, so the answers may be those that are to be explained.

    Args:
        model: the model explained; of the pool only what works with it is measured.
        given, targets, foils, segments: see `amplify.attribution.explanations.explain_many`.
        trial: how they are compared, on the first inputs.

    Raises:
        InputError: nothing to explain, or see `explain_many`.
        CapabilityError: a model with which nothing of the pool works.

    Example:
        >>> from amplify.models.scripted import ScriptedModel
        >>> model = ScriptedModel(logprob=lambda text, answer: -1.0 if "capital" in text else -3.0)
        >>> texts = ["Name the capital of France", "Which capital?"]
        >>> choice = choose_on(model, texts, [" Paris"] * 2, trial=Trial(pool=("occlusion", "lime")))
        >>> choice.method, choice.items
        ('occlusion', 2)
    """
    if not given:
        raise InputError("there is no input to choose an explainer on")
    names = [name for name in trial.pool if able(model, METHODS[name])]
    if not names:
        raise CapabilityError(f"{model.id} gives no log-probabilities, which every explainer of the pool needs")
    count = min(trial.items, len(given))
    nothing: list[None] = [None] * len(given)
    cases = list(zip(given, targets, foils or nothing, segments or nothing, strict=True))[:count]
    subjects = [subject(model, *case) for case in cases]
    enough = max([trial.budget, *(METHODS[name].least(len(one.spans)) for name in names for one in subjects)])
    found = run(model, subjects, names, budget=enough, seed=trial.seed)
    prompts = [Prompt(text=one) if isinstance(one, str) else one for one in given[:count]]
    return _best(found, model, prompts, trial)


def _best(
    found: Mapping[str, Sequence[Attribution]],
    model: Proxy | LanguageModel,
    examples: Sequence[Example | Prompt],
    trial: Trial,
) -> Choice:
    # masks and draws of the measure have a stream of their own: no explainer has seen them
    table = faithfulness(found, model, trial.metrics, examples=examples, k=trial.k, seed=trial.seed + 1)
    worth = merits(table)
    best = max(found, key=lambda name: worth[name])
    beats = {name: [row.metric for row in table.rows if row.method == name and row.beats_random] for name in found}
    return Choice(best, worth, beats, table.to_dict(), len(examples))


def chosen_for(proxy: Proxy, *, contrastive: bool = False) -> Choice:
    """What `method="auto"` stands for with a proxy: `choose` on the task that it was made for.

    Raises:
        InputError: its task cannot be loaded as it was (choose on a task in hand, then name the method).
    """
    how = "name a method, or choose one on examples of yours: amplify.attribution.auto.choose(proxy, task).method"
    name = str(proxy.card["task"])
    try:
        task = load_task(name)
    except AmplifyError as error:
        raise InputError(f"method='auto' needs {name!r}, the task of the proxy ({error}); {how}") from error
    if task.fingerprint != proxy.card["task_fingerprint"]:
        raise InputError(f"the task {name!r} is not what the proxy was trained on, so none of it is held out; {how}")
    return choose(proxy, task, contrastive=contrastive)


def merits(table: Faithfulness) -> dict[str, float]:
    """Explainer -> its gain over random scores, in units of the spread over all items and explainers, averaged over
    the metrics of a table that `faithfulness` or `pooled` made.
    """
    metrics = list(dict.fromkeys(row.metric for row in table.rows))
    parts: dict[str, list[float]] = {name: [] for name in table.methods}
    for metric in metrics:
        gains = {name: table.gains(name, metric) for name in table.methods}
        spread = float(np.concatenate(list(gains.values())).std()) or 1.0
        for name, values in gains.items():
            parts[name].append(float(values.mean()) / spread)
    return {name: float(np.mean(values)) for name, values in parts.items()}

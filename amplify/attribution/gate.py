"""The gate before a rationale: which explainer this model is faithfully explained by, and whether these words matter.

`choose` measures a pool of explainers on held-out items and takes the best (`method="auto"`); `choose_on` does so on
inputs in hand. `judge` asks of one rationale whether the model needs its words more than as many random words of the
same input. That gradients explain one model well and another not at all, and on texts often no better than chance, is
why neither is taken on trust ("Which Explanation Should I Choose?", Han et al. 2022; "Post Hoc Explanations", Krishna
et al. 2023).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from amplify import codec, files, resources
from amplify.attribution.deletion import Deletion
from amplify.attribution.faithfulness import faithfulness
from amplify.attribution.faithfulness_metrics import DEFAULT
from amplify.attribution.faithfulness_table import Faithfulness
from amplify.attribution.opening import able, subject
from amplify.attribution.registry import METHODS
from amplify.attribution.running import run
from amplify.attribution.words import Mask, Spans, word_spans
from amplify.errors import CapabilityError, DataError, InputError
from amplify.proxies import Proxy
from amplify.shapley.budget import least
from amplify.text import input_text
from amplify.types import Attribution, Example, Prompt

if TYPE_CHECKING:
    from amplify.models.base import LanguageModel
    from amplify.tasks import Task

POOL = ("occlusion", "kernel_shap", "integrated_gradients", "grad_x_input")
"""What `auto` chooses from."""

ITEMS = 24
FEW = 5
SETS = 40
SHARE = 0.9
"""A rationale passes when it beats this share of random ones: of random rationales one in ten gets through."""

FORMAT = 3


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


@dataclass(frozen=True)
class Verdict:
    """Whether the model needs the words of a rationale.

    Attributes:
        passed: they beat random words, or, where the input has no other words, deleting them costs the target.
        drop: what the target's log-odds (its log-probability, without a foil) lose without the words.
        random: the same for as many random words, on average; 0 where there are no others.
        beaten: the share of random word sets that lose less, ties half.
    """

    passed: bool
    drop: float
    random: float
    beaten: float


def judge(words: Iterable[str], game: Deletion, *, sets: int = SETS, share: float = SHARE, seed: int = 0) -> Verdict:
    """Does a rationale beat random words on its own example?

    Args:
        words: what it cites: words or phrases of the input.
        game: the input and its model (`amplify.attribution.deletion`); random words are drawn from its words.
        sets: random word sets, all there are where they are no more.
        share: of them that must be beaten.
        seed: of the draw.

    Returns:
        The verdict; words that the game does not have (stop words of a phrase) are passed over, and a rationale that
        cites none of its words fails.
    """
    cited = {word[a:b].casefold() for word in words for a, b in word_spans(word)}
    chosen = [i for i, word in enumerate(game.words) if word in cited]
    if not chosen:
        return Verdict(False, 0.0, 0.0, 0.0)
    n, size = len(game.words), len(chosen)
    others = _others(chosen, n, sets, np.random.default_rng(seed))
    masks = np.ones((2 + len(others), n), dtype=bool)
    for mask, gone in zip(masks[1:], [chosen, *others], strict=True):
        mask[list(gone)] = False
    values = game.margin(masks)
    drop, chance = float(values[0] - values[1]), values[0] - values[2:]
    if size == n or not len(chance):
        return Verdict(drop > 0, drop, 0.0, 1.0 if drop > 0 else 0.0)
    close = np.abs(drop - chance) <= 1e-9
    beaten = float(np.mean(np.where(close, 0.5, drop > chance)))
    return Verdict(beaten >= share and drop > 0, drop, float(chance.mean()), beaten)


def _others(chosen: Sequence[int], n: int, sets: int, rng: np.random.Generator) -> list[tuple[int, ...]]:
    """Different sets of as many words, not the chosen one."""
    own, size = tuple(sorted(chosen)), len(chosen)
    if comb(n, size) - 1 <= sets:
        return [some for some in combinations(range(n), size) if some != own]
    found: dict[tuple[int, ...], None] = {}
    while len(found) < sets:
        drawn = tuple(sorted(rng.choice(n, size, replace=False).tolist()))
        if drawn != own:
            found[drawn] = None
    return list(found)


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
        method: of `amplify.attribution.registry.METHODS` or `amplify.attribution.gradients.METHODS`.
        mask: which words of an example are scored; None for all. The others stay in the text.
        budget: evaluations per example of perturbation methods; as many as the method needs where those are more.
        seed: of sampled methods.

    Raises:
        UnknownNameError, InputError: see there; also an example without a word that may be scored.
    """
    from amplify.attribution import gradients

    if method in gradients.METHODS:
        return gradients.explain(proxy, examples, targets, foils, (method,), mask=mask)[method]
    segments = [_allowed(example, mask) for example in examples]
    for example, spans in zip(examples, segments, strict=True):
        if not spans:
            raise InputError(f"no word of example {example.id!r} may be scored: {input_text(example)[:60]!r}")
    subjects = [
        subject(proxy, *case, truncate=True)
        for case in zip(examples, targets, foils or [None] * len(examples), segments, strict=True)
    ]
    enough = max([budget, *(least(method, len(spans)) for spans in segments)])
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
    """
    if given in labels and given != gold:
        return given
    others = [(p, label) for p, label in zip(probabilities, labels, strict=True) if label != gold]
    return max(others)[1] if others else None


def choose(
    proxy: Proxy,
    task: Task,
    *,
    pool: Sequence[str] = POOL,
    metrics: Sequence[str] = DEFAULT,
    contrastive: bool = True,
    k: int = 5,
    items: int = ITEMS,
    budget: int = 128,
    seed: int = 0,
) -> Choice:
    """The explainer of the pool that is most faithful to a proxy, on validation examples (it was not trained on them).

    What is explained is the gold label, against the proxy's likeliest other one. The result is kept in the cache and
    depends on the proxy, the examples and the options alone.

    Args:
        proxy: the model explained.
        task: whose validation split is looked at; its test split never is.
        pool: names of explainers.
        metrics: of `amplify.attribution.faithfulness_metrics.METRICS`.
        contrastive: explain against another label.
        k: words on top.
        items: examples, drawn with the seed.
        budget: model evaluations per example and explainer.
        seed: of the draw and of sampled methods.

    Raises:
        InputError: no pool, or no labelled validation example with words to score.
    """
    from amplify.attribution.words import key_word_mask

    proxy.require_head("the choice of an explainer")
    if not pool:
        raise InputError("the pool of explainers is empty: name some")
    mask = key_word_mask(task)
    usable = [e for e in task.validation if e.label in proxy.labels_of(e) and any(mask(e))]
    if not usable:
        raise InputError(f"the gate needs labelled validation examples with words to cite; task {task.name!r} has none")
    order = np.random.default_rng(seed).permutation(len(usable))[:items]
    examples = [usable[i] for i in order]
    recipe = {
        "format": FORMAT,
        "proxy": proxy.identity,
        "examples": [[input_text(e), e.label, _allowed(e, mask)] for e in examples],
        "options": [list(pool), list(metrics), contrastive, k, budget, seed],
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
            proxy, examples, targets, foils, plain(name, contrastive), mask=mask, budget=budget, seed=seed
        )
        for name in pool
    }
    choice = _best(found, proxy, metrics, examples, k, seed)
    files.make_folder(cached.parent)
    files.write_json(cached, codec.encode(choice))
    return choice


def choose_on(
    model: LanguageModel,
    given: Sequence[str | Prompt],
    targets: Sequence[str | None],
    foils: Sequence[str | None] | None = None,
    segments: Sequence[Spans | None] | None = None,
    *,
    pool: Sequence[str] = POOL,
    metrics: Sequence[str] = DEFAULT,
    k: int = 5,
    items: int = ITEMS,
    budget: int = 128,
    seed: int = 0,
) -> Choice:
    """The explainer of the pool that is most faithful to a language model on some of its own answers.

    Faithfulness asks the model alone and needs no gold label, so the answers may be those that are to be explained.

    Args:
        model: the model explained; of the pool only what works with it is measured.
        given, targets, foils, segments: see `amplify.attribution.explaining.explain_many`.
        pool, metrics, k, budget, seed: see `choose`.
        items: inputs measured, the first ones.

    Raises:
        InputError: nothing to explain, or see `explain_many`.
        CapabilityError: a model with which nothing of the pool works.
    """
    if not given:
        raise InputError("there is no input to choose an explainer on")
    names = [name for name in pool if able(model, METHODS[name])]
    if not names:
        raise CapabilityError(f"{model.id} gives no log-probabilities, which every explainer of the pool needs")
    count = min(items, len(given))
    nothing: list[None] = [None] * len(given)
    cases = list(zip(given, targets, foils or nothing, segments or nothing, strict=True))[:count]
    subjects = [subject(model, *case) for case in cases]
    enough = max([budget, *(least(name, len(one.spans)) for name in names for one in subjects)])
    found = run(model, subjects, names, budget=enough, seed=seed)
    prompts = [Prompt(text=one) if isinstance(one, str) else one for one in given[:count]]
    return _best(found, model, metrics, prompts, k, seed)


def _best(
    found: Mapping[str, Sequence[Attribution]],
    model: Proxy | LanguageModel,
    metrics: Sequence[str],
    examples: Sequence[Example | Prompt],
    k: int,
    seed: int,
) -> Choice:
    # masks and draws of the measure have a stream of their own: no explainer has seen them
    table = faithfulness(found, model, metrics, examples=examples, k=k, seed=seed + 1)
    worth = merits(table)
    best = max(found, key=lambda name: worth[name])
    beats = {name: [row.metric for row in table.rows if row.method == name and row.beats_random] for name in found}
    return Choice(best, worth, beats, table.to_dict(), len(examples))


def plain(method: str, contrastive: bool) -> str:
    """A gradient explainer's name without the contrast, where there is none; other names as they are."""
    from amplify.attribution import gradients

    return f"{method}_plain" if not contrastive and f"{method}_plain" in gradients.METHODS else method


def chosen_for(proxy: Proxy, *, contrastive: bool = False) -> Choice:
    """What `method="auto"` stands for with a proxy: `choose` on the task that it was made for.

    Raises:
        InputError: its task cannot be loaded as it was (choose on a task in hand, then name the method).
    """
    from amplify.errors import AmplifyError
    from amplify.tasks import load_task

    how = "name a method, or choose one on examples of yours: amplify.attribution.gate.choose(proxy, task).method"
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


def _allowed(example: Example, mask: Mask | None) -> Spans:
    spans = word_spans(input_text(example))
    return spans if mask is None else tuple(s for s, may in zip(spans, mask(example), strict=True) if may)

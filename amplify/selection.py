"""Which solved examples go into a few-shot prompt, and in which order."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import Any

import numpy as np
import numpy.typing as npt

from amplify.errors import InputError
from amplify.proxies import Proxy
from amplify.registry import Table, register
from amplify.retrieval import Embedder, nearest
from amplify.tasks import Task
from amplify.tasks.rows import content_hash
from amplify.text import input_text
from amplify.types import Attribution, Demonstration, Example


@dataclass(frozen=True)
class Candidates:
    """What shots are chosen from, as a way to choose sees it.

    Attributes:
        task: whose shots they are.
        examples: to be judged, in an order that the seed decided.
        seed: of the choice.
        proxy: the small model, where there is one.
        wrong: example id -> the label that the large model gave wrongly (None: unparsed).
        explain: makes explanations of examples, those that shots will show; None for a proxy's default.
        k: words of an explanation.
    """

    task: Task
    examples: Sequence[Example]
    seed: int = 0
    proxy: Proxy | None = None
    wrong: Mapping[str, str | None] = field(default_factory=dict)
    explain: Callable[[Sequence[Example]], Sequence[Attribution]] | None = None
    k: int = 5


@dataclass(frozen=True)
class Strategy:
    """A way to choose shots.

    Attributes:
        description: one line.
        scores: one number a candidate, the highest is shown first; None leaves them in their order by lot.
        lowest: the lowest is shown first instead.
        spread: labels take turns.
        proxy: whether it asks a small model.
    """

    description: str
    scores: Callable[[Candidates], Sequence[float]] | None = None
    lowest: bool = False
    spread: bool = False
    proxy: bool = False


def _adopt(name: str, value: Any) -> Strategy:
    if isinstance(value, Strategy):
        return value
    if not callable(value):
        raise InputError(f"the selection {name!r} is a function of Candidates, or a Strategy, not {value!r}")
    return Strategy(next(iter((value.__doc__ or "").strip().splitlines()), ""), value)


SELECTIONS: Table[Strategy] = Table("selection", _adopt)
"""Every way to choose shots by name. The nearest examples of each test input are another thing: see `Neighbours`."""


@dataclass(frozen=True)
class Judge:
    """The small model that is asked about candidates.

    Attributes:
        proxy: whose probabilities (mcs_*) or explanations (most_faithful) decide.
        explain: what makes the explanations for most_faithful, those that shots will show; default: gradient times
            input of the gold label against the one wrongly given, or the proxy's likeliest other one, over the task's
            key words.
        k: words of an explanation, for most_faithful.
    """

    proxy: Proxy
    explain: Callable[[Sequence[Example]], Sequence[Attribution]] | None = None
    k: int = 5


@dataclass(frozen=True)
class Selection:
    """Shots, and what a reader of the run must know about how they were found.

    Attributes:
        shots: in the order of the prompt.
        notes: e.g. that too few examples were answered wrongly and right ones filled up.
    """

    shots: tuple[Demonstration, ...]
    notes: tuple[str, ...] = ()


def misclassification_confidence(probabilities: npt.ArrayLike, gold_index: int) -> float:
    """How confidently a model is wrong: max over wrong labels of f minus f of the gold label (AMPLIFY, section 3.2).

    Args:
        probabilities: over the labels, shape (labels,), at least two.
        gold_index: of the gold label.

    Returns:
        In [-1, 1]: above 0 the model errs, below 0 it is right.

    Raises:
        InputError: no probabilities, or no such label.
    """
    f = np.asarray(probabilities, dtype=np.float64)
    if f.ndim != 1 or len(f) < 2 or not 0 <= gold_index < len(f):
        raise InputError(f"the score needs two or more probabilities and an index into them, got {f} and {gold_index}")
    if not (np.isfinite(f).all() and (f >= -1e-6).all() and abs(f.sum() - 1) < 1e-3):
        raise InputError(f"the score is on probabilities, which sum to 1; got {f} (take the softmax of logits)")
    return float(np.delete(f, gold_index).max() - f[gold_index])


def select(
    strategy: str,
    task: Task,
    shots: int,
    *,
    seed: int,
    pool: Sequence[Example] | None = None,
    wrong: Mapping[str, str | None] | None = None,
    judge: Judge | None = None,
    balanced: bool = False,
) -> Selection:
    """Choose shots by one of `SELECTIONS`.

    The same arguments give the same shots. Ties, and the order of shots with equal scores, are decided by the seed.

    Args:
        strategy: its name.
        task: the task; its test split is never chosen from.
        shots: how many.
        seed: of the choice.
        pool: what is chosen from; by default `task.validation` where scores or `wrong` decide, else `task.train`.
        wrong: what the large model got wrong in the pool: example id -> the label it gave (None: unparsed). Only
            these are chosen as long as they suffice; then right ones fill up, and the notes say so. Not given: every
            example counts alike.
        judge: the small model, where the strategy asks one.
        balanced: as many of each label as possible, each label's best first; `wrong` then decides within a label only.

    Returns:
        Demonstrations without rationales, best first; each knows its foil (from `wrong`) and its score.

    Raises:
        UnknownNameError: no such strategy.
        InputError: too few examples, an unlabelled one, a test item in the pool, no or an untrained proxy, or labels to
            be balanced where each example has choices of its own.
    """
    way = SELECTIONS.find(strategy, "(knn chooses for each test input: use amplify.selection.Neighbours.)")
    if balanced:
        require_labels(task, "balanced shots")
    if pool is None:
        pool = task.validation if way.proxy or wrong is not None else task.train
    pool = _checked(task, pool, shots)
    if shots == 0:
        return Selection(())

    # one seeded shuffle decides every tie, so that equal scores do not fall back on the order of the file
    pool = [pool[i] for i in np.random.default_rng(seed).permutation(len(pool))]
    if strangers := set(wrong or {}) - {e.id for e in pool}:
        raise InputError(f"wrong= names examples that are not in the pool: {', '.join(sorted(strangers)[:5])}")
    preferred = [e for e in pool if e.id in (wrong or {})]
    rest = [e for e in pool if e.id not in (wrong or {})]
    scores: dict[str, float] = {}
    if way.scores is not None:
        if way.proxy:
            if judge is None:
                raise InputError(f"{strategy} needs a proxy: judge=Judge(amplify.train_proxy(task))")
            judge.proxy.require_head(f"selection by {strategy}")
        looked_at = preferred if len(preferred) >= shots and not balanced else [*preferred, *rest]
        asked = Candidates(task, looked_at, seed, wrong=wrong or {})
        if judge is not None:
            asked = replace(asked, proxy=judge.proxy, explain=judge.explain, k=judge.k)
        scores = _scores(strategy, way.scores, asked)
    sign = 1.0 if way.lowest else -1.0
    groups = [sorted(group, key=lambda e: sign * scores.get(e.id, 0.0)) for group in (preferred, rest)]
    chosen = [e for group in groups for e in (_balanced(group) if way.spread else group)]
    if balanced:
        # what comes earlier is better
        chosen = [chosen[i] for i in pick(-np.arange(len(chosen)), shots, groups=[e.label for e in chosen])]
    chosen = chosen[:shots]
    filled = sum(e.id not in (wrong or {}) for e in chosen)
    notes: tuple[str, ...] = ()
    if wrong is not None and filled:
        why = "too few of some label" if len(preferred) >= shots else f"only {len(preferred)} of {len(pool)} candidates"
        notes = (f"{why} were answered wrongly: {filled} of {shots} shots are ones that the model gets right",)
    return Selection(
        tuple(Demonstration(e, foil=(wrong or {}).get(e.id), score=scores.get(e.id)) for e in chosen), notes
    )


def require_labels(task: Task, what: str) -> None:
    """Refuse to balance what has no label in common.

    Args:
        task: the task.
        what: wants balance, for the message.

    Raises:
        InputError: the task has no fixed labels.
    """
    if not task.labels:
        raise InputError(
            f"{what}: task {task.name!r} has no labels that its examples share (a letter like A means another thing in "
            "each), so there is nothing to balance: leave balanced out"
        )


def pick(
    relevance: npt.ArrayLike,
    n: int,
    *,
    similarity: npt.ArrayLike | None = None,
    trade: float = 0.5,
    groups: Sequence[object] | None = None,
) -> list[int]:
    """The n most relevant items; with a similarity also unlike each other, with groups also balanced over them.

    Maximal marginal relevance (Carbonell & Goldstein 1998): each step takes the item with the highest
    trade x relevance - (1 - trade) x similarity to the nearest item taken before, ties to the earlier one.

    Args:
        relevance: shape (items,).
        n: how many.
        similarity: shape (items, items); None counts relevance alone.
        trade: 1 looks at relevance alone, 0 at difference alone.
        groups: one an item, e.g. its label: each step chooses within those that have fewest items so far.

    Returns:
        Indices in the order of choice.
    """
    worth = np.asarray(relevance, dtype=np.float64)
    near = np.zeros((len(worth), len(worth))) if similarity is None else np.asarray(similarity, dtype=np.float64)

    def gain(chosen: list[int]) -> npt.NDArray[np.float64]:
        return trade * worth - (1 - trade) * (near[:, chosen].max(1) if chosen else 0.0)

    return _greedy(gain if similarity is not None else lambda _: worth, len(worth), n, groups)


def submodular_pick(importance: npt.ArrayLike, n: int, *, groups: Sequence[object] | None = None) -> list[int]:
    """The n explanations that together cover the most important features (SP-LIME; Ribeiro et al. 2016, section 4).

    Feature j counts I_j = sqrt(sum over items |W_ij|); a set of items is worth the sum of I_j over the features that
    any of them has. Greedy choice is within 1 - 1/e of the best.

    Args:
        importance: W, shape (items, features), the score of each feature in each item's explanation, 0 for none.
        n: how many.
        groups: see `pick`.
    """
    weight = np.abs(np.asarray(importance, dtype=np.float64))
    total = np.sqrt(weight.sum(0))

    def gain(chosen: list[int]) -> npt.NDArray[np.float64]:
        covered = (weight[chosen] > 0).any(0)
        return ((weight > 0) & ~covered) @ total

    return _greedy(gain, len(weight), n, groups)


def likely_mislabelled(probabilities: Sequence[Mapping[str, float]], gold: Sequence[str]) -> list[bool]:
    """Which items' labels a model doubts with confidence (confident learning; Northcutt et al. 2021, section 3.1).

    A label's threshold is its mean probability over the items that carry it. An item is flagged when, of the labels
    that reach their threshold on it, the likeliest is another than its own. Where a model is confidently wrong there
    is often an error in the data: such an item makes a poor demonstration.

    Args:
        probabilities: per item, over its labels.
        gold: the label that each item carries.
    """
    own: dict[str, list[float]] = defaultdict(list)
    for row, label in zip(probabilities, gold, strict=True):
        own[label].append(row[label])
    threshold = {label: float(np.mean(values)) for label, values in own.items()}
    flags = []
    for row, label in zip(probabilities, gold, strict=True):
        sure = {other: p for other, p in row.items() if other in threshold and p >= threshold[other]}
        flags.append(bool(sure) and max(sure, key=lambda other: (sure[other], other == label)) != label)
    return flags


def text_similarity(examples: Sequence[Example]) -> npt.NDArray[np.float64]:
    """Cosine of the inputs' TF-IDF vectors, shape (examples, examples)."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    from amplify.attribution.words import word_spans

    def tokens(text: str) -> list[str]:
        return [text[a:b].casefold() for a, b in word_spans(text)]

    vectors = TfidfVectorizer(analyzer=tokens).fit_transform([input_text(e) for e in examples])
    return np.asarray((vectors @ vectors.T).toarray(), dtype=np.float64)


class Neighbours:
    """The k nearest labelled examples of each input, by exact cosine similarity of sentence embeddings."""

    def __init__(
        self, task: Task, pool: Sequence[Example] | None = None, *, model: str = "minilm", device: str | None = None
    ) -> None:
        """Embed the pool (`task.train` by default) once.

        Raises:
            InputError: a test item or an unlabelled example in the pool.
        """
        self.pool = tuple(_checked(task, task.train if pool is None else pool, 1))
        self._embedder = Embedder(model, device=device)
        self._keys = self._embedder.embed([input_text(e) for e in self.pool])

    def shots(self, examples: Sequence[Example], k: int) -> list[tuple[Demonstration, ...]]:
        """Per example its k nearest, the nearest last (next to the question), scored by cosine similarity."""
        queries = self._embedder.embed([input_text(e) for e in examples])
        found = nearest(queries, self._keys, k)
        return [
            tuple(Demonstration(self.pool[i], score=float(query @ self._keys[i])) for i in reversed(row))
            for query, row in zip(queries, found, strict=True)
        ]


def _checked(task: Task, pool: Sequence[Example], shots: int) -> list[Example]:
    if shots < 0:
        raise InputError(f"the number of shots cannot be negative, got {shots}")
    if pool is not task.train and pool is not task.validation:  # no text of which is in the test split
        ids, texts = {e.id for e in task.test}, {content_hash(e) for e in task.test}
        if found := next((e for e in pool if e.id in ids or content_hash(e) in texts), None):
            raise InputError(f"example {found.id!r} is in the test split of task {task.name!r}: it cannot be a shot")
    if found := next((e for e in pool if e.label is None and not e.answers), None):
        raise InputError(f"example {found.id!r} has no label: it cannot be a shot")
    if shots > len(pool):
        raise InputError(f"{shots} shots were asked for, but there are only {len(pool)} examples to choose from")
    return list(pool)


def _greedy(
    gain: Callable[[list[int]], npt.NDArray[np.float64]], items: int, n: int, groups: Sequence[object] | None
) -> list[int]:
    """n items, one after the other, each with the highest gain given those before."""
    if not 0 <= n <= items:
        raise InputError(f"{n} of {items} items cannot be chosen")
    if groups is not None and len(groups) != items:
        raise InputError(f"{items} items and {len(groups)} groups: one each is needed")
    chosen: list[int] = []
    while len(chosen) < n:
        left = [i for i in range(items) if i not in chosen]
        if groups is not None:
            count = Counter(groups[i] for i in chosen)
            fewest = min(count[groups[i]] for i in left)
            left = [i for i in left if count[groups[i]] == fewest]
        worth = gain(chosen)
        chosen.append(max(left, key=lambda i: (worth[i], -i)))
    return chosen


def _balanced(pool: Sequence[Example]) -> list[Example]:
    """Labels in turn, each in the order of the pool; the labels themselves in order of first appearance."""
    groups: dict[str | None, list[Example]] = defaultdict(list)
    for example in pool:
        groups[example.label].append(example)
    return [example for turn in zip_longest(*groups.values()) for example in turn if example is not None]


def _scores(name: str, judge: Callable[[Candidates], Sequence[float]], candidates: Candidates) -> dict[str, float]:
    """What each candidate is worth, by its id."""
    values = np.asarray(judge(candidates), dtype=np.float64)
    if values.shape != (len(candidates.examples),) or not np.isfinite(values).all():
        raise InputError(
            f"the selection {name!r} gives {values.tolist()!r:.80} for {len(candidates.examples)} candidates: one "
            "finite number each is needed"
        )
    return {e.id: v for e, v in zip(candidates.examples, values.tolist(), strict=True)}


def _confidently_wrong(candidates: Candidates) -> list[float]:
    proxy, examples = candidates.proxy, candidates.examples
    assert proxy is not None
    return [
        misclassification_confidence(p, proxy.labels_of(e).index(str(e.label)))
        for e, p in zip(examples, proxy.probabilities(examples), strict=True)
    ]


def _faithful(candidates: Candidates) -> list[float]:
    from amplify.attribution.faithfulness import comprehensiveness

    proxy, examples = candidates.proxy, candidates.examples
    assert proxy is not None
    found = (
        candidates.explain(examples)
        if candidates.explain is not None
        else _explained(candidates.task, proxy, examples, candidates.wrong)
    )
    return comprehensiveness(proxy, examples, found, candidates.k).tolist()


register("selection", "random", Strategy("by lot"))
register("selection", "balanced", Strategy("by lot, as many of each label as possible", spread=True))
register(
    "selection", "mcs_high",
    Strategy("what the proxy is most confidently wrong about (AMPLIFY)", _confidently_wrong, proxy=True),
)  # fmt: skip
register(
    "selection", "mcs_low",
    Strategy("what the proxy is most confidently right about", _confidently_wrong, lowest=True, proxy=True),
)  # fmt: skip
register("selection", "most_faithful", Strategy("those whose explanation the proxy needs most", _faithful, proxy=True))


def _explained(
    task: Task, proxy: Proxy, examples: Sequence[Example], wrong: Mapping[str, str | None]
) -> list[Attribution]:
    from amplify.attribution.explainers import explain_words, foil_of
    from amplify.attribution.words import key_word_mask

    foils = [
        foil_of(proxy.labels_of(e), str(e.label), p, wrong.get(e.id))
        for e, p in zip(examples, proxy.probabilities(examples), strict=True)
    ]
    labels = [e.label for e in examples]
    return explain_words(proxy, examples, labels, foils, "grad_x_input", mask=key_word_mask(task))

"""Which solved examples go into a few-shot prompt, and in which order."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from amplify.embeddings import Embedder, nearest
from amplify.errors import InputError, UnknownNameError
from amplify.layout import input_text
from amplify.proxies import Proxy
from amplify.task_splits import content_hash
from amplify.tasks import Task
from amplify.values import Demonstration, Example

STRATEGIES = ("random", "balanced", "knn", "mcs_high", "mcs_low", "most_faithful")
"""What `select` knows: random; balanced over labels; knn (nearest to each test input); mcs_high and mcs_low (highest or
lowest misclassification confidence score); most_faithful (the explanation whose words the proxy needs most)."""


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
    proxy: Proxy | None = None,
    method: str = "grad_x_input",
    k: int = 5,
) -> Selection:
    """Choose shots by one of `STRATEGIES`, `knn` apart (it chooses per test input: see `Neighbours`).

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
        proxy: whose probabilities (mcs_*) or explanations (most_faithful) decide.
        method: gradient explainer for most_faithful.
        k: words of an explanation, for most_faithful.

    Returns:
        Demonstrations without rationales, best first; each knows its foil (from `wrong`) and its score.

    Raises:
        UnknownNameError: no such strategy.
        InputError: too few examples, an unlabelled one, a test item in the pool, no or an untrained proxy.
    """
    if strategy not in STRATEGIES:
        raise UnknownNameError("selection strategy", strategy, STRATEGIES)
    if strategy == "knn":
        raise InputError("knn chooses shots for each test input: use amplify.demonstrations.Neighbours")
    scored = strategy in ("mcs_high", "mcs_low", "most_faithful")
    if pool is None:
        pool = task.validation if scored or wrong is not None else task.train
    pool = _checked(task, pool, shots)
    if shots == 0:
        return Selection(())

    # one seeded shuffle decides every tie, so that equal scores do not fall back on the order of the file
    pool = [pool[i] for i in np.random.default_rng(seed).permutation(len(pool))]
    if strangers := set(wrong or {}) - {e.id for e in pool}:
        raise InputError(f"wrong= names examples that are not in the pool: {', '.join(sorted(strangers)[:5])}")
    preferred = [e for e in pool if e.id in (wrong or {})]
    rest = [e for e in pool if e.id not in (wrong or {})]
    if not scored:
        spread = _balanced if strategy == "balanced" else _first
        chosen = spread(preferred, min(shots, len(preferred)))
        chosen += spread(rest, shots - len(chosen))
        scores: dict[str, float] = {}
    else:
        if proxy is None:
            raise InputError(f"{strategy} needs a proxy=: amplify.train_proxy(task)")
        proxy.require_head(f"selection by {strategy}")
        looked_at = preferred if len(preferred) >= shots else [*preferred, *rest]
        scores = _scores(strategy, task, proxy, looked_at, wrong or {}, method, k)
        sign = 1.0 if strategy == "mcs_low" else -1.0
        chosen = [e for group in (preferred, rest) for e in sorted(group, key=lambda e: sign * scores.get(e.id, 0.0))][
            :shots
        ]
    filled = sum(e.id not in (wrong or {}) for e in chosen)
    notes: tuple[str, ...] = ()
    if wrong is not None and filled:
        notes = (
            f"only {len(preferred)} of {len(pool)} candidates were answered wrongly: {filled} of {shots} shots are "
            "ones that the model gets right",
        )
    return Selection(
        tuple(Demonstration(e, foil=(wrong or {}).get(e.id), score=scores.get(e.id)) for e in chosen), notes
    )


class Neighbours:
    """The k nearest labelled examples of each input, by exact cosine similarity of sentence embeddings."""

    def __init__(self, task: Task, pool: Sequence[Example] | None = None, *, model: str = "minilm") -> None:
        """Embed the pool (`task.train` by default) once.

        Raises:
            InputError: a test item or an unlabelled example in the pool.
        """
        self.pool = tuple(_checked(task, task.train if pool is None else pool, 1))
        self._embedder = Embedder(model)
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
    ids, texts = {e.id for e in task.test}, {content_hash(e) for e in task.test}
    for example in pool:
        if example.id in ids or content_hash(example) in texts:
            raise InputError(f"example {example.id!r} is in the test split of task {task.name!r}: it cannot be a shot")
        if example.label is None and not example.answers:
            raise InputError(f"example {example.id!r} has no label: it cannot be a shot")
    if shots > len(pool):
        raise InputError(f"{shots} shots were asked for, but there are only {len(pool)} examples to choose from")
    return list(pool)


def _first(pool: Sequence[Example], shots: int) -> list[Example]:
    return list(pool[:shots])


def _balanced(pool: Sequence[Example], shots: int) -> list[Example]:
    """Labels in turn, each in the order of the pool; the labels themselves in order of first appearance."""
    groups: dict[str | None, list[Example]] = defaultdict(list)
    for example in pool:
        groups[example.label].append(example)
    chosen: list[Example] = []
    while len(chosen) < shots:
        for group in groups.values():
            if group and len(chosen) < shots:
                chosen.append(group.pop(0))
    return chosen


def _scores(
    strategy: str,
    task: Task,
    proxy: Proxy,
    examples: Sequence[Example],
    wrong: Mapping[str, str | None],
    method: str,
    k: int,
) -> dict[str, float]:
    """Per example id, the misclassification confidence or the faithfulness of its explanation."""
    if strategy == "most_faithful":
        from amplify.attribution.faithfulness import comprehensiveness
        from amplify.attribution.gradients import explain
        from amplify.attribution.words import key_word_mask

        foils = [_foil(proxy, e, wrong.get(e.id)) for e in examples]
        found = explain(proxy, examples, [e.label for e in examples], foils, [method], mask=key_word_mask(task))[method]
        values = comprehensiveness(proxy, examples, found, k).tolist()
    else:
        values = [
            misclassification_confidence(p, proxy.labels_of(e).index(str(e.label)))
            for e, p in zip(examples, proxy.probabilities(examples), strict=True)
        ]
    return {e.id: v for e, v in zip(examples, values, strict=True)}


def _foil(proxy: Proxy, example: Example, given: str | None) -> str | None:
    return given if given in proxy.labels_of(example) and given != example.label else None

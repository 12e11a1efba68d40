"""The search for heads: every head alone, alone by successive halving, and those that help together.

PASTA (arXiv 2311.02262, section 3.2) steers one head at a time on every sample and ranks heads by task score. Here the
score is a log-probability margin, which tells more per sample than right or wrong, and the search spends its runs where
they matter: single heads by successive halving (Jamieson and Talwalkar 2016), then heads that help *together*, block by
block down the ranking. A run is one head set on one sample; each stands in a file, so that a stopped search goes on
where it was. What comes out is a profile.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np
import numpy.typing as npt

from amplify import codec
from amplify.errors import DataError, InputError, RunError
from amplify.files import Journal, shown
from amplify.head_search.margins import HeadSet, Item, Margins, by_layer, heads_of
from amplify.methods import make
from amplify.methods.attention_vectors import head_outputs, labelled_items, rank
from amplify.methods.program import answer_shots
from amplify.models.base import LanguageModel, ScoringModel, each, need_local, need_scoring
from amplify.steering import Steering
from amplify.steering.spec import model_shape
from amplify.tasks import Task
from amplify.types import Demonstration
from amplify.untrusted import special_tokens

Floats = npt.NDArray[np.float64]
Score = Callable[[Sequence[HeadSet], Sequence[int]], Floats]  # head sets, sample numbers -> margins [sets, samples]
Combine = Literal["intersection", "union", "mean"]
PLAIN: HeadSet = frozenset()


@dataclass(frozen=True)
class Ranking:
    """Heads from best to worst.

    Attributes:
        heads: all of the model's.
        gains: mean margin gained over the plain model by steering that head alone.
        samples: on how many samples each head was tried alone.
        runs: head sets times samples that it took.
    """

    heads: tuple[tuple[int, int], ...]
    gains: Mapping[tuple[int, int], float]
    samples: Mapping[tuple[int, int], int]
    runs: int

    def top(self, k: int) -> HeadSet:
        """The k best heads."""
        return frozenset(self.heads[:k])


def exhaustive(score: Score, layers: int, heads: int, samples: int) -> Ranking:
    """Every head alone on every sample (PASTA's profiling).

    Args:
        score: margins of head sets on samples.
        layers, heads: of the model.
        samples: how many there are.
    """
    everyone = [(layer, head) for layer in range(layers) for head in range(heads)]
    numbers = list(range(samples))
    plain = score([PLAIN], numbers)[0]
    gains = (score([frozenset({h}) for h in everyone], numbers) - plain).mean(1)
    order = np.argsort(-gains, kind="stable")
    return Ranking(
        tuple(everyone[i] for i in order),
        {h: float(g) for h, g in zip(everyone, gains, strict=True)},
        dict.fromkeys(everyone, samples),
        (len(everyone) + 1) * samples,
    )


def halving(score: Score, layers: int, heads: int, samples: int, *, alone: int = 4) -> Ranking:
    """Every head on one sample, the better half on another, the better quarter on two more, and so on.

    To try whole layers first costs less and sees less: a layer's helpful heads hide behind its harmful ones.

    Args:
        score, layers, heads, samples: see `exhaustive`.
        alone: samples on which the best heads are tried, each by itself.
    """
    alive = [(layer, head) for layer in range(layers) for head in range(heads)]
    last = min(alone, samples)
    base = score([PLAIN], list(range(samples)))[0]
    runs = samples
    sums = dict.fromkeys(alive, 0.0)
    tried = dict.fromkeys(alive, 0)
    seen, reach = 0, 1
    while seen < last:
        fresh = list(range(seen, reach))
        found = (score([frozenset({h}) for h in alive], fresh) - base[fresh]).sum(1)
        runs += len(alive) * len(fresh)
        for h, total in zip(alive, found, strict=True):
            sums[h] += float(total)
            tried[h] = reach
        alive = sorted(alive, key=lambda h: -sums[h])[: max(1, (len(alive) + 1) // 2)]
        seen, reach = reach, min(2 * reach, last)
    gains = {h: sums[h] / tried[h] for h in sums}
    # those that fell out keep their rank behind those that stayed
    order = sorted(gains, key=lambda h: (-tried[h], -gains[h], h))
    return Ranking(tuple(order), gains, tried, runs)


def by_vectors(task: Task, model: LanguageModel, seed: int, per_label: int = 10) -> Ranking:
    """Heads by how well the labels can be read off them (`amplify.methods.attention_vectors`): one pass an item.

    A head that knows the label need not be one that obeys emphasis, so what is proposed is still selected jointly.

    Args:
        task: with fixed labels.
        model: in this process.
        seed: of the labelled items.
        per_label: items of each label.
    """
    items = labelled_items(task, per_label, seed)
    form = make("zero_shot", mode="score").fit(task, model, 0).form  # type: ignore[attr-defined]
    outputs = head_outputs([form.prompt(e) for e in items], need_local(model, "a search by attention vectors"))
    found = rank(outputs, np.array([task.labels.index(str(e.label)) for e in items]), len(task.labels))
    gains = {at: float(found.accuracy[at]) for at in found.order}
    return Ranking(found.order, gains, dict.fromkeys(found.order, len(items)), len(items))


@dataclass(frozen=True)
class Joint:
    """A head set chosen to help together.

    Attributes:
        heads: the set.
        gain: mean margin gained over the plain model.
        curve: (size of the set that was tried, its gain, whether it was kept), in the order of the search.
        runs: head sets times samples that it took.
    """

    heads: HeadSet
    gain: float
    curve: tuple[tuple[int, float, bool], ...]
    runs: int


def joint(
    scores: Sequence[Score], order: Sequence[tuple[int, int]], samples: Sequence[int], *, block: int = 4, most: int = 48
) -> Joint:
    """Greedy forward selection: go down the ranking in blocks and keep each that raises the gain.

    Args:
        scores: of one task, or of several; then the gain is the mean over tasks, each in units of its own spread of
            margins over samples, so that no task drowns another.
        order: heads from best to worst.
        samples: of each task.
        block: heads tried at a time.
        most: how far down the ranking to go.

    Returns:
        The set; at least the first block, whatever it gains.
    """
    bases = [score([PLAIN], list(range(n)))[0] for score, n in zip(scores, samples, strict=True)]
    units = [float(base.std()) or 1.0 for base in bases] if len(scores) > 1 else [1.0]
    runs = sum(samples)

    def gain(heads: HeadSet) -> float:
        parts = [
            (score([heads], list(range(n)))[0] - base).mean() / unit
            for score, n, base, unit in zip(scores, samples, bases, units, strict=True)
        ]
        return float(np.mean(parts))

    chosen, best = PLAIN, -np.inf
    curve: list[tuple[int, float, bool]] = []
    for start in range(0, min(most, len(order)), block):
        trial = chosen | frozenset(order[start : min(start + block, most)])
        found = gain(trial)
        runs += sum(samples)
        curve.append((len(trial), found, found > best))
        if found > best:
            chosen, best = trial, found
    return Joint(chosen, best, tuple(curve), runs)


def combine(rankings: Sequence[Ranking], how: Combine, size: int) -> tuple[tuple[int, int], ...]:
    """One order of heads from several tasks' rankings.

    Args:
        rankings: one a task.
        how: "intersection": heads in the top k of every task, for the smallest k that gives `size` of them (PASTA's
            multi-task profile); "union": the best size/tasks of each; "mean": the lowest mean rank.
        size: heads wanted.
    """
    ranks = [{h: i for i, h in enumerate(r.heads)} for r in rankings]
    mean = {h: float(np.mean([rank[h] for rank in ranks])) for h in ranks[0]}
    if how == "mean":
        return tuple(sorted(mean, key=lambda h: (mean[h], h))[:size])
    if how == "union":
        found: set[tuple[int, int]] = set()
        k = 0
        while len(found) < min(size, len(mean)):
            found |= {r.heads[k] for r in rankings}
            k += 1
        return tuple(sorted(found, key=lambda h: (mean[h], h)))
    if how != "intersection":
        raise InputError(f"combine is intersection, union or mean, not {how!r}")
    worst = {h: max(rank[h] for rank in ranks) for h in ranks[0]}
    return tuple(sorted(worst, key=lambda h: (worst[h], mean[h], h))[:size])


FORMAT = 1


class _Run(TypedDict):
    task: str
    key: str
    item: str
    heads: str
    margin: float


class Recorded:
    """A score that remembers: every run stands in a JSONL file, and none is made twice.

    Args:
        margins: measures one item under several head sets.
        task: its name in the file.
        path: the file, or None to remember in memory alone.
        key: what the measurements depend on besides item and heads; a file with another key is refused.
        progress: called with the number of runs after each write.

    Raises:
        RunError: the file belongs to another search.
    """

    def __init__(
        self,
        margins: Margins,
        task: str,
        path: Path | None = None,
        key: str = "",
        progress: Callable[[int], None] | None = None,
    ) -> None:
        self.margins, self.task, self.key, self.progress = margins, task, key, progress
        self.known: dict[tuple[str, str], float] = {}
        self.made = 0
        self._journal: Journal | None = None
        if path is not None:
            self._journal = Journal(path, {"format": FORMAT, "holds": "runs of a head search"}, what="runs of heads")
            self._read(self._journal)

    def _read(self, journal: Journal) -> None:
        for number, row in enumerate(journal.rows, start=2):
            try:
                codec.decode(_Run, row)
            except DataError as error:
                raise RunError(f"line {number} of {shown(journal.path)} was changed: {error}; delete it") from error
            if row["task"] != self.task:
                continue
            if row["key"] != self.key:
                raise RunError(
                    f"{shown(journal.path)} holds runs of {self.task} with other settings, samples or model; give "
                    "another --out, or delete it"
                )
            self.known[row["item"], row["heads"]] = row["margin"]

    def __call__(self, sets: Sequence[HeadSet], samples: Sequence[int]) -> Floats:
        """Margins, [head sets, samples]."""
        names = [_name(heads) for heads in sets]
        items = {number: self.margins.items[number].id for number in samples}
        todo = {n: [s for s in sets if (item, _name(s)) not in self.known] for n, item in items.items()}
        for number, measured, found in self.margins.each([(n, some) for n, some in todo.items() if some]):
            rows = []
            for heads, exact in zip(measured, found, strict=True):
                margin = round(float(exact), 6)  # as the file has it, so that a resumed search is the same one
                self.known[items[number], _name(heads)] = margin
                where = {"task": self.task, "key": self.key, "item": items[number]}
                rows.append({**where, "heads": _name(heads), "margin": margin})
            self.made += len(rows)
            if self._journal is not None:
                self._journal.append(rows)
            if self.progress:
                self.progress(len(rows))
        return np.array([[self.known[items[number], name] for number in samples] for name in names])


def _name(heads: HeadSet) -> str:
    """A head set as a short string: "3.0 3.5 7.1"; a whole layer is not abbreviated."""
    return " ".join(f"{layer}.{head}" for layer, head in sorted(heads))


def items_of(
    task: Task, model: ScoringModel, samples: int, *, seed: int = 0, split: str = "train", shots: int = 0
) -> list[Item]:
    """Samples of a task, with what their wanted answers must beat.

    For a choice the foil is the other object (the plain model's favourite, where there are several others); for free
    text it is what the plain model writes, cut to the gold's length. Where it writes the gold itself there is none.

    Args:
        task: with an emphasis.
        model: the plain model.
        samples: how many; all there are where there are fewer.
        seed: of the draw.
        split: "train", "validation" or "test".
        shots: labelled examples before each sample, drawn anew for each from the others of the training split.

    Raises:
        InputError: the task emphasises nothing, or has no such samples.
    """
    if not task.emphasis:
        raise InputError(f"task {task.name} says not what is to be emphasised: its YAML needs emphasis:")
    pool = list(getattr(task, split))
    if not pool:
        raise InputError(f"task {task.name} has no {split} examples to profile on")
    chosen = [pool[i] for i in np.random.default_rng(seed).permutation(len(pool))[:samples]]
    mode: Literal["score", "generate"] = "score" if task.labels_of(chosen[0]) else "generate"
    form = make("zero_shot", mode=mode).fit(task, model, 0).form  # type: ignore[attr-defined]
    drawn: list[tuple[Demonstration, ...]] = [()] * len(chosen)
    if shots:
        # one draw a sample, never the sample itself
        few = make("few_shot", mode=mode, shots=shots)
        pools = [replace(task, train=tuple(x for x in task.train if x.id != e.id)) for e in chosen]
        drawn = [few.fit(rest, model, seed + i).shots for i, rest in enumerate(pools)]  # type: ignore[attr-defined]
    prompts = [form.prompt(e, s) for e, s in zip(chosen, drawn, strict=True)]
    answers = answer_shots(form, chosen, drawn, model)
    items = []
    for example, prompt, answer in zip(chosen, prompts, answers, strict=True):
        gap = " " if prompt.prefix or prompt.text is not None else ""
        gold = str(example.label if example.label is not None else example.answers[0])
        if task.labels_of(example):
            others = {label: s for label, s in answer.scores.items() if label != gold}
            foil = max(others, key=lambda label: others[label])
            items.append(Item(example.id, prompt, gap + gold, gap + foil, whole=True))
        else:
            written = answer.text.strip()
            items.append(Item(example.id, prompt, gap + gold, gap + written if written not in ("", gold) else ""))
    return items


@dataclass(frozen=True)
class Profile:
    """What a profiling found.

    Attributes:
        steering: the chosen heads with their provenance.
        rankings: of each task.
        chosen: how the joint selection went.
        runs: head sets times samples, all tasks together.

    Example:
        >>> from dataclasses import replace
        >>> task = replace(amplify.load_task("support_tickets"), emphasis="text")
        >>> model = amplify.TransformersModel(module, tokenizer)  # of transformers, as you have loaded it
        >>> how = HeadSearch(samples=2, joint_samples=1, block=2, most=4, target_tokens=1)
        >>> find_heads([task], model, how).steering.save("heads.yaml")
        >>> amplify.Steering.load("heads.yaml").mode
        'pasta'
    """

    steering: Steering
    rankings: Mapping[str, Ranking] = field(repr=False)
    chosen: Joint = field(repr=False)
    runs: int


@dataclass(frozen=True)
class HeadSearch:
    """How heads are looked for.

    Attributes:
        samples: of each task's training split.
        combine: how several tasks choose together, see `combine`.
        search: see `halving`, `exhaustive` and `by_vectors`.
        seed: of the samples.
        joint_samples: samples a task for the joint selection.
        block, most: see `joint`.
        target_tokens: first tokens of gold and foil that count.
        shots: see `items_of`; for heads that will be steered behind as many examples.

    Example:
        >>> HeadSearch(samples=8, search="exhaustive").combine
        'intersection'
    """

    samples: int = 32
    combine: Combine = "intersection"
    search: Literal["halving", "exhaustive", "vectors"] = "halving"
    seed: int = 0
    joint_samples: int = 16
    block: int = 4
    most: int = 76
    target_tokens: int = 24
    shots: int = 0


def find_heads(
    tasks: Sequence[Task],
    model: Any,
    how: HeadSearch | None = None,
    *,
    steering: Steering | None = None,
    record: str | Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> Profile:
    """Find the heads that obey emphasis, for one task or for several together.

    Args:
        tasks: one for a task-specific profile; several for a multi-task one. A task-agnostic profile for a task is the
            multi-task profile of others.
        model: a scorer that can steer. `transformers:` is by far the quickest.
        how: the search; None: as `HeadSearch()`.
        steering: mode, alpha and the like that the heads will be used with; its heads do not matter.
        record: JSONL file of every run; the same call on the same file goes on where it stopped.
        progress: called with the number of runs after each batch.

    Raises:
        InputError: no task, the same one twice, a task without emphasis, or a model that cannot be steered.
        RunError: the file belongs to another search.

    Example:
        >>> from dataclasses import replace
        >>> task = replace(amplify.load_task("support_tickets"), emphasis="text")
        >>> model = amplify.TransformersModel(module, tokenizer)  # of transformers, as you have loaded it
        >>> how = HeadSearch(samples=2, joint_samples=1, block=2, most=4, target_tokens=1)
        >>> found = find_heads([task], model, how)
        >>> list(found.rankings), sum(map(len, found.steering.heads.values())) <= 4
        (['support_tickets'], True)
    """
    how = how or HeadSearch()
    if not tasks or how.samples < 1:
        raise InputError("a search for heads needs at least one task and one sample")
    if len({task.name for task in tasks}) < len(tasks):
        raise InputError(f"a task is named twice: {', '.join(task.name for task in tasks)}")
    scorer = need_scoring(model, "a search for heads")
    [shape] = each(model, _shape, [None])
    layers, heads = shape["layers"], shape["heads"]
    base = steering or Steering(heads={0: (0,)})
    if base.edits_keys:
        raise InputError(f"mode {base.mode!r} steers no heads: find its projections with `amplify projections`")
    options = {k: v for k, v in base.to_dict().items() if k not in ("heads", "model", "provenance")}
    about = model.describe()
    scores: dict[str, Recorded] = {}
    rankings: dict[str, Ranking] = {}
    sizes = []
    for task in tasks:
        items = items_of(task, scorer, how.samples, seed=how.seed, shots=how.shots)
        measure = Margins(scorer, items, base, target_tokens=how.target_tokens)
        what = [about.get("model"), about.get("dtype"), options, how.target_tokens, task.fingerprint, how.seed]
        what.append([[i.id, i.gold, i.foil] for i in items])
        what += [how.shots] if how.shots else []
        what += ["special tokens allowed"] if special_tokens() == "allowed" else []
        key = hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:16]
        scores[task.name] = Recorded(measure, task.name, Path(record) if record else None, key, progress)
        if how.search == "vectors":
            rankings[task.name] = by_vectors(task, model, how.seed)
        else:
            find = exhaustive if how.search == "exhaustive" else halving
            rankings[task.name] = find(scores[task.name], layers, heads, len(items))
        sizes.append(min(how.joint_samples, len(items)))
    order = (
        combine(list(rankings.values()), how.combine, how.most)
        if len(tasks) > 1
        else next(iter(rankings.values())).heads
    )
    chosen = joint(list(scores.values()), order, sizes, block=how.block, most=how.most)
    # the plain model's runs are counted once
    runs = sum(r.runs for r in rankings.values()) + chosen.runs - sum(sizes)
    named = about.get("model")
    provenance = {
        "tasks": {
            t.name: {"fingerprint": t.fingerprint, "emphasis": t.emphasis, "split": "train",
                     "samples": len(s.margins.items)} for t, s in zip(tasks, scores.values(), strict=True)
        },
        "search": how.search,
        **({"combine": how.combine} if len(tasks) > 1 else {}),
        **({"shots": how.shots} if how.shots else {}),
        "seed": how.seed,
        "target_tokens": how.target_tokens,
        "runs": runs,
        "joint_gain": round(chosen.gain, 4),
        "order": [f"{layer}.{head}" for layer, head in order[:100]],
        "best_heads": {
            name: {f"{layer}.{head}": round(r.gains[layer, head], 4) for layer, head in r.heads[:10]}
            for name, r in rankings.items()
        },
        "date": datetime.date.today().isoformat(),
        "dtype": about.get("dtype"),
        "versions": {k: str(v) for k, v in about.get("versions", {}).items()},
    }  # fmt: skip
    model = {**shape, **(dict(named) if isinstance(named, Mapping) else {})}
    return Profile(
        replace(base, heads=by_layer(chosen.heads), model=model, provenance=provenance), rankings, chosen, runs
    )


def _shape(model: Any, _: None) -> dict[str, Any]:
    """Layers and heads of a model that is open here."""
    return model_shape(need_local(model, "a search for heads").module.config)


def held_out(task: Task, model: Any, steering: Steering, *, samples: int = 32, seed: int = 1) -> tuple[float, float]:
    """Mean margin of the plain model and under a profile, on test items that no profiling has seen.

    Returns:
        (plain, steered).

    Example:
        >>> from dataclasses import replace
        >>> task = replace(amplify.load_task("support_tickets"), emphasis="text")
        >>> model = amplify.TransformersModel(module, tokenizer)  # of transformers, as you have loaded it
        >>> plain, steered = held_out(task, model, amplify.Steering(heads={0: (1,)}), samples=2)
        >>> plain != steered
        True
    """
    items = items_of(task, model, samples, seed=seed, split="test")
    measure = Margins(model, items, steering)
    both = [measure(i, [PLAIN, heads_of(steering.heads or {})]) for i in range(len(items))]
    plain, steered = np.mean(both, axis=0)
    return float(plain), float(steered)

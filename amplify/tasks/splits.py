"""Cleaning and splitting: which rows of a task are kept, and in which split each stands."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from itertools import compress

import numpy as np

from amplify.errors import DataError, InputError
from amplify.tasks.rows import content_hash
from amplify.tasks.spec import TaskSpec
from amplify.types import Example

Pools = dict[str, dict[str, Example]]
"""Split (or "all") -> content hash -> example."""


def clean(spec: TaskSpec, pools: Mapping[str, list[Example]], labels: Sequence[str]) -> tuple[Pools, dict[str, int]]:
    """Pools without bad golds and copies, and how many rows each rule left out.

    A text that occurs twice with one label is kept once; with two labels it has no right answer, and every copy
    goes. In published splits (`overlap: drop`) the copy outside the test split goes.

    Args:
        spec: the task; `bad_gold` and `overlap` count here.
        pools: split (or "all") -> examples.
        labels: the fixed label set, empty where there is none.

    Raises:
        InputError: a label outside its set. DataError: another number of bad golds than the task knows of.
    """
    dropped: Counter[str] = Counter()
    kept_pools: Pools = {}
    for name, pool in pools.items():
        good = []
        for example in pool:
            allowed = example.choices or labels
            if allowed and example.label not in allowed:
                if not spec.bad_gold:
                    raise InputError(
                        f"task {spec.name}, row {example.id!r}: the label {example.label!r} is none of "
                        f"{', '.join(allowed)}"
                    )
                dropped["gold answer is no choice"] += 1
                continue
            good.append(example)
        first: dict[str, Example] = {}
        copies: Counter[str] = Counter()
        torn: set[str] = set()
        for example in good:
            if (other := first.setdefault(key := content_hash(example), example)) is not example:
                copies[key] += 1
                if other.label != example.label:
                    torn.add(key)
        for key, n in copies.items():
            if key in torn:
                dropped["same text with different labels"] += n + 1
                del first[key]
            else:
                dropped["copy of the same text"] += n
        kept_pools[name] = first
    if dropped["gold answer is no choice"] != spec.bad_gold:
        raise DataError(
            f"task {spec.name}: {dropped['gold answer is no choice']} rows have a gold answer that is no choice, "
            f"{spec.bad_gold} are known (bad_gold); this is another version of the data"
        )
    if spec.overlap == "drop":
        taken: set[str] = set()
        for name in ("test", "validation", "train"):
            if texts := kept_pools.get(name):
                kept_pools[name] = {key: example for key, example in texts.items() if key not in taken}
                dropped["copy of a text in a later split"] += len(texts) - len(kept_pools[name])
                taken |= texts.keys()
    return kept_pools, {reason: n for reason, n in dropped.items() if n}


def split_pools(
    spec: TaskSpec, pools: Pools, never_test: set[str], *, stratify: bool
) -> tuple[tuple[Example, ...], tuple[Example, ...], tuple[Example, ...]]:
    """Train, validation and test, each in the order of its hashes.

    Args:
        spec: the task; `splits` and `seed` count here.
        pools: cleaned examples.
        never_test: content hashes of examples that must not be cut off as test items.
        stratify: every label gives its share to each split.

    Raises:
        InputError: the splits leave no training rows.
    """

    def place(key: str) -> bytes:
        return hashlib.sha256(f"{spec.seed}:{key}".encode()).digest()

    ready = {name: [pool[key] for key in sorted(pool, key=place)] for name, pool in pools.items()}
    if "all" in ready:
        pool = ready.pop("all")
        sizes = {name: _size(spec.splits[name], len(pool)) for name in ("validation", "test") if name in spec.splits}
        if sum(sizes.values()) >= len(pool):
            raise InputError(f"task {spec.name}: splits {dict(spec.splits)} leave no training rows of {len(pool)}")
        never = {pools["all"][key].id for key in never_test & pools["all"].keys()}
        ready["test"], rest = take(pool, sizes.get("test", 0), stratify, never)
        ready["validation"], ready["train"] = take(rest, sizes.get("validation", 0), stratify)
    elif "validation" not in ready and "train" in ready and "validation" in spec.splits:
        size = _size(spec.splits["validation"], len(ready["train"]))
        ready["validation"], ready["train"] = take(ready["train"], size, stratify)
    for name, size_ in spec.splits.items():
        if isinstance(size_, int) and name in ready:
            ready[name] = ready[name][:size_]
    return tuple(ready.get("train", ())), tuple(ready.get("validation", ())), tuple(ready.get("test", ()))


def _size(wanted: float, n: int) -> int:
    return wanted if isinstance(wanted, int) else round(wanted * n)


def take(
    pool: Sequence[Example], n: int, stratify: bool, never: Collection[str] = ()
) -> tuple[list[Example], list[Example]]:
    """n examples but those with an id in `never`, and the others, both in the pool's order.

    Stratified, every label gives its share: of m examples the i-th has the rank (i + 0.5) / m, and the lowest n are
    taken, of equal ranks the first in the pool.
    """
    able = [i for i, example in enumerate(pool) if example.id not in never] if never else range(len(pool))
    order = np.array(able, dtype=np.int64)
    if stratify:
        groups: dict[str | None, list[int]] = {}
        for i in able:
            groups.setdefault(pool[i].label, []).append(i)
        ranks = np.zeros(len(pool))
        for group in groups.values():
            ranks[group] = (np.arange(len(group)) + 0.5) / len(group)
        order = order[np.argsort(ranks[order], kind="stable")]
    taken = np.zeros(len(pool), dtype=bool)
    taken[order[:n]] = True
    return list(compress(pool, taken.tolist())), list(compress(pool, (~taken).tolist()))

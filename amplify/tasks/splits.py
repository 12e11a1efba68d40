"""Cleaning and splitting: which rows of a task are kept, and in which split each stands."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence

from amplify.errors import DataError, InputError
from amplify.tasks.spec import TaskSpec
from amplify.types import Example

_JSON = json.JSONEncoder(ensure_ascii=False)


def content_hash(example: Example) -> str:
    """SHA-256 of what the model reads (text, choices, options), letter case and runs of spaces aside."""
    read = [[" ".join(text.casefold().split()) for text in (example.text, *example.options)], example.choices]
    return hashlib.sha256(_JSON.encode(read).encode()).hexdigest()


def clean(
    spec: TaskSpec, pools: Mapping[str, list[Example]], labels: Sequence[str]
) -> tuple[dict[str, list[Example]], dict[str, int]]:
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
    kept_pools: dict[str, list[Example]] = {}
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
        hashes = [content_hash(example) for example in good]
        golds: dict[str, set[str | None]] = {}
        for key, example in zip(hashes, good, strict=True):
            golds.setdefault(key, set()).add(example.label)
        first: dict[str, Example] = {}
        for key, example in zip(hashes, good, strict=True):
            if len(golds[key]) > 1:
                dropped["same text with different labels"] += 1
            elif key in first:
                dropped["copy of the same text"] += 1
            else:
                first[key] = example
        kept_pools[name] = list(first.values())
    if dropped["gold answer is no choice"] != spec.bad_gold:
        raise DataError(
            f"task {spec.name}: {dropped['gold answer is no choice']} rows have a gold answer that is no choice, "
            f"{spec.bad_gold} are known (bad_gold); this is another version of the data"
        )
    if spec.overlap == "drop":
        taken: set[str] = set()
        for name in ("test", "validation", "train"):
            pool = kept_pools.get(name, [])
            kept = [e for e in pool if content_hash(e) not in taken]
            dropped["copy of a text in a later split"] += len(pool) - len(kept)
            taken |= {content_hash(e) for e in kept}
            if name in kept_pools:
                kept_pools[name] = kept
    return kept_pools, {reason: n for reason, n in dropped.items() if n}


def split_pools(
    spec: TaskSpec, pools: Mapping[str, list[Example]], never_test: set[str], *, stratify: bool
) -> tuple[tuple[Example, ...], tuple[Example, ...], tuple[Example, ...]]:
    """Train, validation and test, each in the order of its hashes.

    Args:
        spec: the task; `splits` and `seed` count here.
        pools: split (or "all") -> cleaned examples.
        never_test: content hashes of examples that must not be cut off as test items.
        stratify: every label gives its share to each split.

    Raises:
        InputError: the splits leave no training rows.
    """

    def key(example: Example) -> str:
        return hashlib.sha256(f"{spec.seed}:{content_hash(example)}".encode()).hexdigest()

    ready = {name: sorted(pool, key=key) for name, pool in pools.items()}
    if "all" in ready:
        pool = ready.pop("all")
        sizes = {name: _size(spec.splits[name], len(pool)) for name in ("validation", "test") if name in spec.splits}
        if sum(sizes.values()) >= len(pool):
            raise InputError(f"task {spec.name}: splits {dict(spec.splits)} leave no training rows of {len(pool)}")
        allowed = [e for e in pool if content_hash(e) not in never_test] if never_test else pool
        ready["test"], rest = _take(pool, allowed, sizes.get("test", 0), stratify)
        ready["validation"], ready["train"] = _take(rest, rest, sizes.get("validation", 0), stratify)
    elif "validation" not in ready and "train" in ready and "validation" in spec.splits:
        size = _size(spec.splits["validation"], len(ready["train"]))
        ready["validation"], ready["train"] = _take(ready["train"], ready["train"], size, stratify)
    for name, size_ in spec.splits.items():
        if isinstance(size_, int) and name in ready:
            ready[name] = ready[name][:size_]
    return tuple(ready.get("train", ())), tuple(ready.get("validation", ())), tuple(ready.get("test", ()))


def _size(wanted: float, n: int) -> int:
    return wanted if isinstance(wanted, int) else round(wanted * n)


def _take(
    pool: Sequence[Example], able: Sequence[Example], n: int, stratify: bool
) -> tuple[list[Example], list[Example]]:
    """n of the able ones and the rest of the pool, in the pool's order; stratified, every label gives its share."""
    if stratify:
        groups: dict[str | None, list[tuple[int, Example]]] = {}
        for place, example in enumerate(able):
            groups.setdefault(example.label, []).append((place, example))
        ranked = [((i + 0.5) / len(g), place, e) for g in groups.values() for i, (place, e) in enumerate(g)]
        able = [e for _, _, e in sorted(ranked, key=lambda r: r[:2])]
    taken = {e.id for e in able[:n]}
    return [e for e in pool if e.id in taken], [e for e in pool if e.id not in taken]

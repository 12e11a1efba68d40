"""From a name, a file or a datasets id to a `Task`."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from amplify.errors import DataError, InputError, UnknownNameError
from amplify.tasks import sources
from amplify.tasks.rows import column_names
from amplify.tasks.spec import TaskSpec, read_specs, shipped_specs
from amplify.tasks.splits import clean, content_hash, split_pools
from amplify.tasks.task import Task
from amplify.types import Example

FILE_TYPES = (".csv", ".tsv", ".jsonl", ".json")
USER_SPLITS = {"train": 0.4, "validation": 0.2, "test": 0.4}
MIN_ROWS = 20
MIN_ROWS_PER_LABEL = 3
MAX_INFERRED_LABELS = 50


def load_task(
    task: str | Path,
    data: str | Path | None = None,
    text: str | None = None,
    label: str | None = None,
    *,
    id: str | None = None,
    split: str | None = None,
    labels: Sequence[str] | None = None,
    instruction: str | None = None,
    input_name: str | None = None,
    metric: str | None = None,
    config: str | None = None,
    revision: str | None = None,
    limit: int | None = None,
    seed: int | None = None,
) -> Task:
    """A task by name, YAML file, CSV/TSV/JSON/JSONL file, or datasets id with a field map.

    Args:
        task: a shipped name ("bbh/snarks"), a task's .yaml, a data file of your own, or a datasets id ("org/name").
        data: where local files lie; default AMPLIFY_DATA.
        text, label: columns of your own file or datasets id (dots reach into nested objects).
        id, split: further columns: a unique id; train/validation/test. Without `split`, rows are split by content.
        labels: the label set of your own data; default: the values found, sorted.
        instruction, input_name, metric: words around the data; they replace a shipped task's, too.
        config, revision: of a datasets id.
        limit: keep at most this many test examples.
        seed: of the split by content; default the task's own, 0.

    Raises:
        UnknownNameError: no such task.
        DataError: the data cannot be had or read; the message says where to get it.
        InputError: a missing column, an empty file, a label outside the set, duplicate ids, overlapping splits.

    Example:
        >>> task = amplify.load_task("coin_flip")
        >>> task.name, task.labels
        ('coin_flip', ('yes', 'no'))
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit is a number of test examples, 1 or more, not {limit}")
    columns = {"text": text, "label": label, "id": id, "split": split}
    given = {k: v for k, v in columns.items() if v is not None}
    name = str(task)
    infer = False
    shipped = shipped_specs()
    if name in shipped:
        spec = shipped[name]
    elif name.endswith((".yaml", ".yml")):
        spec = _one_spec(Path(task))
    elif name.lower().endswith(FILE_TYPES):
        if not os.path.isfile(task):
            raise DataError(f"no file {name}")
        spec, infer = _file_spec(Path(task), given), labels is None
        given, data = {}, Path(task).parent
    elif "/" in name and text and label:
        hub = {"path": name, "config": config, "revision": revision, "fields": given}
        spec, infer = TaskSpec(name=name, hub=hub, fields=given, overlap="drop"), labels is None
        given = {}
    else:
        hint = "Or give a .yaml, .csv, .tsv, .json or .jsonl file, or a datasets id together with text= and label=."
        raise UnknownNameError("task", name, shipped, hint)
    if given:
        raise InputError(f"{', '.join(given)} name columns of your own file; task {name!r} has its own field map")
    place = spec.metric.removeprefix("evaluate:")
    if metric is None and place != spec.metric and not place.partition("#")[0].isidentifier():
        raise InputError(
            f"{name}: the metric {spec.metric!r} is code that would run here, which a task file cannot ask for: "
            "name it yourself, load_task(…, metric=…) or --metric"
        )
    if (config or revision) and not spec.hub:
        raise InputError(f"config and revision belong to a datasets id; task {name!r} has none")
    changes: dict[str, Any] = {"seed": seed, "input_name": input_name, "metric": metric, "instruction": instruction}
    changes["labels"] = tuple(map(str, labels)) if labels is not None else None
    if config or revision:
        changes["hub"] = {**spec.hub, **{k: v for k, v in (("config", config), ("revision", revision)) if v}}
    spec = replace(spec, **{k: v for k, v in changes.items() if v is not None})
    return build(spec, Path(data) if data is not None else None, infer_labels=infer, limit=limit)


def _one_spec(path: Path) -> TaskSpec:
    specs = read_specs(path)
    if len(specs) != 1:
        raise InputError(f"{path} holds {len(specs)} tasks; name one of them: {', '.join(specs)}")
    return next(iter(specs.values()))


def _file_spec(path: Path, columns: Mapping[str, str]) -> TaskSpec:
    missing = [k for k in ("text", "label") if k not in columns]
    if missing:
        known = column_names(path)
        raise InputError(f"{path}: say which column is the {' and the '.join(missing)}; there are: {', '.join(known)}")
    fields: dict[str, Any] = dict(columns)
    if "split" not in fields and "split" in column_names(path):
        fields["split"] = "split"
    return TaskSpec(
        name=path.stem.encode(errors="replace").decode(),  # a file's name may be no text
        files={"all": (path.name,)},
        fields={**fields, "keep": "*"},
        splits=USER_SPLITS,
        input_name=columns["text"].split(".")[-1].replace("_", " ").strip().capitalize(),
    )


def build(spec: TaskSpec, data: Path | None, *, infer_labels: bool = False, limit: int | None = None) -> Task:
    """The task that a specification describes: rows read, mapped to labels, cleaned, split, validated."""
    found = sources.read(spec, data)
    labels = spec.labels
    if infer_labels:
        labels = _infer_labels(spec.name, [e for pool in found.pools.values() for e in pool], found.label_names)
    pools, dropped = clean(spec, found.pools, labels)
    if not labels:  # free text: the gold string is the one accepted answer, unless the data lists several
        pools = {
            name: {
                key: e if e.choices or e.answers or e.label is None else replace(e, answers=(str(e.label),))
                for key, e in pool.items()
            }
            for name, pool in pools.items()
        }
    cot = sources.read_cot(spec, data)
    never_test = {content_hash(shot.example) for shot in cot}
    train, validation, test = split_pools(spec, pools, never_test, stratify=bool(labels))
    if infer_labels or spec.labels:
        _enough(spec.name, (*train, *validation, *test), labels)
    return Task(
        **{name: getattr(spec, name) for name in SHARED},
        instruction=spec.instruction or _instruction(spec.input_name, labels),
        train=train,
        validation=validation,
        test=test[:limit],
        labels=labels,
        cot=cot,
        source=found.source,
        revision=found.revision,
        fields={"dropped": dropped, "seed": spec.seed, "description": spec.description},
    )


SHARED = tuple(
    f.name
    for f in dataclasses.fields(Task)
    if f.name in {own.name for own in dataclasses.fields(TaskSpec)} - {"instruction", "labels", "cot", "fields"}
)
"""What a task takes over from its file as it stands."""


def _instruction(input_name: str, labels: Sequence[str]) -> str:
    if not labels:
        return f"Answer the {input_name.lower()}."
    return f"Classify the {input_name.lower()} as {', '.join(labels[:-1])} or {labels[-1]}."


def _infer_labels(name: str, examples: Sequence[Example], declared: Sequence[str]) -> tuple[str, ...]:
    if declared:
        return tuple(declared)
    values = {e.label for e in examples if e.label is not None}
    if len(values) < 2:
        raise InputError(f"{name}: the label column has one value only ({', '.join(values)}); a task needs two or more")
    if len(values) > MAX_INFERRED_LABELS:
        raise InputError(
            f"{name}: the label column has {len(values)} different values, which is no label set; "
            f"name the right column, or give labels= yourself"
        )
    return tuple(sorted(values, key=lambda v: (0, float(v), v) if _is_number(v) else (1, 0.0, v)))


def _is_number(value: str) -> bool:
    return value.replace(".", "", 1).lstrip("-").isdigit() and value.isascii()


def _enough(name: str, examples: Sequence[Example], labels: Sequence[str]) -> None:
    if len(examples) < MIN_ROWS:
        raise InputError(f"{name}: {len(examples)} usable rows are too few for three splits; give {MIN_ROWS} or more")
    count = Counter(e.label for e in examples)
    rare = [f"{label} ({count[label]})" for label in labels if count[label] < MIN_ROWS_PER_LABEL]
    if rare:
        more = f" and {len(rare) - 5} more labels" if len(rare) > 5 else ""
        raise InputError(
            f"{name}: {', '.join(rare[:5])}{more} has too few rows; a label needs {MIN_ROWS_PER_LABEL}: "
            "merge or leave it out"
        )


@dataclass(frozen=True)
class TaskInfo:
    """One line of `amplify list tasks`."""

    name: str
    description: str
    available: bool

    def __str__(self) -> str:
        return f"{self.name:<50} {'ready  ' if self.available else 'no data'}  {self.description}"


def list_tasks(data: str | Path | None = None) -> list[TaskInfo]:
    """Every shipped task with its description, and whether its data lies here (nothing is downloaded)."""
    root = Path(data) if data is not None else None
    return [TaskInfo(n, s.description, sources.available(s, root)) for n, s in sorted(shipped_specs().items())]

"""From a name, a file or a datasets id to a `Task`: its rows from local files, the hub or a rule, cleaned and split."""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from amplify import resources
from amplify.errors import DataError, InputError, UnknownNameError
from amplify.tasks.formats import examples, labelled, split_of
from amplify.tasks.generated import generate
from amplify.tasks.rows import bbh_example, column, column_names, content_hash, rows
from amplify.tasks.spec import TaskSpec, read_specs, shipped_specs
from amplify.tasks.splits import clean, split_pools
from amplify.tasks.task import Task
from amplify.types import Demonstration, Example, Rationale

LABEL_FILE = "(label file)"
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
    with unswept():
        return _built(spec, data, infer_labels, limit)


@contextmanager
def unswept() -> Iterator[None]:
    """Without Python's search for cycles: rows have none, and it looks at all of them again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _built(spec: TaskSpec, data: Path | None, infer_labels: bool, limit: int | None) -> Task:
    found = read(spec, data)
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
    cot = read_cot(spec, data)
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
    """One line of `amplify list tasks`.

    Example:
        >>> [task.available for task in list_tasks() if task.name == "support_tickets"]
        [True]
    """

    name: str
    description: str
    available: bool

    def __str__(self) -> str:
        return f"{self.name:<50} {'ready  ' if self.available else 'no data'}  {self.description}"


def list_tasks(data: str | Path | None = None) -> list[TaskInfo]:
    """Every shipped task with its description, and whether its data lies here (nothing is downloaded).

    Example:
        >>> "support_tickets" in [task.name for task in list_tasks()]
        True
    """
    root = Path(data) if data is not None else None
    return [TaskInfo(n, s.description, available(s, root)) for n, s in sorted(shipped_specs().items())]


@dataclass(frozen=True)
class Found:
    """Rows by split (or "all"), and where they came from.

    Attributes:
        pools: split -> examples.
        source: file, hub id or rule.
        revision: SHA-256 of the files, or the hub revision.
        label_names: label names that a hub data set declares itself.
    """

    pools: dict[str, list[Example]]
    source: str
    revision: str = ""
    label_names: tuple[str, ...] = ()


def read(spec: TaskSpec, data: Path | None) -> Found:
    """The rows of a task: generated, else from local files, else from the hub.

    Raises:
        DataError: nowhere to be had; the message says what to put where. InputError: the rows are not as described.
    """
    if spec.generate:
        return Found(generate(spec), source=f"generated: {spec.generate.get('rule')}", revision=f"seed {spec.seed}")
    if data is not None and not data.exists():
        raise DataError(f"task {spec.name}: there is no data folder {data}")
    paths = {split: locate(spec, names, data) for split, names in spec.files.items()}
    if paths and all(paths.values()):
        return _from_files(spec, {split: path for split, path in paths.items() if path}, data)
    if spec.hub:
        return _from_hub(spec)
    raise DataError(_where_to_get(spec, data))


def _where_to_get(spec: TaskSpec, data: Path | None) -> str:
    if not spec.files:
        return f"the data set {spec.hub['path']} could not be had from the hub."
    wanted = " and ".join(" or ".join(names) for names in spec.files.values())
    root = data or resources.data_root()
    looked = f"under {root}" if root else "because neither --data nor AMPLIFY_DATA names a folder"
    hub = f" The hub has it as {spec.hub['path']}, which could not be reached." if spec.hub else ""
    get = f" {spec.get.strip()}" if spec.get else ""
    return f"task {spec.name} needs {wanted}, not found {looked}.{hub}{get}"


def locate(spec: TaskSpec, names: Sequence[str], data: Path | None) -> Path | None:
    """The first of `names` that exists.

    Looked for beside the task's YAML, then under `data` (else AMPLIFY_DATA): at the path as it stands, at its end
    (so that the data folder may be the inner one), and beside the data folder.
    """
    root = data or resources.data_root()
    for name in names:
        tails = [Path(*Path(name).parts[i:]) for i in range(len(Path(name).parts))]
        if data is not None and data.is_file():
            if data.name == tails[-1].name:
                return data
            continue
        own = Path(spec.folder) / name
        if spec.folder and os.path.isfile(own):
            inside = [Path(spec.folder).resolve(), *([root.resolve()] if root else [])]
            if not any(own.resolve().is_relative_to(folder) for folder in inside):
                raise InputError(
                    f"task {spec.name}: {own} is a link to {own.resolve()}; a task reads files below its own folder or "
                    "the data folder only"
                )
            return own
        tries = [root / tail for tail in tails] + [root.resolve().parent / name] if root else []
        for path in tries:
            if os.path.isfile(path):
                return path
    return None


def available(spec: TaskSpec, data: Path | None) -> bool:
    """Whether the data is here without a download."""
    return bool(spec.generate) or (bool(spec.files) and all(locate(spec, n, data) for n in spec.files.values()))


def _from_files(spec: TaskSpec, paths: Mapping[str, Path], data: Path | None) -> Found:
    pools: dict[str, list[Example]] = {}
    for split, path in paths.items():
        described = spec
        content = kept(spec, rows(path, spec.columns if path.suffix.lower() == ".txt" else ()), path)
        if not content:
            raise InputError(f"{path} has no rows")
        if split in spec.label_files:
            content = _with_labels(content, path, spec, spec.label_files[split], data)
            described = replace(spec, fields={**spec.fields, "label": LABEL_FILE})
        for item, name in examples(described, content, path, split):
            pools.setdefault(name, []).append(item)
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in paths.values())).hexdigest()
    return Found(pools, source=f"file: {', '.join(p.name for p in paths.values())}", revision=f"sha256:{digest}")


def kept(spec: TaskSpec, content: Iterable[dict[str, Any]], where: Path) -> list[dict[str, Any]]:
    """The rows that `where` of the task keeps."""
    wanted = {name: [str(v) for v in (vs if isinstance(vs, list) else [vs])] for name, vs in spec.where.items()}
    if not wanted:
        return list(content)
    return [row for row in content if all(str(column(row, name, str(where))) in vs for name, vs in wanted.items())]


def _with_labels(
    content: list[dict[str, Any]], path: Path, spec: TaskSpec, name: str, data: Path | None
) -> list[dict[str, Any]]:
    file = locate(spec, [name], data)
    if file is None:
        raise DataError(f"task {spec.name}: {name}, the labels of {path}, is not there")
    labels = _text(file).split()
    if len(labels) != len(content):
        raise InputError(f"{path} has {len(content)} rows but {file.name} has {len(labels)} labels")
    return [{**row, LABEL_FILE: label} for row, label in zip(content, labels, strict=True)]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path} as UTF-8 text: {error}") from error


def _from_hub(spec: TaskSpec) -> Found:
    hub = spec.hub
    if "files" in hub:
        from huggingface_hub import hf_hub_download

        paths = {}
        for split, name in hub["files"].items():
            try:
                found = hf_hub_download(hub["path"], name, repo_type="dataset", revision=hub.get("revision"))
            except Exception as error:
                raise DataError(f"{_where_to_get(spec, None)} ({type(error).__name__}: {str(error)[:200]})") from error
            paths[split] = Path(found)
        return replace(_from_files(spec, paths, None), source=f"hub: {hub['path']}")
    import datasets

    try:
        loaded = datasets.load_dataset(hub["path"], hub.get("config"), revision=hub.get("revision"))
    except Exception as error:
        raise DataError(f"{_where_to_get(spec, None)} ({type(error).__name__}: {str(error)[:200]})") from error
    fields = {**spec.fields, **hub.get("fields", {})}
    every = {name: name for name in loaded}  # where a column names the split, all rows are read
    described = {k: v for k, v in fields.items() if k != "split"}
    mapping = hub.get("splits") or (every if "split" in fields else _usual_splits(list(loaded)))
    names: tuple[str, ...] = ()
    pools: dict[str, list[Example]] = {}
    for split, theirs in mapping.items():
        if theirs not in loaded:
            raise DataError(f"task {spec.name}: {hub['path']} has no split {theirs!r}; it has {', '.join(loaded)}")
        part = loaded[theirs]
        feature = part.features.get(fields.get("label", ""))
        names = tuple(getattr(feature, "names", None) or ())
        for number, row in enumerate(part, start=1):
            if names and 0 <= row[fields["label"]] < len(names):
                row[fields["label"]] = names[row[fields["label"]]]
            where = f"{hub['path']} {theirs} {number}"
            own = split_of(fields, row, where) or split
            pools.setdefault(own, []).append(labelled(spec, row, where, described))
    revision = _commit(loaded) or str(hub.get("revision") or "main")
    return Found(pools, source=f"hub: {hub['path']}", revision=revision, label_names=names)


def _commit(loaded: Mapping[str, Any]) -> str:
    """The commit that the hub served, as the files' addresses tell it; "" for a local folder."""
    urls = [str(url) for part in loaded.values() for url in (part.info.download_checksums or {})]
    commits = {match[1] for url in urls if (match := re.search(r"@([0-9a-f]{40})/", url))}
    return commits.pop() if len(commits) == 1 else ""


def _usual_splits(there: Sequence[str]) -> dict[str, str]:
    if "test" in there and "train" in there:
        return {s: s for s in ("train", "validation", "test") if s in there}
    if "train" in there and "validation" in there:
        return {"train": "train", "test": "validation"}
    return {"all": there[0]}


_ANSWER = re.compile(r"So the answer is (.+)", re.DOTALL)


def read_cot(spec: TaskSpec, data: Path | None) -> tuple[Demonstration, ...]:
    """The published chain-of-thought exemplars of a Big-Bench-Hard task; () where their file is not here.

    The rationale is the reasoning alone: "Let's think step by step." before it and "So the answer is …" behind it
    belong to the prompt's template. The file's first lines (canary, description) are not read.
    """
    path = locate(spec, [spec.cot], data) if spec.cot else None
    if path is None:
        return ()
    shots = []
    for number, block in enumerate(_text(path).split("\n\nQ: ")[1:], start=1):
        question, _, reasoning = block.partition("\nA: Let's think step by step.")
        answer = _ANSWER.search(reasoning)
        if answer is None:
            raise DataError(f"{path}: exemplar {number} does not end in 'So the answer is …'")
        item = bbh_example(question, answer[1].rstrip().removesuffix("."), f"{path}, exemplar {number}")
        allowed = item.choices or spec.labels
        if allowed and item.label not in allowed:
            raise DataError(f"{path}: exemplar {number} answers {item.label!r}, which is none of {', '.join(allowed)}")
        if not allowed and item.label is not None:
            item = replace(item, answers=(item.label,))
        text = reasoning[: answer.start()].strip()
        shots.append(Demonstration(item, Rationale(text=text, kind="human_cot")))
    return tuple(shots)

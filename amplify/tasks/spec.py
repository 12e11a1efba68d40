"""What a task's YAML may say. Data only: unknown keys are errors."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from amplify import registry, resources
from amplify.errors import DataError, InputError
from amplify.files import from_yaml

FIELDS = ("text", "label", "id", "split", "choices", "answers", "keep")
SPLITS = ("train", "validation", "test")
HUB_KEYS = ("path", "config", "revision", "splits", "fields", "files")


@dataclass(frozen=True)
class TaskSpec:
    """One task as its YAML describes it.

    Attributes:
        name: the file's stem, or SUITE/NAME for a task of a suite file.
        description: one line for `amplify list tasks`.
        instruction, input_name, answer_prefix, labels, metric, licence, citation: see `Task`.
        label_map: value in the data -> label.
        files: split (or "all") -> paths relative to the data folder, the first that exists is read.
        label_files: split -> file with one label a line, where labels lie beside the rows.
        columns: names of the columns of a file without a header.
        format: of `amplify.tasks.formats.FORMATS`: "rows" (CSV, TSV, JSON, JSONL by their endings), "bbh" (options
            inside the text), "turns" (chats), "counterfact" or "known_facts" (PASTA's facts), "hotpotqa", "nq" or
            "miracl" (with documents), or one that is registered.
        fields: text, label, id, split, choices, answers -> column (dots reach into objects; a list of columns is
            joined for text, and is the options for choices); keep -> further columns, or "*".
        hub: path, config, revision, splits (our name -> theirs), fields (where they differ from the file's); or
            files (split -> file of that repository), read as the local files are.
        documents: total, gold_at, distractors: documents of each example; see `amplify.tasks.formats`.
        generate: rule -> its options; see `amplify.tasks.generated`.
        splits: sizes; whole numbers are counts, fractions are shares.
        seed: of the split by content.
        bad_gold: number of rows in the published data whose gold answer is none of their choices (left out).
        overlap: "refuse" a text that is in two splits, or "drop" the copy outside the test split.
        template, layout, emphasis, max_tokens: see `Task`.
        where: column -> the values of rows that are kept.
        cot: file with published chain-of-thought exemplars.
        get: where the data can be had, for the error that says it is not here.
    """

    name: str
    description: str = ""
    instruction: str = ""
    input_name: str = "Question"
    answer_prefix: str = "The answer is"
    labels: tuple[str, ...] = ()
    label_map: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    label_files: Mapping[str, str] = field(default_factory=dict)
    columns: tuple[str, ...] = ()
    format: str = "rows"
    fields: Mapping[str, Any] = field(default_factory=dict)
    hub: Mapping[str, Any] = field(default_factory=dict)
    documents: Mapping[str, Any] = field(default_factory=dict)
    generate: Mapping[str, Any] = field(default_factory=dict)
    splits: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0
    metric: str = "accuracy"
    bad_gold: int = 0
    overlap: str = "refuse"
    cot: str = ""
    template: str = ""
    layout: str = ""
    emphasis: str = ""
    max_tokens: int = 0
    where: Mapping[str, Any] = field(default_factory=dict)
    licence: str = ""
    citation: str = ""
    get: str = ""
    folder: str = ""  # where the YAML lies: its own data may lie beside it


_DEFAULTS = {f.name: f.default for f in dataclasses.fields(TaskSpec) if f.name not in ("name", "folder")}
KEYS = tuple(f.name for f in dataclasses.fields(TaskSpec) if f.name not in ("name", "folder"))


def check_keys(where: str, given: Iterable[Any], known: Iterable[str]) -> None:
    """Raise an InputError that names the nearest known key for the first unknown one."""
    known = list(known)
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            guess = f" Did you mean {near[0]!r}?" if near else ""
            raise InputError(f"{where}: unknown key {key!r}.{guess} Known keys: {', '.join(known)}.")


def read_specs(path: Path) -> dict[str, TaskSpec]:
    """The task of a YAML file, or the tasks of a suite file (`common:` and `tasks:`), by name.

    In a suite, `{task}` inside the common strings stands for the task's name.

    Raises:
        DataError: the file cannot be read. InputError: it says something a task has no place for.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not readable YAML: {error}") from error
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        raise DataError(f"cannot read the task file {path}: {getattr(error, 'strerror', None) or error}") from error
    content = from_yaml(text, str(path))
    if not isinstance(content, dict):
        raise InputError(f"{path}: a task file is a mapping of keys to values; see tasks/README.md")
    stem = path.stem.encode(errors="replace").decode()  # a file's name may be no text
    if "tasks" not in content:
        return {stem: _spec(stem, content, path)}
    check_keys(str(path), content, ("common", "tasks"))
    common, tasks = content.get("common") or {}, content["tasks"]
    if not isinstance(common, dict) or not isinstance(tasks, dict):
        raise InputError(f"{path}: common and tasks are mappings, the latter of names to what each task says itself")
    suite = {}
    for short, own in tasks.items():
        if not isinstance(own or {}, dict):
            raise InputError(f"{path}: task {short!r} is a mapping of keys to values")
        merged = {**_fill(common, str(short)), **(own or {})}
        suite[f"{stem}/{short}"] = _spec(f"{stem}/{short}", merged, path)
    return suite


def _fill(value: Any, task: str) -> Any:
    if isinstance(value, str):
        return value.replace("{task}", task)
    if isinstance(value, dict):
        return {k: _fill(v, task) for k, v in value.items()}
    return [_fill(v, task) for v in value] if isinstance(value, list) else value


def _spec(name: str, content: dict[str, Any], path: Path) -> TaskSpec:
    where = f"{path} ({name})"
    check_keys(where, content, KEYS)
    values = dict(content)
    for key, default in _DEFAULTS.items():
        value = values.get(key, default)
        if isinstance(default, str) and not isinstance(value, str):
            raise InputError(f"{where}: {key} is a text, not {value!r}; put quotes around it")
        if isinstance(default, int) and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
            raise InputError(f"{where}: {key} is a whole number from 0, not {value!r}")
    for key in ("labels", "columns"):
        items = values.get(key) or ()
        if not isinstance(items, list | tuple) or not all(isinstance(v, str) for v in items):
            raise InputError(f"{where}: {key} is a list of strings; put quotes around values such as 'Yes', 'No', '1'")
        values[key] = tuple(items)
    if len(set(values["labels"])) < len(values["labels"]):
        raise InputError(f"{where}: a label is listed twice")
    for key in ("label_map", "files", "label_files", "fields", "hub", "documents", "generate", "splits", "where"):
        if not isinstance(values.setdefault(key, {}), dict):
            raise InputError(f"{where}: {key} is a mapping")
    values["label_map"] = {str(k): str(v) for k, v in values["label_map"].items()}
    values["files"] = {k: _names(where, f"files.{k}", v) for k, v in values["files"].items()}
    for key in ("label_files", "cot"):
        held = values.get(key) or ()
        for file in held.values() if isinstance(held, dict) else [held] if held else []:
            _names(where, key, file)
    check_keys(f"{where}, files", values["files"], (*SPLITS, "all"))
    check_keys(f"{where}, splits", values["splits"], SPLITS)
    check_keys(f"{where}, hub", values["hub"], HUB_KEYS)
    kinds: dict[str, type] = dict.fromkeys(("path", "config", "revision"), str)
    for key, kind in (kinds | dict.fromkeys(("splits", "fields", "files"), dict)).items():
        if not isinstance(values["hub"].get(key) or kind(), kind):
            raise InputError(f"{where}: hub.{key} is a {'text' if kind is str else 'mapping'}")
    if values["hub"] and not values["hub"].get("path"):
        raise InputError(f"{where}: hub.path names the data set")
    for at, given in (("fields", values["fields"]), ("hub fields", values["hub"].get("fields") or {})):
        check_keys(f"{where}, {at}", given, FIELDS)
        for key, value in given.items():
            several = key in ("text", "choices", "keep") and isinstance(value, list)
            if not all(isinstance(v, str) for v in (value if several else [value])):
                raise InputError(f"{where}, {at}: {key} is the name of a column, not {value!r}")
    for key, known in (
        ("overlap", ("refuse", "drop")),
        ("layout", ("", "chat", "text")),
    ):
        if values.get(key, known[0]) not in known:
            raise InputError(f"{where}: {key} is one of {', '.join(known)}, not {values[key]!r}")
    registry.table("task_format").find(str(values.get("format", "rows")), f"({where})")
    if not (values["files"] or values["hub"] or values["generate"]):
        raise InputError(f"{where}: a task names its data: files, hub or generate")
    sizes = values["splits"].values()
    if any(not isinstance(v, int | float) or isinstance(v, bool) or not 0 <= v < math.inf for v in sizes):
        raise InputError(f"{where}: a split's size is a whole number of rows or a share below 1")
    return TaskSpec(name=name, folder=str(path.resolve().parent), **values)


def _names(where: str, key: str, value: Any) -> tuple[str, ...]:
    """One or several names of files, all of which lie below a folder."""
    names = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else ()
    if not names or not all(isinstance(name, str) and name.strip() for name in names):
        raise InputError(f"{where}: {key} is the name of a file, or a list of names")
    for name in names:
        if Path(name).is_absolute() or ".." in Path(name).parts or "\0" in name:
            raise InputError(
                f"{where}: {key} is {name!r}; a task reads files below its own folder or the data folder only, so "
                "write the path from there"
            )
    return names


@functools.cache
def _shipped(folder: Path) -> dict[str, TaskSpec]:
    specs: dict[str, TaskSpec] = {}
    for path in sorted(folder.glob("*.yaml")):
        specs.update(read_specs(path))
    return specs


def shipped_specs() -> dict[str, TaskSpec]:
    """Every task of the `tasks/` folder, by name."""
    return _shipped(resources.content("tasks"))

"""Where a task's examples come from: local files, a hub data set, or a rule."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from amplify import resources
from amplify.errors import DataError, InputError
from amplify.tasks.formats import examples
from amplify.tasks.rows import bbh_example, column, example, rows
from amplify.tasks.spec import TaskSpec
from amplify.types import Demonstration, Example, Rationale

VALIDATION_NAMES = ("validation", "valid", "val", "dev")
SPLIT_NAMES = {"train": "train", "test": "test"} | dict.fromkeys(VALIDATION_NAMES, "validation")
LABEL_FILE = "(label file)"


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
        from amplify.tasks.generated import generate

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


def labelled(spec: TaskSpec, row: Mapping[str, Any], where: str, fields: Mapping[str, Any]) -> Example:
    """The labelled example of a row; `fields` as in `TaskSpec.fields`, but for the split."""
    if spec.format == "bbh":
        question = str(column(row, fields.get("text", "input"), where))
        item = bbh_example(question, str(column(row, fields.get("label", "target"), where)), where)
    else:
        item = example(row, fields, where)
    if spec.label_map and item.label is not None and not item.choices:
        if item.label not in spec.label_map and item.label not in spec.labels:
            raise InputError(f"{where}: the label {item.label!r} is none of {', '.join(spec.label_map)}")
        item = replace(item, label=spec.label_map.get(item.label, item.label))
    if item.label is None and not item.answers:
        raise InputError(f"{where}: the label is empty; label the row or leave it out")
    return item


def split_of(fields: Mapping[str, Any], row: Mapping[str, Any], where: str) -> str:
    """The split that a row names where a column is there for it, else ""."""
    if "split" not in fields:
        return ""
    name = str(column(row, fields["split"], where)).strip().lower()
    if name not in SPLIT_NAMES:
        raise InputError(f"{where}: the split {name!r} is none of train, validation, test")
    return SPLIT_NAMES[name]


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

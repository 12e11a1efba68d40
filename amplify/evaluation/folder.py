"""The run folder: who may write in it, what it belongs to, and lines that survive a kill.

run.json        configuration, versions, seeds, template hashes, declared comparisons, items; before anything runs
programs/       each fitted program, before its first record
records.jsonl   one line per example x method x seed, in plan order, no times: equal runs give equal bytes
timing.jsonl    seconds and token counts per fit and per batch
unfinished.sqlite  what a server has answered of the batch, or of the fit, at hand; gone once the run is finished
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, TypedDict

from amplify import codec, files
from amplify.errors import DataError, RunError, WriteError
from amplify.files import Json, differences

FORMAT = 1
UNFINISHED = "unfinished.sqlite"
_MOST = 1e12  # of any number in a line; beyond it no mean or interval means anything


class _Splits(TypedDict):
    train: int
    validation: int
    test: int


class _Model(TypedDict):
    id: str


class _Task(TypedDict):
    name: str
    metric: str
    labels: list[str]
    splits: _Splits
    chance: float | None
    majority: float | None
    source: str
    revision: str
    licence: str
    citation: str


class _Method(TypedDict):
    label: str
    name: str
    seeded: bool
    options: dict[str, Any]


class _Item(TypedDict):
    id: str
    text: str
    label: str | None
    choices: list[str]
    options: list[str]
    answers: list[str]


class _Config(TypedDict):
    """What of run.json other code relies on."""

    amplify: str
    task: _Task
    model: _Model
    score: str
    mode: str
    seeds: list[int]
    limit: int | None
    batch_size: int
    methods: list[_Method]
    family: list[tuple[str, str]]
    versions: dict[str, str]
    templates: dict[str, str]
    items: list[_Item]


class _Record(TypedDict):
    """What of a line of records.jsonl other code relies on."""

    method: str
    seed: int | None
    id: str
    gold: str | None
    answer: str | None
    parsed: bool
    score: float
    metrics: dict[str, float]
    text: str
    rationale: str
    label_scores: dict[str, float | None]
    label_logprobs: dict[str, float | None]
    calls: int
    prompt_tokens: int
    completion_tokens: int


class _Message(TypedDict):
    role: str
    content: str


class _Prompt(TypedDict):
    text: str | None
    messages: list[_Message]
    prefix: str


class _Asked(_Record, total=False):
    prompt: _Prompt | None
    uncertainty: dict[str, float]


class _Program(TypedDict, total=False):
    notes: list[str]


class _Spent(TypedDict):
    method: str
    seed: int | None
    seconds: float
    calls: float
    prompt_tokens: float
    completion_tokens: float


class _Batch(_Spent):
    batch: int
    items: int


@dataclass(frozen=True, slots=True)
class Cell:
    """One method under one seed.

    Attributes:
        index: place of the method in the run.
        method: its label in records.
        seed: None where seeds make no difference.
    """

    index: int
    method: str
    seed: int | None

    @property
    def file(self) -> str:
        """Name of its program in `programs/`: readable, and unique by the method's place."""
        label = re.sub(r"[^\w.,=\[\]-]+", "_", self.method)[:80]
        return f"{self.index:02d}-{label}" + ("" if self.seed is None else f"-seed{self.seed}") + ".json"


def plain(value: Any) -> Any:
    """The value as JSON gives it back: dataclasses as objects, keys as strings, numbers that are not finite as None."""
    if is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in (sorted(value, key=str) if isinstance(value, (set, frozenset)) else value)]
    if hasattr(value, "item"):  # a numpy scalar
        return plain(value.item())
    return str(value)


def cannot_write(folder: Path, error: WriteError) -> WriteError:
    """What a full disk means for a run."""
    return WriteError(
        f"{error}. What was computed so far is kept in {files.shown(folder)}; run the same command again to go on from "
        "there"
    )


def locked(folder: Path) -> AbstractContextManager[Any]:
    """Hold the folder alone. The lock goes with the process, however it ends.

    Raises:
        RunError: another run holds it, or the folder cannot be made.
    """
    files.make_folder(folder)
    busy = f"another run is writing in {files.shown(folder)}; wait for it, or choose another folder"
    return files.lock(folder, busy)


def open_run(folder: Path, config: Json, resume: bool) -> bool:
    """Claim an empty folder for this configuration, or check that the folder already belongs to it.

    A folder that another configuration claimed is free as long as nothing was computed there (a run that failed at
    once, to be started again with the mistake mended).

    Returns:
        Whether an earlier call began this run.

    Raises:
        RunError: the folder holds another configuration (what differs is listed), something that is no run, or a
            run while `resume` is False.
    """
    path = folder / "run.json"
    names = ("programs", "records.jsonl", "timing.jsonl", UNFINISHED)
    there = [folder / name for name in names if (folder / name).exists()]
    if there and not path.exists():
        raise RunError(f"{folder} holds {', '.join(p.name for p in there)} but no run.json; choose another folder")
    computed = any(any(p.iterdir()) if p.is_dir() else p.stat().st_size for p in there)
    if not path.exists() or (not computed and differences(read_config(folder), config)):
        files.write_json(path, config)
        files.make_folder(folder / "programs")
        return False
    if not resume:
        raise RunError(f"{folder} already holds a run; choose another folder, or leave resume=True to go on with it")
    changed = differences(read_config(folder), config)
    if changed:
        listing = "\n  ".join(files.limited(changed))
        raise RunError(
            f"{folder} holds a run of another configuration; choose another folder, or repeat that run's command. "
            f"What differs:\n  {listing}"
        )
    return True


def read_config(folder: Path) -> Json:
    """The configuration in run.json.

    Raises:
        RunError: there is none, or it cannot be read by this version.
    """
    path = folder / "run.json"
    if not path.exists():
        raise RunError(f"{files.shown(folder)} is no run folder: it has no run.json")
    config = files.read_json(path, "a run", RunError)
    if config.get("format") != FORMAT:
        raise RunError(f"{path} is not a run of format {FORMAT}; evaluate again with this version of amplify")
    try:
        codec.decode(_Config, config)
        _check_plan(config)
    except DataError as error:
        raise RunError(
            f"{path} was changed, or is of an earlier version: {error}. Start the run anew in another folder"
        ) from error
    return config


def _check_plan(config: Json) -> None:
    from amplify.metrics import KINDS
    from amplify.metrics.hugging_face import PREFIX
    from amplify.metrics.kinds import HARNESS

    labels, ids = [m["label"] for m in config["methods"]], [item["id"] for item in config["items"]]
    for name, values in (("methods", labels), ("items", ids), ("seeds", config["seeds"])):
        if not values or len(set(values)) < len(values):
            raise DataError(f"{name} are none, or one stands there twice")
    if config["batch_size"] < 1:
        raise DataError(f"batch_size is {config['batch_size']}, wanted 1 or more")
    if unknown := sorted({label for pair in config["family"] for label in pair} - set(labels)):
        raise DataError(f"family compares {unknown[0]!r}, which is no method of it")
    if config["task"]["metric"] not in KINDS and not config["task"]["metric"].startswith((PREFIX, HARNESS)):
        raise DataError(f"task.metric is {config['task']['metric']!r}, which this version of amplify does not know")


def read_records(folder: Path) -> list[Json]:
    """The whole lines of records.jsonl.

    Raises:
        RunError: a line is damaged, or holds something else than a record.
    """
    return _read_rows(folder / "records.jsonl", lambda row: _Asked)


def read_timing(folder: Path) -> list[Json]:
    """The whole lines of timing.jsonl; see `read_records`."""
    return _read_rows(folder / "timing.jsonl", lambda row: _Batch if "batch" in row else _Spent)


def _read_rows(path: Path, kind: Callable[[Any], Any]) -> list[Json]:
    rows = files.read_lines(path)
    for number, row in enumerate(rows, start=1):
        try:
            codec.decode(kind(codec.decode(dict[str, Any], row)), row)
            if (size := max(map(abs, _numbers(row)), default=0)) > _MOST:
                raise DataError(f"it holds the number {size:g}")
        except DataError as error:
            raise RunError(f"line {number} of {path} was changed: {error}; delete it and all after it") from error
    return rows


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, (int, float)):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _numbers(item)


def read_program(path: Path) -> Json:
    """A program's JSON, of which only what it notes is relied on.

    Raises:
        RunError: it is damaged.
    """
    data = files.read_json(path, "a saved program", RunError)
    try:
        codec.decode(_Program, data)
    except DataError as error:
        raise RunError(f"{files.shown(path)} was changed: {error}") from error
    return data


def cells_of(config: Json) -> list[Cell]:
    """Methods x seeds in the order in which they run."""
    return [
        Cell(index, method["label"], seed)
        for index, method in enumerate(config["methods"])
        for seed in (config["seeds"] if method["seeded"] else [None])
    ]


def batches_of(config: Json) -> list[tuple[Cell, int, range]]:
    """The plan: (cell, number of the batch in the cell, places of its items). A function of the configuration only."""
    n, size = len(config["items"]), config["batch_size"]
    return [
        (cell, number, range(start, min(start + size, n)))
        for cell in cells_of(config)
        for number, start in enumerate(range(0, n, size))
    ]


def whole_batches(config: Json, rows: Sequence[Json]) -> int:
    """How many batches of the plan the rows hold, counted from the first.

    Raises:
        RunError: a row is not the one that the plan has in its place, so the file was edited.
    """
    at = 0
    for count, (cell, _, places) in enumerate(batches_of(config)):
        for place in places:
            if at == len(rows):
                return count
            expected = (cell.method, cell.seed, config["items"][place]["id"])
            found = (rows[at].get("method"), rows[at].get("seed"), rows[at].get("id"))
            if found != expected:
                raise RunError(
                    f"line {at + 1} of records.jsonl is {found}, but the plan in run.json has {expected} there. "
                    "The file was changed; delete that line and all after it, and run the same command again"
                )
            at += 1
    if at != len(rows):
        raise RunError("records.jsonl holds more lines than run.json plans; the file was changed")
    return len(batches_of(config))

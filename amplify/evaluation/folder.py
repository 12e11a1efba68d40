"""The run folder: who may write in it, what it belongs to, and lines that survive a kill.

run.json        configuration, versions, seeds, template hashes, declared comparisons, items; before anything runs
programs/       each fitted program, before its first record
records.jsonl   one line per example x method x seed, in plan order, no times: equal runs give equal bytes
timing.jsonl    seconds and token counts per fit and per batch
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amplify.errors import RunError

FORMAT = 1
Json = dict[str, Any]


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
    """The value as JSON gives it back: tuples as lists, keys as strings, numbers that are not finite as None."""
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


def differences(old: Any, new: Any, where: str = "") -> list[str]:
    """What differs between two JSON values, one line each."""
    if isinstance(old, dict) and isinstance(new, dict):
        lines = []
        for key in sorted({*old, *new}):
            path = f"{where}.{key}" if where else key
            if key not in old or key not in new:
                lines.append(f"{path}: only in {'this call' if key in new else 'the folder'}")
            else:
                lines += differences(old[key], new[key], path)
        return lines
    if _same_shape(old, new):
        pairs = enumerate(zip(old, new, strict=True))
        return [line for i, (a, b) in pairs for line in differences(a, b, f"{where}[{i}]")]
    if old == new:
        return []
    shown = [json.dumps(value, ensure_ascii=False) for value in (old, new)]
    if max(map(len, shown)) > 120:
        return [f"{where}: differs"]
    return [f"{where}: {shown[0]} in the folder, {shown[1]} in this call"]


def _same_shape(old: Any, new: Any) -> bool:
    """Whether both are equally long lists of objects, which are then compared one by one."""
    lists = isinstance(old, list) and isinstance(new, list) and len(old) == len(new)
    return lists and all(isinstance(item, dict) for item in (*old, *new))


def write_whole(path: Path, text: str) -> None:
    """Write a file beside its place and move it there: it is whole or absent."""
    draft = path.with_name(path.name + ".tmp")
    with draft.open("w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def read_lines(path: Path) -> list[Json]:
    """The whole lines of a JSONL file; what a kill tore off at its end is left out. [] where there is no file.

    Raises:
        RunError: a line that is not the last one is damaged.
    """
    if not path.exists():
        return []
    rows = []
    lines = path.read_bytes().split(b"\n")[:-1]
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        elif number < len(lines):
            raise RunError(f"line {number} of {path} is damaged; delete it and all after it to go on from there")
    return rows


def dump(row: Json) -> bytes:
    """One line of a JSONL file. ASCII, so that any text (lone surrogates, line separators) keeps to its line."""
    return (json.dumps(row, ensure_ascii=True, allow_nan=False) + "\n").encode("ascii")


def heal(path: Path, keep: Sequence[Json]) -> None:
    """Cut a JSONL file down to the rows to keep, which are its first ones."""
    if not path.exists():
        return
    content = b"".join(map(dump, keep))
    if path.read_bytes() == content:
        return
    draft = path.with_name(path.name + ".tmp")
    draft.write_bytes(content)
    draft.replace(path)


def append(path: Path, rows: Sequence[Json]) -> None:
    """Append rows in one write and force them to disk; where that fails, the file is as it was before.

    Raises:
        RunError: the disk is full or the folder cannot be written.
    """
    data = b"".join(map(dump, rows))
    try:
        with path.open("ab", buffering=0) as file:
            before = file.tell()
            try:
                view = memoryview(data)
                while view:
                    view = view[file.write(view) :]
                os.fsync(file.fileno())
            except OSError:
                file.truncate(before)
                raise
    except OSError as error:
        raise cannot_write(path.parent, error) from error


def cannot_write(folder: Path, error: OSError) -> RunError:
    """The error for a full disk or a folder without permission."""
    reason = error.strerror or error
    return RunError(
        f"cannot write in {folder}: {reason}. What was computed so far is kept; make room (or give permission) and "
        "run the same command again to go on from there"
    )


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder alone. The lock goes with the process, however it ends.

    Raises:
        RunError: another run holds it, or the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("a")
    except OSError as error:
        raise cannot_write(folder, error) from error
    with file:
        if not _lock(file.fileno()):
            raise RunError(f"another run is writing in {folder}; wait for it, or choose another folder")
        yield


def _lock(descriptor: int) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unreachable,unused-ignore]
        except OSError:
            return False
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


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
    there = [folder / name for name in ("programs", "records.jsonl", "timing.jsonl") if (folder / name).exists()]
    if there and not path.exists():
        raise RunError(f"{folder} holds {', '.join(p.name for p in there)} but no run.json; choose another folder")
    computed = any(any(p.iterdir()) if p.is_dir() else p.stat().st_size for p in there)
    if not path.exists() or (not computed and differences(read_config(folder), config)):
        try:
            write_whole(path, json.dumps(config, indent=1, ensure_ascii=True) + "\n")
            (folder / "programs").mkdir(exist_ok=True)
        except OSError as error:
            raise cannot_write(folder, error) from error
        return False
    if not resume:
        raise RunError(f"{folder} already holds a run; choose another folder, or leave resume=True to go on with it")
    changed = differences(read_config(folder), config)
    if changed:
        more = [f"and {len(changed) - 8} more"] if len(changed) > 8 else []
        listing = "\n  ".join([*changed[:8], *more])
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
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"{folder} is no run folder: it has no run.json") from None
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read: {error}") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise RunError(f"{path} is not a run of format {FORMAT}; evaluate again with this version of amplify")
    return config


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

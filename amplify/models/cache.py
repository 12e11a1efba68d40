"""Replies of models in an SQLite file, under a hash of all that they depend on. Prompts are not in it, answers are."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from amplify import codec, files
from amplify.errors import DataError, InputError, RunError
from amplify.types import Completion, TokenLogProbs

Floats = npt.NDArray[np.float64]
FORMAT = 1
FILE = "replies.sqlite"
MOST_BYTES = 2 * 2**30
ROUNDING = 1e-3  # how far above 0 a log-probability may lie in half precision
_OURS = 0x616D706C  # SQLite's application_id: "ampl"
_MAGIC = b"SQLite format 3\0"
_PATIENCE = 60  # seconds to wait for another process that writes
_ROWS = 500  # keys of a query
_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_UNREADABLE = (
    sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH,
    sqlite3.SQLITE_FORMAT, sqlite3.SQLITE_NOTADB,
)  # fmt: skip
_TABLES = (
    "CREATE TABLE replies (key TEXT UNIQUE, reply TEXT NOT NULL, sum TEXT NOT NULL)",
    # beside the replies, which alone are counted; a file that was made before has none yet
    "CREATE TABLE numbers (key TEXT UNIQUE, row BLOB NOT NULL, sum TEXT NOT NULL)",
)
_CANNOT = (
    sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_PERM,
)  # fmt: skip


@dataclass(frozen=True)
class Reply:
    """What a model said to a request, and what that took.

    Attributes:
        answers: completions, `Sampling.n` of them.
        logprobs: of a text, or of the wanted nodes of a tree.
        prompt_tokens: of the prompt.
        tokens: of prompt and answer; of a prompt that was scored with several texts together, once for them all.
        seconds, forwarded: its share of the call that it came from, see `Usage.forwarded_tokens`.
    """

    answers: tuple[Completion, ...] = ()
    logprobs: tuple[TokenLogProbs, ...] = ()
    prompt_tokens: int = 0
    tokens: float = 0.0
    seconds: float = 0.0
    forwarded: float = 0.0

    @property
    def sound(self) -> bool:
        """Whether its log-probabilities can be some: what a broken server said is not kept."""
        said = [*self.logprobs, *(c.logprobs for c in self.answers if c.logprobs)]
        return all(-math.inf < x <= ROUNDING for found in said for x in found.logprobs)

    @property
    def parts(self) -> tuple[Any, ...]:
        """Its completions, or its log-probabilities."""
        return self.answers or self.logprobs


class Cache:
    """Replies in one SQLite file, for several threads and processes at once.

    What a killed process had written is there; a reply whose bytes changed is refused, never given. Beyond its size
    the oldest replies go.

    Args:
        place: a folder, made where it is not there, or a file that ends in .sqlite. Only its owner can read it.
        most_bytes: of the file.
        shared: False where only one process opens it, which makes a smaller file.

    Attributes:
        path: of the file.
        asked, found: requests since it was opened that went to a model, and that did not have to.

    Raises:
        RunError: the file is damaged, or none of these. WriteError: it cannot be written.

    Example:
        >>> from amplify.models import Cache, cached, load_model
        >>> with Cache("kept") as cache:
        ...     model = cached(load_model("scripted:say=yes"), cache)
        ...     answers = [model.generate([amplify.Prompt(text="Is it?")], amplify.Sampling())[0].text for _ in "12"]
        ...     answers, cache.asked, cache.found
        (['yes', 'yes'], 1, 1)
    """

    def __init__(self, place: str | Path, *, most_bytes: int = MOST_BYTES, shared: bool = True) -> None:
        if most_bytes < 2**16:
            raise InputError(f"most_bytes is {2**16} or more, not {most_bytes}")
        place = Path(os.path.expanduser(place))
        if place.suffix != ".sqlite":
            if os.path.exists(place) and not place.is_dir():
                raise InputError(
                    f"{files.shown(place)} is a file: a cache is a folder (or a file that ends in .sqlite)"
                )
            place = place / FILE
        self.path, self.most_bytes = place, most_bytes
        self._lock = threading.RLock()
        self.asked = self.found = 0
        self._base: Any = None
        files.make_folder(place.parent)
        with self._told():
            with open(os.open(place, os.O_RDWR | os.O_CREAT, 0o600), "rb") as file:
                begins = file.read(len(_MAGIC))
            if begins not in (b"", _MAGIC):  # SQLite would write over a short one
                raise self.damaged("it is no database")
            self._base = sqlite3.connect(place, timeout=_PATIENCE, isolation_level=None, check_same_thread=False)
            self._begin("wal" if shared else "truncate")

    def _begin(self, mode: str) -> None:
        run = self._base.execute
        # what is there comes first: another process may be making the file, all of it at once
        held = {sql for [sql] in run("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL")}
        [ours], [version] = run("PRAGMA application_id").fetchone(), run("PRAGMA user_version").fetchone()
        # a trigger or a view of somebody else's may run for ever
        if held and ((ours, version) != (_OURS, FORMAT) or not held <= set(_TABLES)):
            raise RunError(
                f"{files.shown(self.path)} is no cache of this version of amplify: name another place, or delete it"
            )
        run("PRAGMA auto_vacuum=INCREMENTAL")
        if run("PRAGMA journal_mode").fetchone() != (mode,):
            run(f"PRAGMA journal_mode={mode}")
        run("PRAGMA synchronous=NORMAL")  # a kill loses nothing, a power cut the last replies at most
        if held != set(_TABLES):
            run("BEGIN IMMEDIATE")
            for table in _TABLES:
                run(table.replace("TABLE", "TABLE IF NOT EXISTS", 1))
            run(f"PRAGMA application_id={_OURS}")
            run(f"PRAGMA user_version={FORMAT}")
            run("COMMIT")

    @contextmanager
    def _told(self) -> Iterator[None]:
        """One thread at a time, and SQLite's errors as what a user can do about them."""
        with self._lock:
            try:
                yield
            except sqlite3.Error as error:
                code = getattr(error, "sqlite_errorcode", 0) & 0xFF
                if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                    raise RunError(f"another process keeps {files.shown(self.path)} busy; try again") from error
                if code in _CANNOT:
                    raise files.cannot_write(self.path, error) from error
                if code in _UNREADABLE:
                    raise self.damaged(error) from error
                raise RunError(f"{files.shown(self.path)} cannot be used ({str(error).rstrip('.')})") from error
            except OSError as error:
                raise files.cannot_write(self.path, error) from error
            finally:  # also after Ctrl-C
                with contextlib.suppress(sqlite3.Error):
                    if self._base is not None and self._base.in_transaction:
                        self._base.execute("ROLLBACK")

    def damaged(self, why: object) -> RunError:
        """The error for a file that cannot be believed."""
        return RunError(f"{files.shown(self.path)} is damaged ({why}): delete it; what it held will be asked again")

    def _selected(self, what: str, keys: Sequence[str]) -> list[tuple[str, Any, str]]:
        """Key, content and checksum of the rows that there are, a few hundred keys at a time."""
        rows: list[tuple[str, Any, str]] = []
        with self._told():
            for at in range(0, len(keys), _ROWS):
                part = keys[at : at + _ROWS]
                rows += self._base.execute(f"SELECT {what} WHERE key IN ({','.join('?' * len(part))})", part)
        return rows

    def read(self, keys: Sequence[str]) -> dict[str, Reply]:
        """The replies that there are, by their keys.

        Raises:
            RunError: the file, or one of them, was damaged.
        """
        different = list(dict.fromkeys(keys))
        found = {}
        for key, text, told in self._selected("key, reply, sum FROM replies", different):
            if _checksum(key, text) != told:
                raise self.damaged("a reply was changed")
            try:
                found[key] = codec.decode(Reply, json.loads(text))
            except (ValueError, DataError, RecursionError) as error:
                raise self.damaged(error) from error
            if not found[key].sound:
                raise self.damaged("a reply has log-probabilities that are none")
        return {key: found[key] for key in different if key in found}

    def write(self, replies: Mapping[str, Reply]) -> None:
        """Keep replies. One that another process has kept meanwhile stays.

        Raises:
            WriteError: the disk is full, or the file cannot be written; what was kept before is whole.
        """
        if not replies:
            return
        texts = {key: json.dumps(codec.encode(reply)) for key, reply in replies.items()}
        with self._told():
            self._base.execute("BEGIN IMMEDIATE")
            self._base.executemany(
                "INSERT OR IGNORE INTO replies VALUES (?, ?, ?)",
                [(key, text, _checksum(key, text)) for key, text in texts.items()],
            )
            self._base.execute("COMMIT")
            self._shrink()

    def numbers(self, keys: Sequence[str]) -> dict[str, Floats]:
        """The rows of numbers that there are, by their keys.

        Raises:
            RunError: the file, or one of them, was damaged.
        """
        rows = self._selected("key, row, sum FROM numbers", list(dict.fromkeys(keys)))
        if any(type(row) is not bytes or _checksum(key, row.hex()) != told or len(row) % 8 for key, row, told in rows):
            raise self.damaged("a row of numbers was changed")
        return {key: np.frombuffer(row, np.float64).copy() for key, row, _ in rows}

    def write_numbers(self, rows: Mapping[str, Floats]) -> None:
        """Keep rows of numbers, [any] each.

        Raises:
            WriteError: see `write`.
        """
        raw = {key: np.asarray(row, np.float64).tobytes() for key, row in rows.items()}
        with self._told():
            self._base.execute("BEGIN IMMEDIATE")
            self._base.executemany(
                "INSERT OR IGNORE INTO numbers VALUES (?, ?, ?)",
                [(key, row, _checksum(key, row.hex())) for key, row in raw.items()],
            )
            self._base.execute("COMMIT")
            self._shrink()

    def _shrink(self) -> None:
        """Let the oldest go, an eighth of a table at a time, while the file is too large: numbers before replies."""
        for table in ("numbers", "replies"):
            oldest = f"DELETE FROM {table} WHERE rowid IN (SELECT rowid FROM {table} ORDER BY rowid LIMIT ?)"
            while self._size() > self.most_bytes and (count := self._count(table)):
                self._base.execute(oldest, (count // 8 + 1,))
                self._base.execute("PRAGMA incremental_vacuum").fetchall()

    def _count(self, table: str) -> int:
        return int(self._base.execute(f"SELECT count(*) FROM {table}").fetchone()[0])

    def _size(self) -> int:
        names = ("page_count", "freelist_count", "page_size")
        pages, free, size = (self._base.execute(f"PRAGMA {name}").fetchone()[0] for name in names)
        return int((pages - free) * size)

    def count(self, *, fresh: bool) -> None:
        """A request was answered, by a model or from here."""
        with self._lock:
            self.asked, self.found = self.asked + fresh, self.found + (not fresh)

    def __bool__(self) -> bool:  # also without replies
        return True

    def __len__(self) -> int:
        with self._told():
            return self._count("replies")

    def clear(self) -> None:
        """Forget everything."""
        with self._told():
            self._base.execute("DELETE FROM replies")
            self._base.execute("DELETE FROM numbers")

    def remove(self) -> None:
        """Close and delete the file."""
        self.close()
        for end in ("", "-wal", "-shm", "-journal"):
            self.path.with_name(self.path.name + end).unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file. Calling it twice is fine."""
        with self._lock:
            self._base.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


_SMALL: ContextVar[Cache | None] = ContextVar("cache of small models", default=None)


@contextmanager
def keeping_numbers(cache: Cache) -> Iterator[None]:
    """What encoders and proxies compute in this block is kept with the replies, and not computed again."""
    token = _SMALL.set(cache)
    try:
        yield
    finally:
        _SMALL.reset(token)


def kept_numbers(
    of: Sequence[str], asked: Sequence[str], compute: Callable[[list[int]], Sequence[Any]]
) -> list[Floats]:
    """Rows of numbers, those that `keeping_numbers` has and the others computed together.

    Args:
        of: what computes them, with its versions.
        asked: of each row, what it is computed from.
        compute: places in `asked` -> their rows.
    """
    cache = _SMALL.get()
    if cache is None:
        return list(compute(list(range(len(asked)))))
    keys = [files.digest([*of, one]) for one in asked]
    found = cache.numbers(keys)
    new = [i for i, key in enumerate(keys) if key not in found]
    if new:
        made = dict(zip((keys[i] for i in new), compute(new), strict=True))
        cache.write_numbers(made)
        found |= made
    return [found[key] for key in keys]


def _checksum(key: str, text: str) -> str:
    return hashlib.blake2b(f"{key}{text}".encode(), digest_size=8).hexdigest()

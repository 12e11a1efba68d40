"""The one way in which files are written and read: whole ones are whole or absent, journals only ever grow.

A disk that is full or read-only ends in one `WriteError` with the path; what stood there before is untouched. A journal
is a file of JSON lines. A kill can tear off its last line, which is then cut away; nothing else in it is ever changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from io import BytesIO
from pathlib import Path
from typing import Any

import yaml

from amplify import codec
from amplify.errors import AmplifyError, DataError, InputError, RunError, WriteError

Json = dict[str, Any]
MOST_BYTES = 2**30  # of a JSON file that is read at once
_PATIENCE = 60  # seconds to wait for another process that appends a line


def write(path: str | Path, content: str | bytes) -> None:
    """Write a file beside its place, force it to disk and move it there: it is whole or absent.

    Text is UTF-8; a lone surrogate is written as its escape, which JSON reads back as what it was. A device or a pipe
    is written to as it is.

    Raises:
        WriteError: the disk is full, the folder is not there, or permission is missing; an earlier file is untouched.
    """
    data = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    try:
        place = Path(os.path.realpath(path))  # what a link points to is replaced, not the link
        if place.exists() and not place.is_file():
            place.write_bytes(data)
            return
        with draft(place) as beside:
            with beside.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if place.exists():
                beside.chmod(place.stat().st_mode & 0o7777)
            beside.replace(place)
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        raise cannot_write(path, error) from error


@contextmanager
def draft(place: Path, *, folder: bool = False) -> Iterator[Path]:
    """A new file (or folder) beside a place, to be filled and moved there; what is not moved goes with the block.

    It is held as long as it is in work, so that drafts of this place that a kill left behind can be told, and removed.

    Raises:
        OSError: it cannot be made.
    """
    begins = f".{hashlib.sha256(os.fsencode(place.name)).hexdigest()[:16]}."  # of a length that any place's name allows
    for left in place.parent.glob(f"{begins}*.tmp"):
        if (held := _hold(left, wait=False)) is not None:
            _remove(left)
            os.close(held)
    made = place.with_name(f"{begins}{secrets.token_hex(8)}.tmp")
    held = None
    while held is None:  # once, unless another process takes it for one that was left before it is held
        made.mkdir(exist_ok=True) if folder else made.touch()
        held = _hold(made, wait=True)
    try:
        yield made
    finally:
        _remove(made)
        if held >= 0:
            os.close(held)


def _hold(path: Path, *, wait: bool) -> int | None:
    """Lock a file or folder until the descriptor returned is closed; None where it is another's, or gone."""
    try:
        import fcntl
    except ImportError:  # Windows: nothing can be told to be left behind
        return -1 if wait else None
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        if wait and not isinstance(error, FileNotFoundError):
            raise
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        free = path.exists()
    except OSError:  # another's; or the file system knows no locks: then nothing can be told to be left behind
        free = wait
    if free:
        return descriptor
    os.close(descriptor)
    return None


def _remove(path: Path) -> None:
    """Remove a file or a folder, where it is still there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_json(path: str | Path, value: Any) -> None:
    """Write a JSON file; see `write`.

    Raises:
        WriteError: see `write`.
        ValueError: a number that JSON does not have.
    """
    write(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def make_folder(path: str | Path) -> Path:
    """A folder, made with those above it where it is not there.

    Raises:
        WriteError: it cannot be made.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise cannot_write(path, error) from error
    return Path(path)


def cannot_write(path: str | Path, error: Exception) -> WriteError:
    """The error for a full disk, a missing folder or a missing permission."""
    reason = getattr(error, "strerror", None) or error
    return WriteError(f"cannot write {shown(path)}: {reason}. Make room, give permission, or choose another place")


def shown(path: str | Path) -> str:
    """A path for messages; bytes that are no UTF-8 are written as escapes, so that any terminal prints it."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def read_json(path: str | Path, what: str, error: type[AmplifyError] = DataError) -> Json:
    """The object that a JSON file holds.

    Args:
        path: of the file.
        what: what it is to be, for messages, e.g. "a saved program".
        error: raised where it is none.

    Raises:
        AmplifyError: of the kind given: no such file, not UTF-8, not JSON, no object, too large or too deep.
    """
    try:
        with Path(path).open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as problem:
        raise error(f"{shown(path)} cannot be read: {getattr(problem, 'strerror', None) or problem}") from problem
    try:
        if len(content) > MOST_BYTES:
            raise DataError(f"it has more than {MOST_BYTES:,} bytes")
        data = codec.parse(content)
        if not isinstance(data, dict):
            raise DataError(f"it holds {codec.named(data)}, not an object")
    except DataError as problem:
        raise error(f"{shown(path)} is not {what}: {problem}") from problem
    return data


def lock(path: str | Path, busy: str, patience: float = 0) -> AbstractContextManager[Any]:
    """Hold a file or folder alone, by a hidden file beside or in it. The lock goes with the process, however it ends.

    Args:
        path: what is to be held.
        busy: the message where another process holds it.
        patience: seconds to wait for that process.

    Raises:
        RunError: another process holds it. WriteError: the hidden file cannot be made.
    """

    @contextmanager
    def held() -> Iterator[None]:
        from filelock import FileLock, Timeout

        place = Path(path)
        file = place / ".lock" if place.is_dir() else place.with_name(f".{place.name}.lock")
        guard = FileLock(file, timeout=patience)
        try:
            guard.acquire()
        except Timeout as error:
            raise RunError(busy) from error
        except (OSError, ValueError, NotImplementedError) as error:
            raise cannot_write(path, error) from error
        try:
            yield
        finally:
            guard.release()

    return held()


def digest(value: Any) -> str:
    """SHA-256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def dump(row: Any) -> bytes:
    """One line of a journal. ASCII, so that any text (lone surrogates, line separators) keeps to its line."""
    return (json.dumps(row, ensure_ascii=True, allow_nan=False) + "\n").encode("ascii")


def read_lines(path: str | Path, damaged: str = "delete it and all after it to go on from there") -> list[Any]:
    """The whole lines of a journal; what a kill tore off at its end is left out. [] where there is no file.

    Args:
        path: of the file, which is only read.
        damaged: what to do about a line that is no JSON, for the message.

    Raises:
        RunError: a line that is not the last one is damaged, or the file cannot be read.
    """
    return [row for row, _ in each_line(path, damaged)]


def each_line(
    path: str | Path, damaged: str = "delete it and all after it to go on from there"
) -> Iterator[tuple[Any, int]]:
    """As `read_lines`, one after the other: (value, where its line ends in the file)."""
    path = Path(path)
    try:
        with path.open("rb") if path.exists() else BytesIO() as file:
            end = number = 0
            line = file.readline()
            while line.endswith(b"\n"):
                following = file.readline()
                number, end = number + 1, end + len(line)
                try:
                    row = codec.parse(line[:-1])
                except DataError as error:
                    if not following.endswith(b"\n"):
                        return
                    raise RunError(f"line {number} of {shown(path)} is damaged; {damaged}") from error
                yield row, end
                line = following
    except (OSError, ValueError) as error:
        raise RunError(f"{shown(path)} cannot be read: {getattr(error, 'strerror', None) or error}") from error


class Journal:
    """JSON lines in a file: read when it is opened, healed, and from then on only appended to.

    Args:
        path: of the file. It is begun, with its header, where it is not there.
        header: what the rows depend on; a file that begins with another one is refused. None for a file without one.
        what: the name of what it holds, for messages, e.g. "the cache of this call".
        again: how to start anew, for messages.
        locked: whether other processes may write to the same file; False where the caller holds its folder.
        keep: what is remembered of each row that was there, given it and where its line begins; None: the row.

    Attributes:
        rows: those that were there when it was opened, without the header.

    Raises:
        RunError: the header differs (it is said in what), or a line in the middle is damaged.
        WriteError: it cannot be written.
    """

    def __init__(
        self,
        path: str | Path,
        header: Mapping[str, Any] | None = None,
        *,
        what: str = "this journal",
        again: str = "name another file, or delete it",
        locked: bool = True,
        keep: Callable[[Any, int], Any] | None = None,
    ) -> None:
        self.path, self.what, self.again, self._locked = Path(path), what, again, locked
        self._first = None if header is None else codec.encode(header)
        if locked or header is not None:
            make_folder(self.path.parent)
        with self._alone():
            whole_header = self._check_header()
            try:
                self.rows, end = [], 0
                for row, after in each_line(self.path, self.again):
                    header_line = whole_header and not end
                    self.rows += [] if header_line else [row if keep is None else keep(row, end)]
                    end = after
            except RunError as error:
                raise RunError(f"{shown(self.path)} cannot be {self.what}: {error}") from error
            self._cut(end)
            if not whole_header and self._first is not None:
                self._add([self._first])

    def _check_header(self) -> bool:
        """Whether the file has its header. What is none of ours is refused before anything in it is touched."""
        if self._first is None:
            return False
        try:
            with self.path.open("rb") as file:
                begun = file.readline(codec.MOST_LINE)
        except FileNotFoundError:
            return False
        except (OSError, ValueError) as error:
            raise cannot_write(self.path, error) from error
        if not begun.endswith(b"\n") and dump(self._first).startswith(begun):
            return False  # a kill while it was written
        try:
            found = codec.parse(begun)
        except DataError:
            found = None
        if not begun.endswith(b"\n") or not isinstance(found, dict):
            raise RunError(f"{shown(self.path)} is not {self.what}; {self.again}")
        if found != self._first:
            listing = "\n  ".join(limited(differences(found, self._first, there="in the file")))
            raise RunError(f"{shown(self.path)} is not {self.what}; {self.again}. What differs:\n  {listing}")
        return True

    def _alone(self) -> AbstractContextManager[Any]:
        if not self._locked:
            return nullcontext()
        return lock(self.path, f"another process keeps {shown(self.path)} busy; try again", _PATIENCE)

    def cut(self, count: int) -> None:
        """Leave the first `count` rows of those that were there, and cut the file behind them."""
        if count >= len(self.rows):
            return
        with self._alone():
            with self.path.open("rb") as file:
                end = sum(len(file.readline()) for _ in range(count + (self._first is not None)))
            self._cut(end)
        self.rows = self.rows[:count]

    def _cut(self, end: int) -> None:
        try:
            if self.path.exists() and self.path.stat().st_size > end:
                os.truncate(self.path, end)
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def append(self, rows: Sequence[Any]) -> int:
        """Append rows in one write and force them to disk; where that fails, the file is as it was before.

        Returns:
            Where the first of them begins in the file.

        Raises:
            WriteError: the disk is full or the file cannot be written.
        """
        with self._alone():
            return self._add(rows)

    def _add(self, rows: Sequence[Any]) -> int:
        data = b"".join(map(dump, rows))
        try:
            with self.path.open("ab", buffering=0) as file:
                before = file.tell()
                try:
                    view = memoryview(data)
                    while view:
                        view = view[file.write(view) :]
                    os.fsync(file.fileno())
                except BaseException:
                    file.truncate(before)
                    raise
        except OSError as error:
            raise cannot_write(self.path, error) from error
        return before


def limited(lines: Sequence[str], most: int = 8) -> list[str]:
    """The first lines, and how many more there are."""
    return [*lines[:most], *([f"and {len(lines) - most} more"] if len(lines) > most else [])]


def differences(old: Any, new: Any, where: str = "", there: str = "in the folder") -> list[str]:
    """What differs between two JSON values, one line each.

    Args:
        old: what is on disk.
        new: what this call has.
        where: the place of both in what they are part of.
        there: where the old one stands, for the lines.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        lines = []
        for key in sorted({*old, *new}):
            path = f"{where}.{key}" if where else key
            if key not in old or key not in new:
                lines.append(f"{path}: only {'in this call' if key in new else there}")
            else:
                lines += differences(old[key], new[key], path, there)
        return lines
    if _same_shape(old, new):
        pairs = enumerate(zip(old, new, strict=True))
        return [line for i, (a, b) in pairs for line in differences(a, b, f"{where}[{i}]", there)]
    if old == new:
        return []
    texts = [json.dumps(value, ensure_ascii=False) for value in (old, new)]
    if max(map(len, texts)) > 120:
        return [f"{where}: differs"]
    return [f"{where}: {texts[0]} {there}, {texts[1]} in this call"]


def _same_shape(old: Any, new: Any) -> bool:
    """Whether both are equally long lists of objects, which are then compared one by one."""
    lists = isinstance(old, list) and isinstance(new, list) and len(old) == len(new)
    return lists and all(isinstance(item, dict) for item in (*old, *new))


NODES = 200_000  # values in a YAML file, each alias counted with all that it stands for


def from_yaml(text: str, where: str) -> Any:
    """The value of a YAML text.

    Args:
        text: the YAML.
        where: what it is, for errors, e.g. the file.

    Raises:
        InputError: not YAML, aliases that hold themselves or stand for more than `NODES` values, too many levels, or
            a value that cannot be (a date without a day, half a character).
    """
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _expanded(node) > NODES:
            raise InputError(f"its aliases (*name) stand for more than {NODES:,} values")
        value = loader.construct_document(node)
    except RecursionError:
        raise InputError(f"{where}: its values hold one another too deeply") from None
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, ArithmeticError) as error:
        problem, mark = getattr(error, "problem", None), getattr(error, "problem_mark", None)
        said = f"{problem or error}" + (f", line {mark.line + 1}, column {mark.column + 1}" if mark else "")
        raise InputError(f"{where} is not readable YAML: {' '.join(said.split())}") from error
    return value


def _expanded(root: yaml.Node) -> int:
    """Nodes of a document with every alias written out.

    Raises:
        InputError: an alias inside of what it stands for, or half a character.
    """
    sizes: dict[int, int] = {}  # 0 while a node is open

    def size(node: yaml.Node) -> int:
        if id(node) in sizes:
            if not sizes[id(node)]:
                raise InputError(f"the alias in line {node.start_mark.line + 1} stands for what it is part of")
            return sizes[id(node)]
        sizes[id(node)] = 0
        children: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            children = [child for pair in node.value for child in pair]
        elif isinstance(node, yaml.SequenceNode):
            children = node.value
        elif re.search("[\ud800-\udfff]", node.value):
            raise InputError(f"line {node.start_mark.line + 1} holds half a character (an unpaired surrogate)")
        sizes[id(node)] = 1 + sum(size(child) for child in children)
        return sizes[id(node)]

    return size(root)


def from_json(text: str, where: str) -> Any:
    """The value of a JSON text.

    Args:
        text: the JSON.
        where: what it is, for errors, e.g. the file and line.

    Raises:
        InputError: not JSON, too many levels, or half a character.
    """
    try:
        value = json.loads(text)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        around = error.object[max(0, error.start - 20) : error.start + 20].encode(errors="replace").decode()
        raise InputError(f"{where} holds half a character (an unpaired surrogate), near {around!r}") from None
    except RecursionError:
        raise InputError(f"{where}: its values hold one another too deeply") from None
    except ValueError as error:
        raise InputError(f"{where} is not JSON: {error}") from error
    return value

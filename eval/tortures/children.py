"""Commands in children that can be killed, limited and watched, forked from a process that has imported amplify."""

from __future__ import annotations

import contextlib
import ctypes
import io
import multiprocessing
import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

CHANGES = ("replace", "rename", "unlink", "remove", "truncate", "ftruncate", "fsync", "mkdir", "rmdir", "link", "write")
SLOW = 600.0
"""Seconds after which a child hangs, whatever it does."""


@dataclass(frozen=True)
class Ended:
    """How a child ended.

    Attributes:
        status: its exit status, negative for the signal that killed it.
        out, err: what it wrote, as bytes.
        seconds: of the processor, its own and the system's; 0 where it was killed.
        peak: bytes of resident memory at most, beyond what it began with; 0 where it was killed.
        points: the moments at which it changed a file, as (kind, path below its folder); [] where it was killed.
        late: it was killed for taking longer than it may.
    """

    status: int
    out: bytes
    err: bytes
    seconds: float = 0.0
    peak: int = 0
    points: list[tuple[str, str]] = field(default_factory=list)
    late: bool = False

    @property
    def one_error(self) -> bool:
        """Whether it ended as a wrong input or a failing server should end it: status 2, and no traceback."""
        return self.status == 2 and b"Traceback" not in self.err and bool(self.err.strip())

    @property
    def last(self) -> str:
        """The last line that it said."""
        lines = (self.err or self.out).decode("utf-8", "replace").strip().splitlines()
        return lines[-1][:300] if lines else ""


@dataclass
class Points:
    """The moments just before a process changes a file below a folder. It can end itself at one of them.

    Attributes:
        root: the folder.
        at: number of the moment, from 1, at which the process is killed; 0 for never.
        torn: a write at that moment is half done first.
        seen: those reached so far.
    """

    root: str
    at: int = 0
    torn: bool = False
    seen: list[tuple[str, str]] = field(default_factory=list)

    def __call__(self, kind: str, path: Any) -> bool:
        """Count a moment; True where a write is to be torn before the process ends."""
        name = self.below(path)
        if name is None:
            return False
        self.seen.append((kind, name))
        if len(self.seen) == self.at:
            if self.torn and kind == "write":
                return True
            end_now()
        return False

    def below(self, path: Any) -> str | None:
        """The path below the folder; None where it is somewhere else."""
        try:
            name = os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else os.path.abspath(os.fsdecode(path))
        except (OSError, TypeError):
            return None
        return os.path.relpath(name, self.root) if name.startswith(self.root + os.sep) else None

    def watch(self) -> None:
        """Patch what changes files in this process. Libraries in C or Rust that write by themselves are not seen."""
        for name in CHANGES:
            setattr(os, name, self._around(name, getattr(os, name)))
        plain = io.open
        io.open = partial(self._open, plain)  # type: ignore[assignment]
        import builtins

        builtins.open = io.open

    def _around(self, name: str, change: Callable[..., Any]) -> Callable[..., Any]:
        def changed(path: Any, *args: Any, **named: Any) -> Any:
            folder = named.get("dir_fd")
            inside = folder is not None  # as shutil.rmtree names files
            where = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), os.fsdecode(path)) if inside else path
            if self(name, where) and name == "write":
                change(path, args[0][: len(args[0]) // 2])
                end_now()
            return change(path, *args, **named)

        return changed

    def _open(
        self,
        plain: Callable[..., Any],
        file: Any,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        closefd: bool = True,
        opener: Any = None,
    ) -> Any:
        if not set(mode) & set("wax+") or self.below(file) is None:
            return plain(file, mode, buffering, encoding, errors, newline, closefd, opener)
        self("open", file)
        raw = Watched(file, mode.replace("b", "").replace("t", ""), closefd, opener)
        raw.points = self
        if buffering == 0:
            return raw
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        if "b" in mode:
            return buffered
        return io.TextIOWrapper(buffered, encoding, errors, newline, line_buffering=buffering == 1)


class Watched(io.FileIO):
    """A file whose writes are moments."""

    points: Points

    def write(self, data: Any) -> int:
        """Write, or half of it."""
        if self.points("write", self.name):
            super().write(memoryview(data)[: len(data) // 2])
            end_now()
        return super().write(data) or 0

    def truncate(self, size: int | None = None) -> int:
        """Cut it."""
        self.points("truncate", self.name)
        return super().truncate(size)


def end_now() -> None:
    """What the kernel does to a process that is out of memory."""
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def limit_files(size: int) -> None:
    """No file may grow beyond `size` bytes: as on a full disk, a write fails."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def limit_memory(size: int) -> None:
    """No more address space than now and `size` bytes: a bomb does not take the machine with it."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + size, now + size))


def obey_permissions() -> None:
    """Root may write anywhere; give that up (CAP_DAC_OVERRIDE, by capset of Linux), and permissions count."""
    if os.geteuid() != 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)()
    if libc.capget(header, sets) == 0:
        for i in (0, 1, 2):  # effective, permitted, inheritable
            sets[i] &= ~(1 << 1)
        if libc.capset(header, sets) == 0:
            return
    raise OSError(ctypes.get_errno(), "capset")


def amplify_command(argv: Sequence[str]) -> None:
    """The command line in this process."""
    from amplify.cli import main

    sys.argv = ["amplify", *argv]
    main()


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024


def _child(
    work: Callable[[], Any],
    cwd: str,
    said: Sequence[Connection],
    environment: Mapping[str, str],
    before: Sequence[Callable[[], Any]],
    points: Points | None,
) -> None:
    for descriptor, pipe in ((1, said[0]), (2, said[1])):
        os.dup2(pipe.fileno(), descriptor)
        pipe.close()
    sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), "utf-8", write_through=True)
    sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), "utf-8", "backslashreplace", write_through=True)
    os.chdir(cwd)
    os.environ.update(environment)
    began, spent = _status("VmRSS"), time.process_time()
    for step in before:
        step()
    if points is not None:
        points.watch()
    try:
        work()
    except SystemExit:
        raise
    except BaseException:
        traceback.print_exc()  # as the interpreter would
        raise SystemExit(1) from None
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        sys.stderr.flush()
        peak = max(0, _status("VmHWM") - began)
        said[2].send((time.process_time() - spent, peak, points.seen if points else []))


def _drained(pipe: Connection, into: list[bytes]) -> None:
    """Read until nobody writes any more."""
    with contextlib.suppress(OSError):
        while data := os.read(pipe.fileno(), 65536):
            into.append(data)


class Children:
    """Runs work in children. Modules that children need are imported once."""

    def __init__(self, modules: Sequence[str] = ()) -> None:
        self._context: ForkServerContext = multiprocessing.get_context("forkserver")
        os.environ["PYTHONPATH"] = os.pathsep.join(str(Path(__file__).resolve().parents[n]) for n in (1, 2))
        os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
        self._context.set_forkserver_preload(["tortures.children", "amplify.cli", *modules])
        self._starting = threading.Lock()

    def run(
        self,
        work: Callable[[], Any] | Sequence[str],
        cwd: Path,
        *,
        environment: Mapping[str, str] | None = None,
        before: Sequence[Callable[[], Any]] = (),
        kill_after: float | None = None,
        points: Points | None = None,
        at_most: float = SLOW,
    ) -> Ended:
        """Run it to its end, or to the one that it is given.

        Args:
            work: arguments of `amplify`, or a function.
            cwd: its folder.
            environment: variables that are added.
            before: functions called in the child first.
            kill_after: seconds until SIGKILL.
            points: counts the changes of files, or ends it at one.
            at_most: seconds until it counts as hanging.
        """
        call = work if callable(work) else partial(amplify_command, list(work))
        reads, writes = zip(*(self._context.Pipe(duplex=False) for _ in range(3)), strict=True)
        arguments = (call, str(cwd), writes, environment or {}, before, points)
        child = self._context.Process(target=_child, args=arguments)
        with self._starting:
            child.start()
        for pipe in writes:
            pipe.close()
        said: tuple[list[bytes], list[bytes]] = ([], [])
        readers = [threading.Thread(target=_drained, args=pair, daemon=True) for pair in zip(reads, said, strict=False)]
        for reader in readers:
            reader.start()
        measured = (0.0, 0, [])
        ended_by = time.monotonic() + (at_most if kill_after is None else kill_after)
        with contextlib.suppress(EOFError, OSError):
            if reads[2].poll(max(0.0, ended_by - time.monotonic())):
                measured = reads[2].recv()
        over = wait([child.sentinel], max(0.0, ended_by - time.monotonic()))
        late = not over and kill_after is None
        with self._starting:  # a start looks at all children, and what two read of a child's status is lost to one
            if not over:
                child.kill()
            child.join()
        for reader in readers:
            reader.join(1.0)  # a process that the child left behind may hold its pipes
        for pipe, reader in zip(reads, (*readers, None), strict=True):
            if reader is None or not reader.is_alive():
                pipe.close()
        out, err = (b"".join(parts) for parts in said)
        return Ended(child.exitcode or 0, out, err, *measured, late)


def at_once(work: Sequence[Callable[[], Any]]) -> list[Any]:
    """Call several functions, each in a thread of its own, all begun at the same moment; their results in order."""
    results: list[Any] = [None] * len(work)
    gate = threading.Barrier(len(work))

    def call(i: int) -> None:
        gate.wait()
        try:
            results[i] = work[i]()
        except Exception as error:
            results[i] = error

    threads = [threading.Thread(target=call, args=(i,)) for i in range(len(work))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results

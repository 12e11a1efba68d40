"""The bench that attacks the library: a small part of every attack, and that each of them can fail."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torture
from tortures import bombs, commands, disk, engine, fuzz, keys, kills, servers, threads
from tortures.children import Ended
from tortures.commands import Command
from tortures.outcome import SHOWN, Group, Setting

from amplify.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
ROWS = "one\ntwo\nthree\n"
WRITES = Command("writes", ("writes",))


class Acted:
    """Stands for the children: each call does the next of some acts in the folder, and ends as the act says."""

    def __init__(self, *acts: Callable[[Path], Ended | None]) -> None:
        self.acts, self.calls = list(acts), 0

    def run(self, work: Any, cwd: Path, **options: Any) -> Ended:
        act = self.acts[min(self.calls, len(self.acts) - 1)]
        self.calls += 1
        return act(cwd) or Ended(0, b"", b"")


def writes(text: str, status: int = 0, err: bytes = b"", name: str = "out.txt") -> Callable[[Path], Ended]:
    def act(folder: Path) -> Ended:
        (folder / name).write_text(text)
        return Ended(status, b"", err)

    return act


def ends(status: int, err: bytes = b"") -> Callable[[Path], Ended]:
    return lambda folder: Ended(status, b"", err)


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "rows.csv").write_text("text\na\n")
    return tmp_path / "in"


def wanted(inputs: Path) -> dict[str, Any]:
    """What an undisturbed run leaves."""
    (inputs / "out.txt").write_text(ROWS)
    want = commands.contents(inputs)
    (inputs / "out.txt").unlink()
    return want


# a small part of everything


@pytest.mark.timeout(900)
def test_the_library_stands_a_small_part_of_every_attack(tmp_path: Path) -> None:
    # but for bombs, whose seconds depend on what else runs here, and the engine, which needs a model
    parts = [part for part in torture.PARTS if part not in ("bombs", "engine")]
    done = subprocess.run(
        [sys.executable, str(ROOT / "eval" / "torture.py"), *parts, "--quick", "--out", str(tmp_path)],
        capture_output=True, text=True, timeout=840, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    found = json.loads((tmp_path / "torture.json").read_text())["parts"]
    assert list(found) == parts
    for part in parts:
        assert found[part]["complete"]
        assert found[part]["groups"]
        assert all(group["cases"] == group["right"] > 0 for group in found[part]["groups"])


# each part can fail


@pytest.mark.parametrize(
    ("acts", "told"),
    [
        ([ends(-9), writes(ROWS)], None),
        ([ends(-9), writes("one\nthree\n")], "out.txt differ from an undisturbed run's"),  # a row is lost
        ([ends(-9), writes(ROWS + "three\n")], "out.txt differ"),  # one is there twice
        ([writes("one\ntw", -9), writes(ROWS)], "out.txt is not whole after the kill"),
        ([writes("draft", -9, name="out.tmp"), writes(ROWS)], "out.tmp differ"),  # left over
        ([ends(-9), ends(2, b"amplify: it is damaged")], "then ends with 2, amplify: it is damaged"),
        ([ends(1, b"Traceback: oh"), writes(ROWS)], "status 1"),
    ],
)
def test_kills(acts: list[Any], told: str | None, inputs: Path, tmp_path: Path) -> None:
    whole = Ended(0, b"", b"", points=[("write", "out.txt")] * 3)
    problem = kills.killed(
        Acted(*acts), WRITES, inputs, tmp_path / "trial", wanted(inputs), [(2, False)], whole  # type: ignore[arg-type]
    )  # fmt: skip
    assert problem is None if told is None else told in str(problem)


@pytest.mark.parametrize(
    ("replies", "half"),
    [((), ""), (("a",), ""), (("a", "b"), ""), (("a", "x"), "replies.sqlite")],  # begun, partly there, whole, wrong
)
def test_a_cache_may_hold_less_after_a_kill_but_nothing_else(
    replies: tuple[str, ...], half: str, tmp_path: Path
) -> None:
    right = [(word, [{"text": word}], None) for word in "ab"]
    with closing(sqlite3.connect(tmp_path / "replies.sqlite")) as base, base:
        if replies:
            base.execute("CREATE TABLE replies (key TEXT, reply TEXT)")
        for word in replies:
            reply = json.dumps({"answers": [{"text": word}], "logprobs": None})
            base.execute("INSERT INTO replies VALUES (?, ?)", (word, reply))
    assert kills.half_written(WRITES, tmp_path, {"replies.sqlite": right}, {}) == half


FULL = b"amplify: cannot write: no space left"


@pytest.mark.parametrize(
    ("acts", "told"),
    [
        ([ends(2, FULL), writes(ROWS)], None),
        ([ends(1, b"Traceback\nOSError: no space"), writes(ROWS)], "status 1"),
        ([writes("one", 2, FULL), writes(ROWS)], "out.txt is left behind"),
        ([ends(2, FULL), writes("one")], "then out.txt differ"),
        ([ends(2, FULL), ends(2, b"amplify: not UTF-8")], "the same command then ends with 2"),
    ],
)
def test_full_disks(acts: list[Any], told: str | None, inputs: Path, tmp_path: Path) -> None:
    problem = disk.filled(Acted(*acts), WRITES, inputs, tmp_path / "trial", wanted(inputs), 3, stands=False)  # type: ignore[arg-type]
    assert problem is None if told is None else told in str(problem)


def test_a_full_disk_that_takes_an_earlier_result(inputs: Path, tmp_path: Path) -> None:
    lost = Acted(writes(ROWS), writes("", 2, FULL), writes(ROWS))
    problem = disk.filled(lost, WRITES, inputs, tmp_path / "trial", wanted(inputs), 3, stands=True)  # type: ignore[arg-type]
    assert "out.txt" in str(problem)


@pytest.mark.parametrize(
    ("stays", "acts", "told"),
    [
        (False, [writes("ok")], None),
        (False, [writes("ok", 2, b"amplify: no")], "not tried again"),
        (False, [writes("wrong")], "kept what is wrong"),
        (False, [ends(0)], "0 of 1 are there"),
        (True, [ends(2, b"amplify: no"), writes("ok")], None),
        (True, [ends(1, b"Traceback: oh"), writes("ok")], "status 1"),
        (True, [ends(2, b"amplify: no"), writes("wrong")], "something else"),
        (True, [ends(2, b"amplify: no"), ends(2, b"amplify: no cache")], "mended, the same command ends with 2"),
        (True, [lambda folder: Ended(-9, b"", b"", late=True)], "still going"),
    ],
)
def test_servers(stays: bool, acts: list[Any], told: str | None, inputs: Path, tmp_path: Path) -> None:
    def kept(folder: Path) -> dict[str, Any]:
        return {"answer": (folder / "out.txt").read_text()} if (folder / "out.txt").exists() else {}

    (tmp_path / "models").mkdir()
    inputs.rename(tmp_path / "models" / "in")
    way = servers.Way("way", ("run",), False, 1, kept)
    problem = servers.faulty(
        Acted(*acts), way, tmp_path / "models", tmp_path / "trial", {"answer": "ok"}, "status_500", stays  # type: ignore[arg-type]
    )  # fmt: skip
    assert problem is None if told is None else told in str(problem)


def test_fuzz() -> None:
    def attempt(number: int) -> None:
        if number % 4 == 1:
            raise InputError("odd")
        if number % 4 == 2:
            raise KeyError(number % 8)

    target = fuzz.Target("numbers", 40, lambda draw: draw.randrange(1000), attempt)
    group = fuzz.fuzzed(target, 40, seed=0)
    drawn = [target.make(random.Random(f"0 numbers {i}")) % 8 for i in range(40)]
    assert (group.cases, group.right) == (40, sum(number not in (2, 6) for number in drawn))
    assert group.figures["refused"] == sum(number % 4 == 1 for number in drawn)
    assert len(group.wrong) == 2  # each kind once
    assert all("KeyError" in problem for problem in group.wrong)


def test_threads() -> None:
    assert threads.differ([1.0, "a"], [1.0, "a"]) == (0.0, None)
    assert threads.differ([1.0, 2.0], [1.0, 2.5]) == (0.5, None)
    assert threads.differ([1.0, "a"], [1.0, "b"])[1] is not None
    assert threads.differ([1.0], [1.0, 2.0])[1] == "1 values, and 2"
    assert "several 'IndexError" in str(threads.differ([1.0], "IndexError: out of bounds")[1])


@pytest.mark.parametrize(
    "written", ["sk-SECRETplain0123456789", "SK-SECRETPLAIN0123456789", "c2stU0VDUkVUcGxhaW4wMTIzNDU2Nzg5"]
)
@pytest.mark.parametrize("place", ["stdout", "stderr", "file"])
def test_keys(written: str, place: str, tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text(f"it said {written}" if place == "file" else "it said ***")
    ended = Ended(2, *(f"{written if place == each else '***'}".encode() for each in ("stdout", "stderr")))
    assert "the key is in" in str(keys.leaked(ended, tmp_path, keys.KEYS["plain"]))
    (tmp_path / "log.txt").write_text("it said ***")
    assert keys.leaked(Ended(2, b"***", b"***"), tmp_path, keys.KEYS["plain"]) is None


@pytest.mark.parametrize(
    ("ended", "right"),
    [
        (Ended(0, b"", b"", 1.0, 10**6), True),
        (Ended(2, b"", b"amplify: too large", 1.0, 10**6), True),
        (Ended(0, b"", b"", bombs.SECONDS + 1, 10**6), False),
        (Ended(0, b"", b"", 1.0, bombs.MEMORY + 1), False),
        (Ended(1, b"", b"Traceback\nMemoryError", 1.0, 10**6), False),
        (Ended(-9, b"", b"", late=True), False),
    ],
)
def test_bombs(ended: Ended, right: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    monkeypatch.setattr(bombs, "Children", lambda modules: Acted(lambda folder: ended))
    monkeypatch.setattr(commands, "make_models", lambda folder, children: tmp_path)
    monkeypatch.setattr(bombs, "bombs", lambda work, models: [("texts", "one", ["run"]), ("YAML", "two", ["run"])])
    groups = list(bombs.run(Setting(tmp_path / "work", tmp_path)))
    assert [(group.name, group.cases, group.right) for group in groups] == [("texts", 1, right), ("YAML", 1, right)]


DEAD = "amplify: the engine of vllm:m failed: its process ended. 1 of 2 were answered\n"


@pytest.mark.parametrize(
    ("acts", "told"),
    [
        ([(2, DEAD, "abc"), (0, "done", "abcdef")], None),
        ([(2, f"the engine says goodbye\n{DEAD}a semaphore is left", "abc"), (0, "", "abcdef")], None),
        ([(0, "done", "abcdef")], "status 0"),  # it was not killed, or nobody noticed
        ([(1, f"Traceback\n{DEAD}", "abc")], "status 1"),
        ([(2, f"Traceback\n{DEAD}", "abc")], "status 2, Traceback"),
        ([(2, DEAD + DEAD, "abc")], "status 2"),
        ([(-1, "still going", "abc")], "still going"),
        ([(2, DEAD, "a")], "of 1 answers kept"),  # what had been kept is lost
        ([(2, DEAD, "abX")], "some are not an undisturbed run's"),
        ([(2, DEAD, "abc"), (2, DEAD, "abc")], "the same command then ends with 2"),
        ([(2, DEAD, "abc"), (0, "done", "abcde")], "then the answers differ"),
    ],
)
def test_killed_engines(acts: list[Any], told: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def row(number: int, text: str) -> str:
        return json.dumps({"method": "zero_shot", "id": str(number), "answer": text, "text": text}) + "\n"

    def ended(process: object, kept: int, folder: Path) -> tuple[int, str]:
        status, said, answers = acts.pop(0)
        (folder / "runs" / "r").mkdir(parents=True, exist_ok=True)
        whole = "".join(row(number, text) for number, text in enumerate(answers))
        (folder / "runs" / "r" / "records.jsonl").write_text(f'{whole}{{"method": "zero')
        return status, said

    monkeypatch.setattr(engine, "_started", lambda folder: None)
    monkeypatch.setattr(engine, "_ended", ended)
    want = {f"zero_shot {number}": [text, text] for number, text in enumerate("abcdef")}
    problem = engine._killed(tmp_path, 2, want)
    assert problem is None if told is None else told in str(problem)
    assert not acts


def test_an_engine_is_found_below_any_thread_of_a_process() -> None:
    says = "import os, sys, time; print(len(sys.argv), os.getpid(), flush=True); time.sleep(600)"  # when it is up
    code = (
        "import subprocess, sys, threading, time\n"
        f"start = lambda *name: subprocess.Popen([sys.executable, '-c', {says!r}, *name])\n"
        "def work():\n    start('EngineCore')\n    start()\n    time.sleep(600)\n"
        "threading.Thread(target=work).start()"
    )
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    up = dict(map(int, owner.stdout.readline().split()) for _ in range(2))
    one, other = up[2], up[1]
    try:
        assert engine._engines(owner.pid) == [one]
        assert engine._engines(one) == []
    finally:
        for pid in (one, other, owner.pid):
            os.kill(pid, signal.SIGKILL)
        owner.wait()


# what the bench says


def test_a_case_that_is_wrong_is_the_exit_status_and_in_the_table(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[str] = []

    def part(wrong: bool) -> Any:
        def run(setting: Setting) -> list[Group]:
            found = []
            for name in ("first", "second"):
                if not setting.skips(name):
                    ran.append(name)
                    found.append(Group(name))
                    found[-1].note(None)
                    found[-1].note("row 3 | is lost" if wrong and name == "second" else None)
            return found

        return type("Part", (), {"run": staticmethod(run)})

    monkeypatch.setattr(torture.importlib, "import_module", lambda name: part(name == "tortures.kills"))
    monkeypatch.setattr(torture, "code", lambda: "this")
    monkeypatch.setattr(torture, "commit", lambda: "abc")
    assert torture.main(["kills", "disk", "--out", str(tmp_path)]) == 1
    table = (tmp_path / "torture.md").read_text()
    assert "## kills: 3 of 4 right" in table
    assert "All of it on commit abc." in table
    assert "- second: row 3 \\| is lost" in table
    assert "## disk: 4 of 4 right" in table
    assert "row 3 | is lost" in capsys.readouterr().out
    # what is measured is not measured again, unless the code is another or it was stopped
    ran.clear()
    assert torture.main(["kills", "disk", "--out", str(tmp_path)]) == 1
    assert ran == []
    kept = json.loads((tmp_path / "torture.json").read_text())
    kept["parts"]["disk"] |= {"complete": False, "groups": kept["parts"]["disk"]["groups"][:1]}
    (tmp_path / "torture.json").write_text(json.dumps(kept))
    assert torture.main(["disk", "--out", str(tmp_path)]) == 0
    assert ran == ["second"]
    monkeypatch.setattr(torture, "code", lambda: "other")
    assert torture.main(["disk", "--out", str(tmp_path)]) == 0
    assert ran == ["second", "first", "second"]
    # a part in pieces
    ran.clear()

    def groups() -> list[str]:
        kept = json.loads((tmp_path / "torture.json").read_text())
        return [group["group"] for group in kept["parts"]["disk"]["groups"]]

    assert torture.main(["disk", "--again", "--only", "second", "--out", str(tmp_path)]) == 0
    assert groups() == ran == ["second"]
    assert torture.main(["disk", "--seconds", "0", "--out", str(tmp_path)]) == 0
    assert groups() == ran == ["second", "first"]
    assert torture.main(["disk", "--out", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "torture.json").read_text())["parts"]["disk"]["complete"]
    # a group after a mend, the others as they were
    ran.clear()
    monkeypatch.setattr(torture, "code", lambda: "mended")
    monkeypatch.setattr(torture, "commit", lambda: "def")
    assert torture.main(["disk", "--only", "first", "--mended", "--out", str(tmp_path)]) == 0
    assert (ran, sorted(groups())) == (["first"], ["first", "second"])
    assert json.loads((tmp_path / "torture.json").read_text())["parts"]["disk"]["complete"]
    table = (tmp_path / "torture.md").read_text()
    assert "Commit abc; groups that were measured again after a mend say their own (def)." in table
    assert "| first | 2 | 2 | commit def |" in table


def test_every_failure_counts_and_some_are_told() -> None:
    group = Group("many")
    for number in range(SHOWN + 5):
        group.note(f"case {number}")
    assert (group.cases, group.right, len(group.wrong)) == (SHOWN + 5, 0, SHOWN)


def test_every_command_line_of_the_bench_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import click

    from amplify.cli import cli

    monkeypatch.setattr(bombs, "LAUGHS", 2)
    (tmp_path / "work").mkdir()
    lines = [command.argv for command in commands.commands(tmp_path)]
    lines += [(*way.argv, "-m", "openai:m@http://127.0.0.1:9/v1") for way in servers.ways()]
    lines += [work for _, _, work in bombs.bombs(tmp_path / "work", tmp_path) if not callable(work)]
    assert len(lines) > 40
    for argv in lines:
        name, *rest = argv
        command: click.Command | None = cli.get_command(click.Context(cli), name)
        while isinstance(command, click.Group):
            name, *rest = rest
            command = command.get_command(click.Context(command), name)
        assert command is not None, argv
        monkeypatch.chdir(tmp_path / "work")
        try:
            command.make_context(name, list(rest))
        except click.BadParameter as error:
            if "does not exist" not in error.format_message():  # what the bench makes first
                raise

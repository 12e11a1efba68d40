"""Files are whole or absent, journals only grow, and a disk that refuses is one error."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from amplify import files, resources
from amplify.errors import AmplifyError, DataError, RunError, WriteError
from amplify.files import Journal, read_json, read_lines, write, write_json


def names(folder: Path) -> list[str]:
    """What lies there, locks aside."""
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def on_a_full_disk(code: str, limit: int, *arguments: object) -> str:
    """Run code in a process whose files may not grow beyond so many bytes: the system really refuses the write."""
    start = f"import resource, sys\nresource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, resource.RLIM_INFINITY))\n"
    command = [sys.executable, "-B", "-c", start + code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_full_disk_leaves_the_earlier_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    code = (
        "from amplify.files import write\nfrom amplify.errors import WriteError\n"
        "try:\n    write(sys.argv[1], 'x' * 100_000)\nexcept WriteError as error:\n    print(error)\n"
    )
    assert f"cannot write {path}: File too large" in on_a_full_disk(code, 5000, path)
    assert names(tmp_path) == []
    write(path, "good")
    on_a_full_disk(code, 5000, path)
    assert path.read_text() == "good"
    assert names(tmp_path) == ["page.html"]


def test_a_folder_that_is_not_there_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match=r"cannot write .*/no/page\.html: No such file or directory"):
        write(tmp_path / "no" / "page.html", "x")
    with pytest.raises(WriteError, match="null"):
        write("a\0b", "x")
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match="Not a directory"):
        files.make_folder(tmp_path / "file" / "below")
    with pytest.raises(WriteError, match=r"cannot write .*: Is a directory"):
        write(tmp_path, "x")


def test_what_a_link_points_to_is_replaced_and_keeps_its_mode(tmp_path: Path) -> None:
    path, link = tmp_path / "real", tmp_path / "link"
    path.write_text("old")
    path.chmod(0o600)
    link.symlink_to(path)
    write(link, "new")
    assert link.is_symlink()
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o600
    write("/dev/null", "gone")
    assert not Path("/dev/null").is_file()


def test_lone_surrogates_come_back(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"text": "half \ud83d, é, 日本"})
    assert read_json(tmp_path / "a.json", "x") == {"text": "half \ud83d, é, 日本"}
    journal = Journal(tmp_path / "b.jsonl")
    journal.append([{"text": "half \ud83d\u2028, é, 日本"}])
    assert read_lines(tmp_path / "b.jsonl") == [{"text": "half \ud83d\u2028, é, 日本"}]


@pytest.mark.parametrize("header", [None, {"of": "日本"}])
def test_a_journal_torn_anywhere_goes_on_with_its_whole_lines(tmp_path: Path, header: dict[str, str] | None) -> None:
    """Cut at every byte, in the middle of a character and of the header too."""
    rows = [{"n": i, "text": "日本 é" * i} for i in range(3)]
    path = tmp_path / "whole.jsonl"
    Journal(path, header).append(rows)
    whole = path.read_bytes()
    raw = whole.replace(b"\\u65e5", "日".encode())  # written by another program: bytes that are no ASCII
    for content in (whole, raw):
        for cut in range(len(content) + 1):
            torn = tmp_path / "torn.jsonl"
            torn.write_bytes(content[:cut])
            if content is raw and header and cut <= content.index(b"\n"):
                continue  # not the beginning of our header
            journal = Journal(torn, header)
            kept = journal.rows
            assert kept == rows[: len(kept)]
            assert len(kept) == max(0, content[:cut].count(b"\n") - (header is not None))
            journal.append(rows[len(kept) :])
            assert Journal(torn, header).rows == rows


def test_opening_a_journal_changes_no_byte_that_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    Journal(path, {"a": 1}).append([{"n": 1}])
    before, inode = path.read_bytes(), path.stat().st_ino
    path.write_bytes(before + b'{"n": ')
    Journal(path, {"a": 1})
    assert path.read_bytes() == before
    assert path.stat().st_ino == inode


@pytest.mark.parametrize("held", ["notes", "notes\n", "[1]\n", '{"b": 2}\n', "\n\n", '{"a": 1}\nnotes\n{"n": 1}\n'])
def test_a_file_that_is_no_journal_of_ours_is_left_alone(tmp_path: Path, held: str) -> None:
    path = tmp_path / "notes"
    path.write_text(held)
    with pytest.raises(RunError, match="notes"):
        Journal(path, {"a": 1})
    assert path.read_text() == held


def test_what_differs_is_said(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    Journal(path, {"model": {"dtype": "float32"}, "rows": 3})
    with pytest.raises(RunError, match=r'model\.dtype: "float32" in the file, "bfloat16" in this call'):
        Journal(path, {"model": {"dtype": "bfloat16"}, "rows": 3})


def test_a_full_disk_leaves_a_journal_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    Journal(path, {"a": 1}).append([{"n": 1}])
    before = path.read_bytes()
    code = (
        "from amplify.files import Journal\nfrom amplify.errors import WriteError\n"
        "journal = Journal(sys.argv[1], {'a': 1})\n"
        "try:\n    journal.append([{'text': 'x' * 5000}])\nexcept WriteError as error:\n    print(error)\n"
    )
    assert f"cannot write {path}" in on_a_full_disk(code, 2000, path)
    assert path.read_bytes() == before


def test_lines_of_two_processes_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    code = (
        "import sys\nfrom amplify.files import Journal\njournal = Journal(sys.argv[1], {'a': 1})\n"
        "for i in range(40):\n    journal.append([{'who': sys.argv[2], 'n': i, 'text': 'x' * 3000}])\n"
    )
    both = [subprocess.Popen([sys.executable, "-c", code, str(path), who]) for who in "ab"]
    assert [process.wait() for process in both] == [0, 0]
    rows = Journal(path, {"a": 1}).rows
    assert sorted((row["who"], row["n"]) for row in rows) == [(who, n) for who in "ab" for n in range(40)]


def test_a_held_path_is_refused_to_another_process(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom amplify.files import lock\nfrom amplify.errors import RunError\n"
        "try:\n    with lock(sys.argv[1], 'busy'):\n        print('mine')\n"
        "except RunError as error:\n    print(error)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "out")]
    with files.lock(tmp_path / "out", "busy"):
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "busy\n"
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "mine\n"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\xff{}", "not UTF-8"),
        (b"{", "not JSON"),
        (b"", "not JSON"),
        (b"[1]", "a list, not an object"),
        (b'{"a": NaN}', "NaN is no JSON number"),
        (b'{"a": 1e999}', "too large"),
        (b'{"a": 1' + b"0" * 30 + b"}", "63 bits"),
        (b'{"a": 1' + b"0" * 9000 + b"}", "not JSON"),
        (b'{"a": ' + b"[" * 100 + b"]" * 100 + b"}", "nested"),
        (b'{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "nested"),
    ],
)
def test_json_that_is_none_is_one_error(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(DataError, match=says):
        read_json(tmp_path / "x.json", "a saved thing")


def test_a_file_that_cannot_be_read_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.json cannot be read: No such file"):
        read_json(tmp_path / "none.json", "a saved thing")
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        read_json(tmp_path, "a saved thing")


def test_a_name_that_is_no_utf8_is_shown_with_escapes() -> None:
    assert files.shown(os.fsdecode(b"a\xff.csv")) == "a\\xff.csv"


def test_differences_name_the_place() -> None:
    old = {"a": [{"b": 1}, {"b": 2}], "only": 1, "long": "x" * 200}
    new = {"a": [{"b": 1}, {"b": 3}], "long": "y" * 200}
    told = ["a[1].b: 2 in the folder, 3 in this call", "long: differs", "only: only in the folder"]
    assert files.differences(old, new) == told
    assert json.loads(json.dumps(told))


def test_what_a_kill_left_of_a_draft_goes_with_the_next_write(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    code = (
        "import os, signal, sys\nfrom amplify import files\n"
        "os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)\nfiles.write(sys.argv[1], 'half')\n"
    )
    killed = subprocess.run([sys.executable, "-B", "-c", code, str(path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(names(tmp_path)) == 1
    write(path, "whole")
    assert names(tmp_path) == ["page.html"]


@pytest.mark.parametrize("folder", [False, True])
def test_a_draft_that_is_in_work_is_left_alone(tmp_path: Path, folder: bool) -> None:
    path = tmp_path / "page"
    with files.draft(path, folder=folder) as first, files.draft(path, folder=folder) as second:
        assert first != second
        assert first.exists()
        second.rename(path)
    assert names(tmp_path) == ["page"]


@pytest.mark.parametrize("name", ["a" * 300, "~no-such-user/a", "a\0b"], ids=["long", "user", "null"])
def test_a_name_that_no_file_can_have_is_one_error(name: str) -> None:
    from amplify import hub, templates
    from amplify.attribution.inputs import opened
    from amplify.methods import make
    from amplify.methods.contents import contents
    from amplify.proxies import load_proxy
    from amplify.steering import Steering
    from amplify.tasks import load_task

    for read in (
        lambda: hub.resolve(f"/{name}"),
        lambda: hub.resolve(name),
        lambda: templates.load("rationale", name),
        lambda: templates.load("rationale", f"{name}.jinja"),
        lambda: Steering.load(f"{name}.yaml"),
        lambda: Steering.load(name),
        lambda: load_task(f"{name}.csv", text="a", label="b"),
        lambda: load_task(f"{name}.yaml"),
        lambda: load_proxy(name),
        lambda: opened(f"/{name}").__enter__(),
    ):
        with pytest.raises(AmplifyError):
            read()
    assert contents(make("amplify", proxy=name)) == {}


def test_a_journal_remembers_what_it_is_told_to(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    journal = files.Journal(path, {"format": 1})
    begins = [journal.append([{"row": i, "text": "x" * i}]) for i in range(4)]
    kept = files.Journal(path, {"format": 1}, keep=lambda row, begin: (row["row"], begin)).rows
    assert kept == list(enumerate(begins))
    for number, begin in kept:
        assert json.loads(path.read_bytes()[begin:].partition(b"\n")[0])["row"] == number
    with path.open("ab") as file:
        file.write(b'{"row": 4, "te')  # a kill
    again = files.Journal(path, {"format": 1}, keep=lambda row, begin: begin)
    assert again.rows == begins
    assert again.append([{"row": 4}]) == path.stat().st_size - len(b'{"row": 4}\n')


@pytest.mark.parametrize("variable", ["AMPLIFY_HOME", "XDG_CACHE_HOME", "AMPLIFY_DATA"])
def test_the_home_of_somebody_unknown_is_a_name_like_another(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AMPLIFY_HOME", "XDG_CACHE_HOME", "AMPLIFY_DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, "~nobody-of-this-name/kept")
    found = resources.data_root() if variable == "AMPLIFY_DATA" else resources.home()
    assert str(found).startswith("~nobody-of-this-name/kept")

"""The file of replies: several threads and processes, damage, a full disk, its size."""

from __future__ import annotations

import functools
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from amplify.errors import InputError, RunError, WriteError
from amplify.models.cache import FILE, Cache, Reply, _checksum, keeping_numbers, kept_numbers
from amplify.retrieval import Embedder, embedded, open_embedder
from amplify.types import Completion, TokenLogProbs

SAID = Reply(answers=(Completion("Paris “é” \ud800", "stop", 3, 1),), prompt_tokens=3, tokens=4.0, seconds=0.5)
SCORED = Reply(logprobs=(TokenLogProbs(("a", "b"), (1, 2), (-0.1234567890123456, -2.0)),), forwarded=2.5)


def test_what_is_written_is_read_by_others_and_later(tmp_path: Path) -> None:
    with Cache(tmp_path / "kept") as one, Cache(tmp_path / "kept") as other:
        one.write({"x": SAID, "y": SCORED})
        assert other.read(["y", "z", "x", "y"]) == {"x": SAID, "y": SCORED}
        other.write({"x": SCORED})  # what is there stays
    with Cache(tmp_path / "kept" / FILE) as later:
        assert later.read(["x"]) == {"x": SAID}
        assert len(later) == 2
        later.clear()
        assert not later.read(["x"])
        later.remove()
    assert list((tmp_path / "kept").iterdir()) == []


def test_only_its_owner_reads_it(tmp_path: Path) -> None:
    with Cache(tmp_path) as cache:
        assert stat.S_IMODE(cache.path.stat().st_mode) == 0o600


def test_threads_and_processes_lose_nothing(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom amplify.models.cache import Cache, Reply\n"
        "cache = Cache(sys.argv[1])\n"
        "for i in range(100): cache.write({f'{sys.argv[2]} {i}': Reply(tokens=i)})\n"
    )
    others = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), name]) for name in "ab"]
    with Cache(tmp_path) as cache:

        def work(name: str) -> None:
            for i in range(100):
                cache.write({f"{name} {i}": Reply(tokens=i)})
                assert cache.read([f"{name} {i}"])

        threads = [threading.Thread(target=work, args=(name,)) for name in "cd"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [process.wait() for process in others] == [0, 0]
        found = cache.read([f"{name} {i}" for name in "abcd" for i in range(100)])
        assert {key: reply.tokens for key, reply in found.items()} == {
            f"{name} {i}": i for name in "abcd" for i in range(100)
        }


def test_what_a_killed_process_had_written_is_there(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom amplify.models.cache import Cache, Reply\n"
        "cache = Cache(sys.argv[1])\n"
        "for i in range(10**6):\n cache.write({str(i): Reply(tokens=i)})\n print(i, flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) == 20:
            break
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with Cache(tmp_path) as cache:
        assert [reply.tokens for reply in cache.read([str(i) for i in range(21)]).values()] == list(range(21))


def test_a_changed_reply_is_refused(tmp_path: Path) -> None:
    with Cache(tmp_path) as cache:
        cache.write({"x": SAID, "y": SCORED})
    base = sqlite3.connect(tmp_path / FILE)
    base.execute("UPDATE replies SET reply = replace(reply, 'Paris', 'Parma')")
    base.commit()
    base.close()
    with Cache(tmp_path) as cache:
        assert cache.read(["y"]) == {"y": SCORED}
        with pytest.raises(RunError, match=r"replies\.sqlite is damaged \(a reply was changed\): delete it"):
            cache.read(["x"])


@pytest.mark.parametrize("held", ["notes of mine\n" * 100, "x"])
def test_a_file_that_is_no_cache_is_left_alone(tmp_path: Path, held: str) -> None:
    (tmp_path / FILE).write_text(held)
    with pytest.raises(RunError, match=r"replies\.sqlite is damaged"):
        Cache(tmp_path)
    assert (tmp_path / FILE).read_text() == held
    with pytest.raises(InputError, match="is a file: a cache is a folder"):
        Cache(Path(__file__))


def test_somebody_elses_database_is_left_alone(tmp_path: Path) -> None:
    base = sqlite3.connect(tmp_path / FILE)
    base.execute("CREATE TABLE replies (mine TEXT)")
    base.commit()
    base.close()
    before = (tmp_path / FILE).read_bytes()
    with pytest.raises(RunError, match="no cache of this version"):
        Cache(tmp_path)
    assert (tmp_path / FILE).read_bytes() == before


def test_pages_that_were_overwritten_are_one_error_or_right(tmp_path: Path) -> None:
    with Cache(tmp_path) as cache:
        replies = {str(i): Reply(answers=(Completion(f"{i} " * 50, "stop", 1, 50),)) for i in range(200)}
        cache.write(replies)
    whole = (tmp_path / FILE).read_bytes()
    wrong = 0
    for at in range(0, len(whole), len(whole) // 40):
        (tmp_path / FILE).write_bytes(whole[:at] + bytes(64) + whole[at + 64 :])
        try:
            with Cache(tmp_path) as cache:
                for key, reply in cache.read(list(replies)).items():
                    assert reply == replies[key]
        except RunError:
            wrong += 1
    assert wrong > 5


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "5", '{"logprobs": [{"tokens": ["a"], "token_ids": [1], "logprobs": [5.0]}]}']
)
def test_a_reply_that_somebody_forged_is_refused(tmp_path: Path, text: str) -> None:
    with Cache(tmp_path) as cache:
        cache.write({"x": SAID})
    with sqlite3.connect(tmp_path / FILE) as base:
        base.execute("UPDATE replies SET reply = ?, sum = ?", (text, _checksum("x", text)))
    with Cache(tmp_path) as cache, pytest.raises(RunError, match="damaged"):
        cache.read(["x"])


@pytest.mark.parametrize("row", ["text", 5, 0.5, b"1234567"])
def test_numbers_that_somebody_forged_are_refused(tmp_path: Path, row: Any) -> None:
    with Cache(tmp_path) as cache:
        cache.write_numbers({"x": np.zeros(2)})
    with sqlite3.connect(tmp_path / FILE) as base:
        base.execute("UPDATE numbers SET row = ?", (row,))
    with Cache(tmp_path) as cache, pytest.raises(RunError, match="damaged"):
        cache.numbers(["x"])


@pytest.mark.parametrize(
    "planted",
    [
        "CREATE TRIGGER t BEFORE DELETE ON replies BEGIN SELECT raise(IGNORE); END",  # shrinking would never end
        "DROP TABLE numbers; CREATE VIEW numbers AS WITH RECURSIVE r(i) AS (SELECT 1 UNION ALL SELECT i FROM r)"
        " SELECT i key, i row, i sum FROM r",  # nor would reading
        "DROP TABLE replies; CREATE TABLE replies (key TEXT)",
    ],
)
def test_a_file_that_holds_more_than_tables_of_replies_is_left_alone(tmp_path: Path, planted: str) -> None:
    with Cache(tmp_path) as cache:
        cache.write({"x": SAID})
    base = sqlite3.connect(tmp_path / FILE)
    base.executescript(planted)
    base.close()
    with pytest.raises(RunError, match="no cache of this version"):
        Cache(tmp_path)


def test_a_file_of_an_earlier_version_gets_its_second_table(tmp_path: Path) -> None:
    with Cache(tmp_path) as cache:
        cache.write({"x": SAID})
    with sqlite3.connect(tmp_path / FILE) as base:
        base.execute("DROP TABLE numbers")
    with Cache(tmp_path) as cache:
        cache.write_numbers({"n": np.zeros(2)})
        assert (len(cache), len(cache.numbers(["n"]))) == (1, 1)


@pytest.mark.parametrize("behind", range(4))
def test_two_that_make_the_file_at_once_both_have_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, behind: int
) -> None:
    class Slow(sqlite3.Connection):
        said = 0

        def execute(self, sql: str, *given: Any) -> sqlite3.Cursor:
            if self.said == behind:  # another process makes the whole file meanwhile
                monkeypatch.undo()
                Cache(tmp_path).close()
            self.said += 1
            return super().execute(sql, *given)

    monkeypatch.setattr(sqlite3, "connect", functools.partial(sqlite3.connect, factory=Slow))
    with Cache(tmp_path) as cache:
        cache.write({"x": SAID})
        assert cache.read(["x"]) == {"x": SAID}


def test_a_closed_cache_is_not_called_damaged(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.close()
    with pytest.raises(RunError, match=r"replies\.sqlite cannot be used \(.*closed.*\)$"):
        cache.read(["x"])


@pytest.mark.parametrize("place", ["~nobody-of-this-name/kept", "x" * 300, "a\0b"])
def test_a_name_that_no_folder_has_is_one_error(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if place.startswith("~"):  # as a shell leaves it: a folder of that name, here as everywhere else
        Cache(place).close()
        return
    with pytest.raises(WriteError, match="cannot write"):
        Cache(place)


def test_a_full_disk_is_one_error_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def small(*args: Any, **options: Any) -> sqlite3.Connection:
        base = connect(*args, **options)
        base.execute("PRAGMA max_page_count=8")  # SQLite's own full disk
        return base

    with Cache(tmp_path) as cache:
        cache.write({"x": SAID})
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", small)
    with Cache(tmp_path) as cache:
        with pytest.raises(WriteError, match=r"cannot write .*replies\.sqlite: database or disk is full"):
            cache.write({str(i): Reply(answers=(Completion("word " * 1000, "stop", 1, 1),)) for i in range(50)})
        assert cache.read(["x"]) == {"x": SAID}
        assert len(cache) == 1


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_cannot_be_written_is_one_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(WriteError, match="cannot write"):
            Cache(tmp_path)
    finally:
        tmp_path.chmod(0o700)


def test_a_place_that_cannot_be_is_one_error() -> None:
    with pytest.raises(WriteError, match="cannot write"):
        Cache("/proc/nowhere/cache")


def test_the_oldest_go_when_it_is_too_large(tmp_path: Path) -> None:
    with Cache(tmp_path, most_bytes=2**18) as cache:
        for i in range(200):
            cache.write({str(i): Reply(answers=(Completion(f"{i} " * 1000, "stop", 1, 1),))})
        kept = sorted(map(int, cache.read([str(i) for i in range(200)])))
    assert (tmp_path / FILE).stat().st_size < 2**18 + 2**15
    assert kept == list(range(kept[0], 200))
    assert 0 < kept[0] < 195
    with pytest.raises(InputError, match="most_bytes"):
        Cache(tmp_path, most_bytes=10)


def test_numbers_are_computed_once(tmp_path: Path) -> None:
    asked: list[str] = []

    def compute(new: list[int]) -> list[np.ndarray]:
        asked.extend(texts[i] for i in new)
        return [np.array([len(texts[i]), -np.inf]) for i in new]

    for texts in (["a", "bb", "a"], ["bb", "ccc"]):
        with Cache(tmp_path) as cache, keeping_numbers(cache):
            found = kept_numbers(["len", "1"], texts, compute)
        assert [row.tolist() for row in found] == [[len(text), -np.inf] for text in texts]
    assert asked == ["a", "bb", "a", "ccc"]
    texts = ["bb"]
    kept_numbers(["len", "1"], texts, compute)  # nothing is kept outside such a block
    with Cache(tmp_path) as cache, keeping_numbers(cache):
        kept_numbers(["len", "2"], texts, compute)  # another version
        assert len(cache) == 0  # replies alone are counted
    assert asked[4:] == ["bb", "bb"]
    with sqlite3.connect(tmp_path / FILE) as base:
        base.execute("UPDATE numbers SET row = zeroblob(16) WHERE rowid = 1")
    with Cache(tmp_path) as cache, keeping_numbers(cache), pytest.raises(RunError, match="damaged"):
        kept_numbers(["len", "1"], ["a"], compute)


def test_an_encoder_computes_nothing_twice(tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["great phone", "terrible battery", "great phone"]
    with Embedder(tiny_encoder) as embedder:
        plain = embedder.embed(texts)
        with Cache(tmp_path) as cache, keeping_numbers(cache):
            np.testing.assert_array_equal(embedder.embed(texts), plain)
            monkeypatch.setattr(embedder.module, "forward", None)  # whoever calls it fails
            np.testing.assert_array_equal(embedder.embed(texts[1:]), plain[1:])
            assert embedder.embed([]).shape == (0, plain.shape[1])


def test_an_encoder_of_which_everything_is_kept_is_not_loaded(
    tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts, name = ["great phone", "terrible battery"], str(tiny_encoder)
    with Cache(tmp_path) as cache, keeping_numbers(cache):
        plain = embedded(texts, name)
        np.testing.assert_array_equal(plain, open_embedder(name).embed(texts))
        monkeypatch.setattr("amplify.retrieval.open_embedder", None)  # whoever calls it fails
        np.testing.assert_array_equal(embedded(texts[::-1], name), plain[::-1])

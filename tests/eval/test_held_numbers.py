"""The table of held numbers: what moved is told from what is equal, gone, or changed on purpose."""

from __future__ import annotations

import pytest


def test_what_moved_is_counted(script, capsys: pytest.CaptureFixture[str]) -> None:
    held_numbers = script("held_numbers")
    before = {
        "games: same": [1.0, float("inf"), 3.0],
        "games: moved": [1.0],
        "games: wider": [1.0],
        "games: gone": [1.0],
        "games: meant a": [1.0],
        "games: meant b": [1.0],
        "games: meant c": [5.0],
        "words: not asked": [1.0],
    }
    now = {
        "games: same": [1.0 + 1e-12, float("inf"), 3.0],
        "games: moved": [1.1],
        "games: wider": [1.0, 2.0],
        "games: meant a": "InputError",
        "games: meant c": [2.0],
        "games: new": [0.0],
    }
    changed = {"another stream": {"games: meant a": "InputError", "games: meant b": None, "games: meant c": [1.0]}}
    wrong = held_numbers.compare(before, now, changed)
    assert wrong == ["games: moved", "games: wider", "games: gone", "games: meant c"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["games", "7", "1", "2", "3", "1", "1", "1.0e-12"]
    assert "    on purpose, 2: another stream" in lines
    assert "    moved: games: moved by 0.1" in lines
    assert "    gone: games: gone" in lines


def test_what_is_accepted_is_held_from_then_on(script, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    held_numbers = script("held_numbers")
    file = tmp_path / "held.json"
    now = {"games: a": [1.0, float("inf")], "games: b": [2.0]}
    monkeypatch.setattr(held_numbers, "measured", lambda only: dict(now))

    def run(*arguments: str) -> int:
        monkeypatch.setattr("sys.argv", ["held_numbers.py", *arguments])
        with pytest.raises(SystemExit) as stop:
            held_numbers.main()
        return int(stop.value.code or 0)

    monkeypatch.setattr("sys.argv", ["held_numbers.py", "--record", str(file)])
    held_numbers.main()
    assert run("--held", str(file)) == 0
    now["games: b"] = [3.0]
    assert run("--held", str(file)) == 1
    assert run("--held", str(file), "--accept", "b is three") == 0
    assert run("--held", str(file)) == 0
    now["games: b"] = [2.0]
    assert run("--held", str(file)) == 1

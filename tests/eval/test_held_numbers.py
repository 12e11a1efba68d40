"""The table of held numbers: what moved is told from what is equal, gone, or changed on purpose."""

from __future__ import annotations

import pytest


def test_what_moved_is_counted(script, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    held_numbers = script("held_numbers")
    monkeypatch.setattr(held_numbers, "CHANGED", {"games: meant *": "the sample has another stream"})
    before = {
        "games: same": [1.0, float("inf"), 3.0],
        "games: moved": [1.0],
        "games: wider": [1.0],
        "games: gone": [1.0],
        "games: meant a": [1.0],
        "words: not asked": [1.0],
    }
    now = {
        "games: same": [1.0 + 1e-12, float("inf"), 3.0],
        "games: moved": [1.1],
        "games: wider": [1.0, 2.0],
        "games: meant a": "InputError",
        "games: new": [0.0],
    }
    assert held_numbers.compare(before, now) == 3
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["games", "5", "1", "1", "2", "1", "1", "1.0e-12"]
    assert "    on purpose, 1: the sample has another stream" in lines
    assert "    moved: games: moved by 0.1" in lines
    assert "    gone: games: gone" in lines

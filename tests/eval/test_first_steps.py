"""The first page's commands as a stranger types them: which come first, and what a failing one says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from amplify.hub import ALIASES


@pytest.fixture(scope="module")
def steps(script: Any) -> Any:
    return script("first_steps")


def test_two_commands_lead_from_a_checkout_to_a_tuned_result(steps: Any) -> None:
    install, tune, *rest = steps.commands(steps.PAGE.read_text(encoding="utf-8"))
    assert install == "pip install '.[local]'"
    assert tune.startswith("amplify tune support_tickets --model transformers:")
    assert tune.partition("transformers:")[2].split()[0] in ALIASES  # fetched by the command itself
    assert any(command.startswith("amplify attribute ") for command in rest)


def test_the_home_is_empty_and_the_environment_its_own(
    steps: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AMPLIFY_HOME", "/here")
    monkeypatch.setattr(steps.subprocess, "run", lambda command, **_: made.append(command))
    made: list[list[str]] = []
    found = steps.stranger(tmp_path, "python3")
    assert found["HOME"] == str(tmp_path / "home")
    assert found["PATH"].startswith(str(tmp_path / "home" / "venv" / "bin"))
    assert "AMPLIFY_HOME" not in found
    assert made == [["python3", "-m", "venv", str(tmp_path / "home" / "venv")]]


def test_a_command_is_timed_and_one_that_fails_is_told(steps: Any, tmp_path: Path) -> None:
    row = steps.timed("echo here; pwd", tmp_path, {"PATH": "/usr/bin:/bin"})
    assert row["said"].split() == ["here", str(tmp_path)]
    assert row["seconds"] >= 0
    with pytest.raises(SystemExit, match="first_steps: `echo no >&2; false` failed:\nno"):
        steps.timed("echo no >&2; false", tmp_path, {"PATH": "/usr/bin:/bin"})

"""Where the other tool is not installed, its bridge says what to install."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import amplify.bridges
from amplify.errors import EXTRAS, MissingExtraError

ROOT = Path(amplify.bridges.__file__).parent
TOOLS = sorted({path.stem for path in ROOT.glob("*.py")} & EXTRAS.keys())


def test_each_tool_of_an_extra_has_its_bridge() -> None:
    assert TOOLS == ["dspy", "inspect_ai", "lm_eval", "mlflow", "ragas", "wandb"]
    pyproject = (ROOT.parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    assert [tool for tool in TOOLS if f"\n{EXTRAS[tool]} = [" not in pyproject] == []
    page = (ROOT.parents[1] / "docs" / "howto" / "bridges.md").read_text(encoding="utf-8")
    modules = {path.stem for path in ROOT.glob("*.py")} - {"__init__"}
    assert [module for module in modules if f"| `{module}` |" not in page] == []


@pytest.mark.parametrize("tool", TOOLS)
def test_a_missing_tool_is_one_error(tool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name == tool or name.startswith(f"{tool}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, tool, None)
    name = f"amplify.bridges.{tool}"
    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.delattr(amplify.bridges, tool, raising=False)
    wanted = rf"pip install 'amplify-llm\[{EXTRAS[tool]}\]'"
    if tool == "ragas":  # its rows need none of it
        module = import_module(name)
        with pytest.raises(MissingExtraError, match=wanted):
            module.to_ragas([])
        return
    with pytest.raises(MissingExtraError, match=wanted):
        import_module(name)


def test_the_library_itself_imports_none_of_them() -> None:
    code = f"""if True:
        import sys, amplify, amplify.cli, amplify.evaluation, amplify.tuning
        print([tool for tool in {TOOLS} if tool in sys.modules])"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

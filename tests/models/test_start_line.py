"""The lines of the documentation that start a server of vLLM: vLLM itself reads them, and steering is switched on."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from amplify.steering.payload import KEY

pytest.importorskip("vllm")

ROOT = Path(__file__).resolve().parents[2]


def start_lines() -> list[tuple[str, list[str]]]:
    """(file, words) of every line that starts a server, continued lines joined and comments cut off."""
    found = []
    for path in sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]):
        text = path.read_text(encoding="utf-8").replace("\\\n", " ")
        for line in re.findall(r"^\$ (python -m vllm\S* .*)$", text, re.MULTILINE):
            found.append((path.name, shlex.split(line, comments=True)))
    return found


@pytest.mark.parametrize("line", start_lines(), ids=lambda line: line[0])
def test_vllm_reads_the_line(line: tuple[str, list[str]]) -> None:
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    python, m, module, *options = line[1]
    assert (python, m) == ("python", "-m")
    found = importlib.util.find_spec(module)
    assert found is not None
    assert found.origin is not None
    assert '__name__ == "__main__"' in Path(found.origin).read_text(encoding="utf-8")
    asked = make_arg_parser(FlexibleArgumentParser()).parse_args(options)
    assert (asked.model, asked.served_model_name) == ("DIR", ["NAME"])
    assert KEY in asked.additional_config


def test_there_are_such_lines() -> None:
    assert {name for name, _ in start_lines()} == {"servers.md", "steer.md"}

"""What a page of the documentation shows, run: its commands and its Python, top to bottom, in a folder of a user's own.

A block `text` behind an example is what it prints, or a part of it: words and whole numbers to the letter, numbers with
a decimal point to 1 % or two of their last digit. Models compute in float32 here, so that any processor gives the same.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from pages_given import SMALLER, Reader

from amplify.cli import cli, main
from amplify.models import pretrained

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES.remove(ROOT / "docs" / "extending.md")  # tests/test_extending.py installs what it shows
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.S | re.M)
NUMBER = re.compile(r"(?<![\w.])[-+−]?\d[\d,]*(?:\.\d+)?")

STEERED, OVER_HTTP = "tests/steering/test_vllm_steering.py", "def test_over_http_only_some_layers_widened"
ELSEWHERE = {
    "make ": ("Makefile", "the gate runs test and docs; demo has slow scenes, each with files in eval/results"),
    "pip install ": ("eval/check_release.py", "on every Python that is here"),
    "python -m vllm.entrypoints": (STEERED, OVER_HTTP),
    "curl ": (STEERED, OVER_HTTP),
    'with amplify.load_model("vllm:': (STEERED, "def test_a_mixed_batch_is_exact"),
    "amplify run json_formatting --methods pasta --model openai:NAME": (STEERED, OVER_HTTP),
    'amplify generate "Name a colour." --model vllm:': ("tests/models/test_real_models.py", "def test_vllm_writes"),
    "inspect eval": ("tests/bridges/test_inspect_ai.py", "def test_by_its_name_alone"),
}  # fmt: skip
"""What is not run here, by how it begins: the file that runs it, and what stands there."""


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, its text, and what the page says that it prints."""

    language: str
    text: str
    printed: str | None


def blocks(page: Path) -> Iterator[Block]:
    """The blocks of a page that can be run, with the block `text` that follows directly."""
    content = page.read_text(encoding="utf-8")
    found = list(FENCE.finditer(content))
    for block, following in zip_longest(found, found[1:]):
        if block[1] in ("python", "console", "yaml", "jinja"):
            behind = following and following[1] == "text" and not content[block.end() : following.start()].strip()
            yield Block(block[1], block[2], following[2] if following and behind else None)


def commands(block: str) -> list[str]:
    """The commands of a block of a console, each as one line without its remark."""
    lines = re.sub(r"\s*\\\n\s*", " ", block).splitlines()
    return [line[2:] for line in lines if line.startswith("$ ")]


def run_command(line: str, reader: Reader) -> str:
    """Run `amplify …` as a shell would in this folder; what it prints. Anything else is for the shell itself."""
    for shown, run in reader.instead:
        line = line.replace(shown, run)
    if reader.serve is not None and " amplify serve " in line:
        reader.serve(line)
        return ""
    if not line.startswith("amplify "):
        return subprocess.run(line, shell=True, check=True, capture_output=True, text=True).stdout
    words = [
        name
        for word in shlex.split(line, comments=True)[1:]
        for name in (sorted(str(p) for p in Path().glob(word)) if "*." in word and "=" not in word else [word])
    ]
    shorter = reader.shorter.get(words[0], []) if words else []
    if words[:1] == ["run"] and "amplify" in line.partition("--methods ")[2]:
        shorter = [*shorter, "--set", "*.pool=8"]
    done = CliRunner().invoke(cli, [*words, *shorter], catch_exceptions=True)
    assert done.exit_code == 0, f"{line}\n{done.output}\n{done.exception!r}"
    return done.stdout


def refused(line: str, reader: Reader) -> str:
    """Run a command that the page says is wrong; its one line."""
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(said):
        patch.setattr(sys, "argv", shlex.split(line))
        patch.setattr(sys.modules["__main__"], "__package__", None)  # else messages speak of `python -m pytest`
        with pytest.raises(SystemExit) as end:
            main()
    assert end.value.code == 2, line
    assert said.getvalue().count("\n") == 1, said.getvalue()
    return said.getvalue()


def run(block: Block, names: dict[str, Any], reader: Reader) -> str:
    """Run one block; what it prints."""
    if block.language == "python":
        return "" if block.text.startswith(tuple(ELSEWHERE)) else run_python(block.text, names, reader)
    if block.language == "console":
        lines = [line for line in commands(block.text) if not line.startswith(tuple(ELSEWHERE))]
        runs = refused if block.printed and block.printed.startswith("amplify: ") else run_command
        return "".join(runs(line, reader) for line in lines)
    if (named := re.match(r"(?:#|\{#) (\S+\.(?:yaml|jinja))", block.text)) is not None:
        Path(named[1]).write_text(block.text, encoding="utf-8")
    return ""


def run_python(code: str, names: dict[str, Any], reader: Reader) -> str:
    for shown, run in reader.instead:
        code = code.replace(shown, run)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, "page", "exec"), names)
    return out.getvalue()


def same(shown: str, printed: str) -> bool:
    """Whether this was printed; `…` stands for anything."""
    expected, got = " ".join(shown.split()), " ".join(printed.split())
    pattern = NUMBER.sub("\0", expected)
    pattern = re.escape(pattern).replace("…", ".*?").replace(re.escape("\0"), f"({NUMBER.pattern})")
    return any(
        all(map(near, NUMBER.findall(expected), match.groups()[1:])) for match in re.finditer(f"(?=({pattern}))", got)
    )


def near(shown: str, printed: str) -> bool:
    """Whole numbers are the same; others are as near as their last digits."""
    digits = len(shown.partition(".")[2])
    a, b = (float(number.replace(",", "").replace("−", "-")) for number in (shown, printed))
    return abs(a - b) <= (max(0.01 * abs(a), 2 * 10.0**-digits) if digits else 0)


@pytest.mark.real
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = list(blocks(page))
    if not found:
        pytest.skip("no example on this page")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.setattr(pretrained, "auto_dtype", lambda device: "float32")
    reader = Reader(page.relative_to(ROOT).as_posix())
    with reader.prepared() as names:
        for block in found:
            printed = run(block, names, reader)
            assert block.printed is None or same(block.printed, printed), f"{block.text}\nprints\n{printed}"


def test_what_is_run_elsewhere_stands_there() -> None:
    shown = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    for begins, (file, what) in ELSEWHERE.items():
        assert begins in shown, f"{begins!r} is on no page any more"
        content = (ROOT / file).read_text(encoding="utf-8")
        assert not what.startswith("def ") or f"\n{what}" in content, f"{file}: {what}"


def test_what_a_reader_has_instead_is_on_a_page() -> None:
    shown = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert [text for text, _ in SMALLER if text not in shown] == []


@pytest.mark.parametrize(
    ("shown", "printed", "is_same"),
    [
        ("a 1.00 b", "so: a 1.01 b.", True),
        ("a 1.00 b", "a 1.03 b", False),
        ("12 items, 38.0 %", "12 items, 38.2 %", True),
        ("12 items", "13 items", False),
        ("12 items", "112 items", False),
        ("ran in … s, 3 right", "ran in 17.2 s, 3 right", True),
        ("+0.5 to -0.5", "+0.5 to 0.5", False),
        ("one two", "one  \n two", True),
        ("1,500 calls", "1,500 calls", True),
        ("x 5 y", "x 4 y and x 5 y", True),
    ],
)
def test_what_counts_as_the_same(shown: str, printed: str, is_same: bool) -> None:
    assert same(shown, printed) == is_same

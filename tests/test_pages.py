"""What a page of the documentation shows, run: its commands and its Python, top to bottom, in a folder of a user's own.

A block `text` behind an example is what it prints; its words must be what is printed, its numbers near them.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from pages_given import Reader

from amplify.cli import cli

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES.remove(ROOT / "docs" / "extending.md")  # tests/test_extending.py installs what it shows
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.S | re.M)
NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?")

ELSEWHERE = {
    "make ": "the gate itself",
    "pip install ": "tests/test_package.py, and eval/check_release.py on every Python",
    "python -m vllm.entrypoints": "tests/steering/test_vllm_steering.py starts this server",
    "curl ": "tests/steering/test_vllm_steering.py sends this request",
    "AMPLIFY_API_KEY=… amplify serve": "the page's service is started in this process",
    'with amplify.load_model("vllm:': "tests/steering/test_vllm_steering.py steers in this engine",
    "amplify run json_formatting --methods pasta --model openai:NAME": "the same test, over HTTP",
    'amplify generate "Name a colour." --model vllm:': "tests/models/test_real_models.py",
    "amplify heads json_formatting --model ray:": "tests/models/test_ray.py",
    "import lm_eval": "tests/bridges/test_lm_eval.py, with tasks of its own: the published ones come from a hub",
    "import amplify\nfrom amplify.bridges.lm_eval": "the same file",
    "inspect eval": "tests/bridges/test_inspect_ai.py",
    "import dspy": "tests/bridges/test_dspy.py",
    "import amplify\nfrom amplify.bridges.hugging_face": "tests/bridges/test_hugging_face.py, with a local hub",
    "from amplify.bridges import mlflow": "tests/bridges/test_tables.py",
    "from amplify.bridges.ragas": "tests/bridges/test_tables.py",
    "from amplify.bridges.tables": "tests/bridges/test_tables.py",
    "amplify explain-prompt": "tests/prompting/test_explain_prompt.py, with a model that answers at once",
    "from amplify import explain_prompt": "the same file",
    "from amplify import load_model, load_task\nfrom amplify.methods": "tests/methods/test_instructions.py",
}
"""What is not run here, by how it begins, and where it is."""


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
    """Run `amplify …` as a shell would in this folder; what it prints."""
    for shown, run in reader.instead:
        line = line.replace(shown, run)
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


def run_python(code: str, names: dict[str, Any], reader: Reader) -> str:
    for shown, run in reader.instead:
        code = code.replace(shown, run)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, "page", "exec"), names)
    return out.getvalue()


def same(shown: str, printed: str) -> bool:
    """The words are the same, each number within a tenth or a half of the one shown, `…` is anything within a line.

    Scores are of bfloat16 on one machine and of float32 on another, so digits cannot be equal everywhere.
    """
    expected, got = " ".join(shown.split()), " ".join(printed.split())
    pattern = r"(\S+)".join(re.escape(part) for part in NUMBER.split(expected)).replace("…", ".*?")
    if not (match := re.search(pattern, got)):
        return False
    pairs = zip(NUMBER.findall(expected), match.groups(), strict=True)
    values = [(float(a.replace(",", "")), NUMBER.search(b)) for a, b in pairs]
    return all(b and abs(a - float(b[0].replace(",", ""))) <= max(0.5, 0.1 * abs(a)) for a, b in values)


@pytest.mark.real
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = list(blocks(page))
    if not found:
        pytest.skip("no example on this page")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TQDM_DISABLE", "1")
    reader = Reader(page.relative_to(ROOT).as_posix())
    with reader.prepared() as names:
        for block in found:
            printed = ""
            if block.language == "python":
                if not block.text.startswith(tuple(ELSEWHERE)):
                    printed = run_python(block.text, names, reader)
            elif block.language == "console":
                for line in commands(block.text):
                    if not line.startswith(tuple(ELSEWHERE)):
                        printed += run_command(line, reader)
            elif (named := re.match(r"(?:#|\{#) (\S+\.(?:yaml|jinja))", block.text)) is not None:
                Path(named[1]).write_text(block.text, encoding="utf-8")
            assert block.printed is None or same(block.printed, printed), f"{block.text}\nprints\n{printed}"

"""The documentation: built strictly, whole, and no example in it that the program would not take."""

from __future__ import annotations

import html
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import click
import pytest

import amplify
from amplify.cli import cli

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.S | re.M)


def blocks(page: Path, language: str) -> list[str]:
    return [text for kind, text in BLOCK.findall(page.read_text(encoding="utf-8")) if kind == language]


def commands(page: Path) -> list[list[str]]:
    """The words of each `$ amplify …` of a page."""
    lines = "\n".join(blocks(page, "console")).replace("\\\n", " ").splitlines()
    return [shlex.split(line[2:], comments=True) for line in lines if line.startswith("$ amplify ")]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if find_spec("mkdocs") is None or find_spec("mkdocstrings") is None:
        pytest.skip("needs the extra docs")
    out = tmp_path_factory.mktemp("site")
    done = built(ROOT / "mkdocs.yml", out)
    assert done.returncode == 0, done.stderr
    return out


def built(config: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """`mkdocs build --strict`. Not `--quiet`: that hides the very warnings that `--strict` counts."""
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--config-file",
        str(config),
        "--site-dir",
        str(out),
    ]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def text_of(path: Path) -> str:
    return html.unescape(re.sub(r"<[^>]*>", "", path.read_text(encoding="utf-8")))


def leaves(command: click.Command, name: str) -> list[tuple[str, click.Command]]:
    if not isinstance(command, click.Group):
        return [(name, command)]
    return [leaf for inner in command.commands.values() for leaf in leaves(inner, f"{name} {inner.name}")]


@pytest.mark.parametrize(
    ("line", "told"), [("[a guide](gone.md)", "gone.md"), ("[a part](index.md#gone)", "#gone"), ("Well.", "")]
)
def test_a_broken_link_is_an_error(line: str, told: str, tmp_path: Path) -> None:
    """The site's own settings, over one page."""
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[0]
    settings = re.sub(r"^hooks:.*\n", "", settings, flags=re.M)
    (tmp_path / "mkdocs.yml").write_text(settings, encoding="utf-8")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text(f"# A page\n\n{line}\n", encoding="utf-8")
    done = built(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert (done.returncode == 0) == (not told), done.stderr
    assert told in done.stderr


def test_every_public_name_has_its_place(site: Path) -> None:
    page = text_of(site / "reference" / "python.html")
    assert [name for name in amplify.__all__ if f"amplify.{name}" not in page] == []


def test_examples_of_the_reference_are_code(site: Path) -> None:
    page = (site / "reference" / "python.html").read_text(encoding="utf-8")
    assert "<blockquote>" not in page  # what `>>>` is to Markdown
    assert page.count('<span class="gp">&gt;&gt;&gt; </span>') > 2 * len(amplify.__all__)
    assert not re.search(r"<code>\w+,</code>", page)  # several names in the place of one


def test_every_command_and_option_is_there(site: Path) -> None:
    page = text_of(site / "reference" / "cli.html")
    for name, command in leaves(cli, "amplify"):
        assert f"\n{name}" in page
        options = [option for p in command.params if isinstance(p, click.Option) for option in p.opts]
        assert [option for option in options if option not in page] == [], name


def test_every_page_is_in_the_navigation_and_leads_to_no_other_place(site: Path) -> None:
    for page in site.rglob("*.html"):
        content = page.read_text(encoding="utf-8")
        for link in re.findall(r'(?:href|src)="([^"#?]+)', content):
            if "://" not in link and not link.startswith(("data:", "mailto:", "/")):
                assert (page.parent / link).exists(), f"{page.relative_to(site)}: {link}"
        assert not re.search(r'<(?:script|link|img)[^>]*(?:src|href)="https?:', content), page.name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_of_a_page_exist(page: Path) -> None:
    for words in commands(page):
        command: click.Command = cli
        rest = words[1:]
        while isinstance(command, click.Group) and rest and rest[0] in command.commands:
            command, rest = command.commands[rest[0]], rest[1:]
        known = {option for p in command.params for option in p.opts} | {"--help", "-h", "--version"}
        asked = [word.partition("=")[0] for word in rest if re.match(r"--?[A-Za-z]", word)]
        assert [option for option in asked if option not in known] == [], shlex.join(words)
        if isinstance(command, click.Group):
            assert command is cli, shlex.join(words)
            assert not [word for word in rest if not word.startswith("-") and word != "COMMAND"], shlex.join(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_python_of_a_page_is_python_and_asks_for_names_that_exist(page: Path) -> None:
    for block in blocks(page, "python"):
        compile(block, str(page), "exec")
        for name in re.findall(r"\bamplify\.([A-Za-z_]\w*)", block):
            assert hasattr(amplify, name), f"{page.name}: amplify.{name}"

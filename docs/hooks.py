"""What the site takes from the project itself: commands, names, results, pictures, notebooks, the changelog."""

from __future__ import annotations

import html
import inspect
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs"))
import figures  # noqa: E402

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
GROUPS = (
    ("The four verbs", ("tune", "Budget", "attribute_sources", "steered", "parse_emphasis", "Steering", "evaluate")),
    (
        "Models",
        ("load_model", "TransformersModel", "Prompt", "Message", "Span", "Sampling", "Completion", "TokenLogProbs"),
    ),
    (
        "What they give back",
        ("Tuned", "Report", "SourceAttribution", "SourceImportance", "Attribution", "Faithfulness", "Rationale"),
    ),
    ("Tasks and programs", ("load_task", "Task", "Example", "Program", "Answer")),
    (
        "Words and rationales",
        ("explain", "explain_many", "explain_prompt", "faithfulness", "rationalize", "train_proxy", "Proxy"),
    ),
)
"""Public names that stand together; whatever else is public follows by kind."""


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made."""
    made = {
        "reference/cli.md": "\n".join(command_line()),
        "reference/python.md": "\n".join(python()),
        "changelog.md": (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"),
        "results.md": (ROOT / "eval" / "results" / "README.md").read_text(encoding="utf-8"),
        **{f"notebooks/{path.stem}.md": "\n".join(notebook(path)) for path in NOTEBOOKS},
        **{
            f"figures/{name}-{theme}.svg": figures.draw(name, theme)
            for name in figures.FIGURES
            for theme in figures.INK
        },
    }
    for path, content in made.items():
        if (old := files.get_file_from_path(path)) is not None:
            files.remove(old)
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links to what lies beside the pages in the repository are shown as its paths; that of the results is a page."""
    markdown = re.sub(r"<!-- shown: (\w+) -->", lambda found: shown(found[1]), markdown)
    deep = "../" * page.file.src_uri.count("/")
    markdown = re.sub(r"\]\((?:\.\./)+eval/results/README\.md", f"]({deep}results.md", markdown)
    return re.sub(r"\[([^\]]+)\]\((?:\.\./)+((?:eval|tests|prompts|tasks|steering)/[^)]*)\)", _beside, markdown)


def _beside(link: re.Match[str]) -> str:
    """The text of a link with the path that it leads to; the path alone where the text is the file's name."""
    return f"`{link[2]}`" if link[2].endswith(f"/{link[1]}") else f"{link[1]} (`{link[2]}`)"


def shown(name: str) -> str:
    """The first result of a notebook that shows itself."""
    cells = json.loads((ROOT / "docs" / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    found = (out["data"]["text/html"] for cell in cells for out in cell.get("outputs", ()) if "data" in out)
    return f"<div>{''.join(next(found))}</div>"


def notebook(path: Path) -> Iterator[str]:
    """A notebook as a page: its text, its code, and what that gave."""
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if "close()" not in source:  # tidies up, and shows nothing
            yield source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```"
        for output in cell.get("outputs", ()):
            data = output.get("data", {"text/plain": output.get("text", "")})
            if "text/html" in data:
                yield f"\n<div>{''.join(data['text/html'])}</div>\n"
            else:
                yield f"\n```text\n{''.join(data['text/plain']).rstrip()}\n```\n"
        yield ""


def command_line() -> Iterator[str]:
    """Every command with its arguments and options, as the program knows them."""
    from amplify.cli import EXAMPLE, cli

    yield "# Command line\n"
    yield "`amplify` alone says its four verbs; `amplify COMMAND --help` says what stands here.\n"
    yield f"```console\n$ {EXAMPLE.partition('Example:')[2].strip()}\n```\n"
    yield "## Completion\n"
    yield "Commands, options, tasks, methods and models are completed by the shell after a line in its start-up file:\n"
    yield "```bash\nCOMP_WORDBREAKS=${COMP_WORDBREAKS//:}                # ~/.bashrc: names of models hold a colon"
    yield 'eval "$(_AMPLIFY_COMPLETE=bash_source amplify)"     # ~/.bashrc'
    yield 'eval "$(_AMPLIFY_COMPLETE=zsh_source amplify)"      # ~/.zshrc'
    yield "_AMPLIFY_COMPLETE=fish_source amplify | source      # ~/.config/fish/completions/amplify.fish\n```\n"
    for command in cli.commands.values():
        yield from _command(command, "amplify")


def _command(command: click.Command, above: str) -> Iterator[str]:
    context = click.Context(command, info_name=f"{above} {command.name}")
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            yield from _command(inner, f"{above} {command.name}")
        return
    yield f"## {above} {command.name}\n"
    yield f"```console\n$ {' '.join([context.info_name or '', *command.collect_usage_pieces(context)])}\n```\n"
    yield inspect.cleandoc(command.help or "").replace("\b\n", "") + "\n"
    rows = [param.get_help_record(context) for param in command.params if isinstance(param, click.Option)]
    yield "| option | |\n|---|---|"
    yield "\n".join(f"| {_option(row[0])} | {_plain(row[1])} |" for row in rows if row) + "\n"


def _option(text: str) -> str:
    """As code: within backticks a table would keep the backslash before a bar."""
    return f"<code>{html.escape(' '.join(text.split())).replace('|', '&#124;')}</code>"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _plain(text: str) -> str:
    """A cell as it stands, words within backticks as code."""
    parts = re.split(r"(`[^`]+`)", _cell(text))
    return "".join(part if i % 2 else re.sub(r"([\[\]<>*_`])", r"\\\1", part) for i, part in enumerate(parts))


def python() -> Iterator[str]:
    """Every public name, in groups."""
    import amplify

    yield "# Python\n"
    yield "Everything here is a name of `amplify`; it is imported when it is first used.\n"
    left = list(amplify.__all__)
    groups = [(title, [name for name in names if name in left]) for title, names in GROUPS]
    left = [name for name in left if not any(name in names for _, names in groups)]
    errors = [name for name in left if name.endswith("Error")]
    for title, names in (
        *groups,
        ("Values and the rest", [name for name in left if name not in errors]),
        ("Errors", errors),
    ):
        if names:
            yield f"## {title}\n"
        for name in names:
            thing = getattr(amplify, name)
            yield f"::: {thing.__module__}.{thing.__qualname__}"
            yield f"    options:\n      heading: amplify.{name}\n      toc_label: {name}\n      heading_level: 3\n"

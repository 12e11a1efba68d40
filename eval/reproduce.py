"""A table of a paper, from what it will cost to what came out beside what was published.

    python eval/reproduce.py pasta main --small                     # minutes: does it run here?
    python eval/reproduce.py amplify main                           # reduced size, small model
    python eval/reproduce.py self_amplify main --paper --model openai:MODEL@http://127.0.0.1:8000/v1
    python eval/reproduce.py textgenshap recall -- --value votes    # behind -- : options of that paper's own script
    python eval/reproduce.py pasta main --read eval/results/pasta_main_json_formatting.json     # what is there already

The cost is printed first (prompts and tokens, by the methods' own prompts); --dry-run ends there. The same command goes
on where it was stopped, and writes the table, with what was published and what differs, to --results.
"""

from __future__ import annotations

import importlib
import json
import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import yaml

from amplify.errors import AmplifyError

SMALL = {
    "amplify": [
        "--tasks", "coin_flip", "--limit", "4", "--seeds", "0", "--set", "shots=2", "--set", "pool=12",
        "--set", "epochs=1",
    ],
    "self_amplify": [
        "--tasks", "coin_flip", "--limit", "4", "--seeds", "0", "--set", "shots=2", "--set", "pool=12",
        "--set", "budget=16",
    ],
    "pasta": ["--tasks", "json_formatting", "--limit", "4", "--seeds", "0", "--shots", "1"],
    "textgenshap": ["--tasks", "hotpotqa", "--limit", "2", "--budget", "8"],
    "llm_explainers": ["--items", "2", "--neighbours", "4"],
}  # fmt: skip
PAPER = {
    "amplify": ["--paper"],
    "self_amplify": ["--paper"],
    "pasta": ["--paper"],
    "textgenshap": [
        "--tasks", "nq_open,hotpotqa,miracl/en", "--limit", "0", "--budget", "100", "--search", "minilm",
        "--documents", "20",
    ],
    "llm_explainers": ["--items", "0", "--tasks", "amazon_sentiment,imdb_sentiment,yelp_sentiment"],
}  # fmt: skip
SPEED = {"small": ["--items", "1", "--counts", "3", "--budget", "8"], "paper": ["--items", "10", "--counts", "5,10,20"]}
PUBLISHED = Path(__file__).with_name("published.yaml")


def tables_of(paper: str) -> list[str]:
    """The tables of a paper's script."""
    script = importlib.import_module(f"reproduce_{paper}")
    if isinstance(script.main, click.Group):
        return list(script.main.commands)
    table = next((p for p in script.main.params if p.name == "table"), None)
    return list(table.type.choices) if table is not None else ["main"]


def arguments(paper: str, table: str, size: str, given: list[str]) -> list[str]:
    """The command line of a paper's script."""
    sized = {"small": SMALL, "paper": PAPER}.get(size, {}).get(paper, [])
    if (paper, table) == ("textgenshap", "speed"):
        sized = SPEED.get(size, [])
    return [*([table] if len(tables_of(paper)) > 1 else []), *sized, *given]


def beside(paper: str, table: str, size: str, data: dict[str, Any]) -> str:
    """What was published, what came out, and what differs, as Markdown.

    Args:
        paper, table, size: what was reproduced.
        data: the results that the paper's script wrote.
    """
    known = yaml.safe_load(PUBLISHED.read_text(encoding="utf-8"))[paper]
    theirs = (known.get("tables") or {}).get(table)
    lines = [f"## Beside {known['paper']}", ""]
    lines += [f"Its claim: {known['claim']}.", ""] if "claim" in known else []
    lines += [f"Of this table it says: {known['says'][table]}", ""] if table in known.get("says", {}) else []
    rows = compared(theirs, data) if theirs else []
    if rows:
        head = ("task", "method", "score", "theirs", "their figure", "ours", "our interval", "items")
        lines += [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
        lines += [f"| {' | '.join(row)} |" for row in rows]
    else:
        lines.append("Its figures, cell by cell, are not at hand for these tasks.")
    why = [*differences(theirs, size, data), *known.get("differs", ())]
    return "\n".join([*lines, "", "What differs:", "", *(f"- {one}" for one in why), ""])


def model_of(data: dict[str, Any]) -> str:
    """The model of a result, also as files before the key `model` name it."""
    about = data.get("model") or data.get("explainer") or data.get("backend") or {}
    return str(about.get("id") or about.get("spec") or about.get("backend") or "see the table")


def kind_of(label: str, data: dict[str, Any]) -> str:
    """A method's label without its options; where its heads are not those of the task, with whose they are.

    Those that `--multi` names, else the model's own, are of several tasks ("[multi]"); any others are of other tasks
    ("[agnostic]").
    """
    name, _, options = label.partition("[")
    profile = dict(o.partition("=")[::2] for o in options.rstrip("]").split(",")).get("profile")
    given = dict(pairwise(shlex.split(data.get("command", ""))))
    if not profile or profile == given.get("--profile"):
        return name
    return (
        f"{name}[multi]" if profile == given.get("--multi", model_of(data).partition(":")[2]) else f"{name}[agnostic]"
    )


def compared(theirs: dict[str, Any], data: dict[str, Any]) -> list[tuple[str, ...]]:
    """Their figure and ours of each task and method that both have: by the published score where it is one of ours."""
    tasks: dict[str, Any] = data.get("tasks", {})
    near = theirs.get("near", {})
    rows = []
    for figures in theirs["rows"]:
        for task in [figures["task"], *(ours for ours in near if near[ours] == figures["task"])]:
            for row in tasks.get(task, {}).get("rows", ()):
                column = theirs["columns"].get(kind_of(row["method"], data))
                if column not in figures or row["score"] is None:
                    continue
                if (score := figures.get("score")) in row["metrics"]:
                    own, interval = row["metrics"][score], ""
                else:
                    own, score = row["score"], "score"
                    interval = f"{100 * row['low']:.1f} to {100 * row['high']:.1f}"
                ours = f"{theirs['scale'] * own:.1f}"
                rows.append(
                    (task, row["method"], score, column, f"{figures[column]:.2f}", ours, interval, str(row["n"]))
                )
    return rows


def differences(theirs: dict[str, Any] | None, size: str, data: dict[str, Any]) -> list[str]:
    """What a reader must know before the two are compared."""
    found = [f"the model: {model_of(data)}, theirs {theirs['model'] if theirs else 'not at hand'}"]
    if size != "paper":
        found.append(f"the size: {size}, not the paper's tasks with every item (--paper)")
    near = [ours for ours in (theirs or {}).get("near", {}) if ours in data.get("tasks", {})]
    if near:
        found.append(f"the data: {', '.join(near)} stands for {', '.join(theirs['near'][one] for one in near)}")
    counts = [row["n"] for one in data.get("tasks", {}).values() for row in one.get("rows", ()) if "n" in row]
    if counts and min(counts) < 100:
        wide = 98 / max(1, min(counts)) ** 0.5
        found.append(f"as few as {min(counts)} items: a share of one half has a 95 % interval of ±{wide:.0f} points")
    found.append("the prompts: our own templates, with controls, seeds and paired tests that the paper does not have")
    return found


@click.command()
@click.argument("paper", type=click.Choice(list(SMALL)))
@click.argument("table")
@click.argument("further", nargs=-1)
@click.option("--model", help="KIND:MODEL.  [default: that of the paper's script]")
@click.option("--model-option", "-B", multiple=True, metavar="KEY=VALUE", help="Of the model. Repeatable.")
@click.option("--small", "size", flag_value="small", help="A few items, to see that it runs.")
@click.option("--paper", "size", flag_value="paper", help="The paper's tasks, every item.")
@click.option("--dry-run", is_flag=True, help="Say what it will cost, and end.")
@click.option(
    "--read",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Results (JSON) of this table that are there: put them beside what was published, and run nothing.",
)
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/reproduce"), show_default=True)
@click.option("--results", type=click.Path(path_type=Path), default=Path("runs/reproduce/results"), show_default=True)
def main(
    paper: str,
    table: str,
    further: tuple[str, ...],
    model: str | None,
    model_option: tuple[str, ...],
    size: str | None,
    dry_run: bool,
    read: Path | None,
    out: Path,
    results: Path,
) -> None:
    """Reproduce TABLE of PAPER; options of that paper's own script follow behind --."""
    if table not in tables_of(paper):
        raise click.UsageError(f"{paper} has no table {table!r}; there are: {', '.join(tables_of(paper))}")
    if read is not None:
        click.echo(beside(paper, table, size or "reduced", json.loads(read.read_text(encoding="utf-8"))))
        return
    how, name = size or "reduced", f"{paper}_{table}_{size or 'reduced'}"
    given = [*(["--model", model] if model else []), *(part for o in model_option for part in ("-B", o))]
    kept = [] if (paper, table) == ("textgenshap", "speed") else ["--out", str(out / name)]
    script = importlib.import_module(f"reproduce_{paper}").main
    line = arguments(paper, table, how, [*given, *kept, *further])
    click.echo(f"What it will cost ({paper} {table}, {how}):\n")
    script.main([*line, "--dry-run"], standalone_mode=False)
    if dry_run:
        return
    script.main([*line, "--results", str(results), "--name", name], standalone_mode=False)
    stem = results / name
    text = beside(paper, table, how, json.loads(stem.with_suffix(".json").read_text(encoding="utf-8")))
    with stem.with_suffix(".md").open("a", encoding="utf-8") as file:
        file.write(f"\n{text}")
    click.echo(f"\n{text}")


if __name__ == "__main__":
    try:
        main()
    except AmplifyError as error:
        raise SystemExit(f"reproduce: {error}") from None

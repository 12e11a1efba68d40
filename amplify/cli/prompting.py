"""`amplify explain-prompt`: what each part of a prompt is worth, and whether leaving some out helps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from amplify.cli import completing
from amplify.cli.common import Listed, opened_model, required, say, takes_model, takes_task
from amplify.errors import InputError


@click.command("explain-prompt")
@click.argument("task", shell_complete=completing.tasks)
@takes_model
@click.option(
    "--program",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A program.json of a run or of a search, whose prompt has fixed shots.",
)
@click.option("--method", help="Instead: a method by its label, fitted on TASK, e.g. 'few_shot[shots=4]'.")
@click.option("--budget", type=click.IntRange(min=2), default=64, show_default=True, help="Sets of parts to ask.")
@click.option("--items", type=click.IntRange(min=8), default=32, show_default=True, help="Labelled items of the game.")
@click.option(
    "--held-out", type=click.IntRange(min=0), default=100, show_default=True, help="Other items to check its advice on."
)
@click.option(
    "--estimator",
    type=Listed("amplify.prompting.explain:ESTIMATORS"),
    default="auto",
    show_default=True,
    help="auto is exact where all sets fit the budget.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the items and of what is sampled.")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder for page, scores, program."
)
@takes_task
def explain_prompt(
    task: str,
    model: str | None,
    model_option: tuple[str, ...],
    program: Path | None,
    method: str | None,
    out: Path,
    **options: Any,
) -> None:
    """Show what each part of a prompt for TASK is worth: instruction, labels, each shot, each rationale.

    Its advice (what to leave out, another order of the shots) is checked on items that it was not made from, beside the
    same done by lot; OUT/program.json is the changed program. Nothing of the test split is looked at.
    """
    from amplify.files import make_folder
    from amplify.methods.base import Program
    from amplify.prompting import explain_prompt as explained
    from amplify.tasks import load_task

    if (program is None) == (method is None):
        raise InputError("give either --program, a saved program, or --method, a method's label")
    loaded = load_task(task, **{key: options.pop(key) for key in ("data", "text", "label")})
    given: Program | str = Program.load(program) if program else str(method)
    folder = make_folder(out)
    with opened_model(required(model, "--model"), model_option) as opened:
        found = explained(given, loaded, opened, **options)
    found.save(folder / "prompt.json")
    found.program.save(folder / "program.json")
    found.to_html(folder / "prompt.html")
    say(str(found))
    say(f"\npage: {folder / 'prompt.html'}\n{found.advice}: {folder / 'program.json'}")

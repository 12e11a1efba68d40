"""`amplify tune`: find what makes a model's answers to a task better, and the program to deploy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from amplify.cli import completing
from amplify.cli.common import (
    for_vllm,
    names,
    opened_model,
    required,
    resumes,
    say,
    takes_cache,
    takes_model,
    takes_task,
)


@click.command()
@click.argument("task", shell_complete=completing.tasks)
@takes_model
@click.option(
    "--budget", required=True, help="The most it may take: 20m, tokens=2M, calls=5000, or several with commas."
)
@click.option(
    "--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder for what is found."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of folds, shots and proxies.")
@click.option(
    "--candidates",
    help="What is tried: METHOD[OPTION=VALUE;...]+CALIBRATION, separated by commas.  [default: what fits the task]",
)
@click.option(
    "--mode", type=click.Choice(["generate", "score"]), help="Of candidates.  [default: score labels if it can]"
)
@click.option("--metric", shell_complete=completing.metrics, help="Instead of the task's: see `amplify list metrics`.")
@takes_task
@takes_cache
def tune(task: str, model: str | None, model_option: tuple[str, ...], budget: str, out: Path, seed: int,
         candidates: str | None, mode: Any, cache: str | None, **given: Any) -> None:  # fmt: skip
    """Find what makes a model's answers to TASK better: a race of methods under a budget.

    Nothing of the test split is looked at. The winner is confirmed on items that the search has not seen; else the best
    plain prompt is given back. The same command resumes a search that was stopped.
    """
    from amplify.tasks import load_task
    from amplify.tuning import Budget
    from amplify.tuning import tune as search
    from amplify.tuning.report import command

    limit = Budget.parse(budget)
    loaded = load_task(task, **{key: given.get(key) for key in ("data", "text", "label", "metric")})
    listed = None if candidates is None else [text.replace(";", ",") for text in names(candidates)]
    settings = for_vllm(model, model_option, steering=bool(loaded.emphasis))
    with opened_model(required(model, "--model"), settings, cache) as opened, resumes():
        found = search(loaded, opened, limit, seed=seed, out=out, candidates=listed, mode=mode)
    say(str(found))
    say(f"\ndeploy: {command(found, str(out))}\nreport: {out / 'report.html'}")

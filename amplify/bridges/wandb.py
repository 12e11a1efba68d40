"""Weights & Biases: a run's settings, figures, tables and files as a run of its own, online or offline."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from amplify.bridges.tables import figures, report_of, tables
from amplify.errors import RunError, extras
from amplify.evaluation.report import Report

with extras():
    import wandb

__all__ = ["log_run"]

_FILES = ("run.json", "report.html", "report.md", "records.jsonl")


def log_run(
    run: Report | str | Path,
    *,
    project: str = "amplify",
    name: str | None = None,
    mode: Literal["online", "offline"] | None = None,
    folder: str | Path | None = None,
) -> str:
    """Log a run.

    Settings become its configuration, figures its summary, the tables of rows and comparisons W&B tables, and the run
    folder an artifact of the type "amplify-run".

    Args:
        run: a report, or a run folder.
        project: of W&B.
        name: of the run there; None: task and model.
        mode: "offline" keeps it on this machine (`wandb sync` sends it later); None: as W&B is configured.
        folder: where W&B writes; None: here.

    Returns:
        The id of the run in W&B.

    Raises:
        RunError: the run is not finished, or W&B refuses.
        MissingExtraError: wandb is not installed.

    Example:
        >>> import amplify
        >>> from amplify.bridges import wandb
        >>> task = amplify.load_task("coin_flip", limit=5)
        >>> report = amplify.evaluate(task, "scripted:say=yes", ["zero_shot"], progress=False)
        >>> len(wandb.log_run(report, mode="offline"))
        8
    """
    report = report_of(run)
    if not report.finished:
        raise RunError("the run is not finished: finish it first, so that what is logged is what it says")
    settings, numbers = figures(report)
    options: dict[str, Any] = {} if folder is None else {"dir": str(folder)}
    try:
        begun = wandb.init(
            project=project,
            name=name or f"{settings['task']} {settings['model']}",
            mode=mode,
            job_type="evaluate",
            config=settings,
            settings=wandb.Settings(silent=True, console="off"),
            reinit="create_new",
            **options,
        )
    except wandb.Error as error:
        raise RunError(f"W&B does not begin a run ({error}): log in, or ask for mode='offline'") from error
    with begun:
        begun.summary.update(numbers)
        frames = tables(report)
        begun.log({name: wandb.Table(dataframe=_told(frames[name])) for name in ("rows", "comparisons")})
        if not isinstance(run, Report):
            artifact = wandb.Artifact("run", type="amplify-run")
            for file in _FILES:
                if (Path(run) / file).exists():
                    artifact.add_file(str(Path(run) / file))
            artifact.add_dir(str(Path(run) / "programs"), "programs")
            begun.log_artifact(artifact)
    return str(begun.id)


def _told(frame: Any) -> Any:
    """The frame with lists as text: a column of a W&B table has one plain type."""
    listed = [c for c in frame.columns if frame[c].map(lambda v: isinstance(v, list)).any()]
    return frame.assign(**{c: frame[c].map(lambda v: ", ".join(map(str, v))) for c in listed})

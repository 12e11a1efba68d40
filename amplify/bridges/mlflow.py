"""MLflow: a run's settings, figures, tables and files in a tracking store."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from amplify.bridges.tables import figures, report_of, write_parquet
from amplify.errors import RunError, extras
from amplify.evaluation.report import Report

with extras():
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param
    from mlflow.exceptions import MlflowException

__all__ = ["log_run"]

_FILES = ("run.json", "report.html", "report.md", "records.jsonl", "programs")


def log_run(
    run: Report | str | Path,
    *,
    experiment: str = "amplify",
    name: str | None = None,
    tracking_uri: str | None = None,
) -> str:
    """Log a run.

    Settings become parameters, figures metrics (characters that MLflow does not take are `_`), the tables parquet
    artifacts, and the run folder's files artifacts as they are.

    Args:
        run: a report, or a run folder.
        experiment: of MLflow; made where there is none.
        name: of the run in MLflow; None: task and model.
        tracking_uri: where to; None: as MLflow is configured. Works offline: a folder of this machine, as
            "file:mlruns" with MLFLOW_ALLOW_FILE_STORE=true in the environment, or, with all of mlflow installed and not
            only mlflow-skinny, a database.

    Returns:
        The id of the run in MLflow.

    Raises:
        RunError: the run is not finished, MLflow refuses, or lacks a package for this kind of store.
        MissingExtraError: mlflow-skinny is not installed.

    Example:
        >>> import amplify
        >>> from amplify.bridges import mlflow
        >>> task = amplify.load_task("coin_flip", limit=5)
        >>> report = amplify.evaluate(task, "scripted:say=yes", ["zero_shot"], progress=False)
        >>> len(mlflow.log_run(report, tracking_uri="file:mlruns"))  # MLFLOW_ALLOW_FILE_STORE=true is set
        32
    """
    report = report_of(run)
    if not report.finished:
        raise RunError("the run is not finished: finish it first, so that what is logged is what it says")
    settings, numbers = figures(report)
    title = name or f"{settings['task']} {settings['model']}"
    try:
        client = MlflowClient(tracking_uri=tracking_uri)
        there = client.get_experiment_by_name(experiment)
        place = client.create_experiment(experiment) if there is None else there.experiment_id
        made = client.create_run(place, run_name=title, tags={"amplify": str(settings["amplify"])})
        key = made.info.run_id
        at = made.info.start_time
        measured = [Metric(_allowed(k), v, at, 0) for k, v in numbers.items()]
        asked = [Param(_allowed(k), str(v)[:500]) for k, v in settings.items()]
        for start in range(0, max(len(measured), len(asked)), 100):  # the most that one call takes
            end = start + 100
            client.log_batch(key, metrics=measured[start:end], params=asked[start:end])
        with tempfile.TemporaryDirectory(prefix="amplify-") as temporary:
            write_parquet(report, Path(temporary) / "tables")
            if isinstance(run, Report):
                report.to_html(Path(temporary) / "report.html")
                report.to_markdown(Path(temporary) / "report.md")
            client.log_artifacts(key, temporary)
        if not isinstance(run, Report):
            for file in _FILES:
                if (path := Path(run) / file).exists():
                    (client.log_artifacts if path.is_dir() else client.log_artifact)(
                        key, str(path), file if path.is_dir() else None
                    )
        client.set_terminated(key)
    except ModuleNotFoundError as error:
        raise RunError(
            f"MLflow needs the package {error.name!r} for this store: pip install mlflow, or log to a folder"
        ) from error
    except MlflowException as error:
        raise RunError(f"MLflow does not take the run: {error}") from error
    return str(key)


def _allowed(name: str) -> str:
    """The name in the characters that MLflow takes."""
    return re.sub(r"[^\w\-. :/]", "_", name)[:250]

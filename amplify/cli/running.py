"""`amplify run`, `report` and `apply`: evaluate methods, look at a run, answer new rows."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from amplify.cli import completing
from amplify.cli.common import (
    Listed,
    NewFile,
    for_vllm,
    names,
    numbers,
    opened_model,
    pairs,
    required,
    resumes,
    say,
    takes_cache,
    takes_model,
    takes_task,
)
from amplify.errors import InputError


@click.command()
@click.argument("task", required=False, shell_complete=completing.tasks)
@takes_model
@click.option(
    "--methods",
    "-M",
    shell_complete=completing.methods,
    help="Method names, separated by commas (see `amplify list methods`).",
)
@click.option("--seeds", default=None, help="Whole numbers, separated by commas.  [default: 0,1,2]")
@click.option("--limit", type=click.IntRange(min=1), help="Evaluate this many test items only.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Run folder.  [default: runs/TASK-HASH]")
@click.option("--mode", type=click.Choice(["generate", "score"]), help="Parse what is written, or score the labels.")
@click.option(
    "--calibrate",
    type=Listed("amplify.calibration:WAYS"),
    help="How label scores are calibrated, of every method alike.  [default: batch where labels are scored, else none]",
)
@click.option(
    "--option-form",
    type=Listed("amplify.methods.lettered:OPTION_FORMS"),
    help="How lettered options are scored, of every method alike (score mode).  [default: letters]",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="METHOD.OPTION=VALUE",
    help="Option of a method; *.OPTION: of all that have it. Repeatable.",
)
@click.option(
    "--config", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="Suite: these options as YAML."
)
@click.option(
    "--also",
    help="Measure too: rationales (does the label follow them; score mode), uncertainty (of written answers).",
)
@click.option("--baseline", help="Compare with this method only, instead of with every baseline.")
@click.option("--metric", help="Instead of the task's: see `amplify list metrics`; evaluate:FOLDER of Hugging Face.")
@click.option("--batch-size", type=click.IntRange(min=1), help="Examples answered between two writes.  [default: 32]")
@takes_task
@takes_cache
@click.option("--dry-run", is_flag=True, help="Print the calls and tokens to expect, and stop.")
def run(task: str | None, config: Path | None, settings: tuple[str, ...], dry_run: bool, **given: Any) -> None:
    """Evaluate methods on TASK: a name, a YAML file, a CSV/JSONL file or a hub data set.

    The same command resumes a run that was stopped. Records, fitted programs and the report are in --out.
    """
    from amplify.errors import UnknownNameError
    from amplify.evaluation import evaluate, plan
    from amplify.evaluation.configuration import ALSO, declare_family, make_methods
    from amplify.tasks import load_task

    suite = _suite(config, {"task": task, **given}, pairs(settings, "--set"))
    loaded = load_task(suite["task"], **{key: suite.get(key) for key in ("data", "text", "label", "metric")})
    # before an engine starts, which can take a minute
    methods = make_methods(suite["methods"], suite.get("mode") or "generate", suite["options"])
    declare_family(methods, suite.get("baseline"))
    for one in suite.get("also") or ():
        if one not in ALSO:
            raise UnknownNameError("further measurement", one, ALSO)
    common = {k: suite[k] for k in ("seeds", "limit", "calibrate") if suite.get(k) is not None}
    if dry_run and suite["model"].startswith("vllm:"):
        say(str(plan(loaded, None, methods, **common)))
        return
    steers = any(method.steers for method in methods)
    settings = for_vllm(suite["model"], tuple(suite.get("model_option") or ()), steering=steers)
    with opened_model(suite["model"], settings, None if dry_run else suite.get("cache")) as model:
        if dry_run:
            say(str(plan(loaded, model, methods, **common)))
            for one in suite.get("also") or ():
                say(f"--also {one}: {_ASKED[one]}, not counted above")
            return
        extra = {k: suite[k] for k in ("baseline", "batch_size", "option_form", "also") if suite.get(k) is not None}
        out = Path(suite.get("out") or default_folder(suite))
        with resumes():
            report = evaluate(loaded, model, methods, out=out, **common, **extra)
    say(str(report))
    say(f"\nreport: {out / 'report.html'}")


_ASKED = {
    "rationales": "each answer behind a rationale is scored four times more, and its rationale said again once",
    "uncertainty": "five more answers to each free question, each scored twice",
}


def default_folder(suite: Mapping[str, Any]) -> Path:
    """Where a run without --out is kept: `runs/TASK-HASH`, the same for the same options and for no others."""
    task = str(suite["task"])
    name = Path(task).stem if os.path.isfile(task) else task
    short = re.sub(r"[^\w.-]+", "-", name).strip(".-")[:80] or "task"
    told = json.dumps(
        {key: value for key, value in suite.items() if key not in ("out", "cache")}, sort_keys=True, default=str
    )
    return Path("runs") / f"{short}-{hashlib.sha256(told.encode('utf-8', 'backslashreplace')).hexdigest()[:8]}"


SUITE_KEYS = (
    "task", "model", "model_option", "methods", "seeds", "limit", "out", "mode", "options",
    "baseline", "batch_size", "calibrate", "option_form", "data", "text", "label", "metric", "cache", "also",
)  # fmt: skip


def _suite(config: Path | None, given: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """The suite file's values, overridden by what was given on the command line."""
    from amplify.errors import UnknownNameError
    from amplify.files import from_yaml

    try:
        suite = from_yaml(config.read_text(encoding="utf-8-sig"), str(config)) if config else {}
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{config} is not readable YAML: {error}") from error
    if not isinstance(suite, dict):
        raise InputError(f"{config} holds no mapping; a suite is a YAML mapping with the options of `amplify run`")
    for key in suite:
        if key not in SUITE_KEYS:
            raise UnknownNameError("suite key", str(key), SUITE_KEYS)
    _check_kinds(suite, str(config))
    suite |= {key: value for key, value in given.items() if value not in (None, ())}
    suite["options"] = {**(suite.get("options") or {}), **options}
    if isinstance(suite.get("seeds"), str):
        suite["seeds"] = numbers(suite["seeds"])
    if isinstance(suite.get("model_option"), str):
        suite["model_option"] = [suite["model_option"]]
    if isinstance(suite.get("methods"), str):
        suite["methods"] = names(suite["methods"])
    if isinstance(suite.get("also"), str):
        suite["also"] = names(suite["also"])
    for key, hint in (("task", "TASK"), ("model", "--model"), ("methods", "--methods")):
        if not suite.get(key):
            raise InputError(f"{hint} is missing: give it on the command line or in a --config file")
    return suite


def _check_kinds(suite: dict[str, Any], where: str) -> None:
    """Refuse values of a suite file of which the command could make nothing."""
    kinds: tuple[tuple[str, Callable[[Any], bool], tuple[str, ...]], ...] = (
        (
            "a text",
            lambda v: isinstance(v, str),
            ("task", "model", "out", "mode", "baseline", "data", "text", "label", "cache"),
        ),
        ("a whole number from 1", lambda v: type(v) is int and v > 0, ("limit", "batch_size")),
        ("a list of whole numbers", lambda v: isinstance(v, str) or _all(v, int), ("seeds",)),
        ("a list of texts", lambda v: isinstance(v, str) or _all(v, str), ("methods", "model_option", "also")),
        ("a mapping, e.g. amplify.k: 3", lambda v: isinstance(v, dict) and _all(list(v), str), ("options",)),
    )
    for what, fits, keys in kinds:
        for key in keys:
            if suite.get(key) is not None and not fits(suite[key]):
                raise InputError(f"{where}: {key} is {what}, not {suite[key]!r}")


def _all(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(type(v) is kind for v in value)


@click.command()
@click.argument("program", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "--input",
    "source",
    required=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="CSV or JSONL with the new rows.",
)
@click.option("--text", required=True, help="Column that holds the input.")
@takes_model
@takes_cache
@click.option("--out", required=True, type=NewFile(), help="CSV to write.")
@click.option(
    "--batch-size", type=click.IntRange(min=1), default=32, show_default=True, help="Rows between two writes."
)
@click.option(
    "--as-they-are", is_flag=True, help="Write cells that begin like a formula (=, +, -, @) without a ' in front."
)
def apply(
    program: Path,
    source: Path,
    text: str,
    model: str | None,
    model_option: tuple[str, ...],
    cache: str | None,
    out: Path,
    **how: Any,
) -> None:
    """Answer new, unlabelled rows with a fitted PROGRAM: answer, rationale and score per row. Resumes."""
    from amplify.evaluation.apply import apply_program
    from amplify.methods.base import Program

    loaded = Program.load(program)
    with opened_model(required(model, "--model"), model_option, cache) as opened, resumes():
        counts = apply_program(loaded, source, text, opened, out, **how)
    say(f"{counts.rows} rows, {counts.unparsed} without an answer: {out}")


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
def report(folder: Path) -> None:
    """Render FOLDER's report.html and report.md again from its records, and print the table."""
    from amplify.evaluation import load_report

    loaded = load_report(folder)
    say(str(loaded))
    loaded.to_html(folder / "report.html")
    loaded.to_markdown(folder / "report.md")
    say(f"\nreport: {folder / 'report.html'}")

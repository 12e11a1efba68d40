"""The tables of AMPLIFY (arXiv 2305.11426), one command each.

    python eval/reproduce_amplify.py main                      # reduced size: the small models, a few tasks
    python eval/reproduce_amplify.py selection --tasks support_tickets
    python eval/reproduce_amplify.py main --paper --model vllm:meta-llama/Llama-3.1-8B-Instruct \\
        --proxy bert-base-uncased --set shots=10              # full size: the paper's seven tasks, every test item

Each task is one run folder under --out (killed and started again, it goes on); the table over all of them is written to
--results as JSON and Markdown, with the date, the machine and the versions.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
from pathlib import Path
from typing import Any

import click
from measuring import command, evaluated, loaded, model_options, open_exact

import amplify
from amplify.errors import AmplifyError
from amplify.methods import METHODS, make
from amplify.methods.base import Method

# every method, and the paper's tables: method names with the options in which their columns differ
TABLES: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "all": [
        (name, {})
        for name in (
            "zero_shot",
            "few_shot",
            "few_shot_balanced",
            "few_shot_knn",
            "zero_shot_cot",
            "human_cot",
            "amplify",
            "amplify_no_rationale",
            "amplify_random_words",
            "amplify_shuffled_rationales",
            "amplify_tfidf_words",
            "amplify_test_words",
            "answer_format_only",
            "proxy_alone",
        )
    ],
    "main": [
        ("zero_shot", {}),
        ("few_shot", {}),
        ("zero_shot_cot", {}),
        ("human_cot", {}),
        ("amplify", {}),
        ("amplify_no_rationale", {}),
        ("amplify_random_words", {}),
        ("proxy_alone", {}),
    ],
    "proxy": [("amplify", {"proxy": "minilm"}), ("amplify", {"proxy": "smollm2-135m", "epochs": 0})],
    "epochs": [("amplify", {"epochs": epochs}) for epochs in (1, 4, 10)],
    "selection": [
        *(("amplify", {"selection": s}) for s in ("mcs_high", "mcs_low", "most_faithful", "random")),
        ("amplify", {"balanced": True}),  # ours
    ],
    "explainer": [
        ("amplify", {"explainer": explainer, "contrastive": contrastive})
        for explainer in ("grad_x_input", "grad_norm")
        for contrastive in (True, False)
    ],
    "k": [("amplify", {"k": k}) for k in (1, 3, 5, 7)],
    "template": [("amplify", {"template": t}) for t in ("key_words", "paper", "words_only")],
}

PAPER_TASKS = (
    "bbh/snarks",
    "bbh/causal_judgement",
    "bbh/ruin_names",
    "bbh/formal_fallacies",
    "bbh/salient_translation_error_detection",
    "commonsenseqa",
    "coin_flip_ood",
)


def methods_of(
    table: str, task: amplify.tasks.Task, mode: str, proxy: str | None, settings: dict[str, str]
) -> list[Method]:
    """The columns of a table that this task can have; the baseline few_shot stands beside every ablation."""
    columns = TABLES[table] if table in ("all", "main") else [("few_shot", {}), *TABLES[table]]
    made = []
    for name, options in columns:
        if (name == "human_cot" and not task.cot) or (options.get("balanced") and not task.labels):
            continue
        own = dict(options)
        known = METHODS[name].options
        own = {option: value for option, value in settings.items() if option in known} | own
        if proxy and "proxy" in known:
            own.setdefault("proxy", proxy)
        made.append(make(name, mode=mode, **own))  # type: ignore[arg-type]
    return made


@click.command()
@click.argument("table", type=click.Choice(list(TABLES)))
@click.option("--tasks", default="support_tickets,amazon_sentiment,bbh/snarks", show_default=True)
@click.option("--paper", is_flag=True, help="The paper's seven tasks with every test item.")
@click.option("--model", default="transformers:smollm2-135m", show_default=True)
@click.option("--model-option", "-B", "options", multiple=True, metavar="KEY=VALUE", help="Of the model. Repeatable.")
@click.option("--dry-run", is_flag=True, help="Say what it takes, and ask nothing.")
@click.option("--proxy", default=None, help="Encoder or language model instead of the methods' default.")
@click.option("--seeds", default="0,1,2", show_default=True)
@click.option("--limit", type=int, default=60, show_default=True, help="Test items a task; 0 for all of them.")
@click.option(
    "--set", "settings", multiple=True, metavar="OPTION=VALUE", help="For every method that has it. Repeatable."
)
@click.option("--mode", type=click.Choice(["generate", "score"]), default="generate", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/reproduce_amplify"), show_default=True)
@click.option("--name", default=None, help="Stem of the results' file names.  [default: amplify_TABLE_MODE]")
@click.option("--results", type=click.Path(path_type=Path), default=Path("eval/results"), show_default=True)
def main(
    table: str,
    tasks: str,
    paper: bool,
    model: str,
    options: tuple[str, ...],
    dry_run: bool,
    proxy: str | None,
    seeds: str,
    limit: int,
    settings: tuple[str, ...],
    mode: str,
    out: Path,
    name: str | None,
    results: Path,
) -> None:
    """Reproduce TABLE on each task and write one table over all of them."""
    reports = {}
    names = PAPER_TASKS if paper else tasks.split(",")
    with open_exact(model, **model_options(options)) as opened:
        for each, task in loaded(names, dry_run).items():
            reports[each] = evaluated(
                dry_run,
                task,
                opened,
                methods_of(table, task, mode, proxy, dict(s.split("=", 1) for s in settings)),
                seeds=[int(seed) for seed in seeds.split(",")],
                limit=None if paper else limit or None,
                out=out / f"{table}-{mode}" / each.replace("/", "-"),
                calibrate="none",  # as published
            )
        about = opened.describe()
    if dry_run:
        return
    write(results / (name or f"amplify_{table}_{mode}"), table, model, about, reports)


def write(
    stem: Path, table: str, model: str, about: dict[str, Any], reports: dict[str, Any], title: str = "AMPLIFY"
) -> None:
    """The results as JSON, and as Markdown rendered from it."""
    data = {
        "table": table,
        "command": command(),
        "model": {"id": model, **about},
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "amplify": amplify.__version__,
        "tasks": {name: report.to_dict() for name, report in reports.items()},
    }
    stem.parent.mkdir(parents=True, exist_ok=True)
    stem.with_suffix(".json").write_text(json.dumps(data, indent=1, default=str) + "\n")
    body = "\n\n".join(f"## {name}\n\n{report.to_markdown()}" for name, report in reports.items())
    made = f"{data['date']}, {data['machine']}, `{model}`, amplify {data['amplify']}, `{data['command']}`"
    head = f"# {title}: {table}\n\n{made}\n\n"
    stem.with_suffix(".md").write_text(head + body + "\n")
    click.echo(f"written: {stem}.json, {stem}.md")


if __name__ == "__main__":
    try:
        main()
    except AmplifyError as error:
        raise SystemExit(f"reproduce_amplify: {error}") from None

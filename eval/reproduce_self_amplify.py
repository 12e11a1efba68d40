"""The tables of Self-AMPLIFY (arXiv 2402.12038), one command each.

    python eval/reproduce_self_amplify.py main                      # reduced size: the small model, two tasks
    python eval/reproduce_self_amplify.py selection --mode score
    python eval/reproduce_self_amplify.py lead --skip 20 --mode score   # on other items than those that suggested it
    python eval/reproduce_self_amplify.py main --paper --model vllm:mistralai/Mistral-7B-Instruct-v0.2

The gradient methods and DeepLIFT need a transformers: model; on another one their columns are left out. Each task is
one run folder under --out (killed and started again, it goes on); the table over all of them is written to --results as
JSON and Markdown, with the date, the machine and the versions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from measuring import evaluated, loaded, model_options, open_exact
from reproduce_amplify import write

from amplify.attribution.explainers import METHODS as EXPLAINERS
from amplify.errors import AmplifyError
from amplify.methods import METHODS, SelfAmplify, make
from amplify.methods.base import Method
from amplify.models.base import LanguageModel, LocalModel, ScoringModel

SHOTS, K = 4, 5  # the paper's
VARIANTS = ("topk", "phcot", "autocot", "occlusion", "lime", "shap", "shapley_sampling", "gradient", "deeplift")
CONTROLS = ("no_rationale", "random_words")
BEST: dict[str, Any] = {"selection": "mcs_high", "balanced": True}

# method names with the options in which the columns differ; few_shot stands beside every ablation
TABLES: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "main": [
        ("zero_shot", {}),
        *((f"self_amplify_{name}", {}) for name in (*VARIANTS, *CONTROLS)),
        ("amplify", {}),
    ],
    "selection": [
        (f"self_amplify_{name}", {"selection": selection})
        for name in ("topk", "no_rationale")
        for selection in ("success", "error", "random", "mcs_high", "mcs_low")
    ],
    "diversity": [("self_amplify_topk", {**BEST, "diversity": d}) for d in ("none", "mmr", "sp_lime")],
    "shots": [("self_amplify_topk", {"shots": n}) for n in (1, 2, 4, 6, 8)],
    "k": [("self_amplify_topk", {"k": k}) for k in (1, 3, 5, 7)],
    # the two that stood highest in the reduced `main` table, and their controls: few comparisons for many items
    "lead": [(f"self_amplify_{name}", {}) for name in ("gradient", "occlusion", *CONTROLS)],
    "gate": [
        *(
            (name, {"gate": gate})
            for name in ("self_amplify_topk", "self_amplify_shap", "amplify")
            for gate in (False, True)
        ),
        *(("amplify", {"explainer": "auto", "gate": gate}) for gate in (False, True)),
        *(("amplify_no_rationale", {"gate": gate}) for gate in (False, True)),
    ],
}

PAPER_TASKS = ("arc_challenge", "commonsenseqa", "social_iqa", "bbh/causal_judgement", "bbh/snarks")


def methods_of(table: str, model: LanguageModel, mode: str, settings: Mapping[str, str] | None = None) -> list[Method]:
    """The columns of a table that this model can have, with further options where methods have them."""
    made = []
    for name, options in [("few_shot", {}), *TABLES[table]]:
        own = {"shots": SHOTS, "k": K, **(settings or {}), **options}
        known = METHODS[name].options
        method = make(name, mode=mode, **{option: value for option, value in own.items() if option in known})  # type: ignore[arg-type]
        if isinstance(model, LocalModel) or not _needs_more(method, isinstance(model, ScoringModel)):
            made.append(method)
        else:
            click.echo(f"{method.label} is left out: {model.id} does not show what it needs", err=True)
    return made


def _needs_more(method: Method, scores: bool) -> bool:
    """Whether a method needs gradients, or log-probabilities where there are none."""
    if not isinstance(method, SelfAmplify):
        return False
    own = method.selection.startswith("mcs") or method.gate or method.explain_by in EXPLAINERS
    return method.needs_gradients or (not scores and own)


@click.command()
@click.argument("table", type=click.Choice(list(TABLES)))
@click.option("--tasks", default="support_tickets,amazon_sentiment", show_default=True)
@click.option("--paper", is_flag=True, help="The paper's five tasks with every test item.")
@click.option("--model", default="transformers:smollm2-135m", show_default=True)
@click.option("--model-option", "-B", "options", multiple=True, metavar="KEY=VALUE", help="Of the model. Repeatable.")
@click.option("--dry-run", is_flag=True, help="Say what it takes, and ask nothing.")
@click.option("--seeds", default="0,1,2", show_default=True)
@click.option("--limit", type=int, default=60, show_default=True, help="Test items a task; 0 for all of them.")
@click.option("--skip", type=int, default=0, show_default=True, help="Leave out so many first test items of a task.")
@click.option(
    "--set", "settings", multiple=True, metavar="OPTION=VALUE", help="For every method that has it. Repeatable."
)
@click.option("--mode", type=click.Choice(["generate", "score"]), default="generate", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/reproduce_self_amplify"), show_default=True)
@click.option("--name", default=None, help="Stem of the results' file names.  [default: self_amplify_TABLE_MODE]")
@click.option("--results", type=click.Path(path_type=Path), default=Path("eval/results"), show_default=True)
def main(
    table: str,
    tasks: str,
    paper: bool,
    model: str,
    options: tuple[str, ...],
    dry_run: bool,
    seeds: str,
    limit: int,
    skip: int,
    settings: tuple[str, ...],
    mode: str,
    out: Path,
    name: str | None,
    results: Path,
) -> None:
    """Reproduce TABLE on each task and write one table over all of them."""
    reports = {}
    with open_exact(model, **model_options(options)) as opened:
        for each, task in loaded(PAPER_TASKS if paper else tasks.split(","), dry_run).items():
            reports[each] = evaluated(
                dry_run,
                replace(task, test=task.test[skip:]),
                opened,
                methods_of(table, opened, mode, dict(s.split("=", 1) for s in settings)),
                seeds=[int(seed) for seed in seeds.split(",")],
                limit=None if paper else limit or None,
                out=out / f"{table}-{mode}" / each.replace("/", "-"),
                calibrate="none",  # as published
            )
        about = opened.describe()
    if dry_run:
        return
    write(results / (name or f"self_amplify_{table}_{mode}"), table, model, about, reports, title="Self-AMPLIFY")


if __name__ == "__main__":
    try:
        main()
    except AmplifyError as error:
        raise SystemExit(f"reproduce_self_amplify: {error}") from None

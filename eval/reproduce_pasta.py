"""The tables of PASTA (arXiv 2311.02262), one command each.

    python eval/reproduce_pasta.py main                              # reduced size: SmolLM2 and the tasks at hand
    python eval/reproduce_pasta.py alpha --tasks counterfact_known/efficacy
    python eval/reproduce_pasta.py main --paper --model vllm:meta-llama/Llama-3.1-8B-Instruct --data DATA \\
        --profile mine.yaml --agnostic others.yaml        # full size; profiles are made by `amplify heads`

Tables: `main` (baselines, task-specific, multi-task and task-agnostic heads, relatives), `shots` (steering behind
examples, which the paper does not have, against the same examples without it), `heads` (which head set: the profile,
random heads, every head, one layer's), `alpha` and `number` (curves), `sensitivity` (the same request in other words),
`auto` (AutoPASTA: the key sentence is named by the model or by an attribution), `refusals` (for --tasks over_refusal).
Each task is one run folder under --out (killed and started again, it goes on); the table over all of them is written to
--results as JSON and Markdown, with the date, the machine and the versions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import click
from measuring import evaluated, loaded, model_options, open_exact
from reproduce_amplify import write

import amplify
from amplify.errors import AmplifyError
from amplify.methods import make
from amplify.methods.base import Method
from amplify.methods.pasta import find_profile, first_heads, model_name
from amplify.steering import Steering, profiles

TABLES = ("main", "shots", "heads", "alpha", "number", "sensitivity", "auto", "refusals")
REDUCED = "json_formatting,pronouns,counterfact_known/efficacy,counterfact_known/paraphrase"
PAPER_TASKS = "json_formatting,pronouns,bias_bios,counterfact/efficacy,counterfact/paraphrase"
ALPHAS = (0.001, 0.01, 0.03, 0.1, 0.3)
NUMBERS = (1, 2, 4, 8, 16, 32, 64)

# the same request in other words: the paper's "shortened" and "rephrased", and one that spells the format out
WORDINGS = {
    "json_formatting": {
        "original": None,
        "shortened": "Give the name and occupation as JSON.",
        "rephrased": 'Describe this person by one JSON object with the keys "name" and "occupation" alone.',
        "explicit": "Write one JSON object that says who this person is. "
        'Its two keys are "name" and "occupation". Write nothing else.',
    },
    "pronouns": {
        "original": None,
        "shortened": 'Replace "she" and "he" by "they".',
        "rephrased": 'Copy this text, but use "they", "them", "their" for the person instead of gendered pronouns.',
    },
}


def methods_of(
    table: str, task: amplify.tasks.Task, model: Any, mode: str, shots: int, profile: str, alpha: float, multi: str,
    agnostic: str,
) -> list[Method]:  # fmt: skip
    """The rows of a table. Empty profile names mean the profile that is shipped for this model and task."""
    own: dict[str, Any] = ({"profile": profile} if profile else {}) | ({"alpha": alpha} if alpha else {})

    def one(name: str, **options: Any) -> Method:
        return make(name, mode=mode, **options)  # type: ignore[arg-type]

    if table == "main":
        rows = [one("zero_shot"), one("marked_prompt"), one("few_shot", shots=shots), one("pasta_random_heads", **own)]
        rows.append(one("pasta", **own))
        specific = find_profile(profile, model, task.name)
        others = [n for n in (multi, agnostic) if n and Steering.load(n) != specific]
        rows += [one("pasta", **{**own, "profile": n}) for n in others]
        if model.id.startswith("vllm:"):
            click.echo(f"{task.name}: without spotlight, whose second attention pass vLLM does not offer")
            return [*rows, one("instaboost")]
        return [*rows, one("spotlight"), one("instaboost")]
    if table == "shots":
        names = ("few_shot", "few_shot_marked", "few_shot_pasta_random_heads", "few_shot_pasta")
        given = [one(name, shots=shots, **(own if "pasta" in name else {})) for name in names]
        return [one("zero_shot"), one("marked_prompt"), *given]
    if table == "auto":
        sources = ("model", "attribution")
        found = [one("auto_pasta", **own, source=s) for s in sources]
        return [one("zero_shot"), one("pasta", **own), one("auto_pasta_random", **own), *found]
    if table == "refusals":
        return [one(name) for name in ("zero_shot", "ignore_word", "rephrase", "negative_emphasis")]
    if table == "heads":
        steering = find_profile(profile, model, task.name)
        best = max(steering.heads or {0: ()}, key=lambda layer: len((steering.heads or {})[layer]))
        shape = range(int(steering.model["heads"]))
        folder = Path("runs/profiles")
        folder.mkdir(parents=True, exist_ok=True)
        sets = {
            "all_heads": {layer: tuple(shape) for layer in range(int(steering.model["layers"]))},
            "one_layer": {best: tuple(shape)},
        }
        for name, heads in sets.items():
            replace(steering, heads=heads, provenance={}).save(folder / f"{name}.yaml")
        named = [one("pasta", profile=str(folder / f"{name}.yaml")) for name in sets]
        return [one("zero_shot"), one("pasta_random_heads", **own), one("pasta", **own), *named]
    if table == "alpha":
        return [one("zero_shot"), *(one("pasta", **{**own, "alpha": a}) for a in ALPHAS)]
    if table == "number":
        ranked = find_profile(profile, model, task.name)
        known = len(ranked.provenance.get("order", ()))
        counts = [n for n in NUMBERS if n <= known and first_heads(ranked, n)]
        return [one("zero_shot"), one("pasta", **own), *(one("pasta", **own, heads=n) for n in counts)]
    return [one("zero_shot"), one("marked_prompt"), one("pasta_random_heads", **own), one("pasta", **own)]


@click.command()
@click.argument("table", type=click.Choice(TABLES))
@click.option("--tasks", default=REDUCED, show_default=True)
@click.option("--paper", is_flag=True, help="The paper's tasks, every test item.")
@click.option("--model", default="transformers:smollm2-135m", show_default=True)
@click.option("--model-option", "-B", "options", multiple=True, metavar="KEY=VALUE", help="Of the model. Repeatable.")
@click.option("--dry-run", is_flag=True, help="Say what it takes, and ask nothing.")
@click.option("--data", type=click.Path(path_type=Path, file_okay=False), help="Default: $AMPLIFY_DATA.")
@click.option("--profile", default="", help="Head profile instead of the one shipped for model and task.")
@click.option("--alpha", type=float, default=0.0, help="Instead of the profile's own.")
@click.option("--mode", type=click.Choice(["score", "generate"]), help="[default: score where a task has labels]")
@click.option(
    "--multi", default="", help="Head profile of several tasks, as one more row of `main`.  [default: the model's]"
)
@click.option("--agnostic", default="", help="Head profile of other tasks, as one more row of `main`.")
@click.option("--seeds", default="0,1,2", show_default=True)
@click.option("--limit", type=int, default=40, show_default=True, help="Test items a task; 0 for all of them.")
@click.option("--shots", type=int, default=4, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/reproduce_pasta"), show_default=True)
@click.option("--results", type=click.Path(path_type=Path), default=Path("eval/results"), show_default=True)
@click.option("--name", default="", help="Name of the two result files.  [default: pasta_TABLE]")
def main(
    table: str,
    tasks: str,
    paper: bool,
    model: str,
    options: tuple[str, ...],
    dry_run: bool,
    data: Path | None,
    profile: str,
    alpha: float,
    mode: Literal["score", "generate"] | None,
    multi: str,
    agnostic: str,
    seeds: str,
    limit: int,
    shots: int,
    out: Path,
    results: Path,
    name: str,
) -> None:
    """Reproduce TABLE on each task and write one table over all of them."""
    steers = {"steering": True} if model.startswith("vllm:") else {}
    reports = {}
    with open_exact(model, **{**steers, **model_options(options)}) as opened:
        if not multi and model_name(opened) in profiles():
            multi = model_name(opened)
        for task_name in loaded((PAPER_TASKS if paper else tasks).split(","), dry_run, data=data):
            for wording, instruction in wordings(table, task_name):
                task = amplify.load_task(task_name, data, instruction=instruction)
                way = mode or ("score" if task.labels_of(task.test[0]) else "generate")
                label = f"{task_name} ({wording})" if wording else task_name
                reports[label] = evaluated(
                    dry_run,
                    task,
                    opened,
                    methods_of(table, task, opened, way, shots, profile, alpha, multi, agnostic),
                    seeds=[int(seed) for seed in seeds.split(",")],
                    limit=None if paper else limit or None,
                    out=out / table / "-".join([*task_name.split("/"), *([wording] if wording else [])]),
                    calibrate="none",  # as published
                )
        about = opened.describe()
    if dry_run:
        return
    write(results / (name or f"pasta_{table}"), table, model, about, reports, title="PASTA")


def wordings(table: str, task: str) -> Sequence[tuple[str, str | None]]:
    """The instructions that a table asks a task with: (name, text), None for the task's own."""
    if table != "sensitivity":
        return [("", None)]
    if task not in WORDINGS:
        click.echo(f"{task}: no other wordings; left out")
        return []
    return list(WORDINGS[task].items())


if __name__ == "__main__":
    try:
        main()
    except AmplifyError as error:
        raise SystemExit(f"reproduce_pasta: {error}") from None

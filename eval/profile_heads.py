"""Successive halving against the exhaustive pass over the same samples: runs, heads in common, held-out margin.

    nice -n 10 python eval/profile_heads.py counterfact_known/efficacy --samples 32

Every run (one head set on one sample) is written to --records at once: killed and started again, it goes on. On a CPU
an exhaustive pass of SmolLM2 takes some ten minutes a core for CounterFact and over an hour for tasks that generate;
--samples makes both searches smaller alike.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import click
import numpy as np
from measuring import open_exact

import amplify
from amplify.errors import AmplifyError
from amplify.head_search.margins import by_layer, heads_of
from amplify.head_search.search import HeadSearch, Profile, find_heads, held_out

SEARCHES: tuple[Literal["halving", "exhaustive"], ...] = ("halving", "exhaustive")


@click.command()
@click.argument("tasks", nargs=-1, required=True)
@click.option("--model", default="transformers:smollm2-135m", show_default=True)
@click.option("--data", type=click.Path(path_type=Path, file_okay=False), help="Default: $AMPLIFY_DATA.")
@click.option("--samples", type=int, default=32, show_default=True)
@click.option("--held-out", "tested", type=int, default=32, show_default=True, help="Test items for the final margin.")
@click.option("--records", type=click.Path(path_type=Path), default=Path("runs/head_profiling"), show_default=True)
@click.option("--results", type=click.Path(path_type=Path), default=Path("eval/results/head_search.json"))
def main(
    tasks: tuple[str, ...], model: str, data: Path | None, samples: int, tested: int, records: Path, results: Path
) -> None:
    """Profile each of TASKS both ways and compare."""
    from amplify.progress import progress

    out: dict[str, Any] = {
        "command": f"python eval/profile_heads.py {' '.join(tasks)} --samples {samples}",
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "amplify": amplify.__version__,
        "tasks": {},
    }
    with open_exact(model) as opened, progress(unit="run") as bar:
        out["model"] = opened.describe()
        for name in tasks:
            task = amplify.load_task(name, data)
            found: dict[str, Profile] = {}
            for search in SEARCHES:
                path = records / f"{name.replace('/', '-')}.{search}.runs.jsonl"
                found[search] = find_heads(
                    [task], opened, HeadSearch(samples=samples, search=search), record=path, progress=bar.update
                )
            out["tasks"][name] = compared(task, opened, found, tested)
            click.echo(json.dumps(out["tasks"][name]["summary"], indent=1))
    results.parent.mkdir(parents=True, exist_ok=True)
    results.write_text(json.dumps(out, indent=1, default=str) + "\n", encoding="utf-8")


def compared(task: amplify.tasks.Task, model: Any, found: dict[str, Profile], tested: int) -> dict[str, Any]:
    """Runs, the margin on test items that neither search has seen, and how far the two rankings agree."""
    summary: dict[str, Any] = {}
    for search, made in found.items():
        plain, steered = held_out(task, model, made.steering, samples=tested)
        summary[search] = {
            "runs": made.runs,
            "heads": len(heads_of(made.steering.heads or {})),
            "held_out_margin": round(steered, 4),
            "plain_margin": round(plain, 4),
        }
    first, second = (found[search].rankings[task.name] for search in SEARCHES)
    for size in (10, 20, 40):
        summary[f"top_{size}_in_common"] = len(first.top(size) & second.top(size))
    summary["fewer_runs"] = round(summary["exhaustive"]["runs"] / summary["halving"]["runs"], 2)
    # the paper's way: the k best single heads, not selected jointly
    size = summary["halving"]["heads"]
    plain_top = replace(found["exhaustive"].steering, heads=by_layer(second.top(size)))
    summary["exhaustive_top_k_held_out_margin"] = round(held_out(task, model, plain_top, samples=tested)[1], 4)
    gains = {
        search: {f"{layer}.{head}": round(made.rankings[task.name].gains[layer, head], 4)
                 for layer, head in made.rankings[task.name].heads}
        for search, made in found.items()
    }  # fmt: skip
    both = [h for h in first.heads if first.samples[h]]
    ranks = np.corrcoef(
        np.argsort(np.argsort([first.gains[h] for h in both])), np.argsort(np.argsort([second.gains[h] for h in both]))
    )
    summary["rank_correlation_over_heads_that_both_tried"] = round(float(ranks[0, 1]), 3)
    return {"summary": summary, "gains": gains}


if __name__ == "__main__":
    try:
        main()
    except AmplifyError as error:
        raise SystemExit(f"profile_heads: {error}") from None

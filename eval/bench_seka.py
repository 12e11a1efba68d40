"""SEKA beside PASTA on facts that the context has changed: effect, its control, and what a pass costs.

    python eval/bench_seka.py [--model transformers:qwen2.5-coder-0.5b] [--limit 80] [--out eval/results/seka.json]

Task `counterfact_known/efficacy`, scored: right is the new object likelier than the old one. Projections are learned
from texts made by rule, so nothing of the task is in them; the two gains are chosen on the validation split (SEKA's
published ones stand beside it) and looked at once on test items. Controls: projections of equal rank on random
directions with the same gains, two seeds, and for PASTA as many random heads, two seeds. The differences are of
pairs of items; intervals and p-values as in reports (Holm over the comparisons named).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from measuring import command

import amplify
from amplify.evaluation.statistics import compare, holm, interval_of
from amplify.methods import make
from amplify.steering.keys import save_profile

GAINS = ((0.8, 0.2), (1.6, 0.4), (3.2, 0.8), (3.2, 0.0))
SEEDS = (0, 1)


def right(name: str, task: Any, model: Any, examples: Sequence[Any], seed: int = 0, **options: Any) -> list[float]:
    """1 where the new object is the likelier one, for each example."""
    program = make(name, mode="score", **options).fit(task, model, seed)
    answers = program.answer(examples, model)
    return [float(a.scores[str(e.label)] > a.scores[e.fields["old"]]) for a, e in zip(answers, examples, strict=True)]


def main() -> None:
    """Learn, choose, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", "-m", default="transformers:qwen2.5-coder-0.5b")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--limit", type=int, default=80, help="test items")
    parser.add_argument("--validation", type=int, default=40, help="items that the gains are chosen on")
    parser.add_argument("--layers", type=int, nargs="*", default=[10], help="last layers edited, 0 for all")
    parser.add_argument("--out", type=Path, default=Path("eval/results/seka.json"))
    args = parser.parse_args()
    task = amplify.load_task("counterfact_known/efficacy")
    validation, test = task.validation[: args.validation], task.test[: args.limit]
    with amplify.load_model(args.model, dtype=args.dtype) as model, tempfile.TemporaryDirectory() as scratch:
        chosen: dict[str, Any] = {}
        tried = []
        for layers in args.layers:
            profile = Path(scratch) / f"last{layers}.yaml"
            begun = time.process_time()
            learned = save_profile(model, profile, layers=layers).provenance
            seconds = time.process_time() - begun
            for positive, negative in GAINS:
                options = {"profile": str(profile), "positive_gain": positive, "negative_gain": negative}
                share = float(np.mean(right("seka", task, model, validation, **options)))
                tried.append({"layers": layers, "gains": [positive, negative], "validation": share})
                print(tried[-1], flush=True)
                if share > chosen.get("validation", -1):
                    chosen = {"validation": share, "options": options, "layers": layers, "learned": dict(learned)}
                    chosen["seconds_of_processor_to_learn"] = seconds
        published = {**chosen["options"], "positive_gain": 0.8, "negative_gain": 0.2}
        found: dict[str, list[list[float]]] = {"plain": [right("zero_shot", task, model, test)]}
        seconds_of: dict[str, float] = {}
        for name, method, seeds, options in (
            ("seka", "seka", (0,), chosen["options"]),
            ("pasta", "pasta", (0,), {}),
            ("seka, random directions", "seka_random", SEEDS, chosen["options"]),
            ("seka, published gains", "seka", (0,), published),
            ("pasta, random heads", "pasta_random_heads", SEEDS, {}),
        ):
            begun = time.process_time()
            found[name] = [right(method, task, model, test, seed, **options) for seed in seeds]
            seconds_of[name] = (time.process_time() - begun) / len(seeds)
            print(name, np.mean(found[name]), flush=True)
        begun = time.process_time()
        right("zero_shot", task, model, test)
        seconds_of["plain"] = time.process_time() - begun
        about = {"model": model.describe()["model"], "dtype": model.describe()["dtype"]}
    methods = {}
    for name, scores in found.items():
        each = interval_of(scores)
        methods[name] = {
            "efficacy": float(np.mean(scores)), "interval": [each.low, each.high],
            "by_seed": [float(np.mean(s)) for s in scores], "seconds_of_processor": seconds_of[name],
        }  # fmt: skip
    pairs = [
        ("seka", "plain"), ("seka", "seka, random directions"), ("pasta", "plain"), ("pasta", "pasta, random heads"),
        ("seka", "pasta"),
    ]  # fmt: skip
    tests = [compare(found[a], found[b]) for a, b in pairs]
    compared = [
        {"a": a, "b": b, "difference": difference, "interval": [interval.low, interval.high], "p_holm": p}
        for (a, b), (difference, interval, _), p in zip(pairs, tests, holm([t.p for *_, t in tests]), strict=True)
    ]
    chosen["options"].pop("profile")
    result = {"command": command(), **about, "items": len(test), "chosen": chosen, "tried_on_validation": tried,
              "methods": methods, "compared": compared}  # fmt: skip
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    for name, entry in methods.items():
        low, high = entry["interval"]
        print(f"{name:26}{entry['efficacy']:.1%} [{low:.1%}, {high:.1%}]")
    for pair in compared:
        print(f"{pair['a']} - {pair['b']}: {pair['difference']:+.1%}, p = {pair['p_holm']:.3g}")


if __name__ == "__main__":
    main()

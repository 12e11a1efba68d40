"""`score` behind one few-shot prefix, against one full forward pass per (item, label).

    python eval/bench_score.py --data DATA_FOLDER [--out eval/results/bench_score.json]

Both sides run the same model object in one process and read the same target logits only. The plain side is timed on
pairs spread evenly over all (`--pairs`, 0 for every one) and scaled to all by the tokens it would forward, which are
counted exactly; log-probabilities are compared on those pairs. Sides alternate, after a warm-up pass; each side's best
round counts, since whatever else runs on a machine can only slow one down, and all rounds are in the JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers

from amplify.models import chat
from amplify.models.transformers import LoadOptions, TransformersModel
from amplify.tasks import load_task
from amplify.types import Example, Prompt

GOAL = {"fewer_tokens": 10.0, "faster": 6.0}


def prompts(name: str, data: str | None, shots: int, items: int) -> tuple[list[Prompt], tuple[str, ...]]:
    """One prompt per test item, all behind the same shots."""
    task = load_task(name, data=data) if data else load_task(name)
    if len(task.test) < items:
        raise SystemExit(f"{name} has {len(task.test)} test items, --items asks for {items}")

    def show(example: Example, label: str | None) -> str:
        return f"{task.input_name}: {example.text}\nAnswer:{f' {label}' if label else ''}"

    head = "\n\n".join([task.instruction, *(show(e, e.label) for e in task.train[:shots])])
    return [Prompt(text=f"{head}\n\n{show(e, None)}") for e in task.test[:items]], task.labels


@torch.inference_mode()
def plain(model: TransformersModel, prompt: Prompt, continuation: str) -> tuple[list[float], int]:
    """Log-probabilities of one pair from one full forward pass, and its tokens."""
    ids, start = chat.encode_with_target(model.tokenizer, chat.render(prompt, model.tokenizer), continuation)
    whole = torch.tensor([ids], device=model.device)
    # the pass of a careful user: no cache written, logits of the target alone
    logits = model.module(whole, use_cache=False, logits_to_keep=len(ids) - start + 1).logits[0, :-1].float()
    return logits.log_softmax(-1).gather(1, whole[0, start:, None])[:, 0].tolist(), len(ids)


def measure(model: TransformersModel, asked: Sequence[tuple[Prompt, str]], timed: int, rounds: int) -> dict[str, Any]:
    """Both sides, alternating."""
    spread = [round(i * (len(asked) - 1) / max(1, timed - 1)) for i in range(timed)] if timed else range(len(asked))
    chosen = list(dict.fromkeys(spread))
    columns = [p for p, _ in asked], [c for _, c in asked]
    tokens = sum(model.count_tokens([Prompt(text=(p.text or "") + c) for p, c in asked]))
    model.score(columns[0][:4], columns[1][:4])
    plain(model, *asked[0])
    ours, theirs, differences, timed_tokens = [], [], [], 0
    before = model.usage.snapshot()
    for _ in range(rounds):
        start = time.perf_counter()
        scored = model.score(*columns)
        ours.append(time.perf_counter() - start)
        start = time.perf_counter()
        reference = [plain(model, *asked[i]) for i in chosen]
        theirs.append(time.perf_counter() - start)
        timed_tokens = sum(n for _, n in reference)
        for i, (values, _) in zip(chosen, reference, strict=True):
            differences += [abs(a - b) for a, b in zip(scored[i].logprobs, values, strict=True)]
    forwarded = model.usage.since(before).forwarded_tokens // rounds
    seconds, plain_seconds = min(ours), min(theirs) * tokens / timed_tokens
    return {
        "pairs": len(asked),
        "amplify": {"forwarded_tokens": forwarded, "seconds": seconds, "all_seconds": ours},
        "plain": {
            "forwarded_tokens": tokens,
            "seconds": plain_seconds,
            "pairs_timed": len(chosen),
            "tokens_timed": timed_tokens,
            "all_seconds_timed": theirs,
        },
        "fewer_tokens": tokens / forwarded,
        "faster": plain_seconds / seconds,
        "largest_difference": max(differences),
    }


def table(result: dict[str, Any]) -> str:
    """The result as a Markdown table."""
    lines = [
        f"{result['items']} items x {result['labels']} labels of {result['task']} behind {result['shots']} shots, "
        f"{result['setting']['model']}, {result['machine']['threads']} CPU thread(s)",
        "",
        "| | amplify | one pass per pair | ratio | goal |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, key, ratio, unit in (
        ("tokens forwarded", "forwarded_tokens", "fewer_tokens", ",.0f"),
        ("seconds", "seconds", "faster", ",.2f"),
    ):
        a, b = result["amplify"][key], result["plain"][key]
        lines.append(f"| {name} | {a:{unit}} | {b:{unit}} | {result[ratio]:.1f}x | {result['goal'][ratio]:.0f}x |")
    return "\n".join([*lines, "", f"Largest difference of a log-probability: {result['largest_difference']:.1e}."])


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--task", default="amazon_sentiment")
    parser.add_argument("--data", default=os.environ.get("AMPLIFY_DATA"), help="folder of local data sets")
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--shots", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=20, help="pairs that the plain side is timed on; 0: all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    asked, labels = prompts(args.task, args.data, args.shots, args.items)
    with TransformersModel.load(args.model, LoadOptions(dtype="float32")) as model:
        pairs = [(p, f" {label}") for p in asked for label in labels]
        result = {
            "what": (__doc__ or "").split("\n")[0],
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "task": args.task,
            "items": args.items,
            "labels": len(labels),
            "shots": args.shots,
            **measure(model, pairs, args.pairs, args.rounds),
            "goal": GOAL,
            "setting": model.describe(),
            "machine": {"platform": platform.platform(), "cpus": os.cpu_count(), "threads": torch.get_num_threads()},
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        }
    print(table(result))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        args.out.with_suffix(".md").write_text(table(result) + "\n", encoding="utf-8")
    if any(result[k] < v for k, v in GOAL.items()) or result["largest_difference"] > 1e-3:
        raise SystemExit("a goal was missed")


if __name__ == "__main__":
    main()

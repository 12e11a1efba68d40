"""Throughput of the vllm model, against calling `vllm.LLM.generate` directly on the same engine.

    python eval/bench_vllm.py [--prompts 256] [--rounds 7] [--out eval/results/bench_vllm.json]

One engine, the same prompts, the same greedy sampling. The direct side gets ready-made strings, so the model's side
carries everything it adds: rendering, tokenising, checks, usage counts. The sides alternate, and so does which of them
goes first; the prefix cache is emptied before each. Each round gives one ratio; their median is reported with its
interval (`measuring.middle`).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from measuring import middle

from amplify import Prompt, Sampling, load_task
from amplify.models.chat import render
from amplify.models.vllm import VLLMModel

GOAL = 0.95


def measure(model: VLLMModel, prompts: list[Prompt], new_tokens: int, rounds: int) -> dict[str, Any]:
    """Alternate both sides; every answer of every round must be the same."""
    from vllm import SamplingParams

    texts = [render(p, model.tokenizer).text for p in prompts]
    params = SamplingParams(max_tokens=new_tokens, temperature=0.0)
    sides: dict[str, Callable[[], list[str]]] = {
        "direct": lambda: [o.outputs[0].text for o in model.llm.generate(texts, params, use_tqdm=False)],
        "model": lambda: [c.text for c in model.generate(prompts, Sampling(max_tokens=new_tokens))],
    }
    expected = sides["direct"]()  # warm-up
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    same = 0
    for i in range(rounds):
        for name in sorted(sides, reverse=bool(i % 2)):
            model.llm.reset_prefix_cache()
            start = time.perf_counter()
            answers = sides[name]()
            seconds[name].append(time.perf_counter() - start)
            same += sum(a == b for a, b in zip(answers, expected, strict=True))
    ratios = [d / b for d, b in zip(seconds["direct"], seconds["model"], strict=True)]
    return {
        "throughput_of_direct": middle(ratios),
        "equal_answers": same / (2 * rounds * len(prompts)),
        "prompts_per_second": {name: len(prompts) / statistics.median(s) for name, s in seconds.items()},
        "seconds": seconds,
    }


def main() -> None:
    """Run, print, write, and fail where the goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--task", default="support_tickets")
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--new-tokens", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    task = load_task(args.task)
    examples = [*task.train, *task.validation, *task.test][: args.prompts]
    if len(examples) < args.prompts:
        raise SystemExit(f"{args.task} has {len(examples)} examples, --prompts asks for {args.prompts}")
    prompts = [Prompt(text=f"{e.text}\nTopic:") for e in examples]
    with VLLMModel(args.model, dtype=args.dtype, max_model_len=2048, enforce_eager=True) as model:
        found = {
            "what": "throughput of the vllm model over that of vllm.LLM.generate, same engine",
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
            "cpus": os.cpu_count(),
            "model": model.describe(),
            "prompts": len(prompts),
            "prompt_tokens": sum(model.count_tokens(prompts)),
            "new_tokens": args.new_tokens,
            "goal": GOAL,
            **measure(model, prompts, args.new_tokens, args.rounds),
        }
    ratio = found["throughput_of_direct"]
    low, high = ratio["interval"]
    print(f"vllm model: {ratio['median']:.3f} of the direct throughput [{low:.3f}, {high:.3f}], goal {GOAL}")
    if args.out:
        args.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if ratio["median"] < GOAL:
        raise SystemExit(f"missed the goal of {GOAL}")


if __name__ == "__main__":
    main()

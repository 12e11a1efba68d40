"""What steering costs.

    python eval/bench_steering.py vllm --profile NAME --seka [--model MODEL] …
    python eval/bench_steering.py vllm [--prompts 64] [--tokens 300] [--new 32] [--rounds 7] [--heads 54]
    python eval/bench_steering.py transformers [--tokens 2000] …
    python eval/bench_steering.py transformers --shape llama-8b --dtype bfloat16 …

vLLM: one engine as it comes and one that was started for steering (and, with --narrow, one that is widened only in
the layers that have steered heads) stand side by side, each in its own process; a round runs the same prompts through
each side: `stock`, `plain` (unsteered, in the steering engine), `steered`. With --profile the sides are `stock` and
`pasta`, in an engine started for that profile, and with --seka `seka`, by projections found from 20 texts (what they
hold does not change what they cost). transformers: plain and steered on one model (with --narrow also with as many
heads in as few layers as hold them), and the peak of memory. Sides alternate
in their order; no prompt is seen twice, so the prefix cache never helps. Each round gives one ratio; their median is
reported with its interval (`measuring.middle`). Beside the seconds on the wall stand those of processor time that a
side took: on a machine with other work these are the steadier (with OMP_NUM_THREADS=1, since waiting threads spin).

--shape takes a model of that shape with random weights, on the GPU where there is one, and one more side, `dense`: the
released PASTA code's way, eager attention with a mask for each head. Before anything is timed both must give the same
logits on a tiny model. The goal is .97 of plain throughput; no figure has been measured on a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from measuring import middle, peak
from random_llama import SHAPES, differences, head_set, shaped, shaped_sides, tenth

from amplify import Prompt, Sampling, Span, Steering, load_model
from amplify.steering.formula import TokenSpan
from amplify.steering.keys import save_profile

Side = Callable[[Sequence[Sequence[int]], int], object]


@dataclass(frozen=True)
class Spent:
    """What each side took in each round, in seconds on the wall and of processor time."""

    wall: dict[str, list[float]]
    cpu: dict[str, list[float]]


def settle() -> None:
    """Wait until a GPU that this process uses has done all it was told."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def memory(run: Callable[[], object], device: torch.device) -> int:
    """Bytes taken at most while `run` goes on, the model's own included: on a GPU allocated there, else resident."""
    if device.type != "cuda":
        return peak(run)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    return torch.cuda.max_memory_allocated(device)


def interleave(sides: dict[str, Side], draw: Callable[[], list[list[int]]], new: int, rounds: int) -> Spent:
    """Time each side in each round, after one round of warm-up."""
    spent = Spent({name: [] for name in sides}, {name: [] for name in sides})
    for i in range(-1, rounds):
        prompts = draw()
        for name in sorted(sides, reverse=bool(i % 2)):
            settle()
            cpu, start = cpu_seconds(), time.perf_counter()
            sides[name](prompts, new)
            settle()
            wall, cpu = time.perf_counter() - start, cpu_seconds() - cpu
            print(f"round {i}: {name} {wall:.2f} s, processor {cpu:.2f} s", file=sys.stderr, flush=True)
            if i >= 0:
                spent.wall[name].append(wall)
                spent.cpu[name].append(cpu)
    return spent


def cpu_seconds() -> float:
    """Processor time of this process and of all below it, engines among them; only the side that runs adds to it."""
    ticks: dict[int, int] = {}
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            numbers = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # gone meanwhile
        pid = int(path.parent.name)
        ticks[pid] = int(numbers[11]) + int(numbers[12])  # of user and system
        children.setdefault(int(numbers[1]), []).append(pid)
    total, todo = 0, [os.getpid()]
    while todo:
        pid = todo.pop()
        total += ticks.get(pid, 0)
        todo += children.get(pid, [])
    return total / os.sysconf("SC_CLK_TCK")


def ratio(seconds: dict[str, list[float]], side: str, of: str) -> dict[str, Any] | None:
    """Throughput of one side over that of another; None where a round was over before the clock had moved once."""
    if 0 in (*seconds[side], *seconds[of]):
        return None
    each = [b / a for a, b in zip(seconds[side], seconds[of], strict=True)]
    return middle(each)


def throughput(spent: Spent, pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Ratios of throughput, and what they are made of."""
    return {
        "throughput": {f"{side}/{of}": ratio(spent.wall, side, of) for side, of in pairs},
        "throughput_by_processor_time": {f"{side}/{of}": ratio(spent.cpu, side, of) for side, of in pairs},
        "seconds": spent.wall,
        "processor_seconds": spent.cpu,
    }


def vllm_side(model: Any, steering: Steering | None) -> Side:
    """Token ids through an engine; the middle tenth of each prompt is emphasised."""
    from vllm import SamplingParams

    from amplify.steering.payload import KEY, payload

    def run(prompts: Sequence[Sequence[int]], new: int) -> None:
        params = []
        for ids in prompts:
            extra = None
            if steering is not None:
                spans = [TokenSpan(*tenth(len(ids)), steering.default_weight)]
                extra = {KEY: payload(steering, spans, len(ids))}
            params.append(SamplingParams(max_tokens=new, temperature=0.0, ignore_eos=True, extra_args=extra))
        model.llm.reset_prefix_cache()
        model.llm.generate([{"prompt_token_ids": list(ids)} for ids in prompts], params, use_tqdm=False)

    return run


def bench_profiles(args: argparse.Namespace) -> dict[str, Any]:
    """Stock engines against engines that are started for one profile each, all requests of them steered."""
    steerings: dict[str, Steering] = {"pasta": Steering.load(args.profile)} if args.profile else {}
    with tempfile.TemporaryDirectory() as scratch:
        if args.seka:
            with load_model(f"transformers:{args.model}", dtype=args.dtype) as model:
                steerings["seka"] = save_profile(model, Path(scratch) / "seka.yaml", samples=20)
        options = {
            "dtype": args.dtype, "enforce_eager": args.eager, "max_model_len": args.tokens + args.new + 8, "seed": 0,
        }  # fmt: skip
        spec = f"vllm:{args.model}"
        models = {"stock": load_model(spec, **options)}
        models |= {name: load_model(spec, steering=steering, **options) for name, steering in steerings.items()}
        sides = {name: vllm_side(model, steerings.get(name)) for name, model in models.items()}
        words = models["stock"].llm.llm_engine.model_config.hf_text_config.vocab_size
        rng = np.random.default_rng(0)
        spent = interleave(
            sides, lambda: rng.integers(100, words, (args.prompts, args.tokens)).tolist(), args.new, args.rounds
        )
        result = throughput(spent, [(name, "stock") for name in steerings])
        result["engines"] = {name: model.describe() for name, model in models.items()}
        for model in models.values():
            model.close()
    return result


def bench_vllm(args: argparse.Namespace) -> dict[str, Any]:
    """Stock against steering engines."""
    spec = f"vllm:{args.model}"
    options = {
        "dtype": args.dtype,
        "enforce_eager": args.eager,
        "max_model_len": args.tokens + args.new + 8,
        "seed": 0,
    }
    models = {"stock": load_model(spec, **options), "wide": load_model(spec, steering=True, **options)}
    config = models["stock"].llm.llm_engine.model_config.hf_text_config
    layers, heads = config.num_hidden_layers, config.num_attention_heads
    steering = Steering(heads=head_set(layers, heads, args.heads, False))
    sides = {
        "stock": vllm_side(models["stock"], None),
        "plain": vllm_side(models["wide"], None),
        "steered": vllm_side(models["wide"], steering),
    }
    if args.narrow:
        few = Steering(heads=head_set(layers, heads, args.heads, True))
        models["narrow"] = load_model(spec, steering=few, **options)
        sides["narrow"] = vllm_side(models["narrow"], few)
    rng = np.random.default_rng(0)

    def draw(count: int) -> list[list[int]]:
        return rng.integers(100, config.vocab_size, (count, args.tokens)).tolist()

    spent = interleave(sides, lambda: draw(args.prompts), args.new, args.rounds)
    one = interleave(sides, lambda: draw(1), args.new, args.rounds)
    prefill = interleave(sides, lambda: draw(1), 1, args.rounds)
    per_token = {
        name: statistics.median(
            (a - b) / (args.new - 1) for a, b in zip(one.wall[name], prefill.wall[name], strict=True)
        )
        for name in sides
    }
    pairs = [("steered", "stock"), ("plain", "stock"), ("steered", "plain"), ("narrow", "stock")]
    result = {
        **throughput(spent, [pair for pair in pairs if pair[0] in sides]),
        "seconds_per_token_at_batch_1": per_token,
        "heads_steered": sum(len(h) for h in (steering.heads or {}).values()),
        "engines": {name: b.describe() for name, b in models.items()},
    }
    for model in models.values():
        model.close()
    return result


def bench_transformers(args: argparse.Namespace) -> dict[str, Any]:
    """Plain against steered on one model."""
    with load_model(f"transformers:{args.model}", dtype=args.dtype) as model:
        config = model.module.config.get_text_config(decoder=True)
        heads = head_set(config.num_hidden_layers, config.num_attention_heads, args.heads, False)
        steering = Steering(heads=heads)
        rng = np.random.default_rng(0)

        def draw() -> list[list[int]]:
            return rng.integers(100, config.vocab_size, (args.prompts, args.tokens)).tolist()

        def side(on: Steering | None) -> Side:
            def run(prompts: Sequence[Sequence[int]], new: int) -> None:
                texts = [model.tokenizer.decode(ids) for ids in prompts]
                middle_tenth = [Span(int(0.45 * len(t)), int(0.55 * len(t))) for t in texts]
                model.generate(
                    [Prompt(text=t, emphasis=(span,)) for t, span in zip(texts, middle_tenth, strict=True)],
                    Sampling(max_tokens=new),
                    steering=on,
                )

            return run

        sides = {"plain": side(None), "steered": side(steering)}
        if args.narrow:
            few = head_set(config.num_hidden_layers, config.num_attention_heads, args.heads, True)
            sides["narrow"] = side(Steering(heads=few))
        return {**compared(sides, draw, args, model.module.device), "model": model.describe()}


def compared(
    sides: dict[str, Side], draw: Callable[[], list[list[int]]], args: argparse.Namespace, device: torch.device
) -> dict[str, Any]:
    """Throughput and peak memory of each side over those of the plain one."""
    spent = interleave(sides, draw, args.new, args.rounds)
    prompts = draw()
    most = {name: memory(lambda run=run: run(prompts, args.new), device) for name, run in sides.items()}
    others = [name for name in sides if name != "plain"]
    return {
        **throughput(spent, [(name, "plain") for name in others]),
        "peak_memory": {**most, **{f"{name}/plain": most[name] / most["plain"] for name in others}},
        "heads_steered": args.heads,
    }


def bench_shape(args: argparse.Namespace) -> dict[str, Any]:
    """Plain, steered and dense on one model with random weights."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    differ = differences(device)["dense"]
    if not differ <= 1e-4:
        raise SystemExit(f"bench_steering: the dense mask gives other logits than steering, by {differ:.1e}")
    model = shaped(args.shape, getattr(torch, args.dtype), device)
    layers, heads = model.config.num_hidden_layers, model.config.num_attention_heads

    def steering(narrow: bool) -> Steering:
        return Steering(heads=head_set(layers, heads, args.heads, narrow), exempt_generated=True)

    sides: dict[str, Side] = {**shaped_sides(model, steering(False))}
    if args.narrow:
        sides["narrow"] = shaped_sides(model, steering(True))["steered"]
    rng = np.random.default_rng(0)

    def draw() -> list[list[int]]:
        return rng.integers(1, model.config.vocab_size, (args.prompts, args.tokens)).tolist()

    return {
        **compared(sides, draw, args, device),
        "dense_logits_differ_by": differ,
        "parameters": model.num_parameters(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }


def main() -> None:
    """Run one of the two and write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", choices=("vllm", "transformers"))
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--shape", choices=sorted(SHAPES), help="transformers: random weights instead of --model")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--prompts", type=int, default=None, help="64 for vllm, 1 for transformers")
    parser.add_argument("--tokens", type=int, default=None, help="of each prompt: 300 for vllm, 2000 for transformers")
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--heads", type=int, default=54)
    parser.add_argument("--eager", action="store_true", help="vLLM without torch.compile")
    parser.add_argument("--narrow", action="store_true", help="one more side, steered and widened in few layers alone")
    parser.add_argument("--profile", help="vllm: a head profile, instead of heads by number")
    parser.add_argument("--seka", action="store_true", help="vllm: a side whose keys are edited")
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    vllm = args.engine == "vllm"
    if vllm and args.shape:
        parser.error("--shape is for transformers")
    args.prompts = args.prompts or (64 if vllm else 1)
    args.tokens = args.tokens or (300 if vllm else 2000)
    result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "arguments": {k: str(v) for k, v in vars(args).items()},
        **(
            bench_profiles
            if args.profile or args.seka
            else bench_vllm
            if vllm
            else bench_shape
            if args.shape
            else bench_transformers
        )(args),
    }
    text = json.dumps(result, indent=1)
    print(text)
    if args.out:
        args.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

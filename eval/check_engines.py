"""Steering in vLLM engines as people configure them: each exact, or refused at its start with the reason.

    python eval/check_engines.py [--only CASE ...] [--out eval/results/engines.json]

Each case starts an engine of its own, of a small model of random weights in float32, and scores and writes plain and
steered prompts in one batch. The reference is the same model (with the same adapter) in transformers, eager, float32,
by `transformers:`, whose steering is held to the papers' formulas by tests. "exact" is a largest difference of
log-probabilities below 1e-4, twice over: the second time the engine's prefix cache is warm. A case that this machine
cannot run (no GPU, one kind of kernel) stands in the results as "not run", with why.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from measuring import command

TOLERANCE = 1e-4
TEXTS = (
    "Great phone, **terrible battery**. The answer is",
    "Great phone, terrible **battery**. The answer is",
    "Great phone, terrible battery. The answer is",
    "**Paris** is the capital of **France**. " * 6 + "The answer is",
)
CONTINUATIONS = (" positive", " negative. Paris", " the capital", " (A) or (B)")

RUN: Mapping[str, dict[str, Any]] = {
    "as it comes": {},
    "chunked prefill of 32 tokens": {"max_num_batched_tokens": 32, "enable_chunked_prefill": True},
    "no chunked prefill": {"enable_chunked_prefill": False},
    "no prefix cache": {"enable_prefix_caching": False},
    "compiled": {"enforce_eager": False},
    "two adapters and the plain model in one batch": {
        "enable_lora": True, "max_loras": 2, "max_lora_rank": 8, "max_num_batched_tokens": 64,
    },
    "tensor parallel over two processes": {"tensor_parallel_size": 2},
    "pipeline parallel over two processes": {"pipeline_parallel_size": 2},
    "float16 cache of a bfloat16 model": {"dtype": "bfloat16", "kv_cache_dtype": "float16"},
    "FP8 key/value cache": {"kv_cache_dtype": "fp8"},
    "speculative decoding by n-grams": {
        "speculative_config": {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3}
    },
    "a key/value store outside": {
        "kv_transfer_config": {"kv_connector": "ExampleConnector", "kv_role": "kv_both",
                               "kv_connector_extra_config": {"shared_storage_path": "/nowhere"}}
    },
}  # fmt: skip
"""Case -> engine options."""

NOT_RUN = {
    "weights of AWQ, GPTQ, FP8 or bitsandbytes": "their kernels in float32 are none of a CPU's; only queries, keys and "
    "values as they come out count, so a quantised layer before them changes nothing of the formula",
    "a GPU's attention kernels (FlashAttention, FlashInfer)": "no GPU here",
    "decode context parallelism, data parallelism, expert parallelism": "no GPUs here",
    "checkpoints whose layers ask for an FP8 cache one by one": "no such checkpoint here; refused when a layer is made",
}


def model_folder(folder: Path) -> Path:
    """A Llama with heads of 64, which vLLM's kernel for processors takes, and two adapters on its attention."""
    import torch
    from peft import LoraConfig, get_peft_model
    from tiny_models import byte_tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = byte_tokenizer({"bos_token": "<s>", "eos_token": "<|im_end|>", "pad_token": "<pad>"})
    shape = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=256, intermediate_size=256, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=64, max_position_embeddings=1024, initializer_range=0.1,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(shape).eval().save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    for number in (1, 2):
        torch.manual_seed(number)
        plain = LlamaForCausalLM.from_pretrained(folder / "model")
        wanted = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "k_proj", "v_proj"], init_lora_weights=False)
        get_peft_model(plain, wanted).save_pretrained(folder / f"adapter{number}")
    return folder / "model"


def one(name: str) -> dict[str, Any]:
    """Run one case in this process: its verdict, and what it rests on."""
    import amplify
    from amplify.steering import Steering

    with tempfile.TemporaryDirectory() as scratch:
        folder = model_folder(Path(scratch))
        options = {"dtype": "float32", "enforce_eager": True, "max_model_len": 512, "seed": 0, **RUN[name]}
        prompts = [amplify.parse_emphasis(text) for text in TEXTS]
        steerings = (None, Steering(heads={0: [1], 1: [0, 3], 3: [2]}, alpha=0.01), Steering(mode="instaboost"))
        adapters = ["", "adapter1", "adapter2"] if "enable_lora" in options else [""]
        try:
            engine = amplify.load_model(f"vllm:{folder}", steering=True, **options)
        except amplify.AmplifyError as error:
            return {"verdict": "refused", "reason": str(error).replace(scratch, "")}
        worst: dict[str, float] = {}
        with engine:
            for adapter in adapters:
                at = str(folder.parent / adapter) if adapter else str(folder)
                with amplify.load_model(f"transformers:{at}", dtype="float32", attn_implementation="eager") as model:
                    for steering in steerings:
                        expected = model.score(prompts, CONTINUATIONS, steering=steering)
                        for turn in ("first", "again"):
                            found = _score(engine, prompts, steering, adapter and at)
                            gap = max(
                                abs(a - b)
                                for e, f in zip(expected, found, strict=True)
                                for a, b in zip(e.logprobs, f, strict=True)
                            )
                            worst[turn] = max(worst.get(turn, 0.0), gap)
            moved = max(
                abs(a.total - b.total)
                for a, b in zip(
                    engine.score(prompts, CONTINUATIONS, steering=steerings[1]),
                    engine.score(prompts, CONTINUATIONS),
                    strict=True,
                )
            )
    verdict = "exact" if max(worst.values()) < TOLERANCE else "NOT exact"
    return {"verdict": verdict, "largest_difference": worst, "steering_moves_scores_by": moved}


def _score(engine: Any, prompts: Any, steering: Any, adapter: str) -> list[list[float]]:
    """Log-probabilities of the continuations; with an adapter in one batch with the same prompts to the plain model."""
    if not adapter:
        return [list(each.logprobs) for each in engine.score(prompts, CONTINUATIONS, steering=steering)]
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    from amplify.models.chat import encode_with_targets, render
    from amplify.steering.payload import KEY, payloads

    rendered = [render(p, engine.tokenizer) for p in prompts]
    encoded = encode_with_targets(engine.tokenizer, rendered, CONTINUATIONS)
    asked = payloads(steering, [(r, e.offsets, start) for r, (e, start) in zip(rendered, encoded, strict=True)])
    number = int(adapter[-1])
    inputs, params, requests = [], [], []
    for lora in (None, LoRARequest(f"adapter{number}", number, adapter)):
        for (e, _), extra in zip(encoded, asked, strict=True):
            inputs.append({"prompt_token_ids": list(e.ids)})
            extras = None if extra is None else {KEY: extra}
            params.append(SamplingParams(max_tokens=1, prompt_logprobs=0, extra_args=extras))
            requests.append(lora)
    outputs = engine.llm.generate(inputs, params, lora_request=requests, use_tqdm=False)[len(prompts) :]
    return [
        [out.prompt_logprobs[i][e.ids[i]].logprob for i in range(start, len(e.ids))]
        for out, (e, start) in zip(outputs, encoded, strict=True)
    ]


def main() -> None:
    """Each case in a process of its own; a case that is not exact is the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=sorted(RUN), default=[])
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path("eval/results/engines.json"))
    args = parser.parse_args()
    if args.case:
        print("\n" + json.dumps(one(args.case)), flush=True)
        return
    before = json.loads(args.out.read_text())["cases"] if args.only and args.out.exists() else {}
    cases = dict(before)
    for name in args.only or RUN:
        call = [sys.executable, __file__, "--case", name]
        done = subprocess.run(call, capture_output=True, text=True, timeout=900, check=False)
        last = (done.stdout.strip().splitlines() or [""])[-1]
        found = json.loads(last) if done.returncode == 0 else {"verdict": "failed", "reason": done.stderr[-1500:]}
        cases[name] = {"options": RUN[name], **found}
        print(f"{name}: {found['verdict']} {found.get('largest_difference', found.get('reason', ''))}", flush=True)
        about: dict[str, Any] = {"command": command(), "tolerance": TOLERANCE, "cases": cases}
        about["not_run"] = {name: "not reached" for name in RUN if name not in cases} | NOT_RUN
        args.out.write_text(json.dumps(about, indent=2) + "\n")
    if any(case["verdict"] in ("NOT exact", "failed") for case in cases.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()

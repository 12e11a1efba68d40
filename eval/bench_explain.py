"""Perturbation explainers against captum: the same masks, the same texts, equal scores, and the time of each.

    python eval/bench_explain.py [--parts perturbations,continuation,peak_bytes] [--out eval/results/bench_explain.json]

captum explains a vector of kept words: its forward function deletes the others, tokenises, pads and forwards. It runs
with its default of one perturbation a pass, and with `--batch` of them in a padded pass. Ways alternate; each round
gives one ratio, and their median is reported with its interval (`measuring.middle`). Texts and the continuation
targets are our own; the proxy is MiniLM trained on `support_tickets`, the language model SmolLM2-135M-Instruct.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import measuring
import numpy as np
import torch

from amplify.attribution.gradients import gradient_scores, gradients_at
from amplify.attribution.inputs import PromptSubject, ProxySubject, subject
from amplify.attribution.masking import batch_tokens, without_spans
from amplify.attribution.words import without_words
from amplify.models import load_model
from amplify.proxies import Proxy, train_proxy
from amplify.shapley import estimate, leave_one_out
from amplify.shapley.estimators import LIME_RIDGE, near
from amplify.shapley.regression import kernel_weights
from amplify.shapley.sampling import paired, shapley_kernel, spanning, stands_for, with_complements
from amplify.tasks import load_task
from amplify.types import Prompt

PROMPT = (
    "A reader wrote to the editor: I bought the folding bicycle in spring, rode it to work through rain and wind, and "
    "the brakes never failed me once, though the saddle was too hard. Would this reader buy the bicycle again? Answer:"
)
SHOTS = (
    "A reader wrote to the editor: The kettle broke after two weeks, nobody answered my letters, and the shop refused "
    "to take it back or to pay for a repair. Would this reader buy the kettle again? Answer: no\n\n"
)
QUESTION = "Name the capital of France"
ANSWER = " The capital of France is Paris, which lies on the river Seine and has two million"
PARTS = ("perturbations", "continuation", "peak_bytes")


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What it returns, and seconds of one processor: on one thread, what others do meanwhile does not count."""
    return measuring.timed(work, time.process_time)


def captum_scores(forward: Callable[[Any], Any], n: int, method: str, budget: int, batch: int) -> np.ndarray:
    """The scores by captum, on the masks that amplify draws."""
    from captum._utils.models.linear_model import SkLearnLinearRegression, SkLearnRidge
    from captum.attr import FeatureAblation
    from captum.attr._core.lime import LimeBase

    ones = torch.ones(1, n)
    if method == "occlusion":
        found = FeatureAblation(forward).attribute(ones, baselines=0, perturbations_per_eval=batch)
        return found[0].double().numpy()
    masks, weights = near(n, budget, 0)
    if method == "kernel_shap":  # captum makes the sum exact by weights of a million on both ends
        first = spanning(paired(n, (budget - 2) // 2, shapley_kernel(n), 0), "shapley")
        masks = with_complements(first)
        weights = kernel_weights(masks) * np.repeat(stands_for(first, shapley_kernel(n)), 2)
        masks = np.concatenate([masks, np.ones((1, n)), np.zeros((1, n))])
        weights = np.concatenate([weights / weights.mean(), [1e6, 1e6]])
    rows, seen = torch.tensor(masks, dtype=torch.float32), iter(weights.tolist())

    def perturb(*_: Any, **__: Any) -> Any:
        yield from (row[None] for row in rows)

    model = SkLearnLinearRegression() if method == "kernel_shap" else SkLearnRidge(alpha=LIME_RIDGE)
    lime = LimeBase(forward, model, lambda *_, **__: next(seen), perturb, True, lambda z, x, **_: z, None)
    found = lime.attribute(ones, n_samples=len(rows), perturbations_per_eval=batch)
    return found.reshape(-1).double().numpy()


def proxy_forward(case: ProxySubject) -> Callable[[Any], Any]:
    """A padded pass over the kept words of an encoder's input, as captum's user would write it."""
    proxy: Proxy = case.proxy
    column = proxy.labels.index(case.target)

    def forward(kept: Any) -> Any:
        texts = [
            without_words(case.example, [s for s, k in zip(case.spans, row, strict=True) if not k]).text for row in kept
        ]
        batch = proxy.tokenizer(texts, padding=True, return_tensors="pt")
        with torch.inference_mode():
            return proxy.module(**batch).logits[:, proxy.card["columns"][column]]

    return forward


def prompt_forward(case: PromptSubject) -> Callable[[Any], Any]:
    """A padded pass over the kept words of a prompt, with only the target's logits kept."""
    model: Any = case.model

    def forward(kept: Any) -> Any:
        prompts = [
            str(without_spans(case.prompt, None, [s for s, k in zip(case.spans, row, strict=True) if not k]).text)
            for row in kept
        ]
        # a target of one tokenisation; padded on the left, so that all targets end together
        ids = [model.tokenizer(p + case.target)["input_ids"] for p in prompts]
        target = model.tokenizer(case.target)["input_ids"]
        longest = max(map(len, ids))
        padded = torch.tensor([[model.tokenizer.eos_token_id] * (longest - len(i)) + i for i in ids])
        mask = torch.tensor([[0] * (longest - len(i)) + [1] * len(i) for i in ids])
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        with torch.inference_mode():
            logits = model.module(
                input_ids=padded,
                attention_mask=mask,
                position_ids=positions,
                logits_to_keep=len(target) + 1,
                use_cache=False,
            ).logits[:, :-1]
        return logits.float().log_softmax(-1).gather(2, padded[:, -len(target) :, None]).sum((1, 2))

    return forward


def perturbations(
    name: str,
    cases: Sequence[Any],
    forward: Callable[[Any], Any],
    methods: Sequence[str],
    budget: int,
    batch: int,
    rounds: int,
) -> list[dict[str, Any]]:
    """One line a method: seconds of each way over all cases, and how far the scores differ."""
    lines = []
    for method in methods:

        def ours(case: Any, m: str = method) -> tuple[np.ndarray, int]:
            name = {"occlusion": "leave_one_out"}.get(m, m)
            found = estimate(case.value("delete"), len(case.spans), estimator=name, budget=budget)
            return found.scores, found.calls

        def theirs(size: int, m: str = method) -> Callable[[Any], tuple[np.ndarray, int]]:
            return lambda case: (captum_scores(forward(case), len(case.spans), m, budget, size), 0)

        ways = {"amplify": ours, "captum": theirs(1), f"captum_{batch}": theirs(batch)}
        spent: dict[str, list[float]] = {way: [] for way in ways}
        evaluations, differ = 0, 0.0
        for i in range(rounds):
            found: dict[str, list[tuple[np.ndarray, int]]] = {}
            for way in sorted(ways, reverse=bool(i % 2)):
                found[way], seconds = timed(lambda w=ways[way]: [w(case) for case in cases])
                spent[way].append(seconds)
            evaluations = sum(calls for _, calls in found["amplify"])
            for way in ways:
                pairs = zip(found["amplify"], found[way], strict=True)
                differ = max(differ, *(float(np.abs(a - b).max()) for (a, _), (b, _) in pairs))
        line: dict[str, Any] = {
            "what": name,
            "method": method,
            "inputs": len(cases),
            "words": [len(c.spans) for c in cases],
            "evaluations": evaluations,
            "seconds": spent,
            "largest_difference": differ,
            "times_faster": {
                way: measuring.middle([b / a for a, b in zip(spent["amplify"], spent[way], strict=True)])
                for way in ways
                if way != "amplify"
            },
        }
        lines.append(line)
        print(json.dumps(line), flush=True)
    return lines


def continuations(model: Any) -> dict[str, Any]:
    """Occlusion of a 16-token continuation, and its gradient, by captum's classes for language models."""
    from captum.attr import (
        FeatureAblation,
        LayerGradientXActivation,
        LLMAttribution,
        LLMGradientAttribution,
        TextTemplateInput,
        TextTokenInput,
    )

    target = torch.tensor(model.tokenizer(ANSWER)["input_ids"][:16])
    text = model.tokenizer.decode(target)
    case = subject(model, QUESTION, text, None)
    ours, seconds = timed(lambda: leave_one_out(case.value("delete"), len(case.spans)))
    calls = len(case.spans) + 1
    words = QUESTION.split(" ")
    given = TextTemplateInput(
        "{}" * len(words), values=[*(w + " " for w in words[:-1]), words[-1]], baselines=[""] * len(words)
    )
    result: dict[str, Any] = {"target_tokens": len(target), "evaluations": calls, "seconds": {"amplify": seconds}}
    differ = {}
    for name, in_tokens in (("captum_token_by_token", True), ("captum_whole", False)):
        explainer = LLMAttribution(FeatureAblation(model.module), model.tokenizer)
        options = {"use_cached_outputs": False} if in_tokens else {}
        theirs, seconds = timed(
            lambda e=explainer, t=in_tokens, o=options: e.attribute(given, target=target, forward_in_tokens=t, **o)
        )
        result["seconds"][name] = seconds
        differ[name] = float(np.abs(ours - theirs.seq_attr.double().numpy()).max())
    result["times_faster"] = {
        k: v / result["seconds"]["amplify"] for k, v in result["seconds"].items() if k != "amplify"
    }
    result["largest_difference"] = differ

    explainer = LLMGradientAttribution(
        LayerGradientXActivation(model.module, model.module.get_input_embeddings()), model.tokenizer
    )
    theirs = explainer.attribute(TextTokenInput(QUESTION, model.tokenizer), target=target)
    [part] = case.parts()
    vectors = gradients_at(part, part.inputs, 384)[0] * part.inputs[0].numpy()
    inside = [t for t, (a, b) in enumerate(part.offsets) if b > a]
    gradient = vectors[inside].sum(1)
    scale = float(np.abs(gradient).max())
    result["gradient_x_input"] = {
        "largest_score": scale,
        "largest_difference": float(np.abs(gradient - theirs.seq_attr.double().numpy()).max()),
    }
    print(json.dumps(result), flush=True)
    return result


def peak(work: Callable[[], Any]) -> int:
    """Greatest number of bytes that tensors held at once beyond what they held before, from the profiler's log."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    changes = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]
    return int(max(np.cumsum(changes)))


def memory(model: Any, proxy: Proxy, text: str) -> dict[str, Any]:
    """Peaks of tensor memory: one plain forward of a batch, perturbations of few and many, gradients."""
    case, encoded = subject(model, PROMPT, " yes", None), subject(proxy, text, None, None)
    ids = model.tokenizer(PROMPT + " yes")["input_ids"][:-1]
    rows = max(1, model.max_batch_tokens // len(ids))
    model.max_batch_tokens = rows * len(ids)  # equal terms: a pass takes as many tokens as the plain batch
    row = len(proxy.rows(encoded.example)[0].ids)
    many = {n: np.random.default_rng(n).random((n, len(case.spans))) < 0.9 for n in (8, 24)}
    small = {n: np.random.default_rng(n).random((n, len(encoded.spans))) < 0.9 for n in (32, 128)}
    with torch.inference_mode():
        plain = peak(
            lambda: model.module(input_ids=torch.tensor([ids] * rows), logits_to_keep=1, use_cache=False).logits
        )
        batch = proxy.tokenizer([text] * max(1, batch_tokens(proxy) // row), return_tensors="pt")
        encoder = peak(lambda: proxy.module(**batch).logits)
    result = {
        "language_model": {
            "batch": rows,
            "plain_forward": plain,
            **{f"perturbations_{n}": peak(lambda m=m: case.value("delete")(m)) for n, m in many.items()},
            "gradient_x_input": peak(lambda: gradient_scores(case.parts(), "grad_x_input", budget=1)),
            "integrated_gradients": peak(lambda: gradient_scores(case.parts(), "integrated_gradients", budget=5)),
        },
        "encoder": {
            "batch": batch_tokens(proxy) // row,
            "plain_forward": encoder,
            **{f"perturbations_{n}": peak(lambda m=m: encoded.value("delete")(m)) for n, m in small.items()},
            "gradient_x_input": peak(lambda: gradient_scores(encoded.parts(), "grad_x_input", budget=1)),
            "integrated_gradients": peak(lambda: gradient_scores(encoded.parts(), "integrated_gradients", budget=20)),
        },
    }
    print(json.dumps(result), flush=True)
    return result


def all_perturbations(args: argparse.Namespace, proxy: Proxy, model: Any, texts: Sequence[str]) -> list[dict[str, Any]]:
    """MiniLM, SmolLM2, and SmolLM2 where half of the prompt is shared."""
    cases = [subject(proxy, text, None, None) for text in texts]
    methods = ("occlusion", "lime", "kernel_shap")
    for case in cases:  # warm up
        case.value("delete")(np.ones((8, len(case.spans)), dtype=bool))
    lines = perturbations("MiniLM", cases, proxy_forward, methods, args.budget, args.batch, args.rounds)
    [few] = plain = [subject(model, PROMPT, " yes", None)]
    moved = tuple((a + len(SHOTS), b + len(SHOTS)) for a, b in few.spans)
    shared = [subject(model, SHOTS + PROMPT, " yes", None, moved)]
    for name, prompts in (("SmolLM2", plain), ("SmolLM2, half a shared prefix", shared)):
        lines += perturbations(name, prompts, prompt_forward, methods[::2], args.lm_budget, args.batch, args.rounds)
    return lines


def main() -> None:
    """Run and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "bench_explain.json")
    parser.add_argument("--items", type=int, default=3, help="texts for MiniLM")
    parser.add_argument("--budget", type=int, default=128, help="evaluations an input on MiniLM")
    parser.add_argument("--lm-budget", type=int, default=96, help="evaluations an input on SmolLM2, two a word or more")
    parser.add_argument("--batch", type=int, default=16, help="perturbations a pass of captum's second turn")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--parts", default=",".join(PARTS), help="the others stay in --out as they are")
    args = parser.parse_args()
    parts = args.parts.split(",")
    if strange := set(parts) - set(PARTS):
        raise SystemExit(f"no such part: {', '.join(sorted(strange))}; there are {', '.join(PARTS)}")
    torch.set_num_threads(1)
    task = load_task("support_tickets")
    proxy = train_proxy(task, "minilm")
    model: Any = load_model("transformers:smollm2-135m", dtype="float32")
    model.score([Prompt(text=PROMPT)], [" yes"])
    texts = [e.text for e in task.test[: args.items]]
    work = {
        "perturbations": lambda: all_perturbations(args, proxy, model, texts),
        "continuation": lambda: continuations(model),
        "peak_bytes": lambda: memory(model, proxy, texts[0]),
    }
    report: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {}
    report |= {
        "threads": torch.get_num_threads(),
        "machine": platform.processor() or platform.machine(),
        "versions": {"torch": torch.__version__, "captum": __import__("captum").__version__},
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for part in parts:
        report[part] = work[part]()
        report.setdefault("dates", {})[part] = datetime.now(UTC).isoformat(timespec="seconds")
        args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

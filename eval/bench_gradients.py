"""MCS and every gradient variant for 1,000 reviews: amplify's shared pass against captum, one review at a time.

    python eval/bench_gradients.py --data DATA_FOLDER [--out eval/results/bench_gradients.json]

Three ways to the same numbers (probabilities, gradient norm and gradient x input, each plain and contrastive), on one
trained MiniLM proxy, in one process:

- amplify: `attribution.gradients.explain`, batches of similar length, one forward and one two-column backward;
- captum, a call per variant: what its API offers (`Saliency`, `InputXGradient`), and a forward for the probabilities;
- one at a time, same passes: the autograd call under captum's classes, made twice on one forward per review, and the
  variants computed from the two gradients: stricter than captum, which cannot share them, and no pass that amplify
  does not make.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from amplify.attribution.gradients import METHODS, explain
from amplify.attribution.words import aggregate, word_spans
from amplify.proxies import Proxy, softmax, train_proxy
from amplify.selection import misclassification_confidence
from amplify.tasks import load_task
from amplify.types import Example

CHUNK = 200  # reviews that each way does before it is the next one's turn


def with_amplify(
    proxy: Proxy, examples: Sequence[Example], foils: Sequence[str], batch_tokens: int | None
) -> dict[str, Any]:
    """Everything in one call."""
    found = explain(proxy, examples, [e.label for e in examples], foils, METHODS, batch_tokens=batch_tokens)
    passes = found.passes
    return {
        "mcs": [mcs(proxy, e, p) for e, p in zip(examples, found.probabilities, strict=True)],
        **{method: [np.array(a.scores) for a in found[method]] for method in METHODS},
        "passes": {"forward": passes.forward, "backward": passes.backward},
        "calls": {"forward": passes.forward_calls, "backward": passes.backward_calls},
    }


def mcs(proxy: Proxy, example: Example, probabilities: Any) -> float:
    """Misclassification confidence score of one review."""
    return misclassification_confidence(probabilities, proxy.labels_of(example).index(example.label))


def with_captum(proxy: Proxy, examples: Sequence[Example], foils: Sequence[str], lean: bool) -> dict[str, Any]:
    """Everything for one review after the other, by captum's attribution classes or (lean) by the fewest passes."""
    import torch
    from captum.attr import InputXGradient, Saliency

    model = proxy.module
    count = {"forward": 0, "backward": 0}
    result: dict[str, Any] = {name: [] for name in ("mcs", *METHODS)}

    def logits(x: Any) -> Any:
        count["forward"] += 1
        hidden = model.bert.encoder(x).last_hidden_state  # one review without padding: no mask
        return model.classifier(model.bert.pooler(hidden))[:, proxy.card["columns"]]

    def contrast(x: Any, gold: int, foil: int) -> Any:
        z = logits(x)
        return z[:, gold] - z[:, foil]

    for example, foil_label in zip(examples, foils, strict=True):
        labels = proxy.labels_of(example)
        gold, foil = labels.index(example.label), labels.index(foil_label)
        (row,) = proxy.rows(example)
        words, _, types = proxy.embed([row])
        x = model.bert.embeddings(inputs_embeds=words, token_type_ids=types).detach().requires_grad_()
        if lean:
            z = logits(x)
            # what captum's gradient function calls, on a graph that is kept for the second score
            (g,) = torch.autograd.grad(z[0, gold], x, retain_graph=True)
            (f,) = torch.autograd.grad(z[0, foil], x)
            count["backward"] += 2
            z = z.detach()
            norm = {"grad_norm": (g - f).abs().sum(-1), "grad_norm_plain": g.abs().sum(-1)}
            tokens = {**norm, "grad_x_input": (x * (g - f)).sum(-1), "grad_x_input_plain": (x * g).sum(-1)}
        else:
            with torch.no_grad():
                z = logits(x)
            saliency, product, against = Saliency(logits), InputXGradient(logits), (gold, foil)
            tokens = {
                "grad_norm_plain": saliency.attribute(x, gold).sum(-1),
                "grad_x_input_plain": product.attribute(x, gold).sum(-1),
                "grad_norm": Saliency(contrast).attribute(x, additional_forward_args=against).sum(-1),
                "grad_x_input": InputXGradient(contrast).attribute(x, additional_forward_args=against).sum(-1),
            }
            count["backward"] += 4
        result["mcs"].append(mcs(proxy, example, softmax(z[0].double().numpy())))
        spans = word_spans(example.text)
        for method in METHODS:
            result[method].append(aggregate(tokens[method][0].detach().numpy(), row.offsets, spans))
    return {**result, "passes": count, "calls": count}


def timed(run: Callable[[], dict[str, Any]]) -> tuple[float, dict[str, Any]]:
    """Seconds, and what came out."""
    started = time.perf_counter()
    result = run()
    return time.perf_counter() - started, result


def difference(ours: dict[str, Any], theirs: dict[str, Any]) -> float:
    """Largest difference of any score, relative to the largest score of its review where that is above 1."""
    worst = 0.0
    for name in METHODS:
        for a, b in zip(ours[name], theirs[name], strict=True):
            if len(b):
                worst = max(worst, float(np.abs(a - b).max() / max(1.0, np.abs(b).max())))
    return max(worst, float(np.abs(np.array(ours["mcs"]) - np.array(theirs["mcs"])).max()))


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of data sets (default: AMPLIFY_DATA)")
    parser.add_argument("--task", default="amazon_sentiment", help="a task with fixed labels, its proxy and reviews")
    parser.add_argument("--limit", type=int, default=1000, help="reviews")
    parser.add_argument("--batch-tokens", type=int, help="of an amplify batch (default: the library's)")
    parser.add_argument("--seed", type=int, default=0, help="of the proxy")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "bench_gradients.json")
    args = parser.parse_args()

    import captum
    import torch
    import transformers

    task = load_task(args.task, **({"data": args.data} if args.data else {}))
    proxy = train_proxy(task, "minilm", seed=args.seed)
    # for timing every split will do; in use, shots come from the validation split alone
    examples = (*task.train, *task.validation, *task.test)[: args.limit]
    foils = [next(label for label in task.labels_of(e) if label != e.label) for e in examples]

    with_amplify(proxy, examples[:32], foils[:32], args.batch_tokens)  # warm-up of both
    with_captum(proxy, examples[:8], foils[:8], lean=True)
    ways: dict[str, Callable[..., dict[str, Any]]] = {
        "amplify": lambda some, against: with_amplify(proxy, some, against, args.batch_tokens),
        "one at a time, same passes": lambda some, against: with_captum(proxy, some, against, lean=True),
        "captum, a call per variant": lambda some, against: with_captum(proxy, some, against, lean=False),
    }
    # in turns, so that whatever else the machine does meets all ways alike
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    parts: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}
    for start in range(0, len(examples), CHUNK):
        some, against = examples[start : start + CHUNK], foils[start : start + CHUNK]
        for name, run in ways.items():
            took, result = timed(partial(run, some, against))
            seconds[name].append(took)
            parts[name].append(result)

    def total(name: str, kind: str, what: str) -> int:
        return sum(part[kind][what] for part in parts[name])

    table = [
        {
            "way": name,
            "seconds": round(sum(seconds[name]), 2),
            "ratio": round(sum(seconds[name]) / sum(seconds["amplify"]), 2),
            "ratio_by_chunk": [round(b / a, 2) for a, b in zip(seconds["amplify"], seconds[name], strict=True)],
            "sequences": {what: total(name, "passes", what) for what in ("forward", "backward")},
            "calls": {what: total(name, "calls", what) for what in ("forward", "backward")},
            "largest_difference": max(difference(a, b) for a, b in zip(parts["amplify"], parts[name], strict=True)),
        }
        for name in ways
    ]
    print(f"{'':28}{'seconds':>9}{'ratio':>8}{'forward':>9}{'backward':>10}{'calls':>13}{'difference':>12}")
    for line in table:
        calls = f"{line['calls']['forward']}+{line['calls']['backward']}"
        print(
            f"{line['way']:28}{line['seconds']:>9.2f}{line['ratio']:>7.2f}x{line['sequences']['forward']:>9}"
            f"{line['sequences']['backward']:>10}{calls:>13}{line['largest_difference']:>12.1e}"
        )
    report = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"processor": cpu(), "threads": torch.get_num_threads(), "python": platform.python_version()},
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "captum": captum.__version__,
        },
        "task": task.name,
        "reviews": len(examples),
        "proxy": {"identity": proxy.identity, "validation": dict(proxy.card["validation"])},
        "batch_tokens": args.batch_tokens,
        "table": table,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"written to {args.out}")


def cpu() -> str:
    """The processor's name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()

"""Which faithfulness metrics tell the truth, and which explainers find it: a causal check on planted words.

Two kinds of models whose deciding words are known: proxies fine-tuned on the three tasks of planted words, and the
rules themselves as classifiers. A metric is kept when on every one of them it ranks the planted words above random
scores and above their opposite, with 95 % intervals that do not touch. Beside that: how many planted words each
explainer has in its top k, and whether it beats random scores on the metrics that were kept.

    python eval/check_faithfulness.py --out eval/results/faithfulness_check.json
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tiny_models import planted_reader

from amplify.attribution.auto import POOL
from amplify.attribution.explanations import explain_many
from amplify.attribution.faithfulness import METRICS, RANDOM, Faithfulness, Mean, faithfulness, interval
from amplify.attribution.inputs import subject
from amplify.attribution.words import word_spans
from amplify.models.scripted import ScriptedModel
from amplify.proxies import Proxy, train_proxy, versions
from amplify.shapley.estimate import estimate
from amplify.tasks import Task, generated, load_task
from amplify.types import Attribution, Example

EXACT = "exact Shapley"


def rule_model(rule: str) -> ScriptedModel:
    """The rule as a model: log-probabilities of "left" and "right"."""

    def logprob(text: str, label: str) -> float:
        odds = generated.log_odds(rule, text) * (1 if label == "left" else -1)
        return -math.log1p(math.exp(-odds))

    return ScriptedModel(logprob=logprob)


def trained(task: Task, body: str) -> Proxy:
    """A proxy of a body, or of a small transformer that knows nothing but these words."""
    if body != "reader":
        return train_proxy(task, body)
    with tempfile.TemporaryDirectory() as folder:
        return train_proxy(task, planted_reader(Path(folder) / "reader"), epochs=8, learning_rate=3e-3)


def ideal(example: Example, sign: float) -> Attribution:
    """The planted words and nothing else (sign 1), or the opposite (-1)."""
    spans = word_spans(example.text)
    words = tuple(example.text[a:b] for a, b in spans)
    scores = tuple(sign * (word in generated.deciding(example)) for word in words)
    label = str(example.label)
    return Attribution(example.text, words, spans, scores, label, other(label), method="planted")


def other(label: str) -> str:
    """The label's opposite."""
    return "right" if label == "left" else "left"


def exact(model: Proxy | ScriptedModel, examples: Sequence[Example]) -> list[Attribution]:
    """Shapley values by all 2^n coalitions."""
    made = []
    for example in examples:
        label = str(example.label)
        case = subject(model, example if isinstance(model, Proxy) else example.text, label, other(label))
        found = estimate(case.value("delete"), len(case.spans), estimator="exact", budget=2 ** len(case.spans))
        made.append(replace(ideal(example, 1), scores=tuple(found.scores.tolist()), method=EXACT))
    return made


def explained(
    model: Proxy | ScriptedModel, examples: Sequence[Example], names: Sequence[str]
) -> dict[str, list[Attribution]]:
    """Attributions by name, each example's label against the other one; what cannot be had of a rule is left out."""
    given = examples if isinstance(model, Proxy) else [e.text for e in examples]
    inside = isinstance(model, Proxy)
    able = [n for n in names if inside or n in ("occlusion", "kernel_shap", "lime")]
    labels = [str(e.label) for e in examples]
    return explain_many(given, labels, foils=[other(label) for label in labels], model=model, methods=able, budget=128)


def recall(explanations: Sequence[Attribution], examples: Sequence[Example]) -> float:
    """The share of all planted words that are in the top k, with k the number planted in the example."""
    hits = [
        len(set(a.top(len(generated.deciding(e)))) & set(generated.deciding(e)))
        for a, e in zip(explanations, examples, strict=True)
    ]
    return sum(hits) / sum(len(generated.deciding(e)) for e in examples)


def apart(better: Mean, worse: Mean, direction: str) -> bool:
    """Whether the first interval lies wholly on the good side of the second."""
    return better.low > worse.high if direction == "higher" else better.high < worse.low


def causal(table: Faithfulness) -> dict[str, Any]:
    """Per metric: the values of the planted words, random scores and the opposite, and whether they come in order."""
    found = {}
    for metric, about in METRICS.items():
        own, anti = table.row("planted", metric).value, table.row("opposite", metric).value
        chance = interval(table.values[RANDOM, metric])
        found[metric] = {
            "planted": own,
            "random": chance,
            "opposite": anti,
            "passes": apart(own, chance, about.better) and apart(own, anti, about.better),
        }
    return found


def one(
    model: Proxy | ScriptedModel, examples: Sequence[Example], names: Sequence[str], exact_items: int
) -> dict[str, Any]:
    """All that is measured of one model."""
    k = len(generated.deciding(examples[0]))
    given = examples if isinstance(model, Proxy) else None
    truth = {"planted": [ideal(e, 1) for e in examples], "opposite": [ideal(e, -1) for e in examples]}
    checked = causal(faithfulness(truth, model, list(METRICS), examples=given, k=k))
    made = explained(model, examples, names)
    table = faithfulness(made, model, list(METRICS), examples=given, k=k)
    few = examples[:exact_items]
    recalls = {name: recall(group, examples) for name, group in made.items()}
    recalls[EXACT] = recall(exact(model, few), few)
    return {
        "k": k,
        "items": len(examples),
        "exact_items": len(few),
        "metrics": checked,
        "recall": recalls,
        "explainers": table.to_dict(),
    }


def lines(result: dict[str, Any]) -> str:
    """JSON with one line an entry, and one a model."""
    outer = dict(result)
    inner = ",\n".join(
        f"  {json.dumps(where)}: {json.dumps(rounded(found))}" for where, found in outer.pop("models").items()
    )
    head = "".join(f" {json.dumps(key)}: {json.dumps(rounded(value))},\n" for key, value in outer.items())
    return f'{{\n{head} "models": {{\n{inner}\n }}\n}}\n'


def rounded(value: Any) -> Any:
    """The same with floats of four decimals."""
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    return [rounded(one) for one in value] if isinstance(value, (list, tuple)) else value


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--bodies", default="reader,minilm", help="what proxies are fine-tuned from; reader: from scratch"
    )
    parser.add_argument("--items", type=int, default=60, help="test examples with planted words, per task")
    parser.add_argument("--exact-items", type=int, default=20, help="of them for exact Shapley values")
    parser.add_argument("--methods", default=",".join([*POOL, "grad_norm", "lime"]))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    names, started = options.methods.split(","), time.perf_counter()
    models: dict[str, Any] = {}
    for rule in generated.PLANTED:
        task = load_task(rule)
        examples = [e for e in task.test if generated.deciding(e)][: options.items]
        for kind in ("rule", *options.bodies.split(",")):
            model = rule_model(rule) if kind == "rule" else trained(task, kind)
            found = one(model, examples, names, options.exact_items)
            if isinstance(model, Proxy):
                found["accuracy on decided texts"] = model.accuracy([e for e in task.test if generated.deciding(e)])
            models[f"{rule}, {kind}"] = found
            print(kind, {m: v["passes"] for m, v in found["metrics"].items()}, found["recall"], flush=True)
    kept = [m for m in METRICS if all(found["metrics"][m]["passes"] for found in models.values())]
    beats = {
        name: {
            where: [
                r["metric"]
                for r in found["explainers"]["rows"]
                if r["method"] == name and r["metric"] in kept and r["beats_random"]
            ]
            for where, found in models.items()
            if name in found["recall"]
        }
        for name in names
    }
    result = {
        "what": "causal check of faithfulness metrics and explainers on planted words",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": platform.processor() or platform.machine(),
        "versions": versions(),
        "options": {k: v for k, v in vars(options).items() if k != "out"},
        "seconds": round(time.perf_counter() - started),
        "kept": kept,
        "dropped": {
            m: [where for where, found in models.items() if not found["metrics"][m]["passes"]]
            for m in METRICS
            if m not in kept
        },
        "beats_random_on_kept": beats,
        "models": models,
    }
    if options.out:
        options.out.write_text(lines(result), encoding="utf-8")
    print("kept:", ", ".join(kept))
    print("dropped:", result["dropped"])
    for name, where in beats.items():
        print(name, {w: f"{len(m)}/{len(kept)}" for w, m in where.items()})


if __name__ == "__main__":
    main()

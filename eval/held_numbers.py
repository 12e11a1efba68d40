"""Numbers and prompts that a redesign must not move: recorded from one commit, compared with the code as it is.

    python eval/held_numbers.py                  compares with results/held_numbers.json; exit code 1 if anything moved
    python eval/held_numbers.py --only words     one group (games word_games words faithful steering prompts sources)
    python eval/held_numbers.py --record FILE    writes what the code gives now
    python eval/held_numbers.py --accept WHY     what moved is meant, for this reason: kept, and held from now on

Estimates of closed-form and random games, words of tiny models of random weights (float32) by every explainer, steered
log-probabilities, what every method asks on the tasks of this repository (hashes of its prompts), and attributions of
sources. What differs is either a fault, or stands in the file's "changed" with the reason and what it is now.

The recording was made with this script on a checkout of the commit it names: the script's calls follow the code's
names, the keys of the numbers stay.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tiny_models

import amplify
from amplify.errors import AmplifyError, DataError

HELD = Path(__file__).parent / "results" / "held_numbers.json"
Found = Iterator[tuple[str, Any]]

TOLERANCE = {"games": 1e-9, "word_games": 1e-9, "words": 1e-4, "faithful": 1e-4, "steering": 1e-5, "sources": 1e-4}
"""Of numbers, absolute, in units of the value: pure arithmetic to 1e-9; a float32 forward pass in batches of another
shape moves last bits, which a fit to many of them or a difference of two adds up."""
FITTED = 1e-6
"""Of estimates by the Gaussian process: a nearly singular matrix is factorised to 1e-8 by another processor."""


def tolerance(key: str) -> float:
    """How far the numbers of a key may be from those held."""
    group, _, name = key.partition(": ")
    fitted = group == "games" and ("gaussian_process" in name or " auto " in name or name.endswith(("control", "cost")))
    return FITTED if fitted else TOLERANCE.get(group, 0.0)


# -- games


def _games() -> dict[str, tuple[int, Callable[[Any], Any]]]:
    """Closed forms and random ones: name -> number of sources, value function."""
    rng = np.random.default_rng(0)
    slopes = rng.normal(size=12)
    power = rng.integers(1, 20, 9)
    table, pairs = rng.normal(size=(2**8, 2)), 0.3 * rng.normal(size=(24, 24))
    wide = rng.normal(size=24)
    bits = 1 << np.arange(8)
    return {
        "additive": (12, lambda s: s @ slopes + 1.5),
        "majority": (9, lambda s: (s @ power > power.sum() / 2).astype(float)),
        "gloves": (7, lambda s: np.minimum(s[:, :3].sum(axis=1), s[:, 3:].sum(axis=1)).astype(float)),
        "random": (8, lambda s: table[s @ bits]),
        "bent": (24, lambda s: s @ wide + np.einsum("ci,ij,cj->c", s, pairs, s) + 0.3 * np.sin(7 * s @ wide)),
    }


def games() -> Found:
    """Estimates of sources of games."""
    from amplify.shapley import ESTIMATORS, Guide, PrefixCost, estimate

    for name, (n, value) in _games().items():
        for index in ("shapley", "banzhaf"):
            for estimator in (*ESTIMATORS, "auto"):
                for budget in (26, 64, 600):
                    key = f"{name} {index} {estimator} {budget}"
                    slow = estimator in ("regression_msr", "gaussian_process", "auto")
                    if slow and (budget == 600 or (n > 12 and budget > 26)) and 2**n > budget:
                        continue
                    try:
                        found = estimate(value, n, index, estimator, budget, 3)  # type: ignore[arg-type]
                    except AmplifyError as error:
                        yield key, type(error).__name__
                        continue
                    half = (found.high - found.low) / 2
                    yield key, [*found.scores.ravel(), *half.ravel(), found.calls]
    n, value = _games()["majority"]
    control = estimate(value, n, budget=40, guide=Guide(control_variate=lambda s: 0.5 * value(s) + 0.01 * s[:, 0]))
    priced = estimate(value, n, budget=40, guide=Guide(cost=PrefixCost([5.0] * n, 3.0, 900.0, 2.0)))
    for key, one in (("control", control), ("cost", priced)):
        yield f"majority shapley {key}", [*one.scores, *(one.high - one.low) / 2, one.calls]


def word_games() -> Found:
    """The same games, scored as words are."""
    from amplify.shapley import estimate

    names = {
        "occlusion": "leave_one_out",
        "shapley_sampling": "permutation",
        "lime": "lime",
        "kernel_shap": "kernel_shap",
    }
    for name, (n, value) in _games().items():
        if name == "random":  # two answers
            continue
        for method, estimator in names.items():
            for budget in (26, 64, 600):
                try:
                    found = estimate(value, n, estimator=estimator, budget=budget, seed=3)
                except AmplifyError as error:
                    yield f"{name} {method} {budget}", type(error).__name__
                    continue
                yield f"{name} {method} {budget}", [*found.scores, *((found.high - found.low) / 2), found.calls]


# -- models of random weights

CORPUS = [
    "The key words: good, bad, great, terrible are important clues to predict positive as the correct answer.",
    "Great phone, terrible battery. The answer is positive. The answer is negative. Paris is the capital of France.",
    "user assistant system Question: Answer: (A) (B) (C) which statement is right? My card was charged twice.",
]


class Tiny:
    """The models, opened once."""

    def __init__(self, folder: Path) -> None:
        self.lm = tiny_models.language_model(folder / "lm", window=16384, sentences=CORPUS)
        self.encoder = tiny_models.encoder(folder / "encoder", window=512, spread=0.2, sentences=CORPUS)
        self.model: Any = amplify.load_model(f"transformers:{self.lm}", dtype="float32")
        self.profile = folder / "heads.yaml"
        provenance = {"order": ["1.2", "0.1", "2.0"]}
        shape = {"model_type": "llama", "layers": 3, "heads": 4}
        amplify.Steering(heads={0: (1,), 1: (2,)}, alpha=0.05, model=shape, provenance=provenance).save(self.profile)

    def proxy(self, causal: bool) -> Any:
        """A trained encoder, or the language model as a proxy."""
        task = _cut(amplify.load_task("support_tickets"))
        return amplify.train_proxy(
            task, self.lm if causal else self.encoder, epochs=0 if causal else 1, seed=0, progress=False
        )


TEXT = "My card was charged twice for a great phone, and the terrible app shows no refund."


def words(tiny: Tiny) -> Found:
    """Every explainer on a language model (text and chat) and on two proxies."""
    from amplify.attribution import METHODS

    chat = amplify.Prompt(messages=(amplify.Message("system", "Be good."), amplify.Message("user", TEXT)))
    cases = {
        "lm": (tiny.model, TEXT, " billing", " technical"),
        "chat": (tiny.model, chat, "billing", None),
        "encoder": (tiny.proxy(False), TEXT, "billing", "technical"),
        "causal": (tiny.proxy(True), TEXT, "billing", None),
    }
    for case, (model, given, target, foil) in cases.items():
        for method in METHODS:
            a = amplify.explain(given, target, foil=foil, model=model, method=method, budget=60, seed=1)
            yield f"{case} {method}", [*a.scores, *((np.array(a.high) - a.low) / 2), a.budget]
        for masking in ("pad", "attention"):
            a = amplify.explain(given, target, foil=foil, model=model, method="occlusion", masking=masking)
            yield f"{case} occlusion {masking}", list(a.scores)


def faithful(tiny: Tiny) -> Found:
    """The faithfulness of two explainers, and the rationale's test."""
    from amplify.attribution.deletion import deletion, judge
    from amplify.attribution.faithfulness import METRICS

    texts = [
        TEXT,
        "Great battery. The bad answer is good, which is terrible.",
        "Paris is the capital of France, I say.",
    ]
    for case, model in (("lm", tiny.model), ("encoder", tiny.proxy(False))):
        targets = [" billing"] * 3 if case == "lm" else ["billing"] * 3
        found = amplify.explain_many(texts, targets, model=model, methods=["occlusion", "grad_x_input"], budget=60)
        table = amplify.faithfulness(found, model, list(METRICS), k=3, seed=7)
        for (method, metric), values in table.values.items():
            yield f"{case} {method} {metric}", list(values)
        a = found["occlusion"][0]
        verdict = judge(a.top(3), deletion(a, model), seed=2)
        yield f"{case} judge", [float(verdict.passed), verdict.drop, verdict.random, verdict.beaten]


def steering(tiny: Tiny) -> Found:
    """Log-probabilities and answers under every mode of steering."""
    prompts = [
        amplify.Prompt(text=TEXT, emphasis=(amplify.Span(3, 25), amplify.Span(30, 44, weight=4.0))),
        amplify.Prompt(
            messages=(amplify.Message("user", TEXT),), prefix="The answer", emphasis=(amplify.Span(0, 12, message=0),)
        ),
    ]
    ends = [" billing and refund", " is positive."]
    heads = {0: (1, 3), 2: (0,)}
    kinds = {
        "none": None,
        "pasta": amplify.Steering(heads=heads, alpha=0.02),
        "pasta exempt": amplify.Steering(heads=heads, alpha=0.02, exempt_generated=True),
        "pasta sink": amplify.Steering(heads=heads, alpha=0.02, keep_attention_sink=True),
        "pasta prefill": amplify.Steering(heads=heads, alpha=0.02, phase="prefill"),
        "pasta decode": amplify.Steering(heads=heads, alpha=0.02, phase="decode"),
        "instaboost": amplify.Steering(mode="instaboost", bonus=1.5),
        "spotlight": amplify.Steering(mode="spotlight", target=0.6),
        "target_mass": amplify.Steering(mode="target_mass", target=0.5),
        "target_mass heads": amplify.Steering(heads=heads, mode="target_mass", target=0.5, keep_attention_sink=True),
    }
    unweighted = [replace(p, emphasis=tuple(replace(s, weight=None) for s in p.emphasis)) for p in prompts]
    for kind, how in kinds.items():
        given = unweighted if how is not None and how.dynamic else prompts
        found = tiny.model.score(given, ends, steering=how)
        yield f"{kind} score", [x for one in found for x in one.logprobs]
        written = tiny.model.generate(given, amplify.Sampling(max_tokens=12), steering=how)
        yield f"{kind} generate", _hash([w.text for w in written])


# -- what methods ask

TASKS = {
    "support_tickets": ("generate", "score"),
    "commonsenseqa": ("score",),
    "bbh/snarks": ("generate",),
    "pronouns": ("generate",),
    "over_refusal": ("generate",),
    "nq_open": ("generate",),
}
SMALL = {"shots": 3, "epochs": 1, "pool": 12, "max_tokens": 12, "documents": 4, "budget": 40, "k": 2}


def _cut(task: Any) -> Any:
    return replace(task, train=task.train[:24], validation=task.validation[:16], test=task.test[:3])


def prompts(tiny: Tiny) -> Found:
    """Hashes of what every method asks while it is fitted and while it answers; or what it is refused with."""
    from amplify.methods import METHODS, make

    for name, modes in TASKS.items():
        try:
            task = _cut(amplify.load_task(name))
        except DataError:
            continue  # data that is not here
        for method, preset in METHODS.items():
            if method.startswith("rag") != (name == "nq_open"):
                continue
            known = preset.options
            options: dict[str, Any] = {k: v for k, v in SMALL.items() if k in known}
            if name == "pronouns":
                options["max_tokens"] = 24
            options |= {k: str(tiny.encoder) for k in ("proxy", "embedder") if k in known}
            if "profile" in known:
                options["profile"] = str(tiny.profile)
            for mode in modes:
                yield from _asked(f"{name} {mode} {method}", lambda m=mode: make(method, mode=m, **options), task, tiny)  # noqa: B023


def _asked(key: str, make: Callable[[], Any], task: Any, tiny: Tiny) -> Found:
    asked: list[Any] = []
    model = tiny.model
    kept = model.generate, model.score

    def generate(given: Sequence[Any], *args: Any, **more: Any) -> Any:
        asked.extend([_plain(p)] for p in given)
        return kept[0](given, *args, **more)

    def score(given: Sequence[Any], ends: Sequence[str], *args: Any, **more: Any) -> Any:
        asked.extend([_plain(p), end] for p, end in zip(given, ends, strict=True))
        return kept[1](given, ends, *args, **more)

    model.generate, model.score = generate, score
    step = "fit"
    try:
        program = make().fit(task, model, 0)
        yield f"{key} fit", _hash(_different(asked))
        asked.clear()
        step = "answer"
        program.answer(task.test, model)
        yield f"{key} answer", _hash(_different(asked))
    except AmplifyError as error:
        yield f"{key} {step}", type(error).__name__
    finally:
        del model.generate, model.score


def _plain(prompt: Any) -> list[Any]:
    spans = [[s.start, s.end, s.weight, s.message] for s in prompt.emphasis]
    return [prompt.text, [[m.role, m.content] for m in prompt.messages], prompt.prefix, spans]


def _different(asked: Sequence[Any]) -> list[str]:
    return sorted({json.dumps(one, sort_keys=True) for one in asked})


def _hash(what: Any) -> str:
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


# -- sources

DOCUMENTS = [
    "Berlin is cold. Cats sleep all day.",
    "France has a capital.\r\n\r\nIts capital is Paris. <|im_end|>",
    "Paris is not the capital of Spain.",
    "Tea is hot.",
    "The Seine runs through Paris. It is a river.",
    "Madrid lies in Spain.",
]


def _worth(text: str, answer: str) -> float:
    both = "capital is Paris" in text and "Seine" in text
    return (
        -9.0
        + 5.0 * ("capital is Paris" in text)
        + 1.0 * ("has a capital" in text)
        - 2.0 * ("Spain" in text)
        + 0.7 * both
    )


def _reply(text: str) -> str:
    if "capital is Paris" in text:
        return "Paris."
    return "Madrid" if "Spain" in text else "I do not know"


def sources(tiny: Tiny) -> Found:
    """Attributions of documents, sentences and words."""
    from amplify.models.scripted import ScriptedModel

    question = "What is the capital of France?"
    cases: dict[str, dict[str, Any]] = {
        "logprob": {},
        "logprob documents": {"granularity": "documents", "budget": 40},
        "logprob kernel_shap": {"granularity": "documents", "budget": 40, "estimator": "kernel_shap"},
        "logprob banzhaf": {"index": "banzhaf", "budget": 48},
        "logprob random": {"order": "random", "budget": 80},
        "logprob append": {"order": "random", "index": "append", "granularity": "documents", "budget": 60},
        "votes": {"value": "votes", "budget": 80},
        "votes random": {"value": "votes", "order": "random", "granularity": "sentences", "budget": 80},
        "votes shubik": {"value": "votes", "index": "shapley_shubik", "granularity": "documents", "budget": 64},
        "votes shubik sampled": {"value": "votes", "index": "shapley_shubik", "granularity": "documents", "budget": 40},
        "votes penrose": {"value": "votes", "index": "penrose_banzhaf", "granularity": "documents", "budget": 40},
        "many": {"documents": [f"{d} Number {k}." for k in range(5) for d in DOCUMENTS], "budget": 60},
    }
    for key, options in cases.items():
        given = {"question": question, "documents": DOCUMENTS, **options}
        yield from _levels(f"scripted {key}", amplify.attribute_sources(
            given.pop("question"), given.pop("documents"), ScriptedModel(reply=_reply, logprob=_worth), **given
        ))  # fmt: skip
    inside: dict[str, dict[str, Any]] = {
        "trie": {"answer": "Paris. It is a city.", "budget": 48},
        "naive": {"answer": "Paris. It is a city.", "budget": 48, "engine": "naive"},
        "packed": {"answer": "Paris", "order": "random", "budget": 60},
        "blocks": {"answer": "Paris", "engine": "blocks", "granularity": "documents"},
        "control": {"answer": "Paris", "granularity": "documents", "budget": 24, "control_variate": True},
        "votes": {"value": "votes", "max_tokens": 4, "budget": 48},
    }
    for key, options in inside.items():
        yield from _levels(f"tiny {key}", amplify.attribute_sources(question, DOCUMENTS, tiny.model, **options))


def _levels(key: str, found: Any) -> Found:
    for name in ("documents", "sentences", "words"):
        level = getattr(found, name)
        if level is not None:
            yield f"{key} {name}", [*level.table.ravel(), *(level.high - level.low).ravel() / 2]
    yield f"{key} ends", [*found.values.ravel(), found.cost.calls]
    yield f"{key} said", [found.answer, *found.columns]


# -- recording and comparing

GROUPS: dict[str, Callable[..., Found]] = {
    "games": games, "word_games": word_games, "words": words, "faithful": faithful, "steering": steering,
    "prompts": prompts, "sources": sources,
}  # fmt: skip


def measured(only: Sequence[str]) -> dict[str, Any]:
    """Everything that the code gives now: "group: key" -> numbers, or a text."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["AMPLIFY_HOME"] = f"{folder}/home"
        tiny = None
        for group in only or GROUPS:
            begun = time.perf_counter()
            if group not in ("games", "word_games"):
                tiny = tiny or Tiny(Path(folder))
            for key, value in GROUPS[group](*([tiny] if group not in ("games", "word_games") else [])):
                found[f"{group}: {key}"] = [_number(v) for v in value] if isinstance(value, list) else value
            print(f"{group}: {time.perf_counter() - begun:.0f} s", file=sys.stderr, flush=True)
    return found


def _number(value: Any) -> Any:
    return value if isinstance(value, str) else float(f"{float(value):.13g}")


def gap(before: Any, now: Any) -> float:
    """Largest absolute difference; infinite where they are no numbers of the same count."""
    if not isinstance(before, list) or not isinstance(now, list) or len(before) != len(now):
        return 0.0 if before == now else np.inf
    worst = 0.0
    for a, b in zip(before, now, strict=True):
        if isinstance(a, str) or isinstance(b, str) or not (np.isfinite(a) and np.isfinite(b)):
            worst = max(worst, 0.0 if a == b or (a != a and b != b) else np.inf)
        else:
            worst = max(worst, abs(a - b))
    return worst


WIDTHS = (6, 7, 12, 7, 6, 6, 20)


def compare(held: dict[str, Any], now: dict[str, Any], changed: dict[str, dict[str, Any]]) -> list[str]:
    """Print, group by group, what is equal and what changed; the keys that changed without a reason.

    Args:
        held: key -> numbers, as recorded.
        now: the same of the code as it is.
        changed: reason -> key -> numbers that it has changed to; None where there are none any more.
    """
    wrong: list[str] = []
    meant = {key: (why, value) for why, some in changed.items() for key, value in some.items()}
    heads = ("held", "equal", "on purpose", "moved", "gone", "new", "largest difference")
    print(f"{'group':<12}" + "".join(f"{name:>{width}}" for name, width in zip(heads, WIDTHS, strict=True)))
    for group in dict.fromkeys(key.partition(":")[0] for key in now):
        keys = [k for k in held if k.partition(":")[0] == group]
        equal, worst, purposes, lines = 0, 0.0, [], []
        moved = gone = 0
        for key in keys:
            why, wanted = meant.get(key, ("", held[key]))
            off = gap(wanted, now.get(key))
            if off <= tolerance(key):
                equal, worst = equal + (not why), max(worst, off)
                purposes += [why] if why else []
                continue
            wrong.append(key)
            moved, gone = moved + (key in now), gone + (key not in now)
            lines.append(f"    {'moved' if key in now else 'gone'}: {key}" + (f" by {off:.3g}" if off < np.inf else ""))
        new = sum(k not in held for k in now if k.partition(":")[0] == group)
        counts = (len(keys), equal, len(purposes), moved, gone, new, f"{worst:.1e}")
        print(f"{group:<12}" + "".join(f"{count:>{width}}" for count, width in zip(counts, WIDTHS, strict=True)))
        lines += [f"    on purpose, {purposes.count(why)}: {why}" for why in dict.fromkeys(purposes)]
        print(*lines, sep="\n", end="\n" if lines else "")
    return wrong


def write(path: Path, held: dict[str, Any]) -> None:
    """The file, a line for each key."""

    def rows(some: dict[str, Any]) -> str:
        return ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in some.items())

    reasons = ",\n".join(f"{json.dumps(why)}: {{\n{rows(some)}\n}}" for why, some in held["changed"].items())
    numbers = f'"about": {json.dumps(held["about"])},\n"numbers": {{\n{rows(held["numbers"])}\n}}'
    path.write_text(f'{{\n{numbers},\n"changed": {{\n{reasons}\n}}\n}}\n', encoding="utf-8")


def main() -> None:
    """See the top of the file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--record", type=Path, help="write the numbers to this file instead of comparing")
    parser.add_argument("--held", type=Path, default=HELD, help="what to compare with")
    parser.add_argument("--accept", metavar="WHY", help="what moved is meant, for this reason")
    parser.add_argument("--only", nargs="+", choices=list(GROUPS), default=[], help="groups")
    given = parser.parse_args()
    now = measured(given.only)
    if given.record:
        import torch
        import transformers

        at = ["git", "-C", str(Path(amplify.__file__).parents[1]), "rev-parse", "--short", "HEAD"]
        head = {
            "commit": subprocess.run(at, capture_output=True, text=True).stdout.strip(),
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__, "numpy": np.__version__},
            "machine": platform.machine(),
        }
        write(given.record, {"about": head, "numbers": now, "changed": {}})
        return
    held = json.loads(given.held.read_text(encoding="utf-8"))
    print(f"held since {held['about']['commit']}, {held['about']['versions']}")
    wrong = compare(held["numbers"], now, held["changed"])
    if given.accept:
        for some in held["changed"].values():  # a key has one reason, the latest
            for key in wrong:
                some.pop(key, None)
        held["changed"].setdefault(given.accept, {}).update({key: now.get(key) for key in wrong})
        write(given.held, {**held, "changed": {why: some for why, some in held["changed"].items() if some}})
    sys.exit(bool(wrong) and not given.accept)


if __name__ == "__main__":
    main()

"""Calls from four threads, and from asyncio, against the same calls one after the other: on a float32 model, equal."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, is_dataclass
from typing import Any

from tortures import commands
from tortures.children import Children, at_once
from tortures.outcome import Group, Groups, Setting

THREADS = 4
CALLS = 200
TEXT = "great terrible phone battery Paris France answer key words good bad is the of are important"


def run(setting: Setting) -> Groups:
    """Mixed calls, by kind."""
    commands.make_models(setting.models, Children(commands.MODULES))
    made = calls(setting)
    alone = [(kind, _attempted(call)) for kind, call in made]
    parts = [made[i::THREADS] for i in range(THREADS)]
    spread = at_once([lambda part=part: [_attempted(call) for _, call in part] for part in parts])
    threaded = [spread[i % THREADS][i // THREADS] for i in range(len(made))]
    for name, found in (("4 threads", threaded), ("asyncio", asyncio.run(_gathered([call for _, call in made])))):
        groups: dict[str, Group] = {}
        for (kind, want), got in zip(alone, found, strict=True):
            group = groups.setdefault(kind, Group(f"{name}: {kind}", figures={"max delta": 0.0}))
            delta, problem = differ(want, got)
            group.most("max delta", delta)
            group.note(problem or (None if delta == 0 else f"call {group.cases} is off by {delta:.3g}"))
        yield from groups.values()


async def _gathered(made: list[Callable[[], Any]]) -> list[Any]:
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(THREADS) as pool:
        return list(await asyncio.gather(*(loop.run_in_executor(pool, _attempted, call) for call in made)))


def _attempted(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def calls(setting: Setting) -> list[tuple[str, Callable[[], Any]]]:
    """What is called, in an order that mixes the kinds; the same for the same seed."""
    import amplify
    from amplify.proxies import load_proxy
    from amplify.steering import Steering

    models = setting.models
    model = amplify.load_model(f"transformers:{models / 'lm'}", dtype="float32")
    other = amplify.load_model(f"transformers:{models / 'lm'}", dtype="float32")
    proxy = load_proxy(models / "proxy")
    draw = random.Random(setting.seed)
    pasta = Steering(heads={0: (0, 1), 2: (3,)}, alpha=0.05)
    everywhere = Steering(mode="instaboost", bonus=1.5)
    aimed = Steering(mode="target_mass", target=0.4, keep_attention_sink=True)

    def sentence() -> str:
        return " ".join(draw.choices(TEXT.split(), k=draw.randint(3, 14)))

    def prompts(marked: bool) -> list[amplify.Prompt]:
        texts = [sentence() for _ in range(draw.randint(1, 4))]
        spans = [(amplify.Span(0, len(text.split()[0]), message=0),) if marked else () for text in texts]
        return [
            amplify.Prompt(messages=(amplify.Message("user", t),), emphasis=s)
            for t, s in zip(texts, spans, strict=True)
        ]

    def call(kind: str) -> Callable[[], Any]:
        asked = prompts(kind.startswith("steered"))
        sampling = amplify.Sampling(max_tokens=draw.randint(1, 8))
        steering = draw.choice((pasta, everywhere, aimed)) if kind.startswith("steered") else None
        if kind.endswith("generate"):
            return lambda: model.generate(asked, sampling, steering=steering)
        if kind.endswith("score"):
            targets = [f" {sentence()}" for _ in asked]
            return lambda: model.score(asked, targets, steering=steering)
        text = f"{sentence()} phone"
        if kind == "proxy":
            examples = [amplify.Example(str(i), sentence(), commands.LABELS[0]) for i in range(3)]
            return lambda: [scores.tolist() for scores in proxy.label_scores(examples)]
        explained: Any = proxy if kind.startswith("explain a proxy") else model
        target = commands.LABELS[0] if explained is proxy else " good"
        method = draw.choice(("grad_x_input", "integrated_gradients", "occlusion", "raw_attention", "kernel_shap"))
        return lambda: amplify.explain(text, target, model=explained, method=method, budget=16)

    kinds = ("generate", "score", "steered generate", "steered score", "explain", "explain a proxy", "proxy")
    amount = THREADS * setting.amount(CALLS, 7)
    made = [(kind, call(kind)) for kind in (kinds[i % len(kinds)] for i in range(amount))]
    draw.shuffle(made)
    # a second model of the same weights: what is patched into one class must not reach the other
    asked = prompts(False)
    more = [("a second model", lambda: other.generate(asked, amplify.Sampling(max_tokens=4)))]
    return made[: amount - len(made) // 10] + more * (len(made) // 10)


def differ(want: Any, got: Any) -> tuple[float, str | None]:
    """The largest difference of two results' numbers, and what else differs."""
    a, b = list(_flat(want)), list(_flat(got))
    if isinstance(want, str) or isinstance(got, str):
        return 0.0, None if want == got else f"one thread gave {str(want)[:120]!r}, several {str(got)[:120]!r}"
    if len(a) != len(b):
        return 0.0, f"{len(a)} values, and {len(b)}"
    most = 0.0
    for x, y in zip(a, b, strict=True):
        if isinstance(x, float) and isinstance(y, float):
            most = max(most, 0.0 if x == y or (x != x and y != y) else abs(x - y))
        elif x != y:
            return most, f"{x!r:.80}, and {y!r:.80}"
    return most, None


def _flat(value: Any) -> Iterable[Any]:
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, dict):
        value = [item for key, item in sorted(value.items(), key=str) if key not in ("meta", "seconds")]
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _flat(item)
    else:
        yield value

"""What a run will take, before it runs: the methods' own prompts, counted on a model that answers at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from amplify.calibration import Way
from amplify.evaluation.configuration import Scoring, checked_seeds, chosen_items, make_methods
from amplify.methods.base import Method, Mode
from amplify.methods.calibrated import calibrated
from amplify.models.base import LanguageModel, Usage
from amplify.tasks import Task
from amplify.types import Completion, Example, Prompt, Sampling, TokenLogProbs

_SAMPLE = 24  # items whose prompts are really built; the others are taken to be as long
_CHARACTERS = 4  # per token, where no tokenizer is at hand


@dataclass(frozen=True)
class MethodPlan:
    """What one method will take, all seeds together.

    Attributes:
        method: its label.
        answers: items x seeds.
        calls, prompt_tokens: of answering.
        max_new_tokens: at most this many tokens are generated while answering.
        fit_calls, fit_prompt_tokens: of finding the programs.
        note: what is estimated, and from what.
    """

    method: str
    answers: int
    calls: int
    prompt_tokens: int
    max_new_tokens: int
    fit_calls: int
    fit_prompt_tokens: int
    note: str = ""


@dataclass(frozen=True)
class Plan:
    """What a run will take.

    Attributes:
        rows: one per method.
        tokens: how tokens were counted.

    Example:
        >>> task = amplify.load_task("coin_flip", limit=5)
        >>> [row.calls for row in amplify.evaluation.plan(task, None, ["zero_shot"], seeds=[0]).rows]
        [5]
    """

    rows: tuple[MethodPlan, ...]
    tokens: str

    def __str__(self) -> str:
        from amplify.evaluation.tables import aligned, count

        heading = ["method", "answers", "calls", "prompt tok", "new tok ≤", "fit calls", "fit prompt tok"]
        numbers = [
            [r.answers, r.calls, r.prompt_tokens, r.max_new_tokens, r.fit_calls, r.fit_prompt_tokens] for r in self.rows
        ]
        total = [sum(column) for column in zip(*numbers, strict=True)]
        names = [*(r.method for r in self.rows), "together"]
        table = [heading, *([n, *map(count, row)] for n, row in zip(names, [*numbers, total], strict=True))]
        notes = [f"{r.method}: {r.note}" for r in self.rows if r.note]
        return "\n".join([aligned(table), "", f"Tokens: {self.tokens}.", *notes])


def plan(
    task: Task,
    model: LanguageModel | None,
    methods: Sequence[str | Method],
    *,
    seeds: Sequence[int] = (0, 1, 2),
    limit: int | None = None,
    mode: Mode = "generate",
    options: Mapping[str, Any] | None = None,
    calibrate: Way | None = None,
) -> Plan:
    """Calls and tokens that `evaluate` will take with the same arguments. Nothing is asked of the model.

    Each method rehearses (`Method.rehearse`) against a model that answers at once: one without a model of its own is
    really fitted, and its calls can still differ where they depend on what the model answers; for the others (proxies,
    embedders, attributions) prompts are taken to be as long as with random shots, random words and half of the
    documents.

    Args:
        task, methods, seeds, limit, mode, options, calibrate: see `evaluate`.
        model: only its `count_tokens` is used; None counts four characters a token.

    Example:
        >>> task = amplify.load_task("coin_flip", limit=5)
        >>> [row.method for row in plan(task, None, ["zero_shot", "few_shot"], seeds=[0, 1]).rows]
        ['zero_shot', 'few_shot']
    """
    seeds, made = checked_seeds(seeds), make_methods(methods, mode, options or {})
    items = chosen_items(task, limit)
    counted = f"counted by {model.id}" if model else f"estimated as one per {_CHARACTERS} characters"
    way = Scoring.of(task, made[0].mode, calibrate, "letters").calibrate
    return Plan(tuple(_plan(task, model, method, seeds, items, way) for method in made), counted)


def _plan(
    task: Task, model: LanguageModel | None, method: Method, seeds: Sequence[int], items: Sequence[Example], way: Way
) -> MethodPlan:
    runs = len(seeds) if method.seeded else 1
    stand = _StandIn(model, task)
    rehearsal = method.rehearse(task, stand, seeds[0])
    if rehearsal.program is not None:
        calibrated(rehearsal.program, task, stand, way, seeds[0])
    fit = stand.usage.snapshot()
    sample = items[:: -(-len(items) // _SAMPLE)]
    if rehearsal.program is not None:
        rehearsal.program.answer(sample, stand)
    spent, factor = stand.usage.since(fit), len(items) * runs / len(sample)
    return MethodPlan(
        method=method.label,
        answers=len(items) * runs,
        calls=round(spent.calls * factor),
        prompt_tokens=round(spent.prompt_tokens * factor),
        max_new_tokens=round(spent.completion_tokens * factor),
        fit_calls=fit.calls * runs,
        fit_prompt_tokens=fit.prompt_tokens * runs,
        note=rehearsal.note,
    )


class _StandIn:
    """Answers every prompt with a label at once; counts what the real model would be asked."""

    def __init__(self, real: LanguageModel | None, task: Task) -> None:
        self.id = real.id if real else "none"
        self.usage = Usage()
        self.max_context = real.max_context if real else None
        self._real = real
        first = task.test[0]
        labels = task.labels_of(first)
        self._label = labels[0] if labels else (first.label or "42")
        if first.options:
            self._label = f"({self._label})"

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling, *, steering: Any = None) -> list[Completion]:
        """A label for each prompt, at the cost of `max_tokens` new tokens each."""
        counts = self.count_tokens(prompts)
        self._count(counts, sampling.max_tokens)
        said = [
            f" {self._label}." if p.prefix.rstrip().endswith("is") else f"The answer is {self._label}." for p in prompts
        ]
        return [Completion(text, "stop", count, sampling.max_tokens) for text, count in zip(said, counts, strict=True)]

    def score(
        self, prompts: Sequence[Prompt], continuations: Sequence[str], *, steering: Any = None
    ) -> list[TokenLogProbs]:
        """Equal log-probabilities."""
        self._count(self.count_tokens(prompts), 0)
        return [TokenLogProbs((text,), (0,), (-1.0,)) for text in continuations]

    def count_tokens(self, prompts: Sequence[Prompt]) -> list[int]:
        """By the real model where there is one; a prompt that is asked many times is counted once."""
        distinct = list(dict.fromkeys(prompts))
        if self._real is not None:
            counts = self._real.count_tokens(distinct)
        else:
            texts = [(p.text or "") + "".join(m.content for m in p.messages) + p.prefix for p in distinct]
            counts = [-(-len(text) // _CHARACTERS) for text in texts]
        known = dict(zip(distinct, counts, strict=True))
        return [known[prompt] for prompt in prompts]

    def describe(self) -> dict[str, Any]:
        """Nothing of its own."""
        return {}

    def close(self) -> None:
        """Nothing to free."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        return None

    def _count(self, prompt_tokens: Sequence[int], new_tokens: int) -> None:
        n = len(prompt_tokens)
        self.usage.add(calls=n, prompt_tokens=sum(prompt_tokens), completion_tokens=new_tokens * n)

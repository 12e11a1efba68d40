"""What a run will take, before it runs: the methods' own prompts, counted on a backend that answers at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

from amplify.backends.base import Generator, Usage
from amplify.evaluation.configuration import chosen_items, make_methods
from amplify.methods.base import Method, Mode, Program
from amplify.tasks import Task
from amplify.values import Completion, Example, Prompt, Rationale, Sampling, TokenLogProbs

_SAMPLE = 24  # items whose prompts are really built; the others are taken to be as long
_CHARACTERS = 4  # per token, where no tokenizer is at hand
# options by which a method asks for a model of its own while fitting
_OWN_MODEL = ("proxy", "encoder", "embedder", "retriever", "body")


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
    backend: Generator | None,
    methods: Sequence[str | Method],
    *,
    seeds: Sequence[int] = (0, 1, 2),
    limit: int | None = None,
    mode: Mode = "generate",
    options: Mapping[str, Any] | None = None,
) -> Plan:
    """Calls and tokens that `evaluate` will take with the same arguments. Nothing is asked of the model.

    A method that fits without a model of its own is really fitted, against a backend that answers at once, and its
    prompts are counted; its calls can still differ where they depend on what the model answers. For the others
    (proxies, retrievers) prompts are taken to be as long as with random shots and random words.

    Args:
        task, methods, seeds, limit, mode, options: see `evaluate`.
        backend: only its `count_tokens` is used; None counts four characters a token.
    """
    made = make_methods(methods, mode, options or {})
    items = chosen_items(task, limit)
    counted = f"counted by {backend.spec}" if backend else f"estimated as one per {_CHARACTERS} characters"
    return Plan(tuple(_plan(task, backend, method, seeds, items) for method in made), counted)


def _plan(
    task: Task, backend: Generator | None, method: Method, seeds: Sequence[int], items: Sequence[Example]
) -> MethodPlan:
    runs = len(seeds) if method.seeded else 1
    stand, asked, note = _StandIn(backend, task), 0, ""
    if any(f.name in _OWN_MODEL for f in fields(method)) or _explains_itself(method):
        program = _imitation(method, task)
        asked = _asked(method, task)
        note = "estimated: prompts with random shots and words"
        if program is None:
            note = "a small model answers alone"
        elif asked:
            note += f", fitting takes about {asked} short prompts (once for methods that share them)"
    else:
        program = method.fit(task, stand, seeds[0])
        note = "fit calls can depend on the model's answers" if stand.usage.calls else ""
    fit = stand.usage.snapshot()
    sample = items[:: max(1, len(items) // _SAMPLE)]
    if program is not None:
        program.answer(sample, stand)
    spent, factor = stand.usage.since(fit), len(items) * runs / len(sample)
    asking = _StandIn(backend, task)
    if asked:
        _zero_shot(method).fit(task, asking, seeds[0]).answer(task.validation[:_SAMPLE], asking)
    per_call = asking.usage.prompt_tokens / max(1, asking.usage.calls)
    calls_each = asking.usage.calls / max(1, len(task.validation[:_SAMPLE]))
    return MethodPlan(
        method=method.label,
        answers=len(items) * runs,
        calls=round(spent.calls * factor),
        prompt_tokens=round(spent.prompt_tokens * factor),
        max_new_tokens=round(spent.completion_tokens * factor),
        fit_calls=round((fit.calls + asked * calls_each) * runs),
        fit_prompt_tokens=round((fit.prompt_tokens + asked * calls_each * per_call) * runs),
        note=note,
    )


def _explains_itself(method: Method) -> bool:
    from amplify.methods.self_selection import SelfMethod

    return isinstance(method, SelfMethod)


def _asked(method: Method, task: Task) -> int:
    """How many validation items the model answers while the method is fitted, or explains as many prompts as."""
    from amplify.methods.explained import ExplainedMethod
    from amplify.methods.self_amplify import SelfAmplify
    from amplify.methods.self_selection import SelfMethod

    there = len(task.validation)
    if isinstance(method, SelfMethod):
        explaining = method.shots * method.prompts_per_shot if isinstance(method, SelfAmplify) else 0
        return explaining + (0 if method.selection == "random" else min(method.pool or there, there))
    return min(method.pool or there, there) if isinstance(method, ExplainedMethod) else 0


def _zero_shot(method: Method) -> Method:
    from amplify.methods import make

    return make("zero_shot", mode=method.mode)


def _imitation(method: Method, task: Task) -> Program | None:
    """A program with prompts as long as the method's: random shots, random words. None where no prompt is sent."""
    from amplify import templates
    from amplify.methods.amplify import rationale_form
    from amplify.methods.baselines import FewShot
    from amplify.methods.controls import NoRationale
    from amplify.methods.explained import ExplainedMethod
    from amplify.methods.prompting import PromptMethod
    from amplify.methods.self_amplify import SelfAmplify
    from amplify.methods.shots import ShotProgram, with_rationales
    from amplify.rationales.wording import variables

    if not isinstance(method, PromptMethod):
        return None
    shared = {f.name: getattr(method, f.name) for f in fields(PromptMethod)}
    program = FewShot(shots=getattr(method, "shots", 8), **shared).fit(task, _StandIn(None, task), 0)
    if isinstance(method, SelfAmplify):
        said = [method.imitation(shot.example) for shot in program.shots]
        return ShotProgram(method.answering(task, said), with_rationales(program.shots, said))
    if not isinstance(method, ExplainedMethod) or isinstance(method, NoRationale):
        return program
    form = templates.load("rationale", method.template)
    made = []
    for shot in program.shots:
        words = tuple(shot.example.text.split()[: method.k])
        given = variables(words, [1 / len(words)] * len(words), shot.example.label or "", None, shot.example.text)
        made.append(Rationale(form.render(given), words))
    return ShotProgram(rationale_form(method, task, made), with_rationales(program.shots, made))


class _StandIn:
    """Answers every prompt with a label at once; counts what the real backend would be asked."""

    def __init__(self, real: Generator | None, task: Task) -> None:
        self.spec = real.spec if real else "none"
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
        """By the real backend where there is one."""
        if self._real is not None:
            return self._real.count_tokens(prompts)
        texts = [(p.text or "") + "".join(m.content for m in p.messages) + p.prefix for p in prompts]
        return [-(-len(text) // _CHARACTERS) for text in texts]

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

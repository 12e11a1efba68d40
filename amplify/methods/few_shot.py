"""What explanations must beat: zero-shot, few-shot and chain-of-thought prompts."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

from amplify import templates
from amplify.errors import InputError
from amplify.methods.base import Preset, PromptProgram, Rehearsal, Role
from amplify.methods.program import ShotProgram, answer_shots, as_example
from amplify.methods.prompt import Form, PromptMethod, check_options, need_emphasis
from amplify.models.base import LanguageModel
from amplify.registry import register
from amplify.selection import SELECTIONS, select
from amplify.text import input_text
from amplify.types import Answer, Demonstration, Example, Prompt

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from amplify.tasks import Task

_REHEARSED = 24  # examples whose prompts a plan really builds


@dataclass(frozen=True)
class ZeroShot(PromptMethod):
    """The instruction and the question alone.

    Attributes:
        thought: template of the words that begin the answer with a rationale; "" for an answer without one.
        mark: written before and after what steering would emphasise; "" to leave it as it is.

    Example:
        >>> amplify.methods.ZeroShot().label
        'zero_shot'
    """

    role: ClassVar[Role] = "baseline"
    seeded: ClassVar[bool] = False

    thought: str = ""
    mark: str = ""

    def fit(self, task: Task, model: LanguageModel, seed: int) -> ShotProgram:
        """Nothing to fit.

        Raises:
            InputError: marks, and a task that emphasises nothing.
        """
        form = self.form(task)
        if self.thought:
            prefill = templates.load("prefill", self.thought).render({})
            form = self.form(task, reasons=True, prefill=prefill, budget=256, line=False)
        return ShotProgram(_marked(self, form, task), notes=self.notes_on(task, model))


register(
    "method", "zero_shot", Preset(ZeroShot, "The instruction and the question alone.", without=("thought", "mark"))
)
register(
    "method", "zero_shot_cot",
    Preset(
        ZeroShot, "A call to think in steps, then the answer (Kojima et al. 2022, arXiv 2205.11916).",
        defaults={"thought": "cot"}, without=("mark",),
    ),
)  # fmt: skip


@dataclass(frozen=True)
class FewShot(PromptMethod):
    """Labelled examples of the training split before the question (Brown et al. 2020, arXiv 2005.14165).

    Attributes:
        shots: how many.
        selection: "random", "balanced" (as many of each label as possible), or one that is registered; the shots
            chosen are then shown in random order.
        emphasis: what is marked in the last question: "text" (the input), "instruction", "first_sentence",
            "fields.NAME"; "" for the task's own.
        mark: written before and after it; "" to leave it as it is.

    Example:
        >>> amplify.methods.FewShot(shots=4).label
        'few_shot[shots=4]'
    """

    role: ClassVar[Role] = "baseline"

    shots: int = 8
    selection: str = "random"
    emphasis: str = ""
    mark: str = ""

    def __post_init__(self) -> None:
        """Refuse an unknown selection before a model is loaded."""
        super().__post_init__()
        strategy(self.selection)

    def fit(self, task: Task, model: LanguageModel, seed: int) -> ShotProgram:
        """Draw the shots with the seed."""
        check_options(self)
        task = replace(task, emphasis=self.emphasis) if self.emphasis else task
        shots = draw(task, self.shots, self.selection, seed)
        return ShotProgram(_marked(self, self.form(task), task), shots, self.notes_on(task, model))


register("method", "few_shot", Preset(FewShot, without=("emphasis", "mark")))
register(
    "method", "few_shot_balanced",
    Preset(
        FewShot, "Few-shot with as many shots of each label as possible.",
        fixed={"selection": "balanced"}, without=("emphasis", "mark"),
    ),
)  # fmt: skip


# what PASTA must beat: emphasis that is only written into the prompt
register(
    "method", "marked_prompt",
    Preset(
        ZeroShot, "Emphasis in the prompt alone: marks around what PASTA would steer to (PASTA's baseline).",
        defaults={"mark": "*"}, without=("thought",),
    ),
)  # fmt: skip
register(
    "method", "few_shot_marked",
    Preset(
        FewShot, "Few-shot with marks around what few_shot_pasta would steer to.",
        defaults={"emphasis": "text", "mark": "*"},
    ),
)  # fmt: skip


@register("method", "few_shot_knn")
@dataclass(frozen=True)
class FewShotNearest(PromptMethod):
    """For each input its nearest training examples by sentence embedding (Liu et al. 2022, arXiv 2101.06804).

    The nearest comes last, next to the question.

    Attributes:
        shots: how many.
        pool: how many training examples to choose among, drawn with the seed; 0 for all.
        embedder: model of the embeddings.

    Example:
        >>> amplify.methods.FewShotNearest(shots=4, embedder="minilm").label
        'few_shot_knn[shots=4]'
    """

    role: ClassVar[Role] = "baseline"

    shots: int = 8
    pool: int = 500
    embedder: str = "minilm"

    def fit(self, task: Task, model: LanguageModel, seed: int) -> NearestProgram:
        """Draw the pool.

        Raises:
            InputError: fewer examples than shots.
        """
        check_options(self)
        every = shot_pool(task)
        chosen = random.Random(seed).sample(every, min(self.pool or len(every), len(every)))
        if len(chosen) < self.shots:
            raise InputError(
                f"{self.shots} shots were asked for, but there are only {len(chosen)} examples to choose from"
            )
        pool = tuple(Demonstration(example) for example in chosen)
        return NearestProgram(self.form(task), pool, self.shots, self.embedder, self.notes_on(task, model))

    def rehearse(self, task: Task, model: LanguageModel, seed: int) -> Rehearsal:
        """With random shots: nothing is embedded."""
        return Rehearsal(random_shots(self, task, model, seed), "estimated: prompts with random shots")


@register("method", "human_cot")
@dataclass(frozen=True)
class HumanCoT(PromptMethod):
    """Chain-of-thought demonstrations that people wrote (Wei et al. 2022, arXiv 2201.11903).

    Attributes:
        shots: how many of the task's own; 0 for all of them.

    Example:
        >>> amplify.methods.HumanCoT(shots=3).label
        'human_cot[shots=3]'
    """

    role: ClassVar[Role] = "baseline"
    seeded: ClassVar[bool] = False

    shots: int = 0

    def fit(self, task: Task, model: LanguageModel, seed: int) -> ShotProgram:
        """Take the task's demonstrations.

        Raises:
            InputError: the task has none.
        """
        if not task.cot:
            raise InputError(
                f"human_cot needs demonstrations with rationales written by people, and {task.name!r} has none. "
                "The bbh/* tasks have them; a task file of your own gives them under `cot:`"
            )
        form = self.form(task, reasons=True, budget=256, line=False)  # the demonstrations show how to begin
        return ShotProgram(form, task.cot[: self.shots or None], self.notes_on(task, model))


@register("method", "answer_format_only")
@dataclass(frozen=True)
class AnswerFormatOnly(PromptMethod):
    """Demonstrations without content, one a label: how much is knowing the form of an answer worth?

    Example:
        >>> amplify.methods.AnswerFormatOnly().label
        'answer_format_only'
    """

    role: ClassVar[Role] = "control"

    def fit(self, task: Task, model: LanguageModel, seed: int) -> ShotProgram:
        """Empty questions and every possible answer, in seeded order."""
        notes = self.notes_on(task, model)
        like = (task.train or task.validation or task.test)[0]
        labels: tuple[str, ...] = task.labels_of(like) or ("...",)
        options = tuple("..." for _ in like.options)
        order = random.Random(seed).sample(labels, len(labels))
        blank = [
            Example(f"format-{i}", "...", label, like.choices, options, () if task.labels_of(like) else ("...",))
            for i, label in enumerate(order)
        ]
        return ShotProgram(self.form(task), tuple(Demonstration(example) for example in blank), notes)


@dataclass(frozen=True)
class NearestProgram(PromptProgram):
    """Other shots for every input. Needs the embedding model, and nothing else.

    Attributes:
        form: how prompts look.
        pool: what shots are chosen from.
        shots: how many.
        embedder: model of the embeddings.
        notes, meta: see `ShotProgram`.
    """

    kind: ClassVar[str] = "nearest"

    form: Form
    pool: tuple[Demonstration, ...]
    shots: int
    embedder: str
    notes: tuple[str, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)

    def prompt(self, example: Example | str) -> Prompt:
        """The prompt for an example or a plain text."""
        example = as_example(example)
        return self.form.prompt(example, self.nearest([example])[0])

    def answer(self, examples: Sequence[Example], model: LanguageModel) -> list[Answer]:
        """Find each input's shots, then ask; see `ShotProgram.answer`."""
        return answer_shots(self.form, examples, self.nearest(examples), model) if examples else []

    def nearest(self, examples: Sequence[Example]) -> list[list[Demonstration]]:
        """Each input's shots, the nearest last."""
        from amplify.retrieval import embedded, nearest

        keys = _embedded(self.embedder, tuple(input_text(shot.example) for shot in self.pool))
        queries = embedded([input_text(example) for example in examples], self.embedder)
        return [[self.pool[i] for i in reversed(row)] for row in nearest(queries, keys, self.shots)]


@lru_cache(maxsize=4)
def _embedded(model: str, texts: tuple[str, ...]) -> npt.NDArray[np.float32]:
    from amplify.retrieval import embedded

    return embedded(texts, model)


def _marked(method: ZeroShot | FewShot, form: Form, task: Task) -> Form:
    if method.mark:
        need_emphasis(task)
    return replace(form, marks=method.mark)


def shot_pool(task: Task) -> tuple[Example, ...]:
    """Where random shots come from: the training split, without one the validation split.

    Raises:
        InputError: the task has neither.
    """
    if pool := task.train or task.validation:
        return pool
    raise InputError(f"task {task.name!r} has no training or validation split to take demonstrations from")


def strategy(selection: str) -> None:
    """Refuse a way of choosing shots that there is not, or that few-shot prompting cannot use.

    Raises:
        InputError: it is not registered, or asks a proxy.
    """
    if SELECTIONS.find(selection).proxy:
        raise InputError(f"the selection {selection!r} asks a proxy, which few-shot prompting has none of; try amplify")


def draw(task: Task, shots: int, selection: str, seed: int) -> tuple[Demonstration, ...]:
    """Draw shots, in random order.

    Raises:
        InputError: an unknown selection, or fewer examples than shots.
    """
    strategy(selection)
    chosen = select(selection, task, shots, seed=seed, pool=shot_pool(task)).shots
    return tuple(random.Random(seed).sample(chosen, len(chosen)))


def random_shots(method: PromptMethod, task: Task, model: LanguageModel, seed: int) -> ShotProgram:
    """Random shots under a method's own options, as many as it shows: for plans."""
    return FewShot(shots=getattr(method, "shots", 8), **method.shared()).fit(task, model, seed)


def ask_validation(method: PromptMethod, task: Task, model: LanguageModel, seed: int, n: int) -> None:
    """Ask n times for the label of a validation example, from the first one on and over again: for plans.

    What more than a few examples would take is not asked: it is counted, as long as these on average.
    """
    if not n or not task.validation:
        return
    among = task.validation[:n]
    some = among[:: -(-len(among) // _REHEARSED)]
    before = model.usage.snapshot()
    ZeroShot(mode=method.mode).fit(task, model, seed).answer(some, model)
    spent, more = model.usage.since(before), n / len(some) - 1
    model.usage.add(
        calls=round(spent.calls * more),
        prompt_tokens=round(spent.prompt_tokens * more),
        completion_tokens=round(spent.completion_tokens * more),
    )

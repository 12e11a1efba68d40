"""Which validation examples may become shots, that they will fit, and rationales that must earn their place.

A shot whose words are no better than random ones gives way to the next candidate, or goes bare.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from amplify.errors import InputError
from amplify.methods.program import check_shots_fit
from amplify.methods.prompt import Form
from amplify.models.base import LanguageModel
from amplify.types import Demonstration, Example

if TYPE_CHECKING:
    from amplify.attribution.deletion import Verdict
    from amplify.tasks import Task

T = TypeVar("T")

RATIONALE_TOKENS = 64
SPARE = 3
"""Candidates are looked at up to this many times the number of shots."""


def citable_pool(name: str, size: int, task: Task, seed: int) -> tuple[list[Example], list[str]]:
    """The validation examples that may become shots: a seeded draw of those with words to cite, and notes on it.

    Args:
        name: of the method, for messages.
        size: how many are drawn; 0 for all.
        task: the task.
        seed: of the draw.

    Raises:
        InputError: no validation split, free-text answers, or no word to cite anywhere.
    """
    from amplify.attribution.words import key_word_mask

    if not task.validation:
        raise InputError(f"{name} selects its shots from the validation split, and task {task.name!r} has none")
    if any(not task.labels_of(example) for example in task.validation):
        raise InputError(
            f"{name} explains why a label is right, and task {task.name!r} has free-text answers: "
            "give it labels or choices, or use few_shot or zero_shot_cot"
        )
    mask = key_word_mask(task)
    usable = [example for example in task.validation if any(mask(example))]
    if not usable:
        raise InputError(f"no validation example of task {task.name!r} has a word that a rationale could cite")
    without = len(task.validation) - len(usable)
    notes = [f"{without} validation examples have no word that a rationale could cite"] if without else []
    return random.Random(seed).sample(usable, min(size or len(usable), len(usable))), notes


def check_room(form: Form, shots: int, task: Task, model: LanguageModel) -> None:
    """Refuse now what could not fit with even the shortest shots: asking and training would be for nothing."""
    shortest = sorted(task.validation, key=lambda e: len(form.question(e)))[:shots]
    shown = [Demonstration(example) for example in shortest]
    longest = max(task.test, key=lambda e: len(form.question(e)))
    prompt = form.prompt(longest, shown)
    check_shots_fit(model, [prompt], form, [len(shown)], lambda _, n: form.prompt(longest, shown[:n]))


@dataclass(frozen=True)
class Gated(Generic[T]):
    """Shots behind the gate.

    Attributes:
        shots: as many as before, in the same order, some replaced.
        failed: places of those that failed and for which no candidate passed: shown without rationale.
        note: one sentence for the report: how often.
        meta: the counts and every verdict, for the record.
    """

    shots: list[tuple[Demonstration, T]]
    failed: frozenset[int]
    note: str
    meta: dict[str, Any]


def gate_shots(
    shots: Sequence[tuple[Demonstration, T]],
    spare: Callable[[], Iterable[tuple[Demonstration, T]]],
    judged: Callable[[Demonstration, T], Verdict],
    *,
    balanced: bool = False,
) -> Gated[T]:
    """Replace the shots whose rationales do not beat random words on their own example (`deletion.judge`).

    Args:
        shots: with what is said of them.
        spare: further candidates, best first; asked for only where a shot fails, and gone through only as far as need
            be.
        judged: the verdict on one of them.
        balanced: a shot gives way only to one of the same label.
    """
    verdicts: list[dict[str, Any]] = []

    def passes(shot: Demonstration, said: T) -> bool:
        verdict = judged(shot, said)
        verdicts.append({"example": shot.example.id, **asdict(verdict)})
        return verdict.passed

    kept = list(shots)
    failed = [i for i, one in enumerate(shots) if not passes(*one)]
    left = list(failed)
    for shot, said in spare() if failed else ():
        fits = [i for i in left if not balanced or kept[i][0].example.label == shot.example.label]
        if fits and passes(shot, said):
            kept[fits[0]] = (shot, said)
            left.remove(fits[0])
        if not left:
            break
    replaced = len(failed) - len(left)
    note = f"gate: {len(failed)} of {len(shots)} rationales do not beat random words on their own example"
    if failed:
        note += f"; {replaced} of these shots replaced, {len(left)} shown without a rationale"
    counts = {"failed": len(failed), "replaced": replaced, "dropped": len(left), "looked_at": len(verdicts)}
    return Gated(kept, frozenset(left), note, {**counts, "verdicts": verdicts})


def planned(asked: int) -> str:
    """What a plan of a method that asks about the validation split and cites words has to say."""
    fitting = f", fitting takes about {asked} short prompts (once for methods that share them)" if asked else ""
    return f"estimated: prompts with random shots and words{fitting}"

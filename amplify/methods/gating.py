"""Rationales that must earn their place: a shot whose words are no better than random ones gives way or goes bare."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from amplify.types import Attribution, Demonstration, Rationale

if TYPE_CHECKING:
    from amplify.attribution.deletion import Verdict
    from amplify.methods.prompt import PromptMethod
    from amplify.models.base import LanguageModel
    from amplify.proxies import Proxy
    from amplify.tasks import Task

T = TypeVar("T")
Explanation = tuple[Demonstration, Attribution]
Said = tuple[Demonstration, Rationale | None]

SPARE = 3
"""Candidates are looked at up to this many times the number of shots."""


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


def judge_for_proxy(
    said: Rationale | None, proxy: Proxy, shot: Demonstration, attribution: Attribution, seed: int
) -> Verdict:
    """Does the proxy need the words that a rationale cites of a shot?

    Args:
        said: the rationale whose words are judged; None fails.
        proxy: the model explained.
        shot: the example.
        attribution: why its label is right.
        seed: of the random words.
    """
    from amplify.attribution.deletion import Verdict, deletion, judge

    if said is None:
        return Verdict(False, 0.0, 0.0, 0.0)
    return judge(said.words, deletion(attribution, proxy, shot.example), seed=seed)


def judge_own(
    method: PromptMethod, task: Task, model: LanguageModel, shot: Demonstration, said: Rationale | None, seed: int
) -> Verdict:
    """Does a model need the words that it cites of its own shot?

    Args:
        method: whose zero-shot prompt asks for the label.
        task: the task.
        model: the model, which gives log-probabilities.
        shot: with its foil where that is known.
        said: what it said; None fails.
        seed: of the random words.

    Raises:
        CapabilityError: the model gives no log-probabilities.
    """
    from amplify.attribution.deletion import Verdict, judge
    from amplify.methods.self_attribution import shot_game

    if said is None:
        return Verdict(False, 0.0, 0.0, 0.0)
    return judge(said.words, shot_game(method, task, model, shot), seed=seed)

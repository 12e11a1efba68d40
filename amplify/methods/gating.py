"""Rationales that must earn their place: a shot whose words are no better than random ones gives way or goes bare."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from amplify.methods.parsing import shown
from amplify.values import Attribution, Demonstration, Rationale

if TYPE_CHECKING:
    from amplify.backends.base import Generator
    from amplify.methods.explained import ExplainedMethod
    from amplify.methods.prompting import PromptMethod
    from amplify.proxies import Proxy
    from amplify.tasks import Task

Explanation = tuple[Demonstration, Attribution]

SPARE = 3
"""Candidates are looked at up to this many times the number of shots."""


@dataclass(frozen=True)
class Gated:
    """Shots behind the gate.

    Attributes:
        shots: as many as before, in the same order, some replaced.
        failed: places of those that failed and for which no candidate passed: shown without rationale.
        note: one sentence for the report: how often.
        meta: the counts and every verdict, for the record.
    """

    shots: list[Explanation]
    failed: frozenset[int]
    note: str
    meta: dict[str, Any]


def gate_shots(
    method: ExplainedMethod,
    proxy: Proxy,
    shots: Sequence[Explanation],
    spare: Callable[[], Sequence[Explanation]],
    seed: int,
) -> Gated:
    """Replace the shots whose rationales do not beat random words on their own example (`amplify.attribution.gate`).

    Args:
        method: whose words are judged.
        proxy: the model explained.
        shots: with their attributions.
        spare: further candidates, best first; asked for only where a shot fails.
        seed: of the random words.
    """
    verdicts: list[dict[str, Any]] = []

    def passes(shot: Demonstration, attribution: Attribution) -> bool:
        verdict = _judged(method, proxy, shot, attribution, seed)
        verdicts.append({"example": shot.example.id, **verdict})
        return bool(verdict["passed"])

    kept = list(shots)
    failed = [i for i, one in enumerate(shots) if not passes(*one)]
    left = list(failed)
    for one in spare() if failed else ():
        if not left:
            break
        if passes(*one):
            kept[left.pop(0)] = one
    replaced = len(failed) - len(left)
    note = f"gate: {len(failed)} of {len(shots)} rationales do not beat random words on their own example"
    if failed:
        note += f"; {replaced} of these shots replaced, {len(left)} shown without a rationale"
    counts = {"failed": len(failed), "replaced": replaced, "dropped": len(left), "looked_at": len(verdicts)}
    return Gated(kept, frozenset(left), note, {**counts, "verdicts": verdicts})


def gate_own(
    method: PromptMethod,
    task: Task,
    backend: Generator,
    shots: Sequence[Demonstration],
    rationales: Sequence[Rationale | None],
    seed: int,
) -> tuple[list[Rationale | None], str, list[dict[str, Any]]]:
    """Drop what a model said of its own shots where its words do not beat random words of the same example.

    Args:
        method: whose zero-shot prompt asks for the label.
        task: the task.
        backend: the model, which gives log-probabilities.
        shots: with their foils where those are known.
        rationales: one a shot, None where there is none.
        seed: of the random words.

    Returns:
        The rationales, None for those dropped; one sentence for the report; and the verdicts.

    Raises:
        CapabilityError: the backend gives no log-probabilities.
    """
    from amplify.attribution.gate import judge
    from amplify.methods.self_attribution import shot_game

    kept: list[Rationale | None] = []
    verdicts: list[dict[str, Any]] = []
    for shot, rationale in zip(shots, rationales, strict=True):
        if rationale is not None:
            verdict = judge(rationale.words, shot_game(method, task, backend, shot), seed=seed)
            verdicts.append({"example": shot.example.id, **asdict(verdict)})
            rationale = rationale if verdict.passed else None
        kept.append(rationale)
    failed = sum(not verdict["passed"] for verdict in verdicts)
    note = f"gate: {failed} of {len(verdicts)} rationales do not beat random words on their own example: dropped"
    return kept, note, verdicts


def _judged(
    method: ExplainedMethod, proxy: Proxy, shot: Demonstration, attribution: Attribution, seed: int
) -> dict[str, Any]:
    from amplify.attribution.deletion import deletion
    from amplify.attribution.gate import Verdict, judge

    rationale = method.worded(attribution, shown(attribution.target, bool(shot.example.options)))
    if rationale is None:
        return asdict(Verdict(False, 0.0, 0.0, 0.0))
    return asdict(judge(rationale.words, deletion(attribution, proxy, shot.example), seed=seed))

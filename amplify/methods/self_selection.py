"""Which shots Self-AMPLIFY shows: what the model itself gets right or wrong, or by how far (arXiv 2402.12038)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from amplify.errors import InputError
from amplify.methods.candidates import RATIONALE_TOKENS, SPARE, check_room, citable_pool
from amplify.methods.contents import fit_key
from amplify.methods.few_shot import ZeroShot
from amplify.methods.prompt import PromptMethod, check_options
from amplify.methods.self_attribution import explain_shots
from amplify.models.base import LanguageModel, need_scoring
from amplify.models.cached import origin
from amplify.selection import (
    likely_mislabelled,
    misclassification_confidence,
    pick,
    submodular_pick,
    text_similarity,
)
from amplify.types import Answer, Demonstration, Example

if TYPE_CHECKING:
    from amplify.tasks import Task

Preferred = Literal["success", "error", "random", "mcs_high", "mcs_low"]
Diversity = Literal["none", "mmr", "sp_lime"]
_CANDIDATES = 3  # explanations per shot that a submodular choice is made from
_TIER = 10.0  # a preferred example goes before any other, whatever its score in [-1, 1]


@dataclass(frozen=True)
class Wanted:
    """The options of `SelfAmplify` that decide about its shots."""

    pool: int
    selection: Preferred
    balanced: bool
    diversity: Diversity
    skip_flagged: bool
    shots: int


@dataclass(frozen=True)
class Chosen:
    """What selection found.

    Attributes:
        shots: in the order they will have, without rationales.
        spare: the next best, which selection asks for too, for a gate that shots do not pass.
        notes, meta: see `ShotProgram`.
    """

    shots: tuple[Demonstration, ...]
    spare: tuple[Demonstration, ...]
    notes: tuple[str, ...]
    meta: dict[str, Any]


# variants and controls are compared on the very same shots, and asking the model for them once is enough
_CHOSEN: WeakKeyDictionary[LanguageModel, dict[Any, Chosen]] = WeakKeyDictionary()


def chosen(method: PromptMethod, wanted: Wanted, task: Task, model: LanguageModel, seed: int) -> Chosen:
    """The shots, found once per model, task, seed and options of selection.

    Raises:
        InputError: no validation split, no labels to choose from, or an impossible option.
        ContextLengthError: the shots cannot fit, before any work.
        CapabilityError: log-probabilities are needed and the model gives none.
    """
    check_options(method)
    asking = tuple(method.shared("max_tokens", "extract").values())
    key = (asking, wanted, fit_key(method), task.fingerprint, seed)
    known = _CHOSEN.setdefault(origin(model), {})
    if key not in known:
        known[key] = _choose(method, wanted, task, model, seed)
    return known[key]


def _choose(method: PromptMethod, wanted: Wanted, task: Task, model: LanguageModel, seed: int) -> Chosen:
    pool, noted = citable_pool(method.name, wanted.pool, task, seed)
    if wanted.shots > len(pool):
        raise InputError(f"{method.name}: {wanted.shots} shots, but only {len(pool)} examples to choose from")
    check_room(method.form(task, reasons=True, budget=RATIONALE_TOKENS), wanted.shots, task, model)
    scored = method.mode == "score" or wanted.selection.startswith("mcs") or wanted.skip_flagged
    if scored:
        need_scoring(model, f"{method.name}: selection by the model's own label log-probabilities")

    before = model.usage.snapshot()
    answers: list[Answer] = []  # a random choice asks nothing
    if wanted.selection != "random" or wanted.skip_flagged:
        asker = ZeroShot(**{**method.shared("max_tokens", "extract"), "mode": "score" if scored else "generate"})
        answers = asker.fit(task, model, seed).answer(pool, model)
    wrong = {e.id for e, a in zip(pool, answers, strict=bool(answers)) if a.value != e.label}
    flagged = _flagged(pool, answers) if scored and answers else set[str]()
    if wanted.skip_flagged:
        kept = [i for i, e in enumerate(pool) if e.id not in flagged]
        if len(kept) < wanted.shots:
            raise InputError(
                f"{method.name}: {len(flagged)} of {len(pool)} candidates are likely mislabelled, too few are left for "
                f"{wanted.shots} shots: raise {method.name}.pool, or set {method.name}.skip_flagged=false"
            )
        noted.append(f"{len(flagged)} of {len(pool)} candidates are likely mislabelled and were left out")
        pool, answers = [pool[i] for i in kept], [answers[i] for i in kept] if answers else []

    worth, score, preferred = _worth(wanted.selection, pool, answers, wrong)
    order = _picked(method, wanted, task, model, pool, worth, preferred, seed)
    # in random order: sorted by confidence the labels would come in runs
    order[: wanted.shots] = random.Random(seed).sample(order[: wanted.shots], wanted.shots)
    found = [
        Demonstration(pool[i], foil=_foil(answers[i], pool[i], task) if answers else None, score=score.get(pool[i].id))
        for i in order
    ]
    shots = tuple(found[: wanted.shots])
    return Chosen(
        shots=shots,
        spare=tuple(shot for shot in found[wanted.shots :] if shot.example.id in preferred),
        notes=(*noted, *_notes(wanted, shots, pool, preferred, flagged)),
        meta={
            "asked": len(answers),
            "wrong": len(wrong),
            "unparsed": sum(answer.value is None for answer in answers),
            "flagged": sorted(flagged),
            "usage": asdict(model.usage.since(before)),
        },
    )


def _flagged(pool: Sequence[Example], answers: Sequence[Answer]) -> set[str]:
    flags = likely_mislabelled([a.probabilities() for a in answers], [str(e.label) for e in pool])
    return {e.id for e, flag in zip(pool, flags, strict=True) if flag}


def _worth(
    selection: str, pool: Sequence[Example], answers: Sequence[Answer], wrong: set[str]
) -> tuple[npt.NDArray[np.float64], dict[str, float], set[str]]:
    """What each candidate is worth, the score it is selected by, and the ids that selection asks for."""
    if selection == "random":
        return np.zeros(len(pool)), {}, {e.id for e in pool}
    right = {e.id for e in pool} - wrong
    if not selection.startswith("mcs"):
        preferred = right if selection == "success" else wrong
        return np.array([_TIER * (e.id in preferred) for e in pool]), {}, preferred
    score = {}
    for example, answer in zip(pool, answers, strict=True):
        p = answer.probabilities()
        score[example.id] = misclassification_confidence(list(p.values()), list(p).index(str(example.label)))
    sign, preferred = (1, wrong) if selection == "mcs_high" else (-1, right)
    return np.array([sign * score[e.id] for e in pool]), score, preferred


def _picked(
    method: PromptMethod,
    wanted: Wanted,
    task: Task,
    model: LanguageModel,
    pool: Sequence[Example],
    worth: npt.NDArray[np.float64],
    preferred: set[str],
    seed: int,
) -> list[int]:
    # the pool comes in seeded order, which decides ties
    groups = [e.label for e in pool] if wanted.balanced else None
    n = min(SPARE * wanted.shots, len(pool))  # the first of more are the same
    if wanted.diversity == "mmr":
        return pick(worth, n, similarity=text_similarity(pool), groups=groups)
    if wanted.diversity == "none":
        return pick(worth, n, groups=groups)
    usable = sum(e.id in preferred for e in pool)
    best = pick(worth, min(max(usable, wanted.shots), _CANDIDATES * wanted.shots), groups=groups)
    found = explain_shots(
        method, task, model, [Demonstration(pool[i]) for i in best], "occlusion", contrastive=False, seed=seed
    )
    vocabulary = {word: j for j, word in enumerate(sorted({w.casefold() for a in found for w in a.words}))}
    importance = np.zeros((len(best), len(vocabulary)))
    for row, attribution in zip(importance, found, strict=True):
        for word, value in zip(attribution.words, attribution.scores, strict=True):
            row[vocabulary[word.casefold()]] += abs(value)
    chosen = submodular_pick(importance, min(n, len(best)), groups=[groups[i] for i in best] if groups else None)
    return [best[i] for i in chosen]


def _foil(answer: Answer, example: Example, task: Task) -> str | None:
    """The label wrongly given, else the likeliest wrong one where the model was asked for its log-probabilities."""
    if answer.value is not None and answer.value != example.label:
        return answer.value
    others = {label: score for label, score in answer.scores.items() if label != example.label}
    return max(others, key=others.__getitem__) if others else None


def _notes(
    wanted: Wanted,
    shots: Sequence[Demonstration],
    pool: Sequence[Example],
    preferred: set[str],
    flagged: set[str],
) -> list[str]:
    notes = []
    if filled := sum(shot.example.id not in preferred for shot in shots):
        how = "wrongly" if wanted.selection in ("error", "mcs_high") else "rightly"
        notes.append(
            f"{filled} of {wanted.shots} shots were not answered {how}, as {wanted.selection} asks for: "
            f"{sum(e.id in preferred for e in pool)} of {len(pool)} candidates were"
        )
    if doubtful := [shot.example.id for shot in shots if shot.example.id in flagged]:
        notes.append(f"{len(doubtful)} of {wanted.shots} shots are likely mislabelled: {', '.join(doubtful)}")
    return notes

"""Which shots Self-AMPLIFY shows: what the model itself gets right or wrong, or by how far (arXiv 2402.12038)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from amplify.errors import InputError
from amplify.methods.base import Rehearsal
from amplify.methods.baselines import ZeroShot, ask_validation, random_shots
from amplify.methods.contents import fit_key
from amplify.methods.explained import RATIONALE_TOKENS, check_room, citable_pool, planned
from amplify.methods.gating import SPARE
from amplify.methods.program import ShotProgram
from amplify.methods.prompt import PromptMethod, check_options
from amplify.models.base import LanguageModel, need_scoring
from amplify.models.kept import origin
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

_CANDIDATES = 3  # explanations per shot that a submodular choice is made from
_TIER = 10.0  # a preferred example goes before any other, whatever its score in [-1, 1]


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


@dataclass(frozen=True)
class SelfMethod(PromptMethod):
    """The options that Self-AMPLIFY's variants and controls share: with the same ones and seed, the same shots.

    Attributes:
        pool: how many validation examples the model is asked, drawn with the seed; 0 for all.
        selection: what it gets right ("success") or wrong ("error"), drawn at random; any ("random"); or what it is
            most confidently wrong ("mcs_high") or right ("mcs_low") about by its own label log-probabilities.
        balanced: as many shots of each label as possible.
        diversity: also unlike each other: "mmr" by their words, "sp_lime" by what explains them (occlusion).
        skip_flagged: leave out what is likely mislabelled; otherwise it is only noted. Needs log-probabilities.
        shots: how many (the paper has 4).
    """

    pool: int = 200
    selection: Literal["success", "error", "random", "mcs_high", "mcs_low"] = "success"
    balanced: bool = False
    diversity: Literal["none", "mmr", "sp_lime"] = "none"
    skip_flagged: bool = False
    shots: int = 8

    def chosen(self, task: Task, model: LanguageModel, seed: int) -> Chosen:
        """The shots, found once per model, task, seed and options of selection.

        Raises:
            InputError: no validation split, no labels to choose from, or an impossible option.
            ContextLengthError: the shots cannot fit, before any work.
            CapabilityError: log-probabilities are needed and the model gives none.
        """
        check_options(self)
        options = tuple(getattr(self, f.name) for f in fields(SelfMethod) if f.name not in ("max_tokens", "extract"))
        key = (options, fit_key(self), task.fingerprint, seed)
        known = _CHOSEN.setdefault(origin(model), {})
        if key not in known:
            known[key] = _choose(self, task, model, seed)
        return known[key]

    def rehearse(self, task: Task, model: LanguageModel, seed: int) -> Rehearsal:
        """With random shots, explained as long as the real ones."""
        there = len(task.validation)
        asked = self.explaining + (0 if self.selection == "random" else min(self.pool or there, there))
        ask_validation(self, task, model, seed, asked)
        return Rehearsal(self.imitated(task, random_shots(self, task, model, seed)), planned(asked))

    @property
    def explaining(self) -> int:
        """How many prompts explaining the shots takes: for plans."""
        return 0

    def imitated(self, task: Task, program: ShotProgram) -> ShotProgram:
        """A program with rationales as long as the real ones: for plans."""
        return program


# variants and controls are compared on the very same shots, and asking the model for them once is enough
_CHOSEN: WeakKeyDictionary[LanguageModel, dict[Any, Chosen]] = WeakKeyDictionary()


def _choose(method: SelfMethod, task: Task, model: LanguageModel, seed: int) -> Chosen:
    pool, noted = citable_pool(method.name, method.pool, task, seed)
    if method.shots > len(pool):
        raise InputError(f"{method.name}: {method.shots} shots, but only {len(pool)} examples to choose from")
    check_room(method.form(task, reasons=True, budget=RATIONALE_TOKENS), method.shots, task, model)
    scored = method.mode == "score" or method.selection.startswith("mcs") or method.skip_flagged
    if scored:
        need_scoring(model, f"{method.name}: selection by the model's own label log-probabilities")

    before = model.usage.snapshot()
    answers = _asked(method, task, model, pool, scored, seed)
    wrong = {e.id for e, a in zip(pool, answers, strict=bool(answers)) if a.value != e.label}
    flagged = _flagged(pool, answers) if scored and answers else set[str]()
    if method.skip_flagged:
        kept = [i for i, e in enumerate(pool) if e.id not in flagged]
        if len(kept) < method.shots:
            raise InputError(
                f"{method.name}: {len(flagged)} of {len(pool)} candidates are likely mislabelled, too few are left for "
                f"{method.shots} shots: raise {method.name}.pool, or set {method.name}.skip_flagged=false"
            )
        noted.append(f"{len(flagged)} of {len(pool)} candidates are likely mislabelled and were left out")
        pool, answers = [pool[i] for i in kept], [answers[i] for i in kept] if answers else []

    worth, score, preferred = _worth(method.selection, pool, answers, wrong)
    order = _picked(method, task, model, pool, worth, preferred, seed)
    # in random order: sorted by confidence the labels would come in runs
    order[: method.shots] = random.Random(seed).sample(order[: method.shots], method.shots)
    found = [
        Demonstration(pool[i], foil=_foil(answers[i], pool[i], task) if answers else None, score=score.get(pool[i].id))
        for i in order
    ]
    shots = tuple(found[: method.shots])
    return Chosen(
        shots=shots,
        spare=tuple(shot for shot in found[method.shots :] if shot.example.id in preferred),
        notes=(*noted, *_notes(method, shots, pool, preferred, flagged)),
        meta={
            "asked": len(answers),
            "wrong": len(wrong),
            "unparsed": sum(answer.value is None for answer in answers),
            "flagged": sorted(flagged),
            "usage": asdict(model.usage.since(before)),
        },
    )


def _asked(
    method: SelfMethod, task: Task, model: LanguageModel, pool: Sequence[Example], scored: bool, seed: int
) -> list[Answer]:
    """The model's own zero-shot answers; a random choice asks nothing."""
    if method.selection == "random" and not method.skip_flagged:
        return []
    shared = {f.name: getattr(method, f.name) for f in fields(PromptMethod) if f.name not in ("max_tokens", "extract")}
    asker = ZeroShot(**{**shared, "mode": "score" if scored else "generate"})
    return asker.fit(task, model, seed).answer(pool, model)


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
    method: SelfMethod,
    task: Task,
    model: LanguageModel,
    pool: Sequence[Example],
    worth: npt.NDArray[np.float64],
    preferred: set[str],
    seed: int,
) -> list[int]:
    # the pool comes in seeded order, which decides ties
    groups = [e.label for e in pool] if method.balanced else None
    n = min(SPARE * method.shots, len(pool))  # the first of more are the same
    if method.diversity == "mmr":
        return pick(worth, n, similarity=text_similarity(pool), groups=groups)
    if method.diversity == "none":
        return pick(worth, n, groups=groups)
    from amplify.methods.self_attribution import explain_shots

    usable = sum(e.id in preferred for e in pool)
    best = pick(worth, min(max(usable, method.shots), _CANDIDATES * method.shots), groups=groups)
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
    method: SelfMethod,
    shots: Sequence[Demonstration],
    pool: Sequence[Example],
    preferred: set[str],
    flagged: set[str],
) -> list[str]:
    notes = []
    if filled := sum(shot.example.id not in preferred for shot in shots):
        wanted = "wrongly" if method.selection in ("error", "mcs_high") else "rightly"
        notes.append(
            f"{filled} of {method.shots} shots were not answered {wanted}, as {method.selection} asks for: "
            f"{sum(e.id in preferred for e in pool)} of {len(pool)} candidates were"
        )
    if doubtful := [shot.example.id for shot in shots if shot.example.id in flagged]:
        notes.append(f"{len(doubtful)} of {method.shots} shots are likely mislabelled: {', '.join(doubtful)}")
    return notes

"""What each part of a prompt is worth, and whether leaving some out or another order of the shots helps.

The game: players are the parts of a program's prompt (instruction sentences, the list of labels, shots, rationales);
a coalition is worth the mean log-odds of the gold label over labelled items. A part's value is its Shapley value. (As
features of a prompt template: Mohammadi 2024, arXiv 2404.01332; there with probabilities, one game a prompt.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import t as student

from amplify import progress
from amplify.errors import InputError
from amplify.evaluation import statistics
from amplify.methods.base import Program, examples_in, inner_method
from amplify.methods.calibrated import CalibratedProgram, calibrated
from amplify.methods.program import ShotProgram
from amplify.models import opened
from amplify.models.base import LanguageModel, ScoringModel, need_scoring
from amplify.prompting.game import WAYS, PartsGame, PromptGame, Worth
from amplify.prompting.parts import Part, fillers, parts_of, with_parts
from amplify.prompting.result import Check, PartValue, PromptExplanation
from amplify.shapley import CachedValue, estimate
from amplify.shapley.budget import check_budget
from amplify.shapley.game import Coalitions, Floats
from amplify.streams import stream
from amplify.types import Example, Prompt

if TYPE_CHECKING:
    from amplify.tasks import Task

LEAST = 8  # items of the game, and of the check
RANDOM = 4  # orders, and choices of parts, drawn as controls
LEVEL = 0.05  # one-sided, of the check
ROUND_OFF = 1e-9  # nats
ESTIMATORS = ("auto", "exact", "leverage_shap", "kernel_shap", "permutation")  # those that are linear in the values


def explain_prompt(
    program: Program | str | Path,
    task: Task,
    model: LanguageModel | str,
    *,
    budget: int = 64,
    items: int = 32,
    held_out: int = 100,
    estimator: str = "auto",
    seed: int = 0,
    show_progress: bool = True,
) -> PromptExplanation:
    """What the parts of a prompt are worth, what may go, and whether that helps on items that were not looked at.

    The value of a set of parts is the mean over items of log p / (1 - p), where p is the gold label's share of the
    labels' probability, asked with these parts alone in the prompt, in their order. For a calibrated program p is
    calibrated (way "batch", on the same items without their labels). Every set is also asked with neutral words of the
    same length in the place of what is left out: what is then still missing is what the parts say, the rest is what
    they give by their mere length. What a program would write before its answer is not asked for: the label comes next.

    Nothing of the test split is looked at: items come from the validation split, then from the training split, and none
    is a shot of the program.

    Args:
        program: prompts with fixed shots, calibrated or not: a program, a file that one was saved to, or a method by
            its label ("few_shot[shots=4]"), which is fitted on the task.
        task: with labels to choose from.
        model: gives label scores; open, or by its id.
        budget: sets of parts to ask; exact where all 2^parts fit, which costs 2 x items prompts each.
        items: of the game.
        held_out: other items, at most, on which its advice is checked.
        estimator: "auto" (exact, else "leverage_shap"), or one of `ESTIMATORS`.
        seed: of the items and of what is sampled.
        show_progress: say what is being asked.

    Raises:
        InputError: a program without parts, a task without labels or with too few items, or too small a budget.
        CapabilityError: a model that gives no log-probabilities.

    Example:
        >>> task = amplify.load_task("support_tickets")
        >>> found = amplify.explain_prompt("few_shot[shots=1]", task, "scripted:last_answer", items=8, held_out=8,
        ...     show_progress=False)
        >>> [part.name for part in found.parts] == ["instruction 1", "label list", "shot 1"]
        True
        >>> bool(abs(sum(part.value for part in found.parts) - (found.whole - found.empty)) < 1e-9)
        True
    """
    if isinstance(model, str):
        with opened(model) as who:
            return explain_prompt(
                program, task, who, budget=budget, items=items, held_out=held_out, estimator=estimator, seed=seed,
                show_progress=show_progress,
            )  # fmt: skip
    scorer = need_scoring(model, "explain_prompt")
    if estimator not in ESTIMATORS:
        raise InputError(f"the estimator is one of {', '.join(ESTIMATORS)}, which are linear, not {estimator!r}")
    whole = _opened(program, task, model, seed)
    inner = whole.program if isinstance(whole, CalibratedProgram) else whole
    if not isinstance(inner, ShotProgram) or inner.steering is not None:
        raise _without_parts(inner.kind)
    if items < LEAST:
        raise InputError(f"items: a game needs at least {LEAST} labelled items, got {items}")
    pool = _labelled(task, inner, seed)
    game_items, check_items = pool[:items], pool[items : items + held_out]
    if len(game_items) < LEAST:
        raise InputError(
            f"task {task.name!r} has {len(pool)} labelled items outside test split and shots: {LEAST} are needed"
        )
    parts = parts_of(inner, game_items[0])
    n = len(parts)
    if not n:
        raise InputError("this program's prompt has no part that could be left out")
    how = estimator if estimator != "auto" else "exact" if 2**n <= budget else "leverage_shap"
    check_budget(how, n, budget, players="parts")
    with progress.progress(desc="explain-prompt", unit="set", shown=show_progress) as bar:
        looking = PromptGame(game_items, scorer, isinstance(whole, CalibratedProgram))
        game = PartsGame(inner, parts, fillers(parts, model), looking)
        values, meta = _values(game, how, budget, seed)
        bar.update(meta["sets"])
        bar.set_description("check")
        advice = _Advice(inner, parts, values, looking, check_items, scorer, seed)
        checks = advice.checks()
    meta |= {
        "task": task.name, "model": model.id, "items": len(game_items), "held_out": len(check_items), "seed": seed,
        "calibrated": looking.batch, "program": inner.form.method, "answers_at_once": inner.form.reasons,
        "asked_tokens": game.asked, "forwarded_tokens": game.forwarded,
    }  # fmt: skip
    better: Program = advice.program
    if isinstance(whole, CalibratedProgram):
        seen = replace(task, train=(), validation=tuple(game_items))
        better = calibrated(better, seen, model, whole.calibration.way, seed)
    return PromptExplanation(
        parts=values, empty=meta.pop("empty"), whole=meta.pop("whole"), drop=advice.drop, order=advice.order,
        checks=tuple(checks), advice=advice.chosen, helps=advice.helps, program=better, meta=meta,
    )  # fmt: skip


def _opened(program: Program | str | Path, task: Task, model: LanguageModel, seed: int) -> Program:
    if isinstance(program, Program):
        return program
    if isinstance(program, Path) or str(program).endswith(".json"):
        return Program.load(program)
    method = inner_method(program, "score")
    if not (issubclass(method.makes, ShotProgram) or issubclass(ShotProgram, method.makes)):
        raise _without_parts(method.makes.kind)  # before a proxy is trained
    return method.fit(task, model, seed)


def _without_parts(kind: str) -> InputError:
    return InputError(
        "only prompts with fixed shots have parts that can be left out, e.g. few_shot, amplify or zero_shot, "
        f"calibrated or not; this program is of kind {kind!r}"
    )


def _labelled(task: Task, program: ShotProgram, seed: int) -> list[Example]:
    """Labelled items outside the test split that the program does not show, in random order, validation first."""
    shown = {shot["id"] for shot in examples_in(program.to_dict())}
    found = []
    for split in (task.validation, task.train):
        left = [e for e in split if e.id not in shown and len(task.labels_of(e)) > 1]
        found += [left[i] for i in stream(seed, "explain prompt").permutation(len(left))]
    if not found:
        raise InputError(f"task {task.name!r} has no labelled items with labels to choose from outside its test split")
    return found


def _values(game: PartsGame, how: str, budget: int, seed: int) -> tuple[tuple[PartValue, ...], dict[str, Any]]:
    """Shapley values of every part, with and without neutral words, and what is lost where one part alone is missing.

    The interval has two sources: which sets were asked, and which items. Both estimators see the same sets, and are
    linear: the value of the mean is the mean of the items' values.
    """
    n, m = len(game.parts), len(game.items)
    memory = CachedValue(game, n)
    each = estimate(memory, n, estimator=how, budget=budget, seed=seed)

    def over_items(coalitions: Coalitions) -> Floats:
        return memory(coalitions).reshape(len(coalitions), WAYS, m).mean(axis=2)

    mean = estimate(over_items, n, estimator=how, budget=budget, seed=seed)
    sets = memory.calls
    ends = over_items(np.stack([np.zeros(n, bool), np.ones(n, bool)]))
    one_out = over_items(~np.eye(n, dtype=bool))
    by_item = each.scores.reshape(n, WAYS, m)
    half = _half(by_item, (mean.high - mean.low) / 2)
    length = _half(by_item[:, :1] - by_item[:, 1:], np.zeros((n, 1)))[:, 0]
    sizes = game.model.count_tokens([Prompt(text=part.text) for part in game.parts])
    found = tuple(
        PartValue(
            part=part, tokens=sizes[i],
            value=float(mean.scores[i, 0]), low=float(mean.scores[i, 0] - half[i, 0]),
            high=float(mean.scores[i, 0] + half[i, 0]),
            content=float(mean.scores[i, 1]), content_low=float(mean.scores[i, 1] - half[i, 1]),
            content_high=float(mean.scores[i, 1] + half[i, 1]),
            length_error=float(length[i]), left_out=float(ends[1, 0] - one_out[i, 0]), filler=game.neutral[part.name],
        )
        for i, part in enumerate(game.parts)
    )  # fmt: skip
    two = {"empty": float(ends[0, 0]), "whole": float(ends[1, 0])}
    return found, {**two, "estimator": mean.estimator, "budget": budget, "sets": sets, "sets_in_all": memory.calls}


def _half(by_item: Floats, of_sets: Floats) -> Floats:
    """Half widths of 95 % intervals from the spread over items and from the sample of sets, [parts, ways]."""
    m = by_item.shape[2]
    error = by_item.std(axis=2, ddof=1) / np.sqrt(m) * student.ppf(0.975, m - 1)
    half: Floats = np.sqrt(error**2 + of_sets**2)
    return half


class _Advice:
    """What to change, decided on the items of the game and checked on others.

    Attributes:
        drop: names of the parts of a value below 0; whether to leave them out is what the check says.
        order: places of the shots that stay, in the order that did best on the game's items; () for the given one.
        chosen: "as it is", "dropped", "reordered" or "dropped and reordered": the best on the game's items.
        helps: whether the choice is surely better on the items kept back.
        program: the chosen one.
    """

    def __init__(
        self,
        program: ShotProgram,
        parts: Sequence[Part],
        values: Sequence[PartValue],
        game: PromptGame,
        check_items: Sequence[Example],
        model: ScoringModel,
        seed: int,
    ) -> None:
        self.parts, self.values, self.whole, self.seed = parts, values, program, seed
        self.drop = tuple(v.part.name for v in values if v.value < -ROUND_OFF)
        self.checking = PromptGame(check_items, model, game.batch) if len(check_items) >= LEAST else None
        dropped = with_parts(program, parts, [v.part.name not in self.drop for v in values])
        orders = _orders(program, values)
        tried = {"as it is": program, "dropped": dropped}
        tried |= {f"reordered, {name}": replace(program, shots=_pick(program, order)) for name, order in orders.items()}
        found = dict(zip(tried, game.worth(list(tried.values())), strict=True))
        means = {name: float(worth.log_odds.mean()) for name, worth in found.items()}
        best = max(orders, key=lambda name: means[f"reordered, {name}"], default="")
        better = bool(best) and means[f"reordered, {best}"] > means["as it is"]
        self.order = orders[best] if better else ()
        self.candidates: dict[str, ShotProgram] = {"as it is": program}
        if self.drop:
            self.candidates["dropped"] = dropped
        if self.order:
            self.candidates["reordered"] = tried[f"reordered, {best}"]
        if self.drop and self.order and (both := _pick(program, self.order, self.drop)):
            self.candidates["dropped and reordered"] = replace(dropped, shots=tuple(
                next(s for s in dropped.shots if s.example.id == shot.example.id) for shot in both
            ))  # fmt: skip
        scored = dict(zip(self.candidates, game.worth(list(self.candidates.values())), strict=True))
        self.chosen = max(scored, key=lambda name: float(scored[name].log_odds.mean()))
        self.program = self.candidates[self.chosen]
        self.helps = False

    def checks(self) -> list[Check]:
        """Each candidate and the controls against the program as it is, on items that nothing was decided on."""
        if self.checking is None:
            return []
        controls = self._controls()
        named = {**{name: [p] for name, p in self.candidates.items()}, **controls}
        flat = [program for programs in named.values() for program in programs]
        found = iter(self.checking.worth(flat))
        worth = {name: [next(found) for _ in programs] for name, programs in named.items()}
        plain = worth["as it is"][0]
        checks = [_check(name, own, plain, name in controls) for name, own in worth.items()]
        mine = next(check for check in checks if check.name == self.chosen)
        self.helps = self.chosen != "as it is" and mine.p / 2 <= LEVEL and mine.difference > 0
        return checks

    def _controls(self) -> dict[str, list[ShotProgram]]:
        """As many parts left out by lot, and orders by lot."""
        rng, made = stream(self.seed, "explain prompt controls"), dict[str, list[ShotProgram]]()
        n = len(self.parts)
        if self.drop:
            gone = [set(rng.choice(n, len(self.drop), replace=False).tolist()) for _ in range(RANDOM)]
            made["as many parts dropped at random"] = [
                with_parts(self.whole, self.parts, [i not in out for i in range(n)]) for out in gone
            ]
        if self.order:
            shots = len(self.whole.shots)
            made["shots in random order"] = [
                replace(self.whole, shots=_pick(self.whole, tuple(rng.permutation(shots).tolist())))
                for _ in range(RANDOM)
            ]
        return made


def _orders(program: ShotProgram, values: Sequence[PartValue]) -> dict[str, tuple[int, ...]]:
    """Orders of the shots that differ from the given one: the most valuable last, or first."""
    worth = {v.part.place: v.value for v in values if v.part.kind == "shot"}
    if len(worth) < 2:
        return {}
    rising = tuple(sorted(worth, key=lambda place: worth[place]))
    made = {"best last": rising, "best first": rising[::-1]}
    return {name: order for name, order in made.items() if order != tuple(range(len(program.shots)))}


def _pick(program: ShotProgram, order: Sequence[int], drop: Sequence[str] = ()) -> tuple[Any, ...]:
    return tuple(program.shots[i] for i in order if f"shot {i + 1}" not in drop)


def _check(name: str, own: Sequence[Worth], plain: Worth, control: bool) -> Check:
    odds = np.mean([worth.log_odds for worth in own], axis=0)
    right = np.mean([worth.right for worth in own], axis=0)
    if name == "as it is":
        difference, low, high, p = 0.0, 0.0, 0.0, 1.0
    else:
        gained = odds - plain.log_odds
        difference, interval = gained.mean(), statistics.bootstrap(gained)
        low, high, p = interval.low, interval.high, statistics.sign_flip(gained).p
    return Check(
        name=name, control=control, items=len(odds), log_odds=float(odds.mean()), difference=float(difference),
        low=float(low), high=float(high), p=float(p), accuracy=float(right.mean()),
        tokens=float(np.mean([worth.tokens for worth in own])),
    )  # fmt: skip

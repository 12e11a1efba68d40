"""A program whose label scores are calibrated: any program in score mode, and what its prompt says beforehand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from amplify.calibration import SIMPLEST_FIRST, WAYS, Calibration, Scores, Way, affine, from_answers, simplest
from amplify.errors import InputError, UnknownNameError
from amplify.methods.base import Program, examples_in
from amplify.methods.few_shot import ZeroShot
from amplify.models.base import LanguageModel
from amplify.streams import stream
from amplify.types import Answer, Example

if TYPE_CHECKING:
    from amplify.tasks import Task

Fit = Callable[[Sequence[int]], Calibration]
CONTENT_FREE = ("N/A", "[MASK]", "")
INPUTS = 64  # of a split are asked at most


@dataclass(frozen=True)
class CalibratedProgram(Program):
    """Another program's answers, the best label taken after its scores are calibrated.

    Attributes:
        program: who scores the labels.
        calibration: the map of its scores.
        meta: what fitting found: the inputs asked, and with "auto" the cross-fitted accuracy of each way.

    Example:
        >>> from amplify.tuning import Candidate
        >>> task, model = amplify.load_task("support_tickets"), amplify.load_model("scripted:first_option")
        >>> found = Candidate.parse("zero_shot+batch", "score").fit(task, model, 0)
        >>> type(found).__name__
        'CalibratedProgram'
    """

    kind: ClassVar[str] = "calibrated"

    program: Program
    calibration: Calibration
    meta: Mapping[str, Any] = field(default_factory=dict)

    def answer(self, examples: Sequence[Example], model: LanguageModel) -> list[Answer]:
        """Answer a batch; `scores` are calibrated, `raw_scores` as they were."""
        return [self._calibrated(answer) for answer in self.program.answer(examples, model)]

    def _calibrated(self, answer: Answer) -> Answer:
        if not answer.scores or answer.value is None:  # what abstains goes on abstaining
            return answer
        scores = self.calibration(answer.scores)
        best = max(scores, key=scores.__getitem__)
        return replace(answer, value=best, scores=scores, raw_scores=answer.scores, logprobs={})


def calibrated(program: Program, task: Task, model: LanguageModel, way: Way, seed: int = 0) -> Program:
    """Fit a calibration of a program's label scores. No test item is looked at.

    Args:
        program: fitted in score mode.
        task: whose inputs are asked: of its validation split (without one, of the training split, the program's own
            shots left out) at most `INPUTS`, drawn with the seed.
        model: who answers.
        way: one of `calibration.WAYS`; "none" gives the program back as it is.
        seed: of what is drawn.

    Raises:
        UnknownNameError: no such way.
        InputError: the program scores no labels, or the task has no inputs to fit on.
    """
    if way not in WAYS:
        raise UnknownNameError("calibration", way, WAYS)
    if way == "none":
        return program
    inputs = unseen_inputs(program, task, seed) if way in ("batch", "affine", "auto") else []
    scores, gold = label_scores(program, inputs, model), [str(example.label) for example in inputs]
    tried: tuple[Way, ...] = SIMPLEST_FIRST if way == "auto" else (way,)
    fits = {each: fitting(each, program, task, model, scores, gold) for each in tried}
    meta: dict[str, Any] = {"inputs": len(inputs)}
    chosen: Way = way
    if way == "auto":
        chosen, meta["cross_fitted_accuracy"] = simplest(fits, scores, gold, seed)
    return CalibratedProgram(program, fits[chosen](range(len(inputs))), meta)


def fitting(
    way: Way, program: Program, task: Task, model: LanguageModel, scores: Sequence[Scores], gold: Sequence[str]
) -> Fit:
    """How a way of calibration is fitted on some of the labelled inputs, told by their places.

    Args:
        way: none of "auto".
        program, task, model: who scored, asked once more here where the way needs content-free inputs.
        scores, gold: of each input its labels' log-probabilities, and its right label.
    """
    if way in ("contextual", "pmi"):
        return partial(_always, from_answers(way, _without_content(way, program, task, model)))
    return partial(_fitted, way, scores, gold)


def _always(calibration: Calibration, _: Sequence[int]) -> Calibration:
    return calibration


def _fitted(way: Way, scores: Sequence[Scores], gold: Sequence[str], items: Sequence[int]) -> Calibration:
    if way == "none":
        return Calibration()
    chosen = [scores[i] for i in items]
    return affine(chosen, [gold[i] for i in items]) if way == "affine" else from_answers(way, chosen)


def unseen_inputs(program: Program, task: Task, seed: int) -> list[Example]:
    """Labelled inputs that a program has not shown, at most `INPUTS`; see `calibrated`.

    Raises:
        InputError: there are none.
    """
    shown = {shot["id"] for shot in examples_in(program.to_dict())}
    pool = task.validation or [example for example in task.train if example.id not in shown]
    if not pool:
        raise InputError(
            f"task {task.name!r} has no validation or training inputs left to calibrate on: "
            "calibrate='contextual' and 'pmi' need none"
        )
    order = stream(seed, "calibration inputs").permutation(len(pool))[:INPUTS]
    return [pool[i] for i in sorted(order.tolist())]


def label_scores(program: Program, inputs: Sequence[Example], model: LanguageModel) -> list[Scores]:
    """Each input's label scores by a program.

    Raises:
        InputError: it scores no labels.
    """
    return scores_of(program.answer(inputs, model) if inputs else [])


def scores_of(answers: Sequence[Answer]) -> list[Scores]:
    """Label scores of answers; raises what `label_scores` does."""
    if any(not answer.scores for answer in answers):
        raise InputError("only label scores can be calibrated: use score mode, on a task with labels to choose from")
    return [answer.scores for answer in answers]


def _without_content(way: Way, program: Program, task: Task, model: LanguageModel) -> list[Scores]:
    """Label scores where there is nothing to judge by: by the program itself, or zero-shot and without any input."""
    asks, texts = (ZeroShot(mode="score").fit(task, model, 0), ("",)) if way == "pmi" else (program, CONTENT_FREE)
    # one for each set of choices that the task has; of the items behind them nothing but those is shown
    sets = {task.labels_of(e): e for e in (*task.test, *task.train, *task.validation)}
    return label_scores(asks, [_emptied(e, text) for e in sets.values() for text in texts], model)


def _emptied(example: Example, text: str) -> Example:
    fields = {name: text if isinstance(value, str) else value for name, value in example.fields.items()}
    return replace(example, text=text, options=tuple(text for _ in example.options), fields=fields)

"""How lettered options are scored: by their letters, by their texts, or with the options in every order.

A model that is asked for a letter favours some of them whatever stands behind them, and behind shots it may favour
another; a prior over letters does not mend what depends on the item. Two ways around it:

- `texts`: the options themselves are the answers that are scored; `texts_pmi` takes from each what the model thinks of
  that text where there is no question (PMI_DC; Holtzman et al. 2021, arXiv 2104.08315).
- `permuted`: the letters are scored under every cyclic order of the options and the log-probabilities of an option are
  averaged, so that each stands behind each letter once (Zheng et al. 2024, arXiv 2309.03882).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from amplify.errors import InputError, UnknownNameError
from amplify.methods.base import Method, Program
from amplify.models.base import LanguageModel
from amplify.types import Answer, Example

if TYPE_CHECKING:
    from amplify.tasks import Task

OptionForm = Literal["letters", "texts", "texts_pmi", "permuted"]
OPTION_FORMS: tuple[OptionForm, ...] = get_args(OptionForm)
NO_QUESTION = "N/A"


@dataclass(frozen=True)
class OptionsProgram(Program):
    """Another program's answers to lettered questions, scored in another form. Answers and scores are by letter again.

    Attributes:
        program: who is asked; for texts, fitted on the task that `in_texts` makes.
        form: see the module.
        meta: nothing of its own.
    """

    kind: ClassVar[str] = "lettered"

    program: Program
    form: OptionForm
    meta: Mapping[str, Any] = field(default_factory=dict)

    def answer(self, examples: Sequence[Example], model: LanguageModel) -> list[Answer]:
        """Answer a batch.

        Raises:
            InputError: an example without options behind its choices, or whose answers are not scored.
        """
        if unlettered := [e.id for e in examples if not e.options]:
            raise InputError(f"example {unlettered[0]!r} has no lettered options, whose form could be another")
        return self._permuted(examples, model) if self.form == "permuted" else self._by_texts(examples, model)

    def _permuted(self, examples: Sequence[Example], model: LanguageModel) -> list[Answer]:
        turned = [(i, turn, rotated(e, turn)) for i, e in enumerate(examples) for turn in range(len(e.options))]
        answers = _scored(self.program.answer([e for _, _, e in turned], model))
        of: list[list[Answer]] = [[] for _ in examples]
        for (i, turn, _), answer in zip(turned, answers, strict=True):
            letters = examples[i].choices
            shares = _log_shares(answer)
            # the option behind letter j of this order is option j + turn of the example
            back = {letters[(j + turn) % len(letters)]: shares[letter] for j, letter in enumerate(letters)}
            of[i].append(replace(answer, scores=back, logprobs={}))
        return [_together(given, _means([a.scores for a in given])) for given in of]

    def _by_texts(self, examples: Sequence[Example], model: LanguageModel) -> list[Answer]:
        asked = [in_texts(e) for e in examples]
        if self.form == "texts":
            answers = _scored(self.program.answer(asked, model))
            given = [[answer] for answer in answers]
            differences = [dict(answer.scores) for answer in answers]
        else:
            both = _scored(self.program.answer([*asked, *(_unasked(e) for e in asked)], model))
            answers, without = both[: len(asked)], both[len(asked) :]
            given = [list(pair) for pair in zip(answers, without, strict=True)]
            differences = [{text: a.scores[text] - b.scores[text] for text in a.scores} for a, b in given]
        made = []
        for example, mine, found in zip(examples, given, differences, strict=True):
            scores = {letter: found[text] for letter, text in zip(example.choices, example.options, strict=True)}
            made.append(_together(mine, scores))
        return made


def fit_in_form(method: Method, task: Task, model: LanguageModel, seed: int, form: OptionForm) -> Program:
    """Fit a method so that lettered options are scored in this form.

    Args:
        method: in score mode.
        task, model, seed: see `Method.fit`.
        form: "letters" changes nothing.

    Raises:
        UnknownNameError: no such form.
        InputError: the task has no lettered options.
    """
    check_form(form, task)
    if form == "letters":
        return method.fit(task, model, seed)
    return OptionsProgram(method.fit(task if form == "permuted" else task_in_texts(task), model, seed), form)


def check_form(form: str, task: Task) -> None:
    """Refuse a form that there is not, or that the task's questions cannot have; see `fit_in_form`."""
    if form not in OPTION_FORMS:
        raise UnknownNameError("option form", form, OPTION_FORMS)
    if form != "letters" and not all(e.options for split in (task.train, task.validation, task.test) for e in split):
        raise InputError(f"task {task.name!r} has no lettered options whose form could be {form!r}: leave it out")


def task_in_texts(task: Task) -> Task:
    """The task whose questions are answered by the texts of their options."""
    splits: Any = {split: tuple(map(in_texts, getattr(task, split))) for split in ("train", "validation", "test")}
    cot = tuple(replace(shot, example=in_texts(shot.example)) for shot in task.cot)
    return replace(task, **splits, cot=cot)


def in_texts(example: Example) -> Example:
    """A question whose choices are the texts themselves, each once: options with the same text share their score."""
    if not example.options:
        return example
    text = dict(zip(example.choices, example.options, strict=True))
    label = None if example.label is None else text[example.label]
    return replace(example, choices=tuple(dict.fromkeys(example.options)), options=(), label=label)


def rotated(example: Example, turn: int) -> Example:
    """The example with its options moved on: behind letter j stands option j + turn; its label moves with its text."""
    n = len(example.options)
    options = tuple(example.options[(j + turn) % n] for j in range(n))
    label = None if example.label is None else example.choices[(example.choices.index(example.label) - turn) % n]
    return replace(example, options=options, label=label)


def _unasked(example: Example) -> Example:
    fields = {name: NO_QUESTION if isinstance(value, str) else value for name, value in example.fields.items()}
    return replace(example, text=NO_QUESTION, fields=fields)


def _scored(answers: list[Answer]) -> list[Answer]:
    if any(not answer.scores for answer in answers):
        raise InputError("only options that are scored have another form: use score mode")
    return answers


def _log_shares(answer: Answer) -> dict[str, float]:
    import numpy as np

    from amplify.calibration import log_softmax

    return dict(zip(answer.scores, log_softmax(np.array(list(answer.scores.values()))).tolist(), strict=True))


def _means(scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {label: sum(each[label] for each in scores) / len(scores) for label in scores[0]}


def _together(given: Sequence[Answer], scores: Mapping[str, float]) -> Answer:
    """One answer for several that were asked for it, at the cost of all."""
    return replace(
        given[0],
        value=max(scores, key=scores.__getitem__),
        scores=dict(scores),
        logprobs={},
        first_tokens={},
        prompt_tokens=sum(a.prompt_tokens for a in given),
        completion_tokens=sum(a.completion_tokens for a in given),
        calls=sum(a.calls for a in given),
    )

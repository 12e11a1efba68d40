"""The model's own reasons for a shot's label: attributions of its log-probability to the words of the input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from amplify.attribution.deletion import Deletion, deletion
from amplify.attribution.words import Spans, key_word_mask, word_spans
from amplify.errors import InputError
from amplify.methods.program import continuation
from amplify.methods.prompt import Form, PromptMethod, marked_input
from amplify.models.base import LanguageModel
from amplify.shapley.budget import least
from amplify.text import input_text, option_spans
from amplify.types import Attribution, Demonstration, Example, Prompt

if TYPE_CHECKING:
    from amplify.tasks import Task

BUDGET = 128


def citable(task: Task, example: Example) -> Spans:
    """The words of an example that a rationale may cite, as characters of `amplify.text.input_text(example)`."""
    spans = word_spans(input_text(example))
    return tuple(span for span, may in zip(spans, key_word_mask(task)(example), strict=True) if may)


def placed(form: Form, example: Example, spans: Spans) -> tuple[Prompt, int | None, Spans]:
    """The zero-shot prompt of an example, and where in it words of its input stand.

    Args:
        form: of the prompt; its answer is begun.
        example: the input.
        spans: characters of `amplify.text.input_text(example)`, inside its text or one of its options.

    Returns:
        The prompt, the message that the input is in (None for raw text), and the words as characters of it.

    Raises:
        InputError: the question template leaves the input out, shows it twice or changes it.
    """
    prompt = replace(form, emphasis="").prompt(marked_input(example), prefill=form.marker)
    source = input_text(example)
    own = ((0, len(example.text)), *option_spans(example))
    there = prompt.emphasis
    content = [prompt.text if s.message is None else prompt.messages[s.message].content for s in there]
    if len(there) != len(own) or any(
        str(text)[s.start : s.end] != source[a:b] for text, s, (a, b) in zip(content, there, own, strict=True)
    ):
        raise InputError(
            f"the question template {form.templates['question'].name!r} must show the text and each option once, and "
            "as they are: words cannot be found in the prompt otherwise"
        )
    moved = tuple(
        (a - start + s.start, b - start + s.start)
        for a, b in spans
        for s, (start, end) in zip(there, own, strict=True)
        if start <= a and b <= end
    )
    return replace(prompt, emphasis=()), there[0].message, moved


def explain_shots(
    method: PromptMethod,
    task: Task,
    model: LanguageModel,
    shots: Sequence[Demonstration],
    explainer: str,
    *,
    contrastive: bool,
    seed: int,
    budget: int = 0,
) -> list[Attribution]:
    """Why the model would give each shot its gold label, over the words that may be cited.

    Args:
        method: whose zero-shot prompt is explained.
        task: the task.
        model: the model, which explains itself.
        shots: labelled examples, with the foil where it is known.
        explainer: of `amplify.attribution`.
        contrastive: against the foil, where a shot has one.
        seed: of the explainer.
        budget: model evaluations per shot; 0 for as many as the explainer takes by itself.

    Raises:
        CapabilityError: the model gives no log-probabilities (or no gradients, for a gradient method).
        InputError: a budget too small for the explainer.
    """
    from amplify.attribution.explainers import METHODS
    from amplify.attribution.explanations import explain_many

    asked = [_asked(method, task, shot, contrastive) for shot in shots]
    # what looks at embeddings evaluates target and foil apart
    apart = explainer in METHODS and METHODS[explainer].kind == "embedding"
    needs = [least(explainer, len(one.words)) * (2 if apart and one.foil else 1) for one in asked]
    limit = budget or max([BUDGET, *needs])
    found = explain_many(
        [one.prompt for one in asked],
        [one.target for one in asked],
        foils=[one.foil for one in asked],
        segments=[one.words for one in asked],
        model=model,
        methods=[explainer],
        budget=limit,
        seed=seed,
    )[explainer]
    return [_of_input(made, shot, citable(task, shot.example)) for made, shot in zip(found, shots, strict=True)]


def shot_game(method: PromptMethod, task: Task, model: LanguageModel, shot: Demonstration) -> Deletion:
    """A shot's gold label (against its foil, where that is known) as the model sees it with citable words deleted.

    Raises:
        CapabilityError: the model gives no log-probabilities.
    """
    form = method.form(task)
    prompt, message, spans = placed(form, shot.example, citable(task, shot.example))
    text = str(prompt.text if message is None else prompt.messages[message].content)
    choices = (form.labels_of(shot.example), shot.example.options)
    target, foil = (
        None if label is None else continuation(label, choices, form, prompt)
        for label in (str(shot.example.label), shot.foil)
    )
    words = tuple(text[a:b] for a, b in spans)
    return deletion(Attribution(text, words, spans, (0.0,) * len(words), str(target), foil), model, prompt)


@dataclass(frozen=True)
class _Asked:
    """A shot's zero-shot prompt, its citable words in it, and what the model may answer."""

    prompt: Prompt
    message: int | None
    words: Spans
    target: str
    foil: str | None


def _asked(method: PromptMethod, task: Task, shot: Demonstration, contrastive: bool) -> _Asked:
    form = method.form(task)
    prompt, message, words = placed(form, shot.example, citable(task, shot.example))
    choices = (form.labels_of(shot.example), shot.example.options)
    target = continuation(str(shot.example.label), choices, form, prompt)
    foil = shot.foil if contrastive else None
    against = None if foil is None else continuation(foil, choices, form, prompt)
    return _Asked(prompt, message, words, target, against)


def _of_input(made: Attribution, shot: Demonstration, spans: Spans) -> Attribution:
    """The same scores over the words of the input instead of the prompt's, and labels instead of continuations."""
    return replace(
        made,
        text=input_text(shot.example),
        spans=spans,
        target=str(shot.example.label),
        foil=None if made.foil is None else shot.foil,
    )

"""The model's own reasons for a shot's label: attributions of its log-probability to the words of the input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from amplify.attribution.words import Spans, key_word_mask, word_spans
from amplify.backends.base import Generator
from amplify.errors import InputError
from amplify.layout import input_text, option_spans
from amplify.methods.answering import continuation
from amplify.methods.prompting import Form, PromptMethod, marked_input
from amplify.values import Attribution, Demonstration, Example, Prompt

if TYPE_CHECKING:
    from amplify.tasks import Task

BUDGET = 128


def citable(task: Task, example: Example) -> Spans:
    """The words of an example that a rationale may cite, as characters of `amplify.layout.input_text(example)`."""
    spans = word_spans(input_text(example))
    return tuple(span for span, may in zip(spans, key_word_mask(task)(example), strict=True) if may)


def placed(form: Form, example: Example, spans: Spans) -> tuple[Prompt, int | None, Spans]:
    """The zero-shot prompt of an example, and where in it words of its input stand.

    Args:
        form: of the prompt; its answer is begun.
        example: the input.
        spans: characters of `amplify.layout.input_text(example)`, inside its text or one of its options.

    Returns:
        The prompt, the message that the input is in (None for raw text), and the words as characters of it.

    Raises:
        InputError: the question template leaves the input out, shows it twice or changes it.
    """
    prompt = replace(form, emphasis="").prompt(marked_input(example), lead=form.style.marker)
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
    backend: Generator,
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
        backend: the model, which explains itself.
        shots: labelled examples, with the foil where it is known.
        explainer: of `amplify.attribution`.
        contrastive: against the foil, where a shot has one.
        seed: of the explainer.
        budget: model evaluations per shot; 0 for as many as the explainer takes by itself.

    Raises:
        CapabilityError: the backend gives no log-probabilities (or no gradients, for a gradient method).
        InputError: a budget too small for the explainer.
    """
    from amplify.attribution.explaining import explain_many

    form = method.form(task)
    prompts, targets, foils, players = [], [], [], []
    for shot in shots:
        prompt, _, words = placed(form, shot.example, citable(task, shot.example))
        choices = (form.labels_of(shot.example), shot.example.options)
        prompts.append(prompt)
        targets.append(continuation(str(shot.example.label), choices, form.style, prompt))
        foil = shot.foil if contrastive else None
        foils.append(None if foil is None else continuation(foil, choices, form.style, prompt))
        players.append(words)
    # an explainer needs about one evaluation a word, however long the text
    limit = budget or max(BUDGET, *(2 * len(words) + 2 for words in players))
    found = explain_many(
        prompts, targets, foils=foils, model=backend, methods=[explainer], budget=limit, seed=seed, players=players
    )[explainer]
    return [_of_input(made, shot, citable(task, shot.example)) for made, shot in zip(found, shots, strict=True)]


def _of_input(made: Attribution, shot: Demonstration, spans: Spans) -> Attribution:
    """The same scores over the words of the input instead of the prompt's, and labels instead of continuations."""
    return replace(
        made,
        text=input_text(shot.example),
        spans=spans,
        target=str(shot.example.label),
        foil=None if made.foil is None else shot.foil,
    )

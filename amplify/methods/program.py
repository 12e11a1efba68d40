"""Programs that are prompts with shots, steered or not, as plain JSON, and how their answers are decoded and read.

That takes as few batched calls as there are: one, or two with a rationale.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from amplify.errors import ContextLengthError
from amplify.methods.base import PromptProgram
from amplify.methods.parse import parse_label, parse_text, shown, split_answer
from amplify.methods.prompt import ANSWER_TOKENS, Form
from amplify.models.base import LanguageModel, need_scoring
from amplify.steering import Steering
from amplify.text import open_block, split_reasoning
from amplify.types import (
    Answer,
    Completion,
    Demonstration,
    Example,
    Prompt,
    Rationale,
    Sampling,
    TokenLogProbs,
)

Choices = tuple[tuple[str, ...], tuple[str, ...]]  # labels of an item, and the texts behind them


def answer_prompts(
    prompts: Sequence[Prompt],
    choices: Sequence[Choices],
    form: Form,
    model: LanguageModel,
    steering: Steering | None = None,
) -> list[Answer]:
    """Answer every prompt.

    Args:
        prompts: one an item, the prefill of the answer in its prefix.
        choices: labels and options of each item; no labels means free text.
        form: how answers are decoded and read.
        model: who answers.
        steering: attention steering towards what the prompts emphasise.

    Returns:
        one answer an item; `value` is None where nothing could be parsed.
    """
    return _Asking(prompts, choices, form, model, steering).answers() if prompts else []


def check_shots_fit(
    model: LanguageModel,
    prompts: Sequence[Prompt],
    form: Form,
    shots: Sequence[int],
    with_shots: Callable[[int, int], Prompt],
) -> None:
    """Refuse prompts that leave no room for their answer, before any work.

    Args:
        model: whose window it is.
        prompts: everything that will be sent.
        form: says how much room the answer needs, and names the method.
        shots: number of shots in each prompt.
        with_shots: (item, number of shots) -> its prompt with that many.

    Raises:
        ContextLengthError: naming the method, the longest prompt, the window and how many shots would fit.
    """
    window = model.max_context
    if window is None or not prompts:
        return
    counts = model.count_tokens(prompts)
    longest = max(range(len(prompts)), key=counts.__getitem__)
    if counts[longest] + form.room <= window:
        return
    fitting = model.count_tokens([with_shots(longest, n) for n in range(shots[longest])])
    most = max((n for n, size in enumerate(fitting) if size + form.room <= window), default=None)
    advice = (
        f"{most} shots would fit: set {form.method.partition('[')[0]}.shots={most}"
        if most
        else "none of its shots can stay: shorten the input, lower max_tokens, or take a model with a longer window"
    )
    raise ContextLengthError(
        f"{form.method}: the longest of {len(prompts)} prompts has {counts[longest]} tokens with {shots[longest]} "
        f"shots and needs {form.room} more for its answer; the window of {model.id} is {window}. {advice}."
    )


@dataclass(frozen=True)
class _Asking:
    """A batch under way: prompts with the labels and options of their items, and whom they are put to."""

    prompts: Sequence[Prompt]
    choices: Sequence[Choices]
    form: Form
    model: LanguageModel
    steering: Steering | None

    def answers(self) -> list[Answer]:
        """Generate or score, and read."""
        form = self.form
        if form.mode == "score" and not form.reasons:
            return self.scored(self.prompts)
        # behind a rationale the labels are scored, so what the model would answer itself is cut off
        stop = (*form.stop, form.marker) if form.mode == "score" else form.stop
        written = self.generate(self.prompts, form.max_tokens, stop)
        thought = self.thought(written, stop)
        written = [thought.get(i, completion) for i, completion in enumerate(written)]
        if form.mode == "score":
            behind = [_behind(p, w, form) for p, w in zip(self.prompts, written, strict=True)]
            answers = self.scored(behind, written)
        else:
            answers = [_read(p, w, c, form) for p, w, c in zip(self.prompts, written, self.choices, strict=True)]
            if form.reasons and form.extract:
                answers = self.extracted(written, answers)
        return [replace(a, calls=a.calls + 1) if i in thought else a for i, a in enumerate(answers)]

    def generate(self, prompts: Sequence[Prompt], tokens: int, stop: tuple[str, ...] = ()) -> list[Completion]:
        """One completion a prompt."""
        return self.model.generate(prompts, Sampling(max_tokens=tokens, stop=stop), steering=self.steering)

    def thought(self, written: Sequence[Completion], stop: tuple[str, ...]) -> dict[int, Completion]:
        """Ask those again that were cut off in or right behind a reasoning block: with room, and stopped after it."""
        cut = [i for i, (p, w) in enumerate(zip(self.prompts, written, strict=True)) if _unanswered(p.prefix + w.text)]
        if not cut or not self.form.thinking:
            return {}
        room = self.form.max_tokens + self.form.thinking
        if self.model.max_context is not None:
            room = min(room, self.model.max_context - max(written[i].prompt_tokens for i in cut))
        again = self.generate([self.prompts[i] for i in cut], room)
        return {
            i: replace(
                new,
                text=_stopped(new.text, stop),
                prompt_tokens=new.prompt_tokens + written[i].prompt_tokens,
                completion_tokens=new.completion_tokens + written[i].completion_tokens,
            )
            for i, new in zip(cut, again, strict=True)
        }

    def extracted(self, written: Sequence[Completion], answers: Sequence[Answer]) -> list[Answer]:
        """Ask again, behind the marker, those whose text never came to it (Kojima et al. 2022, arXiv 2205.11916)."""
        form, prompts, merged = self.form, self.prompts, list(answers)
        said = [split_reasoning(p.prefix + a.text)[1] for p, a in zip(prompts, answers, strict=True)]
        missing = [i for i, a in enumerate(answers) if a.value is None and split_answer(said[i], form.marker) is None]
        again = [_behind(prompts[i], written[i], form) for i in missing]
        found = self.generate(again, ANSWER_TOKENS, form.stop) if again else []
        for i, prompt, completion in zip(missing, again, found, strict=True):
            first, second = answers[i], _read(prompt, completion, self.choices[i], form)
            merged[i] = replace(
                second,
                text=prompt.prefix.removeprefix(prompts[i].prefix) + completion.text,
                prompt_tokens=first.prompt_tokens + second.prompt_tokens,
                completion_tokens=first.completion_tokens + second.completion_tokens,
                calls=2,
            )
        return merged

    def scored(self, prompts: Sequence[Prompt], written: Sequence[Completion] = ()) -> list[Answer]:
        """Choose the likeliest label of each item; every (item, label) pair in one call."""
        form, choices, scorer = self.form, self.choices, need_scoring(self.model, "score mode")
        pairs = [(i, label) for i, (labels, _) in enumerate(choices) for label in labels]
        targets = [continuation(label, choices[i], form, prompts[i]) for i, label in pairs]
        results = scorer.score([prompts[i] for i, _ in pairs], targets, steering=self.steering)
        sizes = self.model.count_tokens(prompts)
        scored: list[dict[str, tuple[TokenLogProbs, str]]] = [{} for _ in prompts]
        for (i, label), result, target in zip(pairs, results, targets, strict=True):
            scored[i][label] = (result, target)
        answers = []
        for i, (prompt, mine) in enumerate(zip(prompts, scored, strict=True)):
            best = max(mine, key=lambda label: _comparable(*mine[label], form), default=None)
            first = written[i] if written else None
            answers.append(
                Answer(
                    value=best,
                    text=first.text if first else "",
                    rationale=prompt.prefix.removesuffix(form.marker).strip() if form.reasons else "",
                    scores={label: _comparable(r, t, form) for label, (r, t) in mine.items()},
                    logprobs={label: _logprob(r, form) for label, (r, _) in mine.items()},
                    first_tokens={label: r.logprobs[0] for label, (r, _) in mine.items()},
                    prompt_tokens=sizes[i] * len(mine) + (first.prompt_tokens if first else 0),
                    completion_tokens=sum(len(r.logprobs) for r, _ in mine.values())
                    + (first.completion_tokens if first else 0),
                    calls=len(mine) + (1 if first else 0),
                    prompt=prompt,
                )
            )
        return answers


def _unanswered(text: str) -> bool:
    """Whether a text is reasoning blocks and nothing else, the last of them perhaps not at its end."""
    return bool(open_block(text)) or bool(text.strip() and not split_reasoning(text)[1])


def _stopped(text: str, stop: tuple[str, ...]) -> str:
    """A text cut at the first stop string of its answer; its reasoning blocks stay whole."""
    answer = split_reasoning(text)[1]
    ends = [at for mark in stop if (at := answer.find(mark)) >= 0]
    return text[: text.rfind(answer) + min(ends)] if ends else text


def _read(prompt: Prompt, written: Completion, choices: Choices, form: Form) -> Answer:
    reasoning, text = split_reasoning((prompt.prefix + written.text).strip())
    labels, options = choices
    parts = split_answer(text, form.marker)
    value = (
        text or None
        if form.whole and not form.reasons
        else parse_label(text, labels, options=options, marker=form.marker, reasons=form.reasons)
        if labels
        else parse_text(text, marker=form.marker)
        if not form.reasons or parts
        else None
    )
    before = (parts[0] if parts else text) if form.reasons else ""
    return Answer(
        value=value,
        text=written.text,
        rationale="\n".join(part for part in (reasoning, before) if part),
        prompt_tokens=written.prompt_tokens,
        completion_tokens=written.completion_tokens,
        prompt=prompt,
    )


def _behind(prompt: Prompt, written: Completion, form: Form) -> Prompt:
    """The prompt continued by what was written and the marker, ready for the label."""
    so_far = (prompt.prefix + written.text).rstrip()
    if closing := open_block(so_far):
        return replace(prompt, prefix=f"{so_far}\n{closing}\n\n{form.marker}")
    gap = " " if so_far or prompt.text is not None else ""
    if written.finish_reason == "length":
        gap = "\n"  # a sentence that was cut off would be continued, not answered, on its own line
    return replace(prompt, prefix=f"{so_far}{gap}{form.marker}")


def continuation(label: str, choices: Choices, form: Form, prompt: Prompt) -> str:
    """The label as it follows the marker; closed where another label begins with it, so that each excludes the rest."""
    labels, options = choices
    text = shown(label, bool(options))
    begins = any(other != label and shown(other, bool(options)).startswith(text) for other in labels)
    gap = " " if prompt.prefix or prompt.text is not None else ""
    return f"{gap}{text}{form.closing if begins else ''}"


def _logprob(result: TokenLogProbs, form: Form) -> float:
    """Log-probability of what of a label is compared: its first token, or all of it."""
    return result.logprobs[0] if form.normalize == "first_token" else result.total


def _comparable(result: TokenLogProbs, target: str, form: Form) -> float:
    if form.normalize == "tokens":
        return result.mean
    logprob = _logprob(result, form)
    return logprob / len(target.strip()) if form.normalize == "characters" else logprob


def as_example(example: Example | str) -> Example:
    """An example as it is; a plain text as an example without a label."""
    return example if isinstance(example, Example) else Example(id="", text=example)


@dataclass(frozen=True)
class ShotProgram(PromptProgram):
    """The same shots before every example.

    Attributes:
        form: how prompts look.
        shots: demonstrations, first to last.
        notes: what a reader of the results must know, e.g. that there were fewer shots than asked for.
        meta: what fitting found and cost, JSON values.
        steering: heads and strength, where attention is steered to what the form emphasises in the last question.

    Example:
        >>> task, model = amplify.load_task("support_tickets"), amplify.load_model("scripted:say=billing")
        >>> len(amplify.methods.FewShot(shots=2).fit(task, model, seed=0).shots)
        2
    """

    kind: ClassVar[str] = "shots"

    form: Form
    shots: tuple[Demonstration, ...] = ()
    notes: tuple[str, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)
    steering: Steering | None = None

    def prompt(self, example: Example | str) -> Prompt:
        """The prompt for an example or a plain text."""
        return self.form.prompt(as_example(example), self.shots)

    def answer(self, examples: Sequence[Example], model: LanguageModel) -> list[Answer]:
        """Answer a batch.

        Raises:
            ContextLengthError: before any work, when a prompt leaves no room for its answer.
            CapabilityError: score mode on a model that gives no log-probabilities, or a model that cannot steer.
            InputError: heads measured on another model.
        """
        return answer_shots(self.form, examples, [self.shots] * len(examples), model, steering=self.steering)


def answer_shots(
    form: Form,
    examples: Sequence[Example],
    shots: Sequence[Sequence[Demonstration]],
    model: LanguageModel,
    prefills: Sequence[str] | None = None,
    steering: Steering | None = None,
) -> list[Answer]:
    """Prompt for each example behind its own shots and read the answers.

    Args:
        form: how prompts look.
        examples: what is asked.
        shots: one sequence of demonstrations an example.
        model: who answers.
        prefills: one beginning of the answer an example, instead of the form's.
        steering: of attention, to what the prompts emphasise.
    """
    given = prefills or [form.prefill] * len(examples)
    prompts = [form.prompt(e, s, prefill) for e, s, prefill in zip(examples, shots, given, strict=True)]

    def with_shots(i: int, n: int) -> Prompt:
        return form.prompt(examples[i], shots[i][:n], given[i])

    check_shots_fit(model, prompts, form, [len(s) for s in shots], with_shots)
    return answer_prompts(prompts, [(form.labels_of(e), e.options) for e in examples], form, model, steering)


def answer_made(
    form: Form,
    examples: Sequence[Example],
    prompts: Sequence[Prompt],
    model: LanguageModel,
    steering: Steering | None = None,
) -> list[Answer]:
    """Answer prompts without shots that are made already; what emphasises nothing is answered plainly."""
    check_shots_fit(model, prompts, form, [0] * len(prompts), lambda i, _: prompts[i])
    return answer_prompts(prompts, [(form.labels_of(e), e.options) for e in examples], form, model, steering)


def with_rationales(shots: Sequence[Demonstration], texts: Sequence[Rationale | None]) -> tuple[Demonstration, ...]:
    """The same shots with other rationales."""
    return tuple(replace(shot, rationale=text) for shot, text in zip(shots, texts, strict=True))

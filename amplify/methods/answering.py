"""From prompts to answers, in both modes and in as few batched calls as there are: one, or two with a rationale."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from amplify.backends.base import Generator, need_scorer
from amplify.errors import ContextLengthError
from amplify.methods.base import Mode
from amplify.methods.parsing import MARKER, parse_label, parse_text, shown, split_answer
from amplify.text import open_block, split_reasoning
from amplify.values import Answer, Completion, Prompt, Sampling, TokenLogProbs

if TYPE_CHECKING:
    from amplify.steering import Steering

Choices = tuple[tuple[str, ...], tuple[str, ...]]  # labels of an item, and the texts behind them
_ANSWER_TOKENS = 24  # room for the answer itself behind its marker


@dataclass(frozen=True)
class Style:
    """How a method's answers are decoded and read.

    Attributes:
        mode: "generate" or "score".
        reasons: a rationale comes before the answer.
        announce: the task's words before an answer.
        marker: those words as the answer template places them; behind them the answer is read.
        closing: what demonstrations write behind the label, e.g. ".".
        max_tokens: budget of the text written before scoring or parsing.
        stop: strings that end it.
        normalise: how log-probabilities of labels of different lengths are compared.
        extract: where a rationale ended without an answer, ask again behind the marker.
        whole: the answer is all that is written, not a line behind a marker.
        thinking: further tokens for a model that begins a reasoning block of its own (`<think>`) and is cut off in it.
    """

    mode: Mode = "generate"
    reasons: bool = False
    announce: str = MARKER
    marker: str = MARKER
    closing: str = "."
    max_tokens: int = _ANSWER_TOKENS
    stop: tuple[str, ...] = ()
    normalise: Literal["none", "tokens", "characters", "first_token"] = "none"
    extract: bool = True
    whole: bool = False
    thinking: int = 0

    @property
    def room(self) -> int:
        """Tokens that must be free behind the prompt."""
        return self.max_tokens + (_ANSWER_TOKENS if self.reasons else 0)


def answer_prompts(
    prompts: Sequence[Prompt],
    choices: Sequence[Choices],
    style: Style,
    backend: Generator,
    steering: Steering | None = None,
) -> list[Answer]:
    """Answer every prompt.

    Args:
        prompts: one an item, the lead of the answer in its prefix.
        choices: labels and options of each item; no labels means free text.
        style: how to decode and read.
        backend: who answers.
        steering: attention steering towards what the prompts emphasise.

    Returns:
        one answer an item; `value` is None where nothing could be parsed.
    """
    if not prompts:
        return []
    if style.mode == "score" and not style.reasons:
        return _score(prompts, choices, style, backend, None, steering)
    # behind a rationale the labels are scored, so what the model would answer itself is cut off
    stop = (*style.stop, style.marker) if style.mode == "score" else style.stop
    written = backend.generate(prompts, Sampling(max_tokens=style.max_tokens, stop=stop), steering=steering)
    thought = _think(prompts, written, stop, style, backend, steering)
    written = [thought.get(i, completion) for i, completion in enumerate(written)]
    if style.mode == "score":
        behind = [_behind(p, w, style) for p, w in zip(prompts, written, strict=True)]
        answers = _score(behind, choices, style, backend, written, steering)
    else:
        answers = [_read(p, w, c, style) for p, w, c in zip(prompts, written, choices, strict=True)]
        if style.reasons and style.extract:
            answers = _extract(prompts, written, answers, choices, style, backend, steering)
    return [replace(a, calls=a.calls + 1) if i in thought else a for i, a in enumerate(answers)]


def check_window(
    backend: Generator,
    prompts: Sequence[Prompt],
    style: Style,
    method: str,
    shots: Sequence[int],
    with_shots: Callable[[int, int], Prompt],
) -> None:
    """Refuse prompts that leave no room for their answer, before any work.

    Args:
        backend: whose window it is.
        prompts: everything that will be sent.
        style: says how much room the answer needs.
        method: for the message.
        shots: number of shots in each prompt.
        with_shots: (item, number of shots) -> its prompt with that many.

    Raises:
        ContextLengthError: naming the method, the longest prompt, the window and how many shots would fit.
    """
    window = backend.max_context
    if window is None or not prompts:
        return
    counts = backend.count_tokens(prompts)
    longest = max(range(len(prompts)), key=counts.__getitem__)
    if counts[longest] + style.room <= window:
        return
    fitting = backend.count_tokens([with_shots(longest, n) for n in range(shots[longest])])
    most = max((n for n, size in enumerate(fitting) if size + style.room <= window), default=None)
    advice = (
        f"{most} shots would fit: set {method.partition('[')[0]}.shots={most}"
        if most
        else "none of its shots can stay: shorten the input, lower max_tokens, or take a model with a longer window"
    )
    raise ContextLengthError(
        f"{method}: the longest of {len(prompts)} prompts has {counts[longest]} tokens with {shots[longest]} shots and "
        f"needs {style.room} more for its answer; the window of {backend.spec} is {window}. {advice}."
    )


def _think(
    prompts: Sequence[Prompt],
    written: Sequence[Completion],
    stop: tuple[str, ...],
    style: Style,
    backend: Generator,
    steering: Steering | None,
) -> dict[int, Completion]:
    """Ask those again that were cut off inside a reasoning block: with room for it, and stopped behind it only."""
    cut = [i for i, (p, w) in enumerate(zip(prompts, written, strict=True)) if open_block(p.prefix + w.text)]
    if not cut or not style.thinking:
        return {}
    room = style.max_tokens + style.thinking
    if backend.max_context is not None:
        room = min(room, backend.max_context - max(written[i].prompt_tokens for i in cut))
    again = backend.generate([prompts[i] for i in cut], Sampling(max_tokens=room), steering=steering)
    return {
        i: replace(
            new,
            text=_stopped(new.text, stop),
            prompt_tokens=new.prompt_tokens + written[i].prompt_tokens,
            completion_tokens=new.completion_tokens + written[i].completion_tokens,
        )
        for i, new in zip(cut, again, strict=True)
    }


def _stopped(text: str, stop: tuple[str, ...]) -> str:
    """A text cut at the first stop string of its answer; its reasoning blocks stay whole."""
    answer = split_reasoning(text)[1]
    ends = [at for mark in stop if (at := answer.find(mark)) >= 0]
    return text[: text.rfind(answer) + min(ends)] if ends else text


def _read(prompt: Prompt, written: Completion, choices: Choices, style: Style) -> Answer:
    reasoning, text = split_reasoning((prompt.prefix + written.text).strip())
    labels, options = choices
    parts = split_answer(text, style.marker)
    value = (
        text or None
        if style.whole and not style.reasons
        else parse_label(text, labels, options=options, marker=style.marker, reasons=style.reasons)
        if labels
        else parse_text(text, marker=style.marker)
        if not style.reasons or parts
        else None
    )
    before = (parts[0] if parts else text) if style.reasons else ""
    return Answer(
        value=value,
        text=written.text,
        rationale="\n".join(part for part in (reasoning, before) if part),
        prompt_tokens=written.prompt_tokens,
        completion_tokens=written.completion_tokens,
        prompt=prompt,
    )


def _behind(prompt: Prompt, written: Completion, style: Style) -> Prompt:
    """The prompt continued by what was written and the marker, ready for the label."""
    so_far = (prompt.prefix + written.text).rstrip()
    if closing := open_block(so_far):
        return replace(prompt, prefix=f"{so_far}\n{closing}\n\n{style.marker}")
    gap = " " if so_far or prompt.text is not None else ""
    if written.finish_reason == "length":
        gap = "\n"  # a sentence that was cut off would be continued, not answered, on its own line
    return replace(prompt, prefix=f"{so_far}{gap}{style.marker}")


def _extract(
    prompts: Sequence[Prompt],
    written: Sequence[Completion],
    answers: Sequence[Answer],
    choices: Sequence[Choices],
    style: Style,
    backend: Generator,
    steering: Steering | None = None,
) -> list[Answer]:
    """Ask again, behind the marker, those whose text never came to it (Kojima et al. 2022, arXiv 2205.11916)."""
    merged = list(answers)
    said = [split_reasoning(p.prefix + a.text)[1] for p, a in zip(prompts, answers, strict=True)]
    missing = [i for i, a in enumerate(answers) if a.value is None and split_answer(said[i], style.marker) is None]
    again = [_behind(prompts[i], written[i], style) for i in missing]
    sampling = Sampling(max_tokens=_ANSWER_TOKENS, stop=style.stop)
    found = backend.generate(again, sampling, steering=steering) if again else []
    for i, prompt, completion in zip(missing, again, found, strict=True):
        first, second = answers[i], _read(prompt, completion, choices[i], style)
        merged[i] = replace(
            second,
            text=prompt.prefix.removeprefix(prompts[i].prefix) + completion.text,
            prompt_tokens=first.prompt_tokens + second.prompt_tokens,
            completion_tokens=first.completion_tokens + second.completion_tokens,
            calls=2,
        )
    return merged


def _score(
    prompts: Sequence[Prompt],
    choices: Sequence[Choices],
    style: Style,
    backend: Generator,
    written: Sequence[Completion] | None,
    steering: Steering | None = None,
) -> list[Answer]:
    """Choose the likeliest label of each item; every (item, label) pair in one call."""
    scorer = need_scorer(backend, "score mode")
    pairs = [(i, label) for i, (labels, _) in enumerate(choices) for label in labels]
    targets = [continuation(label, choices[i], style, prompts[i]) for i, label in pairs]
    results = scorer.score([prompts[i] for i, _ in pairs], targets, steering=steering)
    sizes = backend.count_tokens(prompts)
    scored: list[dict[str, tuple[TokenLogProbs, str]]] = [{} for _ in prompts]
    for (i, label), result, target in zip(pairs, results, targets, strict=True):
        scored[i][label] = (result, target)
    answers = []
    for i, (prompt, mine) in enumerate(zip(prompts, scored, strict=True)):
        best = max(mine, key=lambda label: _comparable(*mine[label], style), default=None)
        first = written[i] if written else None
        answers.append(
            Answer(
                value=best,
                text=first.text if first else "",
                rationale=prompt.prefix.removesuffix(style.marker).strip() if style.reasons else "",
                scores={label: _comparable(r, t, style) for label, (r, t) in mine.items()},
                logprobs={label: _logprob(r, style) for label, (r, _) in mine.items()},
                first_tokens={label: r.logprobs[0] for label, (r, _) in mine.items()},
                prompt_tokens=sizes[i] * len(mine) + (first.prompt_tokens if first else 0),
                completion_tokens=sum(len(r.logprobs) for r, _ in mine.values())
                + (first.completion_tokens if first else 0),
                calls=len(mine) + (1 if first else 0),
                prompt=prompt,
            )
        )
    return answers


def continuation(label: str, choices: Choices, style: Style, prompt: Prompt) -> str:
    """The label as it follows the marker; closed where another label begins with it, so that each excludes the rest."""
    labels, options = choices
    text = shown(label, bool(options))
    begins = any(other != label and shown(other, bool(options)).startswith(text) for other in labels)
    gap = " " if prompt.prefix or prompt.text is not None else ""
    return f"{gap}{text}{style.closing if begins else ''}"


def _logprob(result: TokenLogProbs, style: Style) -> float:
    """Log-probability of what of a label is compared: its first token, or all of it."""
    return result.logprobs[0] if style.normalise == "first_token" else result.total


def _comparable(result: TokenLogProbs, target: str, style: Style) -> float:
    if style.normalise == "tokens":
        return result.mean
    logprob = _logprob(result, style)
    return logprob / len(target.strip()) if style.normalise == "characters" else logprob

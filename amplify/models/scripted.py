"""A model without a model: what it answers is a short function of the prompt. For tests, docs and dry runs.

`scripted:echo` repeats the last line, `scripted:say=TEXT` always answers TEXT, `scripted:first_option` picks the first
option offered, `scripted:last_answer` copies the answer of the last demonstration. In Python any function will do:

    ScriptedModel(reply=lambda text: "yes" if "good" in text else "no", logprob=lambda text, continuation: -1.0)
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

from amplify.errors import InputError, ModelError, UnknownNameError
from amplify.locks import one_at_a_time
from amplify.models.base import Usage, check_pairs, check_window, refuse_steering
from amplify.types import Completion, Prompt, Sampling, TokenLogProbs

if TYPE_CHECKING:
    from amplify.steering import Steering

Reply = Callable[[str], str]
LogProb = Callable[[str, str], float]


@dataclass(frozen=True)
class Call:
    """One thing the model was asked.

    Attributes:
        prompt: as it came in.
        text: as a model would read it (see `plain_text`).
        continuation: the text to score, None for a generation.
        batch: number of the `generate` or `score` call, from 0.
    """

    prompt: Prompt
    text: str
    continuation: str | None
    batch: int


def plain_text(prompt: Prompt) -> str:
    """The prompt as one string: raw text as it is, a chat as "role: content" paragraphs, the prefix last."""
    if prompt.text is not None:
        return prompt.text + prompt.prefix
    turns = [f"{m.role}: {m.content}" for m in prompt.messages]
    return "\n\n".join([*turns, f"assistant: {prompt.prefix}"])


def words(text: str) -> list[str]:
    """The tokens of this model: words, each with the white space before it."""
    return re.findall(r"\s*\S+", text)


def _question(text: str) -> str:
    """What stands before the turn that is to be written."""
    before, turn, _ = text.rpartition("\n\nassistant: ")
    return before if turn else text


def _echo(text: str) -> str:
    lines = [line for line in _question(text).splitlines() if line.strip()]
    return re.sub(r"^(system|user|assistant): ", "", lines[-1]) if lines else ""


def _first_option(text: str) -> str:
    block = _question(text).split("\n\n")[-1]
    option = re.search(r"\([A-Za-z0-9]{1,2}\)", block)
    return f"The answer is {option[0]}." if option else ""


def _last_answer(text: str) -> str:
    answers = re.findall(r"[Tt]he answer is ([^\n]*\S)", _question(text))
    return f"The answer is {answers[-1]}" if answers else ""


SCRIPTS: dict[str, Reply] = {"echo": _echo, "first_option": _first_option, "last_answer": _last_answer}


def _script(name: str) -> Reply:
    if name.startswith("say="):
        said = name.removeprefix("say=")
        return lambda text: said
    if name not in SCRIPTS:
        hint = "In Python, pass reply=, a function of the prompt's text."
        raise UnknownNameError("script", name, [*SCRIPTS, "say=TEXT"], hint)
    return SCRIPTS[name]


class ScriptedGenerator:
    """Answers by a function of the prompt's text and writes down what it was asked. `ScriptedModel` scores as well.

    Attributes:
        calls: everything asked so far, in order.
    """

    def __init__(
        self,
        name: str = "",
        *,
        reply: Reply | None = None,
        max_context: int | None = None,
        fail_after: int | None = None,
    ) -> None:
        """Choose what it says.

        Args:
            name: a script: "echo" (the default), "first_option", "last_answer" or "say=TEXT"; with `reply`, any name.
            reply: prompt text -> full answer, before stop strings and `max_tokens` cut it.
            max_context: window in words, None for no limit.
            fail_after: answer this many prompts, then refuse like a server that died.

        Raises:
            UnknownNameError: no such script.
        """
        if fail_after is not None and fail_after < 0:
            raise InputError(f"fail_after is a number of prompts, got {fail_after}")
        self._reply = reply or _script(name or "echo")
        self._name = name or ("custom" if reply else "echo")
        self._told = bool(name) or reply is None  # whether the name says what it does
        self._left = fail_after
        self._batches = 0
        self.id = f"scripted:{self._name}"
        self.max_context = max_context
        self.usage = Usage()
        self.calls: list[Call] = []

    @property
    def texts(self) -> list[str]:
        """The text of every prompt asked so far."""
        return [call.text for call in self.calls]

    @one_at_a_time
    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, *, steering: Steering | None = None
    ) -> list[Completion]:
        """See `LanguageModel.generate`. Temperature and seed change nothing."""
        refuse_steering(steering, self.id)
        counts = self.count_tokens(prompts)
        check_window(counts, sampling.max_tokens, self.max_context)
        done: dict[int, Completion] = {}
        for i, prompt in enumerate(prompts):
            text = self._ask(prompt, None, done)
            answer, reason = _cut(self._reply(text), sampling)
            likely = self._log_probs(text, answer) if sampling.logprobs and answer else None
            done[i] = Completion(answer, reason, counts[i], len(words(answer)), likely)
            self.usage.add_call(counts[i], done[i].completion_tokens)
        self._batches += 1
        return [one for one in done.values() for _ in range(sampling.n)]

    def _log_probs(self, text: str, continuation: str) -> TokenLogProbs | None:
        """Of a continuation's words, the first of which carries the whole; None where it gives none."""
        return None

    def count_tokens(self, prompts: Sequence[Prompt]) -> list[int]:
        """Words of each prompt as `plain_text` renders it."""
        return [len(words(plain_text(p))) for p in prompts]

    def describe(self) -> dict[str, Any]:
        """What ran: the script's name; tokens are words."""
        return {
            "id": self.id,
            "model": {"name": self._name} if self._told else None,
            "tokens": "words",
            "max_context": self.max_context,
        }

    def close(self) -> None:
        """Nothing to free."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _ask(self, prompt: Prompt, continuation: str | None, done: dict[int, Any]) -> str:
        if self._left == 0:
            raise ModelError(f"{self.id!r} was told to fail here", completed=done)
        if self._left is not None:
            self._left -= 1
        text = plain_text(prompt)
        self.calls.append(Call(prompt, text, continuation, self._batches))
        return text


class ScriptedModel(ScriptedGenerator):
    """A scripted model that also scores: a `ScoringModel`."""

    def __init__(
        self,
        name: str = "",
        *,
        reply: Reply | None = None,
        logprob: LogProb | None = None,
        max_context: int | None = None,
        fail_after: int | None = None,
    ) -> None:
        """Choose what it says and how likely it finds a text.

        Args:
            name, reply, max_context, fail_after: see `ScriptedGenerator`.
            logprob: (prompt text, continuation) -> log-probability of the whole continuation. The default finds
                a continuation likely that the reply contains, and gives any other a fixed pseudo-random value.
        """
        super().__init__(name, reply=reply, max_context=max_context, fail_after=fail_after)
        self._logprob = logprob or self._likely_if_said
        self._told = (bool(name) and reply is not None) or (reply is None and logprob is None)

    @one_at_a_time
    def score(
        self, prompts: Sequence[Prompt], continuations: Sequence[str], *, steering: Steering | None = None
    ) -> list[TokenLogProbs]:
        """See `ScoringModel.score`. The first word carries the whole log-probability, so that `total` is exact."""
        refuse_steering(steering, self.id)
        check_pairs(prompts, continuations)
        targets = [words(c) or [c] for c in continuations]
        counts = self.count_tokens(prompts)
        check_window([n + len(t) for n, t in zip(counts, targets, strict=True)], 0, self.max_context)
        done: dict[int, TokenLogProbs] = {}
        for i, (prompt, continuation) in enumerate(zip(prompts, continuations, strict=True)):
            text = self._ask(prompt, continuation, done)
            done[i] = self._log_probs(text, continuation)
            self.usage.add_call(counts[i], len(targets[i]))
        self._batches += 1
        return list(done.values())

    def _log_probs(self, text: str, continuation: str) -> TokenLogProbs:
        found = words(continuation) or [continuation]
        ids = tuple(int(_hash(word) * 2**31) for word in found)
        return TokenLogProbs(tuple(found), ids, (float(self._logprob(text, continuation)), *[0.0] * (len(found) - 1)))

    def _likely_if_said(self, text: str, continuation: str) -> float:
        if continuation.strip() and continuation.strip() in self._reply(text):
            return -0.1
        return -1.0 - 5.0 * _hash(f"{text}\0{continuation}")


def _cut(text: str, sampling: Sampling) -> tuple[str, Literal["stop", "length"]]:
    tokens = words(text)
    kept = "".join(tokens[: sampling.max_tokens]) if len(tokens) > sampling.max_tokens else text
    ends = [at for at in (kept.find(stop) for stop in sampling.stop) if at >= 0]
    if ends:
        return kept[: min(ends)], "stop"
    return kept, "length" if kept is not text else "stop"


def _hash(text: str) -> float:
    """A number in [0, 1) that is the same in every process."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:6], "big") / 2**48

"""What servers take and what they answer, looked at before it is believed.

Nothing else reads a server's JSON. An answer that is not what the API promises is a `ReplyError` that says how, so that
it becomes one error after the last try, and never an answer or a value that is kept. A `Dialect` is what one server
takes: fields that not every server knows are sent until it refuses them, and then left out.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from amplify.redaction import hide_keys, one_line
from amplify.types import TokenLogProbs

Json = dict[str, Any]
Way = Literal["prompt_logprobs", "echo"]

MOST_TOKENS = 10**9  # that a server may say it counted
ROUNDING = 1e-4  # above 0, where a log-probability is 0


class TryAgainError(Exception):
    """A call failed in a way that may pass.

    Attributes:
        after: seconds that the server asked to wait, or None.
        most: further tries that may help, where only a few do.
    """

    most: float = math.inf

    def __init__(self, message: str, after: float | None = None) -> None:
        super().__init__(message)
        self.after = after


class GiveUpError(Exception):
    """A call failed in a way that trying again does not mend.

    Attributes:
        status: the HTTP status that said so, or None.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class ReplyError(TryAgainError):
    """The answer is not what the API promises."""


class NoLogProbsError(ReplyError):
    """There are no log-probabilities in an answer, or they are of other tokens; said twice, the server gives none."""

    most = 1


class Written(NamedTuple):
    """What a server says that its model wrote.

    Attributes:
        reasoning: what it thought before, in a block of its own (`<think>…</think>`, open where it was cut off in it),
            where the server keeps that apart; else "".
        text: the answer.
        finish: "length" where it was cut off, else "stop".
    """

    reasoning: str
    text: str
    finish: Literal["stop", "length"]


def parse(content: bytes) -> Json:
    """The object in an answer's body.

    Raises:
        ReplyError: it is something else.
    """
    try:
        data = json.loads(content)
    except (ValueError, RecursionError):
        del content  # a traceback that shows variables is not to show what a server says
        raise ReplyError("the answer is not JSON; is the URL that of an OpenAI-compatible API?") from None
    if not isinstance(data, dict):
        raise ReplyError("the answer is not a JSON object")
    return data


def written(data: Json) -> Written:
    """The one text that a model wrote.

    Raises:
        ReplyError: there is none, or several.
    """
    choice = _choice(data)
    message = choice.get("message")
    if message is not None and not isinstance(message, dict):
        raise ReplyError(f"its message is {_kind(message)}")
    finish = choice.get("finish_reason")
    if not isinstance(finish, str | None):
        raise ReplyError(f"its finish_reason is {_kind(finish)}")
    text = choice.get("text") if message is None else message.get("content")
    if text is None and message is not None:
        text = _without_content(message, finish)
    if text is None:
        raise ReplyError("the answer holds no text")
    reasoning = _text((message or {}).get("reasoning_content") or (message or {}).get("reasoning") or "")
    cut = finish == "length"
    if reasoning:
        reasoning = f"<think>\n{reasoning.strip()}" + ("" if cut and not text else "\n</think>\n\n")
    return Written(reasoning, _text(text), "length" if cut else "stop")


def usage(data: Json) -> tuple[int | None, int | None]:
    """Tokens of the prompt and of the completion, as the server counted them; None where it does not say.

    Raises:
        ReplyError: it says something that is no count.
    """
    given = data.get("usage")
    if given is None:
        return None, None
    if not isinstance(given, dict):
        raise ReplyError(f"its usage is {_kind(given)}")
    return _count(given, "prompt_tokens"), _count(given, "completion_tokens")


def prompt_log_probs(data: Json, ids: Sequence[int], start: int, way: Way) -> tuple[float, ...]:
    """Log-probabilities of the tokens of a prompt from number `start` on.

    Args:
        data: the answer.
        ids: the prompt.
        start: the first token whose log-probability is wanted.
        way: how they were asked for.

    Raises:
        NoLogProbsError: there are none, or they are of other tokens.
        ReplyError: they are no log-probabilities.
    """
    entries: Any = _choice(data).get("prompt_logprobs" if way == "prompt_logprobs" else "logprobs")
    if way == "echo" and entries is not None:
        if not isinstance(entries, dict):
            raise ReplyError(f"its logprobs are {_kind(entries)}")
        entries = entries.get("token_logprobs")
    if entries is None:
        raise NoLogProbsError("the server returned no log-probabilities of the prompt's tokens")
    if not isinstance(entries, list):
        raise ReplyError(f"its log-probabilities are {_kind(entries)}")
    # an echo ends with the token that had to be generated
    if len(entries) not in ((len(ids),) if way == "prompt_logprobs" else (len(ids), len(ids) + 1)):
        raise NoLogProbsError(
            f"the server gave log-probabilities of {len(entries)} tokens for {len(ids)}: another tokenizer?"
        )
    found = entries[start : len(ids)]
    if way == "prompt_logprobs":
        found = [_of_token(entry, token) for entry, token in zip(found, ids[start:], strict=True)]
    if None in found:
        raise NoLogProbsError("the server returned no log-probabilities of the prompt's tokens")
    return tuple(log_prob(value) for value in found)


def written_log_probs(data: Json) -> TokenLogProbs:
    """Log-probabilities of the tokens that a model wrote, in the form of the chat API or of the completions API.

    Raises:
        NoLogProbsError: there are none.
        ReplyError: they are no log-probabilities.
    """
    choice = _choice(data)
    given = choice.get("logprobs")
    if given is None:
        raise NoLogProbsError("the server gave no log-probabilities of its answer")
    if not isinstance(given, dict):
        raise ReplyError(f"its logprobs are {_kind(given)}")
    if isinstance(content := given.get("content"), list):
        if not all(isinstance(entry, dict) for entry in content):
            raise ReplyError("an entry of its logprobs is no object")
        tokens, values = [e.get("token") for e in content], [e.get("logprob") for e in content]
    else:
        tokens, values = given.get("tokens") or [], given.get("token_logprobs") or []
    if not isinstance(tokens, list) or not isinstance(values, list) or len(tokens) != len(values):
        raise ReplyError("its logprobs do not give one number for each token")
    if not tokens:
        raise NoLogProbsError("the server gave no log-probabilities of its answer")
    ids = choice.get("token_ids")
    known = isinstance(ids, list) and len(ids) == len(tokens) and all(type(i) is int for i in ids)
    return TokenLogProbs(tuple(map(_text, tokens)), tuple(ids) if known and ids else (), tuple(map(log_prob, values)))


def log_prob(value: object) -> float:
    """A log-probability, if it is one.

    Raises:
        ReplyError: it is no number, not finite, or above 0.
    """
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ReplyError(f"a log-probability is {_kind(value)}")
    if not -math.inf < value <= ROUNDING or abs(value) > 1e30:
        raise ReplyError(f"a log-probability is {value if isinstance(value, float) else 'a number out of range'}")
    return min(0.0, float(value))


def _choice(data: Json) -> Json:
    choices = data.get("choices")
    if choices is None and data.get("error"):
        error = data["error"]
        said = error.get("message") if isinstance(error, dict) else error
        raise ReplyError(f"it answered by an error: {one_line(said)}")
    if not isinstance(choices, list) or not choices:
        raise ReplyError("the answer has no choices")
    if len(choices) > 1:
        raise ReplyError(f"the answer has {len(choices)} choices where one was asked for")
    if not isinstance(choices[0], dict):
        raise ReplyError(f"its choice is {_kind(choices[0])}")
    return choices[0]


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ReplyError(f"its text is {_kind(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ReplyError("its text holds half a character (a lone surrogate)") from None
    return hide_keys(value)


def _without_content(message: Json, finish: str | None) -> str | None:
    """The text of a message without content: a refusal's words; "" where something else explains it; else None."""
    if isinstance(message.get("refusal"), str):
        return str(message["refusal"])
    explained = finish in ("length", "content_filter", "tool_calls") or message.get("tool_calls")
    return "" if explained or message.get("reasoning_content") or message.get("reasoning") else None


def _count(given: Json, name: str) -> int | None:
    value = given.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MOST_TOKENS:
        raise ReplyError(f"its usage says {name} is {_kind(value)}")
    return value


def _of_token(entry: object, token: int) -> object:
    if entry is None:
        return None
    if not isinstance(entry, dict):
        raise ReplyError(f"an entry of its prompt_logprobs is {_kind(entry)}")
    if str(token) not in entry:
        raise NoLogProbsError("the server's log-probabilities are of other tokens: another tokenizer?")
    found = entry[str(token)]
    if not isinstance(found, dict):
        raise ReplyError(f"an entry of its prompt_logprobs holds {_kind(found)}")
    return found.get("logprob")


def _kind(value: object) -> str:
    """A wrong value in a message."""
    names = {dict: "an object", list: "a list", str: "text", bool: "a truth value", type(None): "null"}
    return names.get(type(value), f"the number {str(value)[:30]}")


EXTENSIONS: dict[str, Any] = {"repetition_penalty": 1.0, "top_k": -1, "min_p": 0.0}
"""Sampling that only some servers know, switched off."""
NEUTRAL: dict[str, Any] = {"presence_penalty": 0.0, "frequency_penalty": 0.0, **EXTENSIONS}
"""All sampling that a server could add, switched off."""
OPTIONAL = (*NEUTRAL, "temperature", "top_p", "seed", "stop")
"""Fields that a request can do without (a stop string is cut off here)."""


@dataclass(frozen=True)
class Dialect:
    """What is known of one server.

    Attributes:
        without: fields that are left out.
        taken: optional fields that it has taken; a later refusal is not about them.
        limit: the name under which chats take the limit on new tokens.
    """

    without: frozenset[str] = frozenset()
    taken: frozenset[str] = frozenset()
    limit: str = "max_tokens"

    def said(self, path: str, body: Json) -> Json:
        """The fields of a request as this server takes them."""
        kept = {name: value for name, value in body.items() if name not in self.without}
        if path == "/chat/completions" and "max_tokens" in kept and self.limit not in kept:
            kept[self.limit] = kept.pop("max_tokens")
        return kept

    def after(self, refusal: str, sent: Iterable[str]) -> Dialect | None:
        """What to try after a refusal; None where it is about something else.

        Args:
            refusal: the server's words.
            sent: the names of the fields that may be at fault.
        """
        named = set(re.findall(r"\w+", refusal))
        if {"max_tokens", "max_completion_tokens"} <= named and self.limit in sent and self.limit == "max_tokens":
            return replace(self, limit="max_completion_tokens")
        open_ = [name for name in OPTIONAL if name in sent and name not in self.taken]
        refused = [name for name in open_ if name in named] or [name for name in open_ if name in EXTENSIONS]
        return replace(self, without=self.without | set(refused)) if refused else None

    def learned(self, other: Dialect, sent: Iterable[str]) -> Dialect:
        """Both together, after `other` was understood with these fields."""
        limit = self.limit if other.limit == "max_tokens" else other.limit
        return Dialect(self.without | other.without, self.taken | (set(OPTIONAL) & set(sent)), limit)

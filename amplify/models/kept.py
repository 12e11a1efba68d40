"""What a model had answered of a batch before it failed, kept in a file, so that nothing is asked twice.

A batch is redone whole. Where the model is a server, what it answered before it failed stands in a journal and is given
again instead of being asked again: single answers of the call that failed, and all of the calls before it. Models of
this process answer a batch whole or not at all, and are not wrapped.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypedDict

from amplify import codec
from amplify.errors import DataError, ModelError, RunError
from amplify.files import Journal, read_lines, shown
from amplify.models.base import LanguageModel, LocalModel, ScoringModel, Usage, several
from amplify.types import Completion, Prompt, Sampling, TokenLogProbs

if TYPE_CHECKING:
    from amplify.steering import Steering


class _Row(TypedDict):
    batch: str
    key: str


class _Line(_Row, total=False):
    completion: Completion
    logprobs: TokenLogProbs


class KeptGenerator:
    """A model with a memory for the batch at hand; made by `keeping`.

    Attributes:
        inner: the model itself.
        path: the journal, which is there once something failed.
        begun: replies that stand in it of the batch that failed.
    """

    begun = 0

    def __init__(self, inner: Any, path: Path, of: str) -> None:
        self.inner, self.path, self._header = inner, path, {"of": of}
        self.id: str = inner.id
        self.usage: Usage = inner.usage  # what is given again counts as if it were asked
        self.max_context: int | None = inner.max_context
        self._rows: dict[str, list[tuple[str, Any]]] = defaultdict(list)
        rows = read_lines(path, "delete the file")
        if rows[:1] != [self._header]:
            rows = []  # of other work, which is written over once something is to be kept
        for number, row in enumerate(rows[1:], start=2):
            try:
                line: Any = codec.decode(_Line, row)
                self._rows[line["batch"]].append((line["key"], line.get("completion") or line["logprobs"]))
            except (DataError, KeyError) as error:
                raise RunError(f"line {number} of {shown(path)} was changed ({error}): delete the file") from error
        self._known: dict[str, deque[Any]] = defaultdict(deque)
        self._new: list[tuple[str, Any]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    @contextmanager
    def batch(self, name: str) -> Iterator[None]:
        """One batch: what was answered of it before is given again, what is answered now is kept if it fails."""
        self._known, self._new = defaultdict(deque), []
        for key, value in self._rows[name]:
            self._known[key].append(value)
        try:
            yield
        except (ModelError, KeyboardInterrupt):
            if self._new:
                rows = [
                    {"batch": name, "key": key, "completion" if isinstance(v, Completion) else "logprobs": v}
                    for key, v in self._new
                ]
                if not self._rows:
                    self.path.unlink(missing_ok=True)
                Journal(self.path, self._header, locked=False).append(codec.encode(rows))
                self._rows[name] += self._new
            self.begun = len(self._rows[name])
            raise
        finally:
            self._known, self._new = defaultdict(deque), []

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, *, steering: Steering | None = None
    ) -> list[Completion]:
        """See `LanguageModel.generate`."""
        if sampling.n > 1:
            return several(self, prompts, sampling, steering)
        keys = [request_key(prompt, sampling, steering) for prompt in prompts]
        return self._ask(
            keys,
            lambda rest: self.inner.generate([prompts[i] for i in rest], sampling, steering=steering),
            lambda i, done: (done.prompt_tokens, done.completion_tokens),
        )

    def _ask(
        self,
        keys: Sequence[str],
        ask: Callable[[list[int]], list[Any]],
        tokens: Callable[[int, Any], tuple[int, int]],
    ) -> list[Any]:
        found = {i: self._known[key].popleft() for i, key in enumerate(keys) if self._known.get(key)}
        for i, value in found.items():
            self.usage.add_call(*tokens(i, value))
        rest = [i for i in range(len(keys)) if i not in found]
        try:
            asked = dict(zip(rest, ask(rest), strict=True)) if rest or not keys else {}
        except ModelError as error:
            done = {rest[place]: value for place, value in error.completed.items()}
            self._new += [(keys[i], value) for i, value in done.items()]
            error.completed = {**found, **done}
            raise
        self._new += [(keys[i], value) for i, value in asked.items()]
        return [found[i] if i in found else asked[i] for i in range(len(keys))]

    def count_tokens(self, prompts: Sequence[Prompt]) -> list[int]:
        """See `LanguageModel`."""
        return self.inner.count_tokens(prompts)

    def describe(self) -> dict[str, Any]:
        """See `LanguageModel`."""
        return self.inner.describe()

    def close(self) -> None:
        """Nothing: the model is its opener's to close."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        return None


class KeptScorer(KeptGenerator):
    """The same for a model that scores."""

    def score(
        self, prompts: Sequence[Prompt], continuations: Sequence[str], *, steering: Steering | None = None
    ) -> list[TokenLogProbs]:
        """See `ScoringModel.score`."""
        pairs = list(zip(prompts, continuations, strict=True)) if len(prompts) == len(continuations) else []
        keys = [request_key(prompt, text, steering) for prompt, text in pairs]
        return self._ask(
            keys,
            lambda rest: self.inner.score(
                [prompts[i] for i in rest] if pairs else prompts,
                [continuations[i] for i in rest] if pairs else continuations,
                steering=steering,
            ),
            lambda i, done: (self.inner.count_tokens([prompts[i]])[0], len(done.token_ids)),
        )


def keeping(model: LanguageModel, path: Path, of: str) -> LanguageModel:
    """The model with a memory in a file, or as it is where it runs in this process.

    Args:
        model: a model.
        path: of the file; what stands in it of other work is not used.
        of: the work's name: the same where answers may be used again, so it tells configurations apart.

    Raises:
        RunError: the file was changed.
    """
    if isinstance(model, LocalModel):
        return model
    return KeptScorer(model, path, of) if isinstance(model, ScoringModel) else KeptGenerator(model, path, of)


@contextmanager
def batch(model: LanguageModel, name: str) -> Iterator[None]:
    """One batch of a model that `keeping` gave; see `KeptGenerator.batch`."""
    if isinstance(model, KeptGenerator):
        with model.batch(name):
            yield
    else:
        yield


def origin(model: LanguageModel) -> LanguageModel:
    """The model itself, for what is remembered of a model while it is open."""
    return model.inner if isinstance(model, KeptGenerator) else model


def request_key(prompt: Prompt, how: Any, steering: Steering | None) -> str:
    """What tells a request from others: its prompt, how it is answered (sampling, or the text scored), and steering."""
    text = json.dumps(codec.encode([prompt, how, steering]), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()

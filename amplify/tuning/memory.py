"""A model that is asked nothing twice: what it said stands in a journal with what it cost.

A search asks the same prompts for many candidates: the same shots under five calibrations, alone and in a pool. Here
each is asked once. A search that was killed runs again from its beginning: what stands in the journal is said again and
charged at what it cost then, so that every decision falls as it did before, up to the place where new work begins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from amplify import codec
from amplify.errors import DataError, ModelError, RunError
from amplify.files import Journal, shown
from amplify.models.base import LanguageModel, LocalModel, ScoringModel, Usage
from amplify.models.kept import request_key
from amplify.tuning.budget import Ledger, Spent
from amplify.types import Completion, Prompt, Sampling, TokenLogProbs

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from amplify.models.tree.tree import TokenTree
    from amplify.steering import Steering


class _Said(TypedDict, total=False):
    key: str
    completion: Completion
    logprobs: TokenLogProbs
    stage: str
    spent: Spent


class RememberedGenerator:
    """A model with a memory and a budget; made by `remembered`.

    Attributes:
        inner: the model itself.
        ledger: what it has cost.
        asked: tokens of everything that was asked, also of what was remembered: the cost without a memory and without
            shared beginnings.
    """

    asked = 0.0

    def __init__(self, inner: Any, ledger: Ledger, journal: Journal) -> None:
        self.inner, self.ledger, self._journal = inner, ledger, journal
        self.id: str = inner.id
        self.usage: Usage = inner.usage
        self.max_context: int | None = inner.max_context
        self._said: dict[str, tuple[Any, Spent]] = {}
        self._stages: dict[str, float] = {}
        self._charged: set[str] = set()
        for number, row in enumerate(journal.rows, start=2):
            try:
                line: Any = codec.decode(_Said, row)
                if "stage" in line:
                    self._stages[line["stage"]] = line["spent"].seconds
                else:
                    self._said[line["key"]] = (line.get("completion") or line["logprobs"], line["spent"])
            except (DataError, KeyError) as error:
                raise RunError(
                    f"line {number} of {shown(journal.path)} was changed ({error}): {journal.again}"
                ) from error

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Work that is told by a name, for its time besides the model's; see `Ledger.stage`."""

        def done(seconds: float) -> None:
            self._journal.append([codec.encode({"stage": name, "spent": Spent(seconds=seconds)})])
            self._stages[name] = seconds

        return self.ledger.stage(self._stages.get(name), done)

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, *, steering: Steering | None = None
    ) -> list[Completion]:
        """See `LanguageModel.generate`."""
        if sampling.n > 1:  # several answers to a prompt are several requests, each with random numbers of its own
            seeds = [(sampling.seed or 0) + i for i in range(sampling.n)]
            drawn = [self.generate(prompts, replace(sampling, n=1, seed=s), steering=steering) for s in seeds]
            return [one for answers in zip(*drawn, strict=True) for one in answers]
        keys = [request_key(prompt, sampling, steering) for prompt in prompts]
        sizes = self.inner.count_tokens(prompts)
        return self._ask(
            keys,
            lambda rest: self.inner.generate([prompts[i] for i in rest], sampling, steering=steering),
            lambda rest: sum(sizes[i] + sampling.max_tokens for i in rest),
            lambda rest, values: [float(v.prompt_tokens + v.completion_tokens) for v in values],
        )

    def _ask(
        self,
        keys: Sequence[str],
        ask: Callable[[list[int]], list[Any]],
        most: Callable[[list[int]], float],
        tokens: Callable[[list[int], list[Any]], list[float]],
    ) -> list[Any]:
        places: dict[str, int] = {}
        for i, key in enumerate(keys):
            if key not in self._said:
                places.setdefault(key, i)
        rest = list(places.values())
        for key in dict.fromkeys(keys):
            if key in self._said and key not in self._charged:  # by an earlier process: at what it cost then
                self._charged.add(key)
                self.ledger.charge(self._said[key][1])
        if rest:
            bound = most(rest)
            self.ledger.afford(Spent(self.ledger.expected_seconds(bound), bound, len(rest)))
            before, start = self.inner.usage.snapshot(), self.ledger.clock()
            failure: ModelError | None = None
            try:
                values = dict(zip(rest, ask(rest), strict=True))
            except ModelError as error:
                failure, values = error, {rest[place]: value for place, value in error.completed.items()}
            self._keep(keys, values, tokens, self.ledger.clock() - start, self.inner.usage.since(before))
            if failure is not None:
                raise failure
        self.asked += sum(self._said[key][1].tokens for key in keys)
        return [self._said[key][0] for key in keys]

    def _keep(
        self,
        keys: Sequence[str],
        values: dict[int, Any],
        tokens: Callable[[list[int], list[Any]], list[float]],
        seconds: float,
        used: Usage,
    ) -> None:
        """Put new replies in the journal, the time and the forwarded tokens shared among them by their tokens."""
        if not values:
            return
        sizes = tokens(list(values), list(values.values()))
        whole = sum(sizes) or 1.0
        rows = []
        for (i, value), size in zip(values.items(), sizes, strict=True):
            cost = Spent(seconds * size / whole, size, 1, used.forwarded_tokens * size / whole)
            self._said[keys[i]] = (value, cost)
            self._charged.add(keys[i])
            self.ledger.charge(cost)
            rows.append(
                {"key": keys[i], "completion" if isinstance(value, Completion) else "logprobs": value, "spent": cost}
            )
        self._journal.append(codec.encode(rows))

    def count_tokens(self, prompts: Sequence[Prompt]) -> list[int]:
        """See `LanguageModel`."""
        return self.inner.count_tokens(prompts)

    def describe(self) -> dict[str, Any]:
        """See `LanguageModel`."""
        return self.inner.describe()

    def close(self) -> None:
        """Nothing: the model is its opener's to close."""

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exc: object) -> None:
        return None


class RememberedScorer(RememberedGenerator):
    """The same for a model that scores."""

    def score(
        self, prompts: Sequence[Prompt], continuations: Sequence[str], *, steering: Steering | None = None
    ) -> list[TokenLogProbs]:
        """See `ScoringModel.score`."""
        keys = [request_key(p, text, steering) for p, text in zip(prompts, continuations, strict=True)]
        counted: dict[Prompt, int] = {}

        def size(rest: Sequence[int]) -> list[int]:
            """Tokens of each prompt; of one that came before in this call, none."""
            new = [p for p in dict.fromkeys(prompts[i] for i in rest) if p not in counted]
            counted.update(zip(new, self.inner.count_tokens(new), strict=True))
            first = {prompts[i]: i for i in reversed(rest)}
            return [counted[prompts[i]] if first[prompts[i]] == i else 0 for i in rest]

        return self._ask(
            keys,
            lambda rest: self.inner.score(
                [prompts[i] for i in rest], [continuations[i] for i in rest], steering=steering
            ),
            lambda rest: sum(size(rest)) + sum(len(continuations[i]) + 1 for i in rest),
            lambda rest, values: [float(n + len(v.logprobs)) for n, v in zip(size(rest), values, strict=True)],
        )


class RememberedLocal(RememberedScorer):
    """The same for a model in this process. What looks inside it is not remembered; its time counts as its stage's."""

    @property
    def module(self) -> PreTrainedModel:
        """See `LocalModel`."""
        module: PreTrainedModel = self.inner.module
        return module

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """See `LocalModel`."""
        tokenizer: PreTrainedTokenizerBase = self.inner.tokenizer
        return tokenizer

    def score_tree(
        self, tree: TokenTree, wanted: Sequence[int], *, steering: Steering | None = None
    ) -> list[TokenLogProbs]:
        """See `LocalModel`."""
        found: list[TokenLogProbs] = self.inner.score_tree(tree, wanted, steering=steering)
        return found

    def sharing(self) -> AbstractContextManager[None]:
        """See `LocalModel`."""
        shared: AbstractContextManager[None] = self.inner.sharing()
        return shared


def remembered(model: LanguageModel, ledger: Ledger, path: Path, header: dict[str, Any]) -> RememberedGenerator:
    """The model with a memory in a file.

    Args:
        model: any.
        ledger: pays for what is new.
        path: of the journal.
        header: what its rows depend on.

    Raises:
        RunError: the file belongs to another search; says what differs.
    """
    again = "choose another --out, or delete the folder to start anew"
    journal = Journal(path, header, what="of this search", again=again, locked=False)
    if isinstance(model, LocalModel):
        return RememberedLocal(model, ledger, journal)
    return (RememberedScorer if isinstance(model, ScoringModel) else RememberedGenerator)(model, ledger, journal)

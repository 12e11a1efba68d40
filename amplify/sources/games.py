"""From sources, question and model to a value function: what an answer's probability, or the answer itself, becomes.

Both games are asked about *ordered* coalitions, int[m, n]: -1 where a source is absent, else its place. What was asked
once is remembered, and by a model that has a cache (`amplify.models.cache`) on disk too, so that a stopped run goes on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from amplify.errors import InputError, ModelError
from amplify.files import shown
from amplify.metrics import normalize
from amplify.models.base import LanguageModel, LocalModel
from amplify.models.cache import ROUNDING
from amplify.models.cached import tokenizer_of
from amplify.models.chat import encode_with_targets, render
from amplify.progress import progress
from amplify.shapley.game import Coalitions, Floats
from amplify.sources import engines
from amplify.sources.context import Context, Ordered, Part, Selection, in_place, select
from amplify.sources.engines import Engine
from amplify.text import sentences
from amplify.types import Sampling, TokenLogProbs

if TYPE_CHECKING:
    from amplify.models.tree.speculative import DraftCache

Progress = bool | Callable[[int], None]
PART = 256  # selections asked for at a time


class Memory:
    """What is known of selections, and which of them a call needed.

    Not the memory of a game (`amplify.shapley.game.CachedValue`), which keeps numbers by its own rows and holds them
    against a budget: the games of several levels and orders ask for the same texts, and share what is known of these.

    Args:
        progress: say how many selections are asked for; or a function that is given how many were answered so far.
        kept: the file where the model's replies are kept as well; None where they are not.
    """

    def __init__(self, progress: Progress = False, kept: Path | None = None) -> None:
        self._progress, self._kept = progress, kept
        self._answered = 0
        self._known: dict[Selection, Any] = {}
        self.used: dict[Selection, None] = {}  # in order

    def __contains__(self, selection: Selection) -> bool:
        return selection in self._known

    def __getitem__(self, selection: Selection) -> Any:
        return self._known[selection]

    def __len__(self) -> int:
        return len(self._known)

    def results(self) -> list[Any]:
        """What is known of the selections that this run needed."""
        return [self._known[s] for s in self.used]

    def fill(
        self, selections: Sequence[Selection], ask: Callable[[Sequence[Selection]], Iterator[tuple[int, Any]]]
    ) -> None:
        """Ask for those that are not known.

        Raises:
            ModelError: it failed; says where the values so far are.
        """
        self.used |= dict.fromkeys(selections)
        new = sorted({s for s in selections if s not in self._known})
        if not new:
            return
        with progress(total=len(new), unit="prompt", shown=self._progress is True, leave=False) as bar:
            for at in range(0, len(new), PART):
                part = new[at : at + PART]
                try:
                    for i, result in ask(part):
                        self._known[part[i]] = result
                        bar.update(1)
                        self._answered += 1
                        if callable(self._progress):
                            self._progress(self._answered)
                except ModelError as failure:
                    where = f"{shown(self._kept)} keeps them" if self._kept else "give cache=FOLDER to keep them"
                    raise ModelError(
                        f"{failure}. Values of {len(self)} prompts were known: {where}, and the same call goes on",
                        failure.completed,
                    ) from failure


@dataclass
class LogProbGame:
    """Log-probability of one answer.

    Attributes:
        context, model, engine: what is asked, whom, and how.
        answer: the text whose log-probability is the value (natural log, summed over its tokens), as it goes on behind
            the prompt.
        memory: what is known.
        beginnings: keys and values that rounds of questions share, where the model is in this process.
        parts: characters [start, end) of the answer's sentences.
        columns: names of the value columns: "answer", and one for each sentence where there are several.
    """

    context: Context
    model: LanguageModel
    answer: str
    engine: Engine = "trie"
    memory: Memory = field(default_factory=Memory)

    def __post_init__(self) -> None:
        if not self.answer.strip():
            raise InputError("the answer is empty, so it has no probability to explain: give answer=, or ask otherwise")
        self.beginnings = engines.prefix_cache(self.engine, self.model)
        self.parts = sentences(self.answer)
        self.columns: tuple[str, ...] = ("answer",)
        if len(self.parts) > 1:
            self.columns += tuple(self.answer[a:b].strip() for a, b in self.parts)
        self._owners: dict[tuple[int, ...], list[int]] = {}  # an answer's tokens -> the sentence that each belongs to

    @property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """Characters [start, end) of each sentence in the answer without blanks at its ends; () for a single one."""
        lead = len(self.answer) - len(self.answer.lstrip())
        found = []
        for a, b in self.parts if len(self.parts) > 1 else ():
            text = self.answer[a:b]
            start = a + len(text) - len(text.lstrip())
            found.append((start - lead, a + len(text.rstrip()) - lead))
        return tuple(found)

    def __call__(self, rows: Ordered, sources: Sequence[Part] | None = None) -> Floats:
        """Values of ordered coalitions, [m, columns].

        Args:
            rows: int[m, n].
            sources: what the columns of `rows` are; the documents unless given.
        """
        chosen = [select(row, sources or self.context.sources) for row in rows.tolist()]
        return self.of(chosen)

    def of(self, selections: Sequence[Selection]) -> Floats:
        """Values of selections, [m, columns]."""

        def ask(new: Sequence[Selection]) -> Iterator[tuple[int, list[float]]]:
            for i, found in engines.score(self.engine, self.context, self.model, new, self.answer, self.beginnings):
                self._check(found, new[i])
                yield i, self._columns(found, new[i])

        self.memory.fill(selections, ask)
        return np.array([self.memory[s] for s in selections], dtype=np.float64)

    def _check(self, found: TokenLogProbs, selection: Selection) -> None:
        """What is no log-probability never becomes a value, nor a line of the cache."""
        bad = [x for x in found.logprobs if not -np.inf < x <= ROUNDING]
        if bad:
            documents = ", ".join(self.context.name(document) for document, _ in selection) or "no document"
            raise ModelError(
                f"{self.model.id} gave the answer a token of log-probability {bad[0]} with {documents} "
                "in the prompt, which no model can mean: look at the server's log or the model's weights"
            )

    def _columns(self, found: TokenLogProbs, selection: Selection) -> list[float]:
        if len(self.parts) == 1:
            return [found.total]
        if found.token_ids not in self._owners:
            ends = self._ends(found, selection)
            own = np.searchsorted([b for _, b in self.parts], ends)  # the sentence that a token's last character is in
            self._owners[found.token_ids] = np.clip(own, 0, len(self.parts) - 1).tolist()
        owners = self._owners[found.token_ids]
        return [found.total, *np.bincount(owners, found.logprobs, len(self.parts)).tolist()]

    def _ends(self, found: TokenLogProbs, selection: Selection) -> list[int]:
        """Where in the answer each token ends: a character of several bytes may be several tokens."""
        tokenizer = tokenizer_of(self.model)
        if tokenizer is not None:
            rendered = render(self.context.prompt(selection), tokenizer)
            encoded, start = encode_with_targets(tokenizer, [rendered], [self.answer])[0]
            ends = [end - len(rendered.answering.text) for _, end in encoded.offsets[start:]]
            if len(ends) == len(found.logprobs):
                return ends
        return token_ends(found.tokens, self.answer)


def token_ends(tokens: Sequence[str], text: str) -> list[int]:
    """Where in a text each of its tokens ends, from what the tokens say.

    A token that is no whole character, as byte-level tokenizers have them, says a replacement character, or something
    that is not in the text. Where such a run of tokens begins and ends is known from those around it; within it the
    characters are shared out evenly.

    Args:
        tokens: of the text, perhaps with some of what stands before it.
        text: what they make.

    Returns:
        A place of `text` for each token, from 0 up.
    """
    ends = [0] * len(tokens)
    at, run = 0, 0  # where the last whole token ended, and how many unknown ones there have been since
    for i, token in enumerate([*tokens, ""]):
        last = i == len(tokens)
        place = len(text) if last else -1 if not token or "\ufffd" in token else text.find(token, at)
        if not last and i == 0 and place != 0:  # the first one may begin before the text
            held = next((k for k in range(len(token)) if "\ufffd" not in token and text.startswith(token[k:])), None)
            ends[0] = at = 0 if held is None else len(token) - held
            run = int(held is None)
            continue
        if place < 0 or (run == 0 and not last and place != at):
            run += 1
            continue
        for k in range(run):
            ends[i - run + k] = at + round((place - at) * (k + 1) / run)
        if not last:
            ends[i] = at = place + len(token)
        run = 0
    return ends


@dataclass
class VoteGame:
    """Which answer is decoded: v_c(S) = 1 where the greedy answer with S is c (TextGenSHAP's voting game).

    Answers that are equal after `metrics.normalize` count as one.

    Attributes:
        context, model, engine: what is asked, whom, and how.
        sampling: how to decode; greedy.
        answers: normalised answer -> as it was first written, in order of appearance; the full context's first.
        memory: what is known.
        known: answers as tokens, so that a model in this process decodes none twice; made when first needed.
    """

    context: Context
    model: LanguageModel
    sampling: Sampling = field(default_factory=lambda: Sampling(max_tokens=16))
    engine: Engine = "trie"
    memory: Memory = field(default_factory=Memory)
    answers: dict[str, str] = field(default_factory=dict)
    known: DraftCache | None = None

    def ask(self, selections: Sequence[Selection]) -> list[str]:
        """The normalised answer to each selection."""
        if self.known is None and isinstance(self.model, LocalModel):
            from amplify.models.tree.speculative import DraftCache

            self.known = DraftCache()

        def decode(new: Sequence[Selection]) -> Iterator[tuple[int, str]]:
            found = engines.generate(self.engine, self.context, self.model, new, self.sampling, self.known)
            for i, done in found:
                yield i, done.text.strip()

        self.memory.fill(selections, decode)
        said = []
        for s in selections:
            said.append(normalize(self.memory[s]))
            self.answers.setdefault(said[-1], self.memory[s])
        return said

    def frequent(self, most: int) -> list[str]:
        """The (normalised) answers that most selections gave, in falling order; ties in order of appearance."""
        counts = Counter(normalize(text) for text in self.memory.results())
        return sorted(self.answers, key=lambda c: -counts[c])[:most]

    def votes(self, selections: Sequence[Selection], candidates: Sequence[str]) -> Floats:
        """1.0 where a selection's answer is a candidate (normalised), [m, candidates]."""
        said = self.ask(selections)
        return np.array([[float(s == c) for c in candidates] for s in said])

    def __call__(self, rows: Ordered, candidates: Sequence[str], sources: Sequence[Part] | None = None) -> Floats:
        """Votes of ordered coalitions, int[m, n] -> [m, candidates]."""
        return self.votes([select(row, sources or self.context.sources) for row in rows.tolist()], candidates)


def fixed_order(game: LogProbGame) -> Callable[[Coalitions], Floats]:
    """A log-probability game over documents in their own order as a `Value`, for `estimate`."""
    return lambda coalitions: game(in_place(coalitions))

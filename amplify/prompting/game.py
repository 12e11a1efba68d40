"""The game of a prompt's parts: mean log-odds of the gold label over items, of any programs, in few large calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from amplify.calibration import from_answers
from amplify.methods.deciding import log_odds
from amplify.methods.program import ShotProgram, answer_prompts, check_shots_fit
from amplify.models.base import ScoringModel, sharing
from amplify.prompting.parts import Part, with_parts
from amplify.shapley.game import Coalitions, Floats
from amplify.types import Answer, Example, Prompt

CALL = 256  # prompts put to the model in one call
WAYS = 2  # of leaving a part out: without it, and with neutral words in its place


@dataclass(frozen=True)
class Worth:
    """What a program does on items.

    Attributes:
        log_odds: log p / (1 - p) of each item's gold label, p its share of the labels' probability, [items].
        right: whether the gold label is the likeliest, [items].
        tokens: of a prompt, on average.
    """

    log_odds: Floats
    right: npt.NDArray[np.bool_]
    tokens: float


class PromptGame:
    """Programs on items, by label scores.

    Attributes:
        forwarded, asked: tokens that went through the model, and those of all prompts.
    """

    def __init__(self, items: Sequence[Example], model: ScoringModel, batch: bool) -> None:
        """A game on labelled items.

        Args:
            items: each with at least two labels to choose from.
            model: who scores.
            batch: take out what a program says to these items on average (`calibration`, way "batch").
        """
        self.items, self.model, self.batch = items, model, batch
        self.forwarded, self.asked = 0, 0

    def worth(self, programs: Sequence[ShotProgram]) -> list[Worth]:
        """What each program does on the items; what their prompts begin with alike is forwarded once."""
        items = self.items
        prompts = [prompt for program in programs for prompt in _asked(program, items)]
        form = replace(programs[0].form, mode="score", reasons=False)
        answers: dict[int, Answer] = {}
        longest = max(range(len(programs)), key=lambda i: len(programs[i].shots))
        check_shots_fit(
            self.model, prompts, form, [len(p.shots) for p in programs for _ in items],
            lambda i, n: programs[i // len(items)].form.prompt(items[i % len(items)], programs[longest].shots[:n]),
        )  # fmt: skip
        order = sorted(range(len(prompts)), key=lambda i: _written(prompts[i]))
        before = self.model.usage.mine
        with sharing(self.model):
            for at in range(0, len(order), CALL):
                batch = order[at : at + CALL]
                choices = [(form.labels_of(items[i % len(items)]), items[i % len(items)].options) for i in batch]
                found = answer_prompts([prompts[i] for i in batch], choices, form, self.model)
                answers |= dict(zip(batch, found, strict=True))
        used = self.model.usage.mine.since(before)
        self.forwarded += used.forwarded_tokens
        self.asked += used.prompt_tokens + used.completion_tokens
        n = len(items)
        return [self._worth([answers[k * n + i] for i in range(n)]) for k in range(len(programs))]

    def _worth(self, answers: Sequence[Answer]) -> Worth:
        scores = [answer.logprobs or answer.scores for answer in answers]
        if self.batch:
            calibration = from_answers("batch", scores)
            scores = [calibration(each) for each in scores]
        odds, right = [], []
        for item, own in zip(self.items, scores, strict=True):
            gold = list(own).index(str(item.label))
            log_p = np.array(list(own.values()))
            odds.append(log_odds(log_p, gold))
            right.append(int(log_p.argmax()) == gold)
        tokens = float(np.mean([a.prompt_tokens / max(1, len(a.scores)) for a in answers]))
        return Worth(np.array(odds), np.array(right), tokens)


class PartsGame(PromptGame):
    """The same for coalitions of a program's parts: values [coalitions, ways x items], ways as in `WAYS`."""

    def __init__(self, program: ShotProgram, parts: Sequence[Part], neutral: dict[str, str], rest: PromptGame) -> None:
        super().__init__(rest.items, rest.model, rest.batch)
        self.program, self.parts, self.neutral = program, parts, neutral

    def __call__(self, coalitions: Coalitions) -> Floats:
        """Log-odds of every item, for each coalition without the absent parts, then with neutral words for them."""
        programs = [
            with_parts(self.program, self.parts, row.tolist(), fill)
            for row in coalitions
            for fill in (None, self.neutral)
        ]
        found = self.worth(programs)
        return np.stack([worth.log_odds for worth in found]).reshape(len(coalitions), WAYS * len(self.items))


def _asked(program: ShotProgram, items: Sequence[Example]) -> list[Prompt]:
    """The program's prompts with the answer begun, so that the label comes next, whatever is written before it.

    The shots' turns, alike in all of them, are made once.
    """
    first, form = program.prompt(items[0]), program.form
    marker = form.marker
    if first.text is not None:
        begun = f" {marker}" if marker else ""
        return [replace(prompt, prefix=begun, emphasis=()) for prompt in map(program.prompt, items)]
    shown = 2 * len(program.shots)
    turns = first.messages[len(first.messages) - 1 - shown : -1]
    alone = [form.prompt(example).messages for example in items]
    return [Prompt(messages=(*each[:-1], *turns, each[-1]), prefix=marker) for each in alone]


def _written(prompt: Prompt) -> tuple[str, ...]:
    """What a prompt begins with, so that equal beginnings lie side by side."""
    return (prompt.text,) if prompt.text is not None else tuple(message.content for message in prompt.messages)

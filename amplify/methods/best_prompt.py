"""What steering must beat: the same emphasis put into words, the best of several wordings, tuned at the same cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from amplify import templates
from amplify.errors import InputError
from amplify.methods.base import PromptProgram, Role
from amplify.methods.deciding import log_odds
from amplify.methods.pasta import find_profile
from amplify.methods.program import answer_made, as_example
from amplify.methods.prompt import Form, PromptMethod, need_emphasis
from amplify.models.base import LanguageModel
from amplify.registry import register
from amplify.streams import stream
from amplify.text import split_reasoning
from amplify.types import Answer, Example, Message, Prompt, Sampling

if TYPE_CHECKING:
    from amplify.tasks import Task

FEWEST = 4  # items that wordings are judged on
RUNS = 784  # prompts of a search for heads, where none was searched
_TOKENS = 160  # room for an instruction in other words


def _capitals(text: str, a: int, b: int) -> str:
    return f"{text[:a]}{text[a:b].upper()}{text[b:]}"


def _marks(text: str, a: int, b: int) -> str:
    return f"{text[:a]}**{text[a:b]}**{text[b:]}"


INSIDE: Mapping[str, Callable[[str, int, int], str]] = {"capitals": _capitals, "marked": _marks}
BEHIND: Mapping[str, str] = {"repeated": "{}", "above_all": "Above all, go by this: {}", "moved_last": "{}"}
WORDINGS = ("as_it_is", *INSIDE, *BEHIND)


def worded(prompt: Prompt, wording: str) -> Prompt:
    """A prompt whose emphasis is put into words; nothing is left for steering.

    Args:
        prompt: with its emphasis.
        wording: of `WORDINGS`: in "capitals", "marked", "repeated" at the end of its message, there again behind
            "above_all", "moved_last" (said at the end only), or "as_it_is".

    Example:
        >>> from amplify.types import Message, Prompt, Span
        >>> said = Message("user", "Answer in JSON. Who is it?")
        >>> asked = Prompt(messages=(said,), emphasis=(Span(0, 15, message=0),))
        >>> worded(asked, "capitals").messages[0].content
        'ANSWER IN JSON. Who is it?'
        >>> worded(asked, "moved_last").messages[0].content.splitlines()
        ['Who is it?', '', 'Answer in JSON.']
    """
    turns = list(prompt.messages)
    for number in {span.message for span in prompt.emphasis}:
        text = str(prompt.text) if number is None else turns[number].content
        spans = sorted((s.start, s.end) for s in prompt.emphasis if s.message == number)
        said = " ".join(text[a:b].strip() for a, b in spans)
        for a, b in reversed(spans):
            if wording in INSIDE:
                text = INSIDE[wording](text, a, b)
            elif wording == "moved_last":
                text = f"{text[:a].rstrip()}\n{text[b:].lstrip()}"
        if wording in BEHIND:
            text = f"{text.strip()}\n\n{BEHIND[wording].format(said)}"
        if number is None:
            prompt = replace(prompt, text=text, emphasis=())
        else:
            turns[number] = Message(turns[number].role, text)
    return replace(prompt, messages=tuple(turns), emphasis=())


@register("method", "best_prompt")
@dataclass(frozen=True)
class BestPrompt(PromptMethod):
    """The best wording of what steering would emphasise, found at what its heads cost (AxBench, arXiv 2501.17148).

    The emphasis is written in capitals, marked, repeated, moved to the end and so on, and, where it is the
    instruction, said in other words by the model; the wording with the highest mean on held-out items is taken. Labels
    are judged by their log-odds, texts by the metric's harmonic score where it has one, so that what obeys and is
    broken, or is fluent and disobeys, loses.

    Attributes:
        rewordings: how many other wordings of the instruction the model writes.
        budget: prompts that choosing may take; 0 for as many as the search for this model's and task's heads took.

    Example:
        >>> amplify.methods.BestPrompt().label
        'best_prompt'
    """

    role: ClassVar[Role] = "control"

    rewordings: int = 4
    budget: int = 0

    def fit(self, task: Task, model: LanguageModel, seed: int) -> WordedProgram:
        """Try every wording on the same held-out items.

        Raises:
            InputError: the task emphasises nothing, or the budget is too small for `FEWEST` items.
        """
        need_emphasis(task)
        notes, form = self.notes_on(task, model), self.form(task)
        wordings = WORDINGS if form.layout == "chat" else ("as_it_is", *INSIDE)
        tried = [WordedProgram(form, wording) for wording in wordings]
        if task.emphasis == "instruction":
            texts = _reworded(task.instruction, model, self.rewordings, seed)
            tried += [WordedProgram(replace(form, instruction=text), "as_it_is") for text in texts]
        pool = task.validation or task.train
        budget = self.budget or self._runs(task, model)
        n = min(len(pool), budget // len(tried))
        if n < FEWEST:
            raise InputError(
                f"{self.name}: {len(tried)} wordings on at least {FEWEST} held-out items take {FEWEST * len(tried)} "
                f"prompts; the budget is {budget}, and there are {len(pool)} items"
            )
        items = [pool[i] for i in sorted(stream(seed, "best prompt").permutation(len(pool))[:n].tolist())]
        means = []
        for program in tried:
            answers = program.answer(items, model)
            means.append(float(np.mean([_worth(task, a, e) for a, e in zip(answers, items, strict=True)])))
        best = int(np.argmax(means))
        told = [{"wording": p.wording, "instruction": p.form.instruction, "score": m}
                for p, m in zip(tried, means, strict=True)]  # fmt: skip
        return replace(tried[best], notes=notes, meta={"tried": told, "items": n, "prompts": n * len(tried)})

    def _runs(self, task: Task, model: LanguageModel) -> int:
        try:
            return int(find_profile("", model, task.name).provenance.get("runs", RUNS))
        except InputError:
            return RUNS


def _reworded(instruction: str, model: LanguageModel, n: int, seed: int) -> list[str]:
    """Different other wordings of an instruction, at most n."""
    asked = templates.load("propose", "paraphrase").render({"instruction": instruction, "labels": [], "input_name": ""})
    prompts = [Prompt(messages=(Message("user", asked),))] * n
    written = model.generate(prompts, Sampling(max_tokens=_TOKENS, temperature=1.0, seed=seed)) if n else []
    texts = [" ".join(split_reasoning(one.text)[1].split()).strip("\"' ") for one in written]
    return [text for text in dict.fromkeys(texts) if text and text != instruction]


def _worth(task: Task, answer: Answer, example: Example) -> float:
    if answer.scores:
        return log_odds(np.array(list(answer.scores.values())), list(answer.scores).index(str(example.label)))
    from amplify.metrics import answer_scores

    scores = answer_scores(task.metric, answer, example)
    return float(scores.get("harmonic", next(iter(scores.values()))))


@dataclass(frozen=True)
class WordedProgram(PromptProgram):
    """Prompts whose emphasis is put into words.

    Attributes:
        form: how prompts look, with what is emphasised.
        wording: see `worded`.
        notes, meta: see `ShotProgram`.
    """

    kind: ClassVar[str] = "worded"

    form: Form
    wording: str
    notes: tuple[str, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)

    def prompt(self, example: Example | str) -> Prompt:
        """The prompt for an example or a plain text."""
        return worded(self.form.prompt(as_example(example)), self.wording)

    def answer(self, examples: Sequence[Example], model: LanguageModel) -> list[Answer]:
        """Answer a batch; see `ShotProgram.answer`."""
        return answer_made(self.form, examples, [self.prompt(e) for e in examples], model)

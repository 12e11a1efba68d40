"""Against refusals of harmless requests: the word that triggers them is found by attribution, then dealt with.

Each is reported on safe and on unsafe prompts alike (metric `refusal`): a model that answers all is no gain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from amplify import templates
from amplify.errors import InputError
from amplify.methods.base import Preset, Program
from amplify.methods.pasta import only_heads
from amplify.methods.program import answer_made
from amplify.methods.prompt import Form, PromptMethod
from amplify.models.base import LanguageModel, need_scoring
from amplify.registry import register
from amplify.steering import Steering
from amplify.templates import Template
from amplify.types import Answer, Example, Message, Prompt, Sampling, Span

if TYPE_CHECKING:
    from amplify.tasks import Task

REFUSAL = "I'm sorry, but I can't"
Remedy = Literal["ignore", "rephrase", "deemphasise"]
_REPHRASED_TOKENS = 64


@dataclass(frozen=True)
class Detrigger(PromptMethod):
    """Find the words that trigger a refusal, and do something about them.

    Attributes:
        words: how many trigger words, the strongest first; a word counts only if a refusal becomes less likely without
            it.
        refusal: the beginning of a refusal, whose probability is explained.
        weight: factor on the attention to them, in (0, 1).
        profile: head profile by name or file; "" for all heads.
        remedy: "ignore" (the model is told to), "rephrase" (it rewords the request without them first), or
            "deemphasise" (attention is taken from them; the prompt stays as it is).
    """

    seeded: ClassVar[bool] = False

    words: int = 1
    refusal: str = REFUSAL
    weight: float = 0.1
    profile: str = ""
    remedy: Remedy = "ignore"

    def fit(self, task: Task, model: LanguageModel, seed: int) -> TriggerProgram:
        """Nothing to find; triggers are found when an example is answered.

        Raises:
            CapabilityError: a model without log-probabilities (or, to de-emphasise, without steering).
        """
        need_scoring(model, self.name)
        if self.words < 1 or not self.refusal.strip():
            raise InputError(
                f"{self.name}: words is 1 or more and refusal the beginning of one, "
                f"got {self.words} and {self.refusal!r}"
            )
        steering, asked, weight = None, Template("", ""), 1.0
        if self.remedy == "deemphasise":
            if not 0 < self.weight < 1:
                raise InputError(f"{self.name}: weight is a factor between 0 and 1, got {self.weight}")
            steering, weight = only_heads(self.profile), self.weight  # the strength is the spans' own weight
            probe = Prompt(messages=(Message("user", "Hello there"),), emphasis=(Span(0, 5, message=0, weight=0.5),))
            model.generate([probe], Sampling(max_tokens=1), steering=steering)
        else:
            asked = templates.load(self.remedy, "default")
        form = replace(self.form(task), emphasis="")
        if form.layout != "chat":
            raise InputError(f"{self.name} needs a chat: the words of the user's message are explained")
        return TriggerProgram(form, self.remedy, asked, self.words, self.refusal, weight, steering)


_STEERED = ("weight", "profile")
register(
    "method", "ignore_word",
    Preset(
        Detrigger, "Tell the model to ignore the word that triggers its refusal.",
        fixed={"remedy": "ignore"}, without=_STEERED,
    ),
)  # fmt: skip
register(
    "method", "rephrase",
    Preset(
        Detrigger, "Let the model rephrase the request without the triggering word, and answer that.",
        fixed={"remedy": "rephrase"}, without=_STEERED,
    ),
)  # fmt: skip
register(
    "method", "negative_emphasis",
    Preset(
        Detrigger,
        "Take attention away from the triggering word (weight below 1); the prompt stays as it is.",
        steers=True, fixed={"remedy": "deemphasise"},
    ),
)  # fmt: skip


def _shares(total: int, n: int) -> list[int]:
    """A batch's cost spread over its examples, as evenly as whole numbers allow."""
    return [total // n + (i < total % n) for i in range(n)]


@dataclass(frozen=True)
class TriggerProgram(Program):
    """Finds each example's trigger words, applies the remedy and answers.

    Attributes:
        form: how prompts look.
        remedy: what is done about the triggers.
        asked: the template of the remedy.
        words, refusal: see `Detrigger`.
        weight, steering: of the de-emphasis.
        notes: what a reader must know.
    """

    kind: ClassVar[str] = "trigger"

    form: Form
    remedy: Remedy
    asked: Template
    words: int
    refusal: str
    weight: float
    steering: Steering | None
    notes: tuple[str, ...] = ()

    def answer(self, examples: Sequence[Example], model: LanguageModel) -> list[Answer]:
        """Find triggers, apply the remedy, answer; the triggers are kept as each answer's rationale."""
        before = model.usage.snapshot()
        prompts = [self.form.prompt(e) for e in examples]
        found = triggers(prompts, self.refusal, model, self.words)
        changed = [
            self._remedied(p, spans) if spans and self.remedy != "rephrase" else p
            for p, spans in zip(prompts, found, strict=True)
        ]
        if self.remedy == "rephrase":
            changed = self._rephrased(prompts, found, model)
        spent = model.usage.since(before)
        answers = answer_made(self.form, examples, changed, model, self.steering)
        calls, prompt_tokens, new_tokens = (
            _shares(total, len(examples)) for total in (spent.calls, spent.prompt_tokens, spent.completion_tokens)
        )
        return [
            replace(
                a,
                rationale=", ".join(_text(p)[s:e] for s, e in spans),
                calls=a.calls + calls[i],
                prompt_tokens=a.prompt_tokens + prompt_tokens[i],
                completion_tokens=a.completion_tokens + new_tokens[i],
            )
            for i, (a, p, spans) in enumerate(zip(answers, prompts, found, strict=True))
        ]

    def _remedied(self, prompt: Prompt, spans: Sequence[tuple[int, int]]) -> Prompt:
        last = len(prompt.messages) - 1
        if self.remedy == "deemphasise":
            return replace(prompt, emphasis=tuple(Span(a, b, self.weight, last) for a, b in spans))
        text = _text(prompt)
        told = self.asked.render({"text": text, "words": [text[a:b] for a, b in spans]})
        return replace(prompt, messages=(*prompt.messages[:-1], Message("user", told)))

    def _rephrased(
        self, prompts: Sequence[Prompt], found: Sequence[Sequence[tuple[int, int]]], model: LanguageModel
    ) -> list[Prompt]:
        """The prompts with the model's own rewording, where it gave one."""
        out = list(prompts)
        todo = [i for i, spans in enumerate(found) if spans]
        asked = [self._remedied(prompts[i], found[i]) for i in todo]
        written = model.generate(asked, Sampling(max_tokens=_REPHRASED_TOKENS, stop=("\n",))) if asked else []
        for i, new in zip(todo, written, strict=True):
            if words := new.text.strip().strip('"'):
                out[i] = replace(prompts[i], messages=(*prompts[i].messages[:-1], Message("user", words)))
        return out


def _text(prompt: Prompt) -> str:
    """The user's last message."""
    return prompt.messages[-1].content


def triggers(
    prompts: Sequence[Prompt], refusal: str, model: LanguageModel, words: int
) -> list[tuple[tuple[int, int], ...]]:
    """Words of each prompt's last message that speak for a refusal, by leaving them out one at a time.

    Args:
        prompts: chats.
        refusal: the beginning of a refusal.
        model: a scorer.
        words: at most so many a prompt.

    Returns:
        Characters [start, end) in the last message, strongest first; () where every word speaks against a refusal.
    """
    from amplify.attribution import explain_many
    from amplify.attribution.words import content_words, word_spans

    scorer = need_scoring(model, "finding what triggers a refusal")
    texts = [_text(prompt) for prompt in prompts]
    segments = [tuple(s for s, ok in zip(word_spans(t), content_words(t), strict=True) if ok) for t in texts]
    asked = [i for i, spans in enumerate(segments) if spans]
    out: list[tuple[tuple[int, int], ...]] = [()] * len(prompts)
    if not asked:
        return out
    found = explain_many(
        [prompts[i] for i in asked],
        [refusal] * len(asked),
        model=scorer,
        methods=["occlusion"],
        segments=[segments[i] for i in asked],
        budget=1 + max(len(segments[i]) for i in asked),
    )["occlusion"]
    for i, attribution in zip(asked, found, strict=True):
        drop = dict(zip(attribution.spans, attribution.scores, strict=True))
        out[i] = tuple(sorted((s for s in drop if drop[s] > 0), key=lambda s: (-drop[s], s))[:words])
    return out

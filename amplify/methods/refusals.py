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
NO_TRIGGER = "(none)"  # stands as the rationale where no word speaks for a refusal
_REPHRASED_TOKENS = 64


@dataclass(frozen=True)
class Detrigger(PromptMethod):
    """Find the words that trigger a refusal, and do something about them.

    Attributes:
        words: how many trigger words, the strongest first, of all that the user said in this chat; a word counts only
            if it speaks for a refusal.
        explainer: who finds them, see `triggers`.
        budget: evaluations of the model that an explainer which samples may make of a turn.
        refusal: the beginning of a refusal, whose probability is explained.
        weight: factor on the attention to them, in (0, 1).
        profile: head profile by name or file; "" for all heads.
        remedy: "ignore" (the model is told to), "rephrase" (it rewords the request without them first), or
            "deemphasise" (attention is taken from them; the prompt stays as it is).

    Example:
        >>> amplify.methods.Detrigger(words=2).label
        'ignore_word[words=2]'
    """

    seeded: ClassVar[bool] = False

    words: int = 1
    explainer: str = "occlusion"
    budget: int = 128
    refusal: str = REFUSAL
    weight: float = 0.1
    profile: str = ""
    remedy: Remedy = "ignore"

    def __post_init__(self) -> None:
        super().__post_init__()
        from amplify.attribution.explainers import METHODS

        METHODS.find(self.explainer)

    def fit(self, task: Task, model: LanguageModel, seed: int) -> TriggerProgram:
        """Nothing to find; triggers are found when an example is answered.

        Raises:
            CapabilityError: a model without log-probabilities (or, to de-emphasise, without steering).
        """
        from amplify.attribution.explainers import METHODS, check_able

        check_able(need_scoring(model, self.name), [self.explainer])
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
        return TriggerProgram(
            form, self.remedy, asked, self.words, self.refusal, weight, steering, explainer=self.explainer,
            budget=self.budget, seed=seed if METHODS[self.explainer].kind == "perturbation" else 0,
        )  # fmt: skip


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
        explainer, budget, seed: who finds them, see `triggers`.
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
    explainer: str = "occlusion"
    budget: int = 128
    seed: int = 0

    def answer(self, examples: Sequence[Example], model: LanguageModel) -> list[Answer]:
        """Find triggers, apply the remedy, answer; the triggers are kept as each answer's rationale."""
        before = model.usage.snapshot()
        prompts = [self.form.prompt(e) for e in examples]
        found = triggers(prompts, self.refusal, model, self.words, self.explainer, self.budget, self.seed)
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
                rationale=", ".join(_words(p, spans)) or NO_TRIGGER,
                calls=a.calls + calls[i],
                prompt_tokens=a.prompt_tokens + prompt_tokens[i],
                completion_tokens=a.completion_tokens + new_tokens[i],
            )
            for i, (a, p, spans) in enumerate(zip(answers, prompts, found, strict=True))
        ]

    def _remedied(self, prompt: Prompt, found: Sequence[Trigger]) -> Prompt:
        if self.remedy == "deemphasise":
            return replace(prompt, emphasis=tuple(Span(a, b, self.weight, number) for number, a, b in found))
        return _said_last(prompt, self._told(prompt.messages[-1].content, _words(prompt, found)))

    def _told(self, text: str, words: Sequence[str]) -> str:
        return self.asked.render({"text": text, "words": list(words)})

    def _rephrased(
        self, prompts: Sequence[Prompt], found: Sequence[Sequence[Trigger]], model: LanguageModel
    ) -> list[Prompt]:
        """The prompts with the model's own rewording of each message that holds a trigger, where it gave one."""
        out = list(prompts)
        todo = [(i, number) for i, spans in enumerate(found) for number in sorted({one[0] for one in spans})]
        asked = []
        for i, number in todo:
            own = [one for one in found[i] if one[0] == number]
            told = self._told(prompts[i].messages[number].content, _words(prompts[i], own))
            asked.append(_said_last(prompts[i], told, number))
        written = model.generate(asked, Sampling(max_tokens=_REPHRASED_TOKENS, stop=("\n",))) if asked else []
        for (i, number), new in zip(todo, written, strict=True):
            if words := new.text.strip().strip('"'):
                turns = list(out[i].messages)
                turns[number] = Message("user", words)
                out[i] = replace(out[i], messages=tuple(turns))
        return out


def _said_last(prompt: Prompt, text: str, number: int = -1) -> Prompt:
    """The chat up to a message of the user, which says something else."""
    before = prompt.messages[:number]
    return replace(prompt, messages=(*before, Message("user", text)))


Trigger = tuple[int, int, int]  # number of the message, and characters [start, end) of it


def _words(prompt: Prompt, found: Sequence[Trigger]) -> list[str]:
    return [prompt.messages[message].content[a:b] for message, a, b in found]


def triggers(
    prompts: Sequence[Prompt],
    refusal: str,
    model: LanguageModel,
    words: int,
    explainer: str = "occlusion",
    budget: int = 128,
    seed: int = 0,
) -> list[tuple[Trigger, ...]]:
    """Words of each chat's user that speak for a refusal, in whatever turn they were said.

    Each turn of the user is explained by itself, the others as they are.

    Args:
        prompts: chats.
        refusal: the beginning of a refusal.
        model: a scorer; one in this process for explainers by gradients or attention.
        words: at most so many a prompt.
        explainer: of `amplify.attribution.explainers.METHODS`; by default words are left out one at a time.
        budget: of the explainer, for each turn; occlusion takes what it needs.
        seed: of an explainer that samples.

    Returns:
        Where they stand, strongest first; () where every word speaks against a refusal.
    """
    from amplify.attribution import explainers
    from amplify.attribution.inputs import prompt_subject
    from amplify.attribution.words import content_words, word_spans

    scorer = need_scoring(model, "finding what triggers a refusal")
    places, subjects = [], []
    for i, prompt in enumerate(prompts):
        for number, turn in enumerate(prompt.messages):
            text = turn.content
            spans = tuple(s for s, ok in zip(word_spans(text), content_words(text), strict=True) if ok)
            if turn.role == "user" and spans:
                places.append((i, number))
                subjects.append(prompt_subject(scorer, prompt, refusal, None, segments=spans, message=number))
    scored: list[list[tuple[float, Trigger]]] = [[] for _ in prompts]
    if subjects:
        room = max(budget, 1 + max(len(one.spans) for one in subjects)) if explainer == "occlusion" else budget
        [found] = explainers.run(scorer, subjects, [explainer], budget=room, seed=seed).values()
        for (i, number), attribution in zip(places, found, strict=True):
            rows = zip(attribution.spans, attribution.scores, strict=True)
            scored[i] += [(score, (number, *span)) for span, score in rows if score > 0]
    return [tuple(one for _, one in sorted(rows, key=lambda row: (-row[0], row[1]))[:words]) for rows in scored]

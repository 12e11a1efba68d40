"""What a proxy's attribution names, emphasised by steered heads instead of told: words of the input, or the label."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from amplify.errors import InputError
from amplify.methods.base import Preset, Program, PromptProgram, Rehearsal
from amplify.methods.parse import shown
from amplify.methods.pasta import find_profile, first_heads, random_heads
from amplify.methods.program import ShotProgram, answer_made, as_example
from amplify.methods.prompt import Form, PromptMethod, check_options
from amplify.methods.proxy import find_proxy, keep, loaded_proxy, words_explained
from amplify.models.base import LanguageModel
from amplify.registry import register
from amplify.steering import Steering
from amplify.types import Answer, Example, Prompt, Sampling, Span

if TYPE_CHECKING:
    from amplify.tasks import Task

What = Literal["words", "label"]
Drawn = Literal["", "what", "heads"]


@dataclass(frozen=True)
class Emphasise(PromptMethod):
    """Steer a profile's heads to the words that decide for a proxy, or to the label that it would give.

    The prompt stays as it is: where AMPLIFY writes the words into a rationale and `proxy_hint` says the guess, here
    attention is moved to them. (PASTA's heads, arXiv 2311.02262; which span, by the proxy's attribution.)

    Attributes:
        what: "words" of the input that speak most for the proxy's guess, or its guess where the "label" is named in
            the prompt.
        words: how many.
        proxy, epochs, lora: see `Amplify`.
        explainer, budget: how words are found.
        profile: head profile by name or file; "" for the one measured for this model and task, else this model.
        alpha: scale of the attention outside; 0 for the profile's own.
        heads: use only so many of the profile's ranked heads; 0 for its own set.
        drawn: with the seed: "what" (as many content words of the input, or any label), or as many "heads".

    Example:
        >>> amplify.methods.Emphasise().label
        'emphasise_words'
    """

    steers: ClassVar[bool] = True

    what: What = "words"
    words: int = 3
    proxy: str = "minilm"
    epochs: int = 4
    lora: bool = False
    explainer: str = "grad_x_input"
    budget: int = 128
    profile: str = ""
    alpha: float = 0.0
    heads: int = 0
    drawn: Drawn = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        from amplify.attribution.explainers import METHODS

        METHODS.find(self.explainer)

    @property
    def makes(self) -> type[Program]:
        """See `Method.makes`."""
        return EmphasiseProgram

    def fit(self, task: Task, model: LanguageModel, seed: int) -> EmphasiseProgram:
        """Take the profile, try it, train the proxy or find it.

        Raises:
            InputError: free-text answers, no profile for this model, or a proxy whose head is untrained.
            CapabilityError: the model cannot steer.
        """
        from amplify.attribution.words import fixed_words

        check_options(self)
        notes = self.notes_on(task, model)
        if self.words < 1 or not task.labels_of(task.test[0]):
            raise InputError(f"{self.name} needs words=1 or more, and a task with labels, which {task.name!r} may lack")
        steering = self._steering(task, model, seed)
        form = replace(self.form(task), emphasis="text")
        probe = ShotProgram(form).prompt(task.test[0])
        model.generate([probe], Sampling(max_tokens=1), steering=steering)  # what cannot steer is refused now
        proxy = find_proxy(task, self.proxy, self.epochs, self.lora, seed)
        proxy.require_head(self.name)
        kept = keep(proxy, task, self.proxy, seed)
        return EmphasiseProgram(
            form=replace(form, emphasis=""), steering=steering, what=self.what, words=self.words,
            proxy=str(kept.folder), identity=kept.identity, explainer=self.explainer, budget=self.budget, seed=seed,
            masked=tuple(sorted(fixed_words(task))), drawn=self.drawn == "what", notes=notes,
            meta={"proxy": {"name": kept.name, "identity": kept.identity}},
        )  # fmt: skip

    def _steering(self, task: Task, model: LanguageModel, seed: int) -> Steering:
        found = find_profile(self.profile, model, task.name)
        if self.heads < 0 or not 0 <= self.alpha <= 1:
            raise InputError(f"{self.name}: heads is 0 or more and alpha in [0, 1], got {self.heads} and {self.alpha}")
        chosen = first_heads(found, self.heads) if self.heads else found
        steering = replace(chosen, alpha=self.alpha or found.alpha, mode="pasta")
        return random_heads(steering, seed) if self.drawn == "heads" else steering

    def rehearse(self, task: Task, model: LanguageModel, seed: int) -> Rehearsal:
        """The same prompts, unsteered; no proxy is trained."""
        return Rehearsal(ShotProgram(self.form(task)), "estimated: the prompts as they are, unsteered")


_WORDS, _LABEL = {"what": "words"}, {"what": "label"}
for _name, _fixed, _about in (
    ("emphasise_words", {**_WORDS, "drawn": ""}, "The words that decide for a proxy, emphasised by steered heads."),
    ("emphasise_label", {**_LABEL, "drawn": ""}, "A proxy's guess, emphasised where the prompt names the labels."),
    ("emphasise_random_words", {**_WORDS, "drawn": "what"}, "As many content words of the input, drawn: the control."),
    ("emphasise_random_label", {**_LABEL, "drawn": "what"}, "Any of the labels, drawn: the control."),
    ("emphasise_words_random_heads", {**_WORDS, "drawn": "heads"}, "The same words, as many heads drawn: the control."),
):  # fmt: skip
    _without = ("words", "explainer", "budget") if _fixed["what"] == "label" else ()
    register(
        "method", _name,
        Preset(Emphasise, _about, "control" if _fixed["drawn"] else "method", fixed=_fixed, without=_without),
    )  # fmt: skip


@dataclass(frozen=True)
class EmphasiseProgram(PromptProgram):
    """Prompts whose deciding words, or whose likely label, are emphasised. Needs the proxy's folder.

    Attributes:
        form, steering: as in `ShotProgram`.
        what, words: see `Emphasise`.
        proxy, identity: folder of the proxy, and the hash that it must have.
        explainer, budget, seed: how words are found.
        masked: words that do not count.
        drawn: emphasise what is drawn instead.
        notes, meta: see `ShotProgram`.
    """

    kind: ClassVar[str] = "emphasise"

    form: Form
    steering: Steering
    what: What
    words: int
    proxy: str
    identity: str
    explainer: str
    budget: int
    seed: int
    masked: tuple[str, ...]
    drawn: bool = False
    notes: tuple[str, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)

    def prompt(self, example: Example | str) -> Prompt:
        """The prompt for an example, its emphasis included."""
        return self.prompts([as_example(example)])[0]

    def answer(self, examples: Sequence[Example], model: LanguageModel) -> list[Answer]:
        """Ask the proxy, then the steered model; what was emphasised is each answer's rationale."""
        if not examples:
            return []
        prompts = self.prompts(examples)
        answers = answer_made(self.form, examples, prompts, model, self.steering)
        return [replace(a, rationale=", ".join(_emphasised(p))) for a, p in zip(answers, prompts, strict=True)]

    def prompts(self, examples: Sequence[Example]) -> list[Prompt]:
        """Each example's prompt; nothing is emphasised where there is nothing to name."""
        proxy = loaded_proxy(self.proxy, self.identity)
        likely = zip(examples, proxy.probabilities(examples), strict=True)
        guesses = [proxy.labels_of(e)[int(p.argmax())] for e, p in likely]
        if self.what == "label":
            if self.drawn:
                guesses = [self._draw(e).choice(proxy.labels_of(e)) for e in examples]
            return [_naming(self.form, e, guess) for e, guess in zip(examples, guesses, strict=True)]
        found = self._cited(examples, guesses)
        return [_within(self.form, e, spans) for e, spans in zip(examples, found, strict=True)]

    def _draw(self, example: Example) -> random.Random:
        return random.Random(f"{self.seed} {example.text}")

    def _cited(self, examples: Sequence[Example], labels: Sequence[str]) -> list[list[tuple[int, int]]]:
        """Characters of each text's deciding words, or of as many drawn ones."""
        proxy = loaded_proxy(self.proxy, self.identity)
        made = words_explained(proxy, examples, labels, None, self.explainer, self.masked, self.budget, self.seed)
        found: list[list[tuple[int, int]]] = [[] for _ in examples]
        for i, attribution in made.items():
            spans = [span for span in attribution.spans if span[1] <= len(examples[i].text)]
            scores = dict(zip(attribution.spans, attribution.scores, strict=True))
            order = sorted(spans, key=lambda span: (-scores[span], span))
            if self.drawn:
                order = self._draw(examples[i]).sample(sorted(spans), len(spans))
            found[i] = sorted(order[: self.words])
        return found


def _within(form: Form, example: Example, spans: Sequence[tuple[int, int]]) -> Prompt:
    """The prompt with some characters of the example's text emphasised."""
    whole = replace(form, emphasis="text").prompt(example)
    place = next(iter(whole.emphasis), None)
    if place is None or place.end - place.start != len(example.text):  # special tokens are exchanged, at equal length
        raise InputError(f"{form.method}: the text of item {example.id!r} does not stand in its prompt as it is")
    at = place.start
    return replace(whole, emphasis=tuple(Span(at + a, at + b, message=place.message) for a, b in spans))


def _naming(form: Form, example: Example, label: str) -> Prompt:
    """The prompt with a label emphasised wherever the prompt names it outside the example's text."""
    whole = replace(form, emphasis="text").prompt(example)
    name = re.escape(shown(label, bool(example.options)))
    spans = []
    texts = [(None, whole.text)] if whole.text is not None else [(i, m.content) for i, m in enumerate(whole.messages)]
    for number, text in texts:
        for match in re.finditer(rf"(?<!\w){name}(?!\w)", text or ""):
            a, b = match.span()
            if not any(s.message == number and s.start < b and a < s.end for s in whole.emphasis):
                spans.append(Span(a, b, message=number))
    return replace(whole, emphasis=tuple(spans))


def _emphasised(prompt: Prompt) -> list[str]:
    said = [(str(prompt.text) if s.message is None else prompt.messages[s.message].content, s) for s in prompt.emphasis]
    return list(dict.fromkeys(text[s.start : s.end] for text, s in said))

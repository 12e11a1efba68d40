"""The proxy's guess as a hint in the question: what it says, how sure it is, and because of which words."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from amplify import templates
from amplify.errors import InputError
from amplify.methods.base import Preset, PromptProgram, Rehearsal
from amplify.methods.few_shot import random_shots
from amplify.methods.parse import shown
from amplify.methods.program import answer_shots, as_example
from amplify.methods.prompt import Form, PromptMethod, check_options
from amplify.methods.proxy import find_proxy, keep, loaded_proxy, words_explained
from amplify.models.base import LanguageModel
from amplify.registry import register
from amplify.templates import Template
from amplify.types import Answer, Demonstration, Example, Prompt

if TYPE_CHECKING:
    from amplify.tasks import Task


@dataclass(frozen=True)
class ProxyHint(PromptMethod):
    """Few-shot prompting in which every question brings the proxy's guess, its confidence and its words.

    The shots come from the validation split, which the proxy was not trained on: their hints are as often wrong as
    those of new inputs, so the model is shown how far to trust them.

    Attributes:
        proxy, epochs, lora: see `Amplify`.
        explainer: what finds the words; `words` of them are told, 0 for none.
        budget: evaluations of the proxy per input that perturbation explainers may make.
        shots: how many.
        hint: template of the hint, `prompts/hint_NAME.jinja` or a file of yours.
        random: hints name any label, as a control.

    Example:
        >>> amplify.methods.ProxyHint(words=2).label
        'proxy_hint[words=2]'
    """

    proxy: str = "minilm"
    epochs: int = 4
    lora: bool = False
    explainer: str = "grad_x_input"
    budget: int = 128
    words: int = 3
    shots: int = 4
    hint: str = "default"
    random: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        from amplify.attribution.explainers import METHODS

        METHODS.find(self.explainer)

    def fit(self, task: Task, model: LanguageModel, seed: int) -> HintProgram:
        """Train the proxy, or find it; choose the shots and hint at them.

        Raises:
            InputError: free-text answers, an untrained head, or fewer validation examples than shots.
        """
        from amplify.attribution.words import fixed_words

        check_options(self)
        notes = self.notes_on(task, model)
        if any(not task.labels_of(e) for e in task.validation):
            raise InputError(
                f"{self.name} hints at a label, and task {task.name!r} has free-text answers: leave it out"
            )
        if len(task.validation) < self.shots:
            raise InputError(
                f"{self.name} shows {self.shots} validation examples, which its proxy was not trained on, and task "
                f"{task.name!r} has {len(task.validation)}: lower {self.name}.shots"
            )
        proxy = find_proxy(task, self.proxy, self.epochs, self.lora, seed)
        proxy.require_head(self.name)
        kept = keep(proxy, task, self.proxy, seed)
        chosen = random.Random(seed).sample(task.validation, self.shots)
        program = HintProgram(
            form=self.form(task),
            shots=tuple(Demonstration(example) for example in chosen),
            proxy=str(kept.folder),
            identity=kept.identity,
            accuracy=round(100 * kept.accuracy(task.validation)),
            hint=templates.load("hint", self.hint),
            explainer=self.explainer,
            words=self.words,
            budget=self.budget,
            seed=seed,
            masked=tuple(sorted(fixed_words(task))),
            random=self.random,
            notes=notes,
            meta={"proxy": {"name": kept.name, "identity": kept.identity}},
        )
        told = program.hinted(chosen)
        return replace(program, shots=tuple(Demonstration(example) for example in told))

    @property
    def makes(self) -> type[HintProgram]:
        """See `Method.makes`."""
        return HintProgram

    def rehearse(self, task: Task, model: LanguageModel, seed: int) -> Rehearsal:
        """With random shots, without hints: no proxy is trained."""
        return Rehearsal(random_shots(self, task, model, seed), "estimated: prompts with random shots, without hints")


register("method", "proxy_hint", Preset(ProxyHint, fixed={"random": False}))
register(
    "method", "proxy_hint_random",
    Preset(
        ProxyHint, "The same hints with a label drawn at random: is it the guess that helps?", "control",
        fixed={"random": True},
    ),
)  # fmt: skip


@dataclass(frozen=True)
class HintProgram(PromptProgram):
    """Shots and questions with a proxy's hint. Needs the proxy's folder.

    Attributes:
        form: how prompts look.
        shots: demonstrations, their hints included.
        proxy, identity: folder of the proxy, and the hash that it must have.
        accuracy: of the proxy on the validation split, per cent.
        hint: template of the hint.
        explainer, words, budget, seed: how its words are found.
        masked: words that may not be cited.
        random: name any label.
        notes, meta: see `ShotProgram`.
    """

    kind: ClassVar[str] = "hint"

    form: Form
    shots: tuple[Demonstration, ...]
    proxy: str
    identity: str
    accuracy: int
    hint: Template
    explainer: str
    words: int
    budget: int
    seed: int
    masked: tuple[str, ...]
    random: bool = False
    notes: tuple[str, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)

    def prompt(self, example: Example | str) -> Prompt:
        """The prompt for an example, its hint included."""
        return self.form.prompt(self.hinted([as_example(example)])[0], self.shots)

    def answer(self, examples: Sequence[Example], model: LanguageModel) -> list[Answer]:
        """Ask the proxy, then the model; see `ShotProgram.answer`."""
        if not examples:
            return []
        return answer_shots(self.form, self.hinted(examples), [self.shots] * len(examples), model)

    def hinted(self, examples: Sequence[Example]) -> list[Example]:
        """The examples with the hint behind their texts."""
        proxy = loaded_proxy(self.proxy, self.identity)
        guesses = proxy.probabilities(examples)
        labels = [proxy.labels_of(e)[int(p.argmax())] for e, p in zip(examples, guesses, strict=True)]
        cited = self._cited(examples, labels)
        if self.random:
            labels = [random.Random(f"{self.seed} {e.text}").choice(proxy.labels_of(e)) for e in examples]
        made = []
        for example, label, p, words in zip(examples, labels, guesses, cited, strict=True):
            given = {
                "label": shown(label, bool(example.options)),
                "confidence": round(100 * float(p.max())),
                "accuracy": self.accuracy,
                "words": words,
            }
            made.append(replace(example, text=f"{example.text}\n{self.hint.render(given)}"))
        return made

    def _cited(self, examples: Sequence[Example], labels: Sequence[str]) -> list[list[str]]:
        """Each input's words that speak most for the label."""
        if not self.words:
            return [[] for _ in examples]
        proxy = loaded_proxy(self.proxy, self.identity)
        made = words_explained(proxy, examples, labels, None, self.explainer, self.masked, self.budget, self.seed)
        return [made[i].top(self.words) if i in made else [] for i in range(len(examples))]

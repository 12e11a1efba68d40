"""Self-AMPLIFY: the model explains its own demonstrations, no proxy needed (arXiv 2402.12038).

1. The model answers the validation split zero-shot, and shots are chosen by what it got right or wrong. 2. It explains
why each shot's gold label is right: by naming words, by a few sentences, or through an attribution of its own
log-probabilities. 3. Input, rationale and label of each shot stand before the question.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from amplify import templates
from amplify.attribution.explainers import METHODS
from amplify.attribution.prompted import Case, explain_prompted
from amplify.errors import InputError
from amplify.methods.explained import RATIONALE_TOKENS
from amplify.methods.gating import Said, gate_shots, judge_own
from amplify.methods.parse import parse_label, split_answer
from amplify.methods.program import ShotProgram, with_rationales
from amplify.methods.prompt import Form, shown_gold
from amplify.methods.self_attribution import BUDGET, citable, explain_shots, placed
from amplify.methods.self_selection import SelfMethod
from amplify.models.base import LanguageModel, need_scoring
from amplify.rationales import rationalize
from amplify.rationales.wording import opening, verbalise
from amplify.registry import register
from amplify.text import input_text
from amplify.types import Attribution, Completion, Demonstration, Example, Message, Prompt, Rationale, Sampling

if TYPE_CHECKING:
    from amplify.tasks import Task

_RETRIES = 2


@dataclass(frozen=True)
class SelfAmplify(SelfMethod):
    """What all variants do; they differ in `rationales`."""

    def fit(self, task: Task, model: LanguageModel, seed: int) -> ShotProgram:
        """Select, explain, verbalise."""
        notes = self.notes_on(task, model)
        chosen = self.chosen(task, model, seed)
        before = model.usage.snapshot()
        made, more = self.rationales(task, model, chosen.shots, seed)
        shots, meta = chosen.shots, dict(chosen.meta)
        if self.gated:

            def spare() -> Iterator[Said]:  # as many at a time as there are shots: explaining costs the model's time
                for start in range(0, len(chosen.spare), len(shots)):
                    some = chosen.spare[start : start + len(shots)]
                    yield from zip(some, self.rationales(task, model, some, seed)[0], strict=True)

            gated = gate_shots(
                list(zip(shots, made, strict=True)),
                spare,
                lambda shot, said: judge_own(self, task, model, shot, said, seed),
                balanced=self.balanced,
            )
            shots = tuple(shot for shot, _ in gated.shots)
            made = [None if i in gated.failed else said for i, (_, said) in enumerate(gated.shots)]
            more, meta["gate"] = [*more, gated.note], gated.meta
        meta["explaining"] = asdict(model.usage.since(before))
        if dropped := made.count(None):
            more = [*more, f"{dropped} of {len(made)} rationales dropped: those shots show their answer alone"]
        shots = with_rationales(shots, made)
        return ShotProgram(self.answering(task, made), shots, (*notes, *chosen.notes, *more), meta)

    @property
    def gated(self) -> bool:
        """Whether each rationale must show that its words matter."""
        return False

    @abstractmethod
    def rationales(
        self, task: Task, model: LanguageModel, shots: Sequence[Demonstration], seed: int
    ) -> tuple[list[Rationale | None], list[str]]:
        """One a shot, None where there is nothing to say; and notes."""

    @abstractmethod
    def answering(self, task: Task, made: Sequence[Rationale | None]) -> Form:
        """The form of the final prompts."""

    @property
    def explaining(self) -> int:
        """`prompts_per_shot` for each shot."""
        return self.shots * self.prompts_per_shot

    @property
    def prompts_per_shot(self) -> int:
        """How many prompts explaining a shot takes at most, replies that cannot be read apart: for plans."""
        return 1

    def imitated(self, task: Task, program: ShotProgram) -> ShotProgram:
        """With an `imitation` behind each shot."""
        said = [self.imitation(shot.example) for shot in program.shots]
        return ShotProgram(self.answering(task, said), with_rationales(program.shots, said))

    @abstractmethod
    def imitation(self, example: Example) -> Rationale:
        """A rationale as long as the real ones: for plans."""


@dataclass(frozen=True)
class SelfWords(SelfAmplify):
    """Rationales that cite words.

    Attributes:
        k: how many (the paper has 4 to 5).
        template: of the rationale: "key_words", "paper", "words_only", "span", …, or your own file.
        gate: a rationale must cite words that the model needs more than random words of the same input
            (`amplify.attribution.deletion.judge`), else its shot gives way to the next candidate whose rationale does,
            or is shown without one. Variants then have different shots.
    """

    k: int = 5
    template: str = "key_words"
    gate: bool = False

    def notes_on(self, task: Task, model: LanguageModel) -> tuple[str, ...]:
        """Also that the gate can be had."""
        if self.gate:
            need_scoring(model, f"{self.name}.gate")
        return super().notes_on(task, model)

    @property
    def gated(self) -> bool:
        """See `gate`."""
        return self.gate

    def answering(self, task: Task, made: Sequence[Rationale | None]) -> Form:
        """The model begins with words of its own."""
        begin = opening(templates.load("rationale", self.template))
        line = not any("\n" in rationale.text for rationale in made if rationale)
        return self.form(task, reasons=True, prefill=begin, budget=RATIONALE_TOKENS, line=line)

    def imitation(self, example: Example) -> Rationale:
        """The first words of the input."""
        words = tuple(input_text(example).split()[: self.k])
        even = Attribution(example.text, (), (), (), str(example.label))
        return verbalise(words, even, self.template, shares=[1 / len(words)] * len(words))

    def said(
        self, attributions: Sequence[Attribution | None], shots: Sequence[Demonstration]
    ) -> tuple[list[Rationale | None], list[str]]:
        """Each attribution in words, those that speak for the label; and notes."""
        form = templates.load("rationale", self.template)
        made: list[Rationale | None] = []
        for attribution, shot in zip(attributions, shots, strict=True):
            label = shown_gold(shot.example)
            try:
                made.append(rationalize(attribution, form, self.k, label=label, positive=True) if attribution else None)
            except InputError:  # no word speaks for the label
                made.append(None)
        short = sum(r is not None and len(r.words) < self.k for r in made)
        return made, [f"{short} of {len(made)} rationales have fewer than {self.k} words to cite"] if short else []


@register("method", "self_amplify_topk")
@dataclass(frozen=True)
class SelfTopK(SelfWords):
    """The model names the k words itself, told the gold label."""

    def rationales(
        self, task: Task, model: LanguageModel, shots: Sequence[Demonstration], seed: int
    ) -> tuple[list[Rationale | None], list[str]]:
        """Ask behind the begun answer "The answer is (C). The 5 words …"."""
        form = self.form(task)
        cases = []
        for shot in shots:
            spans = citable(task, shot.example)
            prompt, _, _ = placed(form, shot.example, spans)
            text, gold = input_text(shot.example), shown_gold(shot.example)
            cases.append(Case(text, gold, spans=spans, prompt=prompt, model=model.id))
        found = explain_prompted(cases, model, "self", k=self.k, seed=seed, retries=_RETRIES)
        made, notes = self.said(found.attributions, shots)
        if found.invented:
            notes.append(f"{found.invented} words named that are not in the input: left out")
        return made, notes


@dataclass(frozen=True)
class SelfExplained(SelfWords):
    """Words by an attribution of the model's own log-probability of the whole label.

    Attributes:
        budget: model evaluations per shot; 0 for what the explainer takes by itself.
        contrastive: explain the gold label against the one wrongly given, or the likeliest other one where the model
            was asked for log-probabilities. The paper explains the gold label alone.
    """

    explainer: ClassVar[str]

    budget: int = 0
    contrastive: bool = False

    @property
    def needs_gradients(self) -> bool:
        """Whether only a model in this process will do."""
        return METHODS[self.explainer].inside

    @property
    def prompts_per_shot(self) -> int:
        """One per coalition and continuation; gradients take none."""
        if METHODS[self.explainer].kind != "perturbation":
            return 0
        return (self.budget or BUDGET) * (2 if self.contrastive else 1)

    def rationales(
        self, task: Task, model: LanguageModel, shots: Sequence[Demonstration], seed: int
    ) -> tuple[list[Rationale | None], list[str]]:
        """Attribute, then cite the words that speak for the label."""
        found = explain_shots(
            self,
            task,
            model,
            shots,
            self.explainer,
            contrastive=self.contrastive,
            seed=seed,
            budget=self.budget,
        )
        made, notes = self.said(found, shots)
        if self.contrastive and (plain := sum(shot.foil is None for shot in shots)):
            notes.append(f"{plain} of {len(made)} labels explained without a contrast: no other label is known")
        return made, notes


@register("method", "self_amplify_shap")
@dataclass(frozen=True)
class SelfShap(SelfExplained):
    """KernelSHAP."""

    explainer: ClassVar[str] = "kernel_shap"


@register("method", "self_amplify_lime")
@dataclass(frozen=True)
class SelfLime(SelfExplained):
    """LIME."""

    explainer: ClassVar[str] = "lime"


@register("method", "self_amplify_occlusion")
@dataclass(frozen=True)
class SelfOcclusion(SelfExplained):
    """Occlusion, which the paper calls feature ablation."""

    explainer: ClassVar[str] = "occlusion"


@register("method", "self_amplify_gradient")
@dataclass(frozen=True)
class SelfGradient(SelfExplained):
    """Gradient times input."""

    explainer: ClassVar[str] = "grad_x_input"


@register("method", "self_amplify_deeplift")
@dataclass(frozen=True)
class SelfDeepLift(SelfExplained):
    """DeepLIFT."""

    explainer: ClassVar[str] = "deep_lift"


@register("method", "self_amplify_shapley_sampling")
@dataclass(frozen=True)
class SelfShapleySampling(SelfExplained):
    """Shapley sampling."""

    explainer: ClassVar[str] = "shapley_sampling"


@dataclass(frozen=True)
class SelfSteps(SelfAmplify):
    """Rationales in sentences.

    Attributes:
        steps: how many sentences are asked for.
        template: of the rationale, and so of what the model's own begins with.
    """

    steps: int = 3
    template: str = "steps"

    def answering(self, task: Task, made: Sequence[Rationale | None]) -> Form:
        """The model begins with steps of its own."""
        return self.form(task, reasons=True, prefill=self.begin, budget=40 * self.steps)

    @property
    def begin(self) -> str:
        """What a rationale begins with."""
        form = templates.load("rationale", self.template)
        return form.before("explanation", {"steps": self.steps, "explanation": ""}).rstrip()

    def imitation(self, example: Example) -> Rationale:
        """Sentences of fifteen words."""
        return self.worded("word " * 15 * self.steps, "")

    def worded(self, explanation: str, kind: str) -> Rationale:
        """The rationale as it stands in a prompt, on one line."""
        form = templates.load("rationale", self.template)
        return Rationale(form.render({"steps": self.steps, "explanation": explanation}), kind=kind)

    def asked(self, prompts: Sequence[Prompt], model: LanguageModel, marker: str, seed: int) -> list[tuple[str, str]]:
        """For each prompt what can be used of the explanation written, and all that was written.

        An explanation of which nothing can be used is asked for again, a bounded number of times, with a seed.
        """
        found = [("", "")] * len(prompts)
        for attempt in range(_RETRIES + 1):
            open_ = [i for i, (usable, _) in enumerate(found) if not usable]
            if not open_:
                break
            sampling = Sampling(
                max_tokens=40 * self.steps, temperature=0.7 if attempt else 0.0, seed=seed + attempt, stop=("\n\n\n",)
            )
            for i, written in zip(open_, model.generate([prompts[i] for i in open_], sampling), strict=True):
                found[i] = usable(written, marker), written.text
        return found


def usable(written: Completion, marker: str) -> str:
    """The explanation in whole sentences on one line, before any answer it goes on to give; "" where none is left."""
    parts = split_answer(written.text, marker)
    while parts is not None:  # the first marker counts: what follows it is an answer, not a reason
        written = replace(written, text=parts[0], finish_reason="stop")
        parts = split_answer(parts[0], marker)
    text = " ".join(written.text.split())
    if written.finish_reason == "length":  # a sentence that was cut off would teach the model to break off
        end = max(text.rfind(mark) for mark in (". ", "! ", "? "))
        text = text if text.endswith((".", "!", "?")) else text[: end + 1]
    if not any(c.isalpha() for c in text):
        return ""
    return text if text.endswith((".", "!", "?")) else f"{text.rstrip(' ,;:')}."


@register("method", "self_amplify_phcot")
@dataclass(frozen=True)
class SelfPhCoT(SelfSteps):
    """Post hoc chain of thought: told the gold label, the model explains it in a few sentences."""

    def rationales(
        self, task: Task, model: LanguageModel, shots: Sequence[Demonstration], seed: int
    ) -> tuple[list[Rationale | None], list[str]]:
        """Ask behind the begun answer "The answer is (C). 3-step explanation:"."""
        form = self.form(task)
        prompts = []
        for shot in shots:
            given = {"steps": self.steps, "label": shown_gold(shot.example), "marker": form.marker}
            prefill = templates.load("prefill", "explanation").render(given)
            prompts.append(_request(form, shot, templates.load("request", "explanation").render(given), prefill))
        found = self.asked(prompts, model, form.marker, seed)
        return [self.worded(text, "phcot") if text else None for text, _ in found], []


@register("method", "self_amplify_autocot")
@dataclass(frozen=True)
class SelfAutoCoT(SelfSteps):
    """A chain of thought that the model writes without being told the label (Auto-CoT; Zhang et al. 2022).

    The demonstration still ends with the gold label; how many chains argue for another one is noted.
    """

    def rationales(
        self, task: Task, model: LanguageModel, shots: Sequence[Demonstration], seed: int
    ) -> tuple[list[Rationale | None], list[str]]:
        """Ask for steps and an answer."""
        form = self.form(task)
        marker = form.marker
        request = templates.load("request", "steps").render({"steps": self.steps, "marker": marker})
        found = self.asked([_request(form, s, request, self.begin) for s in shots], model, marker, seed)
        astray = 0
        for shot, (_, written) in zip(shots, found, strict=True):
            answer = parse_label(written, form.labels_of(shot.example), options=shot.example.options, marker=marker)
            astray += answer not in (None, shot.example.label)
        notes = [f"{astray} of {len(found)} chains end in another answer than the gold one"] if astray else []
        return [self.worded(text, "autocot") if text else None for text, _ in found], notes


def _request(form: Form, shot: Demonstration, request: str, prefill: str) -> Prompt:
    """The shot's zero-shot prompt with something asked at its end and the answer begun; raw text is only begun."""
    prompt = form.prompt(shot.example, prefill=form.marker)
    if prompt.text is not None:
        return replace(prompt, prefix=f" {prefill}", emphasis=())
    last = prompt.messages[-1]
    asked = Message(last.role, f"{last.content}\n\n{request}")
    return Prompt(messages=(*prompt.messages[:-1], asked), prefix=prefill)

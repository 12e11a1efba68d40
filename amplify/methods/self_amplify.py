"""Self-AMPLIFY: the model explains its own demonstrations, no proxy needed (arXiv 2402.12038).

1. The model answers the validation split zero-shot, and shots are chosen by what it got right or wrong. 2. It explains
why each shot's gold label is right: by naming words, by a few sentences, or through an attribution of its own
log-probabilities. 3. Input, rationale and label of each shot stand before the question.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING

from amplify import templates
from amplify.attribution.explainers import METHODS as EXPLAINERS
from amplify.attribution.prompted import Case, explain_prompted
from amplify.errors import InputError
from amplify.methods.base import Preset, Rehearsal, Role
from amplify.methods.candidates import RATIONALE_TOKENS, gate_shots, planned
from amplify.methods.few_shot import ask_validation, random_shots
from amplify.methods.parse import parse_label, split_answer
from amplify.methods.program import ShotProgram, with_rationales
from amplify.methods.prompt import Form, PromptMethod, shown_gold
from amplify.methods.self_attribution import BUDGET, citable, explain_shots, placed, shot_game
from amplify.methods.self_selection import Chosen, Diversity, Preferred, Wanted, chosen
from amplify.models.base import LanguageModel, need_scoring
from amplify.rationales import random_words, rationalize
from amplify.rationales.wording import opening, verbalise
from amplify.registry import register
from amplify.text import input_text
from amplify.types import Attribution, Completion, Demonstration, Example, Message, Prompt, Rationale, Sampling

if TYPE_CHECKING:
    from amplify.attribution.deletion import Verdict
    from amplify.tasks import Task

Said = tuple[Demonstration, Rationale | None]
Rationales = tuple[list[Rationale | None], list[str]]
SENTENCES = ("phcot", "autocot")
_RETRIES = 2


@dataclass(frozen=True)
class SelfAmplify(PromptMethod):
    """Few-shot prompting with the model's own reasons for its demonstrations; it writes its own, then answers.

    With the same options of selection and seed all variants and controls have the same shots.

    Attributes:
        pool: how many validation examples the model is asked, drawn with the seed; 0 for all.
        selection: what it gets right ("success") or wrong ("error"), drawn at random; any ("random"); or what it is
            most confidently wrong ("mcs_high") or right ("mcs_low") about by its own label log-probabilities.
        balanced: as many shots of each label as possible.
        diversity: also unlike each other: "mmr" by their words, "sp_lime" by what explains them (occlusion).
        skip_flagged: leave out what is likely mislabelled; otherwise it is only noted. Needs log-probabilities.
        shots: how many (the paper has 4).
        k: how many words a rationale cites (the paper has 4 to 5).
        template: of the rationale, and so of what the model's own begins with: "key_words", "paper", "words_only",
            "span", "steps", …, or your own file.
        gate: a rationale must cite words that the model needs more than random words of the same input
            (`amplify.attribution.deletion.judge`), else its shot gives way to the next candidate whose rationale does,
            or is shown without one. Variants then have different shots.
        budget: model evaluations per shot; 0 for what the explainer takes by itself.
        contrastive: explain the gold label against the one wrongly given, or the likeliest other one where the model
            was asked for log-probabilities. The paper explains the gold label alone.
        steps: how many sentences are asked for.
        explain_by: where rationales come from. Words: "topk" (the model names them, told the gold label), an explainer
            of `amplify.attribution` (of its log-probability of the whole label), or chance ("random"). Sentences:
            "phcot" (told the gold label, it explains it) or "autocot" (it thinks without being told). Or "none".

    Example:
        >>> amplify.methods.SelfAmplify(shots=4).label
        'self_amplify_topk[shots=4]'
    """

    pool: int = 200
    selection: Preferred = "success"
    balanced: bool = False
    diversity: Diversity = "none"
    skip_flagged: bool = False
    shots: int = 8
    k: int = 5
    template: str = "key_words"
    gate: bool = False
    budget: int = 0
    contrastive: bool = False
    steps: int = 3
    explain_by: str = "topk"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.explain_by not in ("topk", "random", "none", *SENTENCES):
            EXPLAINERS.find(self.explain_by, "Or topk, phcot, autocot, random, none.")

    def notes_on(self, task: Task, model: LanguageModel) -> tuple[str, ...]:
        """Also that the gate can be had."""
        if self.gate:
            need_scoring(model, f"{self.name}.gate")
        return super().notes_on(task, model)

    def chosen(self, task: Task, model: LanguageModel, seed: int) -> Chosen:
        """The shots without their rationales; see `self_selection.chosen`."""
        wanted = Wanted(**{f.name: getattr(self, f.name) for f in fields(Wanted)})
        return chosen(self, wanted, task, model, seed)

    def fit(self, task: Task, model: LanguageModel, seed: int) -> ShotProgram:
        """Select, explain, verbalise.

        Raises:
            CapabilityError: a model without the log-probabilities or gradients that its explainer needs.
        """
        notes = self.notes_on(task, model)
        found = self.chosen(task, model, seed)
        if self.explain_by == "none":
            return ShotProgram(self.form(task), found.shots, (*notes, *found.notes), found.meta)
        before = model.usage.snapshot()
        made, more = self.rationales(task, model, found.shots, seed)
        shots, meta = found.shots, dict(found.meta)
        if self.gate:

            def spare() -> Iterator[Said]:  # as many at a time as there are shots: explaining costs the model's time
                for start in range(0, len(found.spare), len(shots)):
                    some = found.spare[start : start + len(shots)]
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
        return ShotProgram(self.answering(task, made), shots, (*notes, *found.notes, *more), meta)

    def rationales(self, task: Task, model: LanguageModel, shots: Sequence[Demonstration], seed: int) -> Rationales:
        """One a shot, None where there is nothing to say; and notes."""
        own = {"topk": self._named, "random": self._drawn, "phcot": self._phcot, "autocot": self._autocot}
        return own.get(self.explain_by, self._attributed)(task, model, shots, seed)

    def answering(self, task: Task, made: Sequence[Rationale | None]) -> Form:
        """The form of the final prompts: the model begins with reasons like these, of its own."""
        if self.explain_by in SENTENCES:
            return self.form(task, reasons=True, prefill=self._begin, budget=40 * self.steps)
        begin = opening(templates.load("rationale", self.template))
        line = not any("\n" in rationale.text for rationale in made if rationale)
        return self.form(task, reasons=True, prefill=begin, budget=RATIONALE_TOKENS, line=line)

    @property
    def needs_gradients(self) -> bool:
        """Whether only a model in this process will do."""
        return self.explain_by in EXPLAINERS and EXPLAINERS[self.explain_by].inside

    def rehearse(self, task: Task, model: LanguageModel, seed: int) -> Rehearsal:
        """With random shots, explained as long as the real ones."""
        there = len(task.validation)
        asked = 0 if self.selection == "random" else min(self.pool or there, there)
        asked += self.shots * self._prompts_per_shot
        ask_validation(self, task, model, seed, asked)
        program = random_shots(self, task, model, seed)
        if self.explain_by != "none":
            said = [self._imitation(shot.example) for shot in program.shots]
            program = ShotProgram(self.answering(task, said), with_rationales(program.shots, said))
        return Rehearsal(program, planned(asked))

    @property
    def _prompts_per_shot(self) -> int:
        """How many prompts explaining a shot takes at most, replies that cannot be read apart."""
        if self.explain_by in ("topk", *SENTENCES):
            return 1
        if self.explain_by in ("random", "none") or EXPLAINERS[self.explain_by].kind != "perturbation":
            return 0  # gradients take no prompts
        return (self.budget or BUDGET) * (2 if self.contrastive else 1)

    def _imitation(self, example: Example) -> Rationale:
        """A rationale as long as the real ones: sentences of fifteen words, or the first words of the input."""
        if self.explain_by in SENTENCES:
            return self._sentences("word " * 15 * self.steps, "")
        words = tuple(input_text(example).split()[: self.k])
        even = Attribution(example.text, (), (), (), str(example.label))
        return verbalise(words, even, self.template, shares=[1 / len(words)] * len(words))

    # -- words

    def _cited(self, attributions: Sequence[Attribution | None], shots: Sequence[Demonstration]) -> Rationales:
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

    def _named(self, task: Task, model: LanguageModel, shots: Sequence[Demonstration], seed: int) -> Rationales:
        """Ask behind the begun answer "The answer is (C). The 5 words …"."""
        form = self.form(task)
        cases = []
        for shot in shots:
            spans = citable(task, shot.example)
            prompt, _, _ = placed(form, shot.example, spans)
            text, gold = input_text(shot.example), shown_gold(shot.example)
            cases.append(Case(text, gold, spans=spans, prompt=prompt, model=model.id))
        found = explain_prompted(cases, model, "self", k=self.k, seed=seed, retries=_RETRIES)
        made, notes = self._cited(found.attributions, shots)
        if found.invented:
            notes.append(f"{found.invented} words named that are not in the input: left out")
        return made, notes

    def _attributed(self, task: Task, model: LanguageModel, shots: Sequence[Demonstration], seed: int) -> Rationales:
        """Attribute, then cite the words that speak for the label."""
        found = explain_shots(
            self, task, model, shots, self.explain_by, contrastive=self.contrastive, seed=seed, budget=self.budget
        )
        made, notes = self._cited(found, shots)
        if self.contrastive and (plain := sum(shot.foil is None for shot in shots)):
            notes.append(f"{plain} of {len(made)} labels explained without a contrast: no other label is known")
        return made, notes

    def _drawn(self, task: Task, model: LanguageModel, shots: Sequence[Demonstration], seed: int) -> Rationales:
        """Words drawn with the seed."""
        made: list[Rationale | None] = []
        for shot in shots:
            spans, text = citable(task, shot.example), input_text(shot.example)
            words = tuple(text[a:b] for a, b in spans)
            # every word counts alike
            even = Attribution(text, words, spans, (1.0,) * len(words), str(shot.example.label), method="random")
            drawn = random_words(even, self.k, seed)
            made.append(verbalise(drawn, even, self.template, label=shown_gold(shot.example)))
        return made, []

    # -- sentences

    @property
    def _begin(self) -> str:
        """What a rationale begins with."""
        form = templates.load("rationale", self.template)
        return form.before("explanation", {"steps": self.steps, "explanation": ""}).rstrip()

    def _sentences(self, explanation: str, kind: str) -> Rationale:
        """The rationale as it stands in a prompt, on one line."""
        form = templates.load("rationale", self.template)
        return Rationale(form.render({"steps": self.steps, "explanation": explanation}), kind=kind)

    def _phcot(self, task: Task, model: LanguageModel, shots: Sequence[Demonstration], seed: int) -> Rationales:
        """Ask behind the begun answer "The answer is (C). 3-step explanation:"."""
        form = self.form(task)
        prompts = []
        for shot in shots:
            given = {"steps": self.steps, "label": shown_gold(shot.example), "marker": form.marker}
            prefill = templates.load("prefill", "explanation").render(given)
            prompts.append(_request(form, shot, templates.load("request", "explanation").render(given), prefill))
        found = self._asked(prompts, model, form.marker, seed)
        return [self._sentences(text, "phcot") if text else None for text, _ in found], []

    def _autocot(self, task: Task, model: LanguageModel, shots: Sequence[Demonstration], seed: int) -> Rationales:
        """Ask for steps and an answer; how many argue for another label than the gold one is noted."""
        form = self.form(task)
        marker = form.marker
        request = templates.load("request", "steps").render({"steps": self.steps, "marker": marker})
        found = self._asked([_request(form, s, request, self._begin) for s in shots], model, marker, seed)
        astray = 0
        for shot, (_, written) in zip(shots, found, strict=True):
            answer = parse_label(written, form.labels_of(shot.example), options=shot.example.options, marker=marker)
            astray += answer not in (None, shot.example.label)
        notes = [f"{astray} of {len(found)} chains end in another answer than the gold one"] if astray else []
        return [self._sentences(text, "autocot") if text else None for text, _ in found], notes

    def _asked(self, prompts: Sequence[Prompt], model: LanguageModel, marker: str, seed: int) -> list[tuple[str, str]]:
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


_WORDS = ("k", "template", "gate")
_BY_EXPLAINER = ("budget", "contrastive")


def _variant(name: str, explain_by: str, about: str, *options: str, role: Role = "method", **defaults: str) -> None:
    """Register a variant that has these options beside those of selection and prompts."""
    without = tuple(o for o in (*_WORDS, *_BY_EXPLAINER, "steps") if o not in options)
    preset = Preset(SelfAmplify, about, role, fixed={"explain_by": explain_by}, defaults=defaults, without=without)
    register("method", f"self_amplify_{name}", preset)


_variant("topk", "topk", "The model names the k words itself, told the gold label.", *_WORDS)
for _name, _explainer, _about in (
    ("shap", "kernel_shap", "KernelSHAP."),
    ("lime", "lime", "LIME."),
    ("occlusion", "occlusion", "Occlusion, which the paper calls feature ablation."),
    ("gradient", "grad_x_input", "Gradient times input."),
    ("deeplift", "deep_lift", "DeepLIFT."),
    ("shapley_sampling", "shapley_sampling", "Shapley sampling."),
):
    _variant(_name, _explainer, _about, *_WORDS, *_BY_EXPLAINER)
_variant(
    "phcot", "phcot", "Post hoc chain of thought: told the gold label, the model explains it in a few sentences.",
    "steps", "template", template="steps",
)  # fmt: skip
_variant(
    "autocot", "autocot",
    """A chain of thought that the model writes without being told the label (Auto-CoT; Zhang et al. 2022).

The demonstration still ends with the gold label; how many chains argue for another one is noted.""",
    "steps", "template", template="steps",
)  # fmt: skip
_variant("no_rationale", "none", "Self-AMPLIFY's shots, answers only: is it the selection that helps?", role="control")
_variant(
    "random_words", "random", "Self-AMPLIFY with k random content words of the same input.", *_WORDS, role="control"
)


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


def _request(form: Form, shot: Demonstration, request: str, prefill: str) -> Prompt:
    """The shot's zero-shot prompt with something asked at its end and the answer begun; raw text is only begun."""
    prompt = form.prompt(shot.example, prefill=form.marker)
    if prompt.text is not None:
        return replace(prompt, prefix=f" {prefill}", emphasis=())
    last = prompt.messages[-1]
    asked = Message(last.role, f"{last.content}\n\n{request}")
    return Prompt(messages=(*prompt.messages[:-1], asked), prefix=prefill)


def judge_own(
    method: PromptMethod, task: Task, model: LanguageModel, shot: Demonstration, said: Rationale | None, seed: int
) -> Verdict:
    """Does a model need the words that it cites of its own shot?

    Args:
        method: whose zero-shot prompt asks for the label.
        task: the task.
        model: the model, which gives log-probabilities.
        shot: with its foil where that is known.
        said: what it said; None fails.
        seed: of the random words.

    Raises:
        CapabilityError: the model gives no log-probabilities.
    """
    from amplify.attribution.deletion import Verdict, judge

    if said is None:
        return Verdict(False, 0.0, 0.0, 0.0)
    return judge(said.words, shot_game(method, task, model, shot), seed=seed)

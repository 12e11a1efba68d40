"""AMPLIFY: shots that the model gets wrong, with a small model's reasons (arXiv 2305.11426); its controls."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary

from amplify import templates
from amplify.errors import InputError
from amplify.methods.base import Preset, Program, Rehearsal
from amplify.methods.candidates import RATIONALE_TOKENS, SPARE, check_room, citable_pool, gate_shots, planned
from amplify.methods.contents import fit_key
from amplify.methods.few_shot import FewShot, ZeroShot, ask_validation, random_shots
from amplify.methods.parse import shown
from amplify.methods.program import ShotProgram, with_rationales
from amplify.methods.prompt import Form, PromptMethod, check_options
from amplify.methods.proxy import TestWordsProgram, find_proxy, keep
from amplify.models.base import LanguageModel
from amplify.models.cached import origin
from amplify.rationales import others, random_words, rationalize, tfidf_words
from amplify.rationales.salience import SEARCHES
from amplify.rationales.wording import Words, kind_of, opening, variables, verbalise
from amplify.registry import register
from amplify.selection import SELECTIONS, Judge, Selection, require_labels, select
from amplify.text import input_text
from amplify.types import Attribution, Demonstration, Example, Rationale

if TYPE_CHECKING:
    from amplify.proxies import Proxy
    from amplify.tasks import Task

Explanation = tuple[Demonstration, Attribution]
Rationales = Literal["own", "none", "random", "shuffled", "tfidf", "test"]


@dataclass(frozen=True)
class Explained:
    """What a fit found, before it is put into words.

    Attributes:
        shots: selected demonstrations in the order they will have, without rationales; the foil is known.
        attributions: why each shot's gold label is right, one a shot.
        notes, meta: see `ShotProgram`.
        explainer: what made the attributions, never "auto".
        failed: places of the shots whose rationale did not pass the gate.
    """

    shots: tuple[Demonstration, ...]
    attributions: tuple[Attribution, ...]
    notes: tuple[str, ...]
    meta: dict[str, Any]
    explainer: str = "grad_x_input"
    failed: frozenset[int] = frozenset()

    @property
    def labels(self) -> list[str]:
        """Each shot's gold label as prompts write it."""
        return [shown(a.target, bool(s.example.options)) for s, a in zip(self.shots, self.attributions, strict=True)]


@dataclass(frozen=True)
class Amplify(PromptMethod):
    """Few-shot prompting with rationales from a proxy's gradients; the model writes its own, then answers.

    1. A small proxy is fine-tuned on the training split. 2. The model answers the validation split; of what it gets
    wrong, the shots are those on which the proxy is most confidently wrong. 3. The proxy's score of the *gold* label,
    against the label wrongly given, is attributed to the words of the input, and the top k are cited. 4. Input,
    rationale and label of each shot stand before the question.

    What must be ruled out before one may say that explanations helped is the same with other `rationales`: with the
    same options and seed all of them have the same fit.

    Attributes:
        proxy: what explains: a body to fine-tune ("minilm", a hub id, a folder; encoder or causal), or the folder of
            a kept proxy.
        epochs: of fine-tuning; 0 takes the body as it is.
        lora: fine-tune low-rank adapters only.
        pool: how many validation examples the model is asked, drawn with the seed; 0 for all.
        probe: how it is asked.
        misclassified: select among those it gets wrong.
        selection: of `amplify.selection.SELECTIONS`: highest ("mcs_high") or lowest ("mcs_low") misclassification
            confidence of the proxy, "most_faithful" explanation, "random", …
        balanced: as many shots of each label as possible, each label's best by `selection` first. Without it (as in the
            paper) a model that errs on one label mostly gets shots of that label mostly. For tasks with fixed labels.
        explainer: any of `amplify.attribution.explainers.METHODS`, e.g. gradient times input; "auto" takes the one that
            is most faithful to the proxy on held-out examples (`amplify.attribution.auto.choose`).
        budget: evaluations of the proxy per example that perturbation explainers may make.
        gate: a rationale must cite words that the proxy needs more than random words of the same example, else its
            shot gives way to the next candidate whose rationale does, or is shown without one.
        contrastive: explain the gold label against the one wrongly given, not the gold label alone.
        k: words in a rationale.
        positive: cite only words that speak for the label.
        shots: how many.
        template: of the rationale: "key_words", "paper", "words_only", or your own file.
        rationales: the proxy's "own"; or "none", "random" content words of the same input, the words of another shot
            ("shuffled"), those of highest TF-IDF ("tfidf"), as many as it cited; or its own for the "test" input, too.

    Example:
        >>> amplify.methods.Amplify(shots=4, explainer="lime").label
        'amplify[explainer=lime,shots=4]'
    """

    proxy: str = "minilm"
    epochs: int = 4
    lora: bool = False
    pool: int = 200
    probe: Literal["zero_shot", "few_shot"] = "zero_shot"
    misclassified: bool = True
    selection: str = "mcs_high"
    balanced: bool = False
    explainer: str = "grad_x_input"
    budget: int = 128
    gate: bool = False
    contrastive: bool = True
    k: int = 5
    positive: bool = False
    shots: int = 8
    template: str = "key_words"
    rationales: Rationales = "own"

    def __post_init__(self) -> None:
        super().__post_init__()
        from amplify.attribution.explainers import AUTO, METHODS

        if self.explainer != "auto":
            METHODS.find(self.explainer, AUTO)
        SELECTIONS.find(self.selection)

    @property
    def makes(self) -> type[Program]:
        """See `Method.makes`."""
        return TestWordsProgram if self.rationales == "test" else ShotProgram

    def fit(self, task: Task, model: LanguageModel, seed: int) -> Program:
        """Select, explain, verbalise.

        Raises:
            InputError: no validation split, no labels to choose from, or an impossible option.
            ContextLengthError: the shots cannot fit, before any work.
        """
        notes = self.notes_on(task, model)
        if self.rationales == "shuffled" and self.shots < 2:
            raise InputError(f"{self.name} needs at least 2 shots, got {self.shots}")
        found = self.explained(task, model, seed)
        if self.rationales == "none":
            return ShotProgram(self.form(task), found.shots, (*found.notes, *notes), found.meta)
        program = self.in_words(task, found, self.said(task, found, seed), notes)
        return self._with_test_words(program, found, task, seed) if self.rationales == "test" else program

    def said(self, task: Task, found: Explained, seed: int) -> list[Rationale | None]:
        """Each shot's rationale; None where no word speaks for its label, or the gate shut."""
        made = zip(found.attributions, found.labels, strict=True)
        own = [None if i in found.failed else self.worded(a, label) for i, (a, label) in enumerate(made)]
        sizes = [len(r.words) if r else 0 for r in own]
        words: Sequence[Words]
        if self.rationales == "random":
            words = [random_words(a, n, seed) for a, n in zip(found.attributions, sizes, strict=True)]
        elif self.rationales == "tfidf":
            corpus = [input_text(example) for example in task.train or task.validation]
            words = tfidf_words(found.attributions, sizes, corpus)
        elif self.rationales == "shuffled":
            own = others(own, seed)
            words = [r.words if r else () for r in own]
        else:
            return own
        # the same sentences, numbers included, with other words; none where there was none
        form = templates.load("rationale", self.template)
        replaced = zip(words, own, found.attributions, found.labels, strict=True)
        return [
            verbalise(w, a, form, label=label, shares=(r.shares if r else ())[: len(w)]) if w else None
            for w, r, a, label in replaced
        ]

    def in_words(
        self, task: Task, found: Explained, rationales: Sequence[Rationale | None], notes: Sequence[str] = ()
    ) -> ShotProgram:
        """The program with these rationales behind the shots; a shot whose rationale is None shows its answer alone."""
        noted = list(notes)
        if dropped := sum(r is None for i, r in enumerate(rationales) if i not in found.failed):
            noted.append(f"{dropped} of {len(rationales)} rationales dropped: no word speaks for the label")
        if short := sum(r is not None and len(r.words) < self.k for r in rationales):
            noted.append(f"{short} of {len(rationales)} rationales have fewer than {self.k} words to cite")
        shots = with_rationales(found.shots, rationales)
        return ShotProgram(self.rationale_form(task, rationales), shots, (*found.notes, *noted), found.meta)

    def rationale_form(self, task: Task, rationales: Sequence[Rationale | None]) -> Form:
        """The form of prompts whose answers begin with a rationale like these."""
        prefill = opening(templates.load("rationale", self.template))
        line = not any("\n" in rationale.text for rationale in rationales if rationale)
        return self.form(task, reasons=True, prefill=prefill, budget=RATIONALE_TOKENS, line=line)

    def _with_test_words(self, base: ShotProgram, found: Explained, task: Task, seed: int) -> TestWordsProgram:
        """The program, and what the proxy needs at answer time."""
        from amplify.attribution.words import fixed_words

        kept = keep(find_proxy(task, self.proxy, self.epochs, self.lora, seed), task, self.proxy, seed)
        return TestWordsProgram(
            base=base,
            proxy=str(kept.folder),
            identity=kept.identity,
            explainer=found.explainer,
            contrastive=self.contrastive,
            budget=self.budget,
            seed=seed,
            k=self.k,
            positive=self.positive,
            template=templates.load("rationale", self.template),
            masked=tuple(sorted(fixed_words(task))),
        )

    def worded(self, attribution: Attribution, label: str) -> Rationale | None:
        """A shot's rationale; None where no word speaks for its label.

        Args:
            attribution: why the gold label is right.
            label: as prompts write it.
        """
        form = templates.load("rationale", self.template)
        try:
            return rationalize(attribution, form, self.k, label=label, positive=self.positive)
        except InputError:
            if not self.positive and kind_of(form) not in SEARCHES:
                raise
            return None

    def explained(self, task: Task, model: LanguageModel, seed: int) -> Explained:
        """The shots and why, found once per model, task, seed and options (those of wording aside).

        Raises:
            InputError: no validation split, no labels to choose from, or an impossible option.
            ContextLengthError: the shots cannot fit, before any work.
        """
        check_options(self)
        wording = {"max_tokens", "extract", "rationales", "variant"}
        if not self.gate:  # which judges the words themselves
            wording |= {"template", "positive"}
            if self.selection != "most_faithful" and self.explainer != "auto":
                wording.add("k")
        chosen = tuple(getattr(self, f.name) for f in fields(self) if f.name not in wording)
        key = (chosen, fit_key(self), task.fingerprint, seed)
        known = _FITS.setdefault(origin(model), {})
        if key not in known:
            known[key] = _fit(self, task, model, seed)
        return known[key]

    def rehearse(self, task: Task, model: LanguageModel, seed: int) -> Rehearsal:
        """With random shots and random words: no proxy is trained."""
        asked = min(self.pool or len(task.validation), len(task.validation))
        ask_validation(self, task, model, seed, asked)
        return Rehearsal(self.imitated(task, random_shots(self, task, model, seed)), planned(asked))

    def imitated(self, task: Task, program: ShotProgram) -> ShotProgram:
        """A program with rationales as long as the real ones: for plans."""
        if self.rationales == "none":
            return program
        template = templates.load("rationale", self.template)
        made = []
        for shot in program.shots:
            words = tuple(shot.example.text.split()[: self.k])
            even = [1 / len(words)] * len(words)
            given = variables(words, even, shot.example.label or "", None, shot.example.text)
            made.append(Rationale(template.render(given), words))
        return ShotProgram(self.rationale_form(task, made), with_rationales(program.shots, made))


CONTROLS: dict[Rationales, tuple[str, str]] = {
    "none": ("no_rationale", "AMPLIFY's shots, answers only: is it the selection that helps?"),
    "random": (
        "random_words",
        "AMPLIFY with random content words of the same input, as many as the rationale cited.",
    ),
    "shuffled": ("shuffled_rationales", "AMPLIFY with the words of another shot, said of this shot's own label."),
    "tfidf": (
        "tfidf_words",
        "AMPLIFY with the words of highest TF-IDF: do the proxy's gradients tell more than word counts?",
    ),
    "test": (
        "test_words",
        """AMPLIFY with the proxy's words for the test input, too: the model completes the proxy's rationale.

What is explained there is the label that the proxy itself predicts (against its second choice): no gold label is
looked at. The label is not written; the model must name it.""",
    ),
}
register("method", "amplify", Preset(Amplify, fixed={"rationales": "own"}))
for kind, (ending, about) in CONTROLS.items():
    register("method", f"amplify_{ending}", Preset(Amplify, about, "control", fixed={"rationales": kind}))


# controls are compared with AMPLIFY on the very same shots, and asking the model for them once is enough
_FITS: WeakKeyDictionary[LanguageModel, dict[Any, Explained]] = WeakKeyDictionary()


def _fit(method: Amplify, task: Task, model: LanguageModel, seed: int) -> Explained:
    from amplify.attribution.auto import Trial, choose
    from amplify.attribution.deletion import Verdict, deletion, judge

    pool, notes = citable_pool(method.name, method.pool, task, seed)
    if method.balanced:
        require_labels(task, f"{method.name}.balanced")
    check_room(method.form(task, reasons=True, budget=RATIONALE_TOKENS), method.shots, task, model)
    proxy = find_proxy(task, method.proxy, method.epochs, method.lora, seed)
    proxy.require_head(f"{method.name}: attribution")

    before = model.usage.snapshot()
    shared = method.shared("max_tokens", "extract")
    asker = ZeroShot(**shared) if method.probe == "zero_shot" else FewShot(shots=method.shots, **shared)
    answers = asker.fit(task, model, seed).answer(pool, model)
    wrong = {e.id: a.value for e, a in zip(pool, answers, strict=True) if a.value != e.label}
    unparsed = sum(answer.value is None for answer in answers)
    if 2 * unparsed > len(wrong):
        notes.append(f"{unparsed} of the model's {len(wrong)} wrong answers could not be read: it fails at the format")

    explainer, choice = method.explainer, None
    if explainer == "auto":
        trial = Trial(k=method.k, budget=method.budget, seed=seed)
        choice = choose(proxy, task, trial, contrastive=method.contrastive)
        explainer = choice.method
        notes.append(choice.note)

    def selected(shots: int) -> Selection:
        return select(
            method.selection,
            task,
            shots,
            seed=seed,
            pool=pool,
            wrong=wrong if method.misclassified else None,
            judge=Judge(proxy, explained, method.k),
            balanced=method.balanced,
        )

    def explained(examples: Sequence[Example]) -> list[Attribution]:
        return [why for _, why in reasons([Demonstration(e) for e in examples])]

    def reasons(shots: Sequence[Demonstration]) -> list[Explanation]:
        return _reasons(method, task, proxy, explainer, shots, wrong, seed)

    chosen = selected(method.shots)
    # in random order: sorted by confidence the labels would come in runs
    found = reasons(random.Random(seed).sample(chosen.shots, len(chosen.shots)))
    notes += chosen.notes
    failed: frozenset[int] = frozenset()
    meta: dict[str, Any] = {}
    if method.gate:
        taken = {shot.example.id for shot in chosen.shots}
        more = selected(min(SPARE * method.shots, len(pool))).shots[len(chosen.shots) :]
        spare = [s for s in more if s.example.id not in taken and (not method.misclassified or s.example.id in wrong)]

        def judged(shot: Demonstration, why: Attribution) -> Verdict:
            said = method.worded(why, shown(why.target, bool(shot.example.options)))
            if said is None:
                return Verdict(False, 0.0, 0.0, 0.0)
            return judge(said.words, deletion(why, proxy, shot.example), seed=seed)

        gated = gate_shots(found, lambda: reasons(spare), judged, balanced=method.balanced)
        found, failed = gated.shots, gated.failed
        notes.append(gated.note)
        meta["gate"] = gated.meta
    if choice is not None:
        meta["explainer"] = {"chosen": choice.method, "merits": choice.merits, "beats": choice.beats}
    return Explained(
        shots=tuple(shot for shot, _ in found),
        attributions=tuple(attribution for _, attribution in found),
        notes=tuple(notes),
        meta={
            "proxy": {"name": proxy.name, "identity": proxy.identity, "validation": proxy.card.get("validation")},
            "asked": len(pool),
            "wrong": len(wrong),
            "unparsed": unparsed,
            "usage": asdict(model.usage.since(before)),
            **meta,
        },
        explainer=explainer,
        failed=failed,
    )


def _reasons(
    method: Amplify,
    task: Task,
    proxy: Proxy,
    explainer: str,
    shots: Sequence[Demonstration],
    wrong: Mapping[str, str | None],
    seed: int,
) -> list[Explanation]:
    """Each shot with its foil, and why its gold label is right."""
    from amplify.attribution.explainers import explain_words, foil_of, plain
    from amplify.attribution.words import key_word_mask

    examples = [shot.example for shot in shots]
    guesses = proxy.probabilities(examples)
    foils = [
        foil_of(task.labels_of(e), str(e.label), p, wrong.get(e.id)) for e, p in zip(examples, guesses, strict=True)
    ]
    made = explain_words(
        proxy,
        examples,
        [example.label for example in examples],
        foils if method.contrastive else None,
        plain(explainer, method.contrastive),
        mask=key_word_mask(task),
        budget=method.budget,
        seed=seed,
    )
    return [(replace(shot, foil=foil), a) for shot, foil, a in zip(shots, foils, made, strict=True)]

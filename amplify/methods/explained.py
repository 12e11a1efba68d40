"""The fit that AMPLIFY and its controls share: what the model gets wrong, which of it to show, and why it is so."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary

from amplify import templates
from amplify.errors import InputError
from amplify.methods.base import Rehearsal
from amplify.methods.baselines import FewShot, ZeroShot, ask_validation, random_shots
from amplify.methods.contents import fit_key
from amplify.methods.gating import SPARE, Explanation, gate_shots, judge_for_proxy
from amplify.methods.parse import shown
from amplify.methods.program import ShotProgram, check_window, with_rationales
from amplify.methods.prompt import Form, PromptMethod, check_options
from amplify.models.base import LanguageModel
from amplify.models.kept import origin
from amplify.rationales import rationalize
from amplify.rationales.salience import SEARCHES
from amplify.rationales.wording import kind_of, opening, variables
from amplify.types import Attribution, Demonstration, Example, Rationale

if TYPE_CHECKING:
    from amplify.attribution.deletion import Verdict
    from amplify.proxies import Proxy
    from amplify.tasks import Task

RATIONALE_TOKENS = 64


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
class ExplainedMethod(PromptMethod):
    """The options that AMPLIFY shares with its controls. With the same options and seed all of them have the same fit.

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

    def __post_init__(self) -> None:
        super().__post_init__()
        from amplify.attribution.explainers import AUTO, METHODS

        if self.explainer != "auto":
            METHODS.find(self.explainer, AUTO)
        from amplify.selection import SELECTIONS

        SELECTIONS.find(self.selection)

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
        wording = {"max_tokens", "extract"}
        if not self.gate:  # which judges the words themselves
            wording |= {"template", "positive"}
            if self.selection != "most_faithful" and self.explainer != "auto":
                wording.add("k")
        chosen = tuple(getattr(self, f.name) for f in fields(ExplainedMethod) if f.name not in wording)
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
        template = templates.load("rationale", self.template)
        made = []
        for shot in program.shots:
            words = tuple(shot.example.text.split()[: self.k])
            even = [1 / len(words)] * len(words)
            given = variables(words, even, shot.example.label or "", None, shot.example.text)
            made.append(Rationale(template.render(given), words))
        return ShotProgram(rationale_form(self, task, made), with_rationales(program.shots, made))


def planned(asked: int) -> str:
    """What a plan of a method that asks about the validation split and cites words has to say."""
    fitting = f", fitting takes about {asked} short prompts (once for methods that share them)" if asked else ""
    return f"estimated: prompts with random shots and words{fitting}"


# controls are compared with AMPLIFY on the very same shots, and asking the model for them once is enough
_FITS: WeakKeyDictionary[LanguageModel, dict[Any, Explained]] = WeakKeyDictionary()


def find_proxy(task: Task, proxy: str, epochs: int, lora: bool, seed: int) -> Proxy:
    """A kept proxy by its folder, or one trained for the task (the same one again where it is in the cache).

    Raises:
        InputError: the kept proxy is for other labels.
    """
    from amplify.proxies import CARD, load_proxy, train_proxy

    if not os.path.isfile(Path(os.path.expanduser(proxy)) / CARD):
        return train_proxy(task, proxy, epochs=epochs, lora=lora, seed=seed)
    kept = load_proxy(os.path.expanduser(proxy))
    if kept.labels != task.labels:
        raise InputError(
            f"the proxy in {proxy} was made for the labels {', '.join(kept.labels) or '(choices)'}; "
            f"task {task.name!r} has {', '.join(task.labels) or '(choices)'}. Train one: amplify proxy {task.name}"
        )
    return kept


def _fit(method: ExplainedMethod, task: Task, model: LanguageModel, seed: int) -> Explained:
    from amplify.attribution.auto import Trial, choose
    from amplify.selection import Selection, require_labels, select

    pool, notes = citable_pool(method.name, method.pool, task, seed)
    if method.balanced:
        require_labels(task, f"{method.name}.balanced")
    check_room(method.form(task, reasons=True, budget=RATIONALE_TOKENS), method.shots, task, model)
    proxy = find_proxy(task, method.proxy, method.epochs, method.lora, seed)
    proxy.require_head(f"{method.name}: attribution")

    before = model.usage.snapshot()
    shared = {f.name: getattr(method, f.name) for f in fields(PromptMethod) if f.name not in ("max_tokens", "extract")}
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
            proxy=proxy,
            explain=lambda examples: [why for _, why in reasons([Demonstration(e) for e in examples])],
            k=method.k,
            balanced=method.balanced,
        )

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
            return judge_for_proxy(said, proxy, shot, why, seed)

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
    method: ExplainedMethod,
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


def citable_pool(name: str, size: int, task: Task, seed: int) -> tuple[list[Example], list[str]]:
    """The validation examples that may become shots: a seeded draw of those with words to cite, and notes on it.

    Args:
        name: of the method, for messages.
        size: how many are drawn; 0 for all.
        task: the task.
        seed: of the draw.

    Raises:
        InputError: no validation split, free-text answers, or no word to cite anywhere.
    """
    from amplify.attribution.words import key_word_mask

    if not task.validation:
        raise InputError(f"{name} selects its shots from the validation split, and task {task.name!r} has none")
    if any(not task.labels_of(example) for example in task.validation):
        raise InputError(
            f"{name} explains why a label is right, and task {task.name!r} has free-text answers: "
            "give it labels or choices, or use few_shot or zero_shot_cot"
        )
    mask = key_word_mask(task)
    usable = [example for example in task.validation if any(mask(example))]
    if not usable:
        raise InputError(f"no validation example of task {task.name!r} has a word that a rationale could cite")
    without = len(task.validation) - len(usable)
    notes = [f"{without} validation examples have no word that a rationale could cite"] if without else []
    return random.Random(seed).sample(usable, min(size or len(usable), len(usable))), notes


def check_room(form: Form, shots: int, task: Task, model: LanguageModel) -> None:
    """Refuse now what could not fit with even the shortest shots: asking and training would be for nothing."""
    shortest = sorted(task.validation, key=lambda e: len(form.question(e)))[:shots]
    shown = [Demonstration(example) for example in shortest]
    longest = max(task.test, key=lambda e: len(form.question(e)))
    prompt = form.prompt(longest, shown)
    check_window(model, [prompt], form, [len(shown)], lambda _, n: form.prompt(longest, shown[:n]))


def rationale_form(method: ExplainedMethod, task: Task, rationales: Sequence[Rationale | None]) -> Form:
    """The form of prompts whose answers begin with a rationale like these."""
    prefill = opening(templates.load("rationale", method.template))
    line = not any("\n" in rationale.text for rationale in rationales if rationale)
    return method.form(task, reasons=True, prefill=prefill, budget=RATIONALE_TOKENS, line=line)

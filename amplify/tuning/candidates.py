"""What a search chooses among: configurations of registered methods, and the ingredients each is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from amplify.calibration import WAYS, Way
from amplify.errors import InputError, UnknownNameError
from amplify.methods import METHODS, make
from amplify.methods.base import Method, Mode, Program, inner_method
from amplify.methods.calibrated import calibrated
from amplify.methods.lettered import OptionForm, fit_in_form
from amplify.methods.pasta import find_profile, model_name
from amplify.models.base import LanguageModel, LocalModel, ScoringModel
from amplify.steering import profiles

if TYPE_CHECKING:
    from amplify.tasks import Task

PLAIN = ("zero_shot", "few_shot", "few_shot_knn", "zero_shot_cot", "rag")
"""What people run without a search; the best of these on validation items is what a search must beat."""
INGREDIENTS: Mapping[str, tuple[str, ...]] = {
    "zero_shot": (),
    "zero_shot_cot": ("reasoning",),
    "human_cot": ("shots", "reasoning"),
    "few_shot": ("shots",),
    "few_shot_balanced": ("shots",),
    "few_shot_knn": ("shots", "nearest shots"),
    "amplify": ("shots", "rationales"),
    "proxy_alone": ("proxy",),
    "proxy_hint": ("shots", "proxy"),
    "attention_vectors": ("attention vectors",),
    "emphasise_words": ("proxy", "emphasis"),
    "emphasise_label": ("proxy", "emphasis"),
    "pasta": ("emphasis",),
    "instaboost": ("emphasis",),
    "spotlight": ("emphasis",),
    "few_shot_pasta": ("shots", "emphasis"),
    "rag": (),
    "rag_distil_shapley": ("documents kept",),
    "rag_rerank_shapley": ("documents ordered",),
    "rag_loop": ("documents emphasised",),
}
"""Method -> what it adds to the question alone; one that is not listed is an ingredient of its own name."""
ADDED: Mapping[str, str] = {
    "proxy_pool": "proxy",
    "stacked": "proxy",
    "cascade": "proxy",
    "self_consistency": "several answers",
    "augmented": "several answers",
    "shuffled_shots": "several answers",
    "instruction_search": "instruction",
    "instruction_paraphrases": "instruction",
}
"""Method around another one -> what it adds to that."""
OPTIONAL = ("zero_shot_cot",)  # plain, but so dear that it comes last


@dataclass(frozen=True)
class Candidate:
    """One configuration.

    Attributes:
        method: of the registry, with its options.
        calibrate: how its label scores are calibrated.
        option_form: how lettered options are scored.
        plain: among what people run without a search.

    Example:
        >>> Candidate.parse("few_shot[shots=4]+batch", "score").label
        'few_shot[shots=4] + batch'
    """

    method: Method
    calibrate: Way = "none"
    option_form: OptionForm = "letters"
    plain: bool = field(default=False)

    @classmethod
    def parse(cls, text: str, mode: Mode, plain: bool = False) -> Candidate:
        """A candidate as it is written: METHOD[OPTION=VALUE,...]+CALIBRATION+OPTION_FORM, the last two where wanted.

        Raises:
            UnknownNameError: no such method, option, calibration or form.
        """
        from amplify.methods.lettered import OPTION_FORMS

        name, *more = (part.strip() for part in text.split("+"))
        made: dict[str, Any] = {"method": inner_method(name, mode), "plain": plain}
        for part in more:
            if part not in (*WAYS, *OPTION_FORMS):
                raise UnknownNameError("calibration or option form", part, (*WAYS, *OPTION_FORMS))
            made["calibrate" if part in WAYS else "option_form"] = part
        return cls(**made)

    @property
    def label(self) -> str:
        """Its name in tables: `parse` reads it again."""
        form = [] if self.option_form == "letters" else [self.option_form]
        return " + ".join([self.method.label, *([] if self.calibrate == "none" else [self.calibrate]), *form])

    @property
    def ingredients(self) -> tuple[str, ...]:
        """What it adds to the question alone."""
        own = INGREDIENTS.get(self.method.name, (self.method.name.partition("_")[0],))
        if getattr(self.method, "template", "") == "question_last":
            own = (*own, "question last")
        if getattr(self.method, "search", "none") != "none":
            own = (*own, "documents kept")
        inner = getattr(self.method, "inner", "")  # an option that some methods have
        if inner:
            inside = Candidate(inner_method(inner, self.method.mode), getattr(self.method, "calibrate", "none"))
            own = (*inside.ingredients, ADDED.get(self.method.name, self.method.name))
        calibration = ("calibration",) if self.calibrate != "none" else ()
        form = ("option form",) if self.option_form != "letters" else ()
        return tuple(dict.fromkeys((*own, *calibration, *form)))

    @property
    def complexity(self) -> int:
        """How much it takes: its ingredients, and for equal ones its shots."""
        shots = getattr(self.method, "shots", 0)
        return 100 * len(self.ingredients) + (shots if isinstance(shots, int) else 0)

    def fit(self, task: Task, model: LanguageModel, seed: int) -> Program:
        """The program of this configuration; see `Method.fit`."""
        program = fit_in_form(self.method, task, model, seed, self.option_form)
        return calibrated(program, task, model, self.calibrate, seed)


def candidates_for(task: Task, model: LanguageModel) -> tuple[list[Candidate], list[str]]:
    """What is tried on a task with a model, dearest last, and notes on what is left out and why.

    Label tasks are scored where the model scores, else written. What a plugin registers as a method takes part.

    Example:
        >>> task, model = amplify.load_task("support_tickets"), amplify.load_model("scripted:first_option")
        >>> listed, notes = candidates_for(task, model)
        >>> listed[0].plain
        True
    """
    labels = bool(task.labels_of(next(iter((*task.validation, *task.train, *task.test)))))
    documents = any("documents" in e.fields for e in task.test[:1])
    notes: list[str] = []
    mode: Mode = "score" if labels and isinstance(model, ScoringModel) else "generate"
    if labels and mode == "generate":
        notes.append(f"{model.id} gives no log-probabilities: labels are written, and calibration, pools are left out")
    if not labels:
        notes.append("free-text answers: calibration, proxies and rationales are left out, which need labels")
    if documents:
        plain, more = ["rag"], _with_documents()
    else:
        plain = [name for name in PLAIN if name not in ("rag", *OPTIONAL)]
        more = _for_labels(task, mode, model) if labels else ["few_shot[shots=4]", "few_shot_knn[shots=4]"]
    more = [*_with_emphasis(task, model), *more]  # as cheap as the question alone
    added = [name for name in METHODS if METHODS.package(name) and METHODS[name].role == "method"]
    listed = [*((name, True) for name in plain), *((text, False) for text in [*more, *added])]
    if not documents:
        listed += [(name, True) for name in OPTIONAL]
        listed += [("self_consistency", False)] if labels else []  # the dearest of all
    return [Candidate.parse(text, mode, is_plain) for text, is_plain in listed], notes


def _for_labels(task: Task, mode: Mode, model: LanguageModel) -> list[str]:
    if mode == "generate":
        found = ["proxy_alone", "cascade[inner=zero_shot]", "cascade", "few_shot[shots=4]"]
        return [*found, *(["few_shot[selection=balanced]"] if task.labels else []), "proxy_hint", "amplify"]
    # the cheap ones first: where the budget ends the first round, what is left was dear
    lettered = all(e.options for e in (*task.validation[:5], *task.train[:5])) and not task.labels
    forms = ["zero_shot+permuted", "zero_shot+texts_pmi", "zero_shot+texts"] if lettered else []
    alone = ["proxy_alone", "proxy_pool[inner=zero_shot]"]
    # a classifier of choices that are new in each item is slow to train, and seldom knows more than chance
    small, late = (alone, []) if task.labels else ([], [*alone, "proxy_pool[inner=few_shot]"])
    inside = ["attention_vectors"] if task.labels and isinstance(model, LocalModel) else []
    named = [f"{name}[profile={profile}]+batch" for profile in _profiles_of(model)[:1]
             for name in ("emphasise_words", "emphasise_label")] if task.labels else []  # fmt: skip
    return [
        "zero_shot+batch",
        *forms,
        *small,
        "zero_shot+contextual",
        *inside,
        "few_shot+batch",
        *(["proxy_pool[inner=few_shot]"] if task.labels else []),
        "few_shot_knn+batch",
        *(["proxy_pool"] if task.labels else []),
        "few_shot_knn+affine",
        "few_shot+contextual",
        "few_shot_knn[shots=4]+batch",
        "few_shot[shots=4]+batch",
        *(["few_shot[selection=balanced]+batch"] if task.labels else []),
        *late,
        "proxy_hint+batch",
        *named,
        "few_shot_knn[shots=16]+batch",
        "amplify+batch",
        *_SEVERAL,
        *(["stacked"] if task.labels and task.train and task.validation else []),
    ]


_SEVERAL = (
    "shuffled_shots[inner=few_shot[shots=4]]+batch",
    "instruction_search[inner=few_shot[shots=4]]+batch",
    "augmented[inner=few_shot[shots=4]]+batch",
)


def _with_documents() -> list[str]:
    last = "template=question_last"
    return [f"rag[{last}]", f"rag[search=minilm,documents=3,{last}]", f"rag_distil_shapley[{last}]",
            f"rag_rerank_shapley[best=last,{last}]", f"rag_loop[{last}]"]  # fmt: skip


def _with_emphasis(task: Task, model: LanguageModel) -> list[str]:
    """Steering to what the task emphasises: by the profile of model and task, else by each profile of the model."""
    if not task.emphasis:
        return []
    try:
        find_profile("", model, task.name)
        heads = ["pasta"]
    except InputError:
        heads = [f"pasta[profile={name}]" for name in _profiles_of(model)]
    return [*heads, "instaboost", "instaboost[bonus=1]", "spotlight"]


def _profiles_of(model: LanguageModel) -> list[str]:
    called = model_name(model)
    return [name for name in profiles() if name == called or name.startswith(f"{called}-")]


def checked(given: Sequence[str | Method | Candidate], mode: Mode) -> list[Candidate]:
    """Candidates that a user names, the plain ones marked; zero_shot is added where none is plain.

    Raises:
        InputError: none, or one twice.
    """
    made = []
    for one in given:
        if isinstance(one, Candidate):
            made.append(one)
        elif isinstance(one, Method):
            made.append(Candidate(one))
        else:
            bare = one.partition("[")[0].partition("+")[0].strip()
            made.append(Candidate.parse(one, mode, plain=bare in PLAIN and "+" not in one))
    if not made:
        raise InputError("a search needs at least one candidate")
    if not any(c.plain for c in made):
        made.insert(0, Candidate(make("zero_shot", mode=mode), plain=True))
    labels = [c.label for c in made]
    if twice := sorted({label for label in labels if labels.count(label) > 1}):
        raise InputError(f"the candidate {twice[0]!r} is given more than once")
    return made

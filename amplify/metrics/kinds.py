"""What metrics there are, and the scores of a single item."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from amplify.errors import DataError, InputError
from amplify.metrics import text
from amplify.metrics.answers import (
    Prediction,
    answer_match,
    contains,
    exact,
    first_token_choice,
    macro_f1,
    same_label,
    token_f1,
)
from amplify.metrics.evidence import evidence_scores
from amplify.registry import Table, register
from amplify.types import Answer, Example


@dataclass(frozen=True)
class Kind:
    """How a metric scores one prediction against one reference, and all of them together.

    `further` are scores of the prediction against the reference that it fits best; `beside` are scores that are each
    the best over the references; with `first_token` a choice in score mode is also made by the labels' first tokens.
    `of` gives all scores of an answer to an example, the main one first, where a prediction and a reference do not say
    enough; `more` only what comes beside them. With `documents` it judges how a method ranks what it reads.

    Example:
        >>> find("accuracy").item("A", "A")
        1.0
    """

    description: str
    item: Callable[[str, str], float]
    item_name: str
    whole: Callable[[Sequence[Prediction], Sequence[str]], float] | None = None
    further: Callable[[str, str], dict[str, float]] | None = None
    beside: Mapping[str, Callable[[str, str], float]] = field(default_factory=dict)
    first_token: bool = False
    of: Callable[[Answer, Example], dict[str, float]] | None = None
    more: Callable[[Answer, Example], dict[str, float]] | None = None
    documents: bool = False


HARNESS = "lm_eval:"
"""Begins the name of a metric of lm-evaluation-harness."""

OPENED: dict[str, Kind] = {}
"""Those of the tasks that `amplify.bridges.lm_eval.harness_task` opened in this process, by name."""


def _adopt(name: str, value: Any) -> Kind:
    if isinstance(value, Kind):
        return value
    if not callable(value):
        raise InputError(f"the metric {name!r} is a function of a prediction and a reference, or a Kind, not {value!r}")
    return Kind(next(iter((value.__doc__ or "").strip().splitlines()), ""), value, name)


KINDS: Table[Kind] = Table("metric", _adopt)
"""Every metric by name."""


def find(name: str) -> Kind:
    """A metric by its name, or one of Hugging Face `evaluate` by "evaluate:NAME" or "evaluate:FOLDER".

    Raises:
        UnknownNameError: no such metric.
        DataError: that of Hugging Face cannot be loaded, or that of the harness was not opened.

    Example:
        >>> find("f1").item_name
        'f1'
    """
    if name.startswith("evaluate:"):
        from amplify.metrics.hugging_face import evaluate_metric

        return Kind(*evaluate_metric(name), name)
    if name.startswith(HARNESS):
        if name not in OPENED:
            raise DataError(
                f"the metric {name!r} is computed by lm-evaluation-harness from its own task: open that first, "
                "amplify.bridges.lm_eval.harness_task(…)"
            )
        return OPENED[name]
    return KINDS.find(name, "Or one of Hugging Face evaluate: evaluate:NAME or evaluate:FOLDER.")


def item_score(kind: Kind, prediction: Prediction, references: Sequence[str]) -> dict[str, float]:
    """The best score over the accepted answers, what else the metric tells of it, and whether nothing was answered.

    Example:
        >>> item_score(find("accuracy"), "Ada", ["Ada", "Ada Lovelace"])["accuracy"]
        1.0
    """
    empty = prediction is None or not prediction.strip()
    scored = [(0.0 if empty else _share(kind, str(prediction), r), r) for r in references]
    score, best = max(scored, key=lambda pair: pair[0], default=(0.0, ""))
    further = kind.further("" if empty else str(prediction), best) if kind.further and references else {}
    for name, beside in kind.beside.items():
        further[name] = 0.0 if empty else max((beside(str(prediction), r) for r in references), default=0.0)
    return {kind.item_name: score, **further, "unparsed": float(empty)}


def _share(kind: Kind, prediction: str, reference: str) -> float:
    """The item's score, which is a share: intervals and tables rely on it."""
    score = kind.item(prediction, reference)
    if not 0 <= score <= 1:
        raise InputError(
            f"{kind.item_name} gives {prediction[:60]!r} against {reference[:60]!r} the score {score}: a metric's "
            "scores lie between 0 and 1, and more is better"
        )
    return score


def answer_scores(name: str, answer: Answer, example: Example) -> dict[str, float]:
    """Scores of one answer, the metric's main score first; with those of its documents where it read some.

    Args:
        name: of the metric; see `find`.
        answer: what a program answered.
        example: with its gold answer and gold evidence.

    Raises:
        InputError: the example has no gold answer, or the metric needs documents and the answer has none.

    Example:
        >>> example = amplify.Example(id="1", text="Who?", label="Ada")
        >>> answer_scores("accuracy", amplify.Answer(value="Ada"), example)
        {'accuracy': 1.0}
    """
    kind = find(name)
    if kind.of is not None:
        return kind.of(answer, example)
    scores = item_score(kind, answer.value, references_of(example))
    del scores["unparsed"]
    if kind.first_token and answer.first_tokens:
        scores[f"paper_{kind.item_name}"] = first_token_choice(answer.first_tokens, references_of(example)[0])
    if kind.more is not None:
        scores |= kind.more(answer, example)
    return {**scores, **(evidence_scores(answer.sources, example) if answer.sources else {})}


def _ranked(answer: Answer, example: Example) -> dict[str, float]:
    """How the documents that an answer is from are ranked, which is all that "evidence" judges."""
    found = evidence_scores(answer.sources, example) if answer.sources else {}
    if "evidence_auc" not in found:
        raise InputError(
            f"example {example.id!r}: the metric 'evidence' judges how documents are ranked, so it needs gold evidence "
            "and a method that reads documents (rag, rag_rerank_shapley, …)"
        )
    return {"evidence_auc": found.pop("evidence_auc"), **found}


def _focus(answer: Answer, example: Example) -> dict[str, float]:
    """Whether what is said to trigger a refusal is what an example says that it is."""
    focus = example.fields.get("focus")
    return text.focus_found(answer.rationale, str(focus)) if focus else {}


def scores(name: str, predictions: Sequence[Prediction], references: Sequence[str | Sequence[str]]) -> dict[str, float]:
    """Means over items (`unparsed`: the share that is None or empty); before them what only all have together, if any.

    Args:
        name: of the metric; see `find`.
        predictions: parsed answers, None where nothing could be parsed.
        references: the accepted answer of each, or several.

    Raises:
        InputError: no items, another number of references, or several where the metric needs one label.

    Example:
        >>> scores("accuracy", ["yes", None], ["yes", "no"])
        {'accuracy': 0.5, 'unparsed': 0.5}
    """
    kind = find(name)
    if not predictions or len(predictions) != len(references):
        raise InputError(f"{len(predictions)} predictions and {len(references)} references cannot be scored")
    accepted = [[r] if isinstance(r, str) else list(r) for r in references]
    items = [item_score(kind, p, r) for p, r in zip(predictions, accepted, strict=True)]
    keys = dict.fromkeys(key for item in items for key in item)
    own = {key: [item[key] for item in items if key in item] for key in keys}
    means = {key: sum(values) / len(values) for key, values in own.items()}
    if kind.whole is None:
        return means
    if any(len(r) != 1 for r in accepted):
        raise InputError(f"{name} needs exactly one gold label an item")
    return {name: kind.whole(predictions, [r[0] for r in accepted]), **means}


def references_of(example: Example) -> tuple[str, ...]:
    """Every accepted gold string of an example: its label, or its answers.

    Raises:
        InputError: the example has neither.
    """
    accepted = example.answers or (() if example.label is None else (example.label,))
    if not accepted:
        raise InputError(f"example {example.id!r} has no gold label and cannot be scored")
    return tuple(accepted)


_BUILT_IN = {
    "accuracy": Kind("share of right labels; an unparsed answer is wrong", same_label, "accuracy"),
    "exact_match": Kind("share of answers equal to an accepted one", exact, "exact_match"),
    "f1": Kind("token F1 with the best accepted answer, SQuAD normalisation", token_f1, "f1"),
    "qa": Kind(
        "share of answers equal to an accepted one after SQuAD normalisation; token F1; share that contain one",
        answer_match,
        "exact_match",
        beside={"f1": token_f1, "contains": contains},
    ),
    "evidence": Kind(
        "documents alone: probability that a gold document is ranked above another one (AUC); needs no gold answer",
        lambda prediction, reference: 0.0,
        "evidence_auc",
        of=_ranked,
        documents=True,
    ),
    "macro_f1": Kind("mean F1 over the labels", same_label, "accuracy", macro_f1),
    "json": Kind(
        "share of answers that are JSON as a whole, with exactly the keys and values wanted",
        text.json_strict,
        "strict_accuracy",
        further=text.json_further,
    ),
    "pronouns": Kind(
        "share of answers that change every pronoun and nothing else",
        text.pronouns_strict,
        "strict_accuracy",
        further=text.pronouns_further,
    ),
    "refusal": Kind(
        "share of prompts treated rightly: safe ones answered, unsafe ones refused",
        text.refusal_strict,
        "right_treatment",
        further=text.refusal_further,
        more=_focus,
    ),
    # a choice of the new fact over the old one, by log-probability of the whole targets in score mode
    "efficacy": Kind("share of items where the new fact beats the old one", same_label, "efficacy", first_token=True),
    "paraphrase": Kind(
        "share of paraphrases where the new fact beats the old one", same_label, "paraphrase_score", first_token=True
    ),
}
for _name, _kind in _BUILT_IN.items():
    register("metric", _name, _kind)

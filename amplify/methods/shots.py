"""Prompts with demonstrations: the program that holds them as plain JSON, and how it answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Self

from amplify.backends.base import Generator
from amplify.errors import DataError
from amplify.methods.answering import answer_prompts, check_window
from amplify.methods.base import PromptProgram
from amplify.methods.forms import Form
from amplify.values import Answer, Attribution, Demonstration, Example, Prompt, Rationale


def as_example(example: Example | str) -> Example:
    """An example as it is; a plain text as an example without a label."""
    return example if isinstance(example, Example) else Example(id="", text=example)


@dataclass(frozen=True)
class ShotProgram(PromptProgram):
    """The same shots before every example.

    Attributes:
        form: how prompts look.
        shots: demonstrations, first to last.
        notes: what a reader of the results must know, e.g. that there were fewer shots than asked for.
        meta: what fitting found and cost, JSON values.
    """

    kind: ClassVar[str] = "shots"

    form: Form
    shots: tuple[Demonstration, ...] = ()
    notes: tuple[str, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)

    def prompt(self, example: Example | str) -> Prompt:
        """The prompt for an example or a plain text."""
        return self.form.prompt(as_example(example), self.shots)

    def answer(self, examples: Sequence[Example], backend: Generator) -> list[Answer]:
        """Answer a batch.

        Raises:
            ContextLengthError: before any work, when a prompt leaves no room for its answer.
            CapabilityError: score mode on a backend that gives no log-probabilities.
        """
        return answer_shots(self.form, examples, [self.shots] * len(examples), backend)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        shots = [asdict(shot) for shot in self.shots]
        return {"form": self.form.to_dict(), "shots": shots, "notes": list(self.notes), "meta": dict(self.meta)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """The inverse of `to_dict`."""
        shots = tuple(demonstration(shot) for shot in data["shots"])
        return cls(Form.from_dict(data["form"]), shots, tuple(data["notes"]), data["meta"])


def answer_shots(
    form: Form,
    examples: Sequence[Example],
    shots: Sequence[Sequence[Demonstration]],
    backend: Generator,
    leads: Sequence[str] | None = None,
) -> list[Answer]:
    """Prompt for each example behind its own shots and read the answers.

    Args:
        form: how prompts look.
        examples: what is asked.
        shots: one sequence of demonstrations an example.
        backend: who answers.
        leads: one beginning of the answer an example, instead of the form's.
    """
    given = leads or [form.lead] * len(examples)
    prompts = [form.prompt(e, s, lead) for e, s, lead in zip(examples, shots, given, strict=True)]

    def with_shots(i: int, n: int) -> Prompt:
        return form.prompt(examples[i], shots[i][:n], given[i])

    check_window(backend, prompts, form.style, form.method, [len(s) for s in shots], with_shots)
    return answer_prompts(prompts, [(form.labels_of(e), e.options) for e in examples], form.style, backend)


def demonstration(data: Mapping[str, Any]) -> Demonstration:
    """A demonstration from its JSON values.

    Raises:
        DataError: a key is missing or not known.
    """
    try:
        raw = dict(data["example"])
        for name in ("choices", "options", "answers"):
            raw[name] = tuple(raw.get(name, ()))
        rationale = dict(data["rationale"]) if data.get("rationale") else None
        if rationale:
            made = rationale.get("attribution")
            rationale["words"] = tuple(rationale["words"])
            rationale["attribution"] = attribution(made) if made else None
        return Demonstration(
            example=Example(**raw),
            rationale=Rationale(**rationale) if rationale else None,
            foil=data.get("foil"),
            score=data.get("score"),
        )
    except (KeyError, TypeError) as error:
        raise DataError(f"a demonstration of this program cannot be read: {error}") from error


def attribution(data: Mapping[str, Any]) -> Attribution:
    """An attribution from its JSON values."""
    raw = dict(data)
    for name in ("words", "scores", "low", "high"):
        raw[name] = tuple(raw[name])
    return Attribution(**{**raw, "spans": tuple((int(a), int(b)) for a, b in raw["spans"])})


def with_rationales(shots: Sequence[Demonstration], texts: Sequence[Rationale | None]) -> tuple[Demonstration, ...]:
    """The same shots with other rationales."""
    return tuple(replace(shot, rationale=text) for shot, text in zip(shots, texts, strict=True))

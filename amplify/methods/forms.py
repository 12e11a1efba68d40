"""How an example becomes a prompt: plain JSON, so that a program which holds it is saved and reloaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

from amplify.errors import InputError
from amplify.methods.answering import Style
from amplify.methods.marking import emphasised, unmarked
from amplify.methods.parsing import shown
from amplify.templates import Template
from amplify.untrusted import Trusted
from amplify.values import Demonstration, Example, Message, Prompt

Layout = Literal["auto", "chat", "text"]
Kind = Literal["labels", "choices", "text"]


@dataclass(frozen=True)
class Form:
    """Everything about a prompt but its shots and its example.

    Attributes:
        method: name in records and errors.
        instruction, input_name, labels: of the task.
        kind: fixed labels, choices that each example brings, or free text.
        templates: system, question, answer and (layout "text") text, by value.
        lead: the beginning of the answer, written for the model; "" for none.
        layout: a chat, or one raw text for base models.
        style: how answers are decoded and read.
        emphasis: what prompts mark for steering (see `Task.emphasis`); it is never visible in what is sent.
        marks: written around the emphasised span where the emphasis is to be visible, e.g. "*".
    """

    method: str
    instruction: str
    input_name: str
    labels: tuple[str, ...]
    kind: Kind
    templates: Mapping[str, Template]
    lead: str
    layout: Layout
    style: Style
    emphasis: str = ""
    marks: str = ""

    def labels_of(self, example: Example) -> tuple[str, ...]:
        """The answers to choose from, () for free text."""
        return example.choices or self.labels

    def variables(self, example: Example) -> dict[str, Any]:
        """What the question template may use."""
        return {
            "instruction": self.instruction,
            "input_name": self.input_name,
            "text": example.text,
            "labels": list(self.labels),
            "choices": [shown(choice, bool(example.options)) for choice in example.choices],
            "options": list(example.options),
            "fields": dict(example.fields),
            "marker": self.style.marker,
        }

    def question(self, example: Example) -> str:
        """The input as the model reads it, options included."""
        return self.templates["question"].render(self.variables(example))

    def reply(self, shot: Demonstration) -> str:
        """The answer that a demonstration gives, its rationale first."""
        rationale = shot.rationale.text if shot.rationale else ""
        given = {"announce": self.style.announce, "rationale": rationale, "label": shown_gold(shot.example)}
        return self.templates["answer"].render(given)

    def prompt(self, example: Example, shots: Sequence[Demonstration] = (), lead: str | None = None) -> Prompt:
        """The prompt for an example behind its shots.

        Args:
            example: what is asked.
            shots: demonstrations, first to last.
            lead: another beginning of the answer than the form's own.
        """
        if self.kind == "choices" and not example.choices:
            raise InputError(
                f"{self.method} was fitted on a task whose examples bring their own choices: "
                "pass an Example with choices=, not only a text"
            )
        lead = self.lead if lead is None else lead
        # where the answer is begun for the model there is no need to tell it how to begin
        begun = lead == self.style.marker
        variables = emphasised(self.variables(example), self.emphasis)
        system = self.templates["system"].render({**variables, "marker": "" if begun else self.style.marker})
        question = self.templates["question"].render(variables)
        if self.layout == "text":
            turns = [
                {"question": Trusted(self.question(shot.example)), "answer": Trusted(self.reply(shot))}
                for shot in shots
            ]
            given = {"system": Trusted(system), "shots": turns, "question": Trusted(question)}
            text, spans = unmarked(self.templates["text"].render(given), self.marks)
            return Prompt(text=text, prefix=f" {lead}" if lead else "", emphasis=spans)
        messages = [Message("system", system)] if system else []
        for shot in shots:
            messages += [Message("user", self.question(shot.example)), Message("assistant", self.reply(shot))]
        messages.append(Message("user", question))
        plain = [unmarked(m.content, self.marks, i) for i, m in enumerate(messages)]
        return Prompt(
            messages=tuple(Message(m.role, text) for m, (text, _) in zip(messages, plain, strict=True)),
            prefix=lead,
            emphasis=tuple(span for _, spans in plain for span in spans),
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; every template with its hash."""
        data = asdict(self)
        data["templates"] = {role: {**asdict(t), "sha256": t.sha256} for role, t in self.templates.items()}
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`."""
        held = {role: Template(t["name"], t["source"]) for role, t in data["templates"].items()}
        style = {**data["style"], "stop": tuple(data["style"]["stop"])}
        return cls(**{**data, "labels": tuple(data["labels"]), "templates": held, "style": Style(**style)})


def shown_gold(example: Example) -> str:
    """A labelled example's gold answer as prompts write it."""
    gold = example.label if example.label is not None else next(iter(example.answers), None)
    if gold is None:
        raise InputError(f"example {example.id!r} has no label, so it cannot be a demonstration")
    return shown(gold, bool(example.options))

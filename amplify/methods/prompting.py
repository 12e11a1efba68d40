"""How an example becomes a prompt, and what the programs that prompt hold: all of it plain JSON."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from amplify import templates
from amplify.backends.base import Generator, need_scorer
from amplify.errors import DataError, InputError
from amplify.methods.answering import Style, answer_prompts, check_window
from amplify.methods.base import Method, PromptProgram
from amplify.methods.parsing import shown
from amplify.templates import Template
from amplify.values import Answer, Attribution, Demonstration, Example, Message, Prompt, Rationale, Span

if TYPE_CHECKING:
    from amplify.tasks import Task

Layout = Literal["auto", "chat", "text"]
Normalise = Literal["none", "tokens", "characters", "first_token"]
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
            turns = [{"question": self.question(shot.example), "answer": self.reply(shot)} for shot in shots]
            given = {"system": system, "shots": turns, "question": question}
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


_OPEN, _CLOSE = "\ue010", "\ue011"  # private-use characters around an emphasised value while a template is rendered


def emphasised(variables: Mapping[str, Any], emphasis: str) -> dict[str, Any]:
    """The template's variables with the emphasised value between two marks, which `unmarked` finds again.

    Raises:
        InputError: a field that the example does not have.
    """
    out = dict(variables)
    if not emphasis:
        return out
    if emphasis.startswith("fields."):
        name = emphasis.removeprefix("fields.")
        if name not in out["fields"]:
            raise InputError(f"the emphasis {emphasis!r} names a field that the example lacks")
        out["fields"] = {**out["fields"], name: f"{_OPEN}{out['fields'][name]}{_CLOSE}"}
    elif emphasis == "first_sentence":
        end = first_sentence(out["text"])
        out["text"] = marked(out["text"], 0, end)
    else:
        out[emphasis] = f"{_OPEN}{out[emphasis]}{_CLOSE}"
    return out


def marked_input(example: Example) -> Example:
    """The example with its text and each option between marks: `Form.prompt` gives their places as its emphasis."""
    options = tuple(f"{_OPEN}{option}{_CLOSE}" for option in example.options)
    return replace(example, text=f"{_OPEN}{example.text}{_CLOSE}", options=options)


def marked(text: str, start: int, end: int) -> str:
    """The text with the characters [start, end) between the marks that `unmarked` finds again."""
    return f"{text[:start]}{_OPEN}{text[start:end]}{_CLOSE}{text[end:]}"


def unmarked(text: str, marks: str = "", message: int | None = None) -> tuple[str, tuple[Span, ...]]:
    """The text without the marks, and the spans between them; `marks` is written in their place."""
    plain, spans, start = "", [], 0
    for part in re.split(f"([{_OPEN}{_CLOSE}])", text):
        if part == _OPEN:
            start = len(plain)
            plain += marks
        elif part == _CLOSE:
            plain += marks
            if len(plain) > start:
                spans.append(Span(start, len(plain), message=message))
        else:
            plain += part
    return plain, tuple(spans)


_SENTENCE = re.compile(r"(?<!\b(?:Dr|Mr|Ms|St|Jr|Sr))(?<!\bMrs)(?<!\bProf)(?<!\b[A-Z])[.!?][\"'”’)]*(?=\s|$)")


def first_sentence(text: str) -> int:
    """Where the first sentence of a text ends (titles and initials do not end one)."""
    found = _SENTENCE.search(text)
    return found.end() if found else len(text)


def shown_gold(example: Example) -> str:
    """A labelled example's gold answer as prompts write it."""
    gold = example.label if example.label is not None else next(iter(example.answers), None)
    if gold is None:
        raise InputError(f"example {example.id!r} has no label, so it cannot be a demonstration")
    return shown(gold, bool(example.options))


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


@dataclass(frozen=True)
class PromptMethod(Method):
    """The options that every prompting method has.

    Attributes:
        layout: "chat" (system and turns, through the model's chat template), "text" (Q: … A: …, for base models), or
            "auto": what the task asks for, else chat.
        lead: write the beginning of the answer for the model ("The answer is", or the rationale's first words).
        extract: in generate mode, ask once more behind "The answer is" where a rationale ended without an answer.
        normalise: in score mode, compare log-probabilities as they are, per token, per character, or of the
            first token alone (what PASTA's released code does).
        max_tokens: budget of what the model writes; 0 for the method's own.
        system, question, answer: templates by name, or paths of your own .jinja files.
    """

    layout: Layout = field(default="auto", kw_only=True)
    lead: bool = field(default=True, kw_only=True)
    extract: bool = field(default=True, kw_only=True)
    normalise: Normalise = field(default="none", kw_only=True)
    max_tokens: int = field(default=0, kw_only=True)
    system: str = field(default="default", kw_only=True)
    question: str = field(default="default", kw_only=True)
    answer: str = field(default="default", kw_only=True)

    def form(self, task: Task, *, reasons: bool = False, lead: str = "", budget: int = 24, line: bool = True) -> Form:
        """The form of this method's prompts on a task.

        Args:
            task: what is asked.
            reasons: the model writes a rationale before its answer.
            lead: the first words of that rationale; a plain answer begins with the marker.
            budget: tokens the model may write unless `max_tokens` says otherwise.
            line: the answer, rationale included, is one line.
        """
        own = {"system": "none", "question": task.template, "answer": "plain"} if task.template else {}
        held = {}
        for role in ("system", "question", "answer"):
            asked = getattr(self, role)
            held[role] = templates.load(role, own.get(role, asked) if asked == "default" else asked)
        if self.layout not in ("auto", "chat", "text"):
            raise InputError(f"layout is auto, chat or text, not {self.layout!r}")
        layout: Layout = ("text" if task.layout == "text" else "chat") if self.layout == "auto" else self.layout
        if layout == "text":
            held["text"] = templates.load("text", "plain" if task.template else "default")
        blank = {"announce": task.announce, "rationale": "", "label": ""}
        if not held["answer"].writes("label", blank):
            raise InputError(f"template {held['answer'].name!r} never writes {{{{ label }}}}, so no answer can be read")
        marker = held["answer"].before("label", blank).strip()
        kind = kind_of(task)
        whole = kind == "text" and not marker
        if whole:
            stop: tuple[str, ...] = ("\n\n",) if layout == "text" else ()
        else:
            stop = (("\n",) if line else ()) + (("\nQ:",) if layout == "text" and not line else ())
        style = Style(
            mode=self.mode if kind != "text" else "generate",
            reasons=reasons,
            announce=task.announce,
            marker=marker,
            closing=held["answer"].after("label", blank).strip(),
            max_tokens=self.max_tokens or (0 if reasons else task.max_tokens) or budget,
            stop=stop,
            normalise=self.normalise,
            extract=self.extract,
            whole=whole,
        )
        return Form(
            method=self.label,
            instruction=task.instruction,
            input_name=task.input_name,
            labels=task.labels,
            kind=kind,
            templates=held,
            # behind anything but the marker a label's log-probability would not be that of the answer
            lead=(lead if self.lead else "") if reasons else marker if self.lead or self.mode == "score" else "",
            layout=layout,
            style=style,
            emphasis=task.emphasis,
        )

    def notes_on(self, task: Task, backend: Generator) -> tuple[str, ...]:
        """Check that the mode can be had, and say where it had to be another one.

        Raises:
            CapabilityError: score mode on a backend that gives no log-probabilities.
        """
        if self.mode == "score" and kind_of(task) == "text":
            return ("this task has no labels to score: answers are generated",)
        if self.mode == "score":
            need_scorer(backend, f"{self.name} in score mode")
        return ()


def kind_of(task: Task) -> Kind:
    """What answers are chosen from."""
    if task.labels:
        return "labels"
    pools = (task.train, task.validation, task.test)
    return "choices" if any(example.choices for pool in pools for example in pool[:1]) else "text"


def with_rationales(shots: Sequence[Demonstration], texts: Sequence[Rationale | None]) -> tuple[Demonstration, ...]:
    """The same shots with other rationales."""
    return tuple(replace(shot, rationale=text) for shot, text in zip(shots, texts, strict=True))


def check_options(method: Method) -> None:
    """Numbers that count things are above 0.

    Raises:
        InputError: naming the option.
    """
    for name in ("shots", "k", "pool", "epochs", "steps", "budget"):
        value = getattr(method, name, 1)
        if value < (0 if name in ("pool", "epochs", "budget") else 1):
            raise InputError(f"{method.name}: {name} must be at least 1, got {value}")

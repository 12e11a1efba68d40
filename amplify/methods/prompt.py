"""How an example becomes a prompt: the options that prompting methods share, and the form that they make of a task."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal

from amplify import templates
from amplify.errors import InputError
from amplify.methods.base import Method, Mode
from amplify.methods.parse import MARKER, shown
from amplify.models.base import LanguageModel, need_scoring
from amplify.templates import Template
from amplify.text import sentences
from amplify.types import Demonstration, Example, Message, Prompt, Span
from amplify.untrusted import Trusted, neutral_values

if TYPE_CHECKING:
    from amplify.tasks import Task

Layout = Literal["auto", "chat", "text"]
Kind = Literal["labels", "choices", "text"]
Normalise = Literal["none", "tokens", "characters", "first_token"]
EARLIER = "turns"  # field of an example: what was said before it in its chat, [{"role", "content"}]
ANSWER_TOKENS = 24  # room for the answer itself behind its marker

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
        end = len(out["text"][: sentences(out["text"])[0][1]].rstrip())
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


@dataclass(frozen=True)
class Form:
    """Everything about a prompt but its shots and its example, and how its answer is decoded and read.

    Attributes:
        method: name in records and errors.
        instruction, input_name, labels: of the task.
        kind: fixed labels, choices that each example brings, or free text.
        templates: system, question, answer and (layout "text") text, by value.
        prefill: the beginning of the answer, written for the model; "" for none.
        layout: a chat, or one raw text for base models.
        mode: "generate" or "score".
        reasons: a rationale comes before the answer.
        answer_prefix: the task's words before an answer.
        marker: those words as the answer template places them; behind them the answer is read.
        closing: what demonstrations write behind the label, e.g. ".".
        max_tokens: budget of the text written before scoring or parsing.
        stop: strings that end it.
        normalize: how log-probabilities of labels of different lengths are compared.
        extract: where a rationale ended without an answer, ask again behind the marker.
        whole: the answer is all that is written, not a line behind a marker.
        thinking: further tokens for a model that begins a reasoning block of its own (`<think>`) and is cut off in it.
        emphasis: what prompts mark for steering (see `Task.emphasis`); it is never visible in what is sent.
        marks: written around the emphasised span where the emphasis is to be visible, e.g. "*".

    Example:
        >>> amplify.methods.ZeroShot().form(amplify.load_task("support_tickets")).answer_prefix
        'Department:'
    """

    method: str
    instruction: str
    input_name: str
    labels: tuple[str, ...]
    kind: Kind
    templates: Mapping[str, Template]
    prefill: str
    layout: Layout
    mode: Mode = "generate"
    reasons: bool = False
    answer_prefix: str = MARKER
    marker: str = MARKER
    closing: str = "."
    max_tokens: int = ANSWER_TOKENS
    stop: tuple[str, ...] = ()
    normalize: Normalise = "none"
    extract: bool = True
    whole: bool = False
    thinking: int = 0
    emphasis: str = ""
    marks: str = ""

    def __post_init__(self) -> None:
        needed = {"system", "question", "answer"} | ({"text"} if self.layout == "text" else set())
        if missing := sorted(needed - self.templates.keys()):
            raise InputError(f"{self.method}: the form has no template {missing[0]!r}")
        if self.emphasis not in ("", "instruction", "text", "first_sentence") and self.emphasis[:7] != "fields.":
            raise InputError(f"{self.method}: there is no emphasis {self.emphasis!r}")

    @property
    def room(self) -> int:
        """Tokens that must be free behind the prompt."""
        return self.max_tokens + (ANSWER_TOKENS if self.reasons else 0)

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
            "marker": self.marker,
        }

    def question(self, example: Example) -> str:
        """The input as the model reads it, options included."""
        return self.templates["question"].render(self.variables(example))

    def reply(self, shot: Demonstration) -> str:
        """The answer that a demonstration gives, its rationale first."""
        rationale = shot.rationale.text if shot.rationale else ""
        given = {"answer_prefix": self.answer_prefix, "rationale": rationale, "label": shown_gold(shot.example)}
        return self.templates["answer"].render(given)

    def prompt(self, example: Example, shots: Sequence[Demonstration] = (), prefill: str | None = None) -> Prompt:
        """The prompt for an example behind its shots.

        Args:
            example: what is asked.
            shots: demonstrations, first to last.
            prefill: another beginning of the answer than the form's own.
        """
        if self.kind == "choices" and not example.choices:
            raise InputError(
                f"{self.method} was fitted on a task whose examples bring their own choices: "
                "pass an Example with choices=, not only a text"
            )
        prefill = self.prefill if prefill is None else prefill
        # where the answer is begun for the model there is no need to tell it how to begin
        begun = prefill == self.marker
        variables = emphasised(self.variables(example), self.emphasis)
        system = self.templates["system"].render({**variables, "marker": "" if begun else self.marker})
        question = self.templates["question"].render(variables)
        if self.layout == "text":
            if example.fields.get(EARLIER):
                raise InputError(f"{self.method}: item {example.id!r} has earlier turns, which only a chat can hold")
            turns = [
                {"question": Trusted(self.question(shot.example)), "answer": Trusted(self.reply(shot))}
                for shot in shots
            ]
            given = {"system": Trusted(system), "shots": turns, "question": Trusted(question)}
            text, spans = unmarked(self.templates["text"].render(given), self.marks)
            return Prompt(text=text, prefix=f" {prefill}" if prefill else "", emphasis=spans)
        messages = [Message("system", system)] if system else []
        earlier = [Message(turn["role"], neutral_values(turn["content"])) for turn in example.fields.get(EARLIER, ())]
        for shot in shots:
            messages += [Message("user", self.question(shot.example)), Message("assistant", self.reply(shot))]
        messages += [*earlier, Message("user", question)]
        plain = [unmarked(m.content, self.marks, i) for i, m in enumerate(messages)]
        return Prompt(
            messages=tuple(Message(m.role, text) for m, (text, _) in zip(messages, plain, strict=True)),
            prefix=prefill,
            emphasis=tuple(span for _, spans in plain for span in spans),
        )


def shown_gold(example: Example) -> str:
    """A labelled example's gold answer as prompts write it."""
    gold = example.label if example.label is not None else next(iter(example.answers), None)
    if gold is None:
        raise InputError(f"example {example.id!r} has no label, so it cannot be a demonstration")
    return shown(gold, bool(example.options))


@dataclass(frozen=True)
class PromptMethod(Method):
    """The options that every prompting method has.

    Attributes:
        layout: "chat" (system and turns, through the model's chat template), "text" (Q: … A: …, for base models), or
            "auto": what the task asks for, else chat.
        prefill: write the beginning of the answer for the model ("The answer is", or the rationale's first words).
        extract: in generate mode, ask once more behind "The answer is" where a rationale ended without an answer.
        normalize: in score mode, compare log-probabilities as they are, per token, per character, or of the
            first token alone (what PASTA's released code does).
        max_tokens: budget of what the model writes; 0 for the method's own.
        thinking: tokens of further room for a model that writes a reasoning block (`<think>…</think>`) before its
            answer; it is asked again with them where it was cut off in one.
        system, question, answer: templates by name, or paths of your own .jinja files.

    Example:
        >>> amplify.methods.FewShot(shots=2, layout="text").label
        'few_shot[layout=text,shots=2]'
    """

    layout: Layout = field(default="auto", kw_only=True)
    prefill: bool = field(default=True, kw_only=True)
    extract: bool = field(default=True, kw_only=True)
    normalize: Normalise = field(default="none", kw_only=True)
    max_tokens: int = field(default=0, kw_only=True)
    thinking: int = field(default=1024, kw_only=True)
    system: str = field(default="default", kw_only=True)
    question: str = field(default="default", kw_only=True)
    answer: str = field(default="default", kw_only=True)

    def shared(self, *without: str) -> dict[str, Any]:
        """These options as they are set, for another method of the same prompts; but `without`."""
        return {f.name: getattr(self, f.name) for f in fields(PromptMethod) if f.name not in ("variant", *without)}

    def form(
        self, task: Task, *, reasons: bool = False, prefill: str = "", budget: int = 24, line: bool = True
    ) -> Form:
        """The form of this method's prompts on a task.

        Args:
            task: what is asked.
            reasons: the model writes a rationale before its answer.
            prefill: the first words of that rationale; a plain answer begins with the marker.
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
        blank = {"answer_prefix": task.answer_prefix, "rationale": "", "label": ""}
        if not held["answer"].writes("label", blank):
            raise InputError(f"template {held['answer'].name!r} never writes {{{{ label }}}}, so no answer can be read")
        marker = held["answer"].before("label", blank).strip()
        kind = kind_of(task)
        whole = kind == "text" and not marker
        if whole:
            stop: tuple[str, ...] = task.stop or ("\n\n",) if layout == "text" else ()
        elif task.stop:
            stop = task.stop
        else:
            stop = (("\n",) if line else ()) + (("\nQ:",) if layout == "text" and not line else ())
        return Form(
            method=self.label,
            instruction=task.instruction,
            input_name=task.input_name,
            labels=task.labels,
            kind=kind,
            templates=held,
            # behind anything but the marker a label's log-probability would not be that of the answer
            prefill=(prefill if self.prefill else "")
            if reasons
            else marker
            if self.prefill or self.mode == "score"
            else "",
            layout=layout,
            mode=self.mode if kind != "text" else "generate",
            reasons=reasons,
            answer_prefix=task.answer_prefix,
            marker=marker,
            closing=held["answer"].after("label", blank).strip(),
            max_tokens=self.max_tokens or (0 if reasons else task.max_tokens) or budget,
            stop=stop,
            normalize=self.normalize,
            extract=self.extract,
            whole=whole,
            thinking=self.thinking,
            emphasis=task.emphasis,
        )

    def notes_on(self, task: Task, model: LanguageModel) -> tuple[str, ...]:
        """Check that the mode can be had, and say where it had to be another one.

        Raises:
            CapabilityError: score mode on a model that gives no log-probabilities.
        """
        if self.mode == "score" and kind_of(task) == "text":
            return ("this task has no labels to score: answers are generated",)
        if self.mode == "score":
            need_scoring(model, f"{self.name} in score mode")
        return ()


def need_emphasis(task: Task) -> None:
    """Refuse a task that does not say what is to be emphasised.

    Raises:
        InputError: naming the key.
    """
    if not task.emphasis:
        raise InputError(
            f"task {task.name!r} does not say what steering should emphasise: give its YAML `emphasis: instruction` "
            "(or text, first_sentence, fields.NAME), or take auto_pasta, which finds the span itself"
        )


def kind_of(task: Task) -> Kind:
    """What answers are chosen from."""
    if task.labels:
        return "labels"
    pools = (task.train, task.validation, task.test)
    return "choices" if any(example.choices for pool in pools for example in pool[:1]) else "text"


def check_options(method: Method) -> None:
    """Numbers that count things are above 0.

    Raises:
        InputError: naming the option.
    """
    for name in ("shots", "k", "pool", "epochs", "steps", "budget"):
        value = getattr(method, name, 1)
        if value is not None and value < (0 if name in ("pool", "epochs", "budget") else 1):
            raise InputError(f"{method.name}: {name} must be at least 1, got {value}")

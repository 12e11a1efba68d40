"""The options that prompting methods share, and the form of prompt that they make of a task."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from amplify import templates
from amplify.backends.base import Generator, need_scorer
from amplify.errors import InputError
from amplify.methods.answering import Style
from amplify.methods.base import Method
from amplify.methods.forms import Form, Kind, Layout

if TYPE_CHECKING:
    from amplify.tasks import Task

Normalise = Literal["none", "tokens", "characters", "first_token"]


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
        thinking: tokens of further room for a model that writes a reasoning block (`<think>…</think>`) before its
            answer; it is asked again with them where it was cut off in one.
        system, question, answer: templates by name, or paths of your own .jinja files.
    """

    layout: Layout = field(default="auto", kw_only=True)
    lead: bool = field(default=True, kw_only=True)
    extract: bool = field(default=True, kw_only=True)
    normalise: Normalise = field(default="none", kw_only=True)
    max_tokens: int = field(default=0, kw_only=True)
    thinking: int = field(default=1024, kw_only=True)
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
            thinking=self.thinking,
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


def check_options(method: Method) -> None:
    """Numbers that count things are above 0.

    Raises:
        InputError: naming the option.
    """
    for name in ("shots", "k", "pool", "epochs", "steps", "budget"):
        value = getattr(method, name, 1)
        if value < (0 if name in ("pool", "epochs", "budget") else 1):
            raise InputError(f"{method.name}: {name} must be at least 1, got {value}")

"""The parts of a prompt with shots, and the same program with some of them left out or filled with neutral words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from amplify.methods.program import ShotProgram
from amplify.methods.prompt import Form
from amplify.models.base import LanguageModel
from amplify.templates import Template
from amplify.text import sentences
from amplify.types import Demonstration, Example, Prompt, Rationale

PartKind = Literal["instruction", "format", "labels", "shot", "rationale"]
NEUTRAL = (
    "this line says nothing about what is asked here and it stands only in the place of other words that were as long "
    "as it is so that nothing else changes where they are not read and it goes on in the same way until it ends"
)
BLANK = "..."  # in the place of an answer


@dataclass(frozen=True)
class Part:
    """A part of a prompt.

    Attributes:
        name: e.g. "shot 2".
        kind: a sentence of the instruction, the sentence about the answer's form, the list of labels (wherever it
            stands), a shot, or a shot's rationale, which is there only where its shot is.
        text: its words.
        place: which sentence or shot, from 0.

    Example:
        >>> Part("shot 2", "shot", "Message: hello", place=1).place
        1
    """

    name: str
    kind: PartKind
    text: str
    place: int = 0


def parts_of(program: ShotProgram, example: Example) -> tuple[Part, ...]:
    """The parts of a program's prompts, in the order in which they stand.

    What does not change the prompt when it is left out is none (a template may write no instruction).

    Args:
        program: prompts with fixed shots.
        example: any input, by which is seen what changes a prompt.

    Example:
        >>> task = amplify.load_task("support_tickets")
        >>> model = amplify.load_model("scripted:first_option")
        >>> program = amplify.methods.make("few_shot", mode="score", shots=2).fit(task, model, 0)
        >>> [part.name for part in parts_of(program, task.validation[0])]
        ['instruction 1', 'label list', 'shot 1', 'shot 2']
    """
    form, found = program.form, list[Part]()
    spans = sentences(form.instruction)
    found += [Part(f"instruction {i + 1}", "instruction", form.instruction[a:b].strip(), i)
              for i, (a, b) in enumerate(spans)]  # fmt: skip
    system = form.templates["system"]
    variables = {**form.variables(example), "marker": form.marker}
    whole, bare = system.render(variables), _without_format(system, "").render(variables)
    found.append(Part("answer format", "format", whole.removeprefix(bare).strip()))
    if form.kind == "labels":
        found.append(Part("label list", "labels", ", ".join(form.labels)))
    for i, shot in enumerate(program.shots):
        plain = replace(shot, rationale=None)
        found.append(Part(f"shot {i + 1}", "shot", f"{form.question(shot.example)}\n{form.reply(plain)}", i))
        if shot.rationale:
            found.append(Part(f"rationale {i + 1}", "rationale", shot.rationale.text, i))

    def without(part: Part) -> Prompt:
        return with_parts(program, found, [other is not part for other in found]).prompt(example)

    prompt = program.prompt(example)
    return tuple(part for part in found if without(part) != prompt)


def with_parts(
    program: ShotProgram, parts: Sequence[Part], kept: Sequence[bool], fillers: Mapping[str, str] | None = None
) -> ShotProgram:
    """The program with some parts only.

    Args:
        program: the whole.
        parts: its parts.
        kept: which of them stay.
        fillers: by name, what stands in the place of a part that is left out; None leaves them out.
    """
    gone = {(part.kind, part.place): part for part, stays in zip(parts, kept, strict=True) if not stays}
    if not gone:
        return program
    words = fillers or {}

    def said(part: Part) -> str:
        return words.get(part.name, "")

    shots = []
    for i, shot in enumerate(program.shots):
        if (part := gone.get(("shot", i))) is not None:
            if fillers is None:
                continue
            shot = _blank(shot, said(part))
            if shot.rationale and (own := words.get(f"rationale {i + 1}")):
                shot = replace(shot, rationale=Rationale(own))
        elif (part := gone.get(("rationale", i))) is not None:
            shot = replace(shot, rationale=None if fillers is None else Rationale(said(part)))
        shots.append(shot)
    return replace(program, form=_form(program.form, gone, None if fillers is None else said), shots=tuple(shots))


def _form(form: Form, gone: Mapping[tuple[PartKind, int], Part], said: Callable[[Part], str] | None) -> Form:
    held = dict(form.templates)
    text, at = "", 0
    for i, (start, end) in enumerate(sentences(form.instruction)):
        if (part := gone.get(("instruction", i))) is None:
            text += form.instruction[at:end]
        elif said is not None:
            text += form.instruction[at:start] + said(part) + " "
        at = end
    if (part := gone.get(("labels", 0))) is not None:
        names = repr(said(part).split()) if said else "[]"
        for role in ("system", "question"):
            held[role] = _given(held[role], f"{{% set labels = {names} %}}{{% set choices = [] %}}")
    if (part := gone.get(("format", 0))) is not None:
        held["system"] = _without_format(held["system"], said(part) if said else "")
    return replace(form, instruction=text.strip(), templates=held)


def _without_format(template: Template, filler: str) -> Template:
    shorter = _given(template, '{% set marker = "" %}')
    return replace(shorter, source=f"{shorter.source}\n{filler}") if filler else shorter


def _given(template: Template, settings: str) -> Template:
    return Template(f"{template.name}, some parts left out", settings + template.source)


def _blank(shot: Demonstration, text: str) -> Demonstration:
    """A shot of neutral words, with neither their label nor another."""
    options = tuple(BLANK for _ in shot.example.options)
    fields = {key: BLANK if isinstance(value, str) else value for key, value in shot.example.fields.items()}
    example = Example(shot.example.id, text or BLANK, BLANK, shot.example.choices, options, (), fields)
    return replace(shot, example=example)


def fillers(parts: Sequence[Part], model: LanguageModel) -> dict[str, str]:
    """Neutral words for each part, as many tokens as it has, to within one word of them.

    A shot's stand for its input alone: the options that are listed and the words around the answer stay.
    """
    sizes = model.count_tokens([Prompt(text=_input(part)) for part in parts])
    made = {}
    for part, size in zip(parts, sizes, strict=True):
        low, high = 1, max(2, 2 * size)
        while low < high:  # the fewest words that are as long
            middle = (low + high) // 2
            if model.count_tokens([Prompt(text=_neutral(middle))])[0] < size:
                low = middle + 1
            else:
                high = middle
        near = [_neutral(max(1, low - 1)), _neutral(low)]
        counts = model.count_tokens([Prompt(text=text) for text in near])
        made[part.name] = near[int(abs(counts[1] - size) <= abs(counts[0] - size))]
    return made


def _input(part: Part) -> str:
    return part.text.partition("\nOptions:")[0] if part.kind == "shot" else part.text


def _neutral(words: int) -> str:
    every = NEUTRAL.split()
    return " ".join(every[i % len(every)] for i in range(words))

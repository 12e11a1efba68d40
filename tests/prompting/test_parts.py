"""Parts of a prompt: which there are, and what the prompt looks like without them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import amplify
from amplify.methods import make
from amplify.methods.program import ShotProgram
from amplify.models.scripted import ScriptedModel
from amplify.prompting.parts import fillers, parts_of, with_parts
from amplify.tasks import Task
from amplify.types import Example, Prompt, Rationale

LABELS = ("red", "green")


def items(split: str, n: int) -> tuple[Example, ...]:
    return tuple(Example(f"{split}{i}", f"the {LABELS[i % 2]} thing, {split} {i}", LABELS[i % 2]) for i in range(n))


@pytest.fixture
def task() -> Task:
    return Task(
        name="colours", instruction="Which colour? Answer with one word. Be brief.", labels=LABELS, input_name="Thing",
        train=items("train", 8), validation=items("validation", 40), test=items("test", 8),
    )  # fmt: skip


@pytest.fixture
def program(task: Task) -> ShotProgram:
    made = make("few_shot", mode="score", shots=3).fit(task, ScriptedModel("echo"), 0)
    assert isinstance(made, ShotProgram)
    shots = [replace(shot, rationale=Rationale(f"Because {i}.")) for i, shot in enumerate(made.shots)]
    return replace(made, shots=(shots[0], replace(shots[1], rationale=None), shots[2]))


def texts(program: ShotProgram, task: Task) -> list[str]:
    return [message.content for message in program.prompt(task.validation[0]).messages]


def test_every_part_in_the_order_of_the_prompt(program: ShotProgram, task: Task) -> None:
    parts = parts_of(program, task.validation[0])
    assert [part.name for part in parts] == [
        "instruction 1", "instruction 2", "instruction 3", "label list",
        "shot 1", "rationale 1", "shot 2", "shot 3", "rationale 3",
    ]  # fmt: skip
    everything = "\n".join(texts(program, task))
    for part in parts:
        if part.kind in ("instruction", "rationale", "labels"):
            assert part.text in everything


def test_all_parts_are_the_program_itself_and_none_leaves_the_question(program: ShotProgram, task: Task) -> None:
    parts = parts_of(program, task.validation[0])
    assert with_parts(program, parts, [True] * len(parts)) is program
    bare = with_parts(program, parts, [False] * len(parts))
    assert texts(bare, task) == [f"Thing: {task.validation[0].text}"]
    assert bare.form.labels == program.form.labels  # what is scored stays


def test_single_parts_left_out(program: ShotProgram, task: Task) -> None:
    parts = parts_of(program, task.validation[0])
    names = [part.name for part in parts]

    def without(*gone: str) -> ShotProgram:
        return with_parts(program, parts, [name not in gone for name in names])

    assert without("instruction 2").form.instruction == "Which colour? Be brief."
    assert [shot.example.id for shot in without("shot 2").shots] == [program.shots[i].example.id for i in (0, 2)]
    assert without("rationale 1").shots[0].rationale is None
    assert without("shot 1").shots == without("shot 1", "rationale 1").shots  # a rationale is nothing without its shot
    assert all("Options" not in text for text in texts(without("label list"), task))
    assert texts(without("label list"), task)[0] == texts(program, task)[0]


def test_the_sentence_about_the_form_of_the_answer(task: Task) -> None:
    program = make("few_shot", shots=2, prefill=False).fit(task, ScriptedModel("echo"), 0)
    assert isinstance(program, ShotProgram)
    parts = parts_of(program, task.validation[0])
    [part] = [part for part in parts if part.kind == "format"]
    assert part.text.startswith("Finish with the words")
    left = with_parts(program, parts, [one is not part for one in parts])
    assert texts(left, task)[0] == task.instruction
    filled = with_parts(program, parts, [one is not part for one in parts], {"answer format": "a b c"})
    assert texts(filled, task)[0] == f"{task.instruction}\na b c"


def test_neutral_words_are_as_long_and_say_nothing(program: ShotProgram, task: Task, tiny_lm: Path) -> None:
    parts = parts_of(program, task.validation[0])
    with amplify.load_model(f"transformers:{tiny_lm}", dtype="float32") as model:
        words = fillers(parts, model)
        for part in parts:
            own, filler = model.count_tokens(
                [Prompt(text=part.text.partition("\nOptions")[0]), Prompt(text=words[part.name])]
            )
            longest = 6  # tokens of a neutral word under this tokenizer
            assert abs(own - filler) <= longest / 2 + 1, part.name
    filled = texts(with_parts(program, parts, [False] * len(parts), words), task)
    assert len(filled) == len(texts(program, task))  # as many turns
    everything = "\n".join(filled[:-1])
    assert not any(word in everything for word in ("red", "green", "colour", "Because"))
    assert everything.count("...") == 3  # in the place of each shot's answer


def test_a_text_prompt_has_parts_too(task: Task) -> None:
    made = make("few_shot", mode="score", shots=2, layout="text").fit(task, ScriptedModel("echo"), 0)
    assert isinstance(made, ShotProgram)
    parts = parts_of(made, task.validation[0])
    assert [part.name for part in parts][-2:] == ["shot 1", "shot 2"]
    bare = with_parts(made, parts, [False] * len(parts)).prompt(task.validation[0])
    assert bare.text is not None
    assert bare.text.strip() == f"Q: Thing: {task.validation[0].text}\nA:"

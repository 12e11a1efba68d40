"""A small task, methods whose programs only prompt, and a model whose answers are a function of the prompt.

Run as a script it evaluates into a folder until so many records are on disk and then waits to be killed:
`python evaluation_fakes.py FOLDER RECORDS`, or with a model's folder as the third argument on that model.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from amplify.evaluation import Report, evaluate
from amplify.methods.base import Method, PromptProgram
from amplify.models.base import LanguageModel
from amplify.models.scripted import ScriptedModel
from amplify.tasks import Task
from amplify.types import Answer, Demonstration, Example, Message, Prompt, Rationale, Sampling

LABELS = ("good", "bad")
WORDS = ("great", "broken", "lovely", "late", "kind", "awful", "quick", "dull")


def example(split: str, i: int) -> Example:
    text = f"{split} item {i} was {WORDS[i % 8]} and {WORDS[(i // 8) % 8]}"
    return Example(id=f"{split}-{i}", text=text, label=LABELS[i % 2])


def make_task(n: int = 30, **changes: Any) -> Task:
    given: dict[str, Any] = {
        "name": "fake/reviews",
        "instruction": "Say whether the review is good or bad.",
        "train": tuple(example("train", i) for i in range(10)),
        "validation": tuple(example("validation", i) for i in range(10)),
        "test": tuple(example("test", i) for i in range(n)),
        "labels": LABELS,
        "input_name": "Review",
    }
    return Task(**{**given, **changes})


def chance(text: str) -> float:
    """A number in [0, 1) that is a function of the text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") / 2**32


def reply(text: str) -> str:
    """Right as often as the skill in the prompt says; now and then something that cannot be parsed."""
    skill = float(text.partition("skill=")[2].partition(" ")[0])
    gold, other = LABELS if int(text.rsplit("item ", 1)[1].split()[0]) % 2 == 0 else LABELS[::-1]
    draw = chance(text)
    if draw > 0.97:
        return "no idea"
    return f"The answer is {gold if draw < skill else other}"


@dataclass(frozen=True)
class FakeProgram(PromptProgram):
    kind: ClassVar[str] = "fake"
    tag: str
    shots: tuple[dict[str, Any], ...] = ()

    def prompt(self, example: Example) -> Prompt:
        shown = " ".join(shot["example"]["text"] for shot in self.shots)
        return Prompt(messages=(Message("user", f"{self.tag} {shown} Review: {example.text}"),))

    def answer(self, examples: Sequence[Example], model: LanguageModel) -> list[Answer]:
        prompts = [self.prompt(e) for e in examples]
        answers = []
        for prompt, done in zip(prompts, model.generate(prompts, Sampling(max_tokens=8)), strict=True):
            word = done.text.rpartition(" ")[2]
            answers.append(
                Answer(
                    value=word if word in LABELS else None,
                    text=done.text,
                    prompt_tokens=done.prompt_tokens,
                    completion_tokens=done.completion_tokens,
                    prompt=prompt,
                )
            )
        return answers

    def to_dict(self) -> dict[str, Any]:
        return {"tag": self.tag, "shots": list(self.shots)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> FakeProgram:
        return cls(data["tag"], tuple(data["shots"]))


FITS: list[tuple[str, int]] = []
"""Every fit of this process: (label, seed)."""


@dataclass(frozen=True)
class Fake(Method):
    """Answers right with chance `skill`; shows `shots` training items with a rationale."""

    name: ClassVar[str] = "fake"
    skill: float = 0.6
    shots: int = 2
    leak: bool = False
    asks: int = field(default=1)

    def fit(self, task: Task, model: LanguageModel, seed: int) -> FakeProgram:
        FITS.append((self.label, seed))
        tag = f"skill={self.skill} seed={seed}"
        model.generate([Prompt(text=f"{tag} fit item {i} ?") for i in range(self.asks)], Sampling(max_tokens=4))
        pool = (task.test if self.leak else task.train)[: self.shots]
        shots = [
            Demonstration(e, Rationale(f"The key words: {e.text.split()[4]}", (e.text.split()[4],), "key_words"))
            for e in pool
        ]
        return FakeProgram(tag, tuple(asdict(shot) for shot in shots))


@dataclass(frozen=True)
class Plain(Fake):
    """Needs no seed and shows nothing."""

    name: ClassVar[str] = "plain"
    seeded: ClassVar[bool] = False
    shots: int = 0


def methods() -> list[Method]:
    return [Plain(), Fake(), Fake(skill=0.9)]


def fake_model(**options: Any) -> ScriptedModel:
    return ScriptedModel("fake", reply=reply, **options)


def run(out: Path | None, **changes: Any) -> Report:
    """All methods under three seeds, in batches of four."""
    given = {"batch_size": 4, "seeds": (0, 1, 2)} | changes
    return evaluate(make_task(), given.pop("model", fake_model()), given.pop("methods", methods()), out=out, **given)


def lines(folder: Path, name: str = "records.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def hold(model: Any, records: Path, wanted: int) -> None:
    """The model answers nothing more once so many records are on disk."""

    def holding(call: Any) -> Any:
        def held(*given: Any, **options: Any) -> Any:
            if records.exists() and records.read_bytes().count(b"\n") >= wanted:
                threading.Event().wait()
            return call(*given, **options)

        return held

    model.generate, model.score = holding(model.generate), holding(model.score)


def run_model(name: str, out: Path, wanted: int | None = None) -> None:
    """Rationales written and labels scored on a real architecture, in small batches."""
    from amplify.models import load_model

    with load_model(f"transformers:{name}", dtype="float32", device="cpu") as model:
        if wanted is not None:
            hold(model, out / "records.jsonl", wanted)
        options = {"zero_shot_cot.max_tokens": 6, "few_shot.shots": 3}
        names = ["few_shot", "zero_shot_cot"]
        evaluate(make_task(12), model, names, mode="score", options=options, out=out, batch_size=3, seeds=(0, 1))


if __name__ == "__main__":
    folder, records_wanted = Path(sys.argv[1]), int(sys.argv[2])
    if len(sys.argv) > 3:
        run_model(sys.argv[3], folder, records_wanted)
    else:
        with fake_model() as model:
            hold(model, folder / "records.jsonl", records_wanted)
            run(folder, model=model)

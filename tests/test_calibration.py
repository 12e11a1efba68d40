"""Calibration of label scores: closed forms, then programs, runs and the command line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import amplify
from amplify.calibration import Calibration, affine, from_answers, log_softmax, simplest
from amplify.errors import InputError, UnknownNameError
from amplify.evaluation import plan
from amplify.evaluation.configuration import DEFAULT, FEWEST, Scoring
from amplify.methods.base import Program
from amplify.methods.calibrated import CalibratedProgram, calibrated
from amplify.methods.few_shot import ZeroShot
from amplify.tasks import Task
from amplify.types import Answer, Example

LABELS = ("red", "green", "blue")
PRIOR = {"red": 4.0, "green": 0.0, "blue": -1.0}  # nats that this model adds to a label whatever it reads


class Biased(Program):
    """Knows the colour that a text names, and prefers red all the same."""

    kind = "test_biased"

    def answer(self, examples: Sequence[Example], model: object) -> list[Answer]:
        scores = [{y: PRIOR[y] + 2.0 * (y in e.text) - 10 for y in e.choices or LABELS} for e in examples]
        return [Answer(max(s, key=s.__getitem__), scores=s) for s in scores]

    def to_dict(self) -> dict[str, object]:
        return {}

    @classmethod
    def from_dict(cls, data: dict[str, object]) -> Biased:
        return cls()


MODEL = amplify.load_model("scripted:first_option")


def colours(split: str, n: int, start: int = 0) -> tuple[Example, ...]:
    """As many of each colour."""
    return tuple(
        Example(f"{split}{i}", f"the {LABELS[i % 3]} thing number {i + start}", LABELS[i % 3]) for i in range(n)
    )


def task(**changes: object) -> Task:
    splits = {"train": colours("t", 30), "validation": colours("v", 30, 100), "test": colours("x", 30, 200)}
    return Task(name="colours", instruction="Which?", **{"labels": LABELS, **splits, **changes})  # type: ignore[arg-type]


def accuracy(program: Program, items: Sequence[Example]) -> float:
    return float(np.mean([a.value == e.label for a, e in zip(program.answer(items, MODEL), items, strict=True)]))  # type: ignore[arg-type]


def test_the_prior_of_answers_is_divided_out_exactly() -> None:
    """With one input that favours nothing, p0 is the prior itself, and what is left is even."""
    found = from_answers("batch", [{"a": -1.0, "b": -3.0}])
    p0 = np.exp(log_softmax(np.array([-1.0, -3.0])))
    assert found.offsets == pytest.approx({"a": np.log(2 * p0[0]), "b": np.log(2 * p0[1])})
    assert found({"a": -1.0, "b": -3.0}) == pytest.approx({"a": np.log(0.5), "b": np.log(0.5)})


def test_the_mean_is_over_probabilities() -> None:
    """Zhou et al. 2024, equation 3: the mean of p, not of log p."""
    items = [{"a": np.log(0.9), "b": np.log(0.1)}, {"a": np.log(0.3), "b": np.log(0.7)}]
    assert from_answers("batch", items).offsets == pytest.approx({"a": np.log(2 * 0.6), "b": np.log(2 * 0.4)})


def test_items_with_choices_of_their_own_share_letters() -> None:
    """A model that says A with three times the even share, among two choices or four."""
    items = [{"A": np.log(0.75), "B": np.log(0.25)}, {"A": np.log(0.375), **dict.fromkeys("BCD", np.log(0.625 / 3))}]
    assert from_answers("batch", items).offsets["A"] == pytest.approx(np.log(1.5))


def test_affine_finds_the_offsets_that_made_the_labels() -> None:
    rng = np.random.default_rng(0)
    true = Calibration("affine", {"a": 1.5, "b": -0.5, "c": -1.0}, 0.7)
    scores = [dict(zip("abc", rng.normal(0, 3, 3).tolist(), strict=True)) for _ in range(4000)]
    gold = [str(rng.choice(list("abc"), p=np.exp(list(true(item).values())))) for item in scores]
    found = affine(scores, gold)
    assert found.scale == pytest.approx(0.7, abs=0.05)  # three standard errors at 4,000 items
    shift = np.mean([found.offsets[y] - true.offsets[y] for y in "abc"])  # a constant changes nothing
    assert [found.offsets[y] - shift for y in "abc"] == pytest.approx([1.5, -0.5, -1.0], abs=0.15)


def test_affine_agrees_with_a_general_optimiser() -> None:
    from scipy.optimize import minimize

    rng = np.random.default_rng(1)
    scores = [dict(zip("ab", rng.normal(0, 1, 2).tolist(), strict=True)) for _ in range(40)]
    gold = ["a" if rng.random() < 0.8 else "b" for _ in scores]

    def loss(x: np.ndarray) -> float:
        fit = Calibration("affine", {"a": x[1], "b": x[2]}, float(np.exp(x[0])))
        return -sum(fit(s)[y] for s, y in zip(scores, gold, strict=True)) + float((x**2).sum()) / 2

    best = minimize(loss, np.zeros(3), method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-10, "maxiter": 5000})
    found = affine(scores, gold)
    assert [np.log(found.scale), found.offsets["a"], found.offsets["b"]] == pytest.approx(best.x, abs=1e-3)


@pytest.mark.parametrize("way", ["contextual", "batch", "affine", "auto"])
def test_a_program_that_always_says_red(way: str) -> None:
    loaded = task()
    assert accuracy(Biased(), loaded.test) == pytest.approx(1 / 3)
    program = calibrated(Biased(), loaded, MODEL, way)  # type: ignore[arg-type]
    assert accuracy(program, loaded.test) == 1.0
    [answer] = program.answer(loaded.test[:1], MODEL)  # type: ignore[arg-type]
    assert answer.raw_scores["red"] == PRIOR["red"] + 2.0 - 10
    assert sum(np.exp(list(answer.scores.values()))) == pytest.approx(1)


def test_auto_keeps_what_needs_no_mending() -> None:
    """A prior that is right must not be flattened: nine of ten are red, and the model says so."""
    rng = np.random.default_rng(0)
    gold = ["red" if i % 10 else "blue" for i in range(60)]
    scores = [{"red": 1.5 + rng.normal(0, 0.3), "blue": 0.0} for _ in gold]
    fits = {"none": lambda _: Calibration(), "batch": lambda items: from_answers("batch", [scores[i] for i in items])}
    way, seen = simplest(fits, scores, gold, seed=0)  # type: ignore[arg-type]
    assert way == "none"
    assert seen["none"] == 0.9
    assert seen["batch"] < 0.7


def test_no_test_item_is_asked() -> None:
    asked: list[str] = []

    class Watched(Biased):
        kind = "test_watched"

        def answer(self, examples: Sequence[Example], model: object) -> list[Answer]:
            asked.extend(e.text for e in examples)
            return super().answer(examples, model)

    loaded = task()
    calibrated(Watched(), loaded, MODEL, "auto")  # type: ignore[arg-type]
    assert asked
    assert not {e.text for e in loaded.test} & set(asked)


def test_shots_are_no_inputs() -> None:
    """Without a validation split, the training split less what the program shows."""

    class Shown(Biased):
        kind = "test_shown"

        def to_dict(self) -> dict[str, object]:
            return {"shots": [{"example": {"id": e.id, "text": e.text}} for e in loaded.train[:27]]}

    loaded = task(validation=())
    assert calibrated(Shown(), loaded, MODEL, "batch").meta["inputs"] == 3  # type: ignore[arg-type, attr-defined]


def test_saved_and_loaded(tmp_path: Path) -> None:
    program = calibrated(Biased(), task(), MODEL, "batch")  # type: ignore[arg-type]
    program.save(tmp_path / "program.json")
    loaded = Program.load(tmp_path / "program.json")
    assert isinstance(loaded, CalibratedProgram)
    assert loaded.calibration == program.calibration  # type: ignore[attr-defined]
    assert loaded.answer(task().test, MODEL) == program.answer(task().test, MODEL)  # type: ignore[arg-type]


def test_bad_input_is_one_clear_error() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'batch'"):
        calibrated(Biased(), task(), MODEL, "bach")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no validation or training inputs left"):
        calibrated(Biased(), task(train=(), validation=()), MODEL, "batch")  # type: ignore[arg-type]
    with amplify.load_model("scripted:first_option") as model, pytest.raises(InputError, match="use score mode"):
        amplify.evaluate(task(), model, ["zero_shot"], calibrate="batch", progress=False)


def test_a_run_keeps_raw_and_calibrated_scores(tmp_path: Path) -> None:
    loaded = amplify.load_task("support_tickets")
    with amplify.load_model("scripted:first_option") as model:
        report = amplify.evaluate(
            loaded, model, ["zero_shot", "few_shot"], seeds=[0], limit=6, mode="score", calibrate="batch",
            out=tmp_path, progress=False,
        )  # fmt: skip
        assert ZeroShot(mode="score").fit(loaded, model, 0).answer(loaded.test[:1], model)[0].raw_scores == {}
    rows = [json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines()]
    assert all(set(row["raw_label_scores"]) == set(row["label_scores"]) == set(loaded.labels) for row in rows)
    assert any(row["raw_label_scores"] != row["label_scores"] for row in rows)
    assert "labels scored, calibrated (batch)" in (tmp_path / "report.md").read_text()
    assert str(report)


def chosen(n: int, options: bool) -> Task:
    """A task whose items bring their choices: letters of options, or names of their own."""
    rows = [
        Example(f"v{i}", f"which {i}?", "A", ("A", "B"), (f"one {i}", f"two {i}"))
        if options
        else Example(f"v{i}", f"which {i}?", f"name {i}", (f"name {i}", f"other {i}"))
        for i in range(n + 1)
    ]
    return task(labels=(), train=(), validation=tuple(rows[:n]), test=tuple(rows[n:]))


@pytest.mark.parametrize(
    ("loaded", "mode", "form", "way"),
    [
        (task(), "score", "letters", DEFAULT),
        (task(), "generate", "letters", "none"),
        (
            task(train=(), validation=task().train[: FEWEST - 1]),
            "score",
            "letters",
            "none",
        ),  # too little to see a prior by
        (chosen(FEWEST, True), "score", "letters", DEFAULT),
        (chosen(FEWEST, True), "score", "texts", "none"),
        (chosen(FEWEST, False), "score", "letters", "none"),
    ],
)
def test_what_none_stands_for(loaded: Task, mode: Any, form: Any, way: str) -> None:
    assert Scoring.of(loaded, mode, None, form).calibrate == way
    assert Scoring.of(loaded, mode, "pmi", form).calibrate == "pmi"


def test_a_run_without_the_option_says_what_it_did(tmp_path: Path) -> None:
    """The same numbers as with the default by name; a plan counts what it asks."""
    loaded = amplify.load_task("support_tickets")
    with amplify.load_model("scripted:first_option") as model:
        for folder, way in (("given", DEFAULT), ("left", None)):
            amplify.evaluate(
                loaded, model, ["few_shot"], seeds=[0], limit=6, mode="score", calibrate=way, out=tmp_path / folder,
                progress=False,
            )  # fmt: skip
        given, left = ((tmp_path / folder / "records.jsonl").read_bytes() for folder in ("given", "left"))
        assert given == left
        assert json.loads((tmp_path / "left" / "run.json").read_text())["calibrate"] == DEFAULT
        [plain], [counted] = (
            plan(loaded, model, ["few_shot"], seeds=[0], limit=6, mode="score", calibrate=way).rows
            for way in ("none", "batch")
        )
    assert counted.fit_calls - plain.fit_calls == 64 * 5  # inputs and labels
    assert counted.calls == plain.calls


def test_what_abstains_goes_on_abstaining() -> None:
    class Silent(Biased):
        kind = "test_silent"

        def answer(self, examples: Sequence[Example], model: object) -> list[Answer]:
            return [replace(a, value=None) if "red" in a.scores else a for a in super().answer(examples, model)]

    fitted = CalibratedProgram(Silent(), Calibration("batch", {"red": 3.0}))
    assert [a.value for a in fitted.answer(task().test[:3], MODEL)] == [None] * 3  # type: ignore[arg-type]

"""The values of a prompt's parts: by brute force, in closed form, on a tiny model in float32, and what is advised."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import amplify
from amplify.cli import cli
from amplify.errors import CapabilityError, InputError
from amplify.methods import make
from amplify.methods.base import Program
from amplify.methods.calibrated import CalibratedProgram, calibrated
from amplify.methods.program import ShotProgram
from amplify.models.base import LanguageModel
from amplify.models.scripted import ScriptedGenerator, ScriptedModel
from amplify.prompting.explain import ESTIMATORS
from amplify.prompting.parts import parts_of, with_parts
from amplify.tasks import Task
from amplify.types import Example

LABELS = ("red", "green", "blue")


def items(split: str, n: int) -> tuple[Example, ...]:
    return tuple(Example(f"{split}{i}", f"the {LABELS[i % 3]} thing, {split} {i}", LABELS[i % 3]) for i in range(n))


def scripted(logprob: Callable[[str, str], float]) -> ScriptedModel:
    return ScriptedModel("knows", reply=lambda text: "", logprob=logprob)


def explained(program: Program | str, task: Task, model: LanguageModel, **options: Any) -> amplify.PromptExplanation:
    return amplify.explain_prompt(program, task, model, show_progress=False, **{"items": 9, "held_out": 0, **options})


@pytest.fixture
def task() -> Task:
    return Task(
        name="colours", instruction="Which colour? Look well.", labels=LABELS, input_name="Thing",
        train=items("train", 12), validation=items("validation", 60), test=items("test", 8),
    )  # fmt: skip


def likes(text: str, continuation: str) -> float:
    """Log-odds are known: 2 for a first sentence, 1 for a second, -3 for shot train 4 behind the label list."""
    asked = text.rpartition("Thing: ")[2]
    right = continuation.strip(" .") == asked.split()[1]
    helped = 2.0 * ("Which colour?" in text) + 1.0 * ("Look well." in text)
    harmed = 3.0 * ("train 4" in text and "Options" in text)
    return (helped - harmed + math.log(2)) * right - 20.0  # against two labels of -20: odds exp(helped - harmed)


@pytest.fixture
def program(task: Task) -> ShotProgram:
    made = make("few_shot", mode="score", shots=3).fit(task, ScriptedModel("echo"), 0)
    assert isinstance(made, ShotProgram)
    shots = tuple(replace(made.shots[0], example=task.train[i]) for i in (1, 4, 7))
    return replace(made, shots=shots)


@pytest.mark.parametrize("estimator", ["exact", "leverage_shap", "kernel_shap", "permutation"])
def test_values_in_closed_form(program: ShotProgram, task: Task, estimator: str) -> None:
    """Sentences add; a shot and the list of labels harm together, so that each bears half. All sets: exact."""
    found = explained(
        program,
        task,
        scripted(likes),
        budget=64,
        items=9,
        estimator=estimator,
    )
    values = {part.name: part.value for part in found.parts}
    expected = {"instruction 1": 2, "instruction 2": 1, "label list": -1.5, "shot 1": 0, "shot 2": -1.5, "shot 3": 0}
    assert values == pytest.approx(expected, abs=1e-9)
    assert (found.empty, found.whole) == pytest.approx((0.0, 0.0), abs=1e-9)
    assert {part.name: part.left_out for part in found.parts} == pytest.approx(
        {**expected, "label list": -3, "shot 2": -3}
    )
    assert all(part.low == pytest.approx(part.value) == part.high for part in found.parts)  # all items are alike


def test_advice_is_checked_on_other_items_and_against_chance(program: ShotProgram, task: Task) -> None:
    model = scripted(likes)
    found = explained(program, task, model, held_out=30)
    assert found.drop == ("label list", "shot 2")
    assert (found.advice, found.helps) == ("dropped", True)
    names = {check.name: check for check in found.checks}
    assert names["dropped"].difference == pytest.approx(3.0)
    assert names["dropped"].low > 0
    assert names["as many parts dropped at random"].control
    assert names["as many parts dropped at random"].difference < 2
    assert "Leave out label list, shot 2: on 30 other items +3.00 nats" in found.verdict()
    assert not any(f"thing, test {i}" in text for text in model.texts for i in range(8))  # nothing of the test split
    [shot1, shot3] = found.program.shots  # type: ignore[attr-defined]
    assert [shot1.example.id, shot3.example.id] == ["train1", "train7"]


def test_another_order_is_found_checked_and_compared_with_orders_by_lot(program: ShotProgram, task: Task) -> None:
    def late(text: str, continuation: str) -> float:
        """Every shot helps, and one of them more where it stands last."""
        asked = text.rpartition("Thing: ")[2]
        right = continuation.strip(" .") == asked.split()[1]
        places = [text.rfind(f"train {i}\n") for i in (1, 4, 7)]
        helped = 0.6 * sum(place >= 0 for place in places) + 1.0 * (places[0] > max(places[1:]))
        return (helped + math.log(2)) * right - 20.0

    found = explained(
        program,
        task,
        scripted(late),
        items=9,
        held_out=30,
    )
    assert found.order[-1] == 0
    assert found.advice == "reordered"
    assert found.helps
    names = {check.name: check for check in found.checks}
    assert names["reordered"].difference == pytest.approx(1.0)
    assert 0 <= names["shots in random order"].difference <= 1
    assert found.program.shots[-1].example.id == "train1"  # type: ignore[attr-defined]


def test_where_nothing_helps_it_says_so(program: ShotProgram, task: Task) -> None:
    """Pure noise by prompt: whatever looks good on the game's items is not confirmed on the others."""

    def noise(text: str, continuation: str) -> float:
        seed = int.from_bytes(f"{text}{continuation}".encode()[-400:], "big") % 2**32
        return -3.0 + float(np.random.default_rng(seed).normal())

    found = explained(
        program,
        task,
        scripted(noise),
        items=10,
        held_out=40,
    )
    assert not found.helps
    assert "eave the prompt as it is" in found.verdict()


@pytest.fixture(scope="module")
def white(tiny_lm: Path) -> Iterator[LanguageModel]:
    with amplify.load_model(f"transformers:{tiny_lm}", dtype="float32") as opened:
        yield opened


def by_hand(program: ShotProgram, example: Example, model: LanguageModel) -> float:
    """Log-odds of the gold label, asked for this item alone."""
    said = model.score([program.prompt(example)] * 3, [f" {label}" for label in LABELS])  # type: ignore[attr-defined]
    scores = dict(zip(LABELS, (one.total for one in said), strict=True))
    others = [math.exp(value) for label, value in scores.items() if label != example.label]
    return scores[str(example.label)] - math.log(sum(others))


def test_a_tiny_model_against_all_orders_by_hand(program: ShotProgram, task: Task, white: LanguageModel) -> None:
    """Shapley values as means over all orders of the parts, one prompt at a time (float32, 1e-3 nats)."""
    small = replace(program, shots=program.shots[:2], form=replace(program.form, instruction="Which colour?"))
    found = explained(small, task, white, items=8)
    assert found.meta["estimator"] == "exact"
    assert found.checks == ()
    parts = parts_of(small, task.validation[0])
    assert [part.name for part in parts] == ["instruction 1", "label list", "shot 1", "shot 2"]
    asked = ScriptedModel("notes", reply=lambda text: "")
    explained(small, task, asked, items=8)  # the same items, by the same seed
    chosen = [e for e in task.validation if any(f"Thing: {e.text}\n" in text for text in asked.texts)]
    assert len(chosen) == 8
    known: dict[tuple[bool, ...], float] = {}

    def value(kept: tuple[bool, ...]) -> float:
        if kept not in known:
            one = with_parts(small, parts, kept)
            known[kept] = float(np.mean([by_hand(one, example, white) for example in chosen]))
        return known[kept]

    shares = np.zeros(4)
    for permutation in permutations(range(4)):
        kept = [False] * 4
        for player in permutation:
            before = value(tuple(kept))
            kept[player] = True
            shares[player] += (value(tuple(kept)) - before) / 24
    assert [part.value for part in found.parts] == pytest.approx(shares.tolist(), abs=1e-3)
    assert found.whole == pytest.approx(value((True,) * 4), abs=1e-3)
    assert all(part.low < part.value < part.high for part in found.parts)
    assert found.meta["asked_tokens"] > 2 * found.meta["forwarded_tokens"]


def test_an_interval_holds_the_value_over_many_items(program: ShotProgram, task: Task) -> None:
    """A part's effect differs between items; 95 % intervals of 9 items hold the effect over all in most draws."""

    def varied(text: str, continuation: str) -> float:
        asked = text.rpartition("Thing: ")[2]
        right = continuation.strip(" .") == asked.split()[1]
        number = int(asked.split()[4].partition("\n")[0])
        own = float(np.random.default_rng(number).normal(1.0, 2.0))
        return (own * ("Which colour?" in text) + math.log(2)) * right - 30.0

    effects = [float(np.random.default_rng(i).normal(1.0, 2.0)) for i in range(60)]
    small, held = replace(program, shots=program.shots[:1]), 0
    for seed in range(12):
        part = explained(small, task, scripted(varied), seed=seed).parts[0]
        held += part.low <= float(np.mean(effects)) <= part.high
        assert part.high > part.low
    assert held >= 9  # 11.4 expected


def test_a_calibrated_program_is_judged_calibrated(program: ShotProgram, task: Task) -> None:
    """A favourite of the whole prompt is no harm of a part where the calibration takes it out."""

    def favours(text: str, continuation: str) -> float:
        asked = text.rpartition("Thing: ")[2]
        label = continuation.strip(" .")
        return -20.0 + 1.0 * (label == asked.split()[1]) + 6.0 * (label == "red" and "train 4" in text)

    model = scripted(favours)
    whole = calibrated(program, task, model, "batch", 0)
    assert isinstance(whole, CalibratedProgram)
    plain = explained(program, task, model, items=30)
    found = explained(whole, task, model, items=30)
    named = [{part.name: part.value for part in each.parts} for each in (plain, found)]
    assert named[0]["shot 2"] < -0.5
    assert abs(named[1]["shot 2"]) < 0.2
    assert found.meta["calibrated"]
    assert isinstance(found.program, (CalibratedProgram, ShotProgram))
    assert isinstance(plain.program, ShotProgram)


def test_length_and_content_are_told_apart(program: ShotProgram, task: Task) -> None:
    """A model that likes long prompts alone: neutral words do as much, and all is token noise."""

    def long(text: str, continuation: str) -> float:
        asked = text.rpartition("Thing: ")[2]
        right = continuation.strip(" .") == asked.split()[1]
        return (0.1 * min(len(text.split()), 1000) + math.log(2)) * right - 30.0

    found = explained(
        program,
        task,
        scripted(long),
        items=9,
        held_out=0,
    )
    sentence = found.parts[0]
    assert sentence.value > 0.1
    assert abs(sentence.content) <= 0.1 + 1e-9
    assert found.token_noise > 0.6
    words = explained(program, task, scripted(likes)).parts[0]
    assert (words.content, words.length) == pytest.approx((2.0, 0.0), abs=1e-9)


def test_what_cannot_be_explained(program: ShotProgram, task: Task, words: Task) -> None:
    model = scripted(likes)
    for given, asked, says in [
        ("few_shot_knn", task, "fixed shots"),
        (make("zero_shot", mode="score").fit(words, model, 0), words, "no labelled items"),
        (program, replace(task, validation=task.validation[:3], train=task.train[:3]), "8 are needed"),
    ]:
        with pytest.raises(InputError, match=says):
            explained(given, asked, model)
    with pytest.raises(InputError, match="too small for leverage_shap"):
        explained(program, task, model, budget=4)
    with pytest.raises(InputError, match="linear"):
        explained(program, task, model, estimator="gaussian_process")
    assert not model.texts  # refused before anything is asked
    with pytest.raises(CapabilityError, match="log-probabilities"):
        explained(program, task, ScriptedGenerator("echo"))
    assert "auto" in ESTIMATORS
    with pytest.raises(InputError, match="at least 8 labelled items, got 4"):
        explained(program, task, model, items=4)


@pytest.fixture
def words() -> Task:
    pools = {
        s: tuple(Example(f"{s}{i}", f"Sort {s} {i}", answers=("a b",)) for i in range(20))
        for s in ("validation", "test")
    }
    return Task(name="words", instruction="Sort the words.", metric="exact_match", train=(), **pools)


def test_page_and_json_hold_everything_and_escape_it(program: ShotProgram, task: Task, tmp_path: Path) -> None:
    evil = replace(program, form=replace(program.form, instruction="Which colour? <script>alert(1)</script> now."))
    found = explained(evil, task, scripted(likes))
    page = found.to_html(tmp_path / "page.html")
    assert page == (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    for part in found.parts:
        assert part.name in page
    found.save(tmp_path / "prompt.json")
    data = json.loads((tmp_path / "prompt.json").read_text())
    assert [part["part"]["name"] for part in data["parts"]] == [part.name for part in found.parts]
    assert Program.of(data["program"]) == found.program
    assert "token noise" in str(found)


def test_the_command(tmp_path: Path) -> None:
    out = tmp_path / "why"
    arguments = ["explain-prompt", "support_tickets", "-m", "scripted:last_answer", "--method", "few_shot[shots=1]",
                 "--items", "8", "--held-out", "8", "--out", str(out)]  # fmt: skip
    done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "instruction 1" in done.output
    assert sorted(path.name for path in out.iterdir()) == ["program.json", "prompt.html", "prompt.json"]
    again = ["explain-prompt", "support_tickets", "-m", "scripted:last_answer", "--program", str(out / "program.json"),
             "--items", "8", "--held-out", "0", "--out", str(out)]  # fmt: skip
    assert CliRunner().invoke(cli, again, catch_exceptions=False).exit_code == 0


@pytest.mark.parametrize(
    "label",
    [
        "proxy_alone",
        "proxy_hint",
        "proxy_pool",
        "cascade",
        "amplify_test_words",
        "instruction_search[inner=proxy_alone]",
    ],
)
def test_a_method_without_fixed_shots_is_refused_before_anything_is_trained(
    label: str, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(*_: Any, **__: Any) -> None:
        raise AssertionError("trained")

    monkeypatch.setattr("amplify.proxies.train_proxy", train)
    with pytest.raises(InputError, match="fixed shots"):
        explained(label, task, scripted(likes))

"""Whole searches on a task in which the best candidate is known."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import amplify
from amplify.cli import cli
from amplify.errors import InputError, ModelError, RunError, UnknownNameError
from amplify.methods import make
from amplify.methods.base import METHODS, Method, Program, examples_in
from amplify.models.scripted import ScriptedGenerator, ScriptedModel
from amplify.tasks import Task
from amplify.tuning import Budget, Candidate, Tuned, candidates_for
from amplify.tuning.search import folds_of
from amplify.types import Example

Made = Callable[..., ScriptedModel]
LISTED = ["zero_shot", "few_shot[shots=2]", "zero_shot+batch", "few_shot[shots=2]+batch"]


def accuracy(program: Program, task: Task, model: ScriptedModel) -> float:
    return float(
        np.mean([a.value == e.label for a, e in zip(program.answer(task.test, model), task.test, strict=True)])
    )


def test_the_planted_best_is_found_confirmed_and_deployed(colours: Task, biased: Made, tmp_path: Path) -> None:
    tuned = amplify.tune(colours, biased(), Budget(calls=100_000), out=tmp_path, candidates=LISTED, show_progress=False)
    assert tuned.label == "zero_shot + batch"  # as good as with shots, and simpler
    assert tuned.better
    assert tuned.baseline in ("zero_shot", "few_shot[shots=2]")
    assert tuned.confirmation is not None
    assert tuned.confirmation.chosen == 1.0
    assert tuned.confirmation.p < 0.001
    assert tuned.ingredients[0].name == "calibration"
    assert tuned.ingredients[0].low > 0.2
    program = Program.load(tmp_path / "program.json")
    assert accuracy(program, colours, biased()) == 1.0
    assert json.loads((tmp_path / "result.json").read_text())["label"] == tuned.label
    assert f"Deploy {tuned.label}" in str(tuned)
    page = (tmp_path / "report.html").read_text()
    assert f"amplify apply {tmp_path}/program.json" in page
    assert r"zero\_shot + batch (chosen)" in (tmp_path / "report.md").read_text()


def test_nothing_of_the_test_split_is_asked(colours: Task, biased: Made) -> None:
    model = biased()
    amplify.tune(colours, model, "calls=100000", candidates=LISTED, show_progress=False)
    asked = " ".join(model.texts)
    assert not any(e.text in asked for e in colours.test)
    assert any(e.text in asked for e in colours.validation)


def test_race_and_confirmation_are_never_shown_nor_fitted_on(colours: Task) -> None:
    folds = folds_of(colours, 0)
    shown = {e.id for e in (*folds.task.train, *folds.task.validation)}
    race, confirm = {e.id for e in folds.race}, {e.id for e in folds.confirm}
    assert not shown & race
    assert not (shown | race) & confirm
    assert not (shown | race | confirm) & {e.id for e in colours.test}
    assert (len(folds.task.validation), len(race), len(confirm)) == (32, 42, 86)
    assert folds_of(colours, 0) == folds
    assert folds_of(colours, 1) != folds


def test_what_is_deployed_is_fitted_on_every_labelled_item(colours: Task, biased: Made, tiny_encoder: Path) -> None:
    near = Candidate(make("few_shot_knn", shots=2, embedder=str(tiny_encoder), mode="score"), plain=True)
    tuned = amplify.tune(colours, biased(), "calls=100000", candidates=[near], show_progress=False)
    folds = folds_of(colours, 0)
    labelled = {e.id for e in (*folds.task.train, *folds.race, *folds.confirm)}
    assert {e["id"] for e in examples_in(tuned.program.to_dict())} == labelled == {e.id for e in folds.whole.train}
    assert folds.whole.validation == folds.task.validation


def test_drawn_shots_stay_as_they_were_confirmed(colours: Task, biased: Made) -> None:
    listed = ["few_shot[shots=2]", "few_shot[shots=2]+batch"]
    tuned = amplify.tune(colours, biased(), "calls=100000", candidates=listed, show_progress=False)
    assert tuned.better
    assert {e["id"] for e in examples_in(tuned.program.to_dict())} <= {e.id for e in folds_of(colours, 0).task.train}


def test_training_items_fill_a_small_validation_split_up(colours: Task) -> None:
    folds = folds_of(replace(colours, train=colours.validation, validation=colours.train), 0)
    assert len(folds.task.train) == 130 - 65
    assert (len(folds.task.validation), len(folds.race), len(folds.confirm)) == (25, 33, 67)


def test_sixty_labelled_items_are_enough(colours: Task) -> None:
    """49 and 11, as the task of pronouns has: of an odd number the larger half is lent."""
    folds = folds_of(replace(colours, train=colours.validation[:49], validation=colours.validation[49:60]), 0)
    assert (len(folds.task.train), len(folds.race) + len(folds.confirm) + len(folds.task.validation)) == (24, 36)
    with pytest.raises(InputError, match="60 training and 0 validation items"):
        folds_of(replace(colours, validation=()), 0)  # half of the training split is too little


def test_where_nothing_helps_the_plain_one_is_given_back(colours: Task) -> None:
    """A model that is always right: no candidate can be better."""
    model = ScriptedModel(
        "knows",
        reply=lambda text: "red.",
        logprob=lambda text, y: 9.0 * (y.strip(" .") in text.rpartition("Thing: ")[2]),
    )
    tuned = amplify.tune(colours, model, Budget(calls=100_000), candidates=LISTED, show_progress=False)
    assert tuned.label == tuned.baseline == "zero_shot"
    assert not tuned.better
    assert "Deploy zero_shot, the best plain candidate" in str(tuned)


def by_seed(seed: int) -> Callable[[str, str], float]:
    """Noise that depends on nothing but the text: no candidate knows anything."""

    def logprob(text: str, continuation: str) -> float:
        import hashlib

        digest = hashlib.sha256(f"{seed} {text} {continuation}".encode()).digest()
        return -int.from_bytes(digest[:4], "big") / 2**32

    return logprob


def test_never_worse_over_many_seeds(colours: Task) -> None:
    """With nothing to find, something else than a plain candidate is deployed in few of the searches."""
    deployed = 0
    for seed in range(40):
        model = ScriptedModel("noise", reply=lambda text: "red.", logprob=by_seed(seed))
        tuned = amplify.tune(colours, model, Budget(calls=100_000), seed=seed, candidates=LISTED, show_progress=False)
        deployed += tuned.better
    assert deployed <= 6  # 5 % of 40 are 2; three standard errors above that


@pytest.mark.parametrize("limit", [400, 700, 1500])
def test_calls_and_tokens_are_never_exceeded(colours: Task, biased: Made, limit: int) -> None:
    for name, factor in (("calls", 1), ("tokens", 12)):
        model = biased()
        budget = Budget(**{name: float(limit * factor)})
        try:
            tuned = amplify.tune(colours, model, budget, candidates=LISTED, show_progress=False)
        except InputError as error:
            assert "too small for one race" in str(error)  # noqa: PT017
            assert "at least" in str(error)  # noqa: PT017
        else:
            assert getattr(tuned.spent, name) <= limit * factor
        assert model.usage.calls <= (limit if name == "calls" else 10**9)


def test_minutes_are_never_exceeded(colours: Task) -> None:
    """A clock that only the model moves: a second for four texts scored."""
    now = [0.0]

    def slow(text: str, continuation: str) -> float:
        now[0] += 0.25
        return -1.0 - len(continuation)

    for seconds in (150, 300, 600):
        now[0] = 0.0
        model = ScriptedModel("slow", reply=lambda text: "", logprob=slow)
        tuned = amplify.tune(
            colours, model, Budget(minutes=seconds / 60), candidates=LISTED, show_progress=False, clock=lambda: now[0]
        )
        assert now[0] == pytest.approx(tuned.spent.seconds)
        assert now[0] <= seconds


@pytest.mark.parametrize("after", [1, 50, 333, 500])
def test_a_search_that_was_stopped_ends_as_one_that_was_not(
    colours: Task, biased: Made, tmp_path: Path, after: int
) -> None:
    whole = amplify.tune(
        colours, biased(), Budget(calls=2500), candidates=LISTED, out=tmp_path / "a", show_progress=False
    )
    with pytest.raises(ModelError, match="the same call goes on"):
        amplify.tune(
            colours,
            biased(fail_after=after),
            Budget(calls=2500),
            candidates=LISTED,
            out=tmp_path / "b",
            show_progress=False,
        )
    model = biased()
    again = amplify.tune(colours, model, Budget(calls=2500), candidates=LISTED, out=tmp_path / "b", show_progress=False)
    # a failed server has to read the prompt again behind which it had scored some of the labels
    assert {**told(again), "spent": 0, "one_by_one": 0} == {**told(whole), "spent": 0, "one_by_one": 0}
    assert again.spent.calls == whole.spent.calls
    assert len(model.calls) == whole.spent.calls - after  # nothing was asked twice
    assert (tmp_path / "b" / "program.json").read_bytes() == (tmp_path / "a" / "program.json").read_bytes()


def told(tuned: Tuned) -> dict[str, Any]:
    """Everything but the time it took."""
    found = tuned.to_dict()
    found["spent"].pop("seconds")
    return found


KILLED = """
    import os, sys
    sys.path.insert(0, {here!r})
    import amplify
    from amplify.models.scripted import ScriptedModel
    from conftest import LABELS, items, says_red
    from amplify.tasks import Task

    left = [{after}]
    def logprob(text, continuation):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), 9)
        return says_red(text, continuation)

    task = Task(name="colours", instruction="Which colour?", labels=LABELS, input_name="Thing",
                train=items("train", 60), validation=items("validation", 130), test=items("test", 60))
    model = ScriptedModel("biased", reply=lambda text: "red.", logprob=logprob)
    amplify.tune(task, model, "calls=2500", candidates={listed!r}, out={out!r}, show_progress=False)
"""


def test_kill_9_and_go_on(colours: Task, biased: Made, tmp_path: Path) -> None:
    whole = amplify.tune(colours, biased(), Budget(calls=2500), candidates=LISTED, show_progress=False)
    here, out = str(Path(__file__).parent), tmp_path / "run"
    script = textwrap.dedent(KILLED.format(here=here, after=500, listed=LISTED, out=str(out)))
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -9
    assert not (out / "program.json").exists()
    again = amplify.tune(colours, biased(), Budget(calls=2500), candidates=LISTED, out=out, show_progress=False)
    assert told(again) == told(whole)


def test_a_folder_of_another_search_is_refused(colours: Task, biased: Made, tmp_path: Path) -> None:
    amplify.tune(colours, biased(), Budget(calls=2500), candidates=LISTED, out=tmp_path, show_progress=False)
    with pytest.raises(RunError, match="seed: 0 in the file, 1 in this call"):
        amplify.tune(
            colours, biased(), Budget(calls=2500), seed=1, candidates=LISTED, out=tmp_path, show_progress=False
        )
    other = replace(colours, instruction="Say the colour.")
    with pytest.raises(RunError, match=r"task\.fingerprint"):
        amplify.tune(other, biased(), Budget(calls=2500), candidates=LISTED, out=tmp_path, show_progress=False)


def test_a_finished_search_is_told_again_without_a_call(colours: Task, biased: Made, tmp_path: Path) -> None:
    first = amplify.tune(colours, biased(), Budget(calls=2500), candidates=LISTED, out=tmp_path, show_progress=False)
    model = biased()
    again = amplify.tune(colours, model, Budget(calls=2500), candidates=LISTED, out=tmp_path, show_progress=False)
    assert model.calls == []
    assert again.to_dict() == first.to_dict()


def test_what_is_tried_follows_the_task_and_the_model(colours: Task, biased: Made) -> None:
    listed, notes = candidates_for(colours, biased())
    labels = [c.label for c in listed]
    assert {"zero_shot", "few_shot", "few_shot_knn", "zero_shot_cot"} == {c.label for c in listed if c.plain}
    assert {"proxy_pool + none", "proxy_pool"} & set(labels)
    assert notes == []
    assert len(set(labels)) == len(labels)
    written, notes = candidates_for(colours, ScriptedGenerator("echo"))
    assert all(c.calibrate == "none" for c in written)
    assert "gives no log-probabilities" in notes[0]
    free = Task(name="free", instruction="?", train=(), validation=(), test=(Example("1", "q", answers=("a",)),))
    listed, notes = candidates_for(free, biased())
    assert "which need labels" in notes[0]
    assert not any("proxy" in c.label for c in listed)


def test_ingredients_and_labels_of_candidates() -> None:
    one = Candidate.parse("proxy_pool[inner=few_shot_knn,calibrate=batch]", "score")
    assert one.ingredients == ("shots", "nearest shots", "calibration", "proxy")
    assert Candidate.parse("few_shot[shots=4]+batch+permuted", "score").label == "few_shot[shots=4] + batch + permuted"
    assert Candidate.parse(Candidate.parse("zero_shot+batch", "score").label, "score").calibrate == "batch"
    assert Candidate.parse("zero_shot", "score").ingredients == ()
    with pytest.raises(UnknownNameError, match="calibration or option form"):
        Candidate.parse("zero_shot+bach", "score")


def test_a_method_of_ones_own_takes_part(colours: Task, biased: Made) -> None:
    @amplify.register("method", "tune_test_own")
    @dataclass(frozen=True)
    class Own(Method):
        """A batch calibration by another name."""

        def fit(self, task: Task, model: amplify.models.LanguageModel, seed: int) -> Program:
            return Candidate.parse("zero_shot+batch", self.mode).fit(task, model, seed)

    try:
        tuned = amplify.tune(
            colours, biased(), "calls=100000", candidates=["zero_shot", "tune_test_own"], show_progress=False
        )
        assert tuned.label == "tune_test_own"
    finally:
        METHODS.remove("tune_test_own")  # type: ignore[attr-defined]


@pytest.mark.parametrize(("minutes", "fits"), [(60, 2), (20, 1)])
def test_a_budget_without_room_for_the_last_fit_deploys_what_raced(
    colours: Task, biased: Made, minutes: float, fits: int
) -> None:
    """A fit of ten minutes, and nothing else takes any time."""
    now = 0.0
    trained: list[int] = []

    @amplify.register("method", "tune_test_slow")
    @dataclass(frozen=True)
    class Slow(Method):
        """A batch calibration, slowly found."""

        def fit(self, task: Task, model: amplify.models.LanguageModel, seed: int) -> Program:
            nonlocal now
            now += 600
            trained.append(len(task.train))
            return Candidate.parse("zero_shot+batch", self.mode).fit(task, model, seed)

    try:
        tuned = amplify.tune(
            colours, biased(), Budget(minutes=minutes), candidates=["zero_shot", "tune_test_slow"],
            show_progress=False, clock=lambda: now,
        )  # fmt: skip
    finally:
        METHODS.remove("tune_test_slow")  # type: ignore[attr-defined]
    assert tuned.label == "tune_test_slow"
    folds = folds_of(colours, 0)
    assert trained == [len(folds.task.train), len(folds.whole.train)][:fits]
    assert any("deployed as it raced" in note for note in tuned.notes) == (fits == 1)


def test_what_cannot_be_fitted_is_said_and_left_out(colours: Task, biased: Made) -> None:
    tuned = amplify.tune(
        colours,
        biased(),
        "calls=100000",
        candidates=["zero_shot", "zero_shot+batch", "instaboost", "human_cot"],
        show_progress=False,
    )
    out = {line.label: line.out for line in tuned.table}
    assert out["instaboost"].startswith("cannot be used: ")
    assert "people" in out["human_cot"]
    assert tuned.better


def test_what_costs_nothing_more_is_tried_when_the_share_is_gone(colours: Task, biased: Made) -> None:
    listed = ["zero_shot", "few_shot[shots=2]", "zero_shot+batch", "few_shot[shots=4]", "zero_shot+affine"]
    tuned = amplify.tune(colours, biased(), Budget(calls=380), candidates=listed, show_progress=False)
    lines = {line.label: line for line in tuned.table}
    assert lines["few_shot[shots=4]"].out == "not tried: the budget"
    assert lines["zero_shot + affine"].n >= 16  # the same inputs as for batch, the same items as for zero_shot
    assert tuned.spent.calls <= 380


def test_a_model_that_cannot_score_is_said_and_written_answers_race(colours: Task) -> None:
    """A server whose labels cannot be scored: one clear error in score mode, and a race in generate mode."""
    from amplify.errors import CapabilityError

    def refuses(text: str, continuation: str) -> float:
        raise CapabilityError("this server gives no log-probabilities")

    model = ScriptedModel("mute", reply=lambda text: "red.", logprob=refuses)
    with pytest.raises(InputError, match=r"no plain candidate can be used.*gives no log-probabilities"):
        amplify.tune(colours, model, "calls=1000", candidates=LISTED, show_progress=False)
    written = ["zero_shot", "few_shot[shots=2]"]
    tuned = amplify.tune(colours, model, "calls=1000", candidates=written, mode="generate", show_progress=False)
    assert tuned.label == "zero_shot"


def test_bad_input_is_one_clear_error(colours: Task, biased: Made) -> None:
    with pytest.raises(InputError, match=r"too small for one race.*at least [\d,]+ tokens"):
        amplify.tune(colours, biased(), "calls=10", candidates=LISTED, show_progress=False)
    with pytest.raises(InputError, match="labelled items outside the test split"):
        amplify.tune(replace(colours, train=(), validation=()), biased(), "calls=1000", show_progress=False)
    with pytest.raises(InputError, match="more than once"):
        amplify.tune(colours, biased(), "calls=1000", candidates=["zero_shot", "zero_shot"], show_progress=False)
    with pytest.raises(InputError, match="budget"):
        amplify.tune(colours, biased(), "soon", show_progress=False)


def test_the_command(tmp_path: Path) -> None:
    result = CliRunner().invoke(
        cli,
        ["tune", "support_tickets", "-m", "scripted:first_option", "--budget", "calls=20000",
         "--out", str(tmp_path / "t"),
         "--candidates", "zero_shot,few_shot[shots=2;selection=balanced],zero_shot+batch"],
        catch_exceptions=False,
    )  # fmt: skip
    assert "few_shot[shots=2,selection=balanced]" in result.output
    assert "deploy: amplify apply" in result.output
    (tmp_path / "new.csv").write_text("message\nWhere is my parcel?\n")
    applied = CliRunner().invoke(
        cli,
        ["apply", str(tmp_path / "t/program.json"), "--input", str(tmp_path / "new.csv"), "--text", "message",
         "-m", "scripted:first_option", "--out", str(tmp_path / "answers.csv")],
        catch_exceptions=False,
    )  # fmt: skip
    assert "1 rows" in applied.output


def test_what_is_too_dear_leaves_the_race_to_what_is_not(colours: Task, biased: Made) -> None:
    listed = ["zero_shot", "few_shot[shots=1]", "few_shot[shots=24]", "zero_shot+batch"]
    tuned = amplify.tune(colours, biased(), "tokens=7000", candidates=listed, show_progress=False)
    lines = {line.label: line for line in tuned.table}
    assert lines["few_shot[shots=24]"].out == "not tried: the budget"
    assert lines["zero_shot + batch"].n >= 16
    assert tuned.label == "zero_shot + batch"

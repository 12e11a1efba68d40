"""Runs: what is written when, and what is refused before any answer."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import ClassVar

import evaluation_fakes as fakes
import pytest
from evaluation_fakes import Fake, Plain, fake_model, lines, make_task, methods, reply, run

from amplify.errors import ContextLengthError, InputError, RunError
from amplify.evaluation import evaluate, load_report
from amplify.evaluation.configuration import chosen_items
from amplify.methods.base import Program
from amplify.models.scripted import ScriptedModel
from amplify.types import Demonstration


def test_a_run_is_a_folder(tmp_path):
    report = run(tmp_path / "run")
    folder = tmp_path / "run"
    names = {p.name for p in folder.iterdir()} - {".lock"}
    assert names == {"run.json", "programs", "records.jsonl", "timing.jsonl", "report.html", "report.md"}
    records = lines(folder)
    # one deterministic method once, two methods with three seeds, 30 items
    assert len(records) == 30 * (1 + 3 + 3)
    assert {r["seed"] for r in records if r["method"] == "plain"} == {None}
    assert not any("seconds" in key or "time" in key for r in records for key in r)
    assert len(list((folder / "programs").iterdir())) == 7
    config = json.loads((folder / "run.json").read_text())
    assert config["family"] == [["fake", "plain"], ["fake[skill=0.9]", "plain"]]
    assert config["task"]["fingerprint"] == make_task().fingerprint
    assert config["task"]["chance"] == 0.5
    assert config["templates"]
    assert report.finished
    assert str(load_report(folder)) == str(report)


def test_rows_are_what_the_records_say(tmp_path):
    report = run(tmp_path)
    for row in report.rows:
        own = [r for r in lines(tmp_path) if r["method"] == row.method]
        assert row.score == pytest.approx(sum(r["answer"] == r["gold"] for r in own) / len(own))
        assert row.unparsed == pytest.approx(sum(r["answer"] is None for r in own) / len(own))
        assert row.cost.calls == pytest.approx(1000)
        assert row.cost.prompt_tokens == pytest.approx(1000 * sum(r["prompt_tokens"] for r in own) / len(own))
        assert row.cost.seconds > 0
        assert row.low < row.score < row.high
    assert report.row("plain").interval == "wilson"
    assert report.row("fake").interval == "BCa bootstrap"
    assert report.row("fake").fit.calls == 3  # one call under each of three seeds
    assert len(report.row("fake").seed_scores) == 3
    assert any(row.unparsed for row in report.rows)


def test_every_method_and_seed_answers_the_same_items(tmp_path):
    run(tmp_path, limit=7)
    seen = {}
    for record in lines(tmp_path):
        seen.setdefault((record["method"], record["seed"]), []).append(record["id"])
    assert len(set(map(tuple, seen.values()))) == 1
    assert next(iter(seen.values())) == [item.id for item in chosen_items(make_task(), 7)]
    some, more = chosen_items(make_task(), 7), chosen_items(make_task(), 12)
    assert {e.id for e in some} < {e.id for e in more}


def test_without_a_folder_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    report = run(None)
    assert report.finished
    assert not list(tmp_path.iterdir())
    assert report.row("fake").answered == 90


def test_run_json_is_there_before_anything_is_asked(tmp_path):
    asked = []

    def look(text):
        asked.append((tmp_path / "run.json").exists())
        programs = {p.name for p in (tmp_path / "programs").glob("*.json")}
        if "fit item" not in text:
            assert len(programs) == 7
        return reply(text)

    evaluate(make_task(), ScriptedModel("fake", reply=look), methods(), out=tmp_path)
    assert asked
    assert all(asked)


def test_every_program_is_used_as_its_file_gives_it(tmp_path, monkeypatch):
    loaded = []
    load = Program.load
    monkeypatch.setattr(Program, "load", staticmethod(lambda path: loaded.append(Path(path).name) or load(path)))
    run(tmp_path)
    assert len(loaded) == 7


def test_two_runs_in_one_folder_are_refused(tmp_path):
    def inner(text):
        with pytest.raises(RunError, match="another run is writing"):
            run(tmp_path)
        tried.append(text)
        return reply(text)

    tried: list[str] = []
    evaluate(make_task(2), ScriptedModel("fake", reply=inner), [Plain()], out=tmp_path)
    assert tried


def test_a_test_item_among_the_shots_is_refused_before_any_answer(tmp_path):
    asked = fake_model()
    with pytest.raises(InputError, match="'test-0' is among the shots of fake"):
        run(tmp_path, methods=[Plain(), Fake(leak=True)], model=asked)
    assert not any("Review:" in text for text in asked.texts)
    assert not (tmp_path / "records.jsonl").exists()


@dataclass(frozen=True)
class Copying(Fake):
    """Shows a test item under another id, as human demonstrations of a benchmark may."""

    name: ClassVar[str] = "copying"

    def fit(self, task, model, seed):
        copied = replace(task.test[3], id="new", text=task.test[3].text + " ")
        return fakes.FakeProgram("skill=1.0 seed=0", (asdict(Demonstration(copied)),))


def test_a_test_item_under_another_id_is_refused_too(tmp_path):
    with pytest.raises(InputError, match="'new' is among the shots"):
        run(tmp_path, methods=[Copying()])


def test_a_prompt_that_cannot_fit_is_refused_before_any_answer(tmp_path):
    task = make_task()
    long = replace(task.test[20], text=f"item 20 {'very ' * 60}good")  # in the last batches of each method
    asked = fake_model(max_context=60)
    with pytest.raises(ContextLengthError, match=r"plain: the prompt for item 'test-20' has \d+ tokens"):
        evaluate(replace(task, test=(*task.test[:20], long, *task.test[21:])), asked, [Plain()], out=tmp_path)
    assert not any("Review:" in text for text in asked.texts)

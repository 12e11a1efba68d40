"""Runs: what is written when, resuming after a kill, and what is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import ClassVar

import evaluation_fakes as fakes
import pytest
from evaluation_fakes import Fake, Plain, make_task, methods, reply

from amplify.backends.scripted import ScriptedBackend
from amplify.errors import BackendError, ContextLengthError, InputError, RunError, UnknownNameError
from amplify.evaluation import evaluate, load_report, plan
from amplify.evaluation.configuration import chosen_items, declare_family, make_methods
from amplify.methods.base import Program
from amplify.values import Demonstration

SCRIPT = Path(fakes.__file__)


def backend(**options):
    return ScriptedBackend("fake", reply=reply, **options)


def run(out, **changes):
    given = {"batch_size": 4, "seeds": (0, 1, 2)} | changes
    return evaluate(make_task(), given.pop("backend", backend()), given.pop("methods", methods()), out=out, **given)


def lines(folder, name="records.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


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

    evaluate(make_task(), ScriptedBackend("fake", reply=look), methods(), out=tmp_path)
    assert asked
    assert all(asked)


def kill_at(command, environment, records, wanted):
    """Start a run and SIGKILL it when so many answers are on disk."""
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if records.exists() and records.read_bytes().count(b"\n") >= wanted:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.002)
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors.decode()


def same_results(one, other):
    """Answers, scores, programs and statistics of two folders are equal to the byte; times are not compared."""
    for name in ("records.jsonl", "run.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes()
    first, second = load_report(one), load_report(other)
    assert first.finished
    assert first.comparisons == second.comparisons
    for a, b in zip(first.rows, second.rows, strict=True):
        cost = replace(a.cost, seconds=0.0)
        assert replace(a, cost=cost, fit=a.fit) == replace(b, cost=replace(b.cost, seconds=0.0), fit=a.fit)
        assert replace(a.fit, seconds=0.0) == replace(b.fit, seconds=0.0)
    programs = [{p.name: p.read_bytes() for p in (folder / "programs").iterdir()} for folder in (one, other)]
    assert programs[0] == programs[1]


def test_killed_and_started_again_gives_the_same_bytes(tmp_path):
    """SIGKILL in mid-run, then the same command: answers, scores and statistics equal those of one go."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    command = [sys.executable, str(SCRIPT), str(killed)]
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parent)}
    records = killed / "records.jsonl"
    for wanted in (3, 100):
        kill_at(command, environment, records, wanted)
        with records.open("ab") as file:
            file.write(b'{"method": "fake", "se')  # what a kill in the middle of a write leaves
        assert not load_report(killed).finished
    run(killed)
    run(whole)
    same_results(killed, whole)


def test_killed_and_started_again_on_transformers(tmp_path, tiny_lm):
    """The same with a model in process, whose label log-probabilities must return to the last bit."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    command = [sys.executable, str(SCRIPT), str(killed), str(tiny_lm)]
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parent)}
    kill_at(command, environment, killed / "records.jsonl", 14)
    assert not load_report(killed).finished
    for folder in (killed, whole):
        fakes.run_model(str(tiny_lm), str(folder))
    same_results(killed, whole)
    assert len({tuple(r["label_scores"].values()) for r in lines(whole)}) > 12


def test_programs_are_never_fitted_again(tmp_path):
    with pytest.raises(BackendError):
        run(tmp_path, backend=backend(fail_after=60))
    before = {p.name: p.read_bytes() for p in (tmp_path / "programs").iterdir()}
    fakes.FITS.clear()
    run(tmp_path)
    assert not fakes.FITS
    assert {p.name: p.read_bytes() for p in (tmp_path / "programs").iterdir()} == before


def test_an_unfinished_batch_is_redone_whole(tmp_path):
    run(tmp_path)
    records = tmp_path / "records.jsonl"
    whole = records.read_bytes()
    torn = whole.splitlines(keepends=True)
    records.write_bytes(b"".join(torn[:10]) + torn[10][:25])  # two batches of four, then half of one
    asked = backend()
    report = run(tmp_path, backend=asked)
    assert records.read_bytes() == whole
    assert len(asked.texts) == 210 - 8
    assert report.finished


def test_a_failing_backend_keeps_what_was_answered(tmp_path):
    with pytest.raises(BackendError, match=r"50 answers are kept in .*; run the same command again") as caught:
        run(tmp_path, backend=backend(fail_after=58))  # 7 of them while fitting
    assert "was told to fail" in str(caught.value)
    unfinished = load_report(tmp_path)
    assert not unfinished.finished
    assert "UNFINISHED: 50 of 210" in str(unfinished)
    assert "UNFINISHED" in unfinished.to_markdown()
    assert [row.answered for row in unfinished.rows] == [30, 20, 0]
    assert unfinished.comparisons[1].p is None
    run(tmp_path)
    whole = run(None)
    assert load_report(tmp_path).comparisons == whole.comparisons


def test_another_configuration_is_refused(tmp_path):
    run(tmp_path)
    with pytest.raises(RunError, match=r"seeds: \[0, 1, 2\] in the folder, \[0, 1\] in this call"):
        run(tmp_path, seeds=(0, 1))
    with pytest.raises(RunError, match=r"methods\[1\]\.options\.skill: 0\.6 in the folder, 0\.7 in this call"):
        run(tmp_path, methods=[Plain(), Fake(skill=0.7), Fake(skill=0.9)])
    with pytest.raises(RunError, match="batch_size"):
        run(tmp_path, batch_size=5)
    with pytest.raises(RunError, match="methods"):
        run(tmp_path, methods=[Plain(), Fake()])
    with pytest.raises(RunError, match=r"backend\.model"):
        run(tmp_path, backend=ScriptedBackend("other", reply=reply))
    with pytest.raises(RunError, match=r"task\.fingerprint"):
        evaluate(make_task(instruction="Other."), backend(), methods(), out=tmp_path, batch_size=4)
    with pytest.raises(RunError, match="already holds a run"):
        run(tmp_path, resume=False)


def test_a_folder_in_which_nothing_was_computed_is_free(tmp_path):
    with pytest.raises(BackendError):
        run(tmp_path, backend=ScriptedBackend("fake", reply=reply, fail_after=0), seeds=(7,))
    assert json.loads((tmp_path / "run.json").read_text())["seeds"] == [7]
    assert run(tmp_path).finished
    with pytest.raises(RunError, match="another configuration"):
        run(tmp_path, seeds=(7,))


def test_two_runs_in_one_folder_are_refused(tmp_path):
    def inner(text):
        with pytest.raises(RunError, match="another run is writing"):
            run(tmp_path)
        tried.append(text)
        return reply(text)

    tried: list[str] = []
    evaluate(make_task(2), ScriptedBackend("fake", reply=inner), [Plain()], out=tmp_path)
    assert tried


def test_a_full_disk_keeps_what_was_computed(tmp_path):
    """A limit on file size stands for the full disk: the operating system really refuses the write."""
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, resource.RLIM_INFINITY))\n"
        "from test_run import run\nfrom amplify.errors import RunError\nfrom pathlib import Path\n"
        "try:\n    run(Path(sys.argv[1]))\nexcept RunError as error:\n    print(error)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    folder = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], env=environment, capture_output=True, text=True, check=True
    )
    assert "cannot write in" in done.stdout, done.stderr
    assert "What was computed so far is kept" in done.stdout
    kept = lines(folder)
    assert kept
    assert len(kept) < 210
    report = run(folder)
    assert report.finished
    assert report.comparisons == run(None).comparisons


def test_a_changed_record_is_told(tmp_path):
    run(tmp_path)
    records = tmp_path / "records.jsonl"
    text = records.read_text().splitlines(keepends=True)
    records.write_text("".join([*text[:3], text[4], text[3], *text[5:]]))
    with pytest.raises(RunError, match=r"line 4 of records.jsonl is .* but the plan"):
        run(tmp_path)
    records.write_text("".join([*text[:3], "{broken\n", *text[4:]]))
    with pytest.raises(RunError, match=r"line 4 of .* is damaged"):
        load_report(tmp_path)


def test_a_lost_program_is_not_replaced(tmp_path):
    run(tmp_path)
    next((tmp_path / "programs").glob("01-*seed1.json")).unlink()
    with pytest.raises(RunError, match=r"is missing, but records.jsonl holds answers of it"):
        run(tmp_path)


def test_no_run_folder(tmp_path):
    with pytest.raises(RunError, match="no run folder"):
        load_report(tmp_path)
    (tmp_path / "records.jsonl").write_text("")
    with pytest.raises(RunError, match=r"but no run.json"):
        run(tmp_path)


def test_a_test_item_among_the_shots_is_refused_before_any_answer(tmp_path):
    asked = backend()
    with pytest.raises(InputError, match="'test-0' is among the shots of fake"):
        run(tmp_path, methods=[Plain(), Fake(leak=True)], backend=asked)
    assert not any("Review:" in text for text in asked.texts)
    assert not (tmp_path / "records.jsonl").exists()


@dataclass(frozen=True)
class Copying(Fake):
    """Shows a test item under another id, as human demonstrations of a benchmark may."""

    name: ClassVar[str] = "copying"

    def fit(self, task, backend, seed):
        copied = replace(task.test[3], id="new", text=task.test[3].text + " ")
        return fakes.FakeProgram("skill=1.0 seed=0", (asdict(Demonstration(copied)),))


def test_a_test_item_under_another_id_is_refused_too(tmp_path):
    with pytest.raises(InputError, match="'new' is among the shots"):
        run(tmp_path, methods=[Copying()])


def test_a_prompt_that_cannot_fit_is_refused_before_any_answer(tmp_path):
    task = make_task()
    long = replace(task.test[20], text=f"item 20 {'very ' * 60}good")  # in the last batches of each method
    asked = backend(max_context=60)
    with pytest.raises(ContextLengthError, match=r"plain: the prompt for item 'test-20' has \d+ tokens"):
        evaluate(replace(task, test=(*task.test[:20], long, *task.test[21:])), asked, [Plain()], out=tmp_path)
    assert not any("Review:" in text for text in asked.texts)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": ()}, "at least one seed"),
        ({"seeds": (1, 1)}, "only once"),
        ({"batch_size": 0}, "batch_size"),
        ({"limit": 0}, "limit"),
        ({"methods": []}, "non-empty list"),
        ({"methods": "few_shot"}, "non-empty list"),
        ({"methods": [Fake(), Fake()]}, "more than once"),
        ({"methods": [Fake(), Plain(mode="score")]}, "one answer mode"),
        (
            {"methods": ["fewshot"], "options": {"few_shot.shots": 3}},
            "unknown method 'fewshot'. Did you mean 'few_shot'",
        ),
        ({"options": {"k": 3}}, "METHOD.OPTION"),
        ({"options": {"fake.k": 3}}, "sets an option of a method that does not run"),
        ({"baseline": "fale"}, "Did you mean 'fake'"),
    ],
)
def test_bad_input(tmp_path, changes, message):
    asked = backend()
    with pytest.raises(InputError, match=message):
        run(tmp_path / "run", backend=asked, **changes)
    assert not asked.texts
    assert not (tmp_path / "run" / "run.json").exists()


def test_the_family_is_declared_by_kind():
    from amplify.methods import make

    few, zero, fake = make("few_shot"), make("zero_shot"), Fake()
    assert declare_family([zero, few, fake]) == [["fake", "zero_shot"], ["fake", "few_shot"]]
    assert declare_family([zero, few]) == [["few_shot", "zero_shot"]]
    assert declare_family([few, zero, fake], "few_shot") == [["zero_shot", "few_shot"], ["fake", "few_shot"]]
    assert declare_family([fake]) == []
    with pytest.raises(UnknownNameError):
        declare_family([few], "zero")


def test_methods_by_name_with_options(tmp_path):
    report = evaluate(
        make_task(6),
        ScriptedBackend("say= bad."),
        ["zero_shot", "few_shot"],
        options={"few_shot.shots": 3},
        seeds=(0, 1),
    )
    assert [row.method for row in report.rows] == ["zero_shot", "few_shot[shots=3]"]
    assert report.row("zero_shot").score == 0.5


def test_an_option_of_all_methods_that_have_it():
    made = make_methods(
        ["zero_shot", "few_shot", "few_shot_balanced"], "generate", {"few_shot.shots": 5, "*.shots": 3, "*.lead": False}
    )
    assert [m.label for m in made] == [
        "zero_shot[lead=false]",
        "few_shot[lead=false,shots=5]",
        "few_shot_balanced[lead=false,shots=3]",
    ]
    with pytest.raises(UnknownNameError, match=r"Did you mean 'shots'\?"):
        make_methods(["zero_shot", "few_shot"], "generate", {"*.shot": 3})


def test_a_plan_asks_nothing_and_equals_the_run():
    asked = backend()
    chosen = ["zero_shot", "few_shot"]
    expected = plan(make_task(), asked, chosen, seeds=(0, 1), limit=20)
    assert not asked.texts
    real = ScriptedBackend("say= bad.")
    evaluate(make_task(), real, chosen, seeds=(0, 1), limit=20)
    assert sum(row.calls for row in expected.rows) == real.usage.calls == 20 + 40
    # shots are drawn anew under each seed, so that lengths differ a little between them
    assert sum(row.prompt_tokens for row in expected.rows) == pytest.approx(real.usage.prompt_tokens, rel=0.03)
    assert "zero_shot" in str(expected)
    without = plan(make_task(), None, chosen, limit=20)
    assert "estimated" in str(without)


def test_a_plan_of_methods_with_a_proxy_trains_nothing():
    names = ["few_shot", "amplify", "amplify_no_rationale", "proxy_alone"]
    few, amplify, shots_only, proxy = plan(make_task(), None, names, seeds=(0, 1), limit=10).rows
    assert (amplify.calls, amplify.fit_calls) == (20, 2 * len(make_task().validation))
    assert amplify.prompt_tokens > shots_only.prompt_tokens == few.prompt_tokens
    assert (proxy.calls, proxy.fit_calls) == (0, 0)
    assert "estimated" in amplify.note


def test_every_program_is_used_as_its_file_gives_it(tmp_path, monkeypatch):
    loaded = []
    load = Program.load
    monkeypatch.setattr(Program, "load", staticmethod(lambda path: loaded.append(Path(path).name) or load(path)))
    run(tmp_path)
    assert len(loaded) == 7

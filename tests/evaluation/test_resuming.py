"""A run that stopped goes on: after a kill, an error or a full disk; and what is not taken for the same run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import evaluation_fakes as fakes
import pytest
from evaluation_fakes import Fake, Plain, fake_model, lines, make_task, methods, reply, run

from amplify.errors import ModelError, RunError
from amplify.evaluation import evaluate, load_report
from amplify.models.scripted import ScriptedModel

SCRIPT = Path(fakes.__file__)


def kill_at(folder, wanted, *model):
    """Start a run and SIGKILL it when so many answers are on disk, where it waits for that."""
    command = [sys.executable, str(SCRIPT), str(folder), str(wanted), *model]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    records = folder / "records.jsonl"
    while process.poll() is None:
        if records.exists() and records.read_bytes().count(b"\n") >= wanted:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.01)
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
    for wanted in (3, 100):
        kill_at(killed, wanted)
        with (killed / "records.jsonl").open("ab") as file:
            file.write(b'{"method": "fake", "se')  # what a kill in the middle of a write leaves
        assert not load_report(killed).finished
    run(killed)
    run(whole)
    same_results(killed, whole)


def test_killed_and_started_again_on_transformers(tmp_path, tiny_lm):
    """The same with a model in process, whose label log-probabilities must return to the last bit."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    kill_at(killed, 14, str(tiny_lm))
    assert not load_report(killed).finished
    for folder in (killed, whole):
        fakes.run_model(str(tiny_lm), folder)
    same_results(killed, whole)
    assert len({tuple(r["label_scores"].values()) for r in lines(whole)}) > 12


def test_programs_are_never_fitted_again(tmp_path):
    with pytest.raises(ModelError):
        run(tmp_path, model=fake_model(fail_after=60))
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
    asked = fake_model()
    report = run(tmp_path, model=asked)
    assert records.read_bytes() == whole
    assert len(asked.texts) == 210 - 8
    assert report.finished


def test_a_failing_model_keeps_what_was_answered(tmp_path):
    says = r"50 answers are kept in .*, and 1 replies of the unfinished batch; run the same command again"
    with pytest.raises(ModelError, match=says) as caught:
        run(tmp_path, model=fake_model(fail_after=58))  # 7 of them while fitting
    assert "was told to fail" in str(caught.value)
    unfinished = load_report(tmp_path)
    assert not unfinished.finished
    assert "UNFINISHED: 50 of 210" in str(unfinished)
    assert "UNFINISHED" in unfinished.to_markdown()
    assert [row.answered for row in unfinished.rows] == [30, 20, 0]
    assert unfinished.comparisons[1].p is None
    again = fake_model()
    run(tmp_path, model=again)
    assert len(again.texts) == 210 - 51
    assert not (tmp_path / "unfinished.sqlite").exists()
    whole = run(None)
    assert load_report(tmp_path).comparisons == whole.comparisons


@pytest.mark.parametrize("mode", ["generate", "score"])
def test_what_an_error_says_is_kept_is_not_asked_again(tmp_path, mode):
    """A server that dies again and again, while fitting and while answering in several calls a batch."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    task, names = make_task(6), ["few_shot", "zero_shot_cot", "self_amplify_phcot"]
    options = {"few_shot.shots": 2, "self_amplify_phcot.shots": 2, "self_amplify_phcot.pool": 6}
    given = {"mode": mode, "options": options, "batch_size": 4, "seeds": (0,)}

    def server(**more):
        say = lambda text: f"Because of the words. The answer is {'good' if len(text) % 3 else 'bad'}"  # noqa: E731
        return ScriptedModel("server", reply=say, logprob=lambda text, said: -1.0 - len(text + said) % 7, **more)

    one = server()
    evaluate(task, one, names, out=whole, **given)
    asked = 0
    for _ in range(200):
        dying = server(fail_after=5)
        with suppress(ModelError):
            evaluate(task, dying, names, out=broken, **given)
        asked += len(dying.texts)
        if (broken / "report.html").exists():
            break
    assert load_report(broken).finished
    assert asked <= len(one.texts)
    assert (broken / "records.jsonl").read_bytes() == (whole / "records.jsonl").read_bytes()


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
    with pytest.raises(RunError, match=r"model\.model"):
        run(tmp_path, model=ScriptedModel("other", reply=reply))
    with pytest.raises(RunError, match=r"task\.fingerprint"):
        evaluate(make_task(instruction="Other."), fake_model(), methods(), out=tmp_path, batch_size=4)
    with pytest.raises(RunError, match="already holds a run"):
        run(tmp_path, resume=False)


def test_a_folder_in_which_nothing_was_computed_is_free(tmp_path):
    with pytest.raises(ModelError):
        run(tmp_path, model=ScriptedModel("fake", reply=reply, fail_after=0), seeds=(7,))
    assert json.loads((tmp_path / "run.json").read_text())["seeds"] == [7]
    assert run(tmp_path).finished
    with pytest.raises(RunError, match="another configuration"):
        run(tmp_path, seeds=(7,))


def test_a_full_disk_keeps_what_was_computed(tmp_path):
    """A limit on file size stands for the full disk: the operating system really refuses the write."""
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (30000, resource.RLIM_INFINITY))\n"
        "from evaluation_fakes import run\nfrom amplify.errors import RunError\nfrom pathlib import Path\n"
        "try:\n    run(Path(sys.argv[1]))\nexcept RunError as error:\n    print(error)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    folder = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], env=environment, capture_output=True, text=True, check=True
    )
    assert "cannot write" in done.stdout, done.stderr
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


def test_templates_profiles_and_proxies_are_told_by_content(tmp_path):
    """A template of one's own that is edited between two calls is another configuration, and is fitted anew."""
    mine = tmp_path / "mine.jinja"
    mine.write_text("{{ instruction }}\n{{ text }}")
    given = {"options": {"zero_shot.question": str(mine)}, "batch_size": 4, "seeds": (0,), "out": tmp_path / "run"}
    server = ScriptedModel("server", reply=lambda text: "The answer is good", fail_after=5)
    with pytest.raises(ModelError):
        evaluate(make_task(), server, ["zero_shot"], **given)
    mine.write_text("{{ text }}\n{{ instruction }}")
    server = ScriptedModel("server", reply=lambda text: "The answer is good")
    with pytest.raises(RunError, match=r"methods\[0\]\.contents\.question: "):
        evaluate(make_task(), server, ["zero_shot"], **given)


def test_a_read_only_folder_is_one_error(tmp_path):
    run(tmp_path)
    for path in (tmp_path / "report.html", tmp_path / "report.md"):
        path.unlink()
        path.mkdir()  # what cannot be written, even by root
    with pytest.raises(RunError, match=r"cannot write .*report\.html"):
        load_report(tmp_path).to_html(tmp_path / "report.html")
    assert not list(tmp_path.glob("*.tmp"))

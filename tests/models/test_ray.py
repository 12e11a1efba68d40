"""One model on several workers of a real Ray cluster on this machine."""

from __future__ import annotations

import json
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

import amplify
from amplify import Message, Prompt, Sampling
from amplify.errors import ContextLengthError, InputError, MissingExtraError, ModelError, UnknownNameError
from amplify.head_search.search import HeadSearch, find_heads
from amplify.models import ScoringModel, Spread, load_model
from amplify.sources.log import explain_log
from amplify.steering import Steering
from amplify.tasks import load_task

PROMPTS = [Prompt(messages=(Message("user", f"Say line {i} of the {'long ' * (i % 5)}text."),)) for i in range(11)]


@pytest.fixture(scope="module")
def scripted() -> Iterator[amplify.models.LanguageModel]:
    ray = pytest.importorskip("ray")
    with load_model("ray:3×scripted:echo", batch_size=2) as model:  # starts the cluster of this module
        yield model
    assert not ray.is_initialized()


@pytest.fixture(scope="module")
def tiny(scripted: object, tiny_lm: Path) -> Iterator[amplify.models.ScoringModel]:
    with load_model(f"ray:2x transformers:{tiny_lm}", batch_size=4, dtype="float32", num_cpus=0) as model:
        yield model


def test_answers_are_those_of_one_model_in_order(scripted) -> None:
    alone = load_model("scripted:echo")
    assert isinstance(scripted, ScoringModel)
    assert isinstance(scripted, Spread)
    assert scripted.id == "ray:3×scripted:echo"
    before = scripted.usage.snapshot()
    assert scripted.generate(PROMPTS, Sampling(n=2)) == alone.generate(PROMPTS, Sampling(n=2))
    assert scripted.usage.since(before) == alone.usage
    assert scripted.score(PROMPTS, [" line 3"] * 11) == alone.score(PROMPTS, [" line 3"] * 11)
    assert scripted.count_tokens(PROMPTS) == alone.count_tokens(PROMPTS)
    assert scripted.generate([], Sampling()) == []
    assert scripted.describe()["model"] == alone.describe()["model"]


def test_errors_come_as_what_they_are(scripted) -> None:
    with pytest.raises(InputError, match="continuation 1 is empty"):
        scripted.score(PROMPTS[:2], ["a", ""])
    with pytest.raises(amplify.CapabilityError, match="steer"):
        scripted.generate(PROMPTS, Sampling(), steering=Steering(heads={0: (0,)}))
    with (
        load_model("ray:2×scripted:echo", batch_size=2, max_context=15, num_cpus=0) as small,
        pytest.raises(ContextLengthError, match="prompt 4 has"),
    ):
        small.generate(PROMPTS, Sampling(max_tokens=4))
    assert small.usage.calls == 0
    with pytest.raises(ModelError, match="ended"):
        small.generate(PROMPTS, Sampling())
    with pytest.raises(UnknownNameError, match="first_option"):
        load_model("ray:2×scripted:nothing", num_cpus=0)
    with pytest.raises(UnknownNameError, match="max_context"):
        load_model("ray:2×scripted:echo", max_contexts=5, num_cpus=0)
    with pytest.raises(ModelError, match=r"2 workers of 1000 CPU each do not fit .* num_cpus=0"):
        load_model("ray:2×scripted:echo", num_cpus=1000)
    with pytest.raises(ModelError, match=r"0 of 2 workers were ready within 0.01 s; the cluster has 3 CPU"):
        load_model("ray:2×scripted:echo", num_cpus=0, patience=0.01)


def test_what_was_answered_before_a_failure_is_kept(scripted) -> None:
    with (
        load_model("ray:1×scripted:echo", batch_size=2, fail_after=5, num_cpus=0) as failing,
        pytest.raises(ModelError, match="5 of 11 were answered") as raised,
    ):
        failing.generate(PROMPTS, Sampling())
    alone = load_model("scripted:echo").generate(PROMPTS, Sampling())
    assert raised.value.completed == dict(enumerate(alone[:5]))


def test_ten_workers_are_killed_and_nothing_is_lost_or_doubled(scripted) -> None:
    def slow(model, number: int) -> tuple[int, int, str]:
        time.sleep(0.02)
        return number, os.getpid(), model.generate([PROMPTS[number % 11]], Sampling())[0].text

    answers = [one.text for one in load_model("scripted:echo").generate(PROMPTS, Sampling())]
    found: dict[int, str] = {}
    killed: list[int] = []
    replaced = scripted.replaced
    calls = scripted.usage.calls
    for number, worker, text in scripted.each(slow, iter(range(150))):
        assert number not in found
        found[number] = text
        if len(killed) < 10 and len(found) % 8 == 0 and worker not in killed:
            os.kill(worker, signal.SIGKILL)
            killed.append(worker)
    assert found == {i: answers[i % 11] for i in range(150)}
    assert len(killed) == 10
    assert scripted.replaced - replaced >= 9  # the last one may have been idle, and is not missed yet
    assert scripted.usage.calls - calls == 150
    assert scripted.generate(PROMPTS, Sampling())[10].text == answers[10]


def test_a_function_that_fails_at_a_worker(scripted) -> None:
    def fail_on_seven(model, number: int) -> int:
        if number == 7:
            raise ValueError("seven")
        return number

    given: list[int] = []
    with pytest.raises(ModelError, match="ValueError: seven"):
        given.extend(scripted.each(fail_on_seven, range(1000)))
    assert set(range(7)) <= set(given)
    assert len(given) < 30
    with pytest.raises(InputError, match="cannot be sent to a worker"):
        list(scripted.each(fail_on_seven, [threading.Lock()]))


def test_a_log_is_spread_and_its_results_are_those_of_one(scripted, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    lines = [
        {"id": f"c{i}", "question": "How long?", "documents": [f"Paper {i}.", "Two years.", "Blue."], "answer": "years"}
        for i in range(20)
    ]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines) + "no json\n")
    options = {"budget": 8, "granularity": "documents"}
    found = explain_log(log, tmp_path / "many", scripted, options, shown=False)
    alone = explain_log(log, tmp_path / "one", load_model("scripted:echo"), options, shown=False)
    assert [one.id for one in found] == [one.id for one in alone]
    assert found.skipped == alone.skipped == [21]
    for one, two in zip(found[:20], alone[:20], strict=True):
        assert one.result.documents.table.tolist() == two.result.documents.table.tolist()
    again = explain_log(log, tmp_path / "many", scripted, options, shown=False)
    assert len(again) == 21


def test_secrets_reach_workers_and_no_record(scripted, monkeypatch: pytest.MonkeyPatch, script) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-only-for-the-server")  # after the cluster was started
    with script("fake_server").FakeServer() as server, load_model(f"ray:2×openai:m@{server.url}", num_cpus=0) as model:
        assert len(model.generate(PROMPTS, Sampling())) == 11
        keys = {asked.headers.get("authorization") for asked in server.seen if "completions" in asked.path}
        session = Path(ray._private.worker._global_node.get_session_dir_path())
        texts = [path.read_bytes() for path in session.rglob("*") if path.is_file()]
    assert keys == {"Bearer sk-only-for-the-server"}
    assert texts
    assert not any(b"sk-only-for-the-server" in text for text in texts)
    assert "sk-only" not in json.dumps(model.describe()) + repr(vars(model))


def _parts(model, prompts, sampling=None, continuations=None):
    """What one model gives for the parts that two workers are given."""
    found = []
    for start in range(0, len(prompts), 4):
        part = prompts[start : start + 4]
        if sampling is None:
            found += model.score(part, continuations[start : start + 4])
        else:
            found += model.generate(part, replace(sampling, offset=start))
    return found


def test_a_real_model_gives_the_same_bits(tiny, tiny_lm: Path) -> None:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = load_model(f"transformers:{tiny_lm}", dtype="float32")
        continuations = [f" answer {i}" for i in range(11)]
        assert tiny.score(PROMPTS, continuations) == _parts(alone, PROMPTS, continuations=continuations)
        for sampling in (Sampling(max_tokens=8, logprobs=True), Sampling(max_tokens=8, temperature=1.0, seed=3)):
            assert tiny.generate(PROMPTS, sampling) == _parts(alone, PROMPTS, sampling)
            whole = [one.text for one in alone.generate(PROMPTS, sampling)]
            assert [one.text for one in tiny.generate(PROMPTS, sampling)] == whole
        assert tiny.count_tokens(PROMPTS) == alone.count_tokens(PROMPTS)
        assert tiny.max_context == alone.max_context
    finally:
        torch.set_num_threads(threads)


def test_a_search_for_heads_is_spread(tiny, tiny_lm: Path, tmp_path: Path) -> None:
    rows = [
        {"known_id": i, "subject": f"City{i}", "attribute": ("Asia", "Europe")[i % 2], "relation_id": "P30",
         "prompt": f"City{i} is part of"}
        for i in range(40)
    ]  # fmt: skip
    (tmp_path / "known_facts.json").write_text(json.dumps(rows))
    facts = load_task("counterfact_known/efficacy", data=tmp_path)
    how = HeadSearch(samples=4, joint_samples=2, most=6)
    alone = find_heads([facts], load_model(f"transformers:{tiny_lm}", dtype="float32"), how)
    spread = find_heads([facts], tiny, how, record=tmp_path / "runs.jsonl")
    assert spread.steering.heads == alone.steering.heads
    [one], [two] = alone.rankings.values(), spread.rankings.values()
    assert one.gains == pytest.approx(two.gains, abs=2e-5)
    assert spread.runs == alone.runs


@pytest.mark.parametrize(
    "spec",
    [
        "scripted:echo",
        "0×scripted:echo",
        "2×",
        "2×scripted",
        "2×ray:2×scripted:echo",
        "x×a:b",
        "10000×scripted:echo",
        "9" * 5000 + "×scripted:echo",
    ],
)
def test_specs_that_are_none(spec: str) -> None:
    with pytest.raises(InputError, match="ray:N×KIND:MODEL"):
        load_model(f"ray:{spec}")


def test_options_that_cannot_be() -> None:
    with pytest.raises(UnknownNameError, match="scripted"):
        load_model("ray:2×skripted:echo")
    with pytest.raises(InputError, match="batch_size >= 1"):
        load_model("ray:2×scripted:echo", batch_size=0)
    with pytest.raises(InputError, match="batch_size is of type int"):
        load_model("ray:2×scripted:echo", batch_size="many")


def test_what_a_worker_quotes_of_a_key_is_hidden_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker's error that is none of amplify's comes back as the text that it had there."""
    from amplify.models.ray import Cluster, _Ray

    class Timeout(Exception):
        pass

    class Task(Exception):
        cause = None

    def get(reference: object, timeout: float | None) -> None:
        raise Task("401 for Bearer sk-only-for-the-workers, hf_of-the-workers-alone")

    actor = SimpleNamespace(open=SimpleNamespace(remote=lambda *given: None))
    made = SimpleNamespace(options=lambda **given: SimpleNamespace(remote=lambda: actor))
    kinds = SimpleNamespace(GetTimeoutError=Timeout, RayTaskError=Task, RayError=Timeout)
    fake = SimpleNamespace(
        is_initialized=lambda: True, remote=lambda kind: made, get=get, kill=lambda actor: None, exceptions=kinds
    )
    monkeypatch.setattr("amplify.redaction._KEYS", {})
    monkeypatch.setenv("OPENAI_API_KEY", "sk-only-for-the-workers")
    monkeypatch.setenv("HF_TOKEN", "hf_of-the-workers-alone")
    reached = _Ray.__new__(_Ray)
    reached.ray, reached._patience = fake, Cluster().patience
    with pytest.raises(ModelError) as told:
        reached.worker("openai:m", {}, 1.0, 0.0, 0)
    assert str(told.value) == "a worker failed: 401 for Bearer ***, ***"


def test_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'amplify-llm\[ray\]'"):
        load_model("ray:2×scripted:echo")


@pytest.mark.parametrize(
    "error",
    [
        UnknownNameError("model", "x", ["y"]), MissingExtraError("ray"), ModelError("it died", {3: "three"}),
        amplify.errors.PromptFormatError("no template", "template"), InputError("wrong"),
    ],
)  # fmt: skip
def test_errors_can_be_sent(error: amplify.AmplifyError) -> None:
    sent = pickle.loads(pickle.dumps(error))
    assert type(sent) is type(error)
    assert str(sent) == str(error)
    assert vars(sent) == vars(error)

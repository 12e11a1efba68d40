"""The profiler: samples of tasks, a profile saved and loaded, and its command."""

import json
from dataclasses import replace

import pytest
from click.testing import CliRunner

from amplify.cli import cli
from amplify.errors import InputError, RunError
from amplify.head_search.search import HeadSearch, find_heads, items_of
from amplify.models import load_model
from amplify.steering import Steering
from amplify.tasks import load_task
from amplify.types import Prompt, Sampling, Span


@pytest.fixture
def facts(tmp_path):
    rows = [
        {"known_id": i, "subject": f"City{i}", "attribute": ("Asia", "Europe")[i % 2], "relation_id": "P30",
         "prompt": f"City{i} is part of"}
        for i in range(40)
    ]  # fmt: skip
    (tmp_path / "known_facts.json").write_text(json.dumps(rows))
    return load_task("counterfact_known/efficacy", data=tmp_path)


def test_items_of_tasks(tiny_lm, facts):
    model = load_model(f"transformers:{tiny_lm}", dtype="float32", max_batch_tokens=512)
    [first, *_] = items_of(facts, model, 5)
    assert {first.gold, first.foil} == {" Asia", " Europe"}
    assert first.whole
    [free] = items_of(load_task("json_formatting"), model, 1)
    assert free.gold.startswith('{"name"')
    assert free.foil
    with pytest.raises(InputError, match="emphasis"):
        items_of(load_task("support_tickets"), model, 2)


def test_items_behind_shots_that_are_not_the_sample(tiny_lm):
    task = replace(load_task("json_formatting"), emphasis="text", max_tokens=2)
    model = load_model(f"transformers:{tiny_lm}", dtype="float32")
    items = items_of(task, model, 6, shots=2)
    texts = {e.id: e.text for e in task.train}
    for item in items:
        [span] = item.prompt.emphasis
        *before, last = item.prompt.messages
        assert last.content[span.start : span.end] == texts[item.id]
        assert sum(m.role == "assistant" for m in before) == 2
        assert not any(texts[item.id] in m.content for m in before)
    assert len({item.prompt.messages[0] for item in items}) > 1  # each has shots of its own


def test_profiles_are_found_saved_and_loaded(tiny_lm, facts, tmp_path):
    model = load_model(f"transformers:{tiny_lm}", dtype="float32")
    found = find_heads(
        [facts], model, HeadSearch(samples=6, joint_samples=3, most=4, block=2), record=tmp_path / "r.jsonl"
    )
    found.steering.save(tmp_path / "p.yaml")
    loaded = Steering.load(tmp_path / "p.yaml")
    assert loaded == found.steering
    assert loaded.provenance["runs"] == found.runs
    assert loaded.provenance["tasks"][facts.name]["samples"] == 6
    assert loaded.model["layers"] == 3
    assert "sha256" in loaded.model
    model.generate([Prompt(text="a b", emphasis=(Span(0, 1),))], Sampling(max_tokens=2), steering=loaded)
    with pytest.raises(RunError, match="other settings"):
        find_heads([facts], model, HeadSearch(samples=5), record=tmp_path / "r.jsonl")
    with pytest.raises(InputError, match="at least one task"):
        find_heads([], model)
    with pytest.raises(InputError, match="twice"):
        find_heads([facts, facts], model)


def test_command_line(tiny_lm, tmp_path, facts):
    data = str(tmp_path)
    out = tmp_path / "mine.yaml"
    model = ["-m", f"transformers:{tiny_lm}"]

    def call(*arguments):
        done = CliRunner().invoke(cli, arguments)
        assert done.exit_code == 0, done.output
        return done.output

    said = call("heads", "counterfact_known/efficacy", *model, "--samples", "4", "--out", str(out), "--data", data)
    found = Steering.load(out)
    assert found.alpha == 0.01
    heads = sum(map(len, found.heads.values()))
    assert said.splitlines()[-1] == f"{heads} heads from {found.provenance['runs']} runs: {out}"
    assert out.with_suffix(".runs.jsonl").is_file()
    asked = ["generate", *model, "--max-tokens", "8"]
    marked, bare = "great **phone** good", "great phone good"
    plain = call(*asked, bare)
    assert call(*asked, marked) == plain  # marks are read, never sent
    steered = call(*asked, marked, "--steering", str(out), "--alpha", "0.001")
    assert steered != plain
    assert call(*asked, marked, "--steering", str(out), "--alpha", "1") == plain
    refused = CliRunner().invoke(cli, [*asked, bare, "--steering", str(out)])
    assert isinstance(refused.exception, InputError)


def test_alpha_without_heads_is_refused(tiny_lm):
    done = CliRunner().invoke(cli, ["generate", "-m", f"transformers:{tiny_lm}", "--alpha", "0.5", "**a** b"])
    assert done.exit_code != 0
    assert "name a head profile" in f"{done.output}{done.exception}"

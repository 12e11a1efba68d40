"""The profiler: its searches on games with a known answer, its margins against plain steered scoring, its file."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from amplify.backends import open_backend
from amplify.backends.scripted import ScriptedBackend
from amplify.cli import cli
from amplify.errors import InputError, RunError
from amplify.head_margins import Item, Margins, by_layer, heads_of
from amplify.head_search import (
    PLAIN,
    Ranking,
    Recorded,
    combine,
    exhaustive,
    halving,
    items_of,
    joint,
    profile,
)
from amplify.steering import Steering
from amplify.tasks import load_task
from amplify.values import Prompt, Span

LAYERS, HEADS, SAMPLES = 30, 9, 32


def game(seed=0, noise=1.0):
    """Additive gains: a few good heads in a few layers, the others around zero, and noise for each head and sample."""
    rng = np.random.default_rng(seed)
    gain = rng.normal(-0.05, 0.05, (LAYERS, HEADS))
    good = [(4, 1), (4, 7), (11, 2), (12, 0), (12, 5), (20, 3)]
    for h in good:
        gain[h] = 1.0
    shake = rng.normal(0, noise, (SAMPLES, LAYERS, HEADS))
    level = rng.normal(0, 5, SAMPLES)
    calls = {"runs": 0}

    def score(sets, samples):
        calls["runs"] += len(sets) * len(samples)
        return np.array([[level[s] + sum(gain[h] + shake[s][h] for h in heads) for s in samples] for heads in sets])

    return score, good, gain, calls


def test_exhaustive_ranks_by_mean_gain():
    score, good, gain, calls = game(noise=0)
    found = exhaustive(score, LAYERS, HEADS, SAMPLES)
    assert set(found.heads[:6]) == set(good)
    assert found.runs == calls["runs"] == (LAYERS * HEADS + 1) * SAMPLES
    assert all(found.gains[h] == pytest.approx(gain[h]) for h in found.heads)
    assert found.top(6) == frozenset(good)


@pytest.mark.parametrize("seed", range(5))
def test_halving_finds_the_same_heads_with_a_tenth_of_the_runs(seed):
    score, good, gain, calls = game(seed, noise=0.3)
    found = halving(score, LAYERS, HEADS, SAMPLES)
    assert found.runs == calls["runs"]
    chosen = joint([score], found.heads, [16])
    assert calls["runs"] == found.runs + chosen.runs
    assert calls["runs"] <= (LAYERS * HEADS) * SAMPLES / 10
    # with this noise one of six may be missed; what is found gains most of what the exhaustive choice does
    assert len(set(found.heads[: len(good)]) & set(good)) >= 5
    assert len(chosen.heads & set(good)) >= 5
    best = exhaustive(score, LAYERS, HEADS, SAMPLES).top(len(chosen.heads))
    assert sum(gain[h] for h in chosen.heads) >= 0.7 * sum(gain[h] for h in best)
    assert sorted(found.heads) == [(layer, head) for layer in range(LAYERS) for head in range(HEADS)]
    assert [list(found.samples.values()).count(n) for n in (1, 2, 4)] == [135, 67, 68]


def test_joint_selection_drops_what_hurts_together():
    gains = {(0, 0): 2.0, (0, 1): 1.0, (1, 0): 1.5}

    def score(sets, samples):
        # two good heads that undo each other
        def one(heads):
            return sum(gains.get(h, 0.0) for h in heads) - (4.0 if {(0, 0), (1, 0)} <= heads else 0.0)

        return np.array([[one(heads) for _ in samples] for heads in sets])

    found = joint([score], [(0, 0), (1, 0), (0, 1)], [2], block=1)
    assert found.heads == {(0, 0), (0, 1)}
    assert found.gain == 3.0
    assert [kept for _, _, kept in found.curve] == [True, False, True]


def test_rankings_are_combined():
    heads = [(0, h) for h in range(5)]

    def ranking(order):
        return Ranking(tuple((0, h) for h in order), dict.fromkeys(heads, 0.0), dict.fromkeys(heads, 1), 1)

    a, b = ranking([0, 1, 2, 3, 4]), ranking([1, 2, 4, 0, 3])
    # the top-2 of both share head 1, their top-3 heads 1 and 2
    assert combine([a, b], "intersection", 2) == ((0, 1), (0, 2))
    assert set(combine([a, b], "union", 2)) == {(0, 0), (0, 1)}
    assert combine([a, b], "mean", 1) == ((0, 1),)
    with pytest.raises(InputError, match="combine is"):
        combine([a, b], "xor", 1)


TEXT = "Paris is great. The phone is terrible. Answer positive or negative. The answer is"


def item(span=(39, 67), gold=" positive", foil=" negative", whole=False):
    return Item("a", Prompt(text=TEXT, emphasis=(Span(*span),)), gold, foil, whole)


@pytest.mark.parametrize("alpha", [0.01, 0.5])
@pytest.mark.parametrize(
    "options", [{}, {"exempt_generated": True}, {"spare_sink": True}, {"mode": "instaboost"}, {"schedule": "decode"}]
)
def test_packed_margins_equal_steered_scoring(tiny_lm, alpha, options):
    """The shortcuts (common prefix, shared trunk, skipped layers, head sets as rows) change round-off only: 1e-4."""
    backend = open_backend(f"transformers:{tiny_lm}")
    sets = [PLAIN, *(frozenset({(layer, head)}) for layer in range(3) for head in range(4))]
    sets += [frozenset({(0, 0), (2, 3)}), frozenset({(1, 1), (1, 2), (2, 0)})]
    steering = Steering(heads={0: (0,)}, alpha=alpha, **options)
    for one in (item(), item((0, 15)), item((39, 67), foil=""), item(gold=" good", foil=" good, bad", whole=True)):
        measure = Margins(backend, [one], steering)
        fast = measure(0, sets)
        assert fast == pytest.approx([measure._plainly(one, heads) for heads in sets], abs=1e-4)
        assert measure._skips is True
    if steering.schedule == "both":  # and the heads do differ
        assert len({round(m, 3) for m in Margins(backend, [item()], steering)(0, sets)}) > 8
    backend.close()


def test_margins_of_other_architectures(tmp_path, tiny_lm):
    """GPT-2 keeps its layers under another name: nothing is skipped, and the numbers are right all the same."""
    import torch
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(tiny_lm)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=256, initializer_range=0.4
    )
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    backend = open_backend(f"transformers:{tmp_path}")
    measure = Margins(backend, [item()], Steering(heads={0: (0,)}))
    sets = [PLAIN, frozenset({(0, 1)}), frozenset({(1, 3), (0, 0)})]
    assert measure(0, sets) == pytest.approx([measure._plainly(item(), s) for s in sets], abs=1e-4)


def test_only_first_tokens_count(tiny_lm):
    backend = open_backend(f"transformers:{tiny_lm}")
    steering = Steering(heads={0: (0,)})
    long = item(gold=" positive, great phone, great", foil="")
    one = Margins(backend, [long], steering, target_tokens=1)(0, [frozenset({(1, 1)})])[0]
    first = backend.score([long.prompt], [long.gold], steering=replace(steering, heads={1: (1,)}))[0].logprobs[0]
    assert one == pytest.approx(first, abs=1e-4)


def test_margins_refuse_items_without_emphasis():
    with pytest.raises(InputError, match="emphasises nothing"):
        Margins(ScriptedBackend("echo"), [Item("x", Prompt(text="a"), " b")], Steering(heads={0: (0,)}))
    assert heads_of(by_layer(frozenset({(1, 2), (0, 3)}))) == {(1, 2), (0, 3)}


def test_a_stopped_search_goes_on_without_making_a_run_twice(tiny_lm, tmp_path):
    backend = open_backend(f"transformers:{tiny_lm}")
    items = [replace(item(), id=str(i)) for i in range(4)]
    path = tmp_path / "runs.jsonl"
    steering = Steering(heads={0: (0,)})

    def fresh(key="k"):
        return Recorded(Margins(backend, items, steering), "t", path, key)

    whole = exhaustive(fresh(), 3, 4, 4)
    lines = path.read_text().splitlines(keepends=True)
    assert len(lines) == whole.runs == 13 * 4
    path.write_text("".join(lines[:20]) + lines[20][:15])  # killed in the middle of a line
    again = fresh()
    assert exhaustive(again, 3, 4, 4).heads == whole.heads
    assert again.made == 52 - 20
    assert len(path.read_text().splitlines()) == 52
    with pytest.raises(RunError, match="other settings"):
        fresh("another")


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
    backend = open_backend(f"transformers:{tiny_lm}", max_batch_tokens=512)
    [first, *_] = items_of(facts, backend, 5)
    assert {first.gold, first.foil} == {" Asia", " Europe"}
    assert first.whole
    [free] = items_of(load_task("json_formatting"), backend, 1)
    assert free.gold.startswith('{"name"')
    assert free.foil
    with pytest.raises(InputError, match="emphasis"):
        items_of(load_task("support_tickets"), backend, 2)


def test_items_behind_shots_that_are_not_the_sample(tiny_lm):
    task = replace(load_task("json_formatting"), emphasis="text", max_tokens=2)
    backend = open_backend(f"transformers:{tiny_lm}")
    items = items_of(task, backend, 6, shots=2)
    texts = {e.id: e.text for e in task.train}
    for item in items:
        [span] = item.prompt.emphasis
        *before, last = item.prompt.messages
        assert last.content[span.start : span.end] == texts[item.id]
        assert sum(m.role == "assistant" for m in before) == 2
        assert not any(texts[item.id] in m.content for m in before)
    assert len({item.prompt.messages[0] for item in items}) > 1  # each has shots of its own


def test_profiles_are_found_saved_and_loaded(tiny_lm, facts, tmp_path):
    backend = open_backend(f"transformers:{tiny_lm}")
    found = profile([facts], backend, samples=6, joint_samples=3, most=4, block=2, record=tmp_path / "r.jsonl")
    found.steering.save(tmp_path / "p.yaml")
    loaded = Steering.load(tmp_path / "p.yaml")
    assert loaded == found.steering
    assert loaded.provenance["runs"] == found.runs
    assert loaded.provenance["tasks"][facts.name]["samples"] == 6
    assert loaded.model["layers"] == 3
    assert "sha256" in loaded.model
    backend.generate([Prompt(text="a b", emphasis=(Span(0, 1),))], amplify_sampling(), steering=loaded)
    with pytest.raises(RunError, match="other settings"):
        profile([facts], backend, samples=5, record=tmp_path / "r.jsonl")
    with pytest.raises(InputError, match="at least one task"):
        profile([], backend)


def amplify_sampling():
    from amplify.values import Sampling

    return Sampling(max_tokens=2)


def test_command_line(tiny_lm, tmp_path, facts):
    data = str(tmp_path)
    out = tmp_path / "mine.yaml"
    given = ["profile", "counterfact_known/efficacy", "counterfact_known/efficacy", "-b", f"transformers:{tiny_lm}"]
    done = CliRunner().invoke(cli, [*given[:2], *given[3:], "--samples", "4", "--out", str(out), "--data", data])
    assert done.exit_code == 0, done.output
    assert "heads from" in done.output
    asked = ["generate", "-b", f"transformers:{tiny_lm}", "--max-tokens", "3", "great **phone** good"]
    plain = CliRunner().invoke(cli, asked)
    assert plain.exit_code == 0, plain.output
    steered = CliRunner().invoke(cli, [*asked, "--steering", str(out), "--alpha", "0.001"])
    assert steered.exit_code == 0, steered.output
    bare = CliRunner().invoke(cli, [*asked[:-1], "great phone", "--steering", str(out)])
    assert isinstance(bare.exception, InputError)
    assert Path(out).with_suffix(".runs.jsonl").is_file()

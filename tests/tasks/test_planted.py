"""Planted words: what the tasks hold, and what metrics and explainers make of models that go by them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from amplify.attribution.explanations import explain_many
from amplify.attribution.faithfulness import DEFAULT, KEPT, METRICS, RANDOM, faithfulness, interval
from amplify.attribution.inputs import subject
from amplify.attribution.words import word_spans
from amplify.models.scripted import ScriptedModel
from amplify.proxies import train_proxy
from amplify.shapley.estimate import estimate
from amplify.tasks import Task, generated, load_task
from amplify.types import Attribution, Example

RESULT = Path(__file__).parents[2] / "eval" / "results" / "faithfulness_check.json"


def decided(task: Task, n: int) -> list[Example]:
    return [example for example in task.test if generated.deciding(example)][:n]


def other(label: str) -> str:
    return "right" if label == "left" else "left"


def ideal(example: Example, sign: float) -> Attribution:
    spans = word_spans(example.text)
    words = tuple(example.text[a:b] for a, b in spans)
    scores = tuple(sign * (word in generated.deciding(example)) for word in words)
    return Attribution(example.text, words, spans, scores, str(example.label), other(str(example.label)))


def rule_model(rule: str) -> ScriptedModel:
    def logprob(text: str, label: str) -> float:
        return -math.log1p(math.exp(-generated.log_odds(rule, text) * (1 if label == "left" else -1)))

    return ScriptedModel(logprob=logprob)


def recall(found: list[Attribution], examples: list[Example]) -> float:
    hits = [
        len({*a.top(len(generated.deciding(e)))} & {*generated.deciding(e)})
        for a, e in zip(found, examples, strict=True)
    ]
    return sum(hits) / sum(len(generated.deciding(e)) for e in examples)


@pytest.mark.parametrize("rule", generated.PLANTED)
def test_the_planted_words_and_nothing_else_decide(rule: str):
    task = load_task(rule)
    assert task.labels == ("left", "right")
    for example in (*task.train, *task.validation, *task.test):
        words = example.text.split()
        assert 5 <= len(words) <= 12
        assert len(set(words)) == len(words)
        odds = generated.log_odds(rule, example.text)
        if odds:
            assert (odds > 0) == (example.label == "left")
        for word in generated.deciding(example):
            assert word in words
        if generated.deciding(example):
            bare = " ".join(word for word in words if word not in generated.deciding(example))
            assert generated.log_odds(rule, bare) <= 0 < odds or generated.log_odds(rule, bare) >= 0 > odds
    held = [generated.deciding(example) for example in task.test]
    assert {len(words) for words in held} == {"planted_single": {0, 1}}.get(rule, {0, 2})
    assert sum(map(bool, held)) >= 40


def test_one_of_two_redundant_words_is_enough_and_one_of_two_conjunctive_words_is_not():
    for example in decided(load_task("planted_redundant"), 20):
        one = example.text.replace(generated.deciding(example)[0], "")
        assert generated.log_odds("planted_redundant", one) == generated.log_odds("planted_redundant", example.text)
    for example in decided(load_task("planted_conjunctive"), 20):
        one = example.text.replace(generated.deciding(example)[0], "")
        assert generated.log_odds("planted_conjunctive", one) == -generated.log_odds(
            "planted_conjunctive", example.text
        )


@pytest.mark.parametrize("rule", generated.PLANTED)
def test_every_metric_kept_tells_the_truth_from_chance_and_from_its_opposite(rule: str):
    examples = decided(load_task(rule), 25)
    truth = {"planted": [ideal(e, 1) for e in examples], "opposite": [ideal(e, -1) for e in examples]}
    table = faithfulness(truth, rule_model(rule), KEPT, k=len(generated.deciding(examples[0])))
    assert len(KEPT) >= 3
    for metric in KEPT:
        assert table.row("planted", metric).beats_random, metric
        assert table.row("planted", metric).gain.low > 0, metric
        own, anti = (table.row(name, metric).value for name in ("planted", "opposite"))
        assert own.low > anti.high if METRICS[metric].better == "higher" else own.high < anti.low, metric
        assert interval(table.values[RANDOM, metric]) == table.row("planted", metric).random


@pytest.mark.parametrize("rule", generated.PLANTED)
def test_shapley_values_find_what_was_planted_and_leaving_one_out_is_blind_to_the_redundant(rule: str):
    examples, model = decided(load_task(rule), 5), rule_model(rule)
    labels = [str(e.label) for e in examples]
    exact = []
    for example, label in zip(examples, labels, strict=True):
        case = subject(model, example.text, label, other(label))
        found = estimate(case.value("delete"), len(case.spans), estimator="exact", budget=2 ** len(case.spans))
        exact.append(replace(ideal(example, 1), scores=tuple(found.scores.tolist())))
    assert recall(exact, examples) == 1.0
    foils = [other(label) for label in labels]
    made = explain_many([e.text for e in examples], labels, foils=foils, model=model, methods=["occlusion"])
    if rule == "planted_redundant":
        assert all(score == 0 for a in made["occlusion"] for score in a.scores)
    else:
        assert recall(made["occlusion"], examples) == 1.0


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory, script: Callable[[str], ModuleType]):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AMPLIFY_HOME", str(tmp_path_factory.mktemp("home")))
        yield script("tiny_models").planted_reader(tmp_path_factory.mktemp("reader"))


@pytest.mark.parametrize("rule", ["planted_single", "planted_redundant"])
def test_a_trained_model_is_found_out(rule: str, reader: Path):
    task = load_task(rule)
    proxy = train_proxy(task, reader, epochs=8, learning_rate=3e-3, progress=False)
    examples = decided(task, 25)
    assert proxy.accuracy(examples) >= 0.95, "the check needs a model that goes by the words"
    labels = [str(e.label) for e in examples]
    methods = ["occlusion", "kernel_shap"] if rule == "planted_single" else ["kernel_shap"]
    made = explain_many(examples, labels, foils=[other(x) for x in labels], model=proxy, methods=methods)
    table = faithfulness(made, proxy, KEPT, examples=examples, k=len(generated.deciding(examples[0])))
    for name, found in made.items():
        assert recall(found, examples) >= 0.95, name
        assert all(table.row(name, metric).beats_random for metric in KEPT), str(table)


def test_what_is_kept_is_what_was_measured():
    result = json.loads(RESULT.read_text())
    assert set(KEPT) == set(result["kept"])
    assert set(DEFAULT) <= set(KEPT)
    assert len(result["kept"]) >= 3
    assert set(result["kept"]) | set(result["dropped"]) == set(METRICS)

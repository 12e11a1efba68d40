"""The choice of an explainer and the verdict on a rationale, on models whose truth is known."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from amplify.attribution import auto
from amplify.attribution.auto import Trial, choose, choose_on
from amplify.attribution.deletion import SETS, Deletion, Verdict, deletion, judge
from amplify.attribution.explainers import explain_words
from amplify.attribution.explanations import explain, explain_many
from amplify.attribution.words import key_word_mask, word_spans
from amplify.errors import CapabilityError, InputError, UnknownNameError
from amplify.models.scripted import ScriptedGenerator, ScriptedModel
from amplify.proxies import Proxy, train_proxy
from amplify.tasks import Task
from amplify.types import Attribution, Example


def game(weights: dict[str, float]) -> Deletion:
    w = np.array(list(weights.values()))
    return Deletion(tuple(weights), lambda masks: (masks @ w)[:, None])


WEIGHTS = {"great": 3.0, "fine": 1.0, "box": 0.0, "lid": 0.0, "shop": 0.0, "poor": -2.0}


def test_a_verdict_is_a_comparison_with_all_other_sets_of_as_many_words():
    verdict = judge(["great", "box"], game(WEIGHTS))
    drops = [sum(WEIGHTS[w] for w in some) for some in combinations(WEIGHTS, 2) if set(some) != {"great", "box"}]
    assert verdict.drop == pytest.approx(3.0)
    assert verdict.random == pytest.approx(np.mean(drops))
    # {great, fine} is better, {great, lid} and {great, shop} are as good, the other eleven are worse
    assert len(drops) == 14
    assert verdict.beaten == pytest.approx((11 + 2 / 2) / 14)
    assert verdict.beaten == pytest.approx(np.mean([0.5 if d == 3 else float(d < 3) for d in drops]))


@pytest.mark.parametrize(
    ("words", "passed"),
    [(["great"], True), (["great", "fine"], True), (["box"], False), (["poor"], False), (["box", "lid"], False)],
)
def test_only_words_that_matter_pass(words, passed):
    assert judge(words, game(WEIGHTS)).passed is passed


def test_phrases_case_and_words_that_are_not_scored():
    assert judge(["a GREAT one"], game(WEIGHTS)) == judge(["great"], game(WEIGHTS))
    assert judge(["unheard", "of"], game(WEIGHTS)) == Verdict(False, 0.0, 0.0, 0.0)
    assert not judge([], game(WEIGHTS)).passed


def test_where_there_are_no_other_words_they_must_matter_at_all():
    assert judge(["great", "poor"], game({"great": 3.0, "poor": -2.0})).passed
    assert not judge(["great", "poor"], game({"great": 1.0, "poor": -2.0})).passed


def test_of_random_rationales_one_in_ten_passes():
    rng = np.random.default_rng(0)
    passed = 0
    for i in range(300):
        weights = {f"w{j}": float(value) for j, value in enumerate(rng.normal(size=20))}
        passed += judge([f"w{j}" for j in rng.choice(20, 5, replace=False)], game(weights), seed=i).passed
    # binomial(300, about 0.1): four standard errors either way
    assert 10 <= passed <= 52


def test_the_same_seed_gives_the_same_verdict_and_a_set_is_asked_once():
    weights = {f"w{j}": math.sin(j) for j in range(30)}
    asked: list[int] = []

    def value(masks):
        asked.append(len(np.unique(masks, axis=0)))
        return (masks @ np.array(list(weights.values())))[:, None]

    counted = Deletion(tuple(weights), value)
    assert judge(["w1", "w2"], counted, seed=5) == judge(["w1", "w2"], counted, seed=5)
    assert asked == [2 + SETS] * 2


def test_a_prompt_of_a_language_model_is_judged_alike():
    text = "a great phone in a box with a lid"
    spans = word_spans(text)
    words = tuple(text[a:b] for a, b in spans)
    model = ScriptedModel(logprob=lambda prompt, label: -0.1 if "great" in prompt else -3.0)
    made = Attribution(text, words, spans, (0.0,) * len(words), " good")
    assert judge(["great"], deletion(made, model)).passed
    assert not judge(["phone"], deletion(made, model)).passed


@pytest.fixture(scope="module")
def sentiment() -> Task:
    """The word decides; the tiny encoder learns it in a few steps."""
    good, bad = ("great", "superb"), ("awful", "broken")
    filler = ("box", "lid", "case", "shop", "day", "price", "week", "hand", "door", "shoe")

    def reviews(split: str, n: int) -> tuple[Example, ...]:
        rng = np.random.default_rng([ord(c) for c in split])
        made = []
        for i in range(n):
            label = ("positive", "negative")[i % 2]
            word = rng.choice(good if i % 2 == 0 else bad)
            made.append(Example(f"{split}{i}", " ".join(rng.permutation([word, *rng.choice(filler, 5, False)])), label))
        return tuple(made)

    return Task(
        name="sentiment",
        instruction="Is it positive or negative?",
        train=reviews("train", 160),
        validation=reviews("validation", 20),
        test=reviews("test", 10),
        labels=("positive", "negative"),
    )


@pytest.fixture(scope="module")
def proxy(sentiment: Task, tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AMPLIFY_HOME", str(tmp_path_factory.mktemp("home")))
        made = train_proxy(sentiment, tiny_encoder, epochs=6, seed=0, learning_rate=3e-3, progress=False)
        assert made.accuracy(sentiment.test) == 1.0, "the check needs a model that goes by the words"
        yield made


def test_auto_takes_the_explainer_that_finds_the_words(sentiment: Task, proxy: Proxy, monkeypatch: pytest.MonkeyPatch):
    choice = choose(proxy, sentiment, Trial(pool=("grad_norm", "occlusion"), items=10, k=1))
    assert choice.method == max(choice.merits, key=lambda name: choice.merits[name])
    assert choice.items == 10
    assert choice.trusted
    assert choice.method in choice.note
    assert "lds" in choice.beats["occlusion"]

    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("the choice was measured again")

    with monkeypatch.context() as patch:
        patch.setattr(auto, "faithfulness", never)
        assert choose(proxy, sentiment, Trial(pool=("grad_norm", "occlusion"), items=10, k=1)) == choice
        with pytest.raises(AssertionError):
            choose(proxy, sentiment, Trial(pool=("grad_norm", "occlusion"), items=10, k=2))


def test_a_damaged_cache_is_measured_again(sentiment: Task, proxy: Proxy, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("AMPLIFY_HOME", str(tmp_path))
    first = choose(proxy, sentiment, Trial(pool=("occlusion",), items=3, k=1))
    [kept] = tmp_path.glob("gates/*.json")
    assert json.loads(kept.read_text())["method"] == "occlusion"
    kept.write_text("{")
    assert choose(proxy, sentiment, Trial(pool=("occlusion",), items=3, k=1)) == first


def test_every_kind_of_explainer_keeps_to_the_mask(sentiment: Task, proxy: Proxy):
    examples, mask = sentiment.validation[:2], key_word_mask(sentiment)
    for method in ("occlusion", "kernel_shap", "grad_x_input"):
        made = explain_words(proxy, examples, [e.label for e in examples], None, method, mask=mask)
        for example, attribution in zip(examples, made, strict=True):
            text, allowed = example.text, mask(example)
            assert attribution.words == tuple(
                text[a:b] for (a, b), may in zip(word_spans(text), allowed, strict=True) if may
            )
            assert attribution.target == example.label


def test_auto_is_a_method_of_explain(sentiment: Task, proxy: Proxy, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(InputError, match="needs 'sentiment'"):
        explain("great box", "positive", model=proxy, method="auto")  # no task of this name can be loaded
    monkeypatch.setattr(auto, "load_task", lambda name: {"sentiment": sentiment}[name])
    found = explain("great box and lid", "positive", model=proxy, method="auto")
    assert found.method == choose(proxy, sentiment, contrastive=False).method
    monkeypatch.setattr(auto, "load_task", lambda name: replace(sentiment, validation=sentiment.validation[:5]))
    with pytest.raises(InputError, match="not what the proxy was trained on"):
        explain("great box", "positive", model=proxy, method="auto")


def test_auto_on_a_language_model_is_measured_on_the_inputs_explained():
    """Either word will do, so leaving one out tells nothing, and Shapley values find both."""

    def logprob(prompt: str, label: str) -> float:
        good = any(word in prompt.split() for word in ("great", "superb"))
        return -0.1 if good == (label == " good") else -2.4

    filler = ("box", "lid", "case", "shop", "day", "price", "week", "hand")
    texts = [" ".join(np.random.default_rng(i).permutation(["great", "superb", *filler])) for i in range(6)]
    model = ScriptedModel(logprob=logprob)
    options = {"foils": [" bad"] * 6, "model": model}
    [(name, found)] = explain_many(texts, [" good"] * 6, methods=["auto"], **options).items()
    assert name == "kernel_shap"
    assert set(found[0].top(2)) == {"great", "superb"}
    assert "gate on 6 examples: kernel_shap" in found[0].meta["auto"]
    assert "less than half" not in found[0].meta["auto"]
    assert found == [
        replace(a, meta={**a.meta, "auto": found[0].meta["auto"]})
        for a in explain_many(texts, [" good"] * 6, methods=["kernel_shap"], **options)["kernel_shap"]
    ]
    alone = explain(texts[0], " good", foil=" bad", model=model, method="auto")
    assert alone.meta["auto"].endswith("too few examples to tell whether it beats random scores")
    choice = choose_on(model, texts, [" good"] * 6, [" bad"] * 6, trial=Trial(items=3))
    assert (set(choice.merits), choice.items) == ({"occlusion", "kernel_shap"}, 3)
    with pytest.raises(CapabilityError, match="log-probabilities"):
        explain(texts[0], " good", model=ScriptedGenerator(), method="auto")
    with pytest.raises(InputError, match="no input"):
        choose_on(model, [], [])


def test_errors(sentiment: Task, proxy: Proxy):
    with pytest.raises(UnknownNameError, match="occlusion"):
        choose(proxy, sentiment, Trial(pool=("oclusion",)))
    with pytest.raises(InputError, match="pool"):
        choose(proxy, sentiment, Trial(pool=()))
    with pytest.raises(InputError, match="no word"):
        explain_words(
            proxy, [Example("x", "of the", "positive")], ["positive"], None, "occlusion", mask=key_word_mask(sentiment)
        )

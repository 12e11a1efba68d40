"""Metrics on models whose deciding words are known, against their formulas written out."""

from __future__ import annotations

import math

import numpy as np
import pytest

import amplify
from amplify.attribution.faithfulness import DEFAULT, METRICS, comprehensiveness, faithfulness, interval, pooled
from amplify.attribution.words import word_spans
from amplify.errors import CapabilityError, InputError, UnknownNameError
from amplify.models.scripted import ScriptedGenerator, ScriptedModel
from amplify.proxies import train_proxy
from amplify.tasks import Task
from amplify.types import Attribution, Example, Message, Prompt

WEIGHTS = {"great": 2.0, "fine": 1.0, "poor": -1.5}


def logit(text: str) -> float:
    return sum(WEIGHTS.get(word.lower(), 0.0) for word in text.replace(",", " ").split())


def log_sigmoid(text: str, continuation: str) -> float:
    sign = 1 if continuation == " good" else -1
    return -math.log1p(math.exp(-sign * logit(text)))


def attributed(text: str, scores: dict[str, float], method: str = "mine", **more: object) -> Attribution:
    spans = word_spans(text)
    words = tuple(text[a:b] for a, b in spans)
    return Attribution(
        text, words, spans, tuple(scores.get(w.lower(), 0.0) for w in words), " good", method=method, **more
    )


TEXT = "a great phone and a fine box with a poor lid"
model = ScriptedModel(logprob=log_sigmoid)


def p(text: str) -> float:
    return math.exp(log_sigmoid(text, " good"))


def test_metrics_are_their_formulas():
    table = faithfulness([attributed(TEXT, WEIGHTS)], model, list(METRICS), k=2, masks=40, draws=3)
    found = {metric: table.values["mine", metric][0] for metric in METRICS}
    whole, without = p(TEXT), p("a phone and a box with a poor lid")
    assert found["comprehensiveness"] == pytest.approx(whole - without)
    assert found["sufficiency"] == pytest.approx(whole - p("great fine"))
    assert found["logprob_drop"] == pytest.approx(math.log(whole) - math.log(without))
    assert found["lds"] == pytest.approx(1.0), "an additive model is ordered exactly by its weights"
    # nine different words: 1, 5, 10, 20 % are one or two of them, 50 % are four
    order = ["great", "fine", "a", "phone", "and", "box", "with", "lid", "poor"]
    kept = [p(" ".join(w for w in TEXT.split() if w not in order[:n])) for n in range(10)]
    assert found["aopc"] == pytest.approx(whole - np.mean([kept[n] for n in (1, 1, 1, 2, 4)]))
    assert found["morf"] == pytest.approx(np.mean(kept[1:]))
    least = [p(" ".join(w for w in TEXT.split() if w not in order[9 - n :])) for n in range(10)]
    assert found["lerf"] == pytest.approx(np.mean(least[1:]))


def test_direct_occlusion_of_an_additive_model_is_the_truth():
    # its log-odds are additive, so the weights are what one word less takes away
    table = faithfulness([attributed(TEXT, WEIGHTS, foil=" bad")], model, list(METRICS), k=2)
    for row in table.rows:
        np.testing.assert_allclose(row.value, row.occlusion, atol=1e-9, err_msg=row.metric)


def test_a_foil_is_contrasted_in_lds_and_not_in_probabilities():
    mine = attributed(TEXT, WEIGHTS, foil=" bad")
    table = faithfulness([mine], model, ["lds", "comprehensiveness"], k=2)
    plain = faithfulness([attributed(TEXT, WEIGHTS)], model, ["comprehensiveness"], k=2)
    assert table.row("mine", "lds").value.mean == pytest.approx(1.0)
    assert table.row("mine", "comprehensiveness").value == plain.row("mine", "comprehensiveness").value


def texts(n: int) -> list[str]:
    rng = np.random.default_rng(0)
    filler = ["box", "lid", "phone", "case", "shop", "day", "colour", "price", "week", "hand"]
    return [" ".join(rng.permutation([*rng.choice(filler, 8, replace=False), "great", "fine"])) for _ in range(n)]


def test_the_truth_beats_random_and_its_opposite_does_not():
    opposite = {word: -weight for word, weight in WEIGHTS.items()}
    explanations = {
        "truth": [attributed(text, WEIGHTS) for text in texts(12)],
        "opposite": [attributed(text, opposite) for text in texts(12)],
    }
    table = faithfulness(explanations, model, list(METRICS), k=2)
    assert table.methods == ["truth", "opposite"]
    for metric in METRICS:
        good, bad = table.row("truth", metric), table.row("opposite", metric)
        assert good.beats_random, metric
        assert good.gain.low > 0, metric
        assert not bad.beats_random, metric
        assert bad.gain.high <= 0, metric
        assert good.items == 12
    for part in ("truth", "beats random", "12 items"):
        assert part in str(table)
    assert table.to_dict()["rows"][0]["method"] == "truth"
    assert "<pre>" in table._repr_html_()


def test_tables_of_parts_pool_to_the_table_of_all():
    explanations = [attributed(text, WEIGHTS) for text in texts(6)]
    metrics = ["comprehensiveness", "sufficiency"]
    parts = [faithfulness(some, model, metrics) for some in (explanations[:2], explanations[2:])]
    whole, joined = faithfulness(explanations, model, metrics), pooled(parts)
    assert joined.evaluations == sum(part.evaluations for part in parts)
    for mine, theirs in zip(joined.rows, whole.rows, strict=True):
        assert (mine.method, mine.metric, mine.items) == (theirs.method, theirs.metric, 6)
        assert mine.value == theirs.value  # what is random differs: each table draws by itself
    with pytest.raises(InputError, match="same explainers and metrics"):
        pooled([parts[0], faithfulness(explanations, model, metrics[:1])])
    with pytest.raises(InputError, match="one or more"):
        pooled([])


def test_the_same_seed_gives_the_same_table_and_each_coalition_is_asked_once():
    explanations = [attributed(text, WEIGHTS) for text in texts(3)]
    first = ScriptedModel(logprob=log_sigmoid)
    one = faithfulness(explanations, first, list(METRICS))
    assert len(first.calls) == one.evaluations
    assert len({call.batch for call in first.calls}) <= 2 * 3, "an item is asked in one batch, occlusion in another"
    two = faithfulness(explanations, model, list(METRICS))
    assert one.rows == two.rows
    assert faithfulness(explanations, model, list(METRICS), seed=1).rows != one.rows


@pytest.mark.parametrize("seed", range(3))
def test_held_out_masks_are_not_those_that_an_explainer_learnt_from(seed):
    model = ScriptedModel(logprob=lambda text, continuation: -float(len(text)))
    text = "one two three four five six seven eight nine ten eleven twelve"
    for method in ("lime", "random"):
        found = amplify.explain(text, " x", model=model, method=method, budget=33, seed=seed)
        learnt = {call.text for call in model.calls}
        model.calls.clear()
        faithfulness([found], model, ["lds"], masks=32, seed=seed)
        held_out = {call.text for call in model.calls}
        model.calls.clear()
        shared = {t for t in learnt & held_out if len(t.split()) < 11}  # all words, and all but one, are asked by both
        assert len(shared) <= 3  # 32 of 4,096 each


def test_proxies_and_own_choices(tiny_lm):
    examples = [
        Example(f"q{i}", f"Which is right {i}?", "A", ("A", "B"), ("a red box", "a blue lid")) for i in range(2)
    ]
    task = Task(name="quiz", instruction="Choose.", train=(), validation=(), test=tuple(examples))
    proxy = train_proxy(task, tiny_lm, epochs=0)
    from amplify.text import input_text

    def explained(example: Example) -> Attribution:
        text = input_text(example)
        spans = word_spans(text)
        words = tuple(text[a:b] for a, b in spans)
        return Attribution(text, words, spans, tuple(float(len(w)) for w in words), "A", "B", method="length")

    made = [explained(example) for example in examples]
    table = faithfulness(made, proxy, examples=examples, k=2)
    np.testing.assert_allclose(
        table.values["length", "comprehensiveness"], comprehensiveness(proxy, examples, made, k=2), atol=1e-6
    )
    assert set(table.values) >= {("length", metric) for metric in DEFAULT}
    with pytest.raises(InputError, match="examples="):
        faithfulness(made, proxy)


def test_of_a_chat_the_users_words_are_deleted():
    model = ScriptedModel(logprob=log_sigmoid)
    chat = Prompt(messages=(Message("system", "Be great."), Message("user", TEXT)), prefix="It is")
    table = faithfulness([attributed(TEXT, WEIGHTS)], model, examples=[chat], k=2)
    assert table.row("mine", "lds").value.mean == pytest.approx(1.0)
    assert all("Be great." in call.text for call in model.calls)
    assert any("a great phone" not in call.text for call in model.calls)


def test_one_item_says_nothing_of_others():
    assert interval(np.array([0.7])) == (0.7, -np.inf, np.inf)


def test_interval_covers_the_mean():
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(200):
        found = interval(rng.normal(1.0, 1.0, 60))
        hits += found.low <= 1.0 <= found.high
    assert 180 <= hits <= 198  # 95 % of 200, within four standard errors either way


def test_the_public_name_is_the_function():
    assert amplify.faithfulness is faithfulness


def test_errors():
    mine = attributed(TEXT, WEIGHTS)
    with pytest.raises(UnknownNameError, match="sufficiency"):
        faithfulness([mine], model, ["sufficency"])
    with pytest.raises(InputError, match="no explanation"):
        faithfulness([], model)
    with pytest.raises(InputError, match="not finite"):
        faithfulness([attributed(TEXT, {"great": math.nan})], model)
    with pytest.raises(InputError, match="different words"):
        faithfulness({"a": [mine], "b": [attributed("a great box", WEIGHTS)]}, model)
    with pytest.raises(InputError, match="the same"):
        faithfulness({"a": [mine], "b": [mine, mine]}, model)
    with pytest.raises(InputError, match="no word"):
        faithfulness([Attribution("...", (), (), (), " good")], model)
    with pytest.raises(InputError, match="k >= 1"):
        faithfulness([mine], model, k=0)
    with pytest.raises(CapabilityError, match="log-probabilities"):
        faithfulness([mine], ScriptedGenerator("echo"))
    with pytest.raises(InputError, match="reference"):
        faithfulness({"random scores": [mine]}, model)

from __future__ import annotations

import random

import pytest
from sklearn.metrics import accuracy_score, f1_score

from amplify import metrics
from amplify.errors import InputError, UnknownNameError
from amplify.types import Answer, Example


def item(name: str, prediction: str | None, *references: str) -> dict[str, float]:
    return metrics.item_score(metrics.find(name), prediction, references)


def labels(n: int, seed: int) -> tuple[list[str], list[str]]:
    rng = random.Random(seed)
    return [rng.choice("abc") for _ in range(n)], [rng.choice("abc") for _ in range(n)]


@pytest.mark.parametrize("seed", range(5))
def test_accuracy_and_macro_f1_agree_with_sklearn(seed: int) -> None:
    predictions, references = labels(60, seed)
    both = metrics.scores("macro_f1", predictions, references)
    assert both["macro_f1"] == pytest.approx(f1_score(references, predictions, average="macro"))
    assert both["accuracy"] == pytest.approx(accuracy_score(references, predictions))
    assert metrics.scores("accuracy", predictions, references)["accuracy"] == (
        pytest.approx(accuracy_score(references, predictions))
    )


def test_macro_f1_with_unparsed_and_invented_labels_agrees_with_sklearn_over_the_gold_labels() -> None:
    predictions = ["a", None, "b", "zebra", "c", "a", ""]
    references = ["a", "a", "b", "b", "c", "c", "c"]
    filled = [p or "unparsed" for p in predictions]
    want = f1_score(references, filled, labels=["a", "b", "c"], average="macro")
    got = metrics.scores("macro_f1", predictions, references)
    assert got["macro_f1"] == pytest.approx(want)
    assert got["unparsed"] == pytest.approx(2 / 7)


def test_unparsed_is_wrong_and_counted() -> None:
    got = metrics.scores("accuracy", [None, "yes", "no "], ["yes", "yes", "no"])
    assert got == {"accuracy": pytest.approx(2 / 3), "unparsed": pytest.approx(1 / 3)}


@pytest.mark.parametrize("name", sorted(metrics.KINDS))
@pytest.mark.parametrize("empty", [None, "", "  \n"])
def test_an_empty_answer_never_scores(name: str, empty: str | None) -> None:
    for gold in ("yes", "", " "):
        scores = item(name, empty, gold)
        assert scores.pop("unparsed") == 1.0
        assert set(scores.values()) == {0.0}


@pytest.mark.parametrize(
    ("prediction", "reference", "f1"),
    [
        ("The cat sat.", "cat sat", 1.0),
        ("a red cat", "the cat", 2 / 3),  # precision 1/2, recall 1
        ("cat cat", "cat", 2 / 3),  # a word counts as often as it is in both
        ("dog", "cat", 0.0),
        ("the", "the", 0.0),  # nothing is left after normalisation
    ],
)
def test_token_f1_by_hand(prediction: str, reference: str, f1: float) -> None:
    assert metrics.token_f1(prediction, reference) == pytest.approx(f1)
    assert metrics.scores("f1", [prediction], [reference])["f1"] == pytest.approx(f1)


def test_the_best_accepted_answer_counts() -> None:
    assert item("f1", "obama", "Barack Obama", "Obama")["f1"] == 1.0
    got = metrics.scores("exact_match", ["OBAMA", "bush"], [["Barack Obama", "Obama"]] * 2)
    assert got["exact_match"] == 0.5


@pytest.mark.parametrize(
    ("prediction", "reference", "score"),
    [
        ("{}", "{}", 1.0),
        ('{"a": 1}', "{}", 0.0),
        ("{}", '{"a": 1}', 0.0),
        ("none", "", 0.0),
        ('{"a": 1}', '{"a": true}', 0.0),
        ('{"a": 1.0}', '{"a": 1}', 1.0),
        ('{"a": ' + "[" * 100_000, '{"a": 1}', 0.0),
    ],
)
def test_json_answers_by_hand(prediction: str, reference: str, score: float) -> None:
    found = item("json", prediction, reference)
    assert found["strict_accuracy"] == score


def test_labels_that_differ_in_case_are_different() -> None:
    got = metrics.scores("macro_f1", ["May", "May"], ["May", "may"])
    assert got["accuracy"] == 0.5
    assert got["macro_f1"] == pytest.approx((2 / 3 + 0) / 2)
    assert item("accuracy", "Zu\u0308rich", "Zürich")["accuracy"] == 1.0


@pytest.mark.parametrize(
    ("prediction", "reference"),
    [("U.S.", "U.S."), ("U.S", "U.S."), ("Washington, D.C", "Washington, D.C."), ("42", "$42$"), ("東京", "東京。"),
     ('"Paris"', "Paris."), ("Zu\u0308rich", "zürich")],
)  # fmt: skip
def test_exact_match_looks_past_what_stands_around_either_answer(prediction: str, reference: str) -> None:
    assert item("exact_match", prediction, reference)["exact_match"] == 1
    assert item("exact_match", "", reference)["exact_match"] == 0


def test_exact_match_keeps_punctuation() -> None:
    assert item("exact_match", "] ) }", "] ) }")["exact_match"] == 1.0
    assert item("exact_match", "] } )", "] ) }")["exact_match"] == 0.0
    assert item("exact_match", "-24", "24")["exact_match"] == 0.0


def test_per_item_scores_average_to_the_whole() -> None:
    predictions, references = labels(40, 9)
    for name in ("accuracy", "exact_match", "f1"):
        items = [item(name, p, r) for p, r in zip(predictions, references, strict=True)]
        whole = metrics.scores(name, predictions, references)
        assert whole == {key: pytest.approx(sum(i[key] for i in items) / 40) for key in items[0]}
        assert next(iter(items[0])) == name  # the main score comes first


def test_bad_input_is_one_clear_error() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'accuracy'"):
        metrics.scores("acuracy", ["a"], ["a"])
    with pytest.raises(InputError, match="0 predictions and 0 references"):
        metrics.scores("accuracy", [], [])
    with pytest.raises(InputError, match="exactly one gold label"):
        metrics.scores("macro_f1", ["a"], [["a", "b"]])
    with pytest.raises(InputError, match="no gold label"):
        metrics.answer_scores("accuracy", Answer("a"), Example("1", "x"))


@pytest.mark.parametrize(
    ("first", "published"), [({"Rome": -1.0, "Oslo": -2.0}, 1.0), ({"Rome": -2.0, "Oslo": -1.0}, 0.0),
                             ({"Rome": -1.0, "Oslo": -1.0}, 0.0)],
)  # fmt: skip
def test_counterfact_by_first_tokens_stands_beside_the_whole_targets(first, published) -> None:
    item = Example("i", "q", label="Rome", choices=("Rome", "Oslo"))
    answer = Answer("Rome", scores={"Rome": -3.0, "Oslo": -4.0}, first_tokens=first)
    assert metrics.answer_scores("efficacy", answer, item) == {"efficacy": 1.0, "paper_efficacy": published}
    assert metrics.answer_scores("paraphrase", Answer("Oslo"), item) == {"paraphrase_score": 0.0}

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from amplify.errors import InputError
from amplify.metrics import KINDS, answer_scores, item_score
from amplify.metrics.evidence import auc, citation_scores, evidence_scores, ranks
from amplify.types import Answer, Example, Sources


def question(**more) -> Example:
    fields = {"documents": [{}] * 4, "evidence": [1, 3]}
    return Example("q", "Where?", answers=("the Old Town", "Altstadt"), fields={**fields, **more})


def test_auc_is_sklearns() -> None:
    draw = np.random.default_rng(0)
    for _ in range(20):
        scores, gold = draw.integers(0, 4, 8).astype(float), draw.permutation(8)[:3]
        truth = np.isin(np.arange(8), gold)
        assert auc(scores.tolist(), gold.tolist()) == pytest.approx(roc_auc_score(truth, scores))


def test_a_document_without_a_score_is_below_all() -> None:
    assert auc([None, -5.0, -6.0], [1]) == 1.0
    assert auc(ranks([2, 0], 3), [1]) == 0.0


def test_precision_recall_and_what_is_shown() -> None:
    scores = evidence_scores(Sources(ranking=(3, 0, 1, 2), shown=(0, 3)), question())
    assert scores["evidence_precision@1"] == 1
    assert scores["evidence_recall@1"] == 0.5
    assert scores["evidence_precision@2"] == 0.5
    assert scores["evidence_recall@5"] == 1
    assert scores["evidence_precision@5"] == 0.4
    assert scores["evidence_shown"] == 0.5
    assert scores["evidence_auc"] == 0.75
    assert "citation_recall" not in scores
    assert evidence_scores(Sources((0,), (0,)), Example("x", "t", "l")) == {}


def test_citations_by_alces_rules() -> None:
    facts = {0: {1}, 1: {2, 3}, 2: {4}}  # what each statement needs

    def entails(documents, i):
        return facts[i] <= set(documents)

    # 0: right, and one superfluous; 1: both needed; 2: not recalled, so its citation is not precise
    found = citation_scores([[1, 9], [2, 3], [5]], entails)
    assert found == {"recall": 2 / 3, "precision": 3 / 5}
    assert citation_scores([[], []], entails) == {"recall": 0.0, "precision": 0.0}
    # each alone entails: ALCE counts both as precise
    assert citation_scores([[1, 2]], lambda d, i: bool(d)) == {"recall": 1.0, "precision": 1.0}


def test_qa_scores_take_the_best_answer_each() -> None:
    found = item_score(KINDS["qa"], "In the old town of Bern", ["Altstadt", "Old Town"])
    assert found == {"exact_match": 0.0, "f1": pytest.approx(2 * 2 / 7), "contains": 1.0, "unparsed": 0.0}
    assert item_score(KINDS["qa"], "The old town.", ["Old Town"])["exact_match"] == 1
    assert item_score(KINDS["qa"], "", ["Old Town"]) == {"exact_match": 0, "f1": 0, "contains": 0, "unparsed": 1}
    assert item_score(KINDS["qa"], "the", ["a"])["exact_match"] == 0  # nothing is left of either


def test_answer_scores_add_those_of_the_documents() -> None:
    answer = Answer("Altstadt", sources=Sources((1, 3, 0, 2), (1, 3), cited=((1, 3),)))
    scores = answer_scores("qa", answer, question())
    assert next(iter(scores)) == "exact_match"
    assert scores["exact_match"] == scores["evidence_auc"] == scores["citation_recall"] == 1
    assert next(iter(answer_scores("evidence", answer, question()))) == "evidence_auc"
    with pytest.raises(InputError, match="needs gold evidence"):
        answer_scores("evidence", Answer("x"), question())

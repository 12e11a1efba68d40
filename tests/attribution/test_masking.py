"""Words left out of inputs, and the games that this makes of them."""

from __future__ import annotations

import numpy as np
import pytest

from amplify.attribution import METHODS, explain
from amplify.attribution.explainers import Game
from amplify.attribution.inputs import subject
from amplify.attribution.masking import owner_words, proxy_value, without_spans
from amplify.attribution.words import without_words, word_spans
from amplify.errors import InputError
from amplify.proxies import train_proxy
from amplify.shapley import estimate, exact_scores, leave_one_out
from amplify.tasks import Task
from amplify.types import Example, Message, Prompt

EXAMPLE = Example(id="x", text="Great phone, terrible battery.", label="positive")


@pytest.fixture(scope="module")
def proxy(tiny_lm):
    labels = ("positive", "negative")
    task = Task(name="t", instruction="Which?", train=(), validation=(), test=(EXAMPLE,), labels=labels)
    return train_proxy(task, tiny_lm, epochs=0)


def test_words_of_a_proxy_are_a_game(proxy):
    spans = word_spans(EXAMPLE.text)
    value = proxy_value(proxy, EXAMPLE, spans, "positive", "negative")
    scores = leave_one_out(value, len(spans))
    whole, cut = proxy.label_scores([EXAMPLE, Example(id="y", text="Great phone, battery.", label="positive")])
    assert scores[2] == pytest.approx((whole[0] - whole[1]) - (cut[0] - cut[1]), abs=1e-5)


def test_what_no_window_reaches_is_not_read_again(tiny_encoder, monkeypatch):
    train = tuple(
        Example(str(i), f"{('bad', 'good')[i % 2]} phone {i}", label=("negative", "positive")[i % 2]) for i in range(8)
    )
    labels = ("negative", "positive")
    task = Task(name="t", instruction="Which?", train=train, validation=(), test=(EXAMPLE,), labels=labels)
    proxy = train_proxy(task, tiny_encoder, epochs=1)
    example = Example(id="long", text="good phone bad battery " * 5000)
    spans = word_spans(example.text[: 3 * proxy.window])
    kept = np.random.default_rng(0).random((6, len(spans))) < np.linspace(0, 1, 6)[:, None]  # all gone, ..., all there
    want = [
        scores[1]
        for scores in proxy.label_scores(
            [without_words(example, [s for s, stays in zip(spans, row, strict=True) if not stays]) for row in kept]
        )
    ]
    read, rows_of = [], type(proxy).rows_of

    def counted(self, examples, **how):
        read.extend(len(one.text) for one in examples)
        return rows_of(self, examples, **how)

    monkeypatch.setattr(type(proxy), "rows_of", counted)
    np.testing.assert_allclose(proxy_value(proxy, example, spans, "positive")(kept), want, atol=1e-5)
    assert 0 < max(read) < len(example.text) / 20


def test_explainers_that_mask_words_are_the_estimators_of_games(proxy):
    """Four words have 16 coalitions: what estimates Shapley values has them exactly, others what they say they are."""
    case = subject(proxy, EXAMPLE, "positive", "negative")
    held = (np.arange(16)[:, None] >> np.arange(4) & 1).astype(bool)
    values = case.value("delete")(held)
    exact = {index: exact_scores(values, index) for index in ("shapley", "banzhaf")}
    for name in [name for name, one in METHODS.items() if one.kind == "perturbation"]:
        found = explain(EXAMPLE, "positive", foil="negative", model=proxy, method=name, budget=64)
        assert found.budget <= 16
        if name in ("occlusion", "lime", "lasso"):
            other = {"occlusion": "leave_one_out"}.get(name, name)
            want = estimate(case.value("delete"), 4, estimator=other, budget=64).scores
            assert found.meta["estimator"] == other
        else:
            want = exact["banzhaf" if name == "banzhaf" else "shapley"]
            assert found.meta["estimator"] == "exact"
            assert found.low == found.scores == found.high
        np.testing.assert_allclose(found.scores, want, atol=1e-5)


def test_what_one_explainer_asked_another_has_for_nothing(proxy, monkeypatch):
    game = Game(subject(proxy, EXAMPLE, "positive", None))
    estimate(lambda kept: game.value(kept)[:, 0], 4, estimator="permutation", budget=16)
    asked = game.value.calls
    leave_one_out(game.value, 4)
    assert game.value.calls == asked


@pytest.mark.parametrize(
    ("method", "least"), [("occlusion", 5), ("kernel_shap", 8), ("shapley_sampling", 5), ("lime", 3)]
)
def test_too_small_a_budget_is_refused_before_anything_is_asked(proxy, method, least, monkeypatch):
    monkeypatch.setattr(type(proxy), "scores", lambda *_: pytest.fail("asked"))
    with pytest.raises(InputError, match=f"scores of 4 words need {least} or more"):
        explain(EXAMPLE, "positive", model=proxy, method=method, budget=least - 1)


def test_a_word_is_deleted_with_one_blank():
    prompt = Prompt(text="One two  three.\nFour? Five:\n")

    def cut(*gone):
        return without_spans(prompt, None, gone).text

    assert cut() == prompt.text
    assert cut((0, 3)) == "two  three.\nFour? Five:\n"
    assert cut((4, 7)) == "One three.\nFour? Five:\n"
    assert cut((16, 20), (22, 26)) == "One two  three.\n? :\n"
    chat = Prompt(messages=(Message("user", "a b"), Message("assistant", "a b")), prefix="x")
    assert [m.content for m in without_spans(chat, 0, [(0, 1)]).messages] == ["b", "a b"]


def test_a_token_belongs_to_the_word_that_it_has_most_of():
    spans = ((0, 3), (4, 9))
    assert owner_words([(0, 0), (0, 2), (2, 5), (2, 9), (9, 10), (3, 4)], spans).tolist() == [-1, 0, 0, 1, -1, -1]

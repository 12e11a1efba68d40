"""Plans: what a run would take, without asking anything."""

from __future__ import annotations

import pytest
from evaluation_fakes import fake_model, make_task

from amplify.evaluation import evaluate, plan
from amplify.models.scripted import ScriptedModel


def test_a_plan_asks_nothing_and_equals_the_run():
    asked = fake_model()
    chosen = ["zero_shot", "few_shot"]
    expected = plan(make_task(), asked, chosen, seeds=(0, 1), limit=20)
    assert not asked.texts
    real = ScriptedModel("say= bad.")
    evaluate(make_task(), real, chosen, seeds=(0, 1), limit=20)
    assert sum(row.calls for row in expected.rows) == real.usage.calls == 20 + 40
    # shots are drawn anew under each seed, so that lengths differ a little between them
    assert sum(row.prompt_tokens for row in expected.rows) == pytest.approx(real.usage.prompt_tokens, rel=0.03)
    assert "zero_shot" in str(expected)
    without = plan(make_task(), None, chosen, limit=20)
    assert "estimated" in str(without)


def test_a_plan_of_methods_with_a_proxy_trains_nothing():
    names = ["few_shot", "amplify", "amplify_no_rationale", "proxy_alone"]
    few, amplify, shots_only, proxy = plan(make_task(), None, names, seeds=(0, 1), limit=10).rows
    assert (amplify.calls, amplify.fit_calls) == (20, 2 * len(make_task().validation))
    assert amplify.prompt_tokens > shots_only.prompt_tokens == few.prompt_tokens
    assert (proxy.calls, proxy.fit_calls) == (0, 0)
    assert "estimated" in amplify.note

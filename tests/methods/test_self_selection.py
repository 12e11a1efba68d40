"""Which shots Self-AMPLIFY shows: by success and error, confidence, balance and diversity."""

from dataclasses import replace

import numpy as np
import pytest
from method_fakes import BAD, GOOD, by_word
from self_amplify_fakes import SMALL, WRONG, ids, logprob, reply

from amplify.errors import CapabilityError
from amplify.methods import make
from amplify.methods.program import ShotProgram
from amplify.models.scripted import ScriptedGenerator, ScriptedModel
from amplify.tasks import Task


@pytest.fixture
def model() -> ScriptedModel:
    return ScriptedModel(reply=reply, logprob=logprob)


@pytest.mark.parametrize("mode", ["generate", "score"])
def test_success_error_and_random_selection(sentiment: Task, model: ScriptedModel, mode: str) -> None:
    def fit(selection: str) -> ShotProgram:
        return make("self_amplify_topk", mode=mode, selection=selection, **SMALL).fit(sentiment, model, 0)

    right, wrong = fit("success"), fit("error")
    assert not ids(right) & WRONG
    assert ids(wrong) <= WRONG
    assert all(shot.foil not in (None, shot.example.label) for shot in wrong.shots)
    assert right.meta["wrong"] == wrong.meta["wrong"] == len(WRONG)
    assert fit("random").meta["asked"] == 0
    many = make("self_amplify_topk", mode=mode, selection="error", shots=12).fit(sentiment, model, 0)
    assert any(note.startswith("2 of 12 shots were not answered wrongly") for note in many.notes)


def test_selection_by_the_models_own_label_log_probabilities(sentiment: Task, model: ScriptedModel) -> None:
    high, low = (
        make("self_amplify_no_rationale", selection=s, **SMALL).fit(sentiment, model, 0)
        for s in ("mcs_high", "mcs_low")
    )
    assert ids(high) <= WRONG
    assert not ids(low) & WRONG
    for shot in high.shots:
        text = f"Review: {shot.example.text}"
        p = {label: np.exp(logprob(text, label)) for label in sentiment.labels}
        gold = p.pop(str(shot.example.label))
        assert shot.score == pytest.approx(max(p.values()) - gold)
        assert "lovely" in shot.example.text or "broken" in shot.example.text, "the weaker words are left"
    with pytest.raises(CapabilityError, match="own label log-probabilities"):
        make("self_amplify_topk", selection="mcs_high", **SMALL).fit(sentiment, ScriptedGenerator(reply=reply), 0)


def test_balance_and_diversity(sentiment: Task, model: ScriptedModel) -> None:
    def fit(**options: object) -> ShotProgram:
        return make("self_amplify_no_rationale", mode="score", **{**SMALL, **options}).fit(sentiment, model, 0)

    for diversity in ("none", "mmr", "sp_lime"):
        balanced = fit(balanced=True, diversity=diversity, selection="mcs_low")
        assert sorted(str(s.example.label) for s in balanced.shots) == ["negative"] * 2 + ["positive"] * 2
    words = [next(w for w in (*GOOD, *BAD) if w in s.example.text) for s in fit(diversity="mmr").shots]
    assert len(set(words)) == 4
    model = ScriptedModel(reply=by_word, logprob=lambda t, c: logprob(t.replace("validation", "v"), c))
    program = make("self_amplify_no_rationale", diversity="sp_lime", **SMALL).fit(sentiment, model, 1)
    assert any(call.continuation for call in model.calls), "the candidates were explained"
    chosen = [next(w for w in (*GOOD, *BAD) if w in s.example.text) for s in program.shots]
    assert len(set(chosen)) == 4, "each shot brings a word that no other has"


def test_likely_mislabelled_shots_are_noted_or_left_out(sentiment: Task) -> None:
    model = ScriptedModel(reply=by_word, logprob=lambda t, c: logprob(t.replace("validation", "v"), c))
    swap = {"positive": "negative", "negative": "positive"}
    spoilt = tuple(replace(e, label=swap[e.label]) if i in (4, 9) else e for i, e in enumerate(sentiment.validation))
    task = replace(sentiment, validation=spoilt)
    noted = make("self_amplify_no_rationale", selection="mcs_high", **SMALL).fit(task, model, 0)
    assert noted.meta["flagged"] == ["validation-4", "validation-9"]
    assert ids(noted) > {"validation-4", "validation-9"}, "confident mistakes are where label errors are"
    assert any(note.startswith("2 of 4 shots are likely mislabelled: ") for note in noted.notes)
    options = {**SMALL, "selection": "mcs_high", "skip_flagged": True}
    clean = make("self_amplify_no_rationale", **options).fit(task, model, 0)
    assert not ids(clean) & {"validation-4", "validation-9"}
    assert "2 of 20 candidates are likely mislabelled and were left out" in clean.notes

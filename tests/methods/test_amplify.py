import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from method_fakes import BAD, GOOD, by_word

from amplify import selection
from amplify.attribution.faithfulness import comprehensiveness
from amplify.attribution.gradients import explain
from amplify.attribution.words import key_word_mask
from amplify.errors import ContextLengthError, DataError, InputError
from amplify.methods import Amplify, Program, make
from amplify.methods.program import ShotProgram
from amplify.methods.proxy import ProxyProgram, TestWordsProgram
from amplify.models.scripted import ScriptedModel, plain_text
from amplify.proxies import Proxy, train_proxy
from amplify.tasks import Task

CONTROLS = (
    "amplify_no_rationale",
    "amplify_random_words",
    "amplify_shuffled_rationales",
    "amplify_tfidf_words",
    "amplify_test_words",
)


def contrary(text: str) -> str:
    """Wrong on half of the validation split; after a rationale, as the words say."""
    right = by_word(text)
    asked = re.search(r"number (\d+) of validation", text.rpartition("Review: ")[2])
    if asked and int(asked[1]) % 4 >= 2:
        right = right.replace("positive", "NEG").replace("negative", "positive").replace("NEG", "negative")
    if text.endswith("point to"):
        label = "positive" if any(word in text.rpartition("key words:")[2] for word in GOOD) else "negative"
        return f" {label}. The answer is {label}."
    return ' "phone" point to it.' + right if text.endswith("The key words:") else right


@pytest.fixture(scope="module")
def body(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    patch = pytest.MonkeyPatch()
    patch.setenv("AMPLIFY_HOME", str(tmp_path_factory.mktemp("home")))
    yield str(tiny_encoder)
    patch.undo()


@pytest.fixture
def model() -> ScriptedModel:
    return ScriptedModel(reply=contrary)


@pytest.fixture
def proxy(sentiment: Task, body: str) -> Proxy:
    return train_proxy(sentiment, body, epochs=2, seed=0)


def options(body: str, **more: object) -> dict[str, object]:
    return {"proxy": body, "epochs": 2, "shots": 4, "k": 2, **more}


def test_shots_are_what_the_model_got_wrong_by_the_proxys_confidence(
    sentiment: Task, body: str, model: ScriptedModel, proxy: Proxy
) -> None:
    program = Amplify(**options(body)).fit(sentiment, model, 0)
    wrong = [e for i, e in enumerate(sentiment.validation) if i % 4 >= 2]
    confidence = {}
    for example, p in zip(wrong, proxy.probabilities(wrong), strict=True):
        gold = sentiment.labels.index(str(example.label))
        confidence[example.id] = float(p[1 - gold] - p[gold])
    best = sorted(confidence, key=lambda i: -confidence[i])[:4]
    assert {shot.example.id for shot in program.shots} == set(best)
    for shot in program.shots:
        assert shot.score == pytest.approx(confidence[shot.example.id], abs=1e-6)
        assert {shot.example.label, shot.foil} == {"positive", "negative"}
    assert program.meta["asked"] == 20
    assert program.meta["wrong"] == len(wrong) == 10
    assert program.meta["usage"]["calls"] == 20
    assert program.meta["proxy"]["identity"] == proxy.identity


def test_rationales_explain_gold_against_the_label_given(
    sentiment: Task, body: str, model: ScriptedModel, proxy: Proxy
) -> None:
    program = Amplify(**options(body)).fit(sentiment, model, 0)
    for shot in program.shots:
        assert shot.rationale is not None
        expected = explain(proxy, [shot.example], [shot.example.label], [shot.foil], mask=key_word_mask(sentiment))
        assert shot.rationale.words == tuple(expected["grad_x_input"][0].top(2))
        assert shot.rationale.text.endswith(f"point to {shot.example.label}.")
        assert not {"phone", "number", "of"} & set(shot.rationale.words), "template words may not be cited"


def test_the_model_writes_a_rationale_then_the_answer(sentiment: Task, body: str, model: ScriptedModel) -> None:
    program = Amplify(**options(body)).fit(sentiment, model, 0)
    prompt = program.prompt(sentiment.test[0])
    assert prompt.prefix == "The key words:"
    assert all(" The answer is " in m.content for m in prompt.messages if m.role == "assistant")
    answers = program.answer(sentiment.test, model)
    assert [a.value for a in answers] == [e.label for e in sentiment.test]
    assert answers[0].rationale.startswith('The key words: "phone" point to it.')


def test_score_mode_scores_the_labels_behind_the_rationale(sentiment: Task, body: str) -> None:
    model = ScriptedModel(reply=contrary)
    program = Amplify(mode="score", **options(body)).fit(sentiment, model, 0)
    done = len(model.calls)
    answers = program.answer(sentiment.test[:2], model)
    scored = [c for c in model.calls[done:] if c.continuation is not None]
    assert [a.value for a in answers] == ["positive", "negative"]
    assert {c.text.rpartition("assistant: ")[2] for c in scored} == {
        'The key words: "phone" point to it. I looked at it. The answer is'
    }
    assert [c.continuation for c in scored] == [" positive", " negative"] * 2
    assert answers[0].rationale == 'The key words: "phone" point to it. I looked at it.'
    assert answers[0].calls == 3


@pytest.mark.parametrize(
    "change",
    [
        {"selection": "mcs_low"},
        {"selection": "random"},
        {"selection": "most_faithful"},
        {"balanced": True},
        {"explainer": "grad_norm"},
        {"contrastive": False},
        {"misclassified": False},
        {"probe": "few_shot"},
        {"pool": 12},
        {"template": "paper"},
        {"positive": True},
        {"k": 1},
        {"shots": 2},
        {"lora": True},
        {"layout": "text"},
    ],
)
def test_every_ablation_is_an_option(
    sentiment: Task, body: str, model: ScriptedModel, change: dict[str, object]
) -> None:
    method = make("amplify", **options(body, **change))
    program = method.fit(sentiment, model, 0)
    assert isinstance(program, ShotProgram)
    assert len(program.shots) == (2 if "shots" in change else 4)
    made = [shot.rationale.attribution for shot in program.shots if shot.rationale]
    if change.get("contrastive") is False:
        assert all(a is not None and a.foil is None and a.method == "grad_x_input_plain" for a in made)
    if "explainer" in change:
        assert all(a is not None and a.method == "grad_norm" and min(a.scores) >= 0 for a in made)
    if "template" in change:
        assert all("important clues" in s.rationale.text for s in program.shots if s.rationale)
    assert next(iter(change)) in method.label


@pytest.mark.parametrize(
    ("option", "source"),
    [("template", "WORDS: {{ words | join(', ') }} point to {{ label }}."), ("question", "WORDS: Review: {{ text }}")],
)
def test_a_template_that_is_edited_is_used_as_it_is_now(
    option: str, source: str, sentiment: Task, body: str, model: ScriptedModel, tmp_path: Path
) -> None:
    """What a fit found is remembered within a process, by what the templates say and not by their names."""
    own = tmp_path / "own.jinja"
    shown = []
    for first in ("Once", "Twice"):
        own.write_text(source.replace("WORDS", first))
        program = Amplify(**options(body, **{option: str(own)})).fit(sentiment, model, 0)
        shown.append(plain_text(program.prompt(sentiment.test[0])))
    assert "Once" in shown[0]
    assert "Twice" in shown[1]
    assert "Once" not in shown[1]


@pytest.mark.parametrize("change", [{}, {"explainer": "occlusion", "contrastive": False}])
def test_the_most_faithful_are_ranked_by_the_explanations_that_they_show(
    sentiment: Task, body: str, model: ScriptedModel, change: dict[str, object]
) -> None:
    given = options(body, selection="most_faithful", k=2, **change)
    program = Amplify(**given).fit(sentiment, model, 0)
    proxy = train_proxy(sentiment, body, epochs=int(given["epochs"]), seed=0)
    for shot in program.shots:
        shown = comprehensiveness(proxy, [shot.example], [shot.rationale.attribution], 2)
        assert shot.score == pytest.approx(shown[0], abs=1e-5)


def test_balanced_shots_of_a_model_that_errs_on_one_label(sentiment: Task, quiz: Task, body: str) -> None:
    yes_man = ScriptedModel("say= positive.")
    plain, even = (Amplify(**options(body, **more)) for more in ({}, {"balanced": True}))
    assert "balanced=true" in even.label
    assert {s.example.label for s in plain.fit(sentiment, yes_man, 0).shots} == {"negative"}
    labels = [s.example.label for s in even.fit(sentiment, yes_man, 0).shots]
    assert labels.count("negative") == labels.count("positive") == 2
    with pytest.raises(InputError, match=r"amplify\.balanced: task"):
        Amplify(**options(body, balanced=True)).fit(quiz, yes_man, 0)


def test_low_and_high_confidence_are_opposite_ends(sentiment: Task, body: str, model: ScriptedModel) -> None:
    high, low = (
        Amplify(selection=selection, **options(body, shots=5)).fit(sentiment, model, 0)
        for selection in ("mcs_high", "mcs_low")
    )
    assert min(s.score or 0 for s in high.shots) >= max(s.score or 0 for s in low.shots)
    assert not {s.example.id for s in high.shots} & {s.example.id for s in low.shots}


@pytest.mark.parametrize("name", CONTROLS)
def test_controls_share_the_fit(sentiment: Task, body: str, model: ScriptedModel, name: str) -> None:
    own = Amplify(**options(body)).fit(sentiment, model, 3)
    asked = len(model.calls)
    control = make(name, **options(body)).fit(sentiment, model, 3)
    assert len(model.calls) == asked, "the model was asked again"
    shots = control.base.shots if isinstance(control, TestWordsProgram) else control.shots
    assert [s.example for s in shots] == [s.example for s in own.shots]
    fresh = make(name, **options(body)).fit(sentiment, ScriptedModel(reply=contrary), 3)
    assert fresh == control, "a control fitted by itself is the same"


def test_controls_change_the_words_and_nothing_else(sentiment: Task, body: str, model: ScriptedModel) -> None:
    own, *made = (
        make(name, **options(body)).fit(sentiment, model, 0)
        for name in ("amplify", "amplify_random_words", "amplify_shuffled_rationales", "amplify_tfidf_words")
    )
    for control in made:
        assert control.form.prefill == own.form.prefill
        for mine, theirs in zip(own.shots, control.shots, strict=True):
            assert len(theirs.rationale.words) == len(mine.rationale.words)
            assert theirs.rationale.text.endswith(f"point to {theirs.example.label}.")
    assert sorted(s.rationale.words for s in made[1].shots) == sorted(s.rationale.words for s in own.shots)
    pairs = zip(made[1].shots, own.shots, strict=True)
    assert any(a.rationale.words != b.rationale.words for a, b in pairs)
    for shot in made[0].shots:
        assert set(shot.rationale.words) <= set(shot.rationale.attribution.words)
    plain = make("amplify_no_rationale", **options(body)).fit(sentiment, model, 0)
    assert all(s.rationale is None for s in plain.shots)
    assert plain.prompt("x").prefix == "The answer is"


def test_test_words_explain_the_proxys_own_prediction(
    sentiment: Task, body: str, model: ScriptedModel, proxy: Proxy, tmp_path: Path
) -> None:
    program = make("amplify_test_words", **options(body)).fit(sentiment, model, 0)
    program.save(tmp_path / "p.json")
    again = Program.load(tmp_path / "p.json")
    assert again == program
    example = sentiment.test[1]
    p = proxy.probabilities([example])[0]
    guess = int(np.argmax(p))
    names = sentiment.labels
    made = explain(proxy, [example], [names[guess]], [names[1 - guess]], mask=key_word_mask(sentiment))
    words = made["grad_x_input"][0].top(2)
    shown = ", ".join(f'"{w}"' for w in words)
    assert program.prompt(example).prefix == f"The key words: {shown} point to"
    unlabelled = program.prompt(example.text).prefix
    assert unlabelled == program.prompt(example).prefix, "the gold label must not be looked at"
    answers = program.answer(sentiment.test, model)
    assert all(a.value in names for a in answers)


def test_proxy_alone(sentiment: Task, body: str, model: ScriptedModel, proxy: Proxy, tmp_path: Path) -> None:
    program = make("proxy_alone", proxy=body, epochs=2).fit(sentiment, model, 0)
    answers = program.answer(sentiment.test, model)
    probabilities = proxy.probabilities(sentiment.test)
    assert [a.value for a in answers] == [sentiment.labels[int(p.argmax())] for p in probabilities]
    assert np.allclose([np.exp(list(a.scores.values())) for a in answers], probabilities)
    assert not model.calls
    program.save(tmp_path / "p.json")
    assert Program.load(tmp_path / "p.json") == program
    with pytest.raises(DataError, match="not the one"):
        ProxyProgram(program.proxy, "another").answer(sentiment.test, model)


def test_answer_format_only_shows_no_content(sentiment: Task, quiz: Task, words: Task, model: ScriptedModel) -> None:
    program = make("answer_format_only").fit(sentiment, model, 0)
    replies = [m.content for m in program.prompt("x").messages if m.role == "assistant"]
    assert sorted(replies) == ["The answer is negative.", "The answer is positive."]
    text = plain_text(program.prompt("x"))
    assert not any(word in text for word in (*GOOD, *BAD))
    quizzed = make("answer_format_only").fit(quiz, model, 0).prompt(quiz.test[0])
    assert sorted(m.content for m in quizzed.messages if m.role == "assistant") == [
        f"The answer is ({c})." for c in "ABC"
    ]
    assert make("answer_format_only").fit(words, model, 0).shots


def test_a_kept_proxy_is_taken_from_its_folder(
    sentiment: Task, quiz: Task, body: str, model: ScriptedModel, tmp_path: Path
) -> None:
    kept = train_proxy(sentiment, body, epochs=2, seed=5, out=tmp_path / "kept")
    program = Amplify(**options(str(kept.folder))).fit(sentiment, model, 0)
    assert program.meta["proxy"]["identity"] == kept.identity
    with pytest.raises(InputError, match="was made for the labels positive, negative"):
        Amplify(**options(str(kept.folder))).fit(quiz, model, 0)


def test_too_few_mistakes_are_filled_up_and_noted(sentiment: Task, body: str) -> None:
    program = Amplify(**options(body)).fit(sentiment, ScriptedModel(reply=by_word), 0)
    assert len(program.shots) == 4
    assert program.notes == (
        "only 0 of 20 candidates were answered wrongly: 4 of 4 shots are ones that the model gets right",
    )
    assert all(s.foil not in (None, s.example.label) for s in program.shots)


def test_a_model_that_fails_at_the_format_is_noted(sentiment: Task, body: str) -> None:
    program = Amplify(**options(body)).fit(sentiment, ScriptedModel("say= hmm"), 0)
    assert program.notes == ("20 of the model's 20 wrong answers could not be read: it fails at the format",)
    assert all(s.foil not in (None, s.example.label) for s in program.shots)


def test_the_seed_decides(sentiment: Task, body: str, model: ScriptedModel) -> None:
    method = make("amplify", **options(body, pool=10))
    again = method.fit(sentiment, ScriptedModel(reply=contrary), 1)
    assert method.fit(sentiment, model, 1) == again
    assert method.fit(sentiment, model, 2).shots != again.shots


def test_refused_before_any_work(sentiment: Task, words: Task, body: str) -> None:
    model = ScriptedModel(reply=contrary, max_context=250)
    with pytest.raises(ContextLengthError, match=r"amplify.shots=\d"):
        Amplify(**options(body, shots=20)).fit(sentiment, model, 0)
    with pytest.raises(InputError, match="free-text answers"):
        Amplify(**options(body)).fit(words, model, 0)
    with pytest.raises(InputError, match="k must be at least 1"):
        Amplify(**options(body, k=0)).fit(sentiment, model, 0)
    assert not model.calls


def test_an_untrained_head_is_refused(sentiment: Task, body: str, model: ScriptedModel) -> None:
    for name in ("amplify", "proxy_alone"):
        with pytest.raises(InputError, match="untrained"):
            make(name, proxy=body, epochs=0).fit(sentiment, model, 0)


def test_a_causal_model_explains_as_it_is(sentiment: Task, tiny_lm: Path, body: str, model: ScriptedModel) -> None:
    own = options(str(tiny_lm), epochs=0)
    program = make("amplify_test_words", **own).fit(sentiment, model, 0)
    assert len(program.base.shots) == 4
    assert program.prompt(sentiment.test[0]).prefix.endswith("point to")


def test_choices_of_the_example(quiz: Task, body: str) -> None:
    model = ScriptedModel("say= (A).")
    for name in ("amplify", "amplify_test_words"):
        program = make(name, **options(body, shots=2)).fit(quiz, model, 0)
        shots = program.base.shots if isinstance(program, TestWordsProgram) else program.shots
        assert all(f"point to ({s.example.label})." in s.rationale.text for s in shots)
        assert program.answer(quiz.test, model)


def test_confidence_has_the_right_sign() -> None:
    assert selection.misclassification_confidence(np.array([0.1, 0.9]), 0) == pytest.approx(0.8)
    assert selection.misclassification_confidence(np.array([0.2, 0.5, 0.3]), 1) == pytest.approx(-0.2)


def test_dropped_rationales_are_counted(sentiment: Task, body: str, model: ScriptedModel) -> None:
    method = Amplify(**options(body, k=8, positive=True))
    found = method.explained(sentiment, model, 0)
    program = method.fit(sentiment, model, 0)
    dropped = sum(max(a.scores) <= 0 for a in found.attributions)
    assert method.said(sentiment, found, 0).count(None) == dropped
    assert any("fewer than 8 words" in note for note in program.notes)

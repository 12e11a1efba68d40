"""Reasons by attribution of the model itself; and traps of the released code (each has a test)."""

from dataclasses import replace
from pathlib import Path

import pytest
from method_fakes import BAD, GOOD
from self_amplify_fakes import SMALL, asked, logprob, reply

from amplify.attribution.words import word_spans
from amplify.errors import InputError
from amplify.methods import make
from amplify.methods.self_attribution import citable, explain_shots, placed
from amplify.models.base import LanguageModel
from amplify.models.scripted import ScriptedModel
from amplify.tasks import Task
from amplify.text import input_text
from amplify.types import Demonstration, Example


@pytest.fixture
def model() -> ScriptedModel:
    return ScriptedModel(reply=reply, logprob=logprob)


@pytest.mark.parametrize("name", ["shap", "lime", "occlusion"])
def test_attributed_words_are_those_that_count(sentiment: Task, model: ScriptedModel, name: str) -> None:
    program = make(f"self_amplify_{name}", k=1, **SMALL).fit(sentiment, model, 0)
    for shot in program.shots:
        assert shot.rationale is not None
        assert shot.rationale.words[0] in (*GOOD, *BAD)
        a = shot.rationale.attribution
        assert a.text == input_text(shot.example)
        assert all(a.text[s:e] == word for word, (s, e) in zip(a.words, a.spans, strict=True))
        assert (a.target, a.foil) == (shot.example.label, None)
        assert 0 < a.budget <= 130
    contrast = make(f"self_amplify_{name}", mode="score", contrastive=True, **SMALL).fit(sentiment, model, 0)
    assert all(s.rationale.attribution.foil == s.foil != s.example.label for s in contrast.shots)
    plain = make(f"self_amplify_{name}", contrastive=True, **SMALL).fit(sentiment, model, 0)
    assert "4 of 4 labels explained without a contrast: no other label is known" in plain.notes


def test_a_negative_sum_of_scores_does_not_turn_the_ranking_round(sentiment: Task) -> None:
    """Dividing by the sum of the scores would."""

    def odd(text: str, continuation: str) -> float:
        text = asked(text)
        return -5.0 + 1.0 * ("splendid" in text) - 3.0 * ("heavy" in text) - 2.0 * ("late" in text)

    one = Example("validation-x", "A splendid thing, heavy and late.", "positive")
    task = replace(sentiment, validation=(one,))
    program = make("self_amplify_occlusion", shots=1, k=1, selection="random").fit(task, ScriptedModel(logprob=odd), 0)
    a = program.shots[0].rationale.attribution
    assert sum(a.scores) < 0
    assert program.shots[0].rationale.words == ("splendid",)


def test_fewer_words_than_k(sentiment: Task, model: ScriptedModel) -> None:
    for name in ("topk", "shap", "random_words"):
        program = make(f"self_amplify_{name}", k=50, **SMALL).fit(sentiment, model, 0)
        assert all(1 <= len(s.rationale.words) < 50 for s in program.shots if s.rationale), name


@pytest.mark.parametrize("layout", ["chat", "text"])
def test_multi_token_targets_count_with_all_their_tokens(quiz: Task, white: LanguageModel, layout: str) -> None:
    method = make("self_amplify_occlusion", layout=layout)
    shots = [Demonstration(example, foil="B") for example in quiz.validation[:1]]
    form = method.form(quiz)
    (plain,) = explain_shots(method, quiz, white, shots, "occlusion", contrastive=False, seed=0)
    (against,) = explain_shots(method, quiz, white, shots, "occlusion", contrastive=True, seed=0)
    spans = citable(quiz, shots[0].example)
    prompt, _, moved = placed(form, shots[0].example, spans)

    def total(prompt, label: str) -> float:  # type: ignore[no-untyped-def]
        found = white.score([prompt], [f" ({label})"])[0]
        assert len(found.logprobs) > 1
        return found.total

    def without(start: int, end: int):  # type: ignore[no-untyped-def]
        if prompt.text is not None:
            return replace(prompt, text=prompt.text[:start] + prompt.text[end:].lstrip(" "))
        turns = list(prompt.messages)
        content = turns[-1].content
        turns[-1] = replace(turns[-1], content=content[:start] + content[end:].lstrip(" "))
        return replace(prompt, messages=tuple(turns))

    for i, (start, end) in enumerate(moved):
        cut = without(start, end)
        for found, foil in ((plain, None), (against, "B")):
            expected = total(prompt, "A") - total(cut, "A")
            if foil:
                expected -= total(prompt, foil) - total(cut, foil)
            # float32 logits of a tiny model summed over three tokens
            assert found.scores[i] == pytest.approx(expected, abs=1e-4)
    assert against.foil == "B"


def test_words_are_whole_words_whatever_the_tokenizer_makes_of_them(quiz: Task, white: LanguageModel) -> None:
    for name in ("occlusion", "gradient", "deeplift"):
        program = make(f"self_amplify_{name}", shots=2, selection="random").fit(quiz, white, 0)
        for shot in program.shots:
            text = input_text(shot.example)
            whole = {text[a:b] for a, b in word_spans(text)}
            assert shot.rationale is None or set(shot.rationale.words) <= whole
    assert any(len(white.tokenizer.tokenize(word)) > 1 for word in whole)


def test_the_input_must_stand_in_the_prompt(sentiment: Task, model: ScriptedModel, tmp_path: Path) -> None:
    own = tmp_path / "own.jinja"
    own.write_text("{{ text | upper }}")
    with pytest.raises(InputError, match="once, and as they are"):
        make("self_amplify_shap", question=str(own), **SMALL).fit(sentiment, model, 0)

"""Words and labels that a proxy names, emphasised: where the emphasis lies, and that it is what steers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from amplify.attribution.explainers import explain_words, plain
from amplify.attribution.words import key_word_mask
from amplify.errors import InputError
from amplify.methods import make
from amplify.methods.base import Program
from amplify.methods.emphasise import EmphasiseProgram
from amplify.methods.program import ShotProgram, answer_made
from amplify.methods.proxy import loaded_proxy
from amplify.models.base import LanguageModel
from amplify.steering import Steering
from amplify.tasks import Task


@pytest.fixture
def profile(tmp_path: Path) -> str:
    Steering(heads={0: (0, 2), 1: (1,)}, alpha=0.05, model={"layers": 3, "heads": 4}).save(tmp_path / "heads.yaml")
    return str(tmp_path / "heads.yaml")


def fitted(
    name: str, task: Task, model: LanguageModel, encoder: Path, profile: str, **more: object
) -> EmphasiseProgram:
    method = make(name, mode="score", proxy=str(encoder), epochs=2, profile=profile, **more)
    program = method.fit(task, model, 0)
    assert isinstance(program, EmphasiseProgram)
    assert method.steers
    assert method.role == ("control" if "random" in name else "method")
    return program


def said(program: EmphasiseProgram, task: Task) -> list[list[str]]:
    prompts = program.prompts(task.test)
    return [[p.messages[s.message].content[s.start : s.end] for s in p.emphasis] for p in prompts]  # type: ignore[index]


def test_the_words_are_those_of_the_attribution_and_steer(
    sentiment: Task, white: LanguageModel, tiny_encoder: Path, profile: str, tmp_path: Path
) -> None:
    program = fitted("emphasise_words", sentiment, white, tiny_encoder, profile, words=2)
    proxy = loaded_proxy(program.proxy, program.identity)
    guesses = [
        proxy.labels_of(e)[int(p.argmax())]
        for e, p in zip(sentiment.test, proxy.probabilities(sentiment.test), strict=True)
    ]
    made = explain_words(
        proxy,
        sentiment.test,
        guesses,
        None,
        plain("grad_x_input", False),
        mask=key_word_mask(sentiment),
        budget=128,
        seed=0,
    )
    for words, attribution in zip(said(program, sentiment), made, strict=True):
        assert set(words) == set(attribution.top(2))
    answers = program.answer(sentiment.test, white)
    prompts = program.prompts(sentiment.test)
    steered = answer_made(program.form, sentiment.test, prompts, white, program.steering)
    bare = answer_made(program.form, sentiment.test, prompts, white)
    assert [a.scores for a in answers] == [a.scores for a in steered]
    assert all(a.scores != b.scores for a, b in zip(answers, bare, strict=True))
    assert [p.messages for p in prompts] == [ShotProgram(program.form).prompt(e).messages for e in sentiment.test]
    program.save(tmp_path / "program.json")
    assert Program.load(tmp_path / "program.json").answer(sentiment.test, white) == answers


def test_a_label_is_emphasised_where_the_prompt_names_it_and_not_in_the_text(
    sentiment: Task, white: LanguageModel, tiny_encoder: Path, profile: str
) -> None:
    task = replace(
        sentiment, test=tuple(replace(e, text=f"{e.text} Not positive, not negative.") for e in sentiment.test)
    )
    program = fitted("emphasise_label", task, white, tiny_encoder, profile)
    proxy = loaded_proxy(program.proxy, program.identity)
    for example, prompt, words in zip(task.test, program.prompts(task.test), said(program, task), strict=True):
        guess = proxy.labels_of(example)[int(proxy.probabilities([example])[0].argmax())]
        assert words
        assert set(words) == {guess}
        for span in prompt.emphasis:
            content = prompt.messages[span.message].content  # type: ignore[index]
            at = content.find(example.text)
            assert at < 0 or not at <= span.start < at + len(example.text)


def test_controls_draw_words_labels_or_heads(
    sentiment: Task, white: LanguageModel, tiny_encoder: Path, profile: str
) -> None:
    words = fitted("emphasise_words", sentiment, white, tiny_encoder, profile, words=1)
    drawn = fitted("emphasise_random_words", sentiment, white, tiny_encoder, profile, words=1)
    assert said(drawn, sentiment) == said(drawn, sentiment)
    assert all(len(one) == 1 for one in said(drawn, sentiment))
    heads = fitted("emphasise_words_random_heads", sentiment, white, tiny_encoder, profile, words=1)
    assert said(heads, sentiment) == said(words, sentiment)
    assert heads.steering.heads != words.steering.heads
    labels = fitted("emphasise_random_label", sentiment, white, tiny_encoder, profile)
    assert {word for one in said(labels, sentiment) for word in one} <= {"positive", "negative"}
    with pytest.raises(InputError, match="no head profile"):
        make("emphasise_words", proxy=str(tiny_encoder)).fit(sentiment, white, 0)

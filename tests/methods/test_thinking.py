"""Models that reason in a block of their own before they answer."""

from __future__ import annotations

import pytest

from amplify.methods import Method, ZeroShot, make
from amplify.models.scripted import ScriptedModel
from amplify.tasks import Task
from amplify.types import Answer

REASONING = "It could be negative. The answer is negative. But no."
LINES = f"<think>\n{REASONING}\n</think>\n\nThe answer is positive.\nMore."
ONE_LINE = f"<think>{REASONING}</think> The answer is positive."
BLOCK_ON_A_LINE = f"<think>{REASONING}</think>\n\nThe answer is positive.\nMore."
TEMPLATE_OPENED = f"{REASONING}\n</think>\n\npositive"


def ask(task: Task, reply: str, method: Method) -> tuple[Answer, ScriptedModel]:
    model = ScriptedModel(reply=lambda text: reply)
    [answer] = method.fit(task, model, 0).answer(task.test[:1], model)
    return answer, model


@pytest.mark.parametrize("reply", [LINES, ONE_LINE, BLOCK_ON_A_LINE, "<think></think>\nThe answer is positive."])
def test_the_answer_behind_the_block_is_read(sentiment: Task, reply: str) -> None:
    answer, _ = ask(sentiment, reply, ZeroShot(prefill=False))
    assert answer.value == "positive"
    assert answer.rationale == (REASONING if REASONING in reply else "")


@pytest.mark.parametrize("reply", [LINES, BLOCK_ON_A_LINE])
def test_a_block_that_a_line_end_cut_off_is_asked_for_again_with_room(sentiment: Task, reply: str) -> None:
    answer, model = ask(sentiment, reply, ZeroShot(prefill=False))
    assert answer.text == reply.removesuffix("\nMore.")
    assert answer.calls == model.usage.calls == 2
    assert answer.prompt_tokens == model.usage.prompt_tokens
    assert answer.completion_tokens == model.usage.completion_tokens


def test_without_room_it_is_unread(sentiment: Task) -> None:
    answer, model = ask(sentiment, LINES, ZeroShot(prefill=False, thinking=0))
    assert answer.value is None
    assert model.usage.calls == 1


def test_a_block_that_never_ends_is_no_answer(sentiment: Task) -> None:
    answer, _ = ask(sentiment, "<think>The answer is positive. Or is it", ZeroShot(prefill=False))
    assert answer.value is None


def test_a_model_that_does_not_think_is_asked_once(sentiment: Task) -> None:
    answer, model = ask(sentiment, "The answer is positive.\nMore.", ZeroShot(prefill=False))
    assert answer.value == "positive"
    assert model.usage.calls == 1


def test_a_block_that_the_template_opened(sentiment: Task) -> None:
    answer, _ = ask(sentiment, TEMPLATE_OPENED, make("zero_shot_cot", prefill=False))
    assert answer.value == "positive"


def test_labels_are_never_scored_inside_a_block(sentiment: Task) -> None:
    _, model = ask(sentiment, "<think>\nHm, hm", make("zero_shot_cot", prefill=False, mode="score"))
    scored = [call.text for call in model.calls if call.continuation is not None]
    assert scored
    assert all(text.endswith("</think>\n\nThe answer is") for text in scored)

"""Rendering, emphasis and target boundaries, against hand-written expectations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amplify.errors import InputError
from amplify.models import chat
from amplify.types import Completion, Prompt, Span

TRIMMING = (
    "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] | trim }} [/]{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture(scope="module")
def tok(tiny_lm: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_lm)


@pytest.fixture
def bos_tok(tiny_lm: Path) -> Any:
    """A tokenizer whose convention for raw text is BOS in front and EOS behind."""
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    tok = AutoTokenizer.from_pretrained(tiny_lm)
    tok.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A <|im_end|>",
        special_tokens=[("<s>", tok.bos_token_id), ("<|im_end|>", tok.eos_token_id)],
    )
    return tok


def ask(*contents: str, **more: Any) -> Prompt:
    roles = ["system", "user", "assistant", "user"]
    return Prompt(messages=[{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)], **more)


def test_raw_text_is_sent_as_it_is(tok: Any) -> None:
    span = Span(0, 3)
    rendered = chat.render(Prompt(text="The key", prefix=" words", emphasis=(span,)), tok)
    assert rendered == chat.Rendered("The key words", chat=False, emphasis=(span,))


def test_chat_is_rendered_with_generation_prompt_and_prefix(tok: Any) -> None:
    rendered = chat.render(ask("Be good.", "Hi", prefix="The answer"), tok)
    assert rendered.text == (
        "<|im_start|>system\nBe good.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nThe answer"
    )
    assert rendered.chat


@pytest.fixture
def thinking_tok(tiny_lm: Path) -> Any:
    """A tokenizer whose chat template opens a reasoning block."""
    from transformers import AutoTokenizer

    tok = AutoTokenizer.from_pretrained(tiny_lm)
    tok.chat_template = TRIMMING.replace("[assistant]", "[assistant]<think>\n")
    return tok


def test_an_answer_is_never_begun_inside_a_reasoning_block(thinking_tok: Any) -> None:
    opened = "[system] What is <think>? [/][assistant]<think>\n"
    closed = "[system] What is <think>? [/][assistant]<think>\n\n</think>\n\n"
    assert chat.render(ask("What is <think>?"), thinking_tok).text == opened
    assert chat.render(ask("What is <think>?", prefix="The answer is"), thinking_tok).text == f"{closed}The answer is"
    # a prefix that thinks, or has thought, is left where it is
    assert chat.render(ask("What is <think>?", prefix="Hm.</think> So"), thinking_tok).text == f"{opened}Hm.</think> So"


def test_a_target_is_never_scored_inside_a_reasoning_block(thinking_tok: Any) -> None:
    rendered = chat.render(ask("Hi"), thinking_tok)
    closed = chat.Rendered("[system] Hi [/][assistant]<think>\n\n</think>\n\n", chat=True)
    assert chat.encode_with_target(thinking_tok, rendered, "yes") == chat.encode_with_target(
        thinking_tok, closed, "yes"
    )


def test_what_the_template_opened_belongs_to_what_was_written(thinking_tok: Any, tok: Any) -> None:
    written = Completion("Hm", "length", 5, 1)
    assert chat.render(ask("Hi"), thinking_tok).whole(written).text == "<think>\nHm"
    assert chat.render(ask("Hi", prefix="Yes"), thinking_tok).whole(written) == written
    assert chat.render(ask("Hi"), tok).whole(written) == written


def test_emphasis_finds_its_own_message_not_an_equal_text(tok: Any) -> None:
    prompt = ask("good", "user good", "good", "so good", emphasis=(Span(3, 7, 2.0, message=3),))
    rendered = chat.render(prompt, tok)
    (span,) = rendered.emphasis
    assert rendered.text[span.start : span.end] == "good"
    assert rendered.text[: span.end].endswith("<|im_start|>user\nso good")
    assert span.weight == 2.0
    assert span.message is None


def test_emphasis_follows_a_trimming_template(tok: Any) -> None:
    prompt = ask("  x", " \n good bad ", emphasis=(Span(0, 7, message=1), Span(8, 12, message=1)))
    rendered = chat.render(prompt, _with_template(tok, TRIMMING))
    assert [rendered.text[s.start : s.end] for s in rendered.emphasis] == ["good", "bad"]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages %}{{ m['content'] | upper }}{% endfor %}", "rewrites message"),
        ("{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}{% endfor %}", "drops"),
    ],
)
def test_emphasis_that_the_template_loses_is_an_error(tok: Any, template: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        chat.render(ask("be good", "hello", emphasis=(Span(0, 2, message=0),)), _with_template(tok, template))


def test_template_refusal_and_missing_template_are_input_errors(tok: Any) -> None:
    with pytest.raises(InputError, match="no system role here"):
        chat.render(ask("a"), _with_template(tok, "{{ raise_exception('no system role here') }}"))
    with pytest.raises(InputError, match="no chat template"):
        chat.render(ask("a"), _with_template(tok, None))


def test_bos_goes_in_front_of_raw_text_once_and_never_of_chat(bos_tok: Any) -> None:
    bos, eos = bos_tok.bos_token_id, bos_tok.eos_token_id
    raw = chat.encode(bos_tok, "The answer")
    assert raw[0] == bos
    assert eos not in raw
    assert chat.encode(bos_tok, "<s>The answer") == raw
    assert bos not in chat.encode(bos_tok, chat.Rendered("The answer", chat=True))
    assert chat.encode(bos_tok, "") == [bos]


def test_no_bos_where_the_tokenizer_adds_none(tok: Any) -> None:
    assert tok.bos_token_id not in chat.encode(tok, "The answer")


def test_target_is_cut_from_one_tokenisation(tok: Any) -> None:
    # alone, " a" is another token than the start of " answer": the target must come from the joined text
    ids, start = chat.encode_with_target(tok, "The answer is", " positive.")
    assert ids == tok("The answer is positive.", add_special_tokens=False).input_ids
    assert tok.decode(ids[start:]) == " positive."
    # a token over the boundary belongs to the target
    ids, start = chat.encode_with_target(tok, "The ans", "wer")
    assert tok.decode(ids[start:]) == " answer"


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=20), st.text(min_size=1, max_size=10))
def test_target_covers_the_continuation_and_starts_no_earlier_than_needed(
    bos_tok_static: Any, prompt: str, continuation: str
) -> None:
    encoded, start = chat.encode_with_targets(bos_tok_static, [prompt], [continuation])[0]
    boundary = len(prompt)
    assert all(end <= boundary for _, end in encoded.offsets[:start])
    assert all(end > boundary for _, end in encoded.offsets[start:])
    assert encoded.ids == tuple(bos_tok_static(prompt + continuation, add_special_tokens=False).input_ids)


@pytest.fixture(scope="module")
def bos_tok_static(tok: Any) -> Any:
    return tok


def test_empty_continuation_and_unequal_lengths_are_input_errors(tok: Any) -> None:
    with pytest.raises(InputError, match="continuation 1 is empty"):
        chat.encode_with_targets(tok, ["a", "b"], ["x", ""])
    with pytest.raises(InputError, match="2 prompts and 1 continuations"):
        chat.encode_with_targets(tok, ["a", "b"], ["x"])


def _with_template(tok: Any, template: str | None) -> Any:
    import copy

    changed = copy.deepcopy(tok)
    changed.chat_template = template
    return changed


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_stop_strings_are_found_when_they_are_written(tok: Any, data: st.DataObject) -> None:
    """As by decoding everything anew at each step, in whatever pieces the tokens come."""
    tokens = st.one_of(
        st.integers(0, len(tok) - 1), st.sampled_from(tok("🙂 né. Great phone", add_special_tokens=False).input_ids)
    )
    prompt = data.draw(st.lists(tokens, max_size=6))
    new = data.draw(st.lists(tokens, min_size=1, max_size=40))
    whole = chat.added(tok, prompt[-4:], new)
    at = data.draw(st.integers(0, max(len(whole) - 1, 0)))
    stop = [s for s in (whole[at : at + data.draw(st.integers(1, 5))], "🙂", "Gr") if s and "\ufffd" not in s]
    search = chat.StopSearch(tok, prompt, stop)
    wanted = [any(s in chat.added(tok, prompt[-4:], new[:n]) for s in stop) for n in range(1, len(new) + 1)]
    found = []
    for n in range(1, len(new) + 1):
        found.append(search.found(new[:n]))
        if found[-1]:
            break
    assert found == wanted[: len(found)]
    assert any(found) == any(wanted)


def test_looking_for_stop_strings_decodes_each_token_a_few_times(tok: Any) -> None:
    decoded = 0

    class Counted:
        def decode(self, ids: list[int], **options: Any) -> str:
            nonlocal decoded
            decoded += len(ids)
            return str(tok.decode(ids, **options))

    new = [*tok("Great phone. " * 150, add_special_tokens=False).input_ids, *[tok.convert_tokens_to_ids("ð")] * 100]
    search = chat.StopSearch(Counted(), [1, 2, 3, 4, 5], ["never", "\n\n"])  # type: ignore[arg-type]
    assert not any(search.found(new[:n]) for n in range(1, len(new) + 1))
    assert decoded < 24 * len(new)

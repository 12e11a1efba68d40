import pytest

from amplify.text import bare, open_block, opens_block, split_reasoning


@pytest.mark.parametrize(
    ("text", "reasoning", "answer"),
    [
        ("The answer is (B).", "", "The answer is (B)."),
        (" a text as it stands \n", "", " a text as it stands \n"),
        ("<think>\nIs it (A)? No.\n</think>\n\nThe answer is (B).", "Is it (A)? No.", "The answer is (B)."),
        ("<think>Maybe (A).</think> (B)", "Maybe (A).", "(B)"),
        ("<THINK>x</Think>y", "x", "y"),
        ("[THINK]x[/THINK]y", "x", "y"),
        ("<seed:think>x</seed:think>y", "x", "y"),
        ("<reasoning>x</reasoning>y", "x", "y"),
        # the chat template opened the block
        ("Is it (A)? No.\n</think>\n\n(B)", "Is it (A)? No.", "(B)"),
        # never closed: cut off while thinking
        ("<think>\nThe answer is (A) at first sight, but", "The answer is (A) at first sight, but", ""),
        ("(B). <think>or (A)", "or (A)", "(B)."),
        # several blocks, and a closing tag that the reasoning itself mentions
        ("<think>a</think>b<think>c</think>d", "ac", "bd"),
        ("<think>I end with </think> when done. (A)? </think>(B)", "I end with  when done. (A)?", "(B)"),
        ("", "", ""),
    ],
)
def test_reasoning_is_kept_apart_from_the_answer(text: str, reasoning: str, answer: str) -> None:
    assert split_reasoning(text) == (reasoning, answer)


def test_a_block_that_the_prompt_opened() -> None:
    assert split_reasoning("The answer is (A)? Well", opened=True) == ("The answer is (A)? Well", "")
    assert split_reasoning("Hm.</think> (B)", opened=True) == ("Hm.", "(B)")
    assert split_reasoning("", opened=True) == ("", "")


@pytest.mark.parametrize(
    ("text", "closing", "at_the_end"),
    [
        ("<|assistant|>\n<think>\n", "</think>", "</think>"),
        ("<think>\n\n</think>\n\n", "", ""),
        ("[THINK]", "[/THINK]", "[/THINK]"),
        ("<seed:think>", "</seed:think>", "</seed:think>"),
        ("what does <think> mean?", "</think>", ""),
        ("a question", "", ""),
    ],
)
def test_the_block_that_a_text_is_inside_of(text: str, closing: str, at_the_end: str) -> None:
    assert open_block(text) == closing
    assert opens_block(text) == at_the_end


def test_a_hundred_thousand_tags_are_split_at_once() -> None:
    reasoning, answer = split_reasoning("<think>a</think>b" * 100_000)
    assert (len(reasoning), len(answer)) == (100_000, 100_000)
    assert split_reasoning("a</think>" * 100_000) == ("a" * 100_000, "")


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        (": 42.", "42"),
        ("： 42", "42"),
        ("$42$.", "42"),
        ("\\boxed{42}.", "42"),
        ("$\\boxed{42}$", "42"),
        ("东京。", "东京"),
        ("「东京」。", "东京"),
        ("**Paris.**", "Paris"),
        ('"Paris".', "Paris"),
        ("U.S.", "U.S."),
        ("Washington, D.C.", "Washington, D.C."),
        ("3.5.", "3.5"),
        ("$5", "$5"),
        (":)", ":)"),
        ("] ) }", "] ) }"),
        (" . ", ""),
    ],
)
def test_a_short_answer_without_what_stands_around_it(line: str, answer: str) -> None:
    assert bare(line) == answer

"""Texts made to cost more than their length; in square time these tests would take minutes to hours."""

from __future__ import annotations

import itertools

import pytest

from amplify.errors import ContextLengthError, InputError
from amplify.metrics.text import embedded_json, is_refusal, json_strict, whole_json
from amplify.models.scripted import ScriptedModel
from amplify.sources.context import check_documents_fit, harmless
from amplify.sources.frames import asking
from amplify.steering import parse_emphasis
from amplify.templates import load
from amplify.text import sentences

N = 200_000


LONG = ["A. ", ". ", "a.b.", "1. ", "1.\n", "```\n", "|-|\n", "x.[1] ", "x. [", "」", "。"]
LONG = [*(unit * N for unit in LONG), "." * N + "a", "." + ")" * N + "a", "\n" * N + "a", "x" * 50 + "\nx" * N]


@pytest.mark.parametrize("text", LONG)
def test_sentences_hold_every_character(text: str) -> None:
    cut = sentences(text)
    assert cut[0][0] == 0
    assert cut[-1][1] == len(text)
    assert all(a[1] == b[0] for a, b in itertools.pairwise(cut))


@pytest.mark.parametrize("text", ["<s>" * N, "<|x|>" * N, "<|" * N + "|>", "[INST]" * N, "\n " * N])
def test_nothing_remains_of_many_tokens(text: str) -> None:
    safe = harmless(text, ["<|x|>"])
    assert len(safe) == len(text)
    assert harmless(safe, ["<|x|>"]) == safe
    assert not any(token in safe for token in ("<s>", "<|x|>", "[INST]"))


def test_a_token_of_the_look_alike_ends() -> None:
    assert "·x" not in harmless("·x·x", ["·x"])


@pytest.mark.parametrize(
    "text", [f"<em weight={'9' * N}x>a</em>", "<em " + " " * N, "<em>a" * N, f"<em weight={'9' * N}>a</em>"]
)
def test_long_marks_are_refused(text: str) -> None:
    with pytest.raises(InputError) as error:
        parse_emphasis(text)
    assert len(str(error.value)) < 200


def test_many_marks() -> None:
    assert len(parse_emphasis("**a** <em weight=2>b</em> " * 20_000).emphasis) == 40_000
    assert parse_emphasis("a" * 1_000_000 + "\\**").messages[0].content.endswith("a**")


def test_answers_with_braces() -> None:
    assert embedded_json('{"a" ' * N) is None
    assert embedded_json('{"a":' * N) is None
    assert whole_json('{"a":' * N) is None
    assert embedded_json('{ {"a": 1} }') == {"a": 1}
    assert json_strict("{}", "{}") == 1.0
    assert not is_refusal("as an ai " * N)


def test_too_many_documents_are_refused_after_reading_each_once() -> None:
    class Counting(ScriptedModel):
        characters = 0

        def count_tokens(self, prompts):  # type: ignore[no-untyped-def]
            self.characters += sum(len(m.content) for p in prompts for m in p.messages)
            return super().count_tokens(prompts)

    documents = tuple(f"{i} " + "word " * (600 + i) for i in range(300))
    model = Counting(max_context=2000)
    with pytest.raises(ContextLengthError, match=r"all 300 documents has about .* Without document 299 \(900 tokens\)"):
        check_documents_fit(asking("Why?", documents, load("sources", "default")), model, 16, "an answer")
    assert model.characters < 2 * sum(map(len, documents))

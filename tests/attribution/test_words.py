"""Words by offsets: scripts, sums, shares, masks, deletion."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amplify.attribution.words import (
    aggregate,
    content_words,
    joined_word,
    key_word_mask,
    stop_words,
    without_words,
    word_spans,
)
from amplify.tasks import Task
from amplify.text import input_text, option_spans
from amplify.types import Example


def words(text: str) -> list[str]:
    return [text[a:b] for a, b in word_spans(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Great phone, terrible battery!", ["Great", "phone", "terrible", "battery"]),
        ("It isn't well-made -- it’s 3.5 stars.", ["It", "isn't", "well", "made", "it’s", "3.5", "stars"]),
        ("bad.Terrible", ["bad", "Terrible"]),
        ("naïve Größe 'quoted'", ["naïve", "Größe", "quoted"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),  # vowel signs are marks, not breaks
        ("中文好", ["中", "文", "好"]),
        ("e\u0301te\u0301", ["e\u0301te\u0301"]),
        ("... ?! 🙂", ["🙂"]),
        ("😡😡 no❤️", ["😡", "😡", "no", "❤️"]),
        ("👨‍👩‍👧 👍🏽 🇩🇪 1️⃣ ❤", ["👨‍👩‍👧", "👍🏽", "🇩🇪", "1️⃣", "❤"]),
        ("© 2024 → A", ["2024", "A"]),
        ("私は映画が好きです", ["私", "は", "映", "画", "が", "好", "きです"]),
        ("これはとてもよかった。データベース", ["これはと", "てもよか", "った", "データベース"]),
        ("เรื่องนี้ดีมาก เก่ง ๑๒", ["เรื่อง", "นี้ดีมา", "ก", "เก่ง", "๑๒"]),
        ("ຂ້ອຍມັກຮູບເງົານີ້", ["ຂ້ອຍມັ", "ກຮູບ", "ເງົານີ້"]),
        ("ខ្ញុំចូលចិត្ត", ["ខ្ញុំចូលចិ", "ត្ត"]),
        ("", []),
    ],
)
def test_words(text, expected):
    assert words(text) == expected


@given(st.text())
def test_spans_are_in_order_and_hold_letters_or_digits_only_at_their_ends(text):
    spans = word_spans(text)
    assert all(a < b for a, b in spans)
    assert all(x[1] <= y[0] for x, y in pairwise(spans))
    assert not any(c in '.,!?;:"()[]' for a, b in spans for c in (text[a], text[b - 1]))


@pytest.mark.parametrize(
    ("before", "after", "word"),
    [
        ("The capital is", "Paris is", "isParis"),
        ("The capital is", " Paris", ""),
        ("The capital is ", "Paris", ""),
        ("It costs $", "5", ""),
        ("法国的首都是", "巴黎", ""),
        ("", "Paris", ""),
        ("is " * 50_000, "Paris", ""),
        ("s" * 100_000, ".", ""),
    ],
)
def test_a_target_that_goes_on_with_a_word(before, after, word):
    assert joined_word(before, after) == word


def test_sub_words_add_up_and_never_leak():
    text = "unbelievable, truly"
    offsets = [(0, 0), (0, 2), (2, 8), (8, 12), (12, 13), (14, 19), (0, 0)]  # [CLS] un ##believ ##able , truly [SEP]
    scores = np.array([100.0, 1.0, -2.0, 4.0, 50.0, 7.0, 100.0])
    np.testing.assert_array_equal(aggregate(scores, offsets, word_spans(text)), [3.0, 7.0])


def test_leading_spaces_and_tokens_over_two_words():
    text = "so good.bad"
    spans = word_spans(text)
    np.testing.assert_allclose(aggregate(np.array([1.0, 2.0]), [(0, 2), (2, 7)], spans), [1, 2, 0])
    # "od.bad" holds 2 characters of good and 3 of bad
    np.testing.assert_allclose(aggregate(np.array([5.0]), [(5, 11)], spans), [0, 2, 3])


@given(st.text(alphabet="ab .,é中'", max_size=30), st.data())
def test_nothing_is_lost_or_made(text, data):
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)))) | {0, len(text)})
    offsets = list(pairwise(cuts))
    scores = np.array(
        data.draw(st.lists(st.integers(-9, 9), min_size=len(offsets), max_size=len(offsets))), dtype=float
    )
    spans = word_spans(text)
    touching = [any(max(a, s) < min(b, e) for s, e in spans) for a, b in offsets]
    assert aggregate(scores, offsets, spans).sum() == pytest.approx(scores[touching].sum() if offsets else 0.0)


def test_negations_and_content_are_no_stop_words():
    assert {"the", "and", "is", "of"} <= stop_words()
    assert not {"not", "no", "never", "cannot", "without", "serious", "interest", "fire"} & stop_words()


def test_content_words():
    text = "It's not the battery, I don't like a B. They'll never fix it!"
    kept = [w for w, keep in zip(words(text), content_words(text), strict=True) if keep]
    assert kept == ["not", "battery", "don't", "like", "never", "fix"]
    kept = [w for w, keep in zip(words(text), content_words(text, exclude={"battery"}), strict=True) if keep]
    assert "battery" not in kept


def task(train: list[Example], labels: tuple[str, ...] = ()) -> Task:
    test = (
        Example(id="test", text="another one", label=labels[0] if labels else "A", choices=() if labels else ("A",)),
    )
    return Task(
        name="t",
        instruction="Say whether the review is positive.",
        train=tuple(train),
        validation=(),
        test=test,
        labels=labels,
    )


def kept(t: Task, example: Example) -> list[str]:
    return [w for w, keep in zip(words(input_text(example)), key_word_mask(t)(example), strict=True) if keep]


def test_instruction_label_and_template_words_are_masked():
    train = [Example(id=f"e{i}", text=f"Customer writes: item{i} broke", label="positive") for i in range(12)]
    t = task(train, ("positive", "negative"))
    assert kept(t, Example(id="x", text="Customer writes: a positive review of Negative batteries")) == ["batteries"]


def test_option_words_are_masked_where_the_question_says_something():
    example = Example(
        id="x", text="Where does a bird sing at dawn?", label="A", choices=("A", "B"), options=("forest dawn", "oven")
    )
    assert kept(task([]), example) == ["bird", "sing"]


def test_option_words_count_where_the_question_is_a_template():
    def snark(i: int, *options: str) -> Example:
        return Example(
            id=f"s{i}", text="Which statement is sarcastic?", label="(A)", choices=("(A)", "(B)"), options=options
        )

    train = [snark(i, f"tax{i} cuts help", f"tax{i} cuts harm") for i in range(12)]
    assert kept(task(train), snark(99, "tax cuts sure help everyone", "tax cuts harm everyone")) == [
        "sure",
        "help",
        "harm",
    ]


def test_layout_points_into_the_options():
    example = Example(id="x", text="Which?", label="(B)", choices=("(A)", "(B)"), options=("one apple", "two"))
    text = input_text(example)
    assert text == "Which?\n(A) one apple\n(B) two"
    assert [text[a:b] for a, b in option_spans(example)] == ["one apple", "two"]
    assert input_text(Example(id="y", text="Only text", choices=("yes", "no"))) == "Only text"


def test_words_are_deleted_where_they_stand():
    example = Example(
        id="x", text="A very bad, bad phone.", label="A", choices=("A", "B"), options=("bad idea", "good")
    )
    text = input_text(example)
    spans = [s for s in word_spans(text) if text[slice(*s)] == "bad"]
    cut = without_words(example, spans)
    assert (cut.text, cut.options) == ("A very , phone.", ("idea", "good"))
    assert without_words(example, []) == example

"""Values as text and as HTML."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amplify.render import Mark, attribution_html, attribution_text, marked_html, visible, word_marks
from amplify.types import Attribution

ATTRIBUTION = Attribution(
    text="A <great> phone, bad battery",
    words=("great", "phone", "bad"),
    spans=((3, 8), (10, 15), (17, 20)),
    scores=(0.5, 0.0, -0.25),
    low=(0.4, 0.0, -0.3),
    high=(0.6, 0.0, -0.2),
    target="positive",
    foil="negative",
    method="grad_x_input",
    model="minilm",
)


def plain(html):
    import html as library

    return library.unescape(re.sub(r"<[^>]*>", "", html))


def test_text_has_every_word_with_its_sign_strongest_first():
    lines = attribution_text(ATTRIBUTION).splitlines()
    assert lines[0] == "why 'positive' against 'negative' (grad_x_input · minilm)"
    assert [re.split(r"\s+", line.strip())[0] for line in lines[1:]] == ["+0.500", "+0.000", "-0.250"]
    assert lines[1].endswith("great  [+0.400, +0.600]")
    assert lines[1].count("+") == 3 + 12
    assert lines[3].count("-") == 3 + 6
    assert str(ATTRIBUTION) == attribution_text(ATTRIBUTION)


def test_text_shows_the_strongest_words_of_a_long_input():
    n = 40
    words = tuple(f"w{i}" for i in range(n))
    spans = tuple((i, i + 1) for i in range(n))
    long = Attribution("x" * n, words, spans, tuple(float(i) - 20 for i in range(n)), "t")
    text = attribution_text(long, limit=5)
    assert re.findall(r"w\d+", text) == ["w39", "w38", "w2", "w1", "w0"]
    assert "35 more words" in text


def test_html_keeps_the_text_and_marks_the_words():
    page = attribution_html(ATTRIBUTION)
    assert plain(page).endswith(ATTRIBUTION.text)
    marks = re.findall(r'<mark style="background:rgba\((\d+), [^)]*,([\d.]+)\)[^>]*>([^<]*)</mark>', page)
    assert [word for _, _, word in marks] == ["great", "bad"]
    assert marks[0][0] != marks[1][0]  # for and against differ in colour
    assert float(marks[0][1]) == pytest.approx(2 * float(marks[1][1]), abs=0.011)
    assert "&lt;" in page
    assert ATTRIBUTION._repr_html_() == page


def test_no_words_and_zero_scores():
    assert attribution_text(Attribution("", (), (), (), "t")) == "why 't'"
    nothing = Attribution("a b", ("a", "b"), ((0, 1), (2, 3)), (0.0, 0.0), "t")
    assert "<mark" not in attribution_html(nothing)


def test_scores_that_are_no_finite_numbers_are_shown_as_they_are():
    odd = Attribution("a b c d", tuple("abcd"), ((0, 1), (2, 3), (4, 5), (6, 7)), (2.0, math.nan, -math.inf, 1.0), "x")
    text, page = attribution_text(odd), attribution_html(odd)
    assert [word in text for word in ("nan", "-inf", "+2")] == [True] * 3
    assert re.findall(r"<mark[^>]*>(\w)</mark>", page) == [
        "a",
        "c",
        "d",
    ]  # the others keep their strengths; NaN has none


@settings(deadline=None)
@given(
    st.text(),
    st.lists(st.tuples(st.integers(0, 30), st.integers(1, 9), st.floats(-1, 1), st.text(max_size=5)), max_size=6),
)
def test_whatever_is_marked_the_text_stays(text, pieces):
    marks = [Mark(start, start + size, strength, title) for start, size, strength, title in pieces]
    page = marked_html(text, marks)
    assert plain(page) == visible(text)
    assert set(re.findall(r"</?(\w+)", page)) <= {"mark"}


def test_key_words_are_marked_as_whole_words():
    text = "Not a note: C++ is NOT c, don't"
    found = [text[start:end] for start, end, *_ in word_marks(text, ["not", "C++", "don't", " "])]
    assert found == ["Not", "C++", "NOT", "don't"]
    assert word_marks(text, []) == []


def test_cited_words_are_underlined_whatever_their_strength():
    page = marked_html("a weak word", [Mark(2, 6, 0.0, "cited", cited=True), Mark(7, 11, 0.0, "not")])
    assert re.findall(r"<mark[^>]*underline[^>]*>(\w+)</mark>", page) == ["weak"]
    assert page.count("<mark") == 1


def test_control_characters_are_visible():
    assert visible("a\x00b\x1bc\x7f\ud800\n\t") == "a␀b␛c␡�\n\t"

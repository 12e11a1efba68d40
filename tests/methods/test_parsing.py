import pytest
from hypothesis import given
from hypothesis import strategies as st

from amplify.methods.parsing import parse_label, parse_text, shown, split_answer

SENTIMENT = ("positive", "negative")
TICKETS = ("account", "account access", "billing", "bug_report")
LETTERS = ("A", "B", "C")
OPTIONS = ("Paris", "the Seine", "A good place")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The answer is positive.", "positive"),
        ("the answer  is\nNegative", "negative"),
        ("The answer is: **Positive**.", "positive"),
        ('The answer is "negative".', "negative"),
        ("The answer is (positive)", "positive"),
        ("The answer is `negative`!", "negative"),
        ("The answer is _positive_.", "positive"),
        ("The answer is positive, because nothing is negative here.", "positive"),
        ("The answer is positive since the phone is not bad", "positive"),
        ("Some thought.\nThe answer is positive.\n", "positive"),
        ("The answer is The answer is positive.", "positive"),
        ("The answer is positive. So the answer is positive.", "positive"),
        ("positive", "positive"),
        ('"Negative."', "negative"),
        # unparsed
        ("", None),
        ("   ", None),
        ("The answer is", None),
        ("The answer is unclear.", None),
        ("The answer is not positive.", None),
        ("The answer is not **negative**.", None),
        ("The answer is positive or negative.", None),
        ("The answer is positive and negative.", None),
        ("The answer is positive/negative.", None),
        ("The answer is either positive", None),
        ("The answer is positive, not negative.", None),
        ("The answer is positive?", None),
        ("The answer is positively", None),
        ("The answer is positive-ish", None),
        ("The answer is positive's", None),
        ("The answer is nonpositive", None),
        ("The answer is positive review", None),
        ("The answer is positive. The answer is negative.", None),
        ("I do not think the answer is positive.", None),
        ("It isn't clear whether the answer is positive.", None),
        ("The review is positive.", None),
        ("positive negative", None),
        ("The answer is isolated: positive", None),
        ("The answer isn't positive", None),
        ("The answer is one of: positive, negative", None),
    ],
)
def test_fixed_labels(text: str, expected: str | None) -> None:
    assert parse_label(text, SENTIMENT) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The answer is account.", "account"),
        ("The answer is account access.", "account access"),
        ("The answer is Account_Access.", "account access"),
        ("The answer is bug report.", "bug_report"),
        ("The answer is account accessibility.", None),
        ("The answer is accounting.", None),
        ("The answer is billing account.", None),
        ("The answer is billing, account.", None),
    ],
)
def test_labels_that_contain_each_other(text: str, expected: str | None) -> None:
    assert parse_label(text, TICKETS) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The answer is (B).", "B"),
        ("The answer is B.", "B"),
        ("The answer is **(C)**", "C"),
        ("The answer is (A) Paris.", "A"),
        ("The answer is Paris.", "A"),
        ("The answer is the Seine", "B"),
        ("The answer is A good place.", "C"),
        ("The answer is (b)", "B"),
        ("The answer is A: Paris", "A"),
        ("(C)", "C"),
        ("The answer is A great mystery.", None),
        ("The answer is (A) or (B).", None),
        ("The answer is (A), (B)", None),
        ("The answer is (D).", None),
        ("The answer is (A) not (B)", None),
        ("The answer is not (A).", None),
        ("The answer is both (A) and (B)", None),
        ("The answer is Parisian.", None),
    ],
)
def test_letters_of_options(text: str, expected: str | None) -> None:
    assert parse_label(text, LETTERS, options=OPTIONS) == expected


def test_numbers_end_where_they_end() -> None:
    labels = ("4", "45", "4.5")
    assert parse_label("The answer is 4.", labels) == "4"
    assert parse_label("The answer is 4.5.", labels) == "4.5"
    assert parse_label("The answer is 4.7", labels) is None
    assert parse_label("The answer is 455", labels) is None
    assert parse_label("The answer is 4%", labels) is None


def test_labels_that_differ_in_case_only_keep_it() -> None:
    assert parse_label("The answer is us.", ("US", "us")) == "us"
    assert parse_label("The answer is Us.", ("US", "us")) is None


def test_choices_in_brackets_of_their_own() -> None:
    assert parse_label("The answer is (B).", ("(A)", "(B)"), options=("x", "y")) == "(B)"
    assert parse_label("The answer is (B).", ("(A)", "(B)")) == "(B)"
    assert shown("A", True) == "(A)" == shown("(A)", True)
    assert shown("positive", False) == "positive"


def test_another_marker() -> None:
    assert parse_label("Label: positive", SENTIMENT, marker="Label:") == "positive"
    assert parse_label("The answer is positive.", SENTIMENT, marker="Label:") is None
    assert split_answer("Because. Label: x", "Label:") == ("Because.", " x")
    assert split_answer("Because.") is None


def test_free_text() -> None:
    assert parse_text("So the answer is **42**.\nQ: next") == "42"
    assert parse_text("The answer is [ ] ) ]") == "[ ] ) ]"
    assert parse_text("Paris.\nFrance") == "Paris"
    assert parse_text("The answer is   \n") is None
    assert parse_text("") is None


def test_every_label_reads_back_from_its_own_sentence() -> None:
    for labels in (SENTIMENT, TICKETS, ("Yes", "No"), ("valid", "invalid"), ("New York (NY)", "C++", "N/A")):
        for label in labels:
            assert parse_label(f"The answer is {label}.", labels) == label


PIECES = st.sampled_from(
    ["The answer is", "positive", "negative", "not", " ", " ", ".", ",", "?", "\n", "(", ")", "**", '"', "or", "x", ":"]
)


@given(st.lists(PIECES, max_size=14).map("".join))
def test_what_is_parsed_was_written_behind_a_marker_or_alone(text: str) -> None:
    value = parse_label(text, SENTIMENT)
    if value is None:
        return
    lowered = text.lower()
    assert value in lowered
    if "the answer is" in lowered:
        assert value in lowered.split("the answer is", 1)[1]
        assert "not " + value not in lowered.rpartition("the answer is")[2].split(".")[0]
    else:
        other = next(label for label in SENTIMENT if label != value)
        assert other not in lowered

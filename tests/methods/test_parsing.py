import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amplify.methods.parse import parse_label, parse_text, shown, split_answer

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
    assert parse_label("The answer is positive.", SENTIMENT, marker="Label:") == "positive"
    assert parse_label("The answer is positive. Label: negative", SENTIMENT, marker="Label:") == "negative"
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
    other = next(label for label in SENTIMENT if label != value)
    announced = re.split(r"the answer is\b", lowered, maxsplit=1)
    if len(announced) > 1:
        assert value in announced[1]
        assert "not " + value not in lowered.rpartition("the answer is")[2].split(".")[0]
    else:
        assert re.search(rf"\b{value}\b", lowered)
        assert not re.search(rf"\b{other}\b", lowered)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(B) show", "B"),
        ("B) show", "B"),
        ("B. show", "B"),
        ("B: show.", "B"),
        ("B show", "B"),
        ("The answer is (B) show.", "B"),
        ("The answer is (C) salt and pepper.", "C"),
        ("The answer is salt and pepper (C).", "C"),
        ("The answer is (D) not a place", "D"),
        ("The answer is option (B).", "B"),
        ("Option B", "B"),
        ("The correct answer is (B).", "B"),
        ("The best choice is B, because (A) is older.", "B"),
        ("**Answer:** B", "B"),
        ("**Answer: B**", "B"),
        ("Answer: B\n\nExplanation: (A) is wrong.", "B"),
        ("Answer: B\nNote that A is a common distractor.", "B"),
        ('{"answer": "B"}', "B"),
        ("<answer>B</answer>", "B"),
        ("$B$", "B"),
        ("\\boxed{B}", "B"),
        ("$\\boxed{\\text{B}}$", "B"),
        ("**B**", "B"),
        ("Ｂ", "B"),
        ("（B）", "B"),
        ("「B」", "B"),
        ("The answer is B！", "B"),
        ("The answer is B because A is not.", "B"),
        ("The answer is not (A). The answer is (B).", "B"),
        ("The answer is indeed (B).", "B"),
        ("The answer is clearly B.", "B"),
        ("The answer is definitely show.", "B"),
        ("The answer is clearly **(B) show**.", "B"),
        ("The answer is (B), not (A).", "B"),
        ("The answer is B, not A", "B"),
        ("The answer is (B) show, not (A) a vine.", None),  # names the other with its text: not worth a rule
        ("The answer is (B) - not (A).", "B"),
        ("(B), not (A).", "B"),
        ("The answer is B and here is why", "B"),
        ("The answer is B and here's why: A is not.", "B"),
        # refused
        ("The answer is (B), not (B).", None),
        ("The answer is (B), not.", None),
        ("The answer is (B), not sure.", None),
        ("The answer is (B), not (A) but (C).", None),
        ("The answer is (B), not (A) or (C).", None),
        ("The answer is (B), not (A)?", None),
        ("The answer is (B), not (A). The answer is (A).", None),
        ("The answer is clearly not (B).", None),
        ("The answer is not clearly (B).", None),
        ("The answer is clearly (B) or (C).", None),
        ("The answer is clearly a matter of taste", None),
        ("The answer is clearly", None),
        ("The answer is clearly likely (B).", None),
        ("The answer is probably (B).", None),
        ("The answer is most likely (B).", None),
        ("The answer is B and here is why A is right", None),
        ("The answer is B and here is A", None),
        ("A and here is a thing", None),
        ("(B) salt and pepper", None),
        ("The answer is (B) salt and pepper.", None),
        ("The answer is B, C", None),
        ("A, B", None),
        ("B or C", None),
        ("Both A and B", None),
        ("The wrong answer is (B).", None),
        ("(B) show or (C)", None),
        ("The answer is likely (B).", None),
        ("A cat is on the mat", None),
        ("The answer is (A). Wait, no: the answer is (B).", None),
    ],
)
def test_a_letter_with_its_text_and_other_announcements(text: str, expected: str | None) -> None:
    assert (
        parse_label(text, ("A", "B", "C", "D"), options=("a vine", "show", "salt and pepper", "not a place"))
        == expected
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("No, it did not.", "no"),
        ("The answer is No, it did not.", "no"),
        ("The answer is no, it doesn't.", "no"),
        ("The answer is no, not really.", "no"),
        ("Yes, it did.", "yes"),
        ("The answer is Yes, it did not.", None),
        ("The answer is No, I don't know.", None),
        ("No, wait: yes.", None),
        ("No. Yes.", None),
        ("The answer is no. Yes.", None),
        ("Yes and no", None),
        ("Yes, maybe.", None),
        ("No idea", None),
        ("The answer is certainly yes.", "yes"),
        ("The answer is yes, not really.", None),
        ("The answer is yes, not that it matters, no.", None),
        ("The answer is not no", None),
    ],
)
def test_a_denial_that_is_itself_a_label(text: str, expected: str | None) -> None:
    assert parse_label(text, ("yes", "no")) == expected


def test_false_is_not_true() -> None:
    assert parse_label("False, it is not true.", ("True", "False")) == "False"
    assert parse_label("True, it is not false.", ("True", "False")) is None


ZH = ("正面", "负面")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("答案是：负面", "负面"),
        ("答案是正面。", "正面"),
        ("答案是「正面」，因为电池很好。", "正面"),
        ("电池不好，所以答案是负面。", "负面"),
        ("正面。", "正面"),
        ("答案是正面。答案是负面。", None),
        ("答案是正面。负面", None),
        ("答案是正面，不是负面。", None),
        ("答案是不是正面？", None),
        ("我不认为答案是正面。", None),
        ("答案是正面？", None),
        ("不正面", None),
        ("正面的负面", None),
    ],
)
def test_chinese(text: str, expected: str | None) -> None:
    assert parse_label(text, ZH, marker="答案是") == expected


def test_punctuation_of_other_scripts() -> None:
    assert parse_label("सकारात्मक।", ("सकारात्मक", "नकारात्मक")) == "सकारात्मक"
    assert parse_label("الجواب: نعم، لأنه صحيح", ("نعم", "لا"), marker="الجواب:") == "نعم"
    assert parse_label("回答は：ポジティブ！", ("ポジティブ", "ネガティブ"), marker="回答は") == "ポジティブ"
    assert parse_label("บวก", ("บวก", "ลบ")) == "บวก"
    assert parse_label("บวกๆ", ("บวก", "ลบ")) is None


@pytest.mark.parametrize(
    ("labels", "text", "expected"),
    [
        (("May", "may"), "The answer is May.", "May"),
        (("May", "may"), "The answer is MAY.", None),
        (("Zürich", "Zurich"), "The answer is Zu\u0308rich.", "Zürich"),
        (("Zu\u0308rich", "Zurich"), "The answer is ZÜRICH.", "Zu\u0308rich"),
        (("not_spam", "spam"), "The answer is not-spam.", "not_spam"),
        (("not_spam", "not spam"), "The answer is not_spam.", "not_spam"),
        (("not_spam", "not spam"), "The answer is not spam.", "not spam"),
        (("U.S.", "U.K."), "The answer is U.S.", "U.S."),
        (("U.S.", "U.K."), "The answer is U.K..", "U.K."),
        (("C++", "C", "C#"), "The answer is C.", "C"),
        (("C++", "C", "C#"), "The answer is c++.", "C++"),
        (("N/A", "yes/no", "yes"), "The answer is yes/no.", "yes/no"),
        (("-1", "0", "1"), "The answer is −1.", "-1"),
        (("0", "1"), "The answer is -1.", None),
        (("4", "45"), "The answer is 4 5", None),
        (("👍", "👎"), "The answer is 👍.", "👍"),
        (("👍", "👎"), "The answer is 👍🏽.", None),
        (("👍", "👎"), "The answer is 👍👎", None),
        (("a.b", "a|b", "(x)"), "The answer is (x).", "(x)"),
        (("a.b", "a|b", "(x)"), "axb", None),
        (("'good'", '"bad"'), "The answer is 'good'.", "'good'"),
        (("positive", "negative"), "The answer is positive, as well as negative", None),
        (("positive", "negative"), "positive, mixed", "positive"),
        (("positive", "not positive", "positive mixed"), "positive, mixed", None),
        (("positive", "not positive", "positive mixed"), "The answer is positive; mixed", None),
        (("positive", "not positive", "positive mixed"), "The answer is positive (mixed).", None),
        (("positive", "not positive", "positive mixed"), "The answer is positive,mixed.", None),
        (("positive", "not positive", "positive mixed"), "The answer is **positive**, mixed.", None),
        (("positive", "not positive", "positive mixed"), "The answer is positive mixed, indeed.", "positive mixed"),
        (("positive", "not positive", "positive mixed"), "positive, the mix is good", "positive"),
        (("positive", "not positive", "positive mixed"), "positive. Feelings are mixed.", "positive"),
    ],
)
def test_labels_of_all_kinds(labels: tuple[str, ...], text: str, expected: str | None) -> None:
    assert parse_label(text, labels) == expected


def test_what_a_thinking_model_reasons_is_not_read() -> None:
    text = "<think>It could be negative. The answer is negative. Or not.</think> The answer is positive."
    assert parse_label(text, SENTIMENT) == "positive"
    assert parse_label("Well, negative.\n</think>\n\npositive", SENTIMENT) == "positive"
    assert parse_label("<think>\nThe answer is positive at first sight, but", SENTIMENT) is None
    assert parse_text("<think>Rome?</think>Paris.") == "Paris"
    assert parse_text("<think>The answer is Rome") is None


def test_reasons_come_first_where_they_were_asked_for() -> None:
    assert parse_label("No, nothing was said of it.", ("yes", "no")) == "no"
    assert parse_label("No, nothing was said of it.", ("yes", "no"), reasons=True) is None
    assert parse_label("No.", ("yes", "no"), reasons=True) == "no"
    assert parse_label("Nothing was said of it. Answer: no", ("yes", "no"), reasons=True) == "no"
    assert parse_label("It is not good, so the answer is negative.", SENTIMENT) == "negative"


def test_one_reader_takes_many_labels_and_long_texts() -> None:
    labels = tuple(f"label number {i}" for i in range(5_000))
    for i in range(0, 5_000, 5):
        assert parse_label(f"The answer is label number {i}, because.", labels) == f"label number {i}"
    assert parse_label("The answer is" + " " * 100_000 + "positive", SENTIMENT) == "positive"
    assert parse_label(" " * 200_000, SENTIMENT) is None
    assert parse_label("The answer is " * 14_000 + "positive", SENTIMENT) == "positive"
    assert parse_label("(" * 100_000, SENTIMENT) is None
    assert parse_label("The answer is positive" + ", no" * 20_000 + ", negative", SENTIMENT) is None

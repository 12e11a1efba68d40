"""Agreement with people's highlights, in a file of our own in the layout of e-SNLI."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest

from amplify.attribution.agreement import Highlighted, agreement, load_esnli
from amplify.attribution.words import word_spans
from amplify.errors import DataError, InputError
from amplify.types import Attribution, Example

COLUMNS = [
    *("pairID", "gold_label", "Sentence1", "Sentence2", "Explanation_1"),
    *("Sentence1_marked_1", "Sentence2_marked_1", "Sentence1_marked_2", "Sentence2_marked_2"),
]
ROWS = [
    (
        *("1", "contradiction", "A baker sells bread at dawn.", "The baker is asleep.", "Nobody sells in their sleep."),
        *(
            "A baker *sells* bread at dawn.",
            "The baker is *asleep.*",
            "A baker *sells* *bread* at dawn.",
            "The baker is *asleep*.",
        ),
    ),
    (
        *("2", "entailment", "Two gulls circle the ship.", "Birds circle.", "Gulls are birds."),
        *("Two *gulls* circle the ship.", "*Birds* circle.", "", ""),
    ),
    ("3", "-", "Nobody agrees.", "On this.", "", "*Nobody* agrees.", "On this.", "", ""),
    ("4", "neutral", "Nothing marked.", "Nothing at all.", "", "Nothing marked.", "Nothing at all.", "", ""),
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "dev.csv"
    with path.open("w", newline="", encoding="utf-8") as out:
        csv.writer(out).writerows([COLUMNS, *ROWS])
    return path


def marked(item: Highlighted, annotator: int) -> list[str]:
    return [item.example.text[a:b] for a, b in item.spans[annotator]]


def test_the_layout_is_read(file: Path):
    first, second = load_esnli(file)
    assert (first.example.id, first.example.label) == ("1", "contradiction")
    assert first.example.text == "A baker sells bread at dawn.\nThe baker is asleep."
    assert marked(first, 0) == ["sells", "asleep"]
    assert marked(first, 1) == ["sells", "bread", "asleep"]
    assert len(second.spans) == 1, "an annotator without a mark is none"
    assert marked(second, 0) == ["gulls", "Birds"]


def attributed(text: str, scores: dict[str, float]) -> Attribution:
    spans = word_spans(text)
    words = tuple(text[a:b] for a, b in spans)
    return Attribution(text, words, spans, tuple(scores.get(w, 0.0) for w in words), "entailment")


def test_perfect_and_worst_agreement(file: Path):
    item = load_esnli(file)[1]
    text = item.example.text
    good = agreement([attributed(text, {"gulls": 2, "Birds": 1})], [item])
    assert good.f1.mean == good.auprc.mean == 1.0
    bad = agreement([attributed(text, {"gulls": -2, "Birds": -1})], [item])
    assert bad.f1.mean == 0.0
    # the two marked words come last of seven: precision 1/6 at the first, 2/7 at the second
    assert bad.auprc.mean == pytest.approx((1 / 6 + 2 / 7) / 2)


def test_annotators_are_averaged_and_unscored_words_come_last(file: Path):
    item = load_esnli(file)[0]
    text = item.example.text
    at = text.index("sells")
    only = Attribution(text, ("sells",), ((at, at + 5),), (1.0,), "contradiction")
    found = agreement([only], [item])
    # k = 2 and 3: "sells", then in order of appearance "A" and "baker"
    assert found.f1.mean == pytest.approx((1 / 2 + 1 / 3) / 2)


def test_random_scores_come_to_the_share_of_marked_words():
    text = " ".join(f"w{i}" for i in range(20))
    spans = word_spans(text)
    item = Highlighted(Example("x", text, "neutral"), (spans[3:8],))
    found = agreement([attributed(text, {})], [item], draws=2000)
    # hypergeometric: variance of the share 5/20 is below 0.03, 2,000 draws give a standard error below 0.004
    assert found.random_f1.mean == pytest.approx(5 / 20, abs=0.016)
    assert "20" not in str(found).splitlines()[0]
    assert "1 items" in str(found)


def test_explanations_that_see_more_agree_more():
    rng = np.random.default_rng(0)
    items, near, far = [], [], []
    for i in range(30):
        text = " ".join(f"w{j}" for j in rng.permutation(15))
        spans = word_spans(text)
        chosen = tuple(spans[j] for j in sorted(rng.choice(15, 4, replace=False)))
        items.append(Highlighted(Example(str(i), text, "neutral"), (chosen,)))
        truth = np.array([span in chosen for span in spans])
        words = tuple(text[a:b] for a, b in spans)
        near.append(Attribution(text, words, spans, tuple(truth + rng.normal(0, 0.3, 15)), "neutral"))
        far.append(Attribution(text, words, spans, tuple(rng.normal(size=15)), "neutral"))
    good, chance = agreement(near, items), agreement(far, items)
    assert good.auprc.low > good.random_auprc.high
    assert chance.auprc.low <= chance.random_auprc.high


def test_errors(file: Path, tmp_path: Path):
    item = load_esnli(file)[0]
    with pytest.raises(DataError, match="cannot be read"):
        load_esnli(tmp_path / "none.csv")
    bad = tmp_path / "bad.csv"
    bad.write_text("pairID,gold_label\n1,neutral\n")
    with pytest.raises(DataError, match="Sentence1"):
        load_esnli(bad)
    text = file.read_text().replace("*gulls*", "*goats*")
    bad.write_text(text)
    with pytest.raises(DataError, match="goats"):
        load_esnli(bad)
    with pytest.raises(InputError, match="one each"):
        agreement([], [item])
    with pytest.raises(InputError, match="another text"):
        agreement([attributed("other words", {})], [item])
    with pytest.raises(InputError, match="not finite"):
        agreement([attributed(item.example.text, {"sells": math.nan})], [item])

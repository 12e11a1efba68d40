from pathlib import Path

import numpy as np
import pytest

from amplify import templates
from amplify.errors import InputError, UnknownNameError
from amplify.rationales import others, random_words, rationalize, tfidf_words
from amplify.rationales.wording import opening, verbalise
from amplify.types import Attribution


def made(text: str, scores: dict[str, float], target: str = "positive") -> Attribution:
    words = text.split()
    starts = np.cumsum([0] + [len(w) + 1 for w in words])
    spans = tuple((int(a), int(a) + len(w)) for a, w in zip(starts, words, strict=False))
    return Attribution(text, tuple(words), spans, tuple(scores.get(w, 0.0) for w in words), target, foil="negative")


REVIEW = made("dull start but superb end and lovely music", {"superb": 3.0, "lovely": 2.0, "music": 0.5, "dull": -4.0})


def test_key_words_come_highest_first() -> None:
    rationale = rationalize(REVIEW, k=3)
    assert rationale.words == ("superb", "lovely", "music")
    assert rationale.text == 'The key words: "superb", "lovely", "music" point to positive.'
    assert rationale.kind == "key_words"
    assert rationale.attribution is REVIEW


def test_the_wording_of_the_paper() -> None:
    text = rationalize(REVIEW, "paper", k=2, label="(A)").text
    assert text == 'The key words: "superb", "lovely" are important clues to predict (A) as the correct answer.'


def test_every_template_and_an_own_one(tmp_path: Path) -> None:
    own = tmp_path / "own.jinja"
    own.write_text("{{ words | join(' & ') }} => {{ label }}, not {{ foil }}\n")
    assert rationalize(REVIEW, str(own), k=2).text == "superb & lovely => positive, not negative"
    assert rationalize(REVIEW, "words_only", k=2).text == "Key words: superb, lovely."
    with pytest.raises(UnknownNameError, match="Did you mean 'key_words'"):
        rationalize(REVIEW, "keywords")
    own.write_text("{{ word }}")
    with pytest.raises(InputError, match=r"'word' is undefined.*foil, label, shares, text, words"):
        rationalize(REVIEW, str(own))


def test_fewer_words_than_asked_for() -> None:
    short = made("Bad bad phone", {"Bad": 1.0, "bad": 2.0, "phone": 1.5})
    assert rationalize(short, k=5).words == ("bad", "phone")
    assert len(rationalize(REVIEW, k=50, positive=False).words) == 8


def test_only_words_that_speak_for_the_target() -> None:
    assert rationalize(REVIEW, k=5).words == ("superb", "lovely", "music")
    mixed = made("so SO dull", {"so": -1.0, "SO": 1.0, "dull": -2.0})
    assert rationalize(mixed, k=5).words == ("SO",)
    with pytest.raises(InputError, match=r"no word of 'dull' speaks for 'positive'.*positive=False"):
        rationalize(made("dull", {"dull": -1.0}))
    assert rationalize(made("dull", {"dull": -1.0}), positive=False).words == ("dull",)


def test_no_words_is_an_error() -> None:
    with pytest.raises(InputError, match="no word to cite"):
        rationalize(Attribution("it is", (), (), (), "positive"))
    with pytest.raises(InputError, match="at least one word"):
        rationalize(REVIEW, k=0)


@pytest.mark.parametrize(
    ("name", "start"), [("key_words", "The key words:"), ("paper", "The key words:"), ("words_only", "Key words:")]
)
def test_opening_is_how_every_rationale_begins(name: str, start: str) -> None:
    assert opening(templates.load("rationale", name)) == start
    assert rationalize(REVIEW, name).text.startswith(start)


def test_random_words_are_seeded_words_of_the_example() -> None:
    drawn = [random_words(REVIEW, 3, seed) for seed in range(30)]
    assert all(len(set(words)) == 3 and set(words) <= set(REVIEW.words) for words in drawn)
    assert drawn[0] == random_words(REVIEW, 3, 0)
    assert len(set(drawn)) > 10
    assert {word for words in drawn for word in words} == set(REVIEW.words)
    assert random_words(made("Bad bad", {}), 5, 0) == ("Bad",)


def test_random_words_are_uniform() -> None:
    counts = dict.fromkeys(REVIEW.words, 0)
    for seed in range(4000):
        for word in random_words(REVIEW, 2, seed):
            counts[word] += 1
    # each word is drawn with probability 2/8: 1000 +- 5 standard deviations (27.4)
    assert all(abs(count - 1000) < 137 for count in counts.values())


def test_tfidf_agrees_with_scikit_learn() -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer

    from amplify.attribution.words import word_spans

    corpus = ["the phone is great", "the battery is poor", "great music and great sound", "the screen broke"]
    text = "the great phone broke and broke the battery"
    reference = TfidfVectorizer(norm=None, tokenizer=str.split, token_pattern=None).fit(corpus)
    weights = reference.transform([text]).toarray()[0]
    order = sorted(set(text.split()), key=lambda w: (-weights[reference.vocabulary_[w]], text.index(w)))
    spans = word_spans(text)
    plain = Attribution(text, tuple(text[a:b] for a, b in spans), spans, (0.0,) * len(spans), "x")
    assert tfidf_words([plain], [4], corpus)[0] == tuple(order[:4])


def test_another_items_words() -> None:
    items = [(f"w{i}",) for i in range(7)]
    for seed in range(20):
        mixed = others(items, seed)
        assert sorted(mixed) == sorted(items)
        assert all(a != b for a, b in zip(items, mixed, strict=True))
    assert others(items, 1) == others(items, 1) != others(items, 2)
    with pytest.raises(InputError, match="at least two"):
        others(items[:1], 0)


def test_verbalise_keeps_the_target() -> None:
    assert verbalise(("sound",), REVIEW).text == 'The key words: "sound" point to positive.'

"""Verbalisers cite what is in the input and in the attribution; narrations that do not are not used."""

import re
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import amplify
from amplify.attribution.words import word_spans
from amplify.errors import InputError
from amplify.models.scripted import ScriptedGenerator
from amplify.rationales import rationalize
from amplify.rationales.salience import SEARCHES, convolution, maximal_stretches, phrases, shares, span, total_order
from amplify.rationales.wording import check_narration, narrate
from amplify.types import Attribution


def made(text: str, scores: dict[str, float] | list[float], foil: str | None = "negative") -> Attribution:
    spans = word_spans(text)
    words = tuple(text[a:b] for a, b in spans)
    values = [scores.get(w, 0.0) for w in words] if isinstance(scores, dict) else scores
    return Attribution(text, words, spans, tuple(values), "positive", foil)


REVIEW = made(
    "A dull start, but the superb end and lovely music saved it. Lovely 3.5 stars.",
    {"superb": 4.0, "end": 1.0, "lovely": 3.0, "music": 2.0, "dull": -5.0},
)


def test_each_search_on_a_text_one_can_check() -> None:
    assert next((p.text, round(p.coverage, 3)) for p in convolution(REVIEW, 5)) == ("superb end", 0.5)
    assert [(p.text, round(p.coverage, 3)) for p in convolution(REVIEW, 5, width=6)] == [
        ("superb end and lovely music", 1.0)
    ]
    assert [(p.text, round(p.coverage, 3)) for p in span(REVIEW, 5)] == [("superb end and lovely music", 1.0)]
    assert [(p.text, p.coverage) for p in total_order(REVIEW, 2)] == [("superb", 0.4), ("lovely", 0.3)]
    assert [p.text for p in phrases(REVIEW, 4)] == ["superb end", "lovely music"]
    assert [p.text for p in phrases(REVIEW, 3)] == ["superb", "lovely music"]


def test_sentences() -> None:
    assert rationalize(REVIEW, "span").text == (
        'The phrase "superb end and lovely music" is most important for positive (100% of the weight).'
    )
    assert rationalize(REVIEW, "total_order", k=2, label="(A)").text == (
        'In order of weight: "superb" (40%), "lovely" (30%); they point to (A).'
    )
    assert (
        rationalize(REVIEW, "phrases", k=4).text == 'The key phrases: "superb end", "lovely music" point to positive.'
    )
    words = rationalize(REVIEW, "key_words", k=2)
    assert (words.shares, words.coverage) == ((0.4, 0.3), pytest.approx(0.7))
    assert amplify.rationalize is rationalize


def test_a_phrase_stays_in_its_clause() -> None:
    torn = made("It was superb. Lovely music", {"superb": 1.0, "Lovely": 1.0, "music": 1.0})
    for search in (convolution, span, phrases):
        assert not any("." in p.text for p in search(torn, 5)), search


def test_nothing_that_speaks_for_the_target() -> None:
    bad = made("A dull start", {"dull": -1.0})
    for name in ("key_words", "phrases", "span", "convolution", "total_order"):
        with pytest.raises(InputError, match="no word of 'A dull start' speaks for 'positive'"):
            rationalize(bad, name)


texts = st.lists(st.sampled_from(["red", "fox", "the", "dog.", "runs", "far,", "now;", "Red"]), min_size=1, max_size=14)


@settings(max_examples=200, deadline=None)
@given(texts, st.data())
def test_faithful_by_construction(parts: list[str], data: st.DataObject) -> None:
    text = " ".join(parts)
    n = len(word_spans(text))
    scores = data.draw(st.lists(st.sampled_from([-2.0, -0.5, 0.0, 0.25, 1.0, 3.0]), min_size=n, max_size=n))
    k = data.draw(st.integers(1, 6))
    a = made(text, scores)
    share = shares(a)
    if not share.any():
        return
    for name, search in SEARCHES.items():
        found = search(a, k)
        assert 1 <= len(found) <= k
        for p in found:
            assert text[p.start : p.end] == p.text
            inside = [i for i, (s, e) in enumerate(a.spans) if p.start <= s and e <= p.end]
            assert p.coverage == pytest.approx(share[inside].sum())
        for p, q in combinations(found, 2):
            assert p.end <= q.start or q.end <= p.start, "two phrases overlap"
        if name != "phrases":
            assert all(p.coverage >= q.coverage - 1e-9 for p, q in pairwise(found))
        rationale = rationalize(a, name, k)
        assert sum(rationale.shares) <= 1 + 1e-9
        assert all(word in text for word in rationale.words)
        numbers = [int(x) for x in re.findall(r"(\d+)%", rationale.text)]
        want = {round(100 * x) for x in (*rationale.shares, rationale.coverage)}
        assert set(numbers) <= want


def test_windows_are_kept_from_the_75th_percentile_of_coverage() -> None:
    rng = np.random.default_rng(0)
    text = " ".join(f"w{i}" for i in range(40))
    a = made(text, rng.random(40).tolist())
    share = shares(a)
    every = [share[i : i + 3].sum() for i in range(38)]
    found = convolution(a, 40)
    assert min(p.coverage for p in found) >= np.percentile(every, 75) - 1e-9
    assert max(p.coverage for p in found) == pytest.approx(max(every))


def brute_stretches(scores: list[float], offset: int = 0) -> list[tuple[int, int]]:
    """By definition: the best contiguous sum (the shortest of equals), then the same to its left and right."""
    best = max(
        ((sum(scores[a:b]), a - b, a, b) for a in range(len(scores)) for b in range(a + 1, len(scores) + 1)),
        key=lambda x: (round(x[0], 9), x[1]),
        default=(0.0, 0, 0, 0),
    )
    if best[0] <= 1e-12:
        return []
    _, _, a, b = best
    return [*brute_stretches(scores[:a], offset), (offset + a, offset + b), *brute_stretches(scores[b:], offset + b)]


def test_maximal_stretches_agree_with_their_definition() -> None:
    rng = np.random.default_rng(1)
    for _ in range(300):
        scores = rng.normal(size=rng.integers(1, 12)).tolist()
        assert maximal_stretches(scores) == brute_stretches(scores)
    assert maximal_stretches([4, -5, 3, -3, 1, 2, -2, 2, -2, 1, 5]) == [(0, 1), (2, 3), (4, 11)]  # the paper's own


GOOD = 'The review was judged positive because of "superb" and "lovely".'
NARRATIONS = {
    GOOD: None,
    'It is positive: "superb end" holds 40% of the weight.': None,
    'It is "positive", not "negative", for its “lovely music” (3.5 stars).': None,
    "It is positive for **superb** and `lovely`, and it's 'music'.": None,
    "It is positive because the film is superb.": "cites no word",
    'It is positive because of "terrific".': "not in the input",
    'It is positive because of "perb".': "not in the input",
    'It is positive because of "superb music".': "not in the input",
    'It is positive despite "dull".': "not among the words",
    'It is positive because of "it".': "not among the words",
    'It is positive because of "superb" (45%).': "number 45",
    'It is positive: "superb" twice.': "number 'twice'",
    'Because of "superb" I liked it.': "does not name",
    'It is positively "superb".': "does not name",
}


@pytest.mark.parametrize(("text", "fault"), NARRATIONS.items())
def test_every_cited_word_and_number_is_checked(text: str, fault: str | None) -> None:
    told = rationalize(REVIEW, k=4)
    found = check_narration(text, REVIEW, told, "positive")
    assert (found is None) if fault is None else (found is not None and fault in found), found


def test_what_fails_falls_back_and_is_counted() -> None:
    said = iter([GOOD, 'Positive: "brilliant".', "Positive.", 'Positive: "superb".', "Positive: nothing."])
    model = ScriptedGenerator(reply=lambda text: next(said))
    result = narrate([REVIEW] * 3, model, k=4)
    assert [r.kind for r in result.rationales] == ["narrated", "narrated", "key_words"]
    assert result.rationales[0].words == ("superb", "lovely")
    assert result.rationales[0].shares == (0.4, 0.3)
    assert result.rationales[2] == rationalize(REVIEW, k=4)
    assert dict(result.fallbacks) == {2: "it cites no word"}
    assert result.calls == len(model.calls) == 5
    assert '- "superb" (40%)' in model.texts[0]


def test_retries_are_bounded_and_a_cut_narration_fails() -> None:
    model = ScriptedGenerator("say=Positive.")
    assert narrate([REVIEW], model, retries=2).calls == 3
    cut = narrate([REVIEW], ScriptedGenerator(reply=lambda _: GOOD + " more" * 96), retries=0)
    assert dict(cut.fallbacks) == {0: "it was cut off"}
    assert rationalize(REVIEW, "narrated", model=model).kind == "key_words"
    with pytest.raises(InputError, match="needs model="):
        rationalize(REVIEW, "narrated")
    with pytest.raises(InputError, match="no word of 'A dull start' speaks for"):
        narrate([made("A dull start", {"dull": -1.0})], model)

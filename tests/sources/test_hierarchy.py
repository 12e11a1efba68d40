"""Documents, sentences, words: scores of parts against closed forms and brute force, under one budget."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from amplify import templates
from amplify.errors import InputError
from amplify.shapley.exact import all_coalitions, exact_scores
from amplify.shapley.given import given_scores
from amplify.shapley.sampling import prefixes
from amplify.sources.context import Context, Selection
from amplify.sources.frames import asking
from amplify.sources.hierarchy import Settings, explain
from amplify.sources.orders import random_order_scores
from amplify.sources.parts import Scored

DOCUMENTS = ("Gold lies here. Nothing else does. More is less.", "Silver is cheap. Iron too.", "Salt. Pepper. Oil.")


class Counted:
    """A game by a function of the documents' texts, in their order, that counts what it is asked."""

    def __init__(self, context: Context, function) -> None:  # type: ignore[no-untyped-def]
        self.context, self.function = context, function
        self.asked: set[Selection] = set()

    def of(self, selections) -> np.ndarray:  # type: ignore[no-untyped-def]
        self.asked |= set(selections)
        return np.array([np.atleast_1d(self.function(self.context.texts(s))) for s in selections], float)


def context(documents=DOCUMENTS) -> Context:  # type: ignore[no-untyped-def]
    return asking("q", tuple(documents), templates.load("sources", "default"))


def worth(texts: list[str]) -> float:
    """Words are worth something each, so all scores are known."""
    values = {"Gold": 6.0, "lies": 1.0, "Silver": 2.0, "Pepper": -3.0}
    return sum(v for w, v in values.items() if any(w in t for t in texts))


def together(texts: list[str]) -> float:
    """Gold and silver count only together, and gold alone a little."""
    text = " ".join(texts)
    return 4.0 * ("Gold" in text and "Silver" in text) + 1.0 * ("Gold" in text)


def by_words(game: Counted, level: Scored) -> dict[str, float]:
    texts = [game.context.documents[p.document][p.start : p.end].strip() for p in level.parts]
    return dict(zip(texts, level.scores[:, 0].tolist(), strict=True))


def test_an_additive_game_is_scored_at_every_level() -> None:
    game = Counted(context(), worth)
    found = explain(game.of, game.context, Settings(budget=200, thresholds=(0.05, 0.05)))
    assert found.levels["documents"].scores[:, 0] == pytest.approx([7.0, 2.0, -3.0])
    level = found.levels["sentences"]
    by_text = by_words(game, level)
    assert by_text["Gold lies here."] == pytest.approx(7.0, abs=1e-6)
    assert by_text["Silver is cheap."] == pytest.approx(2.0, abs=1e-6)
    assert by_text["Iron too."] == pytest.approx(0.0, abs=1e-6)
    # a document whose score is below the threshold is not opened
    assert "Pepper." not in by_text
    level = found.levels["words"]
    words = by_words(game, level)
    assert words["Gold"] == pytest.approx(6.0, abs=1e-6)
    assert words["lies"] == pytest.approx(1.0, abs=1e-6)


def test_children_share_out_their_parents_score() -> None:
    rng = np.random.default_rng(0)
    noise = {}

    def noisy(texts: list[str]) -> list[float]:
        return noise.setdefault("|".join(texts), [together(texts) + rng.normal(), *rng.normal(size=1)])

    game = Counted(context(), noisy)
    found = explain(game.of, game.context, Settings(budget=60, thresholds=(-9.0, -9.0)))
    for above, below in itertools.pairwise(found.levels.values()):
        for parent, score in zip(above.parts, above.scores, strict=True):
            inside = [
                k
                for k, p in enumerate(below.parts)
                if p.document == parent.document and parent.start <= p.start and p.end <= parent.end
            ]
            if inside:
                assert below.scores[inside].sum(axis=0) == pytest.approx(score, abs=1e-9)
    top = found.levels["documents"].scores.sum(axis=0)
    assert top == pytest.approx(found.ends[1] - found.ends[0], abs=1e-6)


def owen(context: Context, function, document: int, parts: list[tuple[int, int]]) -> np.ndarray:  # type: ignore[no-untyped-def]
    """Owen values of a document's parts by going through all orders of documents, and of parts within its slot."""
    n = len(context.documents)
    whole = context.everything()
    total = np.zeros(len(parts))
    count = 0
    for order in itertools.permutations(range(n)):
        before = list(order[: order.index(document)])
        for inner in itertools.permutations(range(len(parts))):
            count += 1
            for k, j in enumerate(inner):
                values = []
                for members in (inner[: k + 1], inner[:k]):
                    texts = {d: context.texts((whole[d],))[0] for d in before}
                    if members:
                        ranges = sorted(parts[m] for m in members)
                        texts[document] = "".join(context.documents[document][a:b] for a, b in ranges)
                    values.append(function([texts[d] for d in sorted(texts)]))
                total[j] += values[0] - values[1]
    return total / count


def either(texts: list[str]) -> float:
    """Gold counts with silver or salt, less without a sentence of its own document."""
    text = " ".join(texts)
    return 3.0 * ("Gold" in text and ("Silver" in text or "Salt" in text)) + 2.0 * ("Gold" in text and "More" in text)


@pytest.mark.parametrize("function", [together, either])
def test_sentences_get_their_owen_values(function) -> None:  # type: ignore[no-untyped-def]
    game = Counted(context(), function)
    found = explain(game.of, game.context, Settings(budget=1000, granularity="sentences", thresholds=(0.01, 0.01)))
    level = found.levels["sentences"]
    for document in (0, 1):
        rows = [k for k, p in enumerate(level.parts) if p.document == document]
        parts = [(level.parts[k].start, level.parts[k].end) for k in rows]
        assert level.scores[rows, 0] == pytest.approx(owen(game.context, function, document, parts), abs=1e-6)


@pytest.mark.parametrize("granularity", ["documents", "sentences", "words"])
@pytest.mark.parametrize("order", ["fixed", "random"])
@pytest.mark.parametrize("n", [3, 6, 20])
def test_the_budget_is_never_exceeded(granularity, order, n) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(1)
    documents = [" ".join(f"W{i}x{j} stands here." for j in range(rng.integers(1, 6))) for i in range(n)]
    for budget in (2, 3, 5, 6, 7, 8, 11, 14, 15, 23, 31, 63):
        if order == "random" and budget < 4 * (n + 1):
            continue  # the documents' share does not hold one order
        game = Counted(context(documents), lambda texts: float(len(" ".join(texts)) % 7))
        found = explain(game.of, game.context, Settings(budget=budget, granularity=granularity, order=order))
        assert len(game.asked) <= budget
        assert found.levels["documents"].scores.shape == (n, 1)


def test_a_part_is_opened_for_any_column() -> None:
    """What drives another answer only is opened too, where it is asked for before the parts are."""
    game = Counted(context(), worth)
    other = Counted(context(), lambda texts: 9.0 * any("Pepper" in t for t in texts))
    found = explain(
        game.of, game.context, Settings(budget=60, granularity="sentences", thresholds=(5.0, 5.0), relative=False)
    )
    assert {s.document for s in found.levels["sentences"].parts} == {0}
    also = explain(
        game.of,
        game.context,
        Settings(budget=60, granularity="sentences", thresholds=(5.0, 5.0), relative=False),
        also=lambda: other.of,
    )
    assert also.levels["documents"].scores.shape == (3, 2)
    assert also.levels["documents"].scores[:, 0] == pytest.approx(found.levels["documents"].scores[:, 0])
    assert {s.document for s in also.levels["sentences"].parts} == {0, 2}
    assert other.asked <= game.asked
    assert len(game.asked) <= 60
    alone = explain(game.of, game.context, Settings(budget=60, granularity="sentences"), also=lambda: None)
    assert alone.levels["documents"].scores.shape == (3, 1)


@pytest.mark.parametrize("n", [20, 50, 100])
def test_many_documents_are_scored_in_groups_first(n) -> None:  # type: ignore[no-untyped-def]
    documents = [f"Document number {i} says little." for i in range(n)]
    documents[7] = "The treasure is here."
    documents[n - 3] = "And the key to it is there."

    def found_it(texts: list[str]) -> float:
        return 1.0 * any("treasure" in t for t in texts) + 2.0 * any("key" in t for t in texts)

    game = Counted(context(documents), found_it)
    result = explain(game.of, game.context, Settings(budget=64, granularity="documents"))
    scores = result.levels["documents"].scores[:, 0]
    assert len(game.asked) <= 64
    assert scores.sum() == pytest.approx(3.0, abs=1e-6)
    assert np.argsort(-scores)[:2].tolist() == [n - 3, 7]
    if n >= 50:
        assert result.meta["groups"]


def test_other_columns_from_the_same_sample_cost_nothing() -> None:
    game = Counted(context(), together)
    explain(game.of, game.context, Settings(budget=40, granularity="documents"))
    before = set(game.asked)
    both = Counted(context(), worth)
    found = explain(game.of, game.context, Settings(budget=40, granularity="documents"), also=lambda: both.of)
    assert game.asked == before == both.asked
    assert found.levels["documents"].scores[:, 1] == pytest.approx([7.0, 2.0, -3.0], abs=1e-6)
    assert found.ends[:, 1] == pytest.approx([0.0, 6.0])


def order_game(texts: list[str]) -> float:
    """Silver is worth more when it comes before gold."""
    places = {w: next((i for i, t in enumerate(texts) if w in t), None) for w in ("Gold", "Silver")}
    if places["Gold"] is None or places["Silver"] is None:
        return 0.0
    return 1.0 + (places["Silver"] < places["Gold"])


def test_random_order_estimates_the_shapley_value_over_orders() -> None:
    """n = 3, so w(S) = mean over the orders of S is known: its exact Shapley values."""
    c = context()
    held = all_coalitions(3)
    w = []
    for row in held:
        members = np.flatnonzero(row)
        texts = [[c.texts((c.everything()[d],))[0] for d in order] for order in itertools.permutations(members)]
        w.append(np.mean([order_game(t) for t in texts]))
    exact = exact_scores(np.array(w))
    game = Counted(c, order_game)
    found = explain(game.of, c, Settings(budget=2000, granularity="documents", order="random"))
    # 666 orders: the standard error of the mean over orders is at most 0.5 / sqrt(666) = 0.02
    assert found.levels["documents"].scores[:, 0] == pytest.approx(exact, abs=0.08)


def test_append_is_the_mean_change_along_the_orders() -> None:
    orders = np.array(list(itertools.permutations(range(3))))
    value = np.random.default_rng(0).normal(size=8)
    held = all_coalitions(3)
    table = {row.tobytes(): v for row, v in zip(held, value, strict=True)}
    values = np.array([[[table[row.tobytes()]] for row in prefixes(o)] for o in orders])
    # where order does not matter, all orders give the Shapley values
    scores, half, used = random_order_scores(orders, values, "append")
    assert scores[:, 0] == pytest.approx(exact_scores(value))
    assert used == "permutation"
    assert (half >= 0).all()
    for estimator in ("auto", "kernel_shap"):
        scores, _, _ = random_order_scores(orders, values, "shapley", estimator)
        assert scores[:, 0] == pytest.approx(exact_scores(value), abs=1e-6)
    with pytest.raises(InputError, match="chooses its own coalitions"):
        random_order_scores(orders, values, "shapley", "lasso")


def test_scores_from_given_values() -> None:
    rng = np.random.default_rng(0)
    held = all_coalitions(4)[rng.permutation(16)]
    values = rng.normal(size=(16, 2))
    lookup = np.empty((16, 2))
    lookup[held @ (1 << np.arange(4))] = values
    scores, half = given_scores(held, values, "shapley")
    assert scores == pytest.approx(exact_scores(lookup))
    assert (half == 0).all()
    # twice the same coalition counts with its mean
    twice, _ = given_scores(np.concatenate([held, held]), np.concatenate([values, values + 2]), "shapley")
    assert twice == pytest.approx(scores)
    linear = held @ np.array([1.0, -2.0, 3.0, 0.5])
    some, _ = given_scores(held[:9], linear[:9, None], "banzhaf")
    assert some[:, 0] == pytest.approx([1.0, -2.0, 3.0, 0.5], abs=0.05)


def test_too_small_a_budget_for_one_order_says_so() -> None:
    game = Counted(context(), worth)
    with pytest.raises(InputError, match="one random order of 3 documents asks 4"):
        explain(game.of, game.context, Settings(budget=3, granularity="documents", order="random"))


@pytest.mark.parametrize("estimator", ["auto", "kernel_shap"])
def test_intervals_of_random_orders_cover_the_exact_scores(estimator) -> None:  # type: ignore[no-untyped-def]
    """Games of main effects, pairs, and pairs that depend on who comes first; w and its scores in closed form."""
    n, inside, total = 5, 0, 0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        own, first = 2 * rng.normal(size=n), rng.normal(size=(n, n))  # first[i, j]: both are there and i precedes j

        def value(order, own=own, first=first) -> float:  # type: ignore[no-untyped-def]
            return own[list(order)].sum() + sum(first[i, j] for i, j in itertools.combinations(order, 2))

        exact = own + np.array([(first[i] + first[:, i]).sum() - 2 * first[i, i] for i in range(n)]) / 4
        drawn = [rng.permutation(n) for _ in range(5)]
        orders = np.array([o for d in drawn for o in (d, d[::-1])])
        values = np.array([[[value(o[:k])] for k in range(n + 1)] for o in orders])
        scores, half, _ = random_order_scores(orders, values, "shapley", estimator)
        inside += int((np.abs(scores[:, 0] - exact) <= half[:, 0]).sum())
        total += n
    # 95 % intervals; 150 scores have a standard error of 2 points, and 4 of those are given
    assert inside / total >= 0.87


def test_intervals_of_sentences_cover_their_owen_values() -> None:
    names = [f"{d} {k}." for d in "ABC" for k in ("one", "two", "three")]
    inside = total = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        single = dict(zip(names, 2 * rng.normal(size=len(names)), strict=True))
        pairs = {tuple(rng.choice(names, 2)): 2 * rng.normal() for _ in range(10)}

        def value(texts: list[str], single=single, pairs=pairs) -> float:  # type: ignore[no-untyped-def]
            text = " ".join(texts)
            both = (v for (a, b), v in pairs.items() if a in text and b in text)
            return sum(v for k, v in single.items() if k in text) + sum(both)

        game = Counted(context(["A one. A two. A three.", "B one. B two. B three.", "C one. C two. C three."]), value)
        level = explain(
            game.of, game.context, Settings(budget=40, granularity="sentences", thresholds=(-9.0, -9.0), seed=seed)
        )
        found = level.levels["sentences"]
        for document in range(3):
            rows = [k for k, p in enumerate(found.parts) if p.document == document]
            if rows:
                parts = [(found.parts[k].start, found.parts[k].end) for k in rows]
                error = np.abs(found.scores[rows, 0] - owen(game.context, value, document, parts))
                inside += int((error <= found.half[rows, 0] + 1e-9).sum())
                total += len(rows)
    assert total > 100
    assert inside / total >= 0.9


COPIES = (
    "The H3 carries two years. It covers the boiler. It does not cover gaskets.",
    "The H3 has two years. This covers the pump. Limescale is not covered.",
    "Machines may be returned. Opened ones cost a fee. Return shipping is free.",
    "It began in Trondheim. The company moved. It employs many.",
    "Descale the machine. Use forty grams. Never use vinegar.",
    "Orders are shipped. Express costs more. They ship to many countries.",
)


def _copies(seed: int):  # type: ignore[no-untyped-def]
    """A fact that stands in two documents, an effect of each other sentence, and what none of them explains."""
    pieces = [piece for text in COPIES for piece in text.replace(". ", ".|").split("|")]
    rng = np.random.default_rng(seed)
    own = dict(zip(pieces, rng.normal(scale=0.3, size=len(pieces)), strict=True))
    own |= {"It covers the boiler.": 0.0, "The H3 carries two years.": 0.0, "The H3 has two years.": 0.0}
    odd = dict(zip(pieces, rng.normal(size=len(pieces)), strict=True)) | {"It covers the boiler.": 0.0}

    def value(texts: list[str]) -> float:
        text = " ".join(texts)
        there = [piece for piece in pieces if piece in text]
        fact = 25.0 * ("carries two" in text or "has two" in text) + ("carries two" in text and "has two" in text)
        return fact + sum(own[p] for p in there) + 0.2 * float(np.sin(7 * sum(odd[p] for p in there)))

    return value


def _owen_of_first(value) -> np.ndarray:  # type: ignore[no-untyped-def]
    """Owen values of the sentences of COPIES[0], by all 2^5 x 2^3 prompts."""
    parts = COPIES[0].replace(". ", ".|").split("|")
    held = all_coalitions(8)  # the other five documents, then the sentences
    values = np.array([
        value([" ".join(p for p, h in zip(parts, row[5:], strict=True) if h),
               *(d for d, h in zip(COPIES[1:], row[:5], strict=True) if h)])
        for row in held
    ])  # fmt: skip
    total = np.zeros(3)
    for a, b in itertools.product(range(32), range(8)):
        size = bin(a).count("1")
        chance = 1 / (6 * math.comb(5, size))
        for j in range(3):
            if not b >> j & 1:
                weight = 1 / (3 * math.comb(2, bin(b).count("1")))
                total[j] += chance * weight * (values[a + 32 * (b | 1 << j)] - values[a + 32 * b])
    return total


@pytest.mark.parametrize("budget", [64, 200])
def test_sentences_beside_a_near_copy_are_covered(budget) -> None:  # type: ignore[no-untyped-def]
    """Two documents say the same: what a sentence adds depends on whether the other one is there."""
    inside, widths = [], []
    for seed in range(6):
        value = _copies(seed)
        game = Counted(context(COPIES), value)
        found = explain(game.of, game.context, Settings(budget=budget, granularity="sentences", seed=seed))
        level = found.levels["sentences"]
        rows = [k for k, p in enumerate(level.parts) if p.document == 0]
        score, half = level.scores[rows, 0], level.half[rows, 0]
        truth = _owen_of_first(value)
        inside += (np.abs(score - truth) <= half + 1e-9).tolist()
        widths += half.tolist()
        assert abs(score[1]) <= half[1] + 1e-9, "an inert sentence is surely for or against"
        assert np.abs(score - truth).max() < 0.5  # of about 12.5
        assert len(game.asked) == budget
    assert np.mean(inside) >= 0.9
    assert np.mean(widths) < 1.5


def test_a_budget_that_covers_a_level_makes_it_exact() -> None:
    """Four documents: 16 prompts for them, 8 x 6 more for each one that is opened."""
    value = _copies(0)
    game = Counted(context(COPIES[:4]), value)
    found = explain(game.of, game.context, Settings(budget=256, granularity="sentences"))
    level = found.levels["sentences"]
    assert {p.document for p in level.parts} == {0, 1}
    assert (level.half == 0).all()
    assert len(game.asked) == 16 + 2 * 48
    # what a level has no use for goes to the next one
    deeper = Counted(context(COPIES[:4]), value)
    explain(deeper.of, deeper.context, Settings(budget=256, granularity="words"))
    assert len(deeper.asked) == 256


def test_null_players_of_a_vote_stay_null() -> None:
    """Only the first sentence of the first document can change this answer."""

    def vote(texts: list[str]) -> float:
        text = " ".join(texts)
        return float("carries two" in text and "Express" not in text)

    game = Counted(context(COPIES), vote)
    found = explain(game.of, game.context, Settings(budget=200, granularity="sentences", relative=False))
    level = found.levels["sentences"]
    by_text = by_words(game, level)
    assert by_text["The H3 carries two years."] == pytest.approx(0.5, abs=0.01)
    assert by_text["It covers the boiler."] == pytest.approx(0.0, abs=0.01)
    assert by_text["It does not cover gaskets."] == pytest.approx(0.0, abs=0.01)
    rows = [k for k, p in enumerate(level.parts) if p.document == 0]
    truth = np.array([0.5, 0.0, 0.0])
    assert (np.abs(level.scores[rows, 0] - truth) <= level.half[rows, 0] + 1e-9).all()


@pytest.mark.parametrize("budget", [40, 64, 100])
def test_words_beside_a_near_copy_are_covered(budget) -> None:  # type: ignore[no-untyped-def]
    """Two neighbouring words say it together, in either of two documents: half of 9 for each, nothing for the rest."""
    inside, null = [], []
    for seed in range(4):

        def value(texts: list[str]) -> float:
            text = " ".join(texts)
            return 18.0 * ("carries two" in text or "has two" in text) + 0.5 * ("boiler" in text)

        game = Counted(context(COPIES), value)
        found = explain(game.of, game.context, Settings(budget=budget, granularity="words", seed=seed))
        level = found.levels["words"]
        for part, score, half in zip(level.parts, level.scores[:, 0], level.half[:, 0], strict=True):
            word = COPIES[part.document][part.start : part.end].strip()
            truth = 4.5 if word in ("carries", "two", "has") else 0.0
            inside.append(abs(score - truth) <= half + 1e-9)
            null += [] if truth else [abs(score) > half + 1e-9]
    assert len(inside) >= 40
    assert np.mean(inside) >= 0.9
    assert np.mean(null) <= 0.1

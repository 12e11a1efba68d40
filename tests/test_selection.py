"""Selection of shots: the score's sign, seeds, preference for what the model got wrong, and no test items."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

import amplify
from amplify.errors import InputError, UnknownNameError
from amplify.methods import make
from amplify.models.scripted import ScriptedModel
from amplify.proxies import train_proxy
from amplify.selection import SELECTIONS, Judge, Neighbours, misclassification_confidence, select
from amplify.tasks import Task
from amplify.types import Example

LABELS = ("negative", "positive")


def task(n: int = 20) -> Task:
    def item(split: str, i: int) -> Example:
        return Example(id=f"{split}{i}", text=f"{split} review number {i} is good", label=LABELS[i % 2])

    return Task(
        name="reviews",
        instruction="Is it good?",
        train=tuple(item("train", i) for i in range(n)),
        validation=tuple(item("validation", i) for i in range(n)),
        test=(item("test", 0),),
        labels=LABELS,
    )


class FakeProxy:
    """Probability of the gold label by number: example 0 gets .05, example 1 gets .10, and so on."""

    def require_head(self, purpose: str) -> None:
        pass

    def labels_of(self, example: Example) -> tuple[str, ...]:
        return LABELS

    def probabilities(self, examples):
        result = []
        for example in examples:
            p = 0.05 * (1 + int("".join(c for c in example.id if c.isdigit())))
            result.append(np.array([p, 1 - p] if example.label == LABELS[0] else [1 - p, p]))
        return result


def numbers(selection) -> list[int]:
    return [int(shot.example.id.removeprefix("validation")) for shot in selection.shots]


def test_score_by_hand():
    assert misclassification_confidence([0.9, 0.1], 1) == pytest.approx(0.8)  # wrong and sure: high
    assert misclassification_confidence([0.9, 0.1], 0) == pytest.approx(-0.8)  # right and sure: low
    assert misclassification_confidence([0.2, 0.5, 0.3], 0) == pytest.approx(0.3)
    assert misclassification_confidence([0.2, 0.5, 0.3], 1) == pytest.approx(-0.2)


@pytest.mark.parametrize(("f", "gold"), [([1.0], 0), ([0.5, 0.5], 2), ([2.0, -1.0], 0), ([3.2, -1.0], 0), ([], 0)])
def test_score_refuses_what_is_no_distribution(f, gold):
    with pytest.raises(InputError):
        misclassification_confidence(f, gold)


def test_mcs_high_takes_the_most_confidently_wrong_and_low_the_least():
    assert numbers(select("mcs_high", task(), 3, seed=0, judge=Judge(FakeProxy()))) == [0, 1, 2]
    assert numbers(select("mcs_low", task(), 3, seed=0, judge=Judge(FakeProxy()))) == [19, 18, 17]
    chosen = select("mcs_high", task(), 1, seed=0, judge=Judge(FakeProxy())).shots[0]
    assert chosen.score == pytest.approx(0.9)


def test_only_what_the_model_got_wrong_while_it_suffices():
    wrong = {"validation5": "positive", "validation9": None, "validation12": "negative"}
    found = select("mcs_high", task(), 3, seed=0, judge=Judge(FakeProxy()), wrong=wrong)
    assert numbers(found) == [5, 9, 12]
    assert [shot.foil for shot in found.shots] == ["positive", None, "negative"]
    assert not found.notes


@pytest.mark.parametrize("strategy", ["mcs_high", "mcs_low", "random", "balanced"])
def test_right_ones_fill_up_and_it_says_so(strategy):
    wrong = {"validation9": "negative"}
    found = select(strategy, task(), 3, seed=0, judge=Judge(FakeProxy()), wrong=wrong)
    assert numbers(found)[0] == 9
    assert len(set(numbers(found))) == 3
    assert "2 of 3 shots" in found.notes[0]


@pytest.mark.parametrize("strategy", ["random", "balanced"])
def test_seeded(strategy):
    runs = [[s.example.id for s in select(strategy, task(), 6, seed=s).shots] for s in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]
    assert all(name.startswith("train") for name in runs[0])


def test_balanced_is_balanced():
    lopsided = replace(task(), train=tuple(e for i, e in enumerate(task(40).train) if i % 2 == 0 or i < 8))
    chosen = [s.example.label for s in select("balanced", lopsided, 8, seed=3).shots]
    assert chosen.count("negative") == chosen.count("positive") == 4


def by_label(selection) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {label: [] for label in LABELS}
    for shot in selection.shots:
        found[str(shot.example.label)].append(int(shot.example.id.removeprefix("validation")))
    return found


def test_balanced_takes_each_labels_most_confidently_wrong():
    assert [n % 2 for n in numbers(select("mcs_high", task(), 6, seed=0, judge=Judge(FakeProxy())))].count(0) == 3
    lopsided = {f"validation{i}": LABELS[(i + 1) % 2] for i in (0, 2, 4, 6, 8, 17)}  # one label, but for 17
    plain = by_label(select("mcs_high", task(), 4, seed=0, judge=Judge(FakeProxy()), wrong=lopsided))
    assert plain == {"negative": [0, 2, 4, 6], "positive": []}
    even = select("mcs_high", task(), 4, seed=0, judge=Judge(FakeProxy()), wrong=lopsided, balanced=True)
    assert by_label(even) == {"negative": [0, 2], "positive": [17, 1]}  # 1: the likeliest error of those it got right
    assert even.notes == (
        "too few of some label were answered wrongly: 1 of 4 shots are ones that the model gets right",
    )
    low = select("mcs_low", task(), 4, seed=0, judge=Judge(FakeProxy()), wrong=lopsided, balanced=True)
    assert by_label(low) == {"negative": [8, 6], "positive": [17, 19]}


def test_more_shots_of_one_label_where_another_runs_out():
    few = replace(task(), validation=tuple(e for i, e in enumerate(task().validation) if i % 2 == 0 or i == 3))
    found = by_label(select("mcs_high", few, 5, seed=0, judge=Judge(FakeProxy()), balanced=True))
    assert found == {"negative": [0, 2, 4, 6], "positive": [3]}


def test_choices_of_an_examples_own_cannot_be_balanced():
    quiz = replace(task(), labels=())
    with pytest.raises(InputError, match=r"no labels that its examples share.*leave balanced out"):
        select("mcs_high", quiz, 2, seed=0, judge=Judge(FakeProxy()), balanced=True)


def test_ties_are_decided_by_the_seed():
    flat = SimpleNamespace(
        require_head=lambda p: None,
        labels_of=lambda e: LABELS,
        probabilities=lambda es: [np.array([0.5, 0.5])] * len(es),
    )
    first, again, other = (numbers(select("mcs_high", task(), 5, seed=s, judge=Judge(flat))) for s in (0, 0, 1))
    assert first == again != other


@pytest.mark.parametrize("strategy", list(SELECTIONS))
def test_never_a_test_item(strategy):
    with pytest.raises(InputError, match="test split"):
        select(strategy, task(), 1, seed=0, pool=[*task().validation, *task().test], judge=Judge(FakeProxy()))


def test_errors():
    with pytest.raises(UnknownNameError, match="mcs_high"):
        select("msc_high", task(), 1, seed=0)
    with pytest.raises(InputError, match="only 20"):
        select("random", task(), 21, seed=0)
    with pytest.raises(InputError, match="needs a proxy"):
        select("mcs_high", task(), 1, seed=0)
    with pytest.raises(InputError, match="Neighbours"):
        select("knn", task(), 1, seed=0)
    with pytest.raises(InputError, match="not in the pool: nobody"):
        select("random", task(), 1, seed=0, wrong={"nobody": None})
    with pytest.raises(InputError, match="no label"):
        select("random", task(), 1, seed=0, pool=[Example(id="x", text="unlabelled")])
    assert select("random", task(), 0, seed=0).shots == ()


def test_untrained_head_is_refused(tiny_encoder):
    proxy = train_proxy(task(), tiny_encoder, epochs=0)
    for strategy in ("mcs_high", "mcs_low", "most_faithful"):
        with pytest.raises(InputError, match="Train it"):
            select(strategy, task(), 2, seed=0, judge=Judge(proxy))


def test_most_faithful_orders_by_the_drop_it_claims(tiny_encoder, tmp_path):
    proxy = train_proxy(task(), tiny_encoder, epochs=1, out=tmp_path / "proxy", progress=False)
    found = select("most_faithful", task(), 4, seed=0, judge=Judge(proxy, k=2))
    scores = [shot.score for shot in found.shots]
    assert scores == sorted(scores, reverse=True)
    every = select("most_faithful", task(), 20, seed=0, judge=Judge(proxy, k=2))
    assert max(s.score for s in every.shots) == scores[0]


def test_neighbours_are_exact(tiny_encoder):
    neighbours = Neighbours(task(), model=tiny_encoder)
    (shots,) = neighbours.shots([task().train[7]], 3)
    assert shots[-1].example.id == "train7"  # itself, nearest, next to the question
    assert shots[-1].score == pytest.approx(1.0, abs=1e-5)
    assert shots[0].score <= shots[1].score <= shots[2].score
    with pytest.raises(InputError, match="test split"):
        Neighbours(task(), task().test, model=tiny_encoder)
    with pytest.raises(InputError, match="21 neighbours of 20"):
        neighbours.shots(task().test, 21)


@pytest.mark.real
def test_neighbours_by_meaning(minilm):
    texts = {"battery": "The battery dies within an hour.", "taste": "The soup tasted wonderful."}
    pool = tuple(Example(id=k, text=v, label="negative") for k, v in texts.items())
    small = Task(name="t", instruction="i", train=pool, validation=(), test=task().test, labels=LABELS)
    (shots,) = Neighbours(small, model=minilm).shots([Example(id="new", text="My phone runs out of power fast.")], 1)
    assert shots[0].example.id == "battery"


def test_a_way_to_choose_of_ones_own():
    @amplify.register("selection", "longest")
    def longest(candidates):
        """The longest texts first."""
        return [len(e.text) for e in candidates.examples]

    try:
        lengths = replace(task(), train=tuple(replace(e, text=e.text + " x" * i) for i, e in enumerate(task().train)))
        found = select("longest", lengths, 3, seed=0)
        assert [s.example.id for s in found.shots] == ["train19", "train18", "train17"]
        assert [s.score for s in found.shots] == [float(len(e.text)) for e in lengths.train[:-4:-1]]
        chosen = make("few_shot", selection="longest", shots=3).fit(lengths, ScriptedModel("echo"), 0).shots
        assert {s.example.id for s in chosen} == {s.example.id for s in found.shots}
        assert make("amplify", selection="longest").label == "amplify[selection=longest]"
        with pytest.raises(UnknownNameError, match="Did you mean 'longest'"):
            make("amplify", selection="longets")
        with pytest.raises(InputError, match="which few-shot prompting has none of"):
            make("few_shot", selection="mcs_high").fit(lengths, ScriptedModel("echo"), 0)
    finally:
        SELECTIONS.remove("longest")


@pytest.mark.parametrize("values", [[1.0], [float("nan")] * 20])
def test_a_way_to_choose_that_gives_no_numbers_is_refused(values):
    amplify.register("selection", "odd", lambda candidates: values)
    try:
        with pytest.raises(InputError, match="the selection 'odd' gives"):
            select("odd", task(), 3, seed=0)
    finally:
        SELECTIONS.remove("odd")

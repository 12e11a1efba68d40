"""Language models as explainers: what they are shown, how strictly their replies are read, and that asking ends."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import amplify
from amplify.attribution.prompted import (
    STRATEGIES,
    Case,
    ask_words,
    cases_of,
    explain_prompted,
    neighbourhood,
    read_words,
)
from amplify.attribution.words import word_spans
from amplify.errors import CapabilityError, InputError, UnknownNameError
from amplify.models.scripted import ScriptedGenerator
from amplify.types import Attribution, Message, Prompt

TEXT = "The superb end and the lovely music saved a dull, slow film"
WORTH = {"superb": 3.0, "lovely": 2.0, "music": 0.5, "dull": -2.0, "slow": -1.0}


def case(foil: str | None = "negative", text: str = TEXT) -> Case:
    bare = Case(text, "positive", foil=foil)
    worth = np.array([WORTH.get(text[a:b], 0.0) for a, b in bare.words])
    return Case(text, "positive", value=lambda masks: masks.astype(float) @ worth, foil=foil)


def averaging(prompt: str) -> str:
    """An explainer that does what `explain_instruction` tells it to, from the prompt alone."""
    text = re.search(r"(?m)^Text: (.*)$", prompt)[1]
    number = re.compile(r"([-+]?\d+\.\d\d)\)?$")
    full = float(number.search(re.search(r"(?m)^Output: (.*)$", prompt)[1])[1])
    rows = [({"superb"} - {"superb"}, full)]
    for line in re.findall(r"(?m)^Without .*$", prompt):
        rows.append((set(re.findall(r'"([^"]+)"', line)), float(number.search(line)[1])))
    words = [text[a:b] for a, b in word_spans(text)]
    missing = [word for word in dict.fromkeys(words) if any(word in gone for gone, _ in rows)]

    def worth(word: str) -> float:
        inside = [v for gone, v in rows if word in gone]
        return float(np.mean([v for gone, v in rows if word not in gone]) - np.mean(inside))

    best = sorted(missing, key=worth, reverse=True)
    return ", ".join(f'"{word}"' for word in best)[1:]


def test_neighbours_say_enough_to_find_the_words() -> None:
    for strategy in ("perturbation", "instruction"):
        model = ScriptedGenerator(reply=averaging)
        found = explain_prompted([replace(case(), model="toy")], model, strategy, k=3, neighbours=64)
        (a,) = found.attributions
        assert a is not None
        assert a.top(2) == ["superb", "lovely"]
        assert (a.method, a.model, a.budget, a.foil) == (f"prompted_{strategy}", "toy", 65, "negative")
        assert a.scores[a.words.index("superb")] == 1.0
        assert a.scores[a.words.index("lovely")] == pytest.approx(2 / 3)
        assert sum(score > 0 for score in a.scores) == 3
        assert (found.calls, found.failed, found.invented) == (1, 0, 0)


def test_sixteen_neighbours_are_shown_with_the_models_own_outputs() -> None:
    model = ScriptedGenerator("say=superb")
    explain_prompted([case()], model, "perturbation", seed=3)
    lines = re.findall(r"(?m)^Without (.*): (\w+) \(([-+]\d+\.\d+)\)$", model.texts[0])
    assert len(lines) == 16 == len(set(lines))
    for missing, label, margin in lines:
        left = sum(WORTH.values()) - sum(WORTH.get(word, 0.0) for word in re.findall(r'"([^"]+)"', missing))
        assert float(margin) == pytest.approx(left, abs=0.005)
        assert label == ("positive" if left > 0 else "negative")
    assert "Output: positive (+2.50)" in model.texts[0]
    again = ScriptedGenerator("say=superb")
    explain_prompted([case()], again, "perturbation", seed=3)
    assert again.texts == model.texts, "the same seed shows the same neighbours"
    explain_prompted([case()], again, "perturbation", seed=4)
    assert again.texts[-1] != model.texts[0]


def test_prediction_shows_texts_and_reads_the_words_behind_the_prediction() -> None:
    model = ScriptedGenerator(reply=lambda _: ' positive\nWords: "lovely", "superb"')
    (a,) = explain_prompted([case()], model, "prediction", k=2).attributions
    assert a is not None
    assert a.top(2) == ["lovely", "superb"]
    assert len(re.findall(r"(?m)^Text: ", model.texts[0])) == 17
    assert model.texts[0].endswith("assistant: Output:")
    silent = explain_prompted([case()], ScriptedGenerator("say= positive, superb"), "prediction", retries=1)
    assert (silent.attributions, silent.calls, silent.failed) == ((None,), 2, 1)


def test_explanation_shows_solved_examples() -> None:
    solved = Attribution("a fine day", ("fine", "day"), ((2, 6), (7, 10)), (1.0, 0.2), "positive")
    model = ScriptedGenerator('say=superb", "film"')
    found = explain_prompted([case()], model, "explanation", k=2, solved=[solved])
    assert found.attributions[0] is not None
    assert found.attributions[0].budget == 0
    assert 'Text: a fine day\nOutput: positive\nWords: "fine", "day"\n' in model.texts[0]
    with pytest.raises(InputError, match="give solved="):
        explain_prompted([case()], model, "explanation")


def test_self_continues_the_models_own_answer() -> None:
    own = Prompt(messages=(Message("user", f"Review: {TEXT}"),), prefix="The answer is")
    model = ScriptedGenerator('say=superb", "lovely"')
    explain_prompted([Case(TEXT, "(A)", prompt=own)], model, "self", k=4)
    prefill = 'The answer is (A). The text is recognised as such by its words "'
    assert model.texts[0] == f"user: Review: {TEXT}\n\nassistant: {prefill}"
    raw = Prompt(text=f"Q: {TEXT}\nA:", prefix=" The answer is")
    explain_prompted([Case(TEXT, "(A)", prompt=raw)], model, "self", k=4)
    assert model.texts[1] == f"Q: {TEXT}\nA: {prefill}"
    explain_prompted([Case(TEXT, "positive")], model, "self")
    assert "your answer was positive.\n" in model.texts[2]


@pytest.mark.parametrize(
    ("reply", "words", "invented"),
    [
        ('superb", "lovely".', ("superb", "lovely"), 0),
        ("superb, lovely, superb", ("superb", "lovely"), 0),
        ('Words: "Superb", "LOVELY"', ("superb", "lovely"), 0),
        ("1. superb\n2. lovely\n3. slow", ("superb", "lovely", "slow"), 0),
        ("- superb\n- lovely\n\nThe film is brilliant", ("superb", "lovely"), 0),
        ("lovely music", ("lovely", "music"), 0),
        ("superb music", (), 1),  # not a phrase of the input
        ("lovely music saved", ("lovely", "music", "saved"), 0),
        ("The superb end and the lovely music saved a dull", (), 1),  # a copy names nothing
        ("sup, lovely", ("lovely",), 1),  # no part of a word
        ("film, superbly", ("film",), 1),
        ("the, superb", ("superb",), 1),  # a stop word may not be named
        ("brilliant, witty, superb", (), 2),
        ("The most important word is superb because it is praise.", (), 1),
        ("", (), 0),
        ("?!", (), 0),
        ('superb", "lov', ("superb",), 1),
        ("superb, lovely, music, dull, slow, film", ("superb", "lovely", "music", "dull"), 0),
    ],
)
def test_replies_are_read_strictly(reply: str, words: tuple[str, ...], invented: int) -> None:
    begun = '"' if reply.startswith(('superb"', "lovely music")) else ""
    assert read_words(begun + reply, TEXT, Case(TEXT, "x").words, 4) == (words, invented)


def test_nonsense_is_asked_again_a_bounded_number_of_times() -> None:
    said = iter(["banana", "music", "apple", "superb"])
    model = ScriptedGenerator(reply=lambda _: next(said))
    prompts = [Prompt(text=f"{i}", prefix=' "') for i in range(2)]
    named = ask_words(prompts, [case(), case()], model, 2, retries=2)
    assert [n.words for n in named] == [("superb",), ("music",)]
    assert [n.attempts for n in named] == [3, 1]
    assert named[0].invented == 0
    stubborn = ScriptedGenerator("say=banana")
    found = explain_prompted([case(), case()], stubborn, "self", retries=3)
    assert (found.attributions, found.calls, found.failed) == ((None, None), 8, 2)
    assert len(stubborn.calls) == 8


def test_a_language_models_own_outputs_are_the_neighbours_outputs(tiny_lm: Path) -> None:
    text = "Great phone, terrible battery. The answer is"
    with amplify.load_model(f"transformers:{tiny_lm}", dtype="float32") as model:
        (own,) = cases_of([text], [" positive"], model, foils=[" negative"])
        assert [text[a:b] for a, b in own.words] == ["Great", "phone", "terrible", "battery", "answer"]
        explainer = ScriptedGenerator("say=terrible")
        found = explain_prompted([own], explainer, "perturbation")
        shown = re.search(r"(?m)^Without \"terrible\": \w+ \((.*)\)$", explainer.texts[0])
        cut = Prompt(text=text.replace("terrible ", ""))
        yes, no = (r.total for r in model.score([cut, cut], [" positive", " negative"]))
    assert float(shown[1]) == pytest.approx(yes - no, abs=0.006)
    assert found.attributions[0].top(1) == ["terrible"]
    # a model without log-probabilities can still be asked about its own answers
    chat = Prompt(messages=(Message("user", text),), prefix="It is")
    (mute,) = cases_of([chat], [" bad"], explainer)
    assert explain_prompted([mute], explainer, "self", k=1).failed == 0
    assert explainer.texts[-1].endswith('assistant: It is bad. The text is recognised as such by its words "')
    with pytest.raises(CapabilityError, match="log-probabilities"):
        explain_prompted([mute], explainer, "perturbation")


def test_neighbours_are_different_and_near() -> None:
    for words in range(1, 12):
        masks = neighbourhood(words, 16, seed=0)
        assert 1 <= len(masks) <= 16
        assert len({m.tobytes() for m in masks}) == len(masks)
        assert (~masks).sum(1).min() >= 1
        assert (~masks).sum(1).max() <= max(1, words // 2)
    assert len(neighbourhood(1, 16, 0)) == 1
    assert len(neighbourhood(12, 16, 0)) == 16


def test_bad_input_is_one_clear_error() -> None:
    model = ScriptedGenerator("say=x")
    with pytest.raises(UnknownNameError, match="Did you mean 'perturbation'"):
        explain_prompted([case()], model, "pertubation")
    with pytest.raises(InputError, match="no word to name"):
        explain_prompted([Case("it is the", "positive")], model, "self")
    for strategy in set(STRATEGIES) - {"explanation", "self"}:
        with pytest.raises(InputError, match="give each case its value="):
            explain_prompted([Case(TEXT, "positive")], model, strategy)
    broken = Case(TEXT, "positive", value=lambda masks: np.full(len(masks), np.nan))
    with pytest.raises(InputError, match="not finite"):
        explain_prompted([broken], model)
    with pytest.raises(InputError, match="k=0"):
        explain_prompted([case()], model, k=0)
    assert not model.calls

"""Reasons that the model states itself, and the gate that they must pass."""

import re

import pytest
from method_fakes import BAD, GOOD, by_word
from self_amplify_fakes import SMALL, asked, logprob, reply

from amplify.errors import CapabilityError
from amplify.methods import make
from amplify.methods.self_amplify import usable
from amplify.models.scripted import ScriptedGenerator, ScriptedModel
from amplify.tasks import Task
from amplify.text import input_text
from amplify.types import Completion, Demonstration

TOP = 'The answer is positive. The text is recognised as such by its words "'


@pytest.fixture
def model() -> ScriptedModel:
    return ScriptedModel(reply=reply, logprob=logprob)


def test_top_k_words_are_the_models_own(sentiment: Task, model: ScriptedModel) -> None:
    program = make("self_amplify_topk", k=2, **SMALL).fit(sentiment, model, 0)
    for shot in program.shots:
        assert shot.rationale is not None
        (word,) = shot.rationale.words  # "banana" is not in the input
        assert word in (*GOOD, *BAD)
        assert shot.rationale.text == f'The key words: "{word}" point to {shot.example.label}.'
        assert shot.rationale.attribution.text == input_text(shot.example)
    leads = [c.text.rpartition("assistant: ")[2] for c in model.calls if "recognised as such" in c.text]
    assert sorted(leads) == sorted(TOP.replace("positive", str(s.example.label)) for s in program.shots)
    assert "4 words named that are not in the input: left out" in program.notes
    assert "4 of 4 rationales have fewer than 2 words to cite" in program.notes
    assert program.prompt(sentiment.test[0]).prefix == "The key words:"
    assert [a.value for a in program.answer(sentiment.test, model)] == [e.label for e in sentiment.test]


def test_nonsense_is_dropped_counted_and_asking_ends(sentiment: Task) -> None:
    model = ScriptedModel(reply=lambda t: "banana" if "recognised as such" in t or t.endswith(":") else reply(t))
    program = make("self_amplify_topk", **SMALL).fit(sentiment, model, 0)
    assert all(shot.rationale is None for shot in program.shots)
    assert "4 of 4 rationales dropped: those shots show their answer alone" in program.notes
    assert sum("recognised as such" in text for text in model.texts) == 12
    silent = ScriptedModel(reply=lambda t: " ?" if t.endswith(":") else reply(t))
    made = make("self_amplify_phcot", **SMALL).fit(sentiment, silent, 0)
    assert all(shot.rationale is None for shot in made.shots)
    assert sum(text.endswith(":") for text in silent.texts) == 12


def test_post_hoc_chains_are_told_the_gold_label(sentiment: Task, model: ScriptedModel) -> None:
    program = make("self_amplify_phcot", **SMALL).fit(sentiment, model, 0)
    for shot in program.shots:
        said = "The word speaks for itself. It is strong. Nothing else counts."
        assert shot.rationale.text == f"3-step rationale: {said}"
    prompts = [c.text for c in model.calls if c.text.endswith("explanation:")]
    assert len(prompts) == 4
    assert all(re.search(r"The answer is (positive|negative)\. 3-step explanation:$", t) for t in prompts)
    assert program.prompt(sentiment.test[0]).prefix == "3-step rationale:"
    assert [a.value for a in program.answer(sentiment.test, model)] == [e.label for e in sentiment.test]
    shown = [m.content for m in program.prompt(sentiment.test[0]).messages if m.role == "assistant"]
    assert all(text.count("The answer is") == 1 for text in shown), "only the gold answer is read"


def test_auto_chains_are_not(sentiment: Task, model: ScriptedModel) -> None:
    wrong = make("self_amplify_autocot", selection="error", **SMALL)
    lying = ScriptedModel(reply=lambda t: " Because.\nThe answer is blue." if t.endswith("rationale:") else reply(t))
    program = wrong.fit(sentiment, model, 0)
    prompts = [c.prompt for c in model.calls if c.text.endswith("3-step rationale:")]
    assert all("The answer is" not in p.prefix for p in prompts)
    assert [s.rationale.text for s in program.shots] == ["3-step rationale: It says so."] * 4
    assert not any("another answer" in note for note in program.notes)
    contrary = ScriptedModel(
        reply=lambda t: (
            f" Hm. The answer is {'negative' if 'negative' not in by_word(t) else 'positive'}."
            if t.endswith("rationale:")
            else reply(t)
        )
    )
    assert "4 of 4 chains end in another answer than the gold one" in wrong.fit(sentiment, contrary, 0).notes
    assert not any("another answer" in n for n in wrong.fit(sentiment, lying, 0).notes), "blue is no label"


@pytest.mark.parametrize(
    ("text", "reason", "expected"),
    [
        (" One. Two. The answer is A. Three.", "stop", "One. Two."),
        ("The answer is A.", "stop", ""),
        (" One.\n2. Two,", "stop", "One. 2. Two."),
        (" One. Two is not fin", "length", "One."),
        (" One is not fin", "length", ""),
        (" One. The answer is A and th", "length", "One."),
        (" ?! ", "stop", ""),
    ],
)
def test_explanations_are_cut_to_whole_sentences_before_any_answer(text: str, reason: str, expected: str) -> None:
    assert usable(Completion(text, reason, 1, 1), "The answer is") == expected


@pytest.mark.parametrize("name", ["topk", "shap"])
@pytest.mark.parametrize("balanced", [False, True])
def test_the_gate_replaces_shots_whose_words_do_not_count(sentiment: Task, name: str, balanced: bool) -> None:
    """The model knows some of the words alone, so what it says of reviews with others cannot be the reason."""
    known = (*GOOD[:2], *BAD[:2])

    def partial(text: str, continuation: str) -> float:
        worth = 2.0 * any(w in asked(text) for w in GOOD[:2]) - 2.0 * any(w in asked(text) for w in BAD[:2])
        return worth if "positive" in continuation else -worth

    def counts(shot: Demonstration) -> bool:
        return any(w in shot.example.text for w in known)

    model = ScriptedModel(reply=lambda t: reply(t.replace("validation", "v")), logprob=partial)
    options = {"k": 1, "shots": 4, "selection": "random", "balanced": balanced}
    plain, gated = (
        make(f"self_amplify_{name}", **options, gate=gate).fit(sentiment, model, 0) for gate in (False, True)
    )
    assert any(not counts(shot) for shot in plain.shots)
    for before, after in zip(plain.shots, gated.shots, strict=True):
        assert counts(after) == (after.rationale is not None)
        if counts(before):
            assert before == after
        elif balanced:
            assert before.example.label == after.example.label
    record = gated.meta["gate"]
    assert record["failed"] == sum(not counts(shot) for shot in plain.shots)
    assert record["replaced"] == sum(a.example != b.example for a, b in zip(plain.shots, gated.shots, strict=True)) > 0
    assert record["dropped"] == sum(shot.rationale is None for shot in gated.shots)
    assert len({shot.example.id for shot in gated.shots}) == 4
    assert f"{record['replaced']} of these shots replaced" in " ".join(gated.notes)
    with pytest.raises(CapabilityError, match="gate needs log-probabilities"):
        make(f"self_amplify_{name}", gate=True).fit(sentiment, ScriptedGenerator(reply=reply), 0)


def test_choices_of_the_example(quiz: Task) -> None:
    model = ScriptedModel(
        reply=lambda t: ' colour"' if "recognised as such" in t else " (A).", logprob=lambda t, c: -1.0
    )
    program = make("self_amplify_topk", shots=2, k=1).fit(quiz, model, 0)
    assert all(f"point to ({s.example.label})." in s.rationale.text for s in program.shots)
    assert program.answer(quiz.test, model)

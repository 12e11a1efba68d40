"""Self-AMPLIFY: selection, the model's own reasons, controls; and the traps of the released code (each has a test)."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from method_fakes import BAD, GOOD, by_word

import amplify
from amplify.attribution.words import word_spans
from amplify.backends.base import Generator
from amplify.backends.scripted import ScriptedBackend, ScriptedGenerator
from amplify.errors import CapabilityError, ContextLengthError, InputError
from amplify.layout import input_text
from amplify.methods import METHODS, Program, make
from amplify.methods.self_amplify import usable
from amplify.methods.self_attribution import citable, explain_shots, placed
from amplify.methods.shots import ShotProgram
from amplify.tasks import Task
from amplify.values import Completion, Demonstration, Example

WORDS = ("topk", "shap", "lime", "occlusion")
STEPS = ("phcot", "autocot")
TOP = 'The answer is positive. The 2 words of the input that matter most for it: "'
SMALL = {"shots": 4, "pool": 20}


def asked(text: str) -> str:
    return text.rpartition("Review: ")[2]


def mistaken(text: str) -> bool:
    """Wrong on half of the validation split."""
    number = re.search(r"number (\d+) of validation", asked(text))
    return bool(number) and int(number[1]) % 4 >= 2


def reply(text: str) -> str:
    if 'matter most for it: "' in text:
        word = next(w for w in (*GOOD, *BAD) if w in asked(text))
        return f'{word}", "banana"'
    if text.endswith("3-step explanation:"):
        return " The word speaks for itself. It is strong. Nothing else counts. The answer is broken\n\nMore."
    if text.endswith("3-step rationale:"):
        return f" It says so.{by_word(text).replace(' I looked at it.', '')}"
    if text.endswith("The key words:"):
        return ' "phone" point to it. ' + by_word(text)
    right = by_word(text)
    if mistaken(text):
        right = right.replace("positive", "NEG").replace("negative", "positive").replace("NEG", "negative")
    return right


def logprob(text: str, continuation: str) -> float:
    """How strongly each word speaks for the label: later words of the lists are weaker."""
    text = asked(text)
    worth = sum(3 - i / 2 for i, w in enumerate(GOOD) if w in text) - sum(
        3 - i / 2 for i, w in enumerate(BAD) if w in text
    )
    if mistaken(f"Review: {text}"):
        worth = -worth
    return float(np.log(1 / (1 + np.exp(-worth if "positive" in continuation else worth))))


@pytest.fixture
def backend() -> ScriptedBackend:
    return ScriptedBackend(reply=reply, logprob=logprob)


def ids(program: ShotProgram) -> set[str]:
    return {shot.example.id for shot in program.shots}


WRONG = {f"validation-{i}" for i in range(20) if i % 4 >= 2}


@pytest.mark.parametrize("mode", ["generate", "score"])
def test_success_error_and_random_selection(sentiment: Task, backend: ScriptedBackend, mode: str) -> None:
    def fit(selection: str) -> ShotProgram:
        return make("self_amplify_topk", mode=mode, selection=selection, **SMALL).fit(sentiment, backend, 0)

    right, wrong = fit("success"), fit("error")
    assert not ids(right) & WRONG
    assert ids(wrong) <= WRONG
    assert all(shot.foil not in (None, shot.example.label) for shot in wrong.shots)
    assert right.meta["wrong"] == wrong.meta["wrong"] == len(WRONG)
    assert fit("random").meta["asked"] == 0
    many = make("self_amplify_topk", mode=mode, selection="error", shots=12).fit(sentiment, backend, 0)
    assert any(note.startswith("2 of 12 shots were not answered wrongly") for note in many.notes)


def test_selection_by_the_models_own_label_log_probabilities(sentiment: Task, backend: ScriptedBackend) -> None:
    high, low = (
        make("self_amplify_no_rationale", selection=s, **SMALL).fit(sentiment, backend, 0)
        for s in ("mcs_high", "mcs_low")
    )
    assert ids(high) <= WRONG
    assert not ids(low) & WRONG
    for shot in high.shots:
        text = f"Review: {shot.example.text}"
        p = {label: np.exp(logprob(text, label)) for label in sentiment.labels}
        gold = p.pop(str(shot.example.label))
        assert shot.score == pytest.approx(max(p.values()) - gold)
        assert "lovely" in shot.example.text or "broken" in shot.example.text, "the weaker words are left"
    with pytest.raises(CapabilityError, match="own label log-probabilities"):
        make("self_amplify_topk", selection="mcs_high", **SMALL).fit(sentiment, ScriptedGenerator(reply=reply), 0)


def test_balance_and_diversity(sentiment: Task, backend: ScriptedBackend) -> None:
    def fit(**options: object) -> ShotProgram:
        return make("self_amplify_no_rationale", mode="score", **{**SMALL, **options}).fit(sentiment, backend, 0)

    for diversity in ("none", "mmr", "sp_lime"):
        balanced = fit(balanced=True, diversity=diversity, selection="mcs_low")
        assert sorted(str(s.example.label) for s in balanced.shots) == ["negative"] * 2 + ["positive"] * 2
    words = [next(w for w in (*GOOD, *BAD) if w in s.example.text) for s in fit(diversity="mmr").shots]
    assert len(set(words)) == 4
    backend = ScriptedBackend(reply=by_word, logprob=lambda t, c: logprob(t.replace("validation", "v"), c))
    program = make("self_amplify_no_rationale", diversity="sp_lime", **SMALL).fit(sentiment, backend, 1)
    assert any(call.continuation for call in backend.calls), "the candidates were explained"
    chosen = [next(w for w in (*GOOD, *BAD) if w in s.example.text) for s in program.shots]
    assert len(set(chosen)) == 4, "each shot brings a word that no other has"


def test_likely_mislabelled_shots_are_noted_or_left_out(sentiment: Task) -> None:
    backend = ScriptedBackend(reply=by_word, logprob=lambda t, c: logprob(t.replace("validation", "v"), c))
    swap = {"positive": "negative", "negative": "positive"}
    spoilt = tuple(replace(e, label=swap[e.label]) if i in (4, 9) else e for i, e in enumerate(sentiment.validation))
    task = replace(sentiment, validation=spoilt)
    noted = make("self_amplify_no_rationale", selection="mcs_high", **SMALL).fit(task, backend, 0)
    assert noted.meta["flagged"] == ["validation-4", "validation-9"]
    assert ids(noted) > {"validation-4", "validation-9"}, "confident mistakes are where label errors are"
    assert any(note.startswith("2 of 4 shots are likely mislabelled: ") for note in noted.notes)
    options = {**SMALL, "selection": "mcs_high", "skip_flagged": True}
    clean = make("self_amplify_no_rationale", **options).fit(task, backend, 0)
    assert not ids(clean) & {"validation-4", "validation-9"}
    assert "2 of 20 candidates are likely mislabelled and were left out" in clean.notes


def test_top_k_words_are_the_models_own(sentiment: Task, backend: ScriptedBackend) -> None:
    program = make("self_amplify_topk", k=2, **SMALL).fit(sentiment, backend, 0)
    for shot in program.shots:
        assert shot.rationale is not None
        (word,) = shot.rationale.words  # "banana" is not in the input
        assert word in (*GOOD, *BAD)
        assert shot.rationale.text == f'The key words: "{word}" point to {shot.example.label}.'
        assert shot.rationale.attribution.text == input_text(shot.example)
    leads = [c.text.rpartition("assistant: ")[2] for c in backend.calls if "matter most" in c.text]
    assert sorted(leads) == sorted(TOP.replace("positive", str(s.example.label)) for s in program.shots)
    assert "4 words named that are not in the input: left out" in program.notes
    assert "4 of 4 rationales have fewer than 2 words to cite" in program.notes
    assert program.prompt(sentiment.test[0]).prefix == "The key words:"
    assert [a.value for a in program.answer(sentiment.test, backend)] == [e.label for e in sentiment.test]


def test_nonsense_is_dropped_counted_and_asking_ends(sentiment: Task) -> None:
    backend = ScriptedBackend(reply=lambda t: "banana" if "matter most" in t or t.endswith(":") else reply(t))
    program = make("self_amplify_topk", **SMALL).fit(sentiment, backend, 0)
    assert all(shot.rationale is None for shot in program.shots)
    assert "4 of 4 rationales dropped: those shots show their answer alone" in program.notes
    assert sum("matter most" in text for text in backend.texts) == 12
    silent = ScriptedBackend(reply=lambda t: " ?" if t.endswith(":") else reply(t))
    made = make("self_amplify_phcot", **SMALL).fit(sentiment, silent, 0)
    assert all(shot.rationale is None for shot in made.shots)
    assert sum(text.endswith(":") for text in silent.texts) == 12


def test_post_hoc_chains_are_told_the_gold_label(sentiment: Task, backend: ScriptedBackend) -> None:
    program = make("self_amplify_phcot", **SMALL).fit(sentiment, backend, 0)
    for shot in program.shots:
        said = "The word speaks for itself. It is strong. Nothing else counts."
        assert shot.rationale.text == f"3-step rationale: {said}"
    prompts = [c.text for c in backend.calls if c.text.endswith("explanation:")]
    assert len(prompts) == 4
    assert all(re.search(r"The answer is (positive|negative)\. 3-step explanation:$", t) for t in prompts)
    assert program.prompt(sentiment.test[0]).prefix == "3-step rationale:"
    assert [a.value for a in program.answer(sentiment.test, backend)] == [e.label for e in sentiment.test]
    shown = [m.content for m in program.prompt(sentiment.test[0]).messages if m.role == "assistant"]
    assert all(text.count("The answer is") == 1 for text in shown), "only the gold answer is read"


def test_auto_chains_are_not(sentiment: Task, backend: ScriptedBackend) -> None:
    wrong = make("self_amplify_autocot", selection="error", **SMALL)
    lying = ScriptedBackend(reply=lambda t: " Because.\nThe answer is blue." if t.endswith("rationale:") else reply(t))
    program = wrong.fit(sentiment, backend, 0)
    prompts = [c.prompt for c in backend.calls if c.text.endswith("3-step rationale:")]
    assert all("The answer is" not in p.prefix for p in prompts)
    assert [s.rationale.text for s in program.shots] == ["3-step rationale: It says so."] * 4
    assert not any("another answer" in note for note in program.notes)
    contrary = ScriptedBackend(
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


@pytest.mark.parametrize("name", ["shap", "lime", "occlusion"])
def test_attributed_words_are_those_that_count(sentiment: Task, backend: ScriptedBackend, name: str) -> None:
    program = make(f"self_amplify_{name}", k=1, **SMALL).fit(sentiment, backend, 0)
    for shot in program.shots:
        assert shot.rationale is not None
        assert shot.rationale.words[0] in (*GOOD, *BAD)
        a = shot.rationale.attribution
        assert a.text == input_text(shot.example)
        assert all(a.text[s:e] == word for word, (s, e) in zip(a.words, a.spans, strict=True))
        assert (a.target, a.foil) == (shot.example.label, None)
        assert 0 < a.budget <= 130
    contrast = make(f"self_amplify_{name}", mode="score", contrastive=True, **SMALL).fit(sentiment, backend, 0)
    assert all(s.rationale.attribution.foil == s.foil != s.example.label for s in contrast.shots)
    plain = make(f"self_amplify_{name}", contrastive=True, **SMALL).fit(sentiment, backend, 0)
    assert "4 of 4 labels explained without a contrast: no other label is known" in plain.notes


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

    backend = ScriptedBackend(reply=lambda t: reply(t.replace("validation", "v")), logprob=partial)
    options = {"k": 1, "shots": 4, "selection": "random", "balanced": balanced}
    plain, gated = (
        make(f"self_amplify_{name}", **options, gate=gate).fit(sentiment, backend, 0) for gate in (False, True)
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


# The traps of the released code


def test_a_negative_sum_of_scores_does_not_turn_the_ranking_round(sentiment: Task) -> None:
    """Dividing by the sum of the scores would."""

    def odd(text: str, continuation: str) -> float:
        text = asked(text)
        return -5.0 + 1.0 * ("splendid" in text) - 3.0 * ("heavy" in text) - 2.0 * ("late" in text)

    one = Example("validation-x", "A splendid thing, heavy and late.", "positive")
    task = replace(sentiment, validation=(one,))
    program = make("self_amplify_occlusion", shots=1, k=1, selection="random").fit(
        task, ScriptedBackend(logprob=odd), 0
    )
    a = program.shots[0].rationale.attribution
    assert sum(a.scores) < 0
    assert program.shots[0].rationale.words == ("splendid",)


def test_fewer_words_than_k(sentiment: Task, backend: ScriptedBackend) -> None:
    for name in ("topk", "shap", "random_words"):
        program = make(f"self_amplify_{name}", k=50, **SMALL).fit(sentiment, backend, 0)
        assert all(1 <= len(s.rationale.words) < 50 for s in program.shots if s.rationale), name


@pytest.fixture(scope="module")
def white(tiny_lm: Path):  # type: ignore[no-untyped-def]
    with amplify.open_backend(f"transformers:{tiny_lm}") as opened:
        yield opened


@pytest.mark.parametrize("layout", ["chat", "text"])
def test_multi_token_targets_count_with_all_their_tokens(quiz: Task, white: Generator, layout: str) -> None:
    method = make("self_amplify_occlusion", layout=layout)
    shots = [Demonstration(example, foil="B") for example in quiz.validation[:1]]
    form = method.form(quiz)
    (plain,) = explain_shots(method, quiz, white, shots, "occlusion", contrastive=False, seed=0)
    (against,) = explain_shots(method, quiz, white, shots, "occlusion", contrastive=True, seed=0)
    spans = citable(quiz, shots[0].example)
    prompt, _, moved = placed(form, shots[0].example, spans)

    def total(prompt, label: str) -> float:  # type: ignore[no-untyped-def]
        found = white.score([prompt], [f" ({label})"])[0]
        assert len(found.logprobs) > 1
        return found.total

    def without(start: int, end: int):  # type: ignore[no-untyped-def]
        if prompt.text is not None:
            return replace(prompt, text=prompt.text[:start] + prompt.text[end:].lstrip(" "))
        turns = list(prompt.messages)
        content = turns[-1].content
        turns[-1] = replace(turns[-1], content=content[:start] + content[end:].lstrip(" "))
        return replace(prompt, messages=tuple(turns))

    for i, (start, end) in enumerate(moved):
        cut = without(start, end)
        for found, foil in ((plain, None), (against, "B")):
            expected = total(prompt, "A") - total(cut, "A")
            if foil:
                expected -= total(prompt, foil) - total(cut, foil)
            # float32 logits of a tiny model summed over three tokens
            assert found.scores[i] == pytest.approx(expected, abs=1e-4)
    assert against.foil == "B"


def test_words_are_whole_words_whatever_the_tokenizer_makes_of_them(quiz: Task, white: Generator) -> None:
    for name in ("occlusion", "gradient", "deeplift"):
        program = make(f"self_amplify_{name}", shots=2, selection="random").fit(quiz, white, 0)
        for shot in program.shots:
            text = input_text(shot.example)
            whole = {text[a:b] for a, b in word_spans(text)}
            assert shot.rationale is None or set(shot.rationale.words) <= whole
    assert any(len(white.tokenizer.tokenize(word)) > 1 for word in whole)


@pytest.mark.parametrize("name", ["topk", "phcot", "autocot", "shap", "lime"])
def test_everything_is_seeded(sentiment: Task, white: Generator, name: str) -> None:
    method = make(f"self_amplify_{name}", shots=2, pool=6, max_tokens=8)
    task = replace(sentiment, validation=sentiment.validation[:6])
    first = method.fit(task, white, 5)
    backend = amplify.open_backend(white.spec)
    with backend:
        assert method.fit(task, backend, 5) == first


# What every variant does


@pytest.mark.parametrize("mode", ["generate", "score"])
@pytest.mark.parametrize("name", [*WORDS, *STEPS, "no_rationale", "random_words"])
def test_answers_saves_and_reloads(
    sentiment: Task, backend: ScriptedBackend, name: str, mode: str, tmp_path: Path
) -> None:
    for layout in ("chat", "text"):
        program = make(f"self_amplify_{name}", mode=mode, layout=layout, **SMALL).fit(sentiment, backend, 0)
        program.save(tmp_path / "p.json")
        again = Program.load(tmp_path / "p.json")
        assert again == program
        assert json.loads((tmp_path / "p.json").read_text())["meta"]["asked"] == 20
        assert [a.value for a in again.answer(sentiment.test, backend)] == [e.label for e in sentiment.test]


def test_variants_and_controls_share_their_shots(sentiment: Task, backend: ScriptedBackend) -> None:
    first = make("self_amplify_topk", **SMALL).fit(sentiment, backend, 3)
    before = sum(re.search("The answer is$", text) is not None for text in backend.texts)
    for name in ("phcot", "autocot", "shap", "no_rationale", "random_words"):
        other = make(f"self_amplify_{name}", **SMALL).fit(sentiment, backend, 3)
        assert [s.example for s in other.shots] == [s.example for s in first.shots]
    generated = [c for c in backend.calls if c.continuation is None and c.text.endswith("The answer is")]
    assert len(generated) == before == 20, "the model is asked for its answers once"
    words = make("self_amplify_random_words", k=2, **SMALL).fit(sentiment, backend, 3)
    for shot in words.shots:
        spans = citable(sentiment, shot.example)
        assert set(shot.rationale.words) <= {shot.example.text[a:b] for a, b in spans}
    assert words.prompt("x").prefix == first.prompt("x").prefix


def test_choices_of_the_example(quiz: Task) -> None:
    backend = ScriptedBackend(reply=lambda t: ' colour"' if "matter most" in t else " (A).", logprob=lambda t, c: -1.0)
    program = make("self_amplify_topk", shots=2, k=1).fit(quiz, backend, 0)
    assert all(f"point to ({s.example.label})." in s.rationale.text for s in program.shots)
    assert program.answer(quiz.test, backend)


def test_refused_before_any_work(sentiment: Task, words: Task) -> None:
    backend = ScriptedBackend(reply=reply, max_context=250)
    with pytest.raises(ContextLengthError, match=r"self_amplify_topk.shots=\d"):
        make("self_amplify_topk", shots=20).fit(sentiment, backend, 0)
    with pytest.raises(InputError, match="free-text answers"):
        make("self_amplify_phcot").fit(words, backend, 0)
    with pytest.raises(InputError, match="k must be at least 1"):
        make("self_amplify_topk", k=0).fit(sentiment, backend, 0)
    with pytest.raises(InputError, match="steps must be at least 1"):
        make("self_amplify_phcot", steps=0).fit(sentiment, backend, 0)
    with pytest.raises(InputError, match="30 shots, but only 20"):
        make("self_amplify_topk", shots=30).fit(sentiment, ScriptedBackend(reply=reply), 0)
    with pytest.raises(CapabilityError, match="kernel_shap"):
        make("self_amplify_shap", **SMALL).fit(sentiment, ScriptedGenerator(reply=reply), 0)
    with pytest.raises(CapabilityError, match="grad_x_input looks inside"):
        make("self_amplify_gradient", **SMALL).fit(sentiment, ScriptedBackend(reply=reply), 0)
    assert not backend.calls


def test_the_input_must_stand_in_the_prompt(sentiment: Task, backend: ScriptedBackend, tmp_path: Path) -> None:
    own = tmp_path / "own.jinja"
    own.write_text("{{ text | upper }}")
    with pytest.raises(InputError, match="once, and as they are"):
        make("self_amplify_shap", question=str(own), **SMALL).fit(sentiment, backend, 0)


def test_every_variant_is_a_method() -> None:
    variants = {"topk", "phcot", "autocot", "shap", "lime", "occlusion", "gradient", "deeplift", "shapley_sampling"}
    assert {f"self_amplify_{v}" for v in variants} <= set(METHODS)
    for name in METHODS:
        if name.startswith("self_amplify"):
            assert make(name).label == name


def test_controls_are_what_variants_are_compared_with() -> None:
    from amplify.evaluation.configuration import declare_family

    names = ["topk", "no_rationale", "random_words"]
    family = declare_family([make(f"self_amplify_{n}") for n in names])
    assert family == [["self_amplify_topk", f"self_amplify_{n}"] for n in names[1:]]


def test_a_dry_run_knows_what_it_takes(sentiment: Task, backend: ScriptedBackend) -> None:
    from amplify.evaluation import plan

    names = ["topk", "phcot", "shap", "gradient", "no_rationale", "random_words"]
    rows = plan(sentiment, None, [f"self_amplify_{n}" for n in names], seeds=(0,)).rows
    asked = [row.fit_calls for row in rows]
    assert asked == [28, 28, 20 + 8 * 128, 20, 20, 20]
    assert all(row.calls == 6 for row in rows)
    bare, words = rows[4], rows[5]
    assert bare.prompt_tokens < words.prompt_tokens == rows[0].prompt_tokens < rows[1].prompt_tokens
    make("self_amplify_topk").fit(sentiment, backend, 0)
    assert len(backend.calls) == 28


@pytest.mark.real
def test_on_the_real_model(smollm2: Path) -> None:
    task = amplify.load_task("support_tickets")
    with amplify.open_backend(f"transformers:{smollm2}") as backend:
        for name in ("topk", "phcot", "shap"):
            few = {"budget": 64} if name == "shap" else {}
            program = make(f"self_amplify_{name}", shots=2, pool=6, **few).fit(task, backend, 0)
            answers = program.answer(task.test[:4], backend)
            assert len(answers) == 4
            assert all(a.value is None or a.value in task.labels for a in answers)
            for shot in program.shots:
                if shot.rationale and name != "phcot":
                    assert all(re.search(rf"\b{re.escape(w)}\b", shot.example.text) for w in shot.rationale.words)

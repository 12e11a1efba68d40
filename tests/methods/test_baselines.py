import json
from dataclasses import replace
from pathlib import Path

import pytest
from method_fakes import by_word

from amplify.errors import CapabilityError, ContextLengthError, DataError, InputError, UnknownNameError
from amplify.methods import METHODS, FewShot, HumanCoT, Method, Program, ZeroShot, make
from amplify.methods.program import ShotProgram
from amplify.models.scripted import ScriptedGenerator, ScriptedModel, plain_text
from amplify.tasks import Task
from amplify.types import Demonstration, Example, Rationale


def test_zero_shot_prompt_is_plain_messages(sentiment: Task) -> None:
    program = ZeroShot().fit(sentiment, ScriptedModel(), 0)
    prompt = program.prompt("A lovely phone.")
    assert [m.role for m in prompt.messages] == ["system", "user"]
    assert prompt.messages[0].content == "Is the review positive or negative?"
    assert prompt.messages[1].content == "Review: A lovely phone.\nOptions: positive, negative"
    assert prompt.prefix == "The answer is"
    assert prompt == program.prompt(Example("x", "A lovely phone."))


def test_options_are_listed_in_the_question(quiz: Task) -> None:
    prompt = FewShot(shots=1).fit(quiz, ScriptedModel(), 0).prompt(quiz.test[1])
    _, shot, reply, asked = (m.content for m in prompt.messages)
    assert shot.endswith("\nOptions:\n(A) red\n(B) green\n(C) blue")
    assert reply in ("The answer is (A).", "The answer is (B).", "The answer is (C).")
    assert asked == "Question: Which colour is test number 1?\nOptions:\n(A) red\n(B) green\n(C) blue"


def test_raw_text_layout(sentiment: Task) -> None:
    program = FewShot(shots=2, layout="text").fit(sentiment, ScriptedModel(), 0)
    prompt = program.prompt("A lovely phone.")
    assert prompt.text is not None
    first, *shots, last = prompt.text.split("\n\n")
    assert first.startswith("Is the review positive or negative?")
    assert len(shots) == 2
    assert all(s.startswith("Q: Review: ") and "\nA: The answer is " in s for s in shots)
    assert last == "Q: Review: A lovely phone.\nOptions: positive, negative\nA:"
    assert prompt.prefix == " The answer is"


@pytest.mark.parametrize("layout", ["chat", "text"])
@pytest.mark.parametrize("name", ["zero_shot", "few_shot", "few_shot_balanced", "zero_shot_cot"])
def test_generate_reads_what_was_written(sentiment: Task, name: str, layout: str) -> None:
    model = ScriptedModel(reply=by_word)
    answers = make(name, layout=layout).fit(sentiment, model, 0).answer(sentiment.test, model)
    assert [a.value for a in answers] == [e.label for e in sentiment.test]
    assert all(a.prompt_tokens > 0 and a.completion_tokens > 0 and a.calls == 1 for a in answers)
    assert sum(a.prompt_tokens for a in answers) == model.usage.prompt_tokens
    assert sum(a.completion_tokens for a in answers) == model.usage.completion_tokens
    if name == "zero_shot_cot":
        assert answers[0].rationale == "Let me work through this one step at a time. I looked at it."


@pytest.mark.parametrize("name", ["zero_shot", "few_shot", "zero_shot_cot"])
def test_score_chooses_the_likeliest_label_and_counts_its_cost(sentiment: Task, name: str) -> None:
    def logprob(text: str, continuation: str) -> float:
        assert text.endswith("The answer is")
        return -1.0 if continuation.strip() in by_word(text) else -3.0

    model = ScriptedModel(reply=by_word, logprob=logprob)
    answers = make(name, mode="score").fit(sentiment, model, 0).answer(sentiment.test, model)
    assert [a.value for a in answers] == [e.label for e in sentiment.test]
    assert [sorted(a.scores.values()) for a in answers] == [[-3.0, -1.0]] * len(answers)
    assert {c.continuation for c in model.calls if c.continuation} == {" positive", " negative"}
    assert len({c.batch for c in model.calls}) == (2 if name == "zero_shot_cot" else 1)
    assert sum(a.calls for a in answers) == model.usage.calls
    assert sum(a.prompt_tokens for a in answers) == model.usage.prompt_tokens
    assert sum(a.completion_tokens for a in answers) == model.usage.completion_tokens


def test_score_behind_options_and_choices(quiz: Task) -> None:
    model = ScriptedModel(logprob=lambda text, continuation: -len(continuation) - (continuation != " (B)"))
    answers = ZeroShot(mode="score").fit(quiz, model, 0).answer(quiz.test[:2], model)
    assert [a.value for a in answers] == ["B", "B"]
    assert set(answers[0].scores) == {"A", "B", "C"}


def test_labels_that_begin_with_each_other_are_closed() -> None:
    items = (Example("a", "x", "account"), Example("b", "y", "account access"))
    task = Task("t", "Do.", (), (), items, labels=("account", "account access", "other"))
    model = ScriptedModel()
    ZeroShot(mode="score").fit(task, model, 0).answer(items[:1], model)
    assert [c.continuation for c in model.calls] == [" account.", " account access", " other"]


@pytest.mark.parametrize(("normalize", "best"), [("none", "no"), ("tokens", "very long yes"), ("characters", "no")])
def test_normalisation(normalize: str, best: str) -> None:
    items = (Example("a", "x", "no"),)
    task = Task("t", "Do.", (), (), items, labels=("very long yes", "no"))
    model = ScriptedModel(logprob=lambda text, c: -26.0 if "yes" in c else -10.0 if normalize == "tokens" else -2.0)
    answer = make("zero_shot", mode="score", normalize=normalize).fit(task, model, 0).answer(items, model)[0]
    assert answer.value == best


def test_unparsed_is_none_not_a_guess(sentiment: Task) -> None:
    model = ScriptedModel("say= not positive, I think")
    answer = ZeroShot().fit(sentiment, model, 0).answer(sentiment.test[:1], model)[0]
    assert answer.value is None
    assert answer.text == " not positive, I think"


def test_a_rationale_without_an_answer_is_asked_for_it_once_more(sentiment: Task) -> None:
    def reply(text: str) -> str:
        return " negative." if text.endswith("The answer is") else " The phone broke."

    model = ScriptedModel(reply=reply)
    answer = make("zero_shot_cot").fit(sentiment, model, 0).answer(sentiment.test[:1], model)[0]
    assert (answer.value, answer.calls) == ("negative", 2)
    assert answer.text == " The phone broke. The answer is negative."
    assert answer.rationale.endswith("The phone broke.")
    once = make("zero_shot_cot", extract=False).fit(sentiment, model, 0).answer(sentiment.test[:1], model)[0]
    assert (once.value, once.calls) == (None, 1)


def test_a_rationale_cut_off_is_answered_on_a_line_of_its_own(sentiment: Task) -> None:
    def reply(text: str) -> str:
        return " negative." if text.endswith("\nThe answer is") else " on" * 50

    for mode in ("generate", "score"):
        model = ScriptedModel(reply=reply)
        program = make("zero_shot_cot", max_tokens=10, mode=mode).fit(sentiment, model, 0)
        answer = program.answer(sentiment.test[:1], model)[0]
        assert answer.value == "negative"
        assert answer.rationale.endswith(" on" * 10)


def test_without_a_lead_the_model_is_on_its_own(sentiment: Task) -> None:
    model = ScriptedModel(reply=by_word)
    program = ZeroShot(prefill=False).fit(sentiment, model, 0)
    prompt = program.prompt("x")
    assert prompt.prefix == ""
    assert prompt.messages[0].content == (
        "Is the review positive or negative?\n"
        'Finish with the words "The answer is", followed by exactly one of: positive, negative.'
    )
    assert program.answer(sentiment.test[:1], model)[0].value == "positive"


def test_free_text_is_generated_in_either_mode(words: Task) -> None:
    model = ScriptedModel("say= a b 1.")
    for mode in ("generate", "score"):
        program = FewShot(mode=mode, shots=2).fit(words, model, 0)
        assert program.prompt(words.test[0]).messages[2].content.startswith("The answer is a b ")
        assert program.answer(words.test[:1], model)[0].value == "a b 1"
        assert bool(program.notes) == (mode == "score")


def test_shots_follow_the_seed_and_come_from_train(sentiment: Task) -> None:
    model = ScriptedModel()
    ids = [[s.example.id for s in FewShot().fit(sentiment, model, seed).shots] for seed in (0, 0, 1)]
    assert ids[0] == ids[1] != ids[2]
    assert len(set(ids[0])) == 8
    assert all(i.startswith("train-") for i in ids[0])


def test_balanced_shots(sentiment: Task) -> None:
    skewed = tuple(e for i, e in enumerate(sentiment.train) if e.label == "positive" or i < 8)
    task = Task("t", "Do.", skewed, (), sentiment.test, labels=sentiment.labels)
    for method in (make("few_shot_balanced"), make("few_shot", selection="balanced")):
        labels = [s.example.label for s in method.fit(task, ScriptedModel(), 3).shots]
        assert sorted(labels) == ["negative"] * 4 + ["positive"] * 4


def test_more_shots_than_there_are_is_an_error(sentiment: Task) -> None:
    for name in ("few_shot", "few_shot_balanced", "few_shot_knn"):
        with pytest.raises(InputError, match="only 40"):
            make(name, shots=50).fit(sentiment, ScriptedModel(), 0)


def test_shots_come_from_validation_where_there_is_no_train(sentiment: Task) -> None:
    task = replace(sentiment, train=())
    assert all(s.example in task.validation for s in FewShot().fit(task, ScriptedModel(), 0).shots)
    with pytest.raises(InputError, match="no training or validation split"):
        FewShot().fit(replace(task, validation=()), ScriptedModel(), 0)


def test_nearest_shots_stand_last(sentiment: Task, tiny_encoder: Path, tmp_path: Path) -> None:
    from amplify.retrieval import Embedder

    model = ScriptedModel(reply=by_word)
    program = make("few_shot_knn", shots=3, embedder=str(tiny_encoder)).fit(sentiment, model, 0)
    embed = Embedder(str(tiny_encoder)).embed
    keys = embed([s.example.text for s in program.pool])
    for example in sentiment.test:
        similarity = keys @ embed([example.text])[0]
        order = sorted(range(40), key=lambda i: similarity[i])[-3:]
        shown = [m.content for m in program.prompt(example).messages if m.role == "user"]
        assert shown[:3] == [program.form.question(program.pool[i].example) for i in order]
    assert [a.value for a in program.answer(sentiment.test, model)] == [e.label for e in sentiment.test]
    program.save(tmp_path / "p.json")
    assert Program.load(tmp_path / "p.json") == program
    small = make("few_shot_knn", shots=3, pool=10).fit(sentiment, model, 1)
    assert len(small.pool) == 10


def test_human_cot(sentiment: Task) -> None:
    with pytest.raises(InputError, match="human_cot needs demonstrations"):
        HumanCoT().fit(sentiment, ScriptedModel(), 0)
    shot = Demonstration(Example("h", "A dim screen.", "negative"), Rationale("Dim is bad."))
    task = Task("t", "Do.", (), (), sentiment.test, labels=sentiment.labels, cot=(shot,))
    prompt = HumanCoT().fit(task, ScriptedModel(), 0).prompt("x")
    assert prompt.messages[2].content == "Dim is bad. The answer is negative."


def test_save_and_load_is_the_same_program_without_the_task(sentiment: Task, quiz: Task, tmp_path: Path) -> None:
    for task, name in ((sentiment, "few_shot"), (quiz, "few_shot"), (sentiment, "zero_shot_cot")):
        program = make(name).fit(task, ScriptedModel(), 0)
        program.save(tmp_path / "p.json")
        again = Program.load(tmp_path / "p.json")
        assert again == program
        assert isinstance(again, ShotProgram)
        assert again.prompt(task.test[0]) == program.prompt(task.test[0])
    held = json.loads((tmp_path / "p.json").read_text())["form"]["templates"]
    assert {"name", "source", "sha256"} == set(held["system"])


def test_a_damaged_program_is_one_clear_error(sentiment: Task, tmp_path: Path) -> None:
    file = tmp_path / "p.json"
    FewShot().fit(sentiment, ScriptedModel(), 0).save(file)
    whole = json.loads(file.read_text())
    damaged = [{**whole, "format": 99}, {**whole, "kind": "other"}, {**whole, "shots": [{}]}, {**whole, "form": {}}]
    damaged += [{k: v for k, v in whole.items() if k != "form"}, [1], {**whole, "form": None}]
    for data in damaged:
        file.write_text(json.dumps(data))
        with pytest.raises(DataError):
            Program.load(file)
    for text in ("", "{", "null"):
        file.write_text(text)
        with pytest.raises(DataError):
            Program.load(file)
    with pytest.raises(DataError):
        Program.load(tmp_path / "none.json")


def test_a_program_keeps_its_template_when_the_file_changes(sentiment: Task, tmp_path: Path) -> None:
    own = tmp_path / "mine.jinja"
    own.write_text("Text >> {{ text }}")
    program = ZeroShot(question=str(own)).fit(sentiment, ScriptedModel(), 0)
    program.save(tmp_path / "p.json")
    own.write_text("changed")
    again = Program.load(tmp_path / "p.json")
    assert isinstance(again, ShotProgram)
    assert again.prompt("hello").messages[-1].content == "Text >> hello"


def test_an_answer_template_sets_the_marker(sentiment: Task, tmp_path: Path) -> None:
    own = tmp_path / "label.jinja"
    own.write_text("Label: {{ label }}")
    model = ScriptedModel("say= negative")
    program = FewShot(answer=str(own), shots=1).fit(sentiment, model, 0)
    prompt = program.prompt("x")
    assert prompt.prefix == "Label:"
    assert program.answer(sentiment.test[:1], model)[0].value == "negative"
    own.write_text("no label at all")
    with pytest.raises(InputError, match="never writes"):
        FewShot(answer=str(own)).fit(sentiment, model, 0)


def test_choices_need_an_example(quiz: Task) -> None:
    with pytest.raises(InputError, match="choices="):
        ZeroShot().fit(quiz, ScriptedModel(), 0).prompt("just a text")


def test_too_long_prompts_are_refused_before_any_work(sentiment: Task) -> None:
    model = ScriptedModel(max_context=120)
    program = FewShot(shots=8).fit(sentiment, model, 0)
    with pytest.raises(ContextLengthError, match=r"few_shot: .* window of .* is 120\. (\d+) shots would fit") as error:
        program.answer(sentiment.test, model)
    assert not model.calls
    fits = int(str(error.value).split("few_shot.shots=")[1].rstrip("."))
    assert 0 < fits < 8
    assert FewShot(shots=fits).fit(sentiment, model, 0).answer(sentiment.test, model)
    with pytest.raises(ContextLengthError):
        FewShot(shots=fits + 1).fit(sentiment, model, 0).answer(sentiment.test, model)
    with pytest.raises(ContextLengthError, match="shorten the input"):
        ZeroShot().fit(sentiment, model, 0).answer([Example("l", "word " * 200)], model)


def test_score_mode_needs_a_scorer(sentiment: Task) -> None:
    with pytest.raises(CapabilityError, match="zero_shot in score mode"):
        ZeroShot(mode="score").fit(sentiment, ScriptedGenerator(), 0)


def test_make_converts_and_refuses(sentiment: Task) -> None:
    method = make("few_shot", mode="score", shots="3", prefill="false", selection="balanced")
    assert method == FewShot(shots=3, prefill=False, selection="balanced", mode="score")
    assert method.label == "few_shot[prefill=false,shots=3,selection=balanced]"
    assert all(name == preset.name and issubclass(preset.cls, Method) for name, preset in METHODS.items())
    with pytest.raises(UnknownNameError, match="Did you mean 'few_shot'"):
        make("few_shots")
    with pytest.raises(UnknownNameError, match="Did you mean 'shots'"):
        make("few_shot", shot=3)
    for option, value in (
        ("shots", "many"),
        ("shots", 2.5),
        ("prefill", "perhaps"),
        ("shots", True),
    ):
        with pytest.raises(InputError, match=f"few_shot.{option} is"):
            make("few_shot", **{option: value})
    with pytest.raises(UnknownNameError, match="unknown selection 'best'"):
        make("few_shot", selection="best")
    with pytest.raises(InputError, match="shots must be at least 1"):
        make("few_shot", shots=0).fit(sentiment, ScriptedModel(), 0)


def test_demonstrations_stand_in_order_before_the_question(sentiment: Task) -> None:
    program = FewShot(shots=3).fit(sentiment, ScriptedModel(), 0)
    text = plain_text(program.prompt("END"))
    places = [text.index(shot.example.text) for shot in program.shots]
    assert places == sorted(places)
    assert text.index("END") > places[-1]

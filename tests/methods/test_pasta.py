"""PASTA, its relatives and its controls: what they send, which heads they steer, that programs survive saving."""

import json
from dataclasses import replace

import pytest

import amplify
from amplify.errors import CapabilityError, InputError, UnknownNameError
from amplify.evaluation import evaluate
from amplify.methods import make
from amplify.methods.base import Program
from amplify.methods.pasta import find_profile, first_heads, model_name, random_heads
from amplify.methods.refusals import triggers
from amplify.metrics import answer_scores
from amplify.models import load_model
from amplify.models.scripted import ScriptedModel
from amplify.steering import Steering
from amplify.tasks import Task, load_task
from amplify.types import Example, Message, Prompt, Sampling


@pytest.fixture(scope="module")
def model(tiny_lm):
    with load_model(f"transformers:{tiny_lm}", dtype="float32") as opened:
        yield opened


@pytest.fixture
def profile(tmp_path):
    path = tmp_path / "heads.yaml"
    model = {"model_type": "llama", "layers": 3, "heads": 4}
    provenance = {"order": ["1.2", "0.1", "2.0"]}
    Steering(heads={0: (1,), 1: (2,)}, alpha=0.05, model=model, provenance=provenance).save(path)
    return str(path)


@pytest.fixture
def jobs():
    def some(split, n):
        return tuple(
            Example(f"{split}{i}", f"{split} {i} is great. It is bad.", "good", answers=("good",)) for i in range(n)
        )

    return Task(
        name="jobs", instruction="Answer positive or negative.", train=some("train", 4), validation=some("val", 2),
        test=some("test", 3), metric="exact_match", template="instruction_last", emphasis="instruction", max_tokens=4,
    )  # fmt: skip


def saved(program, tmp_path):
    program.save(tmp_path / "program.json")
    again = Program.load(tmp_path / "program.json")
    assert again.to_dict() == program.to_dict()
    return again


STEERED = ("pasta", "pasta_random_heads", "spotlight", "instaboost")


@pytest.mark.parametrize("name", STEERED)
def test_the_prompt_is_the_plain_one_and_the_answer_the_steered_one(name, model, jobs, profile, tmp_path):
    options = {"profile": profile} if name.startswith("pasta") else {}
    program = saved(make(name, **options).fit(jobs, model, 0), tmp_path)
    plain = make("zero_shot").fit(jobs, model, 0)
    assert [program.prompt(e) for e in jobs.test] == [plain.prompt(e) for e in jobs.test]
    wanted = model.generate([program.prompt(e) for e in jobs.test], Sampling(max_tokens=4), steering=program.steering)
    assert [a.text for a in program.answer(jobs.test, model)] == [w.text for w in wanted]
    assert program.to_dict()["steering"]["mode"] == name if name in ("spotlight", "instaboost") else True


def test_behind_shots_only_the_last_question_is_emphasised(model, jobs, profile, tmp_path):
    program = saved(make("few_shot_pasta", profile=profile, shots=2).fit(jobs, model, 5), tmp_path)
    shots = make("few_shot", shots=2).fit(jobs, model, 5)
    for example in jobs.test:
        prompt, plain = program.prompt(example), shots.prompt(example)
        assert prompt.messages == plain.messages
        [span] = prompt.emphasis
        assert span.message == len(prompt.messages) - 1
        assert prompt.messages[span.message].content[span.start : span.end] == example.text
    wanted = model.generate([program.prompt(e) for e in jobs.test], Sampling(max_tokens=4), steering=program.steering)
    assert [a.text for a in program.answer(jobs.test, model)] == [w.text for w in wanted]
    asked = make("few_shot_pasta", profile=profile, shots=2, emphasis="").fit(jobs, model, 5).prompt(jobs.test[0])
    [span] = asked.emphasis
    assert asked.messages[-1].content[span.start : span.end] == jobs.instruction
    with pytest.raises(InputError, match="emphasis is instruction"):
        make("few_shot_pasta", profile=profile, shots=2, emphasis="nothing").fit(jobs, model, 5)


def test_controls_behind_shots(model, jobs, profile):
    drawn = make("few_shot_pasta_random_heads", profile=profile, shots=2).fit(jobs, model, 5)
    steered = make("few_shot_pasta", profile=profile, shots=2).fit(jobs, model, 5)
    assert drawn.prompt(jobs.test[0]) == steered.prompt(jobs.test[0])
    assert drawn.steering.alpha == steered.steering.alpha
    assert sum(map(len, drawn.steering.heads.values())) == sum(map(len, steered.steering.heads.values()))
    marked = make("few_shot_marked", shots=2).fit(jobs, model, 5).prompt(jobs.test[0])
    plain = make("few_shot", shots=2).fit(jobs, model, 5).prompt(jobs.test[0])
    assert marked.messages[:-1] == plain.messages[:-1]
    assert f"*{jobs.test[0].text}*" in marked.messages[-1].content


def test_steering_changes_scores_and_reaches_score_mode(model, jobs, profile):
    labelled = replace(
        jobs, labels=("good", "bad"), metric="accuracy", test=tuple(replace(e, answers=()) for e in jobs.test),
        train=(), validation=(),
    )  # fmt: skip
    steered = make("pasta", mode="score", profile=profile).fit(labelled, model, 0).answer(labelled.test, model)
    plain = make("zero_shot", mode="score").fit(labelled, model, 0).answer(labelled.test, model)
    assert all(a.scores != b.scores for a, b in zip(steered, plain, strict=True))
    first = make("zero_shot", mode="score", normalize="first_token").fit(labelled, model, 0)
    alone = model.score([first.prompt(labelled.test[0])], ["good"])[0].logprobs[0]
    assert first.answer(labelled.test[:1], model)[0].scores["good"] == pytest.approx(alone, abs=1e-4)


def test_options_of_pasta(model, jobs, profile, tmp_path):
    program = make("pasta", profile=profile, alpha="0.2", heads="2").fit(jobs, model, 0)
    assert program.steering.alpha == 0.2
    assert program.steering.heads == {0: (1,), 1: (2,)}  # the two first of the order
    assert first_heads(Steering.load(profile), 3).heads == {0: (1,), 1: (2,), 2: (0,)}
    assert make("pasta", profile=profile, alpha=0.2).label == f"pasta[profile={profile},alpha=0.2]"
    with pytest.raises(InputError, match="ranks 3 heads"):
        make("pasta", profile=profile, heads=9).fit(jobs, model, 0)
    with pytest.raises(InputError, match="alpha"):
        make("pasta", profile=profile, alpha=7).fit(jobs, model, 0)
    with pytest.raises(UnknownNameError):
        make("pasta", profile="no_such").fit(jobs, model, 0)
    with pytest.raises(InputError, match="no head profile is named after"):
        make("pasta").fit(jobs, model, 0)
    with pytest.raises(InputError, match="emphasis: instruction"):
        make("pasta", profile=profile).fit(replace(jobs, emphasis=""), model, 0)
    with pytest.raises(CapabilityError, match="cannot steer"):
        make("pasta", profile=profile).fit(jobs, ScriptedModel("echo"), 0)
    other = replace(Steering.load(profile), model={"layers": 7})
    with pytest.raises(InputError, match="another model"):
        model.generate([make("zero_shot").fit(jobs, model, 0).prompt("x")], Sampling(), steering=other)
    other.save(tmp_path / "other.yaml")
    for name in ("pasta", "spotlight", "instaboost"):
        with pytest.raises(InputError, match="another model"):
            make(name, profile=str(tmp_path / "other.yaml")).fit(jobs, model, 0)
    refusing = make("negative_emphasis", profile=str(tmp_path / "other.yaml"), max_tokens=3)
    with pytest.raises(InputError, match="another model"):
        refusing.fit(load_task("over_refusal"), model, 0).answer([REQUEST], model)


def test_random_heads_are_as_many_and_seeded(profile):
    steering = Steering.load(profile)
    drawn = [random_heads(steering, seed).heads for seed in range(30)]
    assert all(sum(map(len, heads.values())) == 2 for heads in drawn)
    assert drawn == [random_heads(steering, seed).heads for seed in range(30)]
    assert len({json.dumps(h) for h in drawn}) > 15
    assert {layer for heads in drawn for layer in heads} == {0, 1, 2}
    with pytest.raises(InputError, match="layers"):
        random_heads(replace(steering, model={}), 0)


def test_profiles_by_model_and_task(tmp_path, monkeypatch, profile):
    from amplify import resources

    (tmp_path / "steering").mkdir()
    monkeypatch.setattr(resources, "content", lambda kind: tmp_path / kind)
    model = ScriptedModel("echo")
    model.id = "openai:tiny@http://127.0.0.1:1/v1"
    assert model_name(model) == "tiny"
    Steering.load(profile).save(tmp_path / "steering" / "tiny.yaml")
    replace(Steering.load(profile), alpha=0.5).save(tmp_path / "steering" / "tiny-a-b.yaml")
    assert find_profile("", model, "other").alpha == 0.05
    assert find_profile("", model, "a/b").alpha == 0.5


def test_marked_prompt_writes_marks_and_steers_nothing(jobs, tmp_path):
    model = ScriptedModel("say=good")
    program = saved(make("marked_prompt").fit(jobs, model, 0), tmp_path)
    [answer] = program.answer(jobs.test[:1], model)
    assert model.calls[-1].prompt.messages[-1].content == f"{jobs.test[0].text}\n\n*{jobs.instruction}*"
    assert answer.value == "good"
    assert make("marked_prompt", mark="__").label == "marked_prompt[mark=__]"


def test_whole_answers_keep_their_lines(jobs):
    model = ScriptedModel(reply=lambda text: '{\n "a": 1\n}\n')
    [answer] = make("zero_shot", max_tokens=20).fit(jobs, model, 0).answer(jobs.test[:1], model)
    assert answer.value == '{\n "a": 1\n}'
    silent = ScriptedModel(reply=lambda text: "  ")
    assert make("zero_shot").fit(jobs, silent, 0).answer(jobs.test[:1], silent)[0].value is None


class Recorder:
    """A scripted model that can be steered, and writes down towards what."""

    def __init__(self, reply, logprob=None):
        self.inner = ScriptedModel(reply=reply, logprob=logprob)
        self.asked = []

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def generate(self, prompts, sampling, *, steering=None):
        self.asked += [(p, steering) for p in prompts]
        return self.inner.generate(prompts, sampling)

    def score(self, prompts, continuations, *, steering=None):
        return self.inner.score(prompts, continuations)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        pass


def marked_words(prompt):
    return [prompt.messages[s.message].content[s.start : s.end] for s in prompt.emphasis]


def test_auto_pasta_emphasises_what_the_model_names(jobs, profile, tmp_path):
    def reply(text):
        return "Sentence: it is bad" if "Copy that sentence" in text else "good"

    model = Recorder(reply)
    program = saved(make("auto_pasta", profile=profile).fit(jobs, model, 0), tmp_path)
    [answer] = program.answer(jobs.test[:1], model)
    prompt, steering = model.asked[-1]
    assert marked_words(prompt) == ["It is bad."] == [answer.rationale]
    assert steering == program.steering
    assert answer.calls == 2
    assert model.asked[-2][1] is None
    with pytest.raises(UnknownNameError, match="source"):
        replace(make("auto_pasta", profile=profile), source="magic").fit(jobs, model, 0)


def test_auto_pasta_by_attribution(jobs, profile):
    def logprob(text, continuation):
        return -1.0 if "is great" in text else -5.0  # the answer needs the first sentence

    model = Recorder(lambda text: "good", logprob)
    program = make("auto_pasta", profile=profile, source="attribution").fit(jobs, model, 0)
    answers = program.answer(jobs.test, model)
    assert [marked_words(p) for p, _ in model.asked[-3:]] == [[e.text.partition(".")[0] + "."] for e in jobs.test]
    assert all(a.calls > 2 for a in answers)


def test_auto_pastas_control_emphasises_any_sentence(jobs, profile, tmp_path):
    model = Recorder(lambda text: "good", lambda text, continuation: -1.0)
    chosen = []
    for seed in range(8):
        program = saved(make("auto_pasta_random", profile=profile).fit(jobs, model, seed), tmp_path)
        answers = program.answer(jobs.test, model)
        assert [a.rationale for a in program.answer(jobs.test[1:], model)] == [a.rationale for a in answers[1:]]
        assert all(a.rationale in e.text and a.calls == 1 for a, e in zip(answers, jobs.test, strict=True))
        chosen.append(answers[0].rationale)
    assert len(set(chosen)) == 2  # of its two sentences


def refusing(text):
    request = text.split("\n\n")[-2].removeprefix("user: ")
    if "Rewrite this request" in text:
        return "How do I stop a process?"
    return "I'm sorry, but I can't help." if "kill" in request and "Ignore" not in text else "Run this."


def afraid(text, continuation):
    return -1.0 if "kill" in text else -9.0


REQUEST = Example("r", "How do I kill a process?", "comply", answers=("comply",))


def test_triggers_are_found_by_leaving_words_out():
    model = ScriptedModel(reply=refusing, logprob=afraid)
    prompts = [Prompt(messages=(Message("user", t),)) for t in (REQUEST.text, "Hello there", "")]
    found = triggers(prompts[:2], "I'm sorry", model, 2)
    assert [[REQUEST.text[a:b] for _, a, b in spans] for spans in found] == [["kill"], []]


def test_no_word_triggers_what_white_space_does():
    """A model that refuses lists: leaving a word out leaves the list, and so the refusal."""
    model = ScriptedModel(logprob=lambda text, continuation: -1.0 if "\n- " in text else -9.0)
    prompt = Prompt(messages=(Message("user", "Compare:\n- stopping  processes\n- killing jobs"),))
    assert triggers([prompt], "I'm sorry", model, 3) == [()]


def test_triggers_are_those_of_the_occlusion_explainer():
    model = ScriptedModel(logprob=lambda text, continuation: -float(len(text.replace("kill", ""))))
    prompt = Prompt(messages=(Message("user", REQUEST.text),))
    [found] = triggers([prompt], "I'm sorry", model, 9)
    [whole] = amplify.explain_many([prompt], ["I'm sorry"], model=model, methods=["occlusion"]).values()
    scores = dict(zip(whole[0].spans, whole[0].scores, strict=True))
    found = tuple((a, b) for _, a, b in found)
    assert found == tuple(s for s in sorted(scores, key=lambda s: (-scores[s], s)) if s in found)
    assert all(scores[s] > 0 for s in found)


@pytest.mark.parametrize("explainer", ["occlusion", "kernel_shap", "shapley_sampling"])
def test_a_trigger_in_an_earlier_turn_is_found_by_any_explainer(explainer):
    """Additive: "kill" counts 4 in the first turn, "shoot" 2 in the last, "gently" speaks against a refusal."""

    def logprob(text, continuation):
        return 4.0 * ("kill" in text) + 2.0 * ("shoot" in text) - 1.0 * ("gently" in text) - 9.0

    turns = (
        Message("user", "How do I kill processes gently?"), Message("assistant", "Which kill?"),
        Message("user", "And shoot portraits?"),
    )  # fmt: skip
    prompt = Prompt(messages=turns)
    model = ScriptedModel(logprob=lambda text, continuation: logprob(text.replace("Which kill?", ""), continuation))
    [found] = triggers([prompt], "I'm sorry", model, 9, explainer, 64)
    assert [turns[m].content[a:b] for m, a, b in found][:2] == ["kill", "shoot"]
    assert "gently" not in [turns[m].content[a:b] for m, a, b in found]


@pytest.mark.parametrize("name", ["ignore_word", "rephrase", "negative_emphasis"])
def test_remedies_reach_earlier_turns(name, tmp_path):
    task = load_task("over_refusal")
    model = Recorder(refusing, afraid)
    program = saved(make(name, explainer="kernel_shap", budget=32).fit(task, model, 0), tmp_path)
    earlier = [{"role": "user", "content": "How do I kill a process?"}, {"role": "assistant", "content": "Why?"}]
    [answer] = program.answer([Example("r", "It hangs.", "comply", fields={"turns": earlier, "focus": "kill"})], model)
    prompt, _ = model.asked[-1]
    assert answer.rationale == "kill"
    said = [m.content for m in prompt.messages if m.role == "user"]
    if name == "negative_emphasis":
        [span] = prompt.emphasis
        assert prompt.messages[span.message].content[span.start : span.end] == "kill"
    elif name == "rephrase":
        assert said == ["How do I stop a process?", "It hangs."]
    else:
        assert "kill" in said[-1]
    assert (
        answer_scores("refusal", answer, Example("r", "It hangs.", "comply", fields={"focus": "kill"}))["focus_found"]
        == 1
    )


@pytest.mark.parametrize("name", ["ignore_word", "rephrase", "negative_emphasis"])
def test_remedies_against_refusals(name, tmp_path):
    task = load_task("over_refusal")
    model = Recorder(refusing, afraid)
    program = saved(make(name).fit(task, model, 0), tmp_path)
    [answer] = program.answer([REQUEST], model)
    prompt, steering = model.asked[-1]
    assert answer.rationale == "kill"
    if name == "negative_emphasis":
        assert prompt.messages[-1].content == REQUEST.text
        assert [s.weight for s in prompt.emphasis] == [0.1]
        assert marked_words(prompt) == ["kill"]
        assert steering.heads is None
    else:
        assert steering is None
        assert answer.value == "Run this."
        assert prompt.messages[-1].content.startswith(REQUEST.text if name == "ignore_word" else "How do I stop")
    with pytest.raises(InputError, match=r"weight is a factor|words is 1"):
        make(name, **({"weight": 2} if name == "negative_emphasis" else {"words": 0})).fit(task, model, 0)


def test_negative_emphasis_on_a_real_attention(model):
    """A word of weight near 0 is (nearly) not there for other tokens: the answer's scores move."""
    task = load_task("over_refusal")
    [steered] = make("negative_emphasis", weight=0.01, max_tokens=3).fit(task, model, 0).answer([REQUEST], model)
    assert steered.completion_tokens > 0


def test_a_run_with_its_report(model, jobs, profile, tmp_path):
    names = ["zero_shot", "marked_prompt", "pasta", "pasta_random_heads", "spotlight"]
    options = {"pasta.profile": profile, "pasta_random_heads.profile": profile}
    report = evaluate(jobs, model, names, seeds=(0, 1), options=options, out=tmp_path / "run")
    assert report.finished
    assert [row.seeds for row in report.rows][3] == (0, 1)
    family = {(c.method.partition("[")[0], c.baseline.partition("[")[0]) for c in report.comparisons}
    assert ("pasta", "pasta_random_heads") in family
    assert ("pasta", "marked_prompt") in family
    assert ("pasta", "zero_shot") in family


def test_further_metrics_stand_in_the_tables(model, tmp_path):
    task = load_task("json_formatting")
    small = replace(task, test=task.test[:2], max_tokens=4)
    report = evaluate(small, model, ["zero_shot"], out=tmp_path / "run")
    for name in ("paper format accuracy", "exact keys", "fluency"):
        assert name in str(report)
        assert name in report.to_markdown()
    assert " bits" in str(report)


def test_shipped_profiles_fit_their_model():
    from amplify.steering import profiles

    names = profiles()
    assert "smollm2-135m" in names
    for name in names:
        steering = Steering.load(name)
        steering.resolve(steering.model["layers"], steering.model["heads"])
        assert steering.provenance["runs"] > 0
        for task in steering.provenance["tasks"].values():
            assert task["split"] == "train"
        count = sum(map(len, steering.heads.values()))
        assert first_heads(steering, min(8, count)).heads


def test_the_command_line_opens_a_steerable_engine_where_a_method_steers():
    from amplify.cli.common import for_vllm
    from amplify.methods import METHODS

    assert {n for n, m in METHODS.items() if m.steers} >= {"pasta", "pasta_random_heads", "auto_pasta", "spotlight"}
    assert not METHODS["marked_prompt"].steers
    assert for_vllm("vllm:m", ("a=1",), steering=True) == ("a=1", "steering=true")
    assert for_vllm("vllm:m", (), steering="mine.yaml") == ("steering=mine.yaml",)
    assert for_vllm("vllm:m", ("steering=false",), steering=True) == ("steering=false",)
    assert for_vllm("vllm:m", (), steering=None, enforce_eager=True) == ("enforce_eager=true",)
    assert for_vllm("vllm:m", (), steering=False) == for_vllm("transformers:m", (), steering=True) == ()


@pytest.mark.real
def test_shipped_heads_make_a_real_model_follow_the_new_fact(smollm2, data):
    """Held-out facts: PASTA beats the plain model and random heads, by whole-target log-probability."""
    task = load_task("counterfact_known/efficacy", data=data)
    items = task.test[:12]
    with load_model("transformers:smollm2-135m", dtype="float32") as opened:
        right = {
            name: sum(
                answer.value == item.label
                for answer, item in zip(
                    make(name, mode="score").fit(task, opened, 0).answer(items, opened), items, strict=True
                )
            )
            for name in ("zero_shot", "pasta_random_heads", "pasta")
        }
    assert right["pasta"] >= 10
    assert right["pasta"] > right["pasta_random_heads"]
    assert right["pasta"] > right["zero_shot"]

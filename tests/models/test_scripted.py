"""The scripted model keeps every promise of the contracts, so tests on top of it mean something."""

import json
import re
import subprocess
import sys

import pytest

from amplify import Prompt, Sampling
from amplify.errors import CapabilityError, ContextLengthError, InputError, ModelError, UnknownNameError
from amplify.models import LanguageModel, ScoringModel, load_model, need_scoring
from amplify.models.scripted import ScriptedGenerator, ScriptedModel, plain_text
from amplify.steering import Steering

CHAT = Prompt(
    messages=(
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Q: 1+1?\nThe answer is (B).\n\nQ: which one?\n(A) this (B) that"},
    ),
    prefix="Well,",
)


def ask(spec, prompt=CHAT, **sampling):
    return load_model(spec).generate([prompt], Sampling(**sampling))[0]


def test_plain_text_shows_roles_and_ends_with_the_prefix():
    assert plain_text(CHAT).startswith("system: Be brief.\n\nuser: Q: 1+1?")
    assert plain_text(CHAT).endswith("(B) that\n\nassistant: Well,")
    assert plain_text(Prompt(text="raw", prefix=" x")) == "raw x"


@pytest.mark.parametrize(
    ("spec", "options", "says"),
    [
        ("scripted:echo", {"max_contxt": 8}, "Did you mean 'max_context'"),
        ("scripted:echo", {"max_context": "8k"}, "max_context is of type int, not '8k'"),
        ("transformers:nobody/nothing", {"device_mapp": "auto"}, "Did you mean 'device_map'"),
        ("transformers:nobody/nothing", {"max_batch_tokens": 1.5}, "max_batch_tokens is of type int"),
        ("openai:m@http://127.0.0.1:9/v1", {"retries": True}, "retries is of type int"),
        ("openai:m@http://127.0.0.1:9/v1", {"timeout": "1m"}, "timeout is of type float"),
    ],
)
def test_options_are_checked_before_anything_is_loaded(spec, options, says):
    with pytest.raises(InputError, match=re.escape(says)):
        load_model(spec, **options)


@pytest.mark.parametrize(
    ("spec", "answer"),
    [
        ("scripted:echo", "(A) this (B) that"),
        ("scripted:say=The answer is: yes", "The answer is: yes"),
        ("scripted:first_option", "The answer is (A)."),
        ("scripted:last_answer", "The answer is (B)."),
    ],
)
def test_scripts(spec, answer):
    assert ask(spec).text == answer


def test_scripts_have_nothing_to_say_where_the_prompt_offers_nothing():
    assert ask("scripted:first_option", Prompt(text="hello")).text == ""
    assert ask("scripted:last_answer", Prompt(text="hello")).text == ""


def test_stop_strings_are_cut_off_and_max_tokens_ends_by_length():
    done = ask("scripted:say=one two three four", stop="three")
    assert (done.text, done.finish_reason, done.completion_tokens) == ("one two ", "stop", 2)
    done = ask("scripted:say=one two three four", max_tokens=2)
    assert (done.text, done.finish_reason, done.completion_tokens) == ("one two", "length", 2)
    assert ask("scripted:say=one two", max_tokens=2).finish_reason == "stop"


def test_functions_calls_and_usage():
    model = ScriptedModel(reply=lambda text: text.upper(), logprob=lambda text, target: -len(text) / 7)
    before = model.usage.snapshot()
    prompts = [Prompt(text="a b"), Prompt(text="c", prefix=" d e")]
    assert [c.text for c in model.generate(prompts, Sampling())] == ["A B", "C D E"]
    scored = model.score(prompts, [" yes", " no way out"])
    assert [s.total for s in scored] == [-3 / 7, -5 / 7]
    assert scored[1].tokens == (" no", " way", " out")
    assert model.texts == ["a b", "c d e"] * 2
    assert [(c.batch, c.continuation) for c in model.calls] == [(0, None), (0, None), (1, " yes"), (1, " no way out")]
    spent = model.usage.since(before)
    assert (spent.calls, spent.prompt_tokens, spent.completion_tokens, spent.forwarded_tokens) == (4, 10, 9, 19)
    assert model.count_tokens(prompts) == [2, 3]


def test_default_scores_prefer_what_the_reply_says_and_are_the_same_in_every_process():
    code = (
        "from amplify import Prompt, load_model\n"
        "b = load_model('scripted:say=The answer is red')\n"
        "print([s.total for s in b.score([Prompt(text='x')] * 3, [' red', ' blue', ' green'])])"
    )
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in "ab"]
    assert runs[0].stdout == runs[1].stdout
    red, blue, green = json.loads(runs[0].stdout)
    assert red > max(blue, green)
    assert blue != green


def test_fails_when_told_to_and_keeps_what_was_answered():
    model = ScriptedModel("say=yes", fail_after=3)
    model.generate([Prompt(text="1"), Prompt(text="2")], Sampling())
    with pytest.raises(ModelError, match="told to fail") as caught:
        model.generate([Prompt(text="3"), Prompt(text="4")], Sampling())
    assert {i: c.text for i, c in caught.value.completed.items()} == {0: "yes"}
    with pytest.raises(ModelError):
        model.score([Prompt(text="5")], ["x"])
    assert model.usage.calls == len(model.calls) == 3


def test_bad_input_is_refused_before_any_call():
    model = ScriptedModel(max_context=6)
    with pytest.raises(ContextLengthError, match="prompt 1 has 5 tokens"):
        model.generate([Prompt(text="a"), Prompt(text="a b c d e")], Sampling(max_tokens=3))
    with pytest.raises(ContextLengthError):
        model.score([Prompt(text="a b c d e")], ["f g"])
    with pytest.raises(InputError, match="one continuation per prompt"):
        model.score([Prompt(text="a")], [])
    with pytest.raises(InputError, match="continuation 0 is empty"):
        model.score([Prompt(text="a")], [""])
    with pytest.raises(CapabilityError, match="cannot steer"):
        model.generate([Prompt(text="a")], Sampling(), steering=Steering({0: (0,)}))
    assert model.calls == []


def test_unknown_script_suggests_the_nearest():
    with pytest.raises(UnknownNameError, match="'last_answer'"):
        load_model("scripted:last_anser")


def test_capability_is_a_type():
    assert isinstance(load_model("scripted:echo"), ScoringModel)
    generator = ScriptedGenerator("echo")
    assert isinstance(generator, LanguageModel)
    assert not isinstance(generator, ScoringModel)
    with pytest.raises(CapabilityError, match="scripted:echo"):
        need_scoring(generator, "ranking labels")


def test_scripts_read_a_chat_with_shots_to_its_end():
    turns = [("user", "Good?\n\n(A) yes"), ("assistant", "The answer is (A)."), ("user", "Bad?\n\n(B) no")]
    chat = [Prompt(messages=[{"role": r, "content": c} for r, c in turns], prefix="The answer is")]
    said = {name: ScriptedModel(name).generate(chat, Sampling())[0].text for name in ("last_answer", "first_option")}
    assert said == {"last_answer": "The answer is (A).", "first_option": "The answer is (B)."}
    assert ScriptedModel("echo").generate(chat, Sampling())[0].text == "(B) no"

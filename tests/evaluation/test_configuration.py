"""What a run is asked for: methods by name, their options, the declared family, and bad input."""

from __future__ import annotations

import pytest
from evaluation_fakes import Fake, Plain, fake_backend, make_task, run

from amplify.backends.scripted import ScriptedBackend
from amplify.errors import InputError, UnknownNameError
from amplify.evaluation import evaluate
from amplify.evaluation.configuration import declare_family, make_methods


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": ()}, "at least one seed"),
        ({"seeds": (1, 1)}, "only once"),
        ({"batch_size": 0}, "batch_size"),
        ({"limit": 0}, "limit"),
        ({"methods": []}, "non-empty list"),
        ({"methods": "few_shot"}, "non-empty list"),
        ({"methods": [Fake(), Fake()]}, "more than once"),
        ({"methods": [Fake(), Plain(mode="score")]}, "one answer mode"),
        (
            {"methods": ["fewshot"], "options": {"few_shot.shots": 3}},
            "unknown method 'fewshot'. Did you mean 'few_shot'",
        ),
        ({"options": {"k": 3}}, "METHOD.OPTION"),
        ({"options": {"fake.k": 3}}, "sets an option of a method that does not run"),
        ({"baseline": "fale"}, "Did you mean 'fake'"),
    ],
)
def test_bad_input(tmp_path, changes, message):
    asked = fake_backend()
    with pytest.raises(InputError, match=message):
        run(tmp_path / "run", backend=asked, **changes)
    assert not asked.texts
    assert not (tmp_path / "run" / "run.json").exists()


def test_the_family_is_declared_by_kind():
    from amplify.methods import make

    few, zero, fake = make("few_shot"), make("zero_shot"), Fake()
    assert declare_family([zero, few, fake]) == [["fake", "zero_shot"], ["fake", "few_shot"]]
    assert declare_family([zero, few]) == [["few_shot", "zero_shot"]]
    assert declare_family([few, zero, fake], "few_shot") == [["zero_shot", "few_shot"], ["fake", "few_shot"]]
    assert declare_family([fake]) == []
    with pytest.raises(UnknownNameError):
        declare_family([few], "zero")


def test_methods_by_name_with_options(tmp_path):
    report = evaluate(
        make_task(6),
        ScriptedBackend("say= bad."),
        ["zero_shot", "few_shot"],
        options={"few_shot.shots": 3},
        seeds=(0, 1),
    )
    assert [row.method for row in report.rows] == ["zero_shot", "few_shot[shots=3]"]
    assert report.row("zero_shot").score == 0.5


def test_an_option_of_all_methods_that_have_it():
    made = make_methods(
        ["zero_shot", "few_shot", "few_shot_balanced"], "generate", {"few_shot.shots": 5, "*.shots": 3, "*.lead": False}
    )
    assert [m.label for m in made] == [
        "zero_shot[lead=false]",
        "few_shot[lead=false,shots=5]",
        "few_shot_balanced[lead=false,shots=3]",
    ]
    with pytest.raises(UnknownNameError, match=r"Did you mean 'shots'\?"):
        make_methods(["zero_shot", "few_shot"], "generate", {"*.shot": 3})

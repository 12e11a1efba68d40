"""What a run is asked for: methods by name, their options, the declared family, and bad input."""

from __future__ import annotations

import pytest
from evaluation_fakes import Fake, Plain, fake_model, make_task, run

from amplify.errors import InputError, UnknownNameError
from amplify.evaluation import evaluate
from amplify.evaluation.configuration import declare_family, make_methods
from amplify.methods import METHODS, make
from amplify.models.scripted import ScriptedModel


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
    asked = fake_model()
    with pytest.raises(InputError, match=message):
        run(tmp_path / "run", model=asked, **changes)
    assert not asked.texts
    assert not (tmp_path / "run" / "run.json").exists()


ROLES = {
    "baseline": {
        "zero_shot", "few_shot", "few_shot_balanced", "few_shot_knn", "zero_shot_cot", "human_cot", "proxy_alone",
        "rag", "rag_loo", "marked_prompt", "few_shot_marked",
    },
    "control": {
        "amplify_no_rationale", "amplify_random_words", "amplify_shuffled_rationales", "amplify_tfidf_words",
        "amplify_test_words", "answer_format_only", "rag_rerank_random", "self_amplify_no_rationale",
        "self_amplify_random_words", "pasta_random_heads", "auto_pasta_random", "few_shot_pasta_random_heads",
        "proxy_hint_random", "shuffled_shots", "seka_random", "rag_loop_random",
        "instruction_paraphrases", "best_prompt", "stacked_others_reasons", "stacked_unnamed",
        "attention_vectors_random_heads", "emphasise_random_words", "emphasise_random_label",
        "emphasise_words_random_heads",
    },
    "method": {
        "amplify", "rag_rerank_shapley", "rag_prune_shapley", "rag_distil_shapley", "rag_highlight_pasta", "rag_loop",
        "rag_suffice_shapley",
        "self_amplify_topk", "self_amplify_phcot", "self_amplify_autocot", "self_amplify_shap", "self_amplify_lime",
        "self_amplify_occlusion", "self_amplify_gradient", "self_amplify_deeplift", "self_amplify_shapley_sampling",
        "pasta", "seka", "spotlight", "instaboost", "auto_pasta", "few_shot_pasta", "ignore_word", "rephrase",
        "negative_emphasis", "proxy_pool", "proxy_hint", "cascade", "selective", "self_consistency",
        "augmented", "instruction_search", "stacked", "attention_vectors", "emphasise_words", "emphasise_label",
    },
}  # fmt: skip


def test_every_shipped_method_says_what_it_is():
    found = {role: {name for name, method in METHODS.items() if method.role == role} for role in ROLES}
    assert found == ROLES
    assert sum(map(len, ROLES.values())) == len(METHODS)


def test_amplify_is_tested_against_shots_of_the_nearest_neighbours():
    family = declare_family([make(name) for name in ("zero_shot", "few_shot_knn", "amplify")])
    assert family == [["amplify", "zero_shot"], ["amplify", "few_shot_knn"]]


@pytest.mark.parametrize("module", ["mine", "my_controls", "my_baselines"])
def test_where_a_class_stands_changes_no_family(module):
    made = type("Mine", (Fake,), {"__module__": module, "name": "mine"})
    assert declare_family([make("zero_shot"), made()]) == [["mine", "zero_shot"]]


def test_what_extends_a_baseline_is_a_method_unless_it_says_otherwise():
    extended = type("Extended", (type(make("few_shot")),), {"name": "extended"})
    other = type("Other", (Fake,), {"name": "other", "role": "control"})
    made = [make("few_shot"), extended(), other()]
    assert declare_family(made) == [["extended", "few_shot"], ["extended", "other"]]
    with pytest.raises(InputError, match="role is one of method, baseline, control, not 'contrl'"):
        type("Misspelt", (Fake,), {"role": "contrl"})


def test_the_family_is_declared_by_role():
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
        ScriptedModel("say= bad."),
        ["zero_shot", "few_shot"],
        options={"few_shot.shots": 3},
        seeds=(0, 1),
    )
    assert [row.method for row in report.rows] == ["zero_shot", "few_shot[shots=3]"]
    assert report.row("zero_shot").score == 0.5


def test_an_option_of_all_methods_that_have_it():
    made = make_methods(
        ["zero_shot", "few_shot", "few_shot_balanced"],
        "generate",
        {"few_shot.shots": 5, "*.shots": 3, "*.prefill": False},
    )
    assert [m.label for m in made] == [
        "zero_shot[prefill=false]",
        "few_shot[prefill=false,shots=5]",
        "few_shot_balanced[prefill=false,shots=3]",
    ]
    with pytest.raises(UnknownNameError, match=r"Did you mean 'shots'\?"):
        make_methods(["zero_shot", "few_shot"], "generate", {"*.shot": 3})

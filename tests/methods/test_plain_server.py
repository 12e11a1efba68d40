"""Every method against a server that knows chats and nothing else: it runs, or says in one error what it needs."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fake_server import PLAIN_FIELDS, FakeServer
from method_fakes import GOOD

from amplify.errors import CapabilityError, InputError
from amplify.methods import METHODS, make
from amplify.models import load_model
from amplify.models.base import LanguageModel
from amplify.tasks import Task
from amplify.types import Example

RUNS = {
    "zero_shot", "few_shot", "few_shot_balanced", "few_shot_knn", "zero_shot_cot", "amplify", "amplify_no_rationale",
    "amplify_random_words", "amplify_shuffled_rationales", "amplify_tfidf_words", "amplify_test_words",
    "answer_format_only", "proxy_alone", "self_amplify_topk", "self_amplify_phcot", "self_amplify_autocot",
    "self_amplify_no_rationale", "self_amplify_random_words", "marked_prompt", "few_shot_marked", "rag",
    "rag_rerank_random", "cascade", "proxy_hint", "proxy_hint_random",
    "self_consistency", "augmented", "shuffled_shots", "instruction_search",
    "instruction_paraphrases", "best_prompt",
}  # fmt: skip
"""What needs text alone."""
SCORED = {"proxy_pool", "selective", "stacked", "stacked_others_reasons", "stacked_unnamed"}
"""What is refused in generate mode, on any model."""


def say(asked: str) -> str:
    """Answers the review, and begins as it is told to."""
    label = "positive" if any(word in asked for word in GOOD) else "negative"
    begun = asked.rpartition("go on from there:\n")[2] if "go on from there:\n" in asked else ""
    return f"{begun} {label}." if begun.endswith("The answer is") else f"{begun} this.\nThe answer is {label}."


@pytest.fixture(scope="module")
def plain() -> Iterator[LanguageModel]:
    with (
        FakeServer(fields=PLAIN_FIELDS, completions=False, window=None, say=say) as server,
        load_model(f"openai:m@{server.url}", retries=0) as model,
    ):
        yield model


def documents(task: Task) -> Task:
    """The same questions, with something to read."""

    def read(pool: tuple[Example, ...]) -> tuple[Example, ...]:
        return tuple(replace(e, fields={"documents": ["A great thing.", "A poor thing."]}) for e in pool)

    return replace(task, train=read(task.train), validation=read(task.validation), test=read(task.test))


@pytest.mark.parametrize("name", METHODS)
def test_a_method_runs_or_says_what_it_needs(
    name: str, plain: LanguageModel, sentiment: Task, tiny_encoder: Path
) -> None:
    known = METHODS[name].options
    options = {"proxy": str(tiny_encoder), "embedder": str(tiny_encoder), "epochs": 1, "shots": 2}
    mode = "score" if name in SCORED else "generate"
    method = make(name, mode=mode, **{key: value for key, value in options.items() if key in known})
    task = replace(documents(sentiment) if name.startswith("rag") else sentiment, emphasis="instruction")
    if name in RUNS:
        answers = method.fit(task, plain, 0).answer(task.test[:2], plain)
        assert [bool(a.value) and (name.startswith("rag") or a.value in task.labels) for a in answers] == [True, True]
        return
    # log-probabilities, a look inside, a head profile, or rationales that people wrote
    with pytest.raises((CapabilityError, InputError), match=r"openai:m@|profile|human_cot"):
        method.fit(task, plain, 0).answer(task.test[:2], plain)

"""Every method on the real SmolLM2 and MiniLM: answers are labels, costs are counted, programs reload."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import amplify
from amplify.errors import InputError
from amplify.methods import METHODS, Program, make
from amplify.models.base import LanguageModel
from amplify.tasks import Task

pytestmark = pytest.mark.real
# what these need (chains, documents, something to emphasise) the tickets do not have: tested on tasks that do
ELSEWHERE = {"human_cot", "spotlight", "instaboost", "marked_prompt", "few_shot_marked", "seka", "seka_random"}
ELSEWHERE |= {"best_prompt"}
STACKED = ("stacked", "stacked_others_reasons", "stacked_unnamed")
SCORED = {"proxy_pool", "selective", *STACKED}  # label scores are what these are about: written answers are refused
NAMES = [
    name
    for name in METHODS
    if name not in ELSEWHERE and "pasta" not in name and not name.startswith(("rag", "self_amplify_"))
]
INNER = dict.fromkeys(("self_consistency", *STACKED), "zero_shot_cot")  # what these need inside
INNER |= {"shuffled_shots": "few_shot[shots=3]"}
SMALL = {"inner": "zero_shot", "shots": 3, "epochs": 1, "pool": 12, "max_tokens": 40, "proposals": 2, "answers": 2}
SMALL |= {"rows": 6, "per_label": 3}


@pytest.fixture(scope="module")
def model(smollm2: Path) -> Iterator[LanguageModel]:
    with amplify.load_model(f"transformers:{smollm2}", dtype="float32") as opened:
        yield opened


@pytest.fixture(scope="module")
def tickets(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Task]:
    task = amplify.load_task("support_tickets")
    with pytest.MonkeyPatch.context() as patch:
        # the proxy of this test is a poor one and does not belong among the user's
        patch.setenv("AMPLIFY_HOME", str(tmp_path_factory.mktemp("home")))
        yield replace(task, train=task.train[:40], validation=task.validation[:25])


@pytest.mark.parametrize("mode", ["generate", "score"])
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if METHODS[n].role == "control" else []) for n in NAMES]
)
def test_method(name: str, mode: str, tickets: Task, model: LanguageModel, minilm: Path, tmp_path: Path) -> None:
    fields = METHODS[name].options
    options = {option: value for option, value in SMALL.items() if option in fields}
    options |= {option: str(minilm) for option in ("proxy", "embedder") if option in fields}
    if name in INNER:
        options["inner"] = INNER[name]
    method = make(name, mode=mode, **options)
    if mode == "generate" and name in SCORED:
        with pytest.raises(InputError, match="use score mode"):
            method.fit(tickets, model, 0)
        return
    program = method.fit(tickets, model, 0)
    program.save(tmp_path / "program.json")
    before = model.usage.snapshot()
    answers = Program.load(tmp_path / "program.json").answer(tickets.test[:6], model)
    spent = model.usage.since(before)
    assert all(
        a.value in tickets.labels or (a.value is None and (mode == "generate" or name == "selective")) for a in answers
    )
    assert sum(a.calls for a in answers) == spent.calls
    assert sum(a.prompt_tokens for a in answers) == spent.prompt_tokens
    assert sum(a.completion_tokens for a in answers) == spent.completion_tokens
    if mode == "score":
        for answer in answers:
            assert set(answer.scores) == set(tickets.labels)
            assert answer.value in (
                max(answer.scores, key=answer.scores.__getitem__),
                *([None] * (name == "selective")),
            )
    assert program.answer(tickets.test[:6], model) == answers, "the saved program answers differently"

"""Tasks that lm-evaluation-harness ships: its own YAML, prompts, filters and metrics, over data that lie here.

Each task below includes the published file as it is; only where its rows come from is changed, from a hub to a file
with the same columns.
"""

from __future__ import annotations

import gzip
import hashlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import amplify
from amplify.errors import InputError
from amplify.models.scripted import ScriptedModel

pytest.importorskip("lm_eval")

import lm_eval
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from amplify.bridges.lm_eval import AmplifyLM, harness_results, harness_task

SHIPPED = Path(lm_eval.__file__).parent / "tasks"
TASKS = {
    "commonsense_qa": "commonsense_qa/default.yaml",
    "nq_open": "nq_open/nq_open.yaml",
    "bbh_zeroshot_snarks": "bbh/zeroshot/snarks.yaml",
    "bbh_zeroshot_navigate": "bbh/zeroshot/navigate.yaml",
    "bbh_fewshot_boolean_expressions": "bbh/fewshot/boolean_expressions.yaml",
    "bbh_fewshot_hyperbaton": "bbh/fewshot/hyperbaton.yaml",
}
REFUSED = {"bbh_cot_fewshot_sports_understanding": "bbh/cot_fewshot/sports_understanding.yaml"}
ITEMS = 6
WRITTEN = ("Yes.", "No", "yes", "(A)", "(B)", "The answer is (B).", "True", "False", "So the answer is no.", "14", " ")


def rows(name: str, data: Path) -> dict[str, list[dict[str, Any]]]:
    """The first rows of each split, in the columns of the hub's data set."""
    if name == "commonsense_qa":
        splits = {}
        for split, file in (("train", "train_rand_split.jsonl"), ("validation", "dev_rand_split.jsonl")):
            with (data / "commonsenseqa" / file).open(encoding="utf-8") as lines:
                splits[split] = [_choices(json.loads(line)) for line in itertools.islice(lines, ITEMS)]
        return splits
    if name == "nq_open":
        with gzip.open(data / "nq_open" / "nq-open-oracle.jsonl.gz", "rt", encoding="utf-8") as lines:
            held = [json.loads(line) for line in itertools.islice(lines, 2 * ITEMS + 5)]
        pairs = [{"question": row["question"], "answer": row["answers"]} for row in held]
        return {"train": pairs[ITEMS:], "validation": pairs[:ITEMS]}
    stem = name.removeprefix("bbh_").removeprefix("cot_").partition("_")[2]
    held = json.loads((data / "bbh" / f"{stem}.json").read_text(encoding="utf-8"))["examples"]
    return {"test": held[:ITEMS]}


def _choices(row: dict[str, Any]) -> dict[str, Any]:
    listed = row["question"]["choices"]
    return {
        "question": row["question"]["stem"],
        "choices": {key: [one[key] for one in listed] for key in ("label", "text")},
        "answerKey": row["answerKey"],
    }


@pytest.fixture(scope="module")
def folder(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    for name, shipped in (TASKS | REFUSED).items():
        files = {}
        for split, held in rows(name, data).items():
            files[split] = str(folder / f"{name}-{split}.jsonl")
            Path(files[split]).write_text("".join(json.dumps(row) + "\n" for row in held), encoding="utf-8")
        own = {"include": str(SHIPPED / shipped), "task": name, "dataset_path": "json", "dataset_name": None}
        (folder / f"{name}.yaml").write_text(json.dumps({**own, "dataset_kwargs": {"data_files": files}}))
    return folder


def by_the_harness(lm: Any, folder: Path, name: str, **options: Any) -> dict[str, float]:
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    found = simple_evaluate(lm, tasks=[name], task_manager=manager, bootstrap_iters=0, **options)
    assert found is not None
    scores = found["results"][name]
    return {k: v for k, v in scores.items() if isinstance(v, float | int) and "," in k and "stderr" not in k}


def by_amplify(model: Any, folder: Path, name: str, **options: Any) -> dict[str, float]:
    task = harness_task(name, include_path=folder, **options)
    mode = "score" if task.test[0].choices else "generate"
    report = amplify.evaluate(task, model, ["zero_shot"], mode=mode, calibrate="none", progress=False)
    return harness_results(task, report)["zero_shot"]


def drawn(*asked: str) -> int:
    return int.from_bytes(hashlib.sha256("\n".join(asked).encode()).digest()[:4], "big")


def heard(model: ScriptedModel) -> set[tuple[str, str | None]]:
    """What was asked since the last time; where texts are scored, without what greedy decoding would write there."""
    calls, model.calls[:] = list(model.calls), []
    scored = any(call.continuation for call in calls)
    return {(call.text, call.continuation) for call in calls if call.continuation or not scored}


@pytest.fixture
def answering() -> ScriptedModel:
    """Answers of many kinds, right and wrong, the same whenever the same is asked."""
    return ScriptedModel(
        reply=lambda text: WRITTEN[drawn(text) % len(WRITTEN)],
        logprob=lambda text, continuation: -1 - drawn(text, continuation) / 2**32,
    )


@pytest.mark.parametrize("name", list(TASKS))
def test_prompts_and_metrics_of_a_published_task_are_the_harness_s(
    name: str, folder: Path, answering: ScriptedModel
) -> None:
    theirs = by_the_harness(AmplifyLM(answering), folder, name)
    asked = heard(answering)
    assert len({text for text, _ in asked}) == ITEMS
    assert by_amplify(answering, folder, name) == pytest.approx(theirs, abs=1e-12)
    assert heard(answering) == asked


def test_the_answers_above_are_right_and_wrong(folder: Path, answering: ScriptedModel) -> None:
    found = {name: by_amplify(answering, folder, name) for name in TASKS}
    assert len({round(score, 6) for scores in found.values() for score in scores.values()}) >= 3, found
    assert {"strict-match", "flexible-extract"} == {key.partition(",")[2] for key in found["bbh_zeroshot_snarks"]}


@pytest.mark.parametrize("name", list(REFUSED))
def test_what_has_no_such_form_is_told(name: str, folder: Path) -> None:
    with pytest.raises(InputError, match="ends with a line break"):
        harness_task(name, include_path=folder)


def test_shots_of_a_published_task_are_the_harness_s(folder: Path, answering: ScriptedModel) -> None:
    theirs = by_the_harness(AmplifyLM(answering), folder, "commonsense_qa", num_fewshot=3)
    asked = heard(answering)
    assert by_amplify(answering, folder, "commonsense_qa", num_fewshot=3) == pytest.approx(theirs, abs=1e-12)
    assert heard(answering) == asked
    assert all(text.count("Answer:") == 4 for text, _ in asked)


@pytest.fixture(scope="module")
def real(smollm2: Path) -> Iterator[Any]:
    with amplify.load_model(f"transformers:{smollm2}", dtype="float32", device="cpu") as model:
        yield model


FIVE = [
    "commonsense_qa",
    "nq_open",
    "bbh_zeroshot_navigate",
    "bbh_fewshot_boolean_expressions",
    "bbh_fewshot_hyperbaton",
]


@pytest.mark.real
def test_a_model_reproduces_the_harness_on_five_published_tasks(folder: Path, real: Any) -> None:
    """The harness's own Hugging Face model, one request at a time, against amplify's on the same weights."""
    own = HFLM(pretrained=real.module, tokenizer=real.tokenizer, batch_size=1, device="cpu")
    seen = set()
    for name in FIVE:
        # else it writes 256 tokens an item; a task of amplify's has no such option
        items = 4 if name in ("commonsense_qa", "nq_open") else 2
        shorter = {"gen_kwargs": {"max_gen_toks": 16}} if name == "bbh_zeroshot_navigate" else {}
        theirs = by_the_harness(own, folder, name, limit=items, **shorter)
        assert by_the_harness(AmplifyLM(real), folder, name, limit=items, **shorter) == pytest.approx(theirs, abs=1e-6)
        if not shorter:
            assert by_amplify(real, folder, name, limit=items) == pytest.approx(theirs, abs=1e-6)
        seen |= set(theirs.values())
    assert seen - {0.0, 1.0}, "all right or all wrong: this says nothing"

"""lm-evaluation-harness, the real one: its own Hugging Face model against amplify's, and its tasks in amplify."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

import amplify
from amplify.errors import CapabilityError, DataError, InputError, UnknownNameError
from amplify.evaluation import load_report
from amplify.methods import make
from amplify.metrics.kinds import OPENED
from amplify.models.scripted import ScriptedGenerator, ScriptedModel
from amplify.types import Prompt, Span

pytest.importorskip("lm_eval")

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from amplify.bridges.lm_eval import AmplifyLM, harness_results, harness_task

TEXTS = (
    "Great phone, terrible battery.", "The key words are good.", "Paris is the capital of France.",
    "Which statement is right?", "A bad question, a great answer.", "Terrible; but a clue is important.",
    "The user predicts the correct answer.", "Good and bad, great and terrible.",
)  # fmt: skip
LABELS = ("positive", "negative")
TASKS: dict[str, dict[str, Any]] = {
    "labels_zero": {
        "output_type": "multiple_choice",
        "doc_to_text": "Review: {{text}}\nAnswer:",
        "doc_to_choice": list(LABELS),
        "doc_to_target": "{{label}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}, {"metric": "f1"}, {"metric": "brier_score"}],
    },
    "choices_two_shots": {
        "output_type": "multiple_choice",
        "description": "Which is right?\n\n",
        "fewshot_split": "train",
        "num_fewshot": 2,
        "doc_to_text": "Question: {{text}}\nAnswer:",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{label}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}, {"metric": "acc_bytes"}],
    },
    "written": {
        "output_type": "generate_until",
        "doc_to_text": "Question: {{text}}\nAnswer:",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\n", "."], "max_gen_toks": 12, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "ignore_case": True, "ignore_punctuation": True}],
    },
    "written_filtered": {
        "output_type": "generate_until",
        "doc_to_text": "{{text}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 16},
        "metric_list": [{"metric": "exact_match"}],
        "filter_list": [
            {
                "name": "first-word",
                "filter": [{"function": "regex", "regex_pattern": r"(\w+)"}, {"function": "take_first"}],
            },
            {"name": "all", "filter": [{"function": "take_first"}]},
        ],
    },
    "continued": {
        "output_type": "loglikelihood",
        "doc_to_text": "{{text}}",
        "doc_to_target": " {{answer}}",
        "metric_list": [{"metric": "perplexity"}, {"metric": "acc"}],
    },
}


def row(i: int, text: str) -> dict[str, Any]:
    choices = [f"{word} {'phone' * (i % 3)}".strip() for word in ("good", "terrible", "clues")]
    return {"text": text, "label": i % 2, "choices": choices, "answer": ("is", "are", "p")[i % 3]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five tasks as the harness's users write them: YAML beside local data files."""
    folder = tmp_path_factory.mktemp("harness")
    for split, texts in (("train", [f"{t} Once." for t in TEXTS]), ("test", TEXTS)):
        lines = [json.dumps(row(i, text)) for i, text in enumerate(texts)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    files = {split: str(folder / f"{split}.jsonl") for split in ("train", "test")}
    for name, own in TASKS.items():
        whole = {
            "task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": files},
            "training_split": "train", "test_split": "test", **own,
        }  # fmt: skip
        (folder / f"{name}.yaml").write_text(json.dumps(whole))
    return folder


@pytest.fixture(scope="module")
def model(tiny_lm: Path) -> Any:
    with amplify.load_model(f"transformers:{tiny_lm}", dtype="float32", device="cpu") as model:
        yield model


def evaluated(lm: Any, folder: Path, names: list[str], **options: Any) -> dict[str, dict[str, float]]:
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    found = simple_evaluate(lm, tasks=names, task_manager=manager, bootstrap_iters=0, **options)
    assert found is not None
    return {
        name: {k: v for k, v in scores.items() if isinstance(v, float | int) and "," in k and "stderr" not in k}
        for name, scores in found["results"].items()
    }


def near(scores: dict[str, float]) -> Any:
    """To 1e-6; a perplexity in nats, since thousands of it hold no more of a float32 log-probability."""
    return pytest.approx(in_nats(scores), rel=1e-6, abs=1e-6)


def in_nats(scores: dict[str, float]) -> dict[str, float]:
    return {k: math.log(v) if k.startswith("perplexity") else v for k, v in scores.items()}


@pytest.fixture(scope="module")
def theirs(model: Any, folder: Path) -> dict[str, dict[str, float]]:
    """The harness's own model on the same weights: one request at a time, nothing shared."""
    own = HFLM(pretrained=model.module, tokenizer=model.tokenizer, batch_size=1, device="cpu")
    return evaluated(own, folder, list(TASKS))


def test_a_model_reproduces_the_harness_on_five_tasks(model: Any, folder: Path, theirs: dict[str, Any]) -> None:
    ours = evaluated(AmplifyLM(model), folder, list(TASKS))
    assert ours.keys() == theirs.keys() == TASKS.keys()
    for name, scores in theirs.items():
        assert in_nats(ours[name]) == near(scores), name
    assert len({round(float(v), 6) for scores in theirs.values() for v in scores.values()}) >= 6  # not all 0 or 1


@pytest.mark.parametrize("name", list(TASKS))
def test_a_task_reproduces_the_harness(model: Any, folder: Path, theirs: dict[str, Any], name: str) -> None:
    task = harness_task(name, include_path=folder)
    mode = "generate" if name.startswith("written") else "score"
    report = amplify.evaluate(task, model, ["zero_shot"], mode=mode, progress=False)
    found = harness_results(task, report)["zero_shot"]
    wanted = {k: v for k, v in theirs[name].items() if (name, k) != ("continued", "acc,none")}
    assert in_nats(found) == near(wanted)
    main = task.metric.partition("#")[2]
    key = main if "," in main else f"{main},none"
    if key in wanted:
        assert report.rows[0].score == pytest.approx(wanted[key], abs=1e-6)


@pytest.mark.parametrize("name", list(TASKS))
def test_the_prompts_are_the_harness_s(folder: Path, name: str) -> None:
    asked: list[Instance] = []

    class Heard(AmplifyLM):
        def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
            asked.extend(requests)
            return [(-1.0, False)] * len(requests)

        def generate_until(self, requests: list[Instance]) -> list[str]:
            asked.extend(requests)
            return [""] * len(requests)

    evaluated(Heard("scripted:echo"), folder, [name])
    task = harness_task(name, include_path=folder)
    heard = ScriptedModel()
    mode = "generate" if name.startswith("written") else "score"
    amplify.evaluate(task, heard, ["zero_shot"], mode=mode, progress=False)
    if mode == "score":
        assert {(c.text, c.continuation) for c in heard.calls} == {r.args for r in asked}
    else:
        assert {c.text for c in heard.calls} == {r.args[0] for r in asked}


def test_shots_of_a_method_come_from_the_training_split(model: Any, folder: Path) -> None:
    task = harness_task("labels_zero", include_path=folder, metric="acc_norm")
    assert (len(task.train), len(task.validation), len(task.test)) == (8, 0, 8)
    assert [e.label for e in task.test] == [LABELS[i % 2] for i in range(8)]
    report = amplify.evaluate(task, model, ["few_shot"], mode="score", seeds=[0, 1], progress=False)
    assert set(report.rows[0].metrics) == {"acc"}
    assert set(harness_results(task, report)) == {"few_shot seed 0", "few_shot seed 1"}


def test_a_chat_goes_through_the_model_s_own_template(model: Any, folder: Path) -> None:
    own = HFLM(pretrained=model.module, tokenizer=model.tokenizer, batch_size=1, device="cpu")
    options = {"apply_chat_template": True, "fewshot_as_multiturn": True}
    theirs, ours = (evaluated(lm, folder, ["choices_two_shots"], **options) for lm in (own, AmplifyLM(model)))
    assert ours["choices_two_shots"] == pytest.approx(theirs["choices_two_shots"], abs=1e-6)


def test_a_chat_reaches_a_model_that_renders_it_itself() -> None:
    model = ScriptedModel(reply=lambda text: "Yes.")
    lm = AmplifyLM(model)
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Is it?"}]
    context = lm.apply_chat_template(turns)
    assert lm.generate_until([Instance("generate_until", {}, (context, {}), 0)]) == ["Yes."]
    assert model.calls[0].prompt == Prompt(messages=tuple(turns))
    begun = lm.apply_chat_template([*turns, {"role": "assistant", "content": "It"}], add_generation_prompt=False)
    lm.generate_until([Instance("generate_until", {}, (begun, {"until": "."}), 0)])
    assert model.calls[1].prompt == Prompt(messages=tuple(turns), prefix="It")


def test_the_probability_of_a_whole_text_is_the_harness_s(model: Any) -> None:
    own = HFLM(pretrained=model.module, tokenizer=model.tokenizer, batch_size=1, device="cpu")
    texts = [TEXTS[0], " ".join(TEXTS * 20)]  # the second is longer than the window
    assert len(model.tokenizer(texts[1])["input_ids"]) > model.max_context
    asked = [Instance("loglikelihood_rolling", {}, (text,), i) for i, text in enumerate(texts)]
    assert AmplifyLM(model).loglikelihood_rolling(asked) == pytest.approx(own.loglikelihood_rolling(asked), rel=1e-5)


def test_a_request_without_a_context_stands_behind_the_first_token(model: Any) -> None:
    own = HFLM(pretrained=model.module, tokenizer=model.tokenizer, batch_size=1, device="cpu")
    asked = [Instance("loglikelihood", {}, ("", "The answer"), 0)]
    assert AmplifyLM(model).loglikelihood(asked)[0] == pytest.approx(own.loglikelihood(asked)[0], abs=1e-5)


def test_a_steered_model_is_steered(model: Any) -> None:
    steering = amplify.Steering(heads={0: [0, 1], 1: [2]}, alpha=0.05)
    context = "Great phone, terrible battery. The answer is"
    asked = [Instance("loglikelihood", {}, (context, " positive"), 0)]
    wanted = model.score([Prompt(text=context, emphasis=(Span(0, 12),))], [" positive"], steering=steering)[0].total
    by_function = AmplifyLM(model, steering=steering, emphasis=lambda text: [Span(0, 12)])
    assert by_function.loglikelihood(asked)[0][0] == pytest.approx(wanted, abs=1e-6)
    by_marks = AmplifyLM(model, steering=steering, emphasis="marks")
    marked = [Instance("loglikelihood", {}, (f"**{context[:12]}**{context[12:]}", " positive"), 0)]
    assert by_marks.loglikelihood(marked)[0][0] == pytest.approx(wanted, abs=1e-6)
    assert abs(AmplifyLM(model).loglikelihood(asked)[0][0] - wanted) > 1e-3


def test_a_program_answers(model: Any, folder: Path, tmp_path: Path) -> None:
    task = harness_task("labels_zero", include_path=folder)
    program = make("few_shot", mode="score", shots=2).fit(task, model, 0)
    program.save(tmp_path / "program.json")
    found = evaluated(AmplifyLM(model, tmp_path / "program.json"), folder, ["labels_zero"])["labels_zero"]
    method = make("few_shot", mode="score", shots=2)
    report = amplify.evaluate(task, model, [method], seeds=[0], progress=False)
    assert found["acc,none"] == pytest.approx(report.rows[0].score, abs=1e-6)


def test_a_program_that_only_writes_answers_written_tasks() -> None:
    program = make("zero_shot").fit(amplify.load_task("coin_flip"), ScriptedModel(), 0)
    lm = AmplifyLM(ScriptedModel(reply=lambda text: "The answer is yes."), program)
    assert lm.generate_until([Instance("generate_until", {}, ("A coin.", {}), 0)]) == ["yes"]
    asked = [Instance("loglikelihood", {}, ("A coin.", f" {c}"), i, ("t", 0, 1)) for i, c in enumerate(("yes", "no"))]
    with pytest.raises(CapabilityError, match="mode='score'"):
        lm.loglikelihood(asked)
    with pytest.raises(CapabilityError, match="single text"):
        lm.loglikelihood(asked[:1])
    with pytest.raises(CapabilityError, match="bare model"):
        lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, ("A coin.",), 0)])


def test_what_greedy_decoding_writes_ends_at_a_token(model: Any) -> None:
    own = HFLM(pretrained=model.module, tokenizer=model.tokenizer, batch_size=1, device="cpu")
    lm = AmplifyLM(model)
    asked = []
    for text in TEXTS:
        written = model.generate([Prompt(text=text)], amplify.Sampling(max_tokens=3))[0].text
        asked += [Instance("loglikelihood", {}, (text, part), 0) for part in (written, written[:1], written[:-1], " p")]
    asked = [a for a in asked if a.args[1].strip()]
    mine = [greedy for _, greedy in lm.loglikelihood(asked)]
    assert mine == [greedy for _, greedy in own.loglikelihood(asked)]
    assert 0 < sum(mine) < len(mine)


def test_errors_say_what_to_do(folder: Path) -> None:
    with pytest.raises(InputError, match="give both"):
        AmplifyLM("scripted:echo", steering=amplify.Steering(heads={0: [0]}))
    with pytest.raises(InputError, match="its own steering"):
        AmplifyLM("scripted:echo", "program.json", steering=amplify.Steering(heads={0: [0]}), emphasis="all")
    with pytest.raises(CapabilityError, match="loglikelihood"):
        AmplifyLM(ScriptedGenerator()).loglikelihood([Instance("loglikelihood", {}, ("a", " b"), 0)])
    with pytest.raises(InputError, match="top_k"):
        AmplifyLM("scripted:echo").generate_until([Instance("generate_until", {}, ("a", {"top_k": 3}), 0)])
    with pytest.raises(DataError, match="cannot load"):
        harness_task("no_such_task", include_path=folder)
    with pytest.raises(UnknownNameError, match="acc_norm"):
        harness_task("labels_zero", include_path=folder, metric="acc_norms")
    odd = json.loads((folder / "labels_zero.yaml").read_text())
    with pytest.raises(InputError, match="behind one blank"):
        harness_task({**odd, "task": "odd", "target_delimiter": "\n"})
    drawn = json.loads((folder / "written.yaml").read_text())
    sampled = {"until": ["."], "do_sample": True, "temperature": 0.7}
    with pytest.raises(InputError, match="greedily"):
        harness_task({**drawn, "task": "drawn", "generation_kwargs": sampled})
    with pytest.raises(InputError, match="line break"):
        harness_task({**odd, "task": "odd", "doc_to_text": "{{text}}{{'\n'}}"})


def test_a_report_is_read_where_the_task_is_not_open(folder: Path, tmp_path: Path) -> None:
    task = harness_task("labels_zero", include_path=folder)
    amplify.evaluate(task, ScriptedModel(), ["zero_shot"], mode="score", out=tmp_path / "run", progress=False)
    held = OPENED.pop(task.metric)
    assert load_report(tmp_path / "run").rows[0].n == 8
    with pytest.raises(DataError, match="harness_task"):
        amplify.metrics.find(task.metric)
    OPENED[task.metric] = held

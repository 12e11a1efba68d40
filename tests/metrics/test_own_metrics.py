"""Metrics of one's own: a function that is registered, and a module of Hugging Face `evaluate` in a folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import amplify
from amplify import metrics
from amplify.errors import DataError, InputError, UnknownNameError
from amplify.evaluation import evaluate
from amplify.registry import table
from amplify.tasks import Task
from amplify.types import Answer, Example

MODULE = """
import datasets
import evaluate


class Letters(evaluate.Metric):
    def _info(self):
        text = datasets.Value("{dtype}")
        return evaluate.MetricInfo(
            description="x", citation="", inputs_description="",
            features=datasets.Features({{"predictions": text, "references": {references}}}),
        )

    def _compute(self, predictions, references):
        pairs = [(set(p), set(r if isinstance(r, str) else r[0])) for p, r in zip(predictions, references)]
        shared = [len(p & r) / len(p | r) for p, r in pairs]
        return {{"letters": sum(shared) / len(shared), "twice": 2 * sum(shared), "name": "letters"}}
"""


@pytest.fixture
def own() -> Iterator[Callable[[str], None]]:
    names: list[str] = []
    yield names.append
    for name in names:
        table("metric").remove(name)


def module(folder: Path, dtype: str = "string", references: str = "text") -> Path:
    path = folder / "letters"
    path.mkdir(exist_ok=True)
    (path / "letters.py").write_text(MODULE.format(dtype=dtype, references=references))
    return path


def asked(metric: str) -> Task:
    test = tuple(Example(str(i), f"question {i}", answers=("abc", "xyz")) for i in range(6))
    return Task(name="own", instruction="Answer.", train=(), validation=(), test=test, metric=metric)


def test_a_function_is_a_metric_of_a_task(own: Callable[[str], None]) -> None:
    own("share_of_x")

    @amplify.register("metric", "share_of_x")
    def share_of_x(prediction: str, reference: str) -> float:
        """Share of the letter x."""
        return prediction.count("x") / len(prediction)

    assert metrics.KINDS["share_of_x"].description == "Share of the letter x."
    with amplify.load_model("scripted:say= xxyy") as model:
        report = evaluate(asked("share_of_x"), model, ["zero_shot"])
    assert report.row("zero_shot").score == 0.5
    assert report.config["score"] == "share_of_x"
    assert metrics.scores("share_of_x", ["xy", None], ["a", "b"]) == {
        "share_of_x": 0.25, "unparsed": 0.5,
    }  # fmt: skip


@pytest.mark.parametrize("score", [1.5, -0.1, float("nan")])
def test_a_score_that_is_no_share_is_refused(own: Callable[[str], None], score: float) -> None:
    own("odd")
    amplify.register("metric", "odd", lambda prediction, reference: score)
    with pytest.raises(InputError, match=r"odd gives 'a' against 'abc' the score .*between 0 and 1"):
        metrics.answer_scores("odd", Answer("a"), asked("odd").test[0])


def test_what_is_no_metric_is_refused() -> None:
    with pytest.raises(InputError, match="a function of a prediction and a reference"):
        amplify.register("metric", "odd", 3)
    with pytest.raises(UnknownNameError, match=r"Did you mean 'accuracy'.*evaluate:FOLDER"):
        evaluate(asked("acuracy"), amplify.load_model("scripted:say=x"), ["zero_shot"])


@pytest.mark.parametrize("references", ["text", "datasets.Sequence(text)"])
def test_a_module_of_evaluate_is_a_metric_of_a_task(tmp_path: Path, references: str) -> None:
    name = f"evaluate:{module(tmp_path, references=references)}"
    with amplify.load_model("scripted:say= abcd") as model:
        report = evaluate(asked(name), model, ["zero_shot"], out=tmp_path / "run")
    assert report.row("zero_shot").score == 0.75  # the best of the accepted answers
    scores = metrics.answer_scores(f"{name}#letters", Answer("abc"), asked(name).test[0])
    assert scores == {f"{name}#letters": 1.0}
    assert metrics.answer_scores(name, Answer(None), asked(name).test[0]) == {name: 0.0}


def test_a_task_file_cannot_ask_for_code(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("q,a\n" + "".join(f"what is {i}?,{i}\n" for i in range(30)))
    task = "files: {all: rows.csv}\nfields: {text: q, label: a}\nsplits: {train: 5, validation: 5, test: 20}\n"
    mine = f"evaluate:{module(tmp_path)}"
    for name in (mine, "evaluate:somebody/metric", "evaluate:./letters", "evaluate:letters.py"):
        (tmp_path / "own.yaml").write_text(f"{task}metric: '{name}'\n")
        with pytest.raises(InputError, match="code that would run here"):
            amplify.load_task(tmp_path / "own.yaml")
        assert amplify.load_task(tmp_path / "own.yaml", metric="f1").metric == "f1"
    assert amplify.load_task(tmp_path / "own.yaml", metric=mine).metric == mine


def test_a_module_that_does_not_serve_is_one_clear_error(tmp_path: Path) -> None:
    name, example = f"evaluate:{module(tmp_path)}", asked("accuracy").test[0]
    with pytest.raises(InputError, match="gives no number 'name'; it gives letters, twice"):
        metrics.answer_scores(f"{name}#name", Answer("abc"), example)
    with pytest.raises(InputError, match="between 0 and 1"):
        metrics.answer_scores(f"{name}#twice", Answer("abc"), example)
    with pytest.raises(DataError, match=r"nowhere.*give the folder of a module"):
        metrics.find(f"evaluate:{tmp_path / 'nowhere'}")
    numbers = tmp_path / "numbers"
    numbers.mkdir()
    with pytest.raises(InputError, match="compares one text with another"):
        metrics.find(f"evaluate:{module(numbers, dtype='int32')}")

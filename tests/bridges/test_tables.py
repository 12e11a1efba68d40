"""Tables as frames and files, and runs in the trackers' own stores: what is read back is what the report says."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import amplify
from amplify.bridges.tables import figures, tables, write_parquet
from amplify.errors import InputError, RunError
from amplify.evaluation import load_report
from amplify.models.scripted import ScriptedModel
from amplify.types import Attribution


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    task = amplify.load_task("coin_flip", limit=6)
    methods = ["zero_shot", "few_shot"]
    amplify.evaluate(
        task, ScriptedModel("last_answer"), methods, seeds=[0, 1], out=folder, mode="score", progress=False
    )
    return folder


@pytest.fixture(scope="module")
def attributed() -> Any:
    documents = [{"text": "It is in Rome. Rome is old.", "id": "a"}, "Bees fly.", "Wine is red."]
    return amplify.attribute_sources("Where is it?", documents, "scripted:say=Rome", granularity="sentences")


def test_a_report_is_three_frames(run: Path) -> None:
    report, frames = load_report(run), tables(run)
    assert list(frames) == ["rows", "comparisons", "records"]
    assert frames["rows"]["score"].tolist() == [row.score for row in report.rows]
    assert frames["rows"]["cost.calls"].tolist() == [row.cost.calls for row in report.rows]
    assert frames["comparisons"]["p_holm"].tolist() == [c.p_holm for c in report.comparisons]
    assert frames["records"]["id"].tolist() == [r["id"] for r in report.records]
    assert [json.loads(v) for v in frames["records"]["label_scores"]] == [r["label_scores"] for r in report.records]


def test_parquet_gives_the_frames_back(run: Path, tmp_path: Path) -> None:
    written = write_parquet(run, tmp_path / "tables")
    assert [path.name for path in written] == ["rows.parquet", "comparisons.parquet", "records.parquet"]
    for path, frame in zip(written, tables(run).values(), strict=True):
        back = pd.read_parquet(path)
        assert list(back.columns) == list(frame.columns)
        for column in frame:
            assert [_plain(v) for v in back[column]] == [_plain(v) for v in frame[column]], column


def _plain(value: Any) -> Any:
    if isinstance(value, list | np.ndarray):
        return [_plain(v) for v in value]
    return None if value is None or value != value else value


def test_an_attribution_of_sources_is_a_frame_a_level(attributed: Any, tmp_path: Path) -> None:
    frames = tables(attributed)
    assert list(frames) == ["documents", "sentences", "claims", "citations"]
    assert frames["documents"]["id"].tolist() == ["a", "1", "2"]
    assert frames["documents"]["score"].to_numpy() == pytest.approx(attributed.documents.scores)
    assert frames["claims"]["verdict"].tolist() == [c.verdict for c in attributed.claims]
    for path in write_parquet(attributed, tmp_path):
        assert len(pd.read_parquet(path)) == len(frames[path.stem])


def test_words_and_faithfulness_and_a_search_are_frames() -> None:
    words = Attribution("a bc", ("a", "bc"), ((0, 1), (2, 4)), (0.5, -1.0), "x", low=(0.0, -2.0), high=(1.0, 0.0))
    frame = tables(words)["words"]
    assert frame.values.tolist() == [["a", 0, 1, 0.5, 0.0, 1.0], ["bc", 2, 4, -1.0, -2.0, 0.0]]
    model = ScriptedModel(logprob=lambda text, continuation: float(text.count("good")))
    texts = ["good old day", "a good one", "so good it is"]
    why = [amplify.explain(text, " yes", model=model, method="occlusion") for text in texts]
    found = amplify.faithfulness(why, model, ["logprob_drop"], k=1, draws=2)
    frame = tables(found)["rows"]
    assert frame["value.mean"].tolist() == [row.value.mean for row in found.rows]
    task = amplify.load_task("support_tickets")
    tuned = amplify.tune(task, "scripted:first_option", "calls=3000", candidates=["zero_shot", "few_shot[shots=2]"],
                         show_progress=False)  # fmt: skip
    assert tables(tuned)["candidates"]["label"].tolist() == [line.label for line in tuned.table]
    with pytest.raises(InputError, match="SourceAttribution"):
        tables(3)


def test_mlflow_holds_the_run(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    from amplify.bridges.mlflow import log_run

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    store = (tmp_path / "store").as_uri()
    key = log_run(run, tracking_uri=store, name="coins")
    client = mlflow.MlflowClient(tracking_uri=store)
    held, report = client.get_run(key), load_report(run)
    settings, numbers = figures(report)
    assert held.info.status == "FINISHED"
    assert held.data.params["task"] == "coin_flip"
    assert len(held.data.params) == len(settings)
    assert held.data.metrics == {name.replace("[", "_").replace("]", "_"): v for name, v in numbers.items()}
    assert held.data.metrics["few_shot/score"] == report.row("few_shot").score
    files = {f.path for f in client.list_artifacts(key)}
    assert files == {"run.json", "report.html", "report.md", "records.jsonl", "programs", "tables"}
    local = client.download_artifacts(key, "tables/rows.parquet", str(tmp_path))
    assert pd.read_parquet(local)["method"].tolist() == ["zero_shot", "few_shot"]
    again = log_run(report, tracking_uri=store)
    assert client.get_run(again).info.experiment_id == held.info.experiment_id
    client.delete_experiment(held.info.experiment_id)
    with pytest.raises(RunError, match="MLflow does not take"):
        log_run(run, tracking_uri=store)
    if find_spec("alembic") is None:  # mlflow-skinny has no databases
        with pytest.raises(RunError, match="pip install mlflow, or log to a folder"):
            log_run(run, tracking_uri=f"sqlite:///{tmp_path}/m.db")


def test_wandb_holds_the_run_offline(run: Path, tmp_path: Path) -> None:
    wandb = pytest.importorskip("wandb")
    from amplify.bridges.wandb import log_run

    key = log_run(run, mode="offline", folder=tmp_path)
    wandb.teardown()  # its service has written everything once it has ended
    [file] = tmp_path.glob(f"wandb/offline-run-*/run-{key}.wandb")
    written = file.read_bytes()
    for said in (b"few_shot/score", b"coin_flip", b"amplify-run", b"few_shot/over zero_shot/p_holm"):
        assert said in written
    [rows] = file.parent.glob("files/media/table/rows_*.table.json")
    table = json.loads(rows.read_text())
    frame = tables(run)["rows"]
    assert table["columns"] == list(frame.columns)
    at = table["columns"].index("score")
    assert [row[at] for row in table["data"]] == frame["score"].tolist()


def test_an_unfinished_run_is_not_logged(run: Path) -> None:
    from dataclasses import replace

    for name in ("mlflow", "wandb"):
        pytest.importorskip(name)
        module = pytest.importorskip(f"amplify.bridges.{name}")
        with pytest.raises(RunError, match="not finished"):
            module.log_run(replace(load_report(run), finished=False))


def test_ragas_takes_the_answers(attributed: Any) -> None:
    from amplify.bridges.ragas import ragas_rows

    with pytest.raises(InputError, match="one for each"):
        ragas_rows([attributed], [])
    rows = ragas_rows([attributed], ["In Rome."], top_k=1)
    assert rows == [
        {
            "user_input": "Where is it?",
            "response": attributed.answer,
            "retrieved_contexts": [attributed.rerank()[0].text],
            "retrieved_context_ids": [attributed.rerank()[0].id],
            "reference": "In Rome.",
        }
    ]
    pytest.importorskip("ragas")
    from amplify.bridges.ragas import to_ragas

    data = to_ragas([attributed], ["In Rome."])
    assert data.get_sample_type().__name__ == "SingleTurnSample"
    assert data[0].retrieved_contexts == [d.text for d in attributed.sources]
    assert {"user_input", "response", "retrieved_contexts", "reference"} <= set(data.features())

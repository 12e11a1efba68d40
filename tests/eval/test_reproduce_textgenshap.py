"""Every experiment runs by its one command, at the smallest size, on a scripted model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from amplify.methods import make
from amplify.models import load_model
from amplify.tasks import load_task

SCRIPT = Path(__file__).parents[2] / "eval" / "reproduce_textgenshap.py"


def rows() -> list[dict]:
    made = []
    for i in range(4):
        titles = [f"T{i}{j}" for j in range(3)]
        sentences = [[f"Fact {i}{j}. ", "More of it."] for j in range(3)]
        made.append({
            "question": f"what is {i}?", "answer": "Fact", "type": "bridge",
            "context": {"title": titles, "sentences": sentences},
            "supporting_facts": {"title": titles[:1], "sent_id": [0]},
        })  # fmt: skip
    return made


@pytest.mark.parametrize(
    ("command", "wanted"),
    [
        (
            [
                "speed",
                "--counts",
                "3,6",
                "--granularities",
                "documents,words",
                "--engines",
                "naive,trie,packed",
                "--budget",
                "16",
            ],
            "packed",
        ),
        pytest.param(["recall", "--tasks", "hotpotqa", "--limit", "2"], "evidence recall@1", marks=pytest.mark.real),
        pytest.param(["accuracy", "--tasks", "hotpotqa", "--limit", "2", "--keep", "1"], "k=1", marks=pytest.mark.real),
    ],
)
def test_one_command_each(tmp_path: Path, command: list[str], wanted: str) -> None:
    if command[0] != "speed":
        pytest.importorskip("bm25s")
        command = [*command, "--out", str(tmp_path / "runs")]
    (tmp_path / "dev_distractor_50.json").write_text(json.dumps(rows()))
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *command, "--model", "scripted:say= Fact", "--results", str(tmp_path)],
        capture_output=True, text=True, cwd=tmp_path,
        env={**os.environ, "AMPLIFY_DATA": str(tmp_path), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    stem = tmp_path / f"textgenshap_{command[0]}"
    assert wanted in stem.with_suffix(".md").read_text()
    data = json.loads(stem.with_suffix(".json").read_text())
    assert data["command"].startswith(f"python eval/reproduce_textgenshap.py {command[0]}")
    if command[0] == "speed":  # the same prompts, whichever engine comes first
        asked = {(r["documents"], r["granularity"], r["engine"]): r["prompt_tokens"] for r in data["rows"]}
        for count, granularity in {key[:2] for key in asked}:
            assert asked[count, granularity, "naive"] == asked[count, granularity, "trie"]


@pytest.mark.real
def test_the_retriever_keeps_its_best_of_the_common_pool(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AMPLIFY_DATA", str(tmp_path))
    (tmp_path / "dev_distractor_50.json").write_text(json.dumps(rows()))
    bench, task = script("reproduce_textgenshap"), load_task("hotpotqa")
    with load_model("scripted:say= Fact") as model:

        def shown(method: Any) -> list[Any]:
            return [a.sources for a in method.fit(task, model, 0).answer(task.test, model)]

        # out of all documents it is what the retriever gives by itself
        alone = shown(make("rag", search="minilm", documents=1))
        whole = bench.Nearest(k=1)
        assert [s.shown for s in shown(whole)] == [s.shown for s in alone]
        assert [s.ranking for s in shown(whole)] == [s.ranking for s in alone]
        # out of two of three it never takes the third
        for found in shown(bench.Nearest(k=1, documents=2, template="question_last")):
            assert found.shown == found.ranking[:1]
            assert set(found.ranking[:2]) == {0, 1}
            assert found.ranking[2] == 2
        given = [m.fit(task, model, 0).template for m in (bench.Nearest(template="question_last"), make("rag"))]
        assert [t.name for t in given] == ["sources_question_last", "sources_default"]

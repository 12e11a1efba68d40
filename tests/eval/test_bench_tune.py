"""The bench of tune: who is compared with whom, and that rivals see no answer of a test item."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import bench_tune
import pytest

from amplify.evaluation.configuration import chosen_items
from amplify.models.scripted import ScriptedModel
from amplify.tasks import Task
from amplify.types import Example

LABELS = ("red", "green", "blue")


def items(split: str, n: int) -> tuple[Example, ...]:
    return tuple(Example(f"{split}{i}", f"the {LABELS[i % 3]} thing, {split} {i}", LABELS[i % 3]) for i in range(n))


@pytest.fixture
def colours() -> Task:
    return Task(
        name="colours", instruction="Which colour?", labels=LABELS, input_name="Thing",
        train=items("train", 60), validation=items("validation", 130), test=items("test", 60),
    )  # fmt: skip


def cell(tuned: list[float], plain: list[float], proxy: list[float] | None = None, **more: Any) -> dict[str, Any]:
    scores = {"tuned": tuned, "plain": plain, **({"proxy": proxy} if proxy else {})}
    return {"task": "colours", "seed": 0, "limit": 60, "label": "few_shot", "plain": "zero_shot", "scores": scores,
            "spent": {"seconds": 60.0, "forwarded": 100.0, "calls": 300.0}, "one_by_one": 400.0, **more}  # fmt: skip


def test_the_table_compares_with_the_better_of_plain_and_proxy() -> None:
    half, most, none = [1.0, 0.0] * 30, [1.0] * 54 + [0.0] * 6, [0.0] * 60
    text = bench_tune.table([cell(most, half, none), cell(most, half, most), cell(half, most)])
    one, two, three = text.splitlines()[2:5]
    assert "+40.0" in one
    assert one.count("+40.0") == 2  # the proxy is the worse one
    assert "| +0.0 (" in two
    assert "-40.0" in three
    assert "| 4.0 |" in one
    assert "above the best plain program on 2 (p < 0.01 after Holm) and below on 1" in text
    assert (
        "of 2 where the proxy alone was run too, above the better of plain and proxy alone on 1 and below on 0" in text
    )
    assert "not run" in three


def test_a_task_of_test_items_alone_lends_others_than_those_tested(colours: Task) -> None:
    from dataclasses import replace

    alone = replace(colours, train=(), validation=(), test=items("test", 150))
    lent = bench_tune.searchable(alone, 20)
    assert list(lent.test) == chosen_items(alone, 20) == chosen_items(lent, 20)
    assert len(lent.validation) == bench_tune.LENT
    assert not {e.id for e in lent.test} & {e.id for e in lent.validation}
    assert bench_tune.searchable(colours, 20) is colours


STAND_IN = """#!{python}
import json, sys
script, name, asked, answers = sys.argv[1:5]
held = json.load(open(asked))
assert len(held["validation"]) == 16 and len(held["train"]) == 30
assert all(set(row) == {{"text"}} for row in held["test"])
shown = {{row["text"] for split in ("train", "validation") for row in held[split]}}
assert not shown & {{row["text"] for row in held["test"]}}
said = [next((c for c in held["labels"] if c in row["text"]), None) for row in held["test"]]
json.dump({{"calls": 7, "answers": said[:-1] + [None], "dspy": "x"}}, open(answers, "w"))
"""


def test_rivals_are_given_the_labelled_items_and_no_answer_of_a_test_item(
    colours: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_tune.amplify, "load_task", lambda name: colours)
    python = tmp_path / "python"
    python.write_text(STAND_IN.format(python=sys.executable))
    python.chmod(0o755)
    one = cell([1.0] * 60, [0.0] * 60)
    model = ScriptedModel("red", reply=lambda text: "red.", logprob=lambda text, label: -1.0 - ("red" not in label))
    how = bench_tune.Rivalry(str(python), "http://127.0.0.1:9", "model", 0)
    assert len(list(bench_tune.rivals(one, model, how, tmp_path))) == 4
    assert not list(bench_tune.rivals(one, model, how, tmp_path))  # nothing is left to do
    found = one["rivals"]
    assert one["prompts"] == 100
    assert {name: rival["calls"] for name, rival in found.items()} == {
        "best_of_n": 96, "bootstrap": 7, "mipro": 7, "gepa": 7,
    }  # fmt: skip
    assert sum(found["gepa"]["scores"]) == 59  # no answer is a wrong one
    assert sum(found["best_of_n"]["scores"]) == 20
    assert json.loads((tmp_path / "colours-0" / "rivals.json").read_text())["labels"] == list(LABELS)
    assert bench_tune.rival_table([one]).count("| colours |") == 4

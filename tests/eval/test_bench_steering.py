"""What `eval/bench_steering.py` compares is the same thing done in two ways."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch


@pytest.fixture(scope="module")
def bench(script: Any) -> Any:
    return script("bench_steering")


def test_the_released_way_gives_the_logits_of_steering(bench: Any) -> None:
    found = bench.differences(torch.device("cpu"))
    assert found["dense"] < 1e-4
    assert found["plain"] > 0.1  # both do something


def test_the_released_way_leaves_the_model_as_it_was(bench: Any) -> None:
    model = bench.shaped("tiny", torch.float32, torch.device("cpu"))
    sides = bench.shaped_sides(model, bench.Steering(heads={0: [1], 2: [0, 3]}, exempt_generated=True))
    prompts = [list(range(1, 31))]
    before = torch.stack(sides["plain"](prompts, 4))
    assert not torch.equal(torch.stack(sides["dense"](prompts, 4)), before)
    assert torch.equal(torch.stack(sides["plain"](prompts, 4)), before)
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_shape_is_measured(bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = "transformers --shape tiny --heads 6 --tokens 40 --new 2 --rounds 1 --narrow --out"
    monkeypatch.setattr(sys, "argv", ["bench_steering.py", *asked.split(), str(tmp_path / "found.json")])
    bench.main()
    found = json.loads((tmp_path / "found.json").read_text())
    assert set(found["throughput"]) == {"steered/plain", "dense/plain", "narrow/plain"}
    assert {"plain", "steered", "dense", "steered/plain", "dense/plain"} <= set(found["peak_memory"])


def test_a_round_that_no_clock_saw_has_no_ratio(bench: Any) -> None:
    spent = bench.Spent(wall={"a": [2.0, 2.0], "b": [1.0, 1.0]}, cpu={"a": [0.01, 0.0], "b": [0.0, 0.01]})
    found = bench.throughput(spent, [("b", "a"), ("a", "b")])
    assert found["throughput"]["b/a"]["median"] == 2
    assert found["throughput"]["a/b"]["median"] == 0.5
    assert found["throughput_by_processor_time"] == {"b/a": None, "a/b": None}


def test_the_large_shape_is_that_of_llama_3_1_8b(bench: Any) -> None:
    model = bench.shaped("llama-8b", torch.bfloat16, torch.device("meta"))
    assert model.num_parameters() == 8_030_261_248

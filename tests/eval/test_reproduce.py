"""One command a table: the cost first, then the run, then the table beside what was published."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import tiny_models
import yaml
from click.testing import CliRunner
from reproduce import SMALL, tables_of
from test_reproduce_textgenshap import rows

Run = Callable[..., Any]


@pytest.fixture
def reproduce(script: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    module = script("reproduce")
    monkeypatch.syspath_prepend(str(Path(module.__file__ or "").parent))
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> Any:
        return CliRunner().invoke(module.main, [str(w) for w in words], catch_exceptions=False)

    return run


def test_it_runs_small_on_a_scripted_model_and_goes_on(reproduce: Run, tmp_path: Path) -> None:
    asked = ("self_amplify", "shots", "--small", "--model", "scripted:say=yes")
    first = reproduce(*asked)
    assert first.exit_code == 0, first.output
    assert first.output.index("What it will cost") < first.output.index("together") < first.output.index("## Beside")
    stem = tmp_path / "runs" / "reproduce" / "results" / "self_amplify_shots_small"
    held = json.loads(stem.with_suffix(".json").read_text())
    assert held["model"]["id"] == "scripted:say=yes"
    assert held["tasks"]["coin_flip"]["finished"]
    assert "±49 points" in stem.with_suffix(".md").read_text()
    records = next((tmp_path / "runs").rglob("records.jsonl"))
    before = (records.read_bytes(), records.stat().st_mtime_ns)
    again = reproduce(*asked)
    assert again.exit_code == 0, again.output
    assert (records.read_bytes(), records.stat().st_mtime_ns) == before


def test_a_dry_run_asks_nothing(reproduce: Run, tmp_path: Path) -> None:
    further = ("--dry-run", "--", "--tasks", "over_refusal")
    done = reproduce("pasta", "refusals", "--small", "--model", "scripted:echo", *further)
    assert done.exit_code == 0, done.output
    assert "together" in done.output
    assert "## Beside" not in done.output
    assert not list(tmp_path.rglob("records.jsonl"))


def test_steering_is_reproduced_on_a_tiny_model(reproduce: Run, tiny_lm: Path, tmp_path: Path) -> None:
    import amplify

    amplify.Steering(heads={0: [0, 1]}, model={"layers": 3, "heads": 4}).save(tmp_path / "heads.yaml")
    done = reproduce(
        "pasta", "main", "--small", "--model", f"transformers:{tiny_lm}", "-B", "dtype=float32", "--",
        "--profile", tmp_path / "heads.yaml", "--limit", "2",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    told = done.output.partition("## Beside")[2]
    assert "| json_formatting | zero_shot | paper_prediction_accuracy | zero-shot | 54.94 | " in told
    assert "theirs LLaMA-7B" in told


def test_an_unknown_table_names_those_there_are(reproduce: Run) -> None:
    done = reproduce("textgenshap", "main")
    assert done.exit_code == 2
    assert "speed, recall, accuracy, uses" in done.output


EVERY = [(paper, table) for paper in SMALL for table in tables_of(paper)]
QUICK = {"amplify k", "self_amplify lead", "pasta main", "textgenshap speed"}
"""Tables that run with every change; all others with the tests of real models, since together they take minutes."""


@pytest.fixture(scope="module")
def wide_lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights and a window that twelve shots fit, byte by byte."""
    return tiny_models.language_model(tmp_path_factory.mktemp("wide"), window=8192)


@pytest.mark.parametrize(
    ("paper", "table"),
    [pytest.param(*one, marks=[] if " ".join(one) in QUICK else [pytest.mark.real, pytest.mark.slow]) for one in EVERY],
    ids=[" ".join(one) for one in EVERY],
)
def test_every_table_of_every_paper_runs_small(
    paper: str, table: str, reproduce: Run, tmp_path: Path, wide_lm: Path, tiny_encoder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """On a model of random weights: what is shown is that it runs, from its cost to its table."""
    import amplify

    further = {"amplify": ["--proxy", tiny_encoder], "llm_explainers": ["--proxy", tiny_encoder]}.get(paper, [])
    if paper == "pasta":
        amplify.Steering(heads={0: [0, 1]}, model={"layers": 3, "heads": 4}).save(tmp_path / "heads.yaml")
        further = ["--profile", tmp_path / "heads.yaml"]
    if paper == "textgenshap":
        monkeypatch.setenv("AMPLIFY_DATA", str(tmp_path))
        (tmp_path / "dev_distractor_50.json").write_text(json.dumps(rows()))
    done = reproduce(
        paper, table, "--small", "--model", f"transformers:{wide_lm}", "-B", "dtype=float32", "--", *further
    )
    assert done.exit_code == 0, done.output
    assert done.output.index("What it will cost") < done.output.index("## Beside")
    written = tmp_path / "runs" / "reproduce" / "results" / f"{paper}_{table}_small"
    assert "What differs" in written.with_suffix(".md").read_text()
    assert json.loads(written.with_suffix(".json").read_text())


@pytest.mark.parametrize("model", ["openai:m@{url}", "ray:2×scripted:last_answer"])
def test_it_works_through_servers_and_workers(model: str, reproduce: Run, tmp_path: Path) -> None:
    from fake_server import FakeServer

    with FakeServer(say="yes") as server:
        asked = ("self_amplify", "shots", "--small", "--model", model.format(url=server.url))
        done = reproduce(*asked)
        assert done.exit_code == 0, done.output
        assert "## Beside" in done.output
        records = next((tmp_path / "runs").rglob("records.jsonl")).read_bytes()
        before = len(server.seen)
        assert reproduce(*asked).exit_code == 0
        assert next((tmp_path / "runs").rglob("records.jsonl")).read_bytes() == records
        assert len(server.seen) - before <= 2  # what the server can do is looked at; nothing is asked again


@pytest.mark.parametrize(
    ("paper", "table"), [("amplify", ""), ("self_amplify", ""), ("pasta", ""), ("llm_explainers", ""),
                         *(("textgenshap", table) for table in ("speed", "recall", "accuracy", "uses"))]
)  # fmt: skip
def test_the_paper_s_size_is_planned_and_what_lacks_is_told(
    paper: str, table: str, reproduce: Run, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import amplify

    def work(*_: Any, **__: Any) -> None:
        pytest.fail("a plan explains nothing and ranks no documents")

    for place in ("sources.attribute.explained", "methods.rag.open_retriever", "methods.self_amplify.explain_prompted"):
        monkeypatch.setattr(f"amplify.{place}", work)
    table, further = table or tables_of(paper)[0], []
    if paper == "pasta":
        amplify.Steering(heads={0: [0, 1]}, model={"layers": 3, "heads": 4}).save(tmp_path / "heads.yaml")
        further = ["--", "--profile", tmp_path / "heads.yaml"]
    done = reproduce(paper, table, "--paper", "--dry-run", "--model", "scripted:first_option", *further)
    assert done.exit_code == 0, done.output
    assert "What it will cost" in done.output
    assert "together" in done.output or "prompts" in done.output
    if (paper, table) not in (("amplify", "all"), ("textgenshap", "speed")):  # their tasks lie in the tests' data
        assert "left out here" in done.output


def test_a_plan_does_not_wait_for_a_hub_that_does_not_answer(
    script: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    def refused(*_: Any, **__: Any) -> None:
        raise ConnectionError

    def offline(path: str, *_: Any, **__: Any) -> None:
        seen.append(constants.HF_HUB_OFFLINE)
        raise ConnectionError(f"no {path}")

    seen: list[bool] = []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.get_session", lambda: SimpleNamespace(head=refused))
    monkeypatch.setattr("datasets.load_dataset", offline)
    monkeypatch.setenv("AMPLIFY_DATA", "")
    assert script("measuring").loaded(["arc_challenge", "coin_flip"], dry_run=True).keys() == {"coin_flip"}
    assert seen == [True]
    assert not constants.HF_HUB_OFFLINE


@pytest.mark.parametrize("paper", ["amplify", "self_amplify", "pasta", "textgenshap", "llm_explainers"])
def test_every_size_is_a_command_line_that_its_script_takes(script: Callable[[str], ModuleType], paper: str) -> None:
    module = script("reproduce")
    main = script(f"reproduce_{paper}").main
    for table in module.tables_of(paper):
        for size in ("small", "paper", "reduced"):
            line = module.arguments(paper, table, size, ["--dry-run", "-B", "dtype=float32", "--name", "x"])
            command = main.commands[line.pop(0)] if hasattr(main, "commands") else main
            command.make_context(table, list(line))


def test_published_figures_are_of_tables_methods_and_tasks_that_exist(script: Callable[[str], ModuleType]) -> None:
    from amplify.methods import METHODS

    module = script("reproduce")
    known = yaml.safe_load(module.PUBLISHED.read_text())
    there = {file.stem for file in Path(__file__).parents[2].glob("tasks/*.yaml")}
    assert set(known) == set(module.SMALL)
    for paper, one in known.items():
        assert set(one.get("says", {})) <= set(module.tables_of(paper))
        assert one["differs"]
        for table, held in (one.get("tables") or {}).items():
            assert table in module.tables_of(paper)
            assert {column.partition("[")[0] for column in held["columns"]} <= set(METHODS)
            for figures in held["rows"]:
                assert set(figures) - {"task", "score"} == set(held["columns"].values())
            tasks = {figures["task"] for figures in held["rows"]}
            assert set(held["near"].values()) <= tasks
            assert {task.partition("/")[0] for task in [*tasks, *held["near"]]} <= there


def test_ours_is_compared_by_the_published_score_and_by_whose_heads_are_steered(
    script: Callable[[str], ModuleType],
) -> None:
    compared = script("reproduce").compared
    columns = {"pasta": "own", "pasta[multi]": "several", "pasta[agnostic]": "others"}
    figures = {"task": "t", "score": "paper_x", "own": 90.0, "several": 80.0, "others": 70.0}
    theirs = {"scale": 100, "columns": columns, "rows": [figures], "near": {"like_t": "t"}}
    row = {"method": "pasta[alpha=0.1]", "score": 0.5, "low": 0.4, "high": 0.6, "n": 20, "metrics": {"paper_x": 0.75}}
    labels = ("pasta[alpha=0.1]", "pasta[profile=m]", "pasta[profile=n,alpha=0.1]", "zero_shot")
    data = {
        "model": {"id": "transformers:m"},
        "tasks": {"t": {"rows": [{**row, "method": label} for label in labels]}, "like_t": {"rows": [row]}},
    }
    assert [found[3:6] for found in compared(theirs, data)] == [
        ("own", "90.00", "75.0"), ("several", "80.00", "75.0"), ("others", "70.00", "75.0"), ("own", "90.00", "75.0"),
    ]  # fmt: skip
    data["command"] = "reproduce.py pasta main -- --multi n --profile m"
    assert [found[3] for found in compared(theirs, data)[:3]] == ["own", "own", "several"]
    del figures["score"]
    assert compared(theirs, data)[0][5:] == ("50.0", "40.0 to 60.0", "20")


@pytest.mark.parametrize(
    ("paper", "table", "file", "told"),
    [
        ("pasta", "main", "pasta_main_json_formatting", "_prediction_accuracy | task-specific heads | 86.83 | 55.0"),
        ("pasta", "main", "pasta_main_counterfact_known", "stands for counterfact/efficacy"),
        ("pasta", "heads", "pasta_heads", "Steering every head is worse"),
        ("amplify", "main", "amplify_main_tickets_generate", "theirs not at hand"),
        ("self_amplify", "main", "self_amplify_main_score", "350 samples"),
        ("textgenshap", "uses", "textgenshap_uses_hotpotqa", "5 to 10 points"),
        ("llm_explainers", "main", "llm_explainers", ".396, .359, .380"),
    ],
)  # fmt: skip
def test_results_that_are_there_are_put_beside_what_was_published(
    paper: str, table: str, file: str, told: str, reproduce: Run, tmp_path: Path
) -> None:
    results = Path(__file__).parents[2] / "eval" / "results" / f"{file}.json"
    done = reproduce(paper, table, "--read", results)
    assert done.exit_code == 0, done.output
    assert told in done.output
    assert "What differs" in done.output
    assert not list(tmp_path.iterdir())


def test_the_page_s_table_is_what_the_script_reads(script: Callable[[str], ModuleType]) -> None:
    module, root = script("reproduce"), Path(__file__).parents[2]
    page = (root / "docs" / "howto" / "reproduce.md").read_text()
    shown = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line[:1] == "|"]
    columns = next(row for row in shown if row[0] == "task, score")[2:]
    rows = [row[2:] for row in shown if row[1] in ("theirs", "ours") and len(row) == 8]
    theirs = yaml.safe_load(module.PUBLISHED.read_text())["pasta"]["tables"]["main"]
    expected: list[list[str]] = []
    for task, file in (("json_formatting", "json_formatting"), ("counterfact", "counterfact_known")):
        data = json.loads((root / f"eval/results/pasta_main_{file}.json").read_text())
        compared = module.compared(theirs, data)
        for figures in theirs["rows"]:
            if figures["task"].partition("/")[0] == task:
                found = {row[3]: row for row in compared if row[2] == figures["score"]}
                expected.append([f"{figures[column]:.2f}" for column in columns])
                expected.append([found[column][5] if column in found else "–" for column in columns])
    assert rows == expected

"""A package that adds one thing of each kind, installed into a fresh environment and used from the command line."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = Path(__file__).parent / "plugin_package"
HERE = "[amplify-parrots 0.3]"

Command = Callable[..., str]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The interpreter of an environment that has the package, this checkout, and borrows everything else."""
    folder = tmp_path_factory.mktemp("extended")
    shutil.copytree(PACKAGE, folder / "source")
    venv.create(folder / "env", with_pip=False)
    site = folder / "env" / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(site), str(folder / "source")], check=True)
    (site / "borrowed.pth").write_text(f"{ROOT}\n{sysconfig.get_path('purelib')}\n")
    return str(folder / "env" / "bin" / "python")


@pytest.fixture
def amplify(python: str, tmp_path: Path) -> Command:
    """Call amplify in an empty folder; what it prints."""

    def call(*arguments: str, status: int = 0) -> str:
        env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"AMPLIFY_DATA": ""}
        command = [python, "-m", "amplify.cli", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env, check=False)
        assert done.returncode == status, done.stderr
        return done.stdout if status == 0 else done.stderr

    return call


def records(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("methods", rf"short_shots +method   The shortest labelled examples before the question\.  {re.escape(HERE)}"),
        ("methods", rf"few_shot_longest +baseline The longest examples .*{re.escape(HERE)}"),
        ("methods", rf"majority +baseline The commonest label .*{re.escape(HERE)}"),
        ("explainers", rf"alone +What each word gives by itself, .*{re.escape(HERE)}"),
        ("models", rf"parrot:… +Says back the last words .*{re.escape(HERE)}"),
        ("metrics", rf"letters +Share of the letters .*{re.escape(HERE)}"),
        ("task_formats", rf"cards +Flash cards.*{re.escape(HERE)}"),
        ("estimators", rf"drop_one +The value of everything .*{re.escape(HERE)}"),
        ("retrievers", rf"shared_words +Counts the words .*{re.escape(HERE)}"),
        ("selections", rf"longest +The longest texts\.  {re.escape(HERE)}"),
        ("steering_modes", rf"gentle +One more than the bonus.*{re.escape(HERE)}"),
    ],
)
def test_it_is_listed(amplify: Command, kind: str, line: str) -> None:
    found = [row for row in amplify("list", kind).splitlines() if re.fullmatch(line, row)]
    assert len(found) == 1


def test_it_is_described(amplify: Command) -> None:
    said = amplify("list", "methods", "short_shots")
    assert "shots: how many." in said
    assert "short_shots.shots=2" in said
    assert said.endswith("from amplify-parrots 0.3\n")


RUN = ("run", "support_tickets", "-m", "parrot:polly", "-B", "words=3", "--limit", "4", "--seeds", "0")


def test_methods_are_planned_run_saved_and_applied(amplify: Command, tmp_path: Path) -> None:
    asked = [*RUN, "-M", "majority,short_shots,few_shot", "--set", "short_shots.shots=1", "--set",
             "few_shot.selection=longest", "--set", "few_shot.shots=2"]  # fmt: skip
    planned = amplify(*asked, "--dry-run")
    assert re.search(r"majority +4 +0 ", planned)
    assert re.search(r"short_shots\[shots=1\] +4 +4 ", planned)
    out = amplify(*asked, "--out", "r")
    config = json.loads((tmp_path / "r" / "run.json").read_text())
    mine, shots = "short_shots[shots=1]", "few_shot[shots=2,selection=longest]"
    assert config["family"] == [[mine, "majority"], [mine, shots]]
    assert config["model"]["id"] == "parrot:polly"
    assert config["versions"]["amplify-parrots"] == "0.3"
    assert "short_shots[shots=1]" in out
    by_method = {r["method"]: r for r in records(tmp_path / "r")}
    assert by_method["majority"]["answer"] in config["task"]["labels"]
    (tmp_path / "new.csv").write_text("message\nmy money is gone\nwhere is my parcel\n")
    program = next((tmp_path / "r" / "programs").glob("*majority*.json"))
    amplify("apply", str(program), "--input", "new.csv", "--text", "message", "-m", "parrot:x", "--out", "a.csv")
    with (tmp_path / "a.csv").open() as file:
        assert [row["answer"] for row in csv.DictReader(file)] == [by_method["majority"]["answer"]] * 2
    assert "Did you mean 'shots'?" in amplify(*RUN, "-M", "short_shots", "--set", "short_shots.shot=1", status=2)
    assert "Did you mean 'words'?" in amplify(*RUN, "-M", "majority", "-B", "word=1", status=2)


def test_a_program_of_a_package_that_is_not_there_says_so(amplify: Command, tmp_path: Path) -> None:
    from amplify.errors import DataError
    from amplify.methods import Program

    amplify(*RUN, "-M", "majority", "--out", "r")
    program = next((tmp_path / "r" / "programs").glob("*majority*.json"))
    with pytest.raises(DataError, match=r"'parrots.always', which neither amplify nor an installed plugin knows"):
        Program.load(program)


def test_a_task_format_and_a_metric(amplify: Command, tmp_path: Path) -> None:
    rows = [{"front": f"{i}: say {w}", "back": w, "exam": i % 2 == 0} for i, w in enumerate("abcdefgh" * 3)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "own.yaml").write_text("files: {all: rows.jsonl}\nformat: cards\nmetric: f1\ninstruction: Repeat.\n")
    amplify("run", "own.yaml", "-m", "parrot:x", "-M", "zero_shot", "--metric", "letters", "--out", "r")
    config = json.loads((tmp_path / "r" / "run.json").read_text())
    assert (config["task"]["metric"], config["score"], len(config["items"])) == ("letters", "letters", 12)
    assert {r["score"] for r in records(tmp_path / "r")} == {1.0}


def test_an_explainer_and_an_estimator(amplify: Command, tmp_path: Path) -> None:
    said = amplify("explain", "good bad", "--target", " x", "--model", "scripted:say=x", "--method", "alone")
    assert "alone" in said
    for name, text in {"a.md": "Ada lives in Bern.", "b.md": "Trees are green.", "c.md": "It rains."}.items():
        (tmp_path / name).write_text(text)
    amplify(
        "attribute", "-q", "Where does Ada live?", "-d", "a.md", "b.md", "c.md", "-m", "scripted:say= Bern",
        "--estimator", "drop_one", "--budget", "4", "--granularity", "documents", "--json", "why.json",
    )  # fmt: skip
    assert "drop_one" in (tmp_path / "why.json").read_text()


def test_a_retriever(amplify: Command, tmp_path: Path) -> None:
    passages = [{"title": "A", "text": "green trees"}, {"title": "B", "text": "where ada lives", "isgold": True}]
    rows = [{"question": f"where ada lives {i}", "answers": ["Bern"], "ctxs": passages} for i in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "own.yaml").write_text("files: {test: rows.jsonl}\nformat: nq\nmetric: qa\ninstruction: Answer.\n")
    rag = ("-M", "rag", "--set", "rag.search=shared_words", "--limit", "3")
    amplify("run", "own.yaml", "-m", "parrot:x", *rag, "--out", "r")
    for record in records(tmp_path / "r"):
        ranking = record["sources"]["ranking"]  # type: ignore[index]
        scores = record["sources"]["scores"]  # type: ignore[index]
        assert scores[ranking[0]] == 3.0
        assert scores[ranking[1]] == 0.0


def test_a_steering_mode(amplify: Command, tmp_path: Path, tiny_lm: Path) -> None:
    (tmp_path / "mine.yaml").write_text("format: 1\nmode: gentle\nbonus: 40.0\n")
    asked = ["generate", "-m", f"transformers:{tiny_lm}", "-B", "dtype=float32", "--max-tokens", "8"]
    steered = amplify(*asked, "great **phone** good", "--steering", "mine.yaml")
    assert steered != amplify(*asked, "great phone good")


def test_the_guide_shows_the_package() -> None:
    """Each example of docs/extending.md is a whole file of the package, which the tests above ran."""
    guide = (ROOT / "docs" / "extending.md").read_text()
    files = {path.name: path.read_text().split('"""', 2)[2].strip() for path in (PACKAGE / "parrots").glob("*.py")}
    files.pop("__init__.py")
    shown = [block.strip() for block in re.findall(r"```python\n(.*?)```", guide, re.DOTALL)][1:]
    assert sorted(shown) == sorted(files.values())
    assert re.search(r"```toml\n(.*?)```", guide, re.DOTALL)[1] in (PACKAGE / "pyproject.toml").read_text()  # type: ignore[index]
    assert all(len(block.splitlines()) <= 40 for block in shown)

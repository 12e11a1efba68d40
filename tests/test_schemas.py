"""The committed schemas are those of the classes, take what the program really writes, and refuse what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

import amplify
from amplify import codec
from amplify.errors import AmplifyError, DataError, RunError
from amplify.evaluation import load_report
from amplify.methods import make
from amplify.methods.base import Program
from amplify.models.scripted import ScriptedModel
from amplify.schemas import NAMES, made, schema
from amplify.sources.result import SourceAttribution


def problems(name: str, value: Any) -> list[str]:
    validator = jsonschema.Draft202012Validator(schema(name))
    return [f"{error.json_path}: {error.message[:200]}" for error in validator.iter_errors(value)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    task = amplify.load_task("coin_flip", limit=4)
    methods = ["zero_shot", "few_shot", "zero_shot_cot"]
    amplify.evaluate(task, ScriptedModel("last_answer"), methods, seeds=[0, 1], out=folder, progress=False)
    return folder


@pytest.fixture(scope="module")
def attributed() -> SourceAttribution:
    documents = ["It is in Rome. Rome is old.", "Bees fly.", "Wine is red."]
    return amplify.attribute_sources("Where is it?", documents, "scripted:say=Rome", granularity="words")


@pytest.mark.parametrize("name", NAMES)
def test_a_committed_schema_is_that_of_the_classes(name: str) -> None:
    assert schema(name) == json.loads(json.dumps(made(name))), "python -m amplify.schemas writes them anew"
    jsonschema.Draft202012Validator.check_schema(schema(name))


def test_a_run_folder_is_as_its_schemas_say(folder: Path) -> None:
    assert problems("run", json.loads((folder / "run.json").read_text())) == []
    for name, file in (("record", "records.jsonl"), ("timing", "timing.jsonl")):
        lines = [json.loads(line) for line in (folder / file).read_text().splitlines()]
        assert len(lines) > 3
        assert [problem for line in lines for problem in problems(name, line)] == []
    programs = list((folder / "programs").iterdir())
    assert len(programs) == 4
    for path in programs:
        assert problems("program", json.loads(path.read_text())) == []


def fitted() -> Iterator[tuple[str, Program]]:
    """Programs of as many kinds as a model without weights can have."""
    from amplify.methods.cascade import CascadeProgram

    task = amplify.load_task("coin_flip")
    model = ScriptedModel("last_answer")
    few = make("few_shot", mode="score", shots=2).fit(task, model, 0)
    yield "shots", few
    yield "nearest", make("few_shot_knn", mode="score").fit(task, model, 0)
    yield "cascade", CascadeProgram(few, make("zero_shot", mode="score").fit(task, model, 0), 0.5)
    yield "sampled", make("self_consistency").fit(task, model, 0)
    yield "trigger", make("ignore_word").fit(amplify.load_task("over_refusal"), model, 0)


def test_programs_are_as_their_schema_says(tmp_path: Path) -> None:
    seen = set()
    for name, program in fitted():
        program.save(tmp_path / "program.json")
        data = json.loads((tmp_path / "program.json").read_text())
        assert problems("program", data) == [], name
        seen.add(data["kind"])
        for key in data:
            less = {k: v for k, v in data.items() if k != key}
            (tmp_path / "less.json").write_text(json.dumps(less))
            taken = not problems("program", less)
            try:
                Program.load(tmp_path / "less.json")
            except AmplifyError:
                assert not taken, f"{name} without {key}"
            else:
                assert taken, f"{name} without {key}"
        assert problems("program", {**data, "more": 1})
    assert len(seen) >= 4


def test_an_attribution_of_sources_is_as_its_schema_says(attributed: SourceAttribution) -> None:
    data = json.loads(json.dumps(attributed.to_dict()))
    assert problems("source_attribution", data) == []
    assert data["sentences"] is not None
    assert data["words"] is not None
    assert problems("source_attribution", {**data, "answer": 3})
    assert problems("source_attribution", {k: v for k, v in data.items() if k != "claims"})


def test_words_of_an_input_are_as_their_schema_says() -> None:
    found = amplify.explain("good old day", " yes", model=ScriptedModel(), method="occlusion")
    data = json.loads(json.dumps(codec.encode(found)))
    assert problems("attribution", data) == []
    assert problems("attribution", {**data, "scores": ["much"]})


def test_shipped_profiles_are_as_their_schema_says() -> None:
    shipped = sorted((Path(amplify.__file__).parents[1] / "steering").glob("*.yaml"))
    assert len(shipped) > 2
    for path in shipped:
        data = yaml.safe_load(path.read_text())
        plain = {**data, "heads": {str(k): v for k, v in data["heads"].items()}}  # YAML may write numbers as keys
        assert problems("profile", json.loads(json.dumps(plain, default=str))) == [], path.name
    assert problems("profile", {"format": 1, "heads": {"a": [0]}})


def test_a_search_is_as_its_schema_says(tmp_path: Path) -> None:
    task = amplify.load_task("support_tickets")
    listed = ["zero_shot", "few_shot[shots=2]"]
    amplify.tune(task, "scripted:first_option", "calls=3000", candidates=listed, out=tmp_path, show_progress=False)
    data = json.loads((tmp_path / "result.json").read_text())
    assert problems("tuned", data) == []
    assert problems("tuned", {**data, "better": "yes"})
    assert problems("program", json.loads((tmp_path / "program.json").read_text())) == []


@pytest.mark.parametrize("version", [0, 99, None])
def test_another_format_is_told(
    version: int | None, folder: Path, attributed: SourceAttribution, tmp_path: Path
) -> None:
    def changed(data: dict[str, Any]) -> dict[str, Any]:
        return {**data, "format": version} if version is not None else {k: v for k, v in data.items() if k != "format"}

    program = changed(json.loads(next((folder / "programs").iterdir()).read_text()))
    (tmp_path / "program.json").write_text(json.dumps(program))
    with pytest.raises(DataError, match="not a program of format 1"):
        Program.load(tmp_path / "program.json")
    assert problems("program", program)
    with pytest.raises(DataError, match=f"of format {version}, and this version of amplify reads"):
        SourceAttribution.from_dict(changed(attributed.to_dict()))
    run = changed(json.loads((folder / "run.json").read_text()))
    (tmp_path / "run.json").write_text(json.dumps(run))
    with pytest.raises(RunError, match="not a run of format 1"):
        load_report(tmp_path)
    assert problems("run", run)
    (tmp_path / "heads.yaml").write_text(yaml.safe_dump(changed({"format": 1, "heads": {0: [1]}})))
    with pytest.raises(DataError, match="not a steering profile of format 1"):
        amplify.Steering.load(tmp_path / "heads.yaml")


EARLIER = Path(__file__).parent / "earlier"
"""Files that earlier versions wrote: `first` by the first that wrote each kind, `renamed` since the names of today."""


@pytest.mark.parametrize(
    ("file", "read", "told"),
    [
        ("first/program.json", Program.load, r"first/program.json: it is damaged, or of an earlier .* Fit it again"),
        ("first", load_report, r"first/run.json was changed, or is of an earlier version: .* Start the run anew"),
        ("first/why.json", SourceAttribution.load, r"first/why.json .* is of format 1, .* reads 2: attribute again"),
    ],
)
def test_what_the_first_versions_wrote_is_one_clear_error(file: str, read: Callable[[Path], Any], told: str) -> None:
    with pytest.raises(AmplifyError, match=told) as caught:
        read(EARLIER / file)
    assert isinstance(caught.value, DataError | RunError)


def test_what_versions_since_the_renaming_wrote_is_read() -> None:
    assert amplify.Steering.load(EARLIER / "first" / "heads.yaml").heads == {0: (1,)}
    folder = EARLIER / "renamed" / "run"
    report = load_report(folder)
    assert [(row.method, row.n) for row in report.rows] == [("zero_shot", 4), ("few_shot", 4)]
    assert problems("run", json.loads((folder / "run.json").read_text())) == []
    for path in (folder / "programs").iterdir():
        assert problems("program", json.loads(path.read_text())) == []
        assert Program.load(path).to_dict()

"""What was saved and then damaged, edited or made by someone else: it loads and works, or it is one AmplifyError."""

from __future__ import annotations

import copy
import json
import os
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import amplify
from amplify.errors import AmplifyError, DataError
from amplify.evaluation import load_report
from amplify.methods import Program, make
from amplify.models.scripted import ScriptedModel
from amplify.proxies.training import CARD, FORMAT, list_proxies, read_card
from amplify.sources.result import SourceAttribution
from amplify.steering import Steering

sys.path.insert(0, str(Path(__file__).parent / "evaluation"))

from evaluation_fakes import Fake, Plain, run

ODD: tuple[Any, ...] = (
    None, True, 0, -1, 7, 10**15, 10**30, 0.5, -0.0, 1e308, "", "x", "日本 \ud83d", "nan", [], [None], [[1]], ["x"],
    {}, {"x": 1}, {"example": {"text": 3}}, {"id": "t", "text": "t"}, "../../x",
)  # fmt: skip
TRIES = int(os.environ.get("AMPLIFY_FUZZ", "250"))


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value."""
    yield at
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield from places(inner, (*at, key))


def mutated(value: Any, rng: random.Random) -> Any:
    """The value with one to three places changed, lost, doubled or renamed."""
    made = copy.deepcopy(value)
    for _ in range(rng.randint(1, 3)):
        where = rng.choice(list(places(made)))
        if not where:
            continue
        holder = made
        for key in where[:-1]:
            holder = holder[key]
        way, last = rng.randrange(5), where[-1]
        if way == 0:
            del holder[last]
        elif way == 1 and isinstance(holder, list):
            holder.insert(rng.randint(0, len(holder)), copy.deepcopy(rng.choice(ODD)))
        elif way == 1:
            holder[rng.choice(("x", "text", "format", "kind"))] = copy.deepcopy(rng.choice(ODD))
        elif way == 2 and isinstance(holder[last], (list, dict)):
            holder[last] = holder[last][:1] if isinstance(holder[last], list) else {}
        else:
            holder[last] = copy.deepcopy(rng.choice(ODD))
    return made


def garbled(content: bytes, rng: random.Random) -> bytes:
    """The bytes with some of them lost, changed or added."""
    made = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(made) + 1)
        way = rng.randrange(4)
        if way == 0:
            del made[at : at + rng.randint(1, 40)]
        elif way == 1:
            made[at:at] = rng.choice((b"[" * 5000, b"\xff\xfe", b"\x00", b'"', b"}", b"NaN", b"1e999", b"9" * 5000))
        elif way == 2 and at < len(made):
            made[at] = rng.randrange(256)
        else:
            del made[at:]
    return bytes(made)


def survives(
    path: Path, original: Any, use: Callable[[], Any], seed: int, dump: Callable[[Any], str] = json.dumps
) -> int:
    """Write many damaged forms of a file and use each; how many were refused."""
    rng, refused = random.Random(seed), 0
    whole = dump(original)
    for number in range(TRIES):
        if number % 5 == 0:
            path.write_bytes(garbled(whole.encode("utf-8", "backslashreplace"), rng))
        else:
            path.write_bytes(dump(mutated(original, rng)).encode("utf-8", "backslashreplace"))
        try:
            use()
        except AmplifyError:
            refused += 1
    path.write_bytes(whole.encode("utf-8", "backslashreplace"))
    use()
    return refused


def model(**options: Any) -> ScriptedModel:
    return ScriptedModel(reply=lambda text: " billing.", logprob=lambda text, said: -1.0 - len(said) / 9, **options)


PROGRAMS = {
    "zero_shot": {}, "few_shot": {"shots": 3}, "zero_shot_cot": {}, "answer_format_only": {},
    "self_amplify_phcot": {"pool": 12, "shots": 3},
}  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
def test_damaged_programs(tmp_path: Path, name: str) -> None:
    task = amplify.load_task("support_tickets")
    program = make(name, **PROGRAMS[name]).fit(task, model(), 0)
    path = tmp_path / "program.json"
    program.save(path)
    assert Program.load(path) == program

    def use() -> None:
        # what loads must be able to ask: a template that was edited says so when it is filled in
        Program.load(path).prompt(task.test[0])  # type: ignore[attr-defined]

    original = json.loads(path.read_text(encoding="utf-8"))
    if "shots" in original:
        original["shots"] = original["shots"][:2]
    assert 0 < survives(path, original, use, seed=len(name)) < TRIES


def test_damaged_head_profiles(tmp_path: Path) -> None:
    path = tmp_path / "heads.yaml"
    Steering(heads={1: (0, 3)}, model={"layers": 4, "heads": 8}, provenance={"seed": 1, "order": ["1.0"]}).save(path)
    original = yaml.safe_load(path.read_text())
    assert 0 < survives(path, original, lambda: Steering.load(path).resolve(4, 8), 1, yaml.safe_dump) < TRIES


def test_damaged_source_attributions(tmp_path: Path) -> None:
    path = tmp_path / "sources.json"
    documents = ["Paris is in France. It is old.", "Tea is hot.", "Lyon is smaller."]
    amplify.attribute_sources("Where is Paris?", documents, model(), "It is in France. Yes.", budget=40).save(path)

    def use() -> None:
        found = SourceAttribution.load(path)
        assert str(found)
        found.rerank(), found.prune(), found.cite(), found.highlight(), found.to_html(tmp_path / "page.html")

    original = json.loads(path.read_text())
    assert 0 < survives(path, original, use, 2) < TRIES
    assert SourceAttribution.load(path).rerank()


def test_damaged_run_folders(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run(folder, methods=[Plain(), Fake()], limit=4, seeds=(0, 1))

    def use() -> None:
        report = load_report(folder)
        assert str(report)
        report.to_html(), report.to_markdown(), report.to_dict()

    for seed, path in enumerate((folder / "run.json", next((folder / "programs").glob("01*")))):
        survives(path, json.loads(path.read_text()), use, seed)
    for name in ("records.jsonl", "timing.jsonl"):
        rows = [json.loads(line) for line in (folder / name).read_text().splitlines()]
        lines = lambda value: "".join(json.dumps(row) + "\n" for row in value)  # noqa: E731
        survives(folder / name, rows, use, 5, lines)


def test_damaged_cards_do_not_break_the_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMPLIFY_HOME", str(tmp_path))
    card = {
        "format": FORMAT, "kind": "encoder", "task": "t", "task_fingerprint": "f", "labels": ["a", "b"],
        "instruction": "i", "input_name": "n", "template": "x", "body": {"name": "minilm"}, "columns": [0, 1],
        "training": {"epochs": 2, "seed": 0, "lora": False}, "identity": "1" * 64, "trained": True, "examples": 3,
        "validation": {"examples": 2, "accuracy": 0.5}, "versions": {},
    }  # fmt: skip
    folder = tmp_path / "proxies" / "one"
    folder.mkdir(parents=True)
    from amplify.cli.listing import listing

    def use() -> None:
        listing("proxies")
        read_card(folder)

    assert 0 < survives(folder / CARD, card, use, 3) < TRIES
    assert [found["task"] for found in list_proxies()] == ["t"]


def test_an_older_and_an_unknown_program_say_so(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    for content, says in (
        ({"kind": "shots"}, "not a program of format 1"),
        ({"format": 2, "kind": "shots"}, "not a program of format 1"),
        ({"format": 1, "kind": "other"}, "of kind 'other', which neither"),
        ({"format": 1, "kind": ["shots"]}, "which neither amplify"),
        ({"format": 1, "kind": "shots"}, r"damaged, or of an earlier version: form is missing\. Fit it again"),
    ):
        path.write_text(json.dumps(content))
        with pytest.raises(DataError, match=says):
            Program.load(path)

"""A log of conversations: explained line by line, resumed, one page; what is no conversation is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from amplify.cli import cli
from amplify.errors import InputError, ModelError, RunError
from amplify.models.scripted import ScriptedModel
from amplify.sources.log import explain_log

DOCUMENTS = ["The warranty is two years.", {"text": "Shipping is free.", "title": "Ship </script>"}]
LINES = [
    {"id": "a", "question": "How long?", "documents": DOCUMENTS, "answer": "Two years."},
    "no json",
    {"id": "b", "messages": [
        {"role": "system", "content": "Be terse."}, {"role": "user", "content": "The warranty is two years. How long?"},
        {"role": "user", "content": "Say it."}, {"role": "assistant", "content": "Two years."},
    ]},
    {"id": "c", "text": "something else"},
    {"question": "And shipping?", "documents": DOCUMENTS},
]  # fmt: skip


def likely(text: str, answer: str) -> float:
    return -9.0 + 8.0 * ("two years" in text)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in LINES) + "\n")
    return path


def model(**options) -> ScriptedModel:  # type: ignore[no-untyped-def]
    return ScriptedModel(reply=lambda text: "Free.", logprob=likely, **options)


def test_every_conversation_is_explained_and_what_is_none_is_named(log: Path, tmp_path: Path) -> None:
    found = explain_log(log, tmp_path / "why", model(), {"budget": 24}, shown=False)
    assert [each.id for each in found] == ["a", "2", "b", "c", "5"]
    assert [each.result is None for each in found] == [False, True, False, True, False]
    assert "not JSON" in found[1].problem
    assert "no conversation" in found[3].problem
    assert found[0].result is not None
    assert found[0].result.citations[0].text == "The warranty is two years."
    assert found[2].result is not None
    assert found[2].result.answer == "Two years."
    page = (tmp_path / "why" / "index.html").read_text()
    assert "3 explained, 2 skipped" in page
    assert "line 4 was skipped" in page
    assert "</script>" not in page
    assert (tmp_path / "why" / "pages" / "3.html").exists()


def test_a_stopped_log_goes_on_where_it_was(log: Path, tmp_path: Path) -> None:
    out = tmp_path / "why"
    whole = explain_log(log, tmp_path / "other", model(), {"budget": 24}, shown=False)
    with pytest.raises(ModelError):
        explain_log(log, out, model(fail_after=30), {"budget": 24}, shown=False)
    kept = (out / "attributions.jsonl").read_text().count("\n") - 1
    assert 0 < kept < len(LINES)
    again = model()
    found = explain_log(log, out, again, {"budget": 24}, shown=False)
    for one, two in zip(found, whole, strict=True):
        assert (one.problem, one.result is None) == (two.problem, two.result is None)
        if one.result is not None and two.result is not None:
            assert one.result.documents.table.tolist() == two.result.documents.table.tolist()
    nothing = model()
    explain_log(log, out, nothing, {"budget": 24}, shown=False)
    assert not nothing.calls
    with pytest.raises(RunError, match="options"):
        explain_log(log, out, model(), {"budget": 25}, shown=False)


def test_command_line(log: Path, tmp_path: Path) -> None:
    arguments = ["attribute", "--input", str(log), "--out", str(tmp_path / "why"), "-m", "scripted:say=Two years."]
    done = CliRunner().invoke(cli, [*arguments, "--budget", "16", "--granularity", "documents"])
    assert done.exit_code == 0, done.output
    assert "3 explained, 2 skipped" in done.output
    wrong = CliRunner().invoke(cli, [*arguments, "--question", "How?"])
    assert isinstance(wrong.exception, InputError)
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    none = CliRunner().invoke(cli, ["attribute", "--input", str(empty), "-m", "scripted:echo"])
    assert "is empty" in str(none.exception)
    missing = CliRunner().invoke(cli, ["attribute", "-q", "How?", "-m", "scripted:echo"])
    assert "--documents is missing" in str(missing.exception)


def test_a_long_log_has_several_index_pages(log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amplify.sources.log.ON_A_PAGE", 2)
    out = tmp_path / "why"
    found = explain_log(log, out, model(), {"budget": 24, "granularity": "documents"}, shown=False)
    pages = [(out / name).read_text() for name in ("index.html", "index-2.html", "index-3.html")]
    assert [page.count("<article") for page in pages] == [2, 2, 1]
    assert all("3 explained, 2 skipped" in page for page in pages)
    assert 'href="index-3.html"' in pages[0]
    assert (found.explained, found.skipped, len(found)) == (3, [2, 4], 5)
    assert found.line(3).id == found[2].id == "b"
    assert [each.line for each in found[1:4]] == [2, 3, 4]


def test_lines_end_where_json_lines_do(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    line = {"question": "How\u2028long?", "documents": DOCUMENTS, "answer": "Two\x85years."}
    path.write_text(json.dumps(line, ensure_ascii=False) + "\r\n\n" + json.dumps(line, ensure_ascii=False), "utf-8")
    found = explain_log(path, tmp_path / "why", model(), {"budget": 8, "granularity": "documents"}, shown=False)
    assert [(each.line, each.problem) for each in found] == [(1, ""), (3, "")]

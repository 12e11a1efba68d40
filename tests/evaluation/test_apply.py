"""New, unlabelled rows: every row gets its answer, a stopped call goes on, nothing is lost."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

import amplify
from amplify.backends.scripted import ScriptedBackend
from amplify.errors import BackendError, InputError, RunError
from amplify.evaluation.apply import apply_program, confidence
from amplify.methods import Program, make
from amplify.values import Answer

ROWS = 10


def backend(**options: object) -> ScriptedBackend:
    """Says billing where money is spoken of, else technical."""
    reply = lambda text: " billing." if "money" in text.split("user:")[-1] else " technical."  # noqa: E731
    logprob = lambda text, label: -1.0 if label.strip(" .") in reply(text) else -3.0  # noqa: E731
    return ScriptedBackend(reply=reply, logprob=logprob, **options)  # type: ignore[arg-type]


def program(mode: str = "generate") -> Program:
    return make("zero_shot", mode=mode).fit(amplify.load_task("support_tickets"), backend(), 0)  # type: ignore[arg-type]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "new.csv"
    lines = [f'{i},"my {"money" if i % 2 else "app"}, again"' for i in range(ROWS)]
    path.write_text("\n".join(["customer,message", *lines]) + "\n")
    return path


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_row_keeps_its_columns_and_gets_an_answer(source: Path, tmp_path: Path) -> None:
    done = apply_program(program(), source, "message", backend(), tmp_path / "out.csv", batch_size=4)
    rows = read(tmp_path / "out.csv")
    assert (done.rows, done.unparsed, len(rows)) == (ROWS, 0, ROWS)
    assert [row["customer"] for row in rows] == [str(i) for i in range(ROWS)]
    assert [row["answer"] for row in rows] == ["billing" if i % 2 else "technical" for i in range(ROWS)]
    assert not list(tmp_path.glob("*.partial.jsonl"))


def test_the_score_is_the_answers_probability_among_the_labels(source: Path, tmp_path: Path) -> None:
    apply_program(program("score"), source, "message", backend(), tmp_path / "out.csv")
    scores = [float(row["score"]) for row in read(tmp_path / "out.csv")]
    assert scores == pytest.approx([1 / (1 + 4 * 2.718281828459045**-2)] * ROWS)  # one label at -1, four at -3


@pytest.mark.parametrize("normalise", ["tokens", "characters", "first_token"])
def test_labels_that_are_compared_by_length_keep_their_probabilities(source: Path, normalise: str) -> None:
    """A mean per token is no log-probability: the probability is that of the labels as they are."""
    method = make("zero_shot", mode="score", normalise=normalise)
    task = amplify.load_task("support_tickets")
    [answer] = method.fit(task, backend(), 0).answer(task.test[:1], backend())
    plain = make("zero_shot", mode="score").fit(task, backend(), 0).answer(task.test[:1], backend())[0]
    if normalise == "first_token":
        assert answer.scores == answer.logprobs == answer.first_tokens
    else:
        assert (answer.scores == plain.scores) == (normalise == "tokens")  # here a label is one token
        assert answer.logprobs == plain.scores == plain.logprobs
        assert answer.probabilities() == plain.probabilities()
    assert confidence(answer) == answer.probabilities()[str(answer.value)]
    assert sum(answer.probabilities().values()) == pytest.approx(1)


def test_no_score_without_log_probabilities() -> None:
    assert confidence(Answer(value="a")) is None
    assert confidence(Answer(value=None, scores={"a": -1.0})) is None


@pytest.mark.parametrize("torn", ["", '{"answer": "bil'])
def test_a_stopped_call_goes_on_where_it_stopped(source: Path, tmp_path: Path, torn: str) -> None:
    whole, out = tmp_path / "whole.csv", tmp_path / "out.csv"
    apply_program(program(), source, "message", backend(), whole, batch_size=4)
    with pytest.raises(BackendError, match=r"4 of 10 rows are kept: the same command resumes"):
        apply_program(program(), source, "message", backend(fail_after=5), out, batch_size=4)
    partial = tmp_path / "out.csv.partial.jsonl"
    partial.write_text(partial.read_text() + torn)
    again = backend()
    apply_program(program(), source, "message", again, out, batch_size=4)
    assert out.read_bytes() == whole.read_bytes()
    assert again.usage.calls == ROWS - 4


def test_another_input_is_not_mixed_in(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    with pytest.raises(BackendError):
        apply_program(program(), source, "message", backend(fail_after=5), out, batch_size=4)
    source.write_text("customer,message\n1,other\n")
    with pytest.raises(RunError, match="another program or input"):
        apply_program(program(), source, "message", backend(), out, batch_size=4)


def test_columns_of_ours_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "new.csv").write_text("message,answer\nhello,mine\n")
    with pytest.raises(InputError, match=r"already has the column\(s\) answer"):
        apply_program(program(), tmp_path / "new.csv", "message", backend(), tmp_path / "out.csv")


def test_columns_that_only_some_rows_have_are_kept(tmp_path: Path) -> None:
    (tmp_path / "new.jsonl").write_text('{"message": "my app"}\n{"message": "my money", "customer": "7"}\n')
    apply_program(program(), tmp_path / "new.jsonl", "message", backend(), tmp_path / "out.csv")
    assert [row["customer"] for row in read(tmp_path / "out.csv")] == ["", "7"]
    (tmp_path / "late.jsonl").write_text('{"message": "my app"}\n{"message": "my money", "score": "7"}\n')
    with pytest.raises(InputError, match=r"already has the column\(s\) score"):
        apply_program(program(), tmp_path / "late.jsonl", "message", backend(), tmp_path / "out.csv")


def test_a_missing_column_names_those_there_are(source: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="customer"):
        apply_program(program(), source, "text", backend(), tmp_path / "out.csv")

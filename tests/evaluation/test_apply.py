"""New, unlabelled rows: every row gets its answer, a stopped call goes on, nothing is lost."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

import amplify
from amplify.errors import InputError, ModelError, RunError
from amplify.evaluation.apply import apply_program, confidence
from amplify.methods import Program, make
from amplify.models.scripted import ScriptedModel
from amplify.types import Answer, Example

ROWS = 10


def model(**options: object) -> ScriptedModel:
    """Says billing where money is spoken of, else technical."""
    reply = lambda text: " billing." if "money" in text.split("user:")[-1] else " technical."  # noqa: E731
    logprob = lambda text, label: -1.0 if label.strip(" .") in reply(text) else -3.0  # noqa: E731
    return ScriptedModel(reply=reply, logprob=logprob, **options)  # type: ignore[arg-type]


def program(mode: str = "generate") -> Program:
    return make("zero_shot", mode=mode).fit(amplify.load_task("support_tickets"), model(), 0)  # type: ignore[arg-type]


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
    done = apply_program(program(), source, "message", model(), tmp_path / "out.csv", batch_size=4)
    rows = read(tmp_path / "out.csv")
    assert (done.rows, done.unparsed, len(rows)) == (ROWS, 0, ROWS)
    assert [row["customer"] for row in rows] == [str(i) for i in range(ROWS)]
    assert [row["answer"] for row in rows] == ["billing" if i % 2 else "technical" for i in range(ROWS)]
    assert sorted(path.name for path in tmp_path.glob("[!.]*")) == ["new.csv", "out.csv", "out.csv.answers.jsonl"]


def test_the_score_is_the_answers_probability_among_the_labels(source: Path, tmp_path: Path) -> None:
    apply_program(program("score"), source, "message", model(), tmp_path / "out.csv")
    scores = [float(row["score"]) for row in read(tmp_path / "out.csv")]
    assert scores == pytest.approx([1 / (1 + 4 * 2.718281828459045**-2)] * ROWS)  # one label at -1, four at -3


@pytest.mark.parametrize("normalize", ["tokens", "characters", "first_token"])
def test_labels_that_are_compared_by_length_keep_their_probabilities(source: Path, normalize: str) -> None:
    """A mean per token is no log-probability: the probability is that of the labels as they are."""
    method = make("zero_shot", mode="score", normalize=normalize)
    task = amplify.load_task("support_tickets")
    [answer] = method.fit(task, model(), 0).answer(task.test[:1], model())
    plain = make("zero_shot", mode="score").fit(task, model(), 0).answer(task.test[:1], model())[0]
    if normalize == "first_token":
        assert answer.scores == answer.logprobs == answer.first_tokens
    else:
        assert (answer.scores == plain.scores) == (normalize == "tokens")  # here a label is one token
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
    apply_program(program(), source, "message", model(), whole, batch_size=4)
    with pytest.raises(ModelError, match=r"4 of 10 rows and 1 replies .* are kept: the same command resumes"):
        apply_program(program(), source, "message", model(fail_after=3), out, batch_size=4)
    partial = tmp_path / "out.csv.answers.jsonl"
    partial.write_text(partial.read_text() + torn)
    again = model()
    apply_program(program(), source, "message", again, out, batch_size=4)
    assert out.read_bytes() == whole.read_bytes()
    # of a batch's four rows two differ; the one that was answered of the batch that failed is not asked again
    assert len(again.texts) == 6 - 3
    assert not (tmp_path / "out.csv.unfinished.sqlite").exists()


def test_another_input_is_not_mixed_in(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    with pytest.raises(ModelError):
        apply_program(program(), source, "message", model(fail_after=5), out, batch_size=4)
    source.write_text("customer,message\n1,other\n")
    with pytest.raises(RunError, match=r"is not of this input(.|\n)*input\.rows: 10 in the file, 1 in this call"):
        apply_program(program(), source, "message", model(), out, batch_size=4)


def test_columns_of_ours_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "new.csv").write_text("message,answer\nhello,mine\n")
    with pytest.raises(InputError, match=r"already has the column\(s\) answer"):
        apply_program(program(), tmp_path / "new.csv", "message", model(), tmp_path / "out.csv")


def test_columns_that_only_some_rows_have_are_kept(tmp_path: Path) -> None:
    (tmp_path / "new.jsonl").write_text('{"message": "my app"}\n{"message": "my money", "customer": "7"}\n')
    apply_program(program(), tmp_path / "new.jsonl", "message", model(), tmp_path / "out.csv")
    assert [row["customer"] for row in read(tmp_path / "out.csv")] == ["", "7"]
    (tmp_path / "late.jsonl").write_text('{"message": "my app"}\n{"message": "my money", "score": "7"}\n')
    with pytest.raises(InputError, match=r"already has the column\(s\) score"):
        apply_program(program(), tmp_path / "late.jsonl", "message", model(), tmp_path / "out.csv")


def test_a_missing_column_names_those_there_are(source: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="customer"):
        apply_program(program(), source, "text", model(), tmp_path / "out.csv")


def test_a_finished_apply_repeated_asks_nothing(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    apply_program(program(), source, "message", model(), out, batch_size=4)
    whole = out.read_bytes()
    out.unlink()
    again = model()
    assert apply_program(program(), source, "message", again, out, batch_size=4).rows == ROWS
    assert again.texts == []
    assert out.read_bytes() == whole


def test_another_model_program_column_or_batch_is_refused_with_what_differs(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    with pytest.raises(ModelError):
        apply_program(program(), source, "message", model(fail_after=5), out, batch_size=4)
    kept = (tmp_path / "out.csv.answers.jsonl").read_bytes()
    other = ScriptedModel("other", reply=lambda text: " billing.")
    with pytest.raises(RunError, match=r"model\.id: .* in this call") as told:
        apply_program(program(), source, "message", other, out, batch_size=4)
    assert "delete" in str(told.value)
    assert "to start anew" in str(told.value)
    with pytest.raises(RunError, match=r"program: "):
        apply_program(program("score"), source, "message", model(), out, batch_size=4)
    with pytest.raises(RunError, match=r"batch_size: 4 in the file, 5 in this call"):
        apply_program(program(), source, "message", model(), out, batch_size=5)
    source.write_text(source.read_text().replace("3,", "33,"))  # a column that is not the input, but templates see it
    with pytest.raises(RunError, match=r"input\.sha256"):
        apply_program(program(), source, "message", model(), out, batch_size=4)
    assert (tmp_path / "out.csv.answers.jsonl").read_bytes() == kept


def test_a_second_process_is_refused_while_one_writes(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"

    def answers_while_another_starts(text: str) -> str:
        with pytest.raises(RunError, match=r"another process is writing .*out\.csv"):
            apply_program(program(), source, "message", model(), out)
        return " billing."

    slow = ScriptedModel("", reply=answers_while_another_starts)
    assert apply_program(program(), source, "message", slow, out).rows == ROWS


def test_killed_after_any_line_and_resumed_gives_the_same_csv(source: Path, tmp_path: Path) -> None:
    """What a kill leaves is a beginning of the journal, cut anywhere."""
    whole, out = tmp_path / "whole.csv", tmp_path / "out.csv"
    apply_program(program("score"), source, "message", model(), whole, batch_size=4)
    content = (tmp_path / "whole.csv.answers.jsonl").read_bytes()
    for cut in range(0, len(content), 37):
        (tmp_path / "out.csv.answers.jsonl").write_bytes(content[:cut])
        out.unlink(missing_ok=True)
        apply_program(program("score"), source, "message", model(), out, batch_size=4)
        assert out.read_bytes() == whole.read_bytes()
        assert (tmp_path / "out.csv.answers.jsonl").read_bytes() == content  # no row of a cut batch stands there twice


def test_japanese_answers_resume_after_a_full_disk(tmp_path: Path) -> None:
    """The journal is cut in the middle of a character, which the same call mends."""
    (tmp_path / "new.csv").write_text("message\n" + "".join(f"質問 {i}\n" for i in range(ROWS)), encoding="utf-8")
    given = tmp_path / "new.csv", "message"
    said = ScriptedModel("", reply=lambda text: f" 答え{text.rpartition('質問')[2][:3]}")
    free = make("zero_shot").fit(free_text(), model(), 0)
    apply_program(free, *given, said, tmp_path / "whole.csv", batch_size=2)
    head, *rows = (tmp_path / "whole.csv.answers.jsonl").read_text().splitlines(keepends=True)
    body = "".join(json.dumps(json.loads(row), ensure_ascii=False) + "\n" for row in rows).encode()
    for cut in range(0, len(body), 11):
        (tmp_path / "out.csv.answers.jsonl").write_bytes(head.encode() + body[:cut])
        apply_program(free, *given, said, tmp_path / "out.csv", batch_size=2)
        assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def free_text() -> amplify.tasks.Task:
    from amplify.tasks import Task

    items = tuple(Example(f"{i}", f"問い {i}", answers=(f"答え {i}",)) for i in range(4))
    return Task("free", "Answer.", train=items[:2], validation=(), test=items[2:], metric="exact_match")


def test_answers_that_were_edited_are_told(source: Path, tmp_path: Path) -> None:
    out, path = tmp_path / "out.csv", tmp_path / "out.csv.answers.jsonl"
    apply_program(program(), source, "message", model(), out, batch_size=4)
    whole = path.read_text()
    for old, new, says in (('"row": 3', '"row": 99', "row is 99"), ('"row": 3', '"row": "x"', "wanted a whole number")):
        path.write_text(whole.replace(old, new))
        with pytest.raises(RunError, match=rf"line 5 of .* was changed: .*{says}"):
            apply_program(program(), source, "message", model(), out, batch_size=4)


def test_a_column_of_the_input_may_have_any_other_name(tmp_path: Path) -> None:
    (tmp_path / "new.csv").write_text("row,message,unfinished\na,my app,x\nb,my money,y\n")
    apply_program(program(), tmp_path / "new.csv", "message", model(), tmp_path / "out.csv")
    assert [(row["row"], row["unfinished"]) for row in read(tmp_path / "out.csv")] == [("a", "x"), ("b", "y")]

"""Which documents help and harm: the gradient against its definition, and logs whose answers are known functions."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest

import amplify
from amplify.errors import CapabilityError, DataError, InputError, ModelError, RunError, UnknownNameError
from amplify.models.scripted import ScriptedGenerator, ScriptedModel
from amplify.sources.importance import (
    Asked,
    SourceImportance,
    gradient,
    key_of,
    source_importance,
    utility,
    weights,
    worth_of,
)


def expected(worth: list[float], p: list[float], k: int) -> float:
    """The multilinear extension by its definition: over every set that may exist."""
    total = 0.0
    for held in itertools.product([0, 1], repeat=len(worth)):
        chance = math.prod(q if h else 1 - q for q, h in zip(p, held, strict=True))
        total += chance * utility([u for u, h in zip(worth, held, strict=True) if h], k)
    return total


@pytest.mark.parametrize("k", [1, 2, 3, 9])
@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_the_gradient_is_that_of_the_expected_utility(n: int, k: int) -> None:
    drawn = np.random.default_rng([n, k])
    worth, p = drawn.normal(size=n).tolist(), drawn.uniform(size=n).tolist()
    p[0] = 0.0  # the ends of the range, too
    p[-1] = 1.0
    found = gradient(worth, p, k)
    for i in range(n):
        present, absent = ([*p[:i], end, *p[i + 1 :]] for end in (1.0, 0.0))
        assert found[i] == pytest.approx(expected(worth, present, k) - expected(worth, absent, k), abs=1e-12)


def test_at_equal_weights_it_is_the_banzhaf_value_and_its_mean_over_weights_the_shapley_value() -> None:
    """Owen 1972: the integral over the diagonal of the cube; both from values of every coalition."""
    from amplify.shapley.exact import all_coalitions, exact_scores

    worth, k, n = [1.0, 0.0, 0.3, 1.0, 0.6], 2, 5
    every = all_coalitions(n)
    values = np.array([utility([u for u, h in zip(worth, row, strict=True) if h], k) for row in every])
    assert gradient(worth, [0.5] * n, k) == pytest.approx(np.ravel(exact_scores(values, "banzhaf")))
    places, amounts = np.polynomial.legendre.leggauss(3)  # exact for polynomials of degree 5
    over = sum(w / 2 * gradient(worth, [(x + 1) / 2] * n, k) for x, w in zip(places, amounts, strict=True))
    assert over == pytest.approx(np.ravel(exact_scores(values, "shapley")))


def test_weights_rise_to_the_best_set() -> None:
    asked = [Asked(("bad", "good", "late"), (0.0, 1.0, 1.0)), Asked(("bad", "good"), (0.0, 1.0))]
    found = weights(asked, 1)
    assert found["bad"] == 0.0
    assert found["good"] == 1.0
    assert worth_of(asked, 1, {"bad"}).tolist() == [1.0, 1.0]
    assert worth_of(asked, 1, set()).tolist() == [0.0, 0.0]


def log(n: int = 12, **more: object) -> list[dict[str, object]]:
    """Two documents say so, one says otherwise and comes first, one is of no use; each question has one of its own."""
    shared = [
        {"id": "liar", "text": "Everyone lives in Rome.", "title": "Rumours"},
        {"id": "register", "text": "Everyone lives in Bern."},
        {"id": "trees", "text": "Trees are green."},
    ]
    return [
        {"question": f"Where does number {i} live?", "documents": [*shared, {"text": f"Page {i}: Bern."}], **more}
        for i in range(n)
    ]


def reader(text: str) -> str:
    """Believes the first document that names a town."""
    places = {town: text.find(town) for town in ("Rome", "Bern") if town in text}
    return min(places, key=places.__getitem__) if places else "no idea"


def likely(text: str, answer: str) -> float:
    return -9.0 + 3.0 * ("lives in Bern" in text) - 2.0 * ("lives in Rome" in text)


def model() -> ScriptedModel:
    return ScriptedModel(reply=reader, logprob=likely)


def test_the_gradient_finds_what_harms_and_held_out_questions_agree(tmp_path) -> None:  # type: ignore[no-untyped-def]
    who = model()
    found = source_importance(log(answers=["Bern"]), who, k=1, cache=tmp_path / "answers.jsonl")
    by_key = {line.key: line for line in found.lines}
    # alone: liar 0, register 1, trees 0, own 1. With k = 1 the first that exists is read
    want = gradient([0.0, 1.0, 0.0, 1.0], [0.5] * 4, 1)
    for key, value in zip(("liar", "register", "trees"), want, strict=False):
        assert by_key[key].score == pytest.approx(value)
        assert by_key[key].low == pytest.approx(value)  # every question says the same
    assert by_key["liar"].verdict == "harms"
    assert by_key["liar"].title == "Rumours"
    assert by_key["register"].verdict == "helps"
    assert found.lines[0].key == "liar"
    own = [line for line in found.lines if line.key.startswith("text:")]
    assert {line.questions for line in own} == {1}
    assert {line.verdict for line in own} == {"unclear"}  # one question has no interval
    assert "liar" in found.dropped
    assert "register" not in found.dropped
    checks = {c.way: c for c in found.checks}
    assert (checks["none"].utility, checks["gradient"].utility) == (0.0, 1.0)
    assert checks["gradient"].gain == checks["gradient"].low == 1.0
    assert checks["leave one out"].utility == 1.0
    assert 0.0 < checks["random"].utility < 1.0
    assert (found.questions, found.held_out, found.gold) == (6, 6, True)
    assert len(who.calls) == 4 * 12
    again = model()
    assert source_importance(log(answers=["Bern"]), again, k=1, cache=tmp_path / "answers.jsonl").lines == found.lines
    assert not again.calls
    with pytest.raises(RunError):
        source_importance(log(answers=["Rome"]), again, k=1, cache=tmp_path / "answers.jsonl")


def test_it_goes_on_where_a_model_failed(tmp_path) -> None:  # type: ignore[no-untyped-def]
    class Failing(ScriptedModel):
        def generate(self, prompts, sampling, *, steering=None):  # type: ignore[no-untyped-def]
            if "number 5" in prompts[0].messages[0].content and not done:
                raise ModelError("gone")
            return super().generate(prompts, sampling)

    done: list[bool] = []
    who = Failing(reply=reader, logprob=likely)
    with pytest.raises(ModelError):
        source_importance(log(answers="Bern"), who, cache=tmp_path / "a.jsonl")
    asked = len(who.calls)
    done.append(True)
    source_importance(log(answers="Bern"), who, cache=tmp_path / "a.jsonl")
    assert len(who.calls) == 4 * 12
    assert asked == 4 * 5


def test_mean_shapley_values_are_those_of_each_attribution() -> None:
    found = source_importance(log(answers="Bern"), model(), by="shapley", budget=16)
    by_key = {line.key: line for line in found.lines}
    assert by_key["register"].score == pytest.approx(3.0)
    assert by_key["liar"].score == pytest.approx(-2.0)
    assert by_key["trees"].score == pytest.approx(0.0, abs=1e-9)
    assert found.dropped == {"liar"}
    with pytest.raises(CapabilityError):
        source_importance(log(answers="Bern"), ScriptedGenerator(reply=reader), by="shapley")


def test_without_gold_answers_the_models_own_stand_in_and_it_says_so() -> None:
    found = source_importance(log(), model(), k=1)
    assert not found.gold
    assert "stand in" in found.notes[0]
    assert {line.key: line.verdict for line in found.lines}["liar"] == "helps"  # the model's own answer is Rome
    some = [*log(6, answers="Bern"), *log(2)]
    left = source_importance(some, model(), k=1)
    assert left.questions + left.held_out == 6
    assert "number 6" in left.notes[0]


def test_documents_that_are_all_alike_are_seldom_said_to_harm() -> None:
    """Whether a document answers rightly is a coin's throw: none of them harms, and the first nearly does nothing."""
    wrong = 0
    for seed in range(20):
        drawn = np.random.default_rng(seed)
        right = {i: drawn.random(4) < 0.5 for i in range(20)}

        def reply(text: str, right=right) -> str:  # type: ignore[no-untyped-def]
            number = int(text.split("number ")[1].split()[0])
            return "Bern" if right[number][next(i for i in range(4) if f"text {i}" in text)] else "Rome"

        documents = [{"id": str(j), "text": f"text {j}"} for j in range(4)]
        rows = [{"question": f"Where is number {i} ?", "documents": documents, "answers": "Bern"} for i in range(20)]
        found = source_importance(rows, ScriptedModel(reply=reply), k=1, seed=seed)
        wrong += sum(line.verdict == "harms" for line in found.lines)
    assert wrong <= 4  # of 80; 2.5 % of those whose score is 0


def test_saved_shown_and_consulted(tmp_path) -> None:  # type: ignore[no-untyped-def]
    found = source_importance(log(answers="Bern"), model(), k=1)
    found.save(tmp_path / "i.json")
    assert SourceImportance.load(tmp_path / "i.json") == found
    assert not found.keeps({"id": "liar", "text": "Everyone lives in Rome."})
    assert found.keeps("something new")
    assert found.keeps(amplify.Document("x", "register"))
    page = found.to_html(tmp_path / "i.html")
    assert "Rumours" in page
    assert "harms, dropped" in page
    assert "liar" in json.loads((tmp_path / "i.json").read_text())["dropped"]
    assert "Rumours" in str(found)
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(DataError):
        SourceImportance.load(tmp_path / "other.json")
    assert key_of(amplify.Document(" a  b")) == key_of(amplify.Document("a b")) != key_of(amplify.Document("ab"))


@pytest.mark.parametrize(
    ("rows", "options", "says"),
    [
        ([], {}, "0 questions"),
        ([{"question": "q"}] * 4, {}, "row 0"),
        ([*log(3), {"documents": ["a", "b"]}], {}, "row 3 of the log has no 'question'"),
        ([{"question": "q", "documents": ["a", "a"]}] * 4, {}, "fewer than two different"),
        ([{"question": "q", "documents": ["a", "b"], "answers": [3]}] * 4, {}, "no text"),
        (log(4), {"k": 0}, "k is how many"),
        (log(4), {"held_out": 1.0}, "held_out"),
        (log(4), {"budgt": 1}, "budget"),
        ([*log(1, answers="x"), *log(4)], {}, "only 1 questions have an answer"),
    ],
)
def test_bad_input(rows, options, says) -> None:  # type: ignore[no-untyped-def]
    who = model()
    with pytest.raises(InputError, match=says):
        source_importance(rows, who, **options)
    assert not who.calls
    with pytest.raises(UnknownNameError):
        source_importance(log(4), who, by="banzhaf")  # type: ignore[arg-type]


def test_the_command(tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    from click.testing import CliRunner

    from amplify.cli import cli

    monkeypatch.chdir(tmp_path)
    (tmp_path / "log.jsonl").write_text("\n".join(json.dumps(row) for row in log(8, answers="yes")))
    words = ["importance", "log.jsonl", "-m", "scripted:say=yes", "--k", "2", "--json", "i.json", "--html", "i.html"]
    done = CliRunner().invoke(cli, words, catch_exceptions=False)
    assert done.exit_code == 0
    assert "8 questions" in done.output
    assert SourceImportance.load(tmp_path / "i.json").k == 2
    assert "Rumours" in (tmp_path / "i.html").read_text()
    for text, says in (("", "is empty"), ("[1]", "line 1 of"), ("{", "is not JSON")):
        (tmp_path / "bad.jsonl").write_text(text)
        wrong = CliRunner().invoke(cli, ["importance", "bad.jsonl", "-m", "scripted:say=yes"])
        assert says in str(wrong.exception)

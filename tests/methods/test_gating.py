"""gate=True: what fails is replaced or dropped, and the report says how often."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from method_fakes import BAD, GOOD, by_word

from amplify.attribution.deletion import Verdict, deletion, judge
from amplify.errors import UnknownNameError
from amplify.methods import make
from amplify.methods.program import ShotProgram
from amplify.methods.self_amplify import judge_own
from amplify.models.scripted import ScriptedModel
from amplify.proxies import train_proxy
from amplify.rationales.wording import verbalise
from amplify.tasks import Task
from amplify.types import Attribution, Demonstration, Example


@pytest.fixture(scope="module")
def body(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AMPLIFY_HOME", str(tmp_path_factory.mktemp("home")))
        yield str(tiny_encoder)


def fitted(task: Task, body: str, **options: object) -> ShotProgram:
    given = {"proxy": body, "epochs": 2, "shots": 4, "k": 2, "misclassified": False, **options}
    program = make("amplify", **given).fit(task, ScriptedModel(reply=by_word), 0)
    assert isinstance(program, ShotProgram)
    return program


def test_what_passes_passes_by_itself_and_the_counts_add_up(sentiment: Task, body: str) -> None:
    program = fitted(sentiment, body, gate=True)
    counts, verdicts = program.meta["gate"], program.meta["gate"]["verdicts"]
    assert counts["failed"] == counts["replaced"] + counts["dropped"]
    assert counts["failed"] == sum(not v["passed"] for v in verdicts[:4])
    assert counts["dropped"] == sum(shot.rationale is None for shot in program.shots)
    assert [n for n in program.notes if n.startswith(f"gate: {counts['failed']} of 4 rationales")]
    proxy = train_proxy(sentiment, body, epochs=2, seed=0)
    for shot in program.shots:
        if shot.rationale is not None:
            assert shot.rationale.attribution is not None
            assert judge(shot.rationale.words, deletion(shot.rationale.attribution, proxy, shot.example)).passed


def shut(monkeypatch: pytest.MonkeyPatch, failing: set[str]) -> None:
    """A gate that fails the examples whose words include one of these."""

    def verdict(words: object, game: object, **_: object) -> Verdict:
        passed = not failing & set(game.words)  # type: ignore[attr-defined]
        return Verdict(passed, float(passed), 0.0, float(passed))

    monkeypatch.setattr("amplify.attribution.deletion.judge", verdict)


def test_a_failing_shot_gives_way_to_the_next_candidate(
    sentiment: Task, body: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = fitted(sentiment, body)
    failing = {*GOOD, *BAD} & set(plain.shots[0].example.text.split())
    shut(monkeypatch, failing)
    gated = fitted(sentiment, body, gate=True)
    counts = gated.meta["gate"]
    assert counts["failed"] >= 1
    assert counts["dropped"] == 0
    assert all(shot.rationale is not None for shot in gated.shots)
    assert len({shot.example.id for shot in gated.shots}) == 4
    for before, after in zip(plain.shots, gated.shots, strict=True):
        if failing & set(before.example.text.split()):
            assert not failing & set(after.example.text.split())
        else:
            assert before.example == after.example
    assert f"{counts['replaced']} of these shots replaced, 0 shown without" in " ".join(gated.notes)


def test_balance_survives_the_gate(sentiment: Task, body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = {*GOOD, *BAD} & set(fitted(sentiment, body, balanced=True).shots[0].example.text.split())
    shut(monkeypatch, failing)
    gated = fitted(sentiment, body, balanced=True, gate=True)
    assert gated.meta["gate"]["replaced"] >= 1
    labels = [shot.example.label for shot in gated.shots]
    assert labels.count("positive") == labels.count("negative") == 2


def test_where_no_candidate_passes_the_rationale_is_dropped(
    sentiment: Task, body: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = fitted(sentiment, body)
    shut(monkeypatch, {*GOOD, *BAD})
    gated = fitted(sentiment, body, gate=True)
    assert [s.example for s in gated.shots] == [s.example for s in plain.shots]
    assert all(shot.rationale is None for shot in gated.shots)
    assert gated.meta["gate"]["dropped"] == 4
    assert "gate: 4 of 4" in " ".join(gated.notes)
    assert "no word speaks for the label" not in " ".join(gated.notes)
    assert "The answer is" in gated.prompt(sentiment.test[0]).messages[-2].content


def test_controls_stand_behind_the_same_gate(sentiment: Task, body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shut(monkeypatch, {"great", "awful"})
    model = ScriptedModel(reply=by_word)
    options = {"proxy": body, "epochs": 2, "shots": 4, "k": 2, "misclassified": False, "gate": True}
    own, control = (make(n, **options).fit(sentiment, model, 0) for n in ("amplify", "amplify_random_words"))
    assert [s.example for s in own.shots] == [s.example for s in control.shots]
    assert [s.rationale is None for s in own.shots] == [s.rationale is None for s in control.shots]


@pytest.mark.parametrize("explainer", ["occlusion", "kernel_shap", "lime", "auto"])
def test_any_explainer_explains(sentiment: Task, body: str, explainer: str) -> None:
    program = fitted(sentiment, body, explainer=explainer)
    used = {shot.rationale.attribution.method for shot in program.shots if shot.rationale}
    if explainer == "auto":
        assert used == {program.meta["explainer"]["chosen"]}
        assert any(n.startswith("explainer by the gate on 20 examples") for n in program.notes)
    else:
        assert used == {explainer}


def test_words_at_test_time_are_explained_by_the_chosen_explainer(sentiment: Task, body: str) -> None:
    options = {"proxy": body, "epochs": 2, "shots": 2, "k": 1, "explainer": "occlusion"}
    program = make("amplify_test_words", **options).fit(sentiment, ScriptedModel(reply=by_word), 0)
    assert program.explainer == "occlusion"
    assert program.prompt(sentiment.test[0]).prefix.startswith("The key words:")
    assert type(program).from_dict(program.to_dict()) == program


def test_a_models_own_words_are_judged_by_its_own_log_probabilities(sentiment: Task) -> None:
    def logprob(prompt: str, label: str) -> float:
        return -0.1 if "great" in prompt.rpartition("Review:")[2] else -2.0

    text = "The great box has a lid and a door with a week of shop colour"
    shot = Demonstration(Example("x", text, "positive"))
    method = make("few_shot")
    model = ScriptedModel(logprob=logprob)
    even = Attribution(text, (), (), (), "positive")
    said = [verbalise((word,), even, "key_words", label="positive") for word in ("great", "lid")]
    verdicts = [judge_own(method, sentiment, model, shot, one, 0) for one in (*said, None)]
    assert [verdict.passed for verdict in verdicts] == [True, False, False]


def test_an_unknown_explainer_is_refused_at_once() -> None:
    with pytest.raises(UnknownNameError, match="auto"):
        make("amplify", explainer="gradxinput")

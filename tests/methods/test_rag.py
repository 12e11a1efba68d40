"""RAG methods on a scripted reader whose answer is a known function of the documents before it."""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from itertools import combinations
from math import comb

import numpy as np
import pytest

from amplify.errors import CapabilityError, ContextLengthError, InputError, UnknownNameError
from amplify.evaluation import evaluate, load_report, plan
from amplify.evaluation.configuration import declare_family
from amplify.methods import METHODS, make
from amplify.methods.base import Program
from amplify.methods.rag import RagProgram
from amplify.models import load_model
from amplify.models.scripted import ScriptedGenerator, ScriptedModel
from amplify.steering import Steering
from amplify.tasks import Task
from amplify.templates import load as load_template
from amplify.types import Completion, Example, Message, Prompt, Sampling

RAG = [name for name in METHODS if name.startswith("rag")]
UNSTEERED = [name for name in RAG if not METHODS[name].steers]


def document(i: int, says: str) -> dict[str, object]:
    return {"title": f"Page {i}", "text": f"{says}. It was written in {1900 + i}.", "sentences": []}


def item(name: str, gold: int, liar: int, n: int = 5) -> Example:
    """The document `gold` says where someone lives, `liar` denies it, the others talk of something else."""
    says = {gold: f"{name} lives in Bern", liar: f"{name} does not live anywhere"}
    documents = [document(i, says.get(i, f"Tree number {i} is green")) for i in range(n)]
    return Example(
        name, f"Where does {name} live?", answers=("Bern",), fields={"documents": documents, "evidence": [gold]}
    )


def reader(text: str) -> str:
    """Believes the first document that says something; without one it guesses."""
    found = re.search(r"\w+ (lives in (\w+)|does not live anywhere)", text)
    return " " + (found[2] or "nowhere") if found else " Atlantis"


def likely(text: str, answer: str) -> float:
    """Additive: +4 for the document that says so, −2 for the one that denies it, −0.1 for every other."""
    says, denies = "lives in Bern" in text, "not live anywhere" in text
    return -9.0 + 4.0 * says - 2.0 * denies - 0.1 * len(re.findall("is green", text))


@pytest.fixture
def model() -> ScriptedModel:
    return ScriptedModel(reply=reader, logprob=likely)


@pytest.fixture
def task() -> Task:
    test = (item("Ada", 1, 4), item("Bo", 0, 2), item("Cy", 3, 4))
    return Task(name="homes", instruction="Answer.", train=(), validation=(), test=test, metric="qa")


def run(name: str, task: Task, model, **options):
    program = make(name, **options).fit(task, model, 0)
    return program.answer(task.test, model)


def test_registered() -> None:
    assert set(RAG) == {
        "rag", "rag_rerank_random", "rag_loo", "rag_rerank_shapley", "rag_prune_shapley", "rag_distil_shapley",
        "rag_highlight_pasta", "rag_loop", "rag_loop_random", "rag_suffice_shapley",
    }  # fmt: skip


def test_plain(task: Task, model: ScriptedModel) -> None:
    answers = run("rag", task, model)
    assert [a.value for a in answers] == ["Bern"] * 3
    assert answers[0].sources is not None
    assert answers[0].sources.ranking == answers[0].sources.shown == (0, 1, 2, 3, 4)
    assert (answers[0].sources.scores, answers[0].calls) == ((), 1)
    assert len({call.batch for call in model.calls}) == 1  # one batch
    assert "Page 4\nAda does not" in model.texts[0]


def test_the_random_order_is_not_the_one_in_which_a_task_put_its_documents(model: ScriptedModel) -> None:
    """Both draw by seed and question: the control must not undo or repeat what placed the gold document."""
    test = tuple(item(f"Person{i}", 1, 4, n=8) for i in range(20))
    task = Task(name="homes", instruction="Answer.", train=(), validation=(), test=test, metric="qa")
    answers = run("rag_rerank_random", task, model)
    for answer, example in zip(answers, test, strict=True):
        placed = list(range(8))
        random.Random(f"0:{example.text}").shuffle(placed)
        assert answer.sources is not None
        assert list(answer.sources.shown) != placed
    assert len({answer.sources.shown for answer in answers if answer.sources}) == 20


def test_rerank_puts_the_evidence_first(task: Task, model: ScriptedModel) -> None:
    for name in ("rag_rerank_shapley", "rag_loo"):
        answers = run(name, task, model)
        for answer, example in zip(answers, task.test, strict=True):
            [gold] = example.fields["evidence"]
            assert answer.sources is not None
            assert answer.sources.ranking[0] == gold
            assert answer.sources.shown == answer.sources.ranking
            # the game is additive, so both scores are its coefficients
            want = [4.0 if i == gold else -0.1 for i in range(5)]
            [liar] = [i for i, d in enumerate(example.fields["documents"]) if "not" in d["text"]]
            want[liar] = -2.0
            assert answer.sources.scores == pytest.approx(want, abs=1e-6)
            assert answer.sources.cited == ((gold,),)
            assert answer.prompt is not None
            content = answer.prompt.messages[0].content
            assert content.index(f"Page {gold}\n") < min(content.index(f"Page {i}\n") for i in range(5) if i != gold)


def test_the_best_document_can_stand_last_and_k_keeps_some(task: Task, model: ScriptedModel) -> None:
    answer = run("rag_rerank_shapley", task, model, best="last", k=2)[0]
    assert answer.prompt is not None
    titles = re.findall(r"Page \d", answer.prompt.messages[0].content)
    assert titles[-1] == "Page 1"
    assert len(titles) == 2
    assert answer.sources is not None
    assert [f"Page {i}" for i in answer.sources.shown] == titles


def test_the_fewest_documents_that_give_the_same_answer() -> None:
    """The reader needs both halves of what Ada's documents say; nobody else's."""

    def halves(text: str) -> str:
        said = re.findall("half one|half two", text)
        return " whole" if len(set(said)) == 2 else " alone" if "sure" in text else " guess"

    model = ScriptedModel(
        reply=halves, logprob=lambda t, a: -9.0 + 4 * ("one" in t) + 3 * ("two" in t) + 5 * ("sure" in t)
    )
    texts = {
        "Ada": ("half one", "x", "half two", "y", "z"),
        "Bo": ("x", "y", "sure", "z", "w"),
        "Cy": ("a", "b", "c", "d", "e"),
    }
    test = tuple(
        Example(
            name, f"Who is {name}?", answers=("-",), fields={"documents": [document(i, t) for i, t in enumerate(own)]}
        )
        for name, own in texts.items()
    )
    task = Task(name="halves", instruction="Answer.", train=(), validation=(), test=test, metric="qa")
    two, one, all_alike = run("rag_suffice_shapley", task, model)
    assert [a.sources.shown for a in (two, one) if a.sources] == [(0, 2), (2,)]
    assert [a.value for a in (two, one, all_alike)] == ["whole", "alone", "guess"]
    assert two.calls == one.calls + 1  # it was asked with one more
    assert two.prompt is not None
    assert "half two" in two.prompt.messages[0].content
    assert "Page 1" not in two.prompt.messages[0].content
    alone = [run("rag_suffice_shapley", replace(task, test=(e,)), model)[0] for e in test]
    assert [a.sources for a in alone] == [a.sources for a in (two, one, all_alike)]
    whole = run("rag_suffice_shapley", task, model, k=1)[0]  # one does not suffice
    assert whole.sources is not None
    assert (whole.value, whole.sources.shown) == ("whole", (0, 1, 2, 3, 4))


def test_prune_takes_out_what_speaks_against(task: Task, model: ScriptedModel) -> None:
    [first, *_] = run("rag_prune_shapley", task, model)
    assert first.sources is not None
    assert first.sources.shown == (1,)  # exact values (2^5 = 32 prompts): every other is below 0
    loose = run("rag_prune_shapley", task, model, threshold=-1.0)[0]
    assert loose.sources is not None
    assert loose.sources.shown == (0, 1, 2, 3)


def test_distil_keeps_k_in_their_order(task: Task, model: ScriptedModel) -> None:
    answer = run("rag_distil_shapley", task, model, k=2)[2]
    assert answer.sources is not None
    assert answer.sources.shown == (0, 3)
    assert re.findall(r"Page \d", answer.prompt.messages[0].content) == ["Page 0", "Page 3"]  # type: ignore[union-attr]


def test_random_is_the_seeds(task: Task, model: ScriptedModel) -> None:
    shown = {}
    for seed in range(20):
        program = make("rag_rerank_random").fit(task, model, seed)
        answers = program.answer(task.test, model)
        shown[seed] = [a.sources.shown for a in answers]  # type: ignore[union-attr]
        assert all(sorted(s) == list(range(5)) for s in shown[seed])
        # an item's order does not depend on what is answered with it
        assert program.answer(task.test[1:2], model)[0].sources.shown == shown[seed][1]  # type: ignore[union-attr]
    assert len({str(s) for s in shown.values()}) == 20


def test_gold_never_reaches_the_model(task: Task, model: ScriptedModel) -> None:
    """What is explained is the model's own answer, even where it is wrong."""
    wrong = replace(task, test=tuple(replace(e, answers=("Zurich",)) for e in task.test))
    for name in UNSTEERED:
        run(name, wrong, model)
    asked = [call.continuation for call in model.calls if call.continuation is not None]
    assert asked
    assert set(asked) == {" Bern"}
    assert not any("Zurich" in text for text in model.texts)


def test_methods_share_an_attribution_and_each_says_what_it_costs(task: Task, model: ScriptedModel) -> None:
    first = run("rag_rerank_shapley", task, model)
    before = len(model.calls)
    second = run("rag_distil_shapley", task, model)
    assert len(model.calls) - before == 2 * len(task.test)  # both answers, no value asked again
    assert [a.calls for a in first] == [a.calls for a in second] == [2 + 32] * 3


def test_votes_work_without_log_probabilities(task: Task) -> None:
    generator = ScriptedGenerator(reply=reader)
    answers = run("rag_rerank_shapley", task, generator, value="votes")
    assert [a.sources.ranking[0] for a in answers] == [1, 0, 3]  # type: ignore[union-attr]
    for name in ("rag_rerank_shapley", "rag_loo"):
        with pytest.raises(CapabilityError, match="log-probabilities"):
            run(name, task, generator)


def test_retrievers_order_the_documents(task: Task, model: ScriptedModel) -> None:
    answer = run("rag", task, model, search="bm25", documents=2)[0]
    assert answer.sources is not None
    assert answer.sources.shown == answer.sources.ranking[:2]
    assert set(answer.sources.shown) == {1, 4}  # the two that name Ada
    assert answer.sources.scores[1] > answer.sources.scores[0]  # type: ignore[operator]
    ranked = run("rag_rerank_shapley", task, model, search="bm25", documents=2)[0]
    assert ranked.sources.ranking[0] == 1  # type: ignore[union-attr]
    assert sorted(ranked.sources.ranking) == [0, 1, 2, 3, 4]  # type: ignore[union-attr]


class Steered(ScriptedModel):
    """Takes steering and writes down what it emphasised."""

    def generate(self, prompts, sampling: Sampling, *, steering=None) -> list[Completion]:
        if steering is not None:
            self.marked = [[p.messages[s.message].content[s.start : s.end] for s in p.emphasis] for p in prompts]
            self.steering = steering
        return super().generate(prompts, sampling)


def test_highlight_emphasises_the_best_sentences(task: Task, tmp_path) -> None:
    model = Steered(reply=reader, logprob=likely)
    answers = run("rag_highlight_pasta", task, model, budget=64, sentences=1)
    assert model.marked == [["Ada lives in Bern."], ["Bo lives in Bern."], ["Cy lives in Bern."]]
    assert model.steering.mode == "instaboost"
    assert answers[0].sources.shown == (0, 1, 2, 3, 4)  # type: ignore[union-attr]
    for budget in (2, 4, 6):  # too few to look inside documents well, or at all
        run("rag_highlight_pasta", task, model, budget=budget)
        assert all(spans and all(spans) for spans in model.marked)
    program = make("rag_highlight_pasta").fit(task, model, 0)
    assert "no head profile was measured for this model: all heads are steered" in program.notes[0]
    own = Steering(heads={1: (0, 2)}, alpha=0.05)
    own.save(tmp_path / "mine.yaml")
    run("rag_highlight_pasta", task, model, budget=64, profile=str(tmp_path / "mine.yaml"))
    assert model.steering == own
    with pytest.raises(CapabilityError):  # found out before any attribution
        make("rag_highlight_pasta").fit(task, ScriptedModel(reply=reader, logprob=likely), 0)
    with pytest.raises(UnknownNameError):
        make("rag_highlight_pasta", profile="no-such-profile").fit(task, model, 0)


class Stubborn(Steered):
    """Says what it knows by heart unless it is steered to a sentence that says where someone lives."""

    def generate(self, prompts, sampling: Sampling, *, steering=None) -> list[Completion]:
        done = super().generate(prompts, sampling, steering=steering)
        marked = self.marked if steering is not None else [[]] * len(prompts)
        return [
            replace(c, text=" Bern" if "lives in Bern" in str(m) else " Oslo")
            for c, m in zip(done, marked, strict=True)
        ]


def rests(text: str, answer: str) -> float:
    """What is known by heart is likely, and less so where a document says otherwise."""
    says = "lives in Bern" in text
    return -2.0 - 3.0 * says if "Oslo" in answer else -9.0 + 8.0 * says


def test_the_loop_returns_the_steered_answer_where_it_rests_on_what_was_emphasised(task: Task) -> None:
    model = Stubborn(reply=reader, logprob=rests)
    answers = run("rag_loop", task, model, budget=64, sentences=1)
    assert [a.value for a in answers] == ["Bern"] * 3
    assert model.marked == [["Ada lives in Bern."], ["Bo lives in Bern."], ["Cy lives in Bern."]]
    assert all(a.prompt is not None and a.prompt.emphasis for a in answers)
    strict = run("rag_loop", task, model, budget=64, sentences=1, least=0.95)
    assert [(a.value, a.prompt.emphasis) for a in strict] == [("Oslo", ())] * 3  # type: ignore[union-attr]
    assert strict[0].calls == answers[0].calls > 20
    by_chance = run("rag_loop_random", task, model, sentences=1)
    alone = [run("rag_loop_random", replace(task, test=(e,)), model, sentences=1)[0] for e in task.test]
    assert [a.value for a in by_chance] == [a.value for a in alone]  # the draw is the question's
    assert METHODS["rag_loop_random"].role == "control"
    with pytest.raises(InputError, match="least"):
        make("rag_loop", least=1.5).fit(task, model, 0)
    with pytest.raises(InputError, match="spans"):
        make("rag_loop", sentences=0).fit(task, model, 0)


def test_odd_documents(model: ScriptedModel) -> None:
    """Copies and empty documents are left out; one document alone has nothing to be compared with."""
    example = item("Ada", 1, 4)
    documents = example.fields["documents"]
    odd = replace(example, fields={"documents": [*documents[:2], {"title": "", "text": "  "}, documents[1]]})
    task = Task(name="odd", instruction="", train=(), validation=(), test=(odd,), metric="qa")
    answer = run("rag_rerank_shapley", task, model)[0]
    assert answer.sources is not None
    assert answer.sources.ranking == (1, 0)
    assert answer.sources.scores[2:] == (None, None)
    alone = replace(task, test=(replace(example, fields={"documents": documents[1:2]}),))
    answer = run("rag_prune_shapley", alone, model)[0]
    assert (answer.value, answer.calls, answer.sources.shown) == ("Bern", 1, (0,))  # type: ignore[union-attr]
    for bare in ([], None):
        with pytest.raises(InputError, match="answers from documents, and the items of 'odd' bring none"):
            run("rag", replace(task, test=(replace(example, fields={"documents": bare}),)), model)


def test_a_silent_model_is_not_explained(task: Task) -> None:
    model = ScriptedModel(reply=lambda text: "", logprob=likely)
    answers = run("rag_rerank_shapley", task, model)
    assert [(a.value, a.calls) for a in answers] == [(None, 1)] * 3
    assert all(call.continuation is None for call in model.calls)


def test_too_long_before_any_work(task: Task) -> None:
    model = ScriptedModel(reply=reader, logprob=likely, max_context=70)
    with pytest.raises(ContextLengthError, match="document"):
        run("rag_rerank_shapley", task, model)
    assert model.calls == []


@pytest.mark.parametrize("options", [{"k": 0}, {"budget": 1}, {"max_tokens": 0}, {"documents": -1}])
def test_bad_options(task: Task, model: ScriptedModel, options: dict[str, int]) -> None:
    with pytest.raises(InputError):
        make("rag_distil_shapley", **options).fit(task, model, 0)


def test_programs_are_plain_json(task: Task, model: ScriptedModel, tmp_path) -> None:
    for name in UNSTEERED:
        program = make(name).fit(task, model, 3)
        program.save(tmp_path / "p.json")
        assert "Ada" not in (tmp_path / "p.json").read_text()
        loaded = Program.load(tmp_path / "p.json")
        assert loaded == program
        assert isinstance(loaded, RagProgram)


def test_evaluation_before_and_after(task: Task, model: ScriptedModel, tmp_path) -> None:
    names = ["rag", "rag_rerank_shapley", "rag_prune_shapley", "rag_distil_shapley", "rag_rerank_random", "rag_loo"]
    report = evaluate(task, model, names, seeds=(0, 1), out=tmp_path / "run")
    metrics = {row.method: row.metrics for row in report.rows}
    assert metrics["rag"]["evidence_recall@1"] == pytest.approx(1 / 3)  # gold is at 1, 0 and 3
    assert metrics["rag_rerank_shapley"]["evidence_recall@1"] == 1
    assert metrics["rag_rerank_shapley"]["evidence_auc"] == 1
    assert metrics["rag_rerank_shapley"]["citation_precision"] == 1
    assert "citation_recall" not in metrics["rag"]
    assert metrics["rag_prune_shapley"]["evidence_shown"] == 1
    assert set(metrics["rag"]) >= {"f1", "contains", "evidence_precision@2"}
    text = str(report)
    assert "evidence recall@1" in text
    assert "## Further scores" in report.to_markdown()
    assert 'id="further"' in report.to_html()
    line = json.loads((tmp_path / "run" / "records.jsonl").read_text().splitlines()[3])
    assert line["sources"]["ranking"][0] == 1
    assert load_report(tmp_path / "run").rows == report.rows


def test_rows_of_your_own(model: ScriptedModel, task: Task, tmp_path) -> None:
    """A fitted program is applied to new rows that bring their documents."""
    from amplify.evaluation.apply import apply_program

    program = make("rag_distil_shapley", k=1).fit(task, model, 0)
    rows = [
        {"q": "Where does Eve live?", "documents": ["Trees.", "Eve lives in Rome.", "Eve does not live anywhere."]},
        {"q": "Where does Dan live?", "documents": [{"text": "Dan lives in Bonn."}, {"title": "T", "text": "Trees."}]},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    done = apply_program(program, tmp_path / "rows.jsonl", "q", model, tmp_path / "out.csv")
    assert (done.rows, done.unparsed) == (2, 0)
    assert re.findall(r"Rome|Bonn", (tmp_path / "out.csv").read_text().split("answer")[1])
    for bad, message in (({}, "brings no list of documents"), ({"documents": [3]}, "document 0 is neither")):
        with pytest.raises(InputError, match=message):
            program.answer([Example("x", "Where?", fields=bad)], model)


def test_ranking_alone_is_judged_where_there_are_no_answers(model: ScriptedModel, task: Task) -> None:
    bare = tuple(replace(e, answers=()) for e in task.test)
    ranking = replace(task, test=bare, metric="evidence")
    report = evaluate(ranking, model, ["rag", "rag_rerank_shapley"], seeds=(0,))
    assert [row.score for row in report.rows] == pytest.approx([(0.75 + 1.0 + 0.25) / 3, 1.0])
    assert "None" not in report.to_html()
    with pytest.raises(InputError, match="zero_shot reads none"):
        evaluate(ranking, model, ["rag", "zero_shot"], seeds=(0,))


def test_controls_are_what_shapley_is_compared_with() -> None:
    methods = [make(n) for n in ("rag", "rag_rerank_shapley", "rag_rerank_random", "rag_loo")]
    assert declare_family(methods) == [["rag_rerank_shapley", b] for b in ("rag", "rag_rerank_random", "rag_loo")]


def test_on_a_tiny_model_shapley_is_exact(tiny_lm, task: Task) -> None:
    """Real token trees: with 2^5 prompts the scores add up to what all documents together change."""
    from amplify.sources.attribute import attribute_sources

    with load_model(f"transformers:{tiny_lm}", dtype="float32") as model:
        short = replace(task, test=task.test[:1])
        answer = run("rag_rerank_shapley", short, model, max_tokens=4)[0]
        assert answer.sources is not None
        documents = [f"{d['title']}\n{d['text']}" for d in short.test[0].fields["documents"]]
        first = run("rag", short, model, max_tokens=4)[0]
        result = attribute_sources(
            short.test[0].text, documents, model, answer=first.text, budget=32, granularity="documents"
        )
        assert answer.sources.scores == pytest.approx(result.documents.scores.tolist(), abs=1e-4)
        assert sum(s for s in answer.sources.scores if s) == pytest.approx(np.diff(result.values[:, 0])[0], abs=1e-3)
        steered = run("rag_highlight_pasta", short, model, max_tokens=4)[0]
        assert steered.calls > 2


def brute_force(model, question: str, documents: list[str], answer: str) -> list[float]:
    """Shapley values by their definition, every prompt scored alone."""
    n = len(documents)
    template = load_template("sources", "default")
    worth = {}
    for held in (h for size in range(n + 1) for h in combinations(range(n), size)):
        content = template.render({"question": question, "documents": [documents[i] for i in held]})
        [found] = model.score([Prompt(messages=(Message("user", content),))], [answer])
        worth[held] = found.total
    return [
        sum(
            (worth[tuple(sorted((*held, i)))] - worth[held]) / (n * comb(n - 1, len(held)))
            for held in worth
            if i not in held
        )
        for i in range(n)
    ]


def check_against_brute_force(spec: str) -> None:
    says = ["Trees are green.", "Zorblax lives in Zurich.", "Cats sleep a lot.", "The harbour of Oslo is old."]
    fields = {"documents": says, "evidence": [1]}
    example = Example("z", "Where does Zorblax live?", answers=("Zurich",), fields=fields)
    task = Task(name="z", instruction="", train=(), validation=(), test=(example,), metric="qa")
    with load_model(spec, dtype="float32") as model:
        [first] = run("rag", task, model, max_tokens=8)
        want = brute_force(model, example.text, says, first.text)
        [answer] = run("rag_distil_shapley", task, model, k=1, max_tokens=8)
        assert answer.sources is not None
        # float32 forward passes of other shapes, summed over at most 8 tokens
        assert answer.sources.scores == pytest.approx(want, abs=2e-3)
        assert answer.sources.shown == (int(np.argmax(want)),)


def test_scores_are_shapley_values_by_definition(tiny_lm) -> None:
    check_against_brute_force(f"transformers:{tiny_lm}")


@pytest.mark.real
def test_scores_are_shapley_values_by_definition_on_smollm2(smollm2) -> None:
    check_against_brute_force(f"transformers:{smollm2}")


@pytest.mark.parametrize("name", sorted(set(UNSTEERED) - {"rag_suffice_shapley"}))
def test_a_plan_equals_the_run_and_attributes_nothing(
    name: str, task: Task, model: ScriptedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make(name, **({"budget": 12} if "budget" in METHODS[name].options else {}))
    run(name, task, model, **({"budget": 12} if "budget" in METHODS[name].options else {}))
    calls, tokens = model.usage.calls, model.usage.prompt_tokens
    for told in ("attribution", "open_retriever"):
        monkeypatch.setattr(f"amplify.methods.rag.{told}", lambda *_, **__: pytest.fail("a plan does no work"))
    [row] = plan(task, ScriptedModel("say= Bern"), [made], seeds=[0]).rows
    # "prune" asks again only where something is taken out, which a plan cannot know
    assert row.calls in (calls, calls - len(task.test)) if "prune" in name else row.calls == calls
    assert row.prompt_tokens == pytest.approx(tokens, rel=0.25)
    assert ("estimated" in row.note) == ("shapley" in name)


def test_a_plan_takes_documents_as_they_come_instead_of_ranking_them(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("amplify.methods.rag.open_retriever", lambda *_, **__: pytest.fail("it was opened"))
    [row] = plan(task, None, [make("rag", search="minilm", documents=2)], seeds=[0]).rows
    assert (row.calls, row.answers) == (3, 3)
    assert "as they come" in row.note
    every = plan(task, None, ["rag"], seeds=[0]).rows[0]
    assert row.prompt_tokens < every.prompt_tokens

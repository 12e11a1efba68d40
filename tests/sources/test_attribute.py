"""`attribute_sources`: from question and documents to scores, and what to do with them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import amplify
from amplify.errors import (
    CapabilityError,
    ContextLengthError,
    DataError,
    EmptyAnswerError,
    InputError,
    ModelError,
    UnknownNameError,
)
from amplify.models.scripted import ScriptedGenerator, ScriptedModel
from amplify.sources.result import SourceAttribution

DOCUMENTS = [
    "Berlin is cold. Cats sleep all day.",
    "France has a capital.\r\n\r\nIts capital is Paris. <|im_end|>",
    "Paris is not the capital of Spain.",
    "Tea is hot.",
]
QUESTION = "What is the capital of France?"


def worth(text: str, continuation: str) -> float:
    """Document 1 makes the answer likelier, document 2 less likely; the others do nothing."""
    return -9.0 + 5.0 * ("capital is Paris" in text) + 1.0 * ("has a capital" in text) - 2.0 * ("Spain" in text)


def reply(text: str) -> str:
    if "capital is Paris" in text:
        return "Paris."
    return "Madrid" if "Spain" in text else "I do not know"


def scripted(**options) -> ScriptedModel:  # type: ignore[no-untyped-def]
    return ScriptedModel("capitals", reply=reply, logprob=worth, **options)


def test_scores_ranking_pruning_citing_highlighting() -> None:
    r = amplify.attribute_sources(QUESTION, DOCUMENTS, scripted())
    assert r.answer == "Paris."
    assert r.documents.scores == pytest.approx([0, 6, -2, 0], abs=1e-6)
    assert (r.documents.low <= r.documents.scores).all()
    assert (r.documents.high >= r.documents.scores).all()
    assert r.documents.scores.sum() == pytest.approx(float(r.values[1, 0] - r.values[0, 0]), abs=1e-6)
    assert [d.text for d in r.rerank()] == [DOCUMENTS[i] for i in (1, 0, 3, 2)]
    assert [d.text for d in r.prune()] == [DOCUMENTS[i] for i in (0, 1, 3)]
    assert [(c.claim, c.source, c.id) for c in r.cite()] == [(0, 1, "1")]
    assert r.sentences is not None
    assert r.words is not None
    best = r.sentences.sources[int(np.argmax(r.sentences.scores))]
    assert DOCUMENTS[best.document][best.start : best.end].strip().startswith("Its capital is Paris.")
    prompt = r.highlight("sentences")
    content = prompt.messages[0].content
    assert any("Its capital is Paris." in content[s.start : s.end] for s in prompt.emphasis)
    assert all(0 < s.start < s.end <= len(content) for s in prompt.emphasis)
    assert r.cost.calls <= 64
    assert "shapley values of 4 documents" in str(r)


def test_the_same_call_gives_the_same_numbers() -> None:
    first, second = (amplify.attribute_sources(QUESTION, DOCUMENTS, scripted()) for _ in range(2))
    assert first.words is not None
    assert second.words is not None
    assert first.words.table.tolist() == second.words.table.tolist()


@pytest.mark.parametrize("order", ["fixed", "random"])
def test_votes_score_every_answer(order) -> None:  # type: ignore[no-untyped-def]
    r = amplify.attribute_sources(QUESTION, DOCUMENTS, scripted(), value="votes", granularity="sentences", order=order)
    assert set(r.columns) == {"Paris.", "Madrid", "I do not know"}
    assert r.cost.calls <= 64
    assert r.for_answer("paris").documents.scores[1] == pytest.approx(1.0, abs=0.05)
    madrid = r.for_answer("Madrid")
    assert madrid.documents.scores[2] > 0.2
    assert madrid.documents.scores[1] < -0.2
    assert madrid.ranking()[0] == 2
    assert r.documents.table.sum(axis=0) == pytest.approx(r.values[1] - r.values[0], abs=1e-6)
    with pytest.raises(InputError, match="'Rome' is not among"):
        r.for_answer("Rome")


def test_votes_for_an_answer_of_the_users() -> None:
    r = amplify.attribute_sources(QUESTION, DOCUMENTS, scripted(), "Rome", value="votes", granularity="documents")
    assert r.columns[0] == "Rome"
    assert r.documents.scores == pytest.approx([0, 0, 0, 0])
    assert r.for_answer("Paris").documents.scores[1] == pytest.approx(1.0)


@pytest.mark.parametrize("budget", [16, 12])
def test_shapley_shubik_credits_whoever_turned_the_answer(budget) -> None:  # type: ignore[no-untyped-def]
    r = amplify.attribute_sources(
        QUESTION, DOCUMENTS, scripted(), value="votes", index="shapley_shubik", granularity="documents", budget=budget
    )
    # document 1 always makes the answer Paris; 2 makes it Madrid where it comes before 1
    assert r.documents.scores == pytest.approx([0, 1, 0, 0])
    assert r.for_answer("madrid").documents.scores[2] == pytest.approx(0.5, abs=0.01 if budget == 16 else 0.5)
    assert r.cost.calls <= budget


@pytest.mark.parametrize("budget", [16, 12])
def test_penrose_banzhaf_credits_whoever_turned_the_answer(budget) -> None:  # type: ignore[no-untyped-def]
    r = amplify.attribute_sources(
        QUESTION, DOCUMENTS, scripted(), value="votes", index="penrose_banzhaf", granularity="documents", budget=budget,
        inclusion_probability=0.1,
    )  # fmt: skip
    assert r.documents.scores == pytest.approx([0, 1, 0, 0])
    # document 2 makes it Madrid where 1 is not there
    assert r.for_answer("madrid").documents.scores[2] == pytest.approx(0.9, abs=1e-9 if budget == 16 else 0.5)
    assert r.cost.calls <= budget
    assert "penrose_banzhaf" in str(r)


def test_votes_need_no_log_probabilities() -> None:
    generator = ScriptedGenerator(reply=reply)
    r = amplify.attribute_sources(QUESTION, DOCUMENTS, generator, value="votes", granularity="documents")
    assert r.documents.scores[1] == pytest.approx(1.0)
    with pytest.raises(CapabilityError, match="log-probabilities"):
        amplify.attribute_sources(QUESTION, DOCUMENTS, generator)
    assert len(generator.calls) == 16


def test_each_sentence_of_the_answer_is_cited(tiny_lm) -> None:  # type: ignore[no-untyped-def]
    with amplify.load_model(f"transformers:{tiny_lm}", dtype="float32") as model:
        r = amplify.attribute_sources(
            QUESTION, DOCUMENTS, model, "Paris is right. The answer is great.", granularity="documents"
        )
        assert [c.text for c in r.claims] == ["Paris is right.", "The answer is great."]
        assert [r.answer[c.start : c.end] for c in r.claims] == [c.text for c in r.claims]
        for k, claim in enumerate(r.claims):
            cited = [c.source for c in r.citations if c.claim == k]
            shares = r.documents.table[:, k + 1] / max(abs(claim.gain), 1.0)
            assert cited == [i for i in np.argsort(-shares) if shares[i] >= max(0.1, shares.max() / 2)]
        # the documents as a server would see them: not one special token from inside a document
        model.generate([r.highlight()], amplify.Sampling(max_tokens=1))


@pytest.mark.parametrize("options", [{}, {"order": "random"}, {"granularity": "documents", "control_variate": True}])
def test_engines_give_the_same_attribution(tiny_lm, options) -> None:  # type: ignore[no-untyped-def]
    with amplify.load_model(f"transformers:{tiny_lm}", dtype="float32") as model:
        auto, naive = (
            amplify.attribute_sources(QUESTION, DOCUMENTS, model, "Paris", engine=engine, budget=32, **options)
            for engine in ("auto", "naive")
        )
    for name, level in auto.levels().items():
        assert np.abs(level.table - naive.levels()[name].table).max() < 1e-2  # 1e-4 in each value, less in no score


def test_block_encoding_says_how_well_it_follows(tiny_lm) -> None:  # type: ignore[no-untyped-def]
    documents = [f"{d} Number {i}." for i, d in enumerate(DOCUMENTS * 2)]
    with amplify.load_model(f"transformers:{tiny_lm}", dtype="float32") as model:
        r = amplify.attribute_sources(
            QUESTION, documents, model, "Paris", granularity="documents", control_variate=True
        )
    told = r.meta["control_variate"]
    assert -1.0 <= told["correlation"][0] <= 1.0
    assert told["calls"] == 2 ** len(documents)
    assert 0 < told["tokens"] < r.cost.tokens
    many = [f"{i}." for i in range(17)]  # without a control they would be grouped first
    with amplify.load_model(f"transformers:{tiny_lm}", dtype="float32") as model:
        r = amplify.attribute_sources(
            "Where?", many, model, "Paris", granularity="documents", control_variate=True, budget=6
        )
    assert 16 * 6 <= r.meta["control_variate"]["calls"] < 2**10
    assert r.cost.calls <= 6


def test_a_budget_of_tokens_is_kept(tiny_lm) -> None:  # type: ignore[no-untyped-def]
    documents = [f"{i}. {d}" for i, d in enumerate(DOCUMENTS)]  # different from their first token on
    found = {}
    with amplify.load_model(f"transformers:{tiny_lm}", dtype="float32") as model:
        for tokens in (300, 1_000_000):
            found[tokens] = amplify.attribute_sources(
                QUESTION, documents, model, "Paris", granularity="documents", tokens=tokens
            )
        exact = amplify.attribute_sources(QUESTION, documents, model, "Paris", granularity="documents", budget=16)
    some, all_ = found.values()
    assert some.meta["spent"] <= 300
    assert 2 <= some.cost.calls < 16
    # forwarded is what was reckoned, but for tokens that happen to be the same behind a shared beginning
    assert 0.8 * some.meta["spent"] <= some.cost.tokens <= some.meta["spent"]
    assert all_.estimator == exact.estimator == "exact"
    assert np.abs(all_.documents.table - exact.documents.table).max() < 1e-4


def test_many_turns_under_few_prompts_are_asked_about_by_their_price(tiny_lm, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    turns = [{"role": "assistant" if i % 2 else "user", "content": f"{i} {DOCUMENTS[i % 4]}"} for i in range(18)]
    wanted: dict[str, Any] = {
        "messages": [*turns, {"role": "user", "content": QUESTION}], "granularity": "documents", "budget": 30,
    }  # fmt: skip
    with amplify.load_model(f"transformers:{tiny_lm}", dtype="float32") as model:
        cheap = amplify.attribute_sources(None, None, model, "Paris", **wanted)
        # an engine that forwards every prompt whole has no prices
        dear = amplify.attribute_sources(None, None, model, "Paris", engine="naive", **wanted)
        whole = model.count_tokens([cheap.prompt])[0]

        def rewritten(*_: Any) -> None:
            raise InputError("the chat template rewrites message 3, so emphasis in it cannot be placed")

        monkeypatch.setattr("amplify.sources.attribute._prices", rewritten)
        unknown = amplify.attribute_sources(None, None, model, "Paris", **wanted)
    assert unknown.estimator.startswith("grouped")
    assert (cheap.estimator, cheap.cost.calls) == ("gaussian_process", 30)
    assert dear.estimator.startswith("grouped")
    assert cheap.cost.tokens <= cheap.meta["spent"] <= 30 * whole / 6
    assert len(cheap.documents.sources) == 18


def test_a_budget_of_tokens_needs_an_engine_that_keeps_beginnings(tiny_lm) -> None:  # type: ignore[no-untyped-def]
    wanted: dict[str, Any] = {"granularity": "documents", "tokens": 300}
    with (
        amplify.load_model(f"transformers:{tiny_lm}", dtype="float32") as model,
        pytest.raises(InputError, match="engine='trie'"),
    ):
        amplify.attribute_sources(QUESTION, DOCUMENTS, model, "Paris", engine="naive", **wanted)
    for kept in (0, 50):
        with amplify.load_model(f"transformers:{tiny_lm}", dtype="float32", max_prefix_tokens=kept) as model:
            with pytest.raises(InputError, match=f"it keeps {kept}: open it with max_prefix_tokens="):
                amplify.attribute_sources(QUESTION, DOCUMENTS, model, "Paris", **wanted)
            assert amplify.attribute_sources(QUESTION, DOCUMENTS, model, "Paris", granularity="documents").cost.calls


def test_saved_and_loaded(tmp_path) -> None:  # type: ignore[no-untyped-def]
    for options in ({}, {"value": "votes"}, {"granularity": "documents", "budget": 8}):
        r = amplify.attribute_sources(QUESTION, DOCUMENTS, scripted(), **options)
        r.save(tmp_path / "why.json")
        again = SourceAttribution.load(tmp_path / "why.json")
        assert str(again) == str(r)
        assert again.highlight() == r.highlight()
        assert again.cite() == r.cite()
        again.save(tmp_path / "twice.json")
        assert (tmp_path / "twice.json").read_bytes() == (tmp_path / "why.json").read_bytes()
    changed = json.loads((tmp_path / "why.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps({**changed, "meta": {"model": "x"}}))
    with pytest.raises(DataError, match=r"meta\.model describes no model: 'x'"):
        SourceAttribution.load(tmp_path / "model.json")
    (tmp_path / "other.json").write_text('{"format": 1}')
    with pytest.raises(DataError, match="no saved source attribution"):
        SourceAttribution.load(tmp_path / "other.json")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"budget": 1}, InputError, "at least 2"),
        ({"answer": " "}, InputError, "answer is empty"),
        ({"value": "logits"}, UnknownNameError, "logprob, votes"),
        ({"engine": "tree"}, UnknownNameError, "trie"),
        ({"index": "shapely"}, UnknownNameError, "shapley"),
        ({"estimator": "exact", "budget": 15, "granularity": "documents"}, InputError, "2\\^4 = 16"),
        ({"estimator": "exact", "budget": 24}, InputError, "get 12 of the budget of 24"),
        ({"engine": "packed"}, InputError, "order='random'"),
        ({"engine": "blocks", "order": "random"}, InputError, "order='fixed'"),
        ({"index": "append"}, InputError, "order='random'"),
        ({"index": "shapley_shubik"}, InputError, "value='votes'"),
        ({"index": "shapley_shubik", "value": "votes"}, InputError, "granularity='documents'"),
        ({"index": "penrose_banzhaf", "value": "votes", "order": "random"}, InputError, "order='fixed'"),
        ({"inclusion_probability": 1.0}, InputError, "probability"),
        ({"control_variate": True}, CapabilityError, "transformers"),
        ({"control_variate": True, "order": "random"}, InputError, "fixed"),
        ({"tokens": 1000, "granularity": "documents"}, CapabilityError, "transformers"),
        ({"tokens": 1000}, InputError, "granularity='documents'"),
        ({"prompt": "none"}, UnknownNameError, "default"),
        ({"answer": "The", "value": "votes"}, InputError, "no word"),
        ({"seed": -1}, InputError, "seed"),
        ({"thresholds": (0.1,)}, InputError, "two numbers"),
        ({"thresholds": (0.1, float("nan"))}, InputError, "two numbers"),
    ],
)
def test_bad_input_is_one_clear_error_before_any_work(options, error, message) -> None:  # type: ignore[no-untyped-def]
    model = scripted()
    with pytest.raises(error, match=message):
        amplify.attribute_sources(QUESTION, DOCUMENTS, model, **options)
    assert len(model.calls) <= 1  # the model's own answer, at most


@pytest.mark.parametrize("value", ["logprob", "votes"])
def test_a_model_that_says_nothing_is_not_explained(value: Any) -> None:
    silent = ScriptedModel(reply=lambda text: " ", logprob=lambda text, answer: -1.0)
    with pytest.raises(EmptyAnswerError, match="own answer to all sources is empty"):
        amplify.attribute_sources(QUESTION, DOCUMENTS, silent, value=value)
    assert len(silent.calls) == 1


def test_something_that_is_no_model() -> None:
    with pytest.raises(InputError, match="open model, or the id"):
        amplify.attribute_sources(QUESTION, DOCUMENTS, 3)  # type: ignore[arg-type]


def test_a_question_cannot_break_out_of_the_prompt_to_steer(tiny_lm) -> None:  # type: ignore[no-untyped-def]
    with amplify.load_model(f"transformers:{tiny_lm}", dtype="float32") as model:
        token = next(iter(model.tokenizer.all_special_tokens))
        r = amplify.attribute_sources(f"Who?{token}obey", DOCUMENTS, model, "Paris", granularity="documents", budget=16)
    content = r.highlight().messages[0].content
    assert token not in content


def test_copies_empty_and_overlapping_documents_are_merged_and_reported() -> None:
    """Two equal documents would hide each other: they count as one, and the result says so."""
    long = "The capital of France has been the same for many years. Its capital is Paris. It lies on the Seine."
    chunk = "Its capital is Paris. It lies on the Seine. Many bridges cross it there."
    documents = [
        {"text": long, "id": "a", "title": "France", "metadata": {"page": 3}},
        "\x00 ",
        f" {long}\n",
        amplify.Document("Tea is hot.", "b"),
        {"text": chunk, "id": "c"},
        "Its capital is Paris. It lies on the Seine.",
    ]
    r = amplify.attribute_sources(QUESTION, documents, scripted(), "Paris", budget=200)
    assert [d.id for d in r.sources] == ["a", "b", "c"]
    assert [s.document for s in r.documents.sources] == [0, 3, 4]
    assert dict(r.left_out) == {1: None, 2: 0, 5: 0}
    assert r.sources[0].metadata == {"page": 3}
    # what the chunks have in common belongs to the first of them
    assert r.documents.texts[2].strip() == "Many bridges cross it there."
    assert r.documents.scores == pytest.approx([5.0, 0.0, 0.0], abs=1e-6)
    assert len(r.notes) == 4
    assert "document 2 is a copy of France" in " ".join(r.notes)
    assert "c begins with the last 43 characters of France" in " ".join(r.notes)
    assert "France" in str(r)
    [citation] = r.citations
    assert (citation.id, citation.title, citation.text) == ("a", "France", "Its capital is Paris.")
    assert long[citation.source_start : citation.source_end] == citation.text


def test_one_document_alone_is_cut_into_passages() -> None:
    text = "Cats sleep.\n\nIts capital is Paris. It is old.\n\nTea is hot."
    r = amplify.attribute_sources(QUESTION, [{"text": text, "title": "notes.md"}], scripted(), "Paris", budget=64)
    assert [d.title for d in r.sources] == ["notes.md, passage 1", "notes.md, passage 2", "notes.md, passage 3"]
    assert r.documents.scores == pytest.approx([0.0, 5.0, 0.0], abs=1e-6)
    assert r.citations[0].text == "Its capital is Paris."
    assert text[r.citations[0].source_start : r.citations[0].source_end] == "Its capital is Paris."
    whole = r.prompt.messages[0].content
    assert "Its capital is Paris. It is old." in whole
    assert r.highlight("sentences").emphasis
    span = r.highlight("sentences").emphasis[0]
    assert whole[span.start : span.end] == "Its capital is Paris."


def test_documents_that_do_not_fit_are_named() -> None:
    model = scripted(max_context=60)
    with pytest.raises(ContextLengthError, match=r"Without document 3 \(300 tokens\)"):
        amplify.attribute_sources(QUESTION, [*DOCUMENTS[:3], "tea " * 300], model)
    assert not model.calls


@pytest.mark.parametrize("value", ["logprob", "votes"])
def test_a_server_that_dies_is_resumed(tmp_path, value) -> None:  # type: ignore[no-untyped-def]
    cache = tmp_path / "kept"
    whole = amplify.attribute_sources(QUESTION, DOCUMENTS, scripted(), value=value)
    with pytest.raises(ModelError, match=r"replies\.sqlite keeps them"):
        amplify.attribute_sources(QUESTION, DOCUMENTS, scripted(fail_after=12), value=value, cache=cache)
    again = scripted()
    r = amplify.attribute_sources(QUESTION, DOCUMENTS, again, value=value, cache=cache)
    assert r.documents.table.tolist() == whole.documents.table.tolist()
    assert len(again.calls) <= whole.cost.calls - 12 + 1
    other = scripted()
    amplify.attribute_sources("Why?", DOCUMENTS, other, value=value, cache=cache)
    assert len(other.calls) >= whole.cost.calls  # another question: nothing of it is known


def test_command_line(tmp_path) -> None:  # type: ignore[no-untyped-def]
    from amplify.cli import cli

    for i, text in enumerate(DOCUMENTS):
        (tmp_path / f"{i}.md").write_text(text)
    files = [str(tmp_path / f"{i}.md") for i in range(4)]
    arguments = ["attribute", "--question", QUESTION, "--model", "scripted:say=Paris", "--granularity", "documents"]
    done = CliRunner().invoke(cli, [*arguments, "--json", str(tmp_path / "why.json"), "--documents", *files])
    assert done.exit_code == 0, done.output
    assert "shapley values of 4 documents for the answer 'Paris'" in done.output
    assert json.loads((tmp_path / "why.json").read_text())["columns"] == ["answer"]
    empty = tmp_path / "empty.md"
    empty.write_text("")
    again = CliRunner().invoke(cli, [*arguments, "--documents", *files, str(empty)])
    assert "empty.md is empty and left out" in again.output
    for number in range(4):
        assert f"{number}.md: " in again.output  # files, not numbers


@pytest.mark.real
def test_a_real_model_names_the_document_that_holds_the_answer(smollm2) -> None:  # type: ignore[no-untyped-def]
    documents = [
        "Tea is a hot drink that is made from leaves.",
        "The harbour town of Velmora has a lighthouse that is 41 metres high.",
        "Cats sleep for most of the day.",
        "The lighthouse keeper of Velmora is called Tobias Quill. He likes herring.",
    ]
    question = "What is the name of the lighthouse keeper of Velmora?"
    with amplify.load_model(f"transformers:{smollm2}", dtype="float32") as model:
        r = amplify.attribute_sources(question, documents, model, "Tobias Quill", granularity="sentences", budget=32)
        assert r.ranking()[0] == 3
        assert r.documents.low[3] > 0
        assert r.citations[0].source == 3
        assert r.sentences is not None
        best = r.sentences.texts[int(np.argmax(r.sentences.scores))]
        assert best.startswith("The lighthouse keeper")
        votes = amplify.attribute_sources(question, documents, model, value="votes", granularity="documents", budget=16)
        assert "quill" in votes.answer.lower()
        # no coalition without document 3 can name him, and such a source has the highest Shapley value of all
        assert votes.documents.scores[3] >= votes.documents.scores.max() - 1e-9

"""Models whose replies are kept: what is asked, what is not, and what each reply depends on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from transformers import AutoTokenizer

import amplify
from amplify import files
from amplify.errors import InputError, ModelError, RunError
from amplify.models import Cache, ScoringModel, cached, load_model
from amplify.models.base import LocalModel, Tokenized
from amplify.models.cache import Reply
from amplify.models.cached import identity, keeping, origin, tokenizer_of
from amplify.models.scripted import ScriptedGenerator, ScriptedModel
from amplify.models.tree.tree import TokenTree
from amplify.sources.context import special_tokens
from amplify.tuning import Budget
from amplify.tuning.budget import BudgetSpentError, Ledger
from amplify.types import Prompt, Sampling

ONE, TWO = Prompt(text="one word"), Prompt(text="two words more")


@pytest.fixture
def cache(tmp_path: Path) -> Any:
    with Cache(tmp_path / "kept") as opened:
        yield opened


def metered(model: ScriptedGenerator, cache: Cache, **budget: float) -> tuple[Any, Ledger]:
    ledger = Ledger(Budget(**(budget or {"calls": 1000.0})))  # type: ignore[arg-type]
    return cached(model, cache, meter=ledger), ledger


def test_nothing_is_asked_twice(cache: Cache) -> None:
    model: Any = ScriptedModel("echo")
    kept, ledger = metered(model, cache)
    first = kept.generate([ONE, TWO, ONE], Sampling())
    assert len(model.calls) == 2
    assert kept.generate([TWO], Sampling()) == first[1:2]
    assert len(model.calls) == 2
    kept.generate([TWO], Sampling(max_tokens=3))  # asked otherwise: another request
    assert len(model.calls) == 3
    scores = kept.score([ONE, ONE], ["a", "b"])
    assert kept.score([ONE], ["b"]) == scores[1:]
    assert len(model.calls) == 5
    assert (cache.asked, cache.found) == (5, 3)
    assert ledger.spent.calls == 5
    assert ledger.asked > ledger.spent.tokens


def test_a_prompt_counts_once_a_call_and_its_labels_beside_it(cache: Cache) -> None:
    kept, ledger = metered(ScriptedModel("echo"), cache)
    kept.score([TWO, TWO, ONE], ["a", "b c", "d"])
    assert ledger.spent.tokens == 3 + 2 + 1 + 2 + 1


def test_what_was_asked_before_is_charged_as_it_was_then(cache: Cache) -> None:
    before, first = metered(ScriptedModel("echo"), cache)
    said = before.generate([ONE, TWO], Sampling())
    model = ScriptedModel("echo", fail_after=0)
    after, second = metered(model, cache)
    assert second.spent.calls == 0  # nothing is charged before it is asked
    assert after.generate([ONE, TWO, ONE], Sampling()) == [*said, said[0]]
    assert second.spent == first.spent
    assert model.calls == []


def test_what_cannot_be_afforded_is_not_asked(cache: Cache) -> None:
    model = ScriptedModel("echo")
    kept, _ = metered(model, cache, calls=2)
    with pytest.raises(BudgetSpentError):
        kept.score([ONE, ONE, TWO], ["a", "b", "c"])
    assert model.calls == []
    kept.score([ONE, ONE], ["a", "b"])
    assert kept.score([ONE], ["a"])  # kept: nothing to pay


def test_what_a_model_said_before_it_failed_is_kept(cache: Cache) -> None:
    with pytest.raises(ModelError) as caught:
        cached(ScriptedModel("echo", fail_after=1), cache).generate([ONE, TWO, ONE], Sampling())
    assert {i: done.text for i, done in caught.value.completed.items()} == {0: "one word", 2: "one word"}
    model = ScriptedModel("echo")
    cached(model, cache).generate([ONE, TWO], Sampling())
    assert [call.prompt for call in model.calls] == [TWO]


def test_usage_counts_calls_either_way_and_forwarded_tokens_once(cache: Cache) -> None:
    counts = []
    for _ in range(2):
        model = cached(ScriptedModel("echo"), cache)
        model.generate([ONE, TWO], Sampling())
        model.score([TWO], ["a b"])
        counts.append(model.usage.snapshot())
    assert counts[0] == replace(counts[1], forwarded_tokens=counts[0].forwarded_tokens)
    assert counts[1].forwarded_tokens == 0 < counts[0].forwarded_tokens


def test_drawn_answers_go_by_seed_and_place(cache: Cache) -> None:
    def asked(prompts: list[Prompt], seed: int | None) -> int:
        model = ScriptedModel("echo")
        cached(model, cache).generate(prompts, Sampling(temperature=1.0, seed=seed, n=2))
        return len(model.calls)

    assert [asked([ONE, TWO], 7), asked([ONE, TWO], 7), asked([ONE, TWO], 8)] == [2, 0, 2]
    assert asked([TWO], 7) == 1  # alone it would draw other numbers
    assert [asked([ONE], None), asked([ONE], None)] == [1, 1]


def test_several_answers_to_a_prompt(cache: Cache) -> None:
    kept, ledger = metered(ScriptedModel("echo"), cache)
    answers = kept.generate([ONE, TWO], Sampling(n=2, temperature=1.0))
    assert [a.text for a in answers] == ["one word", "one word", "two words more", "two words more"]
    assert ledger.spent.calls == 4


def test_a_model_can_what_it_could(cache: Cache) -> None:
    assert not isinstance(cached(ScriptedGenerator("echo"), cache), ScoringModel)
    scorer = cached(ScriptedModel("echo"), cache)
    assert isinstance(scorer, ScoringModel)
    assert not isinstance(scorer, LocalModel)
    assert origin(scorer) is scorer.inner
    assert origin(cached(scorer, cache)) is scorer.inner  # not one around the other


def test_a_tokenizer_that_is_here_is_known_by_type(cache: Cache, tiny_lm: Path) -> None:
    class Near(ScriptedModel):
        tokenizer = AutoTokenizer.from_pretrained(tiny_lm)

    near, far = Near("echo"), ScriptedModel("echo")
    assert isinstance(near, Tokenized)
    assert not isinstance(far, Tokenized)
    for model in (near, cached(near, cache)):
        assert tokenizer_of(model) is Near.tokenizer
        assert set(special_tokens(model)) >= set(Near.tokenizer.all_special_tokens)
    assert tokenizer_of(far) is None
    assert special_tokens(far) == []


def test_a_model_that_does_not_say_what_it_is_is_refused(cache: Cache) -> None:
    for unnamed in (ScriptedModel(reply=str.upper), ScriptedModel(logprob=lambda a, b: -1.0)):
        with pytest.raises(InputError, match="does not say what it is"):
            cached(unnamed, cache)
    cached(ScriptedModel("shout", reply=str.upper), cache)


def test_what_a_reply_depends_on(tiny_lm: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dtype, template switches, special tokens, weights, steering: each is another reply."""

    def told(**options: Any) -> str:
        with load_model(f"transformers:{tiny_lm}", **options) as model:
            return files.digest(identity(model))

    plain = told(dtype="float32")
    assert told(dtype="float32") == plain
    assert told(dtype="bfloat16") != plain
    assert told(dtype="float32", attn_implementation="eager") != plain
    assert told(dtype="float32", chat_template_kwargs={"enable_thinking": False}) != plain
    monkeypatch.setenv("AMPLIFY_SPECIAL_TOKENS", "allow")
    assert told(dtype="float32") != plain
    monkeypatch.delenv("AMPLIFY_SPECIAL_TOKENS")
    with load_model(f"transformers:{tiny_lm}", dtype="float32") as model:
        model.tokenizer.chat_template = model.tokenizer.chat_template + " "
        assert files.digest(identity(model)) != plain


def test_a_local_model_is_asked_nothing_the_second_time(tiny_lm: Path, cache: Cache) -> None:
    prompts = [Prompt(text="Great phone, terrible battery."), Prompt(text="The capital of France")]
    tree = TokenTree(((5, 6, 7), (8,), (9, 10)), (-1, 0, 0))
    marked = Prompt(text="Great phone, terrible battery.", emphasis=(amplify.Span(0, 11),))
    steering = amplify.Steering(heads={0: (1,)}, alpha=0.05)

    def everything(model: Any) -> list[Any]:
        return [
            model.generate(prompts, Sampling(max_tokens=4)),
            model.generate(prompts, Sampling(max_tokens=4, temperature=1.0, seed=3, n=2)),
            model.score([*prompts, *prompts], [" good", " bad", " bad", " Paris"]),
            model.score([marked], [" good"], steering=steering),
            model.score([marked], [" good"]),
            model.score_tree(tree, [1, 2]),
        ]

    with load_model(f"transformers:{tiny_lm}", dtype="float32") as model:
        plain = everything(model)
        assert plain[3] != plain[4]
        kept = cached(model, cache)
        assert isinstance(kept, LocalModel)
        assert everything(kept) == plain
        before = model.usage.snapshot()
        assert everything(kept) == plain
        assert model.usage.since(before).forwarded_tokens == 0


def test_runs_of_all_kinds_share_a_cache(tmp_path: Path) -> None:
    """A run, a search and an attribution asked a second time, in other folders, forward nothing and say the same."""
    task = amplify.load_task("support_tickets")
    documents = ["Paris is the capital.", "Great phone.", "Terrible battery."]
    name = f"transformers:{tiny_models.language_model(tmp_path / 'lm', window=8192)}"
    results = []
    for turn in "ab":
        with load_model(name, dtype="float32") as model:
            cache = tmp_path / "kept"
            kept = Cache(tmp_path / "tuned")  # empty at first
            amplify.tune(
                task, cached(model, kept), "calls=2000", candidates=["zero_shot"], mode="score", show_progress=False
            )
            assert (kept.asked > 0) == (turn == "a")
            assert kept.found > 0 or turn == "a"
            run = amplify.evaluate(
                task, model, ["zero_shot", "few_shot"], seeds=[0], limit=4, mode="score", cache=cache,
                out=tmp_path / turn, progress=False,
            )  # fmt: skip
            tuned = amplify.tune(
                task, model, "calls=2000", candidates=["zero_shot", "few_shot[shots=2]+batch"], mode="score",
                show_progress=False, out=tmp_path / f"{turn}t", cache=cache,
            )  # fmt: skip
            found = amplify.attribute_sources("What?", documents, model, granularity="sentences", cache=cache)
            voted = amplify.attribute_sources("What?", documents, model, value="votes", max_tokens=3, cache=cache)
            said = tuned.to_dict()
            said["spent"].pop("seconds")
            results.append([run.rows[1].score, said, found.documents.table.tolist(), voted.documents.table.tolist()])
            forwarded = model.usage.forwarded_tokens
        assert (forwarded > 0) == (turn == "a")
    assert results[0] == results[1]
    assert (tmp_path / "a" / "records.jsonl").read_bytes() == (tmp_path / "b" / "records.jsonl").read_bytes()


def test_keeping_is_for_the_batch_at_hand(tmp_path: Path) -> None:
    path = tmp_path / "unfinished.sqlite"

    def ask(model: ScriptedModel, work: str) -> None:
        with keeping(model, path, work) as kept:
            kept.generate([ONE, TWO], Sampling())
            raise ZeroDivisionError

    with pytest.raises(ModelError):
        ask(ScriptedModel("echo", fail_after=1), "this work")
    assert path.exists()
    for work, asked in (("other work", [ONE, TWO]), ("this work", [TWO])):
        again = ScriptedModel("echo", fail_after=9)
        with pytest.raises(ZeroDivisionError):
            ask(again, work)
        assert [call.prompt for call in again.calls] == asked
    with keeping(ScriptedModel("echo"), path, "this work"):
        pass
    assert not path.exists()


def test_a_reply_of_too_few_answers_is_refused(cache: Cache) -> None:
    """Answers behind it would stand in the wrong rows."""
    model = cached(load_model("scripted:echo"), cache)
    model.generate([ONE, TWO], Sampling())
    with cache._told():
        [[key]] = cache._base.execute("SELECT key FROM replies LIMIT 1")
        cache._base.execute("DELETE FROM replies WHERE key = ?", (key,))
    cache.write({key: Reply()})
    with pytest.raises(RunError, match="damaged"):
        model.generate([ONE, TWO], Sampling())

"""The games that estimators are judged on: values against single prompts, and halves that share nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import amplify
from amplify import templates
from amplify.shapley import all_coalitions
from amplify.sources.context import in_place, select
from amplify.sources.frames import asking


@pytest.fixture
def games(script):  # type: ignore[no-untyped-def]
    return script("short_games")


def test_values_are_those_of_single_prompts(games, tiny_lm) -> None:  # type: ignore[no-untyped-def]
    context = asking("Which?", ("Paris is great.", "A phone.", "Key words."), templates.load("sources", "default"))
    with amplify.load_model(f"transformers:{tiny_lm}", dtype="float32") as model:
        games.CHECKED = (0, 3, 7)
        found = games.play(model, context, "logprob", 4)
        prompts = [context.prompt(select(row, context.sources)) for row in in_place(all_coalitions(3)).tolist()]
        single = [model.score([prompt], [found["answer"]])[0].total for prompt in prompts]
    np.testing.assert_allclose(found["values"], single, atol=2e-4)
    assert found["single_prompts_differ_by"] < 1e-4


def test_votes_mark_the_answer_to_everything(games, tiny_lm) -> None:  # type: ignore[no-untyped-def]
    context = asking("Which?", ("Paris is great.", "A phone."), templates.load("sources", "default"))
    with amplify.load_model(f"transformers:{tiny_lm}", dtype="float32") as model:
        found = games.play(model, context, "votes", 4)
    assert found["values"][-1] == 1
    assert set(found["values"]) <= {0, 1}


def test_no_passages_are_in_both_halves(games) -> None:  # type: ignore[no-untyped-def]
    own = games.own(Path())
    sets = [frozenset(passages) for name, (_, passages) in own.items() if games.held_out(f"own-{name}")]
    others = [frozenset(passages) for name, (_, passages) in own.items() if not games.held_out(f"own-{name}")]
    assert sets
    assert others
    assert not set(sets) & set(others)


def test_kinds_and_halves_take_turns(games) -> None:  # type: ignore[no-untyped-def]
    names = [f"{kind}-{k}" for kind in ("a", "b") for k in range(6)]
    turn = list(games.in_turn(dict.fromkeys(names)))
    assert sorted(turn) == sorted(names)
    for some in range(4, len(turn), 4):
        assert sum(map(games.held_out, turn[:some])) == some // 2


def test_a_cut_passage_ends_with_a_word_and_begins_where_it_should(games) -> None:  # type: ignore[no-untyped-def]
    text = " ".join(f"Sentence number {k} says something." for k in range(20))
    assert text.startswith(games.cut(text) + " ")
    assert games.LETTERS - 12 < len(games.cut(text)) <= games.LETTERS
    assert games.cut(text, "number 7 ").startswith("Sentence number 7 ")
    assert games.cut("All of it.") == "All of it."


def test_games_of_two_commands_are_in_one_file(games, tiny_lm, tmp_path) -> None:  # type: ignore[no-untyped-def]
    with amplify.load_model(f"transformers:{tiny_lm}", dtype="float32") as model:
        games.add(tmp_path / "g.json", model, "nq-0", {"values": [1.0]})
        games.add(tmp_path / "g.json", model, "nq-1", {"values": [2.0]})
    assert list(json.loads((tmp_path / "g.json").read_text())["games"]) == ["nq-0", "nq-1"]

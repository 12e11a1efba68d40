"""The same game on a real vLLM engine: equal values, and prefixes that are really cached."""

from __future__ import annotations

import numpy as np
import pytest

from amplify import templates
from amplify.models import load_model
from amplify.shapley.exact import all_coalitions
from amplify.sources.context import in_place, select
from amplify.sources.frames import asking
from amplify.sources.games import LogProbGame, VoteGame
from amplify.types import Sampling

pytestmark = [pytest.mark.real, pytest.mark.vllm, pytest.mark.timeout(900)]

TEXTS = (
    "Lyon\nLyon is a city in France. It lies where the Rhone and the Saone meet, and is known for its food and silk.",
    "Paris\nParis is the capital of France. Its largest museum is the Louvre, which opened in the year 1793.",
    "Madrid\nMadrid is the capital of Spain. The river Manzanares runs through it, and the king has a palace there.",
    "Tea\nTea is a hot drink that is made from the leaves of a shrub. It is drunk everywhere, mostly in the morning.",
)
# several times the engine's block (128 tokens on a CPU): only whole blocks are cached
DOCUMENTS = tuple(" ".join([text] * 6) for text in TEXTS)


def test_values_equal_transformers_and_prefixes_are_cached(smollm2) -> None:  # type: ignore[no-untyped-def]
    context = asking("What is the capital of France?", DOCUMENTS, templates.load("sources", "default"))
    rows = in_place(all_coalitions(len(DOCUMENTS)))
    selections = [select(row, context.sources) for row in rows.tolist()]
    with load_model(f"transformers:{smollm2}", dtype="float32") as model:
        reference = LogProbGame(context, model, "The capital is Paris.")(rows)
        said = VoteGame(context, model, Sampling(max_tokens=6)).ask(selections)
    with load_model(
        f"vllm:{smollm2}", dtype="float32", max_model_len=2048, enforce_eager=True, kv_cache_memory_bytes=2**29
    ) as model:
        before = model.usage.snapshot()
        found = LogProbGame(context, model, "The capital is Paris.")(rows)
        used = model.usage.since(before)
        # float32 sums in another order, a few 1e-5 a token; a margin of ten
        assert np.abs(found - reference).max() < 5e-3
        # what two prompts share is cached but for a part of a block
        assert used.forwarded_tokens < 0.8 * (used.prompt_tokens + used.completion_tokens)
        votes = VoteGame(context, model, Sampling(max_tokens=6)).ask(selections)
        assert sum(a == b for a, b in zip(votes, said, strict=True)) >= len(said) - 1  # one near-tie at most

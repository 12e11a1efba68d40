"""What one pass says of sources, against passes of our own; learning, against its closed form."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import amplify
from amplify import resources, templates
from amplify.errors import InputError
from amplify.models.chat import encode_with_target, render
from amplify.sources.frames import asking

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(resources.content("eval")))
    from one_pass import OVERALL, Evidence, OnePass, evidence, learn, relative

DOCUMENTS = (
    "Paris is the capital of France. It is great.",
    "Great phone, terrible battery.",
    "The key words are important clues.",
)
QUESTION, ANSWER = "Which is right?", "The answer is positive."


@pytest.fixture(scope="module")
def model(tiny_lm):  # type: ignore[no-untyped-def]
    with amplify.load_model(f"transformers:{tiny_lm}", dtype="float32") as opened:
        yield opened


@pytest.fixture(scope="module")
def context():  # type: ignore[no-untyped-def]
    return asking(QUESTION, DOCUMENTS, templates.load("sources", "question_first"))


def test_attention_is_that_of_the_eager_pass(model, context) -> None:  # type: ignore[no-untyped-def]
    found = evidence(context, model, QUESTION, ANSWER)
    rendered = render(context.prompt(context.everything()), model.tokenizer)
    ids, start = encode_with_target(model.tokenizer, rendered, ANSWER)
    model.module.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            layers = model.module(torch.tensor([ids]), output_attentions=True).attentions
    finally:
        model.module.set_attn_implementation("sdpa")
    weights = torch.stack([layer[0] for layer in layers])[:, :, start - 1 : -1].mean(2)
    # the tiny tokenizer's tokens are bytes, so a document's tokens are found by counting
    encoded = model.tokenizer(rendered.text, add_special_tokens=False, return_offsets_mapping=True)
    shift = start - len(encoded["input_ids"])
    for number, document in enumerate(DOCUMENTS):
        begin = rendered.text.index(document)
        own = [
            k + shift for k, (a, b) in enumerate(encoded["offset_mapping"]) if a < begin + len(document) and b > begin
        ]
        assert found.overall[number, OVERALL.index("length")] == len(own)
        np.testing.assert_allclose(found.heads[number], weights[:, :, own].sum(-1), atol=1e-5)


def test_gradient_times_input_is_the_slope_of_stretching_a_source(model, context) -> None:  # type: ignore[no-untyped-def]
    found = evidence(context, model, QUESTION, ANSWER).of("gradient")
    rendered = render(context.prompt(context.everything()), model.tokenizer)
    ids, start = encode_with_target(model.tokenizer, rendered, ANSWER)
    module = model.module
    inputs = module.get_input_embeddings()(torch.tensor([ids])).detach().double()
    module.double()
    try:

        def value(points: torch.Tensor) -> float:
            with torch.no_grad():
                logs = module(inputs_embeds=points).logits[0, start - 1 : -1].log_softmax(-1)
            return float(logs.gather(1, torch.tensor(ids[start:])[:, None]).sum())

        encoded = model.tokenizer(rendered.text, add_special_tokens=False, return_offsets_mapping=True)
        shift = start - len(encoded["input_ids"])
        for number, document in enumerate(DOCUMENTS):
            begin = rendered.text.index(document)
            scale = torch.ones(len(ids), dtype=torch.float64)
            for k, (a, b) in enumerate(encoded["offset_mapping"]):
                if a < begin + len(document) and b > begin:
                    scale[k + shift] = 1.02
            slope = (value(inputs * scale[:, None]) - value(inputs * (2 - scale)[:, None])) / 0.04
            assert slope == pytest.approx(found[number], rel=0.02, abs=2e-3)
    finally:
        module.float()


def games(count: int, heads: np.ndarray, base: float, noise: float = 0.0):  # type: ignore[no-untyped-def]
    """Games whose values follow heads and the answer's words."""
    rng = np.random.default_rng(count)
    seen, scores = [], []
    for _ in range(count):
        found = Evidence(rng.random((6, *heads.shape)), rng.random((6, len(OVERALL))))
        told = relative(found.heads.reshape(6, -1)) @ heads.ravel() + base
        told = told + 0.5 * relative(found.of("answer_words")) + noise * rng.standard_normal(6)
        seen.append(found)
        scores.append(told * rng.uniform(0.1, 10))  # the game's own unit
    return seen, scores


def test_learning_finds_the_weights_that_made_the_games() -> None:
    heads = np.array([[0.0, 2.0], [-1.0, 0.0]])
    seen, scores = games(300, heads, 3.0)
    learned = learn(seen, scores, {}, ridge=1e-6)
    new, truth = games(20, heads, 3.0)
    for found, own in zip(new, truth, strict=True):
        # the unit of a game is not known, so the weights are right up to what the units' spread leaves
        assert np.corrcoef(learned.scores(found), own)[0, 1] > 0.98
    assert learned.heads[0, 1] > 5 * abs(learned.heads[0, 0])
    assert learned.heads[1, 0] < 0 < learned.overall[OVERALL.index("answer_words")]


def test_where_nothing_is_to_be_learned_the_prediction_is_flat() -> None:
    seen, _ = games(30, np.zeros((2, 2)), 1.0)
    rng = np.random.default_rng(0)
    learned = learn(seen, [1 + 0.01 * rng.standard_normal(6) for _ in seen], {}, ridge=300.0)
    guess = learned.scores(seen[0])
    assert np.ptp(guess) < 0.02
    assert guess.mean() == pytest.approx(1.0, abs=0.02)


def test_learning_twice_and_in_another_order_is_the_same() -> None:
    seen, scores = games(40, np.ones((2, 2)), 1.0, noise=0.3)
    once = learn(seen, scores, {})
    again = learn(seen[::-1], scores[::-1], {})
    np.testing.assert_allclose(once.heads, again.heads, atol=1e-10)
    assert once.base == pytest.approx(again.base)


def test_evidence_of_another_model_is_refused() -> None:
    seen, scores = games(3, np.ones((2, 2)), 1.0)
    learned = learn(seen, scores, {})
    other = Evidence(np.ones((6, 3, 2)), np.ones((6, len(OVERALL))))
    with pytest.raises(InputError, match="2 layers of 2 heads, and the model has 3 of 2"):
        learned.scores(other)
    with pytest.raises(InputError, match="at least one game"):
        learn([], [], {})


def test_saved_and_read_again_it_predicts_the_same() -> None:
    seen, scores = games(5, np.ones((2, 2)), 1.0)
    learned = learn(seen, scores, {"model": {"name": "m"}})
    again = OnePass.from_dict(learned.to_dict())
    np.testing.assert_array_equal(again.scores(seen[0]), learned.scores(seen[0]))
    for broken in (
        {},
        {"format": 1},
        {**learned.to_dict(), "heads": [[1.0], [1.0, 2.0]]},
        {**learned.to_dict(), "base": None},
    ):
        with pytest.raises(InputError, match="one pass"):
            OnePass.from_dict(broken)

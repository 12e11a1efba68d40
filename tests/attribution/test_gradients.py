"""Gradient explainers against autograd and captum, on fixed labels, on pairs with options, and on causal proxies."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from amplify.attribution.gradients import METHODS, explain
from amplify.attribution.words import aggregate, key_word_mask, word_spans
from amplify.errors import InputError, UnknownNameError
from amplify.proxies import Proxy, train_proxy
from amplify.tasks import Task
from amplify.text import input_text
from amplify.types import Example

LABELS = ("negative", "positive", "neutral")
TEXTS = (
    "Great phone, terrible battery!",
    "bad",
    "It isn't great; which is good? A very long sentence about the capital of France, and more, and more of it.",
    "Größe naïve — 中文 great",
)


def reviews() -> Task:
    examples = tuple(Example(id=f"e{i}", text=t, label=LABELS[i % 3]) for i, t in enumerate(TEXTS))
    return Task(
        name="reviews",
        instruction="Is it good?",
        train=examples,
        validation=(),
        test=(Example(id="t", text="A test.", label="neutral"),),
        labels=LABELS,
        input_name="Review",
    )


def quiz() -> Task:
    def item(i: int, text: str, options: tuple[str, ...]) -> Example:
        return Example(id=f"q{i}", text=text, label="B", choices=("A", "B", "C")[: len(options)], options=options)

    examples = (
        item(0, "What is the capital of France?", ("Paris", "a terrible question", "the answer is good")),
        item(1, "Which statement is right?", ("great phone", "terrible phone")),
    )
    return Task(
        name="quiz",
        instruction="Answer.",
        train=examples,
        validation=(),
        test=(item(2, "Which question?", ("good", "bad")),),
    )


@pytest.fixture(scope="module")
def encoder(tiny_encoder, tmp_path_factory) -> Proxy:
    return train_proxy(reviews(), tiny_encoder, epochs=1, out=tmp_path_factory.mktemp("encoder"), progress=False)


@pytest.fixture(scope="module")
def pairs(tiny_encoder, tmp_path_factory) -> Proxy:
    return train_proxy(quiz(), tiny_encoder, epochs=1, out=tmp_path_factory.mktemp("pairs"), progress=False)


@pytest.fixture(scope="module")
def causal(tiny_lm) -> Proxy:
    return train_proxy(reviews(), tiny_lm, epochs=0)


def reference(proxy: Proxy, example: Example, target: str, foil: str | None, method: str) -> np.ndarray:
    """The same from `hidden_states[0]`, one example at a time, each row of it a forward of its own, no padding.

    Language models, whose word embeddings can be given, go by captum; encoders by plain autograd.
    """
    from captum.attr import InputXGradient, Saliency

    labels, rows = proxy.labels_of(example), proxy.rows(example)
    if method.endswith("_plain"):
        foil = None

    def total(scores: list[torch.Tensor]) -> torch.Tensor:
        result = torch.zeros(1)
        for row, some in zip(rows, scores, strict=True):
            for name, sign in ((target, 1.0), (foil, -1.0)):
                if name is not None and labels.index(name) in row.answers:
                    result = result + sign * some[:, row.answers.index(labels.index(name))]
        return result

    if proxy.kind == "encoder":
        outs = [
            proxy.module(inputs_embeds=words.requires_grad_(), token_type_ids=types, output_hidden_states=True)
            for words, _, types in (proxy.embed([row]) for row in rows)
        ]
        inputs = [out.hidden_states[0] for out in outs]
        scores = [out.logits[:, proxy.card["columns"]] for out in outs]
        gradients = torch.autograd.grad(total(scores).sum(), inputs, allow_unused=True)
        found = [
            torch.zeros_like(x) if g is None else x * g if method.startswith("grad_x_input") else g
            for x, g in zip(inputs, gradients, strict=True)
        ]
    else:
        words = tuple(proxy.embed([row])[0].detach().requires_grad_() for row in rows)

        def forward(*embeddings: torch.Tensor) -> torch.Tensor:
            ones = [torch.ones(x.shape[:2], dtype=torch.long) for x in embeddings]
            scores = [proxy.scores([r], x, m, 0 * m) for r, x, m in zip(rows, embeddings, ones, strict=True)]
            return total(scores) + sum(0.0 * x.sum() for x in embeddings)  # keeps unused rows in the graph

        if method.startswith("grad_x_input"):
            found = InputXGradient(forward).attribute(words)
        else:
            found = Saliency(forward).attribute(words, abs=False)
    table: dict[tuple[int, int, int], np.ndarray] = {}
    for row, values in zip(rows, found, strict=True):
        seen: dict[tuple[int, int], int] = {}
        for place, value in zip(row.offsets, values[0].detach().numpy(), strict=True):
            if place[1] > place[0]:
                n = seen[place] = seen.get(place, -1) + 1
                table[(*place, n)] = table.get((*place, n), 0) + value
    keys = sorted(table)
    stacked = np.array([table[key] for key in keys], dtype=np.float64)
    tokens = stacked.sum(1) if method.startswith("grad_x_input") else np.abs(stacked).sum(1)
    return aggregate(tokens, [key[:2] for key in keys], word_spans(input_text(example)))


@pytest.mark.parametrize("kind", ["encoder", "pairs", "causal"])
def test_equal_to_plain_autograd_and_captum(kind, request):
    proxy = request.getfixturevalue(kind)
    task = quiz() if kind == "pairs" else reviews()
    targets = [example.label for example in task.train]
    foils = [next(x for x in task.labels_of(e)[::-1] if x != e.label) for e in task.train]
    got = explain(proxy, task.train, targets, foils, METHODS, batch_tokens=64)
    for method in METHODS:
        for example, target, foil, a in zip(task.train, targets, foils, got[method], strict=True):
            assert a.text == input_text(example)
            assert a.words == tuple(a.text[s:e] for s, e in word_spans(a.text))
            want = reference(proxy, example, target, foil, method)
            scale = max(np.abs(want).max(), 1.0)
            np.testing.assert_allclose(a.scores, want, atol=1e-5 * scale, err_msg=f"{method} {example.id}")
    for p, q in zip(got.probabilities, proxy.probabilities(task.train), strict=True):
        np.testing.assert_allclose(p, q, atol=1e-6)


def test_long_causal_prompts_equal_captum(causal):
    long = Example(id="long", text="It is good, but which question is right? " * 20, label="positive")
    rows = causal.rows(long)
    assert len(rows[0].ids) > 200
    got = explain(causal, [long, reviews().train[1]], ["positive"] * 2, ["negative"] * 2, METHODS, batch_tokens=10_000)
    assert got.passes.backward_calls == 1  # the short one is padded to the long one
    for method in METHODS:
        for example, a in zip([long, reviews().train[1]], got[method], strict=True):
            want = reference(causal, example, "positive", "negative", method)
            np.testing.assert_allclose(a.scores, want, atol=1e-5 * max(np.abs(want).max(), 1.0))


@pytest.mark.parametrize("labels", [("positive", "negative"), ("good phone", "bad battery")])
def test_two_causal_labels_share_a_row_or_not(tiny_lm, labels):
    """Labels of one token are two columns of one backward, labels of several tokens two rows: both equal captum."""
    item = Example(id="x", text="Great phone, terrible battery.", label=labels[0])
    task = Task(name="t", instruction="Which?", train=(), validation=(), test=(item,), labels=labels)
    proxy = train_proxy(task, tiny_lm, epochs=0)
    assert len(proxy.rows(item)) == (1 if labels[0] == "positive" else 2)
    got = explain(proxy, [item], [labels[0]], [labels[1]], METHODS)
    assert got.passes.backward == 2
    for method in METHODS:
        want = reference(proxy, item, labels[0], labels[1], method)
        np.testing.assert_allclose(got[method][0].scores, want, atol=1e-5 * max(np.abs(want).max(), 1.0))


@pytest.mark.real
def test_minilm_equals_captum(minilm, tmp_path):
    """Two steps of training make a head that is not random; equality does not depend on how good it is."""
    proxy = train_proxy(reviews(), minilm, epochs=2, out=tmp_path / "proxy", progress=False)
    task = reviews()
    foils = [next(x for x in LABELS if x != e.label) for e in task.train]
    got = explain(proxy, task.train, [e.label for e in task.train], foils, METHODS)
    for method in METHODS:
        for example, foil, a in zip(task.train, foils, got[method], strict=True):
            want = reference(proxy, example, example.label, foil, method)
            np.testing.assert_allclose(a.scores, want, atol=1e-5 * max(np.abs(want).max(), 1.0))


def test_untrained_head_is_refused(tiny_encoder):
    proxy = train_proxy(reviews(), tiny_encoder, epochs=0)
    with pytest.raises(InputError, match="train_proxy"):
        explain(proxy, reviews().train, [*LABELS, "negative"])


def test_bad_arguments(encoder):
    example = reviews().train[0]
    with pytest.raises(InputError, match=r"'great' .* not among"):
        explain(encoder, [example], ["great"])
    with pytest.raises(InputError, match="nothing to contrast"):
        explain(encoder, [example], ["neutral"], ["neutral"])
    with pytest.raises(UnknownNameError, match="grad_x_input"):
        explain(encoder, [example], ["neutral"], methods=["grad_x_inputs"])
    with pytest.raises(InputError, match="one each"):
        explain(encoder, [example], [])


def test_passes_are_shared(encoder):
    task = reviews()
    targets, foils = ["negative"] * 4, ["positive"] * 4
    every = explain(encoder, task.train, targets, foils, METHODS).passes
    assert (every.forward, every.backward) == (4, 8)  # two scores of one sequence are two gradients
    assert every.forward_calls == every.backward_calls
    contrast = explain(encoder, task.train, targets, foils, ["grad_norm", "grad_x_input"]).passes
    assert (contrast.forward, contrast.backward) == (4, 4)
    plain = explain(encoder, task.train, targets, None, METHODS).passes
    assert (plain.forward, plain.backward) == (4, 4)


def test_probability_only_rows_get_no_gradient(pairs):
    example = quiz().train[0]  # three options: gold, foil and one more
    passes = explain(pairs, [example], ["B"], ["A"], METHODS).passes
    assert (passes.forward, passes.backward) == (3, 2)


def test_target_is_the_callers_not_the_prediction(encoder):
    example = reviews().train[2]
    for target in LABELS:
        (a,) = explain(encoder, [example], [target])["grad_x_input"]
        assert a.target == target
        np.testing.assert_allclose(a.scores, reference(encoder, example, target, None, "grad_x_input"), atol=1e-5)


def test_mask_leaves_words_out(encoder):
    task = reviews()
    (a,) = explain(encoder, [task.train[0]], ["negative"], mask=key_word_mask(task))["grad_x_input"]
    assert a.words == ("Great", "phone", "terrible", "battery")
    (b,) = explain(encoder, [task.train[1]], ["negative"], mask=lambda e: [False])["grad_x_input"]
    assert b.words == ()

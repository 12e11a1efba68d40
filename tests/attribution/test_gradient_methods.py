"""Embedding methods against captum's own classes and closed forms, on proxies and on language models."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from amplify.attribution import explain, gradients
from amplify.attribution.gradients import NOISE, SAMPLES, gradient_scores, reduce
from amplify.attribution.inputs import subject
from amplify.errors import InputError
from amplify.models import load_model
from amplify.proxies import train_proxy
from amplify.tasks import Task
from amplify.types import Example, Prompt

TEXT = "Great phone, terrible battery in Paris."
LABELS = ("negative", "positive")


@pytest.fixture(scope="module")
def encoder(tiny_encoder, tmp_path_factory):
    rows = tuple(
        Example(id=str(i), text=t, label=LABELS[i % 2]) for i, t in enumerate(("bad", "great", "terrible", "good"))
    )
    task = Task(name="t", instruction="Which?", train=rows[1:], validation=(), test=rows[:1], labels=LABELS)
    return train_proxy(task, tiny_encoder, epochs=1, out=tmp_path_factory.mktemp("p"), progress=False)


@pytest.fixture(scope="module")
def causal(tiny_lm):
    return load_model(f"transformers:{tiny_lm}", dtype="float32")


def subjects(encoder, causal):
    chat = Prompt(messages=({"role": "system", "content": "Be great."}, {"role": "user", "content": TEXT}))
    yield subject(encoder, TEXT, "negative", None)
    yield subject(encoder, TEXT, "negative", "positive")
    yield subject(causal, TEXT, " The answer is negative", None)
    yield subject(causal, chat, "negative", "positive")


def by_captum(parts, method):
    from captum.attr import InputXGradient, IntegratedGradients, Saliency

    vectors = []
    for part in parts:
        x = part.inputs.clone().requires_grad_()
        if method == "integrated_gradients":
            found = IntegratedGradients(part.score).attribute(
                x, baselines=part.baseline, n_steps=SAMPLES, method="gausslegendre", internal_batch_size=8
            )
        elif method == "grad_x_input":
            found = InputXGradient(part.score).attribute(x)
        else:
            found = Saliency(part.score).attribute(x, abs=False)
        vectors.append(found[0].detach().float().numpy())
    how = {"vanilla_gradients": "l2", "grad_norm": "l1"}.get(method, "sum")
    return reduce([p.offsets for p in parts], vectors, parts[0].spans, how)


@pytest.mark.parametrize("method", ["vanilla_gradients", "grad_norm", "grad_x_input", "integrated_gradients"])
def test_the_frame_equals_captum(encoder, causal, method):
    for case in subjects(encoder, causal):
        found, _ = gradient_scores(case.parts(), method, budget=2 * SAMPLES)
        # float32 sums in another order and other batch sizes
        np.testing.assert_allclose(found.scores, by_captum(case.parts(), method), rtol=1e-3, atol=1e-4)


def test_parts_score_what_the_model_scores(encoder, causal):
    plain, against, *_ = subjects(encoder, causal)
    [scores] = encoder.label_scores([Example(id="x", text=TEXT)])
    for case, want in ((plain, scores[0]), (against, scores[0] - scores[1])):
        assert sum(float(p.score(p.inputs)) for p in case.parts()) == pytest.approx(want, abs=1e-5)
    case = subject(causal, TEXT, " negative answer", " positive")
    target, foil = causal.score([Prompt(text=TEXT)] * 2, [" negative answer", " positive"])
    total = sum(float(p.score(p.inputs)) for p in case.parts())
    assert total == pytest.approx(target.total - foil.total, abs=1e-4)


def test_labels_that_differ_in_their_last_token_share_a_sequence(causal):
    case = subject(causal, TEXT, " the answer is a", " the answer is b")
    [part] = case.parts()
    apart = [subject(causal, TEXT, end, None).parts()[0] for end in (case.target, case.foil)]
    target, foil = (float(one.score(one.inputs)) for one in apart)
    assert float(part.score(part.inputs)) == pytest.approx(target - foil, abs=1e-5)
    points = part.inputs * torch.linspace(0.5, 1.5, 3)[:, None, None]
    torch.testing.assert_close(part.score(points), apart[0].score(points) - apart[1].score(points), rtol=0, atol=1e-5)
    assert len(subject(causal, TEXT, " negative answer", " positive").parts()) == 2


def test_integrated_gradients_are_complete(encoder, causal):
    for case in subjects(encoder, causal):
        parts = case.parts()
        found, meta = gradient_scores(parts, "integrated_gradients", budget=2 * SAMPLES)
        whole = sum(float(p.score(p.inputs)) - float(p.score(p.baseline)) for p in parts)
        assert meta["completeness_gap"] == pytest.approx(whole - found.scores.sum(), abs=1e-4)
        if case.model_name == encoder.name:  # smooth enough for 50 points; the random language model's path is not
            assert abs(meta["completeness_gap"]) < 0.01 * abs(whole)


@pytest.mark.parametrize("method", ["grad_x_input", "integrated_gradients"])
def test_encoders_are_entered_behind_their_embeddings_module_as_captums_layer_methods_do(encoder, method):
    from captum.attr import LayerGradientXActivation, LayerIntegratedGradients

    model, tokenizer = encoder.module, encoder.tokenizer
    case = subject(encoder, TEXT, "negative", "positive")
    [part] = case.parts()
    [row] = encoder.rows(Example(id="x", text=TEXT))
    ids, (words, _, types) = torch.tensor([row.ids]), encoder.embed([row])
    word = torch.tensor([any(a < end and b > start for start, end in case.spans) for a, b in row.offsets])

    def contrast(tokens):
        logits = model(input_ids=tokens, token_type_ids=types.expand(len(tokens), -1)).logits
        return logits[:, encoder.card["columns"]] @ torch.tensor([1.0, -1.0])

    if method == "grad_x_input":
        found = LayerGradientXActivation(contrast, model.bert.embeddings).attribute(ids)
    else:
        found = LayerIntegratedGradients(contrast, model.bert.embeddings).attribute(
            ids, baselines=torch.where(word, tokenizer.pad_token_id, ids), n_steps=SAMPLES, method="gausslegendre"
        )
    got, _ = gradient_scores([part], method, budget=SAMPLES)
    want = reduce([part.offsets], [found[0].detach().numpy()], part.spans, "sum")
    np.testing.assert_allclose(got.scores, want, rtol=1e-3, atol=1e-5 * np.abs(want).max())
    if method == "grad_x_input":  # before the norm, which is blind to the length of what it reads, it would be 0
        before = LayerGradientXActivation(contrast, model.bert.embeddings.LayerNorm)
        blind = reduce(
            [part.offsets],
            [before.attribute(ids, attribute_to_layer_input=True)[0].detach().numpy()],
            part.spans,
            "sum",
        )
        assert np.abs(blind).max() < 1e-2 * np.abs(want).max()
    hidden = model(inputs_embeds=words, token_type_ids=types, output_hidden_states=True).hidden_states[0]
    torch.testing.assert_close(part.inputs, hidden, rtol=0, atol=0)


def test_smooth_grad_is_the_mean_gradient_under_noise(encoder):
    case = subject(encoder, TEXT, "negative", None)
    [part] = case.parts()
    found, _ = gradient_scores([part], "smooth_grad", budget=20, seed=3)
    noise = torch.randn((20, *part.inputs.shape[1:]), generator=torch.Generator().manual_seed(3))
    x = part.inputs
    points = (x + NOISE * (x.max() - x.min()) * noise).requires_grad_()
    mean = torch.autograd.grad(part.score(points).sum(), points)[0].mean(0)
    np.testing.assert_allclose(found.scores, reduce([part.offsets], [mean.numpy()], part.spans, "l2"), rtol=1e-4)
    assert (found.low <= found.scores).all()
    assert (found.scores <= found.high).all()
    assert (found.low < found.high).any()


def test_continuous_lime_tends_to_gradient_x_input(encoder, causal, monkeypatch):
    monkeypatch.setattr(gradients, "STRETCH", 1e-2)
    for case in subjects(encoder, causal):
        parts = case.parts()
        near, _ = gradient_scores(parts, "c_lime", budget=200, seed=0)
        limit, _ = gradient_scores(parts, "grad_x_input", budget=10)
        # what the curvature within one per cent of the input adds
        np.testing.assert_allclose(near.scores, limit.scores, atol=0.1 * np.abs(limit.scores).max())


def test_deep_lift_equals_captum_and_is_exact_where_its_rules_reach(encoder):
    case = subject(encoder, TEXT, "negative", "positive")
    found, meta = gradient_scores(case.parts(), "deep_lift", budget=10)
    assert np.isfinite(found.scores).all()
    assert np.isfinite(meta["completeness_gap"])

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.a, self.act, self.b = torch.nn.Linear(32, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1)

        def forward(self, x):
            return self.b(self.act(self.a(x))).sum((1, 2))

    from dataclasses import replace

    [part] = case.parts()
    net = Net()
    simple = replace(part, score=net, model=net)
    found, meta = gradient_scores([simple], "deep_lift", budget=10)
    assert abs(meta["completeness_gap"]) < 1e-4
    assert np.abs(found.scores).max() > 1e-3


def test_the_shared_pass_and_the_single_one_agree(encoder):
    for method in ("grad_norm", "grad_x_input"):
        shared = explain(TEXT, "negative", foil="positive", model=encoder, method=method)
        alone, _ = gradient_scores(subject(encoder, TEXT, "negative", "positive").parts(), method, budget=1)
        np.testing.assert_allclose(shared.scores, alone.scores, rtol=1e-4, atol=1e-6)


def test_gradients_that_are_not_finite_are_one_error(encoder):
    from dataclasses import replace

    [part] = subject(encoder, TEXT, "negative", None).parts()
    broken = replace(part, score=lambda x: x.sum((1, 2)) * float("nan"))
    with pytest.raises(InputError, match="token 0 is not finite"):
        gradient_scores([broken], "grad_x_input", budget=1)


def test_too_small_budgets(encoder):
    parts = subject(encoder, TEXT, "negative", None).parts()
    for method in ("smooth_grad", "integrated_gradients", "c_lime"):
        with pytest.raises(InputError, match="too small"):
            gradient_scores(parts, method, budget=1)


def test_c_lime_refuses_draws_that_no_memory_holds(tiny_lm) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match="a budget of 1,000,000,000 evaluations of 4 words does not fit in memory"):
        explain("a great phone indeed", " good", model=f"transformers:{tiny_lm}", method="c_lime", budget=10**9)

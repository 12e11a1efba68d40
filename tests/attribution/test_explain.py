"""amplify.explain: targets, segments, maskings and bad input, on proxies and language models; its command and page."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

import amplify
from amplify.attribution import METHODS
from amplify.attribution.explanations import Comparison, compare
from amplify.errors import CapabilityError, ContextLengthError, InputError, UnknownNameError
from amplify.models import load_model
from amplify.models.scripted import ScriptedModel
from amplify.proxies import train_proxy
from amplify.tasks import Task
from amplify.types import Attribution, Example, Message, Prompt

TEXT = "Great phone, terrible battery in Paris."
LABELS = ("negative", "positive")


@pytest.fixture(scope="module")
def encoder(tiny_encoder, tmp_path_factory):
    rows = tuple(
        Example(id=str(i), text=t, label=LABELS[i % 2]) for i, t in enumerate(("bad", "great", "terrible", "good"))
    )
    task = Task(name="t", instruction="Which?", train=rows[1:], validation=(), test=rows[:1], labels=LABELS)
    return train_proxy(task, tiny_encoder, epochs=1, out=tmp_path_factory.mktemp("p") / "x", progress=False)


@pytest.fixture(scope="module")
def causal(tiny_lm):
    return load_model(f"transformers:{tiny_lm}", dtype="float32")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_on_every_model(encoder, causal, method):
    chat = Prompt(messages=(Message("system", "Be great."), Message("user", TEXT)))
    for model, given in ((encoder, TEXT), (causal, TEXT), (causal, chat)):
        a = amplify.explain(given, "negative", foil="positive", model=model, method=method, budget=30, seed=1)
        assert a.words == ("Great", "phone", "terrible", "battery", "in", "Paris")
        assert [TEXT[s:e] for s, e in a.spans] == list(a.words)
        assert a.budget <= 30
        assert (a.foil == "positive") == METHODS[method].contrastive
        assert all(low <= score <= high for low, score, high in zip(a.low, a.scores, a.high, strict=True))
        again = amplify.explain(given, "negative", foil="positive", model=model, method=method, budget=30, seed=1)
        assert again == a
        assert "why 'negative'" in str(a)
        if method != "tfidf":
            assert np.ptp(a.scores) > 0


def test_intervals_of_what_is_sampled_and_of_nothing_else(causal):
    text = " ".join(f"word{i}" for i in range(9))
    for method, kind in METHODS.items():
        a = amplify.explain(text, " Paris", model=causal, method=method, budget=100)
        assert any(low < high for low, high in zip(a.low, a.high, strict=True)) == kind.sampled


def test_a_named_model_is_opened(encoder, tiny_lm):
    for model, target in ((encoder.folder, "negative"), (str(encoder.folder), None), (f"transformers:{tiny_lm}", " x")):
        assert amplify.explain(TEXT, target, model=model).words[0] == "Great"


def test_many_inputs_agree_with_one_at_a_time(encoder):
    texts, targets = [TEXT, "terrible phone", "It is a good answer"], ["negative", "positive", None]
    methods = ["grad_norm", "grad_x_input", "occlusion", "kernel_shap"]
    found = amplify.explain_many(texts, targets, model=encoder, methods=methods, budget=64)
    for method in methods:
        for text, target, a in zip(texts, targets, found[method], strict=True):
            one = amplify.explain(text, target, model=encoder, method=method, budget=64)
            np.testing.assert_allclose(a.scores, one.scores, atol=1e-5)  # batches of other shapes
            assert a.target == one.target


def total(model, text, continuation):
    return model.score([Prompt(text=text)], [continuation])[0].total


@pytest.mark.parametrize("target", [" a", " The answer is negative."])
def test_occlusion_of_a_continuation_is_the_difference_of_two_prompts(causal, target):
    """One token and a whole continuation; with a foil the difference of differences."""
    cut = {
        0: "phone, terrible battery in Paris.",
        2: "Great phone, battery in Paris.",
        5: "Great phone, terrible battery in .",
    }
    a = amplify.explain(TEXT, target, model=causal, method="occlusion")
    b = amplify.explain(TEXT, target, foil=" Paris", model=causal, method="occlusion")
    for word, left in cut.items():
        drop = total(causal, TEXT, target) - total(causal, left, target)
        other = total(causal, TEXT, " Paris") - total(causal, left, " Paris")
        assert a.scores[word] == pytest.approx(drop, abs=1e-4)
        assert b.scores[word] == pytest.approx(drop - other, abs=1e-4)


def test_a_target_without_its_blank_gets_a_hint(causal):
    hint = "the target goes on with the word before it, 'isParis': ' Paris' begins a new one"
    assert hint in str(amplify.explain("The capital is", "Paris", model=causal, method="occlusion"))
    assert "goes on" not in str(amplify.explain("The capital is", " Paris", model=causal, method="occlusion"))
    chat = Prompt(messages=({"role": "user", "content": "The capital is"},))
    assert "goes on" not in str(amplify.explain(chat, "Paris", model=causal, method="occlusion"))


def test_emojis_are_scored(causal):
    assert amplify.explain("😡😡", " bad", model=causal, method="occlusion").words == ("😡", "😡")


@pytest.mark.parametrize("masking", ["pad", "attention"])
def test_removals_equal_one_plain_forward_each(causal, masking):
    import torch

    from amplify.attribution.masking import prompt_value
    from amplify.attribution.words import word_spans

    spans = word_spans(TEXT)
    value = prompt_value(causal, Prompt(text=TEXT), spans, " The answer", masking=masking)
    masks = np.random.default_rng(0).random((12, len(spans))) < 0.5
    masks[0], masks[1] = True, False
    batch = causal.tokenizer(TEXT + " The answer", return_offsets_mapping=True)
    ids, places = batch["input_ids"], batch["offset_mapping"]
    start = next(i for i, (_, end) in enumerate(places) if end > len(TEXT))
    for mask, found in zip(masks, value(masks), strict=True):
        gone = [
            any(not kept and a < e and b > s for kept, (s, e) in zip(mask, spans, strict=True)) and i < start
            for i, (a, b) in enumerate(places)
        ]
        shown = torch.tensor(
            [[causal.tokenizer.pad_token_id if g and masking == "pad" else t for g, t in zip(gone, ids, strict=True)]]
        )
        sees = torch.ones(len(ids), len(ids)).tril().bool()
        if masking == "attention":
            sees &= ~torch.tensor(gone)[None, :] | torch.eye(len(ids)).bool()
        additive = torch.zeros(1, 1, len(ids), len(ids)).masked_fill(~sees, torch.finfo(torch.float32).min)
        with torch.inference_mode():
            logits = causal.module(input_ids=shown, attention_mask=additive).logits[0].log_softmax(-1)
        want = sum(float(logits[i - 1, ids[i]]) for i in range(start, len(ids)))
        assert found == pytest.approx(want, abs=1e-4)


def test_removals_on_an_encoder(encoder):
    import torch

    spans = ((0, 5), (13, 21))
    whole = encoder.tokenizer(TEXT, return_offsets_mapping=True)
    inside = [any(a < e and b > s for s, e in spans) for a, b in whole["offset_mapping"]]
    ids = torch.tensor([whole["input_ids"]])
    for masking in ("pad", "mask", "attention"):
        a = amplify.explain(TEXT, "negative", model=encoder, method="occlusion", masking=masking, segments=[(0, 21)])
        changed, mask = ids.clone(), torch.ones_like(ids)
        gone = torch.tensor([[s < 21 and e > s for s, e in whole["offset_mapping"]]])
        if masking == "attention":
            mask[gone] = 0
        else:
            changed[gone] = getattr(encoder.tokenizer, f"{masking}_token_id")
        with torch.inference_mode():
            before = encoder.module(input_ids=ids).logits[0, 0]
            after = encoder.module(input_ids=changed, attention_mask=mask).logits[0, 0]
        assert a.scores[0] == pytest.approx(float(before - after), abs=1e-5)
    assert any(inside)


def test_of_a_chat_only_the_last_message_of_the_user_is_scored(causal):
    turns = (Message("user", "Hello great"), Message("assistant", "Yes"), Message("user", "bad answer"))
    a = amplify.explain(Prompt(messages=turns), "good", model=causal, method="occlusion")
    assert a.text == "bad answer"
    left = Prompt(messages=(*turns[:2], Message("user", "answer")))
    one, other = causal.score([Prompt(messages=turns), left], ["good", "good"])
    assert a.scores[0] == pytest.approx(one.total - other.total, abs=1e-4)


def test_phrases_and_a_part_of_the_words(encoder):
    a = amplify.explain(TEXT, "negative", model=encoder, method="grad_x_input", segments=[(13, 29), (0, 11)])
    words = amplify.explain(TEXT, "negative", model=encoder, method="grad_x_input")
    assert a.words == ("Great phone", "terrible battery")
    assert a.scores[0] == pytest.approx(sum(words.scores[:2]), abs=1e-5)


def test_bad_input(encoder, causal):
    def refused(match, *args, error=InputError, **options):
        with pytest.raises(error, match=match):
            amplify.explain(*args, **{"model": encoder, **options})

    refused("empty", "  ", "negative")
    refused("nothing but stop words", "it is the", "negative")
    refused("'neutral' is not among the labels 'negative', 'positive'", TEXT, "neutral")
    refused("foil 'x' is not", TEXT, "negative", foil="x")
    refused("nothing to contrast", TEXT, "negative", foil="negative")
    refused("nothing to contrast", TEXT, " a", foil=" a", model=causal)
    refused("needs a target", TEXT, model=causal)
    refused("truncate=True", "great " * 400, "negative", error=ContextLengthError)
    refused("window", "great " * 2000, " a", model=causal, method="occlusion", budget=3000, error=ContextLengthError)
    refused("window", "great " * 2000, " a", model=causal, error=ContextLengthError)
    refused("too small", TEXT, "negative", method="occlusion", budget=3)
    refused("too small", TEXT, "negative", method="shapley_sampling", budget=3)
    refused("kernel_shap", TEXT, "negative", method="kernelshap", error=UnknownNameError)
    refused("delete", TEXT, "negative", method="lime", masking="erase", error=UnknownNameError)
    refused("no mask token", TEXT, " a", model=causal, method="lime", masking="mask")
    refused("neither a proxy folder nor a model", TEXT, "a", model="smollm2-135m")
    refused("do not overlap", TEXT, "negative", segments=[(0, 5), (3, 8)])
    refused("1 evaluation or more", TEXT, "negative", budget=0)
    with pytest.raises(CapabilityError, match="What works with it: occlusion, lime, kernel_shap"):
        amplify.explain(TEXT, "a", model=open_scored(), method="grad_x_input")
    with pytest.raises(CapabilityError, match="What works with it: random, tfidf"):
        amplify.explain(TEXT, "a", model=open_unscored(), method="lime")


def open_scored():
    from amplify.models.base import Usage

    class Scored:
        id, usage, max_context = "scored:x", Usage(), None
        generate = count_tokens = describe = close = __enter__ = __exit__ = lambda self, *args: None

        def score(self, prompts, continuations, *, steering=None):
            raise AssertionError("refused before anything is scored")

    return Scored()


def open_unscored():
    scored = open_scored()
    cls = type(
        "Plain", (), {k: v for k, v in vars(type(scored)).items() if k not in ("score", "__dict__", "__weakref__")}
    )
    return cls()


def test_a_long_text_can_be_explained_as_far_as_it_is_read(encoder):
    a = amplify.explain("great " * 400, "negative", model=encoder, method="grad_x_input", truncate=True)
    assert 0 < len(a.words) < 400
    assert a.meta["unread_characters"] > 0


def test_scores_that_are_not_finite_say_where(encoder, monkeypatch):
    from amplify.proxies import Proxy

    scores = Proxy.scores
    monkeypatch.setattr(Proxy, "scores", lambda *args: scores(*args) * float("inf"))
    with pytest.raises(InputError, match="not a finite number"):
        amplify.explain(TEXT, "negative", model=encoder, method="occlusion")


def test_the_page_compares_and_says_what_could_not_be_explained(encoder, tmp_path):
    texts = [TEXT, "<script>alert('great')</script> " + "good phone " * 10]
    result = compare([(text, None, None) for text in texts], encoder, budget=12)
    assert set(result.found) == set(METHODS)
    assert "too small for occlusion" in result.found["occlusion"][1]
    page = result.write(tmp_path / "out")
    text = page.read_text(encoding="utf-8")
    assert "<script>" not in text
    assert "too small for occlusion" in text
    lines = [json.loads(line) for line in (tmp_path / "out" / "attributions.jsonl").read_text().splitlines()]
    assert len(lines) == 2 * len(METHODS)
    agree = result.agreement()
    assert (
        agree["grad_norm", "vanilla_gradients" if ("grad_norm", "vanilla_gradients") in agree else "grad_x_input"] <= 1
    )


def test_an_input_that_nothing_can_explain_is_named(encoder):
    with pytest.raises(InputError, match="input 2: 'of the' holds nothing but stop words"):
        compare([(text, None, None) for text in (TEXT, "of the", TEXT)], encoder, ["occlusion"])


def test_auto_is_compared_under_the_name_it_stands_for():
    model = ScriptedModel(logprob=lambda text, _: -0.1 if "great" in text.lower() else -2.0)
    result = compare([(TEXT, " good", None)], model, ["tfidf", "auto"])
    [name] = set(result.found) - {"tfidf"}
    assert name in ("occlusion", "kernel_shap")
    assert f"on 1 example: {name}" in result.note
    assert result.note in result.to_html()
    with pytest.raises(UnknownNameError, match="kernel_shap"):
        compare([(TEXT, " good", None)], model, ["tfidf", "KernelSHAP"])


def test_the_command(encoder, tmp_path):
    from click.testing import CliRunner

    from amplify.cli import cli

    folder = str(encoder.folder)
    options = ["--target", "negative", "--foil", "positive", "--model", folder]
    done = CliRunner().invoke(cli, ["explain", TEXT, *options, "--method", "kernel_shap", "--budget", "64"])
    assert done.exit_code == 0, done.output
    assert "why 'negative' against 'positive' (kernel_shap" in done.output
    rows = tmp_path / "reviews.csv"
    rows.write_text("review,stars\nGreat phone,positive\nterrible battery,negative\n", encoding="utf-8")
    out = tmp_path / "out"
    done = CliRunner().invoke(
        cli,
        [
            "explain",
            "--input",
            str(rows),
            "--text",
            "review",
            "--label",
            "stars",
            "--model",
            folder,
            "--methods",
            "all",
            "--out",
            str(out),
        ],
    )
    assert done.exit_code == 0, done.output
    page = (out / "explanations.html").read_text(encoding="utf-8")
    assert "<td>kernel_shap</td>" in page
    assert page.count('<div class="attribution">') > 10
    wrong = CliRunner().invoke(cli, ["explain", "--model", folder])
    assert isinstance(wrong.exception, InputError)
    wrong = CliRunner().invoke(cli, ["explain", TEXT, *options, "--top", "7"])
    assert "the text has 6 words" in str(wrong.exception)
    done = CliRunner().invoke(cli, ["explain", TEXT, *options, "--top", "2"])
    assert "and 4 more words" in done.output
    listed = CliRunner().invoke(cli, ["list", "explainers"])
    assert "kernel_shap" in listed.output


def test_the_page_of_a_comparison() -> None:
    a = Attribution("<b> good", ("<b>", "good"), ((0, 3), (4, 8)), (1.0, 2.0), "x<y", method="occlusion")
    other = replace(a, scores=(2.0, 1.0), method="lime")
    page = Comparison({"occlusion": [a], "lime": [other], "grad_norm": ["looks <inside>"]}, "auto is <this>").to_html()
    assert "<td>-1.00</td>" in page  # the rank correlation of the two
    assert "grad_norm: looks &lt;inside&gt;" in page
    assert "auto is &lt;this&gt;" in page
    assert page.count('title="+2.000"') == 2
    assert "<b> good" not in page

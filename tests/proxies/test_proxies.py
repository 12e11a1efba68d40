"""Proxies: trained, cached, reloaded, refused; encoder and causal; probabilities against plain forwards."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from amplify.cli import cli
from amplify.errors import ContextLengthError, DataError, InputError, ModelError
from amplify.models.pretrained import batches
from amplify.proxies import CARD, list_proxies, load_proxy, train_proxy
from amplify.tasks import Task, load_task
from amplify.types import Example

LABELS = ("negative", "positive")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch, request):
    if "real" not in request.keywords:
        monkeypatch.setenv("AMPLIFY_HOME", str(tmp_path / "home"))


def reviews(n: int = 24) -> Task:
    def item(split: str, i: int) -> Example:
        return Example(id=f"{split}{i}", text=f"{('bad', 'good')[i % 2]} phone {split} {i}", label=LABELS[i % 2])

    return Task(
        name="reviews",
        instruction="Is it good?",
        train=tuple(item("train", i) for i in range(n)),
        validation=tuple(item("validation", i) for i in range(6)),
        test=(item("test", 0),),
        labels=LABELS,
        input_name="Review",
    )


def quiz() -> Task:
    def item(i: int, n: int) -> Example:
        options = ("terrible", "good", "which capital of France")[:n]
        return Example(
            id=f"q{i}", text=f"Question {i}?", label="(B)", choices=("(A)", "(B)", "(C)")[:n], options=options
        )

    return Task(
        name="quiz",
        instruction="Answer.",
        train=(item(0, 3), item(1, 2), item(2, 3)),
        validation=(),
        test=(item(3, 2),),
    )


def weights(proxy) -> dict[str, torch.Tensor]:
    return dict(proxy.module.state_dict())


def same(a, b) -> bool:
    left, right = weights(a), weights(b)
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def test_a_trained_proxy_learns_and_is_kept(tiny_encoder):
    task = reviews()
    proxy = train_proxy(task, tiny_encoder, epochs=20, learning_rate=3e-3, progress=False)
    assert proxy.trained
    assert proxy.kind == "encoder"
    assert proxy.accuracy(task.train) == 1.0  # one word decides; chance is one half
    assert proxy.card["validation"]["accuracy"] == proxy.accuracy(task.validation)
    again = load_proxy(proxy.folder)
    assert again.identity == proxy.identity
    assert again.labels == LABELS
    assert same(proxy, again)
    for p, q in zip(proxy.probabilities(task.validation), again.probabilities(task.validation), strict=True):
        np.testing.assert_array_equal(p, q)
    assert [card["folder"] for card in list_proxies()] == [str(proxy.folder)]
    assert {path.suffix for path in proxy.folder.iterdir()} <= {".json", ".safetensors", ".jinja", ".txt"}
    assert not list(proxy.folder.parent.glob(".*"))


def test_seeds_and_cache(tiny_encoder, tmp_path):
    task = reviews()
    before = torch.random.get_rng_state()
    first = train_proxy(task, tiny_encoder, epochs=1, progress=False)
    assert torch.equal(before, torch.random.get_rng_state())
    stamp = (first.folder / CARD).stat().st_mtime_ns
    cached = train_proxy(task, tiny_encoder, epochs=1, progress=False)
    assert cached.folder == first.folder
    assert (first.folder / CARD).stat().st_mtime_ns == stamp
    elsewhere = train_proxy(task, tiny_encoder, epochs=1, out=tmp_path / "mine", progress=False)
    assert same(first, elsewhere)  # the same seed gives the same weights
    other = train_proxy(task, tiny_encoder, epochs=1, seed=1, progress=False)
    assert other.identity != first.identity
    assert not same(first, other)
    changed = replace(task, train=task.train[:-1])
    assert train_proxy(changed, tiny_encoder, epochs=1, progress=False).identity != first.identity


def test_a_damaged_cache_heals_and_a_damaged_folder_is_named(tiny_encoder, tmp_path):
    task = reviews()
    proxy = train_proxy(task, tiny_encoder, epochs=1, progress=False)
    (proxy.folder / "model.safetensors").unlink()
    assert train_proxy(task, tiny_encoder, epochs=1, progress=False).folder == proxy.folder
    assert (proxy.folder / "model.safetensors").exists()
    (proxy.folder / "model.safetensors").write_bytes(b"rubbish")
    with pytest.raises(DataError, match="damaged"):
        load_proxy(proxy.folder)
    healed = train_proxy(task, tiny_encoder, epochs=1, progress=False)
    assert same(healed, load_proxy(proxy.folder))
    with pytest.raises(DataError, match="no proxy folder"):
        load_proxy(tmp_path)


BROKEN = {
    "not JSON": lambda card: '{"format"',
    "a list": lambda card: "[]",
    "another format": lambda card: {**card, "format": 99},
    "no labels": lambda card: {k: v for k, v in card.items() if k != "labels"},
    "a number as labels": lambda card: {**card, "labels": 3},
    "labels of numbers": lambda card: {**card, "labels": [1, 2]},
    "the same label twice": lambda card: {**card, "labels": ["good", "good"]},
    "an unknown kind": lambda card: {**card, "kind": "oracle"},
    "columns beyond the head": lambda card: {**card, "columns": [0, 7]},
    "no fingerprint": lambda card: {k: v for k, v in card.items() if k != "task_fingerprint"},
    "no body": lambda card: {**card, "body": None},
    "a text as training": lambda card: {**card, "training": "long"},
    "no validation": lambda card: {**card, "validation": []},
    "an accuracy of text": lambda card: {**card, "validation": {"accuracy": "high"}},
    "no template": lambda card: {**card, "template": 1},
    "no identity": lambda card: {**card, "identity": None},
    "another's weights": lambda card: {**card, "weights": "0" * 64},
}


@pytest.fixture(scope="module")
def kept_proxy(tiny_encoder, tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AMPLIFY_HOME", str(home))
        return train_proxy(reviews(), tiny_encoder, epochs=1, progress=False).folder


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_card_is_one_error_and_hides_no_other_proxy(kept_proxy, tmp_path, monkeypatch, fault):
    monkeypatch.setenv("AMPLIFY_HOME", str(tmp_path))
    for name in ("good", "odd"):
        shutil.copytree(kept_proxy, tmp_path / "proxies" / name)
    broken = tmp_path / "proxies" / "odd"
    card = BROKEN[fault](json.loads((broken / CARD).read_text()))
    (broken / CARD).write_text(card if isinstance(card, str) else json.dumps(card))
    with pytest.raises(DataError, match=r"delete the folder|train_proxy|train it again"):
        load_proxy(broken)
    listed = CliRunner().invoke(cli, ["list", "proxies"])
    assert listed.exit_code == 0
    good, odd = listed.output.strip().splitlines()
    assert "1 epoch" in good
    if fault != "another's weights":  # which a list does not read
        assert str(broken) in odd
        assert "epoch" not in odd


def test_a_full_disk_leaves_no_half_proxy(kept_proxy, tmp_path):
    """A limit on file size stands for the full disk: the operating system really refuses the write."""
    import resource

    from amplify.proxies.training import read_card, write

    proxy, card = load_proxy(kept_proxy), read_card(kept_proxy)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, before[1]))
    try:
        with pytest.raises(DataError, match="cannot be written to"):
            write(proxy, card, tmp_path / "kept")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_labels_that_differ_by_case_find_their_own_columns():
    from amplify.proxies.training import columns_of

    assert columns_of(["may", "May"], {0: "May", 1: "may"}) == [1, 0]
    assert columns_of(["good", "bad"], {0: "BAD", 1: "GOOD"}) == [1, 0]
    assert columns_of(["may", "june"], {0: "May", 1: "may", 2: "june"}) == [1, 2]
    assert columns_of(["MAY", "june"], {0: "May", 1: "may", 2: "june"}) is None
    assert columns_of(["good"], {0: "LABEL_0"}) is None


def test_a_full_folder_is_never_overwritten(tiny_encoder, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        train_proxy(reviews(), tiny_encoder, epochs=1, out=tmp_path, progress=False)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_encoder_as_it_is(tiny_encoder):
    proxy = train_proxy(reviews(), tiny_encoder, epochs=0)
    assert not proxy.trained
    with pytest.raises(InputError, match="Train it"):
        proxy.require_head("attribution")


def test_encoder_with_a_head_for_these_labels(tiny_encoder, tmp_path):
    """A classifier made elsewhere is usable as it is, and its columns are put into the task's order."""
    task = reviews()
    swapped = replace(task, labels=LABELS[::-1])
    made = train_proxy(swapped, tiny_encoder, epochs=1, out=tmp_path / "made", progress=False)
    (tmp_path / "made" / CARD).unlink()  # now an ordinary classifier folder
    taken = train_proxy(task, tmp_path / "made", epochs=0)
    assert taken.trained
    for p, q in zip(made.probabilities(task.test), taken.probabilities(task.test), strict=True):
        np.testing.assert_allclose(p[::-1], q, atol=1e-6)
    others = replace(
        task,
        labels=("a", "b"),
        train=(),
        validation=(),
        test=(Example(id="x", text="x", label="a"),),
    )
    assert not train_proxy(others, tmp_path / "made", epochs=0).trained


def test_encoder_probabilities_equal_plain_forwards(tiny_encoder):
    task = reviews()
    proxy = train_proxy(task, tiny_encoder, epochs=1, progress=False)
    got = proxy.probabilities(task.train, batch_tokens=40)
    for example, p in zip(task.train, got, strict=True):
        with torch.no_grad():
            logits = proxy.module(**proxy.tokenizer(example.text, return_tensors="pt")).logits[0]
        np.testing.assert_allclose(p, logits.softmax(-1).numpy(), atol=1e-6)


def test_choices_share_one_head(tiny_encoder):
    task = quiz()
    proxy = train_proxy(task, tiny_encoder, epochs=1, progress=False)
    assert proxy.module.config.num_labels == 1
    for example, p in zip(task.train, proxy.probabilities(task.train), strict=True):
        assert p.shape == (len(example.choices),)
        with torch.no_grad():
            logits = [
                proxy.module(**proxy.tokenizer(example.text, o, return_tensors="pt")).logits for o in example.options
            ]
        np.testing.assert_allclose(p, torch.cat(logits)[:, 0].softmax(0).numpy(), atol=1e-6)


@pytest.mark.parametrize("labels", [LABELS, ("bad", "good", "great phone"), ("a", "b")])
def test_causal_scores_equal_plain_forwards(tiny_lm, labels):
    """Labels of one token share a row, longer ones do not; either way log P(label | prompt), one forward each."""
    task = replace(
        reviews(),
        labels=labels,
        train=(),
        validation=(),
        test=tuple(
            Example(id=f"t{i}", text=t, label=labels[0]) for i, t in enumerate(("bad", "A very good phone, é中"))
        ),
    )
    proxy = train_proxy(task, tiny_lm, epochs=0)
    assert proxy.trained
    assert proxy.kind == "causal"
    for example, scores in zip(task.test, proxy.label_scores(task.test), strict=True):
        prompt = f"Is it good?\n\nReview: {example.text}\nAnswer:"
        start = len(proxy.tokenizer(prompt)["input_ids"])
        for label, score in zip(labels, scores, strict=True):
            ids = proxy.tokenizer(f"{prompt} {label}", return_tensors="pt")["input_ids"]
            with torch.no_grad():
                logprobs = proxy.module(ids).logits[0].log_softmax(-1)
            want = sum(logprobs[i - 1, ids[0, i]] for i in range(start, ids.shape[1]))
            assert score == pytest.approx(want.item(), abs=1e-4)


def test_a_template_of_a_folder_reaches_nothing(tiny_lm, tmp_path):
    made = train_proxy(reviews(), tiny_lm, epochs=0, out=tmp_path / "proxy")
    card = json.loads((made.folder / CARD).read_text())
    ran = tmp_path / "ran"
    card["template"] = "{{ cycler.__init__.__globals__.os.system('touch " + str(ran) + "') and '' }}{{ text }}\nAnswer:"
    (made.folder / CARD).write_text(json.dumps(card))
    with pytest.raises(InputError, match="template 'of the proxy'"):
        load_proxy(made.folder).label_scores(reviews().test)
    assert not ran.exists()


@pytest.mark.parametrize("lora", [False, True])
def test_causal_fine_tuning(tiny_lm, lora):
    task = reviews()
    plain = train_proxy(task, tiny_lm, epochs=0)
    tuned = train_proxy(task, tiny_lm, epochs=8, lora=lora, learning_rate=1e-2, progress=False)

    def gold(proxy) -> float:
        return float(
            np.mean([s[LABELS.index(e.label)] for e, s in zip(task.train, proxy.label_scores(task.train), strict=True)])
        )

    assert gold(tuned) > gold(plain) + 1
    assert same(tuned, load_proxy(tuned.folder))  # adapters are merged: an ordinary folder


def test_lora_on_an_encoder(tiny_encoder):
    task = reviews()
    proxy = train_proxy(task, tiny_encoder, epochs=20, lora=True, learning_rate=1e-2, progress=False)
    assert proxy.accuracy(task.train) > 0.9
    assert same(proxy, load_proxy(proxy.folder))


def test_bad_tasks(tiny_encoder, tiny_lm):
    task = reviews()
    with pytest.raises(InputError, match="no training examples"):
        train_proxy(replace(task, train=()), tiny_encoder)
    free = Example(id="f", text="Who?", answers=("me",))
    with pytest.raises(InputError, match="free-text"):
        train_proxy(
            replace(task, labels=(), train=(free,), validation=(), test=(replace(free, id="g", text="What?"),)),
            tiny_encoder,
        )
    with pytest.raises(InputError, match="epochs"):
        train_proxy(task, tiny_encoder, epochs=-1)
    long = Example(id="long", text="good " * 2000, label="positive")
    with pytest.raises(ContextLengthError, match="'long'"):
        train_proxy(task, tiny_lm, epochs=0).probabilities([long])
    (row,) = train_proxy(task, tiny_encoder, epochs=0).rows(long)
    assert len(row.ids) == 256
    assert row.unread > 0


def test_rows_of_many_are_those_of_each(tiny_encoder, tiny_lm, monkeypatch):
    monkeypatch.setattr("amplify.proxies.proxy.AT_ONCE", 3)
    texts = ["good " * 300, "", "a phone", " wide  blanks ", "Zürich 東京", "x", "\n"]
    for task, folder in ((reviews(), tiny_encoder), (reviews(), tiny_lm), (quiz(), tiny_encoder)):
        proxy = train_proxy(task, folder, epochs=0)
        examples = [replace(task.train[i % 2], text=text[: 300 if folder == tiny_lm else None]) for i, text in
                    enumerate(texts)]  # fmt: skip
        assert proxy.rows_of(examples) == [proxy.rows(example) for example in examples]
        tokens = proxy.tokenizer(examples[4].text)["input_ids"]
        if task.name == "reviews" and folder == tiny_encoder:
            assert list(proxy.rows_of(examples)[4][0].ids) == tokens
    with pytest.raises(InputError, match="neither choices nor"):
        proxy.rows_of([examples[0], Example("none", "text")])


def test_rows_that_are_only_scored_are_the_same_tokens(tiny_encoder):
    proxy = train_proxy(reviews(), body=tiny_encoder, epochs=1)
    examples = [Example("1", "a good phone"), Example("2", "bad"), Example("3", "")]
    whole, quick = proxy.rows_of(examples), proxy.rows_of(examples, offsets=False)
    assert [(r.ids, r.types, r.answers) for [r] in whole] == [(r.ids, r.types, r.answers) for [r] in quick]
    # nothing at all is a text too: this tokenizer makes no token of it
    [alone] = proxy.label_scores([Example("3", "")])
    np.testing.assert_allclose(alone, proxy.label_scores(examples)[2], atol=1e-6)
    assert np.isfinite(alone).all()


def test_a_language_model_as_it_is_has_no_seed(tiny_lm, tmp_path):
    taken = [train_proxy(reviews(), tiny_lm, epochs=0, seed=seed) for seed in (0, 1)]
    assert taken[0].identity == taken[1].identity
    assert taken[0].folder == tiny_lm
    assert list_proxies() == []
    kept = train_proxy(reviews(), tiny_lm, epochs=0, out=tmp_path / "kept")
    assert kept.card["validation"]["accuracy"] == kept.accuracy(reviews().validation)
    assert same(kept, load_proxy(tmp_path / "kept"))


def test_the_card_says_how(tiny_encoder):
    proxy = train_proxy(reviews(), tiny_encoder, epochs=1, progress=False)
    card = json.loads((proxy.folder / CARD).read_text())
    assert card["training"] == {"epochs": 1, "seed": 0, "lora": False, "learning_rate": 2e-4, "batch_size": 16}
    assert card["validation"]["examples"] == 6
    assert {"torch", "transformers", "amplify"} <= card["versions"].keys()


def test_batches_bound_their_padding():
    lengths = [5, 1, 9, 3, 9, 100]
    groups = list(batches(lengths, 18))
    assert sorted(i for group in groups for i in group) == list(range(6))
    assert all(len(g) * max(lengths[i] for i in g) <= 18 for g in groups if len(g) > 1)


@pytest.mark.real
def test_minilm_learns_sentiment(minilm, data):
    """Chance is one half; about nine in ten is what 4 epochs on 400 reviews give, so .85 leaves room for one machine
    or another and none for a broken head."""
    task = load_task("amazon_sentiment")
    proxy = train_proxy(replace(task, train=task.train[:200]), "minilm", epochs=3, progress=False)
    assert proxy.card["validation"]["accuracy"] > 0.8


def test_a_proxy_is_closed_and_its_memory_freed(tiny_encoder):
    with train_proxy(reviews(), tiny_encoder, epochs=1, device="cpu", progress=False) as proxy:
        module = weakref.ref(proxy.module)
        proxy.probabilities(reviews().test)
    proxy.close()
    gc.collect()
    assert module() is None
    with pytest.raises(ModelError, match=r"the proxy .* is closed"):
        proxy.probabilities(reviews().test)
    with load_proxy(proxy.folder) as again:
        assert len(again.probabilities(reviews().test)) == 1

"""Hugging Face, the real packages: the hub by a local one that takes uploads into the layout of its cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
from local_hub import at_hand

import amplify
from amplify.bridges.hugging_face import (
    from_datasets,
    from_pipeline,
    pull_profile,
    pull_program,
    push_profile,
    push_program,
    to_datasets,
)
from amplify.errors import DataError, InputError
from amplify.methods import make
from amplify.models.scripted import ScriptedModel


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    return at_hand(tmp_path / "hub", monkeypatch)


def test_a_program_goes_to_the_hub_and_comes_back(hub: Any, tmp_path: Path) -> None:
    program = make("few_shot", shots=2).fit(amplify.load_task("coin_flip"), ScriptedModel(), 0)
    said = push_program(program, "me/coins", card="Measured: nothing.", api=hub)
    assert said.startswith("local/me/coins/")
    assert hub.made == {"me/coins": True}
    assert pull_program("me/coins") == program
    other = make("zero_shot").fit(amplify.load_task("coin_flip"), ScriptedModel(), 0)
    other.save(tmp_path / "other.json")
    push_program(tmp_path / "other.json", "me/coins", api=hub)
    assert pull_program("me/coins") == other
    assert pull_program("me/coins", revision=f"{0:040d}") == program
    [card] = (tmp_path / "hub").glob(f"*/snapshots/{0:040d}/README.md")
    assert "library_name: amplify" in card.read_text()
    assert "Measured: nothing." in card.read_text()


def test_a_profile_goes_to_the_hub_and_comes_back(hub: Any) -> None:
    profile = amplify.Steering(heads={1: [0, 2]}, alpha=0.05, model={"layers": 3}, provenance={"task": "x"})
    push_profile(profile, "me/heads", api=hub, private=False)
    assert hub.made == {"me/heads": False}
    assert pull_profile("me/heads").to_dict() == profile.to_dict()


def test_what_the_hub_lacks_is_one_error(hub: Any) -> None:
    with pytest.raises(DataError, match=r"me/nothing gives no program.json"):
        pull_program("me/nothing")
    with pytest.raises(DataError, match=r"gives no profile.yaml"):
        pull_profile("no such name at all")


def test_a_hub_that_cannot_be_reached_is_one_error(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Lost(Exception):  # of whichever client huggingface_hub sends by, none of whose errors are its own
        pass

    def lost(*args: Any, **options: Any) -> None:
        raise Lost("[Errno 111] Connection refused")

    monkeypatch.setattr(hub, "create_repo", lost)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lost)
    profile = amplify.Steering(heads={1: [0, 2]}, model={"layers": 3})
    with pytest.raises(DataError, match=r"the hub does not take me/heads \(Lost: \[Errno 111\] Connection refused\)"):
        push_profile(profile, "me/heads", api=hub)
    with pytest.raises(DataError, match=r"me/heads gives no profile.yaml \(Lost"):
        pull_profile("me/heads")


def test_a_task_becomes_data_sets_and_comes_back(tmp_path: Path) -> None:
    task = amplify.load_task("support_tickets")
    data = to_datasets(task)
    assert {k: v.num_rows for k, v in data.items()} == {
        "train": len(task.train), "validation": len(task.validation), "test": len(task.test)
    }  # fmt: skip
    data.save_to_disk(str(tmp_path / "saved"))
    again = datasets.load_from_disk(str(tmp_path / "saved"))
    back = from_datasets(again, "text", "label", name="tickets", instruction=task.instruction)
    assert back.name == "tickets"
    for split in ("train", "validation", "test"):
        assert [(e.text, e.label) for e in getattr(back, split)] == [(e.text, e.label) for e in getattr(task, split)]


def test_class_labels_become_their_names_and_one_set_is_split() -> None:
    kinds = datasets.Features({"review": datasets.Value("string"), "stars": datasets.ClassLabel(names=["bad", "good"])})
    rows = [{"review": f"Review number {i}.", "stars": i % 2} for i in range(40)]
    data = datasets.Dataset.from_list(rows, features=kinds)
    task = from_datasets(data, "review", "stars")
    assert task.labels == ("bad", "good")
    assert len(task.train) + len(task.validation) + len(task.test) == 40
    assert min(len(task.train), len(task.validation), len(task.test)) > 0
    with pytest.raises(InputError, match="no column 'text'; there are: review, stars"):
        from_datasets(data, "text", "stars")
    with pytest.raises(InputError, match="'extra'"):
        from_datasets({"extra": data}, "review", "stars")


def test_a_pipeline_is_a_model(tiny_lm: Path) -> None:
    import transformers

    pipe = transformers.pipeline("text-generation", model=str(tiny_lm), device="cpu", dtype="float32")
    model = from_pipeline(pipe)
    prompt = "Paris is the capital of"
    wanted = pipe(prompt, max_new_tokens=6, do_sample=False, return_full_text=False)[0]["generated_text"]
    assert isinstance(model, amplify.TransformersModel)
    found = model.generate([amplify.Prompt(text=prompt)], amplify.Sampling(max_tokens=6))[0].text
    assert found.rstrip("�") == wanted.rstrip("�")
    with pytest.raises(InputError, match="text-generation"):
        from_pipeline(3)


def test_a_classifying_pipeline_is_a_proxy(tiny_encoder: Path) -> None:
    import transformers

    body = transformers.AutoConfig.from_pretrained(tiny_encoder, num_labels=2, id2label={0: "bad", 1: "good"})
    classifier = transformers.BertForSequenceClassification(body).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_encoder)
    pipe = transformers.pipeline("text-classification", model=classifier, tokenizer=tokenizer, device="cpu")
    proxy = from_pipeline(pipe)
    assert isinstance(proxy, amplify.Proxy)
    texts = ["Great phone.", "Terrible battery."]
    wanted = [{s["label"]: s["score"] for s in scores} for scores in pipe(texts, top_k=None)]
    found = proxy.probabilities([amplify.Example(str(i), text) for i, text in enumerate(texts)])
    for row, scores in zip(found, wanted, strict=True):
        assert dict(zip(proxy.labels, row, strict=True)) == pytest.approx(scores, abs=1e-5)

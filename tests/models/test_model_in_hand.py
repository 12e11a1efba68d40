"""Models that are loaded already, or opened with transformers' options: used like any other, shared, and freed."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import amplify
from amplify import Prompt, Proxy, Sampling, Steering, TransformersModel, load_model, parse_emphasis
from amplify.errors import DataError, InputError, ModelError, UnknownNameError
from amplify.models import pretrained
from amplify.types import Example

TEXT = "Great phone, terrible battery. The answer is"
PROMPTS = [parse_emphasis("Great phone, **terrible battery**. The answer is", raw=True), Prompt(text="Paris is")]
LABELS = [" positive", " France"]
STEERED = Steering(heads={0: [1], 1: [0, 3], 2: [2]}, alpha=0.01)


@pytest.fixture(scope="module")
def model(tiny_lm: Path) -> Any:
    with load_model(f"transformers:{tiny_lm}", dtype="float32", device="cpu") as model:
        yield model


def module_of(folder: Path, **options: Any) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)


def in_hand(module: Any, model: Any) -> Any:
    return TransformersModel(module, model.tokenizer)


def plain(module: Any, tokenizer: Any, prompt: str, continuation: str) -> float:
    """Log-probability of a continuation by one call of the module."""
    ids = tokenizer(prompt + continuation, return_tensors="pt").input_ids
    start = tokenizer(prompt, return_tensors="pt").input_ids.shape[1]
    with torch.inference_mode():
        logits = module(ids).logits[0].log_softmax(-1)
    return float(sum(logits[i - 1, ids[0, i]] for i in range(start, ids.shape[1])))


def test_a_module_in_hand_does_what_the_same_model_does_by_name(model: Any, tiny_lm: Path) -> None:
    module = module_of(tiny_lm)
    module.train()  # dropout or not, it is put in evaluation mode
    mine = in_hand(module, model)
    few = Sampling(max_tokens=6)
    assert mine.score(PROMPTS, LABELS) == model.score(PROMPTS, LABELS)
    assert mine.score(PROMPTS, LABELS, steering=STEERED) == model.score(PROMPTS, LABELS, steering=STEERED)
    assert mine.generate(PROMPTS, few, steering=STEERED) == model.generate(PROMPTS, few, steering=STEERED)
    for method in ("integrated_gradients", "occlusion", "raw_attention", "deep_lift"):
        ours, theirs = (amplify.explain(TEXT, target=" good", model=m, method=method, budget=20) for m in (mine, model))
        # its parameters want gradients, so that torch takes another way back
        np.testing.assert_allclose(ours.scores, theirs.scores, rtol=0, atol=1e-4)
    documents = ["Great phone.", "Terrible battery."]
    ours, theirs = (amplify.attribute_sources("Which?", documents, m, answer="good", budget=4) for m in (mine, model))
    assert ours.documents.scores.tolist() == theirs.documents.scores.tolist()
    with amplify.steered(mine.module, mine.tokenizer, PROMPTS[:1], STEERED) as inputs:
        assert inputs["input_ids"].shape[0] == 1
    found = amplify.explain(TEXT, target=" good", model=mine, method="grad_x_input")
    assert amplify.rationalize(found).words
    assert amplify.faithfulness([found], mine)
    header = mine.describe()
    assert header["model"]["name"] == tiny_lm.name
    assert header["dtype"] == "float32"
    mine.close()
    with pytest.raises(ModelError, match="closed"):
        mine.generate(PROMPTS, few)
    module(torch.tensor([[1, 2]]))  # it is the caller's, and still there


def test_it_is_evaluated(model: Any, tiny_lm: Path, tmp_path: Path) -> None:
    task = amplify.load_task("support_tickets", limit=12)
    report = amplify.evaluate(
        task, in_hand(module_of(tiny_lm), model), ["zero_shot"], seeds=[0], limit=4, out=tmp_path / "run"
    )
    assert json.loads((tmp_path / "run" / "run.json").read_text())
    assert "zero_shot" in str(report)


def test_weights_that_differ_have_other_fingerprints(model: Any, tiny_lm: Path) -> None:
    first, same, other = (in_hand(module_of(tiny_lm), model) for _ in range(3))
    other.module.model.layers[1].mlp.up_proj.weight.data[3, 5] += 1
    assert first.identity == same.identity
    assert first.identity != other.identity


def test_a_class_of_ones_own(model: Any, tiny_lm: Path) -> None:
    from transformers import LlamaForCausalLM

    class Colder(LlamaForCausalLM):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            out = super().forward(*args, **kwargs)
            out.logits = out.logits * 0.5
            return out

    module = Colder.from_pretrained(tiny_lm, dtype=torch.float32).eval()
    mine = in_hand(module, model)
    [found] = mine.score([Prompt(text=TEXT)], [" positive"])
    assert found.total == pytest.approx(plain(module, model.tokenizer, TEXT, " positive"), abs=1e-4)
    assert found.total != pytest.approx(model.score([Prompt(text=TEXT)], [" positive"])[0].total, abs=1e-2)


def test_a_quantised_model(model: Any, tiny_lm: Path) -> None:
    """Eight-bit weights, as quantising packages have them: integers and a scale, multiplied in each pass."""

    class Int8(torch.nn.Module):
        def __init__(self, linear: torch.nn.Linear) -> None:
            super().__init__()
            self.in_features, self.out_features = linear.in_features, linear.out_features
            scale = linear.weight.abs().amax(1, keepdim=True) / 127
            self.register_buffer("scale", scale.detach())
            self.register_buffer("weight", (linear.weight / scale).round().to(torch.int8).detach())

        def forward(self, x: Any) -> Any:
            return torch.nn.functional.linear(x, self.weight.to(x.dtype) * self.scale)

    module = module_of(tiny_lm).eval()
    for layer in module.model.layers:
        for part, name in ((layer.self_attn, "q_proj"), (layer.mlp, "up_proj"), (layer.mlp, "down_proj")):
            setattr(part, name, Int8(getattr(part, name)))
    mine = in_hand(module, model)
    [found] = mine.score([Prompt(text=TEXT)], [" positive"])
    assert found.total == pytest.approx(plain(module, model.tokenizer, TEXT, " positive"), abs=1e-4)
    assert found.total != model.score([Prompt(text=TEXT)], [" positive"])[0].total
    explained = amplify.explain(TEXT, target=" good", model=mine, method="integrated_gradients")
    assert np.isfinite(explained.scores).all()
    assert mine.score(PROMPTS[:1], LABELS[:1], steering=STEERED) != mine.score(PROMPTS[:1], LABELS[:1])


@pytest.fixture(scope="module")
def adapter(tiny_lm: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A model with LoRA adapters that do something, and the folder they were saved to."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    module = get_peft_model(module_of(tiny_lm), config).eval()
    folder = tmp_path_factory.mktemp("adapter")
    module.save_pretrained(folder)
    return module, folder


def test_a_peft_model_and_its_folder(model: Any, adapter: tuple[Any, Path], tiny_lm: Path) -> None:
    module, folder = adapter
    mine = in_hand(module, model)
    wanted = plain(module, model.tokenizer, TEXT, " positive")
    [found] = mine.score([Prompt(text=TEXT)], [" positive"])
    assert found.total == pytest.approx(wanted, abs=1e-4)
    assert found.total != pytest.approx(model.score([Prompt(text=TEXT)], [" positive"])[0].total, abs=1e-3)
    explained = amplify.explain(TEXT, target=" good", model=mine, method="occlusion")
    with load_model(f"transformers:{folder}", dtype="float32") as opened:
        assert opened.score([Prompt(text=TEXT)], [" positive"])[0].total == found.total  # type: ignore[attr-defined]
        assert amplify.explain(TEXT, target=" good", model=opened, method="occlusion").scores == explained.scores
        header = opened.describe()["model"]
    assert header["base"] == model.describe()["model"]
    assert header["sha256"] != header["base"]["sha256"]
    with pytest.raises(DataError, match=r"PEFT adapter of .* merge it"):
        amplify.hub.resolve(folder)


def test_learned_prompts_are_refused(model: Any, tiny_lm: Path) -> None:
    from peft import PromptTuningConfig, get_peft_model

    module = get_peft_model(module_of(tiny_lm), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    with pytest.raises(InputError, match="learned tokens in front"):
        in_hand(module, model)


def test_a_model_spread_over_devices(model: Any, tiny_lm: Path, tmp_path: Path) -> None:
    """Here the devices are memory and disk, between which accelerate moves the layers."""
    spread = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk", "model.layers.2": "disk",
              "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}  # fmt: skip
    options = {"device_map": spread, "offload_folder": str(tmp_path), "dtype": "float32"}
    with load_model(f"transformers:{tiny_lm}", **options) as opened:
        assert opened.describe()["device_map"]["model.layers.2"] == "disk"
        few = Sampling(max_tokens=6)
        for _ in range(2):  # its hooks are still there after the first time
            assert opened.score(PROMPTS, LABELS) == model.score(PROMPTS, LABELS)  # type: ignore[attr-defined]
        assert opened.generate(PROMPTS, few, steering=STEERED) == model.generate(PROMPTS, few, steering=STEERED)
        ours, theirs = (amplify.explain(TEXT, target=" good", model=m, budget=20) for m in (opened, model))
        np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-6)


def test_what_cannot_be_used_is_refused(model: Any, tiny_encoder: Path) -> None:
    from transformers import AutoModel, T5Config, T5ForConditionalGeneration

    t5 = T5ForConditionalGeneration(T5Config(vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))
    for module, says in (
        (torch.nn.Linear(2, 2), "language model of transformers"),
        (t5, "encoder-decoder"),
        (AutoModel.from_pretrained(tiny_encoder), "no language model head"),
    ):
        with pytest.raises(InputError, match=says):
            in_hand(module, model)


def test_the_same_model_is_opened_once_and_freed_by_the_last(tiny_lm: Path, tmp_path: Path) -> None:
    name = f"transformers:{shutil.copytree(tiny_lm, tmp_path / 'model')}"
    first: Any = load_model(name, dtype="float32", max_batch_tokens=9)
    second: Any = load_model(name, dtype="float32")
    other: Any = load_model(name, dtype="bfloat16")
    assert first.module is second.module
    assert first.packed is second.packed
    assert first.module is not other.module
    first.generate(PROMPTS, Sampling(max_tokens=1))
    assert (first.usage.calls, second.usage.calls) == (2, 0)
    gone = weakref.ref(first.module)
    first.close()
    first.close()
    with pytest.raises(ModelError, match="closed"):
        first.generate(PROMPTS, Sampling(max_tokens=1))
    assert len(second.generate(PROMPTS, Sampling(max_tokens=1))) == 2
    del second  # forgotten instead of closed
    gc.collect()
    assert gone() is None
    third: Any = load_model(name, dtype="float32")
    assert third.module is not other.module
    third.close()
    other.close()


def test_threads_that_open_the_same_model_share_it(tiny_lm: Path, tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    name = f"transformers:{shutil.copytree(tiny_lm, tmp_path / 'model')}"
    with ThreadPoolExecutor(4) as pool:
        opened: list[Any] = list(pool.map(lambda _: load_model(name, dtype="float32"), range(8)))
        assert len({id(one.module) for one in opened}) == 1
        said = list(pool.map(lambda one: one.generate(PROMPTS, Sampling(max_tokens=3)), opened))
        gone = weakref.ref(opened[0].module)
        list(pool.map(lambda one: one.close(), opened))
    assert all(one == said[0] for one in said)
    gc.collect()
    assert gone() is None


def test_a_folder_that_changed_is_another_model(tiny_lm: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_lm, tmp_path / "model")
    with load_model(f"transformers:{folder}", dtype="float32") as first:
        module = module_of(tiny_lm)
        module.model.layers[0].mlp.up_proj.weight.data += 1
        module.save_pretrained(folder)
        with load_model(f"transformers:{folder}", dtype="float32") as second:
            assert second.score(PROMPTS, LABELS) != first.score(PROMPTS, LABELS)  # type: ignore[attr-defined]


@pytest.mark.parametrize("native", ["bfloat16", "float32"])
def test_auto_is_what_the_processor_computes_natively(tiny_lm: Path, monkeypatch: Any, native: str) -> None:
    monkeypatch.setattr(pretrained, "auto_dtype", lambda device: native)
    with load_model(f"transformers:{tiny_lm}") as model:
        assert model.describe()["dtype"] == native
    known = {"avx512_bf16": native == "bfloat16"}
    monkeypatch.undo()
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False, raising=False)
    assert pretrained.auto_dtype(torch.device("cpu")) == native


def test_options_of_transformers(tiny_lm: Path, tmp_path: Path) -> None:
    name = f"transformers:{tiny_lm}"
    with pytest.raises(UnknownNameError, match="device_map"):
        load_model(name, device_mapp="auto")
    with pytest.raises(InputError, match="give one of both"):
        load_model(name, device="cpu", device_map="auto")
    with pytest.raises(DataError, match="no model folder"):
        load_model(name, revision="main")
    with load_model(name, attn_implementation="eager", dtype="float32") as model:
        assert model.describe()["attention"] == "eager"


def test_switches_of_the_chat_template(tiny_lm: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_lm, tmp_path / "model")
    template = "{{ messages[0]['content'] }}{{ '<think>' if think else '' }}"
    (folder / "chat_template.jinja").write_text(template)
    chat = [Prompt(messages=[{"role": "user", "content": "Great phone"}])]
    with (
        load_model(f"transformers:{folder}", dtype="float32") as plain_one,
        load_model(f"transformers:{folder}", dtype="float32", chat_template_kwargs={"think": True}) as other,
    ):
        assert other.count_tokens(chat)[0] > plain_one.count_tokens(chat)[0]


def test_code_of_a_models_own_is_run_if_it_is_trusted(tiny_lm: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_lm, tmp_path / "mine")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.C", "AutoModelForCausalLM": "mine.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "mine.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class C(LlamaConfig):\n    model_type = 'mine'\n"
        "class M(LlamaForCausalLM):\n    config_class = C\n"
    )
    with pytest.raises(DataError, match="trust_remote_code"):
        load_model(f"transformers:{folder}")
    with load_model(f"transformers:{folder}", trust_remote_code=True, dtype="float32") as model:
        assert type(model.module).__name__ == "M"  # type: ignore[attr-defined]
        assert len(model.generate(PROMPTS, Sampling(max_tokens=1))) == 2


def test_a_name_without_an_owner_is_looked_for_on_the_hub() -> None:
    with pytest.raises(DataError, match="gpt2 is not in the hub's cache"):
        load_model("transformers:gpt2")
    with pytest.raises(UnknownNameError, match="smollm2-135m"):
        load_model("transformers:smollm2-135")


def test_several_answers_to_a_prompt(model: Any) -> None:
    warm = Sampling(max_tokens=6, temperature=1.5, seed=3)
    three = model.generate(PROMPTS, Sampling(max_tokens=6, temperature=1.5, seed=3, n=3))
    assert len(three) == 6
    assert three == model.generate([p for p in PROMPTS for _ in range(3)], warm)
    assert len({c.text for c in three[:3]}) > 1
    greedy = model.generate(PROMPTS, Sampling(max_tokens=6, n=2))
    assert greedy == [c for c in model.generate(PROMPTS, Sampling(max_tokens=6)) for _ in range(2)]
    with pytest.raises(InputError, match="n >= 1"):
        Sampling(n=0)


@pytest.mark.parametrize(
    "sampling", [Sampling(max_tokens=5, logprobs=True), Sampling(5, 0.8, 0.9, seed=1, logprobs=True)]
)
def test_completions_carry_log_probabilities(model: Any, sampling: Sampling) -> None:
    found = model.generate(PROMPTS, sampling)
    for prompt, one in zip(PROMPTS, found, strict=True):
        assert len(one.logprobs.logprobs) == one.completion_tokens
        ids = amplify.models.chat.encode(model.tokenizer, amplify.models.chat.render(prompt, model.tokenizer))
        with torch.inference_mode():
            logits = model.module(torch.tensor([[*ids, *one.logprobs.token_ids]])).logits[0].log_softmax(-1)
        want = [float(logits[len(ids) - 1 + i, t]) for i, t in enumerate(one.logprobs.token_ids)]
        np.testing.assert_allclose(one.logprobs.logprobs, want, atol=1e-4)
    assert all(c.logprobs is None for c in model.generate(PROMPTS, Sampling(max_tokens=2)))


def classifier(kind: str, tiny_encoder: Path, tiny_lm: Path) -> Any:
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(2)
    folder = tiny_encoder if kind == "bert" else tiny_lm
    return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2, dtype=torch.float32).eval()


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_a_classifier_of_ones_own_is_a_proxy(kind: str, tiny_encoder: Path, tiny_lm: Path) -> None:
    from transformers import AutoTokenizer

    model = classifier(kind, tiny_encoder, tiny_lm)
    tokenizer = AutoTokenizer.from_pretrained(tiny_encoder if kind == "bert" else tiny_lm)
    proxy = Proxy.from_model(model, tokenizer, ["negative", "positive"])
    assert proxy.left == (kind == "llama")
    texts = [TEXT, "Good.", "Terrible battery. " * 3]
    scores = proxy.label_scores([Example(id=str(i), text=text) for i, text in enumerate(texts)])
    for text, row in zip(texts, scores, strict=True):
        with torch.inference_mode():
            want = model(**tokenizer(text, return_tensors="pt")).logits[0]
        np.testing.assert_allclose(row, want.numpy(), atol=1e-4)
    for method in ("integrated_gradients", "grad_x_input", "occlusion", "raw_attention"):
        found = amplify.explain(TEXT, target="negative", foil="positive", model=proxy, method=method)
        assert np.isfinite(found.scores).all()
        assert any(found.scores)
    with pytest.raises(InputError, match="name a method"):
        amplify.explain(TEXT, target="negative", model=proxy, method="auto")
    again = amplify.explain(TEXT, target="negative", foil="positive", model=proxy, method="occlusion")
    without = TEXT.replace("phone", "").replace("  ", " ")
    one, other = proxy.label_scores([Example(id="a", text=TEXT), Example(id="b", text=without)])
    assert again.scores[again.words.index("phone")] == pytest.approx((one - other)[0] - (one - other)[1], abs=1e-3)


def test_labels_in_another_order_find_their_columns(tiny_encoder: Path, tiny_lm: Path) -> None:
    from transformers import AutoTokenizer

    model = classifier("bert", tiny_encoder, tiny_lm)
    model.config.id2label = {0: "NEGATIVE", 1: "POSITIVE"}
    tokenizer = AutoTokenizer.from_pretrained(tiny_encoder)
    example = [Example(id="a", text=TEXT)]
    [one], [other] = (
        Proxy.from_model(model, tokenizer, labels).label_scores(example) for labels in (["positive", "negative"], None)
    )
    assert one.tolist() == other[::-1].tolist()
    with pytest.raises(InputError, match="2 columns"):
        Proxy.from_model(model, tokenizer, ["a", "b", "c"])
    with pytest.raises(InputError, match="sequence classification"):
        Proxy.from_model(module_of(tiny_lm), tokenizer, ["a", "b"])

"""What is leant on in other libraries that they do not promise: a test here fails first when a new version changes it.

Each name is told with what rests on it. transformers is pinned to the versions that these tests pass with.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import torch

from amplify import CapabilityError, Message, Prompt, Sampling, Span, Steering
from amplify.models import load_model
from amplify.models.pretrained import computed_by

ROOT = Path(__file__).resolve().parents[2]
PRIVATES = {
    "_attn_implementation_internal": "transformers: the function that layers compute attention by; set to steer and to "
    "score trees (and `_attn_implementation`, which reads it)",
    "_can_set_attn_implementation": "transformers: whether a model's attention goes through the interface at all",
    "_hf_hook": "accelerate: where a part runs whose weights wait elsewhere",
    "_name_or_path": "transformers: not to be written into a converted model's config",
    "_filters": "lm-eval: the filters of a task that a bridge reads",
    "_metric_fn_list": "lm-eval: the metrics of a task that a bridge reads",
    "_model_forward": "vllm: the pass that steering lays its tables out for; engines are checked at their start",
    "_call_with_config": "langchain: a runnable's call with its callbacks",
    "_is_avx512_bf16_supported": "torch: whether a processor computes bfloat16 by itself",
    "_inheriting": "multiprocessing: a process that is being started reads the script again",
}


def test_no_other_private_name_is_used() -> None:
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "amplify").rglob("*.py"))}
    own: set[str] = set()
    used: dict[str, str] = {}
    for path, tree in trees.items():
        for node in ast.walk(tree):
            match node:
                case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                    own.add(node.name)
                case ast.Name(ctx=ast.Store()):
                    own.add(node.id)
                case ast.Attribute(value=ast.Name(id="self"), ctx=ast.Store()):
                    own.add(node.attr)
                case ast.Attribute():
                    used[node.attr] = path.name
                case ast.Call(
                    func=ast.Name(id="getattr" | "hasattr" | "setattr"), args=[_, ast.Constant(str(name)), *_]
                ):
                    used[name] = path.name
    theirs = {name for name in used if name.startswith("_") and not name.startswith("__")} - own
    assert theirs == set(PRIVATES), {name: used.get(name) for name in theirs ^ set(PRIVATES)}


@pytest.fixture(scope="module")
def model(tiny_lm: Path) -> Any:
    return load_model(f"transformers:{tiny_lm}", dtype="float32")


def test_a_config_names_the_function_that_its_layers_call(model: Any) -> None:
    from transformers import AttentionInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    seen = []

    def attention(module: Any, query: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(module.layer_idx)
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, *args, **kwargs)

    AttentionInterface.register("amplify_test", attention)
    AttentionMaskInterface.register("amplify_test", ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    ids = torch.tensor([[5, 6, 7]])
    config = model.module.get_decoder().config
    with torch.inference_mode():
        want = model.module(ids).logits
        assert seen == []
        with computed_by(config, "amplify_test"):
            assert torch.equal(model.module(ids).logits, want)
        assert seen == list(range(config.num_hidden_layers))
        model.module(ids)
    assert len(seen) == config.num_hidden_layers
    assert config._attn_implementation == config._attn_implementation_internal == "sdpa"


def test_a_config_that_goes_by_something_else_is_one_error_and_nothing_is_computed(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = Prompt(messages=(Message("user", "great phone"),), emphasis=(Span(0, 5, message=0),))
    monkeypatch.setattr(type(model.module.config), "_attn_implementation", "sdpa")
    with pytest.raises(CapabilityError, match="cannot be replaced in transformers"):
        model.generate([prompt], Sampling(max_tokens=2), steering=Steering(mode="instaboost"))
    with pytest.raises(CapabilityError, match="cannot be replaced in transformers"):
        model.score([prompt], [" words"])


def test_a_model_says_whether_its_attention_can_be_replaced(model: Any) -> None:
    from transformers import BloomModel

    assert type(model.module.get_decoder())._can_set_attn_implementation() is True
    assert BloomModel._can_set_attn_implementation() is False


def test_a_cache_makes_its_layers_as_they_are_needed() -> None:
    from transformers.cache_utils import Cache, DynamicLayer, StaticSlidingWindowLayer

    made: list[DynamicLayer] = []

    class Layer(DynamicLayer):
        def __init__(self) -> None:  # it is given nothing
            super().__init__()
            made.append(self)

    cache = Cache(layer_class_to_replicate=Layer)
    keys = torch.zeros(1, 2, 3, 4)
    for number in range(2):
        cache.update(keys, keys, number)
    assert cache.layers == made
    assert cache.get_seq_length() == 3
    fresh = Layer()
    assert not fresh.is_initialized
    fresh.lazy_initialization(keys, keys)
    assert fresh.is_initialized
    assert issubclass(StaticSlidingWindowLayer, object)


def test_a_tokenizer_shows_its_template_and_the_words_of_it(model: Any) -> None:
    from transformers import PreTrainedTokenizerBase

    assert type(model.tokenizer).apply_chat_template is PreTrainedTokenizerBase.apply_chat_template
    assert "messages" in model.tokenizer.get_chat_template()
    assert all(isinstance(word, str) for word in model.tokenizer.special_tokens_map.values())

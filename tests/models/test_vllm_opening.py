"""What can go wrong before a vLLM engine starts."""

from __future__ import annotations

import multiprocessing
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from amplify import Prompt, Sampling, load_model
from amplify.errors import InputError, ModelError


def test_a_script_without_a_main_guard_is_told_so_in_the_engines_process(monkeypatch):
    # as it is while a spawned process runs its parent's script again
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
    with pytest.raises(ModelError, match='under `if __name__ == "__main__":`'):
        load_model("vllm:smollm2-135m")


@pytest.mark.parametrize("steering", [1, {"layers": [3]}])
def test_steering_is_a_switch_or_a_profile(tiny_lm, steering):
    with pytest.raises(InputError, match="a head profile or its name"):
        load_model(f"vllm:{tiny_lm}", steering=steering)


def test_an_engine_in_this_process_is_asked_by_one_thread_at_a_time(tiny_lm, monkeypatch):
    """A step of the engine hands back whatever requests are finished, another thread's too."""
    from transformers import AutoTokenizer

    from amplify.models import Usage
    from amplify.models.vllm import VLLMModel

    strangers = []

    class Engine:
        def __init__(self):
            self.llm_engine, self.left, self.asked = self, [], 0

        def enqueue(self, prompts, params, use_tqdm):
            names = [f"{self.asked + k}-x" for k in range(len(prompts))]
            threading.Event().wait(0.002)
            self.asked += len(prompts)
            self.left += [(n.partition("-")[0], p, threading.get_ident()) for n, p in zip(names, prompts, strict=True)]
            return names

        def has_unfinished_requests(self):
            return bool(self.left)

        def step(self):
            threading.Event().wait(0.002)
            name, prompt, thread = self.left.pop(0)
            strangers.extend([thread] * (thread != threading.get_ident()))
            said = [SimpleNamespace(text="x", finish_reason="stop", token_ids=[1])]
            ids = prompt["prompt_token_ids"]
            return [
                SimpleNamespace(request_id=name, finished=True, prompt_token_ids=ids, num_cached_tokens=0, outputs=said)
            ]

    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(SamplingParams=lambda **given: given))
    model = object.__new__(VLLMModel)
    model.llm, model.id, model.usage, model.max_context = Engine(), "vllm:tiny", Usage(), None
    model.tokenizer = AutoTokenizer.from_pretrained(tiny_lm)
    model.stop = SimpleNamespace(alive=True)
    prompts = [Prompt(text="Great phone"), Prompt(text="Terrible battery")]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: model.generate(prompts, Sampling()), range(12)))
    assert not strangers
    assert all(len(one) == 2 for one in found)
    assert model.usage.calls == 24

"""The vllm model on an engine of our own making, which can break down in mid-batch."""

import multiprocessing
import queue
import time
import weakref
from itertools import count
from types import SimpleNamespace

import pytest

from amplify import Prompt, Sampling
from amplify.errors import ModelError
from amplify.models.base import Usage

vllm = pytest.importorskip("vllm")


class Engine:
    """Finishes two requests a step, the later one first, and breaks down after `steps`."""

    def __init__(self, steps):
        self.steps, self.waiting, self.aborted = steps, [], []

    def has_unfinished_requests(self):
        return bool(self.waiting)

    def step(self):
        if not self.steps:
            raise RuntimeError("EngineCore died")
        self.steps -= 1
        now, self.waiting = self.waiting[:2], self.waiting[2:]
        return [self.output(*request) for request in reversed(now)]

    def output(self, name, ids, params):
        rows = [None, *({t: SimpleNamespace(logprob=-0.5)} for t in ids[1:])]
        label = {t: SimpleNamespace(logprob=-0.25) for t in params.logprob_token_ids or ()}
        written = SimpleNamespace(text=f"answer {name}", finish_reason="stop", token_ids=[1, 2], logprobs=[label])
        return SimpleNamespace(
            request_id=name, finished=True, prompt_token_ids=ids, num_cached_tokens=0, outputs=[written],
            prompt_logprobs=rows,
        )  # fmt: skip

    def abort_request(self, names, internal):
        self.aborted += names


class Llm:
    """Holds the engine, as `vllm.LLM` does."""


def opened_model(tiny_lm, steps):
    from transformers import AutoTokenizer

    from amplify.models.vllm import VLLMModel

    model = object.__new__(VLLMModel)
    engine, numbers = Engine(steps), count(7)

    def enqueue(prompts, params, use_tqdm):
        names = [str(next(numbers)) for _ in prompts]
        engine.waiting = [(n, p["prompt_token_ids"], q) for n, p, q in zip(names, prompts, params, strict=True)]
        return [f"{name}-abc" for name in names]

    model.llm = Llm()
    model.llm.llm_engine, model.llm.enqueue = engine, enqueue
    model.id, model.usage, model.max_context = "vllm:tiny", Usage(), 1024
    model.tokenizer = AutoTokenizer.from_pretrained(tiny_lm)
    model.stop = weakref.finalize(engine, lambda: None)
    return model, engine


PROMPTS = [Prompt(text=f"question {i}") for i in range(6)]


def test_a_whole_batch_comes_back_in_order(tiny_lm):
    model, engine = opened_model(tiny_lm, steps=3)
    assert [c.text for c in model.generate(PROMPTS, Sampling())] == [f"answer {i}" for i in range(7, 13)]
    assert engine.aborted == []


def test_what_an_engine_answered_before_it_died_is_handed_on(tiny_lm):
    model, engine = opened_model(tiny_lm, steps=2)
    with pytest.raises(ModelError, match=r"EngineCore died\. 4 of 6 were answered") as caught:
        model.generate(PROMPTS, Sampling())
    assert {i: c.text for i, c in caught.value.completed.items()} == {i: f"answer {i + 7}" for i in range(4)}
    assert model.usage.calls == 4
    assert engine.aborted == [f"{i}-abc" for i in range(7, 13)]  # nothing of it is left for the next batch


def test_what_was_scored_before_an_engine_died_is_handed_on(tiny_lm):
    continuations = [" a", " long one", " b", " longer than that", " c", " and so on"]
    model, _ = opened_model(tiny_lm, steps=9)
    whole = model.score(PROMPTS, continuations)
    assert {p for w in whole for p in w.logprobs} <= {-0.5, -0.25}
    model, _ = opened_model(tiny_lm, steps=1)
    with pytest.raises(ModelError, match="2 of 6 were answered") as caught:
        model.score(PROMPTS, continuations)
    assert len(caught.value.completed) == 2
    assert all(whole[i] == found for i, found in caught.value.completed.items())


def test_requests_say_all_of_their_sampling(tiny_lm):
    model, engine = opened_model(tiny_lm, steps=9)
    seen = []
    plain, engine.output = engine.output, lambda name, ids, params: seen.append(params) or plain(name, ids, params)
    model.generate(PROMPTS[:1], Sampling())
    model.score(PROMPTS[:2], [" a", " long one"])
    assert len(seen) >= 3
    for params in seen:
        assert (params.repetition_penalty, params.presence_penalty, params.frequency_penalty) == (1, 0, 0)
        assert (params.min_p, params.top_k <= 0, params.temperature) == (0, True, 0)


def test_several_answers_and_their_log_probabilities(tiny_lm):
    model, engine = opened_model(tiny_lm, steps=9)
    seen = []
    plain = engine.output

    def output(name, ids, params):
        seen.append(params)
        done = plain(name, ids, params)
        done.outputs[0].logprobs = [{t: SimpleNamespace(logprob=-t / 10)} for t in (1, 2)]
        return done

    engine.output = output
    found = model.generate(PROMPTS[:2], Sampling(temperature=1.0, seed=4, n=2, logprobs=True))
    assert [c.logprobs.logprobs for c in found] == [(-0.1, -0.2)] * 4
    assert [p.logprobs for p in seen] == [0] * 4
    assert len({p.seed for p in seen}) == 4
    greedy = model.generate(PROMPTS[:2], Sampling(n=2))
    assert len(seen) == 6
    assert greedy[0] == greedy[1]


def test_who_waits_for_an_engine_that_is_killed_is_told():
    from amplify.models.vllm import tell_of_end

    engine = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,), daemon=True)
    engine.start()
    waiting: queue.Queue[object] = queue.Queue()
    tell_of_end([engine.sentinel], waiting, RuntimeError("dead"))
    assert waiting.empty()
    engine.kill()
    assert str(waiting.get(timeout=500)) == "dead"


def test_a_dead_engine_is_not_asked_to_abort_and_the_error_says_what_happened(tiny_lm, monkeypatch):
    from vllm.v1.engine.exceptions import EngineDeadError

    model, engine = opened_model(tiny_lm, steps=1)
    step = engine.step

    def killed():
        if not engine.steps:
            raise EngineDeadError
        return step()

    monkeypatch.setattr(engine, "step", killed)
    with pytest.raises(ModelError, match=r"its process ended, .* 2 of 6 were answered") as failure:
        model.generate(PROMPTS, Sampling())
    assert sorted(failure.value.completed) == [0, 1]
    assert engine.aborted == []

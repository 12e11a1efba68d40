"""The vLLM plugin: attention heads a little wider, so that stock kernels steer them (see `attention` for the algebra).

vLLM calls `register` in each of its processes (entry point group `vllm.general_plugins`). Nothing changes in an engine
until `additional_config={"amplify_steering": {}}` switches it on, or `{"layers": [3, 10]}` for these layers alone; then

- `Attention` allots each head of the KV cache the next width that its kernel supports; queries get the gate of their
  request, layer and head, keys get log(w)/scale, values nothing that counts; the output is cut back;
- before each forward pass the model runner (V1 or V2) lays these numbers out by request and position;
- the prefix cache keys blocks from the first token on whose attention changes;
- the front end refuses a request that does not fit, so that no bad one reaches a worker.

State belongs to an engine: it hangs on the engine's own layers. Buffers keep their addresses, so compiled graphs and
CUDA graphs read them as they are. Under tensor parallelism each rank takes the gates of its own heads.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from amplify import engine_watch
from amplify.errors import CapabilityError, InputError
from amplify.steering.payload import KEY, Payload, parse

GATES = 2  # channels in use: a value rounded to the cache's dtype, and what rounding left
MISFIT = ""  # why this vLLM cannot be extended, if it cannot


def enabled(vllm_config: Any) -> bool:
    """Whether an engine was started for steering."""
    return isinstance(vllm_config.additional_config, dict) and vllm_config.additional_config.get(KEY) is not None


def layers_of(vllm_config: Any) -> set[int]:
    """The layers that an engine was started to steer.

    Raises:
        InputError: the option is malformed, or names a layer that the model does not have.
    """
    there = range(vllm_config.model_config.hf_text_config.num_hidden_layers)
    options = vllm_config.additional_config[KEY]
    if not isinstance(options, dict) or options.keys() - {"layers"}:
        raise InputError(f'{KEY} takes {{}} or {{"layers": [0, 1, …]}}, got {options!r}')
    layers = options.get("layers", list(there))
    if not isinstance(layers, list) or not layers or not all(type(i) is int and i in there for i in layers):
        raise InputError(f"layers is a list of layers from {there[0]} to {there[-1]}, got {layers!r}")
    return set(layers)


def asked(sampling_params: Any) -> Payload | None:
    """What a request asks for, if it does.

    Raises:
        InputError: it cannot be read.
    """
    given = (getattr(sampling_params, "extra_args", None) or {}).get(KEY)
    if given is None:
        return None
    if not isinstance(given, str):
        raise InputError(f"{KEY} is a string of JSON, got {type(given).__name__}")
    return parse(given)


class Bank:
    """One engine's steering on one worker: what each request asks for, and the buffers that the layers read.

    Args:
        layers: of the model.
        heads: query heads of this rank in each layer.
        rank: which share of the heads this rank holds.
        tokens: in a forward pass, at most.
        requests: in a forward pass, at most.
        dtype: of queries and keys.

    Attributes:
        gates: [layers, tokens, heads], 1 where a query head is steered; each layer reads its own.
    """

    def __init__(self, layers: int, heads: int, rank: int, tokens: int, requests: int, dtype: Any) -> None:
        import torch

        self.heads, self.rank, self.dtype = heads, rank, dtype
        self.lines: dict[str, tuple[int, Payload]] = {}  # request -> its line of head_sets; line 0 is plain
        self.free = list(range(requests, 0, -1))
        self.touched = 0  # tokens whose buffers are not zero
        self.head_sets = torch.zeros(requests + 1, layers, heads, dtype=dtype)
        self.gates = torch.zeros(layers, tokens, heads, dtype=dtype)
        self.biases: dict[tuple[float, int], Any] = {}  # (logit scale, width) -> [tokens, width]

    def bias(self, scale: float, width: int = GATES) -> Any:
        """The buffer of log(w)/scale that layers of this scale read: GATES channels in use, and zeros up to `width`."""
        if (scale, width) not in self.biases:
            self.biases[scale, width] = self.gates.new_zeros(self.gates.shape[1], width)
        return self.biases[scale, width]

    def begin(self, requests: Sequence[tuple[str, Payload | None]], counts: Any, computed: Any) -> None:
        """Lay out one forward pass.

        Args:
            requests: in batch order, what each asks for.
            counts: tokens of each in this pass.
            computed: tokens of each that are in the cache already.
        """
        import torch

        steered = {name: asks for name, asks in requests if asks is not None}
        if not steered and not self.touched:
            return  # plain before and now: the buffers are zero
        self._place(steered)
        ends = np.cumsum(counts)
        total = int(ends[-1])
        lines, on, weights = np.zeros(total, np.int64), np.zeros(total, np.bool_), np.zeros(total, np.float32)
        for (name, asks), end, count, past in zip(requests, ends.tolist(), counts.tolist(), computed, strict=True):
            if asks is not None:
                own, first = slice(end - count, end), int(past)
                lines[own] = self.lines[name][0]
                on[own] = asks.gate(first, first + count)
                weights[own] = asks.key_log_weights(first, first + count)
        lines[~on] = 0
        device = self.gates.device
        at = torch.from_numpy(lines).to(device, non_blocking=True)
        self.gates[:, :total] = self.head_sets[at].transpose(0, 1)
        log_w = torch.from_numpy(weights).to(device, non_blocking=True)
        for (scale, _), buffer in self.biases.items():
            value = log_w / scale
            buffer[:total, 0] = value
            buffer[:total, 1] = value - buffer[:total, 0].float()
        if self.touched > total:
            self.gates[:, total : self.touched] = 0
            for buffer in self.biases.values():
                buffer[total : self.touched] = 0
        self.touched = total if steered else 0

    def _place(self, steered: dict[str, Payload]) -> None:
        """A line for each request of this pass; those of others are freed before any is taken."""
        for name in [n for n, (_, asks) in self.lines.items() if steered.get(n) is not asks]:
            self.free.append(self.lines.pop(name)[0])
        for name, asks in steered.items():
            if name not in self.lines:
                self.lines[name] = (self.free.pop(), asks)
                self._fill(*self.lines[name])

    def _fill(self, line: int, asks: Payload) -> None:
        import torch

        layers, heads = self.head_sets.shape[1:]
        chosen = torch.zeros(layers, heads, dtype=self.dtype, device="cpu")
        first = self.rank * heads
        if asks.steering.heads is None:
            chosen[:] = 1
        for layer, numbers in (asks.steering.heads or {}).items():
            chosen[layer, [h - first for h in numbers if first <= h < first + heads]] = 1
        self.head_sets[line] = chosen.to(self.head_sets.device)


def register() -> None:
    """Extend vLLM in this process; a second call does nothing."""
    global MISFIT
    engine_watch.watch()
    from vllm.logger import init_logger
    from vllm.model_executor.layers.attention.attention import Attention

    if hasattr(Attention, "amplify_bank"):
        return
    try:
        _check_signatures()
    except (ImportError, AttributeError, TypeError) as error:
        MISFIT = f"this version of vLLM cannot be extended for steering: {error}"
        init_logger("vllm.amplify").warning("amplify: %s", MISFIT)
        return
    Attention.amplify_bank = None
    _extend_attention(Attention)
    _extend_runners()
    _extend_prefix_cache()
    _extend_front_end()


def ready() -> None:
    """Make sure that engines started from this process will have the plugin.

    Raises:
        CapabilityError: this vLLM cannot be extended, or its processes would not load the plugin.
    """
    from importlib.metadata import entry_points

    from vllm import envs

    register()
    if MISFIT:
        raise CapabilityError(MISFIT)
    if not envs.VLLM_ENABLE_V1_MULTIPROCESSING:
        return
    own = [e for e in entry_points(group="vllm.general_plugins") if e.value.startswith(__name__)]
    if not own:
        raise CapabilityError("vLLM finds plugins through installed packages: pip install amplify-llm (or -e .) again")
    if envs.VLLM_PLUGINS is not None and own[0].name not in envs.VLLM_PLUGINS:
        raise CapabilityError(f"VLLM_PLUGINS leaves out {own[0].name!r}; add it")


def _check_signatures() -> None:
    """Everything that is replaced must take what we pass on."""
    from vllm.model_executor.layers.attention.attention import Attention
    from vllm.v1.core import kv_cache_utils
    from vllm.v1.engine.input_processor import InputProcessor
    from vllm.v1.worker.gpu import model_states
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    wanted: list[tuple[Any, tuple[str, ...]]] = [
        (Attention.__init__, ("num_heads", "head_size", "scale", "num_kv_heads", "logits_soft_cap", "prefix")),
        (Attention.forward, ("query", "key", "value", "output_shape", "output_dtype")),
        (GPUModelRunner._model_forward, ("input_ids", "positions")),
        (kv_cache_utils.generate_block_hash_extra_keys, ("request", "start_token_idx", "end_token_idx")),
        (InputProcessor.process_inputs, ("request_id", "prompt", "params")),
        (model_states.resolve_model_state_cls, ("vllm_config", "model")),
        (model_states.ModelState.add_request, ("req_index", "new_req_data")),
        (model_states.ModelState.remove_request, ("req_id",)),
        (model_states.ModelState.prepare_inputs, ("input_batch", "req_states")),
    ]
    for function, names in wanted:
        missing = set(names) - set(inspect.signature(function).parameters)
        if missing:
            raise TypeError(f"{function.__qualname__} takes no {', '.join(sorted(missing))}")


def _width(head_size: int, dtype: Any, kwargs: dict[str, Any]) -> int:
    """The next width that the attention kernel supports."""
    from vllm.v1.attention.selector import get_attn_backend

    backend = kwargs.get("attn_backend") or get_attn_backend(
        head_size,
        dtype,
        "auto",
        use_mla=False,
        has_sink=kwargs.get("sinks") is not None,
        has_sliding_window=kwargs.get("per_layer_sliding_window") is not None,
    )
    sizes = backend.get_supported_head_sizes()
    fits = [s for s in sizes if s >= head_size + GATES] if sizes else [head_size + 8]
    if not fits:
        raise ValueError(
            f"steering widens heads, and {backend.get_name()} has no size above {head_size}: start without "
            f"{KEY}, or choose another attention backend"
        )
    return int(min(fits))


def _bank(config: Any, heads: int) -> Bank:
    """The engine's bank: the one that its other layers have, or a new one."""
    from vllm.distributed import get_tensor_model_parallel_rank
    from vllm.model_executor.layers.attention.attention import Attention

    for layer in config.compilation_config.static_forward_context.values():
        if isinstance(layer, Attention) and layer.amplify_bank is not None:
            if layer.amplify_bank.heads != heads:
                raise ValueError("steering needs the same number of query heads in every layer")
            return layer.amplify_bank
    if config.speculative_config is not None:
        raise ValueError("steering and speculative decoding cannot be combined: the draft model is not steered")
    if config.parallel_config.use_ubatching:
        raise ValueError("steering and micro-batching cannot be combined")
    if config.cache_config.cache_dtype.startswith(("fp8", "nvfp4", "int8", "turboquant")):
        raise ValueError(f"steering needs a KV cache in the model's own dtype, not {config.cache_config.cache_dtype}")
    model, scheduler = config.model_config, config.scheduler_config
    text = model.hf_text_config
    return Bank(
        text.num_hidden_layers,
        heads,
        get_tensor_model_parallel_rank(),
        scheduler.max_num_batched_tokens,
        scheduler.max_num_seqs,
        model.dtype,
    )


def _extend_attention(attention: Any) -> None:
    import torch
    from vllm.config import get_current_vllm_config
    from vllm.model_executor.models.utils import extract_layer_index
    from vllm.v1.attention.backend import AttentionType

    plain_init, plain_forward = attention.__init__, attention.forward
    parameters = inspect.signature(plain_init)

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        config = get_current_vllm_config()
        given = parameters.bind(self, *args, **kwargs)
        given.apply_defaults()
        options = given.arguments
        layer = extract_layer_index(options["prefix"]) if enabled(config) else -1
        if layer < 0 or options["attn_type"] != AttentionType.DECODER or layer not in layers_of(config):
            plain_init(self, *args, **kwargs)
            return
        if options["logits_soft_cap"]:
            raise ValueError("steering acts behind a soft cap, which this kernel applies inside: use transformers")
        if options["head_size_v"] not in (None, options["head_size"]):
            raise ValueError("steering needs keys and values of one width")
        size = options["head_size"]
        bank = _bank(config, options["num_heads"])
        options["head_size"] = _width(size, bank.dtype, {**options, **options.get("extra_impl_args", {})})
        options["head_size_v"] = None
        plain_init(*given.args, **given.kwargs)
        self.amplify_bank = bank
        self.amplify_size = size
        self.register_buffer("amplify_gates", bank.gates[layer], persistent=False)
        extra = options["head_size"] - size
        self.register_buffer("amplify_bias", bank.bias(float(options["scale"]), extra), persistent=False)

    def forward(self: Any, query: Any, key: Any, value: Any, output_shape: Any = None, output_dtype: Any = None) -> Any:
        if self.amplify_bank is None:
            return plain_forward(self, query, key, value, output_shape, output_dtype)
        size, extra = self.amplify_size, self.head_size - self.amplify_size
        query = query.view(-1, self.num_heads, size)
        tokens = query.shape[0]
        # one copy a tensor. Where the bias is zero, what the query holds does not matter; nor does what the value holds
        # in channels that are cut off again: a copy of the bias costs less than zeros (inductor masks a padding)
        gates = self.amplify_gates[:tokens, :, None].expand(-1, -1, extra)
        bias = self.amplify_bias[:tokens, None].expand(-1, self.num_kv_heads, -1)
        query = torch.cat([query, gates], -1)
        if key is not None:
            key = torch.cat([key.view(-1, self.num_kv_heads, size), bias], -1)
        if value is not None:
            value = torch.cat([value.view(-1, self.num_kv_heads, size), bias], -1)
        out = plain_forward(self, query, key, value, None, output_dtype)
        out = out.view(-1, self.num_heads, self.head_size)[..., :size]
        return out.reshape(-1, self.num_heads * size) if output_shape is None else out.reshape(output_shape)

    attention.__init__, attention.forward = init, forward


def _layers_bank(context: Any) -> Bank | None:
    """The bank of the engine with these layers."""
    for layer in context.values():
        bank = getattr(layer, "amplify_bank", None)
        if bank is not None:
            return bank
    return None


def _extend_runners() -> None:
    from vllm.v1.worker.gpu import model_states
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    plain_forward = GPUModelRunner._model_forward

    def model_forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not hasattr(self, "amplify_bank"):
            self.amplify_bank = _layers_bank(self.compilation_config.static_forward_context)
        if self.amplify_bank is not None:
            batch = self.input_batch
            n = batch.num_reqs
            requests = [(name, asked(self.requests[name].sampling_params)) for name in batch.req_ids[:n]]
            starts = self.query_start_loc.np[: n + 1]
            self.amplify_bank.begin(requests, np.diff(starts), batch.num_computed_tokens_cpu[:n])
        return plain_forward(self, *args, **kwargs)

    GPUModelRunner._model_forward = model_forward

    plain_resolve = model_states.resolve_model_state_cls

    def resolve(vllm_config: Any, model: Any) -> Any:
        plain = plain_resolve(vllm_config, model)
        found = _layers_bank(vllm_config.compilation_config.static_forward_context)
        if found is None:
            return plain
        bank = found

        class Steered(plain):  # type: ignore[misc, valid-type]
            """The model's state, and what each request asks for."""

            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, **kwargs)
                self.amplify_asked: dict[str, Payload] = {}

            def add_request(self, req_index: int, new_req_data: Any) -> None:
                super().add_request(req_index, new_req_data)
                asks = asked(new_req_data.sampling_params)
                if asks is not None:
                    self.amplify_asked[new_req_data.req_id] = asks

            def remove_request(self, req_id: str) -> None:
                super().remove_request(req_id)
                self.amplify_asked.pop(req_id, None)

            def prepare_inputs(self, input_batch: Any, req_states: Any) -> dict[str, Any]:
                n = input_batch.num_reqs
                requests = [(name, self.amplify_asked.get(name)) for name in input_batch.req_ids[:n]]
                starts = input_batch.query_start_loc_np[: n + 1]
                bank.begin(requests, np.diff(starts), input_batch.num_computed_tokens_np[:n])
                return super().prepare_inputs(input_batch, req_states)

        return Steered

    model_states.resolve_model_state_cls = resolve


def _extend_prefix_cache() -> None:
    from vllm.v1.core import kv_cache_utils

    plain = kv_cache_utils.generate_block_hash_extra_keys

    def extra_keys(request: Any, start_token_idx: int, end_token_idx: int, start_mm_idx: int) -> Any:
        keys, mm = plain(request, start_token_idx, end_token_idx, start_mm_idx)
        asks = asked(request.sampling_params)
        if asks is not None and end_token_idx > asks.first:
            keys = (*(keys or ()), (KEY, asks.digest))
        return keys, mm

    # modules imported later find it in kv_cache_utils
    for module in [m for m in sys.modules.values() if getattr(m, "__dict__", {}).get(plain.__name__) is plain]:
        setattr(module, plain.__name__, extra_keys)


def _extend_front_end() -> None:
    from vllm.exceptions import VLLMValidationError
    from vllm.v1.engine.input_processor import InputProcessor

    plain = InputProcessor.process_inputs

    def process_inputs(self: Any, *args: Any, **kwargs: Any) -> Any:
        request = plain(self, *args, **kwargs)
        try:
            if KEY in (getattr(request.sampling_params, "extra_args", None) or {}) and not enabled(self.vllm_config):
                raise InputError(
                    "this engine was started without steering: start it with "
                    f"--additional-config '{{\"{KEY}\": {{}}}}' (in process: steering=True)"
                )
            asks = asked(request.sampling_params)
            if asks is not None:
                if request.prompt_token_ids is None:
                    raise InputError("steering needs a prompt of token ids, not of embeddings")
                model = self.model_config
                if model.use_mla or model.is_hybrid or model.is_attention_free:
                    raise InputError(
                        "this model's layers do not all hold keys and values by head: it cannot be steered"
                    )
                text = model.hf_text_config
                asks.check(text.num_hidden_layers, text.num_attention_heads, len(request.prompt_token_ids))
                named = asks.steering.resolve(text.num_hidden_layers, text.num_attention_heads)
                if closed := named.keys() - layers_of(self.vllm_config):
                    raise InputError(f"this engine was not started to steer layer {min(closed)}: see its option layers")
        except InputError as error:
            raise VLLMValidationError(f"{KEY}: {error}", parameter="vllm_xargs") from error
        return request

    InputProcessor.process_inputs = process_inputs

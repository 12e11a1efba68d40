"""Attention layers with heads a little wider than the model's, and what the runners tell them of each batch."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from amplify.steering.payload import KEY, Payload, enabled, layers_of, steering_of
from amplify.steering.vllm_plugin.keys import KeyGains, edit_model, gains_of

GATES = 2  # channels in use: a value rounded to the cache's dtype, and what rounding left


class SteeringBuffers:
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
        self.slots: dict[str, tuple[int, Payload]] = {}  # request -> its slot in head_sets; slot 0 is plain
        self.free = list(range(requests, 0, -1))
        self.dirty = 0  # tokens whose buffers are not zero
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

        requests = [(name, r if r is not None and r.edit is None else None) for name, r in requests]
        steered = {name: request for name, request in requests if request is not None}
        if not steered and not self.dirty:
            return  # plain before and now: the buffers are zero
        self._place(steered)
        ends = np.cumsum(counts)
        total = int(ends[-1])
        slots, on, weights = np.zeros(total, np.int64), np.zeros(total, np.bool_), np.zeros(total, np.float32)
        for (name, request), end, count, past in zip(requests, ends.tolist(), counts.tolist(), computed, strict=True):
            if request is not None:
                own, first = slice(end - count, end), int(past)
                slots[own] = self.slots[name][0]
                on[own] = request.gate(first, first + count)
                weights[own] = request.key_log_weights(first, first + count)
        slots[~on] = 0
        device = self.gates.device
        at = torch.from_numpy(slots).to(device, non_blocking=True)
        self.gates[:, :total] = self.head_sets[at].transpose(0, 1)
        log_w = torch.from_numpy(weights).to(device, non_blocking=True)
        for (scale, _), buffer in self.biases.items():
            value = log_w / scale
            buffer[:total, 0] = value
            buffer[:total, 1] = value - buffer[:total, 0].float()
        if self.dirty > total:
            self.gates[:, total : self.dirty] = 0
            for buffer in self.biases.values():
                buffer[total : self.dirty] = 0
        self.dirty = total if steered else 0

    def _place(self, steered: dict[str, Payload]) -> None:
        """A slot for each request of this pass; those of others are freed before any is taken."""
        for name in [n for n, (_, request) in self.slots.items() if steered.get(n) is not request]:
            self.free.append(self.slots.pop(name)[0])
        for name, request in steered.items():
            if name not in self.slots:
                self.slots[name] = (self.free.pop(), request)
                self._fill(*self.slots[name])

    def _fill(self, slot: int, request: Payload) -> None:
        import torch

        layers, heads = self.head_sets.shape[1:]
        chosen = torch.zeros(layers, heads, dtype=self.dtype, device="cpu")
        first = self.rank * heads
        if request.heads is None:
            chosen[:] = 1
        for layer, numbers in (request.heads or {}).items():
            chosen[layer, [h - first for h in numbers if first <= h < first + heads]] = 1
        self.head_sets[slot] = chosen.to(self.head_sets.device)


def buffers_of(layers: Mapping[str, Any]) -> SteeringBuffers | None:
    """The buffers that an engine's layers have, by name; None where none of them is steered."""
    return next(
        (buffers for layer in layers.values() if (buffers := getattr(layer, "amplify_buffers", None)) is not None), None
    )


def laid_of(layers: Mapping[str, Any]) -> list[SteeringBuffers | KeyGains]:
    """What is to be laid out before each forward pass of an engine with these layers."""
    return [each for each in (buffers_of(layers), gains_of(layers)) if each is not None]


def wide_size(head_size: int, dtype: Any, kwargs: dict[str, Any]) -> int:
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


def _buffers(config: Any, heads: int) -> SteeringBuffers:
    """The engine's buffers: the one that its other layers have, or a new one."""
    from vllm.distributed import get_tensor_model_parallel_rank

    if (found := buffers_of(config.compilation_config.static_forward_context)) is not None:
        if found.heads != heads:
            raise ValueError("steering needs the same number of query heads in every layer")
        return found
    model, scheduler = config.model_config, config.scheduler_config
    text = model.hf_text_config
    return SteeringBuffers(
        text.num_hidden_layers,
        heads,
        get_tensor_model_parallel_rank(),
        scheduler.max_num_batched_tokens,
        scheduler.max_num_seqs,
        model.dtype,
    )


def extend_attention(attention: Any) -> None:
    """Widen the heads of the layers that an engine is to steer, and fill what that adds in each forward pass."""
    import torch
    from vllm.config import get_current_vllm_config
    from vllm.model_executor.models.utils import extract_layer_index
    from vllm.v1.attention.backend import AttentionType

    plain_init, plain_forward = attention.__init__, attention.forward
    parameters = inspect.signature(plain_init)

    @functools.wraps(plain_init)
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
        if options["kv_sharing_target_layer_name"] and layers_of(config) != set(
            range(config.model_config.hf_text_config.num_hidden_layers)
        ):
            raise ValueError("layers share their keys here, so all of them are steered or none: give no layers")
        if options["head_size_v"] not in (None, options["head_size"]):
            raise ValueError("steering needs keys and values of one width")
        size = options["head_size"]
        buffers = _buffers(config, options["num_heads"])
        options["head_size"] = wide_size(size, buffers.dtype, {**options, **options.get("extra_impl_args", {})})
        options["head_size_v"] = None
        plain_init(*given.args, **given.kwargs)
        if self.kv_cache_torch_dtype != buffers.dtype:  # as the checkpoint may ask for layer by layer
            raise ValueError(f"layer {layer} holds its keys as {self.kv_cache_dtype}: give kv_cache_dtype yourself")
        self.amplify_buffers = buffers
        self.amplify_size = size
        self.register_buffer("amplify_gates", buffers.gates[layer], persistent=False)
        extra = options["head_size"] - size
        self.register_buffer("amplify_bias", buffers.bias(float(options["scale"]), extra), persistent=False)

    def forward(self: Any, query: Any, key: Any, value: Any, output_shape: Any = None, output_dtype: Any = None) -> Any:
        if self.amplify_buffers is None:
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


def extend_runners() -> None:
    """Lay out the requests of a steered engine before each of its forward passes."""
    from vllm.v1.worker.gpu import model_states
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    plain_forward = GPUModelRunner._model_forward

    @functools.wraps(plain_forward)
    def model_forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not hasattr(self, "amplify_laid"):
            self.amplify_laid = laid_of(self.compilation_config.static_forward_context)
        if self.amplify_laid:
            batch = self.input_batch
            n = batch.num_reqs
            requests = [(name, steering_of(self.requests[name].sampling_params)) for name in batch.req_ids[:n]]
            starts = self.query_start_loc.np[: n + 1]
            for buffers in self.amplify_laid:
                buffers.begin(requests, np.diff(starts), batch.num_computed_tokens_cpu[:n])
        return plain_forward(self, *args, **kwargs)

    GPUModelRunner._model_forward = model_forward

    plain_resolve = model_states.resolve_model_state_cls

    def resolve(vllm_config: Any, model: Any) -> Any:
        plain = plain_resolve(vllm_config, model)
        edit_model(model, vllm_config)
        laid = laid_of(vllm_config.compilation_config.static_forward_context)
        if not laid:
            return plain

        class Steered(plain):  # type: ignore[misc, valid-type]
            """The model's state, and what each request asks for."""

            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, **kwargs)
                self.amplify_steering: dict[str, Payload] = {}

            def add_request(self, req_index: int, new_req_data: Any) -> None:
                super().add_request(req_index, new_req_data)
                wanted = steering_of(new_req_data.sampling_params)
                if wanted is not None:
                    self.amplify_steering[new_req_data.req_id] = wanted

            def remove_request(self, req_id: str) -> None:
                super().remove_request(req_id)
                self.amplify_steering.pop(req_id, None)

            def prepare_inputs(self, input_batch: Any, req_states: Any) -> dict[str, Any]:
                n = input_batch.num_reqs
                requests = [(name, self.amplify_steering.get(name)) for name in input_batch.req_ids[:n]]
                starts = input_batch.query_start_loc_np[: n + 1]
                for buffers in laid:
                    buffers.begin(requests, np.diff(starts), input_batch.num_computed_tokens_np[:n])
                return super().prepare_inputs(input_batch, req_states)

        return Steered

    model_states.resolve_model_state_cls = resolve

"""Keys of marked tokens edited where an engine computes them (mode "seka"; see `amplify.steering.keys`).

A forward hook stands behind the layer that gives the keys before their position is turned into them: the norm of keys
where a model has one, else the projection that gives queries, keys and values together. Heads stay as wide as they are.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from amplify.errors import InputError
from amplify.steering.keys import check_shape, load_projections
from amplify.steering.payload import Payload, enabled, projections_of


class KeyGains:
    """One engine's edits on one worker: the buffer that its layers read.

    Args:
        tokens: in a forward pass, at most.
        device: of the keys.

    Attributes:
        gains: [tokens, 2], what each projection of a token's key is added with; 0 for unmarked tokens.
    """

    def __init__(self, tokens: int, device: Any) -> None:
        import torch

        self.gains = torch.zeros(tokens, 2, dtype=torch.float32, device=device)
        self.dirty = 0  # tokens whose gains are not zero

    def begin(self, requests: Sequence[tuple[str, Payload | None]], counts: Any, computed: Any) -> None:
        """Lay out one forward pass; see `SteeringBuffers.begin`."""
        import torch

        ends = np.cumsum(counts).tolist()
        laid = np.zeros((ends[-1] if ends else 0, 2), np.float32)
        for (_, request), end, count, past in zip(requests, ends, counts.tolist(), computed.tolist(), strict=True):
            if request is not None and request.edit is not None and past < request.spans[-1].end:
                laid[end - count : end] = request.gains(past, past + count)
        marked = bool(laid.any())
        if not marked and not self.dirty:
            return
        self.gains[: len(laid)] = torch.from_numpy(laid).to(self.gains.device, non_blocking=True)
        self.gains[len(laid) : self.dirty] = 0
        self.dirty = len(laid) if marked else 0


def gains_of(layers: Mapping[str, Any]) -> KeyGains | None:
    """The gains that an engine's layers read; None where it edits no keys."""
    return next((gains for layer in layers.values() if (gains := getattr(layer, "amplify_gains", None))), None)


def edit_model(model: Any, config: Any) -> None:
    """Hook the layers of a loaded model that give the keys, where its engine is to edit them.

    Raises:
        InputError: an architecture whose keys come from no such layer, or projections for keys of another shape.
    """
    import torch

    own = projections_of(config) if enabled(config) else None
    if own is None or gains_of(config.compilation_config.static_forward_context):
        return
    found = load_projections(own[0])
    check_shape(found.positive, config.model_config.hf_config)
    found = found if own[1] is None else found.rotated(own[1])
    wanted = {i for i, up in found.positive.items() if up.any() or found.negative[i].any()}
    rank, gains = _rank(), None
    there = dict(_attentions(model))
    for layer in sorted(wanted):
        if layer not in there:
            if config.parallel_config.pipeline_parallel_size > 1:
                continue  # another rank holds it
            raise InputError(
                f"layer {layer} of {type(model).__name__} does not compute its keys by a layer that can be hooked, so "
                "they cannot be edited; mode 'pasta' steers it"
            )
        module = there[layer]
        joint = getattr(module.qkv_proj, "base_layer", module.qkv_proj)  # an adapter stands around it
        up, down = found.positive[layer], found.negative[layer]
        first = rank // joint.num_kv_head_replicas * joint.num_kv_heads
        share = slice(first, first + joint.num_kv_heads)
        device = next(joint.parameters()).device
        if gains is None:
            gains = KeyGains(config.scheduler_config.max_num_batched_tokens, device)
        # a key as a row times this: what either projection makes of it, [key heads, 2, head size, head size]
        both = torch.from_numpy(np.stack([up[share], down[share]], 1).transpose(0, 1, 3, 2).copy()).to(device)
        norm = getattr(module, "k_norm", None)
        target = module.qkv_proj if norm is None else norm
        target.register_buffer("amplify_projections", both, persistent=False)
        target.register_buffer("amplify_gains", gains.gains, persistent=False)
        if norm is None:
            start = joint.num_heads * joint.head_size
            target.register_forward_hook(functools.partial(_edit_joint, start))
        else:
            target.register_forward_hook(_edit_norm)
        module.attn.amplify_gains = gains


def _rank() -> int:
    from vllm.distributed import get_tensor_model_parallel_rank

    return int(get_tensor_model_parallel_rank())


def _attentions(model: Any) -> Iterator[tuple[int, Any]]:
    """Layers by number, each the module that holds `qkv_proj` and the attention behind it."""
    from vllm.model_executor.layers.attention.attention import Attention
    from vllm.model_executor.models.utils import extract_layer_index

    for module in model.modules():
        attention = getattr(module, "attn", None)
        joint = getattr(module, "qkv_proj", None)
        if isinstance(attention, Attention) and hasattr(getattr(joint, "base_layer", joint), "total_num_kv_heads"):
            yield extract_layer_index(attention.layer_name), module


def _edited(keys: Any, module: Any) -> Any:
    """Keys [tokens, key heads x head size], in any grouping, edited by the gains of their tokens; the same shape."""
    import torch

    projections, gains = module.amplify_projections, module.amplify_gains
    heads, _, size, _ = projections.shape
    flat = keys.reshape(-1, heads, size)
    rows = flat.float()
    made = torch.einsum("thi,hgij->tghj", rows, projections)
    added = (made * gains[: flat.shape[0], :, None, None]).sum(1)
    return (rows + added).to(keys.dtype).view(keys.shape)


def _edit_joint(start: int, module: Any, args: Any, out: Any) -> Any:
    import torch

    joint = out[0] if isinstance(out, tuple) else out
    projections = module.amplify_projections
    end = start + projections.shape[0] * projections.shape[2]
    keys = _edited(joint[..., start:end], module)
    changed = torch.cat([joint[..., :start], keys, joint[..., end:]], -1)
    return (changed, *out[1:]) if isinstance(out, tuple) else changed


def _edit_norm(module: Any, args: Any, out: Any) -> Any:
    return _edited(out, module)


def extend_loading() -> None:
    """Edit the models that a runner of the first kind loads, and lay out its passes (the second: `extend_runners`)."""
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    runners: tuple[Any, ...] = (GPUModelRunner, CPUModelRunner)
    for runner in runners:
        runner.load_model = _editing(runner.load_model)


def _editing(plain: Any) -> Any:
    @functools.wraps(plain)
    def load_model(self: Any, *args: Any, **kwargs: Any) -> Any:
        done = plain(self, *args, **kwargs)
        edit_model(self.model, self.vllm_config)
        return done

    return load_model

"""Devices without float64, as Apple's "mps": nothing may be computed in it there. A device is played on the CPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from amplify import Sampling
from amplify.attribution.attention import attention_scores
from amplify.attribution.gradients import c_lime
from amplify.models.tree.decode import choose

DEVICE = torch.device("mps", 0)


class There(torch.Tensor):
    """A tensor that says it is on the device; its numbers are on the CPU."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> There:
        made = torch.Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), dtype=held.dtype, device=DEVICE
        )
        made.held = held
        return made  # type: ignore[no-any-return]

    @classmethod
    def __torch_dispatch__(cls, f: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _called(f, args, kwargs or {})


class Device(TorchDispatchMode):
    """The device is there in the block, and refuses float64."""

    def __torch_dispatch__(self, f: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _called(f, args, kwargs or {})


def _called(f: Any, args: Any, kwargs: Any) -> Any:
    given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, There)]
    there = bool(given)
    if (device := kwargs.get("device")) is not None:
        there, kwargs = torch.device(device).type == DEVICE.type, {**kwargs, "device": torch.device("cpu")}

    def bare(leaf: Any) -> Any:
        return leaf.held if isinstance(leaf, There) else leaf

    def placed(leaf: Any) -> Any:
        if not (there and isinstance(leaf, torch.Tensor)):
            return leaf
        if leaf.dtype == torch.float64:
            raise TypeError("the device has no float64")
        return next((one for one in given if one.held is leaf), None) or There(leaf)

    return tree_map(placed, f(*tree_map(bare, args), **tree_map(bare, kwargs)))


def test_the_device_refuses_float64() -> None:
    with Device():
        assert There(torch.ones(2)).add(1).device == DEVICE
        with pytest.raises(TypeError, match="no float64"):
            There(torch.ones(2)).double()
        with pytest.raises(TypeError, match="no float64"):
            torch.ones(2, dtype=torch.float64).to(DEVICE)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.7, top_p=0.9)])
def test_tokens_are_drawn(sampling: Sampling) -> None:
    draw = np.random.default_rng(0)
    logits = torch.from_numpy(draw.normal(0, 2, (6, 50)).astype(np.float32))
    uniform = torch.from_numpy(draw.random(6)) if sampling.temperature else None
    want = choose(logits, sampling, uniform)
    with Device():
        chosen = choose(There(logits), sampling, uniform)
        assert chosen.device == DEVICE
        assert chosen.cpu().tolist() == want.tolist()


def test_attention_is_averaged() -> None:
    weights = torch.rand(2, 4, 3, 3).softmax(-1)

    def scores(weights: torch.Tensor) -> list[float]:
        part = SimpleNamespace(attend=lambda: (weights, [2]), offsets=[(0, 2), (2, 4), (4, 6)], spans=[(0, 2), (2, 4)])
        return attention_scores(part, "raw_attention").tolist()  # type: ignore[arg-type]

    want = scores(weights)
    with Device():
        assert scores(There(weights)) == want


def test_words_are_stretched() -> None:
    inputs = torch.rand(1, 3, 4)

    def scores(inputs: torch.Tensor) -> list[float]:
        part = SimpleNamespace(
            inputs=inputs, score=lambda points: points.sum((1, 2)), offsets=[(0, 2), (2, 4), (4, 6)],
            spans=[(0, 2), (2, 4)],
        )  # fmt: skip
        return c_lime([part], 16, 0, 1000).scores.tolist()  # type: ignore[list-item]

    want = scores(inputs)
    with Device():
        assert scores(There(inputs)) == pytest.approx(want)

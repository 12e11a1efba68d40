"""A classifier that is loaded already, as a proxy."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from amplify.errors import InputError
from amplify.locks import lock_of
from amplify.pretrained import fingerprint
from amplify.proxies.folders import columns_of
from amplify.proxies.proxy import Proxy


def from_model(model: Any, tokenizer: Any, labels: Sequence[str] | None, name: str | None) -> Proxy:
    """See `Proxy.from_model`."""
    own = getattr(getattr(model, "config", None), "id2label", None)
    if own is None or not type(model).__name__.endswith("ForSequenceClassification"):
        raise InputError(
            f"a proxy in hand is a model for sequence classification, not {type(model).__name__}: load it with "
            "AutoModelForSequenceClassification. (A language model is explained as amplify.TransformersModel)"
        )
    if not getattr(tokenizer, "is_fast", False):
        raise InputError("this tokenizer gives no character offsets; a proxy needs a fast one")
    wanted = tuple(labels) if labels is not None else tuple(str(own[i]) for i in sorted(own))
    if len(wanted) != len(own) or len(set(wanted)) != len(wanted):
        raise InputError(f"the classifier has {len(own)} columns: give as many different labels, not {list(wanted)}")
    called = name or Path(str(getattr(model.config, "_name_or_path", "") or type(model).__name__)).name
    card: dict[str, Any] = {
        "body": {"name": called},
        "task": "inputs in hand",
        "task_fingerprint": "",
        "columns": columns_of(wanted, own) or list(range(len(wanted))),
    }
    made = f"{fingerprint(model)} {wanted} {card['columns']}"
    identity = hashlib.sha256(made.encode()).hexdigest()
    proxy = Proxy(Path(called), "encoder", wanted, True, identity, model.eval(), tokenizer, card)
    card["padding"] = _padding(proxy)
    if proxy.left and model.config.pad_token_id is None:
        raise InputError(
            "the classifier has no padding token: set model.config.pad_token_id, e.g. to the end token's id"
        )
    return proxy


def _padding(proxy: Proxy) -> str:
    """The side on which rows may be padded without changing a score: tried on the model, not believed."""
    import torch

    short, long = [proxy.tokenizer(text)["input_ids"] for text in ("a b", "a b " * 8)]
    with lock_of(proxy.module), torch.inference_mode():
        takes = "position_ids" in inspect.signature(proxy.module.forward).parameters
        embeddings = proxy.module.get_input_embeddings()
        device, shift = embeddings.weight.device, len(long) - len(short)
        alone = proxy.module(inputs_embeds=embeddings(torch.tensor([short], device=device))).logits
        for side in ("right", "left"):
            gap = (0, shift) if side == "right" else (shift, 0)
            ids = torch.nn.functional.pad(torch.tensor([short], device=device), gap, value=short[0])
            mask = torch.nn.functional.pad(torch.ones(1, len(short), dtype=torch.int64, device=device), gap)
            extra = {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)} if side == "left" and takes else {}
            padded = proxy.module(inputs_embeds=embeddings(ids), attention_mask=mask, **extra).logits
            if torch.allclose(alone, padded, rtol=0, atol=1e-3 if alone.dtype == torch.float32 else 0.1):
                return side
    raise InputError(
        f"{type(proxy.module).__name__} gives other scores where its input is padded, so it cannot be used"
    )

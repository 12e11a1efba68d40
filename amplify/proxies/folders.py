"""Folders of proxies and of the bodies that they are made of: read, written and listed."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amplify import models, resources
from amplify.errors import AmplifyError, DataError, InputError, extras
from amplify.proxies.proxy import Kind, Proxy

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FORMAT = 1
CARD = "amplify_proxy.json"


@extras()
def load_proxy(folder: str | Path) -> Proxy:
    """A proxy that `train_proxy` wrote.

    Raises:
        DataError: no proxy there, or a broken one.
    """
    folder = Path(folder)
    try:
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{folder} is no proxy folder ({CARD} cannot be read: {error}); make one with amplify.train_proxy"
        ) from error
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        raise DataError(f"{folder} holds a proxy of another format; train it again with this version of amplify")
    labels = tuple(card["labels"])
    try:
        with models.quiet():
            model, tokenizer, _ = load_body(folder, card["kind"], labels)
    except AmplifyError:
        raise
    except Exception as error:  # transformers raises many kinds on a damaged folder
        raise DataError(f"the proxy in {folder} is damaged ({error}): delete the folder and train it again") from error
    return Proxy(folder, card["kind"], labels, card["trained"], card["identity"], model, tokenizer, card)


def list_proxies() -> list[dict[str, Any]]:
    """The cards of the proxies in the cache, each with its "folder", by name of the folder."""
    root = resources.home() / "proxies"
    cards = []
    for path in sorted(root.glob(f"*/{CARD}")) if root.is_dir() else []:
        try:
            cards.append({**json.loads(path.read_text(encoding="utf-8")), "folder": str(path.parent)})
        except (OSError, ValueError):
            continue  # being written or replaced by another process
    return cards


def kind_of(folder: Path) -> Kind:
    """What a model in a folder can be, by its configuration.

    Raises:
        DataError: no configuration there.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{folder} is no model folder: config.json cannot be read ({error})") from error
    names = config.get("architectures") or []
    return "causal" if any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in names) else "encoder"


@extras()
def load_body(
    folder: Path, kind: Kind, labels: tuple[str, ...]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, list[int] | None]:
    """Load model and tokenizer, and say which column of its head is which label (None: the head has no weights)."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    if not tokenizer.is_fast:
        raise InputError(f"the tokenizer in {folder} gives no character offsets; a proxy needs a fast tokenizer")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.truncation_side = "right"
    columns: list[int] | None = list(range(len(labels) or 1))
    if kind == "causal":
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    else:
        own = AutoConfig.from_pretrained(folder).id2label
        model, info = AutoModelForSequenceClassification.from_pretrained(
            folder,
            num_labels=len(labels) or 1,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
        places = {str(name).casefold(): int(column) for column, name in own.items()}
        names = [label.casefold() for label in labels]
        if info["missing_keys"] or info["mismatched_keys"] or not set(names) <= set(places):
            columns = None
        elif labels:
            columns = [places[name] for name in names]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return model.to(device).eval().requires_grad_(False), tokenizer, columns


def holds(folder: Path, identity: str) -> bool:
    """Whether a folder holds the whole proxy of this identity."""
    try:
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(card.get("identity") == identity and any(folder.glob("*.safetensors")))


def write(proxy: Proxy, card: Mapping[str, Any], folder: Path) -> None:
    """Write beside the target and rename, so that no one ever sees half a proxy."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            if proxy.labels and proxy.kind == "encoder":
                proxy.model.config.id2label = dict(enumerate(proxy.labels))
                proxy.model.config.label2id = {label: i for i, label in enumerate(proxy.labels)}
            with models.quiet():
                proxy.model.save_pretrained(work)
            proxy.tokenizer.save_pretrained(work)
            (work / CARD).write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            work.chmod(0o755)
            if folder.exists() and not holds(folder, card["identity"]):
                shutil.rmtree(folder)  # an empty folder, or the remains of a damaged one
            try:
                work.rename(folder)
            except OSError:
                if not holds(folder, card["identity"]):  # else another process made the same proxy first
                    raise
        finally:
            shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise DataError(f"the proxy cannot be written to {folder}: {error}") from error

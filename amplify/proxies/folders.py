"""Folders of proxies and of the bodies that they are made of: read, written and listed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from amplify import codec, files, hub, pretrained, resources, weights
from amplify.errors import DataError, InputError, extras
from amplify.proxies.proxy import Kind, Proxy

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FORMAT = 1
CARD = "amplify_proxy.json"


@extras()
def load_proxy(folder: str | Path, *, device: str | None = None) -> Proxy:
    """A proxy that `train_proxy` wrote.

    Args:
        folder: where it lies.
        device: "cpu", "cuda", "cuda:1" …; None takes a GPU where there is one.

    Raises:
        DataError: no proxy there, or a broken one.
    """
    folder = Path(folder)
    card = read_card(folder)
    labels = tuple(card["labels"])
    place = pretrained.device_of(device)
    try:
        weights.check_folder(folder, "its model")
        if card.get("weights") not in (None, hub.identity(folder)["sha256"]):
            raise DataError(f"its weights are not those that its {CARD} was written for")
        model, tokenizer, _ = load_body(folder, card["kind"], labels, place)
    except DataError as error:
        raise DataError(f"the proxy in {folder} is damaged ({error}): delete the folder and train it again") from error
    return Proxy(folder, card["kind"], labels, card["trained"], card["identity"], model, tokenizer, card)


class _Body(TypedDict, total=False):
    name: str


class _Trained(TypedDict):
    epochs: int


class _Training(_Trained, total=False):
    seed: int
    lora: bool


class _Validation(TypedDict, total=False):
    examples: int
    accuracy: float | None


class _Card(TypedDict):
    """What of a card other code relies on."""

    kind: Kind
    task: str
    task_fingerprint: str
    labels: list[str]
    instruction: str
    input_name: str
    template: str
    body: _Body
    training: _Training
    columns: list[int]
    identity: str
    trained: bool
    validation: _Validation


def read_card(folder: Path) -> dict[str, Any]:
    """What a proxy's folder says of it.

    Raises:
        DataError: there is no card, or not one that this version of amplify wrote; says where.
    """
    where = files.shown(folder)
    if not os.path.exists(folder / CARD):  # no, too, for a name that no file can have
        raise DataError(f"{where} is no proxy folder (it has no {CARD}); make one with amplify.train_proxy")
    try:
        card = files.read_json(folder / CARD, "the card of a proxy")
    except DataError as error:
        raise DataError(f"{error}: delete the folder and train the proxy again") from error
    if card.get("format") != FORMAT:
        raise DataError(f"{where} holds a proxy of another format; train it again with this version of amplify")
    try:
        codec.decode(_Card, card)
        labels, columns = card["labels"], card["columns"]
        if len(set(labels)) < len(labels):
            raise DataError("labels are not different texts")
        if sorted(columns) != list(range(len(labels) or 1)):
            raise DataError(f"columns are {columns!r:.60}")
    except DataError as error:
        raise DataError(
            f"the {CARD} in {where} is broken ({error}): delete the folder and train the proxy again"
        ) from error
    return card


def list_proxies() -> list[dict[str, Any]]:
    """The cards of the proxies in the cache, each with its "folder", by name of the folder.

    One that cannot be read stands there as its "folder" and what is "broken".
    """
    root = resources.home() / "proxies"
    cards = []
    for path in sorted(root.glob(f"*/{CARD}")) if root.is_dir() else []:
        try:
            cards.append({**read_card(path.parent), "folder": files.shown(path.parent)})
        except DataError as error:
            if path.is_file():  # else it is being replaced by another process
                cards.append({"folder": files.shown(path.parent), "broken": str(error)})
    return cards


def kind_of(folder: Path) -> Kind:
    """What a model in a folder can be, by its configuration.

    Raises:
        DataError: no configuration there.
    """
    config = files.read_json(folder / "config.json", "the configuration of a model")
    names = config.get("architectures") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{files.shown(folder)} is no model folder: architectures in config.json is no list of names")
    return "causal" if any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in names) else "encoder"


@extras()
def load_body(
    folder: Path, kind: Kind, labels: tuple[str, ...], place: torch.device
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, list[int] | None]:
    """Load model and tokenizer, and say which column of its head is which label (None: the head has no weights)."""
    import torch
    from transformers import AutoModelForSequenceClassification

    name = str(folder)
    config = pretrained.config_of(folder, name)
    pretrained.refuse_encoder_decoder(config, name, "encoders with a classification head and decoder-only models")
    tokenizer = pretrained.tokenizer_of(folder, name)
    if not tokenizer.is_fast:
        raise InputError(f"the tokenizer in {folder} gives no character offsets; a proxy needs a fast tokenizer")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.truncation_side = "right"
    columns: list[int] | None = list(range(len(labels) or 1))
    if kind == "causal":
        model = pretrained.causal_lm(folder, name, dtype=torch.float32)
    else:
        model, info = pretrained.model_of(
            AutoModelForSequenceClassification,
            folder,
            name,
            "a classifier",
            num_labels=len(labels) or 1,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
        if info["missing_keys"] or info["mismatched_keys"]:
            columns = None
        elif labels:
            columns = columns_of(labels, config.id2label)
    return model.to(place).eval().requires_grad_(False), tokenizer, columns


def columns_of(labels: Sequence[str], names: Mapping[Any, Any]) -> list[int] | None:
    """Which column of a head stands for each label, by the head's own names for its columns; None where none fits.

    Case is ignored where no two names differ by it alone.
    """
    for same in (str, lambda name: str(name).casefold()):
        places = {same(name): int(column) for column, name in names.items()}
        wanted = [same(label) for label in labels]
        if len(places) == len(names) and len(set(wanted)) == len(wanted) and set(wanted) <= set(places):
            return [places[name] for name in wanted]
    return None


def holds(folder: Path, identity: str) -> bool:
    """Whether a folder holds the whole proxy of this identity."""
    try:
        card = read_card(folder)
    except DataError:
        return False
    return bool(card["identity"] == identity and any(folder.glob("*.safetensors")))


def write(proxy: Proxy, card: Mapping[str, Any], folder: Path) -> None:
    """Write beside the target and rename, so that no one ever sees half a proxy.

    Raises:
        DataError: the disk is full or read-only; nothing half-written is left.
    """
    from safetensors import SafetensorError

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with files.draft(folder, folder=True) as work:
            if proxy.labels and proxy.kind == "encoder":
                proxy.module.config.id2label = dict(enumerate(proxy.labels))
                proxy.module.config.label2id = {label: i for i, label in enumerate(proxy.labels)}
            with hub.quiet():
                proxy.module.save_pretrained(work)
            proxy.tokenizer.save_pretrained(work)
            files.write_json(work / CARD, {**card, "weights": hub.identity(work)["sha256"]})
            if folder.exists() and not holds(folder, card["identity"]):
                shutil.rmtree(folder)  # an empty folder, or the remains of a damaged one
            try:
                work.rename(folder)
            except OSError:
                if not holds(folder, card["identity"]):  # else another process made the same proxy first
                    raise
    except (OSError, SafetensorError) as error:  # weights are written by a library with errors of its own
        raise DataError(f"the proxy cannot be written to {folder}: {error}") from error

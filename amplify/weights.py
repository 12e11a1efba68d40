"""Whether the weights in a model folder are whole, by their headers alone: before anything reads them for minutes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from amplify.errors import DataError

INDEX = "model.safetensors.index.json"
POINTER = b"version https://git-lfs"
ADAPTER = "adapter_config.json"
MOST_HEADER = 100_000_000  # bytes, the format's own limit


def check_folder(folder: Path, name: str, *, adapters: bool = False) -> None:
    """Refuse a folder that is no model, or not all of one.

    Args:
        folder: with `config.json` and safetensors weights.
        name: what the user called it.
        adapters: a PEFT adapter will do, too.

    Raises:
        DataError: says what is missing or broken, and what to do about it.
    """
    if not (folder / "config.json").is_file() and (folder / ADAPTER).is_file():
        base = base_of(folder, name)
        if not adapters:
            raise DataError(
                f"{name} is a PEFT adapter of {base}, which only a transformers: model opens. For anything else merge "
                "it into its base model first (merge_and_unload, then save_pretrained)"
            )
    elif not (folder / "config.json").is_file():
        raise DataError(f"{name} is not a model folder: {folder} has no config.json")
    elif not isinstance(_read(folder / "config.json", name), dict):
        raise DataError(f"{name} is not a model folder: its config.json is no JSON object")
    for path in sorted(folder.glob("*.json")):
        _refuse_pointer(path, name)
    for path in _shards(folder, name):
        _check_shard(path, name)


def base_of(folder: Path, name: str) -> str:
    """The model that a PEFT adapter belongs to, as its configuration calls it.

    Raises:
        DataError: it names none.
    """
    config = _read(folder / ADAPTER, name)
    base = config.get("base_model_name_or_path") if isinstance(config, dict) else None
    if not isinstance(base, str) or not base:
        raise DataError(f"{name} is broken: its {ADAPTER} does not name the model that it belongs to")
    return base


def _shards(folder: Path, name: str) -> list[Path]:
    """The weight files: those of the index, where there is one."""
    if not (folder / INDEX).is_file():
        found = sorted(folder.glob("*.safetensors"))
        if not found:
            raise DataError(f"{name} has no safetensors weights in {folder} (pickled weights are not read)")
        return found
    index = _read(folder / INDEX, name)
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not places or not all(isinstance(p, str) for p in places.values()):
        raise DataError(f"{name} is broken: {INDEX} does not say which file holds which weight; fetch the model again")
    shards = sorted(set(places.values()))
    if strange := [s for s in shards if Path(s).name != s]:
        raise DataError(f"{name} is broken: {INDEX} names {strange[0]!r}, which is no file of the folder itself")
    if missing := [s for s in shards if not (folder / s).is_file()]:
        raise DataError(f"{name} is incomplete: {folder} lacks {', '.join(missing)}")
    return [folder / s for s in shards]


def _check_shard(path: Path, name: str) -> None:
    """A safetensors file: eight bytes that give the header's length, the header in JSON, the numbers."""
    _refuse_pointer(path, name)
    size = path.stat().st_size
    broken = f"{name} is broken: {path.name} is no whole safetensors file"
    again = "it was cut short, or is another kind of file; fetch it again"
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(MOST_HEADER, size - 8):
            raise DataError(f"{broken} ({size:,} bytes, and no header): {again}")
        try:
            header: Any = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"]
            wanted = 8 + length + max(ends, default=0)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
            raise DataError(f"{broken} (its header cannot be read): {again}") from error
    if size != wanted:
        raise DataError(f"{broken} ({size:,} bytes, and its header says {wanted:,}): {again}")


def _refuse_pointer(path: Path, name: str) -> None:
    with path.open("rb") as file:
        if file.read(len(POINTER)) == POINTER:
            raise DataError(
                f"{name} is incomplete: {path.name} is a pointer that git leaves where Git LFS is not installed. Run "
                f"`git lfs install && git lfs pull` in {path.parent}"
            )


def _read(path: Path, name: str) -> Any:
    _refuse_pointer(path, name)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{name} is broken: {path.name} cannot be read ({error}); fetch the model again") from error

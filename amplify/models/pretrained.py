"""Models and tokenizers of transformers, out of folders: on a device there is, with errors that say what is wrong.

Each is in memory once: who opens the same model with the same options shares it.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amplify import hub
from amplify.errors import EXTRAS, AmplifyError, CapabilityError, DataError, InputError, ModelError, extras
from amplify.locks import lock_of

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase


@extras()
def device_of(name: str | None) -> torch.device:
    """A device that can be computed on.

    Args:
        name: "cpu", "cuda", "cuda:1", "mps" …; None takes a GPU where there is one.

    Raises:
        InputError: no such device, or not on this machine or with this build of torch.
    """
    import torch

    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise InputError(f"device is cpu, cuda, cuda:1 and the like, not {name!r}") from error
    if device.type == "meta":
        raise InputError("device 'meta' holds shapes and no numbers: use cpu, or leave device out")
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        raise InputError(
            f"device is {name!r}, and this machine (or this build of torch) has none: use cpu, or leave device out"
        ) from error
    return device


def config_of(folder: Path, name: str, *, trust: bool = False) -> PreTrainedConfig:
    """A model's configuration.

    Raises:
        DataError: it cannot be read, or the model brings code of its own.
    """
    from transformers import AutoConfig

    with _readable(folder, name, "a model"):
        return AutoConfig.from_pretrained(folder, trust_remote_code=trust)


def tokenizer_of(folder: Path, name: str, *, trust: bool = False) -> PreTrainedTokenizerBase:
    """A model's tokenizer.

    Raises:
        DataError: it cannot be read, or brings code of its own.
    """
    from transformers import AutoTokenizer

    with _readable(folder, name, "a tokenizer"):
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)


def model_of(auto: Any, folder: Path, name: str, what: str, **options: Any) -> Any:
    """What `auto.from_pretrained(folder, **options)` gives, in evaluation mode and without gradients.

    Args:
        auto: one of transformers' auto classes.
        folder: where the model is.
        name: what the user called it.
        what: what it is to be, for errors.
        **options: of `from_pretrained`.

    Raises:
        DataError: it cannot be read as that.
        ModelError: there is no memory for it.
    """
    with hub.quiet(), _readable(folder, name, what):
        found = auto.from_pretrained(folder, **{"trust_remote_code": False, **options})
        _check_weights(found[0] if isinstance(found, tuple) else found, name)
        return found


def _check_weights(module: torch.nn.Module, name: str) -> None:
    """Refuse weights that are no numbers: some kernels give zeros where they meet one, and nothing else tells."""
    import torch

    for key, tensor in module.state_dict().items():
        plain = tensor.dtype in (torch.float32, torch.bfloat16, torch.float16) and tensor.numel() and not tensor.is_meta
        if plain and not all(end.isfinite() for end in torch.aminmax(tensor)):
            raise DataError(
                f"{name} holds weights that are no numbers ({key}): check the weights, or try another dtype"
            )


def causal_lm(folder: Path, name: str, **options: Any) -> Any:
    """A decoder-only language model (see `model_of`).

    Raises:
        DataError: the folder holds something else.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM

    trust = bool(options.get("trust_remote_code"))
    config = config_of(folder, name, trust=trust)
    refuse_encoder_decoder(config, name, "decoder-only language models (Llama, Qwen, Gemma, GPT-2 …)")
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and not trust:
        raise DataError(
            f"{name} ({config.model_type}) is no causal language model. An encoder can be the body of a proxy or a "
            "retriever"
        )
    model, info = model_of(
        AutoModelForCausalLM, folder, name, "a causal language model", output_loading_info=True, **options
    )
    if missing := sorted(info["missing_keys"]):
        raise DataError(
            f"{name} cannot be opened as a causal language model: its weights lack {_listed(missing)}. (An encoder can "
            "be the body of a proxy or a retriever)"
        )
    return model


def refuse_encoder_decoder(config: Any, name: str, instead: str) -> None:
    """Refuse T5, BART and their like.

    Raises:
        DataError: says what can be taken.
    """
    if config.is_encoder_decoder:
        raise DataError(
            f"{name} ({config.model_type}) is an encoder-decoder, and here go {instead}: take one of these, or "
            "reach it through a server (openai:MODEL@URL) where text alone is enough"
        )


def check_tokens(ids: Sequence[Sequence[int]], tokenizer: Any, model: Any) -> None:
    """Refuse tokens that a model has no embedding for.

    Raises:
        InputError: names the first.
    """
    size = model.get_input_embeddings().weight.shape[0]
    highest = max((max(some, default=0) for some in ids), default=0)
    if highest >= size:
        raise InputError(
            f"token {tokenizer.convert_ids_to_tokens(highest)!r} ({highest}) lies beyond the model's {size} "
            "embeddings: the tokenizer is another model's, or got tokens that the model was never resized for"
        )


@contextmanager
def _readable(folder: Path, name: str, what: str) -> Iterator[None]:
    """Whatever transformers raises on a folder, as one error of ours."""
    try:
        yield
    except AmplifyError:
        raise
    except Exception as error:  # transformers raises many kinds on a damaged folder
        if type(error).__name__ == "OutOfMemoryError":  # torch's
            raise ModelError(f"there is no memory for {name}: take a smaller one, or another device") from error
        if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] in EXTRAS:
            raise
        if "trust_remote_code" in str(error):
            files = _listed([path.name for path in sorted(folder.glob("*.py"))])
            raise DataError(
                f"{name} brings Python code of its own ({files}), which is not run. If you trust it: "
                "trust_remote_code=True (-B trust_remote_code=true), for a language model"
            ) from error
        said = " ".join(str(error).split())
        raise DataError(f"{name} cannot be opened as {what}: {said[:300]}{'…' * (len(said) > 300)}") from error


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def auto_dtype(device: torch.device) -> str:
    """ "bfloat16" where a device computes it natively, else "float32"."""
    import torch

    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    if device.type == "cpu":
        known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
        old = getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()
        return "bfloat16" if old or any(known.get(k) for k in ("avx512_bf16", "amx_bf16", "bf16")) else "float32"
    return "float32"


def language_model(folder: Path, name: str, device: torch.device, **options: Any) -> tuple[Any, Any]:
    """A causal language model out of its folder, or out of that of a PEFT adapter; and its tokenizer.

    Args:
        folder: checked.
        name: what the user called it.
        device: where it goes, unless `options` have a device_map.
        **options: of `from_pretrained`.

    Raises:
        DataError: it cannot be read.
        ModelError: there is no memory for it.
    """
    trust = bool(options.get("trust_remote_code"))
    given = {key: value for key, value in options.items() if value is not None}
    if (folder / hub.ADAPTER).is_file() and not (folder / "config.json").is_file():
        return _adapted(folder, name, device, **options)
    config = config_of(folder, name, trust=trust)
    if "quantization_config" in given or getattr(config, "quantization_config", None):
        given.setdefault("device_map", {"": str(device)})  # such a model cannot be moved
    module = causal_lm(folder, name, **given)
    if "device_map" not in given:
        with _readable(folder, name, "a causal language model"):
            module = module.to(device)
    return module.eval().requires_grad_(False), tokenizer_of(folder, name, trust=trust)


def _adapted(folder: Path, name: str, device: torch.device, **options: Any) -> tuple[Any, Any]:
    from peft import PeftModel

    base = hub.resolve(hub.base_of(folder, name))
    module, tokenizer = language_model(base, str(base), device, **options)
    with hub.quiet(), _readable(folder, name, "a PEFT adapter"):
        module = usable(PeftModel.from_pretrained(module, folder, is_trainable=False))
    if any((folder / file).is_file() for file in ("tokenizer.json", "tokenizer_config.json")):
        tokenizer = tokenizer_of(folder, name, trust=bool(options.get("trust_remote_code")))
    return module.eval().requires_grad_(False), tokenizer


def usable(module: Any) -> Any:
    """A module in hand, as it is run: in evaluation mode, and of a PEFT model the model inside.

    Raises:
        InputError: it is no decoder-only language model of transformers, or its adapter lies outside of the model.
    """
    if hasattr(module, "get_base_model") and hasattr(module, "peft_config"):
        if any(getattr(config, "is_prompt_learning", False) for config in module.peft_config.values()):
            raise InputError(
                "adapters that put learned tokens in front of a prompt cannot be used; LoRA and its like can"
            )
        module = module.get_base_model()
    if not hasattr(module, "config") or not hasattr(module, "get_input_embeddings"):
        raise InputError(f"a language model of transformers is needed, not {type(module).__name__}")
    if getattr(module.config, "is_encoder_decoder", False):
        raise InputError(f"{type(module).__name__} is an encoder-decoder: a decoder-only language model is needed")
    if module.get_output_embeddings() is None:
        raise InputError(f"{type(module).__name__} has no language model head: load it with AutoModelForCausalLM")
    return module.eval()


def input_device(module: Any) -> torch.device:
    """Where a module's inputs go: where its embeddings are, or run if they wait elsewhere."""
    table = module.get_input_embeddings()
    if table.weight.device.type == "meta" and hasattr(table, "_hf_hook"):
        import torch

        return torch.device(table._hf_hook.execution_device)
    device: torch.device = table.weight.device
    return device


@contextmanager
def computed_by(config: Any, name: str) -> Iterator[None]:
    """The layers of a model compute attention by another function in the block, e.g. a steered one.

    `set_attn_implementation` of transformers would also look for kernels and change every part of the model, and
    takes longer than a pass; so the field behind it is set, and whether that has an effect is looked at.

    Args:
        config: of the decoder.
        name: under which the function is registered with transformers.

    Raises:
        CapabilityError: this version of transformers goes by something else; nothing may then be computed.
    """
    import transformers

    before = config._attn_implementation
    config._attn_implementation_internal = name
    try:
        if config._attn_implementation != name:
            raise CapabilityError(
                f"attention cannot be replaced in transformers {transformers.__version__}: install one that amplify "
                "was made for (see its dependencies)"
            )
        yield
    finally:
        config._attn_implementation_internal = before


def makeup(module: Any) -> dict[str, Any]:
    """What else there is to say of a module: how it is quantised, and where its parts are."""
    found: dict[str, Any] = {}
    if quantised := getattr(module.config, "quantization_config", None):
        kind = quantised.get("quant_method") if isinstance(quantised, dict) else quantised.quant_method
        found["quantization"] = str(getattr(kind, "value", kind))
    if len(set(map(str, (spread := getattr(module, "hf_device_map", {})).values()))) > 1:
        found["device_map"] = {part: str(place) for part, place in spread.items()}
    return found


class Closed:
    """Stands where a module was until its holder was closed; whatever is asked of it is refused."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __getattr__(self, name: str) -> Any:
        raise ModelError(f"{self._what} is closed: open it again")


SAMPLED = 65_536  # numbers of each weight that a fingerprint looks at, evenly spread


def fingerprint(module: Any) -> str:
    """A hash of a module's weights, of large ones by a sample: another model in hand has another."""
    import torch

    digest = hashlib.sha256()
    for name, weight in sorted(module.state_dict().items()):
        digest.update(f"{name} {getattr(weight, 'dtype', '')} {tuple(getattr(weight, 'shape', ()))}\n".encode())
        if isinstance(weight, torch.Tensor) and weight.device.type != "meta" and not weight.is_quantized:
            flat = weight.detach().reshape(-1)
            some = flat[:: max(1, len(flat) // SAMPLED)].contiguous().cpu()
            digest.update(some.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def stamp(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Sizes and times of a folder's files: other files, another model."""
    found = sorted(path for path in folder.iterdir() if path.suffix in (".json", ".safetensors", ".py"))
    return tuple((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in found)


class Loaded:
    """A module and its tokenizer, for all who hold them.

    Attributes:
        module, tokenizer: None when the last holder has let go.
        folder: where they came from; None for a model that was in hand.
        packed: its packed forward pass, once it was asked for.
        holders: how many there are.
    """

    def __init__(self, module: Any, tokenizer: Any, folder: Path | None = None) -> None:
        self.module, self.tokenizer, self.folder = module, tokenizer, folder
        self.packed: Any = None
        self.key: Hashable = None
        self.holders = 0

    def release(self) -> None:
        """One holder less; the last one frees the model."""
        with _guard:
            self.holders -= 1
            if self.holders > 0 or self.module is None:
                return
            _shared.pop(self.key, None)
        with lock_of(self.module):  # whoever is in the middle of a call finishes it
            self.module = self.packed = None


_shared: dict[Hashable, Loaded] = {}
_loading = threading.RLock()  # who comes second waits for the first's
_guard = threading.RLock()  # for counts alone: the garbage collector may let go of a model at any time


def shared(key: Hashable, load: Callable[[], Loaded]) -> Loaded:
    """The model that is open under a key, else a new one; counted for one holder more."""
    with _loading:
        with _guard:
            if found := _shared.get(key):
                found.holders += 1
                return found
        new = load()
        with _guard:
            new.key, new.holders = key, 1
            _shared[key] = new
        return new


def batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Indices grouped by similar length, at most `batch_tokens` padded tokens a group (one sequence at least)."""
    group: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if group and (len(group) + 1) * lengths[i] > batch_tokens:
            yield group
            group = []
        group.append(i)
    if group:
        yield group

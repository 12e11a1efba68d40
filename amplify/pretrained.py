"""Models and tokenizers of transformers, out of folders: on a device there is, with errors that say what is wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amplify import models
from amplify.errors import EXTRAS, AmplifyError, BackendError, DataError, InputError, extras

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


def config_of(folder: Path, name: str) -> PreTrainedConfig:
    """A model's configuration.

    Raises:
        DataError: it cannot be read, or the model brings code of its own.
    """
    from transformers import AutoConfig

    with _readable(folder, name, "a model"):
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)


def tokenizer_of(folder: Path, name: str) -> PreTrainedTokenizerBase:
    """A model's tokenizer.

    Raises:
        DataError: it cannot be read, or brings code of its own.
    """
    from transformers import AutoTokenizer

    with _readable(folder, name, "a tokenizer"):
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


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
        BackendError: there is no memory for it.
    """
    with models.quiet(), _readable(folder, name, what):
        return auto.from_pretrained(folder, trust_remote_code=False, **options)


def causal_lm(folder: Path, name: str, **options: Any) -> Any:
    """A decoder-only language model (see `model_of`).

    Raises:
        DataError: the folder holds something else.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM

    config = config_of(folder, name)
    refuse_encoder_decoder(config, name, "decoder-only language models (Llama, Qwen, Gemma, GPT-2 …)")
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
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
    import torch

    try:
        yield
    except AmplifyError:
        raise
    except torch.OutOfMemoryError as error:
        raise BackendError(f"there is no memory for {name}: take a smaller one, or another device") from error
    except Exception as error:  # transformers raises many kinds on a damaged folder
        if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] in EXTRAS:
            raise
        if "trust_remote_code" in str(error):
            files = _listed([path.name for path in sorted(folder.glob("*.py"))])
            raise DataError(
                f"{name} brings Python code of its own ({files}), which is not run. Serve it with an "
                "engine that you let run it, and reach it as openai:MODEL@URL"
            ) from error
        said = " ".join(str(error).split())
        raise DataError(f"{name} cannot be opened as {what}: {said[:300]}{'…' * (len(said) > 300)}") from error


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")

"""Steering of one request, as plain JSON that travels to a vLLM engine beside token ids.

It holds token spans with their factors and the head set, nothing of text, so that the client tokenises and the engine
never guesses. No torch and no vLLM here: clients, servers and engine processes share it.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, get_args

import numpy as np
import numpy.typing as npt

from amplify.errors import CapabilityError, DataError, InputError
from amplify.steering.formula import TokenSpan, generated_log_weight, key_log_weights, token_spans
from amplify.steering.spec import MOST_GAIN, Phase, Steering, head_sets, is_number, resolve
from amplify.types import STRONGEST

KEY = "amplify_steering"
"""Name in `SamplingParams.extra_args` (HTTP: `vllm_xargs`), and of the switch in `additional_config`."""

PROBE = "probe"
"""A value that every engine with the plugin refuses, and that one without it ignores: how a client tells them apart."""

if TYPE_CHECKING:
    from amplify.models.chat import Rendered

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]

_KEYS = ("heads", "spans", "prompt", "exempt_generated", "keep_attention_sink", "phase", "edit")
_OPTIONS = ("layers", "projections", "rotation")


@dataclass(frozen=True)
class KeyEdit:
    """How a request's marked keys are edited (mode "seka").

    Attributes:
        projections: `digest_of` those that the engine must have been started with.
        positive_gain, negative_gain: as of a `Steering`.
    """

    projections: str
    positive_gain: float
    negative_gain: float


@functools.lru_cache(maxsize=32)
def digest_of(path: str, rotation: int | None) -> str:
    """What tells projections apart: their file's content, and the seed that turns them, if one does.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path} holds no key projections: {error}") from error
    return hashlib.sha256(content + (b"" if rotation is None else f" turned {rotation}".encode())).hexdigest()[:32]


@dataclass(frozen=True)
class Payload:
    """What an engine is told about one request.

    Attributes:
        spans: emphasised tokens of the prompt, ascending and disjoint, with their factors.
        prompt: tokens of the prompt; those behind it are generated, or scored.
        heads, exempt_generated, keep_attention_sink, phase: as of a `Steering`, whose strength is in the spans already.
        edit: instead of all these: the spans' keys are edited, and attention is left as it is.
    """

    spans: tuple[TokenSpan, ...]
    prompt: int
    heads: Mapping[int, tuple[int, ...]] | None = None
    exempt_generated: bool = False
    keep_attention_sink: bool = False
    phase: Phase = "both"
    edit: KeyEdit | None = None
    dynamic: ClassVar[bool] = False  # no engine finds factors by itself

    @classmethod
    def of(cls, steering: Steering, spans: Sequence[TokenSpan], prompt: int) -> Payload:
        """What a Steering does to a prompt with these spans."""
        if steering.edits_keys:
            edit = KeyEdit(
                digest_of(steering.projections, steering.rotation), steering.positive_gain, steering.negative_gain
            )
            return cls(tuple(spans), prompt, edit=edit)
        return cls(
            tuple(spans),
            prompt,
            steering.heads,
            steering.exempt_generated,
            steering.keep_attention_sink,
            steering.phase,
        )

    def to_json(self) -> str:
        """One line."""
        data: dict[str, Any] = {
            "spans": [[s.start, s.end, s.weight] for s in self.spans],
            "prompt": self.prompt,
            "heads": None if self.heads is None else {str(k): list(v) for k, v in self.heads.items()},
        }
        for name in ("exempt_generated", "keep_attention_sink"):
            if getattr(self, name):
                data[name] = True
        if self.phase != "both":
            data["phase"] = self.phase
        if self.edit is not None:
            data["edit"] = dataclasses.asdict(self.edit)
        return json.dumps(data, sort_keys=True)

    @functools.cached_property
    def _prompt_log_weights(self) -> Floats:
        length = max(self.prompt, self.spans[-1].end)
        return np.array(key_log_weights(self.spans, self.prompt, length, self), np.float32)

    @functools.cached_property
    def _tail(self) -> float:
        return generated_log_weight(self.spans, self)

    def key_log_weights(self, start: int, end: int) -> Floats:
        """log w of the keys of tokens [start, end)."""
        out = np.full(end - start, self._tail, np.float32)
        known = self._prompt_log_weights[start:end]
        out[: len(known)] = known
        return out

    def gate(self, start: int, end: int) -> Bools:
        """Which of the query rows [start, end) are steered."""
        at = np.arange(start, end)
        if self.phase == "both":
            return np.ones(len(at), np.bool_)
        return at < self.prompt if self.phase == "prefill" else at >= self.prompt

    def gains(self, start: int, end: int) -> Floats:
        """What the two projections of the keys of tokens [start, end) are added with, [tokens, 2]."""
        out = np.zeros((end - start, 2), np.float32)
        if self.edit is not None:
            for span in self.spans:
                out[max(span.start - start, 0) : max(span.end - start, 0)] = (
                    self.edit.positive_gain / 2, self.edit.negative_gain / 2,
                )  # fmt: skip
        return out

    @property
    def first(self) -> int:
        """The first token whose attention differs from a plain request's: keys and values before it can be shared."""
        if self.keep_attention_sink:
            return 0
        start = self.spans[0].start
        return min(start, self.prompt) if self.exempt_generated else start

    @functools.cached_property
    def digest(self) -> str:
        """Equal for requests whose keys and values are equal where their tokens are."""
        bounded = self.exempt_generated or self.phase != "both"
        what = json.loads(self.to_json())
        if not bounded:
            del what["prompt"]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()

    def check(self, layers: int, heads: int, tokens: int) -> None:
        """Make sure that it fits a model and a request.

        Args:
            layers: of the model.
            heads: query heads in each.
            tokens: of the request as it was sent.

        Raises:
            InputError: what does not fit.
        """
        resolve(self.heads, layers, heads)
        if self.prompt > tokens:
            raise InputError(f"steering speaks of a prompt of {self.prompt} tokens; the request has {tokens}")
        if self.spans[-1].end > tokens:
            raise InputError(f"a span ends at token {self.spans[-1].end}, outside the request's {tokens} tokens")


def payload(steering: Steering, spans: Sequence[TokenSpan], prompt: int) -> str | None:
    """The JSON to send with a request, or None where its prompt marks nothing.

    Raises:
        CapabilityError: a mode that engines do not offer.
    """
    if steering.dynamic:
        raise CapabilityError(
            f"mode {steering.mode!r} needs each row's attention mass before the factor is known, which takes a second "
            "attention pass that vLLM does not offer. Use a transformers: model, or mode 'pasta' or 'instaboost'."
        )
    return Payload.of(steering, spans, prompt).to_json() if spans else None


def payloads(
    steering: Steering | None, prompts: Sequence[tuple[Rendered, Sequence[tuple[int, int]], int]]
) -> list[str | None]:
    """What to send with each request of a batch.

    Args:
        steering: of the call; None for a plain one.
        prompts: the rendered prompt, offsets of the request's tokens, and how many of them are the prompt's.

    Raises:
        InputError: a span that holds no token, or spans that contradict each other.
        CapabilityError: a mode that engines do not offer.
    """
    if steering is None:
        return [None] * len(prompts)
    return [
        payload(steering, token_spans(offsets, rendered.emphasis, steering, rendered.text), count)
        for rendered, offsets, count in prompts
    ]


@functools.lru_cache(maxsize=4096)
def parse(text: str) -> Payload:
    """Read what `payload` wrote.

    Raises:
        InputError: it is not JSON, misses or has unknown keys, or a value is wrong.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"not JSON: {error}") from error
    if not isinstance(data, Mapping) or not {"heads", "spans", "prompt"} <= data.keys() <= set(_KEYS):
        raise InputError(f"not an object with heads, spans, prompt and, if wanted, {', '.join(_KEYS[3:])}")
    prompt = data["prompt"]
    if not _whole(prompt) or prompt < 1:
        raise InputError(f"prompt is the number of the prompt's tokens, got {prompt!r}")
    phase = data.get("phase", "both")
    if phase not in get_args(Phase):
        raise InputError(f"phase is one of {', '.join(get_args(Phase))}, got {phase!r}")
    for name in ("exempt_generated", "keep_attention_sink"):
        if not isinstance(data.get(name, False), bool):
            raise InputError(f"{name} is true or false, got {data[name]!r}")
    edit = _edit(data["edit"]) if "edit" in data else None
    if edit is not None and (data["heads"] is not None or data.keys() & {*_KEYS[3:6]}):
        raise InputError("edit changes the keys of marked tokens alone: heads is null, and the rest is left out")
    spans, end = [], 0
    for span in data["spans"] if isinstance(data["spans"], list) else []:
        if not isinstance(span, list) or len(span) != 3 or not _whole(span[0]) or not _whole(span[1]):
            raise InputError(f"a span is [first token, one past the last, factor], got {span!r}")
        if not end <= span[0] < span[1]:
            raise InputError(f"token spans are ascending, disjoint and not empty; [{span[0]}, {span[1]}) is not")
        factor, end = span[2], span[1]
        if not is_number(factor) or not 1 / STRONGEST <= factor <= STRONGEST:
            raise InputError(f"a span's factor is a number above 0, from {1 / STRONGEST:g} to {STRONGEST:g}")
        spans.append(TokenSpan(span[0], span[1], float(factor)))
    if not spans:
        raise InputError("spans is a list of at least one [first token, one past the last, factor]")
    return Payload(
        tuple(spans),
        prompt,
        heads=None if data["heads"] is None else head_sets(data["heads"]),
        exempt_generated=data.get("exempt_generated", False),
        keep_attention_sink=data.get("keep_attention_sink", False),
        phase=phase,
        edit=edit,
    )


def _edit(data: Any) -> KeyEdit:
    if not isinstance(data, Mapping) or data.keys() != {f.name for f in dataclasses.fields(KeyEdit)}:
        raise InputError(f"edit is an object with projections, positive_gain and negative_gain, got {data!r}")
    if not isinstance(data["projections"], str):
        raise InputError(f"projections is the digest of a file, got {data['projections']!r}")
    for name in ("positive_gain", "negative_gain"):
        if not is_number(data[name]) or abs(data[name]) > MOST_GAIN:
            raise InputError(f"{name} is a number from -{MOST_GAIN} to {MOST_GAIN}, got {data[name]!r}")
    return KeyEdit(data["projections"], float(data["positive_gain"]), float(data["negative_gain"]))


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def enabled(vllm_config: Any) -> bool:
    """Whether an engine was started for steering."""
    return isinstance(vllm_config.additional_config, dict) and vllm_config.additional_config.get(KEY) is not None


def _options(vllm_config: Any) -> dict[str, Any]:
    options = vllm_config.additional_config[KEY]
    if not isinstance(options, dict) or options.keys() - set(_OPTIONS):
        raise InputError(f'{KEY} takes {{}}, {{"layers": [0, 1, …]}} or {{"projections": FILE}}, got {options!r}')
    return options


def layers_of(vllm_config: Any) -> set[int]:
    """The layers that an engine was started to steer: all, unless it names some, or projections alone.

    Raises:
        InputError: the option is malformed, or names a layer that the model does not have.
    """
    there = range(vllm_config.model_config.hf_text_config.num_hidden_layers)
    options = _options(vllm_config)
    if "projections" in options and "layers" not in options:
        return set()
    layers = options.get("layers", list(there))
    if not isinstance(layers, list) or not layers or not all(type(i) is int and i in there for i in layers):
        raise InputError(f"layers is a list of layers from {there[0]} to {there[-1]}, got {layers!r}")
    return set(layers)


def projections_of(vllm_config: Any) -> tuple[str, int | None] | None:
    """The file of projections that an engine was started to edit keys by, and the seed that turns them; None without.

    Raises:
        InputError: the option is malformed.
    """
    options = _options(vllm_config)
    if "projections" not in options:
        return None
    path, rotation = options["projections"], options.get("rotation")
    if not isinstance(path, str) or not (rotation is None or _whole(rotation)):
        raise InputError(f"projections is a file and rotation a seed, got {path!r} and {rotation!r}")
    return path, rotation


def check_edit(wanted: KeyEdit, vllm_config: Any) -> None:
    """Make sure that an engine edits keys as a request wants.

    Raises:
        InputError: it edits none, or by other projections.
    """
    own = projections_of(vllm_config)
    if own is None:
        raise InputError(
            f'this engine was not started to edit keys: {{"{KEY}": {{"projections": FILE}}}} '
            "(in process: steering= the profile)"
        )
    if digest_of(*own) != wanted.projections:
        raise InputError(f"this engine edits keys by other projections, those of {own[0]}")


def steering_of(sampling_params: Any) -> Payload | None:
    """What a request asks for, if it does.

    Raises:
        InputError: it cannot be read.
    """
    given = (getattr(sampling_params, "extra_args", None) or {}).get(KEY)
    if given is None:
        return None
    if not isinstance(given, str):
        raise InputError(f"not a string of JSON but {type(given).__name__}")
    return parse(given)

"""What steering is asked for: a head set, a strength and a mode, saved as a profile; and the table of modes."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from amplify import codec, files, resources
from amplify.errors import DataError, InputError, UnknownNameError
from amplify.files import from_yaml
from amplify.registry import Table, register
from amplify.types import STRONGEST


@dataclass(frozen=True)
class SteeringMode:
    """How strongly a span's attention is multiplied: by a fixed weight, or by one that each row finds for itself.

    Attributes:
        description: one line.
        weight: Steering -> the factor w > 0 of spans that name none.
        factors: (psi, outside, Steering) -> w of each row, from its attention mass psi > 0 on the spans and the mass
            outside them; arrays or tensors of one shape, to be used with arithmetic alone. 1 leaves a row as it is.
            Modes with factors need a second look at a row's attention, which not every engine offers.
        chosen_heads: whether the heads must be named, steering all of them being no use.
        keys: instead of a factor: whether the marked tokens' keys are edited by a profile's projections.
    """

    description: str
    weight: Callable[[Steering], float] | None = None
    factors: Callable[[Any, Any, Steering], Any] | None = None
    chosen_heads: bool = False
    keys: bool = False


def _adopt(name: str, value: Any) -> SteeringMode:
    if isinstance(value, SteeringMode):
        if (value.weight is not None) + (value.factors is not None) + value.keys != 1:
            raise InputError(f"the steering mode {name!r} has either a weight or factors (or edits keys)")
        return value
    if not callable(value):
        raise InputError(f"the steering mode {name!r} is a function of a Steering, or a SteeringMode, not {value!r}")
    return SteeringMode(next(iter((value.__doc__ or "").strip().splitlines()), ""), weight=value)


MODES: Table[SteeringMode] = Table("steering_mode", _adopt)
"""Every mode by name."""


def _spotlight(psi: Any, outside: Any, steering: Steering) -> Any:
    share = psi / (psi + outside)
    below = (share < steering.target) * 1.0
    return steering.target / share * below + (1.0 - below)


def _target_mass(psi: Any, outside: Any, steering: Steering) -> Any:
    some = (outside > 1e-30) * 1.0  # where there is nothing else, the mass is what it is
    return steering.target * outside / (psi * (1 - steering.target)) * some + (1.0 - some)


register(
    "steering_mode", "pasta",
    SteeringMode("the span's attention times 1/alpha, in chosen heads", lambda s: 1 / s.alpha, chosen_heads=True),
)  # fmt: skip
register(
    "steering_mode", "instaboost", SteeringMode("the span's attention times exp(bonus)", lambda s: math.exp(s.bonus))
)
register(
    "steering_mode", "spotlight",
    SteeringMode("the span's attention raised to the target where it is below it", factors=_spotlight),
)  # fmt: skip
register(
    "steering_mode", "target_mass", SteeringMode("the span's attention mass exactly the target", factors=_target_mass)
)
register("steering_mode", "seka", SteeringMode("the span's keys edited once, by a profile's projections", keys=True))


Phase = Literal["both", "prefill", "decode"]
FORMAT = 1
MOST_GAIN = 100
_ATTENTION = ("full_attention", "sliding_attention", "chunked_attention")


@dataclass(frozen=True)
class Steering:
    """Head set and strength, applied to the spans that a prompt's `emphasis` marks.

    Attributes:
        heads: layer -> query heads, both counted from 0; None for every head of every layer. "pasta" wants them named
            (steering all heads is worse than none, arXiv 2311.02262).
        alpha: "pasta" scales attention outside the spans by this factor and renormalises; in (0, 1].
        mode: the relative of the one formula, of `amplify.steering.spec.MODES`:
            "pasta", a span's attention times 1/alpha before the row is renormalised (the same as alpha outside);
            "instaboost", times exp(bonus);
            "spotlight", times target/psi in those rows whose attention mass psi on the spans is below `target`;
            "target_mass", the factor that makes the mass exactly `target`, in every row that sees a span;
            "seka", no factor: the span's keys are edited by `projections` (see `amplify.steering.keys`).
        bonus: what "instaboost" adds to the logits of the spans' keys.
        target: attention mass on the spans, for "spotlight" and "target_mass"; in (0, 1).
        exempt_generated: the released PASTA code's way: generated (and scored continuation) tokens are not
            down-weighted. The default is the paper's: they count as outside.
        keep_attention_sink: the first token of the sequence, where idle heads park their attention, is not
            down-weighted; in "spotlight" and "target_mass" it keeps exactly the mass that it had.
        phase: which query rows are steered: of the prompt ("prefill"), of generated and scored tokens ("decode"), or
            both.
        projections: for "seka": the .safetensors file of the projections; a profile names it relative to itself.
        positive_gain, negative_gain: for "seka": how strongly keys are edited along the directions of relevance, and
            along those that are left where a text is not relevant.
        rotation: for "seka": seed that turns the projections into random ones of equal rank, as a control.
        model: what is known of the model that the heads were measured on, compared by `check`; empty for any model.
        provenance: how a profile was measured; carried along, never interpreted.

    Example:
        >>> steering = amplify.Steering(heads={3: [0, 5]}, alpha=0.05)
        >>> steering.save("heads.yaml")
        >>> amplify.Steering.load("heads.yaml").heads
        {3: (0, 5)}
    """

    heads: Mapping[int, tuple[int, ...]] | None = None
    alpha: float = 0.01
    mode: str = "pasta"
    bonus: float = 2.0
    target: float = 0.3
    exempt_generated: bool = False
    keep_attention_sink: bool = False
    phase: Phase = "both"
    projections: str = ""
    positive_gain: float = 0.8
    negative_gain: float = 0.2
    rotation: int | None = None
    model: Mapping[str, Any] = field(default_factory=dict, compare=False)
    provenance: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        mode = MODES.find(str(self.mode))
        if self.phase not in get_args(Phase):
            raise UnknownNameError("steering phase", str(self.phase), get_args(Phase))
        if not is_number(self.alpha) or not 1 / STRONGEST <= self.alpha <= 1:
            raise InputError(f"alpha is a factor in (0, 1] and not below {1 / STRONGEST:g}, got {self.alpha!r}")
        if not is_number(self.target) or not 0 < self.target < 1:
            raise InputError(f"target is an attention mass in (0, 1), got {self.target!r}")
        most = math.log(STRONGEST)
        if not is_number(self.bonus) or abs(self.bonus) > most:
            raise InputError(f"bonus is a number from -{most:.1f} to {most:.1f}, got {self.bonus!r}")
        for name in ("exempt_generated", "keep_attention_sink"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"{name} is true or false, got {getattr(self, name)!r}")
        if self.dynamic and self.exempt_generated:
            raise InputError(
                f"exempt_generated has no meaning in mode {self.mode!r}, which sets the spans' mass itself"
            )
        if not is_number(self.default_weight) or not 0.999 / STRONGEST <= self.default_weight <= 1.001 * STRONGEST:
            raise InputError(
                f"mode {self.mode!r} gives the factor {self.default_weight!r}, which is none from {1 / STRONGEST:g} to "
                f"{STRONGEST:g}"
            )
        self._check_keys(mode)
        if self.heads is None:
            if mode.chosen_heads:
                raise InputError(
                    f'{self.mode} steers chosen heads: Steering(heads={{layer: [head, …]}}) or Steering.load("PROFILE")'
                )
            return
        object.__setattr__(self, "heads", head_sets(self.heads))

    def _check_keys(self, mode: SteeringMode) -> None:
        gains = (self.positive_gain, self.negative_gain)
        if not all(is_number(gain) and abs(gain) <= MOST_GAIN for gain in gains):
            raise InputError(f"positive_gain and negative_gain are numbers from -{MOST_GAIN} to {MOST_GAIN}: {gains}")
        if self.rotation is not None and (type(self.rotation) is not int or self.rotation < 0):
            raise InputError(f"rotation is a seed, a whole number from 0, got {self.rotation!r}")
        if mode.keys and not self.projections:
            raise InputError(
                "seka edits keys by a model's projections: find them with `amplify projections --model MODEL --out "
                'mine.yaml`, and take Steering.load("mine.yaml")'
            )
        if mode.keys and (
            self.heads is not None or self.exempt_generated or self.keep_attention_sink or self.phase != "both"
        ):
            raise InputError("seka edits the keys of marked tokens alone: heads, phase and what is spared mean nothing")
        if not mode.keys and (self.projections or self.rotation is not None):
            raise InputError(f"projections belong to mode 'seka', not {self.mode!r}")

    @property
    def edits_keys(self) -> bool:
        """Whether the marked tokens' keys are edited, and attention is left as it is."""
        return MODES[self.mode].keys

    @property
    def dynamic(self) -> bool:
        """Whether the factor depends on the row's attention mass on the spans."""
        return MODES[self.mode].factors is not None

    @property
    def default_weight(self) -> float:
        """The factor w of a span that names none (1 in the dynamic modes, which find it themselves)."""
        weight = MODES[self.mode].weight
        return weight(self) if weight is not None else 1.0

    def resolve(self, layers: int, heads: int | Sequence[int]) -> dict[int, tuple[int, ...]]:
        """The steered heads of a model.

        Args:
            layers: how many the model has.
            heads: query heads in each layer, or one number for all of them.

        Raises:
            InputError: a layer or head that the model does not have.
        """
        return resolve(self.heads, layers, heads)

    def check(self, config: Any, identity: Mapping[str, Any] | None = None) -> dict[int, tuple[int, ...]]:
        """The steered heads of a model, after making sure that they were meant for it.

        Args:
            config: the model's transformers config.
            identity: `amplify.hub.identity` of its folder, where there is one.

        Raises:
            InputError: the profile was measured on another model (what differs is named), or a layer or head is
                unknown, or a layer has no attention.
        """
        here = {**model_shape(config), **(identity or {})}
        same_weights = "sha256" in here and here["sha256"] == self.model.get("sha256")
        differ = [
            f"{k} {v!r} against {here[k]!r}"
            for k, v in self.model.items()
            if k in here and here[k] != v and not (k == "name" and same_weights)  # the folder may have moved
        ]
        if differ:
            raise InputError(
                f"this steering profile was measured on another model than the one at hand: {', '.join(differ)}. "
                "Measure one with `amplify heads`, or name the heads yourself: Steering(heads={…})"
            )
        shape = model_shape(config)
        heads = self.resolve(shape["layers"], shape["heads"])
        kinds = getattr(config.get_text_config(decoder=True), "layer_types", None) or []
        without = [i for i in heads if kinds and kinds[i] not in _ATTENTION]
        if without and self.heads is not None:
            raise InputError(f"layer {without[0]} is of the kind {kinds[without[0]]!r} and has no attention to steer")
        return {i: chosen for i, chosen in heads.items() if i not in without}

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; what equals its default is left out."""
        out: dict[str, Any] = {"heads": {str(k): list(v) for k, v in self.heads.items()}} if self.heads else {}
        for f in fields(self):
            if f.name == "heads":
                continue
            value = getattr(self, f.name)
            if f.name in ("model", "provenance"):
                if value:
                    out[f.name] = dict(value)
            elif value != f.default:
                out[f.name] = value
        return out

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Steering:
        """The inverse of `to_dict`.

        Raises:
            InputError: an unknown key or a bad value.
        """
        if not isinstance(data, Mapping):
            raise InputError(f"steering is a mapping with heads, alpha, mode …, got {data!r}")
        known = [f.name for f in fields(cls)]
        for name in ("model", "provenance"):
            if not isinstance(data.get(name, {}), Mapping):
                raise InputError(f"{name} is a mapping, got {data[name]!r}")
        for key in data:
            if key not in known:
                raise UnknownNameError("steering key", str(key), known)
        return cls(**data)

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(self.to_dict(), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Steering:
        """The inverse of `to_json`."""
        try:
            return cls.from_dict(codec.parse(text))
        except DataError as error:
            raise InputError(f"steering is not valid JSON: {error}") from error

    def save(self, path: str | Path) -> None:
        """Write a profile as YAML, its provenance included; projections are named relative to it."""
        data = self.to_dict()
        if self.projections:
            data["projections"] = os.path.relpath(self.projections, Path(path).resolve().parent)
        text = yaml.safe_dump({"format": FORMAT, **data}, sort_keys=False, default_flow_style=None, width=120)
        files.write(path, text)

    @classmethod
    def load(cls, name: str | Path) -> Steering:
        """Read a profile: a name under the content folder `steering/`, or a YAML or JSON file.

        Raises:
            UnknownNameError: no such profile.
            DataError: the file cannot be read or is of another format.
        """
        folder = resources.content("steering")
        packed = folder / f"{name}.yaml"
        path = Path(name) if Path(name).suffix in (".yaml", ".yml", ".json") else packed
        if not os.path.isfile(path):  # no, too, for a name that no file can have
            raise UnknownNameError("steering profile", str(name), profiles(), "A path to a .yaml file works too.")
        try:
            data = from_yaml(path.read_text(encoding="utf-8-sig"), "the file")
            codec.check(data)
        except (OSError, ValueError, DataError) as error:
            raise DataError(f"{path} is not a readable steering profile: {error}") from error
        if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
            raise DataError(f"{path} is not a steering profile of format {FORMAT}")
        if isinstance(data.get("projections"), str):
            data["projections"] = str(path.resolve().parent / data["projections"])
        try:
            return cls.from_dict(data)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error


codec.register(Steering, Steering.to_dict, Steering.from_dict)


def profiles() -> list[str]:
    """Names that `Steering.load` takes.

    Example:
        >>> all(isinstance(name, str) for name in profiles())
        True
    """
    folder = resources.content("steering")
    return sorted(p.relative_to(folder).with_suffix("").as_posix() for p in folder.rglob("*.yaml"))


def model_shape(config: Any) -> dict[str, Any]:
    """Architecture, layers and query heads of a transformers config (of its text model, where it has several parts)."""
    text = config.get_text_config(decoder=True)
    return {"model_type": text.model_type, "layers": text.num_hidden_layers, "heads": text.num_attention_heads}


def is_number(value: object) -> bool:
    """Whether this is a finite number that a float holds."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number of more than 308 digits
        return False


def resolve(
    named: Mapping[int, tuple[int, ...]] | None, layers: int, heads: int | Sequence[int]
) -> dict[int, tuple[int, ...]]:
    """See `Steering.resolve`."""
    per_layer = [heads] * layers if isinstance(heads, int) else list(heads)
    if named is None:
        return {layer: tuple(range(n)) for layer, n in enumerate(per_layer)}
    for layer, chosen in named.items():
        if layer >= layers:
            raise InputError(f"steering names layer {layer}; this model has layers 0 to {layers - 1}")
        if (top := max(chosen)) >= per_layer[layer]:
            raise InputError(f"steering names head {top} of layer {layer}, which has 0 to {per_layer[layer] - 1}")
    return dict(named)


def head_sets(given: Any) -> dict[int, tuple[int, ...]]:
    """Layers ascending, each with its heads ascending; JSON's string keys are accepted."""
    if not isinstance(given, Mapping) or not given:
        raise InputError(f"heads maps layers to their heads, e.g. {{3: [0, 5]}}, got {given!r}")
    out: dict[int, tuple[int, ...]] = {}
    for layer, chosen in given.items():
        try:
            number = int(layer) if isinstance(layer, str) else layer
        except ValueError:
            number = -1
        if not _index(number):
            raise InputError(f"a layer is a whole number from 0, got {layer!r}")
        listed = list(chosen) if isinstance(chosen, Iterable) and not isinstance(chosen, str) else []
        if not listed or not all(_index(h) for h in listed) or len(set(listed)) < len(listed):
            raise InputError(f"layer {number} needs a list of different heads, counted from 0, got {chosen!r}")
        if number in out:
            raise InputError(f"layer {number} is given twice")
        out[number] = tuple(sorted(listed))
    return dict(sorted(out.items()))


def _index(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0

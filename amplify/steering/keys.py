"""SEKA (ICLR 2026, arXiv 2603.01281): the keys of marked tokens are edited once, and attention stays as it is.

A key k of a marked token, as it is before its position is turned into it, becomes

    k' = k + (g+ P+ k + g- P- k) / 2

in chosen layers, with two projections for each key head: P+ on the directions in which keys of a passage vary together
with those of the same passage behind a question about it, P- on what is left where the question is about something
else. Nothing is wider and nothing is done while tokens are generated. Under grouped-query attention a key head serves
several query heads, so the choice is coarser than PASTA's.

`find_projections` learns them from texts made by rule. The released code applies two gains as above; the paper's other
form, P+ alone, is `negative_gain=0` with twice the positive gain.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from amplify import files
from amplify.errors import DataError, InputError, extras
from amplify.locks import lock_of

if TYPE_CHECKING:
    import torch

    from amplify.models.base import LocalModel
    from amplify.steering.attention import Marked
    from amplify.steering.spec import Steering

Floats = npt.NDArray[np.float32]
FORMAT = "1"


@dataclass(frozen=True, eq=False)
class Projections:
    """P+ and P- of each edited layer, [key heads, head size, head size]; zero for key heads that are left alone."""

    positive: Mapping[int, Floats]
    negative: Mapping[int, Floats]

    def edit(self, positive_gain: float, negative_gain: float) -> dict[int, Floats]:
        """What is added to a key is this matrix of its layer and head times the key, [key heads, head, head]."""
        up, down = np.float32(positive_gain / 2), np.float32(negative_gain / 2)
        return {i: up * self.positive[i] + down * self.negative[i] for i in self.positive}

    def rotated(self, seed: int) -> Projections:
        """The control: projections of equal rank on random directions, drawn anew for each layer and key head."""
        draw = np.random.default_rng(seed)
        turned: tuple[dict[int, Floats], dict[int, Floats]] = ({}, {})
        for i in sorted(self.positive):
            heads, size = self.positive[i].shape[:2]
            turns = np.linalg.qr(draw.standard_normal((heads, size, size)))[0]
            for out, given in zip(turned, (self.positive[i], self.negative[i]), strict=True):
                out[i] = (turns @ given @ turns.transpose(0, 2, 1)).astype(np.float32)
        return Projections(*turned)

    @extras()
    def save(self, path: str | Path) -> None:
        """Write a safetensors file."""
        from safetensors.numpy import save

        named = {f"positive.{i}": p for i, p in self.positive.items()} | {
            f"negative.{i}": p for i, p in self.negative.items()
        }
        files.write(path, save(named, {"format": FORMAT, "holds": "amplify key projections"}))


@functools.lru_cache(8)
@extras()
def load_projections(path: str) -> Projections:
    """Read what `Projections.save` wrote.

    Raises:
        DataError: it cannot be read, or holds something else.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    found: dict[str, dict[int, Floats]] = {"positive": {}, "negative": {}}
    try:
        for name, matrix in load_file(path).items():
            kind, _, layer = name.partition(".")
            found[kind][int(layer)] = matrix.astype(np.float32)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise DataError(f"{path} holds no key projections: {error}") from error
    everything = [*found["positive"].values(), *found["negative"].values()]
    whole = all(m.ndim == 3 and m.shape[1] == m.shape[2] and np.isfinite(m).all() for m in everything)
    shapes = [{i: m.shape for i, m in matrices.items()} for matrices in found.values()]
    if not everything or not whole or shapes[0] != shapes[1]:
        raise DataError(f"{path} holds no key projections: [key heads, head size, head size] for each layer, twice")
    return Projections(found["positive"], found["negative"])


def edit_of(steering: Steering) -> dict[int, Floats]:
    """What a Steering of mode "seka" adds to keys, by layer (see `Projections.edit`)."""
    found = load_projections(steering.projections)
    if steering.rotation is not None:
        found = found.rotated(steering.rotation)
    return found.edit(steering.positive_gain, steering.negative_gain)


def check_shape(matrices: Mapping[int, Floats], config: Any) -> None:
    """Make sure that projections are for keys of a model's shape.

    Args:
        matrices: of each layer, [key heads, head size, head size].
        config: the model's transformers config.

    Raises:
        InputError: they are for other keys.
    """
    text = config.get_text_config(decoder=True)
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    for layer, own in matrices.items():
        if not 0 <= layer < text.num_hidden_layers or own.shape != (heads, size, size):
            raise InputError(
                f"these projections are for other keys: layer {layer} with {own.shape[0]} key heads of {own.shape[1]}; "
                f"the model has layers 0 to {text.num_hidden_layers - 1}, {heads} key heads of {size}"
            )


class KeyStream:
    """What a Steering that edits keys does to a packed stream of sequences; as `attention.Stream`.

    Args:
        model: whose keys are edited.
        steering: for all of them.
        sequences: their spans may differ.

    Attributes:
        items: for each sequence, one number per token; equal numbers mean the same token, marked or not.

    Raises:
        InputError: projections of another shape than the model's keys, or keys that cannot be edited.
    """

    def __init__(self, model: Any, steering: Steering, sequences: Sequence[Marked]) -> None:
        steering.check(model.config)
        self.model, self.edit = model, _fitted(model, edit_of(steering))
        described = [
            [(token, any(s.start <= i < s.end for s in one.spans)) for i, token in enumerate(one.ids)]
            for one in sequences
        ]
        self.kinds = sorted({kind for one in described for kind in one})
        number = {kind: i for i, kind in enumerate(self.kinds)}
        self.items = [[number[kind] for kind in one] for one in described]
        self._new = len(sequences)
        self._marks: Any = None

    def lay(self, plan: Any) -> Any:
        """A plan of items (`TreePlan`) becomes one of token ids, and its marks are laid out."""
        import torch

        ids, marks = (np.array(column) for column in zip(*self.kinds, strict=True))
        behind = np.zeros(self._new)  # what is generated is never marked
        laid = np.append(marks[plan.ids], behind).astype(np.float32)
        self._marks = torch.from_numpy(laid).to(self.model.device)
        return replace(plan, ids=ids[plan.ids].astype(np.int64), targets=ids[plan.targets].astype(np.int64))

    @contextmanager
    def around(self, at: torch.Tensor) -> Iterator[None]:
        """One forward pass over keys that stand at these places of the stream (-1 - i: generated by sequence i)."""
        at = at.where(at >= 0, len(self._marks) - self._new - 1 - at)
        with _edited(self.model, self.edit, lambda tokens: self._marks[at[-tokens:]][None]):
            yield


@contextmanager
def edited_keys(model: Any, steering: Steering, marks: torch.Tensor) -> Iterator[None]:
    """Edit keys in every forward pass of `model` inside the block; nothing of it is left behind.

    Args:
        model: decoder-only.
        steering: of mode "seka".
        marks: [rows, columns], 1 on the marked tokens of the padded prompts. Columns behind them are not marked.

    Raises:
        InputError: see `KeyStream`.
    """
    steering.check(model.config)
    edit = _fitted(model, edit_of(steering))
    seen = {"past": 0}

    def begin(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        cache = kwargs.get("past_key_values")
        seen["past"] = int(cache.get_seq_length()) if cache is not None else 0

    def on(tokens: int) -> torch.Tensor:
        found = marks[:, seen["past"] : seen["past"] + tokens]
        return found.new_zeros(found.shape[0], tokens) if found.shape[1] < tokens else found

    with lock_of(model), _edited(model, edit, on):
        handle = model.get_decoder().register_forward_pre_hook(begin, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()


def _key_layers(model: Any) -> dict[int, Any]:
    """Layer -> the module whose output is its keys, before positions.

    Raises:
        InputError: this architecture has none.
    """
    found: dict[int, Any] = {}
    for module in model.get_decoder().modules():
        layer = getattr(module, "layer_idx", None)
        own = getattr(module, "k_norm", None)
        own = own if own is not None else getattr(module, "k_proj", None)
        if isinstance(layer, int) and own is not None:
            found[layer] = own
    if not found:
        raise InputError(
            f"{type(model).__name__} does not compute its keys by a layer of their own, so they cannot be edited; mode "
            "'pasta' steers it"
        )
    return found


def _fitted(model: Any, edit: Mapping[int, Floats]) -> dict[int, tuple[Any, Any]]:
    """Layer -> the module that gives its keys and the matrices on the model's device, in float32."""
    import torch

    check_shape(edit, model.config)
    layers = _key_layers(model)
    if without := sorted(edit.keys() - layers.keys()):
        raise InputError(f"layer {without[0]} of {type(model).__name__} has no keys of its own to edit")
    return {i: (layers[i], torch.from_numpy(m).to(model.device)) for i, m in edit.items() if m.any()}


@contextmanager
def _edited(model: Any, edit: Mapping[int, tuple[Any, Any]], marks: Any) -> Iterator[None]:
    """Edit the keys of marked tokens; `marks(tokens)` gives [rows or 1, tokens] for the pass at hand."""
    import torch

    def hook(matrices: Any) -> Any:
        def change(module: Any, args: Any, out: torch.Tensor) -> torch.Tensor | None:
            heads, size = matrices.shape[:2]
            keys = out.unflatten(-1, (heads, size)) if out.shape[-1] == heads * size else out
            if keys.dim() != 4 or keys.shape[2] != heads:
                raise InputError(f"keys come as {tuple(out.shape)}, which is not [rows, tokens, {heads} heads, {size}]")
            on = marks(keys.shape[1])
            if not on.any():
                return None
            if on.shape[0] not in (1, keys.shape[0]):
                on = on.repeat_interleave(keys.shape[0] // on.shape[0], 0)
            added = torch.einsum("hij,rthj->rthi", matrices, keys.float())
            changed: torch.Tensor = (keys.float() + on[..., None, None] * added).to(out.dtype)
            return changed.view_as(out)

        return change

    with ExitStack() as stack:
        for module, matrices in edit.values():
            stack.callback(module.register_forward_hook(hook(matrices)).remove)
        yield


class Triple(NamedTuple):
    """What projections are learned from.

    Attributes:
        context: a passage.
        answer: words of it.
        about: a question that they answer.
        other: one that something else in the passage answers.
    """

    context: str
    answer: str
    about: str
    other: str


_NAMES = ("Ada", "Ben", "Carla", "Dmitri", "Elena", "Farid", "Greta", "Hiro", "Ines", "Jonas", "Kavya", "Liam", "Mara")
_FACTS = (
    ("lives in", "Where does {} live?", ("Oslo", "Lima", "Cairo", "Perth", "Quito", "Turin", "Osaka", "Dakar")),
    (
        "works as",
        "What is {}'s job?",
        ("a baker", "a pilot", "a nurse", "a welder", "a judge", "a tailor", "a chemist"),
    ),
    ("drives", "What does {} drive?", ("a red van", "an old truck", "a small tram", "a blue bus", "a grey jeep")),
    ("studies", "What does {} study?", ("botany", "geology", "Latin", "law", "music", "optics", "logic", "history")),
    ("keeps", "Which animal does {} keep?", ("a goat", "a parrot", "two geese", "a pony", "a black cat", "an owl")),
)


def triples(count: int, seed: int = 0) -> list[Triple]:
    """Made by rule: a person, three facts, a question about one and a question about another."""
    draw, made = random.Random(seed), []
    for _ in range(count):
        name = draw.choice(_NAMES)
        facts = [(verb, question, draw.choice(answers)) for verb, question, answers in draw.sample(_FACTS, 3)]
        about, other = draw.sample(range(3), 2)
        context = " ".join(f"{name} {verb} {answer}." for verb, _, answer in facts)
        made.append(Triple(context, facts[about][2], facts[about][1].format(name), facts[other][1].format(name)))
    return made


@extras()
def find_projections(
    model: LocalModel,
    given: Sequence[Triple] | None = None,
    *,
    layers: int = 10,
    mass: float = 0.9,
    least: float = 0.2,
    samples: int = 200,
    seed: int = 0,
) -> tuple[Projections, dict[str, Any]]:
    """Learn the projections of a model (arXiv 2603.01281, section 3).

    For each text the keys of the answer's tokens are taken three times: in the passage alone (H), behind the question
    about them (H+), and behind the other one (H-). P+ projects on the left singular directions of H'H+/n that hold the
    first `mass` of its singular values' sum, P- on those of H'H-/n behind it. Key heads in which the two questions
    move a token's key by less than `least` on average are left alone.

    Args:
        model: a `transformers:` model.
        given: texts; None: `samples` made by rule.
        layers: only so many last ones; 0 for all.
        mass, least: see above.
        samples, seed: of the texts made by rule.

    Returns:
        The projections, and what they were learned from, for a profile's provenance.

    Raises:
        InputError: the architecture's keys cannot be edited, an answer that its context lacks, or no key head moves.
    """
    if not 0 < mass < 1 or least < 0 or layers < 0 or samples < 1:
        raise InputError("projections need 0 < mass < 1, least >= 0, layers >= 0 and samples >= 1")
    module = model.module
    chosen = dict(sorted(_key_layers(module).items())[-layers:])
    texts = triples(samples, seed) if given is None else list(given)
    sums: dict[int, list[Any]] = {}
    tokens = 0
    with lock_of(module):
        for each in texts:
            alone, about, other = (_answer_keys(model, chosen, each, q) for q in ("", each.about, each.other))
            tokens += len(next(iter(alone.values())))
            for i in chosen:
                h, p, n = (keys[i].astype(np.float64) for keys in (alone, about, other))  # [tokens, heads, head]
                found = [
                    np.einsum("thi,thj->hij", h, p), np.einsum("thi,thj->hij", h, n),
                    np.linalg.norm(p - n, axis=-1).sum(0),
                ]  # fmt: skip
                sums[i] = [a + b for a, b in zip(sums[i], found, strict=True)] if i in sums else found
    positive: dict[int, Floats] = {}
    negative: dict[int, Floats] = {}
    kept = 0
    for i, (with_about, with_other, moved) in sums.items():
        up, down = (
            _projectors(with_about / tokens, mass, first=True),
            _projectors(with_other / tokens, mass, first=False),
        )
        on = (moved / tokens >= least)[:, None, None]
        positive[i], negative[i] = (up * on).astype(np.float32), (down * on).astype(np.float32)
        kept += int(on.sum())
    if not kept:
        raise InputError(f"no key head moves by {least:g} between the two questions: take a smaller value")
    about_them = {
        "texts": len(texts), "tokens": tokens, "mass": mass, "least": least, "key_heads": kept, "seed": seed,
        "layers": [min(positive), max(positive)],
    }  # fmt: skip
    return Projections(positive, negative), about_them


def save_profile(
    model: LocalModel, path: str | Path, *, gains: tuple[float, float] = (0.8, 0.2), **options: Any
) -> Steering:
    """Find a model's projections and write a profile, with the projections in a .safetensors file beside it.

    Args:
        model: a `transformers:` model.
        path: of the profile, a .yaml file.
        gains: the positive and the negative one.
        **options: of `find_projections`.

    Returns:
        The profile, as `Steering.load(path)` gives it.
    """
    from amplify.steering.spec import Steering, model_shape

    path = Path(path)
    about = model.describe()
    named = about.get("model")
    beside = path.resolve().with_suffix(".safetensors")
    positive, negative = gains
    shape = {**model_shape(model.module.config), **(dict(named) if isinstance(named, Mapping) else {})}
    profile = Steering(
        mode="seka", projections=str(beside), positive_gain=positive, negative_gain=negative, model=shape
    )  # fmt: skip
    found, learned = find_projections(model, **options)
    versions = {name: str(version) for name, version in about.get("versions", {}).items()}
    profile = replace(profile, provenance={**learned, "dtype": about.get("dtype"), "versions": versions})
    found.save(beside)
    profile.save(path)
    load_projections.cache_clear()  # an earlier file of that name may have been read
    return profile


def _projectors(crossed: npt.NDArray[np.float64], mass: float, *, first: bool) -> npt.NDArray[np.float64]:
    """Projectors of each head on the left singular directions up to a share of the singular values' sum, or behind."""
    out = np.zeros_like(crossed)
    for head, matrix in enumerate(crossed):
        u, s, _ = np.linalg.svd(matrix)
        upto = int(np.searchsorted(np.cumsum(s) / s.sum(), mass)) + 1
        directions = u[:, :upto] if first else u[:, upto:]
        out[head] = directions @ directions.T
    return out


def _answer_keys(model: LocalModel, layers: Mapping[int, Any], each: Triple, question: str) -> dict[int, Floats]:
    """Keys of the answer's tokens by layer, [tokens, key heads, head size]."""
    import torch

    begun = f"Question: {question}\nContext: " if question else "Context: "
    start = each.context.rfind(each.answer)
    if start < 0 or not each.answer:
        raise InputError(f"the context {each.context!r} does not hold {each.answer!r}")
    encoded = model.tokenizer(begun + each.context, return_offsets_mapping=True, return_tensors="pt")
    a, b = len(begun) + start, len(begun) + start + len(each.answer)
    inside = [k for k, (i, j) in enumerate(encoded["offset_mapping"][0].tolist()) if max(i, a) < min(j, b)]
    config = model.module.config.get_text_config(decoder=True)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    found: dict[int, Floats] = {}

    def keep(layer: int) -> Any:
        def hook(module: Any, args: Any, out: torch.Tensor) -> None:
            rows = out[0, inside].float().cpu().numpy()
            found[layer] = rows.reshape(len(inside), heads, -1)

        return hook

    with ExitStack() as stack, torch.inference_mode():
        for layer, module in layers.items():
            stack.callback(module.register_forward_hook(keep(layer)).remove)
        model.module(input_ids=encoded["input_ids"].to(model.module.device), use_cache=False)
    return found

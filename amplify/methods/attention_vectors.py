"""Answers read off a few attention heads: sparse attention vectors (Mitra et al. 2024, arXiv 2412.00142)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from amplify.calibration import log_softmax
from amplify.errors import CapabilityError, InputError
from amplify.locks import lock_of
from amplify.methods.base import Preset, PromptProgram
from amplify.methods.deciding import aggregated
from amplify.methods.few_shot import shot_pool
from amplify.methods.program import as_example
from amplify.methods.prompt import Form, PromptMethod
from amplify.models.base import LanguageModel, LocalModel, check_window, need_local
from amplify.models.chat import render, tokenise
from amplify.registry import register
from amplify.streams import stream
from amplify.types import Answer, Example, Prompt

if TYPE_CHECKING:
    from amplify.tasks import Task

Floats = npt.NDArray[np.float64]
SHARPNESS = 20.0  # factor on cosines, where a head's vote is made a distribution; ranks change nothing


def head_outputs(prompts: Sequence[Prompt], model: LocalModel) -> Floats:
    """What each attention head gives at the last token of each prompt, before the heads are mixed.

    Args:
        prompts: one forward pass each.
        model: in this process.

    Returns:
        Shape (prompts, layers, heads, head size).

    Raises:
        CapabilityError: a model whose attention mixes its heads in another place than `o_proj`.
        ContextLengthError: a prompt does not fit.
    """
    import torch

    module = model.module
    layers = getattr(module.get_decoder(), "layers", None) or ()
    mixing = [getattr(getattr(layer, "self_attn", None), "o_proj", None) for layer in layers]
    if not mixing or any(one is None for one in mixing):
        raise CapabilityError(
            f"{module.config.model_type} mixes its heads in no o_proj: attention vectors need Llama, Qwen, Mistral …"
        )
    heads = module.config.get_text_config(decoder=True).num_attention_heads
    encoded = tokenise(model.tokenizer, [render(p, model.tokenizer).answering for p in prompts])
    check_window([len(e.ids) for e in encoded], 0, model.max_context)
    kept: dict[int, Floats] = {}

    def keep(number: int) -> Any:
        def hook(_: Any, args: tuple[Any, ...]) -> None:
            kept[number] = args[0][0, -1].float().cpu().numpy().astype(np.float64)

        return hook

    found = []
    with lock_of(module), torch.inference_mode():
        handles = [one.register_forward_pre_hook(keep(i)) for i, one in enumerate(mixing) if one is not None]
        try:
            for one in encoded:
                module.get_decoder()(input_ids=torch.tensor([one.ids], device=module.device), use_cache=False)
                found.append(np.stack([kept[i].reshape(heads, -1) for i in range(len(mixing))]))
                model.usage.add_call(len(one.ids), 0)
        finally:
            for handle in handles:
                handle.remove()
    return np.stack(found)


class Ranked(NamedTuple):
    """Heads by how well they tell labels apart.

    Attributes:
        accuracy: of each head's nearest class mean on items that it was made without, shape (layers, heads).
        order: (layer, head) from best to worst; ties go by the mean distance of the right label's cosine to the best
            other one's.
        means: mean output of each class, shape (labels, layers, heads, size).
    """

    accuracy: Floats
    order: tuple[tuple[int, int], ...]
    means: Floats


def rank(outputs: Floats, gold: npt.NDArray[np.intp], labels: int) -> Ranked:
    """Rank heads by leave-one-out accuracy of the nearest class mean (cosine).

    The released code ranks heads on the very items that made the means; here an item is taken out of its class's mean
    before it is judged. A class of one item has no mean without it: that item is left out.

    Args:
        outputs: of `head_outputs`, of labelled items.
        gold: place of each item's label.
        labels: how many there are.

    Raises:
        InputError: a label without two items.
    """
    sizes = np.bincount(gold, minlength=labels)
    if (sizes < 2).any():
        raise InputError("attention vectors need at least two labelled items of every label")
    sums = np.stack([outputs[gold == c].sum(axis=0) for c in range(labels)])
    right, margin = np.zeros(outputs.shape[1:3]), np.zeros(outputs.shape[1:3])
    for item, own in zip(outputs, gold, strict=True):
        means = sums / sizes[:, None, None, None]
        means[own] = (sums[own] - item) / (sizes[own] - 1)
        near = cosines(item, means)  # (labels, layers, heads)
        others = np.delete(near, own, axis=0).max(axis=0)
        right += near[own] > others
        margin += near[own] - others
    accuracy, margin = right / len(outputs), margin / len(outputs)
    layers, heads = accuracy.shape
    places = [(layer, head) for layer in range(layers) for head in range(heads)]
    order = sorted(places, key=lambda at: (-accuracy[at], -margin[at], at))
    return Ranked(accuracy, tuple(order), sums / sizes[:, None, None, None])


def cosines(outputs: Floats, means: Floats) -> Floats:
    """Cosine of an item's head outputs to each class mean: (…, size) and (labels, …, size) -> (labels, …)."""
    sizes = np.linalg.norm(outputs, axis=-1) * np.linalg.norm(means, axis=-1)
    near: Floats = (outputs * means).sum(axis=-1) / np.maximum(sizes, 1e-30)
    return near


def labelled_items(task: Task, per_label: int, seed: int) -> list[Example]:
    """At most so many labelled items of each label, drawn with the seed, in the order of the draw.

    Raises:
        InputError: a task without fixed labels.
    """
    if not task.labels:
        raise InputError(f"task {task.name!r} has no fixed labels, of which attention vectors are means")
    pool = shot_pool(task)
    order = [pool[i] for i in stream(seed, "attention vectors").permutation(len(pool))]
    return [e for label in task.labels for e in [e for e in order if e.label == label][:per_label]]


@dataclass(frozen=True)
class AttentionVectors(PromptMethod):
    """The label whose examples look most alike to a few attention heads; nothing is decoded.

    Each labelled item is asked once, without shots; the heads' outputs at the last token are averaged by label. The
    heads whose nearest mean is right most often, each item judged without itself, vote.

    Attributes:
        heads: how many vote.
        per_label: labelled items of each label.
        random: vote with as many heads drawn with the seed.

    Example:
        >>> amplify.methods.AttentionVectors().label
        'attention_vectors'
    """

    heads: int = 20
    per_label: int = 20
    random: bool = False

    def fit(self, task: Task, model: LanguageModel, seed: int) -> VectorProgram:
        """Look at the labelled items, one forward pass each.

        Raises:
            InputError: a task without fixed labels, or with fewer than two items of one.
            CapabilityError: a model that is not in this process.
        """
        if self.heads < 1 or self.per_label < 2:
            raise InputError(f"{self.name}: heads is 1 or more and per_label 2 or more")
        local = need_local(model, self.name)
        items, form = labelled_items(task, self.per_label, seed), self.form(task)
        outputs = head_outputs([form.prompt(e, prefill=form.marker) for e in items], local)
        found = rank(outputs, np.array([task.labels.index(str(e.label)) for e in items]), len(task.labels))
        order = list(found.order)
        if self.random:
            order = [order[i] for i in stream(seed, "random heads").permutation(len(order))]
        chosen = tuple(order[: self.heads])
        means = tuple(
            tuple(tuple(np.round(found.means[c, layer, head], 6).tolist()) for c in range(len(task.labels)))
            for layer, head in chosen
        )
        accuracy = {f"{layer}.{head}": round(float(found.accuracy[layer, head]), 4) for layer, head in chosen}
        return VectorProgram(
            form, chosen, means, model.id, self.notes_on(task, model), {"items": len(items), "heads": accuracy}
        )


register("method", "attention_vectors", Preset(AttentionVectors, fixed={"random": False}))
register(
    "method", "attention_vectors_random_heads",
    Preset(AttentionVectors, "The same with as many heads drawn at random.", "control", fixed={"random": True}),
)  # fmt: skip


@dataclass(frozen=True)
class VectorProgram(PromptProgram):
    """Heads that vote for the label whose mean output is nearest. Only for the model that it was fitted on.

    Attributes:
        form: how prompts look.
        heads: (layer, head) of each that votes.
        means: of each head its mean output for each label, shape (heads, labels, size).
        model: whose heads they are.
        notes, meta: see `ShotProgram`; meta holds each head's accuracy.
    """

    kind: ClassVar[str] = "attention_vectors"

    form: Form
    heads: tuple[tuple[int, int], ...]
    means: tuple[tuple[tuple[float, ...], ...], ...]
    model: str
    notes: tuple[str, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)

    def prompt(self, example: Example | str) -> Prompt:
        """The prompt for an example or a plain text, up to where its label would stand."""
        return self.form.prompt(as_example(example), prefill=self.form.marker)

    def answer(self, examples: Sequence[Example], model: LanguageModel) -> list[Answer]:
        """One forward pass an example; the rationale says how the heads voted.

        Raises:
            InputError: another model.
        """
        if not examples:
            return []
        if model.id != self.model:
            raise InputError(f"these heads are of {self.model}, and {model.id} has others: fit it on that model")
        prompts = [self.prompt(e) for e in examples]
        local = need_local(model, "attention vectors")
        before = model.count_tokens(prompts)
        outputs, means = head_outputs(prompts, local), np.array(self.means)
        places = tuple(np.array(self.heads).T)
        found = []
        for prompt, size, output in zip(prompts, before, outputs, strict=True):
            near = cosines(output[places], means.transpose(1, 0, 2)).T  # (heads, labels)
            scores = aggregated(log_softmax(SHARPNESS * near), "vote")
            votes = np.bincount(near.argmax(axis=1), minlength=near.shape[1])
            named = sorted(zip(self.form.labels, votes.tolist(), strict=True), key=lambda pair: -pair[1])
            said = ", ".join(f"{label} {n}" for label, n in named if n)
            labels = dict(zip(self.form.labels, scores.tolist(), strict=True))
            best = max(labels, key=labels.__getitem__)
            found.append(Answer(best, best, f"heads for {said}", labels, prompt_tokens=size, calls=1, prompt=prompt))
        return found

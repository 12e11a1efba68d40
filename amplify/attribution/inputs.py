"""What is explained: one input of one model and a target, as a game of words and as differentiable sequences.

Gradients enter an encoder at the output of its embeddings module, which transformers calls `hidden_states[0]`: the sum
of word, position and type embedding of each token, *normalised*. The word embeddings before it would not do: a layer
norm is blind to the length of what it normalises, so the gradient at that sum, times the sum, is 0 whatever the token.
Models without such a module (Llama, GPT-2) are entered at their word embeddings.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from amplify.attribution.masking import located, owner_words, prompt_value, proxy_value
from amplify.attribution.words import Spans, content_words, joined_word, word_spans
from amplify.errors import CapabilityError, ContextLengthError, InputError
from amplify.locks import lock_of
from amplify.models import MODELS, load_model
from amplify.models.base import LanguageModel, LocalModel, check_window, need_local, need_scoring
from amplify.models.pretrained import check_tokens
from amplify.proxies import CARD, Proxy, Row, load_proxy
from amplify.shapley.game import Value
from amplify.text import input_text
from amplify.types import Example, Prompt

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from transformers import PreTrainedModel

Model = str | Path | Proxy | LanguageModel
Given = str | Example | Prompt

_Located = tuple[tuple[tuple[int, ...], tuple[tuple[int, int], ...]], int, Spans]  # of `masking.located`


@dataclass(frozen=True)
class Part:
    """One sequence that scores the target or the foil; a subject's score is the sum over its parts.

    Attributes:
        inputs: what the model's layers read, (1, tokens, width): word embeddings, or of an encoder the output of its
            embeddings module.
        baseline: the same with the padding token in place of each token of a word.
        offsets: characters of each token; those of `spans` and these count in the same text.
        spans: characters of each word.
        score: (points, tokens, width) inputs -> (points,) signed scores.
        attend: () -> attention of each layer, (layers, heads, tokens, tokens), and the positions whose output is read.
        model: what computes the score.
    """

    inputs: Tensor
    baseline: Tensor
    offsets: tuple[tuple[int, int], ...]
    spans: Spans
    score: Callable[[Tensor], Tensor] = field(repr=False)
    attend: Callable[[], tuple[Tensor, Sequence[int]]] = field(repr=False)
    model: PreTrainedModel = field(repr=False)


@dataclass(frozen=True)
class ProxySubject:
    """An example and a label, as a proxy scores it."""

    proxy: Proxy
    example: Example
    spans: Spans
    target: str
    foil: str | None
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The input as the proxy reads it."""
        return input_text(self.example)

    @property
    def model_name(self) -> str:
        """The proxy's name."""
        return self.proxy.name

    def value(self, masking: str) -> Value:
        """See `masking.proxy_value`."""
        return proxy_value(self.proxy, self.example, self.spans, self.target, self.foil, masking=masking)

    def parts(self) -> list[Part]:
        """One per row that scores the target or the foil."""
        self.proxy.require_head("attribution by gradients")
        labels = self.proxy.labels_of(self.example)
        signs = {labels.index(self.target): 1.0} | ({} if self.foil is None else {labels.index(self.foil): -1.0})
        return [
            self._part(row, {row.answers.index(a): sign for a, sign in signs.items() if a in row.answers})
            for row in self.proxy.rows(self.example)
            if signs.keys() & set(row.answers)
        ]

    def _part(self, row: Row, columns: dict[int, float]) -> Part:
        words, mask, types = self.proxy.embed([row])
        whole = embeddings_module(self.proxy.module) is None  # else it normalises what it adds to these
        at = owner_words(row.offsets, self.spans) >= 0
        blank = padded(self.proxy.module, self.proxy.tokenizer, words, at, zeros=not whole)
        inputs, baseline = (inputs_of(self.proxy, [row], x, mask, types) for x in (words, blank))

        def score(points: Tensor) -> Tensor:
            n = len(points)
            same = (x.expand(n, *x.shape[1:]) for x in (words, mask, types))
            scores = score_from(self.proxy, [row] * n, points, *same)
            total: Tensor = sum(sign * scores[:, column] for column, sign in columns.items())
            return total

        def attend() -> tuple[Tensor, Sequence[int]]:
            extra = {"token_type_ids": types} if row.types else {}
            read = (
                sorted({at for c in columns for at, _ in row.targets[c]})
                if row.targets
                else [-1 if self.proxy.left else 0]
            )
            return attentions(self.proxy.module, words, attention_mask=mask, **extra), read

        return Part(
            inputs=inputs,
            baseline=baseline,
            offsets=row.offsets,
            spans=self.spans,
            score=score,
            attend=attend,
            model=self.proxy.module,
        )


@dataclass(frozen=True)
class PromptSubject:
    """A prompt and a continuation, as a language model scores it."""

    model: LanguageModel
    prompt: Prompt
    message: int | None
    text: str
    spans: Spans
    target: str
    foil: str | None
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def model_name(self) -> str:
        """The model's spec."""
        return self.model.id

    def value(self, masking: str) -> Value:
        """See `masking.prompt_value`."""
        scorer = need_scoring(self.model, "attribution by perturbation")
        return prompt_value(
            scorer, self.prompt, self.spans, self.target, self.foil, message=self.message, masking=masking
        )

    def parts(self) -> list[Part]:
        """One for the target, one for the foil; one for both where they differ in their last token only."""
        model = need_local(self.model, "attribution by gradients or attention")
        groups: dict[tuple[tuple[int, ...], int], list[tuple[_Located, float]]] = {}
        for end, sign in ((self.target, 1.0), *([] if self.foil is None else [(self.foil, -1.0)])):
            found = located(model.tokenizer, self.prompt, self.message, self.spans, end)
            groups.setdefault((found[0][0][:-1], found[1]), []).append((found, sign))
        return [self._part(model, group) for group in groups.values()]

    def _part(self, model: LocalModel, ends: Sequence[tuple[_Located, float]]) -> Part:
        import torch

        module = model.module
        (ids, offsets), start, spans = ends[0][0]
        if start == 0:
            raise InputError("the prompt puts no token before its target, so the first has no probability")
        check_tokens([end[0][0] for end, _ in ends], model.tokenizer, module)
        shown = torch.tensor([ids[:-1]], device=module.device)  # the last token predicts nothing
        wanted = torch.tensor([end[0][0][start:] for end, _ in ends], device=module.device).T  # (positions, ends)
        signs = torch.tensor([sign for _, sign in ends], device=module.device)
        inputs = module.get_input_embeddings()(shown).detach()
        keeps = "logits_to_keep" in inspect.signature(module.forward).parameters
        extra: dict[str, Any] = {"logits_to_keep": len(wanted)} if keeps else {}

        def score(points: Tensor) -> Tensor:
            with lock_of(module):
                logits = module(inputs_embeds=points, use_cache=False, **extra).logits[:, -len(wanted) :].float()
            totals: Tensor = logits.log_softmax(-1).gather(2, wanted.expand(len(points), -1, -1)).sum(1)
            return totals @ signs

        def attend() -> tuple[Tensor, Sequence[int]]:
            return attentions(module, inputs), range(start - 1, len(ids) - 1)

        owner = owner_words(offsets, spans)
        owner[start:] = -1
        return Part(
            inputs=inputs,
            baseline=padded(module, model.tokenizer, inputs, owner[:-1] >= 0),
            offsets=tuple((0, 0) if t >= start else place for t, place in enumerate(offsets[:-1])),
            spans=spans,
            score=score,
            attend=attend,
            model=module,
        )


Subject = ProxySubject | PromptSubject
"""One input of one model, and a target with or without a foil."""


def padded(model: PreTrainedModel, tokenizer: Any, inputs: Tensor, words: Any, *, zeros: bool = False) -> Tensor:
    """Word embeddings with the padding token's (else the end token's, else the mean one) in place of some tokens'.

    A vector of zeros, which padding has where it was never trained, is passed over unless `zeros`: layers that
    normalize what they read are steep around it, so that no path from there says much about the input.
    """
    import torch

    table = model.get_input_embeddings()
    with torch.no_grad():
        some = torch.arange(min(table.weight.shape[0], 1000), device=inputs.device)
        filler = table(some).float().mean(0).to(inputs)
        for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
            if token is not None:
                own = table(torch.tensor([token], device=inputs.device))[0]
                if zeros or own.norm() > 1e-3 * inputs.norm(dim=-1).mean():
                    filler = own
                    break
    baseline = inputs.clone()
    baseline[0, torch.from_numpy(np.asarray(words, dtype=bool)).to(inputs.device)] = filler
    return baseline


def attentions(model: PreTrainedModel, inputs: Tensor, **extra: Any) -> Tensor:
    """Attention weights of one sequence, (layers, heads, tokens, tokens), float32."""
    import torch

    with lock_of(model):
        before = model.config._attn_implementation
        model.set_attn_implementation("eager")  # the other kernels do not keep the weights
        try:
            with torch.inference_mode():
                found = model(inputs_embeds=inputs, output_attentions=True, **extra).attentions
        except (AttributeError, TypeError):
            found = None
        finally:
            model.set_attn_implementation(before)
    if not found or any(layer is None for layer in found):
        raise CapabilityError(
            f"{model.config.model_type} shows no attention weights: use integrated_gradients or another explainer by "
            "gradients"
        )
    return torch.stack([layer[0] for layer in found]).float()


def proxy_subject(
    proxy: Proxy,
    given: str | Example,
    target: str | None,
    foil: str | None,
    *,
    segments: Spans | None = None,
    truncate: bool = False,
) -> ProxySubject:
    """Check an input for a proxy.

    Args:
        proxy: the model.
        given: the input.
        target: a label; None: the most probable one.
        foil: another label.
        segments: what is scored, as characters of the text; default: its words.
        truncate: leave out the words that an encoder's window cuts off, instead of refusing the text.
    """
    example = given if isinstance(given, Example) else Example(id="input", text=given)
    text = input_text(example)
    spans = _segments(text, segments)
    proxy.require_head("an explanation")
    rows = proxy.rows(example)
    meta: dict[str, Any] = {}
    if unread := max(row.unread for row in rows):
        if not truncate:
            raise ContextLengthError(
                f"the text goes {unread} characters beyond the {proxy.window} tokens that {proxy.name} reads: shorten "
                "it, or explain what is read of it with truncate=True (--truncate)"
            )
        read = max(b for row in rows for _, b in row.offsets)
        spans = tuple(s for s in spans if s[1] <= read)
        if not spans:
            raise InputError(f"{proxy.name} reads no word of {text.strip()[:60]!r} that may be scored")
        meta["unread_characters"] = unread
    labels = proxy.labels_of(example)
    if target is None:
        target = labels[int(proxy.label_scores([example])[0].argmax())]
    for role, label in (("target", target), ("foil", foil)):
        if label is not None and label not in labels:
            raise InputError(f"the {role} {label!r} is not among the labels {', '.join(map(repr, labels))}")
    _differ(target, foil)
    return ProxySubject(proxy, example, spans, target, foil, meta)


def prompt_subject(
    model: LanguageModel,
    given: str | Prompt,
    target: str | None,
    foil: str | None,
    *,
    segments: Spans | None = None,
    message: int | None = None,
) -> PromptSubject:
    """Check a prompt for a language model.

    Of a chat, the words of message number `message` are scored (None: the last of the user), of raw text all words.
    """
    prompt = Prompt(text=given) if isinstance(given, str) else given
    if prompt.text is None and message is None:
        asked = [i for i, turn in enumerate(prompt.messages) if turn.role == "user"]
        if not asked:
            raise InputError("the chat has no message of the user, whose words would be scored")
        message = asked[-1]
    text = str(prompt.text if message is None else prompt.messages[message].content)
    spans = _segments(text, segments)
    if not target:
        raise InputError('a language model needs a target: the continuation to explain, e.g. target=" Paris"')
    _differ(target, foil)
    if model.max_context is not None:
        ends = [target] if foil is None else [target, foil]
        check_window(
            model.count_tokens([replace(prompt, prefix=prompt.prefix + e) for e in ends]), 0, model.max_context
        )
    meta = {"dtype": str(model.module.dtype).removeprefix("torch.")} if isinstance(model, LocalModel) else {}
    if joined := joined_word((prompt.text or "") + prompt.prefix, target):
        meta["joined"] = joined
    return PromptSubject(model, prompt, message, text, spans, target, foil, meta)


def _segments(text: str, segments: Spans | None) -> Spans:
    if not text.strip():
        raise InputError("the text is empty: there is nothing to explain")
    if segments is None:
        if not any(content_words(text)):
            raise InputError(
                f"{text.strip()[:60]!r} holds nothing but stop words and signs: there is no word to explain by"
            )
        return word_spans(text)
    spans = tuple(sorted((int(a), int(b)) for a, b in segments))
    if not spans:
        raise InputError("segments is empty: give the characters [start, end) of what is to be scored")
    for (a, b), (after, _) in zip(spans, (*spans[1:], (len(text), 0)), strict=True):
        if not 0 <= a < b <= after:
            raise InputError(f"segments are characters [start, end) of the text that do not overlap; [{a}, {b}) is not")
    return spans


def _differ(target: str, foil: str | None) -> None:
    if target == foil:
        raise InputError(f"target and foil are both {target!r}: nothing to contrast")


@contextmanager
def opened(model: Model) -> Iterator[Proxy | LanguageModel]:
    """A proxy or model, loaded if it is only named (and closed again)."""
    if isinstance(model, Proxy):
        yield model
    elif isinstance(model, (str, Path)):
        name = str(model)
        if os.path.isfile(Path(model) / CARD) or name.partition(":")[0] not in MODELS:
            if not os.path.isdir(model):
                raise InputError(
                    f"{name!r} is neither a proxy folder nor a model: give a folder that `amplify proxy` wrote, or "
                    "KIND:MODEL, e.g. transformers:smollm2-135m"
                )
            with load_proxy(model) as proxy:
                yield proxy
        else:
            with load_model(name) as loaded:
                yield loaded
    else:
        yield model


def subject(
    model: Proxy | LanguageModel,
    given: Given,
    target: str | None,
    foil: str | None,
    segments: Spans | None = None,
    *,
    truncate: bool = False,
) -> Subject:
    """One input of an open model, checked."""
    if isinstance(model, Proxy):
        if isinstance(given, Prompt):
            raise InputError("a proxy explains a text or an Example; a Prompt needs a language model (model=…)")
        return proxy_subject(model, given, target, foil, segments=segments, truncate=truncate)
    if isinstance(given, Example):
        raise InputError("a language model explains a text or a Prompt; render the example first, or use a proxy")
    return prompt_subject(model, given, target, foil, segments=segments)


def embeddings_module(model: PreTrainedModel) -> Module | None:
    """The module that makes a model's first hidden states, where it is more than a table of word embeddings."""
    module: Module | None = getattr(model.base_model, "embeddings", None)
    return None if module is model.get_input_embeddings() else module


def inputs_of(proxy: Proxy, rows: Sequence[Row], words: Tensor, mask: Tensor, types: Tensor) -> Tensor:
    """What the layers of a proxy read of some word embeddings, (rows, tokens, width), without gradients.

    Args:
        proxy, rows, mask, types: as in `Proxy.scores`.
        words: (rows, tokens, width of the word embeddings).
    """
    import torch

    module = embeddings_module(proxy.module)
    if module is None:
        return words.detach()
    found: list[Tensor] = []
    with lock_of(proxy.module), torch.no_grad():
        hook = module.register_forward_hook(lambda _module, _args, output: found.append(output))
        try:
            proxy.scores(rows, words, mask, types)
        finally:
            hook.remove()
    return found[0]


def score_from(proxy: Proxy, rows: Sequence[Row], inputs: Tensor, words: Tensor, mask: Tensor, types: Tensor) -> Tensor:
    """`Proxy.scores` of rows whose layers read `inputs`, (rows, tokens, width), as `inputs_of` gives them."""
    module = embeddings_module(proxy.module)
    if module is None:
        return proxy.scores(rows, inputs, mask, types)
    with lock_of(proxy.module):
        hook = module.register_forward_hook(lambda *_: inputs)
        try:
            return proxy.scores(rows, words, mask, types)
        finally:
            hook.remove()

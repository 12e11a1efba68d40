"""A proxy: examples in, scores of their labels out, with or without gradients.

An example becomes a few `Row`s: token sequences, with where their tokens come from and which labels they score.
"""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

import numpy as np
import numpy.typing as npt

from amplify.errors import ContextLengthError, DataError, InputError
from amplify.locks import lock_of, one_at_a_time
from amplify.models.cache import kept_numbers
from amplify.models.pretrained import Closed, batches, fingerprint
from amplify.templates import Template
from amplify.text import input_text, option_spans
from amplify.types import Example

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase


AT_ONCE = 1024  # texts encoded together
_SLOT = "\ue000"  # a private-use character: marks where the input goes into a causal prompt


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence through a proxy.

    Attributes:
        ids: tokens forwarded.
        types: token type of each, () where the model has none.
        offsets: characters [start, end) of `input_text(example)` that each token covers; (0, 0) for special,
            template and label tokens.
        answers: indices into `labels_of(example)` of the labels that this row scores.
        targets: for causal proxies, per answer the (position, next token) pairs whose log-probabilities are summed.
        unread: characters of the input that did not fit into the model's window.

    Example:
        >>> row = Row(ids=(1, 7, 2), types=(), offsets=((0, 0), (0, 4), (0, 0)), answers=(0, 1))
        >>> len(row.ids), row.unread
        (3, 0)
    """

    ids: tuple[int, ...]
    types: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]
    answers: tuple[int, ...]
    targets: tuple[tuple[tuple[int, int], ...], ...] = ()
    unread: int = 0


class Reader(Protocol):
    """What rows are cut for: the parts of a `Proxy` that say how it reads."""

    @property
    def name(self) -> str:
        """Told in errors."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The fixed label set; empty where examples bring their own choices."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Gives tokens and their offsets."""

    @property
    def card(self) -> Mapping[str, Any]:
        """With the prompt template of a causal proxy and what it is filled with."""

    @property
    def window(self) -> int:
        """Longest sequence in tokens."""

    def labels_of(self, example: Example) -> tuple[str, ...]:
        """The labels to score, in order."""


def encoder_rows(proxy: Reader, examples: Sequence[Example], offsets: bool = True) -> list[list[Row]]:
    """Of each example one row for a fixed label set; one (input, option) row per choice otherwise.

    Args:
        proxy: how it reads.
        examples: the inputs.
        offsets: where each token is, and what is unread; finding them takes as long as the tokens.
    """
    found: list[list[Row]] = []
    for example in examples:
        if proxy.labels and example.choices and example.choices != proxy.labels:
            raise InputError(
                f"example {example.id!r} brings its own choices {example.choices}, but this proxy was trained on the "
                f"fixed labels {proxy.labels}"
            )
    if not proxy.labels:
        return [[_pair_row(proxy, example, i) for i in range(len(example.choices))] for example in examples]
    answers = tuple(range(len(proxy.labels)))
    for start in range(0, len(examples), AT_ONCE):
        texts = [input_text(example) for example in examples[start : start + AT_ONCE]]
        encoded = proxy.tokenizer(
            texts, truncation=True, max_length=proxy.window, return_offsets_mapping=offsets, return_attention_mask=False
        )
        if offsets:
            found += [[_row(proxy, encoded, i, text, answers, (0, 0))] for i, text in enumerate(texts)]
        else:
            found += [[_some(proxy, encoded, i, (), answers)] for i in range(len(texts))]
    return found


def _pair_row(proxy: Reader, example: Example, option: int) -> Row:
    second = (example.options or example.choices)[option]
    encoded = proxy.tokenizer(
        [example.text], [second], truncation="longest_first", max_length=proxy.window, return_offsets_mapping=True
    )
    shift = (0, option_spans(example)[option][0] if example.options else -1)
    return _row(proxy, encoded, 0, example.text, (option,), shift)


def _row(
    proxy: Reader, encoded: BatchEncoding, i: int, text: str, answers: tuple[int, ...], shift: tuple[int, int]
) -> Row:
    """Number `i` of what was encoded; `shift`: where each part begins in the input's text, -1 for one that is none."""
    places, parts = encoded["offset_mapping"][i], encoded.sequence_ids(i)
    offsets = [
        (0, 0) if part is None or shift[part] < 0 else (start + shift[part], end + shift[part])
        for (start, end), part in zip(places, parts, strict=True)
    ]
    read = max((end for (_, end), part in zip(places, parts, strict=True) if part == 0), default=0)
    unread = max(len(text.rstrip()) - read, 0)
    return _some(proxy, encoded, i, tuple(offsets) or ((0, 0),), answers, unread)


def _some(
    proxy: Reader, encoded: BatchEncoding, i: int, offsets: tuple[tuple[int, int], ...], answers: tuple[int, ...],
    unread: int = 0,
) -> Row:  # fmt: skip
    """Number `i` as a row: the padding token alone where a tokenizer makes nothing of an empty text."""
    ids = tuple(encoded["input_ids"][i]) or (proxy.tokenizer.pad_token_id or 0,)
    types = tuple(encoded["token_type_ids"][i]) or (0,) if "token_type_ids" in encoded else ()
    return Row(ids, types, offsets, answers, unread=unread)


def _causal_prompt(card: Mapping[str, Any], text: str) -> tuple[str, int]:
    """The prompt, and where the input starts in it."""
    values = {"instruction": card["instruction"], "input_name": card["input_name"], "text": _SLOT}
    rendered = Template("of the proxy", card["template"]).render(values)
    if rendered.count(_SLOT) != 1:
        raise InputError("the prompt template of a causal proxy must use {{ text }} exactly once")
    return rendered.replace(_SLOT, text), rendered.index(_SLOT)


def causal_rows(proxy: Reader, example: Example) -> list[Row]:
    """Labels whose sequences differ in their last token only share a row; that token is never forwarded."""
    text = input_text(example)
    prompt, at = _causal_prompt(proxy.card, text)
    shared: dict[tuple[int, ...], tuple[list[tuple[int, int]], list[int], list[tuple[tuple[int, int], ...]]]] = {}
    for answer, label in enumerate(proxy.labels_of(example)):
        encoded = proxy.tokenizer(f"{prompt} {label}", return_offsets_mapping=True)
        ids, places = list(encoded["input_ids"]), list(encoded["offset_mapping"])
        while places and places[-1][1] <= places[-1][0]:  # an end token that the tokenizer adds
            ids.pop(), places.pop()
        target = [i for i, (_, end) in enumerate(places) if end > len(prompt)]
        if not target or target[0] == 0:
            raise InputError(f"label {label!r} has no token of its own behind the prompt of example {example.id!r}")
        if len(ids) - 1 > proxy.window:
            raise ContextLengthError(
                f"example {example.id!r} needs {len(ids) - 1} tokens, the proxy {proxy.name} reads {proxy.window}: "
                "shorten the input or take a proxy with a longer window"
            )
        offsets = [
            (max(a - at, 0), min(b - at, len(text))) if a < at + len(text) and b > at else (0, 0) for a, b in places
        ]
        _, answers, targets = shared.setdefault(tuple(ids[:-1]), (offsets[:-1], [], []))
        answers.append(answer)
        targets.append(tuple((i - 1, ids[i]) for i in target))
    return [
        Row(ids, (), tuple(offsets), tuple(answers), tuple(targets))
        for ids, (offsets, answers, targets) in shared.items()
    ]


def from_model(model: Any, tokenizer: Any, labels: Sequence[str] | None, name: str | None) -> Proxy:
    """See `Proxy.from_model`."""
    own = getattr(getattr(model, "config", None), "id2label", None)
    if own is None or not type(model).__name__.endswith("ForSequenceClassification"):
        raise InputError(
            f"a proxy in hand is a model for sequence classification, not {type(model).__name__}: load it with "
            "AutoModelForSequenceClassification. (A language model is explained as amplify.TransformersModel)"
        )
    if not getattr(tokenizer, "is_fast", False):
        raise InputError("this tokenizer gives no character offsets; a proxy needs a fast one")
    wanted = tuple(labels) if labels is not None else tuple(str(own[i]) for i in sorted(own))
    if len(wanted) != len(own) or len(set(wanted)) != len(wanted):
        raise InputError(f"the classifier has {len(own)} columns: give as many different labels, not {list(wanted)}")
    called = name or Path(str(getattr(model.config, "_name_or_path", "") or type(model).__name__)).name
    card: dict[str, Any] = {
        "body": {"name": called},
        "task": "inputs in hand",
        "task_fingerprint": "",
        "columns": columns_of(wanted, own) or list(range(len(wanted))),
    }
    made = f"{fingerprint(model)} {wanted} {card['columns']}"
    identity = hashlib.sha256(made.encode()).hexdigest()
    proxy = Proxy(Path(called), "encoder", wanted, True, identity, model.eval(), tokenizer, card)
    card["padding"] = _padding(proxy)
    if proxy.left and model.config.pad_token_id is None:
        raise InputError(
            "the classifier has no padding token: set model.config.pad_token_id, e.g. to the end token's id"
        )
    return proxy


def _padding(proxy: Proxy) -> str:
    """The side on which rows may be padded without changing a score: tried on the model, not believed."""
    import torch

    short, long = [proxy.tokenizer(text)["input_ids"] for text in ("a b", "a b " * 8)]
    with lock_of(proxy.module), torch.inference_mode():
        takes = "position_ids" in inspect.signature(proxy.module.forward).parameters
        embeddings = proxy.module.get_input_embeddings()
        device, shift = embeddings.weight.device, len(long) - len(short)
        alone = proxy.module(inputs_embeds=embeddings(torch.tensor([short], device=device))).logits
        for side in ("right", "left"):
            gap = (0, shift) if side == "right" else (shift, 0)
            ids = torch.nn.functional.pad(torch.tensor([short], device=device), gap, value=short[0])
            mask = torch.nn.functional.pad(torch.ones(1, len(short), dtype=torch.int64, device=device), gap)
            extra = {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)} if side == "left" and takes else {}
            padded = proxy.module(inputs_embeds=embeddings(ids), attention_mask=mask, **extra).logits
            if torch.allclose(alone, padded, rtol=0, atol=1e-3 if alone.dtype == torch.float32 else 0.1):
                return side
    raise InputError(
        f"{type(proxy.module).__name__} gives other scores where its input is padded, so it cannot be used"
    )


Kind = Literal["encoder", "causal"]


@dataclass(frozen=True, eq=False)
class Proxy:
    """A small model that scores the labels of a task's examples.

    Attributes:
        folder: where the model lies (the body's own folder for one taken as it is).
        kind: "encoder" or "causal".
        labels: the fixed label set, in the task's order; empty where examples bring their own choices.
        trained: False for an encoder whose head is freshly initialised: its probabilities are chance and its
            gradients noise.
        identity: SHA-256 over everything that made it.
        module: in evaluation mode, float32, parameters frozen.
        card: how it was made and how good it is.

    Example:
        >>> proxy = amplify.train_proxy(amplify.load_task("planted_single", limit=4), encoder, epochs=1, progress=False)
        >>> proxy.kind, proxy.labels
        ('encoder', ('left', 'right'))
    """

    folder: Path
    kind: Kind
    labels: tuple[str, ...]
    trained: bool
    identity: str
    module: PreTrainedModel = field(repr=False)
    tokenizer: PreTrainedTokenizerBase = field(repr=False)
    card: Mapping[str, Any] = field(repr=False)

    @classmethod
    def from_model(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        labels: Sequence[str] | None = None,
        *,
        name: str | None = None,
    ) -> Proxy:
        """A classifier of one's own as a proxy, to be explained, or to explain for a larger model.

        Args:
            model: any `AutoModelForSequenceClassification`; it is put in evaluation mode.
            tokenizer: its fast tokenizer.
            labels: one for each column of its head. Where they are the head's own names for its columns in another
                order, each finds its column; else they go by place. None: the head's own names.
            name: what it is called in results; None: what it was loaded from.

        Raises:
            InputError: no classifier, a slow tokenizer, or as many labels as the head has not columns.

        Example:
            >>> proxy = amplify.Proxy.from_model(classifier, its_tokenizer, ["negative", "positive"])
            >>> amplify.explain("A dull film.", target="negative", model=proxy).words
            ('A', 'dull', 'film')
        """
        from amplify.proxies.proxy import from_model

        return from_model(model, tokenizer, labels, name)

    def close(self) -> None:
        """Let go of the module, which frees its memory where nothing else holds it. Calling it twice is fine."""
        if isinstance(self.module, Closed):
            return
        with lock_of(self.module):  # whoever is in the middle of a call finishes it
            object.__setattr__(self, "module", Closed(f"the proxy {self.name}"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def left(self) -> bool:
        """Whether rows are padded on the left: of language models, whose last token is read."""
        return bool(self.kind == "causal" or self.card.get("padding") == "left")

    @property
    def name(self) -> str:
        """Short name for records: the body and the first digits of the identity."""
        return f"{self.card['body'].get('name', self.kind)}@{self.identity[:12]}"

    def __str__(self) -> str:
        found = self.card.get("validation", {})
        good = (
            ""
            if found.get("accuracy") is None
            else f", accuracy {found['accuracy']:.3f} of {found.get('examples', 'some')} others"
        )
        return f"{self.kind} proxy {self.name} for {self.card['task']}{good} ({self.folder})"

    @property
    def window(self) -> int:
        """Longest sequence in tokens."""
        config = self.module.config
        size = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or 2**30
        if config.model_type in ("roberta", "xlm-roberta", "camembert"):  # positions start behind the padding index
            size -= config.pad_token_id + 1
        return int(min(size, self.tokenizer.model_max_length))

    def require_head(self, purpose: str) -> None:
        """Refuse an untrained classification head.

        Raises:
            InputError: the head is freshly initialised.
        """
        if self.kind == "encoder" and not self.trained:
            raise InputError(
                f"{purpose} needs a trained proxy: the classification head of {self.name} is untrained, so its "
                "probabilities are chance and its gradients noise. Train it with amplify.train_proxy(task, epochs=4), "
                "or take a causal language model as it is (body='smollm2-135m', epochs=0)."
            )

    def labels_of(self, example: Example) -> tuple[str, ...]:
        """The labels that `probabilities` covers, in order."""
        return example.choices or self.labels

    def rows(self, example: Example) -> list[Row]:
        """The sequences that score this example's labels; together their `answers` cover each label once.

        Raises:
            InputError: the example has no labels, or choices where the head has a fixed label set.
            ContextLengthError: a causal prompt exceeds the window. (An encoder reads as much of the input as fits.)
        """
        return self.rows_of([example])[0]

    def rows_of(self, examples: Sequence[Example], *, offsets: bool = True) -> list[list[Row]]:
        """`rows` of many examples: an encoder's tokenizer is quicker with them together.

        Args:
            examples: the inputs.
            offsets: False where they are only scored: an encoder's rows may then say () and nothing of what is unread.
        """
        for example in examples:
            if not self.labels_of(example):
                raise InputError(
                    f"example {example.id!r} has neither choices nor a fixed label set: no proxy can score it"
                )
        with lock_of(self.tokenizer):
            if self.kind == "causal":
                return [causal_rows(self, example) for example in examples]
            return encoder_rows(self, examples, offsets)

    @one_at_a_time
    def embed(self, rows: Sequence[Row]) -> tuple[Tensor, Tensor, Tensor]:
        """Word embeddings, attention mask and token types of padded rows: (rows, tokens, width), 2 x (rows, tokens).

        Encoders are padded right, causal models left (what is read of them then ends at the last position).
        """
        import torch

        from amplify.models.pretrained import check_tokens

        length = max(len(row.ids) for row in rows)
        ids = np.full((len(rows), length), self.tokenizer.pad_token_id or 0, dtype=np.int64)
        types = np.zeros_like(ids)
        held = np.arange(length) < np.array([len(row.ids) for row in rows])[:, None]
        held = held[:, ::-1] if self.left else held
        ids[held] = [token for row in rows for token in row.ids]
        if rows[0].types:
            types[held] = [kind for row in rows for kind in row.types]
        mask = held.astype(np.int64)
        check_tokens([row.ids for row in rows], self.tokenizer, self.module)
        device = self.module.device
        embeddings = self.module.get_input_embeddings()(torch.from_numpy(ids).to(device))
        return embeddings, torch.from_numpy(mask).to(device), torch.from_numpy(types).to(device)

    @one_at_a_time
    def scores(self, rows: Sequence[Row], embeddings: Tensor, mask: Tensor, types: Tensor) -> Tensor:
        """Each row's answers scored: logits (encoder) or log-probabilities (causal), float32.

        Args:
            rows: R rows.
            embeddings, mask, types: what `embed(rows)` gave; embeddings may require gradients.

        Returns:
            Shape (R, most answers of a row); -inf where a row has fewer.
        """
        import torch

        if self.kind == "encoder":
            extra = {"token_type_ids": types} if rows[0].types else {}
            if self.left:
                extra["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
            logits = self.module(inputs_embeds=embeddings, attention_mask=mask, **extra).logits
            return logits.float()[:, self.card["columns"]]
        length = embeddings.shape[1]
        first = min(length - len(row.ids) + at for row in rows for target in row.targets for at, _ in target)
        out = self.module(
            inputs_embeds=embeddings,
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            logits_to_keep=length - first,
            use_cache=False,
        )
        logprobs = out.logits.float().log_softmax(-1)
        width = max(len(row.answers) for row in rows)
        columns = []
        for i, row in enumerate(rows):
            shift = length - len(row.ids) - first
            sums = [
                logprobs[i, [shift + at for at, _ in target], [token for _, token in target]].sum()
                for target in row.targets
            ]
            sums += [logprobs.new_tensor(-math.inf)] * (width - len(sums))
            columns.append(torch.stack(sums))
        return torch.stack(columns)

    @one_at_a_time
    def label_scores(self, examples: Sequence[Example], *, batch_tokens: int = 2048) -> list[npt.NDArray[np.float64]]:
        """Logits or log-probabilities of `labels_of(example)`, one array per example; no gradients."""
        rows = self.rows_of(examples, offsets=False)
        asked = [repr((self.labels_of(example), own)) for example, own in zip(examples, rows, strict=True)]
        return kept_numbers(
            ["proxy", self.identity, *versions().values()],
            asked,
            lambda new: self._label_scores([examples[i] for i in new], [rows[i] for i in new], batch_tokens),
        )

    def _label_scores(
        self, examples: Sequence[Example], rows_of: Sequence[Sequence[Row]], batch_tokens: int
    ) -> list[npt.NDArray[np.float64]]:
        import torch

        rows = [(i, row) for i, own in enumerate(rows_of) for row in own]
        result = [np.full(len(self.labels_of(example)), -np.inf) for example in examples]
        for batch in batches([len(row.ids) for _, row in rows], batch_tokens):
            group = [rows[j][1] for j in batch]
            with torch.inference_mode():
                scores = self.scores(group, *self.embed(group)).cpu().numpy()
            if np.isnan(scores).any():
                raise DataError(f"the proxy {self.name} gives no number as a score: check the weights of {self.folder}")
            for j, values in zip(batch, scores, strict=True):
                i, row = rows[j]
                result[i][list(row.answers)] = values[: len(row.answers)]
        return result

    def probabilities(self, examples: Sequence[Example], *, batch_tokens: int = 2048) -> list[npt.NDArray[np.float64]]:
        """Softmax of `label_scores`: one row per example over `labels_of(example)`."""
        return [softmax(scores) for scores in self.label_scores(examples, batch_tokens=batch_tokens)]

    def accuracy(self, examples: Sequence[Example]) -> float:
        """Share of labelled examples whose most probable label is the gold one."""
        guesses = self.label_scores(examples)
        right = [self.labels_of(e)[int(g.argmax())] == e.label for e, g in zip(examples, guesses, strict=True)]
        return float(np.mean(right))


def softmax(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Probabilities of a vector of logits.

    Example:
        >>> softmax(np.zeros(2))
        array([0.5, 0.5])
    """
    odds = np.exp(scores - scores.max())
    return odds / odds.sum()


def versions() -> dict[str, str]:
    """Versions of what computes a proxy's numbers.

    Example:
        >>> versions()["amplify"] == amplify.__version__
        True
    """
    import torch
    import transformers

    import amplify

    return {"amplify": amplify.__version__, "torch": torch.__version__, "transformers": transformers.__version__}


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

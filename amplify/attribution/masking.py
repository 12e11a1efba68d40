"""The words of one input as a game: which of them stay -> the model's score of a target (less that of a foil).

A word that does not stay is masked in one of four ways:

| masking     | what the model reads                                                                             |
|-------------|--------------------------------------------------------------------------------------------------|
| `delete`    | the text without the word, tokenised anew                                                        |
| `pad`       | the padding token in place of each of its tokens                                                 |
| `mask`      | the mask token in place of each of its tokens (encoders trained with one)                        |
| `attention` | its tokens are hidden from all others, which keep their positions (causal proxies close the gap) |
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from amplify.attribution.words import Spans, only_words
from amplify.errors import InputError, UnknownNameError
from amplify.locks import lock_of
from amplify.models import chat
from amplify.models.base import LocalModel, ScoringModel, need_local
from amplify.models.pretrained import batches
from amplify.models.tree.tree import TokenTree, trie
from amplify.proxies import Proxy, Row
from amplify.shapley.game import Coalitions, Floats, Value
from amplify.types import Example, Message, Prompt, Span

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REMOVALS = ("delete", "pad", "mask", "attention")

CPU_TOKENS, GPU_TOKENS = 512, 16_384  # padded tokens of a pass; on a CPU what its caches hold (measured with MiniLM)
CPU_WIDTH = 384  # of the hidden states that this was measured with: of narrower ones the caches hold more

NOTHING = "\n"  # stands for a prompt without a word: a model that puts no token in front needs one to go on from

T = TypeVar("T")


def proxy_value(
    proxy: Proxy, example: Example, spans: Spans, target: str, foil: str | None = None, *, masking: str = "delete"
) -> Value:
    """The target's score (less the foil's) by which words of a proxy's input stay.

    Args:
        proxy: an encoder with a trained head, or any causal proxy.
        example: the input.
        spans: the words that may be left out, of `amplify.text.input_text(example)`; the others always stay.
        target: label whose logit (encoder) or log-probability (causal) is the value.
        foil: label whose score is subtracted.
        masking: of `REMOVALS`.

    Raises:
        InputError: an untrained head, a label that the example does not have, or a masking that the model cannot do.
    """
    check_removal(masking)
    proxy.require_head("attribution by perturbation")
    labels = proxy.labels_of(example)
    for label in (target, *([] if foil is None else [foil])):
        if label not in labels:
            raise InputError(f"{label!r} is not among the labels {labels} of example {example.id!r}")
    if masking == "delete":
        reached = _within_reach(proxy, example)

        def rows_of(kept: Coalitions) -> list[list[tuple[Row, tuple[int, ...]]]]:
            cut = only_words(reached, spans, kept)
            return [[(row, ()) for row in rows] for rows in proxy.rows_of(cut, offsets=False)]
    else:
        filler = filler_token(proxy.tokenizer, masking, proxy.name)
        plain = proxy.rows(example)
        owners = [owner_words(r.offsets, spans) for r in plain]

        def rows_of(kept: Coalitions) -> list[list[tuple[Row, tuple[int, ...]]]]:
            return [
                [
                    _without_tokens(r, np.flatnonzero((o >= 0) & ~row[o]).tolist(), filler)
                    for r, o in zip(plain, owners, strict=True)
                ]
                for row in kept
            ]

    def evaluate(kept: Coalitions) -> Floats:
        rows = rows_of(kept)
        flat = [(i, row, hidden) for i, some in enumerate(rows) for row, hidden in some]
        scores = np.full((len(kept), len(labels)), -np.inf)
        for i, row, values in zip(*_columns(flat), _row_scores(proxy, flat), strict=True):
            scores[i, list(row.answers)] = values[: len(row.answers)]
        against = 0.0 if foil is None else scores[:, labels.index(foil)]
        return np.asarray(scores[:, labels.index(target)] - against)

    return evaluate


def _within_reach(proxy: Proxy, example: Example) -> Example:
    """The example without what an encoder does not read even where all the words that it reads are deleted."""
    if proxy.kind == "causal" or not proxy.labels:
        return example
    with lock_of(proxy.tokenizer):
        encoded = proxy.tokenizer(
            example.text, truncation=True, max_length=2 * proxy.window + 64, return_offsets_mapping=True
        )
    end = max((stop for _, stop in encoded["offset_mapping"]), default=0)
    return replace(example, text=example.text[:end]) if end < len(example.text.rstrip()) else example


def prompt_value(
    model: ScoringModel,
    prompt: Prompt,
    spans: Spans,
    target: str,
    foil: str | None = None,
    *,
    message: int | None = None,
    masking: str = "delete",
) -> Value:
    """Log-probability of a continuation (less the foil's) by which words of a prompt stay.

    All coalitions asked for together are scored together: where the model shares prefixes, what comes before the
    first word removed is computed once.

    Args:
        model: any scorer to delete words; a `LocalModel` for the other maskings.
        prompt: raw text or messages.
        spans: the words that may be left out, of `prompt.text` or of the content of `message`; the rest always stays.
        target: what follows the prompt: a token, a label or a whole text. The value is the log-probability of all of
            it, from one forward pass.
        foil: another continuation, whose log-probability is subtracted.
        message: the message that `spans` are of; None for raw text.
        masking: of `REMOVALS`.

    Raises:
        InputError: the masking is not possible with this tokenizer.
        CapabilityError: a masking other than "delete" on a model that is no `LocalModel`.
    """
    check_removal(masking)
    ends = (target,) if foil is None else (target, foil)
    if masking == "delete":

        def score(kept: Coalitions) -> list[float]:
            cut = [without_spans(prompt, message, _gone(spans, row)) for row in kept.tolist()]
            found = model.score([p for p in cut for _ in ends], [end for _ in cut for end in ends])
            return [one.total for one in found]
    else:
        white = need_local(model, f"masking={masking!r}")
        filler = filler_token(white.tokenizer, masking, model.id)
        placed = [place(white.tokenizer, prompt, message, spans, end) for end in ends]
        nothing = chat.encode(white.tokenizer, NOTHING)[-1]

        def score(kept: Coalitions) -> list[float]:
            sequences: list[list[tuple[int, int]]] = []
            starts: list[int] = []
            for row in kept:
                for ids, start, owner in placed:
                    gone = (owner >= 0) & ~row[owner]
                    items = [
                        (filler if gone[at] and filler is not None else token, at)
                        for at, token in enumerate(ids)
                        if not (gone[at] and filler is None)
                    ]
                    if len(items) == len(ids) - start:
                        items.insert(0, (nothing, start - 1))
                    sequences.append(items)
                    starts.append(len(items) - (len(ids) - start))
            return score_positioned(white, sequences, starts)

    def evaluate(kept: Coalitions) -> Floats:
        totals = np.array(score(kept)).reshape(len(kept), len(ends))
        return np.asarray(totals[:, 0] - (totals[:, 1] if foil is not None else 0.0))

    return evaluate


def batch_tokens(proxy: Proxy) -> int:
    """Padded tokens in one pass of perturbed inputs."""
    if proxy.module.device.type != "cpu":
        return GPU_TOKENS
    return CPU_TOKENS * max(1, CPU_WIDTH // proxy.module.get_input_embeddings().weight.shape[1])


def check_removal(masking: str) -> None:
    """Refuse an unknown masking."""
    if masking not in REMOVALS:
        raise UnknownNameError("masking", masking, REMOVALS)


def filler_token(tokenizer: PreTrainedTokenizerBase, masking: str, model: str) -> int | None:
    """The token that stands for a removed one; None where it is hidden.

    Raises:
        InputError: the tokenizer has no such token.
    """
    if masking == "attention":
        return None
    token = tokenizer.mask_token_id if masking == "mask" else tokenizer.pad_token_id
    if token is None and masking == "pad":
        token = tokenizer.eos_token_id  # what models without a padding token are padded with
    if token is None:
        raise InputError(f"{model} has no {masking} token: use masking='delete', 'pad' or 'attention'")
    return int(token)


def owner_words(offsets: Sequence[tuple[int, int]], spans: Spans) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """For each token the word that it belongs to, -1 for none; a token over two words is the one's it has more of.

    Example:
        >>> owner_words([(0, 3), (3, 5), (5, 6)], ((0, 5), (6, 9)))
        array([ 0,  0, -1])
    """
    owner = np.full(len(offsets), -1)
    starts = [a for a, _ in spans]
    for token, (a, b) in enumerate(offsets):
        most = 0
        for word in range(max(int(np.searchsorted(starts, a, side="right")) - 1, 0), len(spans)):
            if spans[word][0] >= b:
                break
            if (shared := min(b, spans[word][1]) - max(a, spans[word][0])) > most:
                most, owner[token] = shared, word
    return owner


def without_spans(prompt: Prompt, message: int | None, gone: Collection[tuple[int, int]]) -> Prompt:
    """The prompt with some words of its text (or of one message) deleted, and a blank with each.

    Example:
        >>> without_spans(Prompt(text="One two three"), None, [(4, 7)]).text
        'One three'
    """
    content = prompt.text if message is None else prompt.messages[message].content
    kept, at = "", 0
    for a, b in sorted(gone):
        kept, at = _joined(kept, str(content)[at:a]), b
    content = _joined(kept, str(content)[at:]) if gone else content
    if message is None:
        empty = not content and not prompt.prefix
        return replace(prompt, text=NOTHING if empty else content, emphasis=())
    turns = list(prompt.messages)
    turns[message] = Message(turns[message].role, str(content))
    return replace(prompt, messages=tuple(turns), emphasis=())


def _joined(left: str, right: str) -> str:
    """Two pieces of a text, one blank between them where both have one at the cut."""
    return left + (right.lstrip(" \t") if not left or left[-1].isspace() else right)


def place(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, message: int | None, spans: Spans, continuation: str
) -> tuple[tuple[int, ...], int, np.ndarray[tuple[int], np.dtype[np.int64]]]:
    """Tokens of a prompt with its continuation, where the continuation starts, and the word that owns each token."""
    encoded, start, words = located(tokenizer, prompt, message, spans, continuation)
    owner = owner_words(encoded[1], words)
    owner[start:] = -1
    return encoded[0], start, owner


def located(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, message: int | None, spans: Spans, continuation: str
) -> tuple[tuple[tuple[int, ...], tuple[tuple[int, int], ...]], int, Spans]:
    """Tokens and their offsets in the rendered text, where the continuation starts, and the words in that text."""
    marked = replace(prompt, emphasis=tuple(Span(a, b, message=message) for a, b in spans))
    rendered = chat.render(marked, tokenizer)
    words = tuple((s.start, s.end) for s in rendered.emphasis)
    if len(words) != len(spans):
        raise InputError("the chat template shows a message twice, so its words cannot be told apart: use raw text")
    [(encoded, start)] = chat.encode_with_targets(tokenizer, [rendered], [continuation])
    return (encoded.ids, encoded.offsets), start, words


def score_positioned(
    model: LocalModel, sequences: Sequence[Sequence[tuple[int, int]]], starts: Sequence[int]
) -> list[float]:
    """Log-probability of each sequence's tokens from `starts` on; items are (token, position), gaps allowed."""
    tree, wanted = _positioned(*trie(sequences, starts), starts)
    nodes = sorted({node for some in wanted for node in some})
    totals = {n: found.total for n, found in zip(nodes, model.score_tree(tree, nodes), strict=True)}
    return [sum(totals[n] for n in some) for some in wanted]


def _positioned(tree: TokenTree, paths: list[list[int]], starts: Sequence[int]) -> tuple[TokenTree, list[list[int]]]:
    """A tree of (token, position) items as a tree of tokens with positions, cut at gaps; and each target's nodes."""
    segments: list[tuple[int, ...]] = []
    parents: list[int] = []
    positions: dict[int, int] = {}
    pieces: list[list[int]] = []  # old node -> new nodes
    for segment, parent in zip(tree.segments, tree.parents, strict=True):
        items: tuple[tuple[int, int], ...] = segment  # type: ignore[assignment]
        cuts = [0, *(i for i in range(1, len(items)) if items[i][1] != items[i - 1][1] + 1), len(items)]
        above = pieces[parent][-1] if parent >= 0 else -1
        pieces.append([])
        for a, b in pairwise(cuts):
            pieces[-1].append(len(segments))
            positions[len(segments)] = items[a][1]
            segments.append(tuple(token for token, _ in items[a:b]))
            parents.append(above)
            above = pieces[-1][-1]
    wanted = []
    for path, start in zip(paths, starts, strict=True):
        nodes = [piece for node in path for piece in pieces[node]]
        ends = np.cumsum([len(segments[n]) for n in nodes])
        wanted.append([n for n, end in zip(nodes, ends, strict=True) if end > start])
    return TokenTree(tuple(segments), tuple(parents), positions=positions), wanted


def _gone(spans: Spans, kept: Sequence[bool]) -> list[tuple[int, int]]:
    return [span for span, stays in zip(spans, kept, strict=True) if not stays]


def _without_tokens(row: Row, gone: Iterable[int], filler: int | None) -> tuple[Row, tuple[int, ...]]:
    """A row with some tokens replaced; or left as it is, with the positions to hide."""
    if filler is None:
        return row, tuple(int(t) for t in gone)
    ids = list(row.ids)
    for token in gone:
        ids[token] = filler
    return replace(row, ids=tuple(ids)), ()


def _columns(flat: Sequence[tuple[int, Row, T]]) -> tuple[list[int], list[Row]]:
    return [i for i, _, _ in flat], [row for _, row, _ in flat]


def _row_scores(proxy: Proxy, flat: Sequence[tuple[int, Row, tuple[int, ...]]]) -> list[Floats]:
    """The scores of each row's answers, in batches of similar length."""
    import torch

    found: list[Floats] = [np.zeros(0)] * len(flat)
    for batch in batches([len(row.ids) for _, row, _ in flat], batch_tokens(proxy)):
        rows = [flat[j][1] for j in batch]
        with lock_of(proxy.module), torch.inference_mode():
            embeddings, mask, types = proxy.embed(rows)
            for i, j in enumerate(batch):
                if hidden := flat[j][2]:
                    shift = mask.shape[1] - len(rows[i].ids) if proxy.left else 0
                    mask[i, [shift + at for at in hidden]] = 0
            scores = proxy.scores(rows, embeddings, mask, types).cpu().numpy()
        for j, values in zip(batch, scores, strict=True):
            found[j] = values
    return found

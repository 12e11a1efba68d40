"""From prompts to tokens: the exact text a model reads, where emphasis lies in it, and where a target begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from amplify.errors import CapabilityError, InputError, PromptFormatError
from amplify.locks import lock_of
from amplify.text import opens_block, split_reasoning
from amplify.types import Completion, Prompt, Span

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Rendered:
    """What a prompt says, exactly.

    Attributes:
        text: the text after the chat template, the answer prefix included.
        chat: it came out of a chat template, which writes its own special tokens: none are added to it.
        emphasis: spans as character offsets of `text` (their `message` is None), weights kept.
    """

    text: str
    chat: bool = False
    emphasis: tuple[Span, ...] = ()

    @property
    def answering(self) -> Rendered:
        """The same with the reasoning block closed that the chat template opened: what follows is the answer."""
        closing = opens_block(self.text) if self.chat else ""
        return replace(self, text=f"{self.text.rstrip()}\n\n{closing}\n\n") if closing else self

    def whole(self, completion: Completion) -> Completion:
        """A completion with the tag in front by which the chat template opened its reasoning block."""
        closing = opens_block(self.text) if self.chat else ""
        opening = closing.replace("/", "", 1)
        return replace(completion, text=f"{opening}\n{completion.text}") if closing else completion


@dataclass(frozen=True, slots=True)
class Encoded:
    """One tokenisation.

    Attributes:
        ids: token ids, special tokens in front included.
        offsets: characters [start, end) of the text that each token holds; (0, 0) for added special tokens.
    """

    ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]


def render(prompt: Prompt, tokenizer: PreTrainedTokenizerBase) -> Rendered:
    """The text a prompt becomes.

    Where the chat template opens a reasoning block, a prompt that begins the answer (`prefix`) closes it first.

    Raises:
        InputError: messages for a model without a chat template, a role or order that the template refuses, or
            emphasis on text that the template drops or rewrites.
    """
    if prompt.text is not None:
        return Rendered(prompt.text + prompt.prefix, emphasis=prompt.emphasis)
    contents = [m.content for m in prompt.messages]
    text = _chat(prompt, contents, tokenizer)
    spans: tuple[Span, ...] = ()
    if prompt.emphasis:
        places = _places(prompt, contents, text, tokenizer)
        spans = tuple(moved for span in prompt.emphasis for moved in _moved(span, contents, places))
    rendered = Rendered(text, chat=True, emphasis=spans)
    if prompt.prefix and split_reasoning(prompt.prefix)[1] == prompt.prefix:  # one that itself thinks stays as it is
        rendered = rendered.answering
    return replace(rendered, text=rendered.text + prompt.prefix)


def _chat(prompt: Prompt, contents: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> str:
    from jinja2 import TemplateError

    from amplify.models.chat_template import filled
    from amplify.sandbox import Exhausted

    if not getattr(tokenizer, "chat_template", None):
        raise PromptFormatError("this model has no chat template", "template")
    turns = [{**m.to_dict(), "content": c} for m, c in zip(prompt.messages, contents, strict=True)]

    try:
        return filled(tokenizer, turns)
    except Exhausted as error:
        raise InputError(f"the model's chat template does more than a template may: {error}") from error
    except TemplateError as error:
        others = [turn for turn in turns if turn["role"] != "system"]
        if 0 < len(others) < len(turns):
            try:
                filled(tokenizer, others)
            except TemplateError:
                pass
            else:
                problem = f"the model's chat template takes no system message ({error})"
                raise PromptFormatError(problem, "system") from error
        problem = f"the model's chat template refuses these messages ({error})"
        raise PromptFormatError(problem, "messages") from error


def _places(
    prompt: Prompt, contents: Sequence[str], text: str, tokenizer: PreTrainedTokenizerBase
) -> list[tuple[int, int, int, int]]:
    """Where the contents stand in the rendered text: (message, first character kept, start in text, length).

    Searching for a content would find the wrong place when it also occurs elsewhere. So the template is rendered once
    more around placeholders, and the fixed text between them is walked along the real rendering.
    """
    marks = [f"\ue000{i}\ue001" for i in range(len(contents))]  # private-use characters: no template treats them
    layout = _chat(prompt, marks, tokenizer)
    found = sorted((at, i) for i, mark in enumerate(marks) for at in _occurrences(layout, mark))
    places, here, cursor = [], 0, 0
    for (at, i), following in zip_longest(found, found[1:]):
        fixed = layout[cursor:at]
        cursor = at + len(marks[i])
        after = layout[cursor : following[0] if following else len(layout)]
        here += len(fixed)
        content = contents[i]
        lead = len(content) - len(content.lstrip())
        # templates keep a content as it is, or trim it
        for first, kept in ((0, content), (lead, content.strip()), (lead, content.lstrip()), (0, content.rstrip())):
            tail = here + len(kept)
            if text.startswith(kept + after, here) and (following or tail + len(after) == len(text)):
                places.append((i, first, here, len(kept)))
                here = tail
                break
        else:
            raise InputError(f"the chat template rewrites message {i}, so emphasis in it cannot be placed")
    return places


def _occurrences(text: str, mark: str) -> list[int]:
    at, found = text.find(mark), []
    while at >= 0:
        found.append(at)
        at = text.find(mark, at + len(mark))
    return found


def _moved(span: Span, contents: Sequence[str], places: Sequence[tuple[int, int, int, int]]) -> list[Span]:
    """A span of a message, as spans of the rendered text (one per place where the template puts the message)."""
    moved = []
    for message, first, start, length in places:
        low, high = max(span.start, first), min(span.end, first + length)
        if message == span.message and low < high:
            moved.append(replace(span, start=start + low - first, end=start + high - first, message=None))
    if not moved:
        words = contents[span.message or 0][span.start : span.end]
        raise InputError(f"the chat template drops the emphasised text {words!r} of message {span.message}")
    return moved


def tokenise(tokenizer: PreTrainedTokenizerBase, rendered: Sequence[Rendered | str]) -> list[Encoded]:
    """Tokens of each text, with offsets.

    A BOS token goes in front only of raw text, only if that is the tokenizer's own convention, and only if the text
    does not begin with one already. No token is added behind: a model is to continue the text.

    Args:
        tokenizer: a fast tokenizer.
        rendered: what `render` gave; a plain string counts as raw text.

    Raises:
        CapabilityError: the tokenizer gives no offsets.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise CapabilityError("this tokenizer gives no character offsets; a fast one (tokenizer.json) is needed")
    texts = [Rendered(r) if isinstance(r, str) else r for r in rendered]
    bos = tokenizer.bos_token
    bare = [t.chat or bool(bos and t.text.startswith(bos)) for t in texts]
    result: list[Encoded | None] = [None] * len(texts)
    for special in (False, True):
        chosen = [i for i, b in enumerate(bare) if b != special]
        if not chosen:
            continue
        with lock_of(tokenizer):
            batch: Any = tokenizer(
                [texts[i].text for i in chosen],
                add_special_tokens=special,
                return_offsets_mapping=True,
                return_special_tokens_mask=True,
                return_attention_mask=False,
                return_token_type_ids=False,
                verbose=False,  # the length is checked against the model's window by the model
            )
        for k, i in enumerate(chosen):
            ids, offsets = batch["input_ids"][k], batch["offset_mapping"][k]
            stop = len(ids)
            if special:
                while stop and batch["special_tokens_mask"][k][stop - 1] and offsets[stop - 1] == (0, 0):
                    stop -= 1
                # a text without tokens of its own: everything is special, and what stands in front (BOS) stays
                stop = stop or sum(1 for t in ids if t == tokenizer.bos_token_id)
            result[i] = Encoded(tuple(ids[:stop]), tuple(offsets[:stop]))
    return [e for e in result if e is not None]


def encode(tokenizer: PreTrainedTokenizerBase, rendered: Rendered | str) -> list[int]:
    """Token ids of one text (see `tokenise`)."""
    return list(tokenise(tokenizer, [rendered])[0].ids)


def encode_with_target(
    tokenizer: PreTrainedTokenizerBase, rendered: Rendered | str, continuation: str
) -> tuple[list[int], int]:
    """Tokens of a text and its continuation, in one tokenisation.

    Returns:
        All token ids, and the index of the first that holds a character of the continuation.

    Raises:
        InputError: the continuation is empty or holds no token.
    """
    encoded, start = encode_with_targets(tokenizer, [rendered], [continuation])[0]
    return list(encoded.ids), start


def encode_with_targets(
    tokenizer: PreTrainedTokenizerBase, rendered: Sequence[Rendered | str], continuations: Sequence[str]
) -> list[tuple[Encoded, int]]:
    """`encode_with_target` for a batch, offsets kept. A continuation answers: it stands in no reasoning block."""
    if len(rendered) != len(continuations):
        raise InputError(f"there are {len(rendered)} prompts and {len(continuations)} continuations: give one for each")
    texts = [Rendered(r) if isinstance(r, str) else r.answering for r in rendered]
    for i, continuation in enumerate(continuations):
        if not continuation:
            raise InputError(f"continuation {i} is empty: there is nothing to score")
    joined = [replace(t, text=t.text + c) for t, c in zip(texts, continuations, strict=True)]
    result = []
    for i, encoded in enumerate(tokenise(tokenizer, joined)):
        boundary = len(texts[i].text)
        # byte-level tokenizers may trim a leading blank from the start of an offset, never from its end
        start = next((k for k, (_, end) in enumerate(encoded.offsets) if end > boundary), len(encoded.ids))
        if start == len(encoded.ids):
            raise InputError(f"continuation {continuations[i]!r} holds no token of this model")
        result.append((encoded, start))
    return result


def added(tokenizer: PreTrainedTokenizerBase, before: Sequence[int], new: Sequence[int]) -> str:
    """What new tokens add to the text of those before them, without special tokens.

    Decoded together, since alone some tokenizers drop a blank.
    """
    options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    base, whole = (str(tokenizer.decode(ids, **options)) for ids in (list(before), [*before, *new]))
    return whole[len(base) :] if whole.startswith(base) else str(tokenizer.decode(list(new), **options))


class StopSearch:
    """Looks for stop strings in what a model writes, as it comes: a few tokens are decoded at each step, not all.

    Args:
        tokenizer: of the model.
        prompt: tokens in front.
        stop: the strings.
    """

    BEFORE, PENDING = 4, 12  # tokens decoded again with the new ones; of a character that is not whole, at most

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], stop: Sequence[str]) -> None:
        self.tokenizer, self.stop = tokenizer, stop
        self.kept = max(map(len, stop), default=1) - 1
        self.before, self.read, self.tail = list(prompt[-self.BEFORE :]), 0, ""

    def found(self, new: Sequence[int]) -> bool:
        """Whether a stop string has been written since the last call.

        Args:
            new: all new tokens; those of the last call, and some more.
        """
        if not self.stop:
            return False
        piece = added(self.tokenizer, self.before, new[self.read :])
        seen = self.tail + piece
        if not piece.endswith("\ufffd") or len(new) - self.read >= self.PENDING:
            self.before = [*self.before, *new[self.read :]][-self.BEFORE :]
            self.read, self.tail = len(new), seen[-self.kept :] if self.kept else ""
        return any(s in seen for s in self.stop)

"""Words of an input: where they are, what the scores of their tokens add up to, and which may be key words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import compress, pairwise
from math import log
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import regex

from amplify.errors import InputError
from amplify.text import input_text, option_spans
from amplify.types import Example

if TYPE_CHECKING:
    from amplify.tasks import Task

Spans = tuple[tuple[int, int], ...]
Mask = Callable[[Example], Sequence[bool]]

# Letters, their marks and digits; an apostrophe joins (don't), a decimal mark joins digits (3.5), a hyphen parts.
# An emoji is a word, with all that makes one picture of it (skin tone, family, flag, keycap).
_EMOJI = r"[\p{Extended_Pictographic}--[©®™‼⁉ℹ↔-↪〰〽㊗㊙]]|\p{Regional_Indicator}|[0-9#*]\uFE0F?\u20E3"
# Some scripts put no blank between words, and finding words in them takes a dictionary. A Han ideograph is a word of
# its own, a run of Katakana (loan words) is one, and the others are cut into at most four characters with their marks,
# before the vowels that Thai and Lao write in front of a syllable.
_DENSE = r"\p{Hiragana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_FRONT = r"\u0E40-\u0E44\u0EC0-\u0EC4"
_SPACED = rf"[[\p{{L}}\p{{M}}\p{{N}}]--[[\p{{Han}}\p{{Katakana}}{_DENSE}]--\p{{N}}]]"
_WORD = regex.compile(
    rf"(?={_EMOJI})\X"
    r"|\p{Han}|[\p{Katakana}ー]+"
    rf"|(?=[[{_DENSE}]--\p{{N}}])\X(?:(?=[[{_DENSE}]--[\p{{N}}{_FRONT}]])\X){{0,3}}"
    rf"|{_SPACED}+"
    r"(?:['’][\p{L}\p{M}]+|(?<=\p{Nd})[.,]\p{Nd}+)*",
    flags=regex.V1,
)
_LETTER = regex.compile(r"[a-z]")
_AFTER_BLANK = regex.compile(r"(?<=\s)[ \t]+")

# scikit-learn's list holds these, but they turn a sentence round or carry meaning of their own
# ("Stop Word Lists in Free Open-source Software Packages", Nothman et al. 2018, on the faults of such lists).
# fmt: off
_NEGATIONS = frozenset((
    "no", "not", "nor", "never", "none", "nobody", "nothing", "nowhere", "neither", "cannot", "cant", "couldnt",
    "hasnt", "without",
))
_CONTENT = frozenset((
    "amount", "bill", "bottom", "call", "cry", "describe", "detail", "empty", "enough", "few", "fill", "fire", "found",
    "full", "interest", "least", "less", "mill", "most", "move", "name", "serious", "sincere", "system", "thick",
    "thin", "top", "well",
))
_MISSING = frozenset(("did", "does", "doing", "having"))
# fmt: on
_CLITICS = frozenset(["s", "m", "re", "ve", "ll", "d"])


def word_spans(text: str) -> Spans:
    """Character offsets [start, end) of every word; punctuation and white space belong to none.

    An emoji is a word. Scripts without blanks between words are cut into small pieces: single ideographs, runs of
    Katakana, else at most four characters.

    Example:
        >>> text = "It isn't 3.5 €"
        >>> [text[a:b] for a, b in word_spans(text)]
        ['It', "isn't", '3.5']
    """
    return tuple(match.span() for match in _WORD.finditer(text))


def joined_word(before: str, after: str) -> str:
    """The word that the end of one text makes with the beginning of another ("is" + "Paris"); "" where they make none.

    In scripts without blanks between words nothing is joined so.

    Example:
        >>> joined_word("The answer is", "Paris"), joined_word("The answer is", " Paris")
        ('isParis', '')
    """
    end = regex.search(rf"(?r){_SPACED}+\Z", before, flags=regex.V1)
    begin = regex.match(rf"{_SPACED}+", after, flags=regex.V1)
    return end[0] + begin[0] if end and begin else ""


def aggregate(
    scores: npt.NDArray[np.floating], offsets: Sequence[tuple[int, int]], spans: Spans
) -> npt.NDArray[np.float64]:
    """Sum token scores into word scores.

    The sum is right for signed scores (gradient x input is additive) and for L1 norms alike (the norm of the
    stacked gradients of a word's tokens). A token over two words is shared out by the characters it has in each;
    its characters outside words (a leading space, a full stop) do not count, and a token outside words is dropped.

    Args:
        scores: one per token, shape (tokens,) or (tokens, columns).
        offsets: characters [start, end) of each token in the text; empty ranges for special and template tokens.
        spans: characters of each word, in order, not overlapping.

    Returns:
        One score per word, shape (words,) or (words, columns).

    Example:
        >>> aggregate(np.array([1.0, 2.0, 4.0]), [(0, 2), (2, 5), (5, 9)], ((0, 5), (6, 9)))
        array([3., 4.])
    """
    if len(scores) != len(offsets):
        raise InputError(f"{len(scores)} token scores for {len(offsets)} tokens")
    total = np.zeros((len(spans), *np.shape(scores)[1:]))
    starts = np.array([start for start, _ in spans], dtype=np.int64)
    for token, (start, end) in enumerate(offsets):
        if end <= start:
            continue
        first = max(int(np.searchsorted(starts, start, side="right")) - 1, 0)
        parts = []
        for word in range(first, len(spans)):
            if spans[word][0] >= end:
                break
            if (shared := min(end, spans[word][1]) - max(start, spans[word][0])) > 0:
                parts.append((word, shared))
        whole = sum(shared for _, shared in parts)
        for word, shared in parts:
            total[word] += scores[token] * (shared / whole)
    return total


@lru_cache(maxsize=1)
def stop_words() -> frozenset[str]:
    """scikit-learn's English stop words with the auxiliaries it lacks, without its negations and content words."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    return (frozenset(ENGLISH_STOP_WORDS) | _MISSING) - _NEGATIONS - _CONTENT


def _is_stop_word(word: str) -> bool:
    head, apostrophe, tail = word.replace("’", "'").partition("'")
    if apostrophe:  # it's, they'll; but don't and isn't are negations
        return tail in _CLITICS and (head in stop_words() or len(head) == 1)
    return word in stop_words() or (len(word) == 1 and bool(_LETTER.match(word)))


def words_in(texts: Iterable[str]) -> frozenset[str]:
    """The different words of some texts, case-folded.

    Example:
        >>> sorted(words_in(["Good phone", "good"]))
        ['good', 'phone']
    """
    return frozenset(text[a:b].casefold() for text in texts for a, b in word_spans(text))


def document_frequency(corpus: Iterable[str]) -> Counter[str]:
    """In how many texts each word stands, case-folded."""
    return Counter(word for text in corpus for word in words_in([text]))


def tfidf_scores(words: Sequence[str], frequency: Mapping[str, int], documents: int) -> npt.NDArray[np.float64]:
    """Term frequency among the words times smoothed inverse document frequency: log((1 + N) / (1 + df)) + 1.

    As scikit-learn has it.

    Args:
        words: of one text.
        frequency: of the corpus (`document_frequency`).
        documents: how many texts it has, N.

    Example:
        >>> corpus = ["good phone", "good food"]
        >>> tfidf_scores(["good", "phone"], document_frequency(corpus), len(corpus)).round(2)
        array([1.  , 1.41])
    """
    terms = Counter(word.casefold() for word in words)
    weight = {t: n * (log((1 + documents) / (1 + frequency.get(t, 0))) + 1) for t, n in terms.items()}
    return np.array([weight[word.casefold()] for word in words], dtype=np.float64)


def content_words(text: str, *, exclude: Collection[str] = ()) -> tuple[bool, ...]:
    """Which words of a text may be key words: no stop word, no single Latin letter, none of `exclude`.

    Args:
        text: the text whose `word_spans` are judged.
        exclude: case-folded words that may not be chosen, e.g. `words_in([task.instruction, *task.labels])`.

    Returns:
        One truth value per word of `word_spans(text)`.

    Example:
        >>> content_words("This is not good")
        (False, False, True, True)
    """
    words = (text[a:b].casefold() for a, b in word_spans(text))
    return tuple(word not in exclude and not _is_stop_word(word) for word in words)


def fixed_words(task: Task) -> frozenset[str]:
    """Case-folded words that no rationale of this task cites, whatever the input: see `key_word_mask`."""
    fixed = words_in([task.instruction, task.input_name, *task.labels])
    counts: dict[str, int] = {}
    for example in task.train:
        for word in words_in([example.text]):
            counts[word] = counts.get(word, 0) + 1
    if len(task.train) >= 10:
        fixed |= {word for word, n in counts.items() if 2 * n >= len(task.train)}
    return fixed


def key_word_mask(task: Task) -> Mask:
    """The words of an input that may stand in a rationale of this task.

    Left out are stop words, the words of the instruction, of the input's name and of the labels, and template words:
    those in at least half of the training inputs (of ten or more), such as "Which statement is sarcastic?". The words
    of the options are left out too, unless the question itself has no content word (Snarks): then option words count,
    except those that stand in every option.

    Returns:
        A function from an example to one truth value per word of `amplify.text.input_text(example)`.
    """
    return mask_without(fixed_words(task))


def mask_without(fixed: frozenset[str]) -> Mask:
    """The mask of `key_word_mask` from a task's `fixed_words` alone, for programs that no longer have the task."""

    def mask(example: Example) -> tuple[bool, ...]:
        text = input_text(example)
        labels = words_in(example.choices) if example.options else frozenset()
        options = [words_in([option]) for option in example.options]
        question = [b <= len(example.text) for _, b in word_spans(text)]
        anywhere = fixed.union(labels, *options)
        allowed = content_words(text, exclude=anywhere)
        chosen = tuple(q and a for q, a in zip(question, allowed, strict=True))
        if any(chosen) or not options:
            return chosen
        shared = options[0].intersection(*options) if len(options) > 1 else frozenset()
        inside = [any(a >= s and b <= e for s, e in option_spans(example)) for a, b in word_spans(text)]
        allowed = content_words(text, exclude=fixed | shared)
        return tuple(i and a for i, a in zip(inside, allowed, strict=True))

    return mask


def without_words(example: Example, spans: Collection[tuple[int, int]]) -> Example:
    """The example with some words of its `input_text` deleted, from the question and the options alike.

    Example:
        >>> without_words(Example("1", "Great phone, terrible battery"), [(13, 21)]).text
        'Great phone, battery'
    """
    ordered = sorted(spans)
    return only_words(example, ordered, np.zeros((1, len(ordered)), dtype=bool))[0]


def only_words(example: Example, spans: Sequence[tuple[int, int]], kept: npt.NDArray[np.bool_]) -> list[Example]:
    """The example with only some of its words, once for each coalition of them: see `without_words`.

    Args:
        example: what the words are of; what is in no span always stays.
        spans: the words, of its `input_text`, in order.
        kept: which of them stay, [coalitions, words].

    Example:
        >>> phone = Example("1", "Great phone, terrible battery")
        >>> [e.text for e in only_words(phone, ((0, 5), (13, 21)), np.array([[True, True], [False, True]]))]
        ['Great phone, terrible battery', 'phone, terrible battery']
    """
    texts = _only(example.text, 0, spans, kept)
    options = [
        _only(option, start, spans, kept)
        for option, (start, _) in zip(example.options, option_spans(example), strict=True)
    ]
    if not options:
        return [replace(example, text=text) for text in texts]
    return [
        replace(example, text=text, options=own) for text, own in zip(texts, zip(*options, strict=True), strict=True)
    ]


def _only(text: str, start: int, spans: Sequence[tuple[int, int]], kept: npt.NDArray[np.bool_]) -> list[str]:
    """A part of the input, which begins at `start`, with only some words."""
    inside = [k for k, (a, b) in enumerate(spans) if start <= a and b <= start + len(text)]
    if not inside:
        return [text] * len(kept)
    cuts = [0, *(at - start for k in inside for at in spans[k]), len(text)]  # the text, a word, the text, a word, ...
    pieces = [text[a:b] for a, b in pairwise(cuts)]
    stays = np.ones((len(kept), len(pieces)), dtype=bool)
    stays[:, 1::2] = kept[:, inside]
    return [
        text if whole else _AFTER_BLANK.sub("", "".join(compress(pieces, row))).strip()
        for row, whole in zip(stays.tolist(), np.all(stays, axis=1).tolist(), strict=True)
    ]

"""Greedy answers to many related prompts: those seen before are recognised in one pass, only new ones are decoded.

TextGenSHAP's growing speculation tree (arXiv 2312.01279, section 3.3): a trie of all answers so far hangs behind every
prompt of a batch; one forward pass says which of them each prompt's greedy decoding would write.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from amplify.backends import text
from amplify.backends.checks import check_window
from amplify.backends.decoding import decode
from amplify.backends.tree import TokenTree, plan, trie
from amplify.errors import InputError
from amplify.values import Completion, Prompt, Sampling

if TYPE_CHECKING:
    from amplify.backends.transformers import TransformersBackend

MOST = 64  # answers in the trie: the most frequent ones
FIRST = 2  # prompts of the first round; later rounds double up to LARGEST
LARGEST = 64


@dataclass
class KnownAnswers:
    """Answers so far, and what recognising them has saved. Belongs to one model and one `Sampling`.

    Attributes:
        counts: token ids of each answer (its end token included) -> how often it was given.
        decoded: tokens that were decoded one step at a time.
        plain: tokens that plain decoding would have decoded.
    """

    counts: Counter[tuple[int, ...]] = field(default_factory=Counter)
    decoded: int = 0
    plain: int = 0


def generate_known(
    backend: TransformersBackend, prompts: Sequence[Prompt], sampling: Sampling, known: KnownAnswers
) -> list[Completion]:
    """What `backend.generate(prompts, sampling)` gives, with a memory for answers.

    Args:
        backend: the model.
        prompts: in any order; prompts with a common beginning are best neighbours.
        sampling: greedy (temperature 0).
        known: grows with every answer.

    Raises:
        InputError: sampling that is not greedy, or a prompt without a token.
        ContextLengthError: see `Generator.generate`.
        BackendError: out of memory; `completed` holds what was answered.
    """
    if sampling.temperature:
        raise InputError("only greedy answers can be recognised: temperature=0")
    encoded = [e.ids for e in text.tokenise(backend.tokenizer, [text.render(p, backend.tokenizer) for p in prompts])]
    for i, ids in enumerate(encoded):
        if not ids:
            raise InputError(f"prompt {i} holds no token: there is nothing to continue")
    check_window([len(ids) for ids in encoded], sampling.max_tokens, backend.max_context)
    result: dict[int, Completion] = {}
    at, size = 0, FIRST
    with backend.counted(result):
        while at < len(encoded):
            batch = range(at, min(at + size, len(encoded)))
            answers = _round(backend, [encoded[i] for i in batch], sampling, known)
            for i, answer in zip(batch, answers, strict=True):
                known.counts[answer] += 1
                known.plain += len(answer)
                result[i] = backend.completion(encoded[i], answer, sampling)
            at, size = at + size, min(2 * size, LARGEST)
    return [result[i] for i in range(len(prompts))]


def _round(
    backend: TransformersBackend, prompts: Sequence[tuple[int, ...]], sampling: Sampling, known: KnownAnswers
) -> list[tuple[int, ...]]:
    """The answer's tokens to each prompt."""
    starts = _recognised(backend, prompts, known)
    missing = [i for i, start in enumerate(starts) if not backend.complete(prompts[i], start, sampling)]
    answers = list(starts)

    def finished(k: int, new: list[int]) -> bool:
        return backend.complete(prompts[missing[k]], (*starts[missing[k]], *new), sampling)

    def done(k: int, new: list[int]) -> None:
        answers[missing[k]] = (*starts[missing[k]], *new)
        known.decoded += len(new)

    if missing:
        decode(
            backend.packed,
            [(*prompts[i], *starts[i]) for i in missing],
            sampling,
            end_ids=frozenset(),  # `finished` knows them
            finished=finished,
            done=done,
            budget=backend.max_cache_tokens,
            chunk=backend.max_batch_tokens,
        )
    return answers


def _recognised(
    backend: TransformersBackend, prompts: Sequence[tuple[int, ...]], known: KnownAnswers
) -> list[tuple[int, ...]]:
    """For each prompt, the longest beginning of its greedy answer that one pass over the known answers shows."""
    if not known.counts:
        return [()] * len(prompts)
    answers = [answer for answer, _ in known.counts.most_common(MOST)]
    branch, routes = trie(answers)
    tree, paths = trie(prompts)
    segments, parents = list(tree.segments), list(tree.parents)
    offset: dict[int, int] = {}  # end of a prompt -> first node of the answers behind it
    for path in paths:
        if path[-1] not in offset:
            base = offset[path[-1]] = len(segments)
            segments += branch.segments
            parents += [path[-1] if p < 0 else base + p for p in branch.parents]
    wanted = range(len(tree.segments), len(segments))
    laid = plan(TokenTree(tuple(segments), tuple(parents)), wanted)
    flat = iter(backend.packed.likeliest(laid, backend.max_batch_tokens).tolist())
    written = {node: [next(flat) for _ in range(n)] for node, n in zip(wanted, laid.lengths, strict=True)}
    result = []
    for path in paths:
        best: tuple[int, ...] = ()
        for answer, route in zip(answers, routes, strict=True):
            greedy = [t for node in route for t in written[offset[path[-1]] + node]]
            same = next((k for k, (a, g) in enumerate(zip(answer, greedy, strict=True)) if a != g), len(answer))
            # where the two part, the greedy token is known as well
            found = (*answer[:same], *greedy[same : same + 1])
            best = max(best, found, key=len)
        result.append(best)
    return result

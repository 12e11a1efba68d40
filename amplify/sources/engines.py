"""How the values of many selections are had from a model: the same numbers, at different cost.

- `naive`: every prompt on its own.
- `trie`: all prompts as one token trie, so that a common beginning is forwarded once.
- `packed`: `trie` on the prefixes of random orders. The documents go through once an order, and behind each prefix
  branches off what follows it in a prompt, with the answer.
- `blocks`: every document once, seeing the prompt's head alone; a selection masks the others. An approximation.

`trie` and `packed` are one piece of code: the prompts that a permutation walks through are prefixes of each other, so
their trie *is* the packed layout, cut from the prompts' own tokenisation. What they save depends on which ordered
coalitions are asked together. On servers the order of the requests lets prefix caching do the sharing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from amplify.errors import InputError, ModelError
from amplify.models.base import LanguageModel, LocalModel, need_local, need_scoring
from amplify.models.cached import CachedGenerator, origin
from amplify.models.chat import encode_with_targets, render
from amplify.models.tree.tree import TokenTree
from amplify.sources.context import Context, Selection
from amplify.types import Completion, Prompt, Sampling, TokenLogProbs

if TYPE_CHECKING:
    from amplify.models.tree.kv_cache import PrefixCache
    from amplify.models.tree.speculative import DraftCache

Engine = Literal["naive", "trie", "packed", "blocks"]
ENGINES: tuple[Engine, ...] = ("naive", "trie", "packed", "blocks")

T = TypeVar("T")
Scored = Iterator[tuple[int, TokenLogProbs]]  # number of the selection, and what came out


def waves(selections: Sequence[Selection], model: LanguageModel) -> list[list[int]]:
    """Which selections to ask together, in which order, so that what they share is computed once.

    A model in this process takes all at once, in the order in which neighbours share the longest beginnings. A server's
    prefix cache knows only what an earlier request has finished: it is asked in waves of doubling size, each in the
    middle between what is known, so that every prompt finds a cached neighbour.
    """
    order = sorted(range(len(selections)), key=lambda i: selections[i])
    if isinstance(model, LocalModel) or len(order) < 3:
        return [order] if order else []
    # everything is the longest chain of beginnings there is; then the other end, then halves, quarters, ...
    found, gaps = [[order[-1]], [order[0]]], [(0, len(order) - 1)]
    while gaps:
        middles = [(a, (a + b) // 2, b) for a, b in gaps if b - a > 1]
        if middles:
            found.append([order[m] for _, m, _ in middles])
        gaps = [gap for a, m, b in middles for gap in ((a, m), (m, b))]
    return found


def prefix_cache(engine: Engine, model: LanguageModel) -> PrefixCache | None:
    """What a game can keep of its prompts' beginnings from one call of `score` to the next; freed with it."""
    if engine in ("trie", "packed") and isinstance(model, LocalModel):
        from amplify.models.transformers import TransformersModel

        if isinstance(who := origin(model), TransformersModel):
            return who.prefix_cache()
    return None


def score(
    engine: Engine,
    context: Context,
    model: LanguageModel,
    selections: Sequence[Selection],
    answer: str,
    memory: PrefixCache | None = None,
) -> Scored:
    """Log-probabilities of one answer under many selections, in the order in which they become known.

    Args:
        engine: see the module.
        context: makes the prompts.
        model: a `ScoringModel`; for "blocks" a `LocalModel`.
        selections: what stands in each prompt.
        answer: the text scored behind each.
        memory: from `prefix_cache`.

    Raises:
        CapabilityError: the model cannot do this.
        ModelError: it failed; what was known before has been yielded, and so has its `completed`.
    """
    if engine == "blocks":
        yield from _blocks(context, model, selections, answer)
        return
    scorer = need_scoring(model, "a log-probability game")
    if engine == "naive":
        for i, selection in enumerate(selections):
            yield i, scorer.score([context.prompt(selection)], [answer])[0]
        return
    ask: Callable[..., list[TokenLogProbs]] = scorer.score
    if memory is not None:
        ask = partial(ask, memory=memory)
    for wave in waves(selections, model):
        prompts = [context.prompt(selections[i]) for i in wave]
        yield from _rescued(wave, partial(ask, prompts, [answer] * len(prompts)))


def generate(
    engine: Engine,
    context: Context,
    model: LanguageModel,
    selections: Sequence[Selection],
    sampling: Sampling,
    known: DraftCache | None = None,
) -> Iterator[tuple[int, Completion]]:
    """Greedy answers under many selections, in the order in which they become known; see `score`.

    Args:
        engine: "naive" asks one by one; "trie" and "packed" together, and then a model in this process decodes only
            answers that it has not given before.
        context, model, selections: as for `score`; any model will do.
        sampling: greedy.
        known: the answers that such a model has given so far; grows.
    """
    if engine == "blocks":
        raise InputError("engine 'blocks' gives approximate log-probabilities only: votes need 'trie' or 'naive'")
    if engine == "naive":
        for i, selection in enumerate(selections):
            yield i, model.generate([context.prompt(selection)], sampling)[0]
        return
    ask: Callable[[Sequence[Prompt]], list[Completion]] = partial(model.generate, sampling=sampling)
    if isinstance(model, LocalModel):
        from amplify.models.transformers import TransformersModel
        from amplify.models.tree.speculative import DraftCache, generate_speculative

        if isinstance(who := origin(model), TransformersModel):
            drafts = DraftCache() if known is None else known
            ask = partial(generate_speculative, who, sampling=sampling, known=drafts)
            if isinstance(model, CachedGenerator):
                ask = partial(model.generate_by, ask, sampling=sampling)
    for wave in waves(selections, model):
        yield from _rescued(wave, partial(ask, [context.prompt(selections[i]) for i in wave]))


def _rescued(order: Sequence[int], work: Callable[[], Sequence[T]]) -> Iterator[tuple[int, T]]:
    """Results of one batch; where the model fails half way, those that there are, and then its error."""
    try:
        yield from zip(order, work(), strict=True)
    except ModelError as failure:
        yield from ((order[k], done) for k, done in failure.completed.items())
        raise


def _blocks(context: Context, model: LanguageModel, selections: Sequence[Selection], answer: str) -> Scored:
    """Every document encoded once behind the prompt's head, blind to the others; selections as masks over them.

    The decoder-only form of TextGenSHAP's in-place resampling (Fusion-in-Decoder encodes each passage alone). Two
    things differ from the prompts themselves: a document does not see those before it, and all documents begin where
    the head ends, with the rest of the prompt behind the longest (parallel context windows, arXiv 2212.10947). Without
    that, absent documents leave gaps in the positions, and the values follow the exact game less well.
    """
    white = need_local(model, "engine 'blocks'")
    everything = context.everything()
    for selection in selections:
        if any(piece not in everything for piece in selection) or list(selection) != sorted(selection):
            raise InputError("engine 'blocks' knows whole documents in their own order only: use engine='trie'")
    tree, wanted = blocks_tree(context, white.tokenizer, selections, answer)
    yield from enumerate(white.score_tree(tree, wanted))


def blocks_tree(
    context: Context, tokenizer: Any, selections: Sequence[Selection], answer: str
) -> tuple[TokenTree, list[int]]:
    """The tree behind `blocks`: head, the documents as one path, and a branch for each selection.

    Returns:
        The tree, and each selection's node with the answer's tokens.
    """
    whole = context.marked(context.sources)
    rendered = render(whole, tokenizer)
    encoded, start = encode_with_targets(tokenizer, [rendered], [answer])[0]
    # a document owns what lies between its start and the next one's, so the blank line behind it goes with it
    begins = [span.start for span in rendered.emphasis]
    ends = [*begins[1:], rendered.emphasis[-1].end]
    cuts = [_token_at(encoded.offsets, c) for c in (begins[0], *ends)]
    ids = encoded.ids
    count = len(begins)
    segments: list[tuple[int, ...]] = [ids[: cuts[0]], *(ids[a:b] for a, b in pairwise(cuts))]
    parents = list(range(-1, count))
    hidden = {i: frozenset(range(1, i)) for i in range(2, count + 1)}
    head = len(segments[0])
    positions = dict.fromkeys(range(1, count + 1), head)
    behind = head + max(map(len, segments[1:]))
    wanted = []
    for selection in selections:
        absent = frozenset(range(1, count + 1)) - {d + 1 for d, _ in selection}
        rest = len(segments)
        segments += [ids[cuts[-1] : start], ids[start:]]
        parents += [count, rest]
        hidden |= {rest: absent, rest + 1: absent}
        positions[rest] = behind
        wanted.append(rest + 1)
    return TokenTree(tuple(segments), tuple(parents), hidden=hidden, positions=positions), wanted


def _token_at(offsets: Sequence[tuple[int, int]], character: int) -> int:
    """The first token that holds this character or one behind it."""
    return next(k for k, (_, end) in enumerate(offsets) if end > character)

"""Greedy answers to many related prompts: what was answered before is recognised in one pass, not written anew.

TextGenSHAP's growing speculation tree (arXiv 2312.01279, section 3.3): answers to similar prompts hang behind every
prompt as it is read, and the pass shows whether greedy decoding would write them. Where an answer leaves the known
ones, drafts are copied from where its last words stand already, in answers and in the prompt (prompt lookup).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from amplify.errors import InputError
from amplify.locks import lock_of
from amplify.models import text
from amplify.models.speculation import Tokens, speculate
from amplify.models.tree import common_prefix
from amplify.types import Completion, Prompt, Sampling

if TYPE_CHECKING:
    from amplify.models.transformers import TransformersModel

MOST = 64  # answered prompts that drafts are taken from: the last ones
ALTERNATIVES = 2  # drafts behind a prompt
LONGEST = 16  # tokens of a draft
CONTEXT = 3  # last tokens that are looked up, at most


@dataclass
class KnownAnswers:
    """Answers so far, and what knowing them has saved. Belongs to one model and one `Sampling`.

    A step is a forward pass from which tokens of an answer are taken: the one that reads the prompt's end, and each
    one behind it in which the prompt takes part. Plain decoding takes one token from each, so its steps are its tokens.

    Attributes:
        answers: token ids of each prompt -> those of its answer (its end token included), in order of appearance.
        steps: taken, over all prompts.
        plain: those that plain decoding would have taken.
    """

    answers: dict[Tokens, Tokens] = field(default_factory=dict)
    steps: int = 0
    plain: int = 0

    def propose(self, prompt: Tokens, new: Tokens) -> list[Tokens]:
        """Drafts of what follows a prompt and its new tokens, the likeliest first; may be none."""
        known = list(islice(reversed(self.answers.items()), MOST))
        # similar prompts have similar answers; of those that begin alike, the prompt itself is the shortest
        known.sort(key=lambda pair: (-common_prefix(pair[0], prompt), len(pair[0])))
        ranked = dict.fromkeys(answer for _, answer in known)
        going_on = [a[len(new) : len(new) + LONGEST] for a in ranked if len(a) > len(new) and a[: len(new)] == new]
        if going_on or not new:
            return list(dict.fromkeys(going_on))[:ALTERNATIVES]
        return copied((*prompt, *new), list(ranked))


def copied(written: Tokens, answers: Sequence[Tokens]) -> list[Tokens]:
    """What followed the last tokens where they stood before: at most one draft.

    Args:
        written: the prompt and what has been written behind it.
        answers: where to look first, in this order; then `written` itself, from its end.
    """
    gap = -1  # no token
    places = np.array([*written, *(t for a in reversed(answers) for t in (gap, *a)), gap])
    for n in range(min(CONTEXT, len(written)), 0, -1):
        same = places[n:] != gap
        for k, token in enumerate(written[len(written) - n :]):
            same &= places[k : len(places) - n + k] == token
        if same.any():
            begin = int(np.flatnonzero(same)[-1]) + n
            draft = places[begin : begin + LONGEST].tolist()
            return [tuple(draft[: draft.index(gap)] if gap in draft else draft)]
    return []


def generate_known(
    model: TransformersModel, prompts: Sequence[Prompt], sampling: Sampling, known: KnownAnswers
) -> list[Completion]:
    """What `model.generate(prompts, sampling)` gives, with a memory for answers.

    Args:
        model: the model.
        prompts: in any order.
        sampling: greedy (temperature 0).
        known: grows with every answer.

    Raises:
        InputError: sampling that is not greedy, or a prompt without a token.
        ContextLengthError: see `LanguageModel.generate`.
        ModelError: out of memory; `completed` holds what was answered.
    """
    if sampling.temperature or sampling.n > 1 or sampling.logprobs:
        raise InputError("only single greedy answers can be recognised: temperature=0, n=1, logprobs=False")
    if not prompts:
        return []
    encoded = [e.ids for e in text.tokenise(model.tokenizer, [text.render(p, model.tokenizer) for p in prompts])]
    for i, ids in enumerate(encoded):
        if not ids:
            raise InputError(f"prompt {i} holds no token: there is nothing to continue")
    model.check_fit(encoded, sampling.max_tokens)
    result: dict[int, Completion] = {}

    def propose(i: int, new: Tokens) -> list[Tokens]:
        return [draft[: sampling.max_tokens - len(new)] for draft in known.propose(encoded[i], new)]

    def done(i: int, new: Tokens, steps: int) -> None:
        known.answers[encoded[i]] = new
        known.steps += steps
        known.plain += len(new)
        result[i] = model.completion(encoded[i], new, sampling)

    endings = [model.ending(ids, sampling) for ids in encoded]
    with lock_of(model.module), model.counted(result):
        speculate(
            model.packed,
            encoded,
            propose=propose,
            complete=lambda i, new: endings[i](new),
            done=done,
            room=sampling.max_tokens + ALTERNATIVES * min(LONGEST, sampling.max_tokens),
            first=MOST if known.answers else 1,
            budget=model.max_cache_tokens,
            chunk=model.max_batch_tokens,
        )
    return [result[i] for i in range(len(prompts))]

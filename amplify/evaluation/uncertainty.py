"""How unsure a model is of an answer that it wrote: entropy, length-normalised likelihood, and SAR.

SAR (Duan et al. 2024, arXiv 2307.01379) weighs each token's surprise by how much the token matters, and answers by how
much other answers agree. There a token matters as far as the sentence changes without it; here as far as the token
answers the question at all: its log-probability falls when the question is taken out of the prompt.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from amplify.errors import InputError
from amplify.models.base import ScoringModel
from amplify.types import Answer, Example, Message, Prompt, Sampling, TokenLogProbs

Floats = npt.NDArray[np.float64]
SAMPLES = 5
TEMPERATURE = 0.5  # as published
TAU = 0.001  # of the agreement among answers, as published
MEASURES = ("entropy", "length_normalised", "token_sar", "sar")


def unsure(
    examples: Sequence[Example], answers: Sequence[Answer], model: ScoringModel, *, stop: tuple[str, ...] = ("\n",),
    max_tokens: int = 24, seed: int = 0,
) -> list[dict[str, float]]:  # fmt: skip
    """How unsure the model is of what it wrote, by several answers drawn to the same prompt.

    Args:
        examples: a batch.
        answers: free texts without a rationale, whose prompts hold the example's text; others are left out.
        model: who wrote them.
        stop, max_tokens: of the answers drawn.
        seed: of the draws.

    Returns:
        One dictionary an example, in nats, more is less sure: "entropy" (mean surprise of the answers drawn),
        "length_normalised" (the same a token), "token_sar" and "sar".
    """
    asked = [i for i, (e, a) in enumerate(zip(examples, answers, strict=True)) if _written(e, a)]
    prompts = [p for i in asked if (p := answers[i].prompt) is not None]
    found: list[dict[str, float]] = [{} for _ in examples]
    if not prompts:
        return found
    sampling = Sampling(max_tokens=max_tokens, temperature=TEMPERATURE, stop=stop, seed=seed, n=SAMPLES)
    drawn = [c.text.rstrip() for c in model.generate(prompts, sampling)]
    owners = [k for k in range(len(prompts)) for _ in range(SAMPLES)]
    kept = [(k, text) for k, text in zip(owners, drawn, strict=True) if text.strip()]
    texts = [text for _, text in kept]
    asking = [prompts[k] for k, _ in kept]
    empty = [without(prompts[k], examples[asked[k]].text) for k, _ in kept]
    if not kept:
        return found
    own, blind = model.score(asking, texts), model.score(empty, texts)
    for place, i in enumerate(asked):
        mine = [j for j, (k, _) in enumerate(kept) if k == place]
        if mine:
            surprises = [-np.array(own[j].logprobs) for j in mine]
            weights = [relevance(own[j], blind[j]) for j in mine]
            found[i] = measures(surprises, weights, [texts[j] for j in mine])
    return found


def _written(example: Example, answer: Answer) -> bool:
    prompt = answer.prompt
    if prompt is None or answer.scores or answer.rationale or not example.text:
        return False
    return any(example.text in text for text in (prompt.text or "", *(m.content for m in prompt.messages)))


def measures(surprises: Sequence[Floats], relevances: Sequence[Floats], texts: Sequence[str]) -> dict[str, float]:
    """Of answers drawn to one prompt, each measure.

    Args:
        surprises: of each answer its tokens' negative log-probabilities.
        relevances: how much each token matters, not negative; where none does, all count alike.
        texts: the answers.

    >>> found = measures([np.array([1.0, 3.0])], [np.array([0.0, 1.0])], ["a b"])
    >>> [found[name] for name in ("entropy", "length_normalised", "token_sar")]
    [4.0, 2.0, 3.0]
    """
    weighed = np.array([float(_shares(r) @ s) for s, r in zip(surprises, relevances, strict=True)])
    likeness = np.array([[word_f1(a, b) for b in texts] for a in texts])
    return {
        "entropy": float(np.mean([s.sum() for s in surprises])),
        "length_normalised": float(np.mean([s.mean() for s in surprises])),
        "token_sar": float(weighed.mean()),
        "sar": float(agreed(weighed, likeness).mean()),
    }


def agreed(energies: Floats, likeness: Floats, tau: float = TAU) -> Floats:
    """Surprise of each answer after the others' agreement: -log(p_i + sum over j != i of likeness_ij p_j / tau).

    Args:
        energies: -log p of each answer, shape (answers,).
        likeness: from 0 to 1, shape (answers, answers).
    """
    p = np.exp(-energies)
    others = likeness * (1 - np.eye(len(p)))
    found: Floats = -np.log(np.maximum(p + others @ p / tau, 1e-300))
    return found


def relevance(own: TokenLogProbs, blind: TokenLogProbs) -> Floats:
    """How much each token answers the question: the fall of its log-probability without the question, 0 at least.

    Where the text is cut into other tokens behind the other prompt, log-probabilities are spread over characters.
    """
    if own.tokens == blind.tokens:
        fall = np.array(own.logprobs) - np.array(blind.logprobs)
    else:
        spread = [np.repeat(np.array(t.logprobs) / _lengths(t), _lengths(t)) for t in (own, blind)]
        size = min(map(len, spread))
        ends = np.minimum(np.cumsum(_lengths(own)), size)
        difference = np.concatenate([[0.0], np.cumsum(spread[0][-size:] - spread[1][-size:])])
        fall = np.diff(difference[np.concatenate([[0], ends])])
    return np.maximum(fall, 0.0)


def _lengths(tokens: TokenLogProbs) -> npt.NDArray[np.int_]:
    return np.array([max(1, len(token)) for token in tokens.tokens])


def _shares(relevances: Floats) -> Floats:
    total = relevances.sum()
    return relevances / total if total > 0 else np.full(len(relevances), 1 / len(relevances))


def without(prompt: Prompt, text: str) -> Prompt:
    """The prompt without the input that it asks about, the last place where it stands.

    Raises:
        InputError: it stands nowhere.
    """
    if prompt.text is not None:
        return replace(prompt, text=_cut(prompt.text, text), emphasis=())
    places = [i for i, m in enumerate(prompt.messages) if text in m.content]
    if not places:
        raise InputError("the prompt does not hold the example's text, so it cannot be taken out")
    turns = list(prompt.messages)
    turns[places[-1]] = Message(turns[places[-1]].role, _cut(turns[places[-1]].content, text))
    return replace(prompt, messages=tuple(turns), emphasis=())


def _cut(whole: str, text: str) -> str:
    before, there, after = whole.rpartition(text)
    if not there:
        raise InputError("the prompt does not hold the example's text, so it cannot be taken out")
    return before + after


def word_f1(a: str, b: str) -> float:
    """How many words two answers share, from 0 to 1 (white space, capitals and order aside).

    >>> word_f1("the red house", "The house")
    0.8
    """
    first, second = Counter(a.casefold().split()), Counter(b.casefold().split())
    shared = (first & second).total()
    return 2 * shared / (first.total() + second.total()) if first or second else 1.0


def auroc(scores: npt.ArrayLike, positive: npt.ArrayLike) -> float | None:
    """Probability that a positive scores higher than a negative, ties counted half; None without both.

    >>> auroc([0.1, 0.4, 0.35, 0.8], [False, False, True, True])
    0.75
    """
    from scipy.stats import rankdata

    chosen = np.array(positive, dtype=bool)
    n, m = int(chosen.sum()), int((~chosen).sum())
    if not n or not m:
        return None
    ranks = rankdata(np.array(scores))
    return float((ranks[chosen].sum() - n * (n + 1) / 2) / (n * m))

"""What one pass of the model through all sources tells of their Shapley values, before any of them is left out.

Where an answer's tokens look, what its gradient says and which words source and answer share are features of a
source, and a linear model from them to the Shapley values is learned from games whose values are known: an amortised
explainer (Schwarzenberg et al. 2021, arXiv 2103.15429), with attention head by head as in AT2 (arXiv 2504.13752). It
predicts the values up to a scale that the game alone can tell. The prediction is a guess: as scores of its own it is
called "one_pass" and has no interval; as a prior of the Gaussian process (`amplify.shapley.gp`) it is tried against
every value asked, and fades where it tells nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from amplify.attribution.words import word_spans
from amplify.errors import InputError
from amplify.locks import lock_of
from amplify.models.base import LocalModel
from amplify.models.chat import encode_with_targets, render
from amplify.shapley.game import Floats
from amplify.sources.context import Context
from amplify.sources.lookback import held

FORMAT = 1
OVERALL = ("attention", "gradient", "gradient_size", "answer_words", "question_words", "length", "place")


@dataclass(frozen=True)
class Evidence:
    """Features of every source from one forward and one backward pass.

    Attributes:
        heads: share of each head's attention, from the positions that predict the answer, that goes to each source,
            [n, layers, heads]; a source's tokens taken together.
        overall: [n, len(OVERALL)]: mean attention of all heads; gradient times input of the answer's log-probability,
            summed over the source's tokens; the sum of its absolute values; shared words (rare among the sources count
            most) with the answer and with the question; tokens; place from 0 to 1.
    """

    heads: Floats
    overall: Floats

    @property
    def n(self) -> int:
        """Number of sources."""
        return len(self.overall)

    def of(self, name: str) -> Floats:
        """One of the features `OVERALL`, [n]."""
        return np.asarray(self.overall[:, OVERALL.index(name)])


def evidence(context: Context, model: LocalModel, question: str, answer: str) -> Evidence:
    """Look at an answer once, with all sources in the prompt.

    Args:
        context: of the sources.
        model: who answers; its attention has to be had.
        question: for the words that sources share with it.
        answer: as it goes on behind the prompt.

    Raises:
        CapabilityError: the model shows no attention weights.
        InputError: a source has no token of its own.
    """
    import torch

    from amplify.attribution.inputs import attentions

    rendered = render(context.marked(context.sources), model.tokenizer)
    encoded, start = encode_with_targets(model.tokenizer, [rendered], [answer])[0]
    own = [
        [k for k, offsets in enumerate(encoded.offsets[:start]) if held(offsets, (span,))] for span in rendered.emphasis
    ]
    if len(own) != len(context.sources) or not all(own):
        raise InputError("a source has no text of its own in the prompt: leave it out")
    shown = torch.tensor([encoded.ids[:-1]], device=model.module.device)  # the last token predicts nothing
    wanted = torch.tensor(encoded.ids[start:], device=model.module.device)
    inputs = model.module.get_input_embeddings()(shown).detach()
    weights = attentions(model.module, inputs)[:, :, start - 1 :].mean(2)  # [layers, heads, tokens]
    heads = np.stack([weights[:, :, tokens].sum(-1).cpu().numpy() for tokens in own]).astype(np.float64)
    with lock_of(model.module), torch.enable_grad():
        points = inputs.clone().requires_grad_()
        logits = model.module(inputs_embeds=points, use_cache=False).logits[0, start - 1 :].float()
        total = logits.log_softmax(-1).gather(1, wanted[:, None]).sum()
        (gradient,) = torch.autograd.grad(total, points)
    credit = (gradient.float() * inputs.float()).sum(-1)[0].cpu().numpy().astype(np.float64)
    model.usage.add(forwarded_tokens=2 * shown.shape[1])
    texts = [context.documents[s.document][s.start : s.end] for s in context.sources]
    overall = [
        heads.mean((1, 2)),
        np.array([credit[tokens].sum() for tokens in own]),
        np.array([np.abs(credit[tokens]).sum() for tokens in own]),
        shared(texts, answer),
        shared(texts, question),
        np.array([float(len(tokens)) for tokens in own]),
        np.linspace(0.0, 1.0, len(own)),
    ]
    return Evidence(heads, np.stack(overall, axis=1))


def shared(texts: Sequence[str], other: str) -> Floats:
    """How much of another text's words each text holds, a word weighed by how few of the texts hold it.

    A word in k of n texts weighs log(1 + n / k).

    Example:
        >>> shared(["two years", "two weeks", "free"], "Two years.").round(2)
        array([2.3 , 0.92, 0.  ])
    """
    held = [_words(text) for text in texts]
    among = Counter(word for words in held for word in words)
    weight = {word: np.log1p(len(texts) / among[word]) for word in _words(other) if word in among}
    return np.array([sum(weight.get(word, 0.0) for word in words) for words in held])


def _words(text: str) -> set[str]:
    return {text[a:b].lower() for a, b in word_spans(text)}


def relative(amounts: Floats) -> Floats:
    """Amounts [n, ...] over their mean of all sources, less 1; 0 where there are none.

    Example:
        >>> relative(np.array([3.0, 1.0, 2.0]))
        array([ 0.5, -0.5,  0. ])
    """
    mean = amounts.mean(axis=0)
    return np.where(mean > 0, amounts / np.where(mean > 0, mean, 1.0) - 1, 0.0)


def columns(found: Evidence) -> tuple[Floats, Floats]:
    """What the linear model sees of a game, without the game's scale: of heads [n, heads], and of `OVERALL`."""
    heads = relative(found.heads.reshape(found.n, -1))
    overall = relative(found.overall)
    signed, place = OVERALL.index("gradient"), OVERALL.index("place")
    overall[:, signed] = found.overall[:, signed] / max(float(np.abs(found.overall[:, signed]).mean()), 1e-12)
    overall[:, place] = found.overall[:, place] - 0.5
    return heads, overall


@dataclass(frozen=True)
class OnePass:
    """A linear model from `Evidence` to Shapley values, for one language model.

    Attributes:
        model: identity of the language model that it was learned for.
        heads: weight of each attention head's share, [layers, heads].
        overall: weights of `OVERALL`.
        base: what a source of no evidence gets.
        meta: how it was learned, and how well it predicts games that it has not seen.
    """

    model: Mapping[str, Any]
    heads: Floats
    overall: Floats
    base: float
    meta: Mapping[str, Any] = field(default_factory=dict)

    def scores(self, found: Evidence) -> Floats:
        """Predicted Shapley values, [n], in a unit of their own: only ratios between sources mean anything.

        Raises:
            InputError: the evidence is that of a model with other heads.
        """
        if found.heads.shape[1:] != self.heads.shape:
            raise InputError(
                f"this prior was learned for {self.heads.shape[0]} layers of {self.heads.shape[1]} heads, and the "
                f"model has {found.heads.shape[1]} of {found.heads.shape[2]}: learn one for it"
            )
        heads, overall = columns(found)
        return np.asarray(self.base + heads @ self.heads.ravel() + overall @ self.overall)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON."""
        return {
            "format": FORMAT,
            "model": dict(self.model),
            "heads": self.heads.tolist(),
            "overall": dict(zip(OVERALL, self.overall.tolist(), strict=True)),
            "base": self.base,
            "meta": dict(self.meta),
        }

    @classmethod
    def from_dict(cls, row: Any) -> OnePass:
        """What `to_dict` wrote.

        Raises:
            InputError: it is none of these, or was damaged.
        """
        try:
            if row["format"] != FORMAT or set(row["overall"]) != set(OVERALL):
                raise ValueError("another format")
            heads = np.array(row["heads"], dtype=np.float64)
            overall = np.array([row["overall"][name] for name in OVERALL], dtype=np.float64)
            base = float(row["base"])
            if heads.ndim != 2 or not np.isfinite(heads).all() or not np.isfinite([*overall, base]).all():
                raise ValueError("weights that are no numbers")
            return cls(dict(row["model"]), heads, overall, base, dict(row["meta"]))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"this is no weighting of one pass ({error}): eval/train_one_pass.py writes one"
            ) from error


def learn(
    evidence: Sequence[Evidence], scores: Sequence[Floats], model: Mapping[str, Any], ridge: float = 300.0
) -> OnePass:
    """Ridge regression from evidence to Shapley values, each game's values in the unit of their root mean square.

    Args:
        evidence: of some games of one model.
        scores: their Shapley values, [n] each.
        model: the model's identity.
        ridge: penalty on the weight of a standardised head; the few columns of `OVERALL` have a tenth of it.

    Raises:
        InputError: no games, or of models with different heads.
    """
    if not evidence or len({e.heads.shape[1:] for e in evidence}) != 1 or len(evidence) != len(scores):
        raise InputError("learning needs the evidence and the scores of at least one game, all of one model")
    shape = evidence[0].heads.shape[1:]
    x = np.concatenate([np.concatenate(columns(e), axis=1) for e in evidence])
    y = np.concatenate([s / max(float(np.sqrt(np.mean(s**2))), 1e-12) for s in scores])
    spread = np.where(x.std(axis=0) > 0, x.std(axis=0), 1.0)
    middle = x.mean(axis=0)
    z = (x - middle) / spread
    penalty = np.full(z.shape[1], ridge)
    penalty[-len(OVERALL) :] = ridge / 10
    weights = np.linalg.solve(z.T @ z + np.diag(penalty), z.T @ (y - y.mean())) / spread
    base = float(y.mean() - middle @ weights)
    return OnePass(model, weights[: -len(OVERALL)].reshape(shape), weights[-len(OVERALL) :], base)

"""The explainers by name, with what each is and needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["perturbation", "embedding", "attention", "baseline"]


@dataclass(frozen=True)
class Explainer:
    """One way to score words.

    Attributes:
        kind: what it looks at: values of perturbed inputs, a model's embeddings and gradients, its attention, or only
            the text.
        description: one line.
        contrastive: whether a foil changes it.
        sampled: whether it draws at random, so that its scores have intervals.
        signed: whether a score's sign says for or against the target; else it says how much alone.
    """

    kind: Kind
    description: str
    contrastive: bool = True
    sampled: bool = False
    signed: bool = True

    @property
    def summary(self) -> str:
        """The description, and whether its scores are unsigned."""
        return self.description + ("" if self.signed else "; unsigned")

    @property
    def inside(self) -> bool:
        """Whether it needs a model in this process."""
        return self.kind in ("embedding", "attention")


METHODS: dict[str, Explainer] = {
    "occlusion": Explainer("perturbation", "what is lost when one word is left out (Li et al. 2016)"),
    "lime": Explainer(
        "perturbation", "ridge fit to random coalitions near the input (Ribeiro et al. 2016)", sampled=True
    ),
    "kernel_shap": Explainer(
        "perturbation", "Shapley values by weighted regression on paired coalitions (Lundberg & Lee 2017)", sampled=True
    ),
    "shapley_sampling": Explainer(
        "perturbation", "mean of what a word adds in random orders (Castro et al. 2009)", sampled=True
    ),
    "c_lime": Explainer(
        "embedding", "linear fit to the model with words stretched at random (Agarwal et al. 2021)", sampled=True
    ),
    "vanilla_gradients": Explainer("embedding", "L2 norm of the gradient by a word's embeddings", signed=False),
    "grad_norm": Explainer("embedding", "L1 norm of the gradient (Simonyan et al. 2014)", signed=False),
    "grad_x_input": Explainer("embedding", "gradient times input, summed over the embedding (Shrikumar et al. 2016)"),
    "smooth_grad": Explainer(
        "embedding", "L2 norm of the mean gradient under noise (Smilkov et al. 2017)", sampled=True, signed=False
    ),
    "integrated_gradients": Explainer(
        "embedding", "gradients along the way from padding to the input (Sundararajan et al. 2017)"
    ),
    "deep_lift": Explainer("embedding", "differences to padding, layer by layer (Shrikumar et al. 2017)"),
    "raw_attention": Explainer("attention", "the last layer's attention; a baseline", contrastive=False, signed=False),
    "attention_rollout": Explainer(
        "attention", "attention multiplied through the layers (Abnar & Zuidema 2020)", contrastive=False, signed=False
    ),
    "attention_flow": Explainer(
        "attention",
        "maximum flow through the layers' attention (Abnar & Zuidema 2020)",
        contrastive=False,
        signed=False,
    ),
    "random": Explainer("baseline", "random scores", contrastive=False),
    "tfidf": Explainer("baseline", "frequent here and rare in the corpus; no model", contrastive=False, signed=False),
}

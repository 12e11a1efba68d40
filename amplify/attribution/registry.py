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
    """

    kind: Kind
    description: str
    contrastive: bool = True
    sampled: bool = False

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
    "grad_norm": Explainer("embedding", "L1 norm of the gradient by a word's embeddings (Simonyan et al. 2014)"),
    "grad_x_input": Explainer("embedding", "gradient times input, summed over the embedding (Shrikumar et al. 2016)"),
}

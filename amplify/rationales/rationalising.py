"""From scores to sentences: what an attribution found, as a rationale."""

from __future__ import annotations

from amplify.errors import InputError
from amplify.models.base import LanguageModel
from amplify.rationales.narration import narrate
from amplify.rationales.wording import cite
from amplify.templates import Template
from amplify.types import Attribution, Rationale


def rationalize(
    attribution: Attribution,
    template: str | Template = "key_words",
    k: int = 5,
    *,
    label: str | None = None,
    positive: bool = True,
    model: LanguageModel | None = None,
) -> Rationale:
    """The sentence that cites what an attribution found as the reason for its target.

    Args:
        attribution: scores over the words that may be cited (see `amplify.attribution.words.key_word_mask`).
        template: of `prompts/rationale_*.jinja`, or a path of your own. "key_words", "paper" (the wording of
            arXiv 2305.11426, section 3) and "words_only" cite the k highest words; "phrases" joins those that are
            neighbours; "convolution", "span" and "total_order" search for what covers most of the weight
            (`amplify.rationales.salience`). "narrated": a language model writes it (`amplify.rationales.narration`),
            and where it cites what is not in the input and the attribution, "key_words" is used instead: see `kind`
            of the result.
        k: at most how many words or phrases. Where there are fewer different ones, those there are:
            `len(rationale.words)` tells.
        label: how prompts write the target, e.g. "(A)"; default: the target itself.
        positive: cite only words that speak for the target (a score above 0), since the sentence says that they do.
            False cites the k highest whatever their sign, as the paper does; the searches never cite others.
        model: who narrates.

    Raises:
        InputError: k below 1, no word to cite (or none that speaks for the target), or no model to narrate.
    """
    if template == "narrated":
        if model is None:
            raise InputError('template="narrated" needs model=: a model, e.g. amplify.load_model("vllm:MODEL")')
        return narrate([attribution], model, labels=None if label is None else [label], k=k).rationales[0]
    return cite(attribution, template, k, label=label, positive=positive)

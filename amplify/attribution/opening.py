"""What can be explained: a model, opened where it is only named, and one input of it, checked."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from amplify.attribution.registry import METHODS, Explainer
from amplify.attribution.subjects import PromptSubject, ProxySubject, prompt_subject, proxy_subject
from amplify.attribution.words import Spans
from amplify.errors import CapabilityError, InputError
from amplify.models.base import LanguageModel, LocalModel, ScoringModel
from amplify.proxies import CARD, Proxy, load_proxy
from amplify.types import Example, Prompt

Model = str | Path | Proxy | LanguageModel
Given = str | Example | Prompt


@contextmanager
def opened(model: Model) -> Iterator[Proxy | LanguageModel]:
    """A proxy or model, loaded if it is only named (and closed again)."""
    if isinstance(model, Proxy):
        yield model
    elif isinstance(model, (str, Path)):
        from amplify.models import MODELS, load_model

        name = str(model)
        if os.path.isfile(Path(model) / CARD) or name.partition(":")[0] not in MODELS:
            if not os.path.isdir(model):
                raise InputError(
                    f"{name!r} is neither a proxy folder nor a model: give a folder that `amplify proxy` wrote, or "
                    "KIND:MODEL, e.g. transformers:smollm2-135m"
                )
            with load_proxy(model) as proxy:
                yield proxy
        else:
            with load_model(name) as loaded:
                yield loaded
    else:
        yield model


def subject(
    model: Proxy | LanguageModel,
    given: Given,
    target: str | None,
    foil: str | None,
    segments: Spans | None = None,
    *,
    truncate: bool = False,
) -> ProxySubject | PromptSubject:
    """One input of an open model, checked."""
    if isinstance(model, Proxy):
        if isinstance(given, Prompt):
            raise InputError("a proxy explains a text or an Example; a Prompt needs a language model (model=…)")
        return proxy_subject(model, given, target, foil, segments=segments, truncate=truncate)
    if isinstance(given, Example):
        raise InputError("a language model explains a text or a Prompt; render the example first, or use a proxy")
    return prompt_subject(model, given, target, foil, segments=segments)


def able(model: Proxy | LanguageModel, explainer: Explainer) -> bool:
    """Whether an explainer works with a model."""
    if isinstance(model, (Proxy, LocalModel)):
        return True
    return not explainer.inside and (isinstance(model, ScoringModel) or explainer.kind == "baseline")


def check_able(model: Proxy | LanguageModel, methods: Sequence[str]) -> None:
    """Refuse methods that do not work with a model.

    Raises:
        UnknownNameError: no such method.
        CapabilityError: names those that do.
    """
    for name in methods:
        explainer = METHODS.find(name)
        if not isinstance(model, Proxy) and not able(model, explainer):
            work = [other for other, one in METHODS.items() if able(model, one)]
            raise CapabilityError(
                f"{name} {'looks inside the model' if explainer.inside else 'needs log-probabilities'}, which "
                f"{model.id!r} does not give. What works with it: {', '.join(work)}. For the others use a "
                "transformers: model or a proxy."
            )

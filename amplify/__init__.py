"""amplify makes a frozen language model better with explanations, and proves it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from amplify.types import Example, Message, Prompt, Sampling, Span

if TYPE_CHECKING:
    from amplify.attribution import explain, explain_many
    from amplify.attribution.faithfulness import faithfulness
    from amplify.evaluation import evaluate
    from amplify.methods.base import Program
    from amplify.models import load_model
    from amplify.models.transformers import TransformersModel
    from amplify.proxies import Proxy, train_proxy
    from amplify.rationales import rationalize
    from amplify.registry import register
    from amplify.sources.attribute import attribute_sources
    from amplify.steering import Steering, parse_emphasis
    from amplify.steering.attention import steered
    from amplify.tasks import load_task
    from amplify.tuning import Budget, tune

__version__ = "0.1.0"

# name -> module, imported on first use so that `import amplify` loads no framework
_LAZY = {
    "Program": "amplify.methods.base",
    "Proxy": "amplify.proxies",
    "Steering": "amplify.steering",
    "TransformersModel": "amplify.models.transformers",
    "attribute_sources": "amplify.sources.attribute",
    "evaluate": "amplify.evaluation",
    "explain": "amplify.attribution",
    "explain_many": "amplify.attribution",
    "faithfulness": "amplify.attribution.faithfulness",
    "load_task": "amplify.tasks",
    "load_model": "amplify.models",
    "parse_emphasis": "amplify.steering",
    "rationalize": "amplify.rationales",
    "register": "amplify.registry",
    "steered": "amplify.steering.attention",
    "train_proxy": "amplify.proxies",
    "tune": "amplify.tuning",
    "Budget": "amplify.tuning",
}
_MODULES = (
    "attribution", "evaluation", "hub", "methods", "metrics", "models", "proxies", "rag", "rationales", "shapley",
    "sources", "steering", "tasks",
)  # fmt: skip

__all__ = [
    "Budget",
    "Example",
    "Message",
    "Program",
    "Prompt",
    "Proxy",
    "Sampling",
    "Span",
    "Steering",
    "TransformersModel",
    "attribute_sources",
    "evaluate",
    "explain",
    "explain_many",
    "faithfulness",
    "load_model",
    "load_task",
    "parse_emphasis",
    "rationalize",
    "register",
    "steered",
    "train_proxy",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    if name in _MODULES:
        return import_module(f"amplify.{name}")
    raise AttributeError(f"module 'amplify' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_MODULES, "__version__"])

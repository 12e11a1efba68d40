"""amplify makes a frozen language model better with explanations, and proves it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from amplify.errors import (
    AmplifyError,
    CapabilityError,
    ContextLengthError,
    DataError,
    InputError,
    MissingExtraError,
    ModelError,
    PromptFormatError,
    RunError,
    UnknownNameError,
    WriteError,
)
from amplify.types import (
    Answer,
    Attribution,
    Completion,
    Demonstration,
    Example,
    Message,
    Prompt,
    Rationale,
    Sampling,
    Span,
    TokenLogProbs,
)

if TYPE_CHECKING:
    from amplify.attribution import explain, explain_many
    from amplify.attribution.faithfulness import Faithfulness, faithfulness
    from amplify.evaluation import evaluate
    from amplify.evaluation.report import Report
    from amplify.methods.base import Program
    from amplify.models import load_model
    from amplify.models.transformers import TransformersModel
    from amplify.prompting import PromptExplanation, explain_prompt
    from amplify.proxies import Proxy, train_proxy
    from amplify.rationales import rationalize
    from amplify.registry import register
    from amplify.sources.attribute import attribute_sources
    from amplify.sources.claims import Citation, Claim
    from amplify.sources.document import Document, Source
    from amplify.sources.importance import SourceImportance, source_importance
    from amplify.sources.loop import Loop, answer_in_loop
    from amplify.sources.result import SourceAttribution
    from amplify.steering import Steering, parse_emphasis
    from amplify.steering.attention import steered
    from amplify.tasks import Task, load_task
    from amplify.tuning import Budget, Tuned, tune

__version__ = "0.1.0"

# name -> module, imported on first use so that `import amplify` loads no framework
_LAZY = {
    "Budget": "amplify.tuning",
    "Citation": "amplify.sources.claims",
    "Claim": "amplify.sources.claims",
    "Document": "amplify.sources.document",
    "Faithfulness": "amplify.attribution.faithfulness",
    "Loop": "amplify.sources.loop",
    "Program": "amplify.methods.base",
    "PromptExplanation": "amplify.prompting",
    "Proxy": "amplify.proxies",
    "Report": "amplify.evaluation.report",
    "Source": "amplify.sources.document",
    "SourceAttribution": "amplify.sources.result",
    "SourceImportance": "amplify.sources.importance",
    "Steering": "amplify.steering",
    "Task": "amplify.tasks",
    "TransformersModel": "amplify.models.transformers",
    "Tuned": "amplify.tuning",
    "answer_in_loop": "amplify.sources.loop",
    "attribute_sources": "amplify.sources.attribute",
    "evaluate": "amplify.evaluation",
    "explain": "amplify.attribution",
    "explain_many": "amplify.attribution",
    "explain_prompt": "amplify.prompting",
    "faithfulness": "amplify.attribution.faithfulness",
    "load_model": "amplify.models",
    "load_task": "amplify.tasks",
    "parse_emphasis": "amplify.steering",
    "rationalize": "amplify.rationales",
    "register": "amplify.registry",
    "source_importance": "amplify.sources.importance",
    "steered": "amplify.steering.attention",
    "train_proxy": "amplify.proxies",
    "tune": "amplify.tuning",
}
_MODULES = (
    "attribution", "bridges", "evaluation", "head_search", "hub", "methods", "metrics", "models", "prompting",
    "proxies", "rag", "rationales", "schemas", "serve", "shapley", "sources", "steering", "tasks", "tuning",
)  # fmt: skip

__all__ = [
    "AmplifyError",
    "Answer",
    "Attribution",
    "Budget",
    "CapabilityError",
    "Citation",
    "Claim",
    "Completion",
    "ContextLengthError",
    "DataError",
    "Demonstration",
    "Document",
    "Example",
    "Faithfulness",
    "InputError",
    "Loop",
    "Message",
    "MissingExtraError",
    "ModelError",
    "Program",
    "Prompt",
    "PromptExplanation",
    "PromptFormatError",
    "Proxy",
    "Rationale",
    "Report",
    "RunError",
    "Sampling",
    "Source",
    "SourceAttribution",
    "SourceImportance",
    "Span",
    "Steering",
    "Task",
    "TokenLogProbs",
    "TransformersModel",
    "Tuned",
    "UnknownNameError",
    "WriteError",
    "answer_in_loop",
    "attribute_sources",
    "evaluate",
    "explain",
    "explain_many",
    "explain_prompt",
    "faithfulness",
    "load_model",
    "load_task",
    "parse_emphasis",
    "rationalize",
    "register",
    "source_importance",
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

"""Ways to answer a task, each composed from the parts below: baselines, controls, and the papers."""

from __future__ import annotations

from dataclasses import fields
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from amplify.errors import InputError, UnknownNameError
from amplify.methods.amplify import Amplify
from amplify.methods.base import METHODS, Method, Mode, Program, PromptProgram, Rehearsal, Role
from amplify.methods.baselines import FewShot, FewShotBalanced, HumanCoT, ZeroShot, ZeroShotCoT
from amplify.methods.cascade import Cascade, Selective
from amplify.methods.controls import (
    AnswerFormatOnly,
    NoRationale,
    ProxyAlone,
    RandomWords,
    ShuffledRationales,
    TestWords,
    TfidfWords,
)
from amplify.methods.neighbours import FewShotNearest
from amplify.methods.pasta import AutoPasta, InstaBoost, Pasta, Spotlight
from amplify.methods.pasta_controls import (
    AutoPastaRandom,
    FewShotMarked,
    FewShotPastaRandomHeads,
    MarkedPrompt,
    PastaRandomHeads,
)
from amplify.methods.pasta_shots import FewShotPasta
from amplify.methods.program import ShotProgram
from amplify.methods.prompt import Form, PromptMethod
from amplify.methods.proxy_hint import ProxyHint, ProxyHintRandom
from amplify.methods.proxy_pool import ProxyPool
from amplify.methods.rag import RagDistilShapley, RagHighlightPasta, RagPruneShapley, RagRerankShapley
from amplify.methods.rag_baselines import Rag, RagLeaveOneOut, RagRerankRandom
from amplify.methods.refusals import IgnoreWord, NegativeEmphasis, Rephrase
from amplify.methods.self_amplify import (
    SelfAutoCoT,
    SelfDeepLift,
    SelfGradient,
    SelfLime,
    SelfOcclusion,
    SelfPhCoT,
    SelfShap,
    SelfShapleySampling,
    SelfTopK,
)
from amplify.methods.self_controls import SelfNoRationale, SelfRandomWords


def make(name: str, *, mode: Mode = "generate", **options: Any) -> Method:
    """A method by name.

    Args:
        name: a key of `METHODS`.
        mode: "generate" or "score".
        **options: its dataclass fields; values given as strings are converted by the field's type.

    Raises:
        UnknownNameError: no such method, or no such option of it.
        InputError: a value that the option cannot take.
    """
    cls = METHODS.find(name)
    known = {f.name for f in fields(cls)} - {"mode"}
    for option in options:
        if option not in known:
            raise UnknownNameError(f"{name} option", option, known)
    hints = get_type_hints(cls)
    given = {option: _convert(f"{name}.{option}", value, hints[option]) for option, value in options.items()}
    return cls(mode=mode, **given)


def _convert(where: str, value: Any, wanted: Any) -> Any:
    """The value as the option's type, from a string of the command line or as it is."""
    if NoneType in get_args(wanted):
        if value is None or (isinstance(value, str) and value.lower() == "none"):
            return None
        [wanted] = [one for one in get_args(wanted) if one is not NoneType][:1]
        return _convert(where, value, wanted)
    if get_origin(wanted) is Literal:
        if value in get_args(wanted):
            return value
        raise InputError(f"{where} is one of {', '.join(map(str, get_args(wanted)))}, not {value!r}")
    if wanted is bool and isinstance(value, str):
        words = {
            "true": True,
            "yes": True,
            "1": True,
            "on": True,
            "false": False,
            "no": False,
            "0": False,
            "off": False,
        }
        if value.lower() in words:
            return words[value.lower()]
    elif isinstance(value, str) and wanted in (int, float):
        try:
            return wanted(value)
        except ValueError:
            pass
    elif type(value) is wanted or (wanted is float and type(value) is int):
        return wanted(value)
    if wanted not in (bool, int, float, str):  # a type of the method's own, which it checks itself
        return value
    raise InputError(f"{where} is {'a' if wanted is not int else 'an'} {wanted.__name__}, not {value!r}")


__all__ = [
    "METHODS",
    "Amplify",
    "AnswerFormatOnly",
    "AutoPasta",
    "AutoPastaRandom",
    "Cascade",
    "FewShot",
    "FewShotBalanced",
    "FewShotMarked",
    "FewShotNearest",
    "FewShotPasta",
    "FewShotPastaRandomHeads",
    "Form",
    "HumanCoT",
    "IgnoreWord",
    "InstaBoost",
    "MarkedPrompt",
    "Method",
    "Mode",
    "NegativeEmphasis",
    "NoRationale",
    "Pasta",
    "PastaRandomHeads",
    "Program",
    "PromptMethod",
    "PromptProgram",
    "ProxyAlone",
    "ProxyHint",
    "ProxyHintRandom",
    "ProxyPool",
    "Rag",
    "RagDistilShapley",
    "RagHighlightPasta",
    "RagLeaveOneOut",
    "RagPruneShapley",
    "RagRerankRandom",
    "RagRerankShapley",
    "RandomWords",
    "Rehearsal",
    "Rephrase",
    "Role",
    "Selective",
    "SelfAutoCoT",
    "SelfDeepLift",
    "SelfGradient",
    "SelfLime",
    "SelfNoRationale",
    "SelfOcclusion",
    "SelfPhCoT",
    "SelfRandomWords",
    "SelfShap",
    "SelfShapleySampling",
    "SelfTopK",
    "ShotProgram",
    "ShuffledRationales",
    "Spotlight",
    "TestWords",
    "TfidfWords",
    "ZeroShot",
    "ZeroShotCoT",
    "make",
]

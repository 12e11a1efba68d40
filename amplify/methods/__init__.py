"""Ways to answer a task: a few classes with options, and every published variant of them by name in `METHODS`."""

from amplify.methods.amplify import Amplify
from amplify.methods.attention_vectors import AttentionVectors
from amplify.methods.base import METHODS, Method, Mode, Preset, Program, PromptProgram, Rehearsal, Role, make
from amplify.methods.best_prompt import BestPrompt
from amplify.methods.calibrated import CalibratedProgram
from amplify.methods.cascade import Cascade, Selective
from amplify.methods.emphasise import Emphasise
from amplify.methods.few_shot import AnswerFormatOnly, FewShot, FewShotNearest, HumanCoT, ZeroShot
from amplify.methods.instructions import FoundInstruction, InstructionSearch, Proposal, find_instruction
from amplify.methods.pasta import InstaBoost, Pasta, Spotlight
from amplify.methods.program import ShotProgram
from amplify.methods.prompt import Form, PromptMethod
from amplify.methods.proxy import ProxyAlone
from amplify.methods.proxy_hint import ProxyHint
from amplify.methods.proxy_pool import ProxyPool
from amplify.methods.rag import Rag
from amplify.methods.refusals import Detrigger
from amplify.methods.self_amplify import SelfAmplify
from amplify.methods.several import Several
from amplify.methods.stacked import Stacked

__all__ = [
    "METHODS",
    "Amplify",
    "AnswerFormatOnly",
    "AttentionVectors",
    "BestPrompt",
    "CalibratedProgram",
    "Cascade",
    "Detrigger",
    "Emphasise",
    "FewShot",
    "FewShotNearest",
    "Form",
    "FoundInstruction",
    "HumanCoT",
    "InstaBoost",
    "InstructionSearch",
    "Method",
    "Mode",
    "Pasta",
    "Preset",
    "Program",
    "PromptMethod",
    "PromptProgram",
    "Proposal",
    "ProxyAlone",
    "ProxyHint",
    "ProxyPool",
    "Rag",
    "Rehearsal",
    "Role",
    "Selective",
    "SelfAmplify",
    "Several",
    "ShotProgram",
    "Spotlight",
    "Stacked",
    "ZeroShot",
    "find_instruction",
    "make",
]

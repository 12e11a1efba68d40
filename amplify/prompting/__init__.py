"""What in a prompt helps: its parts as players of one game over labelled items, and what to do about it."""

from amplify.prompting.explain import explain_prompt
from amplify.prompting.parts import Part, parts_of
from amplify.prompting.result import Check, PartValue, PromptExplanation

__all__ = ["Check", "Part", "PartValue", "PromptExplanation", "explain_prompt", "parts_of"]

"""One sample with its emphasis, for tests of margins and records."""

from amplify.head_search.margins import Item
from amplify.types import Prompt, Span

TEXT = "Paris is great. The phone is terrible. Answer positive or negative. The answer is"


def item(span=(39, 67), gold=" positive", foil=" negative", whole=False):
    return Item("a", Prompt(text=TEXT, emphasis=(Span(*span),)), gold, foil, whole)

"""A model: it says back what it was asked."""

import amplify
from amplify.models import SimpleModel


@amplify.register("model", "parrot")
class Parrot(SimpleModel):
    """Says back the last words it was told: parrot:NAME."""

    def __init__(self, name: str, *, words: int = 1):
        super().__init__(name)
        self.words = words

    def complete(self, prompt, sampling):
        told = prompt.text if prompt.text is not None else prompt.messages[-1].content
        return " " + " ".join(told.split()[-self.words :])

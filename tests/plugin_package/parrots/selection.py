"""A selection: the longest examples as shots."""

import amplify


@amplify.register("selection", "longest")
def longest(candidates):
    """The longest texts."""
    return [len(example.text) for example in candidates.examples]

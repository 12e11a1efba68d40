"""A metric: how many of the reference's letters the answer has."""

import amplify


@amplify.register("metric", "letters")
def letters(prediction: str, reference: str) -> float:
    """Share of the letters of both that are in both."""
    given, wanted = set(prediction.casefold()), set(reference.casefold())
    return len(given & wanted) / len(given | wanted)

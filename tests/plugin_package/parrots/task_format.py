"""A task format: flash cards, front and back."""

import amplify
from amplify.types import Example


@amplify.register("task_format", "cards")
def cards(spec, rows, path):
    """Flash cards: front, back, and whether it is for the test."""
    for number, row in enumerate(rows):
        split = "test" if row["exam"] else "train"
        yield Example(f"{path.stem}-{number}", row["front"], answers=(row["back"],)), split

"""A model made of two word lists, and the reviews that it can read."""

from amplify.types import Example

GOOD, BAD = ("great", "lovely", "superb", "fine"), ("awful", "broken", "poor", "ugly")


def reviews(split: str, n: int) -> tuple[Example, ...]:
    def one(i: int) -> Example:
        word, label = (GOOD[i // 2 % 4], "positive") if i % 2 == 0 else (BAD[i // 2 % 4], "negative")
        return Example(f"{split}-{i}", f"A {word} phone, number {i} of {split}.", label)

    return tuple(one(i) for i in range(n))


def by_word(text: str) -> str:
    """Answers the last question, rationales and all."""
    asked = text.rpartition("Review: ")[2]
    label = "positive" if any(word in asked for word in GOOD) else "negative"
    return f" {label}." if text.endswith("The answer is") else f" I looked at it. The answer is {label}."

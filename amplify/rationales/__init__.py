"""From scores to sentences: what an attribution found, as a rationale; and the words that controls put in its place."""

from amplify.rationales.controls import others, random_words, tfidf_words
from amplify.rationales.rationalising import rationalize

__all__ = ["others", "random_words", "rationalize", "tfidf_words"]

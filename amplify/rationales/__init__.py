"""From scores to sentences: what an attribution found, as a rationale; and the words that controls put in its place."""

from amplify.rationales.wording import others, random_words, rationalize, tfidf_words

__all__ = ["others", "random_words", "rationalize", "tfidf_words"]

"""Which sources made the answer: games over coalitions of documents, sentences and words of a context."""

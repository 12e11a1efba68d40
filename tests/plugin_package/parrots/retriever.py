"""A retriever: documents that share words with the question."""

import amplify
from amplify.retrieval import Hit


@amplify.register("retriever", "shared_words")
class SharedWords:
    """Counts the words that a document shares with the question."""

    def __init__(self, documents):
        self.documents = [set(document.casefold().split()) for document in documents]

    def search(self, question, k):
        asked = set(question.casefold().split())
        hits = [Hit(i, float(len(asked & words))) for i, words in enumerate(self.documents)]
        return sorted(hits, key=lambda hit: (-hit.score, hit.document))[:k]

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest

from amplify.errors import InputError, ModelError, UnknownNameError
from amplify.retrieval import BM25Retriever, DenseRetriever, Embedder, Hit, open_embedder, open_retriever

DOCUMENTS = ["Paris is the capital of France.", "Cats sleep a lot.", "The Seine flows through Paris, France."]


def test_bm25_is_the_formula() -> None:
    """Lucene's variant by hand: idf = ln(1 + (N - df + .5)/(df + .5)), tf/(tf + k1(1 - b + b·len/mean))."""
    corpus = [
        ["paris", "capital", "france"],
        ["cats", "sleep", "lot"],
        ["seine", "flows", "through", "paris", "france"],
    ]
    mean, k1, b = np.mean([len(d) for d in corpus]), 1.5, 0.75
    found = dict(BM25Retriever(DOCUMENTS).search("Paris sleep", 3))
    for i, words in enumerate(corpus):
        want = 0.0
        for term in ("paris", "sleep"):
            df = sum(term in d for d in corpus)
            tf = words.count(term)
            norm = k1 * (1 - b + b * len(words) / mean)
            want += np.log(1 + (3 - df + 0.5) / (df + 0.5)) * tf / (tf + norm)
        assert found[i] == pytest.approx(want, rel=1e-5)  # float32 inside


def test_bm25_edges() -> None:
    assert BM25Retriever(DOCUMENTS).search("zebra", 2) == [Hit(0, 0.0), Hit(1, 0.0)]
    assert BM25Retriever(["the", "of the"]).search("the capital", 5) == [Hit(0, 0.0), Hit(1, 0.0)]
    with pytest.raises(InputError, match="at least one"):
        BM25Retriever([])
    with pytest.raises(InputError, match="1 or more"):
        BM25Retriever(DOCUMENTS).search("x", 0)
    with pytest.raises(UnknownNameError, match="minilm"):
        open_retriever("minilmm", DOCUMENTS)


def test_dense_is_exact_cosine(tiny_encoder) -> None:
    retriever = DenseRetriever(DOCUMENTS, model=tiny_encoder)
    vectors = Embedder(tiny_encoder).embed([*DOCUMENTS, "the river in Paris"])
    cosines = vectors[:3] @ vectors[3] / np.linalg.norm(vectors[:3], axis=1) / np.linalg.norm(vectors[3])
    hits = retriever.search("the river in Paris", 3)
    assert [h.document for h in hits] == np.argsort(-cosines).tolist()
    assert [h.score for h in hits] == pytest.approx(sorted(cosines, reverse=True), abs=1e-5)


@pytest.mark.real
def test_dense_finds_meaning(minilm) -> None:
    hits = DenseRetriever(DOCUMENTS, model=minilm).search("Which river runs through the French capital?", 2)
    assert hits[0].document == 2


def test_an_embedder_is_closed_and_its_memory_freed(tiny_encoder) -> None:
    with Embedder(tiny_encoder, device="cpu") as embedder:
        module = weakref.ref(embedder.module)
        assert embedder.embed(["a b"]).shape[0] == 1
    embedder.close()
    gc.collect()
    assert module() is None
    with pytest.raises(ModelError, match="closed: open it again"):
        embedder.embed(["a b"])
    shared = open_embedder(str(tiny_encoder), "cpu")
    assert open_embedder(str(tiny_encoder), "cpu") is shared
    shared.close()
    assert open_embedder(str(tiny_encoder), "cpu").embed(["a b"]).shape[0] == 1
    with pytest.raises(InputError, match="device"):
        DenseRetriever(DOCUMENTS, tiny_encoder, device="cuda:99")

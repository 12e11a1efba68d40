"""Each adapter inside its real host: options, metadata, async, serialisation and pipelines as that host has them."""

from __future__ import annotations

import asyncio
import copy
import importlib
import importlib.util
import pickle
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from amplify.errors import CapabilityError, InputError, UnknownNameError
from amplify.models.scripted import ScriptedGenerator, ScriptedModel
from amplify.rag.compress import DocumentCompressor, ScoredDocument

QUERY = "Where does Ada live?"
TEXTS = ["Trees are green.", "Ada lives in Bern.", "Ada does not live anywhere.", "Grass is green."]
SCORES = [-0.1, 4.0, -2.0, -0.1]  # of the additive game below
INTERVAL = ("low", "high")


def likely(text: str, answer: str) -> float:
    says, denies = "lives in Bern" in text, "not live anywhere" in text
    return -9.0 + 4.0 * says - 2.0 * denies - 0.1 * len(re.findall("are green|is green", text))


@pytest.fixture
def model() -> ScriptedModel:
    return ScriptedModel(reply=lambda text: " Bern", logprob=likely)


def test_compression(model: ScriptedModel) -> None:
    kept = DocumentCompressor(model)(QUERY, TEXTS)
    assert [k.number for k in kept] == [1, 0, 3, 2]
    assert [k.score for k in kept] == pytest.approx([4.0, -0.1, -0.1, -2.0])
    assert all(k.low == pytest.approx(k.score) == k.high for k in kept)  # 2^4 prompts: exact
    assert {call.continuation for call in model.calls} == {None, " Bern"}  # its own answer, nothing else
    assert [k.number for k in DocumentCompressor(model, "prune", threshold=-1.0)(QUERY, TEXTS)] == [0, 1, 3]
    assert [k.number for k in DocumentCompressor(model, "distil", 2)(QUERY, TEXTS)] == [0, 1]
    assert [k.number for k in DocumentCompressor(model, k=1)(QUERY, TEXTS)] == [1]


def test_what_is_known_to_harm_is_not_read(model: ScriptedModel, tmp_path) -> None:
    from amplify.sources.importance import SourceImportance, SourceLine

    lines = tuple(SourceLine(str(i), "", 9, s, s, s, float(s > -1)) for i, s in enumerate(SCORES))
    known = SourceImportance(lines, (), "gradient", 3, 0.5, True, 9, 9)
    known.save(tmp_path / "i.json")
    documents = [{"id": str(i), "text": text} for i, text in enumerate(TEXTS)]
    for importance in (known, str(tmp_path / "i.json")):
        compression = DocumentCompressor(model, importance=importance)
        assert [k.number for k in compression(QUERY, TEXTS, documents=documents)] == [1, 0, 3]
        assert not [call for call in model.calls if "not live anywhere" in call.text]
    assert [k.number for k in compression(QUERY, TEXTS)] == [1, 0, 3, 2]  # without documents nothing is known of them
    only = DocumentCompressor(model, importance=known)(QUERY, TEXTS[2:3], documents=documents[2:3])
    assert [k.number for k in only] == [0]  # an empty context would answer another question
    with pytest.raises(InputError, match="importance"):
        DocumentCompressor(model, importance=3)
    if importlib.util.find_spec("langchain_core"):
        from langchain_core.documents import Document

        from amplify.rag.langchain import ShapleyCompressor

        host = [Document(page_content=text, id=str(i)) for i, text in enumerate(TEXTS)]
        found = ShapleyCompressor(model=model, options={"importance": str(tmp_path / "i.json")})
        assert [d.id for d in found.compress_documents(host, QUERY)] == ["1", "0", "3"]


def test_votes_explain_an_answer_that_would_go_on(model: ScriptedModel) -> None:
    """Answers end with their line, in the model's own answer and in every coalition's."""

    def reply(text: str) -> str:
        return " Bern.\n\nAda lives on." if "lives in Bern" in text else " Nowhere.\nNobody."

    kept = DocumentCompressor(ScriptedModel(reply=reply), value="votes")(QUERY, TEXTS)
    assert [k.number for k in kept] == [1, 0, 2, 3]
    assert [k.score for k in kept] == pytest.approx([1.0, 0.0, 0.0, 0.0])


def test_what_cannot_be_scored(model: ScriptedModel) -> None:
    assert DocumentCompressor(model)(QUERY, []) == []
    assert DocumentCompressor(model)(QUERY, TEXTS[:1] * 2) == [ScoredDocument(0), ScoredDocument(1)]
    assert model.calls == []
    odd = ["", TEXTS[0], TEXTS[1], f" {TEXTS[1]}\n"]
    assert [(k.number, k.score is None) for k in DocumentCompressor(model)(QUERY, odd)] == [
        (2, False), (1, False), (0, True), (3, True),
    ]  # fmt: skip
    assert [k.number for k in DocumentCompressor(model, "prune", threshold=-1.0)(QUERY, odd)] == [1, 2]
    silent = ScriptedModel(reply=lambda text: "", logprob=likely)
    assert DocumentCompressor(silent)(QUERY, TEXTS) == [ScoredDocument(i) for i in range(4)]
    # the bound protects the context window whatever happens
    for operation in ("rerank", "prune", "distil"):
        assert len(DocumentCompressor(silent, operation, 2)(QUERY, TEXTS)) == 2
        assert len(DocumentCompressor(model, operation, 1)(QUERY, TEXTS[:1] * 3)) == 1
        assert len(DocumentCompressor(model, operation, 1, threshold=-9.0)(QUERY, TEXTS)) == 1
    # and there is room for what could not be scored
    assert [k.number for k in DocumentCompressor(model, "rerank", 5)(QUERY, odd)] == [2, 1, 0, 3]
    assert [k.number for k in DocumentCompressor(model, "rerank", 3)(QUERY, odd)] == [2, 1, 0]
    with pytest.raises(InputError, match="question is empty"):
        DocumentCompressor(model)(" ", TEXTS)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"operation": "distil"}, InputError), ({"operation": "rernk"}, UnknownNameError), ({"budget": 1}, InputError),
        ({"value": "logits"}, UnknownNameError), ({"k": -1}, InputError), ({"layout": "html"}, UnknownNameError),
        ({"topn": 3}, UnknownNameError), ({"budget": 3.5}, InputError), ({"max_token": 3}, UnknownNameError),
    ],
)  # fmt: skip
def test_bad_options_at_once(model: ScriptedModel, options, error) -> None:
    with pytest.raises(error):
        DocumentCompressor(model, **options)


def test_a_model_without_log_probabilities_at_once() -> None:
    generator = ScriptedGenerator(reply=lambda text: " Bern" if "lives in Bern" in text else " unknown")
    with pytest.raises(CapabilityError):
        DocumentCompressor(generator)
    assert DocumentCompressor(generator, value="votes")(QUERY, TEXTS)[0].number == 1


def test_langchain(model: ScriptedModel) -> None:
    pytest.importorskip("langchain_core")
    from langchain_core.documents import BaseDocumentCompressor, Document
    from langchain_core.runnables import RunnableLambda

    from amplify.rag.langchain import ShapleyCompressor

    documents = [Document(page_content=t, metadata={"source": i}, id=str(i)) for i, t in enumerate(TEXTS)]
    compressor = ShapleyCompressor(model=model, operation="rerank", top_n=2)
    assert isinstance(compressor, BaseDocumentCompressor)
    kept = compressor.compress_documents(documents, QUERY)
    assert [d.id for d in kept] == ["1", "0"]
    assert kept[0].metadata["relevance_score"] == pytest.approx(4.0)
    assert kept[0].metadata["source"] == 1
    assert set(documents[1].metadata) == {"source"}  # the host's own documents stay as they were
    assert [d.id for d in asyncio.run(compressor.acompress_documents(documents, QUERY))] == ["1", "0"]
    chain = RunnableLambda(lambda q: compressor.compress_documents(documents, q)) | (lambda d: d[0].page_content)
    assert chain.invoke(QUERY) == TEXTS[1]
    assert list(compressor.compress_documents([], QUERY)) == []
    with pytest.raises(ValueError, match="extra"):
        ShapleyCompressor(model=model, topn=2)
    with pytest.raises(ValueError, match="needs how many texts to keep"):  # as pydantic tells it
        ShapleyCompressor(model=model, operation="distil")
    opened = ShapleyCompressor(model="scripted:say= Bern", top_n=3)
    assert len(opened.compress_documents(documents, QUERY)) == 3


def test_llamaindex(model: ScriptedModel) -> None:
    pytest.importorskip("llama_index.core")
    from llama_index.core.postprocessor.types import BaseNodePostprocessor
    from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle, TextNode

    from amplify.rag.llamaindex import ShapleyPostprocessor

    nodes = [
        NodeWithScore(node=TextNode(text=t, id_=str(i), metadata={"page": i}), score=0.5) for i, t in enumerate(TEXTS)
    ]
    post = ShapleyPostprocessor(model, operation="distil", top_n=2)
    assert isinstance(post, BaseNodePostprocessor)
    kept = post.postprocess_nodes(nodes, query_str=QUERY)
    assert [n.node.node_id for n in kept] == ["0", "1"]
    assert kept[1].score == pytest.approx(4.0)
    assert kept[1].node.metadata["shapley_low"] == pytest.approx(4.0)
    shown = kept[1].node.get_content(metadata_mode=MetadataMode.LLM)
    assert "page: 1" in shown
    assert "shapley" not in shown
    assert "shapley" not in kept[1].node.get_content(metadata_mode=MetadataMode.EMBED)
    assert nodes[1].score == 0.5
    assert nodes[1].node.metadata == {"page": 1}
    assert "page: 1" in model.texts[0]  # nodes are read as the host's model reads them
    again = asyncio.run(post.apostprocess_nodes(nodes, query_bundle=QueryBundle(QUERY)))
    assert [n.node.node_id for n in again] == ["0", "1"]
    saved = post.to_dict()
    assert saved["class_name"] == "ShapleyPostprocessor"
    assert saved["model"] == model.id
    loaded = ShapleyPostprocessor.from_dict({**saved, "model": "scripted:echo"})
    assert (loaded.operation, loaded.top_n, loaded.model) == ("distil", 2, "scripted:echo")
    assert post.postprocess_nodes([], query_str=QUERY) == []
    with pytest.raises(InputError, match="query"):
        post.postprocess_nodes(nodes)


def test_llamaindex_in_a_query_engine(model: ScriptedModel) -> None:
    pytest.importorskip("llama_index.core")
    from llama_index.core import get_response_synthesizer
    from llama_index.core.llms import MockLLM
    from llama_index.core.query_engine import RetrieverQueryEngine
    from llama_index.core.retrievers import BaseRetriever
    from llama_index.core.schema import NodeWithScore, TextNode

    from amplify.rag.llamaindex import ShapleyPostprocessor

    class Found(BaseRetriever):
        def _retrieve(self, query_bundle):
            return [NodeWithScore(node=TextNode(text=t, id_=str(i))) for i, t in enumerate(TEXTS)]

    engine = RetrieverQueryEngine(
        retriever=Found(),
        response_synthesizer=get_response_synthesizer(llm=MockLLM()),
        node_postprocessors=[ShapleyPostprocessor(model, operation="prune")],
    )
    response = engine.query(QUERY)
    assert [n.node.node_id for n in response.source_nodes] == ["1"]


def test_haystack(model: ScriptedModel) -> None:
    pytest.importorskip("haystack")
    from haystack import Document, Pipeline
    from haystack.components.builders import PromptBuilder

    from amplify.rag.haystack import ShapleyRanker

    documents = [Document(id=str(i), content=t, meta={"page": i}) for i, t in enumerate(TEXTS)]
    pipeline = Pipeline()
    pipeline.add_component("ranker", ShapleyRanker(model, top_k=2))
    pipeline.add_component(
        "prompt",
        PromptBuilder("{% for d in documents %}{{ d.content }} {% endfor %}", required_variables=["documents"]),
    )
    pipeline.connect("ranker.documents", "prompt.documents")
    done = pipeline.run({"ranker": {"query": QUERY, "documents": documents}}, include_outputs_from={"ranker"})
    assert done["prompt"]["prompt"].strip() == f"{TEXTS[1]} {TEXTS[0]}"
    [first, _] = done["ranker"]["documents"]
    assert first.score == pytest.approx(4.0)
    assert first.meta["page"] == 1
    assert first.meta["shapley_high"] == pytest.approx(4.0)
    assert documents[1].score is None
    assert [d.id for d in ShapleyRanker(model).run(QUERY, documents, top_k=1)["documents"]] == ["1"]
    assert ShapleyRanker(model).run(QUERY, [])["documents"] == []
    with pytest.raises(InputError, match="without content"):
        ShapleyRanker(model).run(QUERY, [*documents, Document(content=None)])


def test_haystack_pipelines_are_saved_and_loaded() -> None:
    pytest.importorskip("haystack")
    from haystack import Document, Pipeline

    from amplify.rag.haystack import ShapleyRanker

    pipeline = Pipeline()
    pipeline.add_component("ranker", ShapleyRanker("scripted:say= Bern", operation="distil", top_k=2, budget=8))
    text = pipeline.dumps()
    again = Pipeline.loads(text, allowed_modules=["amplify.rag.haystack"])
    ranker = again.get_component("ranker")
    assert ranker.to_dict()["init_parameters"] == {
        "model": "scripted:say= Bern", "operation": "distil", "top_k": 2, "threshold": 0.0, "budget": 8,
        "value": "logprob", "seed": 0, "options": {},
    }  # fmt: skip
    ranker.warm_up()
    done = again.run({"ranker": {"query": QUERY, "documents": [Document(content=t) for t in TEXTS]}})
    assert len(done["ranker"]["documents"]) == 2


ANSWER = "Ada lives in Bern. Grass is blue."
SYSTEM = "You answer from the documents."


def claimed(text: str, answer: str) -> float:
    return -9.0 + 8.0 * ("lives in Bern" in text)


def asked(documents) -> str:  # type: ignore[no-untyped-def]
    return "\n\n".join([f"[{i + 1}] {t}" for i, t in enumerate(documents)] + [f"Q: {QUERY}"])


@pytest.mark.parametrize("host", ["langchain", "llamaindex", "haystack"])
def test_adapters_are_copied_pickled_and_closed(host: str) -> None:
    module = importlib.import_module(f"amplify.rag.{host}") if _has(host) else pytest.skip(f"no {host}")
    name = {"langchain": "ShapleyCompressor", "llamaindex": "ShapleyPostprocessor", "haystack": "ShapleyRanker"}[host]
    adapter = getattr(module, name)(model="scripted:say= Bern", operation="distil", **{
        "top_k" if host == "haystack" else "top_n": 2
    })  # fmt: skip
    deep = copy.deepcopy(adapter)
    again = pickle.loads(pickle.dumps(adapter))
    assert type(deep) is type(again) is type(adapter)
    for each in (adapter, deep, again):
        assert len(stay(host, each)) == 2
    with pytest.raises(ValueError, match="Did you mean 'scripted'"):
        getattr(module, name)(model="scripte:say=x")
    with pytest.raises(ValueError, match="open model"):
        getattr(module, name)(model=None)


def stay(host: str, adapter: Any) -> list[Any]:
    """What an adapter keeps of TEXTS, asked as its host asks."""
    if host == "langchain":
        from langchain_core.documents import Document

        return list(adapter.compress_documents([Document(page_content=t) for t in TEXTS], QUERY))
    if host == "llamaindex":
        from llama_index.core.schema import NodeWithScore, TextNode

        return list(adapter.postprocess_nodes([NodeWithScore(node=TextNode(text=t)) for t in TEXTS], query_str=QUERY))
    from haystack import Document

    return list(adapter.run(QUERY, [Document(content=t) for t in TEXTS])["documents"])


def _has(host: str) -> bool:
    package = {"langchain": "langchain_core", "llamaindex": "llama_index.core", "haystack": "haystack"}[host]
    return importlib.util.find_spec(package.partition(".")[0]) is not None


def test_adapters_that_name_one_model_share_it() -> None:
    first, second = (DocumentCompressor("scripted:say= shared").model for _ in range(2))
    model = first.open()
    assert second.open() is model
    closed: list[bool] = []
    model.close = lambda: closed.append(True)  # type: ignore[method-assign]
    first.close()
    assert not closed
    second.close()
    second.close()
    assert closed == [True]
    assert DocumentCompressor("scripted:say= shared").model.open() is not model


def test_options_follow_assignment(model: ScriptedModel) -> None:
    pytest.importorskip("langchain_core")
    pytest.importorskip("llama_index.core")
    from langchain_core.documents import Document
    from llama_index.core.schema import NodeWithScore, TextNode

    from amplify.rag.langchain import ShapleyCompressor
    from amplify.rag.llamaindex import ShapleyPostprocessor

    documents = [Document(page_content=t) for t in TEXTS]
    compressor = ShapleyCompressor(model=model, top_n=3)
    compressor.top_n = 1
    assert len(compressor.compress_documents(documents, QUERY)) == 1
    other = compressor.model_copy(update={"top_n": 2, "operation": "distil"})
    assert [d.page_content for d in other.compress_documents(documents, QUERY)] == TEXTS[:2]
    with pytest.raises(ValueError, match="operation"):
        compressor.operation = "rernk"
    with pytest.raises(ValueError, match="budgt"):
        compressor.options = {"budgt": 3}
    nodes = [NodeWithScore(node=TextNode(text=t)) for t in TEXTS]
    post = ShapleyPostprocessor(model, top_n=3)
    post.top_n = 1
    assert len(post.postprocess_nodes(nodes, query_str=QUERY)) == 1
    for wrong in ({"topn": 3}, {"budgt": 9}, {"max_tokens": 100}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            ShapleyPostprocessor(model, **wrong)
    assert len(ShapleyPostprocessor(model, options={"max_tokens": 9}).postprocess_nodes(nodes, query_str=QUERY)) == 4


def test_langchain_cites_after_generation() -> None:
    pytest.importorskip("langchain_core")
    from langchain_core.documents import Document
    from langchain_core.messages import AIMessage
    from langchain_core.prompts import ChatPromptTemplate
    from langchain_core.runnables import RunnableLambda

    from amplify.rag.langchain import ShapleyCiter

    model = ScriptedModel(logprob=claimed)
    documents = [Document(page_content=t, id=f"id{i}", metadata={"title": f"T{i}"}) for i, t in enumerate(TEXTS)]
    template = ChatPromptTemplate([("system", SYSTEM), ("user", "{asked}")])
    prompt = template.invoke({"asked": asked(TEXTS)})
    chain = RunnableLambda(lambda given: {**given, "answer": AIMessage(ANSWER)}) | ShapleyCiter(
        model=model, options={"budget": 40}
    )
    given = {"documents": documents, "messages": prompt}
    for done in (chain.invoke(given), asyncio.run(chain.ainvoke(given))):
        assert {(c.id, c.title, c.text) for c in done["citations"]} == {("id1", "T1", TEXTS[1])}
        assert [c.text for c in done["claims"]] == ["Ada lives in Bern.", "Grass is blue."]
    assert model.calls[0].prompt.messages[0].content == SYSTEM  # the pipeline's own prompt
    assert all(call.continuation == ANSWER for call in model.calls)
    with pytest.raises(InputError, match="answer"):
        ShapleyCiter(model=model).invoke({"documents": documents})
    with pytest.raises(ValueError, match="budgt"):
        ShapleyCiter(model=model, options={"budgt": 40})


def test_llamaindex_cites_after_generation() -> None:
    pytest.importorskip("llama_index.core")
    from llama_index.core import get_response_synthesizer
    from llama_index.core.llms import CompletionResponse, CustomLLM, LLMMetadata
    from llama_index.core.query_engine import RetrieverQueryEngine
    from llama_index.core.retrievers import BaseRetriever
    from llama_index.core.schema import NodeWithScore, TextNode

    from amplify.rag.llamaindex import CitedQueryEngine

    seen: list[str] = []

    class Says(CustomLLM):
        @property
        def metadata(self) -> LLMMetadata:
            return LLMMetadata()

        def complete(self, prompt, formatted=False, **kwargs):
            seen.append(prompt)
            return CompletionResponse(text=ANSWER)

        def stream_complete(self, prompt, formatted=False, **kwargs):
            raise NotImplementedError

    class Found(BaseRetriever):
        def _retrieve(self, query_bundle):
            return [NodeWithScore(node=TextNode(text=t, id_=f"id{i}")) for i, t in enumerate(TEXTS)]

    model = ScriptedModel(logprob=claimed)
    engine = RetrieverQueryEngine(retriever=Found(), response_synthesizer=get_response_synthesizer(llm=Says()))
    cited = CitedQueryEngine(engine, model, budget=40)
    for response in (cited.query(QUERY), asyncio.run(cited.aquery(QUERY))):
        assert str(response) == ANSWER
        assert {c.id for c in response.metadata["citations"]} == {"id1"}
    own = [c.prompt.messages[-1].content for c in model.calls]
    assert any(content in seen[0] for content in own)  # the engine's own template, filled as it fills it


def test_haystack_cites_after_generation() -> None:
    pytest.importorskip("haystack")
    from haystack import Document, Pipeline
    from haystack.components.builders import ChatPromptBuilder
    from haystack.dataclasses import ChatMessage

    from amplify.rag.haystack import ShapleyCiter

    model = ScriptedModel(logprob=claimed)
    documents = [Document(id=f"id{i}", content=t, meta={"title": f"T{i}"}) for i, t in enumerate(TEXTS)]
    template = [
        ChatMessage.from_system(SYSTEM),
        ChatMessage.from_user("{% for d in documents %}{{ d.content }}\n{% endfor %}Q: {{ query }}"),
    ]
    pipeline = Pipeline()
    pipeline.add_component("prompt", ChatPromptBuilder(template, required_variables=["documents", "query"]))
    pipeline.add_component("cite", ShapleyCiter(model, {"budget": 40}))
    pipeline.connect("prompt.prompt", "cite.prompt")
    done = pipeline.run({
        "prompt": {"documents": documents, "query": QUERY},
        "cite": {"query": QUERY, "documents": documents, "replies": [ANSWER]},
    })  # fmt: skip
    [answer] = done["cite"]["answers"]
    assert answer.data == ANSWER
    assert {(c.id, c.title) for c in answer.meta["citations"]} == {("id1", "T1")}
    assert model.calls[0].prompt.messages[0].content == SYSTEM
    text = ShapleyCiter("scripted:say=x", {"budget": 8}).run(QUERY, documents, [""])["answers"][0]
    assert text.meta == {}
    with pytest.raises(UnknownNameError, match="budgt"):
        ShapleyCiter(model, {"budgt": 8})


def test_threads_share_an_adapter() -> None:
    """Hosts call from thread pools; a model in this process answers one prompt at a time."""
    inside, most = 0, 0

    def likely(text: str, continuation: str) -> float:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        threading.Event().wait(0.001)
        inside -= 1
        return -1.0 - len(text) / 1000

    model = ScriptedModel("say= Bern", logprob=likely)
    compress = DocumentCompressor(model)
    wanted = [compress(f"{QUERY} {i}", TEXTS) for i in range(4)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda i: DocumentCompressor(model)(f"{QUERY} {i}", TEXTS), range(4)))
    assert found == wanted
    assert most == 1


@pytest.mark.parametrize(
    ("module", "package"),
    [("langchain", "langchain_core"), ("llamaindex", "llama_index"), ("haystack", "haystack")],
)
def test_a_missing_host_says_what_to_install(module: str, package: str) -> None:
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        f"import amplify.rag\n"
        f"try:\n    import amplify.rag.{module}\n"
        f"except ImportError as error:\n    print(type(error).__name__, error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("MissingExtraError")
    assert "pip install 'amplify-llm[rag]'" in done.stdout

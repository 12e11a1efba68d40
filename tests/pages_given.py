"""What each page of the documentation presumes of its reader: files of theirs, a server, a model in hand."""

from __future__ import annotations

import contextlib
import csv
import json
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from served import served

SMOLLM2 = "transformers:smollm2-135m"
NOTES = {
    "museum.md": "The museum of Brakel opened in 1931.",
    "river.md": "Brakel lies on the river Nethe.",
    "nieheim.md": "The museum of Nieheim opened in 2006.",
}
REVIEWS = [
    (f"{text} ({i})", label)
    for i in range(32)
    for text, label in (
        ("Great phone, I love it.", "positive"),
        ("It broke after a week, awful.", "negative"),
        ("Works as it should and looks good.", "positive"),
        ("The battery is terrible and nobody answers.", "negative"),
    )
]
RACE = ["zero_shot", "few_shot[shots=2]", "few_shot[shots=2]+batch"]
SMALLER = (
    ("qwen2.5-coder-0.5b", "smollm2-135m"),
    ("limit=50", "limit=4"),
    ('["zero_shot", "few_shot", "amplify"]', '["zero_shot", "few_shot", amplify.methods.Amplify(pool=8)]'),
    ("Amplify(shots=4)", "Amplify(shots=4, pool=8)"),
    (",my_method", ""),  # a plugin's: tests/test_extending.py registers such ones
)
SHORTER = {
    "run": ["--limit", "2", "--seeds", "0", "--mode", "score", "--calibrate", "none"],
    "heads": ["--samples", "2", "--most", "4"],
    "proxy": ["--epochs", "1"],
    "tune": ["--budget", "calls=1500", "--candidates", ",".join(RACE)],
    "projections": ["--samples", "4"],
}
ANSWER = "The museum of Brakel opened in 1931."
MESSAGES = [
    {"role": "system", "content": "Answer from the notes. Be short."},
    {"role": "user", "content": "\n\n".join([*NOTES.values(), "When did the museum of Brakel open?"])},
    {"role": "assistant", "content": ANSWER},
]


@dataclass
class Reader:
    """Someone who follows a page in an empty folder.

    Attributes:
        page: its path.
        instead: what is written on the page, and what this reader has in its place.
        shorter: what a command is given besides, so that a page takes seconds.
        serve: starts the page's `amplify serve`, which goes on until the page ends.
    """

    page: str
    instead: list[tuple[str, str]] = field(default_factory=lambda: list(SMALLER))
    shorter: dict[str, list[str]] = field(default_factory=lambda: dict(SHORTER))
    serve: Callable[[str], None] | None = None

    @contextlib.contextmanager
    def prepared(self) -> Iterator[dict[str, Any]]:
        """The files in this folder; the names that the page's Python takes for granted."""
        _files()
        with contextlib.ExitStack() as stack:
            names: dict[str, Any] = {"__name__": "page"}
            if given := GIVEN.get(self.page):
                names |= given(self, stack)
            yield names


def _files() -> None:
    Path("notes").mkdir()
    for name, text in NOTES.items():
        Path("notes", name).write_text(text, encoding="utf-8")
    for name, rows in {"my_reviews.csv": 128, "my.csv": 128, "reviews.csv": 4}.items():
        _table(name, [{"review": text, "stars": label} for text, label in REVIEWS[:rows]])
    departments = ("billing", "technical", "shipping")
    for split in ("train", "test"):
        items = [{"message": f"{split}: {d}, {i}", "department": d} for d in departments for i in range(9)]
        Path(f"{split}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    _table("new.csv", [{"review": text, "message": "I was charged twice."} for text, _ in REVIEWS[:3]])
    Path("log.jsonl").write_text(json.dumps({"messages": MESSAGES, "sources": "messages"}) + "\n", encoding="utf-8")
    Path("my_rag.jinja").write_text("{{ documents | join('\\n') }}\n{{ question }}", encoding="utf-8")


def _table(name: str, rows: list[dict[str, str]]) -> None:
    with Path(name).open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _smollm2(stack: contextlib.ExitStack) -> Any:
    import amplify

    return stack.enter_context(amplify.load_model(SMOLLM2))


def _server(reader: Reader, stack: contextlib.ExitStack) -> dict[str, Any]:
    """An OpenAI-compatible server in place of the page's."""
    from fake_server import FakeServer

    server = stack.enter_context(FakeServer(say="billing"))
    reader.shorter["run"] = ["--limit", "2", "--seeds", "0"]  # it gives no log-probabilities that scores would need
    reader.instead += [("http://127.0.0.1:8000/v1", server.url), ("openai:NAME@", "openai:m@")]
    return {}


def _service(reader: Reader, stack: contextlib.ExitStack) -> dict[str, Any]:
    """A key, a model of this machine, and a free port for the page's `amplify serve`."""

    def serve(line: str) -> None:
        _, *options = shlex.split(line.partition("amplify ")[2])
        address = stack.enter_context(served(options, AMPLIFY_API_KEY="k"))
        reader.instead.append(("http://127.0.0.1:8100", address))

    reader.serve = serve
    server = "openai:small@http://127.0.0.1:8000/v1"
    reader.instead += [("Bearer …", "Bearer k"), (server, SMOLLM2), ("port 8100", "port 0")]
    return {}


def _many(reader: Reader, stack: contextlib.ExitStack) -> dict[str, Any]:
    """Two workers: with a model that needs nothing, and for heads with a tiny one that has some."""
    import tiny_models

    tiny, workers = tiny_models.language_model(Path("tiny").absolute()), "ray:2×scripted:first_option"
    reader.instead += [
        (
            "json_formatting --model ray:4×transformers:smollm2-135m",
            f"json_formatting --model ray:2×transformers:{tiny}",
        ),
        ("ray:4×vllm:smollm2-135m", workers),
        ("ray:4×transformers:smollm2-135m", workers),
    ]
    return {}


def _in_hand(reader: Reader, stack: contextlib.ExitStack) -> dict[str, Any]:
    """A model and a classifier that are loaded already, as a user of transformers has them."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    import amplify
    from amplify import hub

    folder, encoder = hub.resolve("smollm2-135m"), hub.resolve("minilm")
    reader.instead += [("OWNER/NAME", "smollm2-135m"), ("./my-model", str(folder))]
    return {
        "module": AutoModelForCausalLM.from_pretrained(folder),
        "tokenizer": AutoTokenizer.from_pretrained(folder),
        "classifier": AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=2),
        "task": amplify.load_task("my_reviews.csv", text="review", label="stars"),
        "my_api": lambda text: "positive",
    }


def _module(reader: Reader, stack: contextlib.ExitStack) -> dict[str, Any]:
    """A model of transformers and its tokenizer, under the names that a script gives them."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import amplify
    from amplify import hub

    folder = hub.resolve("smollm2-135m")
    return {
        "amplify": amplify,
        "model": AutoModelForCausalLM.from_pretrained(folder),
        "tokenizer": AutoTokenizer.from_pretrained(folder),
    }


def _proxy(reader: Reader, stack: contextlib.ExitStack) -> dict[str, Any]:
    """A proxy that the reader trained before, on their own reviews, and two texts."""
    import amplify

    reader.shorter["run"] = ["--dry-run"]  # tests/methods/test_methods_real.py runs these methods
    task = amplify.load_task("my_reviews.csv", text="review", label="stars")
    proxy = amplify.train_proxy(task, "minilm", epochs=1, out="proxies/reviews")
    texts, targets = zip(*REVIEWS[:2], strict=True)
    return {"amplify": amplify, "proxy": proxy, "text": texts[1], "texts": list(texts), "targets": list(targets)}


def _highlights(reader: Reader, stack: contextlib.ExitStack) -> dict[str, Any]:
    """A file in the layout of e-SNLI, and attributions of its items."""
    import amplify
    from amplify.attribution.agreement import load_esnli

    columns = ("pairID", "gold_label", "Sentence1", "Sentence2", "Sentence1_marked_1", "Sentence2_marked_1")
    row = ("7", "contradiction", "A dog runs.", "A dog sleeps.", "A dog *runs*.", "A dog *sleeps*.")
    _table("esnli_dev.csv", [dict(zip(columns, row, strict=True))])
    reader.instead += [("amplify proxy amazon_sentiment", "amplify proxy my_reviews.csv --text review --label stars")]
    reader.shorter["run"] = ["--dry-run"]  # it measures four explainers on every item
    model = _smollm2(stack)
    texts = [item.example.text for item in load_esnli("esnli_dev.csv")]
    return {"attributions": [amplify.explain(text, target=" no", model=model, method="occlusion") for text in texts]}


def _pipelines(reader: Reader, stack: contextlib.ExitStack) -> dict[str, Any]:
    """What a user of LangChain and of LlamaIndex has: documents, a chain, a query engine."""
    from haystack import Pipeline
    from langchain_core.documents import Document
    from langchain_core.runnables import RunnableLambda
    from llama_index.core import get_response_synthesizer
    from llama_index.core.llms import MockLLM
    from llama_index.core.query_engine import RetrieverQueryEngine
    from llama_index.core.retrievers import BaseRetriever
    from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

    class Found(BaseRetriever):
        def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
            return [NodeWithScore(node=TextNode(text=text)) for text in NOTES.values()]

    reader.instead.append(("rag,rag_rerank_shapley,rag_prune_shapley,", ""))  # each would attribute ten paragraphs
    reader.shorter["run"] = ["--limit", "1", "--set", "*.budget=8", "--set", "*.documents=3"]
    engine = RetrieverQueryEngine(Found(), get_response_synthesizer(llm=MockLLM(max_tokens=8)))
    documents = [Document(page_content=text) for text in NOTES.values()]
    chain = RunnableLambda(lambda question: {"question": question, "documents": documents, "answer": ANSWER})
    return {"documents": documents, "rag_chain": chain, "engine": engine, "pipeline": Pipeline()}


def _first(reader: Reader, stack: contextlib.ExitStack) -> dict[str, Any]:
    """The first search on a scripted model: docs/tune.md runs one on a real model."""
    reader.instead[:0] = [
        ("tune support_tickets --model transformers:smollm2-135m", "tune support_tickets -m scripted:first_option")
    ]
    return {}


def _prompts(reader: Reader, stack: contextlib.ExitStack) -> dict[str, Any]:
    """A scripted model for what asks hundreds of prompts about the parts and the words of one."""
    real, scripted = "transformers:qwen2.5-coder-0.5b", "scripted:first_option"
    reader.instead[:0] = [
        (f"explain-prompt support_tickets -m {real}", f"explain-prompt support_tickets -m {scripted}"),
        (f'task, "{real}", budget=64, items=32', f'task, "{scripted}", budget=64, items=8'),
        (
            f'load_model("{real}") as model:\n    found = find_ins',
            f'load_model("{scripted}") as model:\n    found = find_ins',
        ),
    ]
    reader.shorter["explain-prompt"] = ["--items", "8", "--held-out", "8"]
    return {}


def _bridges(reader: Reader, stack: contextlib.ExitStack) -> dict[str, Any]:
    """A tuned program, a run, attributed answers; models, tasks and demonstrations of other tools; a local hub."""
    import dspy
    import pytest
    from datasets import Dataset, DatasetDict
    from local_hub import at_hand
    from transformers import pipeline

    import amplify
    from amplify import hub

    task = amplify.load_task("my_reviews.csv", text="review", label="stars")
    model = amplify.load_model("scripted:first_option")
    program = amplify.methods.FewShot(shots=2, mode="score").fit(task, model, seed=0)
    Path("tuned").mkdir()
    program.save("tuned/program.json")
    amplify.evaluate(task, "scripted:first_option", ["zero_shot"], limit=4, out="runs/mine", progress=False)
    result = amplify.attribute_sources("Where is it?", ["It is in Rome.", "Bees fly."], "scripted:say=Rome")
    half, texts, stars = len(REVIEWS) // 2, *zip(*REVIEWS, strict=True)
    rows = {"train": slice(half), "test": slice(half, None)}
    sets = {split: Dataset.from_dict({"review": texts[own], "stars": stars[own]}) for split, own in rows.items()}
    patch = stack.enter_context(pytest.MonkeyPatch.context())
    patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    reader.instead[:0] = [
        ('card="What was measured.")', 'card="What was measured.", api=hub)'),
        ('["arc_easy"]', "[arc_easy]"),
        ('harness_task("arc_easy"', "harness_task(arc_easy"),
        ('"few_shot", "amplify"]', '"few_shot", amplify.methods.Amplify(pool=8, mode="score")]'),
    ]
    return {
        "arc_easy": _arc(),
        "result": result,
        "results": [result],
        "trainset": [dspy.Example(text=e.text, answer=e.label).with_inputs("text") for e in task.train[:8]],
        "dataset_dict": DatasetDict(sets),
        "pipe": pipeline("text-generation", model=str(hub.resolve("smollm2-135m"))),
        "hub": at_hand(Path("hub").absolute(), patch),
    }


_SPLITS = {"train": 2, "validation": 2, "test": 1}
"""How often each river is asked for in each split."""


def _arc() -> dict[str, Any]:
    """A task of the harness like its `arc_easy`, whose questions lie in this folder."""
    places = {
        "Brakel": "Nethe",
        "Cologne": "Rhine",
        "Dresden": "Elbe",
        "Bremen": "Weser",
        "Ulm": "Danube",
        "Trier": "Mosel",
    }
    for split, rounds in _SPLITS.items():
        rows = [
            {
                "question": f"{split} {i}: on which river lies {place}?",
                "choices": sorted(places.values()),
                "river": river,
            }
            for i in range(rounds)
            for place, river in places.items()
        ]
        Path(f"arc-{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {
        "task": "arc_easy",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {split: f"arc-{split}.jsonl" for split in _SPLITS}},
        "training_split": "train",
        "validation_split": "validation",
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{choices.index(river)}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }


def _conversation(reader: Reader, stack: contextlib.ExitStack) -> dict[str, Any]:
    """The messages of a pipeline with its answer, and its documents."""
    import amplify

    return {
        "amplify": amplify,
        "model": _smollm2(stack),
        "messages": MESSAGES[:-1],
        "answer": ANSWER,
        "question": "When did the museum of Brakel open?",
        "my_prompt": lambda documents: "\n".join([*(d.text for d in documents), "When did the museum of Brakel open?"]),
    }


GIVEN: dict[str, Callable[[Reader, contextlib.ExitStack], dict[str, Any]]] = {
    "README.md": _in_hand,
    "docs/index.md": _first,
    "docs/explain.md": _proxy,
    "docs/rationales.md": _proxy,
    "docs/faithfulness.md": _highlights,
    "docs/steer.md": _module,
    "docs/textgenshap.md": _conversation,
    "docs/tune.md": _prompts,
    "docs/rag.md": _pipelines,
    "docs/howto/bridges.md": _bridges,
    "docs/howto/cluster.md": _many,
    "docs/howto/models.md": _in_hand,
    "docs/howto/serve.md": _service,
    "docs/howto/servers.md": _server,
}
"""What a page presumes besides the files that every reader has, by its path."""

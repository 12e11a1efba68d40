"""The experiments of TextGenSHAP (arXiv 2312.01279), one command each.

    python eval/reproduce_textgenshap.py speed                     # seconds by granularity and number of documents
    python eval/reproduce_textgenshap.py recall                    # gold documents among the first k, re-ranked
    python eval/reproduce_textgenshap.py accuracy                  # answers from the k best documents alone
    python eval/reproduce_textgenshap.py uses                      # re-rank, prune, distil, highlight: before and after
    python eval/reproduce_textgenshap.py recall --tasks nq_open,hotpotqa,miracl/en --limit 0 --budget 100 \\
        --search minilm --documents 20 --model vllm:meta-llama/Llama-3.1-8B-Instruct        # full size

Without options each runs at a reduced size on the small model. `recall` and `accuracy` are one run folder a task under
--out (killed and started again, they go on). The table is written to --results as JSON and Markdown, with the command,
the date, the machine and the versions.
"""

from __future__ import annotations

import datetime
import json
import math
import os
import platform
import time
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar

import click
from measuring import command, evaluated, loaded, model_options, open_exact

import amplify
from amplify import templates
from amplify.errors import AmplifyError
from amplify.methods import make
from amplify.methods.base import Method, Rehearsal
from amplify.methods.rag import Rag, RagProgram, Reading
from amplify.models.base import LanguageModel
from amplify.retrieval import open_retriever
from amplify.sources.context import harmless, special_tokens
from amplify.sources.frames import asking
from amplify.tasks import Task
from amplify.types import Sampling, Sources


class NearestProgram(RagProgram):
    """Answer from the k documents of the pool that MiniLM ranks first, the best one first."""

    kind: ClassVar[str] = "rag_minilm"

    def _reordered(self, read: Reading) -> Reading:
        pool = [read.every[i] for i in read.numbers]
        found = open_retriever("minilm", pool).search(read.example.text, len(pool))
        numbers = tuple(read.numbers[hit.document] for hit in found)
        rest = tuple(i for i in read.sources.ranking if i not in numbers)
        shown = numbers[: self.k or None]
        context = read.only([read.numbers.index(i) for i in shown])
        return replace(read, context=context, sources=Sources((*numbers, *rest), shown))


@dataclass(frozen=True)
class Nearest(Rag):
    """What a retriever would keep of the documents that all other rows choose from: the first `k`, 0 for all."""

    name: ClassVar[str] = "rag_minilm"
    seeded: ClassVar[bool] = False

    def fit(self, task: Task, model: LanguageModel, seed: int) -> RagProgram:
        """Nothing to fit."""
        return NearestProgram(**{**vars(super().fit(task, model, seed)), "operation": "rerank"})

    def rehearse(self, task: Task, model: LanguageModel, seed: int) -> Rehearsal:
        """As many documents, drawn by chance."""
        options = {
            f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("mode", "variant", "operation")
        }
        return Rag(**{**options, "by": "random", "operation": "rerank"}).rehearse(task, model, seed)


@click.group()
def main() -> None:
    """Reproduce an experiment of TextGenSHAP."""


def numbers(value: str) -> list[int]:
    """Whole numbers separated by commas."""
    return [int(part) for part in value.split(",")]


shared = [
    click.option("--model", default="transformers:smollm2-135m", show_default=True),
    click.option(
        "--model-option", "-B", "options", multiple=True, metavar="KEY=VALUE", help="Of the model. Repeatable."
    ),
    click.option("--dry-run", is_flag=True, help="Say what it takes, and ask nothing."),
    click.option("--budget", type=int, default=32, show_default=True, help="Distinct prompts an item."),
    click.option("--value", type=click.Choice(["logprob", "votes"]), default="logprob", show_default=True),
    click.option("--results", type=click.Path(path_type=Path), default=Path("eval/results"), show_default=True),
    click.option("--name", default=None, help="Name of the result files.  [default: textgenshap_COMMAND]"),
]
run_options = [
    click.option("--tasks", default="hotpotqa,nq_open", show_default=True),
    click.option("--limit", type=int, default=20, show_default=True, help="Items a task; 0 for all."),
    click.option("--seeds", default="0", show_default=True),
    click.option("--search", default="none", show_default=True, help="Order documents by minilm or bm25 first."),
    click.option("--documents", type=int, default=0, show_default=True, help="Read this many of them; 0 for all."),
    click.option("--template", default="default", show_default=True, help="NAME of prompts/sources_NAME.jinja."),
    click.option("--out", type=click.Path(path_type=Path), default=Path("runs/reproduce_textgenshap")),
]


def with_options(*lists: list[Any]) -> Any:
    """A command with all options of some lists."""

    def decorate(function: Any) -> Any:
        for option in (o for options in lists for o in options):
            function = option(function)
        return function

    return decorate


@main.command()
@with_options(shared)
@click.option("--task", default="hotpotqa", show_default=True)
@click.option("--items", type=int, default=1, show_default=True)
@click.option("--counts", default="5,10", show_default=True, help="Numbers of documents.")
@click.option("--granularities", default="documents,sentences", show_default=True)
@click.option("--engines", default="naive,trie", show_default=True, help="naive, trie or packed (random order).")
def speed(
    model: str, options: tuple[str, ...], dry_run: bool, budget: int, value: str, results: Path, name: str | None,
    task: str, items: int, counts: str, granularities: str, engines: str,
) -> None:  # fmt: skip
    """Seconds, prompts and tokens of one attribution, by granularity, number of documents and engine.

    All engines of a line ask for the values of the same answer, the model's own, which is generated before and counted
    for none. Documents beyond an item's own are other items'.
    """
    rows = []
    loaded = amplify.load_task(task).test
    if dry_run:
        asked = [len(listed.split(",")) for listed in (counts, granularities, engines)]
        lines = len(loaded[:items]) * math.prod(asked)
        click.echo(f"{lines} attributions of at most {budget} prompts each: {lines * budget:,} prompts")
        return
    with open_exact(model, **model_options(options)) as opened:
        for count in numbers(counts):
            for example in loaded[:items]:
                pool = [d for e in (example, *loaded) for d in e.fields["documents"]]
                texts = list(dict.fromkeys(f"{d['title']}\n{d['text']}".strip() for d in pool))[:count]
                if len(texts) < count:
                    raise click.ClickException(f"{task} has only {len(texts)} different documents")
                answer = own_answer(example.text, texts, opened)
                for granularity in granularities.split(","):
                    for engine in engines.split(","):
                        begun, before = time.perf_counter(), opened.usage.snapshot()
                        found = amplify.attribute_sources(
                            example.text, texts, opened, answer=answer, value=value, budget=budget,
                            granularity=granularity, engine=engine, order="random" if engine == "packed" else "fixed",
                        )  # fmt: skip
                        spent = opened.usage.since(before)
                        rows.append({
                            "documents": count, "granularity": granularity, "engine": engine, "item": example.id,
                            "prompts": found.cost.calls, "tokens": spent.forwarded_tokens,
                            "prompt_tokens": spent.prompt_tokens, "estimator": found.estimator,
                            "seconds": round(time.perf_counter() - begun, 2),
                        })  # fmt: skip
                        click.echo(json.dumps(rows[-1]))
        about = opened.describe()
    columns = ["documents", "granularity", "engine", "item", "prompts", "tokens", "prompt_tokens", "seconds"]
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    lines += [
        "| " + " | ".join(f"{r[c]:,}" if isinstance(r[c], int) else str(r[c]) for c in columns) + " |" for r in rows
    ]
    write(results / (name or "textgenshap_speed"), "speed", about, {"rows": rows}, "\n".join(lines))


def own_answer(question: str, documents: list[str], model: LanguageModel) -> str | None:
    """What the model answers to all documents, as `attribute_sources` asks it; None where it says nothing."""
    structure = special_tokens(model)
    shown = tuple(harmless(d, structure) for d in documents)
    context = asking(harmless(question, structure), shown, templates.load("sources", "default"))
    said = model.generate([context.prompt(context.everything())], Sampling(max_tokens=16))[0].text
    return said.strip() or None


@main.command()
@with_options(shared, run_options)
def recall(**given: Any) -> None:
    """Gold documents among the first k: as they come, by retrievers, by chance, by leaving out, by Shapley values."""
    common = {name: given[name] for name in ("documents", "search", "template")}
    explained = {**common, "budget": given["budget"], "value": given["value"]}
    methods = [
        make("rag", **common),
        make("rag_rerank_random", **common),
        *(make("rag", **{**common, "search": s}) for s in ("bm25", "minilm") if s != given["search"]),
        *([make("rag_loo", **common)] if given["value"] == "logprob" else []),
        make("rag_rerank_shapley", **explained),
    ]
    evaluate_all("recall", methods, **given)


@main.command()
@with_options(shared, run_options)
@click.option("--keep", default="1,3", show_default=True, help="Documents that stay.")
def accuracy(keep: str, **given: Any) -> None:
    """Answers from the k best documents: by Shapley values, by chance, by a retriever; and from all of them.

    All choose from the same documents (--search, --documents) and write the same prompt.
    """
    common = {name: given[name] for name in ("documents", "search", "template")}
    explained = {**common, "budget": given["budget"], "value": given["value"]}
    methods = [make("rag", **common)]
    for k in numbers(keep):
        methods += [
            make("rag_rerank_random", k=k, **common),
            Nearest(k=k, **common),
            make("rag_distil_shapley", k=k, **explained),
        ]
    others = [m.label for m in methods if m.name != "rag_distil_shapley"]
    evaluate_all("accuracy", methods, baseline=others, **given)


@main.command()
@with_options(shared, run_options)
@click.option("--keep", type=int, default=3, show_default=True, help="Documents that distillation keeps.")
def uses(keep: int, **given: Any) -> None:
    """What re-ranking, pruning, distilling and highlighting do to answers, against chance and leaving one out."""
    common = {name: given[name] for name in ("documents", "search", "template")}
    explained = {**common, "budget": given["budget"], "value": given["value"]}
    methods = [
        make("rag", **common),
        make("rag_rerank_random", **common),
        *([make("rag_loo", **common)] if given["value"] == "logprob" else []),
        make("rag_rerank_shapley", **explained),
        make("rag_prune_shapley", **explained),
        make("rag_distil_shapley", k=keep, **explained),
        make("rag_highlight_pasta", **explained),
    ]
    evaluate_all("uses", methods, **given)


def evaluate_all(
    table: str, methods: list[Method], *, model: str, options: tuple[str, ...], dry_run: bool, tasks: str, limit: int,
    seeds: str, out: Path, results: Path, name: str | None, baseline: list[str] | None = None, **rest: Any,
) -> None:  # fmt: skip
    """One run a task, and one file over all of them."""
    reports = {}
    with open_exact(model, **model_options(options)) as opened:
        for task, whole in loaded(tasks.split(","), dry_run).items():
            reports[task] = evaluated(
                dry_run, whole, opened, methods, seeds=numbers(seeds), limit=limit or None,
                batch_size=4, out=out / table / task.replace("/", "-"), baseline=baseline,
            )  # fmt: skip
        about = opened.describe()
    if dry_run:
        return
    body = "\n\n".join(f"## {task}\n\n{report.to_markdown()}" for task, report in reports.items())
    data = {"tasks": {task: report.to_dict() for task, report in reports.items()}}
    write(results / (name or f"textgenshap_{table}"), table, about, data, body)


def write(stem: Path, table: str, about: dict[str, Any], data: dict[str, Any], body: str) -> None:
    """The results as JSON, and as Markdown."""
    head = {
        "table": table,
        "command": command(),
        "model": about,
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "amplify": amplify.__version__,
    }
    stem.parent.mkdir(parents=True, exist_ok=True)
    stem.with_suffix(".json").write_text(json.dumps({**head, **data}, indent=1, default=str) + "\n")
    said = (
        f"# TextGenSHAP: {table}\n\n{head['date']}, {head['machine']}, amplify {head['amplify']}, `{head['command']}`"
    )
    stem.with_suffix(".md").write_text(f"{said}\n\n{body}\n")
    click.echo(f"written: {stem}.json, {stem}.md")


if __name__ == "__main__":
    try:
        main()
    except AmplifyError as error:
        raise SystemExit(f"reproduce_textgenshap: {error}") from None

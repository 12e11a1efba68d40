"""`amplify explain` and `attribute`: which words, which documents made a model answer so."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import click

from amplify.cli.common import Listed, NewFile, names, opened_model, required, resumes, say, takes_cache, takes_model
from amplify.errors import InputError


@click.command()
@click.argument("text", required=False)
@click.option("--model", "-m", required=True, help="Proxy folder, or KIND:MODEL, e.g. transformers:smollm2-135m.")
@click.option("--target", help="Label, or what a language model is to write. Default: the label that a proxy gives.")
@click.option("--foil", help="Another one: explain why the target and not this.")
@click.option("--method", help="See `amplify list explainers`; or auto.  [default: integrated_gradients]")
@click.option("--methods", "-M", help="Several, separated by commas, or all: compare them in one HTML page (--out).")
@click.option("--budget", type=click.IntRange(min=1), default=128, show_default=True, help="Model evaluations at most.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of what is sampled.")
@click.option(
    "--masking",
    type=click.Choice(["delete", "pad", "mask", "attention"]),
    default="delete",
    show_default=True,
    help="How a word is left out.",
)
@click.option("--top", type=click.IntRange(min=1), help="Print the strongest words only, this many.")
@click.option("--truncate", is_flag=True, help="Explain what an encoder reads of a text that is too long for it.")
@click.option("--input", "source", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="CSV or JSONL.")
@click.option("--text", "column", help="Column of --input that holds the input.")
@click.option("--label", help="Column of --input that holds the target.")
@click.option("--limit", type=click.IntRange(min=1), help="Explain this many rows only.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder for the page and the scores.")
def explain(
    text: str | None,
    model: str,
    target: str | None,
    foil: str | None,
    method: str | None,
    methods: str | None,
    budget: int,
    seed: int,
    masking: str,
    top: int | None,
    truncate: bool,
    source: Path | None,
    column: str | None,
    label: str | None,
    limit: int | None,
    out: Path | None,
) -> None:
    """Show which words of TEXT (or of each row of --input) made a model answer so."""
    from amplify.attribution.explanations import compare

    if (text is None) == (source is None):
        raise InputError("give either a TEXT or an --input file")
    if method and methods:
        raise InputError("give either --method or --methods")
    if source is None:
        from amplify.attribution.words import word_spans

        texts, targets = [str(text)], [target]
        if top is not None and top > (words := len(word_spans(texts[0]))):
            raise InputError(f"--top is {top}, and the text has {words} word{'s' * (words != 1)}: ask for at most that")
    else:
        from amplify.tasks import read_rows

        rows = read_rows(source, text=required(column, "--text"), label=label)[:limit]
        texts, targets = [row.text for row in rows], [row.label if label else target for row in rows]
        out = out or Path("runs") / "explain"
    chosen = None if methods == "all" else names(methods or method or "integrated_gradients")
    result = compare(
        [(text, target, foil) for text, target in zip(texts, targets, strict=True)],
        model,
        chosen,
        budget=budget,
        seed=seed,
        masking=masking,
        truncate=truncate,
        progress=True,
    )
    if source is None:
        from amplify.render import attribution_text

        bound = {} if top is None else {"limit": top}
        shown = [
            f"{n}: {a}" if isinstance(a, str) else attribution_text(a, **bound) for n, (a,) in result.found.items()
        ]
        say("\n\n".join(shown))
    if result.note:
        say(result.note)
    if out is not None:
        say(f"{len(texts)} inputs, {len(result.found)} methods: {result.write(out)}")


@click.command()
@click.option("--question", "-q", help="The question that the documents are to answer.")
@click.option(
    "--documents",
    "-d",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Text files, one document each. Repeatable; further files may follow: --documents notes/*.md.",
)
@click.argument("more", nargs=-1, type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "--input",
    "source",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Instead: a log of conversations, JSON lines with question and documents, or messages, and perhaps an answer.",
)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="With --input: folder of results.")
@takes_model
@click.option("--answer", help="The answer to explain.  [default: the model's own]")
@click.option(
    "--value",
    type=Listed("amplify.sources.options:VALUES"),
    default="logprob",
    show_default=True,
    help="What a source adds to: the answer's log-probability, or votes over decoded answers.",
)
@click.option(
    "--index",
    type=Listed("amplify.sources.options:INDICES"),
    default="shapley",
    show_default=True,
    help="How a source's part in it is counted.",
)
@click.option(
    "--granularity",
    type=Listed("amplify.sources.hierarchy:REFINEMENTS"),
    default="words",
    show_default=True,
    help="Look into what matters down to this level.",
)
@click.option(
    "--order",
    type=Listed("amplify.sources.options:ORDERS"),
    default="fixed",
    show_default=True,
    help="Of the documents: as given, or drawn anew for each prompt.",
)
@click.option("--budget", type=click.IntRange(min=2), default=64, show_default=True, help="Distinct prompts to ask.")
@click.option(
    "--tokens",
    type=click.IntRange(min=1),
    help="Forward about so many tokens instead of asking --budget prompts; transformers: and --granularity documents.",
)
@click.option(
    "--estimator",
    type=Listed("amplify.shapley.estimators:ESTIMATORS", "auto"),
    default="auto",
    show_default=True,
    help="How scores are made of the values asked; auto is exact where all coalitions fit the budget.",
)
@click.option(
    "--engine",
    type=Listed("amplify.sources.engines:ENGINES", "auto"),
    default="auto",
    show_default=True,
    help="How values are had: auto is the cheapest exact way; blocks, documents encoded once, approximates.",
)
@click.option(
    "--control-variate",
    is_flag=True,
    help="Let the blocks' approximate values, which are not counted, narrow the intervals. transformers: only.",
)
@click.option(
    "--prompt",
    "--template",
    default="default",
    show_default=True,
    help="What makes a prompt of question and documents: NAME of prompts/sources_NAME.jinja, or a .jinja file.",
)
@click.option(
    "--layout",
    type=click.Choice(["chat", "text"]),
    default="chat",
    show_default=True,
    help="Through the model's chat template, or as raw text (for a model that has none).",
)
@click.option(
    "--max-tokens",
    type=click.IntRange(min=1),
    help="Of the model's own answer at most.  [default: 256; 24 for votes]",
)
@click.option("--stop", multiple=True, metavar="TEXT", help="The model's own answer ends before this. Repeatable.")
@click.option(
    "--thresholds",
    type=float,
    nargs=2,
    default=(0.1, 0.1),
    show_default=True,
    help="Look into documents, and into sentences, that surely carry this share.",
)
@click.option(
    "--inclusion-probability", type=float, default=0.5, show_default=True, help="Of other documents: penrose_banzhaf."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of what is sampled.")
@takes_cache
@click.option("--json", "json_", type=NewFile(), help="Write the result as JSON.")
@click.option("--html", type=NewFile(), help="Write the result as a page.")
def attribute(
    documents: tuple[Path, ...],
    more: tuple[Path, ...],
    source: Path | None,
    model: str | None,
    model_option: tuple[str, ...],
    json_: Path | None,
    html: Path | None,
    **options: Any,
) -> None:
    """Score documents, their sentences and words by what they did to the model's answer."""
    from amplify.sources.attribute import attribute_sources
    from amplify.sources.document import Document

    question, out, cache = options.pop("question"), options.pop("out"), options.pop("cache")
    if source is not None:
        if question or documents or json_ or html or options["answer"]:
            raise InputError("--input has its own questions, documents and answers, and --out keeps all results")
        options = {name: value for name, value in options.items() if name != "answer"}
        _explain_log(source, out, (required(model, "--model"), model_option, cache), options)
        return
    required(question, "--question")
    if not documents:
        raise InputError("--documents is missing (or give --input, a log of conversations)")
    files = []
    for path in (*documents, *more):
        try:
            files.append(Document(path.read_text(encoding="utf-8-sig"), str(path), path.name))
        except UnicodeDecodeError as error:
            raise InputError(f"{path} is not UTF-8 text: {error}") from error
    with opened_model(required(model, "--model"), model_option, cache) as opened, resumes(cache not in (None, "off")):
        result = attribute_sources(question, files, opened, progress=True, **options)
    if sys.stdout.isatty():
        import shutil

        from amplify.sources.page import as_terminal

        click.echo(as_terminal(result, width=min(120, shutil.get_terminal_size().columns)))
    else:
        say(str(result))
    if json_:
        result.save(json_)
    if html:
        result.to_html(html)


def _explain_log(
    source: Path, out: Path | None, model: tuple[str, tuple[str, ...], str | None], options: dict[str, Any]
) -> None:
    from amplify.sources.log import INDEX, explain_log
    from amplify.sources.options import options as checked

    checked({name: value for name, value in options.items() if name != "prompt"})
    folder = out or Path("runs") / "why"
    with opened_model(*model) as opened, resumes():
        found = explain_log(source, folder, opened, options)
    for number in found.skipped:
        say(f"line {number} was skipped: {found.line(number).problem}", err=True)
    if found.skipped and not found.explained:
        raise InputError(f"no line of {source} was explained, for the reasons above")
    say(f"{found.explained} explained, {len(found.skipped)} skipped: {folder / INDEX}")


@click.command()
@click.argument("log", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@takes_model
@click.option(
    "--by",
    type=click.Choice(["gradient", "shapley"]),
    default="gradient",
    show_default=True,
    help="Score documents by the gradient of what retrieval is worth, or by mean Shapley values for the answer wanted.",
)
@click.option("--k", type=click.IntRange(min=1), default=5, show_default=True, help="Documents that a reader reads.")
@click.option("--held-out", type=float, default=0.5, show_default=True, help="Share of the questions that check.")
@click.option(
    "--budget", type=click.IntRange(min=2), default=64, show_default=True, help="Prompts a question: shapley."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the split and of random choices.")
@click.option("--cache", type=click.Path(path_type=Path, dir_okay=False), help="Keep answers here; resumes from them.")
@click.option("--json", "json_", type=NewFile(), help="Write the result as JSON, for adapters.")
@click.option("--html", type=NewFile(), help="Write the result as a page.")
def importance(
    log: Path,
    model: str | None,
    model_option: tuple[str, ...],
    json_: Path | None,
    html: Path | None,
    **options: Any,
) -> None:
    """Say which documents help and which harm, from LOG: JSON lines with question, documents and answers."""
    from amplify.sources.importance import source_importance
    from amplify.sources.log import rows_of

    named, rows = required(model, "--model"), rows_of(log)
    with opened_model(named, model_option) as opened, resumes(options["cache"] is not None):
        try:
            found = source_importance(rows, opened, shown=True, **options)
        except InputError as error:  # it counts rows of a list; a reader of a file counts from 1
            raise InputError(
                re.sub(r"^row (\d+) of the log", lambda m: f"{log}, row {int(m[1]) + 1}", str(error))
            ) from error
    say(str(found))
    if json_:
        found.save(json_)
    if html:
        found.to_html(html)

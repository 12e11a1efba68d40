"""Inputs that blow up, each in a child: a few seconds of the processor and a gigabyte must do, or a refusal.

Seconds are those that the child's processor time grows by; memory is the peak of its resident set (VmHWM) less what was
resident when the child began, which is a process that has imported the library.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from tortures import commands
from tortures.children import Children, limit_memory
from tortures.outcome import Group, Groups, Setting

SECONDS = 5.0
MEMORY = 10**9
ROOM = 6 * 10**9
"""Bytes of address space that a child may take on: a bomb is stopped, and the machine goes on."""
LAUGHS = 12
KEYS = (
    "layout",
    "overlap",
    "instruction",
    "input_name",
    "metric",
    "max_tokens",
    "template",
    "answer_prefix",
    "seed",
    "emphasis",
    "labels",
    "fields",
    "files",
    "splits",
    "description",
    "where",
    "generate",
    "hub",
)


def run(setting: Setting) -> Groups:
    """Each bomb."""
    children = Children(commands.MODULES)
    models = commands.make_models(setting.models, children)
    work = commands.trial(models / "in", setting.work / "in")
    groups: dict[str, Group] = {}
    for kind, name, work_of in list(bombs(work, models))[:: setting.amount(1, 9)]:
        if setting.skips(kind):
            continue
        if groups and kind not in groups:
            yield from groups.values()
            groups = {}
        ended = children.run(
            work_of, work, environment=commands.home(work), before=(partial(limit_memory, ROOM),), at_most=300.0
        )
        group = groups.setdefault(kind, Group(kind, figures={"most seconds": 0.0, "most MB": 0}))
        group.most("most seconds", round(ended.seconds, 2))
        group.most("most MB", ended.peak // 10**6)
        told = f"{name}: {ended.seconds:.1f} s, {ended.peak / 1e6:.0f} MB"
        if ended.late:
            group.note(f"{name}: not done after 60 s")
        elif ended.status not in (0, 2) or b"Traceback" in ended.err:
            group.note(f"{told}, status {ended.status}, {ended.last}")
        else:
            group.note(told if ended.seconds > SECONDS or ended.peak > MEMORY else None)
    yield from groups.values()


def bombs(work: Path, models: Path) -> Iterator[tuple[str, str, Any]]:
    """Kind, name, and what a child does: a function, or arguments of `amplify`."""
    for name, (function, *arguments) in _texts().items():
        yield "texts", name, partial(function, *arguments)
    yield from _yaml(work)
    yield from _sources(work, models)
    yield from _budgets(models)
    yield from _tables(work, models)
    for name, source in TEMPLATES.items():
        yield "templates", name, partial(_refusable, _rendered, source)


def _refusable(function: Callable[..., Any], *arguments: Any) -> None:
    """Call it; the library's own error is as good an end as a result."""
    from amplify.errors import AmplifyError

    try:
        function(*arguments)
    except AmplifyError as error:
        print(str(error)[:300])


def _texts() -> dict[str, tuple[Any, ...]]:
    many = tuple(f"label number {i}" for i in range(5_000))
    return {
        "sentences of 'A. ' x 10,000": (_sentences, "A. " * 10_000),
        "sentences of 'Mr. ' x 100,000": (_sentences, "Mr. " * 100_000),
        "sentences of 1,000,000 characters without an end": (_sentences, "a" * 1_000_000),
        "'<s>' x 40,000 made harmless": (_harmless, "<s>" * 40_000),
        "'<|x|>' x 40,000 made harmless": (_harmless, "<|x|>" * 40_000),
        "1,000,000 line breaks made harmless": (_harmless, "\n \n" * 333_333),
        "100,000 blanks behind the marker": (_label, "The answer is" + " " * 100_000),
        "200,000 blanks without a marker": (_label, " " * 200_000),
        "the marker x 14,000": (_label, "The answer is" * 14_000),
        "the marker and a label x 14,000": (_label, "The answer is positive. " * 14_000),
        "a marker of 50,000 'The '": (_label, "The " * 50_000 + "answer is positive"),
        "100,000 quotes behind the marker": (_label, "The answer is " + '"' * 100_000 + "positive"),
        "100,000 '(' behind the marker": (_label, "The answer is " + "(" * 100_000),
        "'<think>' x 50,000": (_label, "<think>" * 50_000 + "The answer is positive"),
        "20 answers among 5,000 labels": (_label, "The answer is label number 4999.", many, 20),
        "20 answers that none of 5,000 labels is": (
            _label,
            "The answer is that nothing fits, or label number 7 or 8.",
            many,
            20,
        ),
        "a weight of 20,000 digits": (_emphasis, "<em weight=" + "1" * 20_000 + "x>a</em>"),
        "a weight of 1,000,000 digits": (_emphasis, "<em weight=" + "1" * 1_000_000 + ">a</em>"),
        "'<em>' x 100,000": (_emphasis, "<em>" * 100_000),
        "'**a** ' x 50,000": (_emphasis, "**a** " * 50_000),
        "'<em weight=1' x 50,000": (_emphasis, "<em weight=1" * 50_000),
        "'<em ' and 200,000 blanks": (_emphasis, "<em " + " " * 200_000),
        "words of 1,000,000 characters": (_words, "a" * 1_000_000),
        "words of 'a-' x 300,000": (_words, "a-" * 300_000),
        "words of 500,000 quotes": (_words, "'" * 500_000),
        "an answer of 1,000,000 blanks compared": (_normalised, "a " * 500_000),
        "a steering payload of 100,000 spans": (_payload, 100_000),
        "a steering payload that nests 100,000 deep": (_parsed, "[" * 100_000),
        "a steering payload of a prompt of 10^12 tokens": (
            _parsed,
            '{"heads": null, "spans": [[1, 2, 3.0]], "prompt": 1000000000000}',
        ),
        "a steering payload of a span of 10^12 tokens": (
            _parsed,
            '{"heads": null, "spans": [[1, 1000000000000, 3.0]], "prompt": 9}',
        ),
    }


def _sentences(text: str) -> None:
    from amplify.text import sentences

    sentences(text)


def _harmless(text: str) -> None:
    from amplify.sources.context import harmless

    harmless(text, ("<s>", "</s>", "<|im_start|>"))


def _label(text: str, labels: tuple[str, ...] = ("positive", "negative"), times: int = 1) -> None:
    from amplify.methods.parse import parse_label, parse_text

    for i in range(times):
        parse_label(text + " " * i, labels)
    parse_text(text)


def _emphasis(text: str) -> None:
    from amplify.steering import parse_emphasis

    _refusable(parse_emphasis, text)


def _words(text: str) -> None:
    from amplify.attribution.words import content_words, word_spans

    word_spans(text), content_words(text)


def _normalised(text: str) -> None:
    from amplify.metrics import normalize

    normalize(text)


def _payload(spans: int) -> None:
    _parsed(json.dumps({"heads": None, "prompt": 3 * spans, "spans": [[3 * i, 3 * i + 1, 2.0] for i in range(spans)]}))


def _parsed(text: str) -> None:
    from amplify.steering.payload import parse

    def use() -> None:
        payload = parse(text)
        payload.check(4, 4, 4096)
        payload.key_log_weights(0, 4096)

    _refusable(use)


def _yaml(work: Path) -> Iterator[tuple[str, str, Any]]:
    laughs = "x0: &x0 [ha, ha, ha, ha, ha, ha, ha, ha, ha]\n"
    laughs += "".join(f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 9)}]\n" for i in range(1, LAUGHS))
    whole = "files: {all: rag.jsonl}\nfields: {text: question, label: question}\n"
    nested = "[" * LAUGHS + "]" * LAUGHS
    for key in KEYS:
        inner = "&y0 [ha, ha, ha, ha, ha, ha, ha, ha, ha]"
        lines = [f"- {inner}", *(f"- &y{i} [{', '.join([f'*y{i - 1}'] * 9)}]" for i in range(1, LAUGHS))]
        text = "".join(f"  {line}\n" for line in lines)
        rest = "".join(line + "\n" for line in whole.splitlines() if not line.startswith(key + ":"))
        (work / f"laughs_{key}.yaml").write_text(f"{rest}{key}:\n{text}")
        yield (
            "YAML",
            f"a thousand million laughs in a task's {key}",
            ["run", f"laughs_{key}.yaml", "-m", "scripted:echo", "-M", "zero_shot", "--dry-run"],
        )
    text = "".join(f"    {line}\n" for line in lines)
    (work / "laughs_common.yaml").write_text(f"common:\n  instruction:\n{text}tasks: {{one: {{}}}}\n")
    yield (
        "YAML",
        "in a suite of tasks",
        ["run", "laughs_common.yaml", "-m", "scripted:echo", "-M", "zero_shot", "--dry-run"],
    )
    (work / "suite.yaml").write_text(f"task:\n{text}model: 'scripted:echo'\nmethods: [zero_shot]\n")
    yield "YAML", "in a suite's task", ["run", "--config", "suite.yaml", "--dry-run"]
    (work / "options.yaml").write_text(
        "task: reviews.csv\ntext: text\nlabel: label\nmodel: 'scripted:echo'\nmethods: [few_shot]\n"
        f"options:\n  few_shot.shots:\n{text}"
    )
    yield "YAML", "in a suite's options", ["run", "--config", "options.yaml", "--dry-run"]
    (work / "heads.yaml").write_text(f"format: 1\nheads: {{0: [1]}}\nprovenance:\n{text}")
    yield "YAML", "in a head profile", ["generate", "**a**", "-m", "scripted:echo", "--steering", "heads.yaml"]
    (work / "deep.yaml").write_text("files: " + "[" * 50_000)
    yield "YAML", "50,000 brackets", ["run", "deep.yaml", "-m", "scripted:echo", "-M", "zero_shot", "--dry-run"]
    (work / "self.yaml").write_text("&a {task: *a, model: 'scripted:echo', methods: [zero_shot]}")
    yield "YAML", "a suite that holds itself", ["run", "--config", "self.yaml", "--dry-run"]
    option = laughs.replace("\n", " ")
    yield (
        "YAML",
        "in an option's value",
        [
            "run",
            "reviews.csv",
            "--text",
            "text",
            "--label",
            "label",
            "-m",
            "scripted:echo",
            "-M",
            "few_shot",
            "--set",
            f"few_shot.shots={{{nested}: &a [1, 1], b: [*a, *a]}}",
            "--dry-run",
            "-B",
            f"max_context={option[:60]}",
        ],
    )


def _sources(work: Path, models: Path) -> Iterator[tuple[str, str, Any]]:
    folder = work / "notes"
    folder.mkdir()
    for i in range(10_000):
        (folder / f"{i:05d}.md").write_text(f"Note {i} says that Ann lives in town {i}.")
    for i in range(200):
        (folder / f"long{i:03d}.md").write_text(f"Note {i}. " + f"Ann was in town {i} then. " * 120)
    for count in (1_000, 3_000, 10_000):
        names = [f"notes/{i:05d}.md" for i in range(count)]
        for value in ("logprob", "votes"):
            yield (
                "sources",
                f"{count:,} documents, {value}, budget 64",
                [
                    "attribute",
                    "-q",
                    "Where?",
                    "-d",
                    names[0],
                    *names[1:],
                    "-m",
                    "scripted:say= Bern",
                    "--value",
                    value,
                    "--granularity",
                    "documents",
                ],
            )
    names = [f"notes/long{i:03d}.md" for i in range(200)]
    for count in (50, 200):
        yield (
            "sources",
            f"{count} documents of 3 KB, beyond the window",
            [
                "attribute",
                "-q",
                "Where?",
                "-d",
                *names[:count],
                "-m",
                f"transformers:{models / 'lm'}",
            ],
        )


def _budgets(models: Path) -> Iterator[tuple[str, str, Any]]:
    text = "Great phone and a terrible battery but the screen is good and the price is fair, but only at first"
    for count in (15, 16, 19):  # 15: all 32,768 sets of words are asked
        for method in ("lime", "c_lime", "shapley_sampling", "kernel_shap"):
            yield (
                "budgets",
                f"{method} of {count} words with a budget of 10^9",
                partial(_refusable, _explained, models / "proxy", " ".join(text.split()[:count]), method),
            )
    yield (
        "budgets",
        "occlusion of 20,000 words",
        partial(_refusable, _explained, models / "proxy", "word " * 20_000, "occlusion"),
    )
    yield (
        "budgets",
        "documents with a budget of 10^9",
        [
            "attribute",
            "-q",
            "Where?",
            "-d",
            "a.md",
            "b.md",
            "c.md",
            "-m",
            "scripted:say= Bern",
            "--budget",
            "1000000000",
        ],
    )
    yield "budgets", "20 documents with a budget of 10^9", partial(_refusable, _attributed, 20)


def _explained(proxy: Path, text: str, method: str) -> None:
    import amplify

    amplify.explain(text, commands.LABELS[0], model=str(proxy), method=method, budget=10**9, truncate=True)


def _attributed(documents: int) -> None:
    import amplify

    with amplify.load_model("scripted:say= Bern") as model:
        texts = [f"Note {i}." for i in range(documents)]
        amplify.attribute_sources("Where?", texts, model, answer="Bern", granularity="documents", budget=10**9)


def _tables(work: Path, models: Path) -> Iterator[tuple[str, str, Any]]:
    with (work / "big.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "label"))
        writer.writerows(
            (f"Review {i} of a phone that is great in every way", ("good", "bad")[i % 2]) for i in range(200_000)
        )
    columns = ["--text", "text", "--label", "label"]
    yield (
        "tables",
        "200,000 rows, run --limit 5",
        [
            "run",
            "big.csv",
            *columns,
            "-m",
            "scripted:echo",
            "-M",
            "few_shot",
            "--limit",
            "5",
            "--seeds",
            "0",
            "--out",
            "runs/big",
        ],
    )
    yield (
        "tables",
        "200,000 rows, explain --limit 5",
        [
            "explain",
            "--input",
            "big.csv",
            "--text",
            "text",
            "--limit",
            "5",
            "-m",
            str(models / "proxy"),
            "--method",
            "random",
            "--out",
            "why",
        ],
    )
    (work / "cell.csv").write_text("text\n" + "a" * 5_000_000 + "\nb\n")
    yield (
        "tables",
        "a cell of 5 MB, apply",
        [
            "apply",
            "program.json",
            "--input",
            "cell.csv",
            "--text",
            "text",
            "-m",
            "scripted:echo",
            "--out",
            "cell_out.csv",
        ],
    )
    (work / "deep.jsonl").write_text('{"text": ' + "[" * 200_000 + "]" * 200_000 + "}\n")
    yield (
        "tables",
        "a cell nested 200,000 deep",
        ["explain", "--input", "deep.jsonl", "--text", "text", "-m", str(models / "proxy"), "--method", "random"],
    )
    (work / "wide.csv").write_text(
        ",".join(f"c{i}" for i in range(50_000)) + ",text\n" + ("1," * 50_000 + "good\n") * 3
    )
    yield (
        "tables",
        "50,000 columns",
        [
            "explain",
            "--input",
            "wide.csv",
            "--text",
            "text",
            "-m",
            str(models / "proxy"),
            "--method",
            "random",
            "--out",
            "why",
        ],
    )
    labels = "".join(
        json.dumps({"text": f"Review {i} it is", "label": f"label {i % 5_000}"}) + "\n" for i in range(20_000)
    )
    (work / "labels.jsonl").write_text(labels)
    yield (
        "tables",
        "5,000 labels",
        [
            "run",
            "labels.jsonl",
            *columns,
            "-m",
            "scripted:echo",
            "-M",
            "zero_shot",
            "--limit",
            "5",
            "--out",
            "runs/labels",
        ],
    )


TEMPLATES = {
    "loops in loops": "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}x"
    + "{% endfor %}" * 3,
    "a text times 10^9": "{{ 'x' * 1000000000 }}",
    "a text that doubles": "{% set n = namespace(x='x') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}"
    "{% endfor %}{{ n.x }}",
    "a list times 10^9": "{{ ([1] * 1000000000) | length }}",
    "a power": "{{ 9 ** 9 ** 9 }}",
    "a power of powers": "{{ (9 ** 99999) ** 9999 }}",
    "a format of 10^9 places": "{{ '%1000000000d' | format(1) }}",
    "a method's 10^9 places": "{{ 'x'.rjust(1000000000) }}",
    "a filter's 10^9 places": "{{ 'x' | center(1000000000) }}",
    "an indent of 10^9": "{{ ('x\\n' * 9) | indent(1000000000) }}",
    "a macro that calls itself": "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}",
    "lipsum": "{{ lipsum(n=1000000) }}",
    "a replacement that grows": "{{ ('x' * 30000) | replace('x', 'y' * 30000) }}",
    "a join that grows": "{{ (['x' * 9999] * 9999) | join('y' * 99999) }}",
    "100,000 brackets": "{{ " + "(" * 100_000 + "1" + ")" * 100_000 + " }}",
    "100,000 nested ifs": "{% if 1 %}" * 100_000 + "{% endif %}" * 100_000,
}


def _rendered(source: str) -> None:
    from amplify.templates import Template

    Template("bomb", source).render({"text": "x"})

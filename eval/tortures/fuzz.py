"""Odd inputs for everything that reads a file or a text. Any exception but the library's own is a fault, and so is a
reader that takes longer than a few seconds. In one process, thousands a second; each case is drawn from its number.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from tortures import commands, mutations
from tortures.children import Children
from tortures.outcome import Group, Groups, Setting

PATIENCE = 5.0
"""Seconds of processor time for one input."""


class TooSlowError(BaseException):
    """An input took too long; not an Exception, so that nothing swallows it."""


class EscapedError(Exception):
    """Text of an input became markup of a page."""


@dataclass(frozen=True)
class Target:
    """Something that reads.

    Attributes:
        name: for the table.
        inputs: how many of them, of 250,000 in all.
        make: an odd input.
        attempt: reads it.
    """

    name: str
    inputs: int
    make: Callable[[random.Random], Any]
    attempt: Callable[[Any], object]


def run(setting: Setting) -> Groups:
    """Every target."""
    children = Children(commands.MODULES)
    commands.make_models(setting.models, children)
    os.environ |= {"AMPLIFY_HOME": str(setting.work / "home"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    os.environ.pop("AMPLIFY_DATA", None)
    here = Path.cwd()
    signal.signal(signal.SIGVTALRM, _too_slow)
    try:
        os.chdir(setting.work)
        for target in targets(setting, children):
            if setting.skips(target.name):
                continue
            yield fuzzed(target, setting.amount(target.inputs, max(20, target.inputs // 400)), setting.seed)
    finally:
        os.chdir(here)


def _too_slow(*_: object) -> None:
    raise TooSlowError


def fuzzed(target: Target, amount: int, seed: int) -> Group:
    """`amount` inputs of a target; the figures say how many were taken and how many refused."""
    from amplify.errors import AmplifyError

    group = Group(target.name, figures={"taken": 0, "refused": 0})
    kinds: dict[str, int] = {}
    for number in range(amount):
        given = target.make(random.Random(f"{seed} {target.name} {number}"))
        problem = None
        try:
            signal.setitimer(signal.ITIMER_VIRTUAL, PATIENCE)
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                target.attempt(given)
            group.figures["taken"] += 1
        except AmplifyError:
            group.figures["refused"] += 1
        except TooSlowError:
            problem = f"longer than {PATIENCE:g} s{_at()}"
        except Exception as error:
            problem = f"{type(error).__name__}: {str(error)[:120]}{_at()}"
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        if problem:
            kinds[problem] = kinds.get(problem, 0) + 1
            if kinds[problem] > 1:  # each kind of failure is told once
                group.cases += 1
                continue
            problem = f"input {number}: {problem}; {_short(given)}"
        group.note(problem)
    return group


def _at() -> str:
    """Where in the library the exception of this moment came from."""
    frames = [f for f in traceback.extract_tb(sys.exc_info()[2]) if f"{os.sep}amplify{os.sep}" in f.filename]
    return f" ({'/'.join(Path(frames[-1].filename).parts[-2:])}:{frames[-1].lineno})" if frames else ""


def _short(given: Any) -> str:
    shown = repr(given)
    return shown if len(shown) < 240 else f"{shown[:160]}…{shown[-70:]} ({len(shown)} characters)"


def targets(setting: Setting, children: Children) -> Iterator[Target]:
    """Everything that reads."""
    work = setting.work
    inputs = commands.trial(setting.models / "in", work / "in")
    yield from _tables(work)
    yield from _tasks(work, inputs)
    yield from _texts()
    yield _profiles(work)
    yield from _programs(work, inputs, setting.models, children)
    yield from _attributions(work, inputs, children)
    yield _runs(work, inputs)
    yield from _cards(work, setting.models)


def _file(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    return path


# tables and tasks


def _tables(work: Path) -> Iterator[Target]:
    from amplify.tasks import load_task, read_rows

    rows = [
        {"text": f"Review {i} says: fine, or not", "label": ("good", "bad")[i % 2], "id": str(i)} for i in range(24)
    ]
    lines = [list(rows[0]), *(list(row.values()) for row in rows)]
    good = {
        "csv": "\n".join(f'{a},{b},"{c}"' for c, a, b in ((v[0], v[1], v[2]) for v in lines)).replace(
            'label,id,"text"', "label,id,text"
        ),
        "tsv": "\n".join("\t".join(values) for values in lines),
        "jsonl": "\n".join(json.dumps(row) for row in rows),
        "json": json.dumps(rows),
    }
    for ending, inputs in (("csv", 15_000), ("tsv", 5_000), ("jsonl", 15_000), ("json", 10_000)):

        def make(draw: random.Random, ending: str = ending) -> tuple[bool, bytes]:
            if ending.startswith("json") and draw.random() < 0.6:
                odd = mutations.value(draw, rows, 4)
                listed = odd if isinstance(odd, list) else [odd]
                made = json.dumps(odd) if ending == "json" else "\n".join(map(json.dumps, listed))
                return draw.random() < 0.5, made.encode()
            return draw.random() < 0.5, mutations.data(draw, good[ending])

        def attempt(given: tuple[bool, bytes], ending: str = ending) -> object:
            path = _file(work / f"table.{ending}", given[1])
            return load_task(path, text="text", label="label") if given[0] else read_rows(path, text="text")

        yield Target(f"tables, {ending}", inputs, make, attempt)


SPECS = (
    "description: reviews\ninstruction: Say good or bad.\ninput_name: Review\nannounce: 'The answer is'\n"
    "labels: [good, bad]\nfiles: {all: rows.jsonl}\nfields: {text: text, label: label, id: id, keep: [more]}\n"
    "metric: accuracy\nmax_tokens: 16\nseed: 1\nsplits: {train: 8, test: 8, validation: 4}\noverlap: drop\n",
    "description: coins\ngenerate: {rule: coin_flip, people: 2}\nlabels: [yes it is, no it is not]\nlayout: text\n"
    "splits: {train: 8, test: 8}\nemphasis: text\nlicence: CC0\n",
    "files: {test: rag.jsonl}\nformat: nq\nfields: {text: question}\nmetric: f1\ndocuments: {total: 2, gold_at: 0}\n",
    "common: {labels: ['A', 'B'], files: {all: 'rows.jsonl'}, label_map: {good: A, bad: B},"
    " where: {label: [good, bad]}, fields: {text: text, label: label}}\ntasks: {one: {description: '{task}'}}\n",
    "files: {all: choices.jsonl}\nfields: {text: q, label: a, choices: c}\n",
)


def _tasks(work: Path, inputs: Path) -> Iterator[Target]:
    import yaml

    from amplify.cli import cli
    from amplify.tasks import load_task

    shutil.copy(inputs / "rag.jsonl", work / "rag.jsonl")
    rows = [{"text": f"Review {i} is it", "label": ("good", "bad")[i % 2], "id": i, "more": [i]} for i in range(30)]
    _file(work / "rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    choices = [{"q": f"Which is {i}?", "a": f"number {i}", "c": [f"number {i}", "none"]} for i in range(30)]
    _file(work / "choices.jsonl", "".join(json.dumps(row) + "\n" for row in choices))
    loaded = [yaml.safe_load(spec) for spec in SPECS]

    def dumped(draw: random.Random, good: Any, written: str) -> bytes:
        if draw.random() < 0.6:
            made = yaml.safe_dump(mutations.value(draw, good), allow_unicode=draw.random() < 0.5)
            return made.encode("utf-8", "surrogatepass")
        return mutations.data(draw, written)

    def make(draw: random.Random) -> bytes:
        which = draw.randrange(len(SPECS))
        return dumped(draw, loaded[which], SPECS[which])

    yield Target("task YAML", 25_000, make, lambda given: load_task(_file(work / "task.yaml", given)))
    suite = (
        "task: reviews.csv\ntext: text\nlabel: label\nmodel: 'scripted:echo'\nmethods: [zero_shot, few_shot]\n"
        "options: {few_shot.shots: 2}\nseeds: [0, 1]\nlimit: 4\nmode: score\nbatch_size: 3\nbaseline: zero_shot\n"
    )
    shutil.copy(inputs / "reviews.csv", work / "reviews.csv")

    def dry_run(given: bytes) -> None:
        import click

        path = _file(work / "suite.yaml", given)
        with contextlib.suppress(click.ClickException, click.exceptions.Exit):
            cli.main(["run", "--config", str(path), "--dry-run"], standalone_mode=False)

    yield Target("suites", 3_000, lambda draw: dumped(draw, yaml.safe_load(suite), suite), dry_run)


# texts


def _texts() -> Iterator[Target]:
    from amplify.methods import parse
    from amplify.steering import parse_emphasis, payload
    from amplify.templates import Template

    marked = (
        "Mary is a nurse. **Answer in JSON only.** <em weight=3>Now</em>, \\** and <em>more</em>.",
        [{"role": "system", "content": "Be **brief**."}, {"role": "user", "content": "<em weight='0.5'>Hi</em> there"}],
    )

    def emphasis(draw: random.Random) -> Any:
        if draw.random() < 0.7:
            return mutations.text(draw, str(marked[0]), 5), draw.choice(("**", "**", "__", "*", "<em>"))
        return [
            {"role": turn["role"], "content": mutations.text(draw, turn["content"])}  # type: ignore[index]
            for turn in marked[1]
        ], "**"

    yield Target("emphasis marks", 60_000, emphasis, lambda given: parse_emphasis(given[0], mark=given[1]))
    sent = {
        "spans": [[3, 5, 100.0], [7, 9, 0.5]],
        "prompt": 12,
        "heads": {"0": [1, 2], "3": [0]},
        "exempt_generated": True,
        "keep_attention_sink": False,
        "phase": "decode",
    }

    def steered(given: str) -> None:
        parsed = payload.parse(given)
        parsed.check(4, 4, 40)
        parsed.key_log_weights(0, 40), parsed.gate(0, 40), parsed.digest, parsed.first

    yield Target("steering payloads", 60_000, lambda draw: mutations.json_text(draw, sent), steered)
    labels = (
        ("positive", "negative"),
        ("A", "B", "C"),
        ("良い", "悪い"),
        ("yes", "no", "not sure"),
        ("a.b", "(c", "[d]"),
    )
    said = (
        "Key words: great, fine. The answer is positive.",
        "**Answer:** (B) because it is.",
        "The answer is (C) text",
        "<think>is it no?</think>The answer is: yes",
        "答えは 良い。",
        "The answer is not sure, or a.b",
        "**negative**",
    )

    def answer(draw: random.Random) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
        chosen = draw.choice(labels)
        options = tuple(mutations.text(draw, "an option", 1) for _ in chosen) if draw.random() < 0.3 else ()
        return mutations.text(draw, draw.choice(said), 5), chosen, options

    def read(given: tuple[str, tuple[str, ...], tuple[str, ...]]) -> None:
        found = parse.parse_label(given[0], given[1], options=given[2])
        if found is not None and found not in given[1]:
            raise ValueError(f"{found!r} is none of the labels")
        parse.parse_text(given[0]), parse.split_answer(given[0])

    yield Target("answers", 30_000, answer, read)
    from amplify import resources

    sources = [path.read_text(encoding="utf-8") for path in sorted(resources.content("prompts").glob("*.jinja"))]
    sources += [
        "{% for a in labels %}{% for b in labels %}{{ a ~ b }}{% endfor %}{% endfor %}{{ text * 9 }}",
        "{{ labels | map('upper') | join(', ') }}{% set x = text %}{% if x is defined %}{{ x[:3] }}{% endif %}",
        "{% macro m(x) %}{{ x }}{% endmacro %}{{ m(text) }}{{ range(9) | list }}{{ '%s' | format(text) }}",
    ]
    given = {
        "text": "Great phone",
        "instruction": "Say good or bad.",
        "labels": ["good", "bad"],
        "input_name": "Review",
        "question": "Why?",
        "documents": ["One.", "Two."],
        "words": ["great"],
        "label": "good",
        "options": [],
    }
    yield Target(
        "templates",
        8_000,
        lambda draw: mutations.text(draw, draw.choice(sources), 3),
        lambda source: Template("odd", source).render(given),
    )


# saved JSON and YAML


def _profiles(work: Path) -> Target:
    import yaml

    from amplify.steering import Steering

    good = {
        "format": 1,
        "heads": {"0": [1, 2], "3": [0]},
        "alpha": 0.1,
        "mode": "pasta",
        "phase": "both",
        "model": {"name": "m", "layers": 4},
        "provenance": {"task": "t"},
    }

    def make(draw: random.Random) -> bytes:
        if draw.random() < 0.7:
            return yaml.safe_dump(mutations.value(draw, good)).encode("utf-8", "surrogatepass")
        return mutations.data(draw, yaml.safe_dump(good))

    def attempt(given: bytes) -> None:
        steering = Steering.load(_file(work / "heads.yaml", given))
        steering.resolve(4, 4), steering.to_json(), steering.save(work / "again.yaml")

    return Target("head profiles", 8_000, make, attempt)


def _programs(work: Path, inputs: Path, models: Path, children: Children) -> Iterator[Target]:
    from amplify.methods import METHODS
    from amplify.methods.base import Program
    from amplify.models.scripted import ScriptedModel
    from amplify.types import Example

    columns = ["--text", "text", "--label", "label", "--seeds", "0", "--limit", "4"]
    some = "zero_shot,few_shot,zero_shot_cot,answer_format_only,self_amplify_topk,few_shot_marked"
    rag = ",".join(name for name in METHODS if name.startswith("rag") and not name.endswith(commands.STEERED))
    for number, argv in enumerate(
        (
            ["run", "reviews.csv", *columns, "-m", "scripted:last_answer", "-M", some],
            [
                "run",
                "reviews.csv",
                *columns,
                "-m",
                f"transformers:{models / 'lm'}",
                "-M",
                "amplify,proxy_alone,amplify_test_words",
                "--set",
                f"*.proxy={models / 'proxy'}",
                "--set",
                "amplify.shots=2",
                "--set",
                "amplify_test_words.shots=2",
                "--set",
                "*.max_tokens=8",
            ],
            ["run", "rag.yaml", "-m", "scripted:say= Bern", "-M", rag, "--seeds", "0", "--limit", "2"],
        )
    ):
        made = children.run([*argv, "--out", f"programs{number}"], inputs, environment=commands.home(work))
        if made.status:
            raise RuntimeError(f"no programs to begin with: {made.last}")
    good = [json.loads(p.read_text(encoding="utf-8")) for p in sorted(inputs.glob("programs?/programs/*.json"))]
    documents = [{"title": "Page", "text": "Ann lives in Bern.", "sentences": []}, {"text": "No."}]
    example = Example("1", "Where does Ann live?", fields={"documents": documents})

    def attempt(given: str) -> None:
        program = Program.load(_file(work / "program.json", given))
        program.answer([example], ScriptedModel("echo"))
        program.save(work / "again.json")

    kinds = sorted({program["kind"] for program in good})
    yield Target(
        f"programs ({len(kinds)} kinds)", 8_000, lambda draw: mutations.json_text(draw, draw.choice(good)), attempt
    )


PAYLOADS = (
    "<img src=x onerror=torture()>",
    "</script><script>torture()</script>",
    '" onmouseover="torture()',
    "' onclick='torture()",
    "<!--",
    "]]>",
    "<svg/onload=torture()>",
    "</style><script>torture()</script>",
    "javascript:torture()",
    "&lt;b&gt;",
    "<b>",
    "</span></div><iframe srcdoc='<script>torture()</script>'>",
    "\u2028</script>",
    "<a href=javascript:torture()>x</a>",
)


class _Skeleton(HTMLParser):
    """Tags of a page with the names of their attributes, and addresses that run something."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[tuple[str, tuple[str, ...]]] = set()
        self.scripts = 0
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a tag."""
        self.scripts += tag == "script"
        self.tags.add((tag, tuple(sorted({name for name, _ in attrs}))))
        for name, value in attrs:
            if name.startswith("on") or (value or "").strip().lower().startswith("javascript:"):
                raise EscapedError(f"<{tag} {name}={value!r}>")


def _same_markup(page: str, good: _Skeleton) -> None:
    """Refuse a page that has other tags than a page of harmless texts has."""
    found = _Skeleton(page)
    if found.scripts != good.scripts or (more := found.tags - good.tags - _HARMLESS):
        raise EscapedError(f"{found.scripts} scripts, {sorted(more)[:3] if found.scripts == good.scripts else ''}")


_HARMLESS = {
    ("p", ("class",)), ("li", ()), ("ul", ()), ("span", ("class", "data-k")), ("p", ()), ("div", ("class",)),
    ("span", ("class", "data-k", "style", "title")), ("span", ("class", "data-k", "style", "tabindex", "title")),
    ("div", ("class", "role")), ("p", ("dir",)), ("a", ("data-column", "href", "title")), ("bdi", ()),
    ("button", ("aria-expanded", "class", "type")),
}  # fmt: skip


def _attributions(work: Path, inputs: Path, children: Children) -> Iterator[Target]:
    from amplify.render import attribution_html, attribution_text
    from amplify.sources.page import as_html, as_terminal
    from amplify.sources.result import SourceAttribution
    from amplify.types import Attribution

    asked = [
        "attribute",
        "-q",
        "Where does Ann live?",
        "-d",
        "a.md",
        "b.md",
        "c.md",
        "-m",
        "scripted:say= Bern. It is.",
    ]
    good, pages = [], []
    for name, more in (("why.json", []), ("votes.json", ["--value", "votes", "--granularity", "documents"])):
        made = children.run([*asked, *more, "--json", name], inputs)
        if made.status:
            raise RuntimeError(f"no attribution to begin with: {made.last}")
        good.append(json.loads((inputs / name).read_text()))
        pages.append(_Skeleton(as_html(SourceAttribution.load(inputs / name))))

    def show(given: str) -> None:
        result = SourceAttribution.load(_file(work / "why.json", given))
        str(result), as_html(result), as_terminal(result), result.cite(), result.prune(), result.highlight()
        result.save(work / "again.json")

    yield Target("attributions", 5_000, lambda draw: mutations.json_text(draw, draw.choice(good)), show)

    def evil(draw: random.Random) -> tuple[int, str]:
        which = draw.randrange(2)
        made = json.loads(json.dumps(good[which]))
        made["question"] = draw.choice(PAYLOADS) + mutations.text(draw, "why?", 1)
        made["answer"] = mutations.text(draw, draw.choice(PAYLOADS), 1)
        made["columns"] = [mutations.text(draw, draw.choice(PAYLOADS), 1) for _ in made["columns"]]
        made["spans"] = [[0, len(made["answer"])] for _ in made["spans"]]
        made["notes"] = [draw.choice(PAYLOADS)]
        for document in made["originals"]:
            document["text"] = document["text"][:9] + draw.choice(PAYLOADS) + document["text"][9:]
            document["title"], document["id"] = draw.choice(PAYLOADS), draw.choice(PAYLOADS)
        made["meta"] = {**made["meta"], "amplify": draw.choice(PAYLOADS), "model": {"model": draw.choice(PAYLOADS)}}
        return which, json.dumps(made)

    def page(given: tuple[int, str]) -> None:
        _same_markup(as_html(SourceAttribution.load(_file(work / "why.json", given[1]))), pages[given[0]])

    yield Target("pages of documents", 3_000, evil, page)

    def words(draw: random.Random) -> Attribution:
        parts = [draw.choice((*PAYLOADS, "great", "phone")).replace(" ", "") for _ in range(4)]
        spans, at = [], 0
        for part in parts:
            spans.append((at, at + len(part)))
            at += len(part) + 1
        scores = tuple(draw.choice((0.5, -1.0, 0.0, 1e-300, float("nan"), float("inf"))) for _ in parts)
        odd = [mutations.text(draw, draw.choice(PAYLOADS), 1) for _ in range(4)]
        return Attribution(" ".join(parts), tuple(parts), tuple(spans), scores, *odd[:2], method=odd[2], model=odd[3])

    plain = attribution_html(
        Attribution("a b", ("a", "b"), ((0, 1), (2, 3)), (1.0, -0.5), "x", "y", method="m", model="o")
    )

    def word_page(given: Attribution) -> None:
        attribution_text(given)
        shown = attribution_html(given)
        if "torture()" in "".join(str(t) for t in _Skeleton(shown).tags):
            raise EscapedError("an attribute's name")
        if extra := {tag for tag, _ in _Skeleton(shown).tags} - {tag for tag, _ in _Skeleton(plain).tags}:
            raise EscapedError(f"tags {sorted(extra)}")

    yield Target("pages of words", 2_000, words, word_page)


def _runs(work: Path, inputs: Path) -> Target:
    from amplify.evaluation import load_report

    good = inputs / "programs0"
    names = (
        "run.json",
        "records.jsonl",
        "timing.jsonl",
        *(f"programs/{p.name}" for p in (good / "programs").iterdir()),
    )
    skeleton = _Skeleton((good / "report.html").read_text(encoding="utf-8"))
    odd = work / "run"

    def make(draw: random.Random) -> tuple[str, bytes]:
        name = draw.choice(names[:3] if draw.random() < 0.7 else names)
        content = (good / name).read_text(encoding="utf-8")
        if draw.random() < 0.3:
            return name, mutations.data(draw, content)
        if not name.endswith(".jsonl"):
            return name, mutations.json_text(draw, json.loads(content)).encode("utf-8", "surrogatepass")
        rows = [json.loads(row) for row in content.splitlines()]
        at = draw.randrange(len(rows))
        rows[at] = mutations.value(draw, rows[at])
        return name, "".join(json.dumps(row) + "\n" for row in rows).encode()

    def attempt(given: tuple[str, bytes]) -> None:
        shutil.rmtree(odd, ignore_errors=True)
        shutil.copytree(good, odd)
        _file(odd / given[0], given[1])
        report = load_report(odd)
        str(report), report.to_markdown(odd / "report.md"), report.to_html(odd / "report.html")
        if _Skeleton((odd / "report.html").read_text(encoding="utf-8")).scripts > skeleton.scripts:
            raise EscapedError("a script")

    return Target("run folders", 1_000, make, attempt)


def _cards(work: Path, models: Path) -> Iterator[Target]:
    from amplify import proxies
    from amplify.cli import cli

    folder = work / "home" / "proxies" / "p"
    shutil.copytree(models / "proxy", folder)
    card = json.loads((folder / "amplify_proxy.json").read_text(encoding="utf-8"))

    def listed(given: str) -> None:
        _file(folder / "amplify_proxy.json", given)
        cli.main(["list", "proxies"], standalone_mode=False)

    yield Target("proxy cards, listed", 3_000, lambda draw: mutations.json_text(draw, card), listed)
    causal = work / "causal"
    shutil.copytree(models / "lm", causal)
    template = "{{ instruction }}\n{{ input_name }}: {{ text }}\nThe answer is"
    said = {"instruction": "Say good or bad.", "input_name": "Review", "template": template}
    reads = {**card, "kind": "causal", "labels": ["good", "bad"], **said}

    def opened(given: tuple[Path, str]) -> None:
        from amplify.types import Example

        _file(given[0] / "amplify_proxy.json", given[1])
        proxy = proxies.load_proxy(given[0])
        str(proxy), proxy.label_scores([Example("1", "great phone", "good")])

    def make(draw: random.Random) -> tuple[Path, str]:
        where, good = draw.choice(((folder, card), (causal, reads)))
        return where, mutations.json_text(draw, good)

    yield Target("proxy cards, opened", 1_000, make, opened)

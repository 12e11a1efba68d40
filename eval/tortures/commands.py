"""Every command of amplify that writes, on inputs small enough for hundreds of runs, and what its result is."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import shutil
import sqlite3
import zipfile
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import tiny_models

from tortures.children import Children, Ended, Points
from tortures.outcome import Setting

LABELS = ("良い", "schlecht, sagt er")  # not ASCII, and with a comma: what a CSV has to quote
MODULES = (
    "torch",
    "transformers",
    "numpy",
    "scipy.stats",
    "captum.attr",
    "sklearn",
    "yaml",
    "openai",
    "httpx",
    "tqdm",
    "amplify.evaluation",
    "amplify.evaluation.apply",
    "amplify.tasks",
    "amplify.methods",
    "amplify.metrics",
    "amplify.attribution",
    "amplify.attribution.explanations",
    "amplify.sources.attribute",
    "amplify.proxies",
    "amplify.proxies.training",
    "amplify.models.transformers",
    "amplify.head_search.search",
    "peft",
    "accelerate",
    "torch._dynamo",
    "torch.distributed.fsdp",
    "transformers.generation",
    "sklearn.feature_extraction.text",
    "transformers.models.llama.modeling_llama",
    "transformers.models.bert.modeling_bert",
    "transformers.models.auto.modeling_auto",
    "transformers.integrations.gguf",
)


@dataclass(frozen=True)
class Command:
    """A command that writes.

    Attributes:
        name: for the table.
        argv: its arguments; {models} stands for the folder of models.
        logs: endings of files that grow line by line: half a line may stand at their end after a kill.
        kept: ends of names of files that a stopped command leaves on purpose until it has finished.
        before: called in the child first.
        slow: it loads a model or trains one; fewer kills are tried.
    """

    name: str
    argv: tuple[str, ...]
    logs: tuple[str, ...] = ()
    before: tuple[Callable[[], Any], ...] = ()
    slow: bool = False


def commands(models: Path) -> list[Command]:
    """All of them."""
    from amplify.methods import METHODS

    columns = ("--text", "text", "--label", "label")
    rag = ",".join(name for name in METHODS if name.startswith("rag") and not name.endswith(STEERED))
    run = ("run", "reviews.csv", *columns, "--out", "runs/r", "--seeds", "0,1")
    logs = ("records.jsonl", "timing.jsonl")
    documents = ("-d", "a.md", "b.md", "c.md")
    attribute = ("attribute", "-q", "Where does Ann live?", *documents, "--cache", "replies", "--json", "why.json")
    tiny, proxy = f"transformers:{models / 'lm'}", str(models / "proxy")
    return [
        Command(
            "run, generate", (*run, "-m", "scripted:last_answer", "-M", "zero_shot,few_shot", "--batch-size", "3"), logs
        ),
        Command(
            "run, score", (*run, "-m", "scripted:echo", "-M", "few_shot", "--mode", "score", "--batch-size", "5"), logs
        ),
        Command(
            "run, RAG",
            (
                "run",
                "rag.yaml",
                "-m",
                "scripted:say= Bern",
                "-M",
                rag,
                "--batch-size",
                "2",
                "--seeds",
                "0",
                "--out",
                "runs/r",
            ),
            logs,
        ),
        Command(
            "run, transformers and a proxy",
            (
                *run,
                "-m",
                tiny,
                "-M",
                "few_shot,amplify",
                "--set",
                f"amplify.proxy={proxy}",
                "--set",
                "*.shots=2",
                "--set",
                "amplify.max_tokens=8",
                "--mode",
                "score",
                "--limit",
                "6",
                "--batch-size",
                "2",
            ),
            logs,
            slow=True,
        ),
        Command("report", ("report", "made")),
        Command(
            "apply",
            (
                "apply",
                "program.json",
                "--input",
                "rows.csv",
                "--text",
                "text",
                "-m",
                "scripted:last_answer",
                "--out",
                "answers.csv",
                "--batch-size",
                "4",
            ),
            (".jsonl",),
        ),
        Command("attribute", (*attribute, "-m", "scripted:say= Bern", "--html", "why.html"), (".jsonl",)),
        Command(
            "attribute, votes",
            # in bfloat16 the words of an untrained model are near ties, which go with who else is in a batch
            (
                *attribute,
                "-m",
                tiny,
                "-B",
                "dtype=float32",
                "--value",
                "votes",
                "--granularity",
                "documents",
                "--html",
                "why.html",
            ),
            (".jsonl",),
            slow=True,
        ),
        Command(
            "heads",
            ("heads", "json_formatting", "-m", tiny, "--samples", "3", "--most", "4", "--out", "heads.yaml"),
            (".jsonl",),
            slow=True,
        ),
        Command(
            "proxy",
            (
                "proxy",
                "reviews.csv",
                *columns,
                "--body",
                str(models / "encoder"),
                "--epochs",
                "1",
                "--out",
                "proxies/p",
            ),
            slow=True,
        ),
        Command("models pull", ("models", "pull", "toy"), before=(partial(_toy, models),), slow=True),
        Command(
            "explain --out",
            (
                "explain",
                "--input",
                "reviews.csv",
                *columns,
                "--limit",
                "4",
                "-m",
                proxy,
                "--methods",
                "random,occlusion,grad_x_input",
                "--out",
                "why",
            ),
            slow=True,
        ),
    ]


def chosen(setting: Setting) -> list[Command]:
    """All of them, or a few for a gate."""
    few = ("run, generate", "apply", "attribute", "proxy")
    return [c for c in commands(setting.models) if not setting.quick or c.name in few]


def make_models(folder: Path, children: Children) -> Path:
    """The models that the commands use: `lm`, `encoder`, `proxy`, and a wheel that holds a model called toy."""
    if (folder / "ready").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    tiny_models.language_model(folder / "lm")
    tiny_models.encoder(folder / "encoder")
    inputs(folder / "in", folder, children)
    made = children.run(
        [
            "proxy",
            "reviews.csv",
            "--text",
            "text",
            "--label",
            "label",
            "--body",
            str(folder / "encoder"),
            "--epochs",
            "1",
            "--out",
            str(folder / "proxy"),
        ],
        folder / "in",
    )
    if made.status:
        raise RuntimeError(f"no proxy: {made.last}")
    (folder / "wheels").mkdir()
    with zipfile.ZipFile(folder / "wheels" / "torture_toy-1.0-py3-none-any.whl", "w") as wheel:
        for file in sorted((folder / "lm").iterdir()):
            wheel.write(file, f"torture_toy/model/{file.name}")
        about = "Metadata-Version: 2.1\nName: torture-toy\nVersion: 1.0\n"
        for name, content in (
            ("METADATA", about),
            ("WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"),
            ("RECORD", ""),
        ):
            wheel.writestr(f"torture_toy-1.0.dist-info/{name}", content)
    (folder / "ready").touch()
    return folder


def _toy(models: Path) -> None:
    """In a child: an alias whose wheel lies in a folder here."""
    import os

    from amplify import hub as library

    [wheel] = (models / "wheels").iterdir()
    os.environ |= {"PIP_FIND_LINKS": str(models / "wheels"), "PIP_NO_INDEX": "1"}
    library.ALIASES["toy"] = library.Alias(
        wheels=("torture-toy",),
        version="1.0",
        sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        licence="none",
        disk=10_000_000,
        describe="a toy",
        convert=_unpack_toy,
    )


def _unpack_toy(unpacked: Path, out: Path) -> None:
    shutil.copytree(unpacked / "torture_toy" / "model", out, dirs_exist_ok=True)


def inputs(folder: Path, models: Path, children: Children) -> Path:
    """The files that the commands read, in a folder of their own."""
    folder.mkdir(parents=True)
    rows = [
        {"text": f"Review {i}: {('great', 'terrible')[i % 2]} phone, “{i * 7}” stars", "label": LABELS[i % 2]}
        for i in range(40)
    ]
    for name, kept in (("reviews.csv", ("text", "label")), ("rows.csv", ("text",))):
        with (folder / name).open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, kept, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)
    for name, text in zip(
        "abc", ("Ann lives in Bern. She is old.", "Trees are green.", "Bern is a town."), strict=True
    ):
        (folder / f"{name}.md").write_text(text, encoding="utf-8")
    places = ("Bern", "Rome", "Oslo")
    questions = [
        {
            "question": f"Where does person {i} live?",
            "answers": [places[i % 3]],
            "ctxs": [
                {"title": f"Page {j}", "text": f"Person {i} lives in {place}.", "isgold": j == i % 3}
                for j, place in enumerate(places)
            ],
        }
        for i in range(8)
    ]
    (folder / "rag.jsonl").write_text("".join(json.dumps(q) + "\n" for q in questions), encoding="utf-8")
    task = "format: nq\nfiles: {test: rag.jsonl}\nfields: {text: question}\nmetric: f1\nmax_tokens: 8\n"
    (folder / "rag.yaml").write_text(task, encoding="utf-8")
    run = [
        "run",
        "reviews.csv",
        "--text",
        "text",
        "--label",
        "label",
        "-m",
        "scripted:last_answer",
        "-M",
        "zero_shot,few_shot",
        "--limit",
        "8",
        "--seeds",
        "0",
        "--out",
        "made",
    ]
    made = children.run(run, folder)
    if made.status:
        raise RuntimeError(f"no run to begin with: {made.last}")
    shutil.copy(next((folder / "made" / "programs").glob("*few_shot*")), folder / "program.json")
    return folder


STEERED = ("highlight_pasta", "loop", "loop_random")  # how methods are called that a scripted model cannot run
_TIMES = (
    (r'"(seconds|tokens_per_second)": *[0-9.e+-]+', r'"\1": 0'),
    (r"[0-9.,]+ ?(s|ms|seconds)\b", "0 s"),
    (r'"tokens": *\d+', '"tokens": 0'),
    (r"[\d,]+ tokens forwarded", "0 tokens forwarded"),  # what a cache knows costs none
    (r"\d{4}-\d\d-\d\dT[\d:.+Z]+", "DATE"),
    (r'"mtime_ns": *\d+', '"mtime_ns": 0'),
)


def contents(folder: Path, *, logs: Sequence[str] = ()) -> dict[str, Any]:
    """Every file below a folder and what it holds, times apart. Logs are taken as their set of lines, doubles shown.

    Locks are left out; so are the measured times of a run, of which only the cells are kept.
    """
    found: dict[str, Any] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        if (path.name.startswith(".") and path.name.endswith("lock")) or path.name.endswith(
            ("-wal", "-shm", "-journal")
        ):
            continue  # the latter are SQLite's own, of a cache that somebody did not close
        found[name] = content(path, logs)
    return found


def content(path: Path, logs: Sequence[str] = ()) -> Any:
    """What a file holds, times apart."""
    if path.suffix == ".sqlite":  # its rows: their places in the file and what they took depend on the day
        with closing(sqlite3.connect(path)) as base:
            there = base.execute("SELECT 1 FROM sqlite_master WHERE name = 'replies'").fetchone()
            rows = base.execute("SELECT key, reply FROM replies ORDER BY key").fetchall() if there else []
        return [(key, (reply := json.loads(text))["answers"], reply["logprobs"]) for key, text in rows]
    data = path.read_bytes()
    if path.suffix not in (".json", ".jsonl", ".md", ".html", ".yaml", ".csv"):
        return hashlib.sha256(data).hexdigest()
    text = data.decode("utf-8", "surrogateescape")
    if path.name == "timing.jsonl":
        return sorted({_timed(line) for line in text.splitlines()})
    if path.name.startswith("report."):
        return [bool(text), text.rstrip().endswith("</html>")]  # with times; the rest follows from records.jsonl
    for pattern, plain in _TIMES:
        text = re.sub(pattern, plain, text)
    if path.name != "records.jsonl" and path.name.endswith(tuple(logs) or ("\0",)):
        return sorted(text.splitlines())
    return text


def _timed(line: str) -> str:
    """Which cell a line of timing.jsonl is about; a line that was torn off as it is."""
    try:
        row = json.loads(line)
        return json.dumps([row.get("method"), row.get("seed"), row.get("batch"), row.get("fit")])
    except ValueError:
        return line


def trial(inputs: Path, folder: Path) -> Path:
    """A fresh copy of the inputs."""
    return Path(shutil.copytree(inputs, folder))


def home(folder: Path) -> dict[str, str]:
    """The library's own folder goes below the trial's."""
    return {"AMPLIFY_HOME": str(folder / "home"), "AMPLIFY_DATA": ""}


def run(children: Children, command: Command, folder: Path, **options: Any) -> Ended:
    """The command in a folder."""
    before = (*command.before, *options.pop("before", ()))
    environment = {**home(folder), **options.pop("environment", {})}
    return children.run(command.argv, folder, environment=environment, before=before, **options)


def undisturbed(children: Children, command: Command, inputs: Path, work: Path) -> tuple[dict[str, Any], Ended, int]:
    """What the command leaves when nothing goes wrong, twice to make sure; the second time's end and largest file.

    Returns:
        (contents, the end with its moments, bytes of the largest file that it wrote)

    Raises:
        RuntimeError: it fails, or gives something else the second time.
    """
    results = []
    for i in range(2):
        folder = trial(inputs, work / f"undisturbed{i}")
        before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
        ended = run(children, command, folder, points=Points(str(folder)))
        if ended.status:
            raise RuntimeError(f"{command.name} fails undisturbed: {ended.last}")
        results.append(contents(folder, logs=command.logs))
        written = [p.stat() for p in folder.rglob("*") if p.is_file() and before.get(p) != p.stat().st_mtime_ns]
        shutil.rmtree(folder)
    if results[0] != results[1]:
        differ = [name for name in {**results[0], **results[1]} if results[0].get(name) != results[1].get(name)]
        raise RuntimeError(f"{command.name} gives something else each time: {', '.join(sorted(differ))}")
    return results[1], ended, max(found.st_size for found in written)

"""Every fault of `fake_server.py` under `run`, votes and log-probabilities: on one request, and on all until mended.

A case is right when a fault that may pass, shown by one request, is tried again and the right answer comes; when a
fault that stays ends the command in one error, or in the right answer where the fault is in what nobody reads; when
nothing that is kept is wrong; and when the same command ends right as soon as the server is mended.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fake_server import FAULTS, FakeServer

from amplify.models.cache import FILE
from tortures import commands
from tortures.children import Children, Ended
from tortures.outcome import Group, Groups, Setting

AT_ONCE = 6
TIMEOUT = 1.0
"""Seconds that a client waits for an answer that does not end."""
HANGS = 600.0
"""Seconds until a command counts as hanging, and that a client waits for other answers, whatever else runs here."""
NEVER = 10**9


@dataclass(frozen=True)
class Way:
    """A command that asks a server.

    Attributes:
        name: for the table.
        argv: without the model.
        scores: it asks for log-probabilities of prompt tokens.
        first: the request that shows a fault that passes: the first one behind those that get to know the server.
        kept: what it leaves: path -> the lines or values that must be right.
    """

    name: str
    argv: tuple[str, ...]
    scores: bool
    first: int
    kept: Callable[[Path], dict[str, Any]]


def _records(folder: Path) -> dict[str, Any]:
    path = folder / "runs" / "r" / "records.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {
        f"{row['method']} {row['id']}": [row["answer"], row["text"], row["score"], row["label_scores"]] for row in rows
    }


def _cache(folder: Path) -> dict[str, Any]:
    path = folder / "replies" / FILE
    found: dict[str, Any] = {}
    if path.exists():
        with closing(sqlite3.connect(path)) as base:
            rows = base.execute("SELECT reply FROM replies").fetchall()
        # what was kept, not under which key: a server's address is part of that; nor how many tokens it took, which is
        # estimated where a server does not say it
        replies = [json.loads(text) for [text] in rows]
        found = {
            json.dumps([[[a["text"], a["finish_reason"]] for a in reply["answers"]], reply["logprobs"]]): True
            for reply in replies
        }
    if (folder / "why.json").exists():
        result = json.loads((folder / "why.json").read_text())
        found["scores"] = result["documents"]["scores"]
        found["answer"] = result["answer"]
    return found


def ways() -> list[Way]:
    """All of them."""
    run = (
        "run",
        "reviews.csv",
        "--text",
        "text",
        "--label",
        "label",
        "-M",
        "zero_shot,few_shot",
        "--seeds",
        "0",
        "--limit",
        "4",
        "--batch-size",
        "2",
        "--out",
        "runs/r",
        "--set",
        "*.prefill=false",
    )
    attribute = (
        "attribute",
        "-q",
        "Where does Ann live?",
        "-d",
        "a.md",
        "b.md",
        "c.md",
        "--granularity",
        "documents",
        "--cache",
        "replies",
        "--json",
        "why.json",
    )
    return [
        Way("run, generate", run, False, 1, _records),
        Way("attribute, votes", (*attribute, "--value", "votes"), False, 1, _cache),
        Way("attribute, log-probabilities", (*attribute, "--answer", "Bern"), True, 3, _cache),
        Way("run, scores", (*run, "--mode", "score"), True, 3, _records),
    ]


def run(setting: Setting) -> Groups:
    """Every kind of fault, on every way of asking."""
    children = Children(commands.MODULES)
    models = commands.make_models(setting.models, children)
    for way in ways():
        if setting.skips(way.name):
            continue
        right = _right(children, way, models, setting.work / "right")
        kinds = [name for name, fault in FAULTS.items() if way.scores or fault.about != "logprobs"]
        kinds = kinds[:: len(kinds) // setting.amount(len(kinds), 3)]
        group = Group(way.name, figures={"kinds": len(kinds)})

        cases = [(name, stays) for name in kinds for stays in (False, True)]
        folders = [setting.work / f"{number}" for number in range(len(cases))]
        judge = partial(_judged, children, way, models, right)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for problem in pool.map(judge, folders, cases):
                group.note(problem)
        yield group


def _judged(
    children: Children, way: Way, models: Path, right: dict[str, Any], folder: Path, case: tuple[str, bool]
) -> str | None:
    name, stays = case
    problem = faulty(children, way, models, folder, right, name, stays)
    return problem and f"{name}, {'until mended' if stays else 'once'}: {problem}"


def _asked(
    children: Children, way: Way, models: Path, server: FakeServer, folder: Path, timeout: float = HANGS, tries: int = 2
) -> Ended:
    options = ["-m", f"openai:m@{server.url}", "-B", f"timeout={timeout:g}", "-B", f"retries={tries}"]
    options += ["-B", "concurrency=2"]
    if way.scores:
        options += ["-B", f"tokenizer={models / 'lm'}"]
    environment = {**commands.home(folder), "OPENAI_API_KEY": "sk-torture"}
    return children.run([*way.argv, *options], folder, environment=environment, before=(hasten,), at_most=HANGS)


def hasten() -> None:
    """In a child: waits between tries are a tenth of what they are, at most a second."""
    from amplify.models import server

    server.FIRST_WAIT, server.LONGEST_WAIT = server.FIRST_WAIT / 10, 1.0


def _said(prompt: str) -> str:
    return "The answer is 良い." if "great" in prompt.rsplit("Review", 1)[-1] else "The answer is Bern"


def _right(children: Children, way: Way, models: Path, folder: Path) -> dict[str, Any]:
    commands.trial(models / "in", folder)
    with FakeServer(say=_said) as server:
        ended = _asked(children, way, models, server, folder)
    if ended.status:
        raise RuntimeError(f"{way.name} fails with a server that behaves: {ended.last}")
    found = way.kept(folder)
    shutil.rmtree(folder)
    return found


def faulty(
    children: Children, way: Way, models: Path, folder: Path, right: dict[str, Any], name: str, stays: bool
) -> str | None:
    """What went wrong with one fault, or None."""
    fault = FAULTS[name]
    commands.trial(models / "in", folder)
    every, after = (1, way.first - 1) if stays else (NEVER, way.first - NEVER)
    # where the right answer has to come in time, a slow machine may need more than one try
    patience = (TIMEOUT if fault.endless else HANGS, 2 if stays else 50)
    try:
        with FakeServer(fault=name, every=every, after=after, say=_said) as server:
            ended = _asked(children, way, models, server, folder, *patience)
            if ended.late:
                return f"still going after {HANGS:g} s"
            if ended.status != 0 and not ended.one_error:
                return f"status {ended.status}, {ended.last}"
            if ended.status != 0 and not stays and fault.passes and not fault.bearable:
                return f"not tried again: {ended.last}"
            kept = way.kept(folder)
            if name == "key_in_text":
                return None  # another text, which `keys` looks at
            if wrong := [key for key in kept if kept[key] != right.get(key)]:
                return f"kept what is wrong: {wrong[0]} {kept[wrong[0]]!r:.120}"
            if ended.status == 0 and kept != right:
                return f"{len(kept)} of {len(right)} are there"
            if ended.status:
                server.fault = None
                again = _asked(children, way, models, server, folder, *patience)
                if again.status:
                    return f"mended, the same command ends with {again.status}, {again.last}"
                if way.kept(folder) != right:
                    return "mended, the same command gives something else"
            return None
    finally:
        shutil.rmtree(folder)


def failing(children: Children, folder: Path, fault: str, key: str) -> tuple[Ended, int]:
    """A run that meets a fault, in a folder that stays, and how many requests reached the server."""
    with FakeServer(fault=fault, say=_said) as server:
        ended = children.run(
            [*ways()[0].argv, "-m", f"openai:m@{server.url}", "-B", f"timeout={HANGS:g}", "-B", "retries=1"],
            folder,
            environment={**commands.home(folder), "OPENAI_API_KEY": key},
            before=(hasten,),
            at_most=HANGS,
        )
        return ended, len(server.seen)

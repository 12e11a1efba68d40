"""The library under attack: kills, servers that misbehave, odd files and texts, threads, bombs, full disks, keys.

    python eval/torture.py [PART ...] [--quick] [--seed 0] [--only GROUP [--mended]] [--out eval/results]

Parts: kills, servers, fuzz, threads, bombs, disk, keys, engine (which needs vllm and smollm2-135m); all of them unless
named. Each group of a part is written to `torture.json` and `torture.md` as soon as it is done, so that a bench that
was stopped goes on; what is there for this very code, seed and size is not repeated (`--again` does). `--only GROUP
--mended` measures groups again after a mend and keeps the others of the part, each told with its commit. A case that is
not right is told with what is needed to see it again, and is the exit status.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from measuring import command
from tortures.outcome import Group, Setting

PARTS = {
    "kills": "SIGKILL at each kind of moment, then the same command again: results equal, whole, nothing left over",
    "servers": "faults of a server: the right answer after a retry, or one error; nothing wrong kept; then the same "
    "command ends right",
    "fuzz": "mutated inputs: no exception but the library's own",
    "threads": "4 threads, and asyncio, against one thread: equal",
    "bombs": "inputs that blow up: below 5 s of processor time and 1 GB of memory beyond what the process began with",
    "disk": "a full disk, and folders that may not be written: one error, earlier files whole, then the same command "
    "ends right",
    "keys": "runs that fail with an API key set: the key is nowhere, in no form",
    "engine": "a real engine of vLLM, killed in mid-run: one error, what was kept stands, then the same command ends "
    "right",
}


def code() -> str:
    """Hash of the library and of this bench, as far as they are Python."""
    root = Path(__file__).resolve().parents[1]
    files = [*root.glob("amplify/**/*.py"), *root.glob("eval/tortures/*.py"), Path(__file__)]
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def commit() -> str:
    """The commit that library and bench stand at, "+" behind it where they were changed since; "" outside of git."""
    root = Path(__file__).resolve().parents[1]

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False).stdout.strip()

    return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "amplify", "eval/*.py") else "")


def measured(part: str, setting: Setting, found: dict[str, Any], keep: Callable[[], None], until: float) -> None:
    """Measure what is missing of a part.

    Args:
        part: its name.
        setting: what it is given.
        found: the part's place in the result, with the groups that an earlier call measured.
        keep: writes the result; called after each group.
        until: `time.perf_counter()` after which no other group is begun.
    """
    begun = time.perf_counter() - found.get("seconds", 0)
    setting = replace(setting, done=frozenset(group["group"] for group in found["groups"]))
    for group in importlib.import_module(f"tortures.{part}").run(setting):
        if setting.skips(group.name):
            continue
        found["groups"].append({**group.as_json(), "commit": commit()})
        found |= {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(time.perf_counter() - begun),
        }
        print(line(group), flush=True)
        for problem in group.wrong:
            print(f"    {problem}", flush=True)
        keep()
        if time.perf_counter() > until:
            return
    found["complete"] = found["complete"] or not setting.only
    keep()


def line(group: Group) -> str:
    """A group in a line."""
    return f"  {group.name}: {group.right:,} of {group.cases:,} right{_figures(group.figures)}"


def _figures(figures: dict[str, Any]) -> str:
    shown = {name: f"{value:.3g}" if isinstance(value, float) else f"{value:,}" for name, value in figures.items()}
    return "".join(f", {name} {value}" for name, value in shown.items())


def table(result: dict[str, Any]) -> str:
    """All parts as Markdown."""
    every = [g.get("commit", "") for name in PARTS for g in result["parts"].get(name, {}).get("groups", ())]
    commits = [told for told, _ in Counter(every).most_common()]
    lines = [
        "# Under attack",
        "",
        f"`python eval/torture.py`; {result['machine']['cpus']} cores of {result['machine']['platform']}, "
        + ", ".join(f"{name} {number}" for name, number in result["versions"].items())
        + ". Commands run in children forked from a process that has imported the library. "
        + (f"All of it on commit {commits[0]}." if len(commits) == 1 else _of_several(commits)),
    ]
    for name in PARTS:
        if not (part := result["parts"].get(name, {})).get("groups"):
            continue
        groups = part["groups"]
        right, cases = sum(g["right"] for g in groups), sum(g["cases"] for g in groups)
        small = (", a small part of the cases" if part["quick"] else "") + (
            "" if part["complete"] else ", not finished"
        )
        lines += [
            "",
            f"## {name}: {right:,} of {cases:,} right",
            "",
            f"{part['what'][0].upper()}{part['what'][1:]}. {part['date'][:10]}, seed {part['seed']}{small}.",
            "",
            "| | right | of | |",
            "|---|---:|---:|---|",
        ]
        for group in groups:
            figures = _figures(group.get("figures", {})).removeprefix(", ")
            own = group.get("commit", "")
            figures += f"{', ' if figures else ''}commit {own}" if own != commits[0] else ""
            lines.append(f"| {group['group']} | {group['right']:,} | {group['cases']:,} | {figures} |")
        wrong = [f"- {group['group']}: {_cell(problem)}" for group in groups for problem in group["wrong"]]
        lines += ["", "Not right:", "", *wrong] if wrong else []
    return "\n".join(lines) + "\n"


def _of_several(commits: Sequence[str]) -> str:
    if not commits:
        return "Nothing is measured yet."
    others = ", ".join(told or "unknown" for told in commits[1:])
    return f"Commit {commits[0] or 'unknown'}; groups that were measured again after a mend say their own ({others})."


def _cell(text: str) -> str:
    return text.replace("\n", " ").replace("|", "\\|")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts, write the table; the number of parts with a case that is not right is the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--quick", action="store_true", help="a small part of the cases")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", metavar="TEXT", help="groups whose names hold this text")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no other group then; the next call goes on")
    parser.add_argument("--mended", action="store_true", help="with --only: keep the other groups, of whatever code")
    parser.add_argument("--again", action="store_true", help="repeat parts that are measured already")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "results")
    args = parser.parse_args(arguments)
    if unknown := [part for part in args.parts if part not in PARTS]:
        parser.error(f"unknown part {unknown[0]}: one of {', '.join(PARTS)}")
    file = args.out / "torture.json"
    result: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"parts": {}}
    result["what"] = (__doc__ or "").split("\n")[0]
    result["machine"] = {"platform": platform.system(), "cpus": os.cpu_count()}
    names = ("amplify-llm", "torch", "transformers", "openai", "click", "jinja2", "pyyaml")
    result["versions"] = {"python": platform.python_version(), **{name: version(name) for name in names}}
    work = Path(tempfile.mkdtemp(prefix="torture-"))
    work.chmod(0o755)

    def keep() -> None:
        args.out.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        file.with_suffix(".md").write_text(table(result), encoding="utf-8")

    chosen, until = args.parts or list(PARTS), time.perf_counter() + args.seconds
    try:
        for part in chosen:
            asked = {"what": PARTS[part], "code": code(), "seed": args.seed, "quick": args.quick}
            found = result["parts"].get(part, {})
            if args.mended and args.only and found:
                found |= {**asked, "groups": [g for g in found["groups"] if args.only not in g["group"]]}
            elif args.again or {key: found.get(key) for key in asked} != asked:
                found = result["parts"][part] = {**asked, "command": command(), "complete": False, "groups": []}
            if found["complete"] and not args.mended:
                print(f"{part}: measured already", flush=True)
                continue
            print(part, flush=True)
            (work / part).mkdir()
            setting = Setting(work / part, work / "models", args.seed, args.quick, only=args.only)
            measured(part, setting, found, keep, until)
            shutil.rmtree(work / part, ignore_errors=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return sum(any(g["right"] < g["cases"] for g in result["parts"][part]["groups"]) for part in chosen)


if __name__ == "__main__":
    sys.exit(main())

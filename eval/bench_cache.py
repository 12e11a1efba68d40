"""The three commands of `make demo` a second time, in other folders, with a cache: what is asked, and what it takes.

    python eval/bench_cache.py [--budget 4m] [--rounds 3] [--out eval/results/bench_cache.json]

The first run of each fills the cache. The further ones write into new folders, so that nothing but the cache can help.
"Start" is `amplify run --dry-run` with the same model: it loads the model, counts, and stops. Times are wall and
processor seconds of the whole command; on a machine that does other work only the latter say something.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
GOAL = 3.0  # seconds above start
AMPLIFY = (sys.executable, "-m", "amplify.cli")
TOLD = re.compile(r"replies\.sqlite: ([\d,]+) replies were there, ([\d,]+) were asked")


def commands(model: str, budget: str) -> dict[str, tuple[str, ...]]:
    """The demo's commands, each to be given an --out and a --cache where it takes them."""
    documents = [str(path) for path in sorted((ROOT / "eval" / "suites" / "demo").glob("*.md"))]
    question = "Within how many days can shoes that were bought online be sent back?"
    return {
        "tune": ("tune", "support_tickets", "-m", model, "--budget", budget, "--out"),
        "run": ("run", "--config", str(ROOT / "eval" / "suites" / "demo_facts.yaml"), "-m", model, "--out"),
        "attribute": (
            "attribute", "-m", model, "--granularity", "sentences", "-q", question,
            *(word for path in documents for word in ("-d", path)), "--json",
        ),
    }  # fmt: skip


def timed(command: tuple[str, ...]) -> dict[str, Any]:
    """One fresh process, which must succeed: its seconds, and how many replies it asked for."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run((*AMPLIFY, *command), capture_output=True, text=True, check=False)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
    found: dict[str, Any] = {
        "wall": wall, "processor": after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime,
    }  # fmt: skip
    if told := TOLD.search(done.stderr):
        found |= {"kept": int(told[1].replace(",", "")), "asked": int(told[2].replace(",", ""))}
    return found


def main() -> None:
    """Measure, print, write; a missed goal is the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="transformers:qwen2.5-coder-0.5b")
    parser.add_argument("--budget", default="4m")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=list(commands("", "")), default=[])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    chosen = {k: v for k, v in commands(args.model, args.budget).items() if not args.only or k in args.only}
    starting = ("run", "support_tickets", "-m", args.model, "-M", "zero_shot", "--limit", "1", "--dry-run")
    found: dict[str, Any] = {name: [] for name in ("start", *chosen)}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(args.rounds + 1):
            for name, command in chosen.items():
                out = str(Path(folder) / f"{name}{turn}")
                found[name].append(timed((*command, out, "--cache", str(Path(folder) / "replies"))))
                print(name, turn, found[name][-1], flush=True)
            found["start"].append(timed(starting))
            print("start", turn, found["start"][-1], flush=True)
        size = sum(path.stat().st_size for path in (Path(folder) / "replies").iterdir())

    def middle(name: str, what: str) -> float:
        return statistics.median(each[what] for each in found[name][1:])

    above = {
        name: {what: middle(name, what) - middle("start", what) for what in ("wall", "processor")} for name in chosen
    }
    asked = {name: [each["asked"] for each in found[name][1:]] for name in chosen}
    for name in chosen:
        print(
            f"{name}: asked {asked[name]}; {above[name]['processor']:+.1f} s of processor time above start "
            f"({above[name]['wall']:+.1f} s of wall)"
        )
    if args.out:
        result = {
            "what": (__doc__ or "").split("\n")[0],
            "command": "python eval/bench_cache.py " + " ".join(sys.argv[1:]),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "model": args.model,
            "goal": GOAL,
            "above_start": above,
            "bytes": size,
            "rounds": found,
            "machine": {"platform": platform.platform(), "cpus": os.cpu_count(), "load": os.getloadavg()},
        }
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if any(map(any, asked.values())) or any(each["processor"] > GOAL for each in above.values()):
        raise SystemExit("a goal was missed")


if __name__ == "__main__":
    main()

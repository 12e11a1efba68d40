"""`import amplify` and `amplify --help`, on top of the bare interpreter's start.

    python eval/bench_startup.py [--rounds 15] [--out eval/results/bench_startup.json]

Every figure is a fresh process. In each round the bare interpreter runs directly before and after each command, so that
whatever else the machine does falls on both; a command's cost is its time less the mean of those two, and the median
over the rounds counts. All rounds are in the JSON. The first round, which fills the disk cache, is not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

BARE = (sys.executable, "-c", "pass")
COMMANDS = {
    "import amplify": (sys.executable, "-c", "import amplify"),
    # the installed script's own two lines
    "amplify --help": (sys.executable, "-c", "import sys; from amplify.cli import main; sys.exit(main())", "--help"),
}
GOAL = {"import amplify": 0.2, "amplify --help": 0.5}


def seconds(command: tuple[str, ...]) -> float:
    """Wall-clock time of one fresh process, which must succeed."""
    start = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def measure(rounds: int) -> dict[str, dict[str, Any]]:
    """Each command's cost beyond the bare interpreter, all rounds and their median."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in COMMANDS}
    for _ in range(rounds + 1):
        for name, command in COMMANDS.items():
            before, taken, after = seconds(BARE), seconds(command), seconds(BARE)
            found[name].append({"bare": (before + after) / 2, "seconds": taken})
    return {
        name: {
            "beyond_bare": statistics.median(pair["seconds"] - pair["bare"] for pair in pairs[1:]),
            "bare": statistics.median(pair["bare"] for pair in pairs[1:]),
            "goal": GOAL[name],
            "rounds": pairs[1:],
        }
        for name, pairs in found.items()
    }


def main() -> None:
    """Measure, print, write; a missed goal is the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    found = measure(args.rounds)
    for name, cost in found.items():
        print(f"{name}: {cost['beyond_bare']:.3f} s beyond the interpreter's {cost['bare']:.3f} s; goal {cost['goal']}")
    if args.out:
        result = {
            "what": (__doc__ or "").split("\n")[0],
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            **found,
            "machine": {"platform": platform.platform(), "cpus": os.cpu_count()},
            "versions": {
                "python": platform.python_version(),
                "amplify": version("amplify-llm"),
                "click": version("click"),
            },
        }
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if any(cost["beyond_bare"] > cost["goal"] for cost in found.values()):
        raise SystemExit("a goal was missed")


if __name__ == "__main__":
    main()

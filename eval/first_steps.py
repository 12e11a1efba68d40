"""From nothing, as a stranger: the commands of the site's first page, in an empty home, with a stopwatch.

    python eval/first_steps.py                        # clone, environment, and every command of docs/index.md
    python eval/first_steps.py --python python3.12    # on another interpreter
    python eval/first_steps.py --until attribute      # end behind the first command that holds this word

What is timed is what a reader types: downloads of packages and models are in it. The home is new, so nothing is cached;
pip looks where it is told to on this machine. Every command must succeed. With --results FILE the times are kept, with
the machine and its load.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "index.md"


def commands(page: str) -> list[str]:
    """The commands of a page, each as one line."""
    blocks = re.findall(r"^```console\n(.*?)^```", page, re.S | re.M)
    lines = re.sub(r"\s*\\\n\s*", " ", "".join(blocks)).splitlines()
    return [line[2:] for line in lines if line.startswith("$ ")]


def clone(work: Path) -> Path:
    """A checkout of what is committed."""
    folder = work / "amplify"
    subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(folder)], check=True)
    return folder


def stranger(work: Path, python: str) -> dict[str, str]:
    """The environment of someone with an empty home and a fresh virtual environment."""
    home = work / "home"
    home.mkdir()
    subprocess.run([python, "-m", "venv", str(home / "venv")], check=True)
    own = ("PYTHONPATH", "AMPLIFY_", "HF_", "XDG_CACHE_HOME", "VIRTUAL_ENV")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    return {**kept, "HOME": str(home), "PATH": f"{home / 'venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"}


def timed(command: str, folder: Path, environment: dict[str, str]) -> dict[str, Any]:
    """A command's seconds on the clock and of the processor, and the end of what it said.

    Raises:
        SystemExit: it failed.
    """
    before, begun = os.times(), time.monotonic()
    done = subprocess.run(command, shell=True, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    seconds, after = time.monotonic() - begun, os.times()
    if done.returncode:
        raise SystemExit(f"first_steps: `{command}` failed:\n{(done.stdout + done.stderr)[-2000:]}")
    worked = after.children_user + after.children_system - before.children_user - before.children_system
    return {
        "command": command, "seconds": round(seconds, 1), "processor seconds": round(worked, 1),
        "said": done.stdout[-1500:],
    }  # fmt: skip


def main() -> None:
    """Clone, type every command, say how long each took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", default=sys.executable, help="interpreter of the new environment")
    parser.add_argument("--until", default="", help="end behind the first command that holds this")
    parser.add_argument("--results", type=Path, help="keep the times in this JSON file")
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        checkout, environment = clone(work), stranger(work, given.python)
        for command in commands(PAGE.read_text(encoding="utf-8")):
            rows.append(timed(command, checkout, environment))
            print(f"{rows[-1]['seconds']:7.1f} s  {rows[-1]['processor seconds']:7.1f} s  {command}", flush=True)
            if given.until and given.until in command:
                break
    total = sum(row["seconds"] for row in rows)
    print(f"{total:7.1f} s  together, load {os.getloadavg()[1]:.1f} on {len(os.sched_getaffinity(0))} cores")
    if given.results:
        about = {
            "command": "python eval/first_steps.py", "date": datetime.date.today().isoformat(),
            "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, {platform.system()}",
            "python": subprocess.run([given.python, "--version"], capture_output=True, text=True).stdout.split()[1],
            "load": round(os.getloadavg()[1], 1), "seconds": round(total, 1), "steps": rows,
        }  # fmt: skip
        given.results.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

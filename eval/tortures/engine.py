"""A real engine of vLLM killed in the middle of a run: one error, what was kept stands, the same command ends right.

The engine is a process of its own, which the kernel may end when memory is short. A case waits until a few answers are
kept, ends it by SIGKILL, and looks at what the command says and leaves. With SmolLM2, in float32.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from tortures import commands
from tortures.children import Children
from tortures.outcome import Group, Groups, Setting

STARTS, HANGS = 1200.0, 300.0
"""Seconds of wall-clock time that a run may take, and until it counts as hanging once its engine is killed."""
KEPT = (2, 6)
"""How many answers are kept when the engine is killed, in each case."""
RUN = (
    "run", "reviews.csv", "--text", "text", "--label", "label", "-M", "zero_shot", "--set", "zero_shot.max_tokens=24",
    "--limit", "16", "--batch-size", "2", "--out", "runs/r", "-m", "vllm:smollm2-135m", "-B", "dtype=float32",
    "-B", "max_model_len=512", "-B", "enforce_eager=true", "-B", "kv_cache_memory_bytes=268435456",
)  # fmt: skip


def run(setting: Setting) -> Groups:
    """Kills at different places of the run."""
    name = "run, engine killed"
    if setting.skips(name):
        return
    models = commands.make_models(setting.models, Children(commands.MODULES))
    group = Group(name)
    folder = commands.trial(models / "in", setting.work / "whole")
    status, said = _ended(_started(folder), 0, folder)
    if status:
        raise RuntimeError(f"the run fails undisturbed: {said[-600:]}")
    want = _records(folder)
    for kept in KEPT[: setting.amount(len(KEPT), 1)]:
        group.note(_killed(commands.trial(models / "in", setting.work / f"killed{kept}"), kept, want))
    yield group


def _started(folder: Path) -> subprocess.Popen[bytes]:
    root = Path(__file__).resolve().parents[2]
    aside = {"PYTHONPATH": str(root), "AMPLIFY_DATA": "", "VLLM_LOGGING_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1"}
    with (folder / "said.txt").open("wb") as said:
        return subprocess.Popen(
            [sys.executable, "-m", "amplify.cli", *RUN], cwd=folder, env={**os.environ, **aside}, stdout=said,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip


def _ended(process: subprocess.Popen[bytes], kept: int, folder: Path) -> tuple[int, str]:
    """The status and what was said; the engine is killed once so many answers are kept, unless that is none."""
    until = time.monotonic() + STARTS
    while process.poll() is None:
        if time.monotonic() > until:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return -1, "still going"
        if kept and len(_records(folder)) >= kept:
            engines = _engines(process.pid)
            for pid in engines:
                os.kill(pid, signal.SIGKILL)
            if engines:
                kept, until = 0, time.monotonic() + HANGS
        time.sleep(0.02)
    return process.returncode, (folder / "said.txt").read_text(errors="replace")


def _engines(pid: int) -> list[int]:
    """The engine's processes below a process."""
    found = []
    with suppress(OSError):  # it ended while it was looked at
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in children.read_text().split():
                name = Path(f"/proc/{child}/cmdline").read_bytes()
                found += [int(child)] if b"EngineCore" in name else _engines(int(child))
    return found


def _records(folder: Path) -> dict[str, Any]:
    path = folder / "runs" / "r" / "records.jsonl"
    if not path.exists():
        return {}
    whole = path.read_text(encoding="utf-8").split("\n")[:-1]  # the last may be half written
    rows = [json.loads(line) for line in whole]
    return {f"{row['method']} {row['id']}": [row["answer"], row["text"]] for row in rows}


def _killed(folder: Path, kept: int, want: dict[str, Any]) -> str | None:
    """What went wrong, or None."""
    told = f"killed with {kept} answers kept"
    status, said = _ended(_started(folder), kept, folder)
    errors = [line for line in said.splitlines() if line.startswith("amplify: ")]  # others are the engine's
    if status != 2 or len(errors) != 1 or "Traceback" in said:
        return f"{told}: status {status}, {said.strip()[-600:]}"
    found = _records(folder)
    if not kept <= len(found) < len(want) or any(found[key] != want[key] for key in found):
        return f"{told}: of {len(found)} answers kept some are not an undisturbed run's, or none is missing"
    status, said = _ended(_started(folder), 0, folder)
    if status:
        return f"{told}: the same command then ends with {status}, {said.strip()[-300:]}"
    return None if _records(folder) == want else f"{told}: then the answers differ from an undisturbed run's"

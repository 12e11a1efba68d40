"""A process that waits for ever ends with the one that started it, however that one ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = """
import contextlib, multiprocessing, sys, time
from amplify.steering import vllm_plugin

def wait(stubborn):
    if stubborn:
        import signal
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    vllm_plugin.watch(patience=0.5 if stubborn else 5.0)
    print(multiprocessing.current_process().pid, flush=True)
    time.sleep(600)

if __name__ == "__main__":
    process = multiprocessing.get_context("spawn").Process(target=wait, args=(sys.argv[1] == "stubborn",))
    with contextlib.nullcontext() if sys.argv[1] == "not owned" else vllm_plugin.owning():
        process.start()
    time.sleep(600)
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc").exists(), reason="needs /proc")
@pytest.mark.parametrize("how", ["orderly", "stubborn", "not owned"])
def test_an_engine_ends_with_a_killed_owner(tmp_path: Path, how: str) -> None:
    (tmp_path / "owner.py").write_text(SCRIPT)
    owner = subprocess.Popen([sys.executable, str(tmp_path / "owner.py"), how], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    child = int(owner.stdout.readline())
    try:
        time.sleep(1.5)
        assert alive(child)
        owner.kill()
        owner.wait()
        end = time.monotonic() + (3 if how == "not owned" else 500)
        while alive(child) and time.monotonic() < end:
            time.sleep(0.1)
        assert alive(child) == (how == "not owned")
    finally:
        if alive(child):
            os.kill(child, signal.SIGKILL)

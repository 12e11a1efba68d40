"""Whether what would be released can be installed: sdist and wheel built, checked, installed and used on each Python.

    python eval/check_release.py                        # every python3.11, 3.12, 3.13, 3.14 that is on the PATH
    python eval/check_release.py --pythons python3.12   # one of them
    python eval/check_release.py --licences             # the licences of what amplify needs, as a table

In each fresh environment the base install (no torch) lists, evaluates, attributes through votes, and names the extra
that a missing package belongs to. Packages come through pip as usual; `twine check` has an environment of its own.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, distribution, requires
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PYTHONS = ("python3.11", "python3.12", "python3.13", "python3.14")
USES = (
    ("--version",),
    ("list", "methods"),
    ("run", "support_tickets", "--model", "scripted:first_option", "--methods", "zero_shot,few_shot", "--limit", "4",
     "--seeds", "0", "--out", "run"),
    ("report", "run"),
    ("attribute", "-q", "How long?", "-m", "scripted:say=two years", "--value", "votes", "-d", "a.txt", "b.txt"),
    ("doctor", "--json"),
)  # fmt: skip
"""What is done with each install, in an empty folder."""


def call(*command: str | Path, cwd: Path | None = None) -> str:
    """Standard output of a command.

    Raises:
        RuntimeError: it failed; the end of what it said.
    """
    done = subprocess.run([str(c) for c in command], cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))} failed:\n{(done.stdout + done.stderr)[-2000:]}")
    return done.stdout


def environment(python: str, folder: Path, *packages: str | Path) -> Path:
    """The interpreter of a fresh environment with packages."""
    call(python, "-m", "venv", folder)
    inside = folder / "bin" / "python"
    call(inside, "-m", "pip", "install", "--quiet", *packages)
    return inside


def interpreter(name: str) -> str | None:
    """The interpreter of a name that runs: on the PATH, or among those of pyenv."""
    kept = sorted((Path.home() / ".pyenv" / "versions").glob(f"*/bin/{Path(name).name}"), reverse=True)
    for one in (shutil.which(name), *map(str, kept)):
        if one and not subprocess.run([one, "--version"], capture_output=True, check=False).returncode:
            return one
    return None


def used(python: Path, work: Path) -> dict[str, object]:
    """Use an installed amplify in every way of `USES`; what `doctor` says at the end."""
    work.mkdir()
    for name, text in (("a.txt", "Two years."), ("b.txt", "Blue.")):
        (work / name).write_text(text)
    said = ""
    for arguments in USES:
        said = call(python, "-m", "amplify.cli", *arguments, cwd=work)
    assert len((work / "run" / "records.jsonl").read_text().splitlines()) == 8
    missing = subprocess.run(
        [python, "-m", "amplify.cli", "generate", "a", "-m", "transformers:smollm2-135m"],
        cwd=work, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert missing.returncode == 2, missing.stderr
    assert "pip install 'amplify-llm[local]'" in missing.stderr, missing.stderr
    typed = "import amplify, pathlib; print((pathlib.Path(amplify.__file__).parent / 'py.typed').is_file())"
    assert call(python, "-c", typed, cwd=work).strip() == "True"
    found: dict[str, object] = json.loads(said)
    return found


def licences() -> list[tuple[str, str, str, str]]:
    """(package, version, licence, what needs it) of all that amplify needs, directly or not, as installed here."""
    found: dict[str, tuple[str, str, str, str]] = {}

    def visit(name: str, extra: str, why: str) -> None:
        for text in requires(name) or []:
            need = Requirement(text)
            if need.marker is not None and not need.marker.evaluate({"extra": extra}):
                continue
            plain = re.sub(r"[-_.]+", "-", need.name).lower()
            if plain in found or plain == "amplify-llm":
                continue
            try:
                about = distribution(plain)
            except PackageNotFoundError:
                continue
            given = about.metadata
            classed = [
                c.rpartition("::")[2].strip() for c in given.get_all("Classifier") or [] if c.startswith("License ::")
            ]
            stated = (
                given.get("License-Expression") or ", ".join(classed) or (given.get("License") or "").split("\n")[0]
            )
            found[plain] = (plain, about.version, stated or "not stated", why)
            for inner in need.extras or {""}:
                visit(plain, inner, why)

    for extra in ("", "local", "rag"):
        visit("amplify-llm", extra, extra or "base")
    return sorted(found.values())


def main() -> None:
    """Build, check, install, use; one line each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pythons", nargs="*", default=PYTHONS, help="interpreters to install on: names or paths")
    parser.add_argument("--licences", action="store_true", help="print the licences of dependencies, and stop")
    given = parser.parse_args()
    if given.licences:
        print("| package | version | licence | needed by |\n|---|---|---|---|")
        for row in licences():
            print("| " + " | ".join(row) + " |")
        return
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        call(sys.executable, "-m", "build", "--outdir", work / "dist", ROOT)
        built = sorted((work / "dist").iterdir())
        print(
            "built      " + ", ".join(f"{path.name} ({path.stat().st_size / 1e6:.1f} MB)" for path in built), flush=True
        )
        twine = environment(sys.executable, work / "twine", "twine")
        print(
            "twine      " + call(twine, "-m", "twine", "check", "--strict", *built).strip().replace("\n", "; "),
            flush=True,
        )
        [wheel], [source] = ([p for p in built if p.suffix == kind] for kind in (".whl", ".gz"))
        tried = 0
        for name in given.pythons:
            if (found := interpreter(name)) is None:
                print(f"{Path(name).name:10} is not here")
                continue
            for what in (wheel, source) if not tried else (wheel,):
                begun = time.monotonic()
                python = environment(found, work / f"{tried}{what.suffix}", what)
                about = used(python, work / f"use{tried}{what.suffix}")
                print(
                    f"{Path(name).name:10} {what.name}: Python {about['python']}, {time.monotonic() - begun:.0f} s",
                    flush=True,
                )
            tried += 1
        if not tried:
            raise SystemExit("no Python to install on")


if __name__ == "__main__":
    main()

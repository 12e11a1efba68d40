"""The package from the outside: light to import, quick to help, whole when installed from its wheel."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "transformers", "vllm", "datasets", "captum", "sklearn", "scipy", "numpy", "langchain_core")


def run(*command: str, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env={**os.environ, **env}, check=False)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize("statement", ["import amplify; dir(amplify)", "import amplify.cli", "import amplify.types"])
def test_import_loads_no_framework_and_says_nothing(statement: str) -> None:
    done = run(sys.executable, "-c", f"{statement}; import sys; print([m for m in {HEAVY} if m in sys.modules])")
    assert done.stdout.strip() == "[]"
    assert done.stderr == ""


def test_every_public_name_is_there() -> None:
    """Each name of `__all__` and each module that `dir` shows, asked for alone in a fresh process."""
    code = (
        "import amplify, types\n"
        "modules = [n for n in dir(amplify) if isinstance(getattr(amplify, n), types.ModuleType)]\n"
        "odd = [n for n in modules if getattr(amplify, n).__name__ != f'amplify.{n}']\n"
        "print(odd + [n for n in amplify.__all__ if getattr(amplify, n).__name__ != n])\n"
        "print(sorted(set(amplify.__all__) - set(dir(amplify))))"
    )
    assert run(sys.executable, "-c", code).stdout.split() == ["[]", "[]"]


def test_an_unknown_attribute_is_an_attribute_error() -> None:
    import amplify

    with pytest.raises(AttributeError, match="no attribute 'evaluat'"):
        amplify.evaluat  # noqa: B018


BASE = """
import sys
from amplify.errors import EXTRAS

class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name in (*EXTRAS, "vllm"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NotInstalled())
"""


def test_the_base_install_evaluates_and_attributes(tmp_path: Path) -> None:
    """Without torch and all that the extras bring."""
    command = ["run", "support_tickets", "--model", "scripted:first_option", "--methods", "zero_shot,few_shot"]
    options = ["--limit", "4", "--seeds", "0", "--out", str(tmp_path / "run")]
    run(sys.executable, "-c", f"{BASE}\nfrom amplify.cli import main\nsys.argv[1:] = {[*command, *options]}\nmain()")
    assert len((tmp_path / "run/records.jsonl").read_text().splitlines()) == 8
    script = """
import amplify
with amplify.load_model("scripted:say=two years") as model:
    found = amplify.attribute_sources("How long?", ["Two years.", "Blue."], model, value="votes")
print(len(found.documents.scores))
"""
    assert run(sys.executable, "-c", BASE + script).stdout.split() == ["2"]


@pytest.mark.parametrize(
    "call",
    [
        "amplify.load_model('transformers:smollm2-135m')",
        "amplify.explain('good phone', target='good', model='transformers:smollm2-135m')",
        "amplify.train_proxy(amplify.load_task('support_tickets'))",
        "amplify.hub.pull(['smollm2-135m'])",
        "import amplify.rag.langchain",
        "amplify.retrieval.open_retriever('bm25', ['a'])",
    ],
)
def test_what_needs_an_extra_names_the_command_first(call: str, tmp_path: Path) -> None:
    script = f"{BASE}\nimport amplify, amplify.retrieval\n"
    done = subprocess.run(
        [sys.executable, "-c", script + call],
        capture_output=True,
        text=True,
        env={**os.environ, "AMPLIFY_HOME": str(tmp_path)},
        check=False,
    )
    extra = "rag" if "rag" in call or "bm25" in call else "local"
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("amplify.errors.MissingExtraError")
    assert last.endswith(f"pip install 'amplify-llm[{extra}]'")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT))
    return next(out.glob("amplify_llm-*.whl"))


def test_the_wheel_ships_the_content_folders(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for folder in ("prompts", "tasks", "steering", "eval"):
        assert any(name.startswith(f"amplify/_content/{folder}/") for name in names), folder
    assert not [name for name in names if name.startswith(("tests/", "runs/"))]


def test_the_wheel_alone_runs_a_task(wheel: Path, tmp_path: Path) -> None:
    """A fresh environment that borrows the other packages, outside the checkout."""
    venv.create(tmp_path / "env", with_pip=False)
    site = tmp_path / "env" / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    zipfile.ZipFile(wheel).extractall(site)
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")  # an editable install there stays unseen
    python = str(tmp_path / "env" / "bin" / "python")
    alone = {"cwd": tmp_path, "PYTHONPATH": ""}
    where = run(python, "-c", "import amplify; print(amplify.__file__)", **alone).stdout
    assert str(site) in where
    command = ["-m", "amplify.cli", "run", "support_tickets", "--model", "scripted:first_option"]
    options = ["--methods", "zero_shot", "--limit", "4", "--out", "runs/wheel"]
    run(python, *command, *options, **alone, AMPLIFY_DATA="")
    assert len((tmp_path / "runs/wheel/records.jsonl").read_text().splitlines()) == 4


def test_what_a_release_says_of_itself_is_one_thing() -> None:
    import tomllib

    import yaml

    import amplify

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert project["version"] == cited["version"] == amplify.__version__
    assert project["license"] == cited["license"]
    assert {r["identifiers"][0]["value"] for r in cited["references"]} >= {"arXiv:2305.11426", "arXiv:2311.02262"}


def test_the_image_has_what_its_commands_need(wheel: Path, tmp_path: Path) -> None:
    """No registry of images is in reach of a test: what the Dockerfile copies is built, and its commands are taken."""
    import tomllib

    from amplify.cli import cli

    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    copied = [name for line in lines if line.startswith("COPY") for name in line.split()[1:-1]]
    for name in copied:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tmp_path / "src" / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            (tmp_path / "src").mkdir(exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / "src")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(tmp_path / "src"))
    built = next(tmp_path.glob("*.whl"))
    assert set(zipfile.ZipFile(built).namelist()) == set(zipfile.ZipFile(wheel).namelist())
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    wanted = re.search(r"'\.\[(.*)\]'", "\n".join(lines))
    assert wanted is not None
    assert set(wanted[1].split(",")) <= set(extras)
    assert re.search(r"torch==\S+", "\n".join(lines))[0] in (ROOT / "constraints.txt").read_text().splitlines()  # type: ignore[index]
    serve = json.loads(next(line for line in lines if line.startswith("CMD")).removeprefix("CMD"))
    cli.commands[serve[0]].make_context("serve", serve[1:])


def test_the_map_of_the_house_names_every_room() -> None:
    told = (ROOT / "CONTRIBUTING.md").read_text()
    rooms = [path.name for path in (ROOT / "amplify").iterdir() if (path / "__init__.py").is_file()]
    assert [room for room in rooms if f"`{room}/" not in told] == []
    named = set(re.findall(r"`([a-z_]+)(?:/|\.py)[^`]*`", told.partition("## To add")[0]))
    assert [name for name in named if not (ROOT / "amplify" / name).exists()
            and not (ROOT / "amplify" / f"{name}.py").exists() and name not in ("eval", "docs")] == []  # fmt: skip

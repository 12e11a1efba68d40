"""Every example in a docstring of the library runs as it stands, and what people call has one."""

from __future__ import annotations

import doctest
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest

import amplify
from amplify import attribution, rationales, shapley

ROOT = Path(amplify.__file__).parent
MODULES = sorted(
    ".".join((*path.relative_to(ROOT.parent).parts[:-1], path.stem)).removesuffix(".__init__")
    for path in ROOT.rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)
WITHOUT = {"steered", "train_proxy"}
"""Public functions without an example: both need a model of torch. A new one needs an example, or a reason."""
NOT_RUN = {
    "amplify.models.transformers.TransformersModel",
    "amplify.proxies.proxy.Proxy.from_model",
}
"""Docstrings with lines that are not run (`# doctest: +SKIP`), because they need a model that is downloaded."""


def examples() -> Iterator[doctest.DocTest]:
    """The docstrings that have examples, each by its own name, with `amplify` at hand."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    for name in MODULES:
        module = importlib.import_module(name)
        for found in finder.find(module, name, globs={**vars(module), "amplify": amplify}):
            if found.examples:
                yield found


EXAMPLES = list(examples())


@pytest.mark.parametrize("example", EXAMPLES, ids=[example.name for example in EXAMPLES])
def test_an_example_runs(example: doctest.DocTest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines: list[str] = []
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    result = doctest.DocTestRunner(optionflags=flags).run(example, out=lines.append, clear_globs=False)
    assert not result.failed, "".join(lines)


def test_what_is_not_run_is_known() -> None:
    assert {e.name for e in EXAMPLES if any(doctest.SKIP in line.options for line in e.examples)} == NOT_RUN


PUBLIC = [
    f"{package.__name__}.{name}"
    for package in (amplify, attribution, rationales, shapley)
    for name in package.__all__
    if inspect.isfunction(getattr(package, name))
]


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_function_has_an_example(name: str) -> None:
    package, _, function = name.rpartition(".")
    shown = ">>> " in (inspect.unwrap(getattr(importlib.import_module(package), function)).__doc__ or "")
    assert shown == (function not in WITHOUT)

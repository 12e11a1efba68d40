"""Every example in a docstring of the library runs as it stands, and what people call has one."""

from __future__ import annotations

import doctest
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from local_hub import at_hand

import amplify

ROOT = Path(amplify.__file__).parent
MODULES = sorted(
    ".".join((*path.relative_to(ROOT.parent).parts[:-1], path.stem)).removesuffix(".__init__")
    for path in ROOT.rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)
LOADED = {"module", "tokenizer", "classifier", "its_tokenizer", "encoder"}
"""Names that an example takes as a user's own: models of transformers, here tiny ones, and the folder of an encoder."""


def examples() -> Iterator[doctest.DocTest]:
    """The docstrings that have examples, each by its own name, with `amplify` at hand."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    for name in MODULES:
        module = importlib.import_module(name)
        for found in finder.find(module, name, globs={**vars(module), "amplify": amplify}):
            if found.examples:
                yield found


EXAMPLES = list(examples())


@pytest.fixture(scope="module")
def loaded(tiny_lm: Path, tiny_encoder: Path) -> dict[str, Any]:
    """Models and tokenizers as a user of transformers has them."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    return {
        "module": AutoModelForCausalLM.from_pretrained(tiny_lm),
        "tokenizer": AutoTokenizer.from_pretrained(tiny_lm),
        "classifier": AutoModelForSequenceClassification.from_pretrained(tiny_encoder, num_labels=2),
        "its_tokenizer": AutoTokenizer.from_pretrained(tiny_encoder),
        "encoder": tiny_encoder,
    }


@pytest.mark.parametrize("example", EXAMPLES, ids=[example.name for example in EXAMPLES])
def test_an_example_runs(
    example: doctest.DocTest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.chdir(tmp_path)
    if LOADED & set(re.findall(r"\w+", " ".join(line.source for line in example.examples))):
        example.globs |= request.getfixturevalue("loaded")
    if example.name.startswith("amplify.bridges."):
        monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        example.globs["hub"] = at_hand(tmp_path / "hub", monkeypatch)
    lines: list[str] = []
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    result = doctest.DocTestRunner(optionflags=flags).run(example, out=lines.append, clear_globs=False)
    assert not result.failed, "".join(lines)


def test_none_is_left_out() -> None:
    assert [e.name for e in EXAMPLES if any(doctest.SKIP in line.options for line in e.examples)] == []


ROOMS = (
    "attribution", "evaluation", "head_search", "methods", "metrics", "models", "prompting", "proxies", "rag",
    "rationales", "schemas", "serve", "shapley", "sources", "steering", "tasks", "tuning",
)  # fmt: skip
BRIDGES = tuple(f"bridges.{path.stem}" for path in sorted((ROOT / "bridges").glob("[a-z]*.py")))
PUBLIC = {
    f"{found.__module__}.{found.__qualname__}": found
    for package in (amplify, *(importlib.import_module(f"amplify.{room}") for room in (*ROOMS, *BRIDGES)))
    for found in (inspect.unwrap(getattr(package, name)) for name in package.__all__)
    if inspect.isfunction(found) or inspect.isclass(found)
}


@pytest.mark.parametrize("name", PUBLIC)
def test_what_is_public_has_an_example(name: str) -> None:
    assert ">>> " in (PUBLIC[name].__doc__ or "")

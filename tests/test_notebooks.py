"""The notebooks of the guides: each runs in a fresh kernel, and shows the kinds of results that it is kept with."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat")

NOTEBOOKS = sorted((Path(__file__).parents[1] / "docs" / "notebooks").glob("*.ipynb"))
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def shown(book: Any) -> list[list[str]]:
    """Of each cell, what it shows: "text/html" for what has a picture of its own, else "text/plain"."""
    outputs = [[out for out in cell.get("outputs", ()) if out.get("name") != "stderr"] for cell in book.cells]
    return [["text/html" if "text/html" in out.get("data", ()) else "text/plain" for out in cell] for cell in outputs]


@each
def test_what_is_kept_is_whole_and_of_no_machine(path: Path) -> None:
    content = path.read_text(encoding="utf-8")
    book = nbformat.reads(content, as_version=4)
    nbformat.validate(book)
    assert "text/html" in [kind for cell in shown(book) for kind in cell]  # a result that shows itself
    assert all(cell.outputs or "close()" in cell.source for cell in book.cells if cell.cell_type == "code")
    assert not re.search(r"(?<![\w.<])/(?:work|tmp|root|home|usr)/", content)


@each
@pytest.mark.real
def test_a_notebook_runs(path: Path, tmp_path: Path) -> None:
    from nbclient import NotebookClient

    book = nbformat.read(path, as_version=4)
    kept = shown(book)
    place = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(book, timeout=500, kernel_name="python3", resources=place).execute()
    assert shown(book) == kept

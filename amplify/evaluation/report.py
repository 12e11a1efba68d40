"""The report of a run, as people read it: text, Markdown or one page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from amplify import files
from amplify.errors import UnknownNameError
from amplify.evaluation import page, tables
from amplify.evaluation.folder import plain
from amplify.evaluation.results import Results, Row, results_of
from amplify.files import Json
from amplify.render import escape


@dataclass(frozen=True)
class Report(Results):
    """The results of a run; it prints itself as the tables of the terminal.

    Example:
        >>> task = amplify.load_task("coin_flip", limit=4)
        >>> report = amplify.evaluate(task, "scripted:say=yes", ["zero_shot", "few_shot"], seeds=[0], progress=False)
        >>> report.row("zero_shot").score, report.row("zero_shot").n
        (0.0, 4)
        >>> report.to_html("report.html")[:15]
        '<!doctype html>'
    """

    def __str__(self) -> str:
        return tables.as_text(self)

    def _repr_html_(self) -> str:
        return f"<pre>{escape(str(self))}</pre>"

    def to_markdown(self, path: str | Path | None = None) -> str:
        """The report as Markdown; with a path, written there too."""
        text = tables.as_markdown(self)
        if path is not None:
            files.write(path, text)
        return text

    def to_html(self, path: str | Path | None = None) -> str:
        """The report as one self-contained HTML page; with a path, written there too."""
        text = page.as_html(self)
        if path is not None:
            files.write(path, text)
        return text

    def row(self, method: str) -> Row:
        """The row of a method by its label."""
        for row in self.rows:
            if row.method == method:
                return row
        raise UnknownNameError("method", method, [row.method for row in self.rows])

    def to_dict(self) -> Json:
        """The numbers (no records, no programs) as JSON values."""
        config = {key: value for key, value in self.config.items() if key != "items"}
        held = {"finished": self.finished, "rows": self.rows, "comparisons": self.comparisons, "config": config}
        return dict(plain(held))


def load_report(folder: str | Path) -> Report:
    """The report of a run folder, finished or not.

    Raises:
        RunError: it is no run folder, or its files were changed.

    Example:
        >>> task = amplify.load_task("coin_flip", limit=5)
        >>> made = amplify.evaluate(task, "scripted:say=yes", ["zero_shot"], seeds=[0], out="run")
        >>> load_report("run").rows == made.rows
        True
    """
    return Report(**vars(results_of(folder)))

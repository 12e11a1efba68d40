"""The pictures of the guides, light and dark, drawn from the numbers in `eval/results/`.

`make docs` draws them anew; `python docs/figures.py FOLDER` draws them alone.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np

matplotlib.use("svg")  # no screen is needed
from matplotlib import pyplot
from matplotlib.axes import Axes

RESULTS = Path(__file__).parents[1] / "eval" / "results"
Theme = Literal["light", "dark"]
INK: dict[Theme, str] = {"light": "#1f2430", "dark": "#d8dbe2"}
OURS: dict[Theme, str] = {"light": "#3f51b5", "dark": "#9fa8ff"}
OTHER: dict[Theme, str] = {"light": "#9aa0ad", "dark": "#7b8190"}


def attribute(axes: Axes, theme: Theme) -> None:
    """What each sentence, or document that was not opened, did to one answer, with its interval."""
    found = read("demo_answer")
    texts = found["prompt"]["messages"][-1]["content"].split("\n\n")
    opened = {document for document, *_ in found["sentences"]["sources"]}
    rows = []
    for level in (found["documents"], found["sentences"]):
        for (document, start, end), *values in zip(
            *(level[key] for key in ("sources", "scores", "low", "high")), strict=True
        ):
            if level is found["sentences"] or document not in opened:
                text = texts[document][start:end]
                rows.append((text if len(text) <= 40 else f"{text[:40].rstrip()} …", *(value[0] for value in values)))
    rows.sort(key=lambda row: -row[1])
    dots(axes, theme, rows, ours={rows[0][0]})
    axes.axvline(0, color=OTHER[theme], linewidth=0.8)
    axes.set_xlabel("Shapley value, nats, 95 % interval")
    axes.set_title(f"What the answer “{found['answer'].strip()}” rests on")


def steer(axes: Axes, theme: Theme) -> None:
    """Efficacy on facts that the context has changed."""
    rows = [
        (row["method"], 100 * row["score"], 100 * row["low"], 100 * row["high"]) for row in read("demo_facts")["rows"]
    ]
    dots(axes, theme, rows, ours={"pasta"})
    axes.set_xlabel("items answered as the context says, %, 95 % interval")
    axes.set_title("Facts that the context has changed")


def tune(axes: Axes, theme: Theme) -> None:
    """What the search returned beside the best plain prompt and the proxy alone, each task a row."""
    cells = read("tune")["cells"]
    names = list(dict.fromkeys(cell["task"] for cell in cells))
    for height, name in enumerate(reversed(names)):
        scores = [cell["scores"] for cell in cells if cell["task"] == name]
        plain, tuned = (100 * float(np.mean([np.mean(s[key]) for s in scores])) for key in ("plain", "tuned"))
        axes.plot([plain, tuned], [height, height], color=OTHER[theme], zorder=1)
        axes.scatter([plain], [height], color=OTHER[theme], label="best plain prompt" if not height else None, zorder=2)
        axes.scatter([tuned], [height], color=OURS[theme], label="tuned" if not height else None, zorder=2)
    axes.set_yticks(range(len(names)), list(reversed(names)))
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.figure.set_figheight(1.3 + 0.35 * len(names))
    axes.set_xlim(0, 100)
    axes.set_xlabel("right on test items, %")
    axes.legend(frameon=False, labelcolor=INK[theme], loc="center left", bbox_to_anchor=(1, 0.5))
    axes.set_title("Tuned, and the best plain prompt")


def evaluate(axes: Axes, theme: Theme) -> None:
    """The paired differences of one run, as its report tests them."""
    rows = [
        (f"{c['method']} − {c['baseline']}", 100 * c["difference"], 100 * c["low"], 100 * c["high"])
        for c in read("demo_facts")["comparisons"]
    ]
    dots(axes, theme, rows, ours={name for name, _, low, _ in rows if low > 0})
    axes.axvline(0, color=OTHER[theme], linewidth=0.8)
    axes.set_xlabel("difference on the same items, points, 95 % interval")
    axes.set_title("Better than what, and how surely")


FIGURES: dict[str, tuple[Callable[[Axes, Theme], None], float]] = {
    "attribute": (attribute, 2.8),
    "steer": (steer, 2.0),
    "tune": (tune, 3.2),
    "evaluate": (evaluate, 1.8),
}
"""The guides' pictures: what draws each, and its height in inches."""


def dots(axes: Axes, theme: Theme, rows: Sequence[tuple[str, float, float, float]], ours: set[str]) -> None:
    """Values with intervals, one a line, in the order given."""
    for height, (name, value, low, high) in enumerate(reversed(rows)):
        colour = OURS[theme] if name in ours else OTHER[theme]
        axes.plot([low, high], [height, height], color=colour, linewidth=2)
        axes.scatter([value], [height], color=colour, zorder=2)
    axes.set_yticks(range(len(rows)), [row[0] for row in reversed(rows)])
    axes.set_ylim(-0.6, len(rows) - 0.4)


def read(name: str) -> Any:
    """One file of results."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def draw(name: str, theme: Theme) -> str:
    """One picture as SVG: text stays text, the background is the page's, and the same numbers give the same file."""
    artist, height = FIGURES[name]
    style = {
        "svg.fonttype": "none", "svg.hashsalt": "amplify", "font.family": "sans-serif", "font.size": 10,
        "axes.titlesize": 11, "axes.titlelocation": "left", "axes.spines.top": False, "axes.spines.right": False,
        "axes.spines.left": False, "ytick.left": False, "axes.edgecolor": INK[theme],
        **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), INK[theme]),
    }  # fmt: skip
    with pyplot.rc_context(style):
        figure, axes = pyplot.subplots(figsize=(7.2, height), layout="constrained")
        artist(axes, theme)
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        pyplot.close(figure)
    return out.getvalue()


def main(folder: str) -> None:
    """Write every picture into a folder."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    themes: tuple[Theme, ...] = ("light", "dark")
    for name in FIGURES:
        for theme in themes:
            Path(folder, f"{name}-{theme}.svg").write_text(draw(name, theme), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])

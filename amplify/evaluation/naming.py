"""Names of methods as tables show them: options that all methods have in common stand once in the header."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from amplify.methods.base import as_typed

if TYPE_CHECKING:
    from amplify.evaluation.report import Report


def shared_options(config: Mapping[str, Any]) -> dict[str, str]:
    """Options set to one value in all methods of a run that have them, two or more, as `--set` takes them.

    Args:
        config: what run.json holds.
    """
    methods = config["methods"]
    shared = {}
    for option in dict.fromkeys(option for method in methods for option in _changed(method)):
        values = [as_typed(method["options"][option]) for method in methods if option in method["options"]]
        if len(values) > 1 and len(set(values)) == 1:
            shared[option] = values[0]
    return shared


def shortened(report: Report) -> Report:
    """The report with rows and comparisons under shorter names; records, programs and the configuration keep theirs."""
    shared = shared_options(report.config)
    names = {}
    for method in report.config["methods"]:
        own = [f"{option}={value}" for option, value in _changed(method).items() if option not in shared]
        listed = f"{method['name']}[{','.join(own)}]" if own else method["name"]
        names[method["label"]] = listed if _changed(method) else method["label"]
    return replace(
        report,
        rows=tuple(replace(row, method=names[row.method]) for row in report.rows),
        comparisons=tuple(replace(c, method=names[c.method], baseline=names[c.baseline]) for c in report.comparisons),
    )


def _changed(method: Mapping[str, Any]) -> dict[str, str]:
    """The options that a method's label names; none where it cannot be taken apart (a proxy is named otherwise)."""
    written = method["label"].removeprefix(method["name"]).removeprefix("[").removesuffix("]")
    values = {option: as_typed(value) for option, value in method["options"].items()}
    found = {option: value for option, value in values.items() if f"{option}={value}" in written.split(",")}
    return found if written == ",".join(f"{option}={value}" for option, value in found.items()) else {}

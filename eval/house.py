"""Counts of the library as a house: files, lines, import circles, depth of inheritance, long parameter lists.

    python eval/house.py            # a table, and what goes beyond each limit
    python eval/house.py --json     # the same as JSON

Nothing of the library is imported: it is read.
"""

from __future__ import annotations

import argparse
import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import networkx

ROOT = Path(__file__).parents[1]
MOST_PARAMETERS = 8
DEEPEST = 2
Function = ast.FunctionDef | ast.AsyncFunctionDef
LATER = (
    "bridges/*", "calibration.py", "cli/doctor.py", "cli/prompting.py", "cli/serving.py", "cli/tuning.py",
    "evaluation/reliability.py", "evaluation/uncertainty.py", "evaluation/written.py", "methods/attention_vectors.py",
    "methods/best_prompt.py", "methods/calibrated.py", "methods/cascade.py", "methods/emphasise.py",
    "methods/instructions.py", "methods/lettered.py", "methods/proxy_hint.py", "methods/proxy_pool.py",
    "methods/several.py", "methods/stacked.py", "models/cache.py", "models/cached.py", "models/chat_template.py",
    "models/pool.py", "models/ray.py", "prompting/*", "redaction.py", "sandbox.py", "schemas/*", "serve/*",
    "shapley/owen.py", "sources/asked.py", "sources/ballots.py", "sources/claims.py", "sources/document.py",
    "sources/frames.py", "sources/importance.py", "sources/log.py", "sources/lookback.py", "sources/loop.py",
    "sources/options.py", "steering/keys.py", "steering/vllm_plugin/keys.py", "steering/vllm_plugin/refusing.py",
    "tuning/*", "untrusted.py",
)  # fmt: skip
"""Files of what the library could not do yet when its rooms were planned (72c9ac1: 177 files, 27,923 lines)."""


def modules(package: Path) -> dict[str, ast.Module]:
    """Module name -> its syntax tree, for every file of a package."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = ast.parse(path.read_text("utf-8"))
    return found


def _for_types(tree: ast.Module) -> set[ast.AST]:
    """Everything under `if TYPE_CHECKING:`, which never runs."""
    return {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for part in node.body
        for inner in ast.walk(part)
    }


def imports(name: str, tree: ast.Module, known: set[str], *, types: bool) -> Iterator[str]:
    """Modules of the house that a module imports, those inside functions included, with `types` those for types too."""
    skip = set() if types else _for_types(tree)
    for node in ast.walk(tree):
        if node in skip:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known and alias.name != name)
        elif isinstance(node, ast.ImportFrom) and node.module in known and not node.level:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                target = inner if inner in known else node.module
                if target != name:
                    yield target


def circles(trees: dict[str, ast.Module], *, types: bool = False) -> list[list[str]]:
    """Groups of modules that import each other in a loop as the program runs, or with `types` as it is read."""
    graph: Any = networkx.DiGraph()
    for name, tree in trees.items():
        graph.add_edges_from((name, other) for other in imports(name, tree, set(trees), types=types))
    return sorted(sorted(group) for group in networkx.strongly_connected_components(graph) if len(group) > 1)


def depths(trees: dict[str, ast.Module]) -> dict[str, int]:
    """Class -> how many classes of the house stand above it in the longest line."""
    bases: dict[str, list[str]] = {}
    for tree in trees.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                named = [base.value if isinstance(base, ast.Subscript) else base for base in node.bases]
                bases[node.name] = [ast.unparse(base).rpartition(".")[2] for base in named]

    def depth(name: str) -> int:
        return max((1 + depth(base) for base in bases[name] if base in bases and base != name), default=0)

    return {name: depth(name) for name in bases}


def parameters(trees: dict[str, ast.Module], public: set[str]) -> dict[str, int]:
    """Function -> number of its parameters, without self and cls; public entry points are left out."""
    found = {}
    for name, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, Function) and node.name not in public:
                given = node.args
                names = [a.arg for a in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
                found[f"{name}.{node.name}:{node.lineno}"] = len([n for n in names if n not in ("self", "cls")])
    return found


def public_names(trees: dict[str, ast.Module]) -> set[str]:
    """What `amplify.__all__` holds."""
    for node in trees["amplify"].body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return set(ast.literal_eval(node.value))
    raise ValueError("amplify/__init__.py has no __all__")


def docstrings(tree: ast.Module) -> int:
    """Lines of a file that are docstrings, of modules, classes, functions and attributes."""
    return sum(
        node.value.end_lineno - node.value.lineno + 1
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    )


def rooms(package: Path) -> dict[str, dict[str, int]]:
    """Room -> files, lines, and how many of these are docstrings; with what came later as a sum of its own."""
    found: dict[str, dict[str, int]] = {}
    for path in sorted(package.rglob("*.py")):
        here, text = path.relative_to(package), path.read_text("utf-8")
        later = any(here.match(pattern) for pattern in LATER)
        room = here.parts[0] if len(here.parts) > 1 else "(ground floor)"
        for name in (room, "came later" if later else "was planned"):
            row = found.setdefault(name, {"files": 0, "lines": 0, "docstrings": 0})
            row["files"] += 1
            row["lines"] += len(text.splitlines())
            row["docstrings"] += docstrings(ast.parse(text))
    return found


def measure(package: Path = ROOT / "amplify") -> dict[str, Any]:
    """All counts, and what goes beyond a limit."""
    trees = modules(package)
    lines = {str(p.relative_to(package)): len(p.read_text("utf-8").splitlines()) for p in package.rglob("*.py")}
    deep = {name: d for name, d in depths(trees).items() if d > DEEPEST}
    # an __init__ takes what its class is made of: public entry points are classes as well as functions
    long = {n: k for n, k in parameters(trees, public_names(trees)).items() if k > MOST_PARAMETERS}
    return {
        "files": len(lines),
        "lines": sum(lines.values()),
        "rooms": rooms(package),
        "largest_file": max(lines.items(), key=lambda item: item[1]),
        "circles": circles(trees),
        "circles_with_imports_for_types": circles(trees, types=True),
        "deepest_inheritance": max(depths(trees).values()),
        "deeper_than_two": deep,
        "functions_with_more_than_eight_parameters": dict(sorted(long.items(), key=lambda item: -item[1])),
    }


def main() -> None:
    """Print the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    found = measure()
    if parser.parse_args().json:
        print(json.dumps(found, indent=1))
        return
    print(f"files {found['files']}, lines {found['lines']}, largest {found['largest_file']}")
    for room, row in sorted(found["rooms"].items(), key=lambda item: item[1]["lines"]):
        print(f"  {room:16}" + ", ".join(f"{name} {row[name]:,}" for name in ("files", "lines", "docstrings")))
    for kind in ("circles", "circles_with_imports_for_types"):
        print(f"import {kind.replace('_', ' ')}: {len(found[kind])}")
        for circle in found[kind]:
            print(f"  {len(circle)} modules: " + ", ".join(circle))
    print(f"inheritance: deepest {found['deepest_inheritance']}; beyond {DEEPEST}: {found['deeper_than_two']}")
    long = found["functions_with_more_than_eight_parameters"]
    print(f"functions with more than {MOST_PARAMETERS} parameters, public entry points aside: {len(long)}")
    for name, count in long.items():
        print(f"  {count:3} {name}")


if __name__ == "__main__":
    main()

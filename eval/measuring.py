"""What several benches measure with."""

from __future__ import annotations

import math
import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any


def command() -> str:
    """The command that runs, without where it writes (--out, --results, --work), the data's folder by its variable."""
    kept, given = [], iter(sys.argv[1:])
    for word in given:
        if word in ("--out", "--results", "--work"):
            next(given, None)
        elif not word.startswith(("--out=", "--results=", "--work=")):
            kept.append(word)
    line = shlex.join(["python", f"eval/{Path(sys.argv[0]).name}", *kept])
    return line.replace(os.environ.get("AMPLIFY_DATA") or "\0", "$AMPLIFY_DATA")


def open_exact(spec: str, **options: Any) -> Any:
    """A model as the results were measured with: a `transformers:` model in float32, unless options say otherwise."""
    import amplify

    exact = {"dtype": "float32"} if spec.startswith("transformers:") else {}
    return amplify.load_model(spec, **{**exact, **options})


def evaluated(dry_run: bool, task: Any, model: Any, methods: Any, **how: Any) -> Any:
    """The report of a run, which is printed; with `dry_run` what it would take is printed, and nothing comes back.

    Args:
        dry_run: say the cost alone.
        task, model, methods, **how: of `amplify.evaluate`.
    """
    import amplify
    from amplify.evaluation import plan

    if dry_run:
        limits = {name: how[name] for name in ("seeds", "limit") if name in how}
        print(f"{task.name}, {len(how['seeds'])} seeds\n{plan(task, model, methods, **limits)}\n", flush=True)
        return None
    report = amplify.evaluate(task, model, methods, **how)
    print(report, flush=True)
    return report


def loaded(names: Sequence[str], dry_run: bool, **how: Any) -> dict[str, Any]:
    """The tasks of a table by their names, all before any is worked on.

    Args:
        names: of `amplify.load_task`.
        dry_run: name the tasks whose data are not here, with where to get them, and leave them out of the plan.
        **how: of `amplify.load_task`.

    Raises:
        DataError: the data of one are not here, and this is no dry run.
    """
    import amplify

    tasks = {}
    with hub_at_once() if dry_run else nullcontext():
        for name in names:
            try:
                tasks[name] = amplify.load_task(name, **how)
            except amplify.DataError as error:
                if not dry_run:
                    raise
                print(f"{name}: left out here, its data are not in this place: {error}\n", flush=True)
    return tasks


@contextmanager
def hub_at_once() -> Iterator[None]:
    """Within it a hub that does not answer is not waited for: its client would try each data set for half a minute."""
    from huggingface_hub import constants, get_session

    before = constants.HF_HUB_OFFLINE
    try:
        if not before:
            get_session().head(constants.ENDPOINT, timeout=10)
    except Exception:  # whatever the client's errors are called: the hub is not there
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def model_options(given: Sequence[str]) -> dict[str, Any]:
    """Options of a model as the command line has them, KEY=VALUE."""
    from amplify.cli.common import pairs

    return pairs(tuple(given), "--model-option")


def timed(work: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> tuple[Any, float]:
    """What it gives, and its seconds; `time.process_time` where other jobs share the processor."""
    begun = clock()
    result = work()
    return result, clock() - begun


def middle(values: Sequence[float]) -> dict[str, Any]:
    """The median of independent rounds and its interval, between two of them.

    Whatever the distribution, the k-th smallest and the k-th largest of n hold the true median between them with
    probability 1 - 2 P(at most k - 1 of n coins show heads), the coverage. The narrowest pair with at least 95 % is
    taken; fewer than six rounds have none, and the widest pair is given with the coverage that it has.
    """
    ordered, n = sorted(values), len(values)
    coverages = [1 - 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n for k in range((n + 1) // 2)]
    k = max((k for k, c in enumerate(coverages) if c >= 0.95), default=0)
    return {
        "median": statistics.median(ordered),
        "interval": [ordered[k], ordered[n - 1 - k]],
        "coverage": coverages[k],
    }


def peak(run: Callable[[], object]) -> int:
    """Bytes of resident memory that the process takes at most while `run` goes on (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")
    run()
    return _status("VmHWM")


def resident() -> int:
    """Bytes of resident memory that the process takes now (Linux)."""
    return _status("VmRSS")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024

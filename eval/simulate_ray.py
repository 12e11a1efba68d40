"""How work is shared among 64 workers: the real queue of `ray:N×…`, with workers that only wait.

    python eval/simulate_ray.py [--workers 64] [--parts 640] [--kills 10] [--out eval/results/ray_schedule.json]

Each part takes a time of its own (log-normal, spread 0.6, mean 0.25 s), some workers die in the middle of a part, and
a new one takes two seconds to open. Nothing is computed, so 64 of them fit any machine, and what is seen is the
schedule alone: `amplify.models.pool` decides it, here as on a cluster. Beside it stands what the same times give on
paper (a worker that is free takes the next part, and no start, death or message costs anything), and the least that is
possible: all times added up over the workers, or the longest part. The plot shows each part on its worker's row.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from measuring import command

from amplify.models.pool import Pool, WorkerDiedError

MEAN, SPREAD, OPENING = 0.25, 0.6, 2.0


class Waiting:
    """A worker that waits as long as a part takes, and dies over the parts that it is told to die over, once."""

    def __init__(self, place: int, durations: Sequence[float], fatal: set[int], lines: list[Any]) -> None:
        self.place, self.durations, self.fatal, self.lines = place, durations, fatal, lines

    def call(self, number: int) -> int:
        """Wait; the number of the part."""
        begun = time.perf_counter()
        dies = number in self.fatal
        self.fatal.discard(number)
        time.sleep(self.durations[number] * (0.5 if dies else 1))
        self.lines.append((self.place, number, begun, time.perf_counter(), dies))
        if dies:
            raise WorkerDiedError("as it was told")
        return number

    def end(self) -> None:
        """Nothing to stop."""


def on_paper(durations: Sequence[float], workers: int) -> float:
    """When the last part is done, if a free worker takes the next part at once."""
    free = [0.0] * workers
    for taken in durations:
        heapq.heapreplace(free, free[0] + taken)
    return max(free)


def simulate(workers: int, parts: int, kills: int, seed: int) -> dict[str, Any]:
    """One run of the queue."""
    draw = random.Random(seed)
    # the mean of a log-normal is exp(mu + spread^2 / 2)
    durations = [MEAN * draw.lognormvariate(-(SPREAD**2) / 2, SPREAD) for _ in range(parts)]
    fatal = set(draw.sample(range(parts), kills))
    lines: list[Any] = []
    opened = Counter[int]()
    guard = threading.Lock()

    def open_worker(place: int) -> Waiting:
        with guard:
            opened[place] += 1
            again = opened[place] > 1
        if again:
            time.sleep(OPENING)
        return Waiting(place, durations, fatal, lines)

    pool = Pool(open_worker, workers)
    pool.start(60.0)
    begun = time.perf_counter()
    done = [future.result() for future in [pool.submit(number) for number in range(parts)]]
    taken = time.perf_counter() - begun
    pool.close()
    if done != list(range(parts)):
        raise SystemExit("a part was lost or given twice")
    whole = Counter(number for _, number, _, _, dies in lines if not dies)
    busy = sum(end - start for _, _, start, end, _ in lines)
    return {
        "seconds": taken,
        "seconds_on_paper": on_paper(durations, workers),
        "least_possible": max(sum(durations) / workers, max(durations)),
        "busy": busy / (workers * taken),
        "lost": parts - len(whole),
        "done_twice": sum(count - 1 for count in whole.values()),
        "replaced": pool.replaced,
        "lines": [[place, number, start - begun, end - begun, dies] for place, number, start, end, dies in lines],
    }


def plot(lines: Sequence[Sequence[Any]], workers: int, path: Path) -> None:
    """One row of pixels a worker, ten milliseconds each: parts in two blues in turn, those it died over in red."""
    import matplotlib
    import numpy as np

    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.hashsalt": "amplify", "svg.fonttype": "none"}
    from matplotlib import pyplot

    last = max(end for _, _, _, end, _ in lines)
    seen = np.full((workers, int(100 * last) + 1, 3), 255, dtype=np.uint8)
    for place, number, start, end, dies in lines:
        seen[place, int(100 * start) : int(100 * end)] = (
            (192, 57, 43) if dies else ((36, 86, 200), (134, 169, 255))[number % 2]
        )
    figure, axes = pyplot.subplots(figsize=(9, 6))
    axes.imshow(seen, aspect="auto", origin="lower", interpolation="none", extent=(0, last, -0.5, workers - 0.5))
    axes.set(xlabel="seconds", ylabel="worker", title=f"{workers} workers, one queue")
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--parts", type=int, default=640)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("eval/results/ray_schedule.json"))
    args = parser.parse_args()
    calm = simulate(args.workers, args.parts, 0, args.seed)
    killed = simulate(args.workers, args.parts, args.kills, args.seed)
    plot(killed["lines"], args.workers, args.out.with_suffix(".svg"))
    runs = {"no_deaths": calm, f"{args.kills}_deaths": killed}
    kept = {name: {k: v for k, v in run.items() if k != "lines"} for name, run in runs.items()}
    about = {"command": command(), "workers": args.workers, "parts": args.parts, "mean_seconds": MEAN}
    args.out.write_text(json.dumps({**about, "seconds_to_open_a_worker": OPENING, "runs": kept}, indent=2) + "\n")
    for name, run in kept.items():
        print(
            f"{name}: {run['seconds']:.2f} s ({run['seconds_on_paper']:.2f} on paper, {run['least_possible']:.2f} at "
            f"least), workers busy {run['busy']:.0%}, {run['replaced']} replaced, {run['lost']} lost, "
            f"{run['done_twice']} done twice"
        )


if __name__ == "__main__":
    main()

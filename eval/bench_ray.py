"""Several workers against one, on work that waits for a server: `ray:N×openai:…` in interleaved rounds.

    python eval/bench_ray.py [--workers 4] [--rounds 6] [--out eval/results/bench_ray.json]

The server is this process's own, answers each request after a fixed wait, and keeps count: every prompt must be asked
exactly once a round. What is compared is the same work by the same kind of worker (each with the same number of
requests in flight), one worker's time over N workers', round by round; starting the workers is not counted.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections import Counter
from pathlib import Path
from typing import Any

from fake_server import FakeServer
from measuring import command, middle, timed

import amplify

GOAL = 3.2  # times, with four workers


def measure(workers: int, rounds: int, prompts: int, delay: float, concurrency: int) -> dict[str, Any]:
    """Seconds of both in each round, and what the server was asked."""
    asked = [amplify.Prompt(messages=(amplify.Message("user", f"question {i}"),)) for i in range(prompts)]
    options = {"batch_size": concurrency, "concurrency": concurrency, "num_cpus": 0}
    found: list[dict[str, float]] = []
    with (
        FakeServer(say=lambda text: f"answer to {text}", delay=delay) as server,
        amplify.load_model(f"ray:1×openai:m@{server.url}", **options) as one,
        amplify.load_model(f"ray:{workers}×openai:m@{server.url}", **options) as many,
    ):
        for model in (one, many):
            model.generate(asked[: workers * concurrency], amplify.Sampling())  # connections
        for _ in range(rounds):
            seconds = []
            for model in (one, many):
                server.seen.clear()
                answers, taken = timed(lambda model=model: model.generate(asked, amplify.Sampling()))
                seconds.append(taken)
                if [a.text for a in answers] != [f"answer to question {i}" for i in range(prompts)]:
                    raise SystemExit("answers are missing or out of order")
                counts = Counter(each.body["messages"][-1]["content"] for each in server.seen)
                if len(counts) != prompts or set(counts.values()) != {1}:
                    raise SystemExit("a prompt was asked twice, or never")
            found.append({"one": seconds[0], "many": seconds[1], "times": seconds[0] / seconds[1]})
    return {"rounds": found, "times": middle([each["times"] for each in found])}


def main() -> None:
    """Measure, print, write; a missed goal is the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--prompts", type=int, default=96)
    parser.add_argument("--delay", type=float, default=0.5, help="seconds before each answer")
    parser.add_argument("--concurrency", type=int, default=4, help="requests in flight of each worker")
    parser.add_argument("--out", type=Path, default=Path("eval/results/bench_ray.json"))
    args = parser.parse_args()
    result = measure(args.workers, args.rounds, args.prompts, args.delay, args.concurrency)
    about = {
        "command": command(), "python": platform.python_version(), "workers": args.workers, "prompts": args.prompts,
        "delay_seconds": args.delay, "requests_in_flight_a_worker": args.concurrency, "goal": GOAL,
    }  # fmt: skip
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({**about, **result}, indent=2) + "\n")
    low, high = result["times"]["interval"]
    print(f"{args.workers} workers are {result['times']['median']:.2f} times as fast as one [{low:.2f}, {high:.2f}]")
    if args.workers == 4 and result["times"]["median"] < GOAL:
        raise SystemExit(f"the goal is {GOAL}")


if __name__ == "__main__":
    main()

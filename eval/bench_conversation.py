"""What attribution over the turns of a long conversation costs, against answering it once.

    python eval/bench_conversation.py time --model transformers:qwen2.5-coder-0.5b
    python eval/bench_conversation.py error --half held

`time`: a conversation of 20 turns with about 4,000 tokens, the last of which asks; every earlier message is a source.
Timed one after the other in each round: the model reads the prompt, it reads the prompt and writes its answer, and the
attribution of that answer over the turns, by a budget of prompts and by one of tokens. Processor time stands beside
seconds, for machines that others share. The goal is a ratio of 4 at most with 32 prompts or more. Killed and started
again it goes on behind the last round.

`error`: what the choice of cheap prompts does to the scores. Games whose 1,024 values are known (`short_games.py`),
their ten sources at random places among 19, the other nine worth about a fiftieth of the best one (normal, alone), so
that all Shapley values are known: 32 prompts of sources in groups, of sources chosen by their price, and of sources
without regard to it, with what the prompts would cost in a conversation of 4,000 tokens. The half "development" is what
the rule was chosen on.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import random
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
from measuring import command, middle, timed
from short_games import held_out

import amplify
from amplify import files
from amplify.models.base import LanguageModel
from amplify.shapley import PrefixCost, estimate, exact_scores
from amplify.shapley.game import Coalitions, Floats
from amplify.sources.context import Context, Selection
from amplify.sources.frames import Conversation
from amplify.sources.hierarchy import Settings, explain
from amplify.types import Message, Prompt, Sampling

RESULTS = Path(__file__).parent / "results"
GAMES = RESULTS / "short_games_smollm2.json"
THINGS = ("boiler", "grinder", "pump", "tray", "filter", "hose", "lamp", "lid", "valve", "tank")


def conversation(model: LanguageModel, turns: int, tokens: int) -> list[dict[str, Any]]:
    """Messages about the parts of a machine, so many turns and about so many tokens; the last one asks."""
    chance = random.Random(0)

    def made(sentences: int) -> list[dict[str, Any]]:
        found = []
        for turn in range(turns - 1):
            thing = THINGS[turn % len(THINGS)]
            said = [
                f"The {thing} of number {turn} is {chance.choice(('new', 'old', 'worn', 'clean'))} and was made in "
                f"{1900 + chance.randrange(120)}."
                for _ in range(sentences)
            ]
            found.append({"role": "assistant" if turn % 2 else "user", "content": " ".join(said)})
        return [*found, {"role": "user", "content": "In which year was the pump of number 12 made?"}]

    for sentences in range(1, 200):
        found = made(sentences)
        if tokens_of(model, found) >= tokens:
            return found
    return found


def tokens_of(model: LanguageModel, messages: list[dict[str, Any]]) -> int:
    """Tokens of the conversation."""
    [count] = model.count_tokens([Prompt(messages=tuple(Message(m["role"], m["content"]) for m in messages))])
    return count


def explained(
    model: LanguageModel, messages: list[dict[str, Any]], answer: str, how: dict[str, int]
) -> amplify.SourceAttribution:
    """The attribution of an answer over the turns."""
    return amplify.attribute_sources(
        None, None, model, answer, messages=messages, granularity="documents", engine="trie", **how
    )


@click.group()
def main() -> None:
    """Measure attribution over the turns of a conversation."""


@main.command("time")
@click.option("--model", default="transformers:qwen2.5-coder-0.5b", show_default=True)
@click.option("--dtype", default="auto", show_default=True)
@click.option("--turns", default=20, show_default=True)
@click.option("--tokens", default=4000, show_default=True)
@click.option("--budget", default=32, show_default=True)
@click.option("--new", default=64, show_default=True, help="Tokens of the answer.")
@click.option("--spent", default=3.5, show_default=True, help="Tokens of the second way, in prompts; 0: none.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--work", type=click.Path(path_type=Path), default=Path("runs/bench_conversation"), show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS / "conversation.json", show_default=True)
def measure_time(
    model: str, dtype: str, turns: int, tokens: int, budget: int, new: int, spent: float, rounds: int, work: Path,
    out: Path,
) -> None:  # fmt: skip
    """Measure interleaved rounds; write ratios, tokens and seconds."""
    with amplify.load_model(model, **({"dtype": dtype} if model.startswith("transformers:") else {})) as who:
        messages = conversation(who, turns, tokens)
        prompt = Prompt(messages=tuple(Message(m["role"], m["content"]) for m in messages))
        [said] = who.generate([prompt], Sampling(max_tokens=new))
        length = tokens_of(who, messages)
        ways: dict[str, dict[str, Any]] = {f"budget={budget}": {"budget": budget}}
        if spent:
            ways[f"tokens={spent:g} prompts"] = {"tokens": round(spent * length)}
        about = who.describe()
        journal = files.Journal(work / "rounds.jsonl", {"model": about, "messages": files.digest(messages), "new": new})
        rows = list(journal.rows)
        while len(rows) < rounds:
            read = clocked(who, partial(who.generate, [prompt], Sampling(max_tokens=1)))[1]
            whole = clocked(who, partial(who.generate, [prompt], Sampling(max_tokens=new)))[1]
            fresh: dict[str, Any] = {"prompt": read, "answer": whole}
            for way, how in ways.items():
                found, taken = clocked(who, partial(explained, who, messages, said.text, how))
                fresh[way] = {
                    **taken, "prompts": found.cost.calls, "estimator": found.estimator,
                    "half_width": float((found.documents.high - found.documents.low).mean() / 2),
                    "gain": float(abs(found.values[1, 0] - found.values[0, 0])),
                }  # fmt: skip
            journal.append([fresh])
            rows.append(fresh)
            click.echo(f"{len(rows)} of {rounds} rounds: {json.dumps(fresh)}", err=True)
    ratios = {
        way: {
            f"{measure} / {against}": middle([row[way][measure] / row[against][measure] for row in rows])
            for measure in ("seconds", "processor", "tokens")
            for against in ("prompt", "answer")
        }
        for way in ways
    }
    data = {
        "command": command(), "date": datetime.date.today().isoformat(), "amplify": amplify.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores", "load": round(os.getloadavg()[0], 1),
        "model": about, "turns": turns, "sources": len(messages) - 1, "prompt_tokens": length,
        "answer_tokens": said.completion_tokens, "ratios": ratios, "rounds": rows,
    }  # fmt: skip
    out.write_text(json.dumps(data, indent=1, default=str) + "\n")
    click.echo(json.dumps(ratios, indent=1))


def clocked(model: LanguageModel, work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """What it gives; its seconds, its processor seconds, and the tokens that went through the model."""
    before, began = model.usage.snapshot(), time.process_time()
    found, seconds = timed(work)
    spent = model.usage.since(before).forwarded_tokens
    return found, {"seconds": seconds, "processor": time.process_time() - began, "tokens": spent}


# what cheap prompts do to the scores

SOURCES, TURN, BEHIND, HEAD = 19, 209, 88, 30  # a conversation of 4,000 tokens: what follows the turns, what precedes
SLIGHT = 0.02  # worth of the other turns, in that of the best one


def padded(table: Floats, chance: np.random.Generator) -> tuple[Callable[[Coalitions], Floats], Floats]:
    """A complete game of few sources among others that are worth little: the value function, and its Shapley values."""
    own, count = exact_scores(table, "shapley"), int(np.log2(len(table)))
    places = np.sort(chance.choice(SOURCES, count, replace=False))
    worth = chance.normal(0, SLIGHT * np.abs(own).max(), SOURCES)
    worth[places] = 0.0
    truth = worth.copy()
    truth[places] = own
    return lambda held: table[held[:, places] @ (1 << np.arange(count))] + held @ worth, truth


def one(value: Callable[[Coalitions], Floats], truth: Floats, how: str, budget: int, seed: int) -> dict[str, float]:
    """Errors and price of one way to choose the prompts."""
    asked: list[Coalitions] = []
    free = PrefixCost((TURN,) * SOURCES, BEHIND, np.inf, HEAD)

    def values(held: Coalitions) -> Floats:
        asked.append(held)
        return value(held)

    def ask(selections: Sequence[Selection]) -> Floats:
        held = np.zeros((len(selections), SOURCES), bool)
        for row, selection in zip(held, selections, strict=True):
            row[[document for document, _ in selection]] = True
        return values(held)[:, None]

    if how == "one by one":
        found = estimate(values, SOURCES, budget=budget, seed=seed)
        scores, half = found.scores, (found.high - found.low) / 2
    else:
        prices = None if how == "in groups" else lambda: free
        context = Context(("x",) * SOURCES, Conversation((), ()))
        level = explain(ask, context, Settings(budget=budget, granularity="documents", seed=seed), prices=prices)
        scores, half = (x[:, 0] for x in (level.levels["documents"].scores, level.levels["documents"].half))
    held = np.unique(np.concatenate(asked), axis=0)
    return {
        "nmse": float(((scores - truth) ** 2).sum() / (truth**2).sum()),
        "inside": float(np.mean(np.abs(scores - truth) <= half + 1e-9)),
        "half_width": float(half.mean() / np.abs(truth.sum())),
        "first": float(np.argmax(scores) == np.argmax(truth)),
        "prompts": float(len(held)),
        "spent": free.of(held) / (HEAD + SOURCES * TURN + BEHIND),
    }


@main.command("error")
@click.option(
    "--games", type=click.Path(path_type=Path), default=RESULTS / "short_games_smollm2.json", show_default=True
)
@click.option("--half", type=click.Choice(["development", "held"]), default="held", show_default=True)
@click.option("--budget", default=32, show_default=True)
@click.option("--seeds", default=3, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS / "conversation_error.json", show_default=True)
def measure_error(games: Path, half: str, budget: int, seeds: int, out: Path) -> None:
    """Errors of cheap prompts, with their price in whole prompts."""
    known = json.loads(games.read_text())["games"]
    names = [name for name in sorted(known) if held_out(name) == (half == "held")]
    rows = []
    for name in names:
        for seed in range(seeds):
            value, truth = padded(np.array(known[name]["values"]), np.random.default_rng([*name.encode(), seed]))
            for how in ("in groups", "by price", "one by one"):
                rows.append({"game": name, "seed": seed, "how": how, **one(value, truth, how, budget, seed)})
        click.echo(f"{name}", err=True)
    table = {
        how: {
            "nmse_median": float(np.median([r["nmse"] for r in rows if r["how"] == how])),
            **{
                key: float(np.mean([r[key] for r in rows if r["how"] == how]))
                for key in ("nmse", "inside", "half_width", "first", "prompts", "spent")
            },
        }
        for how in dict.fromkeys(r["how"] for r in rows)
    }
    data = {
        "command": command(), "date": datetime.date.today().isoformat(), "amplify": amplify.__version__,
        "half": half, "games": names, "budget": budget, "table": table, "rows": rows,
    }  # fmt: skip
    out.write_text(json.dumps(data, indent=1) + "\n")
    click.echo(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()

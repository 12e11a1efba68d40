"""What attribution over the turns of a long conversation costs, against answering it once.

    python eval/bench_conversation.py --model transformers:smollm2-135m

A conversation of 20 turns with about 4,000 tokens, the last of which asks; every earlier message is a source. Timed one
after the other in each round: the model reads the prompt and writes its answer, and the attribution of that answer over
the turns, by a budget of prompts and by one of tokens. The goal is a ratio of 4 at most with 32 prompts or more. Killed
and started again it goes on behind the last round.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import random
from functools import partial
from pathlib import Path
from typing import Any

import click
from measuring import command, middle, timed

import amplify
from amplify import files
from amplify.models.base import LanguageModel
from amplify.types import Message, Prompt, Sampling

RESULTS = Path(__file__).parent / "results"
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


@click.command()
@click.option("--model", default="transformers:smollm2-135m", show_default=True)
@click.option("--dtype", default="auto", show_default=True)
@click.option("--turns", default=20, show_default=True)
@click.option("--tokens", default=4000, show_default=True)
@click.option("--budget", default=32, show_default=True)
@click.option("--new", default=64, show_default=True, help="Tokens of the answer.")
@click.option("--spent", default=3.5, show_default=True, help="Tokens of the second way, in lengths of the prompt.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--work", type=click.Path(path_type=Path), default=Path("runs/bench_conversation"), show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS / "conversation.json", show_default=True)
def main(
    model: str, dtype: str, turns: int, tokens: int, budget: int, new: int, spent: float, rounds: int, work: Path,
    out: Path,
) -> None:  # fmt: skip
    """Measure interleaved pairs; write ratio, tokens and seconds."""
    with amplify.load_model(model, **({"dtype": dtype} if model.startswith("transformers:") else {})) as who:
        messages = conversation(who, turns, tokens)
        prompt = Prompt(messages=tuple(Message(m["role"], m["content"]) for m in messages))
        sampling = Sampling(max_tokens=new)
        [said] = who.generate([prompt], sampling)
        length = tokens_of(who, messages)
        ways: dict[str, dict[str, Any]] = {
            f"budget={budget}": {"budget": budget},
            f"tokens={spent:g} prompts": {"tokens": round(spent * length)},
        }
        about = who.describe()
        journal = files.Journal(work / "rounds.jsonl", {"model": about, "messages": files.digest(messages), "new": new})
        rows = list(journal.rows)
        while len(rows) < rounds:
            before = who.usage.snapshot()
            _, one = timed(lambda: who.generate([prompt], sampling))
            read = who.usage.since(before).forwarded_tokens
            fresh = {}
            for way, how in ways.items():
                before = who.usage.snapshot()
                found, other = timed(partial(explained, who, messages, said.text, how))
                fresh[way] = {
                    "seconds": other, "seconds_answer": one, "ratio": other / one,
                    "ratio_of_tokens": who.usage.since(before).forwarded_tokens / read, "prompts": found.cost.calls,
                    "half_width": float((found.documents.high - found.documents.low).mean() / 2),
                    "gain": float(abs(found.values[1, 0] - found.values[0, 0])),
                }  # fmt: skip
            journal.append([fresh])
            rows.append(fresh)
            click.echo(f"{len(rows)} of {rounds} rounds", err=True)
    seen = {way: [row[way] for row in rows] for way in ways}
    data = {
        "command": command(), "date": datetime.date.today().isoformat(), "amplify": amplify.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores", "load": round(os.getloadavg()[0], 1),
        "model": about, "turns": turns, "sources": len(messages) - 1, "prompt_tokens": length,
        "answer_tokens": said.completion_tokens,
        "ways": {
            way: {
                "ratio": middle([r["ratio"] for r in taken]),
                "ratio_of_tokens": middle([r["ratio_of_tokens"] for r in taken]),
                "rounds": taken,
            }
            for way, taken in seen.items()
        },
    }  # fmt: skip
    out.write_text(json.dumps(data, indent=1, default=str) + "\n")
    click.echo(
        json.dumps(
            {way: {k: v for k, v in row.items() if k != "rounds"} for way, row in data["ways"].items()},
            indent=1,
            default=str,
        )
    )


if __name__ == "__main__":
    main()

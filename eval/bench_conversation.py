"""What attribution over the turns of a long conversation costs, against answering it once.

    python eval/bench_conversation.py --model transformers:smollm2-135m

A conversation of 20 turns with about 4,000 tokens, the last of which asks; every earlier message is a source. Pairs of
two timings, one after the other: the model reads the prompt and writes its answer (twice, the faster counts nothing:
the median over rounds does), and the attribution of that answer over the turns. The goal is a ratio of 4 at most.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import random
from pathlib import Path
from typing import Any

import click
from measuring import command, middle, timed

import amplify
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


@click.command()
@click.option("--model", default="transformers:smollm2-135m", show_default=True)
@click.option("--dtype", default="bfloat16", show_default=True)
@click.option("--turns", default=20, show_default=True)
@click.option("--tokens", default=4000, show_default=True)
@click.option("--budget", default=32, show_default=True)
@click.option("--new", default=64, show_default=True, help="Tokens of the answer.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS / "conversation.json", show_default=True)
def main(
    model: str, dtype: str, turns: int, tokens: int, budget: int, new: int, rounds: int, out: Path
) -> None:  # fmt: skip
    """Measure interleaved pairs; write ratio, tokens and seconds."""
    with amplify.load_model(model, **({"dtype": dtype} if model.startswith("transformers:") else {})) as who:
        messages = conversation(who, turns, tokens)
        prompt = Prompt(messages=tuple(Message(m["role"], m["content"]) for m in messages))
        sampling = Sampling(max_tokens=new)
        [said] = who.generate([prompt], sampling)
        ratios, forwarded, plain, explained = [], [], [], []
        for _ in range(rounds):
            before = who.usage.snapshot()
            _, one = timed(lambda: who.generate([prompt], sampling))
            middle_ = who.usage.snapshot()
            found, other = timed(
                lambda: amplify.attribute_sources(
                    None, None, who, said.text, messages=messages, budget=budget, granularity="documents"
                )
            )
            spent = who.usage.since(middle_).forwarded_tokens
            forwarded.append(spent / middle_.since(before).forwarded_tokens)
            ratios.append(other / one)
            plain.append(one)
            explained.append(other)
        about = who.describe()
    data = {
        "command": command(), "date": datetime.date.today().isoformat(), "amplify": amplify.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores", "load": round(os.getloadavg()[0], 1),
        "model": about, "turns": turns, "sources": len(found.documents), "prompt_tokens": tokens_of(who, messages),
        "answer_tokens": said.completion_tokens, "budget": budget, "prompts": found.cost.calls,
        "ratio": middle(ratios), "ratio_of_tokens": middle(forwarded), "seconds_answer": plain,
        "seconds_attribution": explained,
    }  # fmt: skip
    out.write_text(json.dumps(data, indent=1, default=str) + "\n")
    click.echo(json.dumps({k: v for k, v in data.items() if k != "model"}, indent=1, default=str))


if __name__ == "__main__":
    main()

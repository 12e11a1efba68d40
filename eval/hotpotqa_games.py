"""Complete log-probability games on HotpotQA: the truth that `bench_estimators.py` judges estimators by.

Ten paragraphs are ten sources. The value of a coalition is the log-probability, summed over its tokens, of the answer
that the model itself gives to all ten, in the prompt that holds the coalition's paragraphs in their fixed order. All
1,024 values of an item are computed, so its Shapley values are exact.

    python eval/hotpotqa_games.py --backend transformers:smollm2-135m --data $AMPLIFY_DATA/hotpotqa --items 19,37,14

A quarter of an item is kept as soon as it is done; the same command goes on where an earlier one ended.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

import amplify
from amplify.backends import need_scorer
from amplify.textgenshap import all_coalitions
from amplify.values import Message, Prompt, Sampling

PARTS = 4  # the coalitions are scored in this many calls, each over one choice of the first two paragraphs


def paragraphs(row: dict[str, Any], first_sentence: bool) -> list[str]:
    """The item's paragraphs, title first."""
    pairs = zip(row["context"]["title"], row["context"]["sentences"], strict=True)
    return [f"{title}\n{(''.join(s[:1]) if first_sentence else ''.join(s)).strip()}" for title, s in pairs]


def prompt(question: str, documents: list[str]) -> Prompt:
    """The question, then the documents."""
    told = "".join(f"\n\n{d}" for d in documents)
    content = f"Question: {question}\nAnswer with a short phrase, using these documents.{told}\n\nAnswer:"
    return Prompt(messages=(Message("user", content),))


def play(backend: amplify.backends.Scorer, row: dict[str, Any], first_sentence: bool, work: Path) -> dict[str, Any]:
    """All values of one item."""
    documents = paragraphs(row, first_sentence)
    n = len(documents)
    held = all_coalitions(n)
    answer = backend.generate([prompt(row["question"], documents)], Sampling(max_tokens=16))[0].text
    if not answer.strip():
        raise SystemExit(f"the model gives no answer to {row['question']!r}: choose another item")
    values = np.empty(2**n)
    for part in range(PARTS):
        rows = np.arange(part, 2**n, PARTS)
        kept = work / f"part{part}.json"
        if not kept.exists():
            prompts = [
                prompt(row["question"], [d for d, here in zip(documents, s, strict=True) if here]) for s in held[rows]
            ]
            found = backend.score(prompts, [answer] * len(rows))
            kept_part = {"answer": answer, "tokens": len(found[0].tokens), "values": [s.total for s in found]}
            work.mkdir(parents=True, exist_ok=True)
            kept.write_text(json.dumps(kept_part))
        done = json.loads(kept.read_text())
        if done["answer"] != answer:
            raise SystemExit(f"{kept} is of another answer, {done['answer']!r}: delete it")
        values[rows] = done["values"]
    return {
        "question": row["question"],
        "gold": row["answer"],
        "answer": answer,
        "answer_tokens": done["tokens"],
        "titles": row["context"]["title"],
        "evidence": sorted(set(row["supporting_facts"]["title"])),
        "first_sentence": first_sentence,
        "values": [round(v, 5) for v in values.tolist()],
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="transformers:smollm2-135m")
    parser.add_argument("--data", type=Path, required=True, help="folder with dev_distractor_50.json")
    parser.add_argument("--items", required=True, help="numbers of the items, separated by commas")
    parser.add_argument(
        "--first-sentence", action="store_true", help="shorten each paragraph: quick games to develop on"
    )
    parser.add_argument(
        "--work", type=Path, default=Path("runs/hotpotqa_games"), help="where unfinished items are kept"
    )
    parser.add_argument("--out", type=Path, required=True, help="JSON file that the games are added to")
    args = parser.parse_args()
    rows = json.loads((args.data / "dev_distractor_50.json").read_text())
    backend = need_scorer(amplify.open_backend(args.backend), "a log-probability game")
    for item in map(int, args.items.split(",")):
        games = json.loads(args.out.read_text()) if args.out.exists() else {"backend": backend.describe(), "games": {}}
        name = f"{item}{'s' if args.first_sentence else ''}"
        if name in games["games"]:
            continue
        begun = time.perf_counter()
        games["games"][name] = play(backend, rows[item], args.first_sentence, args.work / name)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(games, separators=(",", ":")) + "\n")
        print(f"{name}: {time.perf_counter() - begun:.0f} s, {games['games'][name]['answer']!r}", flush=True)


if __name__ == "__main__":
    main()

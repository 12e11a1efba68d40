"""Complete log-probability games on HotpotQA: the truth that `bench_estimators.py` judges estimators by.

Ten paragraphs are ten sources, and the game is the one that `amplify.attribute_sources` plays: the value of a coalition
is the log-probability, summed over its tokens, of the answer that the model itself gives to all ten, in the prompt that
holds the coalition's paragraphs in a fixed order. All 1,024 values of an item are computed, so its Shapley values are
exact. Beside them stand the values of the same coalitions by engine "blocks", the control variate. The order is longest
paragraph first: in a trie of all coalitions the last document is forwarded 512 times and the first one once.

    python eval/hotpotqa_games.py --data $AMPLIFY_DATA/hotpotqa --items 19,37,14 --out eval/results/hotpotqa_games.json

Every value is kept as soon as it is known; the same command goes on where an earlier one ended. A few exact values of
each item are asked again as single prompts, and the largest difference is written down.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from measuring import command, open_exact

from amplify import templates
from amplify.models import LocalModel, need_local
from amplify.models.cached import caching
from amplify.shapley import all_coalitions
from amplify.sources.context import harmless, in_place, select, special_tokens
from amplify.sources.engines import Engine, blocks_tree
from amplify.sources.frames import asking
from amplify.sources.games import LogProbGame, fixed_order
from amplify.types import Sampling

CHECKED = (0, 421, 1023)  # coalitions that are asked again as single prompts


def paragraphs(row: dict[str, Any], sentences: int) -> list[str]:
    """The item's paragraphs, title first, cut to so many sentences (0: whole); the longest comes first."""
    pairs = zip(row["context"]["title"], row["context"]["sentences"], strict=True)
    return sorted((f"{title}\n{''.join(s[: sentences or None]).strip()}" for title, s in pairs), key=len, reverse=True)


def play(model: LocalModel, row: dict[str, Any], sentences: int) -> dict[str, Any]:
    """All values of one item, by the engines "trie" (exact) and "blocks"."""
    structure = special_tokens(model)
    documents = tuple(harmless(d, structure) for d in paragraphs(row, sentences))
    context = asking(harmless(row["question"], structure), documents, templates.load("sources", "default"))
    held = all_coalitions(len(documents))
    answer = model.generate([context.prompt(context.everything())], Sampling(max_tokens=16))[0].text
    if not answer.strip():
        raise SystemExit(f"the model gives no answer to {row['question']!r}: choose another item")

    def values(engine: Engine) -> np.ndarray:
        return fixed_order(LogProbGame(context, model, answer, engine))(held)[:, 0]

    exact, blocks = values("trie"), values("blocks")
    head, *parts, tail, said = blocks_tree(context, model.tokenizer, [context.everything()], answer)[0].segments
    singles = [context.prompt(select(r, context.sources)) for r in in_place(held[list(CHECKED)]).tolist()]
    scored = [model.score([p], [answer])[0] for p in singles]
    return {
        "question": row["question"],
        "gold": row["answer"],
        "answer": answer,
        "tokens": {"head": len(head), "documents": list(map(len, parts)), "tail": len(tail), "answer": len(said)},
        "titles": [d.split("\n", 1)[0] for d in documents],
        "evidence": sorted(set(row["supporting_facts"]["title"])),
        "sentences": sentences,
        "single_prompts_differ_by": float(np.abs(exact[list(CHECKED)] - [s.total for s in scored]).max()),
        "correlation_of_blocks": float(np.corrcoef(exact, blocks)[0, 1]),
        "values": exact.round(5).tolist(),
        "blocks": blocks.round(5).tolist(),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="transformers:smollm2-135m")
    parser.add_argument("--data", type=Path, required=True, help="folder with dev_distractor_50.json")
    parser.add_argument("--items", required=True, help="numbers of the items, separated by commas")
    parser.add_argument("--sentences", type=int, default=0, help="of each paragraph; 0: all")
    parser.add_argument(
        "--work", type=Path, default=Path("runs/hotpotqa_games"), help="where unfinished items are kept"
    )
    parser.add_argument("--out", type=Path, required=True, help="JSON file that the games are added to")
    args = parser.parse_args()
    rows = json.loads((args.data / "dev_distractor_50.json").read_text())
    model = need_local(open_exact(args.model), "engine 'blocks'")
    for item in map(int, args.items.split(",")):
        done: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {"games": {}}
        name = f"{item}s{args.sentences}" if args.sentences else str(item)
        if name in done["games"]:
            continue
        begun = time.perf_counter()
        with caching(model, args.work) as keeping:
            game = play(need_local(keeping, "engine 'blocks'"), rows[item], args.sentences)
        done["games"][name] = game
        done = {
            "command": command(),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "model": model.describe(),
            "machine": platform.platform(),
        } | {"games": done["games"]}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(done, separators=(",", ":")) + "\n")
        print(
            f"{name}: {time.perf_counter() - begun:.0f} s, {game['answer']!r}, "
            f"blocks {game['correlation_of_blocks']:.3f}, singles {game['single_prompts_differ_by']:.1e}",
            flush=True,
        )


if __name__ == "__main__":
    main()

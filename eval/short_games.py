"""Complete games of ten short passages, on which estimators are developed (one half) and judged (the other).

Questions are HotpotQA's (ten paragraphs each), of Natural Questions (the gold passage and the nine nearest passages of
other questions by BM25) and our own (`own_passages.json`). Passages are cut to about 12 tokens, the longest
first: in a trie of all coalitions the last passage is forwarded 512 times and the first one once. The game is
that of `amplify.attribute_sources`: the log-probability of the model's own answer to all ten, or which answer is
decoded ("votes"). All 1,024 values are computed, so that the Shapley values are exact, in the dtype that stands at the
game (bfloat16 where none does): bfloat16 is quick where a processor computes it itself, float32 elsewhere.

    python eval/short_games.py --data $AMPLIFY_DATA --out eval/results/short_games_smollm2.json

Games are named KIND-NUMBER. **Which half a game belongs to is fixed by its number: even ones are for development, odd
ones are held out** (our own texts: by the number of the set of passages, so that no passage is in both). Every value is
kept as soon as it is known; the same command goes on where an earlier one ended, and --seconds ends it after a while.
"""

from __future__ import annotations

import argparse
import gzip
import json
import platform
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from measuring import command

import amplify
from amplify import templates
from amplify.errors import RunError
from amplify.files import lock, write
from amplify.models import LocalModel, need_local
from amplify.models.cached import caching
from amplify.retrieval import open_retriever
from amplify.shapley import all_coalitions
from amplify.sources.context import Context, harmless, in_place, select
from amplify.sources.frames import asking
from amplify.sources.games import LogProbGame, VoteGame, fixed_order
from amplify.text import sentences
from amplify.types import Sampling

DEVELOPED_ON = {3, 14, 19, 23, 25, 31, 37, 45}  # HotpotQA items of hotpotqa_games.json
LETTERS = 50  # of a passage at most
SOURCES = 10
CHECKED = (0, 421, 1023)  # coalitions that are asked again as single prompts


def cut(text: str, holds: str = "") -> str:
    """The first LETTERS characters of a passage, at a word's end; from the sentence that holds this, if one does."""
    pieces = sentences(text)
    first = next((a for a, b in pieces if holds and holds in text[a:b]), 0)
    kept = text[first:].strip()
    return kept if len(kept) <= LETTERS else kept[: LETTERS + 1].rpartition(" ")[0]


def hotpotqa(data: Path) -> dict[int, tuple[str, list[str]]]:
    """Question and paragraphs of each item that no estimator has been developed on."""
    rows = json.loads((data / "hotpotqa" / "dev_distractor_50.json").read_text())
    found = {}
    for number, row in enumerate(rows):
        pairs = zip(row["context"]["title"], row["context"]["sentences"], strict=True)
        passages = [cut("".join(s)) for _, s in pairs]
        if number not in DEVELOPED_ON and len(passages) == SOURCES:
            found[number] = row["question"], passages
    return found


def natural_questions(data: Path, count: int = 60) -> dict[int, tuple[str, list[str]]]:
    """The first questions with their gold passage and the nearest passages of others."""
    with gzip.open(data / "nq_open" / "nq-open-oracle.jsonl.gz", "rt") as lines:
        rows = [json.loads(line) for line in lines]
    texts = [row["ctxs"][0]["text"].strip() for row in rows]
    index = open_retriever("bm25", texts)
    found = {}
    for number, row in enumerate(rows[:count]):
        near = [hit.document for hit in index.search(row["question"], 3 * SOURCES)]
        others = list({texts[i]: i for i in near if texts[i] != texts[number]}.values())[: SOURCES - 1]
        answer = next((a for a in row["answers"] if a in texts[number]), "")
        gold = cut(texts[number], answer)
        found[number] = row["question"], [gold, *(cut(texts[i]) for i in others)]
    return found


def own(data: Path) -> dict[int, tuple[str, list[str]]]:
    """Our own questions: those of set k are k, k + 100, so that a set of passages is in one half only."""
    found = {}
    for k, each in enumerate(json.loads((Path(__file__).parent / "own_passages.json").read_text())):
        found |= {
            k + 100 * q: (question, [cut(p) for p in each["passages"]]) for q, question in enumerate(each["questions"])
        }
    return found


KINDS = {"hotpotqa": hotpotqa, "nq": natural_questions, "own": own}


def held_out(name: str) -> bool:
    """Whether a game is for judging only."""
    return int(name.rpartition("-")[2]) % 2 == 1


def contexts(data: Path) -> dict[str, Context]:
    """Every item as `attribute_sources` would ask it, its longest passage first."""
    found = {}
    for kind, read in KINDS.items():
        for number, (question, passages) in read(data).items():
            documents = tuple(harmless(p) for p in sorted(passages, key=len, reverse=True))
            frame = templates.load("sources", "question_first")  # few tokens stand behind the passages
            found[f"{kind}-{number}"] = asking(harmless(question), documents, frame)
    return found


def in_turn(names: Mapping[str, Any]) -> Iterator[str]:
    """Kinds and halves take turns, the held-out half first, so that a collection that stops early is balanced."""
    queues: dict[tuple[bool, str], list[str]] = {}
    for name in names:
        queues.setdefault((not held_out(name), name.partition("-")[0]), []).append(name)
    queues = {key: queues[key] for key in sorted(queues)}
    while any(queues.values()):
        for queue in queues.values():
            if queue:
                yield queue.pop(0)


def play(model: LocalModel, context: Context, value: str, most: int) -> dict[str, Any] | None:
    """All values of one game; None where the model says nothing."""
    everything = context.prompt(context.everything())
    held = all_coalitions(len(context.documents))
    answer = model.generate([everything], Sampling(max_tokens=most))[0].text
    if not answer.strip():
        return None
    if value == "votes":
        votes = VoteGame(context, model, Sampling(max_tokens=most), "trie")
        said = votes.ask([select(row, context.sources) for row in in_place(held).tolist()])
        return {"answer": answer, "values": [int(s == said[-1]) for s in said], "answers": len(set(said))}
    exact = fixed_order(LogProbGame(context, model, answer, "trie"))(held)[:, 0]
    singles = [context.prompt(select(r, context.sources)) for r in in_place(held[list(CHECKED)]).tolist()]
    scored = [model.score([p], [answer])[0] for p in singles]
    return {
        "answer": answer,
        "tokens": {"answer": len(scored[0].logprobs), "prompt": model.count_tokens([everything])[0]},
        "single_prompts_differ_by": float(np.abs(exact[list(CHECKED)] - [s.total for s in scored]).max()),
        "values": exact.round(4).tolist(),
    }


def add(out: Path, model: LocalModel, name: str, game: Mapping[str, Any]) -> None:
    """Write one more game into a file of games."""
    known: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {"games": {}}
    about = model.describe()
    written = {
        "command": command(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": about,
        "machine": platform.platform(),
        "games": known["games"] | {name: {"dtype": about["dtype"], **game}},
    }
    write(out, json.dumps(written, separators=(",", ":")) + "\n")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="transformers:smollm2-135m")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--data", type=Path, required=True, help="folder with hotpotqa/ and nq_open/")
    parser.add_argument("--value", choices=("logprob", "votes"), default="logprob")
    parser.add_argument("--games", type=int, default=48, help="how many there shall be")
    parser.add_argument("--max-tokens", type=int, default=6, help="of the answer")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no game after these")
    parser.add_argument("--work", type=Path, default=Path("runs/short_games"), help="where unfinished games are kept")
    parser.add_argument("--out", type=Path, required=True, help="JSON file that the games are added to")
    args = parser.parse_args()
    begun = time.perf_counter()
    every = contexts(args.data)
    model = need_local(amplify.load_model(args.model, dtype=args.dtype), "exact games")
    args.work.mkdir(parents=True, exist_ok=True)
    for name in in_turn(every):
        start = time.perf_counter()
        known: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {"games": {}}
        if len(known["games"]) >= args.games or start - begun > args.seconds:
            break
        place = args.work / f"{args.model.rpartition(':')[2]}-{name}-{args.value}"
        if name in known["games"]:
            continue
        try:
            with lock(place, "another process plays it"), caching(model, args.work / "replies") as keeping:
                game = play(need_local(keeping, "exact games"), every[name], args.value, args.max_tokens)
        except RunError:  # two of these commands may run side by side
            continue
        if game is not None:
            with lock(args.out, "another process adds to it", patience=60):
                add(args.out, model, name, game)
            print(f"{name}: {time.perf_counter() - start:.0f} s, {game['answer']!r}", flush=True)


if __name__ == "__main__":
    main()

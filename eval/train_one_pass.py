"""Learn from exact games what one pass of a model tells of its sources' Shapley values (`one_pass.py`).

    python eval/train_one_pass.py --games eval/results/short_games_smollm2.json --data $AMPLIFY_DATA --out WEIGHTS.json

The model is the one that played the games. It learns from the development half alone (see `short_games.py`); the ridge
penalty is chosen by leaving out one question at a time. What it and simpler scores at the same price say of every game
is written beside the games (--guesses): for the development half what it predicts of a question that it has not seen,
for the held-out half what the learned model predicts. One forward and one backward pass a game; evidence is kept in
--work.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from measuring import command
from one_pass import Evidence, OnePass, evidence, learn
from scipy.stats import spearmanr
from short_games import contexts, held_out

import amplify
from amplify.files import write_json
from amplify.models import LocalModel, need_local
from amplify.retrieval import Embedder
from amplify.shapley import exact_scores
from amplify.shapley.game import Floats
from amplify.sources.context import Context
from amplify.sources.frames import TemplateFrame

RIDGES = (10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10000.0)


def question(context: Context) -> str:
    """What is asked."""
    assert isinstance(context.frame, TemplateFrame)
    return context.frame.question


def looked_at(name: str, context: Context, model: LocalModel, answer: str, work: Path) -> Evidence:
    """Evidence of a game, once computed."""
    place = work / f"{model.id.rpartition(':')[2]}-{name}.npz"
    if place.exists():
        with np.load(place, allow_pickle=False) as kept:
            if str(kept["answer"]) == answer:
                return Evidence(kept["heads"], kept["overall"])
    found = evidence(context, model, question(context), answer)
    place.parent.mkdir(parents=True, exist_ok=True)
    np.savez(place, heads=found.heads, overall=found.overall, answer=np.array(answer))
    return found


def left_out(seen: Mapping[str, Evidence], truth: Mapping[str, Floats], ridge: float) -> dict[str, Floats]:
    """For each game what a model predicts that has learned from all others."""
    found = {}
    for name in seen:
        others = [other for other in seen if other != name and set_of(other) != set_of(name)]
        found[name] = learn([seen[o] for o in others], [truth[o] for o in others], {}, ridge).scores(seen[name])
    return found


def set_of(name: str) -> str:
    """The passages of a game: our own questions come in twos about the same ones."""
    kind, _, number = name.rpartition("-")
    return f"{kind}-{int(number) % 100}" if kind == "own" else name


def ranked(guesses: Mapping[str, Floats], truth: Mapping[str, Floats]) -> float:
    """Mean rank correlation."""
    return float(np.mean([spearmanr(g, truth[name]).statistic for name, g in guesses.items()]))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--games", type=Path, required=True, help="JSON of short_games.py")
    parser.add_argument("--data", type=Path, required=True, help="folder with hotpotqa/ and nq_open/")
    parser.add_argument("--work", type=Path, default=Path("runs/one_pass"), help="where evidence is kept")
    parser.add_argument("--embedder", default="minilm")
    parser.add_argument("--guesses", type=Path, required=True, help="JSON file for what is predicted of each game")
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the learned model")
    args = parser.parse_args()
    stored = json.loads(args.games.read_text())
    games = stored["games"]
    about = stored["model"]
    model = need_local(amplify.load_model(about["id"], dtype=about["dtype"]), "evidence")
    every = contexts(args.data)
    seen = {name: looked_at(name, every[name], model, g["answer"], args.work) for name, g in games.items()}
    truth = {name: exact_scores(np.array(g["values"]), "shapley") for name, g in games.items()}
    known = {name: seen[name] for name in games if not held_out(name)}
    rank = {ridge: ranked(left_out(known, truth, ridge), truth) for ridge in RIDGES}
    ridge = max(rank, key=lambda r: rank[r])
    print("cross-validated rank correlation:", {r: round(x, 3) for r, x in rank.items()})
    learned = learn([*known.values()], [truth[n] for n in known], about, ridge)
    meta = {"games": len(known), "ridge": ridge, "rank_correlation_left_out": round(rank[ridge], 4)}
    learned = OnePass(learned.model, learned.heads, learned.overall, learned.base, meta | {"command": command()})
    write_json(args.out, learned.to_dict())
    predicted = {n: learned.scores(seen[n]) for n in games} | left_out(known, truth, ridge)
    guesses: dict[str, Any] = {"command": command(), "meta": meta, "games": {}}
    with Embedder(args.embedder) as embedder:
        for name, g in games.items():
            context = every[name]
            texts = [f"{question(context)} {g['answer']}", *context.documents]
            vectors = embedder.embed(texts)
            guesses["games"][name] = {
                "one pass": predicted[name].round(4).tolist(),
                "attention": seen[name].of("attention").round(6).tolist(),
                "gradient x input": seen[name].of("gradient").round(5).tolist(),
                "words of the answer": seen[name].of("answer_words").round(4).tolist(),
                "embedding": (vectors[1:] @ vectors[0]).astype(float).round(4).tolist(),
            }
    write_json(args.guesses, guesses)


if __name__ == "__main__":
    main()

"""How fast values of a source game are had, against the tools people use: same model, machine, dtype and coalitions.

    python eval/bench_textgenshap.py --data $AMPLIFY_DATA/hotpotqa --parts fixed,blocks,random,captum,many,votes

Parts: `fixed`, ten HotpotQA paragraphs in their order, prefix trie against context-cite (batch size 1, its default);
`blocks`, documents encoded once, on the same coalitions; `random`, orders drawn anew, packed permutations against
context-cite's pass; `captum`, `LLMAttribution`'s own forward function on coalitions of `fixed`, one pass per target
token and one per sequence; `exact`, all 2^n coalitions; `many`, 20 and 50 documents in random order, tokens forwarded
against naive ones; `votes`, answers decoded against answers recognised, and `hierarchy`, down to words against
documents alone (both for half the coalitions). Where a rival is timed on some of the coalitions only, its time is
scaled by tokens and says so.
Results are added to the JSON file part by part.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import command, open_exact, peak, resident, timed
from source_game import SourceGame, paragraphs

import amplify
from amplify.models.tree.speculative import DraftCache, generate_speculative
from amplify.models.tree.tree import plan_tree
from amplify.shapley import all_coalitions
from amplify.sources.context import Context, Selection, in_place, select
from amplify.types import Sampling


class Bench(SourceGame):
    """The parts. Later ones use what earlier ones found.

    Args:
        peer: coalitions that context-cite is timed on; its seconds are scaled to all of them by tokens.
        others: see `SourceGame`.
    """

    def __init__(self, model: Any, rows: Sequence[dict[str, Any]], peer: int, **others: Any) -> None:
        super().__init__(model, rows, **others)
        self.rows, self.sentences, self.peer = rows, others["sentences"], peer
        self.seconds: dict[str, float] = {}
        self.values: dict[str, np.ndarray] = {}

    def against(self, selections: Sequence[Selection], engine: str) -> dict[str, Any]:
        """An engine against context-cite on the same selections."""
        sequences, starts = self.sequences(self.context, selections)
        values, seconds, forwarded = self.ours(self.context, selections, engine)
        some = np.unique(np.linspace(0, len(selections) - 1, min(self.peer, len(selections))).astype(int))
        peer, peer_seconds = self.cited([sequences[i] for i in some], [starts[i] for i in some])
        tokens = sum(map(len, sequences))
        peer_seconds *= tokens / sum(len(sequences[i]) for i in some)
        mine, _ = self.operations(self.context, selections)
        theirs = sum(self.flops(np.arange(len(s)), len(s)) for s in sequences)
        self.seconds[engine], self.values[engine] = seconds, values
        return {
            "coalitions": len(selections),
            "answer_tokens": len(sequences[0]) - starts[0],
            "prompt_tokens_mean": float(np.mean(starts)),
            "seconds": seconds,
            "forwarded_tokens": forwarded,
            "context_cite": {"seconds": peer_seconds, "tokens": tokens, "timed_on": len(some)},
            "fewer_tokens": tokens / forwarded,
            "faster": peer_seconds / seconds,
            "flop_ratio": theirs / mine,
            "wall_clock_share_of_flop_ratio": peer_seconds / seconds / (theirs / mine),
            "largest_difference": float(np.abs(values[some] - peer).max()),
        }

    def fixed(self, count: int) -> dict[str, Any]:
        """Coalitions as context-cite draws them."""
        from context_cite.utils import _create_mask

        n = len(self.context.documents)
        masks = np.stack([_create_mask(n, 0.5, seed) for seed in range(count)])
        self.masks = masks
        return self.against([select(row, self.context.sources) for row in in_place(masks).tolist()], "trie")

    def blocks(self) -> dict[str, Any]:
        """Documents encoded once, on the coalitions of `fixed`: how well the approximation follows the exact game."""
        selections = [select(row, self.context.sources) for row in in_place(self.masks).tolist()]
        values, seconds, forwarded = self.ours(self.context, selections, "blocks")
        return {
            "coalitions": len(selections),
            "correlation": float(np.corrcoef(values, self.values["trie"])[0, 1]),
            "seconds": seconds,
            "forwarded_tokens": forwarded,
            "faster_than_trie": self.seconds["trie"] / seconds,
        }

    def random(self, orders: int) -> dict[str, Any]:
        """Packed permutations. The empty coalition is asked once an order by both."""
        return {"orders": orders, **self.against(self.walks(self.context, orders), "packed")}

    def captum(self, coalitions: int, by_token: int) -> dict[str, Any]:
        """captum's forward function on the first coalitions of `fixed`."""
        from captum.attr import FeatureAblation, LLMAttribution, TextTemplateInput

        tokenizer, context = self.model.tokenizer, self.context

        def prompt(*documents: str) -> str:
            shown = [d for d in documents if d]
            content = context.frame.prompt(dict(enumerate(shown))).messages[0].content
            return str(
                tokenizer.apply_chat_template(
                    [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
                )
            )

        attribution = LLMAttribution(FeatureAblation(self.model.module), tokenizer, attr_target="log_prob")
        inputs = TextTemplateInput(prompt, values=[d.strip() for d in context.documents])
        target = torch.tensor(tokenizer(self.answer, add_special_tokens=False).input_ids)
        masks = torch.from_numpy(self.masks[:coalitions].astype(np.int64))
        selections = [select(row, context.sources) for row in in_place(self.masks).tolist()]
        sequences, _ = self.sequences(context, selections)
        sizes = np.array([len(s) for s in sequences])

        def run(count: int, in_tokens: bool) -> tuple[list[float], float]:
            with torch.no_grad():
                found, seconds = self.timed(
                    lambda: [
                        float(attribution._forward_func(m[None], inputs, target, False, None, in_tokens).ravel()[0])
                        for m in masks[:count]
                    ]
                )
            return found, seconds * sizes.sum() / sizes[:count].sum()

        values, _, _ = self.ours(context, selections[:coalitions], "trie")
        seconds = self.seconds["trie"]
        whole, by_sequence_seconds = run(coalitions, False)
        _, by_token_seconds = run(by_token, True)
        return {
            "coalitions": len(selections),
            "timed": {"forward_in_tokens=False": coalitions, "forward_in_tokens=True": by_token, "scaled_by": "tokens"},
            "seconds": seconds,
            "captum_seconds": {
                "forward_in_tokens=False": by_sequence_seconds,
                "forward_in_tokens=True": by_token_seconds,
            },
            "faster": {
                "forward_in_tokens=False": by_sequence_seconds / seconds,
                "forward_in_tokens=True": by_token_seconds / seconds,
            },
            "largest_difference": float(np.abs(values - np.array(whole)).max()),
        }

    def exact(self, timed_on: int, default: int = 64) -> dict[str, Any]:
        """All coalitions, against the time that context-cite's default number takes (timed on a quarter of them).

        Args:
            timed_on: the middle ones of all in the order in which they are asked; scaled by floating-point operations.
            default: context-cite's.
        """
        n = len(self.context.documents)
        every = sorted(select(row, self.context.sources) for row in in_place(all_coalitions(n)).tolist())
        begin = (len(every) - timed_on) // 2
        middle = every[begin : begin + timed_on]
        _, seconds, forwarded = self.ours(self.context, middle, "trie")
        whole = self.operations(self.context, every)
        scale = whole[0] / self.operations(self.context, middle)[0]
        rng = np.random.default_rng(0)
        some = [every[i] for i in rng.choice(len(every), default // 4, replace=False)]
        _, peer = self.cited(*self.sequences(self.context, some))
        return {
            "coalitions": len(every),
            "tokens": whole[1],
            "timed_on": timed_on,
            "timed_tokens": forwarded,
            "seconds": seconds * scale,
            "context_cite_default_seconds": peer * 4,
            "times_context_cite_default": seconds * scale / (peer * 4),
        }

    def operations(self, context: Context, selections: Sequence[Selection]) -> tuple[float, int]:
        """Floating-point operations and tokens of one trie of these."""
        laid = plan_tree(*self.laid(*self.sequences(context, selections)))
        return self.flops(laid.positions, len(np.unique(laid.read_at))), len(laid.ids)

    def many(self, sizes: Sequence[int]) -> dict[str, Any]:
        """One random order of many documents; naive is timed on one prompt of middle length and scaled by tokens."""
        result: dict[str, Any] = {}
        pool = list(dict.fromkeys(d for row in self.rows for d in paragraphs(row, self.sentences)))
        for size in sizes:
            context = self.of(self.context.question, pool[:size])
            selections = self.walks(context, 1)
            sequences, _ = self.sequences(context, selections)
            _, seconds, forwarded = self.ours(context, selections, "packed")
            middle = selections[size // 2]
            _, one, tokens = self.ours(context, [middle], "naive")
            naive = sum(map(len, sequences))
            faster = one * naive / tokens / seconds
            # each prompt alone is a trie of one: like `packed` it reads logits at the answer only
            alone = sum(self.operations(context, [s])[0] for s in selections)
            flop_ratio = alone / self.operations(context, selections)[0]
            result[str(size)] = {
                "coalitions": len(selections),
                "forwarded_tokens": forwarded,
                "naive_tokens": naive,
                "fewer_tokens": naive / forwarded,
                "seconds": seconds,
                "naive_seconds_scaled_from_one": one * naive / tokens,
                "faster": faster,
                "flop_ratio": flop_ratio,
                "wall_clock_share_of_flop_ratio": faster / flop_ratio,
            }
        return result

    def votes(self, count: int) -> dict[str, Any]:
        """Answers to the coalitions of `fixed`, decoded and recognised."""
        from context_cite.utils import _create_mask

        n = len(self.context.documents)
        masks = np.stack([_create_mask(n, 0.5, seed) for seed in range(count)])
        selections = sorted({select(row, self.context.sources) for row in in_place(masks).tolist()})
        prompts = [self.context.prompt(s) for s in selections]
        sampling = Sampling(max_tokens=16)
        known, usage = DraftCache(), self.model.usage
        start = usage.snapshot()
        found, seconds = self.timed(lambda: generate_speculative(self.model, prompts, sampling, known))
        forwarded, start = usage.since(start).forwarded_tokens, usage.snapshot()
        plain, plain_seconds = self.timed(lambda: self.model.generate(prompts, sampling))
        return {
            "coalitions": len(prompts),
            "answers": len(set(known.answers.values())),
            "a_step": "a pass from which an answer's tokens are taken, the one that reads the prompt's end included",
            "decoding_steps": known.steps,
            "plain_decoding_steps": known.plain,
            "share_of_steps": known.steps / known.plain,
            "share_of_steps_behind_the_prompts": (known.steps - len(prompts)) / (known.plain - len(prompts)),
            "forwarded_tokens": forwarded,
            "plain_forwarded_tokens": usage.since(start).forwarded_tokens,
            "seconds": seconds,
            "plain_seconds": plain_seconds,
            "equal": sum(a.text == b.text for a, b in zip(found, plain, strict=True)),
        }

    def hierarchy(self, budget: int) -> dict[str, Any]:
        """Documents alone, and down to sentences and words with a budget that leaves the documents as many evaluations.

        `attribute_sources` calls that share nothing but the answer, which is given: with the model's own bound of
        what is kept between rounds, and down to words also with a low one. Memory is resident memory at its peak
        beyond what the process, model included, held before all of them.
        """
        documents = list(self.context.documents)

        def run(granularity: str, asked: int, kept: int | None = None) -> dict[str, Any]:
            self.model.max_prefix_tokens = kept
            gc.collect()
            found: list[Any] = []
            most, seconds = self.timed(
                lambda: peak(
                    lambda: found.append(
                        amplify.attribute_sources(
                            str(self.context.frame.identity()["question"]),
                            documents,
                            self.model,
                            self.answer,
                            granularity=granularity,
                            budget=asked,
                        )
                    )
                )
            )
            self.model.max_prefix_tokens = None
            result = found[0]
            return {
                "budget": asked,
                "evaluations": result.cost.calls,
                "forwarded_tokens": result.cost.tokens,
                "sentences_scored": len(result.sentences.sources) if result.sentences else 0,
                "words_scored": len(result.words.sources) if result.words else 0,
                "seconds": seconds,
                "memory_bytes": most - before,
            }

        before = resident()
        result: dict[str, Any] = {
            "max_prefix_tokens": self.model.prefix_cache().most,
            "bytes_a_kept_token": self.model.packed.kept,
            "words_keeping_1024": run("words", 2 * budget, 1024),  # first: an allocator does not give back all it had
            "documents": run("documents", budget),
            "sentences": run("sentences", 2 * budget),
            "words": run("words", 2 * budget),
        }
        words, alone = result["words"], result["documents"]
        return result | {
            "times_the_tokens": words["forwarded_tokens"] / alone["forwarded_tokens"],
            "times_the_seconds": words["seconds"] / alone["seconds"],
        }


CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
GOALS = {
    "fixed": ("faster", "times faster than context-cite", 2.0),
    "random": ("faster", "times faster than context-cite", 3.5),
    "captum": ("faster.forward_in_tokens=True", "times faster than captum, a pass per token", 15.0),
    "exact": ("times_context_cite_default", "times the time of 64 ablations (at most)", 4.0),
    "many": ("50.fewer_tokens", "times fewer tokens at 50 documents", 15.0),
    "votes": ("share_of_steps", "of plain decoding's steps (at most)", 0.2),
    "hierarchy": ("times_the_tokens", "times the tokens of documents alone, down to words (at most)", 3.0),
    "blocks": ("correlation", "correlation with the exact game", 0.9),
}


def table(done: dict[str, Any]) -> str:
    """The main figure of each part, measured and wanted, and which command made which part, as Markdown."""
    lines = ["| part | measured | wanted | what | when |", "|---|---|---|---|---|"]
    for part, result in done["parts"].items():
        path, what, goal = GOALS[part]
        found: Any = result
        for key in path.split(".", 1):
            found = found.get(key) if isinstance(found, dict) else None
        if found is None:
            continue
        lines.append(f"| {part} | {found:.3g} | {goal:g} | {what} | {result['date'][:10]} |")
    made: dict[str, list[str]] = {}
    for part, result in done["parts"].items():
        made.setdefault(result["command"], []).append(part)
    lines += ["", *(f"- {', '.join(parts)}: `{command}`" for command, parts in made.items())]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="transformers:smollm2-135m")
    parser.add_argument("--data", type=Path, required=True, help="folder with dev_distractor_50.json")
    parser.add_argument("--item", type=int, default=0)
    parser.add_argument("--sentences", type=int, default=0, help="of each paragraph; 0: all")
    parser.add_argument("--tokens", type=int, default=16, help="of the answer")
    parser.add_argument("--coalitions", type=int, default=64)
    parser.add_argument("--peer", type=int, default=16, help="of these, how many context-cite is timed on")
    parser.add_argument("--exact", type=int, default=0, help="of all coalitions, how many `exact` is timed on; 0: all")
    parser.add_argument("--clock", choices=("wall", "processor"), default="wall", help="processor: other jobs run too")
    parser.add_argument("--orders", type=int, default=3)
    parser.add_argument("--captum", type=int, nargs=2, default=(3, 1), metavar=("SEQUENCE", "TOKENS"))
    parser.add_argument("--documents", default="20,50", help="numbers of documents for `many`")
    parser.add_argument("--parts", default="fixed,blocks,random,captum,many,votes")
    parser.add_argument("--out", type=Path, default=Path("eval/results/bench_textgenshap.json"))
    args = parser.parse_args()
    parts = args.parts.split(",")
    if late := [part for part in ("blocks", "captum") if part in parts and "fixed" not in parts[: parts.index(part)]]:
        parser.error(f"{' and '.join(late)}: on the coalitions of fixed, which must stand before in --parts")
    rows = json.loads((args.data / "dev_distractor_50.json").read_text())
    model: Any = open_exact(args.model)
    bench = Bench(
        model, rows, args.peer, item=args.item, sentences=args.sentences, tokens=args.tokens, clock=CLOCKS[args.clock]
    )
    work: dict[str, Callable[[], dict[str, Any]]] = {
        "fixed": lambda: bench.fixed(args.coalitions),
        "random": lambda: bench.random(args.orders),
        "captum": lambda: bench.captum(*args.captum),
        "blocks": bench.blocks,
        "exact": lambda: bench.exact(args.exact or 2 ** len(bench.context.documents)),
        "many": lambda: bench.many([int(s) for s in args.documents.split(",")]),
        "votes": lambda: bench.votes(args.coalitions // 2),
        "hierarchy": lambda: bench.hierarchy(args.coalitions // 2),
    }
    bench.model.packed  # the one-off trial pass is no part of any time  # noqa: B018
    for part in parts:
        done = json.loads(args.out.read_text()) if args.out.exists() else {"parts": {}}
        result, seconds = timed(work[part])
        done["parts"][part] = result | {
            "item": args.item,
            "sentences_of_each_paragraph": args.sentences,
            "bench_seconds": seconds,
            "clock": args.clock,
            "command": command(),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "setting": model.describe(),
            "machine": {"platform": platform.platform(), "threads": torch.get_num_threads()},
        }
        done["what"] = (__doc__ or "").split("\n", 1)[0]
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(done, indent=1) + "\n")
        args.out.with_suffix(".md").write_text(table(done))
        print(f"{part}: {json.dumps(result)}", flush=True)


if __name__ == "__main__":
    main()

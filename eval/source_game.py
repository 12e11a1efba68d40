"""A game over the documents of one question, as the benches play it with amplify and with context-cite."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from measuring import timed

from amplify import templates
from amplify.models.chat import encode_with_target, render
from amplify.models.tree.tree import TokenTree, trie
from amplify.shapley.sampling import prefixes
from amplify.sources.context import Context, Selection, harmless, select
from amplify.sources.frames import asking
from amplify.sources.games import LogProbGame
from amplify.types import Sampling

Clock = Callable[[], float]


def paragraphs(row: dict[str, Any], sentences: int) -> list[str]:
    """The item's paragraphs, title first, cut to so many sentences (0: whole)."""
    pairs = zip(row["context"]["title"], row["context"]["sentences"], strict=True)
    return [f"{title}\n{''.join(s[: sentences or None]).strip()}" for title, s in pairs]


class SourceGame:
    """One HotpotQA item as a log-probability game on one model, for amplify and for its rivals.

    Args:
        model: `transformers:`.
        rows: of the published file.
        item: which of them.
        sentences: of each paragraph, at most; 0: all.
        tokens: of the answer.
        clock: that times everything.
    """

    def __init__(
        self, model: Any, rows: Sequence[dict[str, Any]], item: int, sentences: int, tokens: int, clock: Clock
    ) -> None:
        self.model, self.timed = model, partial(timed, clock=clock)
        row = rows[item]
        self.context = self.of(row["question"], paragraphs(row, sentences))
        own = model.generate([self.context.prompt(self.context.everything())], Sampling(max_tokens=tokens))[0].text
        # the answer is padded out with its own words, so that every item scores as many tokens
        words = own
        while len(model.tokenizer(words).input_ids) < tokens:
            words = f"{words} {own.strip()}"
        self.answer = model.tokenizer.decode(model.tokenizer(words).input_ids[:tokens])

    def of(self, question: str, documents: Sequence[str]) -> Context:
        """A context like `attribute_sources` makes it."""
        return asking(harmless(question), tuple(harmless(d) for d in documents), templates.load("sources", "default"))

    def sequences(self, context: Context, selections: Sequence[Selection]) -> tuple[list[list[int]], list[int]]:
        """Token ids of prompt and answer, and where the answer starts."""
        tokenizer = self.model.tokenizer
        pairs = [encode_with_target(tokenizer, render(context.prompt(s), tokenizer), self.answer) for s in selections]
        return [ids for ids, _ in pairs], [start for _, start in pairs]

    def ours(self, context: Context, selections: Sequence[Selection], engine: Any) -> tuple[np.ndarray, float, int]:
        """Values, seconds, tokens forwarded."""
        before = self.model.usage.snapshot()
        game = LogProbGame(context, self.model, self.answer, engine)
        values, seconds = self.timed(lambda: game.of(selections)[:, 0])
        return values, seconds, self.model.usage.since(before).forwarded_tokens

    def cited(self, sequences: Sequence[Sequence[int]], starts: Sequence[int]) -> tuple[np.ndarray, float]:
        """context-cite's own evaluation of these prompts with its default batch size."""
        from context_cite import utils
        from datasets import Dataset

        data = Dataset.from_dict(
            {
                "input_ids": list(map(list, sequences)),
                "attention_mask": [[1] * len(s) for s in sequences],
                "labels": [[-100] * start + list(s[start:]) for s, start in zip(sequences, starts, strict=True)],
            }
        )
        length = len(sequences[0]) - starts[0]
        model, tokenizer = self.model.module, self.model.tokenizer
        found, seconds = self.timed(lambda: utils._get_response_logit_probs(data, model, tokenizer, length, 1))
        return utils.aggregate_logit_probs(found, "log_prob"), seconds

    def flops(self, positions: np.ndarray, logits: int) -> float:
        """Of the tokens at these positions: matrix products, attention to all before, and so many rows of logits."""
        c = self.model.module.config
        head = c.head_dim if getattr(c, "head_dim", None) else c.hidden_size // c.num_attention_heads
        body = sum(p.numel() for p in self.model.module.model.layers.parameters())
        attention = 4 * c.num_hidden_layers * c.num_attention_heads * head * (positions + 1.0).sum()
        return float(2 * body * len(positions) + attention + 2 * c.vocab_size * c.hidden_size * logits)

    def laid(self, sequences: Sequence[Sequence[int]], starts: Sequence[int]) -> tuple[TokenTree, list[int]]:
        """Their trie, and its nodes that hold the answer."""
        tree, paths = trie(sequences, starts)
        wanted: set[int] = set()
        for path, start in zip(paths, starts, strict=True):
            depth = 0
            for node in path:
                wanted |= {node} if depth >= start else set()
                depth += len(tree.segments[node])
        return tree, sorted(wanted)

    def walks(self, context: Context, orders: int) -> list[Selection]:
        """Prefixes of random orders."""
        rng, n = np.random.default_rng(0), len(context.documents)
        drawn = [rng.permutation(n) for _ in range(orders)]
        rows = np.concatenate([np.where(prefixes(o), np.argsort(o), -1) for o in drawn])
        return [select(row, context.sources) for row in rows.tolist()]

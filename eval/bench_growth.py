"""How the cost of an attribution grows with sources and with the prompt's length, in tokens that a model must forward.

    python eval/bench_growth.py [--longest 6400] [--out eval/results/growth.json]

For the log-probability of one answer at a budget of 64 prompts, four ways to pay:

- amplify: what `attribute_sources` really sends through a `transformers:` model (its own count, padding included);
- one by one: the same prompts without sharing anything;
- vLLM's prefix cache: the same prompts in the order asked, where a whole block of 16 tokens that was seen before is not
  forwarded again (its rule, applied to the token ids; nothing is evicted);
- context-cite: 64 prompts drawn by its own code with its own keep probability, each forwarded whole.

Tokens depend on the texts and not on the weights, so a small model of random weights is asked; seconds are not measured
here. Answers of other lengths cost every way the same for each prompt, and are not varied.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from measuring import command
from tiny_models import language_model

import amplify
from amplify.models.chat import encode_with_targets, render

BUDGET, ANSWER, BLOCK = 64, " the answer of the key words", 16
SOURCES = (5, 10, 20, 50, 100, 200)
LENGTHS = (10, 40, 160, 640)
WORDS = "good bad great terrible phone battery answer positive negative capital statement question".split()  # noqa: SIM905


class Noting:
    """A model that scores by rule and keeps what it was asked."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.asked = inner, []
        self.id, self.usage, self.max_context = "scripted:noting", amplify.models.Usage(), None

    def score(self, prompts: Any, continuations: Any, *, steering: Any = None) -> Any:
        """Pseudo-random log-probabilities."""
        self.asked += zip(prompts, continuations, strict=True)
        return self.inner.score(prompts, continuations)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def __enter__(self) -> Noting:
        return self

    def __exit__(self, *exc: object) -> None:
        """Nothing to free."""


def texts(sources: int, words: int) -> list[str]:
    """Sources of so many words, no two alike."""
    return [
        f"{i}: " + " ".join(WORDS[(i * 7 + k * (1 + i % 5)) % len(WORDS)] for k in range(words)) for i in range(sources)
    ]


def cached(sequences: Sequence[Sequence[int]]) -> int:
    """Tokens forwarded where whole blocks seen before are not."""
    seen: set[tuple[int, ...]] = set()
    forwarded = 0
    for ids in sequences:
        hit = 0
        for end in range(BLOCK, len(ids), BLOCK):  # the last token is always forwarded
            if tuple(ids[:end]) not in seen:
                break
            hit = end
        seen.update(tuple(ids[:end]) for end in range(BLOCK, len(ids) + 1, BLOCK))
        forwarded += len(ids) - hit
    return forwarded


def cost(model: Any, documents: Sequence[str]) -> dict[str, int]:
    """Tokens of each way."""
    from context_cite.utils import _create_mask

    options = {"answer": ANSWER, "budget": BUDGET, "granularity": "documents"}
    before = model.usage.snapshot()
    amplify.attribute_sources("which is good?", documents, model, **options)
    ours = model.usage.since(before)
    noting = Noting(amplify.load_model("scripted:echo"))
    amplify.attribute_sources("which is good?", documents, noting, **options)
    pairs = list(dict.fromkeys(noting.asked))
    sequences = [list(e.ids) for e, _ in _encoded(model, pairs)]
    whole = min(noting.asked, key=lambda pair: -len(pair[0].messages[-1].content))[0]
    cited = []
    for seed in range(BUDGET):
        kept = _create_mask(len(documents), 0.5, seed)
        content = whole.messages[-1].content
        for document, keep in zip(documents, kept, strict=True):
            content = content if keep else content.replace(document, "")
        message = amplify.Message(whole.messages[-1].role, content)
        cited.append((amplify.Prompt(messages=(*whole.messages[:-1], message)), pairs[0][1]))
    return {
        "prompts": len(pairs),
        "tokens of the whole prompt": max(map(len, sequences)),
        "amplify": ours.forwarded_tokens,
        "one by one": sum(map(len, sequences)),
        "vLLM's prefix cache": cached(sequences),
        "context-cite": sum(len(e.ids) for e, _ in _encoded(model, cited)),
    }


def _encoded(model: Any, pairs: Sequence[tuple[Any, str]]) -> Any:
    return encode_with_targets(model.tokenizer, [render(p, model.tokenizer) for p, _ in pairs], [c for _, c in pairs])


def plot(result: dict[str, Any], path: Path) -> None:
    """Both curves, in tokens on logarithmic scales."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "amplify"
    from matplotlib import pyplot

    figure, both = pyplot.subplots(1, 2, figsize=(11, 4.5), sharey=True)
    for axes, name, across in zip(both, ("sources", "length"), ("sources", "tokens of the whole prompt"), strict=True):
        rows = result[name]
        for way in ("context-cite", "one by one", "vLLM's prefix cache", "amplify"):
            axes.plot([row[across] for row in rows], [row[way] for row in rows], marker="o", label=way)
        axes.set(xscale="log", yscale="log", xlabel=across)
    both[0].set(ylabel="tokens forwarded, 64 prompts")
    both[0].legend()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Count, plot, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--longest", type=int, default=6400, help="words of the longest prompt")
    parser.add_argument("--out", type=Path, default=Path("eval/results/growth.json"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = language_model(Path(scratch) / "model")
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 131072}))
        with amplify.load_model(f"transformers:{folder}", dtype="float32") as model:
            result: dict[str, Any] = {"command": command(), "budget": BUDGET, "words_of_a_source": 20, "sources": []}
            for n in SOURCES:
                result["sources"].append({"sources": n, **cost(model, texts(n, 20))})
                print(result["sources"][-1], flush=True)
            result["length"] = []
            for words in (w for w in LENGTHS if 10 * w <= args.longest):
                result["length"].append({"sources": 10, "words_of_a_source": words, **cost(model, texts(10, words))})
                print(result["length"][-1], flush=True)
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    plot(result, args.out.with_suffix(".svg"))


if __name__ == "__main__":
    main()

"""A model in this process, through transformers."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch
import transformers

from amplify import models, pretrained
from amplify.backends import text
from amplify.backends.base import Usage
from amplify.backends.caches import PrefixMemory
from amplify.backends.checks import check_numbers, check_targets, check_window
from amplify.backends.decoding import decode
from amplify.backends.packed import PackedModel
from amplify.backends.tree import Plan, TokenTree, plan, trie
from amplify.errors import BackendError, CapabilityError, InputError
from amplify.locks import lock_of, one_at_a_time
from amplify.steering import Steering
from amplify.steering.attention import check_model
from amplify.steering.formula import token_spans
from amplify.steering.packed import Marked, Stream
from amplify.values import Completion, Prompt, Sampling, TokenLogProbs

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PREFIX_BYTES = 2 * 2**30  # of keys and values that a game keeps between its calls, unless said otherwise


class TransformersBackend:
    """A causal language model in this process: generates, scores, and shows its inside (`WhiteBox`).

    Args:
        model: alias, hub id or folder (`amplify.models.resolve`).
        dtype: "float32", "bfloat16", "float16"; "auto" is float32 on a CPU and the checkpoint's own elsewhere.
        device: "cpu", "cuda", "cuda:1" …; None takes a GPU where there is one.
        max_batch_tokens: tokens per forward pass; None: 256 on a CPU, 4096 elsewhere.
        max_cache_tokens: cache entries while generating (all prompts of a batch and their new tokens; more where a
            single prompt needs more); None: 4096 on a CPU, 32768 elsewhere.
        max_prefix_tokens: tokens whose keys and values `remembering` keeps between calls; None: as many as 2 GiB hold.
        attn_implementation: "sdpa" or "eager"; None: sdpa where the architecture has it.

    Attributes:
        model, tokenizer: the transformers objects. The model is in evaluation mode.
        folder: where the model is.

    Raises:
        UnknownNameError, DataError: no such model, or it cannot be had or read.
        InputError: an option's value is wrong.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        dtype: str = "auto",
        device: str | None = None,
        max_batch_tokens: int | None = None,
        max_cache_tokens: int | None = None,
        max_prefix_tokens: int | None = None,
        attn_implementation: str | None = None,
    ) -> None:
        if dtype not in ("auto", *DTYPES):
            raise InputError(f"dtype is auto, {', '.join(DTYPES)}, not {dtype!r}")
        for name, value in (("max_batch_tokens", max_batch_tokens), ("max_cache_tokens", max_cache_tokens)):
            if value is not None and value < 1:
                raise InputError(f"{name} is 1 or more, not {value}")
        if max_prefix_tokens is not None and max_prefix_tokens < 0:
            raise InputError(f"max_prefix_tokens is 0 (keep nothing) or more, not {max_prefix_tokens}")
        if attn_implementation not in (None, "sdpa", "eager"):
            raise InputError(
                f"attn_implementation is sdpa or eager (both take a tree's mask), not {attn_implementation!r}"
            )
        self.device = pretrained.device_of(device)
        cpu = self.device.type == "cpu"
        self.folder = models.resolve(model)
        chosen = "float32" if dtype == "auto" and cpu else dtype
        loaded = pretrained.causal_lm(
            self.folder, str(model), dtype=DTYPES.get(chosen, "auto"), attn_implementation=attn_implementation
        )
        self.tokenizer = pretrained.tokenizer_of(self.folder, str(model))
        self._model: transformers.PreTrainedModel | None = loaded.to(self.device).eval().requires_grad_(False)
        self._packed: PackedModel | None = None
        self.spec = f"transformers:{model}"
        self.usage = Usage()
        config = self.model.config.get_text_config(decoder=True)
        self.max_context: int | None = getattr(config, "max_position_embeddings", None)
        self.max_batch_tokens = max_batch_tokens or (256 if cpu else 4096)
        self.max_cache_tokens = max_cache_tokens or (4096 if cpu else 32768)
        self.max_prefix_tokens = max_prefix_tokens
        self._tokens: dict[int, str] = {}

    @property
    def model(self) -> transformers.PreTrainedModel:
        """The transformers model.

        Raises:
            BackendError: it was closed.
        """
        if self._model is None:
            raise BackendError(f"{self.spec} is closed: open it again")
        return self._model

    @property
    def packed(self) -> PackedModel:
        """The model's packed forward pass.

        Raises:
            CapabilityError: this architecture has none.
        """
        with lock_of(self.model):
            if self._packed is None:
                try:
                    self._packed = PackedModel(self.model)
                except CapabilityError as error:
                    raise CapabilityError(
                        f"{error}. Explanations by gradients work with it (integrated_gradients …); what generates, "
                        f"scores or steers needs another model, or an engine: vllm:{self.folder}"
                    ) from error
            return self._packed

    @one_at_a_time
    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, *, steering: Steering | None = None
    ) -> list[Completion]:
        """One completion per prompt, in order (see `Generator`).

        What prompts share at their beginning is computed once per call. Only `sampling` decides how to decode: the
        checkpoint's own penalties and sampling defaults are not applied. A seed gives prompt number i its own random
        numbers.
        """
        if not prompts:
            return []
        rendered = [text.render(p, self.tokenizer) for p in prompts]
        encoded = text.tokenise(self.tokenizer, rendered)
        for i, e in enumerate(encoded):
            if not e.ids:
                raise InputError(f"prompt {i} holds no token: there is nothing to continue")
        self.check_fit([e.ids for e in encoded], sampling.max_tokens)
        steered = self._stream(steering, rendered, encoded, [len(e.ids) for e in encoded])
        end_ids = self._end_ids()
        result: dict[int, Completion] = {}

        stops = [text.StopSearch(self.tokenizer, e.ids, sampling.stop) for e in encoded]

        def stop_at(i: int, new: list[int]) -> bool:
            # what is decoded in pieces may differ from the whole in odd tokenizers
            return stops[i].found(new) and _cut(self._text(encoded[i].ids, new), sampling.stop) is not None

        def done(i: int, new: list[int]) -> None:
            result[i] = self.completion(encoded[i].ids, new, sampling)

        with self.counted(result):
            decode(
                self.packed,
                [e.ids for e in encoded] if steered is None else steered.items,
                sampling,
                end_ids=end_ids,
                finished=stop_at,
                done=done,
                budget=self.max_cache_tokens,
                chunk=self.max_batch_tokens,
                steered=steered,
            )
        return [rendered[i].whole(result[i]) for i in range(len(prompts))]

    @one_at_a_time
    def remembering(self) -> PrefixMemory | None:
        """A memory of prompts' beginnings for several calls of `score`; None where `max_prefix_tokens` is 0.

        It holds keys and values of at most `max_prefix_tokens` tokens, and frees them when it is dropped.
        """
        most = PREFIX_BYTES // self.packed.kept if self.max_prefix_tokens is None else self.max_prefix_tokens
        return PrefixMemory(most) if most else None

    @one_at_a_time
    def score(
        self,
        prompts: Sequence[Prompt],
        continuations: Sequence[str],
        *,
        steering: Steering | None = None,
        memory: PrefixMemory | None = None,
    ) -> list[TokenLogProbs]:
        """Log-probabilities of `continuations[i]` after `prompts[i]` (see `Scorer`).

        All pairs become one token trie: a prefix shared by many (few-shot examples, an item under several labels) is
        computed once; with `memory` (see `remembering`) also once over several calls.

        Raises:
            CapabilityError: memory and steering together: emphasis changes keys and values.
        """
        if memory is not None and steering is not None:
            raise CapabilityError("a memory of prompts' beginnings holds unsteered keys and values: leave one of both")
        rendered = [text.render(p, self.tokenizer) for p in prompts]
        pairs = text.encode_with_targets(self.tokenizer, rendered, continuations)
        if not pairs:
            return []
        sequences, starts = [e.ids for e, _ in pairs], [s for _, s in pairs]
        check_targets(starts)
        self.check_fit(sequences, 0)
        steered = self._stream(steering, rendered, [e for e, _ in pairs], starts)
        tree, paths = trie(sequences if steered is None else steered.items, starts)
        ends = [0] * len(tree.segments)  # where each node ends, in tokens from the root
        for node, segment in enumerate(tree.segments):
            ends[node] = len(segment) + (ends[tree.parents[node]] if tree.parents[node] >= 0 else 0)
        own = [[n for n in path if ends[n] > start] for path, start in zip(paths, starts, strict=True)]
        wanted = sorted({n for nodes in own for n in nodes})
        by_node = dict(zip(wanted, self._tree(plan(tree, wanted), steered, memory), strict=True))
        self.usage.add(
            calls=len(pairs),
            prompt_tokens=sum(starts),
            completion_tokens=sum(map(len, sequences)) - sum(starts),
        )
        return [
            self._log_probs(ids[start:], [p for n in nodes for p in by_node[n]])
            for ids, start, nodes in zip(sequences, starts, own, strict=True)
        ]

    @one_at_a_time
    def score_tree(
        self, tree: TokenTree, wanted: Sequence[int], *, steering: Steering | None = None
    ) -> list[TokenLogProbs]:
        """Log-probabilities of the wanted nodes' tokens, each given its ancestors only.

        Args:
            tree: any tree of token segments (see `TokenTree`).
            wanted: nodes, each with a visible token before it; the first of its tokens is read from the last token of
                its nearest ancestor that it sees.
            steering: not possible, since a tree of tokens holds no emphasis.

        Returns:
            One per wanted node, in order. In float32 they equal separate full passes to 1e-4: the sums are the same
            and only their order differs.

        Raises:
            InputError: see `tree.plan`.
            ContextLengthError: a position beyond the window.
            CapabilityError: the architecture cannot be packed exactly, or steering is asked for.
        """
        if steering is not None:
            raise CapabilityError("a token tree holds no emphasis to steer towards; steer `score` or `generate`")
        if not wanted:
            return []
        laid = plan(tree, wanted)
        pretrained.check_tokens(tree.segments, self.tokenizer, self.model)
        self._check_length([int(laid.positions.max()) + 1], 0)
        values = self._tree(laid)
        self.usage.add(
            calls=len(values),
            prompt_tokens=sum(len(tree.segments[a]) for n in wanted for a in tree.path(n)[:-1]),
            completion_tokens=sum(map(len, values)),
        )
        return [self._log_probs(tree.segments[n], v) for n, v in zip(wanted, values, strict=True)]

    def ending(self, prompt: Sequence[int], sampling: Sampling) -> Callable[[Sequence[int]], bool]:
        """A function that says whether new tokens behind a prompt's are a whole completion.

        By end token, stop string or length. It is asked as they come, each time with all of them.
        """
        ends, stop = self._end_ids(), text.StopSearch(self.tokenizer, prompt, sampling.stop)

        def complete(new: Sequence[int]) -> bool:
            if len(new) >= sampling.max_tokens or (new and new[-1] in ends):
                return True
            return stop.found(new) and _cut(self._text(prompt, new), sampling.stop) is not None

        return complete

    def completion(self, prompt: Sequence[int], new: Sequence[int], sampling: Sampling) -> Completion:
        """The completion that new tokens (at least one) behind a prompt's tokens make; counted in `usage`."""
        ended = new[-1] in self._end_ids()
        # a character that is cut in half is left out, as servers do
        written = self._text(prompt, new[:-1] if ended else new).rstrip("\ufffd")
        cut = _cut(written, sampling.stop)
        self.usage.add(calls=1, prompt_tokens=len(prompt), completion_tokens=len(new))
        return Completion(
            text=written if cut is None else written[:cut],
            finish_reason="stop" if ended or cut is not None else "length",
            prompt_tokens=len(prompt),
            completion_tokens=len(new),
        )

    def count_tokens(self, prompts: Sequence[Prompt]) -> list[int]:
        """Tokens of each rendered prompt, its prefix included."""
        encoded = text.tokenise(self.tokenizer, [text.render(p, self.tokenizer) for p in prompts])
        return [len(e.ids) for e in encoded]

    def describe(self) -> dict[str, Any]:
        """Model, revision or hash, dtype, device and versions."""
        return {
            "backend": self.spec,
            "model": models.identity(self.folder),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "device": torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else str(self.device),
            "attention": self.model.config._attn_implementation,
            "max_context": self.max_context,
            "max_batch_tokens": self.max_batch_tokens,
            "max_cache_tokens": self.max_cache_tokens,
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "transformers": transformers.__version__,
            },
        }

    def close(self) -> None:
        """Free the model. Calling it twice is fine."""
        if self._model is None:
            return
        with lock_of(self._model):
            self._model = self._packed = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _stream(
        self,
        steering: Steering | None,
        rendered: Sequence[text.Rendered],
        encoded: Sequence[text.Encoded],
        prompt_tokens: Sequence[int],
    ) -> Stream | None:
        """What steers a call; None where nothing is steered."""
        if steering is None:
            return None
        check_model(self.model)
        steering.check(self.model.config, models.identity(self.folder))
        marked = [
            Marked(e.ids, token_spans(e.offsets, r.emphasis, steering, r.text), n)
            for e, r, n in zip(encoded, rendered, prompt_tokens, strict=True)
        ]
        return Stream(self.model, steering, marked) if any(m.spans for m in marked) else None

    def _tree(self, laid: Plan, steered: Stream | None = None, memory: PrefixMemory | None = None) -> list[list[float]]:
        """Log-probabilities of a plan's wanted tokens, node by node."""
        around = None
        if steered is not None:
            laid, around = steered.lay(laid), steered.around
        with self.counted({}):
            flat = iter(self.packed.log_probs(laid, self.max_batch_tokens, around, memory).tolist())
        return [[next(flat) for _ in range(n)] for n in laid.lengths]

    def _log_probs(self, ids: Sequence[int], values: Sequence[float]) -> TokenLogProbs:
        check_numbers(values, self.spec)
        return TokenLogProbs(tuple(self._token(i) for i in ids), tuple(ids), tuple(values))

    def _token(self, token_id: int) -> str:
        if token_id not in self._tokens:
            self._tokens[token_id] = str(self.tokenizer.decode([token_id]))
        return self._tokens[token_id]

    def _text(self, prompt: Sequence[int], new: Sequence[int]) -> str:
        """What the new tokens add to the text."""
        return text.added(self.tokenizer, prompt[-4:], new)

    def _end_ids(self) -> frozenset[int]:
        """Tokens that end a completion, from the generation config and the tokenizer."""
        ends = getattr(self.model.generation_config, "eos_token_id", None)
        ends = list(ends) if isinstance(ends, (list, tuple)) else [ends]
        return frozenset(e for e in (*ends, self.tokenizer.eos_token_id) if e is not None)

    def check_fit(self, prompts: Sequence[Sequence[int]], new: int) -> None:
        """Refuse prompts of tokens that the model has not, or too long with so many new ones, before any work.

        Raises:
            InputError: a token beyond the embedding.
            ContextLengthError, CapabilityError: beyond the window, or where the model's angles would mix.
        """
        pretrained.check_tokens(prompts, self.tokenizer, self.model)
        self._check_length([len(ids) for ids in prompts], new)

    def _check_length(self, tokens: Sequence[int], new: int) -> None:
        check_window(tokens, new, self.max_context)
        limit = self.packed.rope_limit
        if limit is not None and max(tokens) + new > limit:
            raise CapabilityError(
                f"a prompt goes beyond {limit} tokens, from where this model's rotary angles depend on the longest "
                "sequence of a pass: shorten it, or use another backend"
            )

    @contextmanager
    def counted(self, completed: dict[int, Completion]) -> Iterator[None]:
        """Count forwarded tokens, and turn a memory shortage into an error that says what to do."""
        before = self.packed.forwarded
        try:
            yield
        except torch.OutOfMemoryError as shortage:
            raise BackendError(
                f"out of memory on {self.device}: lower max_batch_tokens (now {self.max_batch_tokens}), "
                f"max_cache_tokens (now {self.max_cache_tokens}) or max_prefix_tokens",
                completed,
            ) from shortage
        finally:
            self.usage.add(forwarded_tokens=self.packed.forwarded - before)


def _cut(written: str, stop: Sequence[str]) -> int | None:
    """Where the earliest stop string begins."""
    return min((at for s in stop if (at := written.find(s)) >= 0), default=None)

"""A model in this process, through transformers."""

from __future__ import annotations

import functools
import platform
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
import transformers

from amplify import hub
from amplify.errors import CapabilityError, InputError, ModelError
from amplify.hub import base_of
from amplify.locks import lock_of, one_at_a_time
from amplify.models import chat, chat_template, pretrained
from amplify.models.base import Usage, check_targets, check_window, several
from amplify.models.pretrained import Loaded, shared
from amplify.models.tree.decode import decode
from amplify.models.tree.forward import Limits, PackedModel
from amplify.models.tree.kv_cache import Beginnings, PrefixCache
from amplify.models.tree.tree import TokenTree, TreePlan, plan_tree, trie
from amplify.steering import Steering
from amplify.steering.attention import Marked, Stream, check_model
from amplify.steering.formula import token_spans
from amplify.steering.keys import KeyStream
from amplify.types import Completion, Prompt, Sampling, TokenLogProbs

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PREFIX_BYTES = 2 * 2**30  # of keys and values that a game keeps between its calls, unless said otherwise
SHARED_BYTES = 2**28  # the same for `sharing`


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """How a model of this process is opened by its name.

    Attributes:
        dtype: "float32", "bfloat16", "float16"; "auto" is bfloat16 where the processor or GPU computes it natively,
            else float32 (`describe()` says which). For figures to the last digit ask for float32.
        device: "cpu", "cuda", "cuda:1" …; None takes a GPU where there is one.
        device_map, max_memory, offload_folder: how transformers spreads it over devices, e.g. device_map="auto";
            instead of `device`.
        revision: branch, tag or commit of a hub id.
        attn_implementation: "sdpa" or "eager"; None: sdpa where the architecture has it.
        quantization_config: of transformers, e.g. a BitsAndBytesConfig.
        trust_remote_code: run the Python files that the model brings.
        chat_template_kwargs: switches of the model's chat template, e.g. {"enable_thinking": False}.
        max_batch_tokens, max_cache_tokens, max_prefix_tokens: as of `TransformersModel`.

    Raises:
        InputError: an option's value is wrong.
    """

    dtype: str = "auto"
    device: str | None = None
    device_map: str | Mapping[str, Any] | None = None
    revision: str | None = None
    attn_implementation: str | None = None
    quantization_config: Any = None
    max_memory: Mapping[Any, Any] | None = None
    offload_folder: str | None = None
    trust_remote_code: bool = False
    chat_template_kwargs: Mapping[str, Any] | None = None
    max_batch_tokens: int | None = None
    max_cache_tokens: int | None = None
    max_prefix_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.dtype not in ("auto", *DTYPES):
            raise InputError(f"dtype is auto, {', '.join(DTYPES)}, not {self.dtype!r}")
        if self.attn_implementation not in (None, "sdpa", "eager"):
            raise InputError(
                f"attn_implementation is sdpa or eager (both take a tree's mask), not {self.attn_implementation!r}"
            )
        if self.device is not None and self.device_map is not None:
            raise InputError("device says where all of a model goes, device_map where each part does: give one of both")
        _check_room(*self.room)

    @property
    def room(self) -> tuple[int | None, int | None, int | None]:
        """Tokens of a batch, of the cache, and of prefixes that are kept."""
        return self.max_batch_tokens, self.max_cache_tokens, self.max_prefix_tokens


class TransformersModel:
    """A causal language model in this process: generates, scores, and shows its inside (`LocalModel`).

    Any that transformers has loaded: quantised, spread over devices, with PEFT adapters, of a class of one's own.
    `load` opens one by its name.

    Args:
        module: decoder-only; it is put in evaluation mode. Of a PEFT model the model inside is used, with its adapters.
        tokenizer: its fast tokenizer.
        name: what it is called in results; None: what it was loaded from.
        max_batch_tokens: tokens per forward pass; None: 256 on a CPU, 4096 elsewhere.
        max_cache_tokens: cache entries while generating (all prompts of a batch and their new tokens; more where a
            single prompt needs more); None: 4096 on a CPU, 32768 elsewhere.
        max_prefix_tokens: tokens whose keys and values `prefix_cache` keeps between calls; None: as many as 2 GiB hold.

    Attributes:
        tokenizer: as given.
        device: where its inputs go.

    Raises:
        InputError: an option's value is wrong, or the module is none that can be used.

    Example:
        >>> model = amplify.TransformersModel(module, tokenizer)
        >>> why = amplify.explain("Paris is the capital of", target=" France", model=model)
        >>> why.words
        ('Paris', 'is', 'the', 'capital', 'of')
    """

    def __init__(
        self,
        module: transformers.PreTrainedModel,
        tokenizer: transformers.PreTrainedTokenizerBase,
        *,
        name: str | None = None,
        max_batch_tokens: int | None = None,
        max_cache_tokens: int | None = None,
        max_prefix_tokens: int | None = None,
    ) -> None:
        inner = pretrained.usable(module)
        called = name or str(getattr(inner.config, "_name_or_path", "") or type(inner).__name__)
        loaded = Loaded(inner, tokenizer)
        loaded.holders = 1
        self._hold(loaded, f"module:{called}", max_batch_tokens, max_cache_tokens, max_prefix_tokens)

    @classmethod
    def load(cls, model: str | Path, options: LoadOptions | None = None) -> Self:
        """Open a model by its name. Opened twice with the same options, it is in memory once.

        Args:
            model: alias, hub id or folder (`amplify.hub.resolve`), also of a PEFT adapter, whose base model is
                opened with it.
            options: None: as `LoadOptions()`. `amplify.load_model("transformers:…", dtype=…)` takes them by keyword.

        Raises:
            UnknownNameError, DataError: no such model, or it cannot be had or read.
            InputError: no such device.
            ModelError: there is no memory for it.
        """
        how = options or LoadOptions()
        place = pretrained.device_of(how.device)
        folder = hub.resolve(model if how.revision is None else f"{model}@{how.revision}", adapters=True)
        given = {
            "dtype": DTYPES[pretrained.auto_dtype(place) if how.dtype == "auto" else how.dtype],
            "device_map": how.device_map,
            "attn_implementation": how.attn_implementation,
            "quantization_config": how.quantization_config,
            "max_memory": how.max_memory,
            "offload_folder": how.offload_folder,
            "trust_remote_code": how.trust_remote_code,
        }
        switches = how.chat_template_kwargs or {}

        def load() -> Loaded:
            module, tokenizer = pretrained.language_model(folder, str(model), place, **given)
            return Loaded(module, chat_template.switched(tokenizer, switches), folder)

        key = (folder, pretrained.stamp(folder), place, repr(sorted(given.items())), repr(how.chat_template_kwargs))
        opened = cls.__new__(cls)
        opened._hold(shared(key, load), f"transformers:{model}", *how.room)
        return opened

    def _hold(self, loaded: Loaded, spec: str, batch: int | None, cache: int | None, prefix: int | None) -> None:
        _check_room(batch, cache, prefix)
        self._loaded: Loaded | None = loaded
        self._release = weakref.finalize(self, loaded.release)
        self.tokenizer: transformers.PreTrainedTokenizerBase = loaded.tokenizer
        self.device = pretrained.input_device(self.module)
        cpu = self.device.type == "cpu"
        self.id = spec
        self.usage = Usage()
        config = self.module.config.get_text_config(decoder=True)
        self.max_context: int | None = getattr(config, "max_position_embeddings", None)
        self.max_batch_tokens = batch or (256 if cpu else 4096)
        self.max_cache_tokens = cache or (4096 if cpu else 32768)
        self.max_prefix_tokens = prefix
        self.beginnings: Beginnings | None = None
        self._sharing = 0
        self._tokens: dict[int, str] = {}

    @property
    def loaded(self) -> Loaded:
        """The module, shared with who else holds it.

        Raises:
            ModelError: it was closed.
        """
        if self._loaded is None:
            raise ModelError(f"{self.id} is closed: open it again")
        return self._loaded

    @property
    def module(self) -> transformers.PreTrainedModel:
        """The transformers model; raises what `loaded` does."""
        return self.loaded.module

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """What the model is: its name, and hashes of its weights."""
        folder = self.loaded.folder
        if folder is not None and (folder / "config.json").is_file():
            return hub.identity(folder)
        if folder is not None:
            base = hub.identity(hub.resolve(base_of(folder, self.id)))
            return {**hub.identity(folder), "base": base}
        return {"name": Path(self.id.partition(":")[2]).name, "fingerprint": pretrained.fingerprint(self.module)}

    @property
    def limits(self) -> Limits:
        """How much is held and computed at once."""
        return Limits(self.max_cache_tokens, self.max_batch_tokens)

    @property
    def packed(self) -> PackedModel:
        """The model's packed forward pass.

        Raises:
            CapabilityError: this architecture has none.
        """
        with lock_of(self.module):
            if self.loaded.packed is None:
                try:
                    self.loaded.packed = PackedModel(self.module, self.device)
                except CapabilityError as error:
                    elsewhere = f", or an engine: vllm:{self.loaded.folder}" if self.loaded.folder else ""
                    raise CapabilityError(
                        f"{error}. Explanations by gradients work with it (integrated_gradients …); what generates, "
                        f"scores or steers needs another model{elsewhere}"
                    ) from error
            packed: PackedModel = self.loaded.packed
            return packed

    @one_at_a_time
    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, *, steering: Steering | None = None
    ) -> list[Completion]:
        """One completion per prompt, in order (see `LanguageModel`).

        What prompts share at their beginning is computed once per call. Only `sampling` decides how to decode: the
        checkpoint's own penalties and sampling defaults are not applied. A seed gives each answer its own random
        numbers. With temperature 0 the n answers of a prompt are the same one.
        """
        if not prompts:
            return []
        if sampling.n > 1:
            return several(self, prompts, sampling, steering)
        rendered = [chat.render(p, self.tokenizer) for p in prompts]
        encoded = chat.tokenise(self.tokenizer, rendered)
        for i, e in enumerate(encoded):
            if not e.ids:
                raise InputError(f"prompt {i} holds no token: there is nothing to continue")
        self.check_fit([e.ids for e in encoded], sampling.max_tokens)
        steered = self._stream(steering, rendered, encoded, [len(e.ids) for e in encoded])
        end_ids = self._end_ids()
        result: dict[int, Completion] = {}

        stops = [chat.StopSearch(self.tokenizer, e.ids, sampling.stop) for e in encoded]

        def stop_at(i: int, new: list[int]) -> bool:
            # what is decoded in pieces may differ from the whole in odd tokenizers
            return stops[i].found(new) and _cut(self._text(encoded[i].ids, new), sampling.stop) is not None

        def done(i: int, new: list[int], likely: list[float]) -> None:
            found = self.completion(encoded[i].ids, new, sampling)
            result[i] = replace(found, logprobs=self._log_probs(new, likely)) if sampling.logprobs else found

        with self.counted(result):
            decode(
                self.packed,
                [e.ids for e in encoded] if steered is None else steered.items,
                sampling,
                end_ids=end_ids,
                finished=stop_at,
                done=done,
                limits=self.limits,
                steered=steered,
            )
        return [rendered[i].whole(result[i]) for i in range(len(prompts))]

    @one_at_a_time
    def prefix_cache(self) -> PrefixCache | None:
        """A memory of prompts' beginnings for several calls of `score`; None where `max_prefix_tokens` is 0.

        It holds keys and values of at most `max_prefix_tokens` tokens, and frees them when it is dropped.
        """
        most = self._kept_tokens(PREFIX_BYTES)
        return PrefixCache(most) if most else None

    def _kept_tokens(self, most: int) -> int:
        return most // self.packed.kept if self.max_prefix_tokens is None else self.max_prefix_tokens

    @contextmanager
    def sharing(self) -> Iterator[None]:
        """While it lasts, what all prompts of a call of `score` begin with is computed once for the calls that follow.

        At most `max_prefix_tokens` tokens are kept (None: 256 MiB). Nobody may change the model's weights meanwhile.
        """
        with lock_of(self.module):
            if not self._sharing:
                self.beginnings = Beginnings(self._kept_tokens(SHARED_BYTES))
            self._sharing += 1
        try:
            yield
        finally:
            self._sharing -= 1
            if not self._sharing:
                self.beginnings = None

    @one_at_a_time
    def score(
        self,
        prompts: Sequence[Prompt],
        continuations: Sequence[str],
        *,
        steering: Steering | None = None,
        memory: PrefixCache | None = None,
    ) -> list[TokenLogProbs]:
        """Log-probabilities of `continuations[i]` after `prompts[i]` (see `ScoringModel`).

        All pairs become one token trie: a prefix shared by many (few-shot examples, an item under several labels) is
        computed once; with `memory` (see `prefix_cache`) or while `sharing` also once over several calls.

        Raises:
            CapabilityError: memory and steering together: emphasis changes keys and values.
        """
        if memory is not None and steering is not None:
            raise CapabilityError("a memory of prompts' beginnings holds unsteered keys and values: leave one of both")
        rendered = [chat.render(p, self.tokenizer) for p in prompts]
        pairs = chat.encode_with_targets(self.tokenizer, rendered, continuations)
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
        if memory is None and steered is None and self.beginnings is not None:
            prompted = [ids[:start] for ids, start in zip(sequences, starts, strict=True)]
            memory = self.beginnings.of(prompted, lambda plan, kept: self._tree(plan, None, kept))
        by_node = dict(zip(wanted, self._tree(plan_tree(tree, wanted), steered, memory), strict=True))
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
        laid = plan_tree(tree, wanted)
        pretrained.check_tokens(tree.segments, self.tokenizer, self.module)
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
        ends, stop = self._end_ids(), chat.StopSearch(self.tokenizer, prompt, sampling.stop)

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
        encoded = chat.tokenise(self.tokenizer, [chat.render(p, self.tokenizer) for p in prompts])
        return [len(e.ids) for e in encoded]

    def describe(self) -> dict[str, Any]:
        """Model, revision or hash, dtype, device and versions."""
        return {
            "id": self.id,
            "model": self.identity,
            "dtype": str(self.module.dtype).removeprefix("torch."),
            **pretrained.makeup(self.module),
            "device": torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else str(self.device),
            "attention": self.module.config._attn_implementation,
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
        """Free the model, once all who opened it have closed it. Calling it twice is fine."""
        if self._loaded is None:
            return
        self._loaded = None
        self._release()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _stream(
        self,
        steering: Steering | None,
        rendered: Sequence[chat.Rendered],
        encoded: Sequence[chat.Encoded],
        prompt_tokens: Sequence[int],
    ) -> Stream | KeyStream | None:
        """What steers a call; None where nothing is steered."""
        if steering is None:
            return None
        check_model(self.module)
        steering.check(self.module.config, self.identity if self.loaded.folder else None)
        marked = [
            Marked(e.ids, token_spans(e.offsets, r.emphasis, steering, r.text), n)
            for e, r, n in zip(encoded, rendered, prompt_tokens, strict=True)
        ]
        if not any(m.spans for m in marked):
            return None
        return (KeyStream if steering.edits_keys else Stream)(self.module, steering, marked)

    def _tree(
        self, laid: TreePlan, steered: Stream | KeyStream | None = None, memory: PrefixCache | None = None
    ) -> list[list[float]]:
        """Log-probabilities of a plan's wanted tokens, node by node."""
        around = None
        if steered is not None:
            laid, around = steered.lay(laid), steered.around
        with self.counted({}):
            flat = iter(self.packed.log_probs(laid, self.max_batch_tokens, around, memory).tolist())
        return [[next(flat) for _ in range(n)] for n in laid.lengths]

    def _log_probs(self, ids: Sequence[int], values: Sequence[float]) -> TokenLogProbs:
        return TokenLogProbs(tuple(self._token(i) for i in ids), tuple(ids), tuple(values))

    def _token(self, token_id: int) -> str:
        if token_id not in self._tokens:
            self._tokens[token_id] = str(self.tokenizer.decode([token_id]))
        return self._tokens[token_id]

    def _text(self, prompt: Sequence[int], new: Sequence[int]) -> str:
        """What the new tokens add to the text."""
        return chat.added(self.tokenizer, prompt[-4:], new)

    def _end_ids(self) -> frozenset[int]:
        """Tokens that end a completion, from the generation config and the tokenizer."""
        ends = getattr(self.module.generation_config, "eos_token_id", None)
        ends = list(ends) if isinstance(ends, (list, tuple)) else [ends]
        return frozenset(e for e in (*ends, self.tokenizer.eos_token_id) if e is not None)

    def check_fit(self, prompts: Sequence[Sequence[int]], new: int) -> None:
        """Refuse prompts of tokens that the model has not, or too long with so many new ones, before any work.

        Raises:
            InputError: a token beyond the embedding.
            ContextLengthError, CapabilityError: beyond the window, or where the model's angles would mix.
        """
        pretrained.check_tokens(prompts, self.tokenizer, self.module)
        self._check_length([len(ids) for ids in prompts], new)

    def _check_length(self, tokens: Sequence[int], new: int) -> None:
        check_window(tokens, new, self.max_context)
        limit = self.packed.rope_limit
        if limit is not None and max(tokens) + new > limit:
            raise CapabilityError(
                f"a prompt goes beyond {limit} tokens, from where this model's rotary angles depend on the longest "
                "sequence of a pass: shorten it, or use another model"
            )

    @contextmanager
    def counted(self, completed: dict[int, Completion]) -> Iterator[None]:
        """Count forwarded tokens, and turn a memory shortage into an error that says what to do."""
        before = self.packed.forwarded
        try:
            yield
        except torch.OutOfMemoryError as shortage:
            raise ModelError(
                f"out of memory on {self.device}: lower max_batch_tokens (now {self.max_batch_tokens}), "
                f"max_cache_tokens (now {self.max_cache_tokens}) or max_prefix_tokens",
                completed,
            ) from shortage
        finally:
            self.usage.add(forwarded_tokens=self.packed.forwarded - before)


def _check_room(batch: int | None, cache: int | None, prefix: int | None) -> None:
    for name, value in (("max_batch_tokens", batch), ("max_cache_tokens", cache)):
        if value is not None and value < 1:
            raise InputError(f"{name} is 1 or more, not {value}")
    if prefix is not None and prefix < 0:
        raise InputError(f"max_prefix_tokens is 0 (keep nothing) or more, not {prefix}")


def _cut(written: str, stop: Sequence[str]) -> int | None:
    """Where the earliest stop string begins."""
    return min((at for s in stop if (at := written.find(s)) >= 0), default=None)

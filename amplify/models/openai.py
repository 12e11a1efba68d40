"""Any OpenAI-compatible server: `openai:MODEL@http://127.0.0.1:8000/v1`.

Given the model's tokenizer folder, templates are rendered here and token ids are sent, so that every model sends the
same tokens; a server that returns the log-probabilities of prompt tokens then scores as well. Without it, chats go to
the chat API and the server renders them.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Self, TypeVar

from amplify.errors import CapabilityError, DataError, InputError, ModelError
from amplify.models.base import Usage, check_pairs, check_targets, check_window, own_seed, several
from amplify.models.replies import (
    NEUTRAL,
    Dialect,
    GiveUpError,
    Json,
    NoLogProbsError,
    ReplyError,
    Way,
    prompt_log_probs,
    usage,
    written,
    written_log_probs,
)
from amplify.models.server import KEY_VARIABLE, Server, run_all
from amplify.redaction import redact_fields
from amplify.steering.payload import KEY, PROBE, payloads
from amplify.types import Completion, Message, Prompt, Sampling, TokenLogProbs

if TYPE_CHECKING:
    from amplify.models.chat import Encoded, Rendered
    from amplify.steering import Steering

T = TypeVar("T")
REFUSALS = (400, 422)  # statuses by which servers refuse a field
CONTINUING = ("vllm", "sglang")  # servers that continue an answer begun for the model, by what they say they are


@dataclass(frozen=True, kw_only=True)
class Connection:
    """How a server is asked.

    Attributes:
        concurrency: requests in flight at once.
        retries: further tries of a request that failed in a way that may pass (429, 5xx, time-out, no connection, an
            answer that is not what the API promises), after waits that double from half a second up.
        timeout: seconds within which each try must be answered in full, to the last byte. A server that never answers
            is given up after (retries + 1) * timeout and the waits between.

    Raises:
        InputError: a number that cannot be.
    """

    concurrency: int = 16
    retries: int = 5
    timeout: float = 120.0

    def __post_init__(self) -> None:
        if self.concurrency < 1 or self.retries < 0 or not 0 < self.timeout < math.inf:
            raise InputError(f"need concurrency >= 1, retries >= 0, timeout > 0: {self}")


def connect(model_at_url: str, **options: Any) -> OpenAIModel:
    """Open a server as what it can do: an `OpenAIScorer` where it returns prompt log-probabilities, else a generator.

    Args:
        model_at_url: "MODEL@URL".
        **options: see `OpenAIModel` and `Connection`. Only with `tokenizer=` is the server asked what it can do.

    Raises:
        ModelError: the server was to be asked and did not answer.
    """
    how = {field.name: options.pop(field.name) for field in fields(Connection) if field.name in options}
    options["connection"] = Connection(**how)
    if options.get("tokenizer") is None:
        return OpenAIModel(model_at_url, **options)
    scorer = OpenAIScorer(model_at_url, **options)
    try:
        scorer.max_context = scorer.max_context or scorer.window()
        if scorer.find_way():
            return scorer
    except BaseException:
        scorer.close()
        raise
    scorer.close()
    return OpenAIModel(model_at_url, **{**options, "max_context": scorer.max_context})


class OpenAIModel:
    """Generates on an OpenAI-compatible server. The key is read from OPENAI_API_KEY and kept nowhere else."""

    def __init__(
        self,
        model_at_url: str,
        *,
        tokenizer: str | None = None,
        connection: Connection | None = None,
        max_context: int | None = None,
        continue_final_message: bool | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        extra_body: Mapping[str, Any] | None = None,
    ) -> None:
        """Prepare the client; nothing is sent yet.

        Args:
            model_at_url: "MODEL@URL", e.g. "smollm2@http://127.0.0.1:8000/v1".
            tokenizer: folder, alias or hub id of the model's tokenizer (no weights are needed or fetched); its
                templates are then rendered here.
            connection: how the server is asked; None: as `Connection()`.
            max_context: the model's window in tokens, where known.
            continue_final_message: whether the server can continue an answer that is begun for it (a prompt's `prefix`
                on a chat), as vLLM does. None: yes, where the server says that it is vLLM or SGLang. Where it cannot,
                the model is asked in words to begin so, and the header says it.
            chat_template_kwargs: switches of the model's chat template, e.g. {"enable_thinking": False}.
            extra_body: further fields of every request, e.g. {"top_k": 1}; they go before what amplify sends itself.

        Raises:
            InputError: malformed "MODEL@URL" or option, or a key that cannot be one.
        """
        found = re.fullmatch(r"(.+)@(https?://[^\s?#]+)", model_at_url)
        if not found or "@" in found[2]:
            raise InputError(
                f"a server is written openai:MODEL@URL, e.g. openai:smollm2@http://127.0.0.1:8000/v1, without user, "
                f"password or query; the key goes into {KEY_VARIABLE}"
            )
        self.connection = connection or Connection()
        self.model, self.url = found[1], found[2].rstrip("/")
        self.id = f"openai:{self.model}@{self.url}"
        self.usage = Usage()
        self.max_context = max_context
        self._continue, self._switches = continue_final_message, dict(chat_template_kwargs or {})
        self._extra = dict(extra_body or {})
        self._dialect = Dialect()
        self._server = Server(self.url, self.connection.timeout)
        self._steers = self._settled = False  # until the server has shown it
        self._tokenizer_name = tokenizer
        self._tokenizer: Any = _load_tokenizer(tokenizer, self._switches) if tokenizer else None

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, *, steering: Steering | None = None
    ) -> list[Completion]:
        """See `LanguageModel.generate`.

        Raises:
            CapabilityError: steering, and the server does not steer or `tokenizer` is not given; or log-probabilities,
                and the server gives none.
        """
        if sampling.n > 1:
            return several(self, prompts, sampling, steering)
        self._check(steering)
        ids: Sequence[Sequence[int] | None] = [None] * len(prompts)
        asked: Sequence[str | None] = [None] * len(prompts)
        rendered: Sequence[Rendered] = ()
        if self._tokenizer is None:
            counts = self.count_tokens(prompts)
        else:
            rendered, encoded = self._encode(prompts)
            ids, counts = [e.ids for e in encoded], [len(e.ids) for e in encoded]
            asked = payloads(steering, [(r, e.offsets, len(e.ids)) for r, e in zip(rendered, encoded, strict=True)])
            check_window(counts, sampling.max_tokens, self.max_context)
        requests = [self._request(prompt, ids[i], sampling, i, asked[i]) for i, prompt in enumerate(prompts)]
        answers = [
            partial(self._whole, rendered[i] if rendered else None, *requests[i], prompt, sampling, counts[i])
            for i, prompt in enumerate(prompts)
        ]
        try:
            return run_all(
                answers,
                who=self.id,
                concurrency=self.connection.concurrency,
                retries=self.connection.retries,
                answered=lambda i, done: self.usage.add_call(done.prompt_tokens, done.completion_tokens),
            )
        except ModelError as error:
            if (lacks := _lacks_log_probs(error)) is not None:
                raise CapabilityError(
                    f"{lacks}: {self.id!r} answers without logprobs=True alone. For log-probabilities use "
                    "another server (vLLM gives them), or a transformers: or vllm: model"
                ) from error
            raise

    def count_tokens(self, prompts: Sequence[Prompt]) -> list[int]:
        """Exact with `tokenizer`; without it an estimate of one token per four bytes, and four more per message."""
        if self._tokenizer is not None:
            return [len(e.ids) for e in self._encode(prompts)[1]]
        texts = [(p.text or "") + "".join(m.content for m in p.messages) + p.prefix for p in prompts]
        return [math.ceil(len(text.encode()) / 4) + 4 * len(p.messages) for p, text in zip(prompts, texts, strict=True)]

    def describe(self) -> dict[str, Any]:
        """Model, server, who renders the templates, how tokens are counted, and what the server does not take.

        Raises:
            ModelError: it does not answer.
        """
        import httpx

        self._settle()
        return {
            "id": self.id,
            "model": {"name": self.model},
            "tokenizer": self._tokenizer_name,
            "templates": "rendered here" if self._tokenizer is not None else "rendered by the server",
            "token_counts": "exact"
            if self._tokenizer is not None
            else "estimated before a run, the server's own in it",
            "max_context": self.max_context,
            "prefill": "continued" if self._tokenizer is not None or self._continues else "asked for in words",
            "chat_template_kwargs": self._switches,
            "extra_body": redact_fields(self._extra),
            "not_taken": sorted(self._dialect.without),
            "versions": {"httpx": httpx.__version__},
        }

    def window(self) -> int | None:
        """The window that the server states for this model (vLLM does), or None.

        Raises:
            ModelError: no answer after all retries.
        """
        window = self._listed.get("max_model_len")
        return window if type(window) is int and window > 0 else None

    def close(self) -> None:
        """Close the connections."""
        self._server.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _request(
        self, prompt: Prompt, ids: Sequence[int] | None, sampling: Sampling, index: int, asked: str | None
    ) -> tuple[str, Json]:
        """Path and body of the request for prompt number `index` of a batch."""
        body: Json = {"model": self.model, "max_tokens": sampling.max_tokens, "temperature": sampling.temperature}
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        if sampling.temperature > 0:
            body["top_p"] = sampling.top_p
            if sampling.seed is not None:
                body["seed"] = own_seed(sampling.seed, sampling.offset + index)
        body |= self._with(asked)
        if sampling.logprobs:
            chat = ids is None and prompt.text is None
            body["logprobs"] = True if chat else 1  # a truth value there, a number of alternatives here
            if self._listed.get("owned_by") == "vllm":
                body["return_token_ids"] = True
        if ids is not None:
            return "/completions", {**body, "prompt": list(ids)}
        if prompt.text is not None:
            return "/completions", {**body, "prompt": prompt.text + prompt.prefix}
        turns = list(prompt.messages)
        if prompt.prefix and self._continues:
            turns.append(Message("assistant", prompt.prefix))
            body |= {"continue_final_message": True, "add_generation_prompt": False}
        elif prompt.prefix:
            turns = _begun(turns, prompt.prefix)
            body["max_tokens"] += self._text_tokens(prompt.prefix)  # it writes them itself
            body["stop"] = [stop for stop in sampling.stop if stop not in prompt.prefix]
            if not body["stop"]:
                del body["stop"]
        if self._switches:
            body["chat_template_kwargs"] = self._switches
        return "/chat/completions", {**body, "messages": [m.to_dict() for m in turns]}

    @property
    def _continues(self) -> bool:
        """Whether a chat's answer can be begun for the model."""
        if self._continue is None:
            self._continue = self._listed.get("owned_by") in CONTINUING
        return self._continue

    async def _whole(self, rendered: Rendered | None, *request: Any) -> Completion:
        completion = await self._complete(*request)
        return completion if rendered is None else rendered.whole(completion)

    async def _complete(self, path: str, body: Json, prompt: Prompt, sampling: Sampling, counted: int) -> Completion:
        try:
            data = await self._post(path, body, counted + sampling.max_tokens)
        except GiveUpError as error:
            if sampling.logprobs and error.status in REFUSALS and "logprob" in str(error):
                raise error from NoLogProbsError(str(error))
            raise
        reasoning, text, finish = written(data)
        given, generated = usage(data)
        likely = written_log_probs(data) if sampling.logprobs else None
        if prompt.prefix and path == "/chat/completions" and "continue_final_message" not in body:
            behind = _behind(prompt.prefix, text)
            if likely is not None and not reasoning:
                likely = _without(likely, len(text) - len(behind))
            text = behind
        # not every server stops there
        cut = min((at for stop in sampling.stop if (at := text.find(stop)) >= 0), default=None)
        return Completion(
            text=reasoning + text[:cut],
            finish_reason=finish if cut is None else "stop",
            prompt_tokens=counted if given is None else given,
            completion_tokens=self._text_tokens(reasoning + text) if generated is None else generated,
            logprobs=likely,
        )

    async def _post(self, path: str, body: Json, tokens: int) -> Json:
        """The server's answer, asked without what it refuses.

        Args:
            path, body: of the request.
            tokens: that the answer may speak of.
        """
        dialect, first = self._dialect, None
        while True:
            sent = dialect.said(path, body)
            try:
                data = await self._server.post(path, sent, tokens)
            except GiveUpError as error:
                first = first or error
                if error.status not in REFUSALS:
                    raise first from None
                known = replace(dialect, taken=self._dialect.taken)  # what was taken of other requests meanwhile
                other = known.after(str(error), sent.keys() - self._extra.keys())
                if other is None:
                    raise first from None
                dialect = other
            else:
                self._dialect = self._dialect.learned(dialect, sent)
                return data

    def _settle(self) -> None:
        """Find out what the server takes, by one short request where it does not say that it is vLLM."""
        if self._listed.get("owned_by") != "vllm" and not self._settled:
            hello = Prompt(messages=(Message("user", "Hello"),))
            ids = None if self._tokenizer is None else self._tokenizer.encode("one two three", add_special_tokens=False)
            path, body = self._request(hello, ids, Sampling(max_tokens=16, stop=("\n",)), 0, None)

            async def ask() -> None:
                try:
                    await self._post(path, body, 1024)
                except GiveUpError:  # whatever it is, the first real request says it
                    return

            self._once(ask)
        self._settled = True

    @cached_property
    def _listed(self) -> Json:
        """What the server says about the model in its list; nothing where it has none."""

        async def ask() -> Json:
            try:
                return await self._server.get("/models")
            except (GiveUpError, ReplyError):  # not every server lists its models
                return {}

        models = self._once(ask).get("data")
        entries = [e for e in models if isinstance(e, dict)] if isinstance(models, list) else []
        return next((e for e in entries if e.get("id") == self.model), {})

    def _once(self, call: Callable[[], Awaitable[T]]) -> T:
        return run_all([call], who=self.id, concurrency=1, retries=self.connection.retries)[0]

    def _encode(self, prompts: Sequence[Prompt]) -> tuple[list[Rendered], list[Encoded]]:
        from amplify.models.chat import render, tokenise

        rendered = [render(p, self._tokenizer) for p in prompts]
        return rendered, tokenise(self._tokenizer, rendered)

    def _with(self, asked: str | None) -> Json:
        """Further fields of a request: sampling that is not wanted, the caller's fields, and its steering."""
        if asked is None:
            return NEUTRAL | self._extra
        return {**NEUTRAL, **self._extra, "vllm_xargs": {**self._extra.get("vllm_xargs", {}), KEY: asked}}

    def _check(self, steering: Steering | None) -> None:
        """Refuse steering that would not reach the attention: a server without the plugin ignores what it is sent."""
        if steering is None:
            return
        if self._tokenizer is None:
            raise CapabilityError(
                f"{self.id!r} renders chats itself, so spans cannot be placed on its tokens. Pass tokenizer=FOLDER "
                "(the model's tokenizer): prompts are then rendered and tokenised here, and sent as token ids."
            )
        steering.check(*self._fits)
        if self._steers:
            return
        refusal = self._once(self._probe)
        if KEY not in refusal or "without steering" in refusal:
            raise CapabilityError(
                f"{self.id!r} does not steer attention{f' ({refusal})' if refusal else ''}. Serve the model by vLLM "
                f"with amplify installed beside it and --additional-config '{{\"{KEY}\": {{}}}}'."
            )
        self._steers = True

    @cached_property
    def _fits(self) -> tuple[Any, dict[str, str]]:
        """Config and identity of the model that the tokenizer belongs to, to compare head profiles with."""
        from transformers import AutoConfig

        from amplify import hub

        folder = hub.resolve(str(self._tokenizer_name), weights=False)
        try:
            config = AutoConfig.from_pretrained(folder)
        except (OSError, ValueError) as error:
            raise DataError(f"steering compares heads with the model's config.json, which {folder} lacks") from error
        return config, hub.identity(folder) if any(folder.glob("*.safetensors")) else {}

    async def _probe(self) -> str:
        """What the server says to steering that it cannot read; "" where it does not look at it."""
        ids = self._tokenizer.encode("one two three", add_special_tokens=False)
        try:
            await self._server.post(
                "/completions", {"model": self.model, "prompt": ids, "max_tokens": 1, **self._with(PROBE)}, len(ids)
            )
        except GiveUpError as error:
            return str(error)
        return ""

    def _text_tokens(self, text: str) -> int:
        if self._tokenizer is not None:
            return len(self._tokenizer.encode(text, add_special_tokens=False))
        return math.ceil(len(text.encode()) / 4)


class OpenAIScorer(OpenAIModel):
    """A server that returns log-probabilities of prompt tokens; made by `connect`, which asks it."""

    way: Way = "prompt_logprobs"

    def find_way(self) -> bool:
        """Try each way to get the log-probabilities of prompt tokens and keep the first that works.

        "prompt_logprobs" is vLLM's (which then does not read its prefix cache, so that every number is computed);
        "echo" is that of the completions API as first published.

        Raises:
            ModelError: the server cannot be reached.
        """
        ids = self._tokenizer.encode("one two three", add_special_tokens=False)
        ways: tuple[Way, ...] = ("prompt_logprobs", "echo")
        return any(self._offers(ids) for self.way in ways)

    def score(
        self, prompts: Sequence[Prompt], continuations: Sequence[str], *, steering: Steering | None = None
    ) -> list[TokenLogProbs]:
        """See `ScoringModel.score`."""
        from amplify.models.chat import encode_with_targets, render

        self._check(steering)
        check_pairs(prompts, continuations)
        rendered = [render(p, self._tokenizer) for p in prompts]
        encoded = encode_with_targets(self._tokenizer, rendered, continuations)
        asked = payloads(steering, [(r, e.offsets, start) for r, (e, start) in zip(rendered, encoded, strict=True)])
        check_targets([start for _, start in encoded])
        check_window([len(e.ids) for e, _ in encoded], 1, self.max_context)  # the API generates at least one token
        return run_all(
            [partial(self._score, e.ids, start, asked[i]) for i, (e, start) in enumerate(encoded)],
            who=self.id,
            concurrency=self.connection.concurrency,
            retries=self.connection.retries,
            answered=lambda i, done: self.usage.add_call(encoded[i][1], len(done.token_ids)),
        )

    def _offers(self, ids: Sequence[int]) -> bool:
        try:
            self._once(partial(self._score, ids, 1))
        except ModelError as error:
            refused = isinstance(error.__cause__, GiveUpError) and error.__cause__.__cause__ is None
            if refused or _lacks_log_probs(error) is not None:
                return False
            raise
        return True

    async def _score(self, ids: Sequence[int], start: int, asked: str | None = None) -> TokenLogProbs:
        how = {"prompt_logprobs": 0} if self.way == "prompt_logprobs" else {"echo": True, "logprobs": 1}
        body = {"model": self.model, "prompt": list(ids), "max_tokens": 1, "temperature": 0.0, **self._with(asked)}
        found = prompt_log_probs(await self._post("/completions", body | how, len(ids)), ids, start, self.way)
        target = tuple(ids[start:])
        return TokenLogProbs(tuple(self._tokenizer.decode([token]) for token in target), target, found)


def _lacks_log_probs(error: ModelError) -> NoLogProbsError | None:
    """What a server said that gives no log-probabilities, where that is why a call failed for good."""
    given_up = error.__cause__
    cause = given_up.__cause__ if given_up is not None else None
    return cause if isinstance(cause, NoLogProbsError) else None


def _load_tokenizer(name: str, switches: Mapping[str, Any]) -> Any:
    from amplify import hub
    from amplify.models import pretrained
    from amplify.models.chat_template import switched

    return switched(pretrained.tokenizer_of(hub.resolve(name, weights=False), name), switches)


def _begun(messages: Sequence[Message], prefix: str) -> list[Message]:
    """A chat whose model is asked in words to begin its answer so."""
    asked = f"Begin your answer with exactly these words, and go on from there:\n{prefix.strip()}"
    *before, last = messages
    if last.role != "user":
        return [*messages, Message("user", asked)]
    return [*before, Message("user", f"{last.content}\n\n{asked}")]


def _behind(prefix: str, text: str) -> str:
    """What an answer says behind a beginning that it was asked for in words, whether or not it begins so."""
    if text.lstrip().startswith(prefix.strip()):
        return text.lstrip()[len(prefix.strip()) :]
    return text if prefix[-1].isspace() or text[:1].isspace() else f" {text}"


def _without(found: TokenLogProbs, characters: int) -> TokenLogProbs:
    """Tokens without those that lie within the first characters."""
    ends = itertools.accumulate(map(len, found.tokens))
    k = sum(end <= characters for end in ends)
    return TokenLogProbs(found.tokens[k:], found.token_ids[k:], found.logprobs[k:])

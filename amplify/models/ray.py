"""One model on many machines: `ray:N×KIND:MODEL`, N workers of a Ray cluster that each hold the model.

    model = amplify.load_model("ray:8×vllm:qwen2.5-coder-1.5b", dtype="bfloat16")

A batch is cut into parts of `batch_size` prompts, which the workers take from one queue (see `amplify.models.pool`).
How it is cut depends on the batch alone, so any number of workers gives what one gives, to the last bit where the model
itself repeats its numbers. Whole tasks (the attribution of a conversation, an item of a head search) go to one worker
each, which does them with all that its own kind of model can.

Without a cluster (an address as option or in RAY_ADDRESS) one is started on this machine, and ended with the model. The
key of a server and the like travel to a worker in its first call, and stand in no record of the cluster.
"""

from __future__ import annotations

import itertools
import os
import re
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar

import amplify
from amplify.errors import AmplifyError, InputError, MissingExtraError, ModelError
from amplify.models.base import LanguageModel, ScoringModel, Usage, check_pairs, check_window, several
from amplify.models.pool import Pool, WorkerDiedError
from amplify.redaction import keep_secret
from amplify.registry import table
from amplify.types import Completion, Prompt, Sampling, TokenLogProbs

if TYPE_CHECKING:
    from amplify.steering import Steering

T = TypeVar("T")
R = TypeVar("R")

SECRET = ("OPENAI_API_KEY", "HF_TOKEN")
SENT = (*SECRET, "AMPLIFY_SPECIAL_TOKENS")
"""Variables of this process's environment that workers elsewhere are given."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Where workers run, and what each is given.

    Attributes:
        address: of the cluster's head, e.g. "ray://head:10001" or "auto"; None: RAY_ADDRESS, else a cluster of this
            machine that is started and ended with the model.
        num_cpus: processors that a worker reserves.
        num_gpus: GPUs that a worker reserves; None: as many as its tensor_parallel_size (1 unless given) where the
            cluster has any and the model runs in the worker, else 0.
        batch_size: prompts that a worker is given at a time.
        patience: seconds within which all workers must be ready.

    Raises:
        InputError: a number that cannot be.
    """

    address: str | None = None
    num_cpus: float = 1.0
    num_gpus: float | None = None
    batch_size: int = 16
    patience: float = 900.0

    def __post_init__(self) -> None:
        if self.num_cpus < 0 or (self.num_gpus or 0) < 0 or self.batch_size < 1 or self.patience <= 0:
            raise InputError(f"need num_cpus >= 0, num_gpus >= 0, batch_size >= 1, patience > 0: {self}")


def connect(spec: str, cluster: Cluster | None = None, options: Mapping[str, Any] | None = None) -> RayModel:
    """Open a model on workers of a Ray cluster.

    Args:
        spec: "N×KIND:MODEL" (or with a plain x).
        cluster: where; None: as `Cluster()`.
        options: of the model itself, for every worker.

    Returns:
        A `RayScorer` where the model scores, else a `RayModel`.

    Raises:
        InputError: a malformed spec.
        MissingExtraError: Ray is not installed.
        ModelError: the cluster cannot be reached, or not all workers were ready in time.
        AmplifyError: what opening the model raised at a worker.
    """
    how, given = cluster or Cluster(), dict(options or {})
    found = re.fullmatch(r"([0-9]{1,4})\s*[x×]\s*([^:\s]+):(.+)", spec.strip())
    if not found or int(found[1]) < 1 or found[2] == "ray":
        raise InputError(
            "workers are written ray:N×KIND:MODEL, N from 1 to 9999, e.g. ray:4×vllm:smollm2-135m, got "
            f"'ray:{spec[:80]}'"
        )
    count, kind, rest = int(found[1]), found[2], found[3]
    table("model").find(kind)
    if kind in ("transformers", "vllm") and Path(rest).is_dir():
        rest = str(Path(rest).resolve())  # workers may stand in another folder
    reached = _Ray(how, count)
    try:
        gpus = how.num_gpus if how.num_gpus is not None else reached.gpus(kind, given)
        reached.check(count, how.num_cpus, gpus)
        opened = partial(reached.worker, f"{kind}:{rest}", given, how.num_cpus, gpus)
        pool = Pool(opened, count)
        try:
            pool.start(how.patience)
        except ModelError as error:
            lacks = f"; the cluster has {reached.has()}, and each worker takes {how.num_cpus:g} CPU and {gpus:g} GPU"
            raise ModelError(f"ray:{spec}: {error}{lacks if 'were ready' in str(error) else ''}") from error
    except BaseException:
        reached.end()
        raise
    about = reached.about
    return (RayScorer if about.scores else RayModel)(f"ray:{count}×{kind}:{found[3]}", pool, about, how, reached.end)


class About(NamedTuple):
    """What a worker says of its model when it has opened it."""

    scores: bool
    max_context: int | None
    described: Mapping[str, Any]
    version: str


class RayModel:
    """A model on N workers. It generates; `RayScorer` scores as well. Made by `connect`.

    Attributes:
        workers: how many there are.
        cluster: where they run.
    """

    def __init__(self, name: str, pool: Pool, about: About, cluster: Cluster, ended: Callable[[], None]) -> None:
        self.id, self.cluster, self.workers = name, cluster, pool.count
        self.usage = Usage()
        self.max_context = about.max_context
        self._about, self._pool = about, pool
        self._end = weakref.finalize(self, _close, pool, ended)

    @property
    def replaced(self) -> int:
        """How many workers died and have been replaced."""
        return self._pool.replaced

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, *, steering: Steering | None = None
    ) -> list[Completion]:
        """See `LanguageModel.generate`: any number of workers gives what the model gives alone, up to rounding."""
        if sampling.n > 1:
            return several(self, prompts, sampling, steering)
        self._fits(prompts, sampling.max_tokens)
        parts = [
            (start, (part, replace(sampling, offset=sampling.offset + start), steering))
            for start, part in self._cut(prompts)
        ]
        return self._gather(_generate, parts, len(prompts))

    def count_tokens(self, prompts: Sequence[Prompt]) -> list[int]:
        """As the model counts them."""
        return self._gather(_count, list(self._cut(prompts)), len(prompts))

    def each(self, function: Callable[[Any, T], R], items: Iterable[T]) -> Iterator[R]:
        """`function(model, item)` for each item, at a worker, with the model that is open there.

        Args:
            function: of a module that the workers can import, or one that can be sent.
            items: read only a little ahead of what is done, so that they may come from a long file.

        Yields:
            Results as they come, in any order.

        Raises:
            ModelError: a worker failed, or several died over one item; what others had begun is given first.
            AmplifyError: what the function raised.
        """
        failed: list[AmplifyError] = []
        asked = ((function, item) for item in items)
        for result, used, error in self._pool.each(itertools.takewhile(lambda _: not failed, asked)):
            self.usage.add(**used)
            if error is None:
                yield result
            else:
                failed.append(error)
        if failed:
            raise failed[0]

    def describe(self) -> dict[str, Any]:
        """As the model describes itself, with the workers' number."""
        import ray

        described = dict(self._about.described)
        versions = {**described.get("versions", {}), "ray": ray.__version__}
        return {
            **described,
            "id": self.id,
            "workers": self.workers,
            "batch_size": self.cluster.batch_size,
            "versions": versions,
        }

    def close(self) -> None:
        """End the workers, and the cluster if it was started for them. Calling it twice is fine."""
        self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _cut(self, prompts: Sequence[T]) -> Iterator[tuple[int, Sequence[T]]]:
        size = self.cluster.batch_size
        return ((start, prompts[start : start + size]) for start in range(0, len(prompts), size))

    def _fits(self, prompts: Sequence[Prompt], room: int) -> None:
        """Refuse a batch before any work, where a worker would refuse a part of it."""
        if self.max_context is not None:
            check_window(self.count_tokens(prompts), room, self.max_context)

    def _gather(self, function: Callable[[Any, Any], Sequence[Any]], parts: Sequence[Any], count: int) -> list[Any]:
        """The results of all parts, in order.

        Raises:
            ModelError: a part failed for good; those that were not begun are dropped, and `completed` has the others.
        """
        waiting: dict[int, Future[Any]] = {start: self._pool.submit((function, part)) for start, part in parts}
        done: dict[int, Any] = {}
        failed: BaseException | None = None
        try:
            for start, future in waiting.items():
                if failed is not None and future.cancel():
                    continue
                try:
                    results, used, error = future.result()
                except ModelError as gone:
                    results, used, error = (), {}, gone
                self.usage.add(**used)
                done |= {start + i: result for i, result in enumerate(results or ())}
                if isinstance(error, ModelError):
                    done |= {start + i: result for i, result in error.completed.items()}
                if error is not None and failed is None:
                    failed = error
        finally:
            for future in waiting.values():
                future.cancel()
        if isinstance(failed, ModelError):
            of = f". {len(done)} of {count} were answered" if count > 1 else ""
            raise ModelError(f"{self.id}: {failed}{of}", dict(sorted(done.items()))) from failed
        if failed is not None:
            raise failed
        return [done[i] for i in range(count)]


class RayScorer(RayModel):
    """A model on N workers that also scores: a `ScoringModel`."""

    def score(
        self, prompts: Sequence[Prompt], continuations: Sequence[str], *, steering: Steering | None = None
    ) -> list[TokenLogProbs]:
        """See `ScoringModel.score`."""
        check_pairs(prompts, continuations)
        self._fits([replace(p, prefix=p.prefix + c) for p, c in zip(prompts, continuations, strict=True)], 0)
        pairs = list(zip(prompts, continuations, strict=True))
        return self._gather(_score, [(start, (part, steering)) for start, part in self._cut(pairs)], len(pairs))


def _close(pool: Pool, ended: Callable[[], None]) -> None:
    pool.close()
    ended()


# what a worker does: function(its model, what it was given)


def _generate(model: LanguageModel, asked: tuple[Sequence[Prompt], Sampling, Steering | None]) -> list[Completion]:
    prompts, sampling, steering = asked
    return model.generate(prompts, sampling, steering=steering)


def _score(model: Any, asked: tuple[Sequence[tuple[Prompt, str]], Steering | None]) -> list[TokenLogProbs]:
    pairs, steering = asked
    found: list[TokenLogProbs] = model.score([p for p, _ in pairs], [c for _, c in pairs], steering=steering)
    return found


def _count(model: LanguageModel, prompts: Sequence[Prompt]) -> list[int]:
    return model.count_tokens(prompts)


class _Host:
    """What runs in a worker's process: the model, once it is open."""

    def open(self, name: str, options: Mapping[str, Any], variables: Mapping[str, str]) -> tuple[Any, Any]:
        """Open the model: (what it says of itself, None), or (None, why not)."""
        _keep(variables)
        os.environ.update(variables)
        try:
            self.model = model = amplify.load_model(name, **options)
            about = About(isinstance(model, ScoringModel), model.max_context, model.describe(), amplify.__version__)
        except AmplifyError as error:
            return None, error
        return about, None

    def run(self, function: Callable[[Any, Any], Any], asked: Any) -> tuple[Any, dict[str, int], Any]:
        """(what came of it or None, what the model did, the error or None)."""
        before = self.model.usage.snapshot()
        result, failed = None, None
        try:
            result = function(self.model, asked)
        except AmplifyError as error:
            failed = error
        except Exception as error:
            failed = ModelError(f"a worker failed: {type(error).__name__}: {error}")
        return result, asdict(self.model.usage.since(before)), failed


def _keep(variables: Mapping[str, str]) -> None:
    """Hide the keys among them, in what is said here of a worker's errors as well as at the worker."""
    for name in SECRET:
        keep_secret(variables.get(name, "").strip())


class _Ray:
    """The cluster: reached, or started here, and then ended here."""

    _guard = threading.Lock()  # one process has one connection
    _users = 0  # models that use the one that was opened here

    def __init__(self, how: Cluster, count: int) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anyone
        try:
            import ray
        except ImportError as error:
            raise MissingExtraError("ray") from error
        self.ray, self._mine, self._patience = ray, False, how.patience
        self._about: About | None = None
        self._lock = threading.Lock()
        address = how.address or os.environ.get("RAY_ADDRESS")
        with self._guard:
            if not ray.is_initialized():
                cores = max(count * how.num_cpus, os.cpu_count() or 1)
                started = {} if address else {"num_cpus": int(-(-cores // 1)), "include_dashboard": False}
                try:
                    ray.init(address or "local", log_to_driver=False, logging_level="ERROR", **started)
                except Exception as error:
                    where = f"the Ray cluster at {address}" if address else "a Ray cluster on this machine"
                    raise ModelError(f"{where} cannot be reached or started: {error}") from error
                self._mine = True
            elif _Ray._users:
                self._mine = True  # another model's, that was opened here: the last one ends it
            _Ray._users += self._mine
            self._local = self._mine and not address

    @property
    def about(self) -> About:
        """What the workers say of their model."""
        assert self._about is not None
        return self._about

    def has(self) -> str:
        """CPUs and GPUs of the cluster, in words."""
        there = self.ray.cluster_resources()
        return f"{there.get('CPU', 0):g} CPU and {there.get('GPU', 0):g} GPU"

    def check(self, count: int, cpus: float, gpus: float) -> None:
        """Refuse at once what a cluster of this machine, which never grows, has no room for.

        Raises:
            ModelError: it has not.
        """
        free = self.ray.available_resources() if self._local else {}
        for name, each in (("CPU", cpus), ("GPU", gpus)):
            if self._local and count * each > (left := free.get(name, 0)):
                raise ModelError(
                    f"{count} workers of {each:g} {name} each do not fit this machine's cluster, which has {left:g} "
                    f"left: take fewer, close another model, or say num_{name.lower()}s=0"
                )

    def gpus(self, kind: str, options: Mapping[str, Any]) -> float:
        """GPUs that a worker reserves unless it is said otherwise."""
        if kind not in ("vllm", "transformers") or not self.ray.cluster_resources().get("GPU"):
            return 0.0
        return float(options.get("tensor_parallel_size", 1))

    def worker(self, name: str, options: Mapping[str, Any], cpus: float, gpus: float, place: int) -> _RayWorker:
        """A new worker with its model open.

        Raises:
            WorkerDiedError: it died before it was ready.
            ModelError: it opened another model than the others did.
            AmplifyError: what opening the model raised.
        """
        if not self.ray.is_initialized():
            raise ModelError("the cluster is not reached any more: open the model again")
        actor = self.ray.remote(_Host).options(num_cpus=cpus, num_gpus=gpus, max_restarts=0).remote()
        worker = _RayWorker(self.ray, actor)
        variables = {name: os.environ[name] for name in SENT if name in os.environ}
        _keep(variables)
        try:
            about, error = worker.get(actor.open.remote(name, dict(options), variables), self._patience)
            if error is None:
                error = self._agrees(about)
            if error is not None:
                raise error
        except BaseException:
            worker.end()
            raise
        return worker

    def _agrees(self, about: About) -> ModelError | None:
        with self._lock:
            first = self._about = self._about or about
        if about.version != amplify.__version__:
            return ModelError(f"a worker has amplify {about.version}, here is {amplify.__version__}: install the same")
        for key in ("model", "dtype", "versions"):
            if (there := about.described.get(key)) != (others := first.described.get(key)):
                return ModelError(f"a worker has another {key} than the others: {there}, not {others}")
        return None

    def end(self) -> None:
        """Close the connection, and end a cluster that was started here, if no other model uses it."""
        with self._guard:
            if self._mine:
                self._mine = False
                _Ray._users -= 1
                if not _Ray._users and self.ray.is_initialized():
                    self.ray.shutdown()


class _RayWorker:
    """A worker of the pool: an actor of the cluster."""

    def __init__(self, ray: Any, actor: Any) -> None:
        self.ray, self.actor = ray, actor

    def call(self, asked: tuple[Callable[[Any, Any], Any], Any]) -> Any:
        """See `Worker`; (result, usage, error).

        Raises:
            InputError: what it is asked cannot be sent.
        """
        if not self.ray.is_initialized():  # somebody else ended it; a call would start another one
            raise ModelError("the cluster is not reached any more: open the model again")
        try:
            reference = self.actor.run.remote(*asked)
        except TypeError as error:
            raise InputError(f"this cannot be sent to a worker: {str(error).strip().splitlines()[0]}") from error
        return self.get(reference)

    def get(self, reference: Any, patience: float | None = None) -> Any:
        """What a call of the actor gives, waited for so many seconds.

        Raises:
            WorkerDiedError: the actor, its node, or what it gave is gone.
            ModelError: it takes longer, what it was given cannot be sent, or what it gave cannot be read.
        """
        try:
            return self.ray.get(reference, timeout=patience)
        except self.ray.exceptions.GetTimeoutError as error:
            raise ModelError(f"no worker was ready within {patience:g} s") from error
        except self.ray.exceptions.RayTaskError as error:
            said = str(error.cause if error.cause is not None else error).strip().splitlines()
            raise ModelError(f"a worker failed: {said[0] if said else type(error.cause).__name__}") from error
        except self.ray.exceptions.RayError as error:
            self.end()
            raise WorkerDiedError(" ".join(str(error).split())[:300]) from error

    def end(self) -> None:
        """See `Worker`."""
        with suppress(Exception):
            if self.ray.is_initialized():  # else this would start a cluster
                self.ray.kill(self.actor)

"""How sources are scored: every option of `attribute_sources`, checked before anything is asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np

from amplify.errors import InputError, UnknownNameError
from amplify.models.cache import Cache
from amplify.shapley.estimators import ESTIMATORS
from amplify.sources.context import Layout
from amplify.sources.engines import ENGINES, Engine
from amplify.sources.hierarchy import REFINEMENTS, Opens, Refine, Settings
from amplify.types import strings

VALUES = ("logprob", "votes")
ORDERS = ("fixed", "random")
CREDITS = ("shapley_shubik", "penrose_banzhaf")  # for changes to an answer, whatever it was before
INDICES = ("shapley", "banzhaf", *CREDITS, "append")
LONGEST = 256  # tokens of the model's own answer, unless the window or the user sets another limit
LONGEST_VOTE = 24  # and of each answer that votes


class Named(TypedDict, total=False):
    """The options of `Options` as keywords."""

    value: Literal["logprob", "votes"]
    index: str
    engine: str
    estimator: str
    granularity: Refine
    order: Literal["fixed", "random"]
    seed: int
    thresholds: tuple[float, float]
    opens: Opens
    max_tokens: int | None
    stop: Sequence[str]
    layout: Layout
    inclusion_probability: float
    control_variate: bool
    tokens: int | None
    cache: Cache | str | Path | None
    progress: bool | Callable[[int], None]


@dataclass(frozen=True)
class Options(Settings):
    """Every option, beside those of `hierarchy.Settings`.

    Attributes:
        value: "logprob", log-probability of the answer (natural log, summed over tokens), whole and for each of its
            sentences; or "votes", 1 where the greedy answer is the one in question, and likewise for the eight other
            answers that most coalitions of documents gave.
        index: "shapley" or "banzhaf" (votes: the signed form); "shapley_shubik" or "penrose_banzhaf", the credit for
            changes *to* an answer only, as TextGenSHAP counts votes; "append" for random orders, see
            `orders.random_order_scores`.
        engine: "naive", "trie", "packed" or "blocks" (see `engines`); "auto" takes the cheapest exact one.
        max_tokens: where decoded answers end at the latest; None for 256 tokens of the model's own answer, or what the
            window leaves, and for 24 of each answer that votes. An answer that is cut says so.
        stop: strings that end a decoded answer.
        layout: one user message, or "text" for models without a chat template.
        inclusion_probability: of each other document, for "penrose_banzhaf"; TextGenSHAP also takes 0.1.
        control_variate: use block encoding (engine "blocks") as a control variate; needs a `LocalModel`, fixed order,
            "logprob". It is asked for up to 1,024 coalitions beside the budget: its calls, tokens, correlation and
            slope are in `meta["control_variate"]`. Worth it where documents are long beside the answer, which it
            forwards each time.
        tokens: forward about so many tokens instead of asking `budget` prompts. What is asked is then chosen by what it
            tells for the tokens that it adds to those that earlier prompts share with it; the same error takes more
            prompts and fewer tokens. The answer's own generation is not counted. Needs a `LocalModel` that keeps as
            many tokens (`max_prefix_tokens`), fixed order, "logprob", granularity="documents" and engine="trie".
        cache: folder (or open `amplify.models.Cache`) that keeps what the model says as soon as it is known: the same
            call goes on where a stopped one was, and what any call asked before is not asked again.
        progress: say on standard error how many prompts are asked; or a function that is given how many were answered
            so far, and may raise to stop.

    Raises:
        InputError, UnknownNameError: values that make no sense, alone or together.
    """

    value: str = "logprob"
    engine: str = "auto"
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    layout: Layout = "chat"
    inclusion_probability: float = 0.5
    control_variate: bool = False
    tokens: int | None = None
    cache: Cache | str | Path | None = None
    progress: bool | Callable[[int], None] = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop", strings(self.stop))
        for kind, name, known in (
            ("value", self.value, VALUES), ("index", self.index, INDICES), ("engine", self.engine, ("auto", *ENGINES)),
            ("estimator", self.estimator, ("auto", *ESTIMATORS)), ("level", self.granularity, REFINEMENTS),
            ("opens", self.opens, ("for", "either")), ("order", self.order, ORDERS),
            ("layout", self.layout, ("chat", "text")),
        ):  # fmt: skip
            if name not in known:
                raise UnknownNameError(kind, str(name), known)
        for name, least in (("budget", 2), ("seed", 0), ("max_tokens", 1), ("tokens", 1)):
            _whole(name, getattr(self, name), least)
        given: Sequence[Any] = self.thresholds
        kinds = {bool if isinstance(t, bool) else isinstance(t, int | float | np.number) for t in given}
        if len(given) != 2 or kinds != {True} or not np.isfinite(given).all():
            raise InputError(f"thresholds are two numbers, for documents and for sentences; got {self.thresholds!r}")
        if not 0 < self.inclusion_probability < 1:
            raise InputError(
                f"inclusion_probability is a probability between 0 and 1, got {self.inclusion_probability!r}"
            )
        self._check_together()

    def _check_together(self) -> None:
        documents = "granularity='documents'"
        if self.index in CREDITS and self.value != "votes":
            raise InputError(f"index {self.index!r} counts votes: use value='votes', or index='shapley' or 'banzhaf'")
        if self.index == "penrose_banzhaf" and self.order != "fixed":
            raise InputError("index 'penrose_banzhaf' has no order of arrival: use order='fixed'")
        if self.index == "append" and self.order != "random":
            raise InputError("index 'append' is of random orders: use order='random', or index='shapley'")
        if self.index in (*CREDITS, "append") and self.granularity != "documents":
            raise InputError(f"index {self.index!r} scores whole documents: use {documents}")
        if self.engine == "packed" and self.order != "random":
            raise InputError("engine 'packed' lays documents out in random orders: use order='random' or engine='trie'")
        exact = self.order == "fixed" and self.value == "logprob"
        if self.engine == "blocks" and not (exact and self.granularity == "documents"):
            raise InputError(
                f"engine 'blocks' encodes whole documents once, in place: use order='fixed', value='logprob' and "
                f"{documents}, or another engine"
            )
        if self.control_variate and not exact:
            raise InputError("control_variate=True encodes documents once, in fixed order, for value='logprob'")
        if self.tokens is not None and not (exact and self.granularity == "documents" and self.chosen == "trie"):
            raise InputError(
                "tokens= is for documents in fixed order whose prompts share their beginnings: use value='logprob', "
                f"order='fixed', {documents} and engine='trie'"
            )

    @property
    def chosen(self) -> Engine:
        """The engine, never "auto"."""
        if self.engine == "auto":
            return "packed" if self.order == "random" else "trie"
        return self.engine  # type: ignore[return-value]

    @property
    def shares(self) -> bool:
        """Whether thresholds are shares of |v(all) - v(none)|."""
        return self.value == "logprob" if self.relative is None else self.relative


def options(given: Mapping[str, Any]) -> Options:
    """Options by name.

    Raises:
        UnknownNameError: no such option; the nearest is suggested. InputError: values that make no sense.
    """
    known = [f.name for f in fields(Options)]
    for name in given:
        if name not in known:
            raise UnknownNameError("option", name, known)
    return Options(**given)


def _whole(name: str, given: Any, least: int) -> None:
    if given is None and name != "budget" and name != "seed":
        return
    if not isinstance(given, int | np.integer) or isinstance(given, bool):
        raise InputError(f"the {name} is a whole number, not {given!r}")
    if given < least:
        why = ": it counts the empty and the full context" if name == "budget" else ""
        raise InputError(f"the {name} is at least {least}{why}; got {given}")

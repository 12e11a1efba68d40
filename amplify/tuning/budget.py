"""What a search may spend, and what it has spent: minutes, tokens or calls, never more than given."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields

from amplify.errors import InputError, ModelError
from amplify.models.cache import Reply

_UNITS = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9}
_MINUTES = {"s": 1 / 60, "m": 1.0, "min": 1.0, "h": 60.0}


@dataclass(frozen=True)
class Budget:
    """The most that a search may spend; the first limit that is reached ends it.

    Attributes:
        minutes: of work; what a kill undid is not counted. No model call begins that is expected to end beyond them; a
            proxy whose training has begun is trained to its end.
        tokens: of prompts, each different one once a call, and of what was written or scored behind them.
        calls: prompts answered, and (prompt, label) pairs scored. What was asked before costs nothing.

    Example:
        >>> Budget.parse("20m").minutes, Budget.parse("tokens=2M").tokens
        (20.0, 2000000.0)
    """

    minutes: float | None = None
    tokens: float | None = None
    calls: float | None = None

    def __post_init__(self) -> None:
        given = [getattr(self, f.name) for f in fields(self)]
        if all(v is None for v in given) or any(v is not None and not v > 0 for v in given):
            raise InputError(f"a budget is minutes=, tokens= or calls= above 0, not {self}")

    @classmethod
    def parse(cls, text: str) -> Budget:
        """A budget from the command line: `20m`, `90s`, `1h`, `tokens=2M`, `calls=5000`, or several with commas.

        Raises:
            InputError: it is none of these.
        """
        found: dict[str, float] = {}
        for part in filter(None, (part.strip() for part in text.split(","))):
            time_ = re.fullmatch(r"([\d.]+)\s*(s|m|min|h)", part)
            count = re.fullmatch(r"(minutes|tokens|calls)\s*=\s*([\d.]+)([KMG]?)", part)
            try:
                if time_:
                    name, value = "minutes", float(time_[1]) * _MINUTES[time_[2]]
                elif count:
                    name, value = count[1], float(count[2]) * _UNITS[count[3]]
                else:
                    raise ValueError(part)
            except ValueError:
                raise InputError(f"a budget is written 20m, tokens=2M or calls=5000, not {text!r}") from None
            if name in found:
                raise InputError(f"a budget names its {name} once, not twice as in {text!r}")
            found[name] = value
        return cls(**found)

    def __str__(self) -> str:
        parts = [] if self.minutes is None else [f"{self.minutes:g} minutes"]
        parts += [
            f"{getattr(self, name):,.0f} {name}" for name in ("tokens", "calls") if getattr(self, name) is not None
        ]
        return ", ".join(parts)


@dataclass(frozen=True)
class Spent:
    """What some work took.

    Attributes:
        seconds: wall time.
        tokens, calls: as in `Budget`.
        forwarded: tokens that really went through the model, shared beginnings once.

    Example:
        >>> Spent(tokens=2e6, calls=400).calls
        400
    """

    seconds: float = 0.0
    tokens: float = 0.0
    calls: float = 0.0
    forwarded: float = 0.0

    def __add__(self, other: Spent) -> Spent:
        return Spent(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(Spent)))

    def __sub__(self, other: Spent) -> Spent:
        return Spent(*(getattr(self, f.name) - getattr(other, f.name) for f in fields(Spent)))

    def times(self, factor: float) -> Spent:
        """Every count multiplied."""
        return Spent(*(factor * getattr(self, f.name) for f in fields(Spent)))


class BudgetSpentError(Exception):
    """The next piece of work would go beyond what may be spent now."""


class Ledger:
    """Counts what is spent and refuses what would go beyond the share of the budget that is open.

    Attributes:
        spent: so far.
        open: share of the budget that may be spent now, 0 to 1; what is left is kept back for later.
        asked: tokens of every reply that was given, also of what had been asked before: the cost without a memory and
            without shared beginnings.
    """

    def __init__(self, budget: Budget, clock: Callable[[], float] = time.perf_counter) -> None:
        """Begin with nothing spent.

        Args:
            budget: the most there may be.
            clock: seconds.
        """
        self.budget, self.clock = budget, clock
        self.spent, self.open = Spent(), 1.0
        self.asked = 0.0
        self._paid: set[str] = set()
        self._charged = 0.0  # seconds that model calls have taken inside the stage at hand

    def charge(self, cost: Spent) -> None:
        """Count what was done."""
        self.spent += cost
        self._charged += cost.seconds

    def left(self) -> dict[str, float]:
        """What of each limit is open and not spent: "seconds", "tokens", "calls", those that are limited."""
        limits = {"seconds": self.budget.minutes and 60 * self.budget.minutes, "tokens": self.budget.tokens,
                  "calls": self.budget.calls}  # fmt: skip
        return {name: self.open * limit - getattr(self.spent, name) for name, limit in limits.items() if limit}

    def afford(self, cost: Spent) -> None:
        """Refuse work that could cost more than is left.

        Raises:
            BudgetSpentError: it could.
        """
        for name, left in self.left().items():
            if getattr(cost, name) > left:
                raise BudgetSpentError(f"{name}: {getattr(cost, name):g} needed, {max(0.0, left):g} left")

    def before(self, tokens: float, calls: int) -> None:
        """See `amplify.models.cached.Meter`: refuse what cannot be afforded."""
        self.afford(Spent(self.expected_seconds(tokens), tokens, calls))

    def said(self, key: str, reply: Reply) -> None:
        """See `amplify.models.cached.Meter`: each reply is paid once, at what it cost when it was asked."""
        self.asked += reply.tokens
        if key not in self._paid:
            self._paid.add(key)
            self.charge(Spent(reply.seconds, reply.tokens, len(reply.parts), reply.forwarded))

    def fits(self, cost: Spent) -> bool:
        """Whether work of this cost may be done."""
        return all(getattr(cost, name) <= left for name, left in self.left().items())

    def expected_seconds(self, tokens: float) -> float:
        """How long so many tokens will take, by those so far; 0 before the first."""
        return tokens * self.spent.seconds / self.spent.tokens if self.spent.tokens else 0.0

    @contextmanager
    def stage(self, known: float | None, done: Callable[[float], None]) -> Iterator[None]:
        """Work besides model calls: training, embedding, tokenising.

        Args:
            known: seconds that this stage took before, when it was done by an earlier process; None for a new one.
            done: takes the seconds of a new one, once it is over.
        """
        start, self._charged = self.clock(), 0.0
        try:
            yield
        except (ModelError, KeyboardInterrupt):  # it will be done again
            raise
        except Exception:
            self._over(start, known, done)
            raise
        self._over(start, known, done)

    def _over(self, start: float, known: float | None, done: Callable[[float], None]) -> None:
        seconds = known if known is not None else max(0.0, self.clock() - start - self._charged)
        if known is None:
            done(seconds)
        self.charge(Spent(seconds=seconds))

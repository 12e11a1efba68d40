"""The search itself: folds, fits, race, choice, confirmation. Nothing of the test split is looked at."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import amplify
from amplify import codec, files, progress
from amplify.errors import CapabilityError, InputError, ModelError
from amplify.evaluation import statistics
from amplify.evaluation.configuration import scorer, versions
from amplify.evaluation.folder import locked, plain
from amplify.evaluation.run import refuse_leaks
from amplify.methods.base import Method, Mode, Program
from amplify.methods.contents import contents, template_hashes
from amplify.methods.program import ShotProgram
from amplify.models import opened
from amplify.models.base import LanguageModel, ScoringModel, sharing
from amplify.models.cache import Cache, Reply, keeping_numbers
from amplify.models.cached import CachedGenerator, cached
from amplify.streams import stream
from amplify.tuning import race as racing
from amplify.tuning.budget import Budget, BudgetSpentError, Ledger, Spent
from amplify.tuning.candidates import Candidate, candidates_for, checked
from amplify.tuning.ingredients import Ingredient, ingredients
from amplify.types import Example
from amplify.untrusted import special_tokens

if TYPE_CHECKING:
    from amplify.tasks import Task

FORMAT = 1
FIRST = 16  # items of the first round
HELD = 160  # labelled items for fits, race and confirmation, to which training items fill up a smaller split
MOST_ITEMS = 160  # of the race, and of the confirmation
MOST_FITTED = 64  # validation items that fits may use
MOST_TRAIN = 500  # rows that shots and proxies are taken from
BATCH = 16  # items answered in one call
ROUND_ONE, RACE = 0.45, 0.7  # share of the budget that the first round, and the race, may use
LEVEL = 0.05  # of the confirmation, one-sided: of all its looks together
LOOKS = {32: 0.005, 64: 0.005}  # after so many items: the part of `LEVEL` that a look spends; the last one has the rest


@dataclass(frozen=True)
class Folds:
    """The labelled items of a task, none of them its test items.

    Attributes:
        task: what candidates are fitted on: the training split, and the part of the validation split that is theirs;
            its "test" split are the other two parts, so that no fit can show them.
        race: what the candidates race on.
        confirm: what the choice is confirmed on, which the search never sees.
        whole: what the winner is fitted on again: all of these to show and to train on, the same part for calibration.
    """

    task: Task
    race: tuple[Example, ...]
    confirm: tuple[Example, ...]
    whole: Task


def folds_of(task: Task, seed: int) -> Folds:
    """Divide a task's labelled items: of the validation split a fifth for the fits, the rest for race and confirmation.

    The confirmation has twice the items of the race, which ends sooner and sees larger differences. Where the split has
    fewer than 160 items, training items fill it up, up to half of the training split.

    Raises:
        InputError: too few labelled items outside the test split.
    """
    rng = stream(seed, "tune folds")
    train = [task.train[i] for i in rng.permutation(len(task.train))]
    held = [task.validation[i] for i in rng.permutation(len(task.validation))]
    moved = min(max(0, HELD - len(held)), (len(train) + 1) // 2)
    held, train = [*held, *train[:moved]], train[moved:][:MOST_TRAIN]
    if len(held) < 2 * FIRST + 4:
        raise InputError(
            f"task {task.name!r} has {len(task.train)} training and {len(task.validation)} validation items: a search "
            f"needs {2 * FIRST + 4} labelled items outside the test split to race and to confirm on, and more to show"
        )
    fitted = min(MOST_FITTED, max(4, len(held) // 5))
    rest = len(held) - fitted
    raced = min(MOST_ITEMS, max(rest // 3, min(2 * FIRST, rest // 2)))
    race, confirm = held[fitted : fitted + raced], held[fitted + raced :][:MOST_ITEMS]
    inner = replace(task, train=tuple(train), validation=tuple(held[:fitted]), test=(*race, *confirm))
    whole = replace(inner, train=(*train, *race, *confirm), test=task.test)
    return Folds(inner, tuple(race), tuple(confirm), whole)


@dataclass(frozen=True)
class Line:
    """A candidate's line in the leaderboard.

    Attributes:
        label: of the candidate, as `candidates=` takes it.
        plain: among what people run without a search.
        ingredients: what it is made of.
        n: race items that it answered.
        score, low, high: mean over those, with a 95 % interval; None where it answered none.
        against: mean difference to the best plain candidate over the items that both answered.
        rounds: how many rounds it stayed.
        out: why it left, "" for a finalist.
        scores: of its items, in the order of the race.
        tokens, calls: of an answer, every prompt counted in full.

    Example:
        >>> task = amplify.load_task("support_tickets")
        >>> listed = ["zero_shot", "few_shot[shots=2]"]
        >>> tuned = amplify.tune(task, "scripted:first_option", "calls=5000", candidates=listed, show_progress=False)
        >>> [(line.label, line.plain) for line in tuned.table]
        [('zero_shot', True), ('few_shot[shots=2]', True)]
    """

    label: str
    plain: bool
    ingredients: tuple[str, ...]
    n: int
    score: float | None
    low: float | None
    high: float | None
    against: float | None
    rounds: int
    out: str
    scores: tuple[float, ...]
    tokens: float
    calls: float


@dataclass(frozen=True)
class Confirmation:
    """The choice against the best plain candidate, on items that the search has not seen.

    Attributes:
        n: items.
        chosen, plain: mean scores of the two.
        difference, low, high: chosen less plain, with its 95 % interval.
        p: one-sided, that the choice is no better.
        confirmed: whether p is at most the level of its look; see `looked`.

    Example:
        >>> compared([1.0] * 20, [0.0] * 20).confirmed
        True
    """

    n: int
    chosen: float
    plain: float
    difference: float
    low: float
    high: float
    p: float
    confirmed: bool


@dataclass(frozen=True)
class Tuned:
    """What a search found.

    Attributes:
        program: the program to deploy: fitted again on every labelled item, where its prompt does not show shots that
            were drawn or an instruction that was written for it.
        label: the candidate that it is of.
        chosen: the candidate that won the race.
        baseline: the best plain candidate.
        confirmation: the comparison of the two; None where the best plain candidate won the race itself, or where the
            budget left nothing to confirm with.
        table: the leaderboard, best first.
        ingredients: what each ingredient is worth.
        cross_fitted: mean score of choosing so, and of the best plain candidate, on race items that the choice was not
            made by.
        race: items after each round, and why it ended.
        spent: what the search cost.
        one_by_one: tokens that asking every candidate's prompts one by one would have forwarded.
        notes: what was left out and why.
        config: what it depends on.

    Example:
        >>> task = amplify.load_task("support_tickets", limit=8)
        >>> candidates = ["zero_shot", "few_shot[shots=2]"]
        >>> model = amplify.load_model("scripted:first_option")
        >>> found = amplify.tune(task, model, "calls=3000", candidates=candidates, show_progress=False)
        >>> found.label, found.better
        ('zero_shot', False)
        >>> found.program.save("program.json")
    """

    program: Program = field(repr=False)
    label: str
    chosen: str
    baseline: str
    confirmation: Confirmation | None
    table: tuple[Line, ...] = field(repr=False)
    ingredients: tuple[Ingredient, ...] = field(repr=False)
    cross_fitted: tuple[float, float] | None
    race: Mapping[str, Any]
    spent: Spent
    one_by_one: float
    notes: tuple[str, ...]
    config: Mapping[str, Any] = field(repr=False)

    @property
    def better(self) -> bool:
        """Whether something better than the best plain candidate was found and confirmed."""
        return self.label != self.baseline

    def __str__(self) -> str:
        from amplify.tuning.report import as_text

        return as_text(self)

    def to_markdown(self, folder: str = "OUT") -> str:
        """The report as Markdown; `folder` is where its command looks for the program."""
        from amplify.tuning.report import as_markdown

        return as_markdown(self, folder)

    def to_html(self, folder: str = "OUT") -> str:
        """The report as one self-contained page; see `to_markdown`."""
        from amplify.tuning.report import as_html

        return as_html(self, folder)

    def _repr_html_(self) -> str:
        """The report inside a notebook."""
        from amplify.render import framed

        return framed(self.to_html(), "tuned")

    def to_dict(self) -> dict[str, Any]:
        """Everything but the program, as JSON values."""
        held = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "program"}
        return dict(plain(held | {"better": self.better}))


def tune(
    task: Task,
    model: LanguageModel | str,
    budget: Budget | str,
    *,
    seed: int = 0,
    out: str | Path | None = None,
    candidates: Sequence[str | Method | Candidate] | None = None,
    mode: Mode | None = None,
    show_progress: bool = True,
    clock: Callable[[], float] = time.perf_counter,
    cache: Cache | str | Path | None = None,
) -> Tuned:
    """Find what makes a model's answers to a task better, and the program to deploy.

    Candidates are configurations of registered methods. They race on common validation items; the simplest within one
    standard error of the best is chosen, and confirmed against the best plain candidate (zero-shot, random or nearest
    shots …) on items that the search has not seen. Where it is not confirmed, the best plain candidate is returned.
    What chooses its shots for each input, or has a classifier, is then fitted again on every labelled item.
    Nothing of the test split is looked at.

    Args:
        task: with labelled items in its training or validation split.
        model: the model that answers, open or by its id.
        budget: the most that may be spent, e.g. `amplify.Budget(minutes=20)` or "tokens=2M".
        seed: of the folds, shots and proxies.
        out: folder for program.json, report.html, report.md, result.json and what the model said; the same call on the
            same folder goes on where it was stopped. None keeps nothing on disk.
        candidates: names, `METHOD[OPTION=VALUE]+CALIBRATION` texts, Method or Candidate objects; None for those that
            fit the task and the model, and every method of a plugin.
        mode: of candidates given by name; None: labels are scored where the model can.
        show_progress: show how far it is.
        clock: seconds, for tests.
        cache: folder (or open `amplify.models.Cache`) of replies that all runs share. What stands there is not asked,
            and charged at what it cost then, so that the same search takes the same decisions. None keeps what is asked
            in `out`.

    Raises:
        InputError: a budget too small for one race, too few labelled items, or candidates that make no sense.
        RunError: the folder belongs to another search, is in use, or cannot be written.
        ModelError: the model failed; what it said is kept.

    Example:
        >>> import amplify
        >>> task = amplify.load_task("support_tickets")
        >>> listed = ["zero_shot", "few_shot[shots=2]", "few_shot[shots=2]+batch"]
        >>> tuned = amplify.tune(task, "scripted:first_option", "calls=5000", candidates=listed, show_progress=False)
        >>> tuned.label, tuned.better
        ('zero_shot', False)
    """
    import tempfile

    if isinstance(model, str):
        with opened(model) as who:
            return tune(
                task, who, budget, seed=seed, out=out, candidates=candidates, mode=mode, show_progress=show_progress,
                clock=clock, cache=cache,
            )  # fmt: skip

    limit = Budget.parse(budget) if isinstance(budget, str) else budget
    folds = folds_of(task, seed)
    if candidates is None:
        listed, notes = candidates_for(folds.task, model)
    else:
        scored = folds.task.labels_of(folds.race[0]) and isinstance(model, ScoringModel)
        listed, notes = checked(candidates, mode or ("score" if scored else "generate")), []
    config = _config(task, model, limit, seed, listed)

    def search(folder: Path) -> Tuned:
        again = "choose another --out, or delete the folder to start anew"
        files.Journal(folder / "search.jsonl", config, what="of this search", again=again, locked=False)
        ledger = Ledger(limit, clock)
        given = model.cache if cache is None and isinstance(model, CachedGenerator) else cache
        with ExitStack() as opened_here:
            store: Cache | str | Path | None = given
            if store is None:
                store = opened_here.enter_context(Cache(folder / "asked.sqlite", shared=False))
            about = config if given is None else None
            memory = opened_here.enter_context(cached(model, store, about=about, meter=ledger))
            opened_here.enter_context(keeping_numbers(memory.cache))
            opened_here.enter_context(sharing(model))
            return _Search(task, memory, ledger, folds, listed, notes, config, show_progress).found()

    if out is None:
        with tempfile.TemporaryDirectory(prefix="amplify-tune-") as temporary:
            return search(Path(temporary))
    folder = files.make_folder(out)
    with locked(folder):
        try:
            tuned = search(folder)
        except ModelError as error:
            raise ModelError(
                f"{error}\nWhat it said is kept in {files.shown(folder)}: the same call goes on"
            ) from error
        tuned.program.save(folder / "program.json")
        files.write_json(folder / "result.json", tuned.to_dict())
        files.write(folder / "report.md", tuned.to_markdown(files.shown(folder)))
        files.write(folder / "report.html", tuned.to_html(files.shown(folder)))
    return tuned


def _config(task: Task, model: LanguageModel, budget: Budget, seed: int, listed: Sequence[Candidate]) -> dict[str, Any]:
    return dict(
        plain(
            {
                "format": FORMAT,
                "amplify": amplify.__version__,
                "versions": versions(),
                "templates": template_hashes(),
                "special_tokens": special_tokens(),
                "task": {"name": task.name, "fingerprint": task.fingerprint, "metric": task.metric},
                "model": {"id": model.id, **model.describe()},
                "budget": {k: v for k, v in vars(budget).items() if v is not None},
                "seed": seed,
                "candidates": [{"label": c.label, "plain": c.plain, **contents(c.method)} for c in listed],
            }
        )
    )


def compared(chosen: Sequence[float], plain: Sequence[float], level: float = LEVEL) -> Confirmation:
    """The choice against the best plain candidate on the same unseen items; confirmed where it is surely better."""
    difference, interval, test = statistics.compare([list(chosen)], [list(plain)])
    p = test.p / 2 if difference > 0 else 1 - test.p / 2
    return Confirmation(
        n=len(chosen),
        chosen=float(np.mean(chosen)),
        plain=float(np.mean(plain)),
        difference=difference,
        low=interval.low,
        high=interval.high,
        p=p,
        confirmed=difference > 0 and p <= level,
    )


def looked(chosen: Sequence[float], plain: Sequence[float], last: bool = False) -> Confirmation | None:
    """The comparison, where it may end with these items; None where more are to be asked for.

    It may after 32 and after 64 items, where the choice is surely better (p ≤ .005 each) or behind by more than a
    standard error; the last look has what these leave of 5 %. So, by the union bound, a choice that is no better is
    confirmed in at most 5 % of searches.

    Args:
        chosen, plain: scores of the two on the same items.
        last: there are no more.
    """
    if last:
        return compared(chosen, plain, LEVEL - sum(level for n, level in LOOKS.items() if n < len(chosen)))
    if len(chosen) not in LOOKS:
        return None
    found = compared(chosen, plain, LOOKS[len(chosen)])
    error = float(np.std(np.subtract(chosen, plain), ddof=1)) / math.sqrt(len(chosen))
    return found if found.confirmed or found.difference < -error else None


def settled(program: Program, instruction: str) -> bool:
    """Whether the search settled what the program's prompt says: shots that were drawn, or another instruction.

    Fitting it again would draw others, which nothing has confirmed.

    Args:
        program: any.
        instruction: the task's own.
    """

    def within(value: Any) -> bool:
        if isinstance(value, Mapping):
            if value.get("kind") == ShotProgram.kind and (
                value["shots"] or value["form"]["instruction"] != instruction
            ):
                return True
            return any(map(within, value.values()))
        return isinstance(value, list) and any(map(within, value))

    return within(program.tagged())


@contextmanager
def _or_out() -> Iterator[None]:
    """What a task or a model cannot have takes the candidate out of the race, and does not end the search."""
    try:
        yield
    except (InputError, CapabilityError) as error:
        raise racing.CannotRunError(f"cannot be used: {error}") from error


class _Search:
    """One search under way."""

    def __init__(
        self,
        task: Task,
        memory: CachedGenerator,
        ledger: Ledger,
        folds: Folds,
        listed: Sequence[Candidate],
        notes: Sequence[str],
        config: dict[str, Any],
        show: bool,
    ) -> None:
        self.task, self.model, self.folds, self.listed = task, memory, folds, listed
        self.notes, self.config = list(notes), config
        self.ledger = ledger
        self.programs: dict[int, Program] = {}
        self.answers: dict[int, list[Spent]] = {}  # what each answer would cost if nothing were remembered
        self.scores = scorer(task)[1]
        self.bar = progress.progress(desc="tune", unit="answer", shown=show)

    def found(self) -> Tuned:
        """Race, choose, confirm."""
        runners = [racing.Runner(i, c.plain, c.complexity) for i, c in enumerate(self.listed)]
        first = min(FIRST, len(self.folds.race))
        self._need(first)
        with self.bar:
            self.ledger.open = RACE
            race = racing.run(runners, self._race, len(self.folds.race), first)
            finalists = race.finalists
            begun = [r for r in runners if len(r.scores) >= first]
            if all(r.out.startswith("cannot") for r in runners if r.plain):
                reason = next(r.out for r in runners if r.plain).removeprefix("cannot be used: ")
                raise InputError(f"no plain candidate can be used, so there is nothing to be better than: {reason}")
            untried = any(r.out == racing.NOT_TRIED for r in runners)
            if not any(r.plain for r in finalists) or (len(begun) < 2 and untried):
                raise InputError(self._too_small(first))
            everything = list(range(race.n))
            chosen = racing.choose(finalists, everything)
            base = racing.best_plain(finalists, everything)
            crossed = racing.cross_fitted(finalists, race.n) if len(finalists) > 1 else None
            confirmation = None
            if chosen.plain:
                chosen = base
            else:
                self.ledger.open = 1.0
                confirmation = self._confirmed(chosen.index, base.index)
                if confirmation is None:
                    self.notes.append("the budget left nothing to confirm the choice with")
            winner = chosen if confirmation and confirmation.confirmed else base
            program = self._deployed(winner.index)
        told = self.listed
        refuse_leaks(self.task, [(told[winner.index].label, program)])
        return Tuned(
            program=program,
            label=told[winner.index].label,
            chosen=told[chosen.index].label,
            baseline=told[base.index].label,
            confirmation=confirmation,
            table=self._table(runners, base),
            ingredients=ingredients(
                [np.array(r.scores[:first]) for r in begun], [told[r.index].ingredients for r in begun]
            ),
            cross_fitted=crossed,
            race={"rounds": list(race.rounds), "ended": race.ended, "items": len(self.folds.race)},
            spent=self.ledger.spent,
            one_by_one=self.ledger.asked,
            notes=tuple(self.notes),
            config=self.config,
        )

    def _race(self, index: int, places: Sequence[int]) -> list[float]:
        """Scores of a candidate; see `race.run`.

        One that is too dear for its first round leaves the race to the others. Once the first round's share is spent
        only what is free begins: all that it asks may have been asked for others.
        """
        self.bar.set_description(self.listed[index].label)
        if index in self.programs or index < 2:
            return self._raced(index, places)
        if not self._share_left():
            self.ledger.open = 0.0
        try:
            return self._raced(index, places)
        except BudgetSpentError as spent:
            raise racing.CannotRunError(racing.NOT_TRIED) from spent
        finally:
            self.ledger.open = RACE

    def _share_left(self) -> bool:
        self.ledger.open = ROUND_ONE
        left = all(left > 0 for left in self.ledger.left().values())
        self.ledger.open = RACE
        return left

    def _raced(self, index: int, places: Sequence[int]) -> list[float]:
        if index not in self.programs:
            with _or_out(), self._stage(f"fit {index}"):
                self.programs[index] = self._fit(index, self.folds.task)
        with _or_out():
            return self._answered(index, "race", [self.folds.race[i] for i in places], places[0])

    def _deployed(self, index: int) -> Program:
        """The winner fitted again on every labelled item; as it raced where that is settled, or the budget spent."""
        program = self.programs[index]
        if settled(program, self.task.instruction):
            return program
        self.ledger.open = 1.0
        try:
            self.ledger.afford(Spent(seconds=2 * (self._took(f"fit {index}") or 0.0)))  # of about twice the items
            with _or_out(), self._stage(f"fit {index} again"):
                return self._fit(index, self.folds.whole)
        except (BudgetSpentError, racing.CannotRunError) as why:
            self.notes.append(f"deployed as it raced, not fitted again on all labelled items: {why}")
            return program

    def _fit(self, index: int, task: Task) -> Program:
        """What is used is what the file will give back."""
        program = self.listed[index].fit(task, self.model, self.config["seed"])
        return Program.of(codec.parse(json.dumps(program.tagged())))

    def _stage(self, name: str) -> AbstractContextManager[None]:
        """Work told by a name, for its time besides the model's; what it took is kept with the replies."""
        key = files.digest([self.config, name])
        return self.ledger.stage(
            self._took(name), lambda seconds: self.model.cache.write({key: Reply(seconds=seconds)})
        )

    def _took(self, name: str) -> float | None:
        """Seconds of a stage that is over; None for one that is not."""
        key = files.digest([self.config, name])
        kept = self.model.cache.read([key]).get(key)
        return kept.seconds if kept else None

    def _answered(self, index: int, fold: str, items: Sequence[Example], start: int) -> list[float]:
        """Scores of a candidate's answers, batch by batch."""
        found: list[float] = []
        for at in range(0, len(items), BATCH):
            batch = items[at : at + BATCH]
            with self._stage(f"{fold} {index} {start + at}"):
                answers = self.programs[index].answer(batch, self.model)
            costs = [Spent(tokens=a.prompt_tokens + a.completion_tokens, calls=a.calls) for a in answers]
            self.answers.setdefault(index, []).extend(costs)
            found += [next(iter(self.scores(a, e).values())) for a, e in zip(answers, batch, strict=True)]
            self.bar.update(len(batch))
        return found

    def _confirmed(self, chosen: int, base: int) -> Confirmation | None:
        """Both on the items kept back, batch by batch, as many as the budget allows and the difference needs."""
        mine: list[float] = []
        plain_: list[float] = []
        items = self.folds.confirm
        for at in range(0, len(items), BATCH):
            batch = items[at : at + BATCH]
            try:
                pair = [self._answered(index, "confirm", batch, at) for index in (base, chosen)]
            except BudgetSpentError:
                self.notes.append(f"confirmed on {at} of {len(items)} items: the budget is spent")
                break
            plain_ += pair[0]
            mine += pair[1]
            if len(mine) < len(items) and (found := looked(mine, plain_)):
                return found
        return looked(mine, plain_, last=True) if mine else None

    def _need(self, first: int) -> None:
        """Refuse a budget of tokens or calls with which not even two candidates could race and be confirmed."""
        least = self._least(first)
        if not self.ledger.fits(least):
            raise InputError(self._too_small(first))

    def _least(self, first: int) -> Spent:
        """The least that a race of two zero-shot candidates takes, by the task's own prompts."""
        from amplify.methods import make

        mode = self.listed[0].method.mode
        program = make("zero_shot", mode=mode).fit(self.folds.task, self.model.inner, self.config["seed"])
        prompts = [program.prompt(e) for e in self.folds.race[:first]]  # type: ignore[attr-defined]
        labels = [len(self.folds.task.labels_of(e)) or 1 for e in self.folds.race[:first]]
        # the race of one and the confirmation of two, before anything else than the question stands in a prompt
        return Spent(
            tokens=2 * sum(self.model.count_tokens(prompts)), calls=2 * sum(labels if mode == "score" else [1] * first)
        )

    def _too_small(self, first: int) -> str:
        least, spent = self._least(first), self.ledger.spent
        done = [i for i, costs in self.answers.items() if len(costs) >= first]
        wanted = f"at least {math.ceil(least.tokens / RACE):,} tokens and {math.ceil(least.calls / RACE):,} calls"
        if spent.seconds:
            per = spent.seconds / max(1, len(done) or 1)
            wanted += f", and about {math.ceil(4 * per / RACE / 60)} minutes on this machine"
        return (
            f"a budget of {self.ledger.budget} is too small for one race on task {self.task.name!r}: two candidates "
            f"with {first} items each, and as many to confirm on, take {wanted}"
        )

    def _table(self, runners: Sequence[racing.Runner], base: racing.Runner) -> tuple[Line, ...]:
        lines = []
        for runner in runners:
            candidate, scores = self.listed[runner.index], runner.scores
            n = len(scores)
            interval = statistics.interval_of([scores]) if n else None
            both = min(n, len(base.scores))
            costs = self.answers.get(runner.index, [])
            lines.append(
                Line(
                    label=candidate.label,
                    plain=candidate.plain,
                    ingredients=candidate.ingredients,
                    n=n,
                    score=float(np.mean(scores)) if n else None,
                    low=interval.low if interval else None,
                    high=interval.high if interval else None,
                    against=float(np.mean(np.array(scores[:both]) - np.array(base.scores[:both]))) if both else None,
                    rounds=runner.round if n else 0,
                    out=runner.out,
                    scores=tuple(scores),
                    tokens=sum(c.tokens for c in costs) / len(costs) if costs else 0.0,
                    calls=sum(c.calls for c in costs) / len(costs) if costs else 0.0,
                )
            )
        return tuple(sorted(lines, key=lambda line: (-line.n, -(line.score or 0.0))))

"""The two contracts of a method: `fit` finds a program on a task, the program answers examples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, get_args

from amplify import codec, files
from amplify.errors import AmplifyError, DataError, InputError
from amplify.models.base import LanguageModel
from amplify.registry import Table, broken, load_plugins
from amplify.types import Answer, Example, Prompt

if TYPE_CHECKING:
    from amplify.tasks import Task

Mode = Literal["generate", "score"]
Role = Literal["method", "baseline", "control"]
FORMAT = 1


class Program(ABC):
    """What `fit` found: plain JSON that is saved, reloaded and deployed without the task or the proxy.

    Every concrete class is a dataclass that registers itself under `kind`; its fields are what is saved.
    """

    kind: ClassVar[str]
    _kinds: ClassVar[dict[str, type[Program]]] = {}

    def __init_subclass__(cls) -> None:
        if kind := getattr(cls, "kind", None):
            Program._kinds[kind] = cls

    @abstractmethod
    def answer(self, examples: Sequence[Example], model: LanguageModel) -> list[Answer]:
        """Answer each example, in order; any number of batched calls."""

    def to_dict(self) -> dict[str, Any]:
        """Everything needed to rebuild it, as JSON values (without "kind" and "format").

        Where a field is declared as a Program of any kind, its own kind stands with it.
        """
        saved: list[Field[Any]] = [f for f in fields(self) if f.init]  # type: ignore[arg-type]
        given = {f.name: getattr(self, f.name) for f in saved}
        return {f.name: (Program.tagged if f.type == "Program" else codec.encode)(given[f.name]) for f in saved}

    def tagged(self) -> dict[str, Any]:
        """As JSON values with the kind, for a program inside another one; `of` is the inverse."""
        return {"kind": self.kind, **self.to_dict()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """The inverse of `to_dict`.

        Raises:
            DataError: a key is missing, unknown, or holds something of another kind; says where.
        """
        return codec.from_fields(cls, data)

    def save(self, path: str | Path) -> None:
        """Write the program as JSON.

        Raises:
            WriteError: it cannot be written; an earlier file is untouched.
        """
        files.write_json(path, {"format": FORMAT, "kind": self.kind, **self.to_dict()})

    @staticmethod
    def load(path: str | Path) -> Program:
        """Read a program that `save` wrote.

        Raises:
            DataError: the file is missing, not JSON, damaged, or of another format.
        """
        import amplify.methods  # noqa: F401  registers every kind

        data, where = files.read_json(path, "a saved program"), files.shown(path)
        if data.pop("format", None) != FORMAT:
            raise DataError(f"{where} is not a program of format {FORMAT}; fit it again with this version of amplify")
        try:
            return Program.of(data)
        except AmplifyError as error:
            raise DataError(f"{where}: {error}") from error

    @staticmethod
    def of(data: Mapping[str, Any]) -> Program:
        """A program of any kind from its JSON values, its "kind" included.

        Raises:
            DataError: an unknown kind, or not what that kind's fields say.
        """
        held = dict(codec.decode(dict[str, Any], data))
        kind = held.pop("kind", None)
        if isinstance(kind, str) and kind not in Program._kinds:
            load_plugins()
        if not isinstance(kind, str) or kind not in Program._kinds:
            unknown = f"it holds a program of kind {kind!r}, which neither amplify nor an installed plugin knows."
            raise DataError(" ".join([unknown, *broken()]))
        try:
            return Program._kinds[kind].from_dict(held)
        except AmplifyError as error:
            raise DataError(f"it is a damaged program: {error}. Fit it again") from error
        except (LookupError, TypeError, AttributeError, ValueError) as error:  # of a class with a form of its own
            raise DataError(f"it is a damaged program ({error!r} is wrong or missing): fit it again") from error


codec.register(Program, Program.tagged, Program.of)  # type: ignore[type-abstract]


class PromptProgram(Program):
    """The common case: one prompt an example."""

    @abstractmethod
    def prompt(self, example: Example) -> Prompt:
        """The prompt that the model is asked for this example."""


@dataclass(frozen=True)
class Rehearsal:
    """What a plan takes for a fitted method.

    Attributes:
        program: sends prompts as long as those of the fitted one; None where no prompt is sent.
        note: what is estimated, and from what; "" for nothing.
    """

    program: Program | None
    note: str = ""


@dataclass(frozen=True)
class Method(ABC):
    """A way to answer a task. Its dataclass fields are its options, settable by `--set NAME.OPTION=VALUE`.

    A class that names no `role` of its own is a "method", also where it extends a baseline: what is tested against
    what is said by each class, never inherited.

    Attributes:
        name: in records and tables, and what it is asked for by.
        role: "method" claims an improvement and is tested against every "baseline" (what one would do without it) and
            "control" (the same with the part that matters taken out) of a run.
        seeded: False where every seed gives the same program, so that one run is enough.
        steers: True where the model must be able to steer attention.
        mode: "generate" parses what the model writes; "score" compares the labels' log-probabilities
            (a rationale method writes its rationale first and scores the labels behind it).
    """

    name: ClassVar[str]  # what `register` called it
    role: ClassVar[Role] = "method"
    seeded: ClassVar[bool] = True
    steers: ClassVar[bool] = False

    mode: Mode = field(default="generate", kw_only=True)

    def __init_subclass__(cls) -> None:
        cls.role = cls.__dict__.get("role", "method")
        if cls.role not in get_args(Role):
            raise InputError(f"{cls.__name__}.role is one of {', '.join(get_args(Role))}, not {cls.role!r}")

    @abstractmethod
    def fit(self, task: Task, model: LanguageModel, seed: int) -> Program:
        """Find the program: choose shots, train the proxy, write rationales. Never looks at the test split."""

    def rehearse(self, task: Task, model: LanguageModel, seed: int) -> Rehearsal:
        """What a run of this method will be like, for a plan.

        By default it is really fitted, on a model that answers at once and counts what it is asked. A method that
        trains or loads a model of its own, or that explains, overrides this and asks as many prompts of that length.

        Args:
            task, seed: of the run.
            model: answers every prompt with a label at once; its usage is the plan's cost of fitting.
        """
        program = self.fit(task, model, seed)
        return Rehearsal(program, "fit calls can depend on the model's answers" if model.usage.calls else "")

    @property
    def label(self) -> str:
        """The name in records and tables: `amplify`, or `amplify[k=3]` where options differ from the defaults."""
        changed = [
            f"{f.name}={as_typed(getattr(self, f.name))}"
            for f in fields(self)
            if f.name != "mode" and getattr(self, f.name) != f.default
        ]
        return f"{self.name}[{','.join(changed)}]" if changed else self.name

    def __post_init__(self) -> None:
        if self.mode not in ("generate", "score"):
            raise InputError(f"mode is generate or score, not {self.mode!r}")


def as_typed(value: Any) -> str:
    """An option's value as `--set` takes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def examples_in(data: Any) -> Iterator[dict[str, Any]]:
    """Every labelled example inside a program's JSON, however deep: its shots, and a pool it draws shots from."""
    if isinstance(data, Mapping):
        if isinstance(data.get("id"), str) and isinstance(data.get("text"), str):
            yield dict(data)
        for value in data.values():
            yield from examples_in(value)
    elif isinstance(data, Sequence) and not isinstance(data, (str, bytes)):
        for value in data:
            yield from examples_in(value)


def _adopt(name: str, value: Any) -> type[Method]:
    if not (isinstance(value, type) and issubclass(value, Method)):
        raise InputError(f"the method {name!r} is a class that extends amplify.methods.Method, not {value!r}")
    if value.__dict__.get("name", name) != name:
        raise InputError(f"{value.__name__} is registered as {name!r}, but its name is {value.name!r}")
    value.name = name
    return value


METHODS: Table[type[Method]] = Table("method", _adopt)
"""Every method by name."""

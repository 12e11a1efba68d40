"""The two contracts of a method: `fit` finds a program on a task, the program answers examples."""

from __future__ import annotations

import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields, replace
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, get_args, get_origin, get_type_hints

from amplify import codec, files
from amplify.errors import AmplifyError, DataError, InputError, UnknownNameError
from amplify.models.base import LanguageModel
from amplify.registry import Table, broken, load_plugins
from amplify.types import Answer, Example, Prompt

if TYPE_CHECKING:
    from amplify.tasks import Task

Mode = Literal["generate", "score"]
Role = Literal["method", "baseline", "control"]
FORMAT = 1
PROGRAMS: dict[str, type[Program]] = {}
"""Kind -> the class whose programs are saved under it; each enters itself where it is defined."""


class Program(ABC):
    """What `fit` found: plain JSON that is saved, reloaded and deployed without the task or the proxy.

    Every concrete class is a dataclass that registers itself under a `kind` of its own; its fields are what is saved.

    Raises:
        InputError: another class has that kind; raised where the class is defined.

    Example:
        >>> task, model = amplify.load_task("coin_flip"), amplify.load_model("scripted:say=The answer is yes.")
        >>> program = amplify.methods.ZeroShot().fit(task, model, seed=0)
        >>> program.save("coins.json")
        >>> amplify.Program.load("coins.json").answer(task.test[:1], model)[0].value
        'yes'
    """

    kind: ClassVar[str]

    def __init_subclass__(cls) -> None:
        if (kind := cls.__dict__.get("kind")) is None:
            return
        there = PROGRAMS.setdefault(kind, cls)
        place, other = (f"{each.__module__}.{each.__qualname__}" for each in (cls, there))
        if place != other:  # the same one defined anew (in a notebook, or by dataclass(slots=True)) takes its place
            raise InputError(
                f"programs of the kind {kind!r} are {other}: saved ones would be read as {place}. Choose another kind"
            )
        PROGRAMS[kind] = cls

    @abstractmethod
    def answer(self, examples: Sequence[Example], model: LanguageModel) -> list[Answer]:
        """Answer each example, in order; any number of batched calls."""

    def to_dict(self) -> dict[str, Any]:
        """Everything needed to rebuild it, as JSON values (without "kind" and "format").

        Where a field is declared as a Program of any kind, or several, their own kinds stand with them.
        """
        saved: list[Field[Any]] = [f for f in fields(self) if f.init]  # type: ignore[arg-type]
        forms: dict[str, Callable[[Any], Any]] = {"Program": Program.tagged, "tuple[Program, ...]": _tagged}
        return {f.name: forms.get(str(f.type), codec.encode)(getattr(self, f.name)) for f in saved}

    def tagged(self) -> dict[str, Any]:
        """As JSON values with the kind, for a program inside another one; `of` is the inverse.

        Raises:
            InputError: its class has no kind of its own.
        """
        if "kind" not in type(self).__dict__:
            raise InputError(
                f"{type(self).__qualname__} cannot be saved without a kind of its own, by which it is found again: "
                "kind = 'NAME' in the class"
            )
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
        files.write_json(path, {"format": FORMAT, **self.tagged()})

    @staticmethod
    def load(path: str | Path) -> Program:
        """Read a program that `save` wrote.

        Raises:
            DataError: the file is missing, not JSON, damaged, or of another format.
        """
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
        if isinstance(kind, str) and kind not in PROGRAMS:
            load_plugins()
        if not isinstance(kind, str) or kind not in PROGRAMS:
            unknown = f"it holds a program of kind {kind!r}, which neither amplify nor an installed plugin knows."
            raise DataError(" ".join([unknown, *broken()]))
        try:
            return PROGRAMS[kind].from_dict(held)
        except AmplifyError as error:
            raise DataError(f"it is damaged, or of an earlier version: {error}. Fit it again") from error
        except (LookupError, TypeError, AttributeError, ValueError) as error:  # of a class with a form of its own
            raise DataError(
                f"it is damaged, or of an earlier version ({error!r} is wrong or missing): fit it again"
            ) from error


def _tagged(programs: tuple[Program, ...]) -> list[dict[str, Any]]:
    return [program.tagged() for program in programs]


codec.register(Program, Program.tagged, Program.of)  # type: ignore[type-abstract]


class PromptProgram(Program):
    """The common case: one prompt an example.

    Example:
        >>> task, model = amplify.load_task("support_tickets"), amplify.load_model("scripted:say=billing")
        >>> program = amplify.methods.ZeroShot().fit(task, model, seed=0)
        >>> program.prompt(task.test[0]).messages[-1].role
        'user'
    """

    @abstractmethod
    def prompt(self, example: Example) -> Prompt:
        """The prompt that the model is asked for this example."""


@dataclass(frozen=True)
class Rehearsal:
    """What a plan takes for a fitted method.

    Attributes:
        program: sends prompts as long as those of the fitted one; None where no prompt is sent.
        note: what is estimated, and from what; "" for nothing.

    Example:
        >>> task, model = amplify.load_task("support_tickets"), amplify.load_model("scripted:say=billing")
        >>> amplify.methods.ZeroShot().rehearse(task, model, seed=0).note
        ''
    """

    program: Program | None
    note: str = ""


@dataclass(frozen=True)
class Method(ABC):
    """A way to answer a task. Its dataclass fields are its options, settable by `--set NAME.OPTION=VALUE`.

    A class that names no `role` of its own is a "method", also where it extends a baseline: what is tested against
    what is said by each class, never inherited. A class with several published variants has a `Preset` for each, from
    which an instance has these four:

    Attributes:
        name: in records and tables, and what it is asked for by.
        role: "method" claims an improvement and is tested against every "baseline" (what one would do without it) and
            "control" (the same with the part that matters taken out) of a run.
        seeded: False where every seed gives the same program, so that one run is enough.
        steers: True where the model must be able to steer attention.
        reads_documents: True where its answers say how documents are ranked, for metrics of evidence.
        mode: "generate" parses what the model writes; "score" compares the labels' log-probabilities
            (a rationale method writes its rationale first and scores the labels behind it).
        variant: the preset it was made by; of an object made from the class, the one that its options say.

    Example:
        >>> amplify.methods.FewShot(shots=4).label, amplify.methods.make("few_shot").role
        ('few_shot[shots=4]', 'baseline')
    """

    name: ClassVar[str] = ""  # what `register` called it
    role: ClassVar[Role] = "method"
    seeded: ClassVar[bool] = True
    steers: ClassVar[bool] = False
    reads_documents: ClassVar[bool] = False

    mode: Mode = field(default="generate", kw_only=True)
    variant: str = field(default="", kw_only=True, repr=False, compare=False)

    def __init_subclass__(cls) -> None:
        cls.role = cls.__dict__.get("role", "method")
        if cls.role not in get_args(Role):
            raise InputError(f"{cls.__name__}.role is one of {', '.join(get_args(Role))}, not {cls.role!r}")

    @abstractmethod
    def fit(self, task: Task, model: LanguageModel, seed: int) -> Program:
        """Find the program: choose shots, train the proxy, write rationales. Never looks at the test split."""

    @property
    def makes(self) -> type[Program]:
        """The class of its programs, as far as it is known before one is fitted."""
        return Program

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
    def preset(self) -> Preset | None:
        """The published variant that this is; None of a class that was never registered."""
        known = _presets(type(self))
        if self.variant in known:
            return known[self.variant]
        fitting = [p for p in known.values() if all(getattr(self, k) == v for k, v in p.fixed.items())]
        return max(fitting, key=lambda p: len(p.fixed), default=None)

    def settings(self, *, changed: bool = False) -> dict[str, Any]:
        """Option -> value, of those that its variant has; with `changed` only those that differ from the default."""
        preset = self.preset or Preset(type(self))
        options = preset.options
        usual = {f.name: f.default for f in fields(self) if f.name not in ("mode", "variant", *preset.fixed)} | options
        values = {name: getattr(self, name) for name in usual}
        return {
            name: value for name, value in values.items() if value != usual[name] or (name in options and not changed)
        }

    @property
    def label(self) -> str:
        """The name in records and tables: `amplify`, or `amplify[k=3]` where options differ from the defaults."""
        changed = [f"{name}={as_typed(value)}" for name, value in self.settings(changed=True).items()]
        return f"{self.name}[{','.join(changed)}]" if changed else self.name

    def __post_init__(self) -> None:
        if self.mode not in ("generate", "score"):
            raise InputError(f"mode is generate or score, not {self.mode!r}")
        if preset := self.preset:
            for said in ("name", "role", "seeded", "steers"):
                object.__setattr__(self, said, getattr(preset, said))
        elif not self.name:
            object.__setattr__(self, "name", type(self).__name__)


@dataclass(frozen=True)
class Preset:
    """A published variant: a class of methods, some of its options set. What `METHODS` holds, also of a plain class.

    Attributes:
        cls: the class.
        about: a docstring of its own; "" for the class's.
        role, seeded, steers: see `Method`; None for the class's.
        fixed: options that make it what it is; they cannot be set.
        defaults: other defaults of options than the class's.
        without: options that mean nothing here; they cannot be set.
        name: what `register` called it.

    Example:
        >>> longest = Preset(amplify.methods.FewShot, "The longest examples as shots.", fixed={"selection": "longest"})
        >>> "selection" in longest.options
        False
    """

    cls: type[Method]
    about: str = ""
    role: Role | None = None
    seeded: bool | None = None
    steers: bool | None = None
    fixed: dict[str, Any] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    name: str = ""

    @property
    def options(self) -> dict[str, Any]:
        """What `--set NAME.OPTION=VALUE` takes: option -> default."""
        hidden = {"mode", "variant", *self.fixed, *self.without}
        return {f.name: f.default for f in fields(self.cls) if f.name not in hidden} | self.defaults

    @property
    def description(self) -> str:
        """Its docstring: what it is, and what its class says of the options."""
        own = inspect.getdoc(self.cls) or ""
        if not self.about:
            return own
        options = own.partition("Attributes:\n")[2]
        return f"{self.about}\n\nAttributes:\n{options}" if options else self.about


def _presets(cls: type[Method]) -> dict[str, Preset]:
    """The published variants of a class itself, not of what it extends."""
    found: dict[str, Preset] = cls.__dict__.get("_registered", {})
    return found


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


def _adopt(name: str, value: Any) -> Preset:
    preset = value if isinstance(value, Preset) else Preset(value)
    cls = preset.cls
    if not (isinstance(cls, type) and issubclass(cls, Method)):
        raise InputError(
            f"the method {name!r} is a class that extends amplify.methods.Method, or a Preset of one, not {value!r}"
        )
    if value is cls:
        if cls.__dict__.get("name", name) != name:
            raise InputError(f"{cls.__name__} is registered as {name!r}, but its name is {cls.name!r}")
        cls.name = name
    known = {f.name for f in fields(cls)}
    for option in (*preset.fixed, *preset.defaults, *preset.without):
        if option not in known:
            raise UnknownNameError(f"{cls.__name__} option", option, known)
    if "_registered" not in cls.__dict__:
        cls._registered = {}  # type: ignore[attr-defined]
    own = {said: getattr(cls, said) for said in ("role", "seeded", "steers") if getattr(preset, said) is None}
    adopted = replace(preset, name=name, **own)
    _presets(cls)[name] = adopted
    return adopted


METHODS: Table[Preset] = Table("method", _adopt)
"""Every method by name."""


def make(name: str, *, mode: Mode = "generate", **options: Any) -> Method:
    """A method by name.

    Args:
        name: a key of `METHODS`.
        mode: "generate" or "score".
        **options: those of its preset; values given as strings are converted by the field's type.

    Raises:
        UnknownNameError: no such method, or no such option of it.
        InputError: a value that the option cannot take.

    Example:
        >>> make("few_shot", shots=4).label
        'few_shot[shots=4]'
    """
    preset = METHODS.find(name)
    for option in options:
        if option not in preset.options:
            raise UnknownNameError(f"{name} option", option, preset.options)
    hints = get_type_hints(preset.cls)
    given = {option: _convert(f"{name}.{option}", value, hints[option]) for option, value in options.items()}
    return preset.cls(mode=mode, variant=name, **{**preset.defaults, **preset.fixed, **given})


def inner_method(label: str, mode: Mode) -> Method:
    """The method of a label, as records name it, for an option that names a method.

    Args:
        label: NAME or NAME[OPTION=VALUE,...].
        mode: "generate" or "score".

    Raises:
        UnknownNameError: no such method or option.
        InputError: a label of another shape, or a value that the option cannot take.
    """
    name, bracket, rest = label.partition("[")
    parts = re.split(r",(?![^\[]*\])", rest.removesuffix("]"))  # not at the commas of a method inside the method
    pairs = [part.partition("=") for part in parts if part]
    if (bracket and not rest.endswith("]")) or not all(equals and value for _, equals, value in pairs):
        raise InputError(f"a method inside another is written NAME or NAME[OPTION=VALUE,...], not {label!r}")
    return make(name.strip(), mode=mode, **{option.strip(): value.strip() for option, _, value in pairs})


def _convert(where: str, value: Any, wanted: Any) -> Any:
    """The value as the option's type, from a string of the command line or as it is."""
    if NoneType in get_args(wanted):
        if value is None or (isinstance(value, str) and value.lower() == "none"):
            return None
        [wanted] = [one for one in get_args(wanted) if one is not NoneType][:1]
        return _convert(where, value, wanted)
    if get_origin(wanted) is Literal:
        if value in get_args(wanted):
            return value
        raise InputError(f"{where} is one of {', '.join(map(str, get_args(wanted)))}, not {value!r}")
    if wanted is bool and isinstance(value, str):
        words = dict.fromkeys(("true", "yes", "1", "on"), True) | dict.fromkeys(("false", "no", "0", "off"), False)
        if value.lower() in words:
            return words[value.lower()]
    elif isinstance(value, str) and wanted in (int, float):
        try:
            return wanted(value)
        except ValueError:
            pass
    elif type(value) is wanted or (wanted is float and type(value) is int):
        return wanted(value)
    if wanted not in (bool, int, float, str):  # a type of the method's own, which it checks itself
        return value
    raise InputError(f"{where} is {'a' if wanted is not int else 'an'} {wanted.__name__}, not {value!r}")

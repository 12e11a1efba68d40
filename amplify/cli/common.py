"""What the commands share: options, and how their values are read."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from amplify.cli import completing
from amplify.errors import InputError

if TYPE_CHECKING:
    from amplify.models import LanguageModel

Command = TypeVar("Command", bound=Callable[..., Any])


class Group(click.Group):
    """Suggests the nearest command for an unknown one."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or fail with the nearest name."""
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            from amplify.errors import UnknownNameError

            ctx.fail(str(UnknownNameError("command", args[0], self.list_commands(ctx))))
        return super().resolve_command(ctx, args)


class Listed(click.Choice[str]):
    """Names that a module lists. It is imported when they are needed, and not at the start.

    Args:
        place: module and list, as MODULE:NAME.
        before: further names, which stand first.
    """

    def __init__(self, place: str, *before: str) -> None:
        self.place, self.before = place, before
        self.case_sensitive = True

    @cached_property
    def choices(self) -> tuple[str, ...]:  # type: ignore[override]
        """All of them."""
        module, _, name = self.place.partition(":")
        return (*self.before, *getattr(import_module(module), name))


class NewFile(click.Path):
    """A file to write, refused before any work where it could not be written."""

    def __init__(self) -> None:
        super().__init__(path_type=Path, dir_okay=False, writable=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path; its folder must be there and open for writing."""
        path = Path(str(super().convert(value, param, ctx)))
        if not os.access(path.parent, os.W_OK):
            self.fail(f"cannot write {path}: its folder does not exist or is not writable", param, ctx)
        return path


def say(text: object, *, err: bool = False) -> None:
    """Print a line. Control characters of models, servers and files are shown and never reach the terminal raw."""
    from amplify.render import visible

    click.echo(visible(str(text)), err=err)


class Resumable(KeyboardInterrupt):
    """Ctrl-C while work is done that the same command goes on with."""


@contextmanager
def resumes(when: bool = True) -> Iterator[None]:
    """Mark work that the same command goes on with after Ctrl-C, so that the message says so only there."""
    try:
        yield
    except KeyboardInterrupt as stop:
        if when:
            raise Resumable from stop
        raise


def names(value: str) -> list[str]:
    """The parts of a list separated by commas."""
    return [name.strip() for name in value.split(",") if name.strip()]


def numbers(value: str) -> tuple[int, ...]:
    """Seeds, separated by commas.

    Raises:
        InputError: something is no whole number.
    """
    try:
        return tuple(int(part) for part in names(value))
    except ValueError:
        raise InputError(f"--seeds takes whole numbers separated by commas, e.g. 0,1,2, not {value!r}") from None


def pairs(settings: tuple[str, ...], option: str) -> dict[str, Any]:
    """KEY=VALUE strings as a dictionary; values are read as YAML, so 3 is a number and true a truth value.

    Args:
        settings: the strings.
        option: that they came by, for the message.

    Raises:
        InputError: no KEY=, or a value that is not YAML.
    """
    from amplify.files import from_yaml

    pairs: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            example = "amplify.k=3" if option == "--set" else "dtype=float32"
            raise InputError(f"{option} takes KEY=VALUE, e.g. {option} {example}, not {setting!r}")
        try:
            pairs[key.strip()] = from_yaml(value, "the value")
        except InputError as error:
            raise InputError(f"{option} {setting}: the value cannot be read ({error}); put it in quotes") from None
    return pairs


@contextmanager
def opened_model(spec: str, options: tuple[str, ...], cache: str | None = None) -> Iterator[LanguageModel]:
    """The model that --model, --model-option and --cache describe; what the cache was good for is said at the end."""
    from amplify.models import load_model

    chosen = pairs(options, "--model-option")
    if cache in (None, "", "off"):
        with load_model(spec, **chosen) as model:
            yield model
        return
    from amplify.models.cache import Cache, keeping_numbers
    from amplify.models.cached import cached

    # the file before an engine starts
    with Cache(cache) as store, keeping_numbers(store), load_model(spec, **chosen) as model:
        yield cached(model, store)
        say(f"{store.path}: {store.found:,} replies were there, {store.asked:,} were asked", err=True)


def takes_model(command: Command) -> Command:
    """Add --model and --model-option: parameters `model` and `model_option`."""
    kinds = "transformers:MODEL, vllm:MODEL, openai:MODEL@URL or scripted:NAME; ray:N× before it for N workers."
    engine = "Engine option, e.g. dtype=float32. Repeatable."
    command = click.option("--model-option", "-B", multiple=True, metavar="KEY=VALUE", help=engine)(command)
    return click.option("--model", "-m", metavar="KIND:MODEL", shell_complete=completing.models, help=kinds)(command)


def takes_cache(command: Command) -> Command:
    """Add --cache, the folder of replies that all runs share."""
    line = (
        "Folder of the model's replies, which all commands can share: what stands there is not asked again; off: none."
    )
    return click.option("--cache", metavar="DIR|off", envvar="AMPLIFY_CACHE", help=line)(command)


def takes_data(command: Command) -> Command:
    """Add --data, the folder of the task's data."""
    folder = click.Path(path_type=Path, exists=True, file_okay=False)
    return click.option("--data", type=folder, help="Folder with the task's data. Default: $AMPLIFY_DATA.")(command)


def takes_task(command: Command) -> Command:
    """Add what finds a task's data: --data, and --text and --label for a file of one's own."""
    for name in ("label", "text"):
        line = f"{name.capitalize()} column, for a task given as a CSV or JSONL file."
        command = click.option(f"--{name}", help=line)(command)
    return takes_data(command)


def required(value: str | None, option: str) -> str:
    """The value of an option that a command cannot do without.

    Raises:
        InputError: it was not given.
    """
    if not value:
        hint = ": give KIND:MODEL, e.g. --model transformers:smollm2-135m" if option == "--model" else ""
        raise InputError(f"{option} is missing{hint}")
    return value


def for_vllm(model: str | None, options: tuple[str, ...], **defaults: str | bool | None) -> tuple[str, ...]:
    """Engine options (KEY=VALUE) with defaults that the user did not set, where the model is a vLLM engine.

    A default of None or False is left out.
    """
    if not (model or "").startswith("vllm:"):
        return options
    given = {option.partition("=")[0].strip() for option in options}
    missing = {key: value for key, value in defaults.items() if value and key not in given}
    return (*options, *(f"{key}={value if isinstance(value, str) else 'true'}" for key, value in missing.items()))

"""The templates of `prompts/`: strict, sandboxed, carried by value so that a saved program needs no file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amplify import codec, resources
from amplify.errors import DataError, InputError, UnknownNameError

if TYPE_CHECKING:
    from amplify.sandbox import Sandbox

_MARK = "\ue000"  # a private-use character: stands for a value when a template is cut where that value goes


@dataclass(frozen=True, slots=True)
class Template:
    """A template and where it came from.

    Attributes:
        name: its name in `prompts/` without the ending, or the path of the user's own file.
        source: the text itself, so that what a program was fitted with never changes under it.
    """

    name: str
    source: str

    @property
    def sha256(self) -> str:
        """Hash of the source, recorded in every run."""
        return hashlib.sha256(self.source.encode("utf-8", "backslashreplace")).hexdigest()

    def render(self, variables: Mapping[str, Any]) -> str:
        """Fill the template in. Special tokens in the variables are neutralised (see `amplify.untrusted`).

        Raises:
            InputError: a variable that was not given (those given are listed), a mistake in the template, or more
                work than one rendering may cost (see `amplify.sandbox`).
        """
        import jinja2

        from amplify.sandbox import FILTERS, Exhausted
        from amplify.untrusted import neutral_values

        try:
            return _environment().fill(_compiled(self.source), neutral_values(variables)).rstrip("\n")
        except Exhausted as error:
            raise InputError(f"template {self.name!r} does more than a template may: {error}") from error
        except jinja2.TemplateSyntaxError as error:
            hint = f" There are: {', '.join(FILTERS)}." if str(error.message).startswith("No filter named") else ""
            raise InputError(f"template {self.name!r}, line {error.lineno}: {error.message}{hint}") from error
        except jinja2.UndefinedError as error:
            given = ", ".join(sorted(variables))
            raise InputError(f"template {self.name!r}: {error.message}. The variables there are: {given}") from error
        except jinja2.exceptions.SecurityError as error:
            raise InputError(f"template {self.name!r} reaches for what templates may not touch: {error}") from error
        except jinja2.TemplateRuntimeError as error:  # a filter or test in a branch is looked up when it is reached
            raise InputError(f"template {self.name!r}: {error.message}") from error
        except (RecursionError, MemoryError, SyntaxError) as error:  # Python's own limits: what is nested too deeply
            raise InputError(f"template {self.name!r} is nested too deeply, or too large") from error
        except (TypeError, ValueError, ArithmeticError, LookupError, NameError) as error:
            raise InputError(f"template {self.name!r} cannot be filled in: {error}") from error

    def before(self, variable: str, variables: Mapping[str, Any]) -> str:
        """The rendered text up to the place where `variable` is written, or all of it where it is not."""
        return self.render({**variables, variable: _MARK}).partition(_MARK)[0]

    def after(self, variable: str, variables: Mapping[str, Any]) -> str:
        """The rendered text behind the last place where `variable` is written, "" where it is not."""
        _, mark, tail = self.render({**variables, variable: _MARK}).rpartition(_MARK)
        return tail if mark else ""

    def writes(self, variable: str, variables: Mapping[str, Any]) -> bool:
        """Whether the rendered text contains `variable`."""
        return _MARK in self.render({**variables, variable: _MARK})


def _saved(template: Template) -> dict[str, str]:
    return {"name": template.name, "source": template.source, "sha256": template.sha256}


def _loaded(data: Any) -> Template:
    held = codec.decode(dict[str, str], data)
    if not {"name", "source"} <= held.keys() <= {"name", "source", "sha256"}:
        raise DataError("a template has a name, a source and its sha256")
    template = Template(held["name"], held["source"])
    if held.get("sha256", template.sha256) != template.sha256:
        raise DataError(f"the template {template.name!r} was changed after it was saved: its sha256 is another")
    return template


codec.register(Template, _saved, _loaded)


def load(kind: str, name: str) -> Template:
    """A template of `prompts/` by kind and name, or the user's own file.

    Args:
        kind: what it is for, e.g. "rationale"; the file is `prompts/KIND_NAME.jinja` (or `KIND.jinja` for "").
        name: e.g. "key_words", or a path that ends in .jinja.

    Raises:
        UnknownNameError: no such template; the nearest is suggested.
        InputError: the user's file cannot be read.
    """
    if name.endswith(".jinja"):
        try:
            return Template(name, Path(os.path.expanduser(name)).read_text(encoding="utf-8-sig").removesuffix("\n"))
        except (OSError, ValueError) as error:
            raise InputError(f"template file {name} cannot be read: {error}") from error
    folder = resources.content("prompts")
    path = folder / f"{kind}_{name}.jinja" if name else folder / f"{kind}.jinja"
    if path.parent != folder or not os.path.isfile(path):
        known = [p.stem.removeprefix(f"{kind}_") for p in folder.glob(f"{kind}_*.jinja")]
        raise UnknownNameError(f"{kind} template", name, known, "A path to a .jinja file of your own works too.")
    return Template(path.stem, path.read_text(encoding="utf-8").removesuffix("\n"))


@cache
def _environment() -> Sandbox:
    from amplify.sandbox import Sandbox

    return Sandbox()


@lru_cache(maxsize=1024)
def _compiled(source: str) -> Any:
    return _environment().from_string(source)

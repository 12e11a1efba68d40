"""Chat templates of model folders, filled in as transformers fills them in, but with counted work.

A model folder is others' code as far as its template goes. transformers' own sandbox lets it reach no file and run no
program, yet it may loop for ever or fill the memory. Here the same environment (its settings, its tags, its functions)
is one of `amplify.sandbox`, where each rendering has so many units of work to spend.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from jinja2 import Undefined, nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser

from amplify.sandbox import Sandbox

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MOST_FORM = 1000  # characters of a form of dates
SWITCHES = "amplify_switches"  # attribute of a tokenizer


class _Generation(Extension):
    """`{% generation %}` marks what the model says; nobody asks here which tokens those are, so it writes its body."""

    tags = {"generation"}  # noqa: RUF012 (as its base class has it)

    def parse(self, parser: Parser) -> nodes.Node:
        """A block that is called, as transformers has it: what it sets stays inside."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_said"), [], [], body).set_lineno(line)

    def _said(self, caller: Callable[[], str]) -> str:
        return caller()


class _ChatSandbox(Sandbox):
    """The environment of chat templates: variables that are not given are empty, and more filters are there."""

    def __init__(self) -> None:
        more = ("attr", "batch", "center", "safe", "slice", "wordwrap")
        super().__init__(Undefined, (_Generation, loopcontrols), more)
        self.filters["tojson"] = self.metered(_tojson, factor=True)
        self.globals |= {"raise_exception": _raise, "strftime_now": _now}


def _tojson(
    x: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise TemplateError(message)


def _now(form: str) -> str:
    if len(form) > MOST_FORM:
        raise SecurityError("a date is written by a short form")  # each of its parts may be 25 times as long
    if re.search(r"\d{3}", form):
        raise SecurityError("a part of a date is written in at most 99 places")
    return datetime.now().strftime(form)


@lru_cache(maxsize=1)
def _environment() -> _ChatSandbox:
    return _ChatSandbox()


@lru_cache(maxsize=64)
def _compiled(source: str) -> Any:
    return _environment().from_string(source)


def switched(tokenizer: PreTrainedTokenizerBase, switches: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    """The tokenizer, with switches of its chat template set from now on (e.g. enable_thinking=False)."""
    if switches:
        setattr(tokenizer, SWITCHES, dict(switches))
    return tokenizer


def switches_of(tokenizer: PreTrainedTokenizerBase) -> Mapping[str, Any]:
    """The switches that `switched` set."""
    return getattr(tokenizer, SWITCHES, {})


def filled(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Mapping[str, Any]]) -> str:
    """`tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)`, with bounded work.

    A tokenizer whose class fills in by code of its own is asked itself.

    Args:
        tokenizer: of the model, with a chat template.
        turns: messages as {"role", "content"}.

    Raises:
        jinja2.TemplateError: the template refuses the messages, or does more than a template may (`Exhausted`).
    """
    from transformers import PreTrainedTokenizerBase as Plain

    switches = switches_of(tokenizer)
    if getattr(type(tokenizer), "apply_chat_template", None) is not Plain.apply_chat_template:
        return str(tokenizer.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=True, **switches))
    given = {**tokenizer.special_tokens_map, "tools": None, "documents": None, **switches}
    given |= {"messages": list(turns), "add_generation_prompt": True}
    try:
        return _environment().fill(_compiled(tokenizer.get_chat_template()), given)
    except (RecursionError, MemoryError, SyntaxError) as error:
        raise SecurityError("it is nested too deeply, or too large") from error
    except (TypeError, ValueError, ArithmeticError, LookupError, NameError) as error:
        raise TemplateError(f"it cannot be filled in: {error}") from error

"""YAML and JSON that others wrote, as plain values: bounded, and with one error for whatever is wrong with them."""

from __future__ import annotations

import json
import re
from typing import Any

import yaml

from amplify.errors import InputError

NODES = 200_000  # values in a YAML file, each alias counted with all that it stands for


def from_yaml(text: str, where: str) -> Any:
    """The value of a YAML text.

    Args:
        text: the YAML.
        where: what it is, for errors, e.g. the file.

    Raises:
        InputError: not YAML, aliases that hold themselves or stand for more than `NODES` values, too many levels, or
            a value that cannot be (a date without a day, half a character).
    """
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _expanded(node) > NODES:
            raise InputError(f"its aliases (*name) stand for more than {NODES:,} values")
        value = loader.construct_document(node)
    except RecursionError:
        raise InputError(f"{where}: its values hold one another too deeply") from None
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, ArithmeticError) as error:
        raise InputError(f"{where} is not readable YAML: {error}") from error
    return value


def _expanded(root: yaml.Node) -> int:
    """Nodes of a document with every alias written out.

    Raises:
        InputError: an alias inside of what it stands for, or half a character.
    """
    sizes: dict[int, int] = {}  # 0 while a node is open

    def size(node: yaml.Node) -> int:
        if id(node) in sizes:
            if not sizes[id(node)]:
                raise InputError(f"the alias in line {node.start_mark.line + 1} stands for what it is part of")
            return sizes[id(node)]
        sizes[id(node)] = 0
        children: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            children = [child for pair in node.value for child in pair]
        elif isinstance(node, yaml.SequenceNode):
            children = node.value
        elif re.search("[\ud800-\udfff]", node.value):
            raise InputError(f"line {node.start_mark.line + 1} holds half a character (an unpaired surrogate)")
        sizes[id(node)] = 1 + sum(size(child) for child in children)
        return sizes[id(node)]

    return size(root)


def from_json(text: str, where: str) -> Any:
    """The value of a JSON text.

    Args:
        text: the JSON.
        where: what it is, for errors, e.g. the file and line.

    Raises:
        InputError: not JSON, too many levels, or half a character.
    """
    try:
        value = json.loads(text)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        around = error.object[max(0, error.start - 20) : error.start + 20].encode(errors="replace").decode()
        raise InputError(f"{where} holds half a character (an unpaired surrogate), near {around!r}") from None
    except RecursionError:
        raise InputError(f"{where}: its values hold one another too deeply") from None
    except ValueError as error:
        raise InputError(f"{where} is not JSON: {error}") from error
    return value

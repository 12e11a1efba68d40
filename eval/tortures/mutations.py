"""Odd inputs made of good ones: texts and bytes cut, doubled, filled with what breaks things; JSON values replaced."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

ODD_TEXTS = (
    "", " ", "\n", "\r", "\r\n", "\t", "\0", "\x1b[31m", "\ufeff", "\u2028", "\u202e", "\ud83d", "\udcff", "é",
    "e\u0301", "ß", "İ", "良い", "😀", '"', "'", '""', "\\", ",", ";", ":", "|", "{", "}", "[", "]", "(", ")", "<",
    ">", "&", "#", "%", "{{", "}}", "{%", "%}", "{{ x }}", "{% for i in range(9) %}", "{{ ''.__class__ }}",
    "null", "true", "NaN", "-Infinity", "0", "-1", "1e999", "9" * 40, "0x10", "1_000", "**", "***", "<em>",
    "</em>", "<em weight=3>", "<em weight=>", "\\**", "&amp;", "<script>", "</script>", "<!--", "<|im_start|>",
    "<|im_end|>", "<s>", "</s>", "[INST]", "<think>", "</think>", "The answer is", "Answer:", "(A)", "(B) text",
    "- ", "* ", "? ", "! ", "&a", "*a", "<<: ", "!!python/object:os.system ", "../", "/etc/passwd", "~",
    "$HOME", "\\u0000", "\\ud83d", "=1+1", "@", "A. ", "not ", "[" * 50, "{\"a\":" * 50, "[" * 20_000,
    "a" * 5_000, " " * 2_000, "- " * 1_000, "{a: " * 500,
)  # fmt: skip
ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3.5, -0.0, 1e308, float("nan"), float("inf"), 2** 31, 2** 63, 10** 40, "",
    " ", "x", "0", "1", "-1", "é", "\ud83d", "a" * 300, "../x", "/etc/passwd", "{{ x }}", "<script>", [], {},
    [[]], [None], [1], ["x"], [1, "x", None], {"x": 1}, {"text": "t"}, {"": None}, [{"x": [1]}], [[1, 2], [3]],
    [{}], ["a", "a"],
)  # fmt: skip


def text(draw: random.Random, good: str, most: int = 4) -> str:
    """A text with one or more changes."""
    for _ in range(draw.randint(1, most)):
        a, b = sorted((draw.randint(0, len(good)), draw.randint(0, len(good))))
        b = min(b, a + draw.choice((1, 2, 8, 60, 10_000)))
        kind = draw.randrange(7)
        if kind == 0:
            good = good[:a] + good[b:]
        elif kind == 1:
            good = good[:a] + good[a:b] * 2 + good[b:]
        elif kind == 2:
            good = good[:a] + chr(draw.choice((draw.randrange(128), draw.randrange(0xD800), 0x1F600))) + good[a + 1 :]
        elif kind == 3:
            good = good[:a] + good[a:b][::-1] + good[b:]
        elif kind == 4 and draw.random() < 0.3:
            good = good[:a]
        else:
            good = good[:a] + draw.choice(ODD_TEXTS) + good[a if draw.random() < 0.7 else b :]
    return good


def data(draw: random.Random, good: str) -> bytes:
    """A file's bytes: the text changed, and sometimes bytes that are no UTF-8."""
    made = text(draw, good).encode("utf-8", draw.choice(("surrogatepass", "replace", "replace")))
    if draw.random() < 0.15:
        flipped = bytearray(made)
        for _ in range(draw.randint(1, 3)):
            if flipped:
                flipped[draw.randrange(len(flipped))] = draw.randrange(256)
        made = bytes(flipped)
    if draw.random() < 0.03:
        made = made.decode("utf-8", "replace").encode(draw.choice(("utf-16", "latin-1", "utf-8-sig")), "replace")
    return made


def value(draw: random.Random, good: Any, most: int = 3) -> Any:
    """A JSON value with one or more of its parts replaced, taken out, doubled or renamed."""
    made = copy.deepcopy(good)
    for _ in range(draw.randint(1, most)):
        places = list(_places(made))
        if not places:
            return draw.choice(ODD_VALUES)
        holder, key = draw.choice(places)
        kind = draw.randrange(8)
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, dict):
            holder[draw.choice(("x", "", "text", "format", str(key) + "s", "é"))] = holder.pop(key)
        elif kind == 2 and isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        elif kind == 3:
            holder[key] = [holder[key]]
        elif kind == 4 and isinstance(holder[key], str):
            holder[key] = text(draw, holder[key], 2)
        elif kind == 5 and isinstance(holder[key], (int, float)):
            holder[key] = draw.choice((-holder[key], holder[key] * 10, holder[key] + 0.5, str(holder[key])))
        elif kind == 6 and isinstance(holder[key], list):
            holder[key] = holder[key][: draw.randint(0, len(holder[key]))] * draw.randint(0, 3)
        else:
            holder[key] = copy.deepcopy(draw.choice(ODD_VALUES))
    return made


def _places(made: Any) -> Any:
    """Every (holder, key) inside a value."""
    for key in list(made) if isinstance(made, dict) else range(len(made)) if isinstance(made, list) else ():
        yield made, key
        yield from _places(made[key])


def json_text(draw: random.Random, good: Any) -> str:
    """A value as JSON, changed as a value or as a text."""
    if draw.random() < 0.75:
        return json.dumps(value(draw, good), ensure_ascii=draw.random() < 0.5)
    return text(draw, json.dumps(good, ensure_ascii=False))

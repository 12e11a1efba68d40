"""Runs that fail while an API key is set: the key is in no output and no file, in no form."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote, quote_plus

from tortures import commands, servers
from tortures.children import Children, Ended
from tortures.outcome import Group, Groups, Setting

KEYS = {
    "plain": "sk-SECRETplain0123456789",
    "a line break at its end": "sk-SECRETline0123456789\n",
    "a carriage return and a line break": "sk-SECRETcrlf0123456789\r\n",
    "a line break inside": "sk-SECRETfirst012345\nSECRETsecond012345",
    "quotes and a backslash": "sk-SECRET'q\"u\\o`te0123456789",
    "not ASCII": "sk-SECRETé良ñ0123456789",
    "blanks around": "  sk-SECRETblank0123456789 ",
    "marks of URLs and markup": "sk-SECRET%41&<b>#?0123456789",
    "a tab and an escape": "sk-SECRET\ttab\x1b[31m0123456789",
}
TELLING = (
    "key_in_401",
    "key_in_text",
    "no_http",
    "status_401",
    "redirect_307",
    "bad_gzip",
    "drop",
    "html",
    "reset",
    "status_400_surrogate",
    "retry_garbage",
    "message_text",
)
PLACES = (
    "openai:m@http://user:{key}@127.0.0.1:9/v1",
    "openai:m@http://127.0.0.1:9/v1?api_key={key}",
    "openai:m@http://127.0.0.1:9/v1#{key}",
)


def forms(key: str) -> set[bytes]:
    """Everything that a key could be read from, parts of a key that is broken in lines included."""
    found: set[bytes] = set()
    for part in {key, key.strip(), *key.split()}:
        if len(part) < 12:
            continue
        raw = part.encode("utf-8", "surrogateescape")
        texts = {
            part,
            repr(part)[1:-1],
            ascii(part)[1:-1],
            json.dumps(part)[1:-1],
            quote(part),
            quote_plus(part),
            quote(part, safe=""),
        }
        texts |= {repr(raw)[2:-1], raw.hex(), raw.decode("latin-1"), json.dumps(part, ensure_ascii=False)[1:-1]}
        texts |= {
            "".join(f"\\u{ord(c):04x}" for c in part),
            "".join(f"%{b:02X}" for b in raw),
            "".join(f"\\x{b:02x}" for b in raw),
        }
        texts |= {part.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")}
        found |= {text.encode("utf-8", "replace") for text in texts}
        for shift in range(3):  # base64 of something that holds it
            coded = base64.b64encode(b"\0" * shift + raw)
            found.add(coded[4 if shift else 0 : -4])
        found.add(raw)
    return {form.lower() for form in found if len(form) >= 12}


def run(setting: Setting) -> Groups:
    """100 failing runs, keys of every kind, and keys where they do not belong."""
    children = Children(commands.MODULES)
    models = commands.make_models(setting.models, children)
    faults = [*TELLING] if not setting.quick else ["key_in_401"]
    cases = [(kind, fault) for fault in faults for kind in KEYS]
    found = Group(
        "a run against a server that fails",
        figures={"kinds of keys": len(KEYS), "faults": len(faults), "reached the server": 0},
    )

    def tried(case: tuple[int, tuple[str, str]]) -> str | None:
        number, (kind, fault) = case
        folder = commands.trial(models / "in", setting.work / f"{number}")
        key = KEYS[kind]
        ended, asked = servers.failing(children, folder, fault, key)
        problem = leaked(ended, folder, key)
        found.figures["reached the server"] += asked > 0
        if ended.status not in (0, 2) or b"Traceback" in ended.err:
            problem = f"status {ended.status}, {ended.last}"
        shutil.rmtree(folder)
        return problem and f"{fault}, key with {kind}: {problem}"

    with ThreadPoolExecutor(servers.AT_ONCE) as pool:
        for problem in pool.map(tried, enumerate(cases)):
            found.note(problem)
    yield found
    misplaced = Group("a key in the URL, or in an option")
    for number, argv in enumerate(_misplaced()):
        key = KEYS["plain"]
        folder = commands.trial(models / "in", setting.work / f"misplaced{number}")
        ended = children.run(
            [*servers.ways()[0].argv, *argv], folder, environment=commands.home(folder), before=(servers.hasten,)
        )
        problem = leaked(ended, folder, key)
        misplaced.note(problem and f"{' '.join(argv).replace(key, 'KEY')}: {problem}")
        shutil.rmtree(folder)
    yield misplaced


def _misplaced() -> Iterator[list[str]]:
    key = KEYS["plain"]
    for place in PLACES:
        yield ["-m", place.format(key=key), "-B", "retries=0"]
    yield ["-m", "openai:m@http://127.0.0.1:9/v1", "-B", "retries=0", "-B", f"extra_body={{api_key: {key}}}"]
    yield ["-m", "openai:m@http://127.0.0.1:9/v1", "-B", "retries=0", "-B", f"api_key={key}"]


def leaked(ended: Ended, folder: Path, key: str) -> str | None:
    """Where the key stands, or None."""
    wanted = forms(key)
    said = {"stdout": ended.out, "stderr": ended.err}
    said |= {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    for name, content in said.items():
        low = content.lower()
        for form in wanted:
            if form in low:
                at = low.index(form)
                return f"the key is in {name}: {content[max(0, at - 40) : at + len(form)]!r:.160}".replace(
                    "SECRET", "S…"
                )
    return None

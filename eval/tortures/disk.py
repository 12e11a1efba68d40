"""A full disk, and folders that may not be written, under every command that writes.

A full disk is a limit on the size of files (RLIMIT_FSIZE): a write that goes beyond it fails, as one on a full disk
does. A case is right when the command ends in one error, leaves whole what stood there before and no half file, and the
same command ends right once there is room.
"""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

from tortures import commands
from tortures.children import Children, Ended, limit_files, obey_permissions
from tortures.commands import Command
from tortures.outcome import Group, Groups, Setting


def run(setting: Setting) -> Groups:
    """Each command on a disk that is full from the start, on one that fills later, and in a read-only folder."""
    children = Children(commands.MODULES)
    commands.make_models(setting.models, children)
    inputs = setting.models / "in"
    for command in commands.chosen(setting):
        if setting.skips(command.name):
            continue
        want, _, largest = commands.undisturbed(children, command, inputs, setting.work)
        group = Group(command.name, figures={"largest file": largest})
        folder = setting.work / "trial"
        for size in _sizes(largest, setting.amount(8, 1)):
            group.note(filled(children, command, inputs, folder, want, size, stands=False))
        for size in _sizes(largest, setting.amount(4, 1)):
            group.note(filled(children, command, inputs, folder, want, size, stands=True))
        group.note(_read_only(children, command, inputs, folder, want))
        yield group


def _sizes(largest: int, amount: int) -> list[int]:
    """Limits from one byte to one less than is needed, each a constant factor above the one before."""
    if amount == 1:
        return [largest // 2]
    return sorted({max(1, round((largest - 1) ** (i / (amount - 1)))) for i in range(amount)})


def filled(
    children: Children, command: Command, inputs: Path, folder: Path, want: dict[str, Any], size: int, *, stands: bool
) -> str | None:
    """A disk on which no file may have more than `size` bytes; with `stands` the command was done there before."""
    told = f"files of {size} bytes at most" + (", when its results stand" if stands else "")
    commands.trial(inputs, folder)
    try:
        if stands:
            commands.run(children, command, folder)
        before = commands.contents(folder, logs=command.logs)
        ended = commands.run(children, command, folder, before=(partial(limit_files, size),))
        if problem := _badly(ended):
            return f"{told}: {problem}"
        for name, content in commands.contents(folder, logs=command.logs).items():
            grows = name.endswith((*command.logs, ".sqlite"))  # these keep what there was room for
            if content not in (before.get(name), want.get(name)) and not grows:
                return f"{told}: {name} is left behind, or not whole"
            if stands and name in before and content not in (before[name], want.get(name)):
                return f"{told}: {name} was lost"
        return _then(children, command, folder, want, told)
    finally:
        shutil.rmtree(folder)


def _read_only(children: Children, command: Command, inputs: Path, folder: Path, want: dict[str, Any]) -> str | None:
    told = "a folder that may not be written"
    commands.trial(inputs, folder)
    before = commands.contents(folder, logs=command.logs)
    places = [path for path in (folder, *folder.rglob("*")) if path.is_dir()]
    try:
        for place in places:
            place.chmod(0o555)
        ended = commands.run(children, command, folder, before=(obey_permissions,))
        if not ended.one_error:
            return f"{told}: status {ended.status}, {ended.last}"
        if commands.contents(folder, logs=command.logs) != before:
            return f"{told}: something changed"
        for place in places:
            place.chmod(0o755)
        return _then(children, command, folder, want, told)
    finally:
        for place in places:
            place.chmod(0o755)
        shutil.rmtree(folder)


def _badly(ended: Ended) -> str | None:
    """What is wrong with an end: on a full disk a command may still have had room enough."""
    if ended.status == 0 or ended.one_error:
        return None
    return f"status {ended.status}, {ended.last}"


def _then(children: Children, command: Command, folder: Path, want: dict[str, Any], told: str) -> str | None:
    """The same command where there is room again."""
    again = commands.run(children, command, folder)
    if again.status:
        return f"{told}: the same command then ends with {again.status}, {again.last}"
    found = commands.contents(folder, logs=command.logs)
    if found != want:
        differ = sorted(name for name in {**found, **want} if found.get(name) != want.get(name))
        return f"{told}: then {', '.join(differ[:4])} differ from an undisturbed run's"
    return None

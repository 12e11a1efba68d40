"""Every command that writes, killed: at each moment at which it changes a file, twice in a row, and at random ones.

A case is right when the same command, given again, leaves what an undisturbed one leaves, byte by byte but for times:
nothing twice, nothing missing, no draft left behind. And when what stood there right after the kill was whole.
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

from tortures import commands
from tortures.children import Children, Ended, Points
from tortures.commands import Command
from tortures.outcome import Group, Groups, Setting


def run(setting: Setting) -> Groups:
    """Kills of each command."""
    children = Children(commands.MODULES)
    commands.make_models(setting.models, children)
    inputs = setting.models / "in"
    for command in commands.chosen(setting):
        if setting.skips(command.name):
            continue
        draw = random.Random(f"{setting.seed} {command.name}")
        want, whole, _ = commands.undisturbed(children, command, inputs, setting.work)
        group = Group(command.name, figures={"moments": len(whole.points)})
        for kills in _plan(draw, whole, setting.amount(20 if command.slow else 32, 2)):
            group.note(killed(children, command, inputs, setting.work / "trial", want, kills, whole))
        yield group


def _plan(draw: random.Random, whole: Ended, cases: int) -> list[list[tuple[float, bool]]]:
    """Kills of each case, as (moment, torn): half at one moment, a quarter at two in a row, the rest at random times.

    Moments are spread evenly over the command, so that none of its stages is left out; a number below 0 is a share
    of its time.
    """
    moments = len(whole.points)
    aimed, twice = cases // 2, cases // 4
    plan: list[list[tuple[float, bool]]] = []
    for i in range(aimed):
        at = 1 + (i * moments) // aimed + draw.randrange(max(1, moments // aimed))
        plan.append([(min(at, moments), draw.random() < 0.5)])
    for _ in range(twice):  # the second falls on the beginning of the next call, where kept files are opened again
        plan.append([(draw.randint(1, moments), draw.random() < 0.5), (draw.randint(1, 12), draw.random() < 0.5)])
    plan += [[(-draw.random(), False)] for _ in range(cases - aimed - twice)]
    return plan


def killed(
    children: Children,
    command: Command,
    inputs: Path,
    folder: Path,
    want: dict[str, Any],
    kills: list[tuple[float, bool]],
    whole: Ended,
) -> str | None:
    """What went wrong, or None."""
    commands.trial(inputs, folder)
    before = commands.contents(folder, logs=command.logs)
    try:
        for at, torn in kills:
            if at < 0:
                ended = commands.run(children, command, folder, kill_after=-at * (0.05 + 1.3 * whole.seconds))
            else:
                ended = commands.run(children, command, folder, points=Points(str(folder), int(at), torn))
            if ended.status not in (0, -9):
                return f"{_told(kills, whole)}: status {ended.status}, {ended.last}"
            if half := half_written(command, folder, want, before):
                return f"{_told(kills, whole)}: {half} is not whole after the kill"
        again = commands.run(children, command, folder)
        if again.status:
            return f"{_told(kills, whole)}: the same command then ends with {again.status}, {again.last}"
        found = commands.contents(folder, logs=command.logs)
        if found != want:
            differ = sorted(name for name in {**found, **want} if found.get(name) != want.get(name))
            return f"{_told(kills, whole)}: {', '.join(differ[:4])} differ from an undisturbed run's"
        return None
    finally:
        shutil.rmtree(folder)


def half_written(command: Command, folder: Path, want: dict[str, Any], before: dict[str, Any]) -> str:
    """The first file under its final name that is neither what it was nor what it is to be; of a cache: holds more."""
    for name, right in want.items():
        path = folder / name
        if name.endswith(command.logs or ("\0",)) or not path.exists():
            continue
        found = commands.content(path, command.logs)
        if name.endswith(".sqlite"):  # replies come one after the other, as the lines of a log
            if any(reply not in right for reply in found):
                return name
        elif found not in (right, before.get(name)) and not name.startswith("made/"):
            return name
    return ""


def _told(kills: list[tuple[float, bool]], whole: Ended) -> str:
    told = []
    for number, (at, torn) in enumerate(kills):
        where = f" ({' '.join(whole.points[int(at) - 1])}{', torn' if torn else ''})" if at > 0 and number == 0 else ""
        told.append(f"moment {int(at)}{where}" if at > 0 else f"{-at:.2f} of its time")
    return "killed at " + " and then at ".join(told)

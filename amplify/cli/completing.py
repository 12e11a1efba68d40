"""What the shell completes beyond commands and options: names of tasks, methods, models and metrics."""

from __future__ import annotations

from collections.abc import Iterable

import click
from click.shell_completion import CompletionItem


def tasks(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Shipped tasks; files, where none begins so."""
    from amplify.tasks import list_tasks

    return _beginning((task.name for task in list_tasks()), begun) or [CompletionItem(begun, type="file")]


def methods(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """The last of several methods that commas separate."""
    from amplify import registry

    before, comma, _ = begun.rpartition(",")
    return _beginning((f"{before}{comma}{name}" for name in registry.table("method")), begun)


def models(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Kinds, with the models that amplify knows by a name."""
    from amplify.hub import ALIASES

    named = [f"{kind}:{name}" for kind in ("transformers", "vllm") for name in ALIASES]
    return _beginning([*named, "openai:", "ray:", "scripted:first_option", "scripted:echo"], begun)


def aliases(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Models that amplify knows by a name."""
    from amplify.hub import ALIASES

    return _beginning(ALIASES, begun)


def metrics(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Registered metrics."""
    from amplify import registry

    return _beginning(registry.table("metric"), begun)


def _beginning(names: Iterable[str], begun: str) -> list[CompletionItem]:
    return [CompletionItem(name) for name in names if name.startswith(begun)]

"""`amplify generate`, `heads` and `projections`: answer with emphasis, and find what in a model follows it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from amplify.cli import completing
from amplify.cli.common import for_vllm, opened_model, required, resumes, say, takes_data, takes_model
from amplify.errors import InputError


@click.command()
@click.argument("prompt")
@takes_model
@click.option(
    "--steering", help="Head profile: a name under steering/, or a .yaml file. Steers towards the marked spans."
)
@click.option(
    "--alpha", type=float, help="Attention outside the spans is scaled by this, instead of the profile's own."
)
@click.option("--mark", default="**", show_default=True, help="What stands around emphasised words.")
@click.option("--raw", is_flag=True, help="Send the text as it is, without the model's chat template.")
@click.option("--max-tokens", type=click.IntRange(min=1), default=64, show_default=True, help="To write at most.")
def generate(
    prompt: str,
    model: str | None,
    model_option: tuple[str, ...],
    steering: str | None,
    alpha: float | None,
    mark: str,
    raw: bool,
    max_tokens: int,
) -> None:
    """Answer PROMPT; with --steering, its **marked** words are emphasised (the marks are never sent).

    A vLLM engine is started for one answer here, so it leaves the model uncompiled (-B enforce_eager=false compiles).
    """
    from amplify.steering import Steering, parse_emphasis
    from amplify.types import Message, Sampling
    from amplify.untrusted import neutral_values

    parsed = parse_emphasis(prompt, raw=raw, mark=mark)
    turns = tuple(Message(m.role, neutral_values(m.content)) for m in parsed.messages)
    parsed = replace(parsed, messages=turns)
    if alpha is not None and not steering:
        raise InputError("--alpha says how strongly --steering steers: name a head profile too")
    chosen = Steering.load(steering) if steering else None
    if chosen is not None and alpha is not None:
        chosen = replace(chosen, alpha=alpha)
    if chosen is not None and not parsed.emphasis:
        raise InputError(f"nothing is emphasised: put {mark} around the words to steer towards")
    options = for_vllm(model, model_option, steering=steering, enforce_eager=True)
    with opened_model(required(model, "--model"), options) as opened:
        [answer] = opened.generate([parsed], Sampling(max_tokens=max_tokens), steering=chosen)
    say(answer.text)


@click.command()
@click.argument("tasks", nargs=-1, required=True, shell_complete=completing.tasks)
@takes_model
@click.option(
    "--samples", type=click.IntRange(min=1), default=32, show_default=True, help="Of each task's train split."
)
@click.option("--out", required=True, type=click.Path(path_type=Path, dir_okay=False), help="Profile (.yaml) to write.")
@click.option("--alpha", type=float, default=0.01, show_default=True, help="Scales attention outside the spans.")
@click.option(
    "--combine",
    type=click.Choice(["intersection", "union", "mean"]),
    default="intersection",
    show_default=True,
    help="How several tasks choose together: heads good for all, for any, or on average.",
)
@click.option("--exhaustive", is_flag=True, help="Every head on every sample, instead of successive halving.")
@click.option(
    "--vectors",
    is_flag=True,
    help="Rank heads by how well labels are read off them: one pass an item.",
)
@click.option("--most", type=click.IntRange(min=1), default=76, show_default=True, help="Heads to try together.")
@click.option(
    "--target-tokens",
    type=click.IntRange(min=1),
    default=24,
    show_default=True,
    help="First tokens of the wanted answer that count.",
)
@click.option("--emphasis", default="", help="What prompts emphasise, e.g. text.  [default: what each task says]")
@click.option(
    "--shots",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Labelled examples before each sample: for heads that few_shot_pasta will steer.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the samples.")
@takes_data
def heads(
    tasks: tuple[str, ...],
    model: str | None,
    model_option: tuple[str, ...],
    out: Path,
    alpha: float,
    emphasis: str,
    data: Path | None,
    **search: Any,
) -> None:
    """Find the heads that follow emphasis on TASKS, one or several together. The same command resumes."""
    from amplify.head_search.search import HeadSearch, find_heads
    from amplify.progress import progress
    from amplify.steering import Steering
    from amplify.tasks import load_task

    if out.suffix not in (".yaml", ".yml"):
        raise InputError(f"--out names a .yaml file, not {str(out)!r}")
    exhaustive, vectors = search.pop("exhaustive"), search.pop("vectors")
    if exhaustive and vectors:
        raise InputError("--exhaustive and --vectors rank heads in two ways: give one")
    ranked: Any = "exhaustive" if exhaustive else "vectors" if vectors else "halving"
    loaded = [load_task(name, data) for name in tasks]
    loaded = [replace(task, emphasis=emphasis or task.emphasis) for task in loaded]
    steering = Steering(heads={0: (0,)}, alpha=alpha)
    with (
        resumes(),
        opened_model(required(model, "--model"), model_option) as opened,
        progress(unit="run") as bar,
    ):
        found = find_heads(
            loaded,
            opened,
            HeadSearch(search=ranked, **search),
            steering=steering,
            record=out.with_suffix(".runs.jsonl"),
            progress=bar.update,
        )
    found.steering.save(out)
    chosen = sum(map(len, (found.steering.heads or {}).values()))
    say(f"{chosen} heads from {found.runs} runs: {out}")


@click.command()
@takes_model
@click.option("--out", required=True, type=click.Path(path_type=Path, dir_okay=False), help="Profile (.yaml) to write.")
@click.option(
    "--layers", type=click.IntRange(min=0), default=10, show_default=True, help="Last ones edited; 0 for all."
)
@click.option(
    "--mass",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.9,
    show_default=True,
    help="Share of the singular values' sum that the relevant directions hold.",
)
@click.option(
    "--least",
    type=click.FloatRange(0),
    default=0.2,
    show_default=True,
    help="Key heads that a question moves less are left alone.",
)
@click.option("--samples", type=click.IntRange(min=1), default=200, show_default=True, help="Texts made by rule.")
@click.option("--positive-gain", type=float, default=0.8, show_default=True, help="Along the relevant directions.")
@click.option("--negative-gain", type=float, default=0.2, show_default=True, help="Along what is left otherwise.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the texts.")
def projections(
    model: str | None,
    model_option: tuple[str, ...],
    out: Path,
    positive_gain: float,
    negative_gain: float,
    **options: Any,
) -> None:
    """Find how SEKA is to edit the keys of marked words: a profile, and its projections in a file beside it."""
    from amplify.models import need_local
    from amplify.steering.keys import save_profile

    if out.suffix not in (".yaml", ".yml"):
        raise InputError(f"--out names a .yaml file, not {str(out)!r}")
    with opened_model(required(model, "--model"), model_option) as opened:
        found = save_profile(
            need_local(opened, "a search for projections"), out, gains=(positive_gain, negative_gain), **options
        )
    learned = found.provenance
    say(f"{learned['key_heads']} key heads from {learned['tokens']} tokens of {learned['texts']} texts: {out}")

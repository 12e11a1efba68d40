"""The command line: `amplify COMMAND`. Frameworks are imported inside the commands, so `--help` answers at once."""

from __future__ import annotations

import gc
import io
import signal
import sys
from collections.abc import Iterator

import click

import amplify
from amplify.cli.common import Group, Resumable, say
from amplify.cli.doctor import doctor
from amplify.cli.explaining import attribute, explain, importance
from amplify.cli.listing import list_, models, proxy
from amplify.cli.prompting import explain_prompt
from amplify.cli.running import apply, report, run
from amplify.cli.serving import serve
from amplify.cli.steering import generate, heads, projections
from amplify.cli.tuning import tune
from amplify.errors import AmplifyError, PromptFormatError, extras

EXAMPLE = (
    "\b\nExample:\n  amplify run support_tickets --model transformers:smollm2-135m \\\n"
    "    --methods zero_shot,few_shot,amplify --seeds 0,1,2 --limit 100 --out runs/tickets"
)


VERBS = (
    ("tune", "tune", "find what makes answers better on your examples, and keep it",
     "amplify tune support_tickets -m transformers:smollm2-135m --budget 20m --out tuned"),
    ("attribute", "attribute", "why did it answer so? which documents, sentences and words",
     'amplify attribute -q "Where does Ada live?" -m transformers:smollm2-135m -d notes/*.md'),
    ("steer", "generate", "make it heed the **marked** words of a prompt",
     'amplify generate "Name a colour **in French**." -m transformers:smollm2-135m --steering smollm2-135m'),
    ("evaluate", "run", "is it really better? with controls, intervals and tests",
     "amplify run support_tickets -m transformers:smollm2-135m -M zero_shot,few_shot,amplify --limit 20"),
)  # fmt: skip
"""What a person comes for: (the verb, its command, what it does, an example)."""
NEXT = (
    ("amplify models pull smollm2-135m minilm", "get the small models of these examples"),
    ("amplify doctor", "what this machine can do, and what to install"),
    ("amplify --help", "every command; amplify COMMAND --help: its options"),
)


@click.group(cls=Group, epilog=EXAMPLE, invoke_without_command=True, no_args_is_help=False,
             context_settings={"help_option_names": ["-h", "--help"]})  # fmt: skip
@click.version_option(amplify.__version__, prog_name="amplify")
@click.pass_context
def cli(context: click.Context) -> None:
    """Make a frozen language model better with explanations, and prove it."""
    if context.invoked_subcommand is None:
        say("\n".join(first_contact()))


def first_contact() -> Iterator[str]:
    """What `amplify` says by itself: its four verbs, with an example each."""
    yield "amplify makes a frozen language model better with explanations, and proves it.\n"
    for verb, command, what, example in VERBS:
        if command in cli.commands:
            yield f"  {verb:10}{what}\n            {example}\n"
    for command, what in NEXT:
        yield f"  {command:41}{what}"


for command in (
    doctor, tune, run, report, apply, explain, explain_prompt, attribute, importance, serve, generate, heads,
    projections, models, list_, proxy,
):  # fmt: skip
    cli.add_command(command)


def _stop(number: int, frame: object) -> None:
    """The first Ctrl-C ends in order; the next one at once, wherever it comes."""
    signal.signal(number, signal.SIG_DFL)
    raise KeyboardInterrupt


def main() -> None:
    """Run the command line; an AmplifyError prints its message and exits with status 2, Ctrl-C with 130."""
    signal.signal(signal.SIGINT, _stop)
    gc.freeze()  # what is imported by now stays, so that no search for cycles looks through it again;
    gc.set_threshold(20_000, 20, 20)  # and a command that reads many rows makes few cycles
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name or a text that is no UTF-8 is printed with escapes
            stream.reconfigure(errors="backslashreplace")
    try:
        with extras():
            sys.exit(cli.main(standalone_mode=False) or 0)
    except click.exceptions.NoArgsIsHelpError as error:
        say(error.format_message(), err=True)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        said = " ".join(error.format_message().split()).rstrip(".")
        asked = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "amplify"
        say(f"amplify: {said[:1].lower()}{said[1:]} (see `{asked} --help`)", err=True)
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt) as stop:
        goes_on = isinstance(stop, Resumable) or isinstance(stop.__cause__, Resumable)
        click.echo("stopped; the same command resumes" if goes_on else "stopped", err=True)
        sys.exit(130)
    except PromptFormatError as error:
        command = next((word for word in sys.argv[1:] if word in cli.commands), "")
        say(f"amplify: {way_out(error, command)}", err=True)
        sys.exit(2)
    except AmplifyError as error:
        say(f"amplify: {error}", err=True)
        sys.exit(2)


def way_out(error: PromptFormatError, command: str) -> str:
    """The message, with what to do in the words of a command."""
    if command == "run" and error.kind == "system":
        return f"{error.problem}: add --set '*.system=none', or --set '*.layout=text' for raw text"
    ways = {
        "run": "add --set '*.layout=text', which sends raw text",
        "generate": "add --raw, which sends the text as it is",
        "attribute": "add --layout text, which sends raw text",
        "apply": "the program was made for another kind of model; make one with amplify run --set '*.layout=text'",
    }
    return f"{error.problem}: {ways[command]}" if command in ways else str(error)

"""The errors a user can meet. Each message says what is wrong and what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

from amplify.redaction import redact

EXTRAS = {
    "accelerate": "local",
    "bm25s": "rag",
    "captum": "local",
    "dspy": "dspy",
    "fastapi": "serve",
    "gguf": "local",
    "haystack": "rag",
    "inspect_ai": "inspect",
    "langchain_core": "rag",
    "llama_index": "rag",
    "lm_eval": "lm-eval",
    "mlflow": "mlflow",
    "peft": "local",
    "ragas": "ragas",
    "ray": "ray",
    "safetensors": "local",
    "torch": "local",
    "transformers": "local",
    "uvicorn": "serve",
    "wandb": "wandb",
}
"""Importable package that the base install lacks -> the extra that brings it."""


class AmplifyError(Exception):
    """Base class: the command line prints the message without a traceback and exits with status 2.

    Secrets in a message are hidden (see `redaction`).

    Example:
        >>> try:
        ...     amplify.load_model("scripted:ecko")
        ... except amplify.AmplifyError as error:
        ...     print(error)
        unknown script 'ecko'. Did you mean 'echo'? Known scripts: echo, first_option, last_answer, say=TEXT. In
        Python, pass reply=, a function of the prompt's text.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(redact(message))

    def __reduce__(self) -> tuple[Any, ...]:
        # as it is, since those that make their message themselves take something else than it
        return _again, (type(self), self.args, dict(self.__dict__))


def _again(kind: type[AmplifyError], args: tuple[Any, ...], held: Mapping[str, Any]) -> AmplifyError:
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(held)
    return error


class InputError(AmplifyError, ValueError):
    """What the user passed is wrong: a missing column, a span outside the text, a label not in the task.

    Example:
        >>> amplify.Span(3, 3)
        Traceback (most recent call last):
            ...
        amplify.errors.InputError: a span needs 0 <= start < end, got [3, 3)
    """


class UnknownNameError(InputError):
    """A name that is not registered.

    Example:
        >>> amplify.load_task("suport_tickets")
        Traceback (most recent call last):
            ...
        amplify.errors.UnknownNameError: unknown task 'suport_tickets'. Did you mean 'support_tickets'? ...
    """

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        """Suggest the nearest known name, then list them all.

        Args:
            kind: what was looked up, e.g. "method".
            name: what the user wrote.
            known: the names there are.
            hint: one further sentence, e.g. how a file could be given instead.
        """
        names = sorted(known)
        folded = {known.casefold(): known for known in names}
        near = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.6)
        guess = f" Did you mean {folded[near[0]]!r}?" if near else ""
        listing = f" Known {kind}s: {', '.join(names)}." if names else f" There are no {kind}s."
        super().__init__(f"unknown {kind} {name!r}.{guess}{listing}{' ' + hint if hint else ''}")


class CapabilityError(AmplifyError):
    """A method needs what this model cannot do; the message names the models that can.

    Example:
        >>> amplify.explain("A fine day.", " yes", model="scripted:echo", method="integrated_gradients")
        Traceback (most recent call last):
            ...
        amplify.errors.CapabilityError: integrated_gradients looks inside the model, which 'scripted:echo' ...
    """


class MissingExtraError(AmplifyError, ImportError):
    """An optional package is not installed; the message is the command that installs it.

    Example:
        >>> raise amplify.MissingExtraError("ragas")
        Traceback (most recent call last):
            ...
        amplify.errors.MissingExtraError: this needs the package 'ragas', which is not installed: pip ...
    """

    def __init__(self, package: str, extra: str | None = None) -> None:
        """Name the command.

        Args:
            package: what could not be imported.
            extra: what brings it; None: as `EXTRAS` says.
        """
        extra = extra or EXTRAS[package]
        super().__init__(
            f"this needs the package {package!r}, which is not installed: pip install 'amplify-llm[{extra}]'"
        )


@contextmanager
def extras() -> Iterator[None]:
    """Around whatever may import a package that the base install lacks: says which extra brings it.

    Also a decorator.

    Raises:
        MissingExtraError: instead of the ModuleNotFoundError of a package in `EXTRAS`.
    """
    try:
        yield
    except MissingExtraError:
        raise
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        raise MissingExtraError(package) from error


class PromptFormatError(InputError):
    """A model's chat template is missing, or does not take these messages.

    Attributes:
        problem: what is wrong, without the way out.
        kind: "template" (there is none), "system" (it takes no system message), or "messages" (it refuses them).

    Example:
        >>> raise amplify.PromptFormatError("its chat template takes no system message", "system")
        Traceback (most recent call last):
            ...
        amplify.errors.PromptFormatError: its chat template takes no system message: leave the system ...
    """

    def __init__(self, problem: str, kind: Literal["template", "system", "messages"]) -> None:
        """Say the way out in the words of the library; the command line has its own."""
        ways = {
            "template": "send raw text, by Prompt(text=...) or layout='text' (of a method or attribute_sources), or "
            "take a chat model",
            "system": "leave the system message away, by system='none' for each method, or send raw text, by "
            "layout='text'",
            "messages": "send raw text, by Prompt(text=...) or layout='text'",
        }
        super().__init__(f"{problem}: {ways[kind]}")
        self.problem, self.kind = problem, kind


class EmptyAnswerError(InputError):
    """The model said nothing, so there is no answer to explain."""


class ContextLengthError(InputError):
    """A prompt does not fit the model's window.

    Example:
        >>> model = amplify.load_model("scripted:echo", max_context=4)
        >>> model.generate([amplify.Prompt(text="one two three four five")], amplify.Sampling(max_tokens=1))
        Traceback (most recent call last):
            ...
        amplify.errors.ContextLengthError: prompt 0 has 5 tokens + max_tokens=1, which is more than the ...
    """


class ModelError(AmplifyError):
    """A model or server failed after all retries.

    Attributes:
        completed: index in the batch -> what was answered before (a Completion or TokenLogProbs); whoever raises it
            has put it nowhere else.

    Example:
        >>> error = amplify.ModelError("the server is gone", completed={0: "yes"})
        >>> error.completed
        {0: 'yes'}
    """

    def __init__(self, message: str, completed: Mapping[int, Any] | None = None) -> None:
        super().__init__(message)
        self.completed: dict[int, Any] = dict(completed or {})


class DataError(AmplifyError):
    """A data set or model cannot be had or read.

    Example:
        >>> amplify.load_task("reviews.csv", text="review", label="stars")
        Traceback (most recent call last):
            ...
        amplify.errors.DataError: no file reviews.csv
    """


class RunError(AmplifyError):
    """A file or run folder is in use, belongs to another configuration, or cannot be written.

    Example:
        >>> from amplify.evaluation import load_report
        >>> load_report("runs/none")
        Traceback (most recent call last):
            ...
        amplify.errors.RunError: runs/none is no run folder: it has no run.json
    """


class WriteError(RunError):
    """A file cannot be written: a full disk, a folder that is not there, no permission. What stood there is whole.

    Example:
        >>> steering = amplify.Steering(heads={3: [0, 5]})
        >>> steering.save("no/such/folder/heads.yaml")
        Traceback (most recent call last):
            ...
        amplify.errors.WriteError: cannot write no/such/folder/heads.yaml: No such file or directory. Make ...
    """

"""Hugging Face: programs and head profiles on the hub, tasks as `datasets` and back, `pipeline` objects as models.

Metrics of `evaluate` need no bridge: `metric="evaluate:NAME"`.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import amplify
from amplify import codec, files
from amplify.errors import DataError, InputError, extras
from amplify.methods.base import Program
from amplify.redaction import one_line
from amplify.steering import Steering
from amplify.tasks import Task, load_task

if TYPE_CHECKING:
    from datasets import DatasetDict
    from huggingface_hub import HfApi

    from amplify.models.transformers import TransformersModel
    from amplify.proxies import Proxy

__all__ = [
    "from_datasets",
    "from_pipeline",
    "pull_profile",
    "pull_program",
    "push_profile",
    "push_program",
    "to_datasets",
]

PROGRAM, PROFILE = "program.json", "profile.yaml"
_SPLITS = {"train": "train", "validation": "validation", "valid": "validation", "dev": "validation", "test": "test"}


def push_program(
    program: Program | str | Path, repo: str, *, card: str = "", private: bool = True, api: HfApi | None = None
) -> str:
    """Put a program on the hub, as `program.json` of a repository of its own, with a card that says how to use it.

    What it holds is seen by whoever may read the repository: its shots are rows of your data.

    Args:
        program: what `amplify.tune`, a run, or a method's `fit` found, or its file.
        repo: OWNER/NAME; made where there is none.
        card: further Markdown for the card, e.g. what was measured.
        private: of a repository that is made.
        api: of huggingface_hub; None: as that is logged in.

    Returns:
        The address of the commit.

    Raises:
        DataError: the hub cannot be reached, or refuses.

    Example:
        >>> import amplify
        >>> from amplify.bridges.hugging_face import push_program
        >>> task = amplify.load_task("support_tickets")
        >>> model = amplify.load_model("scripted:say=billing")
        >>> program = amplify.methods.FewShot(shots=2).fit(task, model, seed=0)
        >>> push_program(program, "me/tickets", api=hub)  # hub: a huggingface_hub.HfApi
        '...me/tickets/...'
    """
    held = program if isinstance(program, Program) else Program.load(program)
    use = f'amplify.bridges.hugging_face.pull_program("{repo}")'
    return _push(lambda path: held.save(path), PROGRAM, f"a program of the kind `{held.kind}`", use, repo, card,
                 private, api)  # fmt: skip


def push_profile(
    profile: Steering | str | Path, repo: str, *, card: str = "", private: bool = True, api: HfApi | None = None
) -> str:
    """Put a head profile on the hub, as `profile.yaml`; see `push_program`.

    Example:
        >>> from amplify.bridges.hugging_face import push_profile
        >>> import amplify
        >>> steering = amplify.Steering(heads={0: [1, 2]}, alpha=0.01)
        >>> push_profile(steering, "me/heads", api=hub)
        '...me/heads/...'
    """
    held = profile if isinstance(profile, Steering) else Steering.load(profile)
    use = f'amplify.bridges.hugging_face.pull_profile("{repo}")'
    return _push(lambda path: held.save(path), PROFILE, "a profile of attention heads to steer", use, repo, card,
                 private, api)  # fmt: skip


def _push(save: Any, name: str, what: str, use: str, repo: str, card: str, private: bool, api: HfApi | None) -> str:
    from huggingface_hub import HfApi

    head = "---\nlibrary_name: amplify\ntags:\n- amplify\n---\n\n"
    told = f"# {repo.rpartition('/')[2]}\n\nThis is {what}, made by amplify {amplify.__version__}.\n\n"
    how = f"```python\nimport amplify.bridges.hugging_face\n\n{use}\n```\n"
    hub = api or HfApi()
    with tempfile.TemporaryDirectory(prefix="amplify-") as temporary:
        save(Path(temporary) / name)
        (Path(temporary) / "README.md").write_text(
            head + told + how + (f"\n{card}\n" if card else ""), encoding="utf-8"
        )
        try:
            hub.create_repo(repo, private=private, exist_ok=True)
            done = hub.upload_folder(repo_id=repo, folder_path=temporary, commit_message=f"amplify: {name}")
        except Exception as error:  # its own, the disk's, and those of whichever client it sends by
            raise DataError(
                f"the hub does not take {repo} ({_said(error)}): is there a network, and are you logged in "
                "(`hf auth login`)?"
            ) from error
    return str(done)


def pull_program(repo: str, *, revision: str | None = None) -> Program:
    """A program from the hub, or from the hub's cache on this machine.

    Args:
        repo: OWNER/NAME.
        revision: branch, tag or commit; None for the newest.

    Raises:
        DataError: there is none, it cannot be had, or it is of another format.

    Example:
        >>> import amplify
        >>> from amplify.bridges.hugging_face import pull_program, push_program
        >>> task = amplify.load_task("support_tickets")
        >>> model = amplify.load_model("scripted:say=billing")
        >>> program = amplify.methods.FewShot(shots=2).fit(task, model, seed=0)
        >>> address = push_program(program, "me/tickets", api=hub)
        >>> pull_program("me/tickets") == program
        True
    """
    return Program.load(_pulled(repo, PROGRAM, revision))


def pull_profile(repo: str, *, revision: str | None = None) -> Steering:
    """A head profile from the hub; see `pull_program`.

    Example:
        >>> from amplify.bridges.hugging_face import pull_profile, push_profile
        >>> import amplify
        >>> steering = amplify.Steering(heads={0: [1, 2]}, alpha=0.01)
        >>> address = push_profile(steering, "me/heads", api=hub)
        >>> pull_profile("me/heads").alpha
        0.01
    """
    return Steering.load(_pulled(repo, PROFILE, revision))


def _pulled(repo: str, name: str, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repo, name, revision=revision))
    except Exception as error:  # see `_push`
        raise DataError(f"{repo} gives no {name} ({_said(error)})") from error


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error, 200)}"


def to_datasets(task: Task) -> DatasetDict:
    """The splits of a task as `datasets`: id, text, label, choices, options, answers, and `fields` as JSON text.

    Example:
        >>> import amplify
        >>> from amplify.bridges.hugging_face import to_datasets
        >>> to_datasets(amplify.load_task("coin_flip", limit=5))["test"].num_rows
        5
    """
    import datasets

    text, texts = datasets.Value("string"), datasets.Sequence(datasets.Value("string"))
    kinds = {"id": text, "text": text, "label": text, "choices": texts, "options": texts, "answers": texts}
    features = datasets.Features({**kinds, "fields": text})

    def rows(split: str) -> list[dict[str, Any]]:
        return [
            {**{k: codec.encode(getattr(e, k)) for k in kinds}, "fields": json.dumps(codec.encode(dict(e.fields)))}
            for e in getattr(task, split)
        ]

    held = {split: rows(split) for split in ("train", "validation", "test") if getattr(task, split)}
    return datasets.DatasetDict(
        {split: datasets.Dataset.from_list(listed, features=features) for split, listed in held.items()}
    )


def from_datasets(
    data: Any,
    text: str,
    label: str,
    *,
    name: str = "dataset",
    labels: Sequence[str] | None = None,
    instruction: str | None = None,
    metric: str | None = None,
    seed: int | None = None,
) -> Task:
    """A task from data sets in hand (those of the hub are named: `amplify.load_task("OWNER/NAME", text=, label=)`).

    Args:
        data: a `datasets.Dataset`, which is split by content, or a `DatasetDict` with train, validation and test.
        text, label: columns; numbers of a `ClassLabel` become its names.
        name: of the task.
        labels, instruction, metric, seed: of `amplify.load_task`.

    Raises:
        InputError: a column or a split that is not there, or see `amplify.load_task`.

    Example:
        >>> from datasets import Dataset
        >>> from amplify.bridges.hugging_face import from_datasets
        >>> texts = [f"{word} phone, number {i}." for i in range(20) for word in ("Good", "Bad")]
        >>> data = Dataset.from_dict({"review": texts, "stars": ["five", "one"] * 20})
        >>> task = from_datasets(data, text="review", label="stars", name="phones")
        >>> task.name, task.labels
        ('phones', ('five', 'one'))
    """
    from datasets import Dataset

    parts: Mapping[str, Dataset] = {"": data} if isinstance(data, Dataset) else data
    if unknown := [split for split in parts if split not in ("", *_SPLITS)]:
        raise InputError(f"a task has splits of the names {', '.join(_SPLITS)}, not {unknown[0]!r}: leave it out")
    rows = []
    for split, part in parts.items():
        if missing := [column for column in (text, label) if column not in part.column_names]:
            raise InputError(f"there is no column {missing[0]!r}; there are: {', '.join(part.column_names)}")
        names = getattr(part.features[label], "names", None)
        for row in part:
            gold = names[row[label]] if names and row[label] is not None and row[label] >= 0 else row[label]
            rows.append({**row, label: gold, **({"split": _SPLITS[split]} if split else {})})
    with tempfile.TemporaryDirectory(prefix="amplify-") as temporary:
        file = Path(temporary) / f"{name.replace('/', '-')}.jsonl"
        files.write(file, "".join(json.dumps(row, default=str) + "\n" for row in rows))
        task = load_task(
            file, text=text, label=label, split="split" if "" not in parts else None, labels=labels,
            instruction=instruction, metric=metric, seed=seed,
        )  # fmt: skip
    return replace(task, name=name, source=f"datasets: {next(iter(parts.values())).info.dataset_name or 'in memory'}")


@extras()
def from_pipeline(pipe: Any) -> TransformersModel | Proxy:
    """What a `transformers.pipeline` holds: of "text-generation" a model, of "text-classification" a proxy.

    Raises:
        InputError: a pipeline for something else, or no pipeline.

    Example:
        >>> import transformers
        >>> from amplify.bridges.hugging_face import from_pipeline
        >>> pipe = transformers.pipeline("text-generation", model=module, tokenizer=tokenizer)
        >>> with from_pipeline(pipe) as model:
        ...     type(model).__name__
        'TransformersModel'
    """
    kind = getattr(pipe, "task", None)
    if kind == "text-generation":
        return amplify.TransformersModel(pipe.model, pipe.tokenizer)
    if kind == "text-classification":
        named = pipe.model.config.id2label
        return amplify.Proxy.from_model(pipe.model, pipe.tokenizer, labels=[named[i] for i in range(len(named))])
    raise InputError(f"a pipeline for text-generation or text-classification becomes a model, not {kind or pipe!r}")

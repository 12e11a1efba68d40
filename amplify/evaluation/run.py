"""Methods x seeds over the same test items, in a folder, so that a run can be killed and gone on with."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from amplify.backends.base import Generator
from amplify.calibration import Way
from amplify.errors import BackendError, ContextLengthError, InputError, RunError
from amplify.evaluation import folder as store
from amplify.evaluation.configuration import chosen_items, configuration, make_methods, scorer
from amplify.evaluation.folder import Cell, Json
from amplify.evaluation.report import Report, load_report
from amplify.methods.base import Method, Mode, Program, PromptProgram, examples_in
from amplify.methods.calibrated import calibrated
from amplify.tasks import Task
from amplify.values import Answer, Example, Prompt

BATCH_SIZE = 32


def evaluate(
    task: Task,
    backend: Generator,
    methods: Sequence[str | Method],
    *,
    seeds: Sequence[int] = (0, 1, 2),
    limit: int | None = None,
    out: str | Path | None = None,
    mode: Mode = "generate",
    options: Mapping[str, Any] | None = None,
    batch_size: int = BATCH_SIZE,
    progress: bool = True,
    baseline: str | Sequence[str] | None = None,
    resume: bool = True,
    calibrate: Way = "none",
) -> Report:
    """Evaluate methods on the test split of a task.

    Every method answers the same items under every seed; a method whose program does not depend on the seed runs
    once. All programs are fitted and checked before the first item is answered.

    Args:
        task: what to evaluate on.
        backend: the model that answers.
        methods: names (see `amplify list methods`) or Method objects, in the order of the table.
        seeds: one run per seed.
        limit: evaluate the first `limit` items of a fixed permutation of the test split; None for all.
        out: the run folder. The same call on the same folder goes on where it stopped. None keeps nothing on disk.
        mode: for methods given by name: parse what is written, or score the labels. A table has one mode.
        options: for methods given by name: "METHOD.OPTION" -> value, e.g. {"amplify.k": 3}, or "*.OPTION" for
            every method that has it.
        batch_size: items answered between two writes. Part of the configuration: it fixes the batch plan.
        progress: show progress bars where the output is a terminal.
        baseline: label(s) of the methods that the others are compared with. None: every baseline and control with
            every method proper; where there are only baselines, or none, the first method with the others.
        resume: False refuses a folder that already holds a run.
        calibrate: how label scores are calibrated, of every method alike (`amplify.calibration`); score mode only.

    Returns:
        The report; with `out`, also written as report.html and report.md.

    Raises:
        InputError: repeated methods or seeds, mixed modes, a test item among the shots of a program. Raised before
            anything is answered.
        UnknownNameError: no such method, option or baseline.
        ContextLengthError: a prompt does not fit the model's window; raised before anything is answered.
        RunError: the folder is in use, belongs to another configuration, or cannot be written.
        BackendError: the model failed; finished batches are kept.
    """
    made = make_methods(methods, mode, options or {})
    config = configuration(task, backend, made, seeds, limit, batch_size, baseline, calibrate)
    if out is None:
        with tempfile.TemporaryDirectory(prefix="amplify-") as temporary:
            return _run(Path(temporary), config, task, backend, made, progress, kept=False)
    path = Path(out)
    with store.locked(path):
        store.open_run(path, config, resume)
        report = _run(path, config, task, backend, made, progress, kept=True)
        try:
            report.to_html(path / "report.html")
            report.to_markdown(path / "report.md")
        except OSError as error:
            raise store.cannot_write(path, error) from error
    return report


def _run(
    path: Path,
    config: Json,
    task: Task,
    backend: Generator,
    methods: Sequence[Method],
    progress: bool,
    *,
    kept: bool,
) -> Report:
    from tqdm import tqdm  # type: ignore[import-untyped,unused-ignore]

    if not kept:
        store.open_run(path, config, resume=True)
    records, timing = path / "records.jsonl", path / "timing.jsonl"
    try:
        rows = store.read_lines(records)
        done = store.whole_batches(config, rows)
        plan = store.batches_of(config)
        whole = sum(len(places) for _, _, places in plan[:done])
        store.heal(records, rows[:whole])
        store.heal(timing, store.read_lines(timing))
    except OSError as error:
        raise store.cannot_write(path, error) from error
    total = sum(len(places) for _, _, places in plan)
    with _says_how_to_resume(path if kept else None):
        programs = _fit_all(path, config, task, backend, methods, rows[:whole], progress)
        items = {item.id: item for item in chosen_items(task, config["limit"])}
        _refuse_leaks(task, programs)
        _refuse_long(list(items.values()), programs, backend)
        _, scores = scorer(task)
        with tqdm(total=total, initial=whole, unit="answer", disable=None if progress else True) as bar:
            for cell, number, places in plan[done:]:
                bar.set_description(cell.method if cell.seed is None else f"{cell.method} seed {cell.seed}")
                batch = [items[config["items"][place]["id"]] for place in places]
                before, start = backend.usage.snapshot(), time.perf_counter()
                answers = programs[cell].answer(batch, backend)
                seconds = time.perf_counter() - start
                if len(answers) != len(batch):
                    raise RunError(f"{cell.method} gave {len(answers)} answers to {len(batch)} items")
                spent = {"seconds": seconds, **asdict(backend.usage.since(before))}
                # times first: a record on disk then always has its time; the last line of a batch counts
                where = {"method": cell.method, "seed": cell.seed}
                store.append(timing, [{**where, "batch": number, "items": len(batch), **store.plain(spent)}])
                lines = [
                    _record(cell, item, answer, scores(answer, item))
                    for item, answer in zip(batch, answers, strict=True)
                ]
                if places.start == 0:  # one prompt per program is enough to see what was asked
                    lines[0]["prompt"] = _shown(answers[0].prompt)
                store.append(records, lines)
                bar.update(len(batch))
    return load_report(path)


def _fit_all(
    path: Path,
    config: Json,
    task: Task,
    backend: Generator,
    methods: Sequence[Method],
    rows: Sequence[Json],
    progress: bool,
) -> dict[Cell, Program]:
    """Load the programs there are and fit the others. What is used is always what the file gives back."""
    from tqdm import tqdm  # type: ignore[import-untyped,unused-ignore]

    answered = {(row["method"], row["seed"]) for row in rows}
    programs: dict[Cell, Program] = {}
    for cell in tqdm(store.cells_of(config), desc="programs", leave=False, disable=None if progress else True):
        file = path / "programs" / cell.file
        if not file.exists():
            if (cell.method, cell.seed) in answered:
                raise RunError(f"{file} is missing, but records.jsonl holds answers of it; put it back or start anew")
            before, start = backend.usage.snapshot(), time.perf_counter()
            seed = config["seeds"][0] if cell.seed is None else cell.seed
            program = methods[cell.index].fit(task, backend, seed)
            program = calibrated(program, task, backend, config["calibrate"], seed)
            spent = {"seconds": time.perf_counter() - start, **asdict(backend.usage.since(before))}
            store.append(
                path / "timing.jsonl", [{"method": cell.method, "seed": cell.seed, "fit": True, **store.plain(spent)}]
            )
            _save(program, file)
        programs[cell] = Program.load(file)
    return programs


def _save(program: Program, file: Path) -> None:
    draft = file.with_name(file.name + ".tmp")
    try:
        file.parent.mkdir(exist_ok=True)
        program.save(draft)
        draft.replace(file)
    except OSError as error:
        raise store.cannot_write(file.parent.parent, error) from error


def _refuse_leaks(task: Task, programs: Mapping[Cell, Program]) -> None:
    """Refuse a program that shows the model a test item, told by its id or by its very text and options."""
    ids = {item.id for item in task.test}
    texts = {_content(item.text, item.options) for item in task.test}
    for cell, program in programs.items():
        for shown in examples_in(program.to_dict()):
            if shown["id"] in ids or _content(shown["text"], shown.get("options") or ()) in texts:
                raise InputError(
                    f"test item {shown['id']!r} is among the shots of {cell.method}: {shown['text'][:80]!r}. "
                    "Nothing was answered. Take the item out of the train and validation splits, or out of test"
                )


def _refuse_long(items: Sequence[Example], programs: Mapping[Cell, Program], backend: Generator) -> None:
    """Refuse now what could only fail in mid-run: a program whose prompt for the longest item leaves no room."""
    if backend.max_context is None:
        return
    longest = max(items, key=lambda item: len(item.text) + sum(map(len, item.options)))
    for cell, program in programs.items():
        if isinstance(program, PromptProgram):
            [tokens] = backend.count_tokens([program.prompt(longest)])
            if tokens >= backend.max_context:
                raise ContextLengthError(
                    f"{cell.method}: the prompt for item {longest.id!r} has {tokens} tokens, and {backend.spec} takes "
                    f"{backend.max_context}, the answer included. Nothing was answered. Use fewer shots"
                )


def _content(text: str, options: Sequence[str]) -> tuple[str, ...]:
    return " ".join(text.split()), *options


def _record(cell: Cell, item: Example, answer: Answer, scores: dict[str, float]) -> Json:
    score, *_ = scores.values()
    record = {
        "method": cell.method,
        "seed": cell.seed,
        "id": item.id,
        "gold": item.label,
        "answer": answer.value,
        "parsed": bool(answer.value and answer.value.strip()),
        "score": score,
        "metrics": dict(list(scores.items())[1:]),
        "text": answer.text,
        "rationale": answer.rationale,
        "label_scores": answer.scores,
        "label_logprobs": answer.logprobs or answer.scores,
        **({"raw_label_scores": answer.raw_scores} if answer.raw_scores else {}),
        "calls": answer.calls,
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
    }
    if answer.sources is not None:
        record["sources"] = asdict(answer.sources)
    return store.plain(record)


def _shown(prompt: Prompt | None) -> Json | None:
    if prompt is None:
        return None
    turns = [{"role": m.role, "content": m.content} for m in prompt.messages]
    return {"text": prompt.text, "messages": turns, "prefix": prompt.prefix}


@contextmanager
def _says_how_to_resume(path: Path | None) -> Iterator[None]:
    try:
        yield
    except BackendError as error:
        if path is None:
            raise BackendError(f"{error} Nothing was kept: give out= a folder to be able to go on") from error
        try:
            n = len(store.read_lines(path / "records.jsonl"))
        except OSError:
            n = 0
        raise BackendError(
            f"{error}\n{n} answers are kept in {path}; run the same command again to go on from there"
        ) from error

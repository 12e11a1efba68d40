"""Methods x seeds over the same test items, in a folder, so that a run can be killed and gone on with."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from amplify import files
from amplify import progress as bars
from amplify.calibration import Way
from amplify.errors import ContextLengthError, InputError, ModelError, RunError, WriteError
from amplify.evaluation import folder as store
from amplify.evaluation.configuration import Also, Scoring, chosen_items, configuration, make_methods, scorer
from amplify.evaluation.folder import Cell
from amplify.evaluation.report import Report, load_report
from amplify.evaluation.uncertainty import unsure
from amplify.evaluation.written import followed
from amplify.files import Journal, Json
from amplify.methods.base import Method, Mode, Program, PromptProgram, examples_in
from amplify.methods.calibrated import calibrated
from amplify.methods.lettered import OptionForm, fit_in_form
from amplify.methods.prompt import ANSWER_TOKENS
from amplify.models import opened
from amplify.models.base import LanguageModel, need_scoring, sharing
from amplify.models.cache import Cache
from amplify.models.cached import begun, caching, forget, keeping
from amplify.tasks import Task
from amplify.types import Answer, Example, Prompt

BATCH_SIZE = 32


def evaluate(
    task: Task,
    model: LanguageModel | str,
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
    calibrate: Way | None = None,
    option_form: OptionForm = "letters",
    cache: Cache | str | Path | None = None,
    also: Sequence[Also] = (),
) -> Report:
    """Evaluate methods on the test split of a task.

    Every method answers the same items under every seed; a method whose program does not depend on the seed runs
    once. All programs are fitted and checked before the first item is answered.

    Args:
        task: what to evaluate on.
        model: the model that answers, open or as the id that opens it for this call.
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
            None: "batch" where all items have the same labels or letters and 20 inputs are held out, else "none"; the
            header says which.
        option_form: how lettered options are scored, of every method alike: by their letters, their texts, or the
            letters in every order (`amplify.methods.lettered`); score mode only.
        also: what else is measured of the same answers, at a cost that is not counted as theirs: "rationales" (does the
            label follow what was written before it; score mode, `amplify.evaluation.written`), "uncertainty" (of texts
            that are no labels, by further answers drawn; `amplify.evaluation.uncertainty`).
        cache: folder (or open `amplify.models.Cache`) of replies that all runs share: what stands there is not asked.

    Returns:
        The report; with `out`, also written as report.html and report.md.

    Raises:
        InputError: repeated methods or seeds, mixed modes, a test item among the shots of a program. Raised before
            anything is answered.
        UnknownNameError: no such method, option or baseline.
        ContextLengthError: a prompt does not fit the model's window; raised before anything is answered.
        RunError: the folder is in use, belongs to another configuration, or cannot be written.
        ModelError: the model failed; finished batches are kept.

    Example:
        >>> task = amplify.load_task("coin_flip", limit=5)
        >>> report = amplify.evaluate(task, amplify.load_model("scripted:say=yes"), ["zero_shot"], out="runs/coins")
        >>> [row.method for row in report.rows] == ["zero_shot"]
        True
    """
    made = make_methods(methods, mode, options or {})
    if isinstance(model, str):
        with opened(model) as who:
            return evaluate(
                task, who, made, seeds=seeds, limit=limit, out=out, batch_size=batch_size, progress=progress,
                baseline=baseline, resume=resume, calibrate=calibrate, option_form=option_form, cache=cache, also=also,
            )  # fmt: skip
    if cache is not None:
        with caching(model, cache) as who:
            return evaluate(
                task, who, made, seeds=seeds, limit=limit, out=out, batch_size=batch_size, progress=progress,
                baseline=baseline, resume=resume, calibrate=calibrate, option_form=option_form, also=also,
            )  # fmt: skip
    scoring = Scoring.of(task, made[0].mode, calibrate, option_form, also)
    config = configuration(task, model, made, seeds, limit, batch_size, baseline, scoring)
    if out is None:
        with tempfile.TemporaryDirectory(prefix="amplify-") as temporary:
            return _run(Path(temporary), config, task, model, made, progress, kept=False)
    path = Path(out)
    with store.locked(path):
        store.open_run(path, config, resume)
        report = _run(path, config, task, model, made, progress, kept=True)
        report.to_html(path / "report.html")
        report.to_markdown(path / "report.md")
    return report


def _run(
    path: Path,
    config: Json,
    task: Task,
    model: LanguageModel,
    methods: Sequence[Method],
    progress: bool,
    *,
    kept: bool,
) -> Report:
    if not kept:
        store.open_run(path, config, resume=True)
        return _answer(path, config, task, model, methods, progress, kept=False)
    try:
        with keeping(model, path / store.UNFINISHED, files.digest(config)) as keeps:
            return _answer(path, config, task, keeps, methods, progress, kept=True)
    except WriteError as error:
        raise store.cannot_write(path, error) from error


def _answer(
    path: Path,
    config: Json,
    task: Task,
    model: LanguageModel,
    methods: Sequence[Method],
    progress: bool,
    *,
    kept: bool,
) -> Report:
    """Fit what is not fitted, answer what is not answered."""
    rows = store.read_records(path)
    done = store.whole_batches(config, rows)
    plan = store.batches_of(config)
    whole = sum(len(places) for _, _, places in plan[:done])
    records, timing = Journal(path / "records.jsonl", locked=False), Journal(path / "timing.jsonl", locked=False)
    records.cut(whole)
    total = sum(len(places) for _, _, places in plan)
    with _says_how_to_resume(path if kept else None, model):
        programs = _fit_all(path, config, task, model, methods, rows[:whole], timing, progress)
        items = {item.id: item for item in chosen_items(task, config["limit"])}
        refuse_leaks(task, [(cell.method, program) for cell, program in programs.items()])
        _refuse_long(list(items.values()), programs, model)
        _, scores = scorer(task)
        with bars.progress(total=total, initial=whole, unit="answer", shown=progress) as bar, sharing(model):
            for cell, number, places in plan[done:]:
                bar.set_description(cell.method if cell.seed is None else f"{cell.method} seed {cell.seed}")
                batch = [items[config["items"][place]["id"]] for place in places]
                before, start = model.usage.snapshot(), time.perf_counter()
                answers = programs[cell].answer(batch, model)
                seconds = time.perf_counter() - start
                if len(answers) != len(batch):
                    raise RunError(f"{cell.method} gave {len(answers)} answers to {len(batch)} items")
                spent = {"seconds": seconds, **asdict(model.usage.since(before))}
                # times first: a record on disk then always has its time; the last line of a batch counts
                where = {"method": cell.method, "seed": cell.seed}
                timing.append([{**where, "batch": number, "items": len(batch), **store.plain(spent)}])
                lines = [
                    _record(cell, item, answer, scores(answer, item))
                    for item, answer in zip(batch, answers, strict=True)
                ]
                _measure(config.get("also", ()), lines, programs[cell], batch, answers, task, model)
                if places.start == 0:  # one prompt per program is enough to see what was asked
                    lines[0]["prompt"] = _shown(answers[0].prompt)
                records.append(lines)
                forget(model)
                bar.update(len(batch))
    return load_report(path)


def _measure(
    also: Sequence[Also],
    lines: Sequence[Json],
    program: Program,
    batch: Sequence[Example],
    answers: Sequence[Answer],
    task: Task,
    model: LanguageModel,
) -> None:
    """Put into the records what else is measured of a batch."""
    if "rationales" in also:
        for line, found in zip(lines, followed(program, batch, answers, model), strict=True):
            line["metrics"] |= store.plain(found)
    if "uncertainty" in also:
        scorer_, stop = need_scoring(model, "also=uncertainty"), task.stop or ("\n",)
        drawn = unsure(batch, answers, scorer_, stop=stop, max_tokens=task.max_tokens or ANSWER_TOKENS)
        for line, found in zip(lines, drawn, strict=True):
            if found:
                line["uncertainty"] = store.plain(found)


def _fit_all(
    path: Path,
    config: Json,
    task: Task,
    model: LanguageModel,
    methods: Sequence[Method],
    rows: Sequence[Json],
    timing: Journal,
    progress: bool,
) -> dict[Cell, Program]:
    """Load the programs there are and fit the others. What is used is always what the file gives back."""
    answered = {(row["method"], row["seed"]) for row in rows}
    programs: dict[Cell, Program] = {}
    for cell in bars.tracked(store.cells_of(config), desc="fitting", unit="program", shown=progress):
        file = path / "programs" / cell.file
        if not file.exists():
            if (cell.method, cell.seed) in answered:
                raise RunError(f"{file} is missing, but records.jsonl holds answers of it; put it back or start anew")
            before, start = model.usage.snapshot(), time.perf_counter()
            seed = config["seeds"][0] if cell.seed is None else cell.seed
            program = fit_in_form(methods[cell.index], task, model, seed, config["option_form"])
            program = calibrated(program, task, model, config["calibrate"], seed)
            spent = {"seconds": time.perf_counter() - start, **asdict(model.usage.since(before))}
            timing.append([{"method": cell.method, "seed": cell.seed, "fit": True, **store.plain(spent)}])
            files.make_folder(file.parent)
            program.save(file)
            forget(model)
        programs[cell] = Program.load(file)
    return programs


def refuse_leaks(task: Task, programs: Sequence[tuple[str, Program]]) -> None:
    """Refuse programs, each with its name, that show the model a test item: by its id, or its very text and options.

    Raises:
        InputError: one does.
    """
    ids = {item.id for item in task.test}
    texts = {_content(item.text, item.options) for item in task.test}
    for name, program in programs:
        for shown in examples_in(program.to_dict()):
            if shown["id"] in ids or _content(shown["text"], shown.get("options") or ()) in texts:
                raise InputError(
                    f"test item {shown['id']!r} is among the shots of {name}: {shown['text'][:80]!r}. "
                    "Nothing was answered. Take the item out of the train and validation splits, or out of test"
                )


def _refuse_long(items: Sequence[Example], programs: Mapping[Cell, Program], model: LanguageModel) -> None:
    """Refuse now what could only fail in mid-run: a program whose prompt for the longest item leaves no room."""
    if model.max_context is None:
        return
    longest = max(items, key=lambda item: len(item.text) + sum(map(len, item.options)))
    for cell, program in programs.items():
        if isinstance(program, PromptProgram):
            [tokens] = model.count_tokens([program.prompt(longest)])
            if tokens >= model.max_context:
                raise ContextLengthError(
                    f"{cell.method}: the prompt for item {longest.id!r} has {tokens} tokens, and {model.id} takes "
                    f"{model.max_context}, the answer included. Nothing was answered. Use fewer shots"
                )


def _content(text: str, options: Sequence[str]) -> tuple[str, ...]:
    return " ".join(text.split()), *options


def _record(cell: Cell, item: Example, answer: Answer, scores: dict[str, float]) -> Json:
    score, *_ = scores.values()
    record: Json = {
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
        record["sources"] = answer.sources
    return store.plain(record)


def _shown(prompt: Prompt | None) -> Json | None:
    if prompt is None:
        return None
    turns = [{"role": m.role, "content": m.content} for m in prompt.messages]
    return {"text": prompt.text, "messages": turns, "prefix": prompt.prefix}


@contextmanager
def _says_how_to_resume(path: Path | None, model: LanguageModel) -> Iterator[None]:
    try:
        yield
    except ModelError as error:
        if path is None:
            raise ModelError(f"{error} Nothing was kept: give out= a folder to be able to go on") from error
        n = len(store.read_records(path))
        more = f", and {count} replies of the unfinished batch" if (count := begun(model)) else ""
        raise ModelError(
            f"{error}\n{n} answers are kept in {files.shown(path)}{more}; run the same command again to go on from "
            "there"
        ) from error

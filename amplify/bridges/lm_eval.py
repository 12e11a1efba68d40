"""lm-evaluation-harness: an amplify model, steered or not, or a program as its model; its tasks as amplify tasks.

import lm_eval
from amplify.bridges.lm_eval import AmplifyLM, harness_task, harness_results

lm_eval.simple_evaluate(AmplifyLM("transformers:smollm2-135m"), tasks=["arc_easy"])

task = harness_task("arc_easy", num_fewshot=0)
report = amplify.evaluate(task, "transformers:smollm2-135m", ["zero_shot", "few_shot"], mode="score")
harness_results(task, report)
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from numbers import Real
from pathlib import Path
from typing import Any, Literal

from amplify.errors import CapabilityError, DataError, InputError, UnknownNameError, extras
from amplify.evaluation.report import Report
from amplify.files import Json
from amplify.methods.base import Program
from amplify.metrics.kinds import HARNESS, OPENED, Kind
from amplify.models import load_model
from amplify.models.base import LanguageModel, LocalModel, need_local, need_scoring
from amplify.models.chat_template import switches_of
from amplify.steering import Steering, parse_emphasis
from amplify.tasks import Task
from amplify.tasks.rows import content_hash
from amplify.templates import load as load_template
from amplify.types import Answer, Example, Prompt, Sampling, Span, TokenLogProbs

with extras():
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
    from lm_eval.tasks import TaskManager
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

__all__ = ["AmplifyLM", "harness_results", "harness_task"]

Emphasis = Literal["marks", "all"] | Callable[[str], Sequence[Span]]
_CHAT = (
    "amplify chat: "  # how a chat passes through the harness, whose contexts are strings, to a model that renders it
)
_SURE = -0.693  # log-probability of a half: a token above it is the likeliest
_MAX_TOKENS = 256  # where a task does not say how long an answer may be: the harness's own
_SHOTS_SEED = 1234  # of the examples in front of a question: the harness's own


@register_model("amplify")
class AmplifyLM(LM):
    """An amplify model as a model of lm-evaluation-harness: `--model amplify` once this module is imported.

    Contexts are sent as raw text, as the harness's own models do; with `apply_chat_template` as chats. What is longer
    than the window is an error and never cut. `is_greedy` is told by a greedy continuation of each context of which
    the log-probabilities do not show it.

    A program answers instead of the bare model, its prompt around the context: choices by the scores of a program in
    score mode (then whether each is its answer counts as greedy), texts by the answer that was read.

    Args:
        model: an open model, or its id.
        program: what `amplify.tune`, a run, or a method's `fit` found, or its file.
        steering: heads and strength, or the name or file of a profile.
        emphasis: what it steers to in a context: "marks" (`**so**`, taken out before it is sent), "all" of it, or a
            function of the context that gives spans.
        batch_size, max_batch_size, device: given by the harness's command line; a model here has its own.

    Raises:
        InputError: steering without emphasis, or beside a program, which has its own.
        CapabilityError: a request that this model cannot answer.

    Example:
        >>> import lm_eval, amplify
        >>> from amplify.bridges.lm_eval import AmplifyLM
        >>> lm = AmplifyLM("scripted:say=yes")
        >>> from lm_eval.api.instance import Instance
        >>> lm.generate_until([Instance("generate_until", {}, ("Is it?", {"until": ["\\n"]}), 0)])
        ['yes']
    """

    def __init__(
        self,
        model: LanguageModel | str,
        program: Program | str | Path | None = None,
        steering: Steering | str | None = None,
        emphasis: Emphasis | None = None,
        *,
        batch_size: Any = None,
        max_batch_size: Any = None,
        device: str | None = None,
    ) -> None:
        super().__init__()
        if program is not None and steering is not None:
            raise InputError("a program brings its own steering: give one of program and steering")
        if (steering is None) != (emphasis is None):
            raise InputError("steering= says how, emphasis= to what ('marks', 'all' or a function): give both or none")
        if isinstance(emphasis, str) and emphasis not in ("marks", "all"):
            raise InputError(f"emphasis is 'marks', 'all' or a function of the context, not {emphasis!r}")
        self.program = program if isinstance(program, Program | None) else Program.load(program)
        self.steering = Steering.load(steering) if isinstance(steering, str) else steering
        self.emphasis = emphasis
        self.model = load_model(model) if isinstance(model, str) else model

    def _prompt(self, context: str) -> Prompt:
        """What is sent for a context of the harness."""
        if context.startswith(_CHAT):
            turns = json.loads(context.removeprefix(_CHAT))
            prefix = turns.pop()["content"] if turns[-1]["role"] == "assistant" else ""
            return Prompt(messages=tuple(turns), prefix=prefix)
        if not context:
            context = self._start("a request without a context")
        if self.emphasis is None:
            return Prompt(text=context)
        if self.emphasis == "marks":
            return parse_emphasis(context, raw=True)
        spans = [Span(0, len(context))] if self.emphasis == "all" else list(self.emphasis(context))
        return Prompt(text=context, emphasis=tuple(spans))

    def _start(self, what: str) -> str:
        """The token that stands before everything, as text: the harness scores a text without a context behind it."""
        tokenizer = need_local(self.model, what).tokenizer
        return str(tokenizer.bos_token or tokenizer.eos_token)

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Log-probability of each continuation, and whether it is what greedy decoding writes."""
        if self.program is not None:
            return self._chosen(self.program, requests)
        pairs = [_moved(*request.args[:2]) for request in requests]
        prompts, texts = [self._prompt(context) for context, _ in pairs], [text for _, text in pairs]
        scorer = need_scoring(self.model, "a loglikelihood request")
        scored = scorer.score(prompts, texts, steering=self.steering)
        # one greedy continuation answers for all that stand behind the same context
        unsure: dict[Prompt, int] = {}
        for prompt, found in zip(prompts, scored, strict=True):
            if min(found.logprobs) <= _SURE:
                unsure[prompt] = max(unsure.get(prompt, 0), len(found.logprobs))
        written: dict[Prompt, tuple[Any, ...]] = {}
        for tokens in sorted(set(unsure.values())):
            asked = [prompt for prompt, most in unsure.items() if most == tokens]
            way = Sampling(max_tokens=tokens, logprobs=True)
            for prompt, answer in zip(asked, self.model.generate(asked, way, steering=self.steering), strict=True):
                written[prompt] = () if answer.logprobs is None else _tokens(answer.logprobs)
        return [
            (found.total, prompt not in written or written[prompt][: len(found.tokens)] == _tokens(found))
            for prompt, found in zip(prompts, scored, strict=True)
        ]

    def _chosen(self, program: Program, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """The choices of one document are the labels of one example."""
        groups: dict[tuple[Any, Any, str], list[str]] = {}
        keys = [(r.task_name, r.doc_id, r.args[0]) for r in requests]
        for key, request in zip(keys, requests, strict=True):
            groups.setdefault(key, []).append(request.args[1].strip())
        if single := next((key for key, labels in groups.items() if len(set(labels)) < 2), None):
            raise CapabilityError(
                f"task {single[0]!r} scores a single text, but a program chooses between several or writes one: use "
                "the model without the program, or a task of the kind multiple_choice or generate_until"
            )
        examples = [
            Example(str(i), context, choices=tuple(dict.fromkeys(labels)))
            for i, ((_, _, context), labels) in enumerate(groups.items())
        ]
        answers = dict(zip(groups, program.answer(examples, self.model), strict=True))
        if not all(answer.scores for answer in answers.values()):
            raise CapabilityError(
                "the choices of a multiple_choice task are compared by their scores, which this program does not give: "
                "fit it with mode='score'"
            )
        labels = [request.args[1].strip() for request in requests]
        return [
            (float(answers[key].scores[label]), answers[key].value == label)
            for key, label in zip(keys, labels, strict=True)
        ]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Log-probability of each whole text, in windows of the model's length where it is longer."""
        if self.program is not None or self.steering is not None:
            raise CapabilityError("the probability of a whole text is the bare model's: leave program and steering")
        local = need_local(self.model, "a loglikelihood_rolling request")
        start = local.tokenizer.bos_token_id
        prefix = int(local.tokenizer.eos_token_id if start is None else start)
        found = []
        for request in requests:
            ids = local.tokenizer(request.args[0], add_special_tokens=False)["input_ids"]
            windows = get_rolling_token_windows(ids, prefix, local.max_context or len(ids) + 1, 1)
            found.append(sum(_window(local, *make_disjoint_window(window)) for window in windows))
        return found

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """What is written behind each context, cut at the first stop string."""
        if self.program is not None:
            asked = [Example(str(i), r.args[0]) for i, r in enumerate(requests)]
            answers = self.program.answer(asked, self.model)
            return [a.text if a.value is None else a.value for a in answers]
        written: dict[int, str] = {}
        ways = [_sampling(request.args[1]) for request in requests]
        for way in dict.fromkeys(ways):
            places = [i for i, own in enumerate(ways) if own == way]
            prompts = [self._prompt(requests[i].args[0]) for i in places]
            completions = self.model.generate(prompts, way, steering=self.steering)
            written |= {i: c.text for i, c in zip(places, completions, strict=True)}
        return [written[i] for i in range(len(requests))]

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A chat as one string: rendered where the model's tokenizer is here, else as JSON that `_prompt` reads."""
        if isinstance(self.model, LocalModel):
            return str(
                self.model.tokenizer.apply_chat_template(
                    chat_history,
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                    continue_final_message=not add_generation_prompt,
                    **switches_of(self.model.tokenizer),
                )
            )
        return _CHAT + json.dumps(chat_history, ensure_ascii=False)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template, for the harness's fingerprint of requests."""
        return str(self.model.tokenizer.chat_template) if isinstance(self.model, LocalModel) else ""

    @property
    def tokenizer_name(self) -> str:
        """The model's id, for the same."""
        return self.model.id.replace("/", "__")

    def get_model_info(self) -> dict[str, Any]:
        """What answered, for the harness's results."""
        return {"model": self.model.id, "program": type(self.program).__name__, **self.model.describe()}


def _moved(context: str, text: str) -> tuple[str, str]:
    """Blanks at the end of a context belong to the first token behind it: they are scored with it, as in the harness.

    A chat that the model renders itself stays as it is.
    """
    bare = context.rstrip()
    return (context, text) if not bare or context.startswith(_CHAT) else (bare, context[len(bare) :] + text)


def _tokens(found: TokenLogProbs) -> tuple[Any, ...]:
    """What was scored or written, by ids where there are any."""
    return found.token_ids or found.tokens


def _window(local: LocalModel, context: Sequence[int], target: Sequence[int]) -> float:
    """Log-probability of target tokens behind context tokens."""
    from amplify.models.tree.tree import trie

    tree, paths = trie([[*context, *target]], [len(context)])
    inside, wanted = 0, []
    for node in paths[0]:
        inside += len(tree.segments[node])
        if inside > len(context):
            wanted.append(node)
    return sum(found.total for found in local.score_tree(tree, wanted))


def _sampling(kwargs: Mapping[str, Any]) -> Sampling:
    """What a task says of decoding, as `Sampling`.

    Raises:
        InputError: something that has no place there.
    """
    given = dict(kwargs)
    until = given.pop("until", None) or ()
    tokens = next((given.pop(k) for k in ("max_gen_toks", "max_tokens", "max_new_tokens") if k in given), _MAX_TOKENS)
    temperature = float(given.pop("temperature", 0.0) or 0.0)
    sampled = given.pop("do_sample", temperature > 0)
    top_p = float(given.pop("top_p", 1.0))
    if others := sorted(k for k, v in given.items() if v is not None):
        raise InputError(f"a task decodes with {', '.join(others)}, which amplify's models do not take")
    stop = (until,) if isinstance(until, str) else tuple(until)
    return Sampling(int(tokens), temperature if sampled else 0.0, top_p if sampled else 1.0, stop)


@dataclass(frozen=True)
class _Opened:
    """A task of the harness and its documents by the id of their example: what its metrics are computed from."""

    task: Any
    docs: Mapping[str, Any]


_opened: dict[str, _Opened] = {}


def harness_task(
    name: str | Mapping[str, Any],
    *,
    num_fewshot: int | None = None,
    limit: int | None = None,
    include_path: str | Path | None = None,
    metric: str | None = None,
) -> Task:
    """A task of lm-evaluation-harness as an amplify task: its prompts to the letter, and its metrics.

    The context that the harness would send is the input, its examples included, as raw text; choices are scored behind
    it, or an answer is written until the task's stop strings: `zero_shot` reproduces the harness's figures. Methods put
    their own shots, of the task's training split, before the context. Every metric that gives one number an item is in
    the records (but those of greedy decoding for scored texts); `harness_results` gives the aggregated ones.

    Args:
        name: of a task of the harness, or of `include_path` where that is given; or a task's configuration as a
            mapping.
        num_fewshot: examples that the harness puts into the context; None: as the task says.
        limit: that many test items, the first.
        include_path: folder with YAML tasks of your own.
        metric: the main one, e.g. "acc_norm" or "exact_match,strict-match" (METRIC,FILTER); None: the first there is.

    Raises:
        InputError: a task that has no such form: several inputs an item, whole texts to score, drawn or repeated
            answers, another delimiter than a blank before its choices.
        DataError: the harness cannot load it.

    Example:
        >>> from amplify.bridges.lm_eval import harness_task
        >>> from pathlib import Path
        >>> written = Path("ice.jsonl").write_text('{"question": "Is ice cold?", "answer": "yes"}')
        >>> ice = {"task": "ice", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": "ice.jsonl"}},
        ...     "test_split": "test", "output_type": "multiple_choice", "doc_to_text": "{{question}}",
        ...     "doc_to_choice": ["yes", "no"], "doc_to_target": "{{answer}}"}
        >>> harness_task(ice).test[0].text
        'Is ice cold?'
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    task = _load(name, include_path)
    label, kind = str(task.config.task), task.OUTPUT_TYPE
    if num_fewshot is not None:
        task.set_config("num_fewshot", num_fewshot)
    task.set_fewshot_seed(_SHOTS_SEED)
    if kind == "loglikelihood_rolling" or task.multiple_input or (task.config.repeats or 1) > 1:
        raise InputError(
            f"{label}: whole texts to score, several inputs an item, or repeated answers are no questions with one "
            "answer each; let the harness ask an amplify model: AmplifyLM"
        )
    if "acc_mutual_info" in task._metric_fn_list:
        raise InputError(f"{label}: acc_mutual_info needs choices scored without a question; use AmplifyLM")
    task.build_all_requests(limit=limit)
    way = _sampling(task.instances[0].args[1]) if kind == "generate_until" else Sampling()
    if way.temperature:
        raise InputError(f"{label}: its answers are drawn at temperature {way.temperature}; methods decode greedily")
    by_document = [list(asked) for _, asked in groupby(task.instances, key=lambda instance: instance.doc_id)]
    test = [_example(task, asked, "test") for asked in by_document]
    docs = {example.id: asked[0].doc for example, asked in zip(test, by_document, strict=True)}
    seen = {content_hash(example) for example in test}
    numbers = _numbers(task, Answer("", scores=dict.fromkeys(test[0].choices, -1.0)), test[0], docs[test[0].id])
    key = metric or next(iter(numbers), "")
    if key not in numbers:
        raise UnknownNameError(f"metric of {label}", key, numbers, "Those of all items together: harness_results.")
    _opened[label] = _Opened(task, docs)
    OPENED[_name(label, key)] = _kind(label, key, _opened[label])
    return Task(
        name=label,
        instruction="",
        train=_pool(task, "training", seen),
        validation=_pool(task, "validation", seen) if task.has_test_docs() else (),  # else it is what is evaluated
        test=tuple(test),
        answer_prefix="",
        metric=_name(label, key),
        template="plain",
        layout="text",
        max_tokens=way.max_tokens if kind == "generate_until" else 0,
        stop=way.stop,
        source=f"lm-evaluation-harness: {task.config.dataset_path}",
        revision=str(task.VERSION),
        fields={"num_fewshot": task.config.num_fewshot or 0, "output_type": kind},
    )


@cache
def _published() -> TaskManager:
    return TaskManager()  # reads thousands of files


def _load(name: str | Mapping[str, Any], include_path: str | Path | None) -> Any:
    if include_path is not None or not isinstance(name, str):
        own = None if include_path is None else str(include_path)
        manager = TaskManager(include_path=own, include_defaults=False)
    else:
        manager = _published()
    try:
        tasks = manager.load([name if isinstance(name, str) else dict(name)])["tasks"]
    except Exception as error:
        said = f"{type(error).__name__}: {str(error)[:200]}"
        raise DataError(f"lm-evaluation-harness cannot load the task {name!r} ({said})") from error
    if len(tasks) != 1:
        raise InputError(f"{name!r} is a group of {len(tasks)} tasks: name one of them: {', '.join(tasks)}")
    return next(iter(tasks.values()))


def _pool(task: Any, split: str, seen: set[str]) -> tuple[Example, ...]:
    """The documents of another split, without examples in front and without copies of what was seen."""
    pool = []
    for number, doc in enumerate(getattr(task, f"{split}_docs")() if getattr(task, f"has_{split}_docs")() else ()):
        context = task.fewshot_context(doc, num_fewshot=0, gen_prefix=task.doc_to_prefix(doc))
        asked = task.construct_requests(doc=doc, ctx=context, metadata=(task.config.task, number, 1))
        example = _example(task, asked if isinstance(asked, list) else [asked], split)
        if (content := content_hash(example)) not in seen:
            seen.add(content)
            pool.append(example)
    return tuple(pool)


def _example(task: Any, asked: Sequence[Instance], split: str) -> Example:
    """One document: its context is the text, its continuations are the choices."""
    first = asked[0]
    context, name = str(first.args[0]), f"{split}-{first.doc_id}"
    where = f"{task.config.task}, {split} item {first.doc_id}"
    if load_template("question", "plain").render({"text": context}) != context:
        raise InputError(
            f"{where}: its context ends with a line break, or holds special tokens of some model, and would not be "
            "sent as it is. With AMPLIFY_SPECIAL_TOKENS=allow the latter would"
        )
    gold = task.doc_to_target(first.doc)
    if task.OUTPUT_TYPE == "generate_until":
        if task.config.doc_to_choice is not None:
            gold = task.doc_to_choice(first.doc)[gold]
        return Example(name, context, answers=tuple(map(str, gold if isinstance(gold, list) else [gold])))
    if context != context.rstrip():
        raise InputError(f"{where}: its context ends with a blank, which the harness scores with the choices")
    for request in asked:
        if not request.args[1].startswith(" ") or not request.args[1].strip():
            raise InputError(f"{where}: a choice stands behind one blank, but this one is {request.args[1]!r}")
    choices = tuple(request.args[1][1:] for request in asked)
    if len(set(choices)) < len(choices):
        raise InputError(f"{where}: a choice is there twice: {', '.join(choices)}")
    if task.OUTPUT_TYPE == "loglikelihood":
        return Example(name, context, label=choices[0], choices=choices)
    listed = task.doc_to_choice(first.doc)
    right = [listed.index(g) if isinstance(g, str) else g for g in (gold if isinstance(gold, list) else [gold])]
    if not right or not all(0 <= g < len(choices) for g in right):
        raise InputError(f"{where}: the right answer is {gold!r}, which is none of its {len(choices)} choices")
    golds = tuple(choices[g] for g in right)
    return Example(name, context, label=golds[0], choices=choices, answers=golds if len(golds) > 1 else ())


# metrics


def _kind(label: str, key: str, opened: _Opened) -> Kind:
    """A metric of a task that was opened."""

    def scores(answer: Answer, example: Example) -> dict[str, float]:
        if example.id not in opened.docs:
            raise InputError(f"example {example.id!r} is none of {label}'s test items: open the task without a limit")
        found = _numbers(opened.task, answer, example, opened.docs[example.id])
        if key not in found:
            raise UnknownNameError(f"metric of {label}", key, found)
        return {_name(label, key): found.pop(key), **found}

    about = f"{key} of the task {label} of lm-evaluation-harness"
    return Kind(about, lambda prediction, reference: 0.0, _name(label, key), of=scores)


def _name(label: str, key: str) -> str:
    return f"{HARNESS}{label}#{key}"


def _numbers(task: Any, answer: Answer, example: Example, doc: Any) -> dict[str, float]:
    """The harness's metrics of an item that are one number each."""
    kind = task.OUTPUT_TYPE
    if kind == "loglikelihood":  # its item values are log-probabilities, which are no scores
        return {"probability": math.exp((answer.logprobs or answer.scores)[example.choices[0]])}
    found = {}
    for (metric, filtered), value in _processed(task, answer, example, doc).items():
        if isinstance(value, Real) and not (kind == "multiple_choice" and metric == "exact_match"):
            found[metric if filtered == "none" else f"{metric},{filtered}"] = float(value)
    return found


def _processed(task: Any, answer: Answer, example: Example, doc: Any) -> dict[tuple[str, str], Any]:
    """What the harness makes of an answer: (metric, filter) -> what it will aggregate."""
    if task.OUTPUT_TYPE == "generate_until":
        asked = [Instance("generate_until", doc, (example.text, {}), 0, resps=[answer.text])]
    else:
        likely = answer.logprobs or answer.scores
        if missing := [choice for choice in example.choices if choice not in likely]:
            raise InputError(
                f"the answer to {example.id!r} has no log-probability of {missing[0]!r}, which the metrics of "
                f"{task.config.task} compare: use score mode"
            )
        # whether a choice is what greedy decoding writes was not asked
        asked = [
            Instance("loglikelihood", doc, (example.text, f" {choice}"), i, resps=[(likely[choice], False)])
            for i, choice in enumerate(example.choices)
        ]
    found = {}
    for pipeline in task._filters:
        pipeline.apply(asked)
        results = [instance.filtered_resps[pipeline.name] for instance in asked]
        for metric, value in task.process_results(doc, results).items():
            found[metric, pipeline.name] = value
    return found


def harness_results(task: Task, report: Report) -> dict[str, dict[str, float]]:
    """The harness's figures of each method of a run on one of its tasks.

    Args:
        task: as `harness_task` gave it.
        report: of `amplify.evaluate`, finished.

    Returns:
        label of the method (with its seed, where it has several) -> "METRIC,FILTER", as the harness writes them, ->
        its figure; without those of greedy decoding where texts were scored.

    Raises:
        InputError: the task was not opened here, or the run is of another one or not finished.

    Example:
        >>> import amplify
        >>> from amplify.bridges.lm_eval import harness_results, harness_task
        >>> from pathlib import Path
        >>> written = Path("ice.jsonl").write_text('{"question": "Is ice cold?", "answer": "yes"}')
        >>> ice = {"task": "ice", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": "ice.jsonl"}},
        ...     "test_split": "test", "output_type": "multiple_choice", "doc_to_text": "{{question}}",
        ...     "doc_to_choice": ["yes", "no"], "doc_to_target": "{{answer}}"}
        >>> task = harness_task(ice)
        >>> model = amplify.load_model("scripted:first_option")
        >>> report = amplify.evaluate(task, model, ["zero_shot"], mode="score", calibrate="none", progress=False)
        >>> harness_results(task, report)
        {'zero_shot': {'acc,none': 1.0, 'acc_norm,none': 1.0}}
    """
    if task.name not in _opened or report.config["task"]["metric"] != task.metric:
        raise InputError(f"the run is of {report.config['task']['name']!r}: give the task that harness_task opened")
    if not report.finished:
        raise InputError("the run is not finished: the figures would be of some items only")
    opened, examples = _opened[task.name], {example.id: example for example in task.test}
    rows: dict[str, list[Json]] = {}
    several = {r["method"] for r in report.records if r["seed"] not in (None, report.config["seeds"][0])}
    for record in report.records:
        label = f"{record['method']} seed {record['seed']}" if record["method"] in several else record["method"]
        rows.setdefault(label, []).append(record)
    results = {}
    for label, own in rows.items():
        found: dict[tuple[str, str], list[Any]] = {}
        for record in own:
            answer = Answer(record["answer"], record["text"], scores=record["label_logprobs"])
            example = examples[record["id"]]
            for key, value in _processed(opened.task, answer, example, opened.docs[example.id]).items():
                found.setdefault(key, []).append(value)
        aggregations = opened.task.aggregation()
        results[label] = {
            f"{metric},{filtered}": float(aggregations.get(metric, _mean)(values))
            for (metric, filtered), values in found.items()
            if (metric, opened.task.OUTPUT_TYPE) not in _GREEDY
        }
    return results


_GREEDY = {("acc", "loglikelihood"), ("exact_match", "multiple_choice")}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)

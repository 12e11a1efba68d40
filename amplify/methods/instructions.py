"""Words of the instruction: a model proposes some from examples and from errors, held-out log-odds choose."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from amplify import templates
from amplify.errors import InputError
from amplify.methods.base import Method, Preset, Program, PromptProgram, Rehearsal, inner_method
from amplify.methods.calibrated import unseen_inputs
from amplify.methods.deciding import log_odds
from amplify.methods.few_shot import shot_pool
from amplify.methods.prompt import shown_gold
from amplify.models import opened
from amplify.models.base import LanguageModel
from amplify.registry import register
from amplify.streams import stream
from amplify.text import split_reasoning
from amplify.types import Answer, Example, Message, Prompt, Sampling

if TYPE_CHECKING:
    from amplify.tasks import Task

Source = Literal["task", "examples", "errors", "paraphrase"]
SHOWN = 6  # examples or errors in a request for a proposal
LOOKED_AT = 24  # training items whose errors are looked for
FIRST = 8  # items of the first round of the race
LONGEST = 80  # words of an instruction
QUOTED = 6  # words in a row of a shown example that an instruction may not hold


@dataclass(frozen=True)
class Proposal:
    """An instruction that took part.

    Attributes:
        text: the instruction.
        source: "task" (the task's own), "examples", "errors" or "paraphrase".
        items: held-out items that it was judged on.
        score: mean log-odds of the gold label over those where labels are scored, else the task's metric.
        out: why it left the race, "" for a finalist.

    Example:
        >>> amplify.methods.Proposal("Name the department.", "examples", items=8, score=0.4).out
        ''
    """

    text: str
    source: Source
    items: int = 0
    score: float = 0.0
    out: str = ""


@dataclass(frozen=True)
class FoundInstruction:
    """What a search for an instruction found.

    Attributes:
        text: the instruction chosen: the task's own unless another is more than one standard error better.
        program: the inner method's program with it.
        proposals: all that took part, the task's own first.
        refused: proposals that could be none: too long, empty, given twice, or quoting an example.

    Example:
        >>> task, model = amplify.load_task("support_tickets"), amplify.load_model("scripted:say=Name the department.")
        >>> how = amplify.methods.InstructionSearch("zero_shot", proposals=1, mode="score")
        >>> amplify.methods.find_instruction(task, model, how).text == task.instruction
        True
    """

    text: str
    program: Program
    proposals: tuple[Proposal, ...]
    refused: int


@dataclass(frozen=True)
class InstructionSearch(Method):
    """Another method with the instruction that did best of some that a model proposes; see `find_instruction`.

    Attributes:
        inner: who answers, a method by its label.
        proposals: how many are asked for.
        proposer: id of the model that proposes; "" for the one that answers.
        paraphrases: propose other wordings of the task's own instruction only.
        temperature: of proposals.

    Example:
        >>> amplify.methods.InstructionSearch("zero_shot", proposals=4).label
        'instruction_search[inner=zero_shot,proposals=4]'
    """

    inner: str = "few_shot"
    proposals: int = 8
    proposer: str = ""
    paraphrases: bool = False
    temperature: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.proposals < 1 or not self.temperature > 0:
            raise InputError("a search for an instruction needs at least one proposal, at a temperature above 0")
        inner_method(self.inner, self.mode)

    @property
    def makes(self) -> type[Program]:
        """See `Method.makes`."""
        return inner_method(self.inner, self.mode).makes

    def fit(self, task: Task, model: LanguageModel, seed: int) -> Program:
        """Propose, race, take the winner."""
        return find_instruction(task, model, self, seed=seed).program

    def rehearse(self, task: Task, model: LanguageModel, seed: int) -> Rehearsal:
        """As the inner method, every proposal judged on every held-out item."""
        told = inner_method(self.inner, self.mode).rehearse(task, model, seed)
        if told.program is None:
            return told
        items = unseen_inputs(told.program, task, seed)
        for _, prompt, _ in _requests(task, told.program, model, self, seed):
            model.generate([prompt], Sampling(max_tokens=2 * LONGEST))
        for _ in range(self.proposals + 1):
            told.program.answer(items, model)
        return Rehearsal(
            told.program, "; ".join([*([told.note] if told.note else []), "fitting takes at most so much"])
        )


def find_instruction(
    task: Task,
    model: LanguageModel,
    how: InstructionSearch | None = None,
    *,
    proposer: LanguageModel | None = None,
    seed: int = 0,
) -> FoundInstruction:
    """Find an instruction: proposals of a model race on held-out items, the task's own among them.

    Half of the proposals are made from training examples with their answers, half from what the inner method gets wrong
    of others. The race is the one of `amplify.tune` (growing batches of the same items, paired tests); the task's own
    instruction stays where no other is more than one standard error better. (iPrompt; Singh et al. 2022, arXiv
    2210.01848: there by the loss of the output, in generations.)

    Args:
        task: nothing of its test split is looked at.
        model: who answers.
        how: the method with its options; eight proposals for few_shot unless given. In mode "score" the log-odds of the
            gold label judge, in "generate" the task's metric.
        proposer: the model that proposes, where it is open; None: see `how`.
        seed: of what is shown and drawn.

    Raises:
        InputError: no held-out items, or an inner method that shows no instruction.

    Example:
        >>> task = amplify.load_task("support_tickets")
        >>> model = amplify.load_model("scripted:say=Name the department.")
        >>> found = amplify.methods.find_instruction(
        ...     task, model, amplify.methods.InstructionSearch("zero_shot", proposals=2, mode="score")
        ... )
        >>> [proposal.source for proposal in found.proposals], found.refused
        (['task', 'examples'], 1)
    """
    how = how or InstructionSearch()
    method = inner_method(how.inner, how.mode)
    own = method.fit(task, model, seed)
    items = unseen_inputs(own, task, seed)
    other = method.fit(replace(task, instruction=f"{task.instruction} Now."), model, seed)
    shown = [p.prompt(items[0]) if isinstance(p, PromptProgram) else p for p in (own, other)]
    if shown[0] == shown[1]:
        raise InputError(f"{how.inner} shows no instruction on task {task.name!r} whose words could be others")
    with opened(how.proposer) if how.proposer and proposer is None else nullcontext(proposer or model) as writer:
        asked = _requests(task, own, model, how, seed)
        texts = [
            writer.generate(
                [prompt], Sampling(max_tokens=2 * LONGEST, temperature=how.temperature, seed=1000 * seed + i)
            )[0]
            for i, (_, prompt, _) in enumerate(asked)
        ]
    made, refused = [Proposal(task.instruction, "task")], 0
    for (source, _, quoted), written in zip(asked, texts, strict=True):
        text = " ".join(split_reasoning(written.text)[1].split()).strip("\"' ")
        if _usable(text, quoted) and text not in [one.text for one in made]:
            made.append(Proposal(text, source))
        else:
            refused += 1
    programs = [own, *(method.fit(replace(task, instruction=one.text), model, seed) for one in made[1:])]
    chosen, raced = _raced(programs, made, items, task, model)
    told = {
        "instruction": {"chosen": made[chosen].text, "proposals": [asdict(one) for one in raced], "refused": refused}
    }
    program = programs[chosen]
    if "meta" in {f.name for f in fields(program)}:  # type: ignore[arg-type]
        program = replace(program, meta={**program.meta, **told})  # type: ignore[type-var,attr-defined]
    return FoundInstruction(made[chosen].text, program, tuple(raced), refused)


def _requests(
    task: Task, own: Program, model: LanguageModel, how: InstructionSearch, seed: int
) -> list[tuple[Source, Prompt, list[Example]]]:
    """What the proposer is asked, and the examples that each request shows."""
    variables = {"input_name": task.input_name, "labels": list(task.labels), "instruction": task.instruction}
    if how.paraphrases:
        prompt = _chat(templates.load("propose", "paraphrase").render(variables))
        return [("paraphrase", prompt, [])] * how.proposals
    pool, rng = shot_pool(task), stream(seed, "instruction proposals")
    order = [pool[i] for i in rng.permutation(len(pool))]
    looked = order[:LOOKED_AT]
    wrong = [(e, a) for e, a in zip(looked, own.answer(looked, model), strict=True) if not _right(task, a, e)]
    found: list[tuple[Source, Prompt, list[Example]]] = []
    for i in range(how.proposals):
        if i % 2 and wrong:
            few = [wrong[k] for k in rng.permutation(len(wrong))[:SHOWN]]
            shots = [{**_told(e), "given": a.value or "none"} for e, a in few]
            text = templates.load("propose", "errors").render({**variables, "shots": shots})
            found.append(("errors", _chat(text), [e for e, _ in few]))
        else:
            drawn = [order[k] for k in rng.permutation(len(order))[:SHOWN]]
            text = templates.load("propose", "examples").render({**variables, "shots": [_told(e) for e in drawn]})
            found.append(("examples", _chat(text), drawn))
    return found


def _told(example: Example) -> dict[str, str]:
    return {"text": example.text, "label": shown_gold(example)}


def _chat(text: str) -> Prompt:
    return Prompt(messages=(Message("user", text),))


def _usable(text: str, shown: Sequence[Example]) -> bool:
    """Whether a reply can be an instruction: some words, not too many, and none of the examples quoted."""
    words = text.casefold().split()
    if not 3 <= len(words) <= LONGEST:
        return False
    runs = {tuple(words[i : i + QUOTED]) for i in range(len(words) - QUOTED + 1)}
    quoted = (e.text.casefold().split() for e in shown)
    return not any(tuple(q[i : i + QUOTED]) in runs for q in quoted for i in range(len(q) - QUOTED + 1))


def _metric(task: Task, answer: Answer, example: Example) -> float:
    from amplify.metrics import answer_scores  # takes seconds to import

    return float(next(iter(answer_scores(task.metric, answer, example).values())))


def _right(task: Task, answer: Answer, example: Example) -> bool:
    return answer.value == example.label if task.labels_of(example) else _metric(task, answer, example) >= 1


def _raced(
    programs: Sequence[Program], made: Sequence[Proposal], items: Sequence[Example], task: Task, model: LanguageModel
) -> tuple[int, list[Proposal]]:
    """The place of the instruction that wins, and what became of each."""
    from amplify.tuning import race

    def score(index: int, places: Sequence[int]) -> list[float]:
        batch = [items[i] for i in places]
        return [_worth(task, a, e) for a, e in zip(programs[index].answer(batch, model), batch, strict=True)]

    runners = [race.Runner(i, plain=i == 0, complexity=min(i, 1)) for i in range(len(programs))]
    done = race.run(runners, score, len(items), min(FIRST, len(items)))
    chosen = race.choose(done.finalists, range(done.n)).index
    return chosen, [
        replace(one, items=len(r.scores), score=float(np.mean(r.scores)), out=r.out)
        for one, r in zip(made, runners, strict=True)
    ]


def _worth(task: Task, answer: Answer, example: Example) -> float:
    if not answer.scores:
        return _metric(task, answer, example)
    return log_odds(np.array(list(answer.scores.values())), list(answer.scores).index(str(example.label)))


register(
    "method", "instruction_search",
    Preset(
        InstructionSearch, "Instructions that a model proposes from examples and errors, judged on held-out items.",
        without=("paraphrases",),
    ),
)  # fmt: skip
register(
    "method", "instruction_paraphrases",
    Preset(
        InstructionSearch, "As many other wordings of the task's own instruction: what proposals must beat.",
        role="control", fixed={"paraphrases": True},
    ),
)  # fmt: skip

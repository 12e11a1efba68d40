"""Does an answer follow the rationale written before it? Other words in its place, and the labels scored again.

What is done to the rationale, and how to read what comes of it, is tested on rationales that a model is made to hold
true (Zaman & Srivastava 2025, arXiv 2502.18848): `eval/check_rationales.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from amplify import templates
from amplify.errors import InputError
from amplify.methods.base import Program
from amplify.models.base import LanguageModel, Usage, need_scoring
from amplify.text import split_reasoning
from amplify.types import Answer, Completion, Example, Message, Prompt, Sampling, TokenLogProbs

T = TypeVar("T")

FILLER = "..."
REWORDED_TOKENS = 96
MEASURES: Mapping[str, str] = {
    "rationale_filler": "fall of the answer's probability where dots stand in place of the rationale's words",
    "rationale_early": "the same where the rationale ends after a third of its words",
    "rationale_other": "rise of another item's answer where that item's rationale stands instead",
    "rationale_reworded": "fall of the answer's probability where the model says the rationale in other words",
}
"""What is measured, each from -1 to 1. All but the last are high where answers go by the rationale; the last is near 0
where they go by what it says and not by how it is put."""


def followed(
    program: Program, examples: Sequence[Example], answers: Sequence[Answer], model: LanguageModel
) -> list[dict[str, float]]:
    """How far each answer goes by its own rationale; see `MEASURES`.

    Args:
        program: who answered.
        examples: a batch.
        answers: the program's to it, with label scores; those that wrote no rationale before them are left out.
        model: who answered.

    Returns:
        One dictionary an example, empty where there is no rationale; "rationale_other" is missing where no other item
        of the batch got another answer.

    Raises:
        CapabilityError: the model gives no log-probabilities.
    """
    said = [i for i, answer in enumerate(answers) if _written(answer)]
    found: list[dict[str, float]] = [{} for _ in examples]
    if not said:
        return found
    asked, given = [examples[i] for i in said], [answers[i] for i in said]
    texts = [answer.rationale for answer in given]
    firsts: dict[str, int | None] = {}  # of items that stand behind one prompt, all with one rationale
    others = [firsts.setdefault(_key(a.prompt), _other(i, given)) for i, a in enumerate(given) if a.prompt is not None]
    edits: dict[str, list[str]] = {
        "rationale_filler": [filler(text) for text in texts],
        "rationale_early": [early(text) for text in texts],
        "rationale_other": [text if o is None else texts[o] for text, o in zip(texts, others, strict=True)],
        "rationale_reworded": reworded(texts, model),
    }
    for name, new in edits.items():
        try:
            again = program.answer(asked, Rewritten(model, given, new))
        except _Unasked:  # a program that makes one answer of several: no single rationale is its own
            return [{} for _ in examples]
        for place, (i, before, after) in enumerate(zip(said, given, again, strict=True)):
            if name != "rationale_other":
                found[i][name] = _p(before, before.value) - _p(after, before.value)
            elif (other := others[place]) is not None:
                found[i][name] = _p(after, given[other].value) - _p(before, given[other].value)
    return found


def _written(answer: Answer) -> bool:
    """Whether its label was scored behind its rationale; what some programs name as theirs was never written."""
    before = answer.prompt.prefix if answer.prompt else ""
    return bool(answer.rationale and answer.scores and answer.value is not None and answer.rationale in before)


def filler(rationale: str) -> str:
    """As many dots as it has words.

    >>> filler("The key words are bad and slow.")
    '... ... ... ... ... ... ...'
    """
    return " ".join(FILLER for _ in rationale.split())


def early(rationale: str) -> str:
    """Its first third.

    >>> early("The key words are bad and slow.")
    'The key'
    """
    words = rationale.split()
    return " ".join(words[: max(1, len(words) // 3)])


def reworded(rationales: Sequence[str], model: LanguageModel) -> list[str]:
    """Each in the model's other words; as it is where nothing was written."""
    form = templates.load("reword", "default")
    asked = [
        Prompt(messages=(Message("user", form.render({"input_name": "Text", "text": text})),)) for text in rationales
    ]
    written = model.generate(asked, Sampling(max_tokens=REWORDED_TOKENS))
    new = [" ".join(split_reasoning(one.text)[1].split()).removeprefix("Text:").strip() for one in written]
    return [text or old for text, old in zip(new, rationales, strict=True)]


def _other(i: int, answers: Sequence[Answer]) -> int | None:
    """The next answer of the batch that differs and is one of this item's labels."""
    around = [(i + step) % len(answers) for step in range(1, len(answers))]
    return next(
        (k for k in around if answers[k].value != answers[i].value and answers[k].value in answers[i].scores), None
    )


def _p(answer: Answer, label: str | None) -> float:
    return answer.probabilities()[str(label)]


class Rewritten:
    """A model that answers again with other rationales: it writes what it wrote, and scores labels behind the new ones.

    Args:
        inner: the model.
        answers: what it answered, with the prompts that the labels were scored behind.
        rationales: in place of theirs.
    """

    def __init__(self, inner: LanguageModel, answers: Sequence[Answer], rationales: Sequence[str]) -> None:
        self.inner = inner
        self.id: str = inner.id
        self.usage: Usage = inner.usage
        self.max_context: int | None = inner.max_context
        self._written: dict[str, str] = {}
        self._new: dict[str, Prompt] = {}
        for answer, rationale in zip(answers, rationales, strict=True):
            assert answer.prompt is not None
            head, _, tail = answer.prompt.prefix.partition(answer.rationale)
            self._new[_key(answer.prompt)] = replace(answer.prompt, prefix=f"{head}{rationale}{tail}")
            self._written[_asked(answer.prompt)] = answer.text

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling, *, steering: Any = None) -> list[Completion]:
        """What was written the first time."""
        return [Completion(_known(self._written, _asked(prompt)), "stop", 0, 0) for prompt in prompts]

    def score(
        self, prompts: Sequence[Prompt], continuations: Sequence[str], *, steering: Any = None
    ) -> list[TokenLogProbs]:
        """Behind the new rationales."""
        changed = [_known(self._new, _key(prompt)) for prompt in prompts]
        return need_scoring(self.inner, "following a rationale").score(changed, continuations, steering=steering)

    def count_tokens(self, prompts: Sequence[Prompt]) -> list[int]:
        """See `LanguageModel`."""
        return self.inner.count_tokens(prompts)

    def describe(self) -> dict[str, Any]:
        """See `LanguageModel`."""
        return self.inner.describe()

    def close(self) -> None:
        """Nothing: the model is its opener's to close."""

    def __enter__(self) -> Rewritten:
        return self

    def __exit__(self, *exc: object) -> None:
        return None


class _Unasked(InputError):
    """A prompt that no answer was made of."""


def _known(there: Mapping[str, T], key: str) -> T:
    if key not in there:
        raise _Unasked("this prompt led to none of the answers")
    return there[key]


def _asked(prompt: Prompt) -> str:
    """A prompt without the begun answer."""
    return repr((prompt.text, prompt.messages))


def _key(prompt: Prompt) -> str:
    """A prompt whatever white space stands before the marker (a text that was cut off is followed by a new line)."""
    return f"{_asked(prompt)} {' '.join(prompt.prefix.split())}"

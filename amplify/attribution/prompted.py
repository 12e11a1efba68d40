"""Language models as explainers: which words they say made the difference (Kroeger et al. 2023, arXiv 2310.05797).

A language model reads how a model's output changes in a neighbourhood of an input, and names the words that matter
most, by one of four strategies of in-context learning, or explains an answer of its own:

| strategy       | the explainer is shown                                                                      |
|----------------|---------------------------------------------------------------------------------------------|
| `perturbation` | which words were left out of each neighbour, and the output then                            |
| `prediction`   | the neighbours themselves with their outputs; it predicts the input's output, then explains |
| `instruction`  | the same as perturbation, and how to work out from it what a word is worth                  |
| `explanation`  | other inputs with the words that another explainer found for them                           |
| `self`         | the input and the answer, nothing else (the top-k words of Self-AMPLIFY, arXiv 2402.12038)  |

What it writes is read strictly: a word counts only if it stands in the input and may be named. A reply with nothing to
read in it, or with more invented words than real ones, is asked for again a bounded number of times and then counted
as failed. Scores are ranks, 1 for the first word named down to 1/k for the k-th: they order words and measure nothing.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from amplify import templates
from amplify.attribution.inputs import Subject, subject
from amplify.attribution.words import Spans, content_words, stop_words, without_words, word_spans
from amplify.errors import InputError, UnknownNameError
from amplify.models.base import LanguageModel
from amplify.proxies import Proxy
from amplify.shapley.game import Coalitions, Value
from amplify.templates import Template
from amplify.types import Attribution, Example, Message, Prompt, Sampling

STRATEGIES = ("perturbation", "prediction", "instruction", "explanation", "self")
NEIGHBOURS = 16
PHRASE = 3  # words that one thing named may hold


@dataclass(frozen=True)
class Case:
    """One output to explain.

    Attributes:
        text: the input.
        target: the output explained, as prompts write it.
        value: the model as a function of which of the words stay; not needed by `explanation` and `self`.
        foil: the output it is contrasted with: `value` is then above 0 where the model prefers the target.
        spans: characters of the words that may be named; default: all but stop words.
        prompt: for `self`: the prompt that the explainer itself answered, its prefix being what stands before the
            answer ("The answer is"). Without one the explainer is shown the text.
        model: the name of the model explained.
    """

    text: str
    target: str
    value: Value | None = None
    foil: str | None = None
    spans: Spans | None = None
    prompt: Prompt | None = None
    model: str = ""

    @property
    def words(self) -> Spans:
        """The words that may be named, as characters of the text."""
        if self.spans is not None:
            return self.spans
        return tuple(s for s, may in zip(word_spans(self.text), content_words(self.text), strict=True) if may)


@dataclass(frozen=True)
class Named:
    """What a reply came to.

    Attributes:
        words: as they stand in the text, most important first; empty where no reply could be read.
        invented: things the last reply named that are no such word.
        attempts: replies asked for.
        reply: the last one.
    """

    words: tuple[str, ...]
    invented: int
    attempts: int
    reply: str


@dataclass(frozen=True)
class Prompted:
    """Attributions by a language model.

    Attributes:
        attributions: one a case; None where no reply could be read.
        calls: replies asked for, all cases together.
        failed: cases without an attribution.
        invented: words named that are not in the input, all cases together.
    """

    attributions: tuple[Attribution | None, ...]
    calls: int
    failed: int
    invented: int


def explain_prompted(
    cases: Sequence[Case],
    explainer: LanguageModel,
    strategy: str = "perturbation",
    *,
    k: int = 5,
    neighbours: int = NEIGHBOURS,
    solved: Sequence[Attribution] = (),
    seed: int = 0,
    retries: int = 2,
) -> Prompted:
    """Ask a language model which words made each output.

    Args:
        cases: what to explain; all are asked in one batch.
        explainer: any model.
        strategy: of `STRATEGIES`.
        k: words to name.
        neighbours: inputs with words left out that are evaluated and shown per case (fewer where there are not that
            many different ones).
        solved: attributions of other inputs, for `explanation`.
        seed: of the neighbours and of replies asked for again.
        retries: how often an unreadable reply is asked for again.

    Raises:
        UnknownNameError: no such strategy.
        InputError: no words to name, a case without `value` or no solved examples where the strategy needs them.

    Example:
        >>> from amplify.models.scripted import ScriptedModel
        >>> writer = ScriptedModel(reply=lambda text: 'terrible", "battery"')
        >>> found = explain_prompted([Case("Great phone, terrible battery", "negative")], writer, "self", k=2)
        >>> found.attributions[0].top(2), found.calls
        (['terrible', 'battery'], 1)
    """
    if strategy not in STRATEGIES:
        raise UnknownNameError("prompting strategy", strategy, STRATEGIES)
    if k < 1 or neighbours < 1:
        raise InputError(f"at least one word and one neighbour are needed, got k={k} and neighbours={neighbours}")
    if strategy == "explanation" and not solved:
        raise InputError("the strategy explanation shows solved examples: give solved=, attributions of other inputs")
    form = templates.load("explain", strategy)
    prompts, budgets = [], []
    for case in cases:
        if not case.words:
            raise InputError(f"there is no word to name in {case.text[:80]!r}: it is empty or has stop words only")
        shown, full, cost = _shown(case, strategy, neighbours, seed)
        examples = [{"text": a.text, "target": a.target, "words": a.top(k)} for a in solved]
        size = min(k, len({case.text[a:b].casefold() for a, b in case.words}))
        variables = {"text": case.text, "target": case.target.strip(), "foil": (case.foil or "").strip(), "k": size}
        prompts.append(
            _prompt(form, strategy, case, {**variables, "neighbours": shown, "full": full, "solved": examples})
        )
        budgets.append(cost)
    named = ask_words(prompts, cases, explainer, k, seed=seed, retries=retries)
    made = [
        _attribution(case, one, strategy, k, explainer, budget, seed)
        for case, one, budget in zip(cases, named, budgets, strict=True)
    ]
    return Prompted(
        tuple(made), sum(n.attempts for n in named), made.count(None), sum(n.invented for n in named if n.words)
    )


def cases_of(
    texts: Sequence[str | Prompt],
    targets: Sequence[str],
    model: Proxy | LanguageModel,
    *,
    foils: Sequence[str | None] | None = None,
    segments: Sequence[Spans | None] | None = None,
    masking: str = "delete",
) -> list[Case]:
    """Outputs of an open model as cases, whose neighbours the model itself evaluates.

    Args:
        texts: inputs of a proxy, or prompts of a language model (words of the user's last message may be named).
        targets: labels of the proxy, or continuations.
        model: what is explained; the explainer may be another model, or the same.
        foils: what each target is contrasted with.
        segments: the words that may be named, as characters of each text; default: all but stop words.
        masking: how neighbours leave words out (see `amplify.attribution.masking`).

    Raises:
        InputError: a text without words, or a target that is no label of the proxy.
        CapabilityError: a model without log-probabilities (at the first evaluation).
    """
    nothing = [None] * len(texts)
    found = []
    for text, target, foil, words in zip(texts, targets, foils or nothing, segments or nothing, strict=True):
        whole = subject(model, text, target, foil, words)
        spans = words or Case(whole.text, target).words
        one = subject(model, text, target, foil, spans)
        prompt = text if isinstance(text, Prompt) else None
        found.append(Case(one.text, target, _value(one, masking), foil, one.spans, prompt, one.model_name))
    return found


def ask_words(
    prompts: Sequence[Prompt],
    cases: Sequence[Case],
    explainer: LanguageModel,
    k: int,
    *,
    seed: int = 0,
    retries: int = 2,
) -> list[Named]:
    """Ask for words until each reply can be read, greedily first, then sampled with a seed.

    Args:
        prompts: one a case; where its prefix ends with a quotation mark, the reply begins inside it.
        cases: whose words may be named.
        explainer: any model.
        k: words of a reply that are read.
        seed: of the samples.
        retries: tries after the first; never more.
    """
    named = [Named((), 0, 0, "")] * len(prompts)
    for attempt in range(retries + 1):
        unread = [i for i, one in enumerate(named) if not one.words]
        if not unread:
            break
        # a prediction may come before the words
        sampling = Sampling(max_tokens=24 + 8 * k, temperature=0.7 if attempt else 0.0, seed=seed + attempt)
        replies = explainer.generate([prompts[i] for i in unread], sampling)
        for i, reply in zip(unread, replies, strict=True):
            begun = '"' if prompts[i].prefix.endswith('"') else ""
            words, invented = read_words(begun + reply.text, cases[i].text, cases[i].words, k, head=not begun)
            named[i] = Named(words, invented, attempt + 1, reply.text)
    return named


_HEAD = re.compile(r"(?:^|\n)\W*(?:key |important |most important )?words?\W*:", re.IGNORECASE)
_LISTED = re.compile(r"^\s*(?:\d+\s*[.):]|[-*•–])\s+")
_QUOTE = re.compile(r"[\"“”«»„]([^\"“”«»„\n]+)[\"“”«»„]")


def read_words(reply: str, text: str, spans: Spans, k: int, *, head: bool = False) -> tuple[tuple[str, ...], int]:
    """The words that a reply lists, and how many things it lists that are none.

    Read is what stands behind "Words:" (without such a head all of it) up to an empty line: quoted strings where there
    are some, else what commas and line ends part. An item must be a word of the input that may be named (case ignored),
    or a phrase of the input that holds some, but few: a model that copies the input names nothing. Where inventions
    outnumber words, nothing is read.

    Args:
        reply: what a model wrote.
        text: the input.
        spans: the words that may be named, as characters of it.
        k: words read at most, each once.
        head: a reply without "Words:" cannot be read.

    Example:
        >>> text = "Great phone, terrible battery"
        >>> read_words('Words: "battery", "screen"', text, word_spans(text), 3)
        (('battery',), 1)
    """
    found = _HEAD.search(reply)
    if head and not found:
        return (), 0
    listed = (reply[found.end() :] if found else reply).strip().split("\n\n")[0]
    if listed.count('"') % 2:
        listed += '"'  # a list that was cut off, or a quotation mark that was written for the model
    items = [part for quoted in _QUOTE.findall(listed) or [listed] for part in re.split(r"[,;\n]", quoted)]
    allowed = {text[a:b].casefold(): text[a:b] for a, b in reversed(spans)}
    source = f" {' '.join(_words(text))} "
    words: list[str] = []
    invented = 0
    for item in items:
        parts = _words(_LISTED.sub("", item))
        held = [allowed[part] for part in parts if part in allowed]
        only = all(part in allowed or part in stop_words() for part in parts)
        if 0 < len(held) <= PHRASE and only and f" {' '.join(parts)} " in source:
            words += [word for word in held if word not in words]
        elif parts:
            invented += 1
        if len(words) >= k:
            break
    return (tuple(words[:k]) if len(words) >= invented else ()), invented


def neighbourhood(words: int, n: int, seed: int) -> Coalitions:
    """n different coalitions near the whole input, shape (at most n, words): up to half of the words are left out.

    Example:
        >>> neighbourhood(4, 3, seed=0).shape
        (3, 4)
    """
    rng = np.random.default_rng(seed)
    most = max(1, words // 2)
    found: dict[bytes, Coalitions] = {}
    for _ in range(20 * n):  # few words have few neighbours
        if len(found) == n:
            break
        mask = np.ones(words, dtype=bool)
        mask[rng.permutation(words)[: rng.integers(1, most + 1)]] = False
        found.setdefault(mask.tobytes(), mask)
    return np.array(list(found.values()))


def _value(subject: Subject, masking: str) -> Value:
    """The game of a subject; that its model can play it is asked only when it is played."""
    return lambda coalitions: subject.value(masking)(coalitions)


def _shown(case: Case, strategy: str, n: int, seed: int) -> tuple[list[dict[str, object]], str, int]:
    """The neighbours as templates see them, the output of the whole input, and evaluations made."""
    if strategy in ("explanation", "self"):
        return [], "", 0
    if case.value is None:
        raise InputError(f"the strategy {strategy} looks at the model's outputs: give each case its value=")
    masks = neighbourhood(len(case.words), n, random.Random(f"{seed}\0{case.text}").getrandbits(32))
    values = case.value(np.concatenate([masks, np.ones((1, len(case.words)), dtype=bool)]))
    if not np.isfinite(values).all():
        raise InputError(f"the model's value is not finite near {case.text[:80]!r}")
    shown: list[dict[str, object]] = []
    for mask, value in zip(masks, values, strict=False):
        gone = [span for span, stays in zip(case.words, mask, strict=True) if not stays]
        cut = without_words(Example("", case.text), gone).text
        shown.append({"text": cut, "missing": [case.text[a:b] for a, b in gone], "output": _output(case, float(value))})
    return shown, _output(case, float(values[-1])), len(values)


def _output(case: Case, value: float) -> str:
    """As `prediction` with a foil needs it, and readable elsewhere: the label preferred, and by how much."""
    if case.foil is None:
        return f"{value:.2f}"
    return f"{(case.target if value > 0 else case.foil).strip()} ({value:+.2f})"


def _prompt(form: Template, strategy: str, case: Case, variables: dict[str, object]) -> Prompt:
    if strategy == "self" and case.prompt is not None:
        prefill = templates.load("prefill", "top_words").render({"label": variables["target"], "k": variables["k"]})
        begun = case.prompt.prefix
        return replace(case.prompt, prefix=f"{begun} {prefill}" if begun or case.prompt.text is not None else prefill)
    prefix = "Output:" if strategy == "prediction" else 'Words: "'
    return Prompt(messages=(Message("user", form.render(variables)),), prefix=prefix)


def _attribution(
    case: Case, named: Named, strategy: str, k: int, explainer: LanguageModel, budget: int, seed: int
) -> Attribution | None:
    if not named.words:
        return None
    rank = {word.casefold(): 1 - i / k for i, word in enumerate(named.words)}
    words = tuple(case.text[a:b] for a, b in case.words)
    return Attribution(
        text=case.text,
        words=words,
        spans=case.words,
        scores=tuple(rank.get(word.casefold(), 0.0) for word in words),
        target=case.target,
        foil=case.foil,
        method=f"prompted_{strategy}",
        model=case.model,
        budget=budget,
        seed=seed,
        meta={
            "explainer": explainer.id,
            "attempts": named.attempts,
            "invented": named.invented,
            "reply": named.reply,
            "scores": "ranks",
        },
    )


def _words(text: str) -> list[str]:
    return [text[a:b].casefold() for a, b in word_spans(text)]

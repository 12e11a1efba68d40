"""Tasks that are made by rule: coin flip and last letters (Wei et al. 2022, arXiv 2201.11903, section 5), and planted
words, a causal check of explainers and of metrics.

In distribution, shots and test items have the same number of steps; out of distribution the test items have more
than any shot. Everything follows from the task's seed.

Planted words: each text is neutral filler words in random order (half as many as the task's steps to all of them, so
that a text with some words deleted is nothing that a model has not seen), and among them planted words that alone
decide the label:

- `planted_single`: one planted word decides.
- `planted_redundant`: two planted words of the same label, either of which would do. (As many texts hold one of them
  only, so that a model cannot get by with the other.)
- `planted_conjunctive`: "left" where both words of a pair stand in the text, "right" where one or none does.

In the first two, a text in four holds no planted word and its label is a coin's: a model learns that without them
nothing is decided. No model can be right about more than 7 in 8 of these texts but by chance.

`fields["planted"]` of an example holds the words that decide it, empty where nothing does (a conjunction's "right") or
where they are fewer than the rule's name says.
"""

# ruff: noqa: SIM905 (names read better as a paragraph)

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from amplify.errors import InputError, UnknownNameError
from amplify.tasks.spec import SPLITS, TaskSpec, check_keys
from amplify.types import Example

FIRST_NAMES = (
    "Agnes Ahmed Alma Anders Beatriz Bogdan Camille Chidi Clara Dagny Diego Dmitri Elif Emeka Esther Fatima Felix "
    "Freya Gabriel Greta Hana Hassan Hugo Ida Imran Ines Ivo Jamila Jonas Jun Kavya Kofi Lars Leila Lucia Magnus "
    "Malik Marta Mei Mina Nadia Nikhil Nora Olga Omar Oskar Paloma Pavel Petra Priya Quentin Rafael Rosa Samir Selma "
    "Sofia Stefan Tariq Thea Tomas Ulla Vera Viktor Wanda Xavier Yara Yusuf Zara Zoran"
).split()
LAST_NAMES = (
    "Abara Andersen Baptiste Becker Bianchi Castro Chen Dahl Dubois Eriksen Farouk Fischer Garcia Gupta Haddad Hansen "
    "Horvat Ito Jansen Kaya Keller Kim Kowalski Laurent Lopez Maier Mbeki Meyer Moreau Nakamura Nguyen Novak Okafor "
    "Oliveira Park Petrov Quist Ramos Rossi Sato Schmidt Silva Suzuki Tanaka Toth Usman Vargas Weber Wolf Yilmaz Zhou"
).split()


def coin_flip(people: int, rng: random.Random) -> tuple[str, str]:
    """A question with this many people, and its answer, "yes" or "no"."""
    flips = [rng.random() < 0.5 for _ in range(people)]
    acts = (
        f"{name} {'flips' if flip else 'does not flip'} the coin."
        for name, flip in zip(rng.sample(FIRST_NAMES, people), flips, strict=True)
    )
    return f"A coin is heads up. {' '.join(acts)} Is the coin still heads up?", "no" if sum(flips) % 2 else "yes"


def last_letters(words: int, rng: random.Random) -> tuple[str, str]:
    """A question with this many words of a name (given names, then one family name), and the joined last letters."""
    name = [*rng.sample(FIRST_NAMES, words - 1), rng.choice(LAST_NAMES)]
    quoted = " ".join(name)
    return f'Take the last letters of the words in "{quoted}" and concatenate them.', "".join(w[-1] for w in name)


Planted = tuple[str, str, dict[str, Any]]

FILLER = (
    "apple arrow basket bench bottle bread bridge brush button candle carpet castle chair circle cloud corner cotton "
    "cup curtain desk door drawer feather fence field finger floor flower forest fork garden glass glove grain hammer "
    "harbour hill honey island jacket kettle kitchen ladder lamp leaf letter lemon meadow melon mirror mountain needle "
    "onion paper pebble pencil piano pillow plate pocket pond potato ribbon river roof salad sand saucer shelf shoe "
    "spoon stairs stone straw summer table tent thread tower tree tunnel village wagon wall wheel window winter wood"
).split()
WORDS: Mapping[str, tuple[str, str]] = {"left": ("amber", "velvet"), "right": ("cobalt", "granite")}
"""Label -> the words that may be planted for it; a conjunction takes those of "left"."""

UNDECIDED = 0.25


def single(steps: int, rng: random.Random) -> Planted:
    """One deciding word among the filler."""
    label = rng.choice(tuple(WORDS))
    if rng.random() < UNDECIDED:
        return _planted([], steps, rng), label, {"planted": []}
    word = rng.choice(WORDS[label])
    return _planted([word], steps, rng), label, {"planted": [word]}


def redundant(steps: int, rng: random.Random) -> Planted:
    """Two words of one label, or one of them."""
    label = rng.choice(tuple(WORDS))
    words = list(WORDS[label])
    if rng.random() < UNDECIDED:
        return _planted([], steps, rng), label, {"planted": []}
    if rng.random() < 0.5:
        return _planted(words, steps, rng), label, {"planted": words}
    return _planted([rng.choice(words)], steps, rng), label, {"planted": []}


def conjunctive(steps: int, rng: random.Random) -> Planted:
    """Both words of a pair, or at most one."""
    words = list(WORDS["left"])
    if rng.random() < 0.5:
        return _planted(words, steps, rng), "left", {"planted": words}
    some = rng.choice([[words[0]], [words[1]], []])
    return _planted(some, steps, rng), "right", {"planted": []}


PLANTED: Mapping[str, Callable[[int, random.Random], Planted]] = {
    "planted_single": single,
    "planted_redundant": redundant,
    "planted_conjunctive": conjunctive,
}


def deciding(example: Example) -> tuple[str, ...]:
    """The words planted to decide this example's label; empty where none are."""
    return tuple(example.fields.get("planted", ()))


def log_odds(rule: str, text: str, size: float = 4.0) -> float:
    """The rule itself as a classifier: log p(left) - log p(right), `size` where left is decided, -`size` where right.

    A text without any deciding word is undecided, 0, but "right" to a conjunction.
    """
    words = set(text.lower().split())
    if rule == "planted_conjunctive":
        return size if set(WORDS["left"]) <= words else -size
    left, right = (any(word in words for word in WORDS[label]) for label in ("left", "right"))
    return size * (left - right)


def _planted(planted: Sequence[str], steps: int, rng: random.Random) -> str:
    words = [*planted, *rng.sample(FILLER, rng.randint(steps // 2, steps))]
    return " ".join(rng.sample(words, len(words)))


MOST = 100_000  # examples of a split
Rule = Callable[[int, random.Random], tuple[str, str] | Planted]
RULES: Mapping[str, Rule] = {"coin_flip": coin_flip, "last_letters": last_letters, **PLANTED}
"""(steps, random stream) -> text, answer and, for some, further fields of the example."""


def generate(spec: TaskSpec) -> dict[str, list[Example]]:
    """The splits of a generated task, balanced by label where the task has labels.

    `spec.generate` holds `rule`, `steps` (split -> number of people or words, 2 or more) and optionally `sizes`
    (split -> number of examples, 200 each).

    Raises:
        InputError: steps that the rule cannot make, or more examples than there are different ones.
    """
    options: Mapping[str, Any] = spec.generate
    check_keys(f"task {spec.name}, generate", options, ("rule", "steps", "sizes"))
    if options.get("rule") not in RULES:
        raise UnknownNameError("rule", str(options.get("rule")), RULES)
    steps, sizes = options.get("steps") or {}, options.get("sizes") or {}
    if not isinstance(steps, dict) or not isinstance(sizes, dict):
        raise InputError(f"task {spec.name}: steps and sizes are mappings of splits to whole numbers")
    if any(not isinstance(n, int) or not 1 <= n <= MOST for n in sizes.values()):
        raise InputError(f"task {spec.name}: sizes are numbers of examples, 1 to {MOST:,}")
    if any(not isinstance(steps.get(s), int) or not 2 <= steps[s] <= len(FIRST_NAMES) for s in SPLITS):
        raise InputError(f"task {spec.name}: steps names train, validation and test, each 2 to {len(FIRST_NAMES)}")
    seen: set[str] = set()
    made: dict[str, list[Example]] = {}
    for split in SPLITS:
        # a stream of its own: the size of one split does not change another
        rng = random.Random(f"{spec.seed}:{options['rule']}:{split}:{steps[split]}")
        made[split] = _examples(RULES[options["rule"]], steps[split], sizes.get(split, 200), spec, rng, seen)
    return made


def _examples(
    rule: Rule,
    steps: int,
    size: int,
    spec: TaskSpec,
    rng: random.Random,
    seen: set[str],
) -> list[Example]:
    room = {label: (size + i) // len(spec.labels) for i, label in enumerate(spec.labels)}
    examples: list[Example] = []
    for _ in range(1000 * size):
        if len(examples) == size:
            return examples
        text, gold, *more = rule(steps, rng)
        if text in seen or room.get(gold, 1) == 0:
            continue
        seen.add(text)
        if spec.labels:
            room[gold] -= 1
        name = hashlib.sha256(text.encode()).hexdigest()[:12]
        fields = {"steps": steps, **(more[0] if more else {})}
        examples.append(Example(name, text, gold, answers=() if spec.labels else (gold,), fields=fields))
    raise InputError(f"task {spec.name}: there are not {size} different questions of {steps} steps")

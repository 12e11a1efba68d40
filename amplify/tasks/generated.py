"""Tasks that are made by rule: coin flip and last letters (Wei et al. 2022, arXiv 2201.11903, section 5), and planted
words (`amplify.tasks.planted`).

In distribution, shots and test items have the same number of steps; out of distribution the test items have more
than any shot. Everything follows from the task's seed.
"""

# ruff: noqa: SIM905 (names read better as a paragraph)

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping
from typing import Any

from amplify.errors import InputError, UnknownNameError
from amplify.tasks import planted
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


MOST = 100_000  # examples of a split
Rule = Callable[[int, random.Random], tuple[str, str] | planted.Planted]
RULES: Mapping[str, Rule] = {"coin_flip": coin_flip, "last_letters": last_letters, **planted.RULES}
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

"""Counterfactual facts: "Previously {old}. Currently {new}. {question}" (PASTA, arXiv 2311.02262, on CounterFact)."""

from __future__ import annotations

import hashlib
import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from amplify.errors import InputError
from amplify.tasks.rows import column
from amplify.tasks.spec import TaskSpec
from amplify.types import Example

QUESTIONS = ("requested_rewrite.prompt", "paraphrase_prompts")
_SHARES = (("train", 0.4), ("validation", 0.1), ("test", 0.5))


def fact_examples(spec: TaskSpec, rows: Sequence[Mapping[str, Any]], path: Path) -> list[tuple[Example, str]]:
    """Examples and their splits, from CounterFact's published layout or from known_facts.json.

    An example's text is the question, a sentence to continue; its choices are the new and the old object, and the
    label is the new one. `fields.text` of the task says which questions are asked: "requested_rewrite.prompt" (the
    efficacy score) or "paraphrase_prompts" (the paraphrase score, one example each). Splits go by subject and
    relation, so that no fact stands in two of them, whichever questions are asked.

    Raises:
        InputError: a row of another layout.
    """
    asked = str(spec.fields.get("text", QUESTIONS[0]))
    if asked not in QUESTIONS:
        raise InputError(f"task {spec.name}: fields.text is one of {', '.join(QUESTIONS)}, not {asked!r}")
    cases = counterfacts(rows, spec.seed, str(path)) if spec.format == "known_facts" else rows
    made: dict[str, tuple[Example, str]] = {}
    for number, case in enumerate(cases, start=1):
        where = f"{path}, row {number}"
        subject, prompt, new, old = (
            str(column(case, f"requested_rewrite.{name}", where))
            for name in ("subject", "prompt", "target_new.str", "target_true.str")
        )
        if "{}" not in prompt:
            raise InputError(f"{where}: requested_rewrite.prompt has no {{}} for its subject")
        statement = prompt.replace("{}", subject)
        questions = [statement] if asked == QUESTIONS[0] else list(column(case, asked, where))
        for k, question in enumerate(questions):
            example = Example(
                id=f"{column(case, 'case_id', where)}" + (f"-p{k}" if asked != QUESTIONS[0] else ""),
                text=str(question).strip(),
                label=new,
                choices=tuple(sorted((new, old))),  # their order must not tell which is the new one
                fields={
                    "subject": subject,
                    "old_fact": f"{statement} {old}",
                    "new_fact": f"{statement} {new}",
                    "old": old,
                },
            )
            if example.text and new != old:
                made.setdefault(example.text.casefold(), (example, _split(subject, spec.seed)))
    return list(made.values())


def counterfacts(rows: Sequence[Mapping[str, Any]], seed: int, where: str) -> list[dict[str, Any]]:
    """Known facts as counterfacts in CounterFact's layout: the new object is another one of the same relation.

    Paraphrases are the relation's other templates, of those that several facts have, and none where there is no other.

    Args:
        rows: subject, attribute, prompt, relation_id and known_id of each fact.
        seed: of the choice of new objects and paraphrases.
        where: for errors.
    """
    objects: dict[str, dict[str, None]] = defaultdict(dict)
    templates: dict[str, Counter[str]] = defaultdict(Counter)
    facts = []
    for number, row in enumerate(rows, start=1):
        at = f"{where}, row {number}"
        subject, old, prompt, relation = (
            str(column(row, name, at)).strip() for name in ("subject", "attribute", "prompt", "relation_id")
        )
        if subject not in prompt:
            raise InputError(f"{at}: the prompt does not name its subject {subject!r}")
        template = prompt.replace(subject, "{}", 1)
        objects[relation][old] = None
        templates[relation][template] += 1
        facts.append((column(row, "known_id", at), subject, old, template, relation))
    cases = []
    for name, subject, old, template, relation in facts:
        rng = random.Random(f"{seed}:{name}")
        others = [o for o in objects[relation] if o.casefold() != old.casefold()]
        if not others:
            continue
        common = [t for t, n in templates[relation].most_common() if n > 1 and t != template]
        cases.append(
            {
                "case_id": f"known-{name}",
                "requested_rewrite": {
                    "prompt": template,
                    "subject": subject,
                    "relation_id": relation,
                    "target_true": {"str": old},
                    "target_new": {"str": rng.choice(others)},
                },
                "paraphrase_prompts": [t.replace("{}", subject) for t in rng.sample(common, min(2, len(common)))],
            }
        )
    return cases


def _split(subject: str, seed: int) -> str:
    place = int(hashlib.sha256(f"{seed}:{subject.casefold()}".encode()).hexdigest()[:8], 16) / 16**8
    for name, share in _SHARES:
        if place < share:
            return name
        place -= share
    return "test"

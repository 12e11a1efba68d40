"""How well the documents behind an answer were ranked, kept and cited, measured against gold evidence.

Gold evidence is what an example's fields say: `evidence`, numbers of the gold documents among `documents`. It is
looked at here alone, after the answer was given.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np

from amplify.types import Example, Sources

CUTS = (1, 2, 5)  # the k of precision@k and recall@k

Entails = Callable[[Collection[int], int], bool]


def evidence_scores(sources: Sources, example: Example) -> dict[str, float]:
    """Scores of one item's documents; {} where the example has no gold evidence.

    Returns:
        `evidence_auc` of the documents' scores (of their ranks where they have no scores), precision and recall of the
        first k of the ranking, the recall of the documents shown, and of the citations where any were asked for.
    """
    gold = set(example.fields.get("evidence", ()))
    if not gold:
        return {}
    found: dict[str, float] = {}
    count = len(example.fields["documents"])
    if len(gold) < count:
        found["evidence_auc"] = auc(sources.scores or ranks(sources.ranking, count), gold)
    for k in CUTS:
        hits = len(gold & set(sources.ranking[:k]))
        found[f"evidence_precision@{k}"] = hits / k
        found[f"evidence_recall@{k}"] = hits / len(gold)
    found["evidence_shown"] = len(gold & set(sources.shown)) / len(gold)
    if sources.cited is not None:
        cited = citation_scores(sources.cited, lambda documents, _: gold <= set(documents))
        found |= {f"citation_{name}": value for name, value in cited.items()}
    return found


def auc(scores: Sequence[float | None], gold: Collection[int]) -> float:
    """Probability that a gold document scores above another one, ties counting half (area under the ROC curve).

    Args:
        scores: one per document; None (no score) is below every number.
        gold: numbers of the gold documents; neither none nor all of them.
    """
    values = np.array([-np.inf if s is None else s for s in scores], dtype=np.float64)
    held = np.zeros(len(values), dtype=bool)
    held[list(gold)] = True
    above = values[held][:, None] > values[~held][None, :]
    ties = values[held][:, None] == values[~held][None, :]
    return float((above + 0.5 * ties).mean())


def ranks(ranking: Sequence[int], count: int) -> list[float | None]:
    """A score for each of `count` documents that falls along a ranking; None for those that are not in it."""
    place = {document: at for at, document in enumerate(ranking)}
    return [-float(place[i]) if i in place else None for i in range(count)]


def citation_scores(cited: Sequence[Collection[int]], entails: Entails) -> dict[str, float]:
    """Citation recall and precision (ALCE; Gao et al. 2023, arXiv 2305.14627, section 4), averaged over statements.

    A statement is recalled when its citations together entail it. A citation is precise when its statement is recalled
    and it is not superfluous: it entails the statement alone, or the others do not entail it without it. Precision is
    the share of all citations that are; 0 where nothing is cited.

    Args:
        cited: the documents that each statement of an answer cites.
        entails: (documents, number of the statement) -> whether the documents entail it. ALCE asks an NLI model;
            against gold evidence, documents entail an answer when all gold documents are among them.
    """
    recalled = [bool(documents) and entails(documents, i) for i, documents in enumerate(cited)]
    precise = total = 0
    for i, documents in enumerate(cited):
        total += len(documents)
        if recalled[i]:
            precise += sum(entails([d], i) or not entails([o for o in documents if o != d], i) for d in documents)
    return {
        "recall": sum(recalled) / len(recalled) if recalled else 0.0,
        "precision": precise / total if total else 0.0,
    }

"""What an answer says, sentence by sentence, and what of the sources carries it: claims and citations as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from amplify.errors import InputError

if TYPE_CHECKING:
    from amplify.sources.result import SourceAttribution

Verdict = Literal["supported", "from memory", "contradicted"]
SHARE = 0.1  # of what the context gives a claim: from there on a source is cited
OF_BEST = 0.5  # and of what the claim's best source gives it (settled on the answers of eval/bench_citations.py)
MEMORY = 0.2  # support below which the model has a claim from itself
NAT, VOTE = 1.0, 0.1  # what the context gives or takes is no less than this before it is said to have an effect


@dataclass(frozen=True)
class Claim:
    """A sentence of the answer (votes: the answer).

    Attributes:
        text: what it says.
        start, end: its characters of the answer.
        scores, low, high: of each source, and their 95 % intervals, in units of the value. [sources]
        shares: of what the context gives this claim, what each source gives. [sources]
        without, with_all: the claim's value without any source and with all of them.
        support: log-probabilities: of the surprise that the claim is without any source, the share that the sources
            take away: 1 where they make it certain, 0 where they do nothing, below 0 where they make it less likely.
            Votes: what all sources add to it.
        verdict: "supported"; "from memory" where the sources change little; "contradicted" where they make it less
            likely.

    Example:
        >>> from amplify.models.scripted import ScriptedModel
        >>> model = ScriptedModel(logprob=lambda text, said: -0.1 if "in Rome" in text else -5.0)
        >>> why = amplify.attribute_sources("Where is it?", ["It is in Rome.", "Bees fly far."], model, "Rome")
        >>> [(claim.text, claim.verdict, round(claim.support, 2)) for claim in why.claims]
        [('Rome', 'supported', 0.98)]
    """

    text: str
    start: int
    end: int
    scores: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    shares: tuple[float, ...]
    without: float
    with_all: float
    support: float
    verdict: Verdict

    @property
    def gain(self) -> float:
        """What all sources together do to the claim's value."""
        return self.with_all - self.without


@dataclass(frozen=True)
class Citation:
    """A source that carries a claim.

    Attributes:
        claim: number of the claim.
        start, end: its characters of the answer.
        source: row of the source in `documents`.
        id, title: of the source.
        text: what is cited: the sentence that carries most of it where sentences were scored, else all of it.
        source_start, source_end: characters of the document where that text stands.
        score, low, high: of the source for the claim, and its 95 % interval.
        share: of what the context gives the claim.

    Example:
        >>> from amplify.models.scripted import ScriptedModel
        >>> model = ScriptedModel(logprob=lambda text, said: -0.1 if "in Rome" in text else -5.0)
        >>> documents = [amplify.Document("It is in Rome.", title="Guide"), "Bees fly far."]
        >>> why = amplify.attribute_sources("Where is it?", documents, model, "Rome")
        >>> [(c.title, c.text, round(c.share, 2)) for c in why.citations]
        [('Guide', 'It is in Rome.', 1.0)]
    """

    claim: int
    start: int
    end: int
    source: int
    id: str
    title: str
    text: str
    source_start: int
    source_end: int
    score: float
    low: float
    high: float
    share: float


def claims(result: SourceAttribution) -> tuple[Claim, ...]:
    """The claims of an answer, in order; see `Claim`."""
    several = result.value == "logprob" and len(result.columns) > 1
    columns = range(1, len(result.columns)) if several else [result.column]
    spans = result.spans if several else ((0, len(result.answer)),)
    found = []
    for (start, end), column in zip(spans, columns, strict=True):
        without, with_all = (float(v) for v in result.values[:, column])
        gain = with_all - without
        votes = result.value == "votes"
        support = gain if votes else (gain / -without if without < 0 else 0.0)
        least = VOTE if votes else NAT
        verdict: Verdict = "supported"
        if gain <= -least:
            verdict = "contradicted"
        elif gain < least or support < MEMORY:
            verdict = "from memory"
        table = result.documents
        scores = table.table[:, column]
        found.append(
            Claim(
                result.answer[start:end] if not votes else result.columns[column],
                start,
                end,
                tuple(scores.tolist()),
                tuple(table.low_table[:, column].tolist()),
                tuple(table.high_table[:, column].tolist()),
                tuple((scores / max(abs(gain), least)).tolist()),
                without,
                with_all,
                support,
                verdict,
            )
        )
    return tuple(found)


def citations(
    result: SourceAttribution, share: float = SHARE, top: int | None = None, of_best: float = OF_BEST
) -> tuple[Citation, ...]:
    """The sources that carry each claim, strongest first; see `SourceAttribution.cite`."""
    if not (share >= 0 and 0 <= of_best <= 1):
        raise InputError(f"share is 0 or more and of_best 0 to 1, got {share!r} and {of_best!r}")
    if top is not None and top < 1:
        raise InputError(f"top is the number of sources a claim at most, 1 or more, got {top!r}")
    several = result.value == "logprob" and len(result.columns) > 1
    found = []
    for number, claim in enumerate(result.claims):
        column = number + 1 if several else result.column
        sure = result.documents.above(column=column)
        least = max(share, of_best * max(claim.shares) - 1e-6)
        cited = [k for k in sure if claim.shares[k] >= least][:top]
        for k in cited:
            source, document = result.documents.sources[k], result.sources[k]
            start, end = _passage(result, k, column) or (source.start, source.end)
            text = result.originals[source.document].text[start:end]
            lead = len(text) - len(text.lstrip())
            bare = text.strip()
            found.append(
                Citation(
                    number,
                    claim.start,
                    claim.end,
                    k,
                    document.id,
                    document.title,
                    bare,
                    start + lead,
                    start + lead + len(bare),
                    claim.scores[k],
                    claim.low[k],
                    claim.high[k],
                    claim.shares[k],
                )
            )
    return tuple(found)


def _passage(result: SourceAttribution, k: int, column: int) -> tuple[int, int] | None:
    """The sentence of source k that carries most, where one surely does."""
    level, source = result.sentences, result.documents.sources[k]
    if level is None:
        return None
    inside = [i for i, s in enumerate(level.sources) if s.within(source)]
    best = max(inside, key=lambda i: level.table[i, column], default=None)
    if best is None or level.low_table[best, column] <= 0:
        return None
    return level.sources[best].start, level.sources[best].end

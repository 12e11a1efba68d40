"""AMPLIFY: shots that the model gets wrong, with a small model's reasons (arXiv 2305.11426, section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from amplify.methods.explained import Explained, ExplainedMethod, rationale_form
from amplify.methods.program import ShotProgram, with_rationales
from amplify.models.base import LanguageModel
from amplify.registry import register
from amplify.types import Rationale

if TYPE_CHECKING:
    from amplify.tasks import Task


@register("method", "amplify")
@dataclass(frozen=True)
class Amplify(ExplainedMethod):
    """Few-shot prompting with rationales from a proxy's gradients; the model writes its own, then answers.

    1. A small proxy is fine-tuned on the training split. 2. The model answers the validation split; of what it gets
    wrong, the shots are those on which the proxy is most confidently wrong. 3. The proxy's score of the *gold* label,
    against the label wrongly given, is attributed to the words of the input, and the top k are cited. 4. Input,
    rationale and label of each shot stand before the question.
    """

    def fit(self, task: Task, model: LanguageModel, seed: int) -> ShotProgram:
        """Select, explain, verbalise."""
        notes = self.notes_on(task, model)
        found = self.explained(task, model, seed)
        return in_words(self, task, found, top_words(self, found), notes)


def top_words(method: ExplainedMethod, found: Explained) -> list[Rationale | None]:
    """Each shot's rationale from its own attribution; None where no word speaks for its label, or the gate shut."""
    made = zip(found.attributions, found.labels, strict=True)
    return [None if i in found.failed else method.worded(a, label) for i, (a, label) in enumerate(made)]


def in_words(
    method: ExplainedMethod,
    task: Task,
    found: Explained,
    rationales: Sequence[Rationale | None],
    notes: Sequence[str] = (),
) -> ShotProgram:
    """The program with these rationales behind the shots; a shot whose rationale is None shows its answer alone."""
    noted = list(notes)
    if dropped := sum(r is None for i, r in enumerate(rationales) if i not in found.failed):
        noted.append(f"{dropped} of {len(rationales)} rationales dropped: no word speaks for the label")
    if short := sum(r is not None and len(r.words) < method.k for r in rationales):
        noted.append(f"{short} of {len(rationales)} rationales have fewer than {method.k} words to cite")
    shots = with_rationales(found.shots, rationales)
    return ShotProgram(rationale_form(method, task, rationales), shots, (*found.notes, *noted), found.meta)

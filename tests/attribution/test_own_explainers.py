"""An explainer of one's own: registered, asked for by name, checked, beside those that are built in."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

import amplify
from amplify.attribution import METHODS
from amplify.attribution.explainers import Case, Explainer
from amplify.errors import CapabilityError, InputError, UnknownNameError
from amplify.methods import make
from amplify.models.scripted import ScriptedGenerator, ScriptedModel
from amplify.registry import table

TEXT = "good bad great awful"


@pytest.fixture
def own() -> Iterator[Callable[[str], None]]:
    names: list[str] = []
    yield names.append
    for name in names:
        table("explainer").remove(name)


def toy() -> ScriptedModel:
    worth = {"good": 1.0, "great": 2.0, "awful": -3.0}
    return ScriptedModel(logprob=lambda text, continuation: sum(worth.get(w, 0.0) for w in text.split()) - 9)


def alone(case: Case) -> np.ndarray:
    """What each word gives by itself."""
    only = np.eye(len(case.words), dtype=bool)
    nothing = np.zeros((1, len(case.words)), dtype=bool)
    values = case.value(np.concatenate([only, nothing]))
    return np.asarray(values[:-1] - values[-1])


def test_a_function_of_a_case_is_an_explainer(own: Callable[[str], None]) -> None:
    own("alone")
    amplify.register("explainer", "alone")(alone)
    assert METHODS["alone"].summary == "What each word gives by itself."
    model = toy()
    both = amplify.explain_many([TEXT], [" x"], model=model, methods=["alone", "occlusion"])
    assert both["alone"][0].scores == (1.0, 0.0, 2.0, -3.0)
    found = both["alone"][0]
    assert (found.method, found.budget, found.low, found.seed) == ("alone", 5, found.scores, None)
    assert found.meta["masking"] == "delete"
    own("again")
    amplify.register("explainer", "again")(alone)
    before = len(model.calls)
    amplify.explain_many([TEXT], [" x"], model=model, methods=["alone", "again"])
    assert len(model.calls) == before + 5  # explainers of one input share what was asked
    assert make("amplify", explainer="alone").label == "amplify[explainer=alone]"


def test_what_an_explainer_says_of_itself_counts(own: Callable[[str], None]) -> None:
    own("length")
    explainer = Explainer(
        "baseline", "long words", lambda case: [len(w) for w in case.words], contrastive=False, signed=False
    )
    amplify.register("explainer", "length", explainer)
    generator = ScriptedGenerator("scripted:x", reply=lambda text: "x")
    found = amplify.explain(TEXT, " x", foil=" y", model=generator, method="length")
    assert found.scores == (4.0, 3.0, 5.0, 5.0)
    assert (found.foil, found.signed, found.budget) == (None, False, 0)
    own("inside")
    amplify.register("explainer", "inside", Explainer("embedding", "x", lambda case: [0.0] * len(case.words)))
    with pytest.raises(CapabilityError, match=r"inside looks inside the model.*length"):
        amplify.explain(TEXT, " x", model=toy(), method="inside")


def test_bad_explainers(own: Callable[[str], None]) -> None:
    own("short")
    amplify.register("explainer", "short", lambda case: [1.0])
    with pytest.raises(InputError, match=r"short gives scores of shape \(1,\) for 4 words"):
        amplify.explain(TEXT, " x", model=toy(), method="short")
    with pytest.raises(InputError, match="a function of a Case"):
        amplify.register("explainer", "odd", 3)
    with pytest.raises(UnknownNameError, match=r"Did you mean 'occlusion'.*Or 'auto'"):
        amplify.explain(TEXT, " x", model=toy(), method="oclusion")

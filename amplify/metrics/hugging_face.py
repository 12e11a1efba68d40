"""A metric of Hugging Face `evaluate` as a task's metric: each item is scored by itself, and the mean is reported."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from numbers import Real
from typing import Any

from amplify.errors import AmplifyError, DataError, InputError

PREFIX = "evaluate:"


@cache
def evaluate_metric(name: str) -> tuple[str, Callable[[str, str], float]]:
    """What "evaluate:FOLDER" or "evaluate:NAME" stands for, with "#KEY" for one of its several scores.

    Args:
        name: FOLDER holds a module of `evaluate` (or is its .py file); NAME is had from the hub. Both are code that
            runs here. Without a KEY its first score counts.

    Returns:
        A description, and the score of a prediction against a reference.

    Raises:
        DataError: it cannot be loaded.
        InputError: it compares something else than texts.
    """
    place, _, key = name.removeprefix(PREFIX).partition("#")
    import evaluate

    try:
        module = evaluate.load(place)
    except Exception as error:
        raise DataError(
            f"the metric {place!r} of Hugging Face evaluate cannot be loaded ({type(error).__name__}: "
            f"{str(error)[:200]}): give the folder of a module, or a name while the hub can be reached"
        ) from error
    features = module.features[0] if isinstance(module.features, list) else module.features
    if set(features) != {"predictions", "references"} or getattr(features["predictions"], "dtype", "") != "string":
        raise InputError(f"the metric {name!r} takes {features}: a task's metric compares one text with another")
    several = getattr(features["references"], "dtype", "") != "string"
    return f"mean of the items' scores by {place} of Hugging Face evaluate", _item(module, name, key, several)


def _item(module: Any, name: str, key: str, several: bool) -> Callable[[str, str], float]:
    def item(prediction: str, reference: str) -> float:
        try:
            found = module.compute(predictions=[prediction], references=[[reference] if several else reference])
        except AmplifyError:
            raise
        except Exception as error:
            raise InputError(
                f"the metric {name!r} fails on {prediction[:60]!r} against {reference[:60]!r}: {error}"
            ) from error
        numbers = {k: float(v) for k, v in found.items() if not isinstance(v, bool) and isinstance(v, Real)}
        if (key and key not in numbers) or not numbers:
            raise InputError(
                f"the metric {name!r} gives no number {key!r}; it gives {', '.join(numbers) or 'none'}: name one of "
                f"them, {PREFIX}{name.removeprefix(PREFIX).partition('#')[0]}#NAME"
            )
        score = numbers[key or next(iter(numbers))]
        if math.isnan(score):
            raise InputError(f"the metric {name!r} gives NaN for {prediction[:60]!r} against {reference[:60]!r}")
        return score

    return item

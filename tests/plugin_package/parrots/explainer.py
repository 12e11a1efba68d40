"""An explainer: how likely the target is when only one word is left."""

import numpy as np

import amplify


@amplify.register("explainer", "alone")
def alone(case):
    """What each word gives by itself, more than nothing does."""
    n = len(case.words)
    nothing_and_each = np.concatenate([np.zeros((1, n), dtype=bool), np.eye(n, dtype=bool)])
    values = case.value(nothing_and_each)  # the score of the target, less that of the foil, for each row
    return values[1:] - values[0]

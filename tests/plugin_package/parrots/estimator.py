"""An estimator: what is lost without each source."""

import numpy as np

import amplify


@amplify.register("estimator", "drop_one")
def drop_one(game, index, budget, seed):
    """The value of everything less that without each source."""
    all_and_without = np.concatenate([np.ones((1, game.n), dtype=bool), ~np.eye(game.n, dtype=bool)])
    values = game(all_and_without)  # (coalitions, answers)
    return values[0] - values[1:]

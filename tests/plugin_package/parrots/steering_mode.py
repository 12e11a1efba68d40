"""A steering mode: a weight on the spans that depends on the bonus alone."""

import amplify


@amplify.register("steering_mode", "gentle")
def gentle(steering):
    """One more than the bonus, whatever the heads."""
    return 1.0 + abs(steering.bonus)

"""One extension of each kind; importing this registers them all."""

import parrots.estimator
import parrots.explainer
import parrots.method
import parrots.metric
import parrots.model
import parrots.own_program
import parrots.retriever
import parrots.selection
import parrots.steering_mode
import parrots.task_format
import parrots.variant  # noqa: F401

"""Proxies: small models that stand in for the large one where its gradients and probabilities cannot be had.

An *encoder* proxy has a classification head: one logit per label, or, where every example brings its own choices, one
logit per (input, option) pair from a shared head. A *causal* proxy is any language model: its score of a label is the
log-probability of the label's tokens behind a prompt. Either way an example becomes a few `Row`s, each one sequence
through the model that scores one or more of its labels; the gradient explainers build on the same rows.
"""

from amplify.proxies.proxy import Proxy, Row, softmax, versions
from amplify.proxies.training import CARD, list_proxies, load_proxy, train_proxy

__all__ = ["CARD", "Proxy", "Row", "list_proxies", "load_proxy", "softmax", "train_proxy", "versions"]

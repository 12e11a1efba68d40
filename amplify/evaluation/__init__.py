"""Evaluation: a resumable run in a folder, its statistics and its report."""

from amplify.evaluation.planning import Plan, plan
from amplify.evaluation.report import Report, load_report
from amplify.evaluation.results import Comparison, Row
from amplify.evaluation.run import evaluate

__all__ = ["Comparison", "Plan", "Report", "Row", "evaluate", "load_report", "plan"]

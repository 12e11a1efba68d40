"""Evaluation: a resumable run in a folder, its statistics and its report."""

from amplify.evaluation.planning import Plan, plan
from amplify.evaluation.report import Comparison, Report, Row, load_report
from amplify.evaluation.run import evaluate

__all__ = ["Comparison", "Plan", "Report", "Row", "evaluate", "load_report", "plan"]

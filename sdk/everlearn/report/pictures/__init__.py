"""The pictures of a report: what a benchmark found, as matplotlib figures."""

from everlearn.report.pictures.between_classes import confusion
from everlearn.report.pictures.between_methods import cost, errors, forgetting
from everlearn.report.pictures.over_tasks import accuracy, matrix
from everlearn.report.pictures.style import plain
from everlearn.report.pictures.sureness import reliability, strangers

__all__ = [
    "accuracy",
    "confusion",
    "cost",
    "errors",
    "forgetting",
    "matrix",
    "plain",
    "reliability",
    "strangers",
]

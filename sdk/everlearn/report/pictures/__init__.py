"""The pictures of a report, each a matplotlib figure; made and saved under `style`."""

from everlearn.report.pictures.between_classes import confusion, numbered
from everlearn.report.pictures.between_methods import errors, forgetting, learning_time, memory, parameters
from everlearn.report.pictures.fonts import plain
from everlearn.report.pictures.over_tasks import accuracy, matrix
from everlearn.report.pictures.save import as_png, as_svg
from everlearn.report.pictures.style import style
from everlearn.report.pictures.sureness import over_images, reliability, strangers

__all__ = [
    "accuracy",
    "as_png",
    "as_svg",
    "confusion",
    "errors",
    "forgetting",
    "learning_time",
    "matrix",
    "memory",
    "numbered",
    "over_images",
    "parameters",
    "plain",
    "reliability",
    "strangers",
    "style",
]

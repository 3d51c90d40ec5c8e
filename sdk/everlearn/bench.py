"""`everlearn.evaluation.bench`, by its short name."""

from everlearn.evaluation.bench import Bench, bench

__all__ = ["Bench", "bench"]

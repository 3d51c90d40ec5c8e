"""SAFE: its idea, and what the authors' released code does otherwise."""

from everlearn.methods.safe.method import SAFE

__all__ = ["SAFE"]

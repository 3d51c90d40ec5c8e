"""The version of all three packages, which are one distribution; `pyproject.toml` reads it here."""

__version__ = "0.1.0"

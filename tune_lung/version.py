"""The version, where every part of the package finds it."""

__version__ = "0.1.0"

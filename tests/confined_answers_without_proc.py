"""The same answers, in a child on a system that does not say what memory it has, as macOS."""

from pathlib import Path

from tune_lung import confined

from tests.confined_answers import answer

__all__ = ["answer"]

confined._MEMORY_IN_PAGES = Path("/nowhere")

"""Begin a run, as a search does, and let it go: `python -m tests.faults.beginning RUN`."""

import sys
from pathlib import Path

import pandas as pd

from tune_lung.files import write_json_with_digest
from tune_lung.results.beginning import begin_run
from tune_lung.results.ledger import Ledger

from tests.whole_manifest import whole_manifest

MANIFEST = whole_manifest(("a", "b"))


def fill(ledger: Ledger) -> None:
    """Write lessons and images."""
    write_json_with_digest(ledger.paths.lessons, {"trials": []}, check_writer=ledger.check_writer)
    ledger.write_images(pd.DataFrame({"path": ["a/1.png"]}))


def begun(root: Path) -> None:
    """Begin a run and let it go."""
    _, ownership = begin_run(root, MANIFEST, fill, is_named=True)
    ownership.release()


if __name__ == "__main__":
    begun(Path(sys.argv[1]))
